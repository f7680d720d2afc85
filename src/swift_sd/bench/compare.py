"""What changed between two runs, and what is only noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from swift_sd.bench.settings import difference, short_name
from swift_sd.bench.statistics import OVERALL, Pair, bootstrap, pairs_by_method, sign_flip_p_value
from swift_sd.errors import ConfigError

SAME_WORK = ("digest", "max_new_tokens", "temperature", "stream")
NOTED = ("cpu", "accelerator", "cores", "threads", "torch", "transformers", "commit")  # of machines
ALSO_NOTED = ("repeats", "draft_model", "layer_set", "seed")  # of settings
BY_CHANCE = 0.05
FEWEST = 6  # all of five questions lean to one side by chance once in sixteen
FASTER, SLOWER, NOISE, TOO_FEW = "faster", "slower", "within noise", "too few"


def compare(
    before: dict[str, Any], after: dict[str, Any], *, force: bool = False
) -> list[dict[str, Any]]:
    """One row for each method and group that both runs have.

    Where they asked the same questions, `ratio` is the geometric mean over these of the later
    speedup ÷ the earlier, and `interval` its bootstrap; beyond noise is what chance alone would
    give once in twenty times, see `sign_flip_p_value`. Without a question in common, `ratio` is
    that of the groups' speedups, and beyond noise are intervals that do not overlap.

    Args:
        force: also compare what was not the same work.

    Raises:
        ConfigError: the runs did different work, or no method and group is in both.
    """
    differs = (
        difference(_model(after, before), _model(before, after), ("model",))
        or difference(after["settings"], before["settings"], SAME_WORK)
        or difference(after["environment"], before["environment"], ("dtype",))
    )
    if differs is not None and not force:
        raise ConfigError(
            f"the two runs did different work ({differs}): repeat one of them, or compare all the "
            "same with --force"
        )
    pairs_before = pairs_by_method(before["records"])
    pairs_after = pairs_by_method(after["records"])
    seed = after["settings"].get("seed") or 0
    is_same = before["settings"].get("digest") == after["settings"].get("digest")
    rows = []
    for method in after["summary"]:
        for group in after["summary"][method]:
            earlier = before["summary"].get(method, {}).get(group)
            if earlier is None:
                continue
            shared = _shared(pairs_before[method], pairs_after[method], group, is_same=is_same)
            later = after["summary"][method][group]
            judged = _paired(shared, seed) if shared else _apart(earlier, later)
            figures = {"before": earlier["speedup"], "after": later["speedup"]}
            rows.append({"method": method, "group": group, **figures, **judged})
    if not rows:
        raise ConfigError("the two runs have no method and group in common: nothing to compare")
    return rows


def notes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What else differs between two runs, in sentences."""
    said = []
    for part, names in (("environment", NOTED), ("settings", ALSO_NOTED)):
        one, other = before[part], after[part]
        for name in names:
            if one.get(name) != other.get(name):
                said.append(f"{name} is {one.get(name)} in A and {other.get(name)} in B.")
    for name, mine, others in (("A", before, after), ("B", after, before)):
        alone = [method for method in mine["summary"] if method not in others["summary"]]
        if alone:
            said.append(f"Only in {name}: {', '.join(alone)}.")
    for method, groups in after["summary"].items():
        earlier, later = (
            (figures[OVERALL]["identical"], figures[OVERALL]["questions"])
            for figures in (before["summary"].get(method, groups), groups)
        )
        if earlier != later and None not in (earlier[0], later[0]):
            said.append(
                f"{method} gave hf's tokens in {earlier[0]} of {earlier[1]} questions in A, "
                f"in {later[0]} of {later[1]} in B."
            )
    return said


def _model(run: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Which model a run was of: by its weights where both say, else by its name."""
    digests = [(one["environment"].get("model") or {}).get("digest") for one in (run, other)]
    # Before digests told their scheme they were shorter.
    comparable = all(digests) and len({len(str(digest)) for digest in digests}) == 1
    return {"model": digests[0] if comparable else short_name(run["settings"]["model"])}


def comparison_table(rows: Sequence[dict[str, Any]]) -> Table:
    """For a terminal."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), header_style="bold")
    for column in ("method", "group"):
        table.add_column(column, no_wrap=True)
    for column in ("A", "B", "B ÷ A", "95 %"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for row in rows:
        low_high = "–" if row["interval"] is None else "{:.2f}–{:.2f}".format(*row["interval"])
        table.add_row(
            escape(row["method"]),
            escape(row["group"]),
            f"{row['before']:.2f}",
            f"{row['after']:.2f}",
            f"{row['ratio']:.2f}",
            low_high,
            row["verdict"],
            style="bold" if row["group"] == OVERALL else None,
        )
    return table


def _shared(
    before: Sequence[Pair], after: Sequence[Pair], group: str, *, is_same: bool
) -> list[float]:
    """Logarithms of the later speedup ÷ the earlier, for each question in both.

    Args:
        is_same: whether the questions are known to be; else the same number may mean another one.
    """
    earlier = {pair.question_id: pair for pair in before}

    def looks_alike(one: Pair, other: Pair) -> bool:
        return (one.group, one.prompt_tokens) == (other.group, other.prompt_tokens)

    return [
        math.log(pair.speedup / earlier[pair.question_id].speedup)
        for pair in after
        if pair.question_id in earlier
        and group in (pair.group, OVERALL)
        # An interrupted run may have the first turn only.
        and pair.turns == earlier[pair.question_id].turns
        and (is_same or looks_alike(pair, earlier[pair.question_id]))
    ]


def _paired(changes: Sequence[float], seed: int) -> dict[str, Any]:
    rows = [[change] for change in changes]
    bounds = bootstrap(rows, lambda drawn: drawn.mean(axis=(1, 2)), seed)
    interval = None if bounds is None else [math.exp(bound) for bound in bounds]
    ratio = math.exp(statistics.fmean(changes))
    verdict = TOO_FEW
    if len(changes) >= FEWEST:
        by_chance = sign_flip_p_value(changes, seed) > BY_CHANCE
        verdict = NOISE if by_chance else FASTER if ratio > 1 else SLOWER
    return {
        "ratio": ratio,
        "interval": interval,
        "questions": len(changes),
        "verdict": verdict,
    }


def _apart(earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """Different questions: only intervals that do not meet say something."""
    one, other = earlier.get("interval"), later.get("interval")
    verdict = TOO_FEW
    if one and other and min(earlier["questions"], later["questions"]) >= FEWEST:
        verdict = FASTER if other[0] > one[1] else SLOWER if other[1] < one[0] else NOISE
    ratio = later["speedup"] / earlier["speedup"]
    return {"ratio": ratio, "interval": None, "questions": 0, "verdict": verdict}
