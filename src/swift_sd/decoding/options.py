"""Options of `generate` that cannot be honoured, and the values that change nothing."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig

from swift_sd.errors import UnsupportedArgument

ONE_SEQUENCE = "swift-sd decodes one sequence at a time"
OWN_METHOD = "it asks for another decoding method"
NO_INTERNALS = "a verified row may belong to a token that is refused"

# For each option that may be refused the value of plain greedy decoding or sampling.
NEUTRAL: dict[str, Any] = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "penalty_alpha": None,
    "dola_layers": None,
    "prompt_lookup_num_tokens": None,
    "assistant_early_exit": None,
    "output_attentions": False,
    "output_hidden_states": False,
    # transformers drops these three without a word.
    "force_words_ids": None,
    "constraints": None,
    "use_mtp": False,
    "prefill_chunk_size": None,
    "token_healing": False,
    "use_cache": True,
    "cache_implementation": None,
}


def unsupported_options(options: GenerationConfig) -> dict[str, str]:
    """The names of options that cannot be honoured as they are set, and why."""
    chunk = options.prefill_chunk_size
    refused: list[tuple[str, bool, str]] = [
        ("num_beams", (options.num_beams or 1) > 1, ONE_SEQUENCE),
        ("num_return_sequences", (options.num_return_sequences or 1) > 1, ONE_SEQUENCE),
        ("penalty_alpha", bool(options.penalty_alpha), OWN_METHOD),
        ("dola_layers", options.dola_layers is not None, OWN_METHOD),
        ("prompt_lookup_num_tokens", options.prompt_lookup_num_tokens is not None, OWN_METHOD),
        ("assistant_early_exit", options.assistant_early_exit is not None, OWN_METHOD),
        ("output_attentions", bool(options.output_attentions), NO_INTERNALS),
        ("output_hidden_states", bool(options.output_hidden_states), NO_INTERNALS),
        *(
            (name, bool(getattr(options, name, None)), OWN_METHOD)
            for name in ("force_words_ids", "constraints", "use_mtp")
        ),
        ("prefill_chunk_size", chunk is not None and chunk < 1, "it must be 1 or more"),
        ("use_cache", options.use_cache is False, "a draft needs the target's cache"),
        ("token_healing", bool(options.token_healing), "it changes the prompt"),
        (
            "cache_implementation",
            # transformers takes "hybrid", of older checkpoints, for None.
            options.cache_implementation not in (None, "dynamic", "hybrid"),
            "swift-sd brings its own cache",
        ),
    ]
    return {name: reason for name, is_refused, reason in refused if is_refused}


def refuse_options(options: GenerationConfig) -> None:
    """Raise `UnsupportedArgument` for the first option that cannot be honoured."""
    for name, reason in unsupported_options(options).items():
        raise refusal(name, getattr(options, name), reason)


def refusal(argument: str, value: Any, reason: str) -> UnsupportedArgument:
    """The error for an argument of `generate` that is refused, with its remedy."""
    return UnsupportedArgument(
        argument,
        f"{argument}={value!r} is not supported: {reason}; drop it, or call model.generate "
        "without swift-sd",
    )
