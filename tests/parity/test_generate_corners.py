"""Corners of `generate` that are easy to get silently wrong."""

import copy

import numpy
import pytest
import torch
from transformers import (
    AttentionInterface,
    DynamicCache,
    GenerationConfig,
    StopStringCriteria,
    TextStreamer,
)

from swift_sd import (
    ConfigError,
    LayerSet,
    LayerSetError,
    Swift,
    SwiftConfig,
    UnsupportedArgument,
    UnsupportedModel,
)
from swift_sd.model.kv_cache import generate_cache_name
from swift_sd.testing.families import tiny_model
from swift_sd.versions import CACHES_ARE_MARKED

CACHE = generate_cache_name()

GREEDY = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None}


def test_positions_other_than_the_counted_ones_are_refused(model_of, swift_of, prompt):
    swift, ids = swift_of(model_of("gpt2")), prompt(12)
    with pytest.raises(UnsupportedArgument, match="position_ids") as refused:
        swift.generate(ids, position_ids=torch.arange(50, 62)[None], **GREEDY)
    assert refused.value.argument == "position_ids"


def test_counted_positions_are_accepted(model_of, swift_of, prompt):
    model, ids = model_of("gpt2"), prompt(12)
    request = {"position_ids": torch.arange(12)[None], **GREEDY}
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), **request)
    assert torch.equal(swift_of(model).generate(ids, **request), expected)


def padded(ids, by=4):
    padding = torch.zeros(1, by, dtype=torch.long)
    mask = torch.cat([padding, torch.ones_like(ids)], dim=1)
    return {"inputs": torch.cat([padding, ids], dim=1), "attention_mask": mask}


@pytest.mark.skipif(not CACHES_ARE_MARKED, reason="transformers does not say whose cache it is")
def test_padding_is_refused_together_with_a_users_cache(model_of, swift_of, prompt):
    with pytest.raises(UnsupportedArgument, match="padding"):
        swift_of(model_of()).generate(**padded(prompt(9)), **{CACHE: DynamicCache()}, **GREEDY)


def test_a_padded_prompt_returns_no_cache_that_would_not_fit(model_of, swift_of, prompt):
    out = swift_of(model_of()).generate(**padded(prompt(9)), return_dict_in_generate=True, **GREEDY)
    assert getattr(out, CACHE) is None
    assert out.sequences.shape == (1, 4 + 9 + 8)


def test_stop_strings_in_a_generation_config(model_of, swift_of, prompt, tokenizer):
    model, ids = model_of(), prompt(9)
    mask = torch.ones_like(ids)
    free = model.generate(ids, attention_mask=mask, **GREEDY)[0, 9:]
    config = GenerationConfig(stop_strings=[tokenizer.decode(free[3:5])], **GREEDY)
    expected = model.generate(ids, config, attention_mask=mask, tokenizer=tokenizer)
    assert expected.shape[1] < 9 + 8
    swift = swift_of(model, "none", tokenizer=tokenizer)
    assert torch.equal(swift.generate(ids, config, attention_mask=mask), expected)
    assert config.stop_strings is not None


def test_stop_strings_of_the_checkpoint(model_of, swift_of, prompt, tokenizer):
    model, ids = copy.deepcopy(model_of()), prompt(9)
    mask = torch.ones_like(ids)
    free = model.generate(ids, attention_mask=mask, **GREEDY)[0, 9:]
    model.generation_config.stop_strings = [tokenizer.decode(free[3:5])]
    expected = model.generate(ids, attention_mask=mask, tokenizer=tokenizer, **GREEDY)
    assert expected.shape[1] < 9 + 8
    swift = swift_of(model, "none", tokenizer=tokenizer)
    assert torch.equal(swift.generate(ids, attention_mask=mask, **GREEDY), expected)
    config = GenerationConfig(**GREEDY)  # which leaves them as they are
    assert torch.equal(swift.generate(ids, config, attention_mask=mask), expected)
    assert model.generation_config.stop_strings is not None


def test_a_streamer_is_refused_where_it_would_never_hear_the_end(model_of, swift_of, tokenizer):
    swift = swift_of(model_of(), tokenizer=tokenizer)
    with pytest.raises(UnsupportedArgument, match="streamer"):
        swift.steps(torch.tensor([[3, 4]]), streamer=TextStreamer(tokenizer), **GREEDY)


def test_a_model_put_into_training_mode_later_is_refused(prompt):
    model = tiny_model("llama")
    swift = Swift(model)
    model.train()
    with pytest.raises(UnsupportedModel, match=r"model\.eval"):
        swift.generate(prompt(5), **GREEDY)


