"""The loop: prefill, then draft → verify → accept → commit until the response ends."""

from __future__ import annotations

from collections.abc import Callable, Generator
from time import perf_counter

import torch
from torch import Tensor

from swift_sd.decoding.draft_tree import NOTHING
from swift_sd.decoding.drafter import Adapter, Drafter
from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.trace import Step
from swift_sd.decoding.verification import Verification
from swift_sd.model.target import Target

Clock = Callable[[], float]


@torch.no_grad()
def decode(
    target: Target,
    drafter: Drafter | None,
    state: DecodingState,
    unread: Tensor,
    max_draft_tokens: int,
    *,
    tolerance: float = 0.0,
    prefill_chunk: int | None = None,
    adapter: Adapter | None = None,
    clock: Clock = perf_counter,
) -> Generator[Step]:
    """Yield the response step by step; its tokens follow the target's distribution exactly.

    Between steps, and after the generator was closed or failed in a round, the cache holds the keys
    and values of every token but the last, and nothing else.

    Args:
        drafter: who proposes; None decodes plainly.
        state: a sequence whose prompt has not been read yet; changed in place.
        unread: the part of the prompt that is not in the cache, `[1, n]`, n ≥ 1.
        max_draft_tokens: how many tokens deep to draft before a verification at most.
        tolerance: see `Verification`.
        prefill_chunk: prompt tokens to read in one forward; None for all.
        adapter: improves the drafter between rounds.
        clock: tells the seconds that the parts of a step take.
    """
    try:
        yield _adapted(adapter, state, _prefill(target, state, unread, prefill_chunk, clock), clock)
        while not state.finished:
            step = _round(target, drafter, state, max_draft_tokens, tolerance, clock)
            yield _adapted(adapter, state, step, clock)
    finally:
        state.cache.rollback()


def _prefill(
    target: Target, state: DecodingState, unread: Tensor, chunk: int | None, clock: Clock
) -> Step:
    begin = clock()
    logits = target.prefill(unread, state.cache, chunk)  # [1, vocabulary]
    target.wait()
    read = clock()
    token = state.choose(logits)
    state.append(token)
    return Step((token,), prefill=read - begin, accept=clock() - read)


def _round(
    target: Target,
    drafter: Drafter | None,
    state: DecodingState,
    limit: int,
    tolerance: float,
    clock: Clock,
) -> Step:
    begin = clock()
    budget = min(limit, state.room_for_draft())
    tree = drafter.propose(state, budget) if drafter and budget > 0 else NOTHING
    drafted = clock()
    verification = Verification(target, state, tree, tolerance, clock)
    verified = clock()

    tokens: list[int] = []
    before = state.length
    try:
        for _, token in verification.accept():
            state.append(token)
            tokens.append(token)
            if state.finished:
                break
    finally:  # the rows of the last token before and of the accepted ones; not of the newest
        verification.commit(state.length - before)
    accepted = tree.accepted(verification.path, tokens)
    again = verification.seconds_again
    step = Step(
        tuple(tokens),
        drafter=drafter.name if drafter and len(tree) else None,
        drafted=len(tree.main_chain),
        verified=len(tree),
        accepted=len(accepted),
        accepted_on_chain=sum(map(int.__eq__, accepted, tree.main_chain)),
        sources=tuple(tree.source(row) for row in accepted),
        decided_again=verification.decided_again,
        draft=drafted - begin,
        verify=verified - drafted,
        again=again,
        accept=clock() - verified - again,
    )
    if drafter:
        drafter.learn(tree, verification.path, step, verification.logits)
    return step


def _adapted(adapter: Adapter | None, state: DecodingState, step: Step, clock: Clock) -> Step:
    if adapter is None or state.finished:
        return step
    begin = clock()
    adapter.adapt(state, step)
    step.adapt = clock() - begin
    return step
