"""Arguments of `generate` that have to be seen before transformers sees them."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
    StopStringCriteria,
)

from swift_sd.adapting.profile import Profile
from swift_sd.checkpoint_options import CheckpointOptions
from swift_sd.config import SwiftConfig
from swift_sd.decoding.options import refusal
from swift_sd.decoding.request import KINDS, is_zero
from swift_sd.errors import ConfigError, UnsupportedArgument
from swift_sd.model.sharding import is_sharded

# transformers would drop these without a word, because it is given a decoding method already.
DROPPED = {
    "assistant_model": "the model drafts for itself",
    "custom_generate": "swift-sd is the decoding method",
}


def prepared_arguments(
    arguments: dict[str, Any],
    own_options: CheckpointOptions,
    tokenizer: PreTrainedTokenizerBase | None,
) -> dict[str, Any]:
    """`arguments` with stop strings turned into a criterion, and without kinds of tokens.

    Options that only the checkpoint asks for are replaced where they cannot be honoured.

    transformers keeps the tokenizer that stop strings need from decoding methods like ours, and
    refuses the kinds that many tokenizers return where the model knows of none.

    Raises:
        UnsupportedArgument: one that transformers would silently drop, or kinds other than 0 where
            the model knows of none.
        ConfigError: there are stop strings and no tokenizer.
    """
    for name, reason in DROPPED.items():
        if arguments.get(name) is not None:
            raise UnsupportedArgument(name, f"{name} is not supported: {reason}; drop it")
    replaced, model = own_options.replaced(arguments), own_options.model
    rest = {name: value for name, value in replaced.items() if name not in DROPPED}
    tokenizer = rest.pop("tokenizer", None) or tokenizer
    for name in {*KINDS} & {*rest} - {*inspect.signature(model.forward).parameters}:
        if not is_zero(kinds := rest.pop(name)) and kinds is not None:
            raise refusal(name, f"<{type(kinds).__name__}>", "the model knows no kinds of tokens")
    if _setting("token_healing", rest, model):
        raise UnsupportedArgument(
            "token_healing",
            "token_healing is not supported: transformers keeps the tokenizer that it needs from "
            "decoding methods; call model.heal_tokens first",
        )
    strings = _setting("stop_strings", rest, model)
    if strings is None:
        return rest
    criteria = StoppingCriteriaList(rest.pop("stopping_criteria", None) or [])
    rest["stopping_criteria"] = with_stop_strings(criteria, strings, tokenizer)
    rest.pop("stop_strings", None)
    if rest.get("generation_config") is not None:
        rest["generation_config"] = copy.deepcopy(rest["generation_config"])
        rest["generation_config"].stop_strings = None
    if model.generation_config.stop_strings is not None:  # transformers would take these
        rest["stop_strings"] = None
    return rest


def with_stop_strings(
    criteria: StoppingCriteriaList,
    strings: str | list[str] | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> StoppingCriteriaList:
    """`criteria` and one that ends a response at any of `strings`, if there are any.

    Raises:
        ConfigError: there is no tokenizer.
    """
    if strings is None:
        return criteria
    if tokenizer is None:
        raise ConfigError(
            "stop_strings needs a tokenizer; pass tokenizer=… to swift.generate, or make the "
            "object with Swift(model, tokenizer)"
        )
    known = StoppingCriteriaList(criteria)
    if not any(type(one) is StopStringCriteria for one in known):  # the user's own wins
        known.append(StopStringCriteria(tokenizer=tokenizer, stop_strings=strings))
    return known


def _setting(name: str, arguments: dict[str, Any], model: PreTrainedModel) -> Any:
    """As transformers reads it: an argument wins, then what the user's or the own config says."""
    if name in arguments:
        return arguments[name]
    given = getattr(arguments.get("generation_config"), name, None)
    return given if given is not None else getattr(model.generation_config, name, None)


def check_types(model: Any, tokenizer: Any, config: Any, profile: Any) -> None:
    """Raise `ConfigError` if an argument of `Swift` is of a type that it cannot be.

    Or if the model is split over processes, and they could come to do different steps.
    """
    if not isinstance(model, PreTrainedModel):
        raise ConfigError(
            f"model is a {type(model).__name__}; give a transformers model "
            "(AutoModelForCausalLM.from_pretrained loads one)"
        )
    if isinstance(tokenizer, SwiftConfig):
        raise ConfigError("a SwiftConfig was given as the tokenizer; write config=…")
    if config is not None and not isinstance(config, SwiftConfig):
        raise ConfigError(f"config is a {type(config).__name__}; give a SwiftConfig")
    if profile is not None and not isinstance(profile, Profile | str | Path):
        raise ConfigError(
            f"profile is a {type(profile).__name__}; give a Profile, the path of one, or the word "
            '"auto"'
        )
    given = config or SwiftConfig()
    if is_sharded(model) and not given.needs_no_clock:
        raise ConfigError(
            "the model is split over several processes, which must all do the same steps: give a "
            "SwiftConfig with early_stop=0.8, so that measured times decide nothing, or "
            "SwiftConfig.plain()"
        )
