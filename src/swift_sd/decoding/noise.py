"""The random numbers behind sampled tokens, one set for each place in the response.

`torch.multinomial` draws one token as argmax(p / e), where e are exponential numbers, freshly
drawn: a race between the tokens, in other words the Gumbel-max trick. Each token of a response uses
the next numbers of the generator. We draw the same numbers in the same order, but those of coming
places may be looked at early, so that a drafter guesses with the very noise that the target will
choose with. So sampling is exact whatever was drafted, and the tokens are those of `model.generate`
with the same seed. Drafts are accepted with a chance of at least (1 - d) / (1 + d), d the total
variation distance of the two distributions, where an optimal coupling reaches 1 - d (Daliri et al.
2024, "Coupling without Communication and Drafter-Invariant Speculative Decoding", theorem 1).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock

import torch
from torch import Tensor

from swift_sd.decoding.randomness import get_state, set_state

_TAKING = Lock()  # the generator is torch's and there is one for all responses


@dataclass(frozen=True)
class _Draw:
    before: Tensor  # state of the generator
    numbers: Tensor
    after: Tensor

    @cached_property
    def on_host(self) -> Tensor:
        """The numbers where they can be looked at one by one, `[vocabulary]`."""
        return self.numbers[0].cpu()


class Noise:
    """Exponential numbers for each coming token, in order.

    They come from torch's default generator of the device, as in `generate`, whose state is at any
    time what it would be in plain decoding: who looks ahead does so with a generator of his own.
    """

    def __init__(self) -> None:
        self._draws: deque[_Draw] = deque()
        self._own: torch.Generator | None = None

    def ahead(self, places: int, like: Tensor) -> Tensor:
        """The numbers of the token `places` behind the next one; shape and device of `like`."""
        return self._ahead(places, like).numbers

    def some(self, places: int, tokens: Sequence[int], like: Tensor) -> list[float]:
        """Of those numbers the ones of `tokens`; those that the vocabulary lacks are never drawn.

        From a device they come once for each place, whatever is asked of it later.
        """
        numbers = self._ahead(places, like).on_host
        known = [token for token in tokens if token < len(numbers)]
        found = dict(zip(known, numbers[known].tolist(), strict=True))
        return [found.get(token, math.inf) for token in tokens]

    def _ahead(self, places: int, like: Tensor) -> _Draw:
        now = get_state(like.device)
        self._forget_unless(now)
        if self._own is None or self._own.device != like.device:
            self._own = torch.Generator(like.device)
        while len(self._draws) <= places:
            before = self._draws[-1].after if self._draws else now
            self._own.set_state(before)
            numbers = torch.empty_like(like).exponential_(1, generator=self._own)
            self._draws.append(_Draw(before, numbers, self._own.get_state()))
        return self._draws[places]

    def take(self, like: Tensor) -> Tensor:
        """The numbers of the next token, which are used up now."""
        with _TAKING:
            self._forget_unless(get_state(like.device))
            if not self._draws:
                return torch.empty_like(like).exponential_(1)
            draw = self._draws.popleft()
            set_state(draw.after, like.device)
        return draw.numbers

    def _forget_unless(self, now: Tensor) -> None:
        """Forget what was seen ahead if somebody else has used the generator since."""
        if self._draws and not torch.equal(self._draws[0].before, now):
            self._draws.clear()


def wins(chance: float, number: float) -> float:
    """How likely a token of a known `chance` is drawn, given its own number and no other.

    In the race it arrives at number / chance, and the first of all others after an exponential
    time of rate 1 - chance.
    """
    if chance <= 0 or number == math.inf:
        return 0.0
    return math.exp(-(1 - chance) * number / chance)
