"""What `generate` prepared for one response: checked, or refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Cache,
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation.stopping_criteria import MaxTimeCriteria

from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.stopping import Stopping
from swift_sd.decoding.warping import Warping
from swift_sd.errors import PromptError, UnsupportedArgument
from swift_sd.model.kv_cache import CACHE_NAMES, KVCache, generate_cache_name, read_prefix
from swift_sd.model.rope import context_length, trained_length
from swift_sd.model.sharding import is_sharded
from swift_sd.versions import CACHES_ARE_MARKED

RESERVE = 1024  # cache positions to allocate beyond the prompt at most; more grow when needed
STEP = 256  # to which the number of positions is rounded up
HONOURED = {"attention_mask", "position_ids", *CACHE_NAMES, "use_cache", "logits_to_keep"}
OTHER_METHODS = ("force_words_ids", "constraints", "use_mtp")  # which transformers drops silently


@dataclass(frozen=True)
class Request:
    """One call of `generate`.

    Attributes:
        tokens: the prompt, `[1, n]`, int64.
        unread: its tail that the cache given by the user does not hold; `[1, m]`, 1 ≤ m ≤ n.
        past_key_values: transformers' cache, with a prefix if the user gave one.
        options: everything else about the request.
        context: positions that the model was made for, if it says so.
    """

    tokens: Tensor
    unread: Tensor
    past_key_values: DynamicCache
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    options: GenerationConfig
    context: int | None

    @classmethod
    def checked(
        cls,
        model: PreTrainedModel,
        tokens: Tensor,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        options: GenerationConfig,
        model_kwargs: dict[str, Any],
    ) -> Request:
        """What arrives at a `custom_generate` callable, as a request.

        Raises:
            UnsupportedArgument: an argument cannot be honoured; it is named.
            PromptError: the prompt is empty, has several rows, or does not fit the model's context.
        """
        _refuse_options(options)
        _refuse_model_kwargs(model_kwargs)
        if is_sharded(model) and any(isinstance(one, MaxTimeCriteria) for one in criteria):
            raise _refuse("max_time", options.max_time, "the processes' clocks would not agree")
        depth = model.config.get_text_config(decoder=True).num_hidden_layers
        past = _past(model_kwargs.get(generate_cache_name()), depth)
        mask, length = _mask(model_kwargs.get("attention_mask"), options)
        unread = _unread(tokens, past, mask, length)
        if mask is not None and _is_callers(past):
            raise _refuse(
                generate_cache_name(), "<cache>", "the prompt has padding, which is not kept"
            )
        # With padding transformers counts the positions from behind it, as we do.
        _check_positions(model_kwargs.get("position_ids"), past.get_seq_length(), unread)
        new_tokens = options.max_length - tokens.shape[1] if options.max_length else 0
        _check_lengths(model, unread.shape[1] + past.get_seq_length(), new_tokens)
        context = context_length(model.config)
        unread = unread.to(model.device)
        return cls(tokens, unread, past, processors, criteria, options, context)

    @property
    def keeps_cache(self) -> bool:
        """Whether anyone looks at `past_key_values` afterwards, and it can be given to them.

        Padding is not read, so that a cache without it would not fit the ids that it is returned
        with.
        """
        is_whole = self.unread.shape[1] == self.tokens.shape[1]
        may_be_asked_for = self.options.return_dict_in_generate or not CACHES_ARE_MARKED
        return bool(_is_callers(self.past_key_values) or (may_be_asked_for and is_whole))

    def start(self) -> DecodingState:
        """A fresh state for the loop; a prefix given by the user is copied into its cache."""
        windows = [getattr(layer, "sliding_window", None) for layer in self.past_key_values.layers]
        held = self.past_key_values.get_seq_length()
        length = held + self.unread.shape[1]
        stopping = Stopping(self.criteria)
        room = min(stopping.room(self.tokens.shape[1]), RESERVE)
        # In steps, so that responses have tensors of the same form: kernels may be chosen by it.
        cache = KVCache(windows, reserve=-(-(length + int(room)) // STEP) * STEP)
        if held:
            read_prefix(self.past_key_values, cache)
        wants = self.options.return_dict_in_generate
        return DecodingState(
            self.tokens,
            cache,
            Warping(self.processors, bool(self.options.do_sample)),
            stopping,
            device=self.unread.device,
            context=self.context or float("inf"),
            keep_scores=bool(wants and self.options.output_scores),
            keep_logits=bool(wants and self.options.output_logits),
        )


def _refuse(argument: str, value: Any, reason: str) -> UnsupportedArgument:
    return UnsupportedArgument(
        argument,
        f"{argument}={value!r} is not supported: {reason}; drop it, or call model.generate "
        "without swift-sd",
    )


def _refuse_options(options: GenerationConfig) -> None:
    one_sequence = "swift-sd decodes one sequence at a time"
    own_method = "it asks for another decoding method"
    no_internals = "a verified row may belong to a token that is refused"
    refused: list[tuple[str, bool, str]] = [
        ("num_beams", (options.num_beams or 1) > 1, one_sequence),
        ("num_return_sequences", (options.num_return_sequences or 1) > 1, one_sequence),
        ("penalty_alpha", bool(options.penalty_alpha), own_method),
        ("dola_layers", options.dola_layers is not None, own_method),
        ("prompt_lookup_num_tokens", options.prompt_lookup_num_tokens is not None, own_method),
        ("assistant_early_exit", options.assistant_early_exit is not None, own_method),
        ("output_attentions", bool(options.output_attentions), no_internals),
        ("output_hidden_states", bool(options.output_hidden_states), no_internals),
        *((name, bool(getattr(options, name, None)), own_method) for name in OTHER_METHODS),
        (
            "prefill_chunk_size",
            options.prefill_chunk_size is not None and options.prefill_chunk_size < 1,
            "it must be 1 or more",
        ),
        ("use_cache", options.use_cache is False, "a draft needs the target's cache"),
        (
            "cache_implementation",
            options.cache_implementation not in (None, "dynamic"),
            "swift-sd brings its own cache",
        ),
    ]
    for argument, is_refused, reason in refused:
        if is_refused:
            raise _refuse(argument, getattr(options, argument), reason)


def _refuse_model_kwargs(model_kwargs: dict[str, Any]) -> None:
    for name, value in model_kwargs.items():
        is_empty = value is None or (isinstance(value, dict) and not value)
        # transformers adds an empty dictionary for models that know images.
        if name not in HONOURED and not is_empty:
            shown = f"<{type(value).__name__}>"
            raise _refuse(name, shown, "swift-sd passes token ids only to the model")


def _past(cache: Any, depth: int) -> DynamicCache:
    if cache is None:
        raise UnsupportedArgument(
            generate_cache_name(),
            "the model keeps no cache that can be shared; ask with use_cache left out",
        )
    if type(cache) is not DynamicCache or getattr(cache, "offloading", False):
        raise _refuse(
            generate_cache_name(),
            f"<{type(cache).__name__}>",
            "only a DynamicCache can be continued",
        )
    if not cache.layers:  # made without a config, it would add them when they are written
        new_layer: Any = cache.layer_class_to_replicate
        cache.layers.extend(new_layer() for _ in range(depth))
    return cache


def _is_callers(cache: Cache) -> bool:
    """Whether the caller of `generate` gave it; an empty one may be where caches are not marked."""
    return getattr(cache, "_is_user_defined", False) or cache.get_seq_length() > 0


def _mask(mask: Tensor | None, options: GenerationConfig) -> tuple[Tensor | None, int]:
    """The attention mask if it hides anything, and its length if there was one, else -1.

    Since 5.18 transformers drops a mask of ones itself and leaves its length behind.
    """
    if mask is None:
        return None, getattr(options, "_mask_length", -1)
    return (None if bool((mask == 1).all()) else mask), mask.shape[1]


def _unread(tokens: Tensor, past: Cache, mask: Tensor | None, mask_length: int) -> Tensor:
    """The tokens that the model has to read, by the rules of transformers' own prefill."""
    if tokens.shape[0] != 1:
        raise PromptError(
            f"the prompt has {tokens.shape[0]} rows; swift-sd decodes one sequence at a time, "
            "so call it once for each"
        )
    if tokens.shape[1] == 0:
        raise PromptError("the prompt is empty; give it at least one token (input_ids)")
    held = past.get_seq_length()
    if mask is None:
        # A mask as long as the ids says that they are the whole sequence, not only its new part.
        is_whole = mask_length == tokens.shape[1]
        if held and is_whole and held >= tokens.shape[1]:
            raise PromptError(
                f"the given cache holds {held} tokens, all of the prompt; crop it by one at least"
            )
        return tokens[:, held:] if is_whole else tokens
    visible = mask[0] != 0
    first = int(visible.long().argmax())  # a mask may be of any type; argmax takes no bool
    if not bool(visible[first:].all()) or mask.shape[1] != tokens.shape[1]:
        raise UnsupportedArgument(
            "attention_mask",
            "attention_mask hides tokens other than padding on the left; pass a mask of ones "
            "if the prompt contains the padding token, or cut those tokens out",
        )
    return tokens[:, first:]


def _check_positions(positions: Tensor | None, held: int, unread: Tensor) -> None:
    """Positions are counted from 0; others cannot be honoured."""
    if positions is None:
        return
    count = unread.shape[1]
    counted = torch.arange(held, held + count, device=positions.device)
    if positions.shape[-1] < count or not bool((positions[..., -count:] == counted).all()):
        raise _refuse("position_ids", "<Tensor>", "swift-sd counts positions from 0")


def _check_lengths(model: PreTrainedModel, length: int, new_tokens: int) -> None:
    context, trained = context_length(model.config), trained_length(model.config)
    if context is not None and length > context:
        raise PromptError(
            f"the prompt has {length} tokens and the model's context is {context}; shorten it"
        )
    if trained is not None and length + new_tokens > trained:
        raise PromptError(
            f"prompt and answer may reach {length + new_tokens} tokens; beyond {trained} this "
            "model's rotary embedding (dynamic or longrope) changes with the length, which "
            "drafting ahead would disturb; lower max_new_tokens"
        )
