"""Holes that a review found: each was wrong once."""

import types

import pytest
import torch
from transformers import EosTokenCriteria

from swift_sd import (
    LayerSet,
    PromptError,
    Swift,
    SwiftConfig,
    UnsupportedArgument,
    UnsupportedModel,
)
from swift_sd.model.sublayers import find_sublayers
from swift_sd.testing.families import tiny_model

LAYERS = 5


def request(ids, **changes):
    mask = torch.ones_like(ids)
    return {"attention_mask": mask, "do_sample": False, "eos_token_id": None, **changes}


@pytest.mark.parametrize("family", ["gpt2", "gpt_bigcode", "opt"])
def test_drafts_do_not_reach_beyond_learned_positions(family, prompt):
    """The limit lies beyond the context, and the answer ends before it."""
    model = tiny_model(family, layers=LAYERS)
    ids = prompt(250)
    free = model.generate(ids, max_new_tokens=6, **request(ids))[0].tolist()
    asked = request(ids, max_new_tokens=30, eos_token_id=free[-1])
    expected = model.generate(ids, **asked)
    for layer_set in (LayerSet.none(LAYERS), LayerSet.every(LAYERS)):
        swift = Swift(model, config=SwiftConfig(layer_set, early_stop=0.0))
        assert torch.equal(swift.generate(ids, **asked), expected)


DYNAMIC = {
    "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    "max_position_embeddings": 32,
}


@pytest.mark.parametrize("limit", [{"max_length": 60}, {"max_new_tokens": 47}])
def test_dynamic_rope_is_refused_however_the_length_is_given(limit, prompt):
    model = tiny_model("llama", layers=LAYERS, **DYNAMIC)
    ids = prompt(13)
    with pytest.raises(PromptError, match="rotary"):
        Swift(model).generate(ids, **request(ids, **limit))


def longrope():
    half = [1.0] * 4
    return tiny_model(
        "phi3",
        layers=LAYERS,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": half,
            "long_factor": [2.0] * 4,
            "original_max_position_embeddings": 64,
            "partial_rotary_factor": 1.0,
        },
        max_position_embeddings=128,
    )


def test_buffers_that_a_model_makes_for_itself_stay_ordinary_tensors(prompt):
    """A tensor made in inference mode could never take part in training again."""
    model = longrope()
    ids = prompt(13)
    expected = model.generate(ids, **request(ids, max_new_tokens=12))
    model = longrope()
    swift = Swift(model)
    assert torch.equal(swift.generate(ids, **request(ids, max_new_tokens=12)), expected)
    tensors = [
        value
        for module in model.modules()
        for value in (*vars(module).values(), *module.buffers(recurse=False))
        if isinstance(value, torch.Tensor)
    ]
    assert tensors
    assert not any(tensor.is_inference() for tensor in tensors)


@pytest.mark.parametrize("scale", [1e-3, 1e-5])
@pytest.mark.parametrize("family", ["llama", "gemma2", "phi", "olmo2"])
def test_a_sublayer_that_adds_little_does_not_lose_the_other_ones_norm(family, scale):
    expected = [parts(part) for part in find_sublayers(tiny_model(family)).parts]
    model = tiny_model(family)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".0." in name and any(part in name for part in ("o_proj.", "attn.dense.")):
                weight *= scale
    assert [parts(part) for part in find_sublayers(model).parts] == expected


def parts(one):
    return one.attention, one.mlp, set(one.without_attention), set(one.without_mlp)


def test_the_proof_holds_in_half_precision():
    for dtype in (torch.float16, torch.bfloat16):
        found = find_sublayers(tiny_model("llama").to(dtype))
        assert parts(found.parts[1]) == parts(find_sublayers(tiny_model("llama")).parts[1])


