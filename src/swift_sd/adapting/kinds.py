"""Kinds of input that want different layer sets, told apart without labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np

from swift_sd.adapting.changes import Changes
from swift_sd.adapting.objective import Array
from swift_sd.adapting.rate_search import RateSearch, check_saved
from swift_sd.errors import LayerSetError
from swift_sd.model.layer_set import LayerSet

MOST = 16  # kinds; the one not met for longest is forgotten
MEMORY = 64  # prompts after which old ones count half


@dataclass(eq=False)
class Kind:
    """Prompts that lie near each other, and what is known of drafting for them.

    Attributes:
        total: sum of the vectors of its prompts, `[hidden]`.
        prompts: how many they are.
        apart: sum of the distances at which all but the first joined.
        search: what was found for them; None before anything could be measured.
        saved: the same in the form of a profile, until there is a `search`.
        changes: watches how many drafted tokens are accepted.
    """

    total: Array
    prompts: float = 0.0
    apart: float = 0.0
    search: RateSearch | None = None
    saved: dict[str, Any] | None = None
    changes: Changes = field(default_factory=Changes)

    @property
    def best(self) -> LayerSet | None:
        """The set to draft with; None if nothing is known."""
        if self.search is not None:
            return self.search.best
        return LayerSet.from_dict(self.saved["best"]) if self.saved is not None else None

    def distance(self, vector: Array) -> float:
        """From the mean of its prompts."""
        return float(np.linalg.norm(vector - self.total / max(self.prompts, 1.0)))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        known = self.search.to_dict() if self.search is not None else self.saved
        centre = self.total / max(self.prompts, 1.0)
        return {
            "centre": [float(f"{number:.4g}") for number in centre],
            "prompts": self.prompts,
            "apart": self.apart,
            "search": known,
        }

    @classmethod
    def from_dict(cls, data: Any, depth: int) -> Kind:
        """What `to_dict` wrote.

        Raises:
            LayerSetError: the data is damaged, or for a model of another depth.
        """
        try:
            prompts, apart = float(data["prompts"]), float(data["apart"])
            centre = np.array(data["centre"], dtype=np.float64)
            if not (np.isfinite([*centre, prompts, apart]).all() and centre.ndim == 1):
                raise ValueError("numbers that are not finite")
            if data["search"] is not None:
                check_saved(data["search"], depth)
            return cls(centre * prompts, prompts, apart, saved=data["search"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise LayerSetError(f"a kind of input is damaged: {error}") from None


class Kinds:
    """All kinds met so far: a prompt is of the kind it is nearest to.

    There is one at first. Another is founded by a prompt for which the set of its kind turns out
    to be the wrong one: so there are as many as make a difference.
    """

    def __init__(self) -> None:
        self._kinds: list[Kind] = []  # the latest met last
        self._lock = Lock()

    def __iter__(self) -> Any:
        return iter(list(self._kinds))

    def __len__(self) -> int:
        return len(self._kinds)

    @property
    def latest(self) -> Kind | None:
        """The kind met last."""
        return self._kinds[-1] if self._kinds else None

    def add(self, kind: Kind) -> None:
        """Know another kind, and forget one if they are too many."""
        with self._lock:
            self._kinds = [*self._kinds, kind][-MOST:]

    def of(self, vector: Array) -> tuple[Kind, float]:
        """The kind of a prompt, which joins it, and how far it was from those before.

        Args:
            vector: `[hidden]`, see `PromptView.mean`.
        """
        with self._lock:
            fitting = [kind for kind in self._kinds if kind.total.shape == vector.shape]
            if not fitting:
                fitting = [Kind(np.zeros_like(vector))]
            kind = min(fitting, key=lambda kind: kind.distance(vector))
            self._kinds = [*(other for other in self._kinds if other is not kind), kind][-MOST:]
            distance = kind.distance(vector) if kind.prompts else 0.0
            fade = 0.5 if kind.prompts >= MEMORY else 1.0
            kind.total = fade * kind.total + vector
            kind.prompts = fade * kind.prompts + 1
            kind.apart = fade * kind.apart + distance
            return kind, distance

    def split(self, kind: Kind, vector: Array, distance: float) -> Kind:
        """The kind to go on with, as drafts for this prompt are not accepted as they used to be.

        A new one, which begins with what is known, if the prompt is unlike those before; else the
        kind itself has changed.

        Args:
            vector, distance: the prompt's, and what `of` said.
        """
        others = kind.prompts - 1
        if others < 1 or (others >= 2 and distance <= (kind.apart - distance) / (others - 1)):
            return kind
        with self._lock:
            kind.total = kind.total - vector
            kind.prompts, kind.apart = others, max(kind.apart - distance, 0.0)
        search = kind.search.fork() if kind.search is not None else None
        new = Kind(vector.copy(), 1.0, search=search, saved=kind.saved)
        self.add(new)
        return new
