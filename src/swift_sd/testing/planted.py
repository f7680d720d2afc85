"""Models with layers that are known to be superfluous, to see whether a search finds them."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

_ATTENTION_NAMES = frozenset({"self_attn", "attn", "attention", "self_attention"})
_OUTPUT_PROJECTIONS = frozenset(
    {"o_proj", "out_proj", "c_proj", "dense", "wo"}  # attention
    | {"down_proj", "fc2", "dense_4h_to_h", "w2"}  # MLP; c_proj is used for both
    | {"output_linear"}  # mixture of experts in granitemoe
)
_LAYER_INDEX_LISTS = frozenset({"mlp_only_layers"})  # these hold indices, not one entry a layer
_TOLERANCE = 0.05


def planted_model(
    model: PreTrainedModel, *, extra_layers: int, seed: int = 0, scale: float = 1e-3
) -> tuple[PreTrainedModel, frozenset[int]]:
    """Deepen a copy of `model` by layers that contribute almost nothing.

    Each planted layer sits at a random place strictly between the first and the last layer.  It is
    a copy of a random layer of `model`, with the output projections of its attention and of its MLP
    multiplied by `scale`.  Skipping the planted layers therefore hardly changes the output, while
    computing them costs as much as any layer.

    `model` itself is not changed, and no tensor is shared with it.  Settings that tell sparse from
    dense layers by index (`mlp_only_layers`, `first_k_dense_replace`) are left alone: a model that
    mixes the two works in memory, but does not load again after saving.

    Args:
        model: a decoder-only model whose layers add the outputs of attention and MLP to the
            residual stream.
        extra_layers: how many layers to plant, at least 1.
        seed: seed of the places and of the copied layers.
        scale: factor on the output projections; 0 makes the planted layers exact identities.

    Returns:
        The deepened model, and the indices of the planted layers among its layers.

    Raises:
        ValueError: `extra_layers` is below 1; the model has fewer than two layers; a layer has no
            output projection known here; or the logits move by more than 5 % of their standard
            deviation (root mean square over the vocabulary, median over eight tokens), as they do
            where a norm after the sublayer undoes the scaling.
    """
    if extra_layers < 1:
        raise ValueError(f"extra_layers must be at least 1, got {extra_layers}")
    for layer in _decoder_layers(model, model.config.get_text_config(decoder=True)):
        _output_projections(layer, model.config.model_type)  # refuse before copying anything
    deepened = copy.deepcopy(model)
    config = deepened.config.get_text_config(decoder=True)
    layers = _decoder_layers(deepened, config)

    draw = random.Random(seed)
    origins = list(range(len(layers)))  # origins[i]: original index of what layer i was copied from
    planted = _draw_places(draw, depth=len(layers), extra=extra_layers)
    sources = {place: draw.randrange(len(layers)) for place in planted}
    originals = list(layers)
    for place in planted:  # ascending, so places are final indices
        layer = copy.deepcopy(originals[sources[place]], {id(config): config})
        _scale_outputs(layer, config.model_type, scale)
        layers.insert(place, layer)
        origins.insert(place, sources[place])

    _renumber(layers)
    _extend_config(config, origins, depth=len(originals))
    _require_close_logits(model, deepened, config)
    return deepened, frozenset(planted)


def _draw_places(draw: random.Random, *, depth: int, extra: int) -> list[int]:
    """Ascending indices of the planted layers among all `depth + extra`, both ends excluded."""
    return sorted(draw.sample(range(1, depth + extra - 1), k=extra))


def _decoder_layers(model: PreTrainedModel, config: PreTrainedConfig) -> nn.ModuleList:
    """The list of decoder layers: the outermost module list as long as the model is deep."""
    depth = config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            if depth < 2:
                break
            return module
    raise ValueError(
        f"cannot plant layers in a {config.model_type} model: found no list of {depth} decoder "
        "layers with a first and a last one; use a decoder-only model of two layers or more"
    )


def _output_projections(layer: nn.Module, family: str) -> list[nn.Parameter]:
    """Weights and biases of both output projections of one decoder layer."""
    found: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in layer.named_parameters():
        parts = name.split(".")
        if any(part.removesuffix("_bias") in _OUTPUT_PROJECTIONS for part in parts):
            found[parts[0] in _ATTENTION_NAMES].append(parameter)
    for is_attention, parameters in found.items():
        if not parameters:
            kind = "attention" if is_attention else "MLP"
            raise ValueError(
                f"cannot plant layers in a {family} model: a layer has no {kind} output projection "
                f"named one of {sorted(_OUTPUT_PROJECTIONS)}; use a family such as llama or gpt2"
            )
    return found[True] + found[False]


@torch.no_grad()
def _scale_outputs(layer: nn.Module, family: str, scale: float) -> None:
    for parameter in _output_projections(layer, family):
        parameter.mul_(scale)


def _renumber(layers: nn.ModuleList) -> None:
    """Give every submodule the index of the layer it now lies in: the cache is addressed by it."""
    for index, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", index)  # noqa: B010 (unknown to nn.Module's types)


def _extend_config(config: PreTrainedConfig, origins: list[int], *, depth: int) -> None:
    """Set the new depth, and let lists with one entry a layer follow the copied layers."""
    for name, values in _per_layer_lists(config, depth):
        setattr(config, name, [values[origin] for origin in origins])
    config.num_hidden_layers = len(origins)


def _per_layer_lists(config: PreTrainedConfig, depth: int) -> Iterator[tuple[str, list[object]]]:
    for name, values in list(vars(config).items()):
        is_list = isinstance(values, list | tuple) and len(values) == depth
        if is_list and "layer" in name and name not in _LAYER_INDEX_LISTS:
            yield name, list(values)


@torch.no_grad()
def _require_close_logits(
    original: PreTrainedModel, deepened: PreTrainedModel, config: PreTrainedConfig
) -> None:
    """Raise ValueError unless both models give nearly the same logits on a short random input."""
    generator = torch.Generator("cpu").manual_seed(0)
    input_ids = torch.randint(config.vocab_size, (1, 8), generator=generator, device="cpu")
    input_ids = input_ids.to(original.device)
    expected, actual = (
        model(input_ids=input_ids, use_cache=False).logits.float() for model in (original, deepened)
    )  # [1, 8, vocab]
    by_token = (actual - expected).square().mean(dim=-1).sqrt() / expected.std()  # [1, 8]
    # A median, as the tiniest change may send a token to other experts.
    moved = by_token.median().item()
    if not moved <= _TOLERANCE:
        raise ValueError(
            f"cannot plant layers in a {config.model_type} model: the logits move by {moved:.1%} "
            "of their spread, so the planted layers are not superfluous. A norm after the "
            "sublayer, as in gemma2 or olmo2, undoes the scaling: use a pre-norm family such as "
            "llama or gpt2. In a pre-norm family, use a smaller scale"
        )