def test_a_vocabulary_that_grew_later_is_seen_by_the_draft(prompt):
    model = tiny_model("llama")
    swift = Swift(model, config=SwiftConfig(LayerSet.every(5), early_stop=0))
    model.resize_token_embeddings(120, mean_resizing=False)
    out = swift.generate(prompt(5), **{**GREEDY, "do_sample": True})
    assert out.shape == (1, 13)


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("change", ["vocabulary", "type"])
def test_a_model_that_changes_later_is_drafted_from_as_it_is(prompt, do_sample, change):
    """Copies in 8 bits are of what it was."""
    sizes = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 32}
    model = tiny_model("llama", **sizes).to(torch.bfloat16)
    swift = Swift(model, config=SwiftConfig(LayerSet.every(5), early_stop=0, draft_bits=8))
    if change == "vocabulary":
        model.resize_token_embeddings(120, mean_resizing=False)
    else:
        model.float()
    request = {**GREEDY, "do_sample": do_sample, "max_new_tokens": 24}
    torch.manual_seed(4)
    expected = model.generate(prompt(5), **request)
    torch.manual_seed(4)
    assert torch.equal(swift.generate(prompt(5), **request), expected)


def blind(module, query, key, value, attention_mask, scaling=None, **_):
    """Attention that masks by itself, and does not look at any mask."""
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    rows, keys = query.shape[2], key.shape[2]
    mask = torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows)
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scaling
    )
    return output.transpose(1, 2).contiguous(), None


@pytest.mark.filterwarnings("ignore:LlamaForCausalLM verifies chains")
def test_attention_that_is_changed_later_is_given_no_trees(prompt):
    model = tiny_model("llama")
    swift = Swift(model, config=SwiftConfig(LayerSet.every(5), early_stop=0))
    AttentionInterface.register("blind", blind)
    model.set_attn_implementation("blind")
    request = {**GREEDY, "max_new_tokens": 24}
    assert torch.equal(swift.generate(prompt(9), **request), model.generate(prompt(9), **request))
    assert all(step.verified == step.drafted for step in swift.trace.steps)
    assert any(step.drafted for step in swift.trace.steps)


@pytest.mark.parametrize("given", [None, GenerationConfig(stop_strings=["e"])])
def test_no_stop_strings_means_none(model_of, swift_of, prompt, tokenizer, given):
    model, ids = copy.deepcopy(model_of()), prompt(9)
    model.generation_config.stop_strings = ["a", "b", "c"]
    request = {"attention_mask": torch.ones_like(ids), "stop_strings": None, **GREEDY}
    expected = model.generate(ids, given, **request)
    assert torch.equal(swift_of(model, "none").generate(ids, given, **request), expected)


def test_a_users_own_criterion_of_stop_strings_wins(model_of, swift_of, prompt, tokenizer):
    model, ids = model_of(), prompt(9)
    free = model.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY)[0, 9:]
    soon, late = tokenizer.decode(free[1:2]), tokenizer.decode(free[4:6])
    for mine, other in ((soon, late), (late, soon)):
        request = {
            "attention_mask": torch.ones_like(ids),
            "stopping_criteria": [StopStringCriteria(tokenizer, [mine])],
            "stop_strings": [other],
            **GREEDY,
        }
        expected = model.generate(ids, tokenizer=tokenizer, **request)
        swift = swift_of(model, "none", tokenizer=tokenizer)
        assert torch.equal(swift.generate(ids, **request), expected)


def test_a_prompt_as_long_as_the_context_still_gives_a_token(model_of, swift_of, prompt):
    model = model_of()
    ids = prompt(model.config.max_position_embeddings)
    request = {**GREEDY, "max_new_tokens": 1, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(swift_of(model).generate(ids, **request), model.generate(ids, **request))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"model": "gpt2"}, "transformers model"),
        ({"tokenizer": SwiftConfig.plain()}, "config=…"),
        ({"config": {"early_stop": 0.5}}, "SwiftConfig"),
    ],
)
def test_things_given_in_the_wrong_place(model_of, arguments, said):
    with pytest.raises(ConfigError, match=said):
        Swift(**{"model": model_of(), **arguments})


def test_processes_that_share_a_model_cannot_go_by_their_own_clocks():
    model = tiny_model("llama", vocab_size=102)  # not every version can split an odd number

    class Split(type(model)):
        tp_size = 2

    model.__class__ = Split
    for config in (None, SwiftConfig(exact="off")):
        with pytest.raises(ConfigError, match="split over several processes"):
            Swift(model, config=config)
    assert Swift(model, config=SwiftConfig(early_stop=0.8)).trace is None


def test_a_truth_value_is_no_probability():
    with pytest.raises(ConfigError, match="early_stop"):
        SwiftConfig(early_stop=True)


@pytest.mark.parametrize("make", [lambda: LayerSet(5, 3), lambda: LayerSet.every(1.5)])
def test_layer_sets_of_the_wrong_type(make):
    with pytest.raises(LayerSetError):
        make()


def test_layers_may_be_numpy_integers():
    assert LayerSet(5, list(numpy.arange(1, 3))) == LayerSet(5, [1, 2])


def test_responses_of_similar_lengths_have_caches_of_the_same_form(model_of, swift_of, prompt):
    """Kernels on a GPU are chosen, and planned, by the strides of what they read."""
    model = model_of()
    swift, reserves = swift_of(model), []
    for length in (2, 9, 40):
        ids = prompt(length)
        given = {"attention_mask": torch.ones_like(ids), "custom_generate": swift._prepare}
        request = model.generate(ids, **given, **GREEDY)
        reserves.append(request.start().cache.reserve)
    assert reserves == [256, 256, 256]
