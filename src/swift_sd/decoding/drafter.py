"""What the loop knows of those who propose tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from swift_sd.decoding.draft_tree import DraftTree
from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.trace import Step
from swift_sd.model.layer_set import LayerSet
from swift_sd.model.view import View


class Drafter(Protocol):
    """Proposes what may come next. Whatever it proposes, the output is the target's own."""

    @property
    def name(self) -> str:
        """Under which the step that follows a proposal is counted in the trace."""
        ...

    def propose(self, state: DecodingState, budget: int) -> DraftTree:
        """What may follow `state.tokens`, `budget` (≥ 1) tokens deep at most; may be nothing.

        May write into the cache's scratch, and must have it rolled back on return.
        """
        ...

    def learn(self, tree: DraftTree, path: Sequence[int], step: Step, logits: Tensor) -> None:
        """Be told what became of a proposal: `step.tokens[i]` came out behind row `path[i]`.

        Args:
            logits: the target's behind each row, `[rows, vocabulary]`, on its device.
        """
        ...


class Adapter(Protocol):
    """Improves a drafter while a response is decoded."""

    def reader(self, module: nn.Module) -> View | None:
        """What reads the prompt in the place of `module`, computing the same; None for that."""
        ...

    @property
    def layer_set(self) -> LayerSet:
        """What drafts of the response skip now."""
        ...

    def adapt(self, state: DecodingState, step: Step) -> None:
        """Called after each round but the last; may take as long as it will win back.

        The cache must be left as it was, and the response is not to be changed.
        """
        ...
