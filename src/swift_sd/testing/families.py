"""Tiny random causal LMs of many model families, for parity tests.

Weights as freshly initialised (standard deviation 0.02) make every sublayer negligible, so a greedy
continuation is one token repeated whatever the layers do, and a test on it proves nothing.  Here
every matrix keeps the scale of its input, norm weights and biases are jittered so that a forgotten
one shows, and the head is not tied to the embedding.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, cast

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel

FAMILIES: tuple[str, ...] = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3"),
    *("gpt2", "gpt_bigcode", "gpt_neox", "olmo", "olmo2", "olmo3", "olmoe", "mixtral"),
    *("qwen3_moe", "granite", "granitemoe", "cohere", "cohere2", "glm4", "glm4_moe", "starcoder2"),
    *("stablelm", "smollm3", "exaone4", "helium", "nemotron", "seed_oss", "ernie4_5"),
    *("hunyuan_v1_dense", "apertus", "arcee", "persimmon"),
)
"""Model types whose decoder layers are plain residual blocks over a key-value cache."""

SPECIAL_FAMILIES: tuple[str, ...] = ("gpt_oss", "bloom", "opt", "minimax")
"""Model types built otherwise inside a layer: supported or refused, never silently wrong."""

STRUCTURES: dict[str, str] = {
    "llama": "norms before sublayers, rotary positions, all text in view",
    "mistral": "a window in every layer",
    "gemma3_text": "windows in some layers, norms on both sides of sublayers, scaled embeddings",
    "gpt2": "learned positions, biases, matrices stored transposed",
    "phi": "attention and MLP side by side, positions that rotate in part",
    "olmo2": "norms after sublayers",
    "qwen3_moe": "experts, and a dense layer among them",
    "gpt_oss": "attention sinks, and experts, windows in some layers",
    "bloom": "positions as biases of attention: chains only, no trees",
}
"""A family for each structure on which keys, positions and masks depend, and what it stands for."""

RECURRENT_FAMILIES: tuple[str, ...] = (
    *("mamba", "qwen3_next", "recurrent_gemma", "falcon_h1", "lfm2"),
)
"""Model types with a state that cannot be rewound, which must be refused."""

PAD_ID, BOS_ID, EOS_ID = 0, 1, 2

# Sizes are pairwise different where possible, so that a mixed-up dimension raises an error.
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "n_inner": 48,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "max_position_embeddings": 256,
    "original_max_position_embeddings": 256,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_shared_experts": 1,
    "shared_expert_intermediate_size": 24,
    "query_pre_attn_scalar": 8,
    "logit_scale": 0.8,
    "pad_token_id": PAD_ID,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "tie_word_embeddings": False,
}

_SLIDING_WINDOW = 8
_ALL_SLIDING = frozenset({"mistral", "mixtral", "phi3", "starcoder2"})
_MIXED_SLIDING = frozenset({"gemma2", "gemma3_text", "cohere2", "olmo3", "exaone4", "gpt_oss"})
_LAYER_KINDS = {
    **dict.fromkeys(_MIXED_SLIDING, ("sliding_attention", "full_attention")),
    "lfm2": ("conv", "full_attention"),
}

_MULTIPLIERS = {
    "embedding_multiplier": 0.7,
    "residual_multiplier": 0.7,
    "attention_multiplier": 0.4,
    "logits_scaling": 1.5,
}
_OVERRIDES: dict[str, dict[str, Any]] = {
    "granite": _MULTIPLIERS,
    "granitemoe": _MULTIPLIERS,
    "qwen3_moe": {"mlp_only_layers": [1]},  # one dense layer among the sparse ones
    "qwen3_next": {
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": _SLIDING_WINDOW},
    "falcon_h1": {
        "mamba_d_ssm": 64,
        "mamba_n_heads": 8,
        "mamba_d_state": 16,
        "mamba_chunk_size": 16,
    },
}

# Sublayers add vectors of about unit size to the embedding: at 2 they matter, and do not drown it.
# Gemmas multiply the embedding by sqrt(hidden_size); squared activations make larger outputs.
_EMBEDDING_STD = {
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "recurrent_gemma"), 0.5),
    **{"persimmon": 4.0, "nemotron": 10.0},
}
_HEAD_STD = 0.4
_VECTOR_STD = 0.2


def tiny_model(
    family: str,
    *,
    layers: int = 5,
    vocab_size: int = 101,
    seed: int = 0,
    attn_implementation: str | None = None,
    **config_overrides: Any,
) -> PreTrainedModel:
    """Build a small random float32 model of one family, in eval mode.

    Equal arguments give equal weights, and the global random state of torch is left as it was.

    Args:
        family: a transformers model type, for instance one of `FAMILIES`.
        layers: number of decoder layers.
        vocab_size: rows of the embedding; ids 0, 1 and 2 are padding, start and end of sequence.
        seed: seed of all weights.
        attn_implementation: "eager" or "sdpa"; None leaves the choice to transformers.
        config_overrides: configuration values that win over the ones chosen here.

    Raises:
        ValueError: transformers does not know the family, or it refuses the configuration.
    """
    if family not in CONFIG_MAPPING:
        raise ValueError(f"unknown family {family!r}: use a transformers model type, e.g. 'llama'")
    values = _config_values(family, layers) | {"vocab_size": vocab_size} | config_overrides
    config = AutoConfig.for_model(family, **values)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        auto_class: Any = AutoModelForCausalLM  # transformers leaves it untyped
        model = auto_class.from_config(
            config, dtype=torch.float32, attn_implementation=attn_implementation
        )
        _randomise(model, _EMBEDDING_STD.get(family, 2.0))
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(model.generation_config, name, getattr(config, name))
    return cast(PreTrainedModel, model.eval())


def _config_values(family: str, layers: int) -> dict[str, Any]:
    """The tiny sizes, narrowed to the settings that the family has."""
    config_class = CONFIG_MAPPING[family]
    known = {field.name for field in fields(config_class)} | set(config_class.attribute_map)
    values = {name: value for name, value in _SIZES.items() if name in known}
    values["num_hidden_layers"] = layers
    if family in _ALL_SLIDING | _MIXED_SLIDING:
        values["sliding_window"] = _SLIDING_WINDOW
    if family in _LAYER_KINDS:
        kinds = _LAYER_KINDS[family]
        values["layer_types"] = [kinds[index % 2] for index in range(layers)]
    return values | _OVERRIDES.get(family, {})


@torch.no_grad()
def _randomise(model: Any, embedding_std: float) -> None:
    """Redraw the matrices and shift the vectors, so that every parameter matters."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = model.get_output_embeddings().weight
    for parameter in model.parameters():
        if id(parameter) in embeddings:
            nn.init.normal_(parameter, std=embedding_std)
        elif parameter is head:
            nn.init.normal_(parameter, std=_HEAD_STD)
            parameter[EOS_ID].mul_(0.5)  # ends a sequence now and then, not all the time
        elif parameter.dim() >= 2:
            fan = sum(parameter.shape[-2:]) / 2  # also right for matrices stored transposed
            nn.init.normal_(parameter, std=fan**-0.5)
        else:  # norm weights, biases
            parameter.add_(_VECTOR_STD * torch.randn_like(parameter))
