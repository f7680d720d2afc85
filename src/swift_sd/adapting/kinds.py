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
LARGEST = 1e50  # numbers of a profile: what is made of them must be finite too
FAR = 1.25  # times the usual distance: a prompt unlike the others


@dataclass(eq=False)
class Kind:
    """Prompts that lie near each other, and what is known of drafting for them.

    Attributes:
        total: sum of the vectors of its prompts, `[hidden]`.
        prompts: how many they are.
        apart: sum of the distances at which all but the first joined.
        influence: how much each sublayer adds on such text, see `measured_influence`; None before
            it is measured.
        search: what was found for them; None before anything could be measured.
        saved: the same in the form of a profile, until there is a `search`.
        promise: speed as a multiple of plain decoding's that is hoped for until then.
        changes: watches how many drafted tokens are accepted.
    """

    total: Array
    prompts: float = 0.0
    apart: float = 0.0
    influence: tuple[float, ...] | None = None
    search: RateSearch | None = None
    saved: dict[str, Any] | None = None
    promise: float = 1.0
    changes: Changes = field(default_factory=Changes)

    @property
    def best(self) -> LayerSet | None:
        """The set to draft with; None if nothing is known."""
        saved = self.saved  # before the search, which takes its place on another thread
        if self.search is not None:
            return self.search.best
        return LayerSet.from_dict(saved["best"]) if saved is not None else None

    def distance(self, vector: Array) -> float:
        """From the mean of its prompts."""
        return float(np.linalg.norm(vector - self.total / max(self.prompts, 1.0)))

    def is_apart(self, distance: float) -> bool:
        """Whether the latest prompt, which joined at this distance, is unlike those before."""
        others = self.prompts - 1
        if others < 2:
            return others >= 1 and distance > 0  # else it is the founder
        return distance > FAR * (self.apart - distance) / (others - 1)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        known = self.search.to_dict() if self.search is not None else self.saved
        centre = self.total / max(self.prompts, 1.0)
        return {
            "centre": [float(f"{number:.4g}") for number in centre],
            "prompts": self.prompts,
            "apart": self.apart,
            "influence": list(self.influence) if self.influence is not None else None,
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
            influence = data["influence"]
            if influence is not None:
                influence = tuple(map(float, influence))
                if len(influence) != 2 * max(depth - 2, 0):
                    raise ValueError(f"influence of {len(influence)} sublayers")
            numbers = np.array([*centre, prompts, apart, *(influence or ())], dtype=np.float64)
            if not ((np.abs(numbers) < LARGEST).all() and centre.ndim == 1):
                raise ValueError("numbers that are too large, or none")
            total = centre * prompts
            if data["search"] is not None:
                check_saved(data["search"], depth)
            return cls(total, prompts, apart, influence, saved=data["search"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise LayerSetError(f"a kind of input is damaged: {error}") from None


@dataclass(eq=False)
class Met:
    """A prompt among the kinds.

    Attributes:
        vector: what stands for it, `[hidden]`, see `PromptView.mean`.
        kind: the one it belongs to, as far as is known.
        distance: from the prompts of that kind before; 0 if there were none.
        in_doubt: whether it is unlike those, and it is yet to be seen whether their set is of use.
    """

    vector: Array
    kind: Kind
    distance: float
    in_doubt: bool


class Kinds:
    """All kinds met so far: a prompt is of the kind it is nearest to.

    There is one at first. Another is founded by a prompt unlike those before, for which the set of
    its kind turns out to be the wrong one: so there are as many as make a difference.
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

    def of(self, vector: Array) -> Met:
        """A prompt and its kind, which it joins.

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
            skips = kind.best is not None and kind.best.skip_ratio > 0
            return Met(vector, kind, distance, in_doubt=skips and kind.is_apart(distance))

    def split(self, met: Met, *, knows_nothing: bool = False) -> None:
        """Found a kind for a prompt unlike those before, whose drafts are not accepted as theirs.

        Of a prompt like those before nothing comes: the kind itself has changed.

        Args:
            met: what `of` said; then of the new kind.
            knows_nothing: whether that begins with nothing, as what is known is of no use for this
                prompt; else it goes on from what is known.
        """
        kind = met.kind
        if not kind.is_apart(met.distance):
            return
        with self._lock:
            kind.total, kind.prompts = kind.total - met.vector, kind.prompts - 1
            kind.apart = max(kind.apart - met.distance, 0.0)
        met.kind, met.distance, met.in_doubt = Kind(met.vector.copy(), 1.0), 0.0, False
        if not knows_nothing:
            met.kind.influence, met.kind.saved = kind.influence, kind.saved
            met.kind.search = kind.search.fork() if kind.search is not None else None
        elif kind.search is not None:
            met.kind.promise = kind.search.gain
        self.add(met.kind)
