"""The draft in 4 or 8 bits, in compiled code: for decoders of the most common layout, on a CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
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
from swift_sd.model.kv_cache import KVCache, attention_windows
from swift_sd.model.layer_set import LayerSet
from swift_sd.model.plain_tensors import address
from swift_sd.model.rounded_weights import KeptCopies, Rounded
from swift_sd.model.shortlist import Shortlist
from swift_sd.model.sublayers import Sublayers
from swift_sd.native.compiler import load_kernels

POSITIONS = 1024  # of the rotary tables, to begin with


class _Matrix(ctypes.Structure):
    _fields_ = (
        *((name, Pointer) for name in ("codes", "scales", "bias")),
        *((name, Whole) for name in ("rows", "columns", "group", "bits")),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, Pointer) for name in NORMS),
        *((name, _Matrix) for name in MATRICES),
    )


class _Draft(ctypes.Structure):
    _fields_ = (
        *((name, Whole) for name in SIZES),
        ("epsilon", ctypes.c_float),
        ("cache_is_float", ctypes.c_int32),
        ("layer", ctypes.POINTER(_Layer)),
        ("final_norm", Pointer),
        ("head", _Matrix),
    )


class CompiledWeights:
    """Rounded copies of a model's matrices, to be shared by the drafts of all responses.

    Args:
        model: the target, on the CPU; it is not changed.
        sublayers: what `find_sublayers(model)` found.
        bits: 4 or 8.
        group: weights that share a scale.
        kept: where the copies are, or are to be, kept; None to make them in any case.

    Raises:
        NoKernelsError: no compiler, or the model is of another layout; says what.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sublayers: Sublayers,
        bits: int = 4,
        group: int = 128,
        kept: KeptCopies | None = None,
    ) -> None:
        layout = CommonLayout(model, sublayers)
        self.library = load_kernels()
        self.bits = bits
        self._kept: list[Tensor] = []  # what the structures point to
        linears = [linear for layer in layout.layers for linear in linears_of(layer)]
        weights = [linear.weight for linear in (*linears, layout.head)]
        self._copies = self._rounded(weights, group, kept)
        copies = iter(self._copies)
        self._layers = (_Layer * len(layout.layers))(
            *(self._layer(layer, copies) for layer in layout.layers)
        )
        self._rotary, self.embedding = layout.rotary, layout.embedding
        self.windows = attention_windows(model.config)
        self.depth, self.dtype = len(layout.layers), model.dtype
        self.vocabulary = layout.head.weight.shape[0]
        self.struct = _Draft(
            *layout.sizes,
            layout.epsilon,
            model.dtype == torch.float32,
            self._layers,
            self._numbers(layout.norm.weight),
            self._matrix(layout.head, next(copies)),
        )
        self._tables = self._rotations(POSITIONS)

    def rotations(self, positions: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of at least so many positions, `[positions, head dimension]` each."""
        tables = self._tables
        if positions > len(tables[0]):
            tables = self._tables = self._rotations(2 * positions)
        return tables

    @torch.no_grad()
    def _rotations(self, positions: int) -> tuple[Tensor, Tensor]:
        like = torch.empty(1, 1, dtype=torch.float32, device="cpu")
        cosines, sines = self._rotary(like, torch.arange(positions, device="cpu").unsqueeze(0))
        return cosines[0].contiguous(), sines[0].contiguous()

    @property
    def bytes(self) -> int:
        """Memory taken, beyond the model's own."""
        return sum(one.bytes for one in self._copies)

    def _rounded(self, weights: list[Tensor], group: int, kept: KeptCopies | None) -> list[Rounded]:
        if kept is not None and (copies := kept.read(weights)) is not None:
            return copies
        copies = [Rounded.of(self.library, weight, self.bits, group) for weight in weights]
        if kept is not None:
            kept.write(weights, copies)
        return copies

    def _layer(self, layer: Any, copies: Iterator[Rounded]) -> _Layer:
        return _Layer(
            *(None if norm is None else self._numbers(norm.weight) for norm in norms_of(layer)),
            *map(self._matrix, linears_of(layer), copies),
        )

    def _matrix(self, linear: nn.Linear, copy: Rounded) -> _Matrix:
        bias = None if linear.bias is None else self._numbers(linear.bias)
        codes, scales = address(copy.codes, torch.uint8), address(copy.scales, torch.int16)
        return _Matrix(codes, scales, bias, *copy.sizes)

    def _numbers(self, tensor: Tensor) -> int:
        self._kept.append(tensor.detach().float().contiguous().clone())
        return address(self._kept[-1], torch.float32)


class CompiledDraft:
    """A draft view for one response: what `DraftView` is, many times faster.

    Args:
        weights: shared by all responses.
        layer_set: what to skip at first.
        shortlist: tokens whose logits are computed; those of all others are -inf. None for all.
    """

    def __init__(
        self, weights: CompiledWeights, layer_set: LayerSet, shortlist: Shortlist | None = None
    ) -> None:
        self._weights, self.shortlist = weights, shortlist
        self.use(layer_set)

    def use(self, layer_set: LayerSet) -> None:
        """Skip exactly the sublayers in `layer_set` from now on.

        Raises:
            LayerSetError: the set is for a model of another depth.
        """
        layer_set.check_depth(self._weights.depth)
        self._skips = bytes(
            (layer in layer_set.attention) + 2 * (layer in layer_set.mlp)
            for layer in range(layer_set.depth)
        )
        self.layer_set = layer_set

    @torch.no_grad()
    def forward(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """Run `tokens` `[1, new]` behind everything that `cache` holds; see `View.forward`.

        Returns:
            Logits `[1, new, vocabulary]`, float32.
        """
        weights, count = self._weights, tokens.shape[1]
        begin, end = cache.cursor, cache.cursor + count
        cosines, sines = weights.rotations(end)
        hidden = weights.embedding(tokens)[0].float().contiguous().clone()
        listed = self.shortlist.tokens if self.shortlist is not None else None
        logits = torch.full(
            (1, count, weights.vocabulary), -torch.inf, dtype=torch.float32, device="cpu"
        )
        failed = weights.library.swift_sd_draft(
            ctypes.byref(weights.struct),
            cache_rows(cache, count, weights.windows, weights.dtype),
            self._skips,
            Pointer(address(hidden, torch.float32)),
            Whole(count),
            Pointer(address(cosines[begin:], torch.float32)),
            Pointer(address(sines[begin:], torch.float32)),
            Pointer(address(logits, torch.float32)),
            Whole(count),
            None if listed is None else Pointer(address(listed, torch.int32)),
            Whole(0 if listed is None else len(listed)),
        )
        if failed:
            raise MemoryError("no memory for a draft step")
        cache.advance(count)
        return logits
