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
from transformers.generation.utils import GenerateDecoderOnlyOutput

from swift_sd.decoding.options import refusal, refuse_options
from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.stopping import Stopping
from swift_sd.decoding.warping import Warping
from swift_sd.errors import PromptError, UnsupportedArgument
from swift_sd.model.kv_cache import CACHE_NAMES, KVCache, generate_cache_name, read_prefix
from swift_sd.model.rope import context_length, trained_length
from swift_sd.model.sharding import is_sharded
from swift_sd.versions import CACHES_ARE_MARKED

Output = Tensor | GenerateDecoderOnlyOutput  # of `generate`

RESERVE = 1024  # cache positions to allocate beyond the prompt at most; more grow when needed
STEP = 256  # to which the number of positions is rounded up
HONOURED = {"attention_mask", *CACHE_NAMES, "use_cache", "logits_to_keep"}
POSITIONS = ("position_ids", "cache_position")
KINDS = ("token_type_ids", "mm_token_type_ids")  # of tokens; 0 is text
IDS_ONLY = "swift-sd passes token ids only to the model"
NEUTRAL = {"is_causal": True, "return_dict": True}  # the values that say nothing new


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
        ignored: dict[tuple[type, str], bool] | None = None,
    ) -> Request:
        """What arrives at a `custom_generate` callable, as a request.

        Args:
            ignored: which kinds of tokens were found to be ignored where they are zero, by class of
                model and name; what is found out now is added.

        Raises:
            UnsupportedArgument: an argument cannot be honoured; it is named.
            PromptError: the prompt is empty, has several rows, or does not fit the model's context.
        """
        refuse_options(options)
        kinds = _kinds_of_zeros(model_kwargs)
        _check_prompt(tokens)
        _refuse_kinds(model, tokens, kinds, {} if ignored is None else ignored)
        if is_sharded(model) and any(isinstance(one, MaxTimeCriteria) for one in criteria):
            raise refusal("max_time", options.max_time, "the processes' clocks would not agree")
        depth = model.config.get_text_config(decoder=True).num_hidden_layers
        past = _past(model_kwargs.get(generate_cache_name()), depth)
        mask, length = _mask(model_kwargs.get("attention_mask"), options)
        unread = _unread(tokens, past, mask, length)
        if mask is not None and is_callers(past):
            raise refusal(
                generate_cache_name(), "<cache>", "the prompt has padding, which is not kept"
            )
        # With padding transformers counts the positions from behind it, as we do.
        for name in POSITIONS:
            _check_positions(name, model_kwargs.get(name), past.get_seq_length(), unread)
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
        return bool(is_callers(self.past_key_values) or (may_be_asked_for and is_whole))

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

    def result(self, state: DecodingState) -> Output:
        """What `generate` returns for the response that `state` has come to the end of."""
        sequences: Any = state.tokens.clone()
        if not self.options.return_dict_in_generate:
            output: Tensor = sequences
            return output
        scores: Any = None if state.scores is None else tuple(state.scores)
        logits: Any = None if state.logits is None else tuple(state.logits)
        kept: Any = {generate_cache_name(): self.past_key_values if self.keeps_cache else None}
        return GenerateDecoderOnlyOutput(sequences=sequences, scores=scores, logits=logits, **kept)


def _kinds_of_zeros(model_kwargs: dict[str, Any]) -> list[str]:
    """Names of those arguments that the model may ignore; others that are not known are refused."""
    kinds = []
    for name, value in model_kwargs.items():
        # transformers adds an empty dictionary for models that know images.
        is_empty = value is None or value is False or (isinstance(value, dict) and not value)
        is_neutral = is_empty or (name in NEUTRAL and value is NEUTRAL[name])
        if is_neutral or name in HONOURED or name in POSITIONS:
            continue
        if name not in KINDS or not is_zero(value):
            raise refusal(name, f"<{type(value).__name__}>", IDS_ONLY)
        kinds.append(name)
    return kinds


def _refuse_kinds(
    model: PreTrainedModel, tokens: Tensor, kinds: list[str], ignored: dict[tuple[type, str], bool]
) -> None:
    for name in kinds:
        key = type(model), name
        if key not in ignored:
            ignored[key] = _ignores_zeros(model, name, tokens)
        if not ignored[key]:
            raise refusal(name, "<Tensor>", IDS_ONLY)


def is_zero(value: Any) -> bool:
    """Whether it is a tensor of zeros."""
    return isinstance(value, Tensor) and not bool(value.any())


def _ignores_zeros(model: PreTrainedModel, name: str, tokens: Tensor) -> bool:
    """Whether zeros for the argument `name` of the forward change nothing.

    Some models, gpt2 for one, add the embedding of token 0 to each of their inputs.
    """
    few = tokens[:1, :2].to(model.device)
    with torch.no_grad():
        without = model(few, use_cache=False).logits
        zeros = {name: torch.zeros_like(few)}
        return torch.equal(model(few, use_cache=False, **zeros).logits, without)


def _past(cache: Any, depth: int) -> DynamicCache:
    if cache is None:
        raise UnsupportedArgument(
            generate_cache_name(),
            "the model keeps no cache that can be shared; ask with use_cache left out",
        )
    if type(cache) is not DynamicCache or getattr(cache, "offloading", False):
        raise refusal(
            generate_cache_name(),
            f"<{type(cache).__name__}>",
            "only a DynamicCache can be continued",
        )
    if not cache.layers:  # made without a config, it would add them when they are written
        new_layer: Any = cache.layer_class_to_replicate
        cache.layers.extend(new_layer() for _ in range(depth))
    return cache


def is_callers(cache: Cache) -> bool:
    """Whether the caller of `generate` gave it; an empty one may be where caches are not marked."""
    return getattr(cache, "_is_user_defined", False) or cache.get_seq_length() > 0


def _mask(mask: Tensor | None, options: GenerationConfig) -> tuple[Tensor | None, int]:
    """The attention mask if it hides anything, and its length if there was one, else -1.

    Since 5.18 transformers drops a mask of ones itself and leaves its length behind.
    """
    if mask is None:
        return None, getattr(options, "_mask_length", -1)
    return (None if bool((mask == 1).all()) else mask), mask.shape[1]


def _check_prompt(tokens: Tensor) -> None:
    if tokens.shape[0] != 1:
        raise PromptError(
            f"the prompt has {tokens.shape[0]} rows; swift-sd decodes one sequence at a time, "
            "so call it once for each"
        )
    if tokens.shape[1] == 0:
        raise PromptError("the prompt is empty; give it at least one token (input_ids)")


def _unread(tokens: Tensor, past: Cache, mask: Tensor | None, mask_length: int) -> Tensor:
    """The tokens that the model has to read, by the rules of transformers' own prefill."""
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


def _check_positions(name: str, positions: Tensor | None, held: int, unread: Tensor) -> None:
    """Positions are counted from 0; others cannot be honoured."""
    if positions is None:
        return
    count = unread.shape[1]
    counted = torch.arange(held, held + count, device=positions.device)
    if positions.shape[-1] < count or not bool((positions[..., -count:] == counted).all()):
        raise refusal(name, "<Tensor>", "swift-sd counts positions from 0")


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
