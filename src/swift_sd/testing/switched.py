"""A model in which some sublayers matter for one kind of text only: does a search notice?"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from swift_sd.testing.families import EOS_ID, tiny_model

_FIRST = EOS_ID + 1  # ids before it belong to no kind
_MARK = 8.0  # in an embedding whose other entries have a standard deviation of 2
_GATE = 1.0
_STRENGTH = 0.5  # of what a switched MLP adds
_PREFERENCE = 20.0  # of the head for tokens of the kind it reads


@torch.no_grad()
def switched_model(
    *,
    kinds: int = 5,
    base_layers: int = 6,
    layers_per_kind: int = 6,
    tokens_per_kind: int = 40,
    seed: int = 0,
) -> tuple[PreTrainedModel, list[range], list[frozenset[int]]]:
    """Build a small llama with layers whose MLP works for one kind of token ids and adds 0 else.

    Each kind of token has a place of its own in the residual stream, marked by the embedding and
    overwritten by no layer. The gate of a switched MLP reads the mark of one kind and nothing else:
    for any other kind it gives SiLU(0) = 0. The attention of these layers adds nothing at all. The
    head reads the marks too, so that a text stays with its kind.

    Args:
        kinds: how many there are.
        base_layers: those that matter for every text, at least 2: the first and the last are.
        layers_per_kind: switched on by each kind.
        tokens_per_kind: ids of each kind.
        seed: of weights and places.

    Returns:
        The model, in float32 and eval mode; of each kind the token ids, and the layers it needs.
    """
    depth = base_layers + kinds * layers_per_kind
    model: Any = tiny_model(
        "llama",
        layers=depth,
        vocab_size=_FIRST + kinds * tokens_per_kind,
        seed=seed,
        hidden_size=64,
        head_dim=16,
        intermediate_size=96,
        max_position_embeddings=1024,
    )
    hidden = model.config.hidden_size
    marks = slice(hidden - kinds, hidden)
    embedding: Tensor = model.get_input_embeddings().weight  # [ids, hidden]
    head: Tensor = model.get_output_embeddings().weight
    embedding[:, marks] = 0
    head[:, marks] = 0
    tokens = [
        range(first, first + tokens_per_kind)
        for first in range(_FIRST, len(head))[::tokens_per_kind]
    ]
    for kind, ids in enumerate(tokens):
        embedding[ids.start : ids.stop, marks.start + kind] = _MARK
        head[ids.start : ids.stop, marks.start + kind] = _PREFERENCE
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[marks] = 0
        layer.mlp.down_proj.weight[marks] = 0
    places = random.Random(seed).sample(range(1, depth - 1), kinds * layers_per_kind)
    needed = [frozenset(places[kind::kinds]) for kind in range(kinds)]
    for kind, layers in enumerate(needed):
        for index in layers:
            layer = model.model.layers[index]
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.gate_proj.weight.zero_()
            layer.mlp.gate_proj.weight[:, marks.start + kind] = _GATE
            layer.mlp.down_proj.weight.mul_(_STRENGTH)
    return model, tokens, needed
