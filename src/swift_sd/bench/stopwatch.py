"""Timing one response."""

from __future__ import annotations

import statistics
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from swift_sd.bench.method import Answer, Outcome

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Timing:
    """A response and what it took, prefill included."""

    outcome: Outcome
    seconds: float

    @property
    def new_tokens(self) -> int:
        """Counted from ids, never from text."""
        return len(self.outcome.token_ids)

    @property
    def per_token(self) -> float:
        """Seconds for each new token."""
        return self.seconds / max(self.new_tokens, 1)


def timed(
    answer: Answer,
    inputs: dict[str, Tensor],
    arguments: dict[str, Any],
    seed: int,
    clock: Callable[[], float] = perf_counter,
) -> Timing:
    """Let `answer` generate, from the same random state whenever `seed` is the same."""
    import torch

    torch.manual_seed(seed)
    _finish_pending(inputs["input_ids"])
    begin = clock()
    outcome = answer(inputs, arguments)
    _finish_pending(inputs["input_ids"])
    return Timing(outcome, clock() - begin)


def middle(mine: Sequence[Timing], theirs: Sequence[Timing]) -> tuple[Timing, Timing]:
    """The repeat with the median ratio of time per token (of an even number, the lower of two)."""
    pairs = zip(mine, theirs, strict=True)
    ordered = sorted(pairs, key=lambda pair: pair[1].per_token / pair[0].per_token)
    return ordered[(len(ordered) - 1) // 2]


def seed_for(seed: int, question_id: int | str, turn: int) -> int:
    """A seed for one turn, which does not depend on what was asked before."""
    return zlib.crc32(f"{seed}/{question_id}/{turn}".encode())


def reference_seconds(work: Callable[[], Timing], times: int = 3) -> float:
    """What a fixed piece of work takes now: the median of some goes."""
    return statistics.median(work().seconds for _ in range(times))


def _finish_pending(tensor: Tensor) -> None:
    """An accelerator works behind our back; wait for it."""
    if tensor.device.type != "cpu":
        import torch

        torch.accelerator.synchronize(tensor.device)