@pytest.mark.parametrize("place", ["", "model", "model.layers.3"])
def test_a_forward_replaced_on_the_object_takes_part_in_no_draft(place, prompt):
    """A copy of the module would run the original's."""
    model = tiny_model("llama", layers=LAYERS)
    swift = Swift(model)
    module = model.get_submodule(place)
    module.forward = types.MethodType(type(module).forward, module)
    with pytest.raises(UnsupportedModel, match="replaced on the object"):
        Swift(model)
    asked = request(prompt(5), max_new_tokens=9)
    with pytest.warns(UserWarning, match="without drafts: .* replaced on the object"):
        found = swift.generate(prompt(5), **asked)
    assert torch.equal(found, model.generate(prompt(5), **asked))
    assert swift.trace.summary()["drafted_tokens"] == 0


@pytest.mark.parametrize("place", ["", "model.layers.3", "model.layers.3.mlp", "lm_head"])
def test_a_compiled_module_is_refused(place):
    """torch leaves what it compiled out of copies."""
    model = tiny_model("llama", layers=LAYERS)
    model.get_submodule(place).compile(backend="eager")
    with pytest.raises(UnsupportedModel, match="was compiled"):
        Swift(model)


@pytest.mark.parametrize("warper", [{}, {"eta_cutoff": 0.1}, {"top_h": 0.5}])
@pytest.mark.parametrize("do_sample", [False, True])
def test_a_sub_network_that_computes_nonsense_proposes_nothing(do_sample, warper, prompt):
    """With a poisoned stream only where layers are skipped, the target's answer is unharmed."""
    model = tiny_model("llama", layers=LAYERS)
    ids = prompt(6)
    swift = Swift(model, config=SwiftConfig(LayerSet.unified(LAYERS), early_stop=0.8))
    part = swift.sublayers.parts[1].without_both

    def poisoned(self, hidden_states, *args, **kwargs):
        return hidden_states * float("nan")

    part.forward = types.MethodType(poisoned, part)
    asked = request(ids, max_new_tokens=8, do_sample=do_sample, **(warper if do_sample else {}))
    torch.manual_seed(0)
    out = swift.generate(ids, **asked)
    assert out.shape[1] == 14
    assert swift.trace.summary()["drafted_tokens"] == 0
    torch.manual_seed(0)
    assert torch.equal(out, model.generate(ids, **asked))


def test_an_end_of_sequence_criterion_may_hold_a_single_number(model_of, swift_of, prompt):
    model, ids = model_of(), prompt(9)
    end = model.generate(ids, **request(ids, max_new_tokens=5))[0, -1]
    asked = request(ids, max_new_tokens=12)
    expected = model.generate(ids, stopping_criteria=[EosTokenCriteria(end.clone())], **asked)
    ours = swift_of(model).generate(ids, stopping_criteria=[EosTokenCriteria(end.clone())], **asked)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize(
    ("argument", "value"), [("prefill_chunk_size", -1), ("custom_generate", lambda: None)]
)
def test_more_arguments_are_refused_by_name(model_of, swift_of, prompt, argument, value):
    with pytest.raises(UnsupportedArgument, match=argument):
        swift_of(model_of()).generate(prompt(5), max_new_tokens=3, **{argument: value})


@pytest.mark.parametrize("argument", ["custom_generate", "assistant_model"])
def test_what_is_refused_may_be_given_as_none(model_of, swift_of, prompt, argument):
    model, ids = model_of(), prompt(5)
    expected = model.generate(ids, **request(ids, max_new_tokens=3))
    swift, asked = swift_of(model), request(ids, max_new_tokens=3, **{argument: None})
    assert torch.equal(swift.generate(ids, **asked), expected)
    tokens = [token for step in swift.steps(ids, **asked) for token in step.tokens]
    assert tokens == expected[0, ids.shape[1] :].tolist()


def test_yarn_goes_beyond_the_trained_positions(prompt):
    rope = {
        "rope_type": "yarn",
        "factor": 4.0,
        "rope_theta": 1e4,
        "original_max_position_embeddings": 16,
    }
    model = tiny_model("llama", rope_parameters=rope, max_position_embeddings=16)
    ids = prompt(30)
    asked = request(ids, max_new_tokens=10)
    assert torch.equal(Swift(model).generate(ids, **asked), model.generate(ids, **asked))
