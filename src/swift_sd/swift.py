"""What a user holds: `Swift`, in front of a model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from swift_sd.adapting.costs import Costs
from swift_sd.adapting.experience import Experience
from swift_sd.adapting.experiences import Experiences
from swift_sd.adapting.profile import Profile
from swift_sd.arguments import check_types, prepared_arguments, with_stop_strings
from swift_sd.checkpoint_options import CheckpointOptions
from swift_sd.config import SwiftConfig
from swift_sd.decoding.request import Output, Request
from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.trace import Step, Trace
from swift_sd.errors import ConfigError, UnsupportedArgument
from swift_sd.model.layer_set import LayerSet
from swift_sd.model.rope import decodable_length
from swift_sd.model.sharding import is_sharded
from swift_sd.model.sublayers import Sublayers
from swift_sd.model.support import check_ready
from swift_sd.prompts import Messages, PromptEncoder
from swift_sd.report import describe
from swift_sd.response import respond
from swift_sd.text import TextPieces

REPORT_CONTEXT = 512  # a report measures plain steps behind so many tokens at most


class Swift:
    """Generates with `model` what `model.generate` would, drafting with the model's own sublayers.

    The model is never changed; its own `generate` works as before, at any time. Two ways to use it:

        out = model.generate(**inputs, custom_generate=swift, max_new_tokens=128)
        out = swift.generate(**inputs, max_new_tokens=128)

    Args:
        model: a decoder-only causal language model of transformers, on one device, in eval mode.
        tokenizer: the model's, with all its tokens; needed by `stream` and for stop strings.
        config: how to draft; None for the defaults. The output does not depend on it.
        profile: what to start from, if anything was learned before: a `Profile`, or the path of
            one. The word "auto" stands for one in the user's cache directory (or
            `$SWIFT_SD_CACHE`), which is also kept up to date behind each response.
        clock: tells the seconds by which everything is measured; a test gives its own.

    Raises:
        UnsupportedModel: sublayers of this architecture cannot be skipped; says why.
        LayerSetError: `config.layer_set` is for a model of another depth.
        ProfileError: the profile cannot be read, is damaged, or for another model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        config: SwiftConfig | None = None,
        profile: Profile | str | Path | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        check_types(model, tokenizer, config, profile)
        self.model = model
        self.tokenizer = tokenizer
        self._encoder = None if tokenizer is None else PromptEncoder(tokenizer)
        self.config = config or SwiftConfig()
        self._own_options = CheckpointOptions(model)
        self._experiences = Experiences(model, self.config, profile, tokenizer, clock)
        self._ignored: dict[tuple[type, str], bool] = {}  # see `Request.checked`
        self._trace: Trace | None = None

    @property
    def sublayers(self) -> Sublayers:
        """What drafts may skip, in the model as it was at the latest response."""
        return self._experience.sublayers

    @property
    def layer_set(self) -> LayerSet:
        """The sublayers that drafts skip."""
        return self._experience.layer_set

    @property
    def profile(self) -> Profile:
        """What was learned so far, to be saved; one that is assigned takes its place.

        Raises:
            ConfigError: with these settings nothing is learned.
            ProfileError: what is assigned is damaged, or for another model.
        """
        return self._experience.profile

    @profile.setter
    def profile(self, profile: Profile) -> None:
        self._experiences.take_over(profile)

    @property
    def search_state(self) -> str:
        """What the search for sublayers to skip is doing, in a sentence or two."""
        return self._experience.words or "nothing is searched for: the settings say what to skip"

    @property
    def speed_notes(self) -> list[str]:
        """What this machine or an installed version lacks for full speed, a sentence each."""
        return self._experience.speed_notes

    @property
    def trace(self) -> Trace | None:
        """The record of the response that was started last; None before the first."""
        return self._trace

    @property
    def context_length(self) -> int | None:
        """The most tokens, prompt included, that can be decoded; None if not known."""
        return decodable_length(self.model.config)

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        streamer: BaseStreamer | None = None,
        **kwargs: Any,
    ) -> Output:
        """As `model.generate`, with the same arguments and the same result.

        Raises:
            UnsupportedArgument: an argument that cannot be honoured, named.
            PromptError: no prompt, more than one, or one beyond the model's context.
        """
        own = partial(self._respond, token_streamer=streamer)
        kwargs["generation_config"] = generation_config
        arguments = prepared_arguments(kwargs, self._own_options, self.tokenizer)
        if streamer is not None:  # transformers hands it the prompt, `__call__` the rest
            arguments["streamer"] = streamer
        output = cast(Any, self.model).generate(inputs, custom_generate=own, **arguments)
        return cast(Output, output)

    def steps(self, inputs: Tensor | None = None, **kwargs: Any) -> Generator[Step]:
        """As `generate`, yielding each round of the loop when it is done.

        Nothing runs between rounds; the generator may be closed at any time. With `memory="name"`
        drafts draw on the tokens of earlier responses of that name alone: see `drafting.memory`.
        """
        memory: str | None = kwargs.pop("memory", None)
        if kwargs.get("streamer") is not None:
            raise UnsupportedArgument("streamer", "streamer goes with generate; steps are a stream")
        arguments = prepared_arguments(kwargs, self._own_options, self.tokenizer)
        request = cast(Any, self.model).generate(inputs, custom_generate=self._prepare, **arguments)
        return self._run(request, request.start(), memory)

    def stream(self, prompt: str | Messages, **kwargs: Any) -> Iterator[str]:
        """Yield the answer as pieces of text.

        Args:
            prompt: text to continue as it stands, or chat messages
                (`[{"role": "user", "content": …}, …]`) for the tokenizer's chat template.
            kwargs: as for `steps`.

        Raises:
            SwiftError: see `encode` and `generate`.
        """
        pieces = TextPieces(self._tokenizer())
        for step in self.steps(**self.encode(prompt), **kwargs):
            yield from pieces.add(step.tokens)
        yield from pieces.finish()

    def encode(self, prompt: str | Messages, /, **template: Any) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, `[1, n]`, of a text or of chat messages.

        Args:
            prompt: as for `stream`. In messages, control tokens such as `<|im_end|>` are text.
            template: for the chat template, as `apply_chat_template` takes it; any name.

        Raises:
            ConfigError: there is no tokenizer, or it has no chat template for the messages.
            PromptError: there is nothing in the prompt, the chat template refuses it, or more
                control tokens were typed into it than there is room for.
            UnsupportedArgument: an argument of `apply_chat_template` about the tokenizer, such as
                `truncation`.
        """
        tokenizer, encoder = self._tokenizer(), self._encoder
        if encoder is None or encoder.tokenizer is not tokenizer:  # another one was assigned
            encoder = self._encoder = PromptEncoder(tokenizer)
        return encoder.encode(prompt, self.model.device, self.context_length, **template)

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        token_streamer: Any = None,
        stop_strings: str | list[str] | None = None,
        **model_kwargs: Any,
    ) -> Output:
        """What `model.generate(custom_generate=swift)` calls.

        transformers keeps `streamer=` and `tokenizer=` from such a callable: with `model.generate`
        give the streamer as `token_streamer=`, and `Swift` the tokenizer; or use `swift.generate`.
        """
        criteria = with_stop_strings(stopping_criteria, stop_strings, self.tokenizer)
        tokens, options, kwargs = self._own_options.prepared(
            input_ids, logits_processor, generation_config, model_kwargs
        )
        kwargs["token_streamer"] = token_streamer
        return self._respond(model, tokens, logits_processor, criteria, options, **kwargs)

    def _respond(self, *given: Any, token_streamer: Any = None, **kwargs: Any) -> Output:
        """`__call__` behind `generate`, which has seen all arguments before."""
        request = self._prepare(*given, **kwargs)
        state = request.start()
        if token_streamer is not None:
            state.hear = lambda token: token_streamer.put(torch.tensor([token], device="cpu"))
        for _ in self._run(request, state, None):
            pass
        if token_streamer is not None:
            token_streamer.end()
        return request.result(state)

    def costs(self, context: int = 64) -> Costs:
        """Seconds of a step and of each sublayer behind `context` positions; measured once."""
        return self._experience.costs(context)

    def report(self) -> str:
        """The last response for a person to read: speed, acceptance, and whether it was faster.

        Raises:
            ConfigError: there was no response yet.
        """
        if self._trace is None:
            raise ConfigError("nothing was generated yet; call generate or stream first")
        length = self._trace.prompt_tokens + len(self._trace.token_ids)
        step = None if is_sharded(self.model) else self.costs(min(length, REPORT_CONTEXT)).step
        return describe(self._trace.summary(), step, self._experience.words, self.speed_notes)

    def _prepare(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Request:
        if model is not self.model:
            raise ConfigError("this Swift is for another model object; make one with Swift(model)")
        check_ready(model)
        return Request.checked(
            model,
            input_ids,
            logits_processor,
            stopping_criteria,
            generation_config,
            model_kwargs,
            self._ignored,
        )

    def _run(self, request: Request, state: DecodingState, memory: str | None) -> Generator[Step]:
        """The response, with the model as it is when its first round begins."""
        experience = self._experiences.now()
        trace = self._trace = experience.new_trace(state.length)
        most = self.config.max_draft_tokens
        yield from respond(experience, request, state, trace, most, memory)

    @property
    def _experience(self) -> Experience:
        return self._experiences.latest

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise ConfigError("text needs a tokenizer; make one with Swift(model, tokenizer)")
        return self.tokenizer
