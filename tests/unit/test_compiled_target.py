"""The compiled target: right, the same for any number of rows, refused where it must be."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaMLP

from swift_sd import Swift, SwiftConfig
from swift_sd.model import plain_tensors
from swift_sd.model.common_layout import cache_rows
from swift_sd.model.compiled_target import CompiledTarget
from swift_sd.model.exact_target import ExactTarget
from swift_sd.model.kv_cache import KVCache, attention_windows
from swift_sd.model.sublayers import find_sublayers
from swift_sd.model.view import View
from swift_sd.native.compiler import NoKernelsError, load_kernels
from swift_sd.testing.families import tiny_model

pytestmark = pytest.mark.usefixtures("whole_trial")

SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
FAMILIES = ["llama", "qwen2", "qwen3", "mistral"]
PROMPT = 21


def wide_model(family, **changes):
    return tiny_model(family, **{**SHAPE, **changes}).to(torch.bfloat16)


def compiled(model):
    return CompiledTarget(load_kernels(), model, find_sublayers(model))


def filled(model):
    cache = KVCache(attention_windows(model.config))
    View(model).forward(some_tokens(PROMPT, 1), cache, keep=1)
    cache.commit(PROMPT)
    return cache


def some_tokens(count, seed=0):
    return torch.randint(3, 90, (1, count), generator=torch.Generator().manual_seed(seed))


def written(cache, count):
    return [part for buffer in cache.buffers for part in buffer.copied(PROMPT, PROMPT + count)]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_it_computes_what_the_model_computes(family):
    model = wide_model(family)
    cache, other = filled(model), filled(model)
    tokens = some_tokens(7)
    found = compiled(model).forward(tokens, cache)
    expected = View(model).forward(tokens, other)
    assert (found - expected).norm() < 0.02 * expected.norm()
    for one, two in zip(written(cache, 7), written(other, 7), strict=True):
        torch.testing.assert_close(one, two, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("family", "changes"),
    [*((family, {}) for family in FAMILIES), ("mistral", {"sliding_window": 9})],
)
def test_rows_do_not_depend_on_how_many_there_are(family, changes):
    model = wide_model(family, **changes)
    target = compiled(model)
    tokens = some_tokens(17)
    cache = filled(model)
    alone = torch.cat([target.forward(tokens[:, i : i + 1], cache) for i in range(17)], dim=1)
    expected = written(cache, 17)
    for count in (2, 3, 4, 5, 6, 8, 13, 17):
        cache.rollback()
        assert torch.equal(target.forward(tokens[:, :count], cache), alone[:, :count])
        for one, whole in zip(written(cache, count), expected, strict=True):
            assert torch.equal(one, whole[:, :, :count])


def test_windows_are_the_models_whatever_the_cache_keeps():
    """A user's cache that was made without a configuration keeps every row."""
    model = wide_model("mistral", sliding_window=9)
    keeping_all = KVCache([None] * SHAPE["num_hidden_layers"])
    View(model).forward(some_tokens(PROMPT, 1), keeping_all, keep=1)
    keeping_all.commit(PROMPT)
    target, tokens = compiled(model), some_tokens(7)
    expected = target.forward(tokens, filled(model))
    assert torch.equal(target.forward(tokens, keeping_all), expected)


def test_each_tensor_of_a_cache_is_looked_at_once(monkeypatch):
    model = wide_model("llama")
    cache, looked_at = filled(model), []
    is_in_memory = plain_tensors._is_in_memory

    def counting(tensor):
        looked_at.append(tensor)
        return is_in_memory(tensor)

    monkeypatch.setattr(plain_tensors, "_is_in_memory", counting)
    cache_rows(cache, 1, attention_windows(model.config), torch.bfloat16)
    assert len(looked_at) == 2 * SHAPE["num_hidden_layers"]


def test_a_width_that_is_that_of_a_head_is_looked_at_too():
    narrow = {"hidden_size": 32, "num_attention_heads": 1, "num_key_value_heads": 1}
    with pytest.raises(NoKernelsError, match="multiple of 64"):
        compiled(wide_model("llama", **narrow, intermediate_size=64))


