"""Which sublayers to skip so that most tokens come out in a second: learned from few scores.

Skipping a sublayer multiplies the chance that a drafted token is right by some factor, about the
same whatever else is skipped. So minus the logarithm of matchness is a sum over the skipped
sublayers, whose terms a Bayesian linear regression learns from all sets scored so far. A candidate
is the best set for terms drawn from what is known (Thompson sampling); the set in use is the best
one for their means, so that no lucky score is ever kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from swift_sd.model.layer_set import LayerSet

Array = NDArray[np.float64]

HARM = 0.4  # what a sublayer is expected to do to -log(matchness), per unit of its influence
DOUBT = 0.05  # least standard deviation of such an expectation
MISFIT = 0.03  # standard deviation of what a sum cannot describe
FADE = 0.99  # weight of the scores before: the text changes
STABLE = 10  # scores in a row that change the best set by no more than a sublayer: settled


class RateSearch:
    """Ask for a candidate, tell its score, use `best`.

    Args:
        depth: layers of the model.
        saved: seconds that a draft step loses with each sublayer: attention of layers 1 to
            depth - 2, then their MLPs.
        influence: how much each of them adds to the residual stream, in the same order.
        step: seconds of a draft step that skips nothing.
        verify: seconds of a verification by its number of rows.
        max_draft: longest draft.
        seed: of the candidates.
    """

    def __init__(
        self,
        depth: int,
        saved: Sequence[float],
        influence: Sequence[float],
        step: float,
        verify: Callable[[int], float],
        max_draft: int,
        seed: int = 0,
    ) -> None:
        self._depth = depth
        self._saved: Array = np.asarray(saved, dtype=np.float64)
        self._step = step
        lengths = np.arange(1, max_draft + 1)
        self._lengths = lengths
        self._verify: Array = np.array([verify(int(n) + 1) for n in lengths])
        self._plain = 1 / verify(1)
        expected = HARM * np.clip(np.asarray(influence, dtype=np.float64), 0, 5)
        precision = 1 / (expected + DOUBT) ** 2
        self._prior: Array = np.diag(precision)
        self._prior_mean: Array = precision * expected
        self._evidence: Array = np.zeros(self._prior.shape)
        self._evidence_mean: Array = np.zeros_like(expected)
        self._random = np.random.default_rng(seed)
        self._unchanged = 0
        self.told = 0
        self.best, self.gain = self._best_for(self._mean())

    @property
    def is_settled(self) -> bool:
        """Whether further scores have stopped to change anything."""
        return self._unchanged >= STABLE

    def ask(self) -> LayerSet:
        """A set that may well be better than the best one known."""
        covariance = np.linalg.inv(self._prior + self._evidence)
        drawn = self._random.multivariate_normal(self._mean(), covariance, method="cholesky")
        return self._best_for(np.clip(drawn, 0, None))[0]

    def tell(self, layer_set: LayerSet, matchness: float, tokens: int) -> None:
        """Learn that a set agreed with the target on this fraction of so many tokens.

        What is no fraction is ignored.
        """
        if not 0 <= matchness <= 1 or tokens < 1:
            return
        skipped = np.array([float(bit) for bit in self._bits(layer_set)])
        # Half a token is given to each side, so that none and all have a logarithm.
        share = (matchness * tokens + 0.5) / (tokens + 1)
        variance = (1 - share) / (share * tokens) + MISFIT**2
        self._evidence *= FADE
        self._evidence += np.outer(skipped, skipped) / variance
        self._evidence_mean *= FADE
        self._evidence_mean -= skipped * (math.log(share) / variance)
        before = self._bits(self.best)
        self.best, self.gain = self._best_for(self._mean())
        changed = sum(a != b for a, b in zip(before, self._bits(self.best), strict=True))
        self._unchanged = self._unchanged + 1 if changed <= 1 else 0
        self.told += 1

    def resume(self) -> None:
        """Search on, from what is known: the text has changed."""
        self._unchanged = 0

    def _mean(self) -> Array:
        known = self._prior_mean + self._evidence_mean
        terms = np.linalg.solve(self._prior + self._evidence, known)
        return np.asarray(terms.clip(min=0), dtype=np.float64)

    def _best_for(self, terms: Array) -> tuple[LayerSet, float]:
        """The best set if `terms` were true, and its speed as a multiple of plain decoding's.

        Sublayers in the order of harm per second saved; of all their beginnings the best one.
        """
        order = np.argsort(terms / np.maximum(self._saved, 1e-12), kind="stable")
        chance = np.exp(-np.cumsum(terms[order]))[:, None].clip(max=1 - 1e-9)
        step = np.maximum(self._step - np.cumsum(self._saved[order]), 1e-9)[:, None]
        # Leviathan et al. 2023, equation 1: tokens of a round with a draft of some length.
        tokens = (1 - chance ** (self._lengths + 1)) / (1 - chance)
        rates = (tokens / (self._lengths * step + self._verify)).max(axis=1)
        count = int(rates.argmax()) + 1
        chosen = set(order[:count].tolist())
        inner = self._depth - 2
        attention = frozenset(index + 1 for index in chosen if index < inner)
        mlp = frozenset(index - inner + 1 for index in chosen if index >= inner)
        return LayerSet(self._depth, attention, mlp), float(rates[count - 1]) / self._plain

    def _bits(self, layer_set: LayerSet) -> list[bool]:
        inner = range(1, self._depth - 1)
        return [layer in layer_set.attention for layer in inner] + [
            layer in layer_set.mlp for layer in inner
        ]
