"""From records to figures: ratios paired question by question, and how sure they are."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from swift_sd.bench.journal import Entry

RESAMPLES = 2000
COVERAGE = 0.95
ENUMERATED, DRAWN = 12, 20_000
OVERALL = "overall"


@dataclass(frozen=True)
class Pair:
    """A method and `hf` at one question, its turns taken together.

    Attributes:
        identical: whether all turns gave `hf`'s ids; None when sampling.
        turns: those that were timed.
        prompt_tokens: of the first of them.
    """

    question_id: int | str
    group: str
    seconds: float
    new_tokens: int
    hf_seconds: float
    hf_new_tokens: int
    identical: bool | None
    turns: tuple[int, ...] = (0,)
    prompt_tokens: int | None = None

    @property
    def speedup(self) -> float:
        """`hf`'s seconds per token ÷ the method's."""
        return (self.hf_seconds / self.hf_new_tokens) / (self.seconds / self.new_tokens)


def pairs_by_method(records: Iterable[Entry]) -> dict[str, list[Pair]]:
    """The questions of each method, in the order in which they were asked."""
    turns: dict[str, dict[int | str, list[Entry]]] = {}
    for record in records:
        questions = turns.setdefault(record["method"], {})
        questions.setdefault(record["question_id"], []).append(record)
    return {
        method: [_together(records) for records in questions.values()]
        for method, questions in turns.items()
    }


def ratio_of_sums(pairs: Sequence[Pair]) -> float:
    """(Σ hf_seconds ÷ Σ hf_new_tokens) ÷ (Σ seconds ÷ Σ new_tokens).

    That is: how much more tokens a second the method makes over all these questions than `hf`
    timed next to it. Long answers weigh more, as they do for whoever waits for them.
    """
    base = sum(pair.hf_seconds for pair in pairs) / sum(pair.hf_new_tokens for pair in pairs)
    return base / (sum(pair.seconds for pair in pairs) / sum(pair.new_tokens for pair in pairs))


def interval_of(pairs: Sequence[Pair], seed: int) -> list[float] | None:
    """`bootstrap` of `ratio_of_sums`."""
    rows = [(pair.hf_seconds, pair.hf_new_tokens, pair.seconds, pair.new_tokens) for pair in pairs]

    def ratio(drawn: Any) -> Any:
        sums = drawn.sum(axis=1)
        return (sums[:, 0] / sums[:, 1]) / (sums[:, 2] / sums[:, 3])

    return bootstrap(rows, ratio, seed)


def bootstrap(
    rows: Sequence[Sequence[float]], statistic: Callable[[Any], Any], seed: int
) -> list[float] | None:
    """Bounds of a 95 % interval, by drawing questions again with replacement.

    The same seed gives the same interval. None for a single question, of which the spread cannot
    be known. With few questions the interval is too narrow: no resampling shows what was not asked.

    Args:
        rows: numbers of each question.
        statistic: from `[draws, questions, numbers]` to one value for each draw.
    """
    import numpy as np

    if len(rows) < 2:
        return None
    draws = np.random.default_rng(seed).integers(len(rows), size=(RESAMPLES, len(rows)))
    values = statistic(np.asarray(rows, dtype=float)[draws])
    tail = (1 - COVERAGE) / 2
    return [float(bound) for bound in np.quantile(values, [tail, 1 - tail])]


def sign_flip_p_value(changes: Sequence[float], seed: int) -> float:
    """How often chance alone gives a mean at least as far from 0 (Fisher 1935, section 21).

    If nothing has changed, each change might as well have had the other sign. Of up to `ENUMERATED`
    changes all combinations of signs are counted, of more a sample.
    """
    import numpy as np

    values = np.asarray(changes, dtype=float)
    if len(values) <= ENUMERATED:
        signs = 1 - 2 * (np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1)
    else:
        signs = np.random.default_rng(seed).choice([-1, 1], size=(DRAWN, len(values)))
        signs[0] = 1  # what was seen is one of the possibilities
    sums, seen = np.abs(signs @ values), abs(values.sum())
    return float((sums >= seen * (1 - 1e-12)).mean())


def summarise(records: Iterable[Entry], seed: int = 0) -> dict[str, dict[str, dict[str, Any]]]:
    """`{method: {group: figures}}`, the group "overall" being all questions.

    `speedup` is `ratio_of_sums`, `interval` its bootstrap; `min`, `median` and `max` are of the
    single questions' speedups; `identical` counts the questions with `hf`'s ids in all turns (None
    when sampling) out of `questions`.
    """
    return {
        method: {
            group: _figures(members, seed)
            for group, members in {**_by_group(pairs), OVERALL: pairs}.items()
        }
        for method, pairs in pairs_by_method(records).items()
    }


def _figures(pairs: Sequence[Pair], seed: int) -> dict[str, Any]:
    speedups = [pair.speedup for pair in pairs]
    sampled = any(pair.identical is None for pair in pairs)
    return {
        "speedup": ratio_of_sums(pairs),
        "interval": interval_of(pairs, seed),
        "min": min(speedups),
        "median": statistics.median(speedups),
        "max": max(speedups),
        "identical": None if sampled else sum(bool(pair.identical) for pair in pairs),
        "questions": len(pairs),
    }


def _by_group(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.group, []).append(pair)
    return groups


def _together(turns: Sequence[Entry]) -> Pair:
    same = [turn["identical"] for turn in turns]
    return Pair(
        question_id=turns[0]["question_id"],
        group=turns[0]["group"],
        seconds=sum(turn["seconds"] for turn in turns),
        new_tokens=sum(turn["new_tokens"] for turn in turns),
        hf_seconds=sum(turn["hf_seconds"] for turn in turns),
        hf_new_tokens=sum(turn["hf_new_tokens"] for turn in turns),
        identical=None if None in same else all(same),
        turns=tuple(sorted(turn["turn"] for turn in turns)),
        prompt_tokens=min(turns, key=lambda turn: turn["turn"]).get("prompt_tokens"),
    )
