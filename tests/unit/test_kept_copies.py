"""Rounded copies in a file: read again where they are of these weights, made anew where not."""

import pytest
import torch

from swift_sd import Swift, SwiftConfig
from swift_sd.model.rounded_weights import KeptCopies, Rounded
from swift_sd.native.compiler import load_kernels
from swift_sd.testing.families import tiny_model

WIDE = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 16, "num_attention_heads": 8}
CONFIG = SwiftConfig(keep_copies=True, draft_bits=8)


@pytest.fixture(autouse=True)
def cache(own_cache):
    """Where copies are kept."""
    return own_cache / "copies"


@pytest.fixture
def made(monkeypatch):
    """A list that grows by each matrix that is rounded."""
    seen, of = [], Rounded.of
    monkeypatch.setattr(Rounded, "of", lambda *given: seen.append(given) or of(*given))
    return seen


@pytest.fixture
def model():
    return tiny_model("llama", **WIDE)


def answer(swift):
    ids = torch.arange(5, 25).unsqueeze(0)
    return swift.generate(ids, do_sample=False, max_new_tokens=24, eos_token_id=None)


def error(swift):
    return swift.trace.summary()["draft_view"]["relative_error"]


def test_a_second_object_reads_what_the_first_one_made(model, cache, made):
    first = Swift(model, config=CONFIG)
    expected, count = answer(first), len(made)
    assert count == 5 * 7 + 1  # seven matrices a layer, and the head
    (file,) = cache.iterdir()
    second = Swift(model, config=CONFIG)
    assert torch.equal(answer(second), expected)
    assert len(made) == count
    assert error(second) == error(first) > 0
    assert file.stat().st_size > 0.9 * first.trace.summary()["draft_view"]["bytes"]


def test_nothing_is_written_unless_it_is_wished_for(model, cache):
    answer(Swift(model, config=SwiftConfig(draft_bits=8)))
    assert not cache.exists()


@pytest.mark.parametrize("other", [{"draft_bits": 4}, {"draft_group": 64}])
def test_other_copies_have_files_of_their_own(model, cache, other):
    Swift(model, config=CONFIG)
    Swift(model, config=SwiftConfig(**{"keep_copies": True, "draft_bits": 8} | other))
    assert len(list(cache.iterdir())) == 2


def test_a_file_is_of_the_weights_that_it_was_made_from(tmp_path):
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(rows, 128, generator=draw) for rows in (64, 32, 96)]
    copies = [Rounded.of(load_kernels(), weight, 4, 128) for weight in weights]
    kept = KeptCopies(tmp_path / "copies.pt", 4, 128)
    assert kept.read(weights) is None
    kept.write(weights, copies)
    for found, copy in zip(kept.read(weights), copies, strict=True):
        assert torch.equal(found.codes, copy.codes)
        assert torch.equal(found.scales, copy.scales)
        assert found.sizes == copy.sizes
    others = {
        "trained on": [*weights[:2], 1.01 * weights[2]],
        "shorter": weights[:2],
        "of another shape": [*weights[:2], weights[2][:64]],
        "in another order": weights[::-1],
    }
    assert all(kept.read(other) is None for other in others.values())
    assert KeptCopies(kept.path, 8, 128).read(weights) is None
    assert KeptCopies(kept.path, 4, 64).read(weights) is None


@pytest.mark.parametrize("damage", ["empty", "cut", "bits", "text", "other", "folder"])
def test_a_damaged_file_is_replaced(model, cache, made, damage):
    first = Swift(model, config=CONFIG)
    answer(first)
    (file,) = cache.iterdir()
    data = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
        (file / "one").write_text("")
    elif damage == "other":
        torch.save({"form": "of another time"}, file)
    else:
        middle = len(data) // 2
        zeros = data[:middle] + bytes(4096) + data[middle + 4096 :]  # a page that was never written
        kinds = {"empty": b"", "cut": data[:middle], "bits": zeros, "text": b"hello"}
        file.write_bytes(kinds[damage])
    made.clear()
    if damage == "folder":  # it is not ours to delete
        with pytest.warns(UserWarning, match="rounded copies are not kept"):
            second = Swift(model, config=CONFIG)
    else:
        second = Swift(model, config=CONFIG)
        assert file.stat().st_size == len(data)
    assert len(made) == 5 * 7 + 1
    assert torch.equal(answer(second), answer(first))
    assert error(second) == error(first)


def test_where_nothing_can_be_written_it_says_so_and_goes_on(model, cache, monkeypatch):
    def full(*_):
        raise RuntimeError("PytorchStreamWriter failed writing file: no space left")

    monkeypatch.setattr(torch, "save", full)
    with pytest.warns(UserWarning, match="make room there"):
        swift = Swift(model, config=CONFIG)
    answer(swift)
    assert 0 < error(swift) < 0.1
    assert not list(cache.iterdir())
