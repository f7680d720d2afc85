import json

import pytest

from swift_sd.native import compiler
from swift_sd.testing.families import tiny_model


def test_shows_every_layer_and_the_totals(swift_sd, model_folder):
    status, out, _ = swift_sd("inspect", model_folder, "--context", 8)
    assert status == 0
    rows = [line.split() for line in out.splitlines() if line[:7].strip().isdigit()]
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4"]
    assert [row[-1] for row in rows] == ["never", "yes", "yes", "yes", "never"]
    assert {row[-2] for row in rows} == {"full"}
    for word in ("llama", "5 layers", "float32 on cpu", "self_attn", "unified", "head"):
        assert word in out
    assert max(map(len, out.splitlines())) <= 80


def test_json_says_the_same(swift_sd, model_folder):
    status, out, _ = swift_sd("inspect", model_folder, "--json", "--context", 8)
    assert status == 0
    facts = json.loads(out)
    assert (facts["family"], facts["depth"], facts["dtype"]) == ("llama", 5, "float32")
    assert facts["context"] == 8
    assert facts["max_context"] == 256
    layer = facts["layers"][1]
    assert layer["skippable"]
    assert layer["skipped_with_attention"] == ["self_attn", "input_layernorm"]
    assert layer["skipped_with_mlp"] == ["mlp", "post_attention_layernorm"]
    saved = sum(facts["layers"][i]["attention_ms"] + facts["layers"][i]["mlp_ms"] for i in (1, 3))
    assert facts["unified_saves_ms"] == pytest.approx(saved)
    assert facts["step_ms"] > 0


def test_refuses_an_unsupported_model(swift_sd, refused, model_folder, tmp_path):
    import transformers

    tiny_model("mamba").save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path)
    refused(swift_sd("inspect", tmp_path), "mamba", "not supported")


def test_refuses_a_context_beyond_the_models(swift_sd, refused, model_folder):
    refused(swift_sd("inspect", model_folder, "--context", 256), "--context", "256")


def test_what_costs_speed_here_is_told_with_the_remedy(
    swift_sd, model_folder, monkeypatch, tmp_path
):
    monkeypatch.setenv("SWIFT_SD_CACHE", str(tmp_path))
    monkeypatch.setattr(compiler.shutil, "which", lambda _: None)
    _, out, _ = swift_sd("inspect", model_folder, "--context", 8)
    assert "no C compiler is installed (cc); install gcc or clang" in " ".join(out.split())
    _, out, _ = swift_sd("inspect", model_folder, "--context", 8, "--json")
    (note,) = json.loads(out)["speed_notes"]
    assert "no C compiler" in note
