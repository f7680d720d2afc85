"""The layout of most decoders, which compiled code knows: where everything is in such a model."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from swift_sd.errors import UnsupportedModel
from swift_sd.model.kv_cache import KVCache
from swift_sd.model.plain_tensors import address, is_plain_linear
from swift_sd.model.rope import changes_with_length, scales_queries
from swift_sd.model.sharding import is_sharded
from swift_sd.model.sublayers import Sublayers
from swift_sd.native.compiler import NoKernelsError

Windows = Sequence[int | None]

Pointer = ctypes.c_void_p
Whole = ctypes.c_int64

CHUNK = 64  # what every width must be a multiple of: see native/draft.h and rows.h

# Names of the fields that the structures of draft.h and target.c have in common, in their order.
SIZES = ("layers", "hidden", "heads", "kv_heads", "head_dim", "inner")
NORMS = ("attention_norm", "mlp_norm", "query_norm", "key_norm")
MATRICES = ("queries", "keys", "values", "attention_out", "gate", "up", "down")


class CacheRows(ctypes.Structure):
    """Mirror of `Rows` in native/cache_rows.h."""

    _fields_ = (
        *((name, Pointer) for name in ("keys", "values")),
        *((name, Whole) for name in ("stride", "row", "window")),
    )


def cache_rows(cache: KVCache, count: int, windows: Windows, dtype: torch.dtype) -> Any:
    """An array of `CacheRows`, one for each layer, with room for `count` rows at the cursor.

    Args:
        windows: what each layer attends to, by the model's configuration: a user's cache may have
            been made without one, and then keeps more.
        dtype: of what is read and written.

    Raises:
        UnsupportedModel: the cache holds numbers of another type, as a prefix of another model's
            or autocast may leave it.
    """
    return (CacheRows * len(cache.buffers))(*_each_layers_rows(cache, count, windows, dtype))


def _each_layers_rows(
    cache: KVCache, count: int, windows: Windows, dtype: torch.dtype
) -> Iterator[CacheRows]:
    for buffer, window in zip(cache.buffers, windows, strict=True):
        keys, values, row = cache.room(buffer, count)
        try:  # each draft step comes here: nothing is looked at twice
            places = address(keys, dtype), address(values, dtype)
        except NoKernelsError:
            places = None
        if places is None or keys.shape != values.shape:
            raise UnsupportedModel(
                f"the cache holds keys of {keys.dtype} and values of {values.dtype}, the model is "
                f"{dtype}: give a prefix in the model's own type, without autocast"
            )
        yield CacheRows(*places, keys.stride(1), row, window or 1 << 60)


def linears_of(layer: Any) -> list[nn.Linear]:
    """Queries, keys, values, output, gate, up and down, in this order."""
    attention, mlp = layer.self_attn, layer.mlp
    linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    return [*linears, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def norms_of(layer: Any) -> list[Any]:
    """Before attention, before the MLP, of queries and of keys; None for one that is missing."""
    attention = layer.self_attn
    own = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    return [layer.input_layernorm, layer.post_attention_layernorm, *own]


class CommonLayout:
    """Where everything is in a model of the common layout.

    Layers of `self_attn` and `mlp` behind a root mean square norm each, gated MLP with SiLU, rotary
    embeddings over whole heads: llama, qwen 2 and 3, mistral and their kin.

    Attributes:
        sizes: what `SIZES` names.
        epsilon: of the norms.
        scale: of attention.

    Raises:
        NoKernelsError: the model is of another one; says where.
    """

    def __init__(self, model: PreTrainedModel, sublayers: Sublayers) -> None:
        if model.device.type != "cpu" or model.dtype not in (torch.bfloat16, torch.float32):
            raise NoKernelsError(f"the model is {model.dtype} on {model.device.type}")
        if is_sharded(model):
            raise NoKernelsError("its weights are sharded over processes")
        self.config: Any = model.config.get_text_config(decoder=True)
        if changes_with_length(self.config):
            raise NoKernelsError("its rotary embedding changes with the length")
        if scales_queries(self.config):
            raise NoKernelsError("its queries grow with their position")
        base: Any = model.get_submodule(".".join(sublayers.path[:-1]))
        self.layers: list[Any] = list(getattr(base, sublayers.path[-1]))
        self.embedding: Any = model.get_input_embeddings()
        self.head: Any = model.get_output_embeddings()
        try:
            self.rotary, self.norm = base.rotary_emb, base.norm
            like = torch.empty(1, 1, dtype=torch.float32, device=model.device)
            place = torch.zeros(1, 1, dtype=torch.long, device=model.device)
            cosines, _ = self.rotary(like, place)
            self.hidden = self.norm.weight.shape[0]
            head_dim = cosines.shape[-1]
            widths = {s for layer in self.layers for s in self._check(layer, head_dim)}
            attention, mlp = self.layers[0].self_attn, self.layers[0].mlp
            heads, kv_heads = (
                linear.weight.shape[0] // head_dim
                for linear in (attention.q_proj, attention.k_proj)
            )
            inner = mlp.down_proj.weight.shape[1]
            self.sizes = (len(self.layers), self.hidden, heads, kv_heads, head_dim, inner)
            self.epsilon, self.scale = self.norm.variance_epsilon, attention.scaling
            shapes = {
                tuple(linear.weight.shape for linear in linears_of(layer)) for layer in self.layers
            }
            kinds = {one for layer in self.layers for one in self._kinds(layer)}
        except (AttributeError, TypeError) as error:
            raise NoKernelsError(f"the model is of another layout: {error}") from None
        if len(shapes) > 1:
            raise NoKernelsError("its layers differ in size")
        if len(kinds) > 1:
            raise NoKernelsError("its layers differ in classes, scale or epsilon")
        linears = (linear for layer in self.layers for linear in linears_of(layer))
        if not all(map(is_plain_linear, (*linears, self.head))):
            raise NoKernelsError("a linear layer is of another kind")
        if any(width % CHUNK for width in (self.hidden, *widths)) or head_dim % 8:
            raise NoKernelsError(f"a width is no multiple of {CHUNK}")

    def _kinds(self, layer: Any) -> Iterator[tuple[Any, ...]]:
        """What compiled code has one of for the whole model; one entry for each norm."""
        modules = (layer, layer.self_attn, layer.mlp, layer.mlp.act_fn)
        types = (*map(type, modules), layer.self_attn.scaling)
        for norm in (*norms_of(layer), self.norm):
            if norm is not None:
                yield (*types, type(norm), norm.variance_epsilon)

    def _check(self, layer: Any, head_dim: int) -> set[int]:
        names = {name for name, _ in layer.named_children()}
        if names != {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}:
            raise AttributeError(f"a layer consists of {', '.join(sorted(names))}")
        attention, mlp = layer.self_attn, layer.mlp
        if attention.head_dim != head_dim:
            raise AttributeError("rotary embeddings over a part of each head")
        children = {name for name, _ in attention.named_children()}
        if not children <= {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"}:
            raise AttributeError(f"attention consists of {', '.join(sorted(children))}")
        if not getattr(attention, "use_rope", True):
            raise AttributeError("a layer without rotary embeddings")
        half = getattr(sys.modules[type(attention).__module__], "rotate_half", None)
        numbers = torch.arange(4, dtype=torch.float32, device="cpu")
        if half is not None and half(numbers).tolist() != [-2, -3, 0, 1]:
            raise AttributeError("rotary embeddings of neighbouring numbers")
        if attention.k_proj.weight.shape != attention.v_proj.weight.shape:
            raise AttributeError("keys and values of different sizes")
        for norm in (getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)):
            if norm is not None and norm.weight.shape != (head_dim,):
                raise AttributeError("a norm over all heads")
        some = torch.linspace(-4, 4, 9, dtype=torch.float32, device="cpu")
        if not torch.allclose(mlp.act_fn(some), F.silu(some), atol=1e-5):
            raise AttributeError("an activation other than SiLU")
        return {linear.weight.shape[1] for linear in linears_of(layer)}
