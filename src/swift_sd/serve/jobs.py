"""What is asked of the engine, and what it answers, bit by bit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text, and how its token came about.

    Attributes:
        origin: "plain" (a step without a draft), "bonus" (chosen by the full model behind a draft),
            "sibling" (an accepted alternative), else the name of the drafter whose token it was.
    """

    text: str
    origin: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one response: read, said, proposed by drafters, and accepted of those."""

    prompt: int = 0
    completion: int = 0
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step added to the text; there may be nothing to show yet."""

    pieces: tuple[Piece, ...]

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(piece.text for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class End:
    """The response is complete."""

    reason: FinishReason
    usage: Usage


@dataclass(frozen=True, slots=True)
class Failure:
    """The response ends without an answer."""

    error: Exception


Event = Delta | End | Failure


@dataclass(eq=False)
class Job:
    """One request, ready for the engine.

    Attributes:
        model: a name that the engine knows.
        client: whose turn it is when several wait.
        inputs: `input_ids` and `attention_mask`, `[1, n]`.
        arguments: for `Swift.steps`; `max_new_tokens` is among them.
        deadline: `time.monotonic()` at which the answer ends as it stands.
        stop: texts before which the answer ends.
        seed: of sampling; None draws one.
        memory: whose earlier texts drafts may draw on, see `Swift.steps`.
        deliver: takes events, in order, on the engine's thread; must not block.
        cancelled: set by anyone when nobody waits for the answer any more.
    """

    model: str
    client: str
    inputs: dict[str, Tensor]
    arguments: dict[str, Any]
    deadline: float
    stop: tuple[str, ...] = ()
    seed: int | None = None
    memory: str | None = None
    deliver: Callable[[Event], None] = lambda event: None
    cancelled: threading.Event = field(default_factory=threading.Event)
