"""The compiled draft against the model's own modules over the same rounded weights."""

import pytest
import torch
from torch import nn

from swift_sd import LayerSet, UnsupportedModel
from swift_sd.model import compiled_draft
from swift_sd.model.compiled_draft import CompiledDraft, CompiledWeights
from swift_sd.model.draft_view import DraftView
from swift_sd.model.draft_weights import DraftWeights
from swift_sd.model.kv_cache import KVCache, attention_windows
from swift_sd.model.rounded_weights import Rounded
from swift_sd.model.sublayers import find_sublayers
from swift_sd.model.view import View
from swift_sd.native.compiler import NoKernelsError, load_kernels
from swift_sd.testing.families import tiny_model

WIDE = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
}
COMPILED = ["llama", "qwen2", "qwen3", "mistral"]
PROMPT = 9


def wide_model(family, dtype=torch.float32):
    return tiny_model(family, **WIDE).to(dtype)


def rounded(weight, bits):
    """What the codes of a matrix stand for."""
    made = Rounded.of(load_kernels(), weight, bits, 128)
    groups = made.scales.view(torch.bfloat16).double()
    if bits == 8:
        codes = made.codes.view(torch.int8)
    else:  # of each 64 the first half lies in the low four bits
        chunks = made.codes.view(len(weight), -1, 32)
        codes = torch.cat([chunks & 15, chunks >> 4], dim=2)
    codes = codes.reshape(len(weight), -1, made.sizes[2]).double()
    return (codes * groups[..., :1] + groups[..., 1:]).flatten(1).to(weight.dtype)


def filled(model, length=PROMPT, windows=None):
    cache = KVCache(windows or attention_windows(model.config))
    prompt = torch.randint(3, 90, (1, length), generator=torch.Generator().manual_seed(1))
    View(model).forward(prompt, cache, keep=1)
    cache.commit(length)
    return cache


@pytest.mark.parametrize(("bits", "most"), [(4, 0.13), (8, 0.01)])
@pytest.mark.parametrize("columns", [64, 192, 256])
def test_rounding_is_as_fine_as_the_bits_allow(bits, most, columns):
    weight = torch.randn(7, columns, generator=torch.Generator().manual_seed(0))
    error = (rounded(weight, bits) - weight).norm() / weight.norm()
    assert error < most


@pytest.mark.parametrize("bits", [4, 8])
def test_constant_and_zero_weights_are_kept(bits):
    weight = torch.zeros(3, 128)
    weight[1] = 0.5
    weight[2, 5] = -2.0
    torch.testing.assert_close(rounded(weight, bits), weight, rtol=0.01, atol=0.14)


