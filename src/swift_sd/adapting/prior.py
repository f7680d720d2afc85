"""What forwards cost, measured before the first response: nobody's answer pays for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter

from torch import Tensor
from transformers import PreTrainedModel

from swift_sd.drafting.pace import Prior
from swift_sd.model.draft_weights import AnyDraft
from swift_sd.model.kv_cache import KVCache, attention_windows
from swift_sd.model.target import Target
from swift_sd.model.view import spread_tokens

PREFIX = 8  # tokens in the cache
VERIFIED = (1, 2, 4, 8)  # rows
DRAFTED = (1, 4)
# Turns, in each of which every forward is timed once. More than the least are taken while the two
# quickest times of a forward differ by more than so much; after the most, it counts as unknown.
LEAST, MOST = 3, 8
SPREAD = 0.2
LIMIT = 3.0  # seconds after which there is no further turn


def measured_prior(
    model: PreTrainedModel,
    target: Target,
    view: AnyDraft | None,
    clock: Callable[[], float] = perf_counter,
    between: Callable[[], None] = lambda: None,
) -> Prior:
    """Time forwards of the target and of the draft over several numbers of rows.

    All are timed in turn, so that a plain step comes between any two of them and a load that comes
    and goes meets all alike. The quickest time of each counts, if another one was nearly as quick.

    Args:
        view: the draft; None if nothing is drafted with the model.
        clock: tells the seconds.
        between: called after each forward, untimed.
    """
    cache = KVCache(attention_windows(model.config))
    tokens = spread_tokens(model, PREFIX + max(VERIFIED))
    target.prefill(tokens[:, :PREFIX], cache)
    verify: dict[int, list[float]] = {rows: [] for rows in VERIFIED}
    draft: dict[int, list[float]] = {rows: [] for rows in DRAFTED if view is not None}

    def seconds(forward: Callable[[Tensor, KVCache], object], rows: int) -> float:
        begin = clock()
        forward(tokens[:, PREFIX : PREFIX + rows], cache)
        target.wait()
        taken = clock() - begin
        cache.rollback()
        between()
        return taken

    def turn() -> None:
        for rows, times in verify.items():
            times.append(seconds(target.verify, rows))
        for rows, times in draft.items():
            assert view is not None
            # As at work, where the target's weights have passed through the caches meanwhile.
            seconds(target.verify, 1)
            times.append(seconds(view.forward, rows))

    begin = clock()
    turn()  # the first forwards of all make ready what the others use
    for times in (*verify.values(), *draft.values()):
        times.clear()
    for count in range(1, MOST + 1):
        turn()
        if count >= 2 and clock() - begin > LIMIT:
            break
        if count >= LEAST and all(map(_is_steady, (*verify.values(), *draft.values()))):
            break
    return Prior(_steady(verify), _steady(draft))


def _is_steady(times: list[float]) -> bool:
    quickest, second = sorted(times)[:2]
    return second <= (1 + SPREAD) * quickest


def _steady(times: Mapping[int, list[float]]) -> dict[int, float]:
    """The quickest times; without those that were disturbed in all turns but one."""
    return {rows: min(each) for rows, each in times.items() if _is_steady(each)}
