"""When a response ends."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import StoppingCriteriaList
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria


class Stopping:
    """The stopping criteria of one request, asked after every token as in plain decoding.

    Length and end-of-sequence are looked up in Python numbers; all other criteria are called.
    """

    def __init__(self, criteria: StoppingCriteriaList) -> None:
        lengths = [c.max_length for c in criteria if type(c) is MaxLengthCriteria]
        self.max_length: int | None = min(lengths, default=None)
        ends = [c.eos_token_id.flatten().tolist() for c in criteria if type(c) is EosTokenCriteria]
        self.eos: frozenset[int] = frozenset(token for group in ends for token in group)
        self._others = [c for c in criteria if type(c) not in (MaxLengthCriteria, EosTokenCriteria)]

    def room(self, length: int) -> float:
        """How many tokens may still follow a sequence of `length`."""
        return float("inf") if self.max_length is None else self.max_length - length

    def ends(self, tokens: Tensor, last: int, scores: tuple[Tensor, ...] | None) -> bool:
        """Whether the sequence `tokens` `[1, n]` ends with its token `last`.

        Args:
            scores: one `[1, vocabulary]` per new token, if they are being recorded.
        """
        # As tensors: many users' criteria return a plain bool, which transformers takes too.
        verdicts = [
            bool(torch.as_tensor(criterion(tokens, scores), device=tokens.device).all())
            for criterion in self._others
        ]
        return any(verdicts) or self.room(tokens.shape[1]) <= 0 or last in self.eos
