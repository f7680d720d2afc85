"""One response in the making, on the engine's thread."""

from __future__ import annotations

import time
from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase

from swift_sd.decoding.trace import Step
from swift_sd.serve.decoding import Decoding
from swift_sd.serve.jobs import Delta, End, FinishReason, Job, Piece, Usage
from swift_sd.serve.wording import Wording


class Response:
    """Turns steps into events for a job's client.

    Args:
        job: what is answered; its `deliver` takes the events.
        decoding: the steps.
        tokenizer: of the model.
        ends: token ids behind which the model ends an answer.
    """

    def __init__(
        self,
        job: Job,
        decoding: Decoding,
        tokenizer: PreTrainedTokenizerBase,
        ends: frozenset[int],
    ) -> None:
        self.job = job
        self._decoding = decoding
        self._wording = Wording(tokenizer, job.stop)
        self._ends = ends
        self._prompt = job.inputs["input_ids"].shape[1]
        self._tokens = self._drafted = self._accepted = 0
        self._last: int | None = None
        self.is_complete = False

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(self._prompt, self._tokens, self._drafted, self._accepted)

    @property
    def unread(self) -> int:
        """Tokens of the prompt that the next step reads."""
        return 0 if self._tokens else self._prompt

    def advance(self) -> Step | None:
        """Do one step and tell the client; None if it was too late, or nothing was left to do."""
        is_late = time.monotonic() > self.job.deadline
        step = None if is_late else self._decoding.next()
        if step is not None:
            self._tell(step)
        if self._wording.stopped or self._last in self._ends:
            self._end("stop")
        elif is_late or self._tokens >= self.job.arguments["max_new_tokens"]:
            self._end("length")
        elif step is None:  # a criterion of the checkpoint's own: its stop strings
            self._end("stop")
        return step

    def close(self) -> None:
        """Free the cache; nothing more is delivered."""
        self._decoding.close()

    def _tell(self, step: Step) -> None:
        self._drafted += step.drafted
        pieces: list[Piece] = []
        for place, (token, origin) in enumerate(zip(step.tokens, origins(step), strict=True)):
            self._tokens += 1
            self._accepted += place < step.accepted
            self._last = token
            pieces += self._wording.add(token, origin)
            if self._wording.stopped:
                break
        self.job.deliver(Delta(tuple(pieces)))

    def _end(self, reason: FinishReason) -> None:
        rest = tuple(self._wording.finish())
        if rest:
            self.job.deliver(Delta(rest))
        self.is_complete = True
        self.job.deliver(End("stop" if self._wording.stopped else reason, self.usage))


def origins(step: Step) -> Iterator[str]:
    """How each of a step's tokens came about; see `Piece`."""
    for place in range(len(step.tokens)):
        if step.drafter is None:
            yield "plain"
        elif place < step.accepted_on_chain:
            yield step.sources[place] or step.drafter
        else:
            yield "sibling" if place < step.accepted else "bonus"
