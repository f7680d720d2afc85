"""The ways of generating that are compared: one small class each, found by name.

A new one is a subclass of `Method` with a name, a sentence and `start`, decorated with `register`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from swift_sd.bench.method import HF, Answer, Method, Outcome, register
from swift_sd.config import SwiftConfig

if TYPE_CHECKING:
    from torch import Tensor

LOOKUP_TOKENS = 5
EARLY_EXIT = 0.7  # of the layers draft
EARLY_EXIT_TOKENS = 5  # transformers' own 20 take far longer where drafts are refused


@register
class Hf(Method):
    """transformers alone."""

    name = HF
    about = "transformers' plain generate"

    def extra(self) -> dict[str, Any]:
        """What this method adds to the arguments of `generate`."""
        return {}

    def start(self) -> Answer:
        """The same each time: nothing is kept between responses."""
        from swift_sd.checkpoint_options import replaced_options

        model: Any = self.subject.model
        extra = self.extra()

        def answer(inputs: dict[str, Tensor], arguments: dict[str, Any]) -> Outcome:
            asked = {**arguments, **extra}
            # Beams and the like that only the checkpoint asks for are no part of any method.
            asked |= replaced_options(asked, model)
            with self._forwards() as forwards:
                output = model.generate(**inputs, **asked)
            ids = output[0, inputs["input_ids"].shape[1] :].tolist()
            # The first one read the prompt, as in `Trace.summary`. Where others draft, it may have
            # accepted tokens too, which flatters them a little.
            rounds = len(forwards) - 1
            return Outcome(ids, {"tokens_per_forward": (len(ids) - 1) / rounds} if rounds else {})

        return answer

    @contextmanager
    def _forwards(self) -> Iterator[list[bool]]:
        """Gains an entry with every forward that runs all layers: not with drafts of the first."""
        seen: list[bool] = []
        config: Any = self.subject.model.config.get_text_config()
        depth = getattr(config, "num_hidden_layers", None)

        def saw(*_: Any) -> None:
            if getattr(config, "num_hidden_layers", None) == depth:
                seen.append(True)

        hook = self.subject.model.register_forward_hook(saw)
        try:
            yield seen
        finally:
            hook.remove()


@register
class HfLookup(Hf):
    """Drafts copied from the prompt."""

    name = "hf-lookup"
    about = f"transformers' prompt lookup, {LOOKUP_TOKENS} tokens"
    may_fail = True

    def extra(self) -> dict[str, Any]:
        """See `Hf.extra`."""
        return {"prompt_lookup_num_tokens": LOOKUP_TOKENS}


@register
class HfAssisted(Hf):
    """Drafts of a second, smaller model."""

    name = "hf-assisted"
    about = "transformers' assisted generation with --draft-model"
    may_fail = True
    needs = "draft_model"

    def extra(self) -> dict[str, Any]:
        """See `Hf.extra`; transformers bridges two vocabularies if they differ in size."""
        subject = self.subject
        extra: dict[str, Any] = {"assistant_model": subject.draft_model}
        if self._sizes_differ:
            tokenizers = (subject.tokenizer, subject.draft_tokenizer)
            extra |= dict(zip(("tokenizer", "assistant_tokenizer"), tokenizers, strict=True))
        return extra

    def unavailable(self) -> str | None:
        """Two vocabularies of one size are taken for the same by transformers."""
        ours, theirs = self.subject.tokenizer, self.subject.draft_tokenizer
        same = self._sizes_differ or theirs is None or theirs.get_vocab() == ours.get_vocab()
        return None if same else "the draft model has another vocabulary of the same size"

    @property
    def _sizes_differ(self) -> bool:
        """What transformers goes by."""
        ours, theirs = self.subject.model, self.subject.draft_model
        assert theirs is not None
        sizes = [model.config.get_text_config().vocab_size for model in (ours, theirs)]
        return bool(sizes[0] != sizes[1])


@register
class HfEarlyExit(Hf):
    """Drafts of the model's own first layers."""

    name = "hf-early-exit"
    about = (
        f"transformers' early exit at {EARLY_EXIT:.0%} of the layers, {EARLY_EXIT_TOKENS} tokens"
    )
    may_fail = True

    @property
    def _exit(self) -> int:
        depth: int = self.subject.model.config.get_text_config().num_hidden_layers
        return max(1, round(EARLY_EXIT * depth))

    @property
    def _base(self) -> Any:
        """The model without its head, whose config transformers changes for a draft."""
        model: Any = self.subject.model
        return getattr(model, model.base_model_prefix, None)

    def extra(self) -> dict[str, Any]:
        """See `Hf.extra`."""
        return {"assistant_early_exit": self._exit}

    def start(self) -> Answer:
        """See `Hf.start`; whatever happens, the model is left as it was.

        How many tokens are drafted, transformers reads from the model alone, not from arguments.
        """
        answer, config = super().start(), self._base.config
        generation: Any = self.subject.model.generation_config
        depth, drafted = config.num_hidden_layers, generation.num_assistant_tokens

        def safely(inputs: dict[str, Tensor], arguments: dict[str, Any]) -> Outcome:
            generation.num_assistant_tokens = EARLY_EXIT_TOKENS
            try:
                return answer(inputs, arguments)
            finally:
                config.num_hidden_layers = depth
                generation.num_assistant_tokens = drafted

        return safely

    def unavailable(self) -> str | None:
        """Early exit works by lowering a number in the config, which not every model minds."""
        import torch

        from swift_sd.model.sublayers import find_sublayers

        model: Any = self.subject.model
        base, reached = self._base, list[bool]()
        config: Any = getattr(base, "config", None)
        if base is None or not hasattr(config, "num_hidden_layers"):
            return "transformers cannot end a forward of this architecture early"
        depth, watch = config.num_hidden_layers, None
        try:
            layers: Any = model.get_submodule(".".join(find_sublayers(model).path))
            watch = layers[-1].register_forward_pre_hook(lambda *_: reached.append(True))
            config.num_hidden_layers = self._exit
            with torch.no_grad():
                base(torch.zeros(1, 2, dtype=torch.long, device=model.device), use_cache=False)
        except Exception as error:  # whatever a model makes of a config that does not fit it
            return f"the model cannot end a forward early ({type(error).__name__})"
        finally:
            config.num_hidden_layers = depth
            if watch is not None:
                watch.remove()
        return "this architecture runs all its layers all the same" if reached else None


