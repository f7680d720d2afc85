"""The numbers that tokens are drawn with, where others use the generator too."""

import pytest
import torch

from swift_sd.decoding import noise
from swift_sd.decoding.noise import Noise

LIKE = torch.zeros(1, 7)


@pytest.fixture
def moves(monkeypatch):
    """How often torch's own generator is set."""
    seen = []
    set_state = noise.set_state

    def noted(state, device):
        seen.append(device)
        set_state(state, device)

    monkeypatch.setattr(noise, "set_state", noted)
    return seen


def test_who_looks_ahead_leaves_the_generator_alone(moves):
    torch.manual_seed(0)
    expected = [torch.empty_like(LIKE).exponential_(1) for _ in range(4)]
    after = torch.get_rng_state()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    numbers = Noise()
    for place, each in enumerate(expected):
        assert torch.equal(numbers.ahead(place, LIKE), each)
    assert numbers.some(2, [1, 99], LIKE) == [expected[2][0, 1].item(), float("inf")]
    assert moves == []
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(numbers.take(LIKE), each) for each in expected)
    assert torch.equal(torch.get_rng_state(), after)


def test_without_a_look_ahead_numbers_are_drawn_as_anybody_does(moves):
    torch.manual_seed(0)
    expected = [torch.empty_like(LIKE).exponential_(1) for _ in range(3)]
    torch.manual_seed(0)
    numbers = Noise()
    assert all(torch.equal(numbers.take(LIKE), each) for each in expected)
    assert moves == []


def test_what_somebody_else_has_drawn_is_not_drawn_again():
    torch.manual_seed(0)
    numbers = Noise()
    seen = numbers.ahead(0, LIKE)
    assert torch.equal(torch.empty_like(LIKE).exponential_(1), seen)
    assert not torch.equal(numbers.take(LIKE), seen)
