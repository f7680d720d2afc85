"""The kernel for several rows: right, and the same however many rows there are."""

import pytest
import torch
from torch import nn

from swift_sd.model.compiled_rows import CompiledRows, can_be_compiled
from swift_sd.model.exact_target import ExactTarget
from swift_sd.model.kv_cache import KVCache, attention_windows
from swift_sd.model.sublayers import find_sublayers
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


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("width", "out"), [(576, 192), (1216, 48), (1536, 33), (512, 64), (64, 200), (4864, 130)]
)
@torch.no_grad()
def test_on_processors_whose_order_is_known_rows_are_torchs_own(
    kernels, width, out, threads, processor
):
    if processor is None:
        pytest.skip("torch takes its sums in another order on this processor")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        layer = linear(width, out)
        half = torch.randn(1, 40, width // 2)
        # What is summed first is taken away again: what is left is the order's rounding.
        rows = torch.cat([half, half], dim=-1).to(torch.bfloat16)
        layer.weight[:, width // 2 :] = -layer.weight[:, : width // 2].roll(1, dims=1)
        rows[..., width // 2 :] = rows[..., : width // 2].roll(1, dims=-1)
        alone = torch.cat([layer(rows[:, i : i + 1]) for i in range(40)], dim=1)
        assert torch.equal(CompiledRows(kernels, layer)(rows), alone)
    finally:
        torch.set_num_threads(before)


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
def test_prompts_are_read_to_the_bit_or_not_at_all(family, processor):
    model = tiny_model(family, hidden_size=64, intermediate_size=192).to(torch.bfloat16)
    exact = ExactTarget(model, find_sublayers(model), "auto", several_rows=True)
    reader = exact.reading_model()
    if reader is model:
        assert processor != "AMD without AVX-512"
        pytest.skip("torch takes its sums in another order for many rows on this processor")
    prompt = torch.randint(3, 90, (1, 77), generator=torch.Generator().manual_seed(0))
    caches = [KVCache(attention_windows(model.config)) for _ in range(2)]
    logits = [
        view.forward(prompt, cache)
        for view, cache in zip((View(model), View(reader)), caches, strict=True)
    ]
    assert torch.equal(*logits)
    for one, other in zip(*(cache.buffers for cache in caches), strict=True):
        assert torch.equal(one.copied(0, 77)[0], other.copied(0, 77)[0])
