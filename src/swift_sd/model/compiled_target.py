"""The target in compiled code: each of several rows to the bit as plain decoding computes it."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from swift_sd.model.common_layout import (
    MATRICES,
    NORMS,
    SIZES,
    CommonLayout,
    Pointer,
    Whole,
    cache_rows,
    linears_of,
    norms_of,
)
from swift_sd.model.compiled_attention import RowPaths
from swift_sd.model.compiled_rows import can_be_compiled
from swift_sd.model.foreign_code import is_foreign, is_watched
from swift_sd.model.kv_cache import KVCache, attention_windows
from swift_sd.model.plain_tensors import address
from swift_sd.model.sublayers import Sublayers
from swift_sd.native.compiler import NoKernelsError


class _Linear(ctypes.Structure):
    _fields_ = (("weight", Pointer), ("bias", Pointer), ("k", Whole), ("n", Whole))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, Pointer) for name in NORMS),
        *((name, _Linear) for name in MATRICES),
    )


class _Target(ctypes.Structure):
    _fields_ = (
        *((name, Whole) for name in SIZES),
        ("epsilon", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("layer", ctypes.POINTER(_Layer)),
        ("final_norm", Pointer),
        ("activation", Pointer),
        ("head", _Linear),
    )


class CompiledTarget:
    """Reads the model's own weights, as they are when it is made; for one response.

    Args:
        library: from `load_kernels()`.
        model: the target, bfloat16 on the CPU; it is not changed.
        sublayers: what `find_sublayers(model)` found.

    Raises:
        NoKernelsError: the model is of another layout, or code of others takes part in its
            forwards; that the results are exact is for the caller to find out.
    """

    def __init__(self, library: Any, model: PreTrainedModel, sublayers: Sublayers) -> None:
        modules = list(model.modules())
        if any(map(is_watched, modules)) or any(map(is_foreign, {*map(type, modules)})):
            raise NoKernelsError("a module has hooks or a forward of others")
        layout = CommonLayout(model, sublayers)
        if model.dtype != torch.bfloat16:
            raise NoKernelsError(f"the model is {model.dtype}")
        self._library = library
        self._kept: list[Tensor] = []  # what the structures point to
        self.form = (*layout.sizes[2:5], layout.scale)  # heads, kv_heads, head_dim
        every = (
            torch.arange(1 << 16, dtype=torch.int32, device="cpu")
            .to(torch.int16)
            .view(torch.bfloat16)
        )
        with torch.no_grad():
            activation = layout.layers[0].mlp.act_fn(every)
        self._struct = _Target(
            *layout.sizes,
            layout.epsilon,
            layout.scale,
            (_Layer * len(layout.layers))(*map(self._layer, layout.layers)),
            self._numbers(layout.norm.weight),
            self._numbers(activation),
            self._linear(layout.head),
        )
        self._embedding, self._rotary = layout.embedding, layout.rotary
        self._vocabulary = layout.head.weight.shape[0]
        self.windows = attention_windows(model.config)

    @torch.no_grad()
    def forward(self, tokens: Tensor, cache: KVCache, *, ancestry: Tensor | None = None) -> Tensor:
        """See `View.forward`; the cache is not empty, the batch is one."""
        rows = tokens.shape[1]
        paths = RowPaths(ancestry, rows)
        places = cache.cursor - 1 + paths.lengths.long()
        hidden = self._embedding(tokens).contiguous().clone()
        tables = [table.contiguous() for table in self._rotary(hidden, places.unsqueeze(0))]
        logits: Tensor = hidden.new_empty(1, rows, self._vocabulary)
        failed = self._library.swift_sd_target(
            ctypes.byref(self._struct),
            cache_rows(cache, rows, self.windows, torch.bfloat16),
            Pointer(address(hidden, torch.bfloat16)),
            Whole(rows),
            *(Pointer(address(each, torch.int32)) for each in (paths.table, paths.lengths)),
            *(Pointer(address(each, torch.bfloat16)) for each in tables),
            Pointer(address(logits, torch.bfloat16)),
            Whole(rows),
        )
        if failed:
            raise MemoryError("no memory for a verification")
        cache.advance(rows)
        return logits

    def _layer(self, layer: Any) -> _Layer:
        return _Layer(
            *(None if norm is None else self._numbers(norm.weight) for norm in norms_of(layer)),
            *map(self._linear, linears_of(layer)),
        )

    def _linear(self, linear: nn.Linear) -> _Linear:
        if not can_be_compiled(linear):
            raise NoKernelsError("a linear layer is of another kind")
        bias = None if linear.bias is None else self._numbers(linear.bias)
        return _Linear(self._numbers(linear.weight), bias, *reversed(linear.weight.shape))

    def _numbers(self, tensor: Tensor) -> int:
        # Kept by another name: the memory of one that is given other data meanwhile must stay.
        self._kept.append(tensor.detach())
        return address(tensor, torch.bfloat16)
