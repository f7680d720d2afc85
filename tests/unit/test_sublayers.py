"""Sublayers are found in every family, or the model is refused with its name and the reason."""

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration
from transformers.distributed import DistributedConfig

from swift_sd import Swift, UnsupportedModel
from swift_sd.model.kv_cache import attention_windows
from swift_sd.model.sublayers import find_sublayers
from swift_sd.testing.families import FAMILIES, RECURRENT_FAMILIES, tiny_model

ATTENTION_NAMES = {"self_attn", "attn", "attention", "self_attention"}
MLP_NAMES = {"mlp", "feed_forward", "block_sparse_moe"}
OTHERS = ("gpt_oss", "bloom", "opt")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_familys_two_sublayers_are_found_in_every_layer(family, model_of):
    model = model_of(family)
    sublayers = find_sublayers(model)
    assert sublayers.depth == model.config.num_hidden_layers
    layers = list(model.get_submodule(".".join(sublayers.path)))
    assert len(layers) == sublayers.depth
    for layer, parts in zip(layers, sublayers.parts, strict=True):
        assert parts.attention in ATTENTION_NAMES
        assert parts.mlp in MLP_NAMES
        names = {name for name, _ in layer.named_children()}
        assert {*parts.without_attention, *parts.without_mlp} <= names
        assert parts.mlp not in parts.without_attention
        assert parts.attention not in parts.without_mlp


@pytest.mark.parametrize(
    ("family", "with_attention", "with_mlp"),
    [
        ("llama", {"self_attn", "input_layernorm"}, {"mlp", "post_attention_layernorm"}),
        ("gpt2", {"attn", "ln_1"}, {"mlp", "ln_2"}),
        (
            "gemma2",
            {"self_attn", "input_layernorm", "post_attention_layernorm"},
            {"mlp", "pre_feedforward_layernorm", "post_feedforward_layernorm"},
        ),
        (
            "olmo2",
            {"self_attn", "post_attention_layernorm"},
            {"mlp", "post_feedforward_layernorm"},
        ),
    ],
)
def test_the_norms_of_a_sublayer_go_with_it(family, with_attention, with_mlp, model_of):
    for parts in find_sublayers(model_of(family)).parts:
        assert set(parts.without_attention) - {"resid_dropout", "dropout"} == with_attention
        assert set(parts.without_mlp) - {"resid_dropout", "dropout"} == with_mlp


def test_a_norm_that_serves_both_sublayers_stays_for_the_one_that_is_left(model_of):
    for parts in find_sublayers(model_of("cohere")).parts:
        assert "input_layernorm" not in parts.without_attention
        assert "input_layernorm" not in parts.without_mlp


@pytest.mark.parametrize("family", OTHERS)
def test_layers_built_otherwise_are_found_too(family, model_of):
    assert find_sublayers(model_of(family)).depth == 5


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "granite"])
def test_finding_does_not_depend_on_the_attention_implementation(family):
    found = [
        find_sublayers(tiny_model(family, attn_implementation=kind)) for kind in ("eager", "sdpa")
    ]
    names = [
        [(p.attention, p.mlp, set(p.without_attention), set(p.without_mlp)) for p in one.parts]
        for one in found
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_proved_too(dtype):
    assert find_sublayers(tiny_model("gemma2").to(dtype)).depth == 5


@pytest.mark.parametrize("layers", [1, 2])
def test_a_model_with_nothing_to_skip_is_still_found(layers):
    assert find_sublayers(tiny_model("llama", layers=layers)).depth == layers


def test_windows_are_those_of_the_layers(model_of):
    assert attention_windows(model_of("llama").config) == [None] * 5
    assert attention_windows(model_of("mistral").config) == [8] * 5
    assert attention_windows(model_of("gemma2").config) == [8, None, 8, None, 8]


@pytest.mark.parametrize("family", [*RECURRENT_FAMILIES, "minimax"])
def test_models_with_a_state_that_cannot_be_rewound_are_refused(family):
    with pytest.raises(UnsupportedModel) as caught:
        Swift(tiny_model(family))
    assert str(caught.value).startswith(f"{family} is not supported: it keeps a state")
    assert "swift-sd drafts with decoder-only models" in str(caught.value)


SHARING = {
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 101,
    "layer_types": [
        *("sliding_attention", "full_attention", "sliding_attention"),
        *("sliding_attention", "full_attention"),
    ],
}
GEMMA3N = {
    "laurel_rank": 4,
    "altup_num_inputs": 2,
    "activation_sparsity_pattern": [0.0] * 5,
    "intermediate_size": [48] * 5,
}


@pytest.mark.parametrize(
    ("family", "values"), [("gemma3n_text", SHARING | GEMMA3N), ("gemma4_text", SHARING)]
)
def test_layers_that_read_each_others_keys_are_refused(family, values):
    with pytest.raises(UnsupportedModel, match=f"{family}.*keys and values of other layers"):
        Swift(tiny_model(family, **values))


def test_an_encoder_decoder_is_refused():
    config = T5Config(d_model=16, d_kv=4, d_ff=16, num_layers=3, num_heads=2, vocab_size=50)
    with pytest.raises(UnsupportedModel, match="t5 is not supported: it is an encoder-decoder"):
        Swift(T5ForConditionalGeneration(config).eval())


def test_a_base_model_is_refused_for_want_of_a_head(model_of):
    with pytest.raises(UnsupportedModel, match="LlamaModel has no language modelling head"):
        Swift(model_of().model)


def test_a_model_without_weights_is_refused():
    with torch.device("meta"):
        model = tiny_model("llama")
    with pytest.raises(UnsupportedModel, match="meta device"):
        Swift(model)


def test_a_model_in_training_mode_is_refused_with_the_remedy():
    with pytest.raises(UnsupportedModel, match=r"model\.eval\(\)"):
        Swift(tiny_model("llama").train())


def test_attention_in_chunks_is_refused():
    model = tiny_model("llama4_text", attention_chunk_size=16, intermediate_size_mlp=48)
    with pytest.raises(UnsupportedModel, match="chunks"):
        Swift(model)


def test_autocast_is_refused_with_the_remedy():
    swift = Swift(tiny_model("llama"))
    ids = torch.tensor([[5, 6, 7]])
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(UnsupportedModel, match="autocast is on: leave it"),
    ):
        swift.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4)


def test_an_offloaded_model_is_refused():
    model = tiny_model("llama")
    model.model.layers[1]._hf_hook = object()  # what accelerate leaves on a module it manages
    with pytest.raises(UnsupportedModel, match="spread over devices or offloaded"):
        Swift(model)


def test_a_layer_that_scales_its_stream_is_refused():
    model = tiny_model("llama")
    layers = model.model.layers

    class Scaled(type(layers[2])):
        def forward(self, *args, **kwargs):
            return 0.5 * super().forward(*args, **kwargs)

    layers[2].__class__ = Scaled
    with pytest.raises(UnsupportedModel, match=r"llama.*in layer 2, .*residual stream"):
        Swift(model)


def test_a_layer_without_an_mlp_is_refused():
    model = tiny_model("llama")
    model.model.layers[3].mlp = torch.nn.Identity()
    with pytest.raises(UnsupportedModel, match=r"in layer 3, there is no MLP"):
        Swift(model)


def test_pipeline_stages_are_refused_with_the_reason():
    model = tiny_model("llama")
    model.config.distributed_config = DistributedConfig(pp_size=2)
    with pytest.raises(UnsupportedModel, match="pipeline stages"):
        find_sublayers(model)
