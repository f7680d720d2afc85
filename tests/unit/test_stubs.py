"""Stand-ins return what is expected of them; copies share everything but what is replaced."""

import pytest
import torch
from torch import nn

from swift_sd.model.stubs import (
    Neutralised,
    PassThrough,
    Skipped,
    shared_copy,
    shared_copy_along,
)

HIDDEN = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))


class Narrowing(nn.Module):
    """Gives `width` features, and `extra` more values."""

    def __init__(self, width: int = 4, extra: int = 0) -> None:
        super().__init__()
        self.width, self.extra, self.calls = width, extra, 0

    def forward(self, hidden_states, *, scale=1.0):
        self.calls += 1
        out = scale * hidden_states[..., : self.width]
        return (out, *[torch.ones(2)] * self.extra) if self.extra else out


class AddsResidual(nn.Module):
    def forward(self, hidden_states, residual, mask=None):
        return residual + 2 * hidden_states, mask


def test_pass_through_gives_the_same_object_in_the_form_that_is_unpacked():
    assert PassThrough()(HIDDEN, "mask", cache=None) is HIDDEN
    out = PassThrough(extra=2)(HIDDEN)
    assert out[0] is HIDDEN
    assert out[1:] == (None, None)


@pytest.mark.parametrize("extra", [0, 1, 2])
@pytest.mark.parametrize("width", [2, 4])
def test_a_skipped_sublayer_gives_zeros_in_its_own_form_without_running(extra, width):
    sublayer = Narrowing(width, extra)
    neutral = Neutralised(sublayer)
    measured = neutral(HIDDEN, scale=3.0)
    calls = sublayer.calls
    for stub_output in (
        Skipped(neutral)(HIDDEN, scale=3.0),
        Skipped(neutral)(hidden_states=HIDDEN),
    ):
        first = stub_output[0] if extra else stub_output
        expected = measured[0] if extra else measured
        assert torch.equal(first, torch.zeros(1, 3, width))
        assert torch.equal(first, expected)
        assert first.dtype == HIDDEN.dtype
        if extra:
            assert stub_output[1:] == (None,) * extra
    assert sublayer.calls == calls == 1


def test_a_sublayer_that_adds_the_stream_itself_gives_the_stream():
    neutral = Neutralised(AddsResidual())
    stream = HIDDEN + 1
    assert neutral(HIDDEN, stream)[0] is stream
    assert neutral(HIDDEN, residual=stream, mask="m") == (stream, "m")
    skipped = Skipped(neutral)
    assert skipped(HIDDEN, stream) == (stream, None)
    assert skipped(hidden_states=HIDDEN, residual=stream) == (stream, None)


def test_a_shared_copy_replaces_children_only_in_itself():
    original = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    children = list(original)
    twin = shared_copy(original, {"1": nn.Identity()})
    assert list(original) == children
    assert twin[0] is children[0]
    assert isinstance(twin[1], nn.Identity)
    assert type(twin) is type(original)


def test_own_parameters_and_buffers_are_the_same_objects():
    norm = nn.BatchNorm1d(3)
    twin = shared_copy(norm, {})
    assert twin is not norm
    assert twin.weight is norm.weight
    assert twin.running_mean is norm.running_mean


def test_along_a_path_only_the_modules_on_it_are_new():
    original = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2))
    twin = shared_copy_along(original, ("0",), {"1": nn.Identity()})
    assert twin is not original
    assert twin[0] is not original[0]
    assert twin[1] is original[1]
    assert twin[0][0] is original[0][0]
    assert isinstance(twin[0][1], nn.Identity)
    assert isinstance(original[0][1], nn.Linear)
