"""Linear layers in 4 and 8 bits by torch's own kernels, in any model's modules."""

import pytest
import torch
from torch import nn

from swift_sd import LayerSet, Swift, SwiftConfig
from swift_sd.adapting.governor import Governor
from swift_sd.adapting.ledger import Purse
from swift_sd.model import draft_weights, quantised_linear
from swift_sd.model.draft_view import DraftView
from swift_sd.model.draft_weights import DraftWeights
from swift_sd.model.kv_cache import KVCache, attention_windows
from swift_sd.model.quantised_linear import EightBits, FourBits, quantised_copy
from swift_sd.model.sublayers import find_sublayers
from swift_sd.testing.families import tiny_model


def linear(width, out, bias=True):
    torch.manual_seed(0)
    return nn.Linear(width, out, bias=bias).to(torch.bfloat16)


@pytest.mark.parametrize(("form", "most"), [(FourBits, 0.15), (EightBits, 0.02)])
@pytest.mark.parametrize(("width", "out"), [(128, 64), (192, 128), (96, 64)])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_it_is_as_near_as_the_bits_allow(form, most, width, out, bias):
    layer = linear(width, out, bias)
    rows = torch.randn(1, 5, width).to(torch.bfloat16)
    expected, found = layer(rows).float(), form(layer, 128)(rows).float()
    assert found.shape == expected.shape
    assert (found - expected).norm() < most * expected.norm()


@pytest.mark.parametrize(
    ("form", "layer"),
    [
        (FourBits, linear(100, 64)),
        (FourBits, linear(128, 60)),
        (FourBits, linear(128, 64).to("meta")),
        (EightBits, nn.Linear(128, 64)),
        (EightBits, linear(100, 64)),
    ],
)
def test_what_has_no_kernel_is_refused(form, layer):
    with pytest.raises(ValueError, match=r"no .-bit kernel"):
        form(layer, 128)


WIDE = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "head_dim": 32}


@pytest.mark.parametrize("bits", [4, 8])
def test_a_model_of_another_layout_drafts_with_them(bits):
    model = tiny_model("gemma2", **WIDE, vocab_size=128).to(torch.bfloat16)
    before = {name: id(module) for name, module in model.named_modules()}
    weights = DraftWeights(model, find_sublayers(model), bits)
    assert "layout" in weights.why_not_compiled
    assert weights.bits == bits
    assert 0 < weights.error < {4: 0.4, 8: 0.1}[bits]
    assert weights.bytes > 0
    view = weights.view(LayerSet(weights.view(LayerSet.none(5)).layer_set.depth, [1], [2]))
    assert view.layer_set.attention == {1}
    assert {name: id(module) for name, module in model.named_modules()} == before


@pytest.mark.parametrize(("bits", "most"), [(4, 0.2), (8, 0.02)])
@pytest.mark.parametrize("family", ["gemma2", "llama"])
@torch.no_grad()
def test_rounded_drafts_skip_what_they_are_told_to(family, bits, most):
    model = tiny_model(family, **WIDE, vocab_size=128).to(torch.bfloat16)
    sublayers, tokens = find_sublayers(model), torch.arange(3, 23).unsqueeze(0)
    weights = DraftWeights(model, sublayers, bits, compiled=False)
    assert weights.bits == bits

    def said(view):
        return view.forward(tokens, KVCache(attention_windows(model.config))).float()

    def apart(found, expected):
        return (found - expected).norm() / expected.norm()

    none = LayerSet.none(sublayers.depth)
    chosen = LayerSet(sublayers.depth, [1, 2], [2, 3])
    skipping, whole = (said(DraftView(model, sublayers, one)) for one in (chosen, none))
    rounded = said(weights.view(chosen))
    assert apart(rounded, skipping) < most
    assert apart(rounded, skipping) < apart(rounded, whole) / 2
    assert apart(said(weights.view(none)), whole) < apart(rounded, whole) / 2


@pytest.mark.parametrize("failing", ["made", "used", "wrong"])
def test_kernels_that_fail_late_or_give_nonsense_are_done_without(monkeypatch, failing):
    """As on a GPU that is too old for them."""

    def fails(*_):
        raise RuntimeError("not implemented for this device")

    if failing == "made":
        monkeypatch.setattr(draft_weights, "quantised_copy", fails)
    elif failing == "used":
        monkeypatch.setattr(DraftWeights, "_relative_error", fails)
    else:
        monkeypatch.setattr(DraftWeights, "_relative_error", lambda self: float("nan"))
    model = tiny_model("gemma2", **WIDE, vocab_size=128).to(torch.bfloat16)
    weights = DraftWeights(model, find_sublayers(model), 4)
    assert (weights.bits, weights.bytes, weights.error) == (16, 0, 0.0)
    assert weights.facts["why_not_rounded"] == weights.why_not_rounded
    assert ("nan" if failing == "wrong" else "not implemented") in weights.why_not_rounded


