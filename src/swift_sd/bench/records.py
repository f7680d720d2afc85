"""One line of the results: a method next to `hf` at one turn of one question."""

from __future__ import annotations

from typing import Any

from swift_sd.bench.journal import Entry
from swift_sd.bench.questions import Question
from swift_sd.bench.stopwatch import Timing, middle

# Of `Trace.summary()`, what the results keep.
KEPT = (
    "target_forwards",
    "drafted_tokens",
    "accepted_tokens",
    "acceptance_rate",
    "accepted_histogram",
    "time_split",
    "layer_set",
    "draft_view",
    "drafters",
)
ONLY_IN_JOURNAL = ("token_ids", "hf_token_ids")


def make_record(
    question: Question,
    turn: int,
    index: int,
    method: str,
    prompt_tokens: int,
    mine: list[Timing],
    theirs: list[Timing],
    greedy: bool,
) -> Entry:
    """What was measured, ready for JSON.

    `speedup` is `hf`'s seconds per token ÷ the method's. `identical` says whether all repeats gave
    `hf`'s ids; None when sampling, where they need not. `first_difference` is the position of the
    first new token that is another.

    Args:
        index: the question's place in the run.
        mine, theirs: timings of the method and of `hf`, in the order of the repeats; the repeat
            with the median speedup counts.
    """
    chosen, base = middle(mine, theirs)
    figures: dict[str, Any] = chosen.outcome.figures
    pairs = [
        (one.outcome.token_ids, other.outcome.token_ids)
        for one, other in zip(mine, theirs, strict=True)
    ]
    different = next((pair for pair in pairs if pair[0] != pair[1]), None)
    return {
        "question_id": question.question_id,
        "group": question.group,
        "turn": turn,
        "index": index,
        "method": method,
        "prompt_tokens": prompt_tokens,
        "new_tokens": chosen.new_tokens,
        "seconds": chosen.seconds,
        "hf_new_tokens": base.new_tokens,
        "hf_seconds": base.seconds,
        "speedup": base.per_token / chosen.per_token,
        "tokens_per_forward": figures.get("tokens_per_forward"),
        "identical": different is None if greedy else None,
        "first_difference": _first_difference(*different) if greedy and different else None,
        **{key: figures[key] for key in KEPT if key in figures},
        "repeat_seconds": [timing.seconds for timing in mine],
        "hf_repeat_seconds": [timing.seconds for timing in theirs],
        "token_ids": chosen.outcome.token_ids,
        "hf_token_ids": theirs[0].outcome.token_ids,
    }


def _first_difference(one: list[int], other: list[int]) -> int:
    for position, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return position
    return min(len(one), len(other))
