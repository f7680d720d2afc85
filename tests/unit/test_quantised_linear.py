"""Linear layers in 4 and 8 bits by torch's own kernels, in any model's modules."""

import pytest
import torch
from torch import nn

from swift_sd import LayerSet
from swift_sd.model.draft_weights import DraftWeights
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
    weights = DraftWeights(model, find_sublayers(model), bits, has_short_head=False)
    assert "layout" in weights.why_not_compiled
    assert weights.bits == bits
    assert 0 < weights.error < {4: 0.4, 8: 0.1}[bits]
    assert weights.bytes > 0
    view = weights.view(LayerSet(weights.view(LayerSet.none(5)).layer_set.depth, [1], [2]))
    assert view.layer_set.attention == {1}
    assert {name: id(module) for name, module in model.named_modules()} == before


def test_a_model_without_such_layers_is_left_alone():
    assert quantised_copy(tiny_model("gpt2"), 4, 128) is None
    weights = DraftWeights(
        tiny_model("gpt2"), find_sublayers(tiny_model("gpt2")), 4, has_short_head=True
    )
    assert (weights.bits, weights.bytes, weights.error) == (16, 0, 0.0)
