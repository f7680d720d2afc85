"""What a checkpoint's generation config says, told from what a caller asks for."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers.generation.logits_process import PrefixConstrainedLogitsProcessor

from swift_sd.decoding.options import NEUTRAL, refusal, unsupported_options
from swift_sd.decoding.request import is_callers
from swift_sd.model.kv_cache import generate_cache_name

ROWS = ("num_beams", "num_return_sequences")  # each prompt is repeated for these
INTERNALS = ("output_attentions", "output_hidden_states")
CACHES = {"use_cache", "cache_implementation"}


def replaced_options(arguments: Mapping[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """Options that are the checkpoint's own and cannot be honoured, with what replaces them.

    Args:
        arguments: of `generate`. What is among them is the caller's; so is what their
            `generation_config` says, unless the checkpoint says the same.
    """
    own, given = model.generation_config, arguments.get("generation_config")
    return {
        name: NEUTRAL[name]
        for name in unsupported_options(own)
        if name not in arguments and getattr(given, name, None) in (None, getattr(own, name))
    }


class CheckpointOptions:
    """Replaces options that only the checkpoint asks for and that cannot be honoured.

    Beams, a static cache, no cache: who uses such a checkpoint has not asked for them, and on the
    command line could not drop them. They give way to greedy decoding or sampling of one sequence.
    Each is warned of once.

    Attributes:
        model: whose checkpoint it is.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._told: set[str] = set()

    def replaced(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of `generate` with what replaces the checkpoint's among them.

        A `generation_config` gets it in a copy: transformers warns of one beside other options.
        What is None there would be looked up in the checkpoint again, so None stands beside it.
        """
        options = replaced_options(arguments, self.model)
        self._tell(options)
        given = arguments.get("generation_config")
        if given is None or not options:
            return {**arguments, **options}
        config = copy.deepcopy(given)
        for name, value in options.items():
            setattr(config, name, value)
        beside = {name: None for name, value in options.items() if value is None}
        return {**arguments, **beside, "generation_config": config}

    def prepared(
        self,
        tokens: Tensor,
        processors: LogitsProcessorList,
        options: GenerationConfig,
        model_kwargs: dict[str, Any],
    ) -> tuple[Tensor, GenerationConfig, dict[str, Any]]:
        """Tokens, options and model_kwargs as transformers would prepare them without.

        `model.generate` merges both configs before its `custom_generate` callable is called with
        these: an option that has the checkpoint's value is taken for the checkpoint's.

        Raises:
            UnsupportedArgument: what was prepared for several rows is of no use for one.
        """
        own = self.model.generation_config
        unsupported = unsupported_options(options)
        names = {n for n in unsupported if getattr(options, n) == getattr(own, n, None)}
        if not names:
            return tokens, options, model_kwargs
        changed = copy.copy(options)
        for name in names:
            setattr(changed, name, NEUTRAL[name])
        kwargs = {name: value for name, value in model_kwargs.items() if name not in INTERNALS}
        cache = generate_cache_name()
        given = kwargs.get(cache)  # a caller's may be empty, and count as false
        if names & CACHES and not (given is not None and is_callers(given)):
            kwargs[cache] = DynamicCache(config=self.model.config.get_text_config(decoder=True))
        if names & {*ROWS}:
            _check_one_row_will_do(names, processors, options, kwargs)
            every = max(getattr(options, name) or 1 for name in ROWS)
            kwargs = {
                name: value[::every] if isinstance(value, Tensor) and value.ndim > 1 else value
                for name, value in kwargs.items()
            }
            tokens = tokens[::every]
        self._tell(names)
        return tokens, changed, kwargs

    def _tell(self, names: Iterable[str]) -> None:
        new = sorted({*names} - self._told)
        if not new:
            return
        self._told.update(new)
        own = self.model.generation_config
        said = ", ".join(f"{name}={getattr(own, name)!r}" for name in new)
        warnings.warn(
            f"the model's generation config asks for {said}, which swift-sd does not offer: the "
            "tokens are those of greedy decoding or sampling without; change "
            "model.generation_config, and there is no warning",
            stacklevel=4,
        )


def _check_one_row_will_do(
    names: set[str],
    processors: LogitsProcessorList,
    options: GenerationConfig,
    model_kwargs: dict[str, Any],
) -> None:
    """Refuse where logits processors were made for several rows and may act otherwise on one."""
    is_constrained = any(type(one) is PrefixConstrainedLogitsProcessor for one in processors)
    mask = model_kwargs.get("attention_mask")
    is_padded = mask is not None and not bool((mask == 1).all())
    is_beam_sampling = bool(options.do_sample) and (options.num_beams or 1) > 1
    if is_beam_sampling or is_constrained or is_padded:
        name = next(name for name in ROWS if name in names)
        raise refusal(
            name,
            getattr(options, name),
            f"the model's generation config says so; pass {name}=1, or use swift.generate",
        )
