"""Attention in compiled code: right for every path through a tree, whoever's bits it meets."""

import pytest
import torch
from torch.nn import functional as F

from swift_sd.model.compiled_attention import RowPaths, compiled_attention, fits, is_compilable
from swift_sd.native.compiler import load_kernels

TREE = [[0], [0, 1], [0, 1, 2], [0, 3], [0, 3, 4], [0, 1, 5]]


def some(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, *shape, generator=generator).to(torch.bfloat16)


def ancestry_of(paths):
    seen = torch.zeros(len(paths), len(paths), dtype=torch.bool)
    for row, path in enumerate(paths):
        seen[row, path] = True
    return seen


@pytest.mark.parametrize("paths", [None, TREE], ids=["chain", "tree"])
@pytest.mark.parametrize("prefix", [0, 1, 9, 40, 700])
@pytest.mark.parametrize("window", [5, 1 << 40])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 4, 16), (6, 2, 64)])
def test_each_row_attends_to_its_own_path(paths, prefix, window, heads, kv_heads, width):
    rows = len(TREE)
    query, key, value = (
        some(count, length, width, seed=seed)
        for seed, (count, length) in enumerate(
            [(heads, rows), (kv_heads, prefix + rows), (kv_heads, prefix + rows)]
        )
    )
    where = RowPaths(paths and ancestry_of(paths), rows)
    assert where.paths == (paths or [list(range(row + 1)) for row in range(rows)])
    found = compiled_attention(load_kernels(), query, key, value, where, window, 0.2)
    assert found.shape == (1, rows, heads, width)
    for row, path in enumerate(where.paths):
        seen = [*range(prefix), *(prefix + place for place in path)][-window:]
        expected = F.scaled_dot_product_attention(
            query[:, :, row : row + 1].float(),
            key[:, :, seen].float(),
            value[:, :, seen].float(),
            scale=0.2,
            enable_gqa=True,
        )
        close = found[:, row].unsqueeze(2).float()
        torch.testing.assert_close(close, expected, rtol=0.02, atol=0.02)


def test_rows_do_not_depend_on_how_many_there_are():
    kernels = load_kernels()
    query, key, value = some(4, 7, 32), some(2, 50, 32, seed=1), some(2, 50, 32, seed=2)
    together = compiled_attention(kernels, query, key, value, RowPaths(None, 7), 1 << 40, 0.3)
    for row in range(7):
        end = 44 + row
        one = compiled_attention(
            kernels,
            query[:, :, row : row + 1],
            key[:, :, :end],
            value[:, :, :end],
            RowPaths(None, 1),
            1 << 40,
            0.3,
        )
        assert torch.equal(one[:, 0], together[:, row])


def test_scores_far_apart_neither_overflow_nor_vanish():
    query, key, value = 30 * some(2, 1, 16), 30 * some(2, 600, 16, seed=1), some(2, 600, 16, seed=2)
    found = compiled_attention(load_kernels(), query, key, value, RowPaths(None, 1), 1 << 40, 1.0)
    assert found.isfinite().all()
    expected = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), scale=1.0)
    torch.testing.assert_close(found.transpose(1, 2).float(), expected, rtol=0.02, atol=0.02)


def test_what_it_does_not_know_is_left_alone():
    key = some(2, 5, 16)
    assert fits(some(2, 1, 16), key, key)
    assert not fits(some(2, 1, 16).float(), key.float(), key.float())
    assert not fits(some(2, 1, 12), some(2, 5, 12), some(2, 5, 12))
    assert not fits(some(2, 1, 16), key, key[..., :8])
    assert not fits(some(2, 1, 16), key.transpose(1, 2), key.transpose(1, 2))


def test_it_is_used_only_where_it_gives_the_bits_of_torch():
    """Whatever this machine's torch does: a wrong scale is never taken for it."""

    class Wrong:
        def __init__(self, kernels):
            self.kernels = kernels

        def swift_sd_attention(self, request):
            request._obj.scale *= 1.01
            return self.kernels.swift_sd_attention(request)

    assert not is_compilable(Wrong(load_kernels()), 4, 2, 64, 0.125)
