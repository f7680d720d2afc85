"""Who is told what costs speed here, and what would change that."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from swift_sd import Swift, SwiftConfig
from swift_sd.model.speed_notes import speed_notes
from swift_sd.model.sublayers import find_sublayers
from swift_sd.native import compiler, processor
from swift_sd.testing.families import tiny_model
from swift_sd.versions import EXACT_TORCH, has_known_order

COMPILED = SimpleNamespace(is_compiled=True, is_exact=True)
EXACT = SimpleNamespace(is_compiled=False, is_exact=True)
INEXACT = SimpleNamespace(is_compiled=False, is_exact=False)


SHAPE = {"hidden_size": 128, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 192}


def noted(family, exact, dtype=torch.bfloat16):
    model = tiny_model(family, **SHAPE).to(dtype)
    return speed_notes(model, find_sublayers(model), exact)


@pytest.fixture
def known(monkeypatch):
    """A version and a processor with which compiled code serves, to be changed."""

    def change(version=EXACT_TORCH[0], *, processor_is_known=True):
        monkeypatch.setattr(torch, "__version__", f"{version}.0+cpu")
        monkeypatch.setattr(processor, "has_known_order", lambda: processor_is_known)

    change()
    return change


def test_nothing_is_noted_where_compiled_code_serves(known):
    known("2.8", processor_is_known=False)  # what a trial has shown counts
    assert noted("llama", COMPILED) == []


def test_another_version_of_torch_is_named_with_those_that_are_fast(known):
    known("2.8")
    (note,) = noted("llama", EXACT)
    for word in ("torch 2.8.0+cpu", *EXACT_TORCH):
        assert word in note


def test_an_unknown_processor_is_noted_with_those_that_are_known(known):
    known(processor_is_known=False)
    (note,) = noted("llama", EXACT)
    assert "processor" in note
    assert processor.KNOWN in note


def test_nobody_is_blamed_where_all_is_as_it_should_be(known):
    assert noted("llama", EXACT) == []
    known("2.8", processor_is_known=False)
    assert noted("llama", EXACT, torch.float32) == []


def test_of_a_layout_without_compiled_forward_only_exactness_can_be_lost(known):
    known("2.8")
    assert noted("gemma2", EXACT) == []
    assert len(noted("gemma2", INEXACT)) == 1


@pytest.mark.parametrize("config", [SwiftConfig(), SwiftConfig.plain()], ids=["default", "plain"])
def test_a_missing_compiler_is_told_with_the_remedy(config, tmp_path, monkeypatch, prompt):
    monkeypatch.setenv("SWIFT_SD_CACHE", str(tmp_path))
    monkeypatch.setattr(compiler.shutil, "which", lambda _: None)
    swift = Swift(tiny_model("llama"), config=config)
    (note,) = swift.speed_notes
    assert "no C compiler" in note
    assert "install gcc" in note
    swift.generate(prompt(), max_new_tokens=4, do_sample=False)
    assert swift.report().splitlines()[-1] == note


def test_who_wants_no_compiled_code_is_told_nothing(monkeypatch):
    monkeypatch.setattr(compiler.shutil, "which", lambda _: None)
    assert Swift(tiny_model("llama"), config=SwiftConfig(compiled=False)).speed_notes == []


@pytest.mark.parametrize(
    ("version", "is_known"),
    [("2.8.1", False), ("2.9.0+cu128", True), ("2.14.1", True), ("2.15.0", False)],
)
def test_only_versions_that_were_tried_are_known(version, is_known):
    assert has_known_order(version) is is_known


@pytest.mark.parametrize(
    ("facts", "is_known"),
    [
        ("vendor_id : AuthenticAMD\nflags : sse avx2 avx512f avx512_bf16", True),
        ("vendor_id : AuthenticAMD\nflags : sse avx2 fma", True),
        ("vendor_id : AuthenticAMD\nflags : sse avx2 avx512f", False),
        ("vendor_id : GenuineIntel\nflags : sse avx2 fma", False),
        (OSError, False),
    ],
)
def test_a_processor_is_known_by_its_flags(facts, is_known, monkeypatch):
    def read(*_, **__):
        if isinstance(facts, str):
            return facts
        raise facts

    monkeypatch.setattr(Path, "read_text", read)
    assert processor.has_known_order() is is_known
