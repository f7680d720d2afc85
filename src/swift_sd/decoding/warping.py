"""From logits to the distribution that is decoded: logits processors on both sides."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation import logits_process

# Processors of transformers whose result depends on more than their two arguments.
STATEFUL = {
    "PrefixConstrainedLogitsProcessor",  # calls a function of the user's
    "SynthIDTextWatermarkLogitsProcessor",
    "UnbatchedClassifierFreeGuidanceLogitsProcessor",  # runs the model a second time
}


class Warping:
    """Applies the logits processors of one request.

    The target's side is lossless by order: each processor is called once for every token that
    comes out, with the tokens before it. The draft's side may leave processors out, at the cost of
    acceptance but not of exactness: those written by users and those with a state are not disturbed
    by guesses.

    Args:
        processors: as `generate` prepared them, temperature and the like included.
        do_sample: whether tokens are drawn or the most likely one is taken.
    """

    def __init__(self, processors: LogitsProcessorList, do_sample: bool) -> None:
        self.do_sample = do_sample
        self._target = processors
        self._draft = LogitsProcessorList(filter(_is_pure, processors))

    @property
    def is_argmax(self) -> bool:
        """Whether the target's choice is the argmax of its logits, whatever came before."""
        return not self.do_sample and not self._target

    @property
    def draft_needs_prefix(self) -> bool:
        """Whether `draft_scores` looks at the tokens before."""
        return bool(self._draft)

    def target_scores(self, prefix: Tensor, logits: Tensor) -> Tensor:
        """Processed scores `[1, vocabulary]`, float32, of the token after `prefix` `[1, n]`."""
        return _apply(self._target, prefix, logits)

    def draft_scores(self, prefix: Tensor, logits: Tensor) -> Tensor:
        """The same on the draft's side, without processors that must not see guesses."""
        return _apply(self._draft, prefix, logits)


def _apply(processors: LogitsProcessorList, prefix: Tensor, logits: Tensor) -> Tensor:
    # A copy, as in transformers: processors may write into what they are given.
    ids: Any = prefix
    copied: Any = logits.to(ids.device, torch.float32, copy=True)
    return processors(ids, copied)


def _is_pure(processor: LogitsProcessor) -> bool:
    kind = type(processor)
    return kind.__module__ == logits_process.__name__ and kind.__name__ not in STATEFUL
