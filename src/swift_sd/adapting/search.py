"""What every search over layer sets offers: candidates are asked for, their scores told."""

from __future__ import annotations

import math
from typing import Protocol

from swift_sd.model.layer_set import LayerSet


class Search(Protocol):
    """A search over layer sets. `ask` and `tell` may come in any order and number."""

    @property
    def best(self) -> LayerSet:
        """The set to draft with."""

    @property
    def is_finished(self) -> bool:
        """Whether more candidates are not expected to help."""

    def ask(self) -> LayerSet:
        """A candidate to score."""

    def tell(self, layer_set: LayerSet, score: float, trials: int) -> None:
        """Learn the matchness of a set, 0 to 1, on `trials` tokens; what is neither is ignored.

        Raises:
            LayerSetError: the set is for another number of layers.
        """


def is_matchness(score: float, trials: float) -> bool:
    """Whether a score is a fraction, seen on some tokens."""
    return 0 <= score <= 1 and 1 <= trials < math.inf
