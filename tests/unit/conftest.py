"""Fixtures of the tests of what is learned."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from swift_sd import Swift
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


@pytest.fixture(scope="package")
def by_planted() -> dict[Any, torch.Tensor]:
    """What the model of `planted` gives by itself: many tests ask it the same."""
    return {}


@pytest.fixture
def same_as_alone(request, answer, by_planted) -> Callable[..., bool]:
    """One response through `swift`; whether it is what the model gives by itself."""
    known = "planted" in request.fixturenames

    def alone(model: Any, ids: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        torch.manual_seed(3)
        if not known or model is not request.getfixturevalue("planted")[0]:
            return answer(model, ids, **options)
        key = (*ids[0].tolist(), *sorted(options.items()))
        if key not in by_planted:
            by_planted[key] = answer(model, ids, **options)
        return by_planted[key]

    def compare(swift: Swift, ids: torch.Tensor, **options: Any) -> bool:
        expected = alone(swift.model, ids, options)
        torch.manual_seed(3)
        return torch.equal(answer(swift, ids, **options), expected)

    return compare


@pytest.fixture
def learner() -> Callable[[Swift], Any]:
    """What a `Swift` object learns with."""
    return lambda swift: swift._experience._adaptation
