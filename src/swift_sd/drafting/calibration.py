"""How often a proposed token is accepted, given how sure the drafter was of it."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

# Fine at both ends: that is where a tree is decided.
EDGES = (0.003, 0.01, 0.03, 0.08, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98, 0.995)
PRIOR = 4.0  # proposals' worth of trust in the drafter's own word
MEMORY = 256.0  # proposals per bin after which old ones count half
FADE = 4096  # proposals in all after which all bins count half: what is never offered is forgotten


@dataclass
class Calibration:
    """Counts by confidence. It follows the stream: old counts fade.

    Attributes:
        offered, accepted: per bin, proposals whose parent was accepted, and those of them that were
            accepted too.
        told: proposals counted in all bins, ever.
    """

    offered: list[float] = field(default_factory=lambda: [0.0] * (len(EDGES) + 1))
    accepted: list[float] = field(default_factory=lambda: [0.0] * (len(EDGES) + 1))
    told: int = 0

    def chance(self, confidence: float) -> float:
        """The probability that a token proposed with `confidence` is accepted, its parent given.

        Counts, and the confidence itself as if it had been seen `PRIOR` times.
        """
        index = bisect_right(EDGES, confidence)
        return (self.accepted[index] + PRIOR * confidence) / (self.offered[index] + PRIOR)

    def tell(self, confidence: float, accepted: bool) -> None:
        """Count one proposal whose parent was accepted."""
        index = bisect_right(EDGES, confidence)
        self.offered[index] += 1
        self.accepted[index] += accepted
        self.told += 1
        if self.told % FADE == 0:
            self._halve(range(len(self.offered)))
        elif self.offered[index] >= MEMORY:
            self._halve((index,))

    def _halve(self, bins: Iterable[int]) -> None:
        for index in bins:
            self.offered[index] /= 2
            self.accepted[index] /= 2

    def forget(self) -> None:
        """The drafter is another one now: only the prior remains."""
        self.offered = [0.0] * len(self.offered)
        self.accepted = [0.0] * len(self.accepted)


class Calibrations(defaultdict[str, Calibration]):
    """One for each source of proposals: what one calls 0.8 another may call 0.5."""

    def __init__(self) -> None:
        super().__init__(Calibration)
