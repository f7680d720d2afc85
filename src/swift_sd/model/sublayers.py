"""Finds the attention and MLP sublayers of a model and proves that each can be left out.

Nothing here knows the names of model families. A decoder is the `ModuleList` of as many layers as
the configuration states; a layer's attention is its child that takes a cache; its MLP is the other
child that holds weight matrices. Whether leaving them out is sound is then measured on a tiny
input, in copies that share the model's tensors: see `_Probe`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from swift_sd.errors import UnsupportedModel
from swift_sd.model.kv_cache import CACHE_NAMES, KVCache, attention_windows
from swift_sd.model.stubs import (
    Neutralised,
    PassThrough,
    Skipped,
    shared_copy,
    shared_copy_along,
)
from swift_sd.model.support import check_ready, refuse_what_cannot_work, unsupported
from swift_sd.model.view import View
from swift_sd.native.waiting import short_spins

CACHE_PARAMETERS = {*CACHE_NAMES, "past_key_value", "layer_past"}
TOLERANCE = 1e-2  # relative; what is compared comes from the same operations on the same numbers


@dataclass(frozen=True)
class LayerParts:
    """What to put into copies of one kind of decoder layer to leave its sublayers out.

    Attributes:
        attention, mlp: names of the two sublayers among the layer's children.
        without_attention, without_mlp: stand-ins by child's name: for the sublayer itself, and for
            children that serve nothing else (its norms, say).
        without_both: the stand-in for the whole layer.
    """

    attention: str
    mlp: str
    without_attention: Mapping[str, nn.Module]
    without_mlp: Mapping[str, nn.Module]
    without_both: nn.Module

    def skipping(self, layer: nn.Module, *, attention: bool, mlp: bool) -> nn.Module:
        """A module to run instead of `layer`, over the same tensors."""
        if attention and mlp:
            return self.without_both
        if attention:
            return shared_copy(layer, self.without_attention)
        return shared_copy(layer, self.without_mlp) if mlp else layer


@dataclass(frozen=True)
class Sublayers:
    """Where the skippable sublayers of one model are.

    Attributes:
        path: names that lead from the model to the list of decoder layers.
        parts: one entry a layer.
    """

    path: tuple[str, ...]
    parts: tuple[LayerParts, ...]

    @property
    def depth(self) -> int:
        """Number of decoder layers."""
        return len(self.parts)

    def wrapped(
        self, model: nn.Module, wrap: Callable[[int, str, nn.Module], nn.Module]
    ) -> dict[str, nn.Module]:
        """Copies of all layers, with `wrap(index, kind, module)` for all that skipping replaces."""
        copies: dict[str, nn.Module] = {}
        for index, parts in enumerate(self.parts):
            layer = model.get_submodule(".".join((*self.path, str(index))))
            kinds = {"attention": parts.without_attention, "mlp": parts.without_mlp}
            named = [(kind, name) for kind, names in kinds.items() for name in names]
            new = {name: wrap(index, kind, layer.get_submodule(name)) for kind, name in named}
            copies[str(index)] = shared_copy(layer, new)
        return copies


@short_spins()
def find_sublayers(model: PreTrainedModel) -> Sublayers:
    """Find the sublayers of `model` and prove, by running it on three tokens, that all can go.

    The model is not changed.

    Raises:
        UnsupportedModel: names the family, the reason and what is supported.
    """
    refuse_what_cannot_work(model)
    check_ready(model)
    path, layers = _decoder_layers(model)
    proved: dict[Any, LayerParts] = {}
    for index, layer in enumerate(layers):
        if _kind(layer) not in proved:
            proved[_kind(layer)] = _prove(model, path, index, layer)
    return Sublayers(path, tuple(proved[_kind(layer)] for layer in layers))


def _decoder_layers(model: PreTrainedModel) -> tuple[tuple[str, ...], nn.ModuleList]:
    depth = model.config.get_text_config(decoder=True).num_hidden_layers
    for name, module in model.named_modules():
        is_stack = isinstance(module, nn.ModuleList) and len(module) == depth
        if is_stack and all(any(map(_takes_cache, layer.children())) for layer in module):
            return tuple(name.split(".")), module
    raise unsupported(model, f"no list of {depth} decoder layers with an attention child was found")


def _takes_cache(module: nn.Module) -> bool:
    return bool(CACHE_PARAMETERS & inspect.signature(type(module).forward).parameters.keys())


def _identify(layer: nn.Module) -> tuple[str, str]:
    """Names of the attention and of the MLP among the layer's children."""
    attention = [name for name, child in layer.named_children() if _takes_cache(child)]
    others = [
        name
        for name, child in layer.named_children()
        if name not in attention and any(weight.dim() > 1 for weight in child.parameters())
    ]
    if len(attention) != 1:
        raise UnsupportedModel(f"there are {len(attention)} attention modules, not one")
    if not others:
        raise UnsupportedModel("there is no MLP beside the attention")
    # An MLP given as separate matrices (opt's) ends in the last of them.
    return attention[0], others[-1]


