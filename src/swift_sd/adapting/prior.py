"""What forwards cost, measured before the first response: nobody's answer pays for it."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor

from swift_sd.drafting.pace import Prior
from swift_sd.model.draft_weights import AnyDraft
from swift_sd.model.kv_cache import KVCache
from swift_sd.model.target import Target

PREFIX = 8  # tokens in the cache
VERIFIED = (1, 2, 4, 8)  # rows
DRAFTED = (1, 4)
REPEATS = 2  # the quicker one counts


def measured_prior(target: Target, view: AnyDraft | None, cache: KVCache, vocabulary: int) -> Prior:
    """Time forwards of the target and of the draft over several numbers of rows.

    Args:
        view: the draft; None if nothing is drafted with the model.
        cache: an empty one for the model.
        vocabulary: number of tokens.
    """
    most = PREFIX + max(VERIFIED)
    # Spread over the vocabulary: a mixture of experts shall read several of them.
    tokens = torch.linspace(0, vocabulary - 1, most + 2).long()[1:-1].unsqueeze(0)
    tokens = tokens.to(target.device)
    target.prefill(tokens[:, :PREFIX], cache)

    def seconds(forward: Callable[[Tensor], object], rows: int) -> float:
        taken = []
        for _ in range(REPEATS):
            # As at work, where the target's weights have passed through the caches meanwhile.
            target.verify(tokens[:, PREFIX : PREFIX + 1], cache)
            target.wait()
            cache.rollback()
            begin = perf_counter()
            forward(tokens[:, PREFIX : PREFIX + rows])
            target.wait()
            taken.append(perf_counter() - begin)
            cache.rollback()
        return min(taken)

    verify = {n: seconds(lambda rows: target.verify(rows, cache), n) for n in VERIFIED}
    if view is None:
        return Prior(verify)
    draft = view.forward
    seconds(lambda rows: draft(rows, cache), 1)
    return Prior(verify, {n: seconds(lambda rows: draft(rows, cache), n) for n in DRAFTED})
