"""Fixtures of the tests of what is learned."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from swift_sd import Swift
from swift_sd.adapting import adaptation
from swift_sd.adapting.costs import Costs
from swift_sd.testing.families import tiny_model
from swift_sd.testing.planted import planted_model

NEW = 48


@pytest.fixture(scope="package")
def planted() -> tuple[Any, frozenset[int]]:
    """A model and its superfluous layers."""
    return planted_model(tiny_model("llama"), extra_layers=10)


@pytest.fixture
def answer() -> Callable[..., Any]:
    """`answer(swift, ids, new)`: a greedy response of so many tokens."""

    def respond(swift: Any, ids: torch.Tensor, new: int = NEW, **options: Any) -> Any:
        given = {"do_sample": False, "max_new_tokens": new, "eos_token_id": None}
        return swift.generate(ids, **given | options)

    return respond


@pytest.fixture
def same_as_alone(answer) -> Callable[..., bool]:
    """One response through `swift`; whether it is what the model gives by itself."""

    def compare(swift: Swift, ids: torch.Tensor, **options: Any) -> bool:
        torch.manual_seed(3)
        expected = answer(swift.model, ids, **options)
        torch.manual_seed(3)
        return torch.equal(answer(swift, ids, **options), expected)

    return compare


@pytest.fixture
def learner() -> Callable[[Swift], Any]:
    """What a `Swift` object learns with."""
    return lambda swift: swift._experience._adaptation


@pytest.fixture
def fixed_costs(monkeypatch) -> None:
    """What a search finds must not depend on how busy the machine is."""

    def costs(view, state, pace):
        depth = view.layer_set.depth
        return Costs(1.0, (1 / (3 * depth),) * depth, (2 / (3 * depth),) * depth, 0.0, 8)

    monkeypatch.setattr(adaptation, "draft_costs", costs)
    monkeypatch.setattr(adaptation.Pace, "verify", lambda self, rows: 1.0)
