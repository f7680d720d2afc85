"""The kernel for several rows: right, and the same however many rows there are."""

import pytest
import torch
from torch import nn

from swift_sd.model.compiled_rows import CompiledRows, can_be_compiled
from swift_sd.model.exact_rows import compiled_reader, exact_forms
from swift_sd.model.kv_cache import KVCache, attention_windows
from swift_sd.model.view import View
from swift_sd.native.compiler import load_kernels
from swift_sd.testing.families import tiny_model


@pytest.fixture(scope="module")
def kernels():
    return load_kernels()


def linear(width, out, bias=True):
    torch.manual_seed(width)
    return nn.Linear(width, out, bias=bias).to(torch.bfloat16)


@pytest.mark.parametrize(("width", "out"), [(64, 1), (64, 5), (192, 96), (1024, 33)])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_rows_are_right_and_do_not_depend_on_each_other(kernels, width, out, bias):
    layer = linear(width, out, bias)
    compiled = CompiledRows(kernels, layer)
    rows = torch.randn(1, 150, width).to(torch.bfloat16)  # more than are computed at a time
    every = compiled(rows)
    exact = rows.double() @ layer.weight.double().t() + (layer.bias.double() if bias else 0)
    torch.testing.assert_close(every.double(), exact, rtol=2**-7, atol=1e-3)
    for count in (2, 3, 4, 5, 9):
        assert torch.equal(compiled(rows[:, :count]), every[:, :count])
        assert torch.equal(compiled(rows[:, -count:]), every[:, -count:])


@torch.no_grad()
def test_one_row_is_left_to_torch_and_shapes_are_kept(kernels):
    layer = linear(64, 8)
    compiled = CompiledRows(kernels, layer)
    row = torch.randn(1, 1, 64).to(torch.bfloat16)
    assert torch.equal(compiled(row), layer(row))
    assert compiled(row.expand(2, 3, 64)).shape == (2, 3, 8)


@torch.no_grad()
def test_numbers_that_are_none_come_through(kernels):
    compiled = CompiledRows(kernels, linear(64, 4))
    rows = torch.ones(1, 2, 64).to(torch.bfloat16)
    rows[0, 1, 7] = torch.nan
    assert not compiled(rows)[0, 0].isnan().any()
    assert compiled(rows)[0, 1].isnan().all()


@pytest.mark.parametrize(
    "layer",
    [linear(72, 8), nn.Linear(64, 8), linear(64, 8).to("meta"), nn.Embedding(4, 64)],
    ids=["width", "float32", "meta", "kind"],
)
def test_other_layers_are_not_for_it(layer):
    assert not can_be_compiled(layer)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_prompts_are_read_to_the_bit_or_not_at_all(kernels, family):
    model = tiny_model(family, hidden_size=64, intermediate_size=192).to(torch.bfloat16)
    forms = exact_forms(model, 1.0, kernels)
    reader = compiled_reader(model, forms)
    if reader is None:  # torch has better instructions here, whose results differ
        return
    prompt = torch.randint(3, 90, (1, 77), generator=torch.Generator().manual_seed(0))
    caches = [KVCache(attention_windows(model.config)) for _ in range(2)]
    logits = [
        view.forward(prompt, cache)
        for view, cache in zip((View(model), reader), caches, strict=True)
    ]
    assert torch.equal(*logits)
    for one, other in zip(*(cache.buffers for cache in caches), strict=True):
        assert torch.equal(one.copied(0, 77)[0], other.copied(0, 77)[0])
