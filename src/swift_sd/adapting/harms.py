"""How much each sublayer's absence costs, learned from the scores of whole sets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from swift_sd.adapting.objective import Array

DRAWS = 32  # from the posterior of the harms
SWEEPS = 2  # of Gibbs sampling with each score
BURN_IN = 40  # times that when the draws start anew
EARLY = 10  # times that with the first score, which says most, and fewer with each of the next
SHAPE = 0.5  # of the prior over how little a layer matters: most mean either little or much
LOSS = 0.06  # a priori, in -log(acceptance), from skipping the least harmful tenth of all
MOST_HARM = 10.0  # of one sublayer; exp(-10) is as good as nothing
LEAST_HINT = 0.005  # of the mean hint: what seems to do nothing may still matter
ROUNDING = 0.05  # a priori, in the same unit, from rounded weights
MISFIT = 0.1  # standard deviation of a set from the sum of its harms, as a share of it
LEAST_MISFIT = 0.01


class Harms:
    """How much each sublayer's absence costs acceptance, learned from scores of sets.

    Skipping a sublayer multiplies the acceptance, about as much whatever else is skipped: so
    -log(acceptance) is a sum of harms, none of them negative, and a Bayesian linear regression
    learns them. A matchness p on n tokens tells -log(p) with a variance of (1 - p) / (p · n).

    A priori, the harms of one layer's attention and MLP are exponential with a rate of the layer's
    own, itself from a gamma distribution: few layers are mediocre, and the two resemble each other.
    A hint scales what is expected of a sublayer, and at most as long as nothing was scored without
    it; as the gamma's tails are long, scores soon say more.

    Rounded weights err even with nothing skipped: one more harm, which is part of every score.

    Args:
        layers: those that may be skipped, L. Sublayers are the attentions, then the MLPs.
        random: where draws come from.
        hints: how much each of the 2 · L seems to matter, 0 or more, in any unit; none if all
            seem alike.
        rounded: whether scores are those of rounded weights.

    Attributes:
        draws: of the harms from what is known, `[DRAWS, 2 · L]`.
        rounding: of the harm of rounded weights, `[DRAWS]`; zeros where they are not.
    """

    def __init__(
        self,
        layers: int,
        random: np.random.Generator,
        hints: Sequence[float] = (),
        *,
        rounded: bool = False,
    ) -> None:
        self._random, self._rounded = random, rounded
        self._hints = _relative(hints, 2 * layers)[:, None]
        # The tenth with least harm costs scale · 0.1² / 0.9 for each sublayer if SHAPE is 0.5. Of
        # less than 30 sublayers a tenth would be too few to go by.
        self._scale = LOSS * 0.9 / 0.1**2 / max(2 * layers, 30)
        self._scales: Array = np.full(DRAWS, self._scale)
        rates = random.gamma(SHAPE, 1 / self._scale, size=(DRAWS, layers)).clip(min=1e-9)
        self._most = MOST_HARM * self._hints.clip(max=1)
        drawn = random.exponential(1 / np.tile(rates, 2)) * self._hints[:, 0]
        self.draws: Array = drawn.clip(max=self._most[:, 0])
        self.rounding: Array = np.zeros(DRAWS)
        if rounded:
            self.rounding = random.exponential(ROUNDING, size=DRAWS)

    def acceptance(self, sets: Array) -> Array:
        """Expected over the draws, for sets `[n, 2 · L]` of zeros and ones: `[n]`."""
        harms = sets @ self.draws.T + self.rounding
        return np.asarray(np.exp(-harms).mean(axis=1), dtype=np.float64)

    def learn(self, sets: Array, hits: Array, trials: Array, *, anew: bool = False) -> Array:
        """Move the draws to what all scores together say.

        Args:
            sets: `[n, 2 · L]`.
            hits, trials: tokens on which each set agreed, and of how many, `[n]`.
            anew: whether the draws know nothing of these scores yet, and have far to move.

        Returns:
            The acceptance to expect of each of `sets`, `[n]`: a sum of harms is not the whole
            truth, so that of a set scored often its own scores say more.
        """
        # Half a token to each side, so that none and all have a logarithm.
        seen = -np.log((hits + 0.5) / (trials + 1))
        terms = np.pad(sets, ((0, 0), (0, self._rounded)), constant_values=1.0)
        for _ in range(BURN_IN if anew else max(EARLY - len(sets) // 2, 1)):
            # What is expected steadies the variance: else lucky scores would also count for more.
            expected = self.acceptance(sets)
            share = ((hits + 8 * expected) / (trials + 8)).clip(0.5 / (trials + 1), 1 - 1e-6)
            noise = (1 - share) / (share * trials)
            misfit = (LEAST_MISFIT - MISFIT * np.log(share)) ** 2
            weights = 1 / (noise + misfit)
            self._sweep((terms.T * weights) @ terms, terms.T @ (weights * seen))
        summed = self.acceptance(sets).clip(min=1e-300)
        own = misfit / (misfit + noise) * (seen + np.log(summed))
        return np.asarray((summed * np.exp(-own)).clip(max=1), dtype=np.float64)

    def _sweep(self, precision: Array, evidence: Array) -> None:
        random, count = self._random, self.draws.shape[1]
        # The harms of the sublayers, and behind them that of rounding, if there is any.
        harms = np.concatenate([self.draws.T, self.rounding[None]])[: len(evidence)]
        layers, known = count // 2, precision.diagonal()
        scale = known.clip(min=1e-9)[:, None]
        ratios = precision / scale
        for _ in range(SWEEPS):
            hinted = harms[:count] / self._hints
            both = hinted[:layers] + hinted[layers:]
            rates = random.gamma(SHAPE + 2, size=both.shape) / (self._scales + both)
            spread = rates.sum(axis=0) + 4 / self._scale  # 4: how firmly the scale is believed
            self._scales = random.gamma(SHAPE * layers + 4, size=DRAWS) / spread
            of_rounding = np.full((len(harms) - count, DRAWS), 1 / ROUNDING)
            slopes = np.concatenate([np.tile(rates, (2, 1)) / self._hints, of_rounding])
            height, place = random.exponential(size=harms.shape), random.random(harms.shape)
            unseen = np.flatnonzero(known[:count] < 1e-9)  # no scored set skips them
            harms[unseen] = np.minimum(height[unseen] / slopes[unseen], self._most[unseen])
            # Normal distributions cut off below 0, by slice sampling (Damien & Walker 2001). All
            # that does not depend on the other harms is made ready: this loop is what scores cost.
            base, spare = (evidence[:, None] - slopes) / scale, 2 * height / scale
            for i in random.permutation(np.flatnonzero(known >= 1e-9)):
                now = harms[i]
                step = ratios[i] @ harms - base[i]
                width = np.sqrt(step * step + spare[i])
                middle = now - step
                low, high = np.maximum(middle - width, 0), np.minimum(middle + width, MOST_HARM)
                harms[i] = low + place[i] * np.maximum(high - low, 0)
        self.draws = harms[:count].T
        self.rounding = harms[count:].sum(axis=0)


def _relative(hints: Sequence[float], count: int) -> Array:
    """Hints as multiples of their mean, `[count]`; ones where they say nothing."""
    given = np.asarray(hints, dtype=np.float64)
    if not count or given.shape != (count,) or not np.isfinite(given).all() or not given.mean() > 0:
        return np.ones(count)
    return np.asarray((given / given.mean()).clip(min=LEAST_HINT), dtype=np.float64)
