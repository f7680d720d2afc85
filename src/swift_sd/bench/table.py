"""The results in a terminal: a table at the end, progress until then."""

from __future__ import annotations

from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from swift_sd.bench.method import HF
from swift_sd.bench.statistics import OVERALL

NOTABLE = 0.05  # seconds
COLUMNS = 4  # methods that fit next to each other on 80 characters


def live_progress() -> Progress:
    """Records done and time left, on stderr; nothing where that is no terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("[dim]{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
        # Questions differ much in length: only many of them foretell the rest.
        speed_estimate_period=3600,
    )


def summary_table(summary: dict[str, Any]) -> Table:
    """Speedups, one row a group and one column a method, with how many questions came out alike."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), header_style="bold")
    table.add_column("speedup over hf", no_wrap=True)
    for method in summary:
        table.add_column(escape(method), justify="right", no_wrap=True)
    for group in groups_of(summary):
        cells = [_cell(summary[method].get(group)) for method in summary]
        table.add_row(escape(group), *cells, style="bold" if group == OVERALL else None)
    return table


def groups_of(summary: dict[str, dict[str, Any]]) -> list[str]:
    """All groups in the order of their first question, "overall" last."""
    groups = {group: None for figures in summary.values() for group in figures}
    groups.pop(OVERALL, None)
    return [*groups, OVERALL] if summary else []


def print_results(results: dict[str, Any], console: Console) -> None:
    """The table, how to read it, and the warnings."""
    if results["summary"]:
        _print_figures(results, console)
    else:
        console.print("nothing was timed yet")
    for warning in results.get("warnings", []):
        console.print(f"Warning: {warning}", style="yellow", markup=False)


def set_up_seconds(results: dict[str, Any]) -> list[tuple[str, float]]:
    """Median seconds that making each method ready took, where that is worth a word."""
    found: dict[str, list[float]] = {}
    for record in results["records"]:
        if record.get("set_up_seconds") is not None:
            found.setdefault(record["method"], []).append(record["set_up_seconds"])
    medians = {method: median(seconds) for method, seconds in found.items()}
    return [(method, seconds) for method, seconds in medians.items() if seconds >= NOTABLE]


def rounding_of(results: dict[str, Any]) -> dict[str, str]:
    """By how much the rounded weights that drafts of a method read are off, in words."""
    views = {
        record["method"]: record["draft_view"]
        for record in results["records"]
        if record.get("draft_view") is not None
    }
    return {
        method: f"drafts in {view['bits']} bits, logits off by {view['relative_error']:.0%}"
        for method, view in views.items()
        if view["bits"] < 16
    }


def _print_figures(results: dict[str, Any], console: Console) -> None:
    methods = list(results["summary"])
    for first in range(0, len(methods), COLUMNS):
        some = methods[first : first + COLUMNS]
        console.print(summary_table({name: results["summary"][name] for name in some}))
    if HF in methods:
        console.print("hf is timed against itself too: what differs from 1 is noise.", style="dim")
    if results["settings"]["temperature"] == 0:
        console.print(
            "In brackets: questions whose token ids are hf's in every turn, of all questions.",
            style="dim",
        )
    for name, groups in results["summary"].items():
        if (words := _spread(groups[OVERALL])) is not None:
            console.print(f"{name}: {words}.", style="dim")
    for name, words in rounding_of(results).items():
        console.print(f"{name}: {words}.", style="dim")
    for name, seconds in set_up_seconds(results):
        console.print(f"{name} took {seconds:.1f} s to set up, not counted.", style="dim")
    if results["settings"].get("note"):
        console.print(f"Note: {results['settings']['note']}", markup=False)


def _spread(figures: dict[str, Any]) -> str | None:
    """How sure a speedup is and how far single questions lie apart; None for one question."""
    if figures["interval"] is None:
        return None
    low, high = figures["interval"]
    single = " to ".join(f"{figures[name]:.2f}" for name in ("min", "max"))
    return (
        f"95 % interval {low:.2f} to {high:.2f}; single questions {single}, median "
        f"{figures['median']:.2f}"
    )


def _cell(figures: dict[str, Any] | None) -> str:
    if figures is None:
        return "–"
    if figures["identical"] is None:
        return f"{figures['speedup']:.2f}"
    return f"{figures['speedup']:.2f} ({figures['identical']}/{figures['questions']})"
