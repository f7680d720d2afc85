"""Models that other tests rely on must be reproducible, varied and correctly deepened."""

import copy

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from swift_sd import LayerSet
from swift_sd.model.draft_view import DraftView
from swift_sd.model.kv_cache import KVCache, generate_cache_name
from swift_sd.model.sublayers import find_sublayers
from swift_sd.testing.families import FAMILIES, RECURRENT_FAMILIES, SPECIAL_FAMILIES, tiny_model
from swift_sd.testing.planted import planted_model
from swift_sd.testing.switched import switched_model

CACHE = generate_cache_name()

EVERY_FAMILY = (*FAMILIES, *SPECIAL_FAMILIES, *RECURRENT_FAMILIES)
NEW_TOKENS = 24


def prompt(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 101, (1, 12), generator=generator)


def continuation(model: PreTrainedModel, seed: int) -> list[int]:
    """Greedy tokens after a random prompt, without stopping at the end of sequence."""
    output = model.generate(
        prompt(seed), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False
    )
    return output[0, 12:].tolist()


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(prompt(0)).logits


def test_equal_seeds_give_equal_weights_and_leave_the_random_state_alone() -> None:
    state = torch.get_rng_state()
    first, second, other = (tiny_model("llama", seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    weights = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    assert not torch.equal(logits(first), logits(other))


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_greedy_output_is_varied(family: str) -> None:
    models = (tiny_model(family, seed=seed) for seed in range(2))
    assert any(len(set(continuation(model, seed))) >= 6 for seed, model in enumerate(models))


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "cohere2", "olmo3", "exaone4"])
def test_families_with_two_attention_kinds_have_both(family: str) -> None:
    assert set(tiny_model(family).config.layer_types) == {"sliding_attention", "full_attention"}


def test_configuration_values_can_be_overridden() -> None:
    model = tiny_model("mistral", layers=2, vocab_size=50, sliding_window=None, eos_token_id=7)
    assert (model.config.num_hidden_layers, model.config.vocab_size) == (2, 50)
    assert model.config.sliding_window is None
    assert model.generation_config.eos_token_id == 7


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ValueError, match="nonesuch"):
        tiny_model("nonesuch")


@pytest.mark.parametrize("family", ["llama", "gpt2", "cohere2", "smollm3", "mixtral", "granitemoe"])
def test_planted_layers_hardly_change_the_logits(family: str) -> None:
    model = tiny_model(family)
    deepened, planted = planted_model(model, extra_layers=3)
    assert type(deepened) is type(model)
    assert deepened.config.num_hidden_layers == 8
    assert len(planted) == 3
    assert planted <= set(range(1, 7))
    spread = logits(model).std()
    assert (logits(deepened) - logits(model)).abs().max() < 0.02 * spread


@pytest.mark.parametrize("family", ["llama", "gpt2", "cohere2", "smollm3"])
def test_a_deepened_model_generates_the_same_with_and_without_a_cache(family: str) -> None:
    deepened, _ = planted_model(tiny_model(family), extra_layers=3)
    cached = deepened.generate(
        prompt(0),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        **{CACHE: DynamicCache(config=deepened.config)},
    )
    uncached = deepened.generate(
        prompt(0), max_new_tokens=NEW_TOKENS, do_sample=False, use_cache=False
    )
    assert torch.equal(cached, uncached)


def test_planting_leaves_the_original_untouched_and_shares_no_tensor() -> None:
    model = tiny_model("smollm3")
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = copy.deepcopy(model.config.to_dict())
    deepened, _ = planted_model(model, extra_layers=2)
    assert all(torch.equal(model.state_dict()[name], weights[name]) for name in weights)
    assert model.config.to_dict() == config
    addresses = {parameter.data_ptr() for parameter in model.parameters()}
    assert addresses.isdisjoint(parameter.data_ptr() for parameter in deepened.parameters())


def test_lists_with_one_entry_a_layer_follow_the_copied_layers() -> None:
    deepened, _ = planted_model(tiny_model("smollm3"), extra_layers=4, seed=1)
    layers = deepened.model.layers
    assert [layer.self_attn.layer_idx for layer in layers] == list(range(9))
    assert [layer.self_attn.use_rope for layer in layers] == deepened.config.no_rope_layers
    assert len(deepened.config.layer_types) == 9


def test_a_deepened_model_survives_saving_and_loading(tmp_path) -> None:
    deepened, _ = planted_model(tiny_model("cohere2"), extra_layers=3)
    deepened.save_pretrained(tmp_path)
    loaded = type(deepened).from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded), logits(deepened))


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "olmo2", "glm4", "exaone4", "minimax"])
def test_families_that_undo_the_scaling_are_refused(family: str) -> None:
    with pytest.raises(ValueError, match=rf"(?s){family}.*use a pre-norm family"):
        planted_model(tiny_model(family), extra_layers=2)


@pytest.mark.parametrize("family", ["mamba", "lfm2", "qwen3_next"])
def test_families_without_known_projections_are_refused(family: str) -> None:
    with pytest.raises(ValueError, match=rf"(?s){family}.*attention output projection"):
        planted_model(tiny_model(family), extra_layers=2)


def test_planting_needs_a_layer_to_plant_and_a_place_for_it() -> None:
    with pytest.raises(ValueError, match="extra_layers"):
        planted_model(tiny_model("llama"), extra_layers=0)
    with pytest.raises(ValueError, match="two layers"):
        planted_model(tiny_model("llama", layers=1), extra_layers=1)


def test_a_switched_model_needs_other_layers_for_each_kind_of_text() -> None:
    model, tokens, needed = switched_model(kinds=3, layers_per_kind=4)
    every = frozenset().union(*needed)
    sublayers, depth = find_sublayers(model), model.config.num_hidden_layers
    assert len(every) == 3 * 4

    def logits(ids: torch.Tensor, layer_set: LayerSet) -> torch.Tensor:
        return DraftView(model, sublayers, layer_set).forward(ids, KVCache([None] * depth))

    for kind in range(3):
        ids = torch.arange(tokens[kind].start, tokens[kind].stop)[None]
        whole = logits(ids, LayerSet.none(depth))
        others = logits(ids, LayerSet(depth, every, every - needed[kind]))
        assert torch.allclose(whole, others, atol=1e-4)
        spoiled = logits(ids, LayerSet(depth, every, every))
        assert (whole.argmax(-1) != spoiled.argmax(-1)).float().mean() > 0.3
        out = model.generate(ids[:, :8], max_new_tokens=32, do_sample=False, eos_token_id=None)
        assert all(token in tokens[kind] for token in out[0].tolist())
