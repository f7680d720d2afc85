"""What a model's rotary embeddings are, as far as drafting has to know."""

from __future__ import annotations

from typing import Any

LENGTH_DEPENDENT = {"dynamic", "longrope"}


def rope_parameters(config: Any) -> list[dict[str, Any]]:
    """The parameters of each rotary embedding; there may be one for each kind of layer.

    Args:
        config: a transformers configuration, of the whole model or of its text part.
    """
    text: Any = config.get_text_config(decoder=True)
    parameters = getattr(text, "rope_parameters", None) or {}
    if "rope_type" in parameters:
        return [parameters]
    return [one for one in parameters.values() if isinstance(one, dict)]


def changes_with_length(config: Any) -> bool:
    """Whether transformers recomputes an embedding, in the model's buffers, as text grows."""
    return any(rope.get("rope_type") in LENGTH_DEPENDENT for rope in rope_parameters(config))


def scales_queries(config: Any) -> bool:
    """Whether attention multiplies queries by a factor that grows with the position (Ministral 3).

    It is 1 at the positions that a trial can reach.
    """
    return any(rope.get("llama_4_scaling_beta") for rope in rope_parameters(config))


def context_length(config: Any) -> int | None:
    """The most positions that the model was made for; None if its configuration does not say."""
    text: Any = config.get_text_config(decoder=True)
    length: int | None = getattr(text, "max_position_embeddings", None)
    if not length:
        return None
    # A rotary embedding that is stretched goes further than it was trained for.
    reach = [
        int(rope["factor"] * (rope.get("original_max_position_embeddings") or length))
        for rope in rope_parameters(config)
        if rope.get("factor")
    ]
    return max([length, *reach])


def decodable_length(config: Any) -> int | None:
    """The most positions that a model of this configuration can be asked for; None if not known."""
    lengths = (context_length(config), trained_length(config))
    return min((length for length in lengths if length is not None), default=None)


def trained_length(config: Any) -> int | None:
    """Up to how many positions a length-dependent embedding stays as it is; None without one."""
    text: Any = config.get_text_config(decoder=True)
    lengths = [
        rope.get("original_max_position_embeddings") or text.max_position_embeddings
        for rope in rope_parameters(config)
        if rope.get("rope_type") in LENGTH_DEPENDENT
    ]
    return min(lengths, default=None)