@register
class Plain(Method):
    """Our loop without drafts: what the loop itself costs."""

    name = "plain"
    about = "swift-sd's loop, no drafting"

    def config(self) -> SwiftConfig:
        """How the Swift object is set up."""
        return SwiftConfig.plain()

    def start(self) -> Answer:
        """A Swift object that has seen nothing yet."""
        from swift_sd.swift import Swift

        swift = Swift(self.subject.model, self.subject.tokenizer, self.config())

        def answer(inputs: dict[str, Tensor], arguments: dict[str, Any]) -> Outcome:
            output: Any = swift.generate(**{**inputs, **arguments})
            assert swift.trace is not None
            ids = output[0, inputs["input_ids"].shape[1] :].tolist()
            return Outcome(ids, swift.trace.summary())

        return answer


@register
class Default(Plain):
    """What a user gets who sets nothing."""

    name = "swift"
    about = "swift-sd as it comes"

    def config(self) -> SwiftConfig:
        """See `Plain.config`."""
        return SwiftConfig()


@register
class Paper(Plain):
    """The published method."""

    name = "swift-paper"
    about = "swift-sd with the paper's settings"

    def config(self) -> SwiftConfig:
        """See `Plain.config`."""
        return SwiftConfig.paper()


@register
class Fixed(Plain):
    """Sublayers chosen beforehand."""

    name = "swift-fixed"
    about = "swift-sd with the sublayers of --layer-set skipped"
    needs = "layer_set"

    def config(self) -> SwiftConfig:
        """See `Plain.config`."""
        return SwiftConfig(layer_set=self.subject.layer_set)