@pytest.mark.parametrize("family", COMPILED)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["none", "some", "every"])
@torch.no_grad()
def test_it_computes_what_the_modules_compute_with_rounded_weights(family, bits, kind):
    model = wide_model(family)
    sublayers = find_sublayers(model)
    sets = {
        "none": LayerSet.none(5),
        "some": LayerSet(5, [1, 3], [2, 3]),
        "every": LayerSet.every(5),
    }
    weights = CompiledWeights(model, sublayers, bits)
    cache = filled(model)
    tokens = torch.tensor([[5, 17, 33]])
    compiled = CompiledDraft(weights, sets[kind])
    logits = compiled.forward(tokens, cache)
    cache.rollback()
    for module in model.modules():
        if type(module) is nn.Linear:
            module.weight.copy_(rounded(module.weight, bits))
    expected = DraftView(model, sublayers, sets[kind]).forward(tokens, cache)
    # What remains is the rounding of activations to 8 bits.
    assert (logits - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_one_by_one_or_together_rows_are_the_same(dtype):
    model = wide_model("qwen2", dtype)
    weights = CompiledWeights(model, find_sublayers(model))
    draft = CompiledDraft(weights, LayerSet(5, [2], [3]))
    cache = filled(model)
    tokens = torch.tensor([[5, 17, 33, 8, 61, 70]])
    together = draft.forward(tokens, cache)
    assert cache.cursor == PROMPT + 6
    cache.rollback()
    alone = [draft.forward(tokens[:, i : i + 1], cache) for i in range(6)]
    torch.testing.assert_close(torch.cat(alone, dim=1), together, rtol=0, atol=0)


@torch.no_grad()
def test_beyond_the_cache_and_the_rotary_tables_there_is_room(monkeypatch):
    model = wide_model("llama")
    whole = CompiledWeights(model, find_sublayers(model), 8)
    expected = CompiledDraft(whole, LayerSet.none(5))
    cache = filled(model, length=200)
    before = cache.buffers[0].copied(0, 200)[0]
    tokens = torch.arange(3, 63).unsqueeze(0)
    together = expected.forward(tokens, cache)
    cache.rollback()
    monkeypatch.setattr(compiled_draft, "POSITIONS", 64)
    draft = CompiledDraft(CompiledWeights(model, find_sublayers(model), 8), LayerSet.none(5))
    alone = [draft.forward(token.view(1, 1), cache) for token in tokens[0]]
    torch.testing.assert_close(torch.cat(alone, dim=1), together, rtol=0, atol=0)
    cache.rollback()
    assert torch.equal(cache.buffers[0].copied(0, 200)[0], before)


@torch.no_grad()
def test_a_window_hides_what_lies_before_it():
    model = tiny_model("mistral", **WIDE, sliding_window=6)
    sublayers = find_sublayers(model)
    weights = CompiledWeights(model, sublayers, 8)
    cache, tokens = filled(model, 30), torch.tensor([[5, 17, 33]])
    expected = DraftView(model, sublayers, LayerSet.none(5)).forward(tokens, cache)
    cache.rollback()
    draft = CompiledDraft(weights, LayerSet.none(5))
    found = draft.forward(tokens, cache)
    assert (found - expected).norm() < 0.1 * expected.norm()
    # A user's cache that was made without a configuration keeps every row.
    assert torch.equal(draft.forward(tokens, filled(model, 30, [None] * 5)), found)


@pytest.mark.parametrize(
    ("family", "why"), [("gpt2", "layout"), ("gemma2", "layout"), ("phi3", "layout")]
)
def test_other_layouts_are_refused_with_the_reason(family, why):
    model = tiny_model(family)
    with pytest.raises(NoKernelsError, match=why):
        CompiledWeights(model, find_sublayers(model))


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("smollm3", "without rotary"),
        ("helium", "neighbouring"),
        ("ernie4_5", "neighbouring"),
        ("hunyuan_v1_dense", "query_layernorm"),
    ],
)
def test_the_same_names_do_not_hide_other_mathematics(family, why):
    model = tiny_model(family, **WIDE)
    with pytest.raises(NoKernelsError, match=why):
        CompiledWeights(model, find_sublayers(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@torch.no_grad()
def test_a_users_default_type_is_not_taken_for_what_compiled_code_writes(dtype):
    model = wide_model("llama")
    tokens = torch.tensor([[5, 17, 33]])
    draft = CompiledDraft(CompiledWeights(model, find_sublayers(model)), LayerSet.none(5))
    expected = draft.forward(tokens, filled(model))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        found = draft.forward(tokens, filled(model))
    finally:
        torch.set_default_dtype(before)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@torch.no_grad()
def test_a_cache_of_another_type_is_refused():
    """As autocast leaves it: compiled code would write behind its end."""
    model = wide_model("llama")
    draft = CompiledDraft(CompiledWeights(model, find_sublayers(model)), LayerSet.none(5))
    cache = filled(model)
    cache.buffers[0].values = cache.buffers[0].values.bfloat16()
    with pytest.raises(UnsupportedModel, match=r"values of torch\.bfloat16"):
        draft.forward(torch.tensor([[5]]), cache)


def test_what_only_looks_alike_is_found_out():
    """A model that scales its residual additions, as granite does, has the same names."""
    model = tiny_model("granite", **WIDE, residual_multiplier=0.2, logits_scaling=4.0)
    weights = DraftWeights(model, find_sublayers(model), 8, has_short_head=True)
    assert "off by" in weights.why_not_compiled
    assert weights.error < 0.1


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_the_draft_says_what_it_reads(bits):
    weights = DraftWeights(
        wide_model("llama", torch.bfloat16),
        find_sublayers(wide_model("llama")),
        bits,
        has_short_head=True,
    )
    assert weights.bits == bits
    assert (weights.bytes > 0) == (bits < 16)
    assert weights.error < {4: 0.4, 8: 0.05, 16: 1e-9}[bits]
