"""What forwards cost, measured before the first response: nobody's answer pays for it."""

from __future__ import annotations

from collections.abc import Callable
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
REPEATS = 2  # the quicker one counts


def measured_prior(
    model: PreTrainedModel,
    target: Target,
    view: AnyDraft | None,
    clock: Callable[[], float] = perf_counter,
) -> Prior:
    """Time forwards of the target and of the draft over several numbers of rows.

    Args:
        view: the draft; None if nothing is drafted with the model.
    """
    cache = KVCache(attention_windows(model.config))
    tokens = spread_tokens(model, PREFIX + max(VERIFIED))
    target.prefill(tokens[:, :PREFIX], cache)

    def seconds(forward: Callable[[Tensor], object], rows: int) -> float:
        taken = []
        for _ in range(REPEATS):
            # As at work, where the target's weights have passed through the caches meanwhile.
            target.verify(tokens[:, PREFIX : PREFIX + 1], cache)
            target.wait()
            cache.rollback()
            begin = clock()
            forward(tokens[:, PREFIX : PREFIX + rows])
            target.wait()
            taken.append(clock() - begin)
            cache.rollback()
        return min(taken)

    verify = {n: seconds(lambda rows: target.verify(rows, cache), n) for n in VERIFIED}
    if view is None:
        return Prior(verify)
    draft = view.forward
    seconds(lambda rows: draft(rows, cache), 1)
    return Prior(verify, {n: seconds(lambda rows: draft(rows, cache), n) for n in DRAFTED})
