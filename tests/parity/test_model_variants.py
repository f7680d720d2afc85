"""Variants inside families: tied weights, biases, eager attention, residual layouts, length."""

import pytest
import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from swift_sd import LayerSet, PromptError, Swift, SwiftConfig, UnsupportedModel
from swift_sd.testing.families import tiny_model

LAYERS = 5
VARIANTS = [
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"num_key_value_heads": 1}),
    ("llama", {"attn_implementation": "eager"}),
    ("gemma3_text", {"attn_implementation": "eager"}),
    ("gpt_oss", {"attn_implementation": "eager"}),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("stablelm", {"use_parallel_residual": True}),
    ("stablelm", {"use_qkv_bias": True, "qk_layernorm": True}),
    ("phi", {"qk_layernorm": True}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}),
    ("mistral", {"sliding_window": None}),
    ("bloom", {"apply_residual_connection_post_layernorm": False}),
]


def assert_same(model, swift, ids, new_tokens, expected=None):
    """Ours are theirs, which are returned."""
    request = {
        "attention_mask": torch.ones_like(ids),
        "do_sample": False,
        "max_new_tokens": new_tokens,
        "eos_token_id": None,
    }
    expected = model.generate(ids, **request) if expected is None else expected
    assert torch.equal(swift.generate(ids, **request), expected)
    return expected


def named(variant):
    family, changes = variant
    return "-".join([family, *(f"{name}={value}" for name, value in changes.items())])


@pytest.mark.parametrize(("family", "changes"), VARIANTS, ids=map(named, VARIANTS))
def test_greedy_output_is_the_same(family, changes, prompt):
    model = tiny_model(family, layers=LAYERS, **changes)
    ids, expected = prompt(13), None
    for layer_set in (LayerSet.none(LAYERS), LayerSet.unified(LAYERS), LayerSet.every(LAYERS)):
        swift = Swift(model, config=SwiftConfig(layer_set, max_draft_tokens=5, early_stop=0.0))
        expected = assert_same(model, swift, ids, 16, expected)


def test_a_model_that_knows_images_answers_text(prompt):
    """For such a model transformers adds an argument, empty where there is no image."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    text = {**shape, "num_hidden_layers": LAYERS, "num_key_value_heads": 2, "head_dim": 8}
    images = {**shape, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    text |= {"vocab_size": 300, "sliding_window": 8}
    config = Gemma3Config(text_config=text, vision_config=images)
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config).eval()
    layer_set = LayerSet(LAYERS, [2], [3])
    swift = Swift(model, config=SwiftConfig(layer_set, max_draft_tokens=5, early_stop=0.0))
    assert_same(model, swift, prompt(13), 16)
    assert swift.trace.summary()["drafted_tokens"]


@pytest.mark.parametrize("family", ["mistral", "gemma3_text", "llama"])
def test_an_answer_many_windows_long(family, prompt):
    """Sliding layers move their window again and again, full ones grow."""
    model = tiny_model(family, layers=LAYERS)
    swift = Swift(model, config=SwiftConfig(LayerSet(LAYERS, [2], [3]), 7, early_stop=0.1))
    assert_same(model, swift, prompt(11), 150)
    summary = swift.trace.summary()
    assert 0 < summary["accepted_tokens"] < summary["drafted_tokens"]


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("opt", {"do_layer_norm_before": False}),
        ("bloom", {"apply_residual_connection_post_layernorm": True}),
    ],
)
def test_a_stream_that_is_normalised_on_its_way_is_refused(family, changes):
    with pytest.raises(UnsupportedModel, match=f"{family} is not supported"):
        Swift(tiny_model(family, layers=LAYERS, **changes))


def test_rotary_embeddings_that_depend_on_the_length_stop_at_the_trained_length(prompt):
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    model = tiny_model("llama", layers=LAYERS, rope_parameters=rope, max_position_embeddings=32)
    swift = Swift(model)
    ids = prompt(13)
    request = {"attention_mask": torch.ones_like(ids), "do_sample": False, "eos_token_id": None}
    expected = model.generate(ids, max_new_tokens=19, **request)
    assert torch.equal(swift.generate(ids, max_new_tokens=19, **request), expected)
    with pytest.raises(PromptError, match="dynamic"):
        swift.generate(ids, max_new_tokens=20, **request)
