"""The draft in 4 or 8 bits, in compiled code: for decoders of the most common layout, on a CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from swift_sd.model.kv_cache import KVCache, attention_windows
from swift_sd.model.layer_set import LayerSet
from swift_sd.model.rope import changes_with_length
from swift_sd.model.sublayers import Sublayers
from swift_sd.native.compiler import NoKernelsError, load_kernels

CHUNK = 64  # see native/draft.h
QUANTISED_AT_ONCE = 1 << 24  # weights
FAITHFUL = 0.5  # relative error of the logits; a layout misread gives 1 and more
POSITIONS = 1024  # of the rotary tables, to begin with

Pointer = ctypes.c_void_p
Whole = ctypes.c_int64


class _Matrix(ctypes.Structure):
    _fields_ = (
        *((name, Pointer) for name in ("codes", "scales", "bias")),
        *((name, Whole) for name in ("rows", "columns", "group", "bits")),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, Pointer) for name in ("attention_norm", "mlp_norm", "query_norm", "key_norm")),
        *(
            (name, _Matrix)
            for name in ("queries", "keys", "values", "attention_out", "gate", "up", "down")
        ),
    )


class _Draft(ctypes.Structure):
    _fields_ = (
        *((name, Whole) for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "inner")),
        ("epsilon", ctypes.c_float),
        ("cache_is_float", ctypes.c_int32),
        ("layer", ctypes.POINTER(_Layer)),
        ("final_norm", Pointer),
        ("head", _Matrix),
    )


class _Rows(ctypes.Structure):
    _fields_ = (
        *((name, Pointer) for name in ("keys", "values")),
        *((name, Whole) for name in ("stride", "row", "window")),
    )


class Quantised:
    """Weights `[rows, columns]` in `bits` bits, by groups along the rows.

    4 bits: code · scale + offset; 8 bits: code · scale. Scales are bfloat16.
    """

    def __init__(self, library: Any, weight: Tensor, bits: int, group: int) -> None:
        rows, columns = weight.shape
        self.bits, self.group, self.shape = bits, _group(columns, group), (rows, columns)
        self.codes = torch.empty(rows, columns * bits // 8, dtype=torch.uint8)
        self.scales = torch.empty(rows, columns // self.group, 2, dtype=torch.int16)
        at_once = max(1, QUANTISED_AT_ONCE // columns)
        for first in range(0, rows, at_once):
            part = weight[first : first + at_once].detach().float().contiguous()
            library.swift_sd_quantise(
                Pointer(part.data_ptr()),
                Whole(len(part)),
                Whole(columns),
                Whole(self.group),
                Whole(bits),
                Pointer(self.codes[first:].data_ptr()),
                Pointer(self.scales[first:].data_ptr()),
            )

    def struct(self, bias: Tensor | None) -> _Matrix:
        """For the kernels; `bias` is float32 and has to outlive it, as `self` has."""
        where = None if bias is None else bias.data_ptr()
        sizes = (*self.shape, self.group, self.bits)
        return _Matrix(self.codes.data_ptr(), self.scales.data_ptr(), where, *sizes)

    @property
    def bytes(self) -> int:
        """Memory taken."""
        return self.codes.nbytes + self.scales.nbytes


class CompiledWeights:
    """Quantised copies of a model's matrices, to be shared by the drafts of all responses.

    Args:
        model: the target, on the CPU; it is not changed.
        sublayers: what `find_sublayers(model)` found.
        bits: 4 or 8.
        group: weights that share a scale.

    Attributes:
        error: relative error of the logits on a few tokens, against the model itself.

    Raises:
        NoKernelsError: no compiler, or the model is of another layout; says what.
    """

    def __init__(
        self, model: PreTrainedModel, sublayers: Sublayers, bits: int = 4, group: int = 128
    ) -> None:
        layout = _Layout(model, sublayers)
        self.library = load_kernels()
        self.library.swift_sd_quantise.restype = None
        self.bits = bits
        self._kept: list[Tensor] = []  # what the structures point to
        self._quantised: list[Quantised] = []
        self._layers = (_Layer * len(layout.layers))(
            *(self._layer(layer, bits, group) for layer in layout.layers)
        )
        config = layout.config
        attention = layout.layers[0].self_attn
        self.rotary, self.embedding = layout.rotary, layout.embedding
        self.windows = attention_windows(model.config)
        self.depth, self.hidden = len(layout.layers), layout.hidden
        self.head_dim = attention.head_dim
        self.vocabulary = layout.head.weight.shape[0]
        self.dtype = model.dtype
        self.struct = _Draft(
            self.depth,
            self.hidden,
            attention.q_proj.weight.shape[0] // self.head_dim,
            attention.k_proj.weight.shape[0] // self.head_dim,
            self.head_dim,
            layout.layers[0].mlp.down_proj.weight.shape[1],
            config.rms_norm_eps,
            model.dtype == torch.float32,
            self._layers,
            self._numbers(layout.norm.weight),
            self._matrix(layout.head, bits, group),
        )

    @property
    def bytes(self) -> int:
        """Memory taken, beyond the model's own."""
        return sum(one.bytes for one in self._quantised)

    def _layer(self, layer: Any, bits: int, group: int) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        norms = [
            layer.input_layernorm,
            layer.post_attention_layernorm,
            getattr(attention, "q_norm", None),
            getattr(attention, "k_norm", None),
        ]
        linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        linears += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
        return _Layer(
            *(None if norm is None else self._numbers(norm.weight) for norm in norms),
            *(self._matrix(linear, bits, group) for linear in linears),
        )

    def _matrix(self, linear: nn.Linear, bits: int, group: int) -> _Matrix:
        self._quantised.append(Quantised(self.library, linear.weight, bits, group))
        if linear.bias is None:
            return self._quantised[-1].struct(None)
        self._numbers(linear.bias)
        return self._quantised[-1].struct(self._kept[-1])

    def _numbers(self, tensor: Tensor) -> int:
        self._kept.append(tensor.detach().float().contiguous().clone())
        return self._kept[-1].data_ptr()


