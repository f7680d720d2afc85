"""Kernels are compiled once, and nobody depends on a compiler."""

import ctypes
import errno
from pathlib import Path

import pytest
import torch

from swift_sd import Swift, SwiftConfig
from swift_sd.native import compiler
from swift_sd.native.compiler import NoKernelsError, find_kernels, load_kernels
from swift_sd.testing.families import tiny_model


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SWIFT_SD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiler, "FLAGS", ("-O0", *compiler.FLAGS[1:]))  # takes seconds less
    return tmp_path / "cache"


def test_what_was_compiled_is_kept(cache, monkeypatch):
    load_kernels()
    (kept,) = cache.iterdir()
    monkeypatch.setattr(compiler, "_compiled", None)  # would fail if called
    assert isinstance(load_kernels(), ctypes.CDLL)
    assert [*cache.iterdir()] == [kept]


@pytest.mark.parametrize("damage", ["text", "empty", "cut", "page"])
def test_a_damaged_file_is_compiled_anew(cache, damage):
    """It is not loaded: what is cut off, or was never written, would end the process."""
    load_kernels()
    (kept,) = cache.iterdir()
    data, middle = kept.read_bytes(), kept.stat().st_size // 2
    kept.unlink()  # it stays mapped
    page = data[:middle] + bytes(4096) + data[middle + 4096 :]
    kinds = {"text": b"not a library", "empty": b"", "cut": data[:middle], "page": page}
    kept.write_bytes(kinds[damage])
    assert isinstance(load_kernels(), ctypes.CDLL)
    assert kept.stat().st_size == len(data)


def forbidden(*_, **__):
    raise PermissionError(errno.EACCES, "not yours")


@pytest.mark.filterwarnings("ignore:nothing can be written")
def test_where_nothing_may_be_looked_at_a_temporary_file_serves(cache, monkeypatch):
    """A home of somebody else's, as in a container that runs under another number."""
    monkeypatch.setattr(Path, "is_file", forbidden)
    monkeypatch.setattr(Path, "mkdir", forbidden)
    assert isinstance(load_kernels(), ctypes.CDLL)


@pytest.mark.filterwarnings("ignore:.*is no folder that can be used")
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


def put_compiler(folder, monkeypatch, content):
    path = folder / "cc"
    path.write_bytes(content)
    path.chmod(0o755)
    monkeypatch.setenv("CC", str(path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x7fELF of another machine", "cannot be run: Exec format error"),
        (b"#!/no/such/shell\n", "cannot be run: No such file"),
        (b"#!/bin/sh\nprintf '\\377'\nexit 1\n", "does not compile"),  # told no text
    ],
)
def test_what_is_no_compiler_is_done_without(cache, monkeypatch, tmp_path, content, words):
    put_compiler(tmp_path, monkeypatch, content)
    with pytest.raises(NoKernelsError, match=words):
        load_kernels()
    Swift(tiny_model("llama", hidden_size=64, intermediate_size=128))


@pytest.mark.parametrize(("hangs", "limit"), [("*", "VERSION_SECONDS"), ("*.c", "SECONDS")])
def test_a_compiler_that_hangs_is_waited_for_once(cache, monkeypatch, tmp_path, hangs, limit):
    script = f'case "$1" in {hangs}) echo waits >> "$0.log"; exec sleep 60;; esac'
    put_compiler(tmp_path, monkeypatch, f"#!/bin/sh\n{script}\n".encode())
    for name in ("VERSION_SECONDS", "SECONDS"):
        monkeypatch.setattr(compiler, name, 0.2 if name == limit else 600)
    for _ in range(2):
        with pytest.raises(NoKernelsError, match=r"cc took more than 0\.2 s"):
            load_kernels()
    Swift(tiny_model("llama", hidden_size=64, intermediate_size=128))
    log = tmp_path / "cc.log"
    assert not log.exists() or log.read_text() == "waits\n"  # none if it had not come so far