def test_layers_of_different_sizes_are_not_compiled():
    """As pruning leaves them: the code would write behind what is made for the first layer's."""
    model = wide_model("llama")
    mlp = model.model.layers[1].mlp
    mlp.gate_proj, mlp.up_proj = (
        nn.Linear(SHAPE["hidden_size"], 256, bias=False, dtype=torch.bfloat16) for _ in range(2)
    )
    mlp.down_proj = nn.Linear(256, SHAPE["hidden_size"], bias=False, dtype=torch.bfloat16)
    with pytest.raises(NoKernelsError, match="differ in size"):
        compiled(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_branch_of_a_tree_is_computed_as_if_the_others_were_not_there(family):
    model = wide_model(family)
    target = compiled(model)
    tokens = some_tokens(6)
    parents = [None, 0, 1, 0, 3, 1]
    ancestry = torch.eye(6, dtype=torch.bool)
    for row, parent in enumerate(parents):
        if parent is not None:
            ancestry[row] |= ancestry[parent]
    cache = filled(model)
    found = target.forward(tokens, cache, ancestry=ancestry)
    for row in range(6):
        path = ancestry[row].nonzero()[:, 0].tolist()
        cache.rollback()
        assert torch.equal(target.forward(tokens[:, path], cache)[:, -1], found[:, row])


@pytest.mark.parametrize("family", [*FAMILIES, "window"])
def test_where_it_is_used_it_gives_the_bits_of_plain_decoding(family, processor):
    is_windowed = family == "window"
    model = wide_model("mistral", sliding_window=30) if is_windowed else wide_model(family)
    exact = ExactTarget(model, find_sublayers(model), "auto", several_rows=True)
    if not exact.is_compiled:
        assert processor is None
        pytest.skip("torch takes its sums in another order on this processor")
    tokens = some_tokens(60)
    cache, other = filled(model), filled(model)
    plain = View(model)
    expected = [plain.forward(tokens[:, i : i + 1], other) for i in range(60)]
    target = exact.target()
    for count in (1, 2, 3, 4, 5, 6, 7, 8, 24):
        found = target.verify(tokens[:, :count], cache)
        cache.rollback()
        assert torch.equal(found, torch.cat(expected[:count], dim=1))
    assert target.verify(tokens, cache).shape[1] == 60
    for one, two in zip(written(cache, 60), written(other, 60), strict=True):
        assert torch.equal(one, two)


class OtherLinear(nn.Linear):
    """Computes something of its own."""

    def forward(self, rows):
        return 2 * super().forward(rows)


class ScaledMLP(LlamaMLP):
    """Reads a number from where nobody looks."""

    def forward(self, x):
        return super().forward(x) * self.knob.value


def scaled(model):
    knob = SimpleNamespace(value=1.0)
    for layer in model.model.layers:
        layer.mlp.__class__, layer.mlp.knob = ScaledMLP, knob
    return knob


def hooked(model):
    model.model.layers[1].mlp.register_forward_hook(lambda *_: None)


def with_a_forward_of_its_own(model):
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda rows: rows


def of_another_kind(model):
    mlp = model.model.layers[1].mlp
    twin = OtherLinear(192, 128, bias=False)
    twin.weight = mlp.down_proj.weight
    mlp.down_proj = twin


def in_float32(model):
    model.float()


def partly_in_float32(model):
    model.model.layers[2].mlp.up_proj.float()


@pytest.mark.parametrize(
    "change",
    [hooked, with_a_forward_of_its_own, of_another_kind, scaled, in_float32, partly_in_float32],
)
def test_models_that_are_not_what_they_seem_are_refused(change):
    model = wide_model("llama")
    sublayers = find_sublayers(model)
    change(model)
    with pytest.raises(NoKernelsError):
        CompiledTarget(load_kernels(), model, sublayers)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_other_layouts_are_refused(family):
    model = tiny_model(family).to(torch.bfloat16)
    with pytest.raises(NoKernelsError):
        compiled(model)


@pytest.mark.filterwarnings("ignore:.*without drafts:UserWarning")
@pytest.mark.parametrize("config", [SwiftConfig(), SwiftConfig.plain()], ids=["default", "plain"])
@pytest.mark.parametrize("change", [hooked, with_a_forward_of_its_own, of_another_kind])
def test_what_changes_between_responses_is_seen(config, change):
    model = wide_model("llama")
    swift = Swift(model, config=config)
    prompt = some_tokens(9)
    for alter in (lambda _: None, change):
        alter(model)
        expected = model.generate(prompt, max_new_tokens=24, do_sample=False, pad_token_id=0)
        found = swift.generate(prompt, max_new_tokens=24, do_sample=False, pad_token_id=0)
        assert torch.equal(found, expected)


def test_code_of_others_may_read_what_no_snapshot_holds():
    model = wide_model("llama")
    knob = scaled(model)
    swift = Swift(model)
    prompt = some_tokens(9)
    for knob.value in (1.0, 2.0):
        expected = model.generate(prompt, max_new_tokens=24, do_sample=False, pad_token_id=0)
        found = swift.generate(prompt, max_new_tokens=24, do_sample=False, pad_token_id=0)
        assert torch.equal(found, expected)


def test_new_weights_are_seen():
    model = wide_model("llama")
    swift = Swift(model)
    prompt = some_tokens(9)
    torch.manual_seed(5)
    for layer in model.model.layers:
        layer.mlp.up_proj.weight = nn.Parameter(torch.randn(192, 128).to(torch.bfloat16))
    expected = model.generate(prompt, max_new_tokens=24, do_sample=False, pad_token_id=0)
    found = swift.generate(prompt, max_new_tokens=24, do_sample=False, pad_token_id=0)
    assert torch.equal(found, expected)