class CompiledDraft:
    """A draft view for one response: what `DraftView` is, many times faster.

    Args:
        weights: shared by all responses.
        layer_set: what to skip at first.
    """

    def __init__(self, weights: CompiledWeights, layer_set: LayerSet) -> None:
        self._weights = weights
        self._tables(POSITIONS)
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
    def forward(self, tokens: Tensor, cache: KVCache, *, keep: int = 0) -> Tensor:
        """Run `tokens` `[1, new]` behind everything that `cache` holds; see `View.forward`.

        Returns:
            Logits `[1, new or keep, vocabulary]`, float32.
        """
        weights, count = self._weights, tokens.shape[1]
        begin, end = cache.cursor, cache.cursor + count
        kept = keep or count
        if end > len(self._cosines):
            self._tables(2 * end)
        hidden = weights.embedding(tokens)[0].float().contiguous().clone()
        logits = torch.empty(1, kept, weights.vocabulary)
        failed = weights.library.swift_sd_draft(
            ctypes.byref(weights.struct),
            (_Rows * weights.depth)(*_rows(cache, count)),
            self._skips,
            Pointer(hidden.data_ptr()),
            Whole(count),
            Pointer(self._cosines[begin:].data_ptr()),
            Pointer(self._sines[begin:].data_ptr()),
            Pointer(logits.data_ptr()),
            Whole(kept),
        )
        if failed:
            raise MemoryError("no memory for a draft step")
        cache.advance(count)
        return logits

    @torch.no_grad()
    def _tables(self, positions: int) -> None:
        like = torch.empty(1, 1, dtype=torch.float32)
        places = torch.arange(positions).unsqueeze(0)
        cosines, sines = self._weights.rotary(like, places)
        self._cosines, self._sines = cosines[0].contiguous(), sines[0].contiguous()


def _rows(cache: KVCache, count: int) -> Iterator[_Rows]:
    for buffer in cache.buffers:
        keys, values, row = cache.room(buffer, count)
        window = buffer.window or 1 << 60
        yield _Rows(keys.data_ptr(), values.data_ptr(), keys.stride(1), row, window)


def _group(columns: int, wanted: int) -> int:
    """The largest group up to the wanted one that divides a row."""
    return next(size for size in range(wanted, 0, -CHUNK) if columns % size == 0)


class _Layout:
    """Where everything is in a model of the common layout.

    Layers of `self_attn` and `mlp` behind a root mean square norm each, gated MLP with SiLU, rotary
    embeddings over whole heads: llama, qwen 2 and 3, mistral and their kin.

    Raises:
        NoKernelsError: the model is of another one; says where.
    """

    def __init__(self, model: PreTrainedModel, sublayers: Sublayers) -> None:
        if model.device.type != "cpu" or model.dtype not in (torch.bfloat16, torch.float32):
            raise NoKernelsError(f"the model is {model.dtype} on {model.device.type}")
        self.config: Any = model.config.get_text_config(decoder=True)
        if changes_with_length(self.config):
            raise NoKernelsError("its rotary embedding changes with the length")
        base: Any = model.get_submodule(".".join(sublayers.path[:-1]))
        self.layers: list[Any] = list(getattr(base, sublayers.path[-1]))
        self.embedding: Any = model.get_input_embeddings()
        self.head: Any = model.get_output_embeddings()
        try:
            self.rotary, self.norm = base.rotary_emb, base.norm
            cosines, _ = self.rotary(torch.empty(1, 1), torch.zeros(1, 1, dtype=torch.long))
            self.hidden = self.norm.weight.shape[0]
            sizes = {self.hidden, cosines.shape[-1]}
            sizes |= {s for layer in self.layers for s in self._check(layer, cosines.shape[-1])}
        except (AttributeError, TypeError) as error:
            raise NoKernelsError(f"the model is of another layout: {error}") from None
        if any(size % CHUNK for size in sizes - {cosines.shape[-1]}) or cosines.shape[-1] % 8:
            raise NoKernelsError(f"a width is no multiple of {CHUNK}")

    def _check(self, layer: Any, head_dim: int) -> set[int]:
        names = {name for name, _ in layer.named_children()}
        if names != {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}:
            raise AttributeError(f"a layer consists of {', '.join(sorted(names))}")
        attention, mlp = layer.self_attn, layer.mlp
        if attention.head_dim != head_dim:
            raise AttributeError("rotary embeddings over a part of each head")
        for norm in (getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)):
            if norm is not None and norm.weight.shape != (head_dim,):
                raise AttributeError("a norm over all heads")
        some = torch.linspace(-4, 4, 9)
        if not torch.allclose(mlp.act_fn(some), F.silu(some), atol=1e-5):
            raise AttributeError("an activation other than SiLU")
        linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        linears += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
        return {linear.weight.shape[1] for linear in linears}
