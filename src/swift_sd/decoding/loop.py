"""The loop: prefill, then draft → verify → accept → commit until the response ends."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from time import perf_counter

import torch
from torch import Tensor

from swift_sd.decoding.acceptance import accept_greedy, accept_sampled
from swift_sd.decoding.draft import Draft
from swift_sd.decoding.drafter import Drafter
from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.trace import Step
from swift_sd.model.target import Target


@torch.no_grad()
def decode(
    target: Target,
    drafter: Drafter | None,
    state: DecodingState,
    unread: Tensor,
    max_draft_tokens: int,
    prefill_chunk: int | None = None,
) -> Generator[Step]:
    """Yield the response step by step; its tokens follow the target's distribution exactly.

    Between steps, and after the generator was closed or failed in a round, the cache holds the keys
    and values of every token but the last, and nothing else.

    Args:
        drafter: who proposes; None decodes plainly.
        state: a sequence whose prompt has not been read yet; changed in place.
        unread: the part of the prompt that is not in the cache, `[1, n]`, n ≥ 1.
        max_draft_tokens: most tokens to draft before a verification.
        prefill_chunk: prompt tokens to read in one forward; None for all.
    """
    try:
        yield _prefill(target, state, unread, prefill_chunk)
        while not state.finished:
            yield _round(target, drafter, state, max_draft_tokens)
    finally:
        state.cache.rollback()


def _prefill(target: Target, state: DecodingState, unread: Tensor, chunk: int | None) -> Step:
    begin = perf_counter()
    logits = target.prefill(unread, state.cache, chunk)
    target.wait()
    read = perf_counter()
    (token,) = _accept(state, Draft(), logits.unsqueeze(1))
    return Step((token,), prefill=read - begin, accept=perf_counter() - read)


def _round(target: Target, drafter: Drafter | None, state: DecodingState, limit: int) -> Step:
    begin = perf_counter()
    budget = min(limit, state.room_for_draft())
    draft = drafter.propose(state, budget) if drafter and budget > 0 else Draft()
    drafted = perf_counter()

    rows = state.last_token_and(draft.tokens)  # [1, 1 + drafted]
    logits = target.verify(rows, state.cache)  # [1, 1 + drafted, vocabulary]
    target.wait()  # what follows reads from the device at once: this costs nothing more
    verified = perf_counter()

    length = state.length
    try:
        tokens = _accept(state, draft, logits)
    finally:  # the rows of the last token before and of the accepted ones; not of the newest
        state.cache.commit(state.length - length)
    return Step(
        tokens,
        drafter=drafter.name if drafter and len(draft) else None,
        drafted=len(draft),
        accepted=sum(map(int.__eq__, tokens, draft.tokens)),
        draft=drafted - begin,
        verify=verified - drafted,
        accept=perf_counter() - verified,
    )


def _accept(state: DecodingState, draft: Draft, logits: Tensor) -> tuple[int, ...]:
    """Append to `state` the tokens that the target grants; return them, one at least."""
    tokens = []
    for token in _granted(state, draft, logits):
        state.append(token)
        tokens.append(token)
        if state.finished:
            break
    return tuple(tokens)


def _granted(state: DecodingState, draft: Draft, logits: Tensor) -> Iterator[int]:
    """The target's tokens, place by place, from `logits` `[1, places, vocabulary]`."""
    if state.is_argmax:  # one transfer from the device for all places
        best = logits[0].float().argmax(dim=-1).tolist()  # argmax of 16-bit numbers is slow
        return accept_greedy(draft.tokens, best.__getitem__)

    def scores(place: int) -> Tensor:
        row = logits[:, place]
        warped = state.warping.target_scores(state.tokens, row)
        state.record(row, warped)
        return warped

    if not state.warping.do_sample:
        return accept_greedy(draft.tokens, lambda place: int(scores(place).argmax()))
    return accept_sampled(
        draft.tokens,
        draft.distributions,
        lambda place: scores(place)[0].softmax(dim=-1),
        uniform=lambda: torch.rand(()).item(),
        draw=lambda distribution: int(torch.multinomial(distribution, 1)),
    )