@pytest.mark.parametrize("bits", [4, 8])
def test_smaller_groups_err_less_and_take_more_memory(bits):
    model = tiny_model("llama", **WIDE | {"hidden_size": 256}).to(torch.bfloat16)
    coarse, fine = (
        Swift(
            model, config=SwiftConfig(draft_bits=bits, draft_group=group)
        )._experience.draft_weights
        for group in (256, 64)
    )
    assert fine.error < coarse.error
    assert fine.bytes > coarse.bytes


def test_what_cuda_is_given_stands_for_the_weights(monkeypatch):
    """Its kernel cannot run here: what it would be handed is unpacked instead."""
    given = {}

    def packed(pairs, tiles):
        given.update(pairs=pairs, tiles=tiles)
        return pairs

    monkeypatch.setattr(torch.ops.aten, "_convert_weight_to_int4pack", packed, raising=False)
    linear = nn.Linear(256, 64, bias=False, dtype=torch.bfloat16)
    made = FourBits(linear, 128, kind="cuda")
    pairs = given["pairs"]
    assert (pairs.dtype, tuple(pairs.shape), given["tiles"]) == (torch.uint8, (64, 128), 8)
    codes = torch.stack([pairs >> 4, pairs & 15], dim=-1).flatten(1).float() - 8
    scales, middles = made.scales.float().transpose(0, 1).unbind(-1)  # [out, groups]
    restored = codes.view(64, 2, 128) * scales[..., None] + middles[..., None]
    error = (restored.flatten(1) - linear.weight.float()).abs().max()
    assert error <= scales.max()


@pytest.mark.parametrize(("width", "tiles"), [(256, 8), (576, 4), (96, 2)])
def test_on_cuda_tiles_are_as_large_as_the_width_allows(monkeypatch, width, tiles):
    given = []
    monkeypatch.setattr(
        torch.ops.aten,
        "_convert_weight_to_int4pack",
        lambda pairs, tiles: given.append(tiles) or pairs,
        raising=False,
    )
    FourBits(linear(width, 64), 128, kind="cuda")
    assert given == [tiles]


@pytest.mark.parametrize("form", [FourBits, EightBits])
@torch.no_grad()
def test_matrices_are_rounded_alike_in_parts(monkeypatch, form):
    layer, rows = linear(128, 192), torch.randn(1, 3, 128).to(torch.bfloat16)
    whole = form(layer, 128)(rows)
    monkeypatch.setattr(quantised_linear, "AT_ONCE", 50 * 128)
    assert torch.equal(form(layer, 128)(rows), whole)


def test_a_model_without_such_layers_is_left_alone():
    assert quantised_copy(tiny_model("gpt2"), 4, 128) is None
    weights = DraftWeights(
        tiny_model("gpt2"), find_sublayers(tiny_model("gpt2")), 4, has_short_head=True
    )
    assert (weights.bits, weights.bytes, weights.error) == (16, 0, 0.0)


@pytest.mark.parametrize("bits", [4, 8])
def test_nothing_is_compiled_where_that_is_switched_off(monkeypatch, bits):
    def fail():
        raise AssertionError

    monkeypatch.setattr("swift_sd.model.compiled_draft.load_kernels", fail)
    monkeypatch.setattr("swift_sd.model.exact_target.find_kernels", fail)
    model = tiny_model("llama", **WIDE, vocab_size=128).to(torch.bfloat16)
    prompt = torch.arange(3, 23).unsqueeze(0)
    arguments = {"do_sample": False, "max_new_tokens": 24}
    # The model drafts in every round, whether it pays or not.
    monkeypatch.setattr(Governor, "_is_plain_due", False)
    monkeypatch.setattr(Governor, "_choice", lambda self, promises: len(promises) - 1)
    monkeypatch.setattr(Purse, "may_ask", True)
    swift = Swift(model, config=SwiftConfig(draft_bits=bits, compiled=False))
    assert torch.equal(swift.generate(prompt, **arguments), model.generate(prompt, **arguments))
    assert swift.trace.summary()["drafted_tokens"] > 0
    assert swift.trace.summary()["drafters"].keys() & {"layer_skip", "cascade"}
    assert swift.trace.draft_view["bits"] == bits
    assert not swift.trace.draft_view["compiled"]
    with pytest.raises(AssertionError):
        Swift(model)