def _kind(layer: nn.Module) -> tuple[Any, ...]:
    """Layers of one kind run the same code: what is proved for one holds for all."""
    children = tuple((name, type(child)) for name, child in layer.named_children())
    return type(layer), "forward" in vars(layer), children


def _prove(
    model: PreTrainedModel, path: tuple[str, ...], index: int, layer: nn.Module
) -> LayerParts:
    """Run the model on three tokens with a probe in the layer's place."""
    probe = _Probe(layer)
    twin = shared_copy_along(model, path, {str(index): probe})
    middle = model.config.get_text_config(decoder=True).vocab_size // 2  # no special tokens there
    tokens = torch.arange(middle - 1, middle + 2, device=model.device)
    try:
        View(twin).forward(tokens.unsqueeze(0), KVCache(attention_windows(model.config)))
    except UnsupportedModel as reason:
        raise unsupported(model, f"in layer {index}, {reason}") from None
    assert probe.parts is not None
    return probe.parts


class _Probe(nn.Module):
    """Stands in for a decoder layer during one forward, and finds out what can be left out of it.

    Everything runs on random hidden states: smaller than the real ones, so that contributions stand
    out in 16 bits too, and each position's of another size, so that no norm can pass for the
    identity.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.parts: LayerParts | None = None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        facts: Any = {"dtype": torch.float32, "device": "cpu"}
        generator = torch.Generator("cpu").manual_seed(0)
        noise = torch.randn(hidden_states.shape, generator=generator, **facts)
        real = float(hidden_states.float().std()) or 1.0
        sizes = real * torch.tensor([0.05, 0.2, 0.5], **facts).view(1, 3, 1)
        hidden = (noise * sizes).to(hidden_states)

        def contributions(stubs: Mapping[str, nn.Module]) -> Tensor:
            output = shared_copy(self.layer, stubs)(hidden, *args, **kwargs)
            result: Tensor = output[0] if isinstance(output, tuple) else output
            return (result - hidden).float()

        attention, mlp = _identify(self.layer)
        without_attention = _stand_ins(self.layer, attention, mlp, contributions)
        without_mlp = _stand_ins(self.layer, mlp, attention, contributions)
        if contributions({**without_attention, **without_mlp}).any():
            raise UnsupportedModel(
                "the residual stream does not pass unchanged when both sublayers are left out"
            )
        output = self.layer(hidden_states, *args, **kwargs)
        extra = len(output) - 1 if isinstance(output, tuple) else 0
        self.parts = LayerParts(attention, mlp, without_attention, without_mlp, PassThrough(extra))
        return output


def _stand_ins(
    layer: nn.Module, sublayer: str, other: str, run: Callable[[Mapping[str, nn.Module]], Tensor]
) -> dict[str, nn.Module]:
    """What to replace so that `sublayer` costs nothing and contributes nothing.

    Sound if the layer then returns what it does with the sublayer run and its contribution taken
    out. Other children that can be replaced without changing that serve only this sublayer.
    """
    neutral = Neutralised(layer.get_submodule(sublayer))
    expected = run({sublayer: neutral})
    stubs: dict[str, nn.Module] = {sublayer: Skipped(neutral)}
    if not _same(run(stubs), expected):
        raise UnsupportedModel(f"leaving out `{sublayer}` changes more than its contribution")
    for name, _ in layer.named_children():
        if name not in (sublayer, other):
            candidate = {**stubs, name: PassThrough()}
            if _still_gives(expected, run, candidate):
                stubs = candidate
    return stubs


def _still_gives(
    expected: Tensor,
    run: Callable[[Mapping[str, nn.Module]], Tensor],
    stubs: Mapping[str, nn.Module],
) -> bool:
    try:
        return _same(run(stubs), expected)
    except RuntimeError:  # shapes do not fit: the child does more than scale or normalise
        return False


def _same(a: Tensor, b: Tensor) -> bool:
    is_close = a.shape == b.shape and (a - b).norm() <= TOLERANCE * b.norm()
    return bool(is_close) and bool(b.isfinite().all())
