"""From what was typed to what the library takes; contradictions are refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from swift_sd.config import DRAFT_BITS, SwiftConfig
from swift_sd.errors import ConfigError, PromptError
from swift_sd.model.layer_set import LayerSet

BYTE_ORDER_MARK = "\ufeff"  # with which some editors and shells begin text, no part of it
BITS: dict[str | None, Any] = {str(bits): bits for bits in DRAFT_BITS}  # as they are typed


def draft_config(
    plain: bool,
    layer_set: Path | None,
    max_draft_tokens: int | None,
    early_stop: float | None,
    exact: str | None,
    draft_bits: str | None,
    keep_copies: bool,
) -> SwiftConfig:
    """How to draft.

    Raises:
        ConfigError: a value is out of range, or `--plain` comes with options of drafting.
        LayerSetError: the file cannot be read or holds no layer set.
    """
    given = {
        "layer_set": layer_set,
        "max_draft_tokens": max_draft_tokens,
        "early_stop": early_stop,
        "exact": exact,
        "draft_bits": BITS.get(draft_bits, draft_bits),
        "keep_copies": keep_copies or None,
    }
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if not plain:
        return SwiftConfig(
            **values | ({"layer_set": LayerSet.load(layer_set)} if layer_set else {})
        )
    for name in values:
        option = f"--{name.replace('_', '-')}"
        raise ConfigError(f"--plain drafts nothing, so {option} has no meaning: drop one of them")
    return SwiftConfig.plain()


def profile_of(option: str) -> str | None:
    """What `Swift` takes for `--profile`."""
    return None if option == "none" else option


def sampling_arguments(
    temperature: float, top_p: float | None, top_k: int | None
) -> dict[str, Any]:
    """Arguments of `generate` that say how a token is chosen.

    Numbers that the checkpoint's generation config proposes for sampling do not count: what is not
    given is off. The rest of it (repetition penalty …) stays.

    Raises:
        ConfigError: sampling options without a temperature.
    """
    if temperature > 0:
        chosen = {"temperature": temperature, "top_p": top_p or 1.0, "top_k": top_k or 0}
        return {"do_sample": True, **chosen}
    for option, value in (("--top-p", top_p), ("--top-k", top_k)):
        if value is not None:
            raise ConfigError(f"{option} is for sampling: add --temperature above 0, or drop it")
    # None and not 1.0: transformers then has no sampling flag to warn about.
    return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


def checked_text(name: str, text: str | None) -> str | None:
    """`text` as given, if a tokenizer can read it.

    Raises:
        PromptError: bytes that are not UTF-8 came from the command line or from stdin.
    """
    try:
        if text is not None:
            text.encode("utf-8")
    except UnicodeEncodeError:
        raise PromptError(f"{name} is not UTF-8 text: convert it first") from None
    return text
