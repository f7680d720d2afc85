"""What an engine works with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from swift_sd.decoding.trace import Step
from swift_sd.serve.served import Served


class Chores(Protocol):
    """What has to be done now and then, on the engine's thread."""

    def __call__(self) -> None:
        """Called between steps, often; must be quick when there is nothing to do."""
        ...

    def finish(self) -> None:
        """Called once, when no more steps follow."""
        ...


class Observer(Protocol):
    """Is told what happens, on the engine's thread."""

    def stepped(self, model: str, step: Step, seconds: float) -> None:
        """A step was done in `seconds` of wall time."""
        ...


@dataclass(frozen=True)
class Loaded:
    """What an engine works with once it is there.

    Attributes:
        models: what can be asked.
        chores: done between steps and at the end.
    """

    models: Sequence[Served]
    chores: Chores | None = None
