"""Whatever happens to the file of a profile, it is refused or does no harm."""

import dataclasses
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies

from swift_sd import ProfileError, Swift, SwiftConfig
from swift_sd.testing.families import tiny_model
from swift_sd.testing.planted import planted_model

EAGER = SwiftConfig(eager_search=True)
PROMPT = torch.randint(3, 100, (1, 16), generator=torch.Generator().manual_seed(0))
ASKED = {"do_sample": False, "max_new_tokens": 24, "eos_token_id": None}


@pytest.fixture(scope="module")
def model():
    return planted_model(tiny_model("llama"), extra_layers=5)[0]


@pytest.fixture(scope="module")
def learned(model):
    swift = Swift(model, config=EAGER)
    swift.generate(PROMPT, do_sample=False, max_new_tokens=64, eos_token_id=None)
    return swift.profile


@pytest.fixture(scope="module")
def expected(model):
    return model.generate(PROMPT, **ASKED)


NONSENSE = [None, True, -1, 2**70, 1e308, float("nan"), float("inf"), "x", [], [3], {"a": 1}]


DAMAGE = settings(
    max_examples=20,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def is_refused_or_harmless(model, file, expected):
    """Whether the profile in the file can be used; nothing but a `ProfileError` may come of it."""
    try:
        swift = Swift(model, config=EAGER, profile=file)
    except ProfileError:
        return False
    assert torch.equal(swift.generate(PROMPT, **ASKED), expected)
    json.dumps(dataclasses.asdict(swift.profile), allow_nan=False)
    return swift.profile.learned["kinds"][-1]["search"] is not None


@given(data=strategies.data())
@DAMAGE
def test_whatever_is_damaged_it_is_refused_or_harmless(model, learned, expected, data, tmp_path):
    """Any part replaced by any nonsense, or removed."""
    file = tmp_path / "x.json"
    learned.save(file)
    damaged = json.loads(file.read_text())
    part, path = damaged, []
    while True:
        keys = range(len(part)) if isinstance(part, list) else list(part)
        path.append(data.draw(strategies.sampled_from(keys)))
        inner = part[path[-1]]
        if not (isinstance(inner, dict | list) and inner and data.draw(strategies.integers(0, 3))):
            break
        part = inner
    if data.draw(strategies.booleans()):
        part[path[-1]] = data.draw(strategies.sampled_from(NONSENSE))
    else:
        del part[path[-1]]
    file.write_text(json.dumps(damaged))
    is_refused_or_harmless(model, file, expected)


@given(place=strategies.floats(0, 1, exclude_max=True), byte=strategies.integers(-1, 255))
@DAMAGE
def test_a_file_with_a_wrong_byte_or_cut_off_is_refused_or_harmless(
    model, learned, expected, place, byte, tmp_path
):
    file = tmp_path / "x.json"
    learned.save(file)
    content = bytearray(file.read_bytes())
    at = int(place * len(content))
    content[at:] = b"" if byte < 0 else bytes([byte]) + content[at + 1 :]
    file.write_bytes(content)
    is_refused_or_harmless(model, file, expected)


def test_undamaged_the_saved_search_goes_on(model, learned, expected, tmp_path):
    learned.save(tmp_path / "x.json")
    assert is_refused_or_harmless(model, tmp_path / "x.json", expected)
