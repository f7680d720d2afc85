"""A model that the server answers with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from swift_sd.errors import ConfigError
from swift_sd.serve.decoding import Decoding, fresh_seed
from swift_sd.serve.figures import Figures
from swift_sd.serve.jobs import Job
from swift_sd.serve.lockstep import Leader
from swift_sd.serve.response import Response
from swift_sd.swift import Swift


@dataclass(eq=False)
class Served:
    """One `Swift` for all requests, which thereby share what it learns.

    Attributes:
        name: what clients call it.
        swift: has a tokenizer.
        leader: decodes together with other processes, if there are any.
        longest_token: bytes of text that a token stands for, at most.

    Raises:
        ConfigError: there is no tokenizer.
    """

    name: str
    swift: Swift
    leader: Leader | None = None
    tokenizer: PreTrainedTokenizerBase = field(init=False)
    figures: Figures = field(init=False)
    ends: frozenset[int] = field(init=False)
    longest_token: int = field(init=False)

    def __post_init__(self) -> None:
        if self.swift.tokenizer is None:
            raise ConfigError("serving needs a tokenizer; make the object with Swift(model, …)")
        self.tokenizer = self.swift.tokenizer
        self.figures = Figures(self.swift.layer_set)
        ends: Any = self.swift.model.generation_config.eos_token_id
        self.ends = frozenset([ends] if isinstance(ends, int) else ends or [])
        self.longest_token = longest_token(self.tokenizer)

    def begin(self, job: Job) -> Response:
        """Start answering.

        Raises:
            SwiftError: the request is refused.
        """
        seed = fresh_seed() if job.seed is None else job.seed
        return Response(job, self.decoding(job, seed), self.tokenizer, self.ends)

    def decoding(self, job: Job, seed: int) -> Decoding:
        """The steps that answer `job`."""
        if self.leader is None:
            arguments = {**job.arguments, "memory": job.memory}
            return Decoding(self.swift, job.inputs, arguments, seed)
        # By rules that need no clock, a split model remembers nothing between responses.
        return self.leader.start(self.name, self.swift, job.inputs, job.arguments, seed)


def longest_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Bytes of text that one token stands for, at most."""
    most = 0
    for size, token in sorted(
        ((len(text.encode()), token) for text, token in tokenizer.get_vocab().items()), reverse=True
    ):
        if size <= most:  # what a vocabulary calls a token is no shorter than its text
            break
        most = max(most, len(str(tokenizer.decode([token])).encode()))
    return most
