"""Attention of several rows, each as torch computes it alone, in compiled code."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from swift_sd.model.plain_tensors import address, is_plain

# Numbers of keys that are tried: few, vectors with and without a rest, softmax blocks of 512.
LENGTHS = (*range(1, 36), 63, 100, 255, 300, 511, 512, 513, 700, 1027)
NUMBERS = 200_000  # that are compared behind a mask
ROOM = 1200  # keys of the buffers that they are parts of


class _Attention(ctypes.Structure):
    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in ("queries", "keys", "values", "out", "paths", "lengths")
        ),
        *(
            (name, ctypes.c_int64)
            for name in ("rows", "prefix", "window", "heads", "kv_heads", "width")
        ),
        *((name, ctypes.c_int64) for name in ("query_head", "query_row", "key_head", "value_head")),
        ("scale", ctypes.c_float),
    )


class RowPaths:
    """Which of the newest rows each of them follows, itself included, for all layers of a forward.

    Args:
        ancestry: `[rows, rows]`, bool, on the CPU; None where they follow one by one.
        rows: how many there are.

    Attributes:
        lengths: of each row's path, `[rows]`, int32.
        table: the numbers of its rows in ascending order, `[rows, rows]`, int32; what is behind
            them means nothing.
    """

    def __init__(self, ancestry: Tensor | None, rows: int) -> None:
        self.is_chain = ancestry is None
        seen = (
            torch.ones(rows, rows, dtype=torch.bool, device="cpu").tril()
            if ancestry is None
            else ancestry
        )
        self.lengths = seen.sum(dim=1, dtype=torch.int32)
        self.table = (~seen).int().argsort(dim=1, stable=True).int()

    @cached_property
    def paths(self) -> list[list[int]]:
        """The same as numbers."""
        lengths = self.lengths.tolist()
        return [row[:length] for row, length in zip(self.table.tolist(), lengths, strict=True)]


def compiled_attention(
    library: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    paths: RowPaths,
    window: int,
    scale: float,
) -> Tensor:
    """What each row's own call of torch's attention gives, to the bit: see `is_compilable`.

    Args:
        query: `[1, heads, rows, head_dim]`, bfloat16, on the CPU.
        key, value: `[1, kv_heads, keys, head_dim]`; those of the rows last.
        window: how many keys each row sees at most.

    Returns:
        `[1, rows, heads, head_dim]`
    """
    _, heads, rows, width = query.shape
    prefix = key.shape[2] - rows
    out = query.new_empty(1, rows, heads, width)
    numbers, rows_of_paths = (query, key, value, out), (paths.table, paths.lengths)
    pointers = (
        *(address(each, torch.bfloat16, contiguous=False) for each in numbers),
        *(address(each, torch.int32) for each in rows_of_paths),
    )
    failed = library.swift_sd_attention(
        ctypes.byref(
            _Attention(
                *pointers,
                *(rows, prefix, window, heads, key.shape[1], width),
                *(query.stride(1), query.stride(2), key.stride(1), value.stride(1)),
                scale,
            )
        )
    )
    if failed:
        raise MemoryError("no memory for attention")
    return out


def fits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel knows what to do with such tensors."""
    rows_lie_together = all(each.stride(2) == each.shape[3] for each in (key, value))
    numbers_do = all(each.stride(3) == 1 for each in (query, key, value))
    kind = all(is_plain(each, torch.bfloat16) for each in (query, key, value)) and len(query) == 1
    same = value.shape == key.shape and query.shape[3] == key.shape[3]
    return kind and same and rows_lie_together and numbers_do and query.shape[3] % 8 == 0


def mask_of_one(
    keys: int, window: int | None, device: torch.device, *, keeps_all: bool = False
) -> Tensor | None:
    """The mask that transformers gives a single row with so many keys, its own among them.

    There is one as soon as a sliding window is full, though it hides nothing; torch's kernels may
    add up in another order with it.

    Args:
        keeps_all: the layer's cache keeps what is before the window too, which is hidden then.

    Returns:
        `[1, 1, 1, keys]`, bool, of the keys that are kept.
    """
    if window is None or keys < window:
        return None
    kept = torch.arange(keys if keeps_all else window, device=device)
    return (kept >= len(kept) - window).view(1, 1, 1, -1)


@torch.inference_mode()
def is_compilable(
    library: Any,
    heads: int,
    kv_heads: int,
    width: int,
    scale: float,
    window: int | None = None,
) -> bool:
    """Whether the kernel gives torch's bits for heads of this form, found by trying.

    Args:
        window: one that is full; a long one is tried as one of `ROOM`. None where there is none, or
            it is not full.
    """
    module: Any = SimpleNamespace(num_key_value_groups=heads // kv_heads)
    lengths: Sequence[int] = LENGTHS
    if window is not None:  # one number in 50,000 may differ
        window = min(window, ROOM)
        lengths = [window] * max(1, NUMBERS // (heads * width))
    generator = torch.Generator("cpu").manual_seed(0)

    def some(count: int, rows: int) -> Tensor:
        numbers = torch.randn(
            *(1, count, rows, width), generator=generator, dtype=torch.float32, device="cpu"
        )
        return numbers.to(torch.bfloat16)

    keys, values = some(kv_heads, ROOM), some(kv_heads, ROOM)
    one = RowPaths(None, 1)
    for length in lengths:
        query, key, value = 2 * some(heads, 1), keys[:, :, :length], values[:, :, :length]
        if not fits(query, key, value):
            return False
        mask = mask_of_one(length, window, query.device)
        expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scale)
        found = compiled_attention(library, query, key, value, one, length, scale)
        if not torch.equal(found, expected):
            return False
    return True
