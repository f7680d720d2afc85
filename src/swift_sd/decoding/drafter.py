"""What the loop knows of those who propose tokens."""

from __future__ import annotations

from typing import Protocol

from swift_sd.decoding.draft import Draft
from swift_sd.decoding.state import DecodingState


class Drafter(Protocol):
    """Proposes what may come next.

    Attributes:
        name: under which steps are counted in the trace.
    """

    name: str

    def propose(self, state: DecodingState, budget: int) -> Draft:
        """At most `budget` tokens (≥ 1) to follow `state.tokens`; none is a valid answer.

        May write into the cache's scratch, and must have it rolled back on return. When sampling,
        every token that was drawn must be proposed: to withhold or redraw one because of what it is
        would change the output's distribution. To stop behind it is fine, for any reason.
        """
        ...
