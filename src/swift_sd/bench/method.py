"""What the benchmark asks of a way of generating: from a prompt to token ids."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from swift_sd.model.layer_set import LayerSet


@dataclass(frozen=True)
class Subject:
    """What the methods work with.

    Attributes:
        context: most tokens that the model was made for; None if not known.
        draft_model, draft_tokenizer: for `hf-assisted`.
        layer_set: for `swift-fixed`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    context: int | None = None
    draft_model: PreTrainedModel | None = None
    draft_tokenizer: PreTrainedTokenizerBase | None = None
    layer_set: LayerSet | None = None


@dataclass(frozen=True)
class Outcome:
    """One response: the ids of its new tokens and, where it is known, what its steps did.

    Attributes:
        figures: keys of `Trace.summary()`; empty where a method tells nothing.
    """

    token_ids: list[int]
    figures: dict[str, Any]


Answer = Callable[[dict[str, "Tensor"], dict[str, Any]], Outcome]
"""From the encoded prompt and arguments of `generate` to a response."""


class Method(ABC):
    """A way to generate.

    Attributes:
        name: how the user calls it.
        about: one line for the user.
        needs: the option without which it cannot run, by the name of the field of `Subject`.
        may_fail: with some models it raises what is not our fault; the run then goes on without it.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    needs: ClassVar[str | None] = None
    may_fail: ClassVar[bool] = False

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    @abstractmethod
    def start(self) -> Answer:
        """A fresh state, as a new user would find it; it lives as long as what is returned."""

    def unavailable(self) -> str | None:
        """Why this method cannot run with this model; None if it can."""
        return None


HF = "hf"
"""The method that all are compared with."""

REGISTERED: dict[str, type[Method]] = {}
"""What `register` knows, in the order in which it came to know it; see `catalogue.METHODS`."""


def register(method: type[Method]) -> type[Method]:
    """Make a method known under its name."""
    REGISTERED[method.name] = method
    return method
