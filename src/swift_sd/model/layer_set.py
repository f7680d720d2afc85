"""Which sublayers the draft leaves out."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift_sd.errors import LayerSetError


@dataclass(frozen=True)
class LayerSet:
    """The attention and MLP sublayers that a draft of a `depth`-layer model skips.

    Immutable and hashable, so that it can key caches and scores. Layers count from 0. The first and
    the last layer are never skipped (SWIFT, section 4.1).

    Attributes:
        depth: number of decoder layers of the model.
        attention: layers whose attention sublayer is skipped.
        mlp: layers whose MLP sublayer is skipped.

    Raises:
        LayerSetError: a layer lies outside 1 … depth - 2, or is not a whole number.
    """

    depth: int
    attention: frozenset[int] = frozenset()
    mlp: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        depth = _whole(self.depth)
        if depth is None or depth < 1:
            raise LayerSetError(f"depth is {self.depth!r}; it must be the model's number of layers")
        object.__setattr__(self, "depth", depth)
        for kind in ("attention", "mlp"):
            object.__setattr__(self, kind, self._checked(kind, getattr(self, kind)))

    def _checked(self, kind: str, layers: Iterable[int]) -> frozenset[int]:
        if not isinstance(layers, Iterable):
            raise LayerSetError(f"{kind} is {layers!r}; give a list of layers")
        chosen = [(layer, _whole(layer)) for layer in layers]
        for given, layer in chosen:
            if layer is None or not 1 <= layer <= self.depth - 2:
                raise LayerSetError(
                    f"{kind} layer {given!r} cannot be skipped: a model of {self.depth} layers may "
                    f"skip layers 1 to {self.depth - 2} (never the first and the last)"
                )
        return frozenset(layer for _, layer in chosen if layer is not None)

    @classmethod
    def none(cls, depth: int) -> LayerSet:
        """Nothing skipped: the draft is the target."""
        return cls(depth)

    @classmethod
    def every(cls, depth: int) -> LayerSet:
        """All that may be skipped: only the first and the last layer remain."""
        inner = range(1, cls(depth).depth - 1)
        return cls(depth, frozenset(inner), frozenset(inner))

    @classmethod
    def unified(cls, depth: int) -> LayerSet:
        """The paper's start: both sublayers of every second layer, 1, 3, 5 … (SWIFT, 4.1)."""
        odd = range(1, cls(depth).depth - 1, 2)
        return cls(depth, frozenset(odd), frozenset(odd))

    @property
    def skip_ratio(self) -> float:
        """Skipped sublayers as a fraction of those that may be skipped, 2·(depth - 2)."""
        allowed = 2 * max(self.depth - 2, 0)
        return (len(self.attention) + len(self.mlp)) / allowed if allowed else 0.0

    def distance(self, other: LayerSet) -> int:
        """In how many sublayers two sets differ."""
        return len(self.attention ^ other.attention) + len(self.mlp ^ other.mlp)

    def check_depth(self, depth: int) -> None:
        """Raise `LayerSetError` if the set is not for a model of `depth` layers."""
        if depth != self.depth:
            raise LayerSetError(
                f"the layer set is for {self.depth} layers, the model has {depth}; make one for "
                "this model"
            )

    def __str__(self) -> str:
        return (
            f"{len(self.attention)} attention and {len(self.mlp)} MLP sublayers "
            f"of {self.depth} layers skipped"
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form: `{"depth": …, "attention": […], "mlp": […]}`, layers in order."""
        return {
            "depth": self.depth,
            "attention": sorted(self.attention),
            "mlp": sorted(self.mlp),
        }

    @classmethod
    def from_dict(cls, data: Any) -> LayerSet:
        """The set that `to_dict` wrote.

        Raises:
            LayerSetError: keys are missing or unknown, or a value is not what it should be.
        """
        if not isinstance(data, dict) or set(data) != {"depth", "attention", "mlp"}:
            raise LayerSetError(
                'a layer set is a JSON object {"depth": …, "attention": […], "mlp": […]}, '
                f"not {_shortened(data)}"
            )
        for kind in ("attention", "mlp"):
            if not isinstance(data[kind], list):
                raise LayerSetError(
                    f'"{kind}" must be a list of layers, not {_shortened(data[kind])}'
                )
        return cls(data["depth"], data["attention"], data["mlp"])

    def save(self, path: str | Path) -> None:
        """Write the set to `path` as JSON."""
        Path(path).write_text(json.dumps(self.to_dict()) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> LayerSet:
        """Read a set written by `save`.

        Raises:
            LayerSetError: the file cannot be read, is not JSON, or is no valid layer set.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise LayerSetError(
                f"cannot read the layer set {path}: {error.strerror or error}"
            ) from None
        except (ValueError, RecursionError) as error:
            raise LayerSetError(
                f"the layer set {path} is damaged: {error}; write it anew"
            ) from None
        try:
            return cls.from_dict(data)
        except LayerSetError as error:
            raise LayerSetError(f"{path}: {error}") from None


def _whole(value: Any) -> int | None:
    """`value` as a Python integer, numpy's kinds included; None if it is no whole number."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def _shortened(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
