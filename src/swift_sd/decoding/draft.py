"""What a drafter proposes."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Draft:
    """A chain of tokens that may follow the last one.

    Attributes:
        tokens: the proposed ids, in order.
        distributions: when sampling, what each token was drawn from: `[vocabulary]`, float32, sums
            to 1. Empty in greedy decoding.
    """

    tokens: list[int] = field(default_factory=list)
    distributions: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)
