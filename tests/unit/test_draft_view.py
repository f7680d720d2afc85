"""The draft computes what is left when sublayers are taken out, and runs nothing else."""

import copy
import inspect
import random

import pytest
import torch

from swift_sd import LayerSet, LayerSetError
from swift_sd.model.draft_view import DraftView
from swift_sd.model.kv_cache import KVCache, attention_windows
from swift_sd.model.sublayers import find_sublayers
from swift_sd.testing.families import FAMILIES, tiny_model

PARTLY = LayerSet(5, attention=[1, 3], mlp=[2, 3])  # each way to skip, once
SUPPORTED = (*FAMILIES, "gpt_oss", "bloom", "opt")


def layers_of(model, sublayers) -> list[torch.nn.Module]:
    return list(model.get_submodule(".".join(sublayers.path)))


def without_contribution(module, args, kwargs, output):
    """A hook that takes a sublayer's contribution out of what it returns."""
    bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    first, *rest = output if isinstance(output, tuple) else (output,)
    nothing = bound["residual"] if "residual" in bound else torch.zeros_like(first)
    return (nothing, *rest) if isinstance(output, tuple) else nothing


@torch.no_grad()
def reference(model, layer_set: LayerSet, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a copy in which skipped sublayers run but contribute nothing; no cache."""
    twin = copy.deepcopy(model)
    sublayers = find_sublayers(twin)
    for index, layer in enumerate(layers_of(twin, sublayers)):
        parts = sublayers.parts[index]
        for name, skipped in ((parts.attention, layer_set.attention), (parts.mlp, layer_set.mlp)):
            if index in skipped:
                layer.get_submodule(name).register_forward_hook(
                    without_contribution, with_kwargs=True
                )
    return twin(input_ids=ids, use_cache=False).logits


def view_logits(model, layer_set: LayerSet, ids: torch.Tensor) -> torch.Tensor:
    """The same from a draft view: a prompt at once, then token by token."""
    view = DraftView(model, find_sublayers(model), layer_set)
    cache = KVCache(attention_windows(model.config))
    return torch.cat([view.forward(piece, cache) for piece in ids.split([12, 1, 1, 1], 1)], dim=1)


@pytest.mark.parametrize("family", SUPPORTED)
def test_the_draft_is_the_model_without_the_skipped_contributions(family, model_of, prompt):
    model, ids = model_of(family), prompt(15)
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
    for layer_set, expected in (
        (LayerSet.none(5), whole),
        (PARTLY, reference(model, PARTLY, ids)),
    ):
        actual = view_logits(model, layer_set, ids)
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(expected, whole, atol=1e-1)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "cohere2", "gpt2", "olmoe"])
@pytest.mark.parametrize("seed", range(4))
def test_so_it_is_for_random_sets(family, seed, model_of, prompt):
    draw = random.Random(seed)
    picked = [[i for i in (1, 2, 3) if draw.random() < 0.5] for _ in range(2)]
    layer_set = LayerSet(5, *picked)
    model, ids = model_of(family), prompt(15, seed)
    torch.testing.assert_close(
        view_logits(model, layer_set, ids),
        reference(model, layer_set, ids),
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize("family", ["llama", "phi", "olmo2", "mixtral"])
def test_a_layer_without_both_sublayers_is_the_identity(family, prompt):
    """Against a model that does not have the layer at all: nothing else may depend on it."""
    model, ids = tiny_model(family, layers=4, layer_types=None, sliding_window=None), prompt(15)
    actual = view_logits(model, LayerSet(4, [2], [2]), ids)
    shorter = copy.deepcopy(model)
    del find_layer_list(shorter)[2]
    shorter.config.num_hidden_layers = 3
    with torch.no_grad():
        expected = shorter(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


def find_layer_list(model) -> torch.nn.ModuleList:
    return model.get_submodule(".".join(find_sublayers(model).path))


class Calls:
    """Counts the calls of every module inside the decoder layers, by `layer.module`."""

    def __init__(self, layers: list[torch.nn.Module]) -> None:
        self.names: list[str] = []
        for index, layer in enumerate(layers):
            for name, module in layer.named_modules():
                module.register_forward_pre_hook(self._note(f"{index}.{name}" if name else index))

    def _note(self, name):
        return lambda module, args: self.names.append(str(name))

    def within(self, name: str) -> list[str]:
        return [one for one in self.names if one == name or one.startswith(f"{name}.")]


class SpyCache(KVCache):
    written: list[int]

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        self.written.append(layer_idx)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2", "gpt2", "phi", "granitemoe"])
def test_what_is_skipped_does_not_run(family, prompt):
    model = tiny_model(family)
    sublayers = find_sublayers(model)
    view = DraftView(model, sublayers, PARTLY)
    calls = Calls(layers_of(model, sublayers))
    cache = SpyCache(attention_windows(model.config))
    cache.written = []
    view.forward(prompt(3), cache)
    parts = sublayers.parts[0]
    for index in range(5):
        attention, mlp = index in PARTLY.attention, index in PARTLY.mlp
        assert bool(calls.within(f"{index}.{parts.attention}")) is not attention
        assert bool(calls.within(f"{index}.{parts.mlp}")) is not mlp
        if attention:
            assert not any(calls.within(f"{index}.{name}") for name in parts.without_attention)
        if mlp:
            assert not any(calls.within(f"{index}.{name}") for name in parts.without_mlp)
    assert calls.within("3") == []  # without both, the layer is not even entered
    assert cache.written == [0, 2, 4]
    assert cache.buffers[1].keys is None


def test_the_norms_of_what_is_left_still_run(prompt):
    model = tiny_model("llama")
    sublayers = find_sublayers(model)
    view = DraftView(model, sublayers, LayerSet(5, [1], [2]))
    calls = Calls(layers_of(model, sublayers))
    view.forward(prompt(3), KVCache([None] * 5))
    norms = [name for name in calls.names if name.endswith("layernorm")]
    both = ["input_layernorm", "post_attention_layernorm"]
    expected = {0: both, 1: both[1:], 2: both[:1], 3: both, 4: both}
    assert norms == [f"{layer}.{name}" for layer in expected for name in expected[layer]]


@pytest.mark.parametrize("family", ["llama", "bloom", "gpt_oss"])
def test_changing_the_set_switches_and_switches_back(family, model_of, prompt):
    model, ids = model_of(family), prompt(8)
    view = DraftView(model, find_sublayers(model), PARTLY)

    def logits() -> torch.Tensor:
        return view.forward(ids, KVCache(attention_windows(model.config)))

    first = logits()
    view.use(LayerSet.every(5))
    assert view.layer_set == LayerSet.every(5)
    torch.testing.assert_close(
        logits(), reference(model, LayerSet.every(5), ids), rtol=1e-3, atol=1e-3
    )
    view.use(PARTLY)
    assert torch.equal(logits(), first)


def test_changing_the_set_builds_nothing_new(model_of):
    model = model_of()
    view = DraftView(model, find_sublayers(model), PARTLY)
    modules = {id(module) for module in view.module.modules()}
    stack = view.module.model.layers
    view.use(LayerSet.none(5))
    view.use(PARTLY)
    assert view.module.model.layers is stack
    assert {id(module) for module in view.module.modules()} == modules


@pytest.mark.parametrize("family", ["llama", "gpt2", "olmoe"])
def test_all_tensors_are_the_models_own(family, model_of):
    model = model_of(family)
    view = DraftView(model, find_sublayers(model), PARTLY)
    own = {tensor.data_ptr() for tensor in model.state_dict().values()}
    drafted = view.module.state_dict()
    assert {tensor.data_ptr() for tensor in drafted.values()} <= own
    assert len(drafted) < len(model.state_dict())  # of the skipped sublayers there is none
    buffers = {id(buffer) for buffer in model.buffers()}
    assert all(id(buffer) in buffers for buffer in view.module.buffers())


def test_weights_changed_afterwards_are_the_drafts_too(prompt):
    model, ids = tiny_model("llama"), prompt(6)
    view = DraftView(model, find_sublayers(model), PARTLY)
    model.load_state_dict(tiny_model("llama", seed=7).state_dict())
    expected = reference(model, PARTLY, ids)
    torch.testing.assert_close(view.forward(ids, KVCache([None] * 5)), expected)


def test_two_views_of_one_model_do_not_meet(model_of, prompt):
    model, ids = model_of(), prompt(6)
    sublayers = find_sublayers(model)
    one, other = (DraftView(model, sublayers, s) for s in (PARTLY, LayerSet.every(5)))
    before = one.forward(ids, KVCache([None] * 5))
    other.use(LayerSet.none(5))
    assert torch.equal(one.forward(ids, KVCache([None] * 5)), before)


@pytest.mark.parametrize("depth", [4, 6])
def test_a_set_for_another_depth_is_refused_and_the_old_one_stays(depth, model_of, prompt):
    model, ids = model_of(), prompt(6)
    view = DraftView(model, find_sublayers(model), PARTLY)
    before = view.forward(ids, KVCache([None] * 5))
    with pytest.raises(LayerSetError, match=f"for {depth} layers, the model has 5"):
        view.use(LayerSet.unified(depth))
    assert view.layer_set == PARTLY
    assert torch.equal(view.forward(ids, KVCache([None] * 5)), before)
    with pytest.raises(LayerSetError, match=f"for {depth} layers, the model has 5"):
        DraftView(model, find_sublayers(model), LayerSet.none(depth))
