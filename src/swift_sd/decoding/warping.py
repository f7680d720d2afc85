"""From logits to the token that is chosen: logits processors, noise, the best of the rest."""

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
    comes out, with the tokens before it. Guesses may leave processors out, at the cost of
    acceptance but not of exactness: those written by users and those with a state are not disturbed
    by guesses.

    Args:
        processors: as `generate` prepared them, temperature and the like included.
        do_sample: whether tokens are drawn or the most likely one is taken.
    """

    def __init__(self, processors: LogitsProcessorList, do_sample: bool) -> None:
        self.do_sample = do_sample
        self._all = processors
        self._pure = LogitsProcessorList(filter(_is_pure, processors))

    @property
    def is_argmax(self) -> bool:
        """Whether the target's choice is the argmax of its logits, whatever came before."""
        return not self.do_sample and not self._all

    @property
    def is_pure(self) -> bool:
        """Whether `guess` and `scores` are the same."""
        return len(self._pure) == len(self._all)

    @property
    def needs_prefix(self) -> bool:
        """Whether `guess` looks at the tokens before."""
        return bool(self._pure)

    def scores(self, prefix: Tensor, logits: Tensor) -> Tensor:
        """Processed scores `[1, vocabulary]`, float32, of the token after `prefix` `[1, n]`."""
        return _apply(self._all, prefix, logits)

    def guess(self, prefix: Tensor, logits: Tensor) -> Tensor:
        """The same without processors that must not see guesses."""
        return _apply(self._pure, prefix, logits)


def race(scores: Tensor, noise: Tensor | None) -> Tensor:
    """Weights of which the token to choose has the largest; probabilities where there is no noise.

    Args:
        scores: `[1, vocabulary]`, float32.
        noise: exponential numbers of the same shape when sampling; None takes the best score.
    """
    chances = scores.softmax(dim=-1)
    return chances if noise is None else chances / noise


def winner(scores: Tensor, noise: Tensor | None) -> int:
    """The token to choose, to the bit the one that `generate` takes.

    Raises:
        RuntimeError: there is no distribution to draw from; `torch.multinomial` says so too.
    """
    if noise is None:
        return int(scores.argmax())
    best, token = race(scores, noise)[0].max(dim=-1)
    if bool(best.isnan()):  # which wins against every number
        raise RuntimeError(
            "the scores to sample from contain NaN or infinity: the model in this dtype, or a "
            "logits processor, has overflowed; use a wider dtype"
        )
    return int(token)


def leads(scores: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """For each row of scores `[rows, vocabulary]` the best token, its lead and its score.

    The lead is by how much its score, noise included, exceeds the second best; in logits.
    """
    noisy = scores if noise is None else scores - noise.log()
    best = noisy.max(dim=-1, keepdim=True)
    second = noisy.scatter(-1, best.indices, -torch.inf).amax(dim=-1)
    lead = best.values[:, 0] - second
    return best.indices[:, 0], lead, scores.gather(-1, best.indices)[:, 0]


def _apply(processors: LogitsProcessorList, prefix: Tensor, logits: Tensor) -> Tensor:
    # A copy, as in transformers: processors may write into what they are given.
    ids: Any = prefix
    copied: Any = logits.to(ids.device, torch.float32, copy=True)
    return processors(ids, copied)


def _is_pure(processor: LogitsProcessor) -> bool:
    kind = type(processor)
    return kind.__module__ == logits_process.__name__ and kind.__name__ not in STATEFUL
