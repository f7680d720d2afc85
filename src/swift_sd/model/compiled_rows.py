"""A linear layer over several rows in compiled code, for one reading of its weights."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from swift_sd.model.plain_tensors import address, is_plain, is_plain_linear

STRIDE = 64  # see native/rows.c


class Around(nn.Module):
    """What is put around a linear layer, or stands for it; for the rest it is that layer.

    Some models ask for a layer's weight, adapters for its sizes too.
    """

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear: Any = linear

    def __getattr__(self, name: str) -> Any:
        """What only the layer has."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "linear":
                raise
            return getattr(self.linear, name)


class CompiledRows(Around):
    """Computes each row of `[batch, rows, in]` as torch computes it alone.

    In the order of processors without instructions for bfloat16, where torch takes the time of one
    row for each of several, or of those with AVX512_BF16, where it takes sums over several rows in
    another order. A single row is left to torch. Whether the results are the same to the bit is for
    the caller to find out.

    Args:
        library: from `load_kernels()`.
        linear: of bfloat16 on the CPU; see `can_be_compiled`.
    """

    def __init__(self, library: Any, linear: nn.Module) -> None:
        super().__init__(linear)
        self._library = library

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[batch, rows, out]`."""
        weight, bias = self.linear.weight, self.linear.bias
        rows = hidden_states.reshape(-1, weight.shape[1]).contiguous()
        if len(rows) == 1:
            alone: Tensor = self.linear(hidden_states)
            return alone
        output = rows.new_empty(len(rows), len(weight))
        pointers = (
            None if each is None else address(each, torch.bfloat16)
            for each in (rows, weight, bias, output)
        )
        failed = self._library.swift_sd_linear_rows(
            *map(ctypes.c_void_p, pointers),
            *map(ctypes.c_int64, (len(rows), *reversed(weight.shape))),
        )
        if failed:
            raise MemoryError("no memory for a linear layer")
        return output.view(*hidden_states.shape[:-1], -1)


def can_be_compiled(linear: nn.Module) -> bool:
    """Whether the kernel knows what to do with this layer."""
    if not is_plain_linear(linear):
        return False
    assert isinstance(linear, nn.Linear)
    numbers = [one for one in (linear.weight, linear.bias) if one is not None]
    fits = all(is_plain(one, torch.bfloat16) and one.is_contiguous() for one in numbers)
    return fits and linear.weight.shape[1] % STRIDE == 0
