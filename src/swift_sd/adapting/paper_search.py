"""The paper's search for the sublayers to skip (SWIFT, 4.1 and 5.1)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from swift_sd.adapting.objective import Array, layer_set_of, sublayer_bits
from swift_sd.adapting.search import is_matchness
from swift_sd.errors import ConfigError
from swift_sd.model.layer_set import LayerSet

Suggest = Callable[[Array, Array, int], Array]

INTERVAL = 25  # every so many candidates, one is a suggestion of the optimiser
GOOD_ENOUGH = 0.95  # matchness
PATIENCE = 300  # candidates in a row without improvement
MOST = 1000  # candidates
KAPPA = 2.5  # of the upper confidence bound
ALPHA = 1e-2  # of the Gaussian process: variance of a score
POINTS = 10_000  # at random, of which the best are looked at
CLIMBS = 10  # from so many of them by gradient


class PaperSearch:
    """The paper's: random sets of one size, now and then one from Bayesian optimisation.

    The best score counts, however lucky (SWIFT, 4.1).

    Args:
        depth: layers of the model.
        skip_ratio: of the sublayers that may be skipped, above 0 and at most 1.
        seed: of the candidates.
        suggest: from scored sets `[n, sublayers]`, scores `[n]` and a seed, how much each sublayer
            should be skipped.

    Attributes:
        best, best_score: the set in use, and the matchness it was once seen to have.
        told, ignored: scores that counted, and that were no matchness.

    Raises:
        ConfigError: the skip ratio is out of range.
    """

    def __init__(
        self, depth: int, skip_ratio: float, seed: int = 0, suggest: Suggest | None = None
    ) -> None:
        if not 0 < skip_ratio <= 1:
            raise ConfigError(f"skip_ratio is {skip_ratio}; it must be above 0 and at most 1")
        self.best = LayerSet.unified(depth)
        self.told = self.ignored = 0
        self._size = 2 * max(depth - 2, 0)
        # The tiny term makes 0.29 · 100 count as 29 in spite of rounding.
        self._count = math.floor(self._size * skip_ratio + 1e-9)
        self._random = np.random.default_rng(seed)
        self._suggest = suggest or upper_confidence_bound
        self._scored: list[tuple[Array, float]] = []
        self.best_score = 0.0
        self._asked = self._unimproved = 0

    @property
    def is_finished(self) -> bool:
        """One of the paper's three rules holds."""
        return (
            self.best_score > GOOD_ENOUGH or self._unimproved >= PATIENCE or self.told >= MOST
        ) or not self._size

    def ask(self) -> LayerSet:
        """The start, then random sets; every 25th is suggested by all scores so far."""
        self._asked += 1
        if self._asked == 1 or not self._size:
            return LayerSet.unified(self.best.depth)
        if self._asked % INTERVAL or not self._scored:
            wish: Array = self._random.random(self._size)
        else:
            sets, scores = zip(*self._scored, strict=True)
            seed = int(self._random.integers(2**31))
            wish = self._suggest(np.array(sets), np.array(scores), seed)
        bits = np.zeros(self._size)
        bits[np.argsort(-wish, kind="stable")[: self._count]] = 1
        return layer_set_of(self.best.depth, bits)

    def tell(self, layer_set: LayerSet, score: float, trials: int) -> None:
        """See `Search`."""
        layer_set.check_depth(self.best.depth)
        if not is_matchness(score, trials):
            self.ignored += 1
            return
        self.told += 1
        self._unimproved += 1
        self._scored.append((sublayer_bits(layer_set), score))
        if score > self.best_score:
            self.best, self.best_score, self._unimproved = layer_set, score, 0


def upper_confidence_bound(sets: Array, scores: Array, seed: int) -> Array:
    """Where a Gaussian process sees the highest bound of the score, `[sublayers]`, 0 to 1.

    Of many points at random the best are starts for ascents by gradient, as published: in so many
    dimensions the best point at random is a poor one. The process is fitted once, where
    `BayesianOptimization.suggest` would fit it six times.
    """
    # Heavy: only the paper's search pays for it.
    from bayes_opt.acquisition import UpperConfidenceBound
    from bayes_opt.target_space import TargetSpace
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import Matern

    names = [f"{index:04d}" for index in range(sets.shape[1])]
    space = TargetSpace(None, dict.fromkeys(names, (0.0, 1.0)))
    # A set scored twice is one point with the mean score: the library complains of others aloud.
    points, which = np.unique(sets, axis=0, return_inverse=True)
    means = np.bincount(which, weights=scores) / np.bincount(which)
    for bits, score in zip(points, means, strict=True):
        space.register(params=bits, target=float(score))
    process = GaussianProcessRegressor(Matern(nu=2.5), alpha=ALPHA, normalize_y=True)
    bound = UpperConfidenceBound(kappa=KAPPA)
    wish = bound.suggest(process, space, n_random=POINTS, n_smart=CLIMBS, random_state=seed)
    return np.asarray(wish, dtype=np.float64)
