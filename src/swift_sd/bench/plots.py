"""The page's plots, as SVG that takes its text colour from the page around it."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from swift_sd.bench.statistics import OVERALL, pairs_by_method
from swift_sd.bench.table import groups_of
from swift_sd.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 4.4  # inches; narrow, so that text is still legible when a phone shows it at 330 pixels
INK = "#010203"  # stands for the page's text colour
FADED = 0.35
# Told apart by most colour-blind readers, on white and on dark (after Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d3b", "#7f7f7f")
PHASES = ("prefill", "draft", "verify", "accept", "adapt", "other")
LINES = ("-", "--", ":")  # for more methods than colours
SMOOTHED = 5  # questions of which the line over the stream shows the median


def speedup_plot(results: dict[str, Any]) -> str:
    """Speedup by group: each question a dot, the range of them a line, the whole a bar."""
    pairs = pairs_by_method(results["records"])
    summary = results["summary"]
    groups, methods = groups_of(summary), list(summary)
    height = 0.9 + len(groups) * (0.14 * len(methods) + 0.14)

    def draw(axes: Axes) -> None:
        step = 0.84 / len(methods)
        for rank, method in enumerate(methods):
            for row, group in enumerate(groups):
                if group not in summary[method]:
                    continue
                y = row + (rank - (len(methods) - 1) / 2) * step
                figures, colour = summary[method][group], _colour(results, method)
                dots = [p.speedup for p in pairs[method] if group in (p.group, OVERALL)]
                axes.plot([figures["min"], figures["max"]], [y, y], color=colour, linewidth=1)
                axes.plot(dots, [y] * len(dots), ".", color=colour, alpha=FADED, markersize=5)
                label = method if row == 0 else None
                axes.plot(figures["speedup"], y, "|", color=colour, ms=9, mew=2.5, label=label)
        axes.axvline(1, color=INK, linewidth=1)
        for row in range(1, len(groups)):
            axes.axhline(row - 0.5, color=INK, linewidth=0.5, alpha=FADED)
        axes.set_yticks(range(len(groups)), [_words(group) for group in groups])
        axes.set_ylim(len(groups) - 0.45, -0.55)
        axes.set_xlim(left=0)
        axes.set_xlabel("speedup over hf (1 = as fast)")

    return _svg("speedup", "Speedup over hf by group and method", draw, height, len(methods))


def accepted_plot(results: dict[str, Any]) -> str | None:
    """How many tokens of a draft were accepted, as a share of all drafts; None without drafts."""
    histograms: dict[str, Counter[int]] = {}
    for record in results["records"]:
        counts = {int(n): count for n, count in (record.get("accepted_histogram") or {}).items()}
        if counts:
            histograms.setdefault(record["method"], Counter()).update(counts)
    if not histograms:
        return None

    def draw(axes: Axes) -> None:
        width = 0.84 / len(histograms)
        for rank, (method, counts) in enumerate(histograms.items()):
            total = sum(counts.values())
            at = [n + (rank - (len(histograms) - 1) / 2) * width for n in counts]
            shares = [100 * count / total for count in counts.values()]
            axes.bar(at, shares, width, color=_colour(results, method), label=method)
        longest = max(max(counts) for counts in histograms.values())
        axes.set_xticks(range(0, longest + 1, max(1, -(-longest // 10))))
        axes.set_xlabel("accepted tokens of a draft")
        axes.set_ylabel("% of drafts")

    label = "How many tokens of a draft were accepted"
    return _svg("accepted", label, draw, 2.9, len(histograms))


def time_plot(results: dict[str, Any]) -> str | None:
    """Where the time goes, in milliseconds per new token; None without a method that tells."""
    splits: dict[str, Counter[str]] = {}
    tokens: Counter[str] = Counter()
    for record in results["records"]:
        if record.get("time_split"):
            split = Counter(record["time_split"])
            split["other"] += max(record["seconds"] - split.total(), 0.0)  # around the loop
            splits.setdefault(record["method"], Counter()).update(split)
            tokens[record["method"]] += record["new_tokens"]
    if not splits:
        return None
    rows = [*splits, "hf"]
    seen = [record for record in results["records"] if record["method"] in splits]
    base = sum(r["hf_seconds"] for r in seen) / sum(r["hf_new_tokens"] for r in seen)

    def draw(axes: Axes) -> None:
        start = dict.fromkeys(splits, 0.0)
        for phase, colour in zip(PHASES, COLOURS, strict=False):
            if not any(split[phase] for split in splits.values()):
                continue
            parts = {m: 1e3 * split[phase] / tokens[m] for m, split in splits.items()}
            axes.barh(
                list(range(len(splits))),
                list(parts.values()),
                0.6,
                left=list(start.values()),
                color=colour,
                label=phase,
            )
            start = {method: start[method] + parts[method] for method in splits}
        axes.barh(len(splits), 1e3 * base, 0.6, color=COLOURS[-1], label="hf, all of it")
        axes.set_yticks(range(len(rows)), rows)
        axes.invert_yaxis()
        axes.set_xlabel("ms per new token")

    label = "Where the time goes, in milliseconds per new token"
    return _svg("time", label, draw, 1.5 + 0.36 * len(rows), len(PHASES) + 1)


def stream_plot(results: dict[str, Any]) -> str:
    """Speedup question by question, in the order in which they were asked."""
    pairs = pairs_by_method(results["records"])

    def draw(axes: Axes) -> None:
        for method, asked in pairs.items():
            speedups = [pair.speedup for pair in asked]
            colour, at = _colour(results, method), range(1, len(speedups) + 1)
            axes.plot(at, speedups, ".", color=colour, alpha=FADED, markersize=5)
            line = LINES[list(pairs).index(method) // len(COLOURS) % len(LINES)]
            axes.plot(at, _smoothed(speedups), line, color=colour, linewidth=1.6, label=method)
        axes.axhline(1, color=INK, linewidth=1)
        axes.set_ylim(bottom=0)
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("question")
        axes.set_ylabel("speedup over hf")

    return _svg("stream", "Speedup over hf from question to question", draw, 2.9, len(pairs))


def search_plot(results: dict[str, Any]) -> str | None:
    """How searches settle, question by question; None without any.

    Solid is the share of the time that the search took, dashed are the sublayers skipped then.
    """
    courses: dict[str, list[tuple[float, int]]] = {}
    for record in results["records"]:
        split, skipped = record.get("time_split"), record.get("layer_set")
        if split and skipped:
            share = 100 * split.get("adapt", 0.0) / record["seconds"]
            count = len(skipped["attention"]) + len(skipped["mlp"])
            courses.setdefault(record["method"], []).append((share, count))
    courses = {method: found for method, found in courses.items() if any(s for s, _ in found)}
    if not courses:
        return None

    def draw(axes: Axes) -> None:
        counted = axes.twinx()
        for method, course in courses.items():
            shares, counts = zip(*course, strict=True)
            colour, at = _colour(results, method), range(1, len(course) + 1)
            axes.plot(at, shares, "-", color=colour, linewidth=1.6, label=method)
            counted.plot(at, counts, "--", color=colour, linewidth=1.2)
        for one, label in ((axes, "% of the time (solid)"), (counted, "skipped (dashed)")):
            one.set_ylim(bottom=0)
            one.set_ylabel(label)
        counted.locator_params(axis="y", integer=True)
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("answer")

    label = "Time spent searching and sublayers skipped, from answer to answer"
    return _svg("search", label, draw, 2.6, len(courses))


def _words(name: str) -> str:
    """As it is to be read; a dollar sign would begin a formula."""
    return name.replace("_", " ").replace("$", r"\$")


def _smoothed(values: Sequence[float]) -> list[float]:
    """The median of each value and the few before it."""
    return [median(values[max(0, i - SMOOTHED + 1) : i + 1]) for i in range(len(values))]


def _colour(results: dict[str, Any], method: str) -> str:
    """A method has one colour in all plots."""
    return COLOURS[list(results["summary"]).index(method) % len(COLOURS)]


def _svg(name: str, label: str, draw: Callable[[Axes], None], height: float, entries: int) -> str:
    """One plot as an `<svg>` element without anything outside it.

    Args:
        name: makes the ids in it differ from those of other plots on the page.
        label: for those who cannot see it.
        height: inches, the legend not counted.
        entries: in the legend, at most.
    """
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            "the page's plots need matplotlib: run pip install 'swift-sd[bench]'"
        ) from None
    look: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": 9.5,
        **{f"{part}.color": INK for part in ("text", "xtick", "ytick")},
        **{f"axes.{part}": INK for part in ("edgecolor", "labelcolor")},
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    legend_rows = -(-entries // 3)
    with mpl.rc_context(look):
        figure = Figure(figsize=(WIDTH, height + 0.22 * legend_rows), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        draw(axes)
        figure.legend(
            loc="outside upper left", ncols=3, frameon=False, columnspacing=1, handletextpad=0.5
        )
        text = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    return _embedded(text.getvalue(), name, label)


def _embedded(svg: str, name: str, label: str) -> str:
    """Ready to stand in HTML: no namespaces, ids of its own, the page's colour and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r"(\bid=\"|url\(#|href=\"#)", rf"\g<1>{name}-", svg)
    svg = svg.replace(INK, "currentColor")
    svg = re.sub(r'^<svg\b[^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1">', svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}" class="plot"', 1)
