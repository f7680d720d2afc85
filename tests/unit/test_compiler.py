"""Kernels are compiled once, and nobody depends on a compiler."""

import ctypes

import pytest
import torch

from swift_sd import Swift, SwiftConfig
from swift_sd.native import compiler
from swift_sd.native.compiler import NoKernelsError, find_kernels, load_kernels
from swift_sd.testing.families import tiny_model


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SWIFT_SD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_was_compiled_is_kept(cache, monkeypatch):
    load_kernels()
    (kept,) = cache.iterdir()
    monkeypatch.setattr(compiler, "_compiled", None)  # would fail if called
    assert isinstance(load_kernels(), ctypes.CDLL)
    assert [*cache.iterdir()] == [kept]


def test_a_damaged_file_is_compiled_anew(cache):
    load_kernels()
    (kept,) = cache.iterdir()
    kept.unlink()
    kept.write_bytes(b"not a library")
    assert isinstance(load_kernels(), ctypes.CDLL)


def test_where_nothing_can_be_written_a_temporary_file_serves(cache):
    cache.write_text("a file where a folder should be")
    assert isinstance(load_kernels(), ctypes.CDLL)


def test_without_a_compiler_everything_works(cache, monkeypatch):
    monkeypatch.setattr(compiler.shutil, "which", lambda _: None)
    assert find_kernels() is None
    with pytest.raises(NoKernelsError, match="no C compiler"):
        load_kernels()
    model = tiny_model("llama", hidden_size=64, intermediate_size=128)
    ids = torch.arange(5, 12).unsqueeze(0)
    asked = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 12}
    swift = Swift(model, config=SwiftConfig(early_stop=0.0))
    assert torch.equal(swift.generate(ids, **asked), model.generate(ids, **asked))


def test_a_compiler_that_fails_is_quoted(cache, monkeypatch, tmp_path):
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho no such luck >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    with pytest.raises(NoKernelsError, match="no such luck"):
        load_kernels()
    assert [path for path in cache.iterdir() if path.suffix == ".so"] == []
