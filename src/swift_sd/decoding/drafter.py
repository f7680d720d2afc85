"""What the loop knows of those who propose tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from swift_sd.decoding.draft_tree import DraftTree
from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.trace import Step


class Drafter(Protocol):
    """Proposes what may come next. Whatever it proposes, the output is the target's own.

    Attributes:
        name: under which steps are counted in the trace.
    """

    name: str

    def propose(self, state: DecodingState, budget: int) -> DraftTree:
        """What may follow `state.tokens`, `budget` (≥ 1) tokens deep at most; may be nothing.

        May write into the cache's scratch, and must have it rolled back on return.
        """
        ...

    def learn(self, tree: DraftTree, path: Sequence[int], step: Step) -> None:
        """Be told what became of a proposal: `step.tokens[i]` came out behind row `path[i]`."""
        ...
