"""One response: the loop, with what is known of the model, and its record."""

from __future__ import annotations

from collections.abc import Generator

from swift_sd.adapting.experience import Experience
from swift_sd.decoding.loop import decode
from swift_sd.decoding.request import Request
from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.trace import Step, Trace
from swift_sd.model.kv_cache import write_back


def respond(
    experience: Experience,
    request: Request,
    state: DecodingState,
    trace: Trace,
    max_draft_tokens: int,
    memory: str | None,
) -> Generator[Step]:
    """Yield each round; at the end the user's own cache is brought up to date.

    Args:
        experience: with the model as it is; learns.
        request: what was asked.
        state: the sequence, whose prompt has not been read yet; changed in place.
        trace: the record, to which each round is added.
        max_draft_tokens: how many tokens deep to draft at most.
        memory: whose earlier texts drafts may draw on.
    """
    clock = experience.clock
    do_sample = bool(request.options.do_sample)
    drafter, adapter = experience.drafting(do_sample=do_sample, memory=memory)
    rounds = decode(
        experience.target(adapter),
        drafter,
        state,
        request.unread,
        max_draft_tokens,
        tolerance=experience.tolerance,
        prefill_chunk=request.options.prefill_chunk_size,
        adapter=adapter,
        clock=clock,
    )
    try:
        with experience.spins.watching() as look:
            while True:
                begin = clock()
                step = next(rounds, None)
                look()
                trace.seconds += clock() - begin
                if step is None:
                    break
                trace.steps.append(step)
                yield step
    finally:
        rounds.close()
        trace.layer_set = (adapter or experience).layer_set
        if request.keeps_cache:
            write_back(state.cache, request.past_key_values)
        experience.finish()
