"""Which sublayers to skip: candidates are asked for, their scores told, in any order and number."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from swift_sd.adapting.costs import Costs
from swift_sd.adapting.objective import Array, Harms, Rates, layer_set_of, sublayer_bits
from swift_sd.errors import ConfigError, LayerSetError
from swift_sd.model.layer_set import LayerSet

Verify = Callable[[int], float]
Seed = int | np.random.Generator
Suggest = Callable[[Array, Array, int], Array]

# The paper's search (SWIFT, 4.1 and 5.1).
INTERVAL = 25  # every so many candidates, one is a suggestion of the optimiser
GOOD_ENOUGH = 0.95  # matchness
PATIENCE = 300  # candidates in a row without improvement
MOST = 1000  # candidates
KAPPA = 2.5  # of the upper confidence bound
ALPHA = 1e-2  # of the Gaussian process: variance of a score

# Ours.
FADE = 0.998  # weight of the scores before, with each score
MEMORY = 400  # sets whose scores are kept
RESUMED = 0.25  # the same when the stream has changed
REVISIT = 0.1  # how often the set in use is asked for again,
FLIP = 0.05  # or one that differs from it by a single sublayer,
GROW = 0.7  # or one that skips as much as keeps the acceptance expected
FLOOR = 0.7  # above this
REGRET = 0.01  # of the rate: what is left to win is not worth the search
RECENT = 10  # scores over which that is averaged
STALE = 120  # scores without a gain after which none is expected


class Search(Protocol):
    """A search over layer sets. `ask` and `tell` may come in any order and number."""

    @property
    def best(self) -> LayerSet:
        """The set to draft with."""

    @property
    def is_finished(self) -> bool:
        """Whether more candidates are not expected to help."""

    def ask(self) -> LayerSet:
        """A candidate to score."""

    def tell(self, layer_set: LayerSet, score: float, trials: int) -> None:
        """Learn the matchness of a set, 0 to 1, on `trials` tokens; what is neither is ignored.

        Raises:
            LayerSetError: the set is for another number of layers.
        """


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
        self._best_score = 0.0
        self._asked = self._unimproved = 0

    @property
    def is_finished(self) -> bool:
        """One of the paper's three rules holds."""
        return (
            self._best_score > GOOD_ENOUGH or self._unimproved >= PATIENCE or self.told >= MOST
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
        if not 0 <= score <= 1 or not 1 <= trials < math.inf:
            self.ignored += 1
            return
        self.told += 1
        self._unimproved += 1
        self._scored.append((sublayer_bits(layer_set), score))
        if score > self._best_score:
            self.best, self._best_score, self._unimproved = layer_set, score, 0


def upper_confidence_bound(sets: Array, scores: Array, seed: int) -> Array:
    """Where a Gaussian process sees the highest bound of the score, `[sublayers]`, 0 to 1."""
    from bayes_opt import BayesianOptimization  # heavy: only the paper's search pays for it
    from bayes_opt.acquisition import UpperConfidenceBound

    names = [f"{index:04d}" for index in range(sets.shape[1])]
    optimiser = BayesianOptimization(
        f=None,
        pbounds=dict.fromkeys(names, (0.0, 1.0)),
        acquisition_function=UpperConfidenceBound(kappa=KAPPA),
        random_state=seed,
        verbose=0,
    )
    optimiser.set_gp_params(alpha=ALPHA)
    # A set scored twice is one point with the mean score: the library complains of others aloud.
    points, which = np.unique(sets, axis=0, return_inverse=True)
    means = np.bincount(which, weights=scores) / np.bincount(which)
    for bits, score in zip(points, means, strict=True):
        optimiser.register(params=bits, target=float(score))
    wish = optimiser.suggest()
    return np.array([wish[name] for name in names], dtype=np.float64)


class RateSearch:
    """Ours: whatever set is expected to give most tokens per second, of any size; see `Harms`.

    A candidate follows from one draw of the harms (Thompson sampling): sublayers in the order of
    harm per second saved, and of all beginnings of that order the one with the best rate, or the
    longest that is expected to be accepted often enough to teach something.

    `best` is the set with the highest rate at its expected acceptance: of those scored, of nothing
    skipped, and of the beginnings for the expected harms. What counts is never the best score.

    Args:
        costs: seconds of a step and of its sublayers.
        verify: seconds of a forward of the target by its number of rows; asked anew each time.
        seed: of the candidates, or a generator to draw from.
        max_draft: longest chain.

    Attributes:
        best: the set to draft with.
        told, ignored: scores that counted, and that were no matchness.

    Raises:
        ConfigError: costs are not positive seconds, or what `verify` gives is not.
    """

    def __init__(self, costs: Costs, verify: Verify, seed: Seed = 0, max_draft: int = 25) -> None:
        self._depth = len(costs.attention)
        self._rates = Rates(costs, verify, max_draft)
        self._random = np.random.default_rng(seed)
        self._harms = Harms(max(self._depth - 2, 0), self._random)
        self._scored: dict[LayerSet, tuple[float, float]] = {}  # hits and trials, faded
        self.told = self.ignored = 0
        self.best = LayerSet.none(self._depth)
        self.resume()
        self._choose()

    @property
    def is_finished(self) -> bool:
        """Whether little is left to win, or nothing was won for long.

        Little: knowing the harms exactly would on average, over the draws and over 10 scores, raise
        the rate by less than 1 %. Long: 120 scores without 1 % more. `resume` undoes it.
        """
        few = len(self._regrets) == RECENT and sum(self._regrets) < RECENT * REGRET
        return few or self._stale >= STALE or self._depth < 3

    def gain(self) -> float:
        """The rate expected of `best` as a multiple of plain decoding's, at least 1."""
        return self._rate / self._rates.plain

    def resume(self) -> None:
        """Search on: the stream has changed, and what was learned counts for less."""
        self._fade(RESUMED)
        self._regrets: deque[float] = deque(maxlen=RECENT)
        self._stale, self._mark = 0, 0.0

    def ask(self) -> LayerSet:
        """A set that teaches something, or may well be better than `best`."""
        if self._depth < 3:
            return self.best
        kind, current = self._random.random(), sublayer_bits(self.best)
        if kind < REVISIT and current.any():
            return self.best
        harms = self._harms.draws[self._random.integers(len(self._harms.draws))]
        if kind < REVISIT + FLIP:
            flipped = np.abs(current - np.eye(len(current)))
            rates = self._rates.of(flipped, np.exp(-flipped @ harms))
            rates[~flipped.any(axis=1)] = 0.0
            return layer_set_of(self._depth, flipped[rates.argmax()])
        sets = self._rates.beginnings(harms)[1:]
        if kind < REVISIT + FLIP + GROW:
            count = int((self._harms.acceptance(sets) >= FLOOR).sum())
            return layer_set_of(self._depth, sets[max(count - 1, 0)])
        return layer_set_of(self._depth, sets[self._rates.of(sets, np.exp(-sets @ harms)).argmax()])

    def tell(self, layer_set: LayerSet, score: float, trials: int) -> None:
        """See `Search`."""
        layer_set.check_depth(self._depth)
        if not 0 <= score <= 1 or not 1 <= trials < math.inf:
            self.ignored += 1
            return
        self.told += 1
        self._fade(FADE)
        if layer_set.skip_ratio:
            hits, seen = self._scored.pop(layer_set, (0.0, 0.0))
            self._scored[layer_set] = (hits + score * trials, seen + trials)
        self._choose()
        self._regrets.append(self._rates.regret(sublayer_bits(self.best), self._harms.draws))
        self._stale += 1
        if self.gain() > (1 + REGRET) * self._mark:
            self._stale, self._mark = 0, self.gain()

    def _fade(self, weight: float) -> None:
        latest = list(self._scored.items())[-MEMORY:]
        self._scored = {key: (hits * weight, seen * weight) for key, (hits, seen) in latest}

    def _choose(self, *, anew: bool = False) -> None:
        """Learn from all scores, and take the set that is then expected to be fastest."""
        self._rates.refresh()
        known = np.array([sublayer_bits(layer_set) for layer_set in self._scored])
        acceptance = np.empty(0)
        if len(known):
            hits, trials = np.array(list(self._scored.values())).T
            acceptance = self._harms.learn(known, hits, trials, anew=anew)
        # The harm of an unknown sublayer has no mean to speak of; that of its acceptance counts.
        proposed = self._rates.beginnings(-np.log(np.exp(-self._harms.draws).mean(axis=0)))
        sets = np.concatenate([proposed, known]) if len(known) else proposed
        expected = np.concatenate([self._harms.acceptance(proposed), acceptance])
        rates = self._rates.of(sets, expected)
        self.best = layer_set_of(self._depth, sets[rates.argmax()])
        self._rate = float(rates.max())

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form of what was learned; not of the costs, which are this machine's."""
        scores = [
            {"layer_set": layer_set.to_dict(), "hits": hits, "trials": trials}
            for layer_set, (hits, trials) in self._scored.items()
        ]
        return {"depth": self._depth, "told": self.told, "scores": scores}

    @classmethod
    def from_dict(
        cls, data: Any, costs: Costs, verify: Verify, seed: Seed = 0, max_draft: int = 25
    ) -> RateSearch:
        """A search that knows what `to_dict` wrote; `best` follows from the costs as they are now.

        Raises:
            ConfigError: see `RateSearch`.
            LayerSetError: the data is damaged, or for another number of layers.
        """
        search = cls(costs, verify, seed, max_draft)
        try:
            LayerSet.none(data["depth"]).check_depth(search._depth)
            search.told = int(data["told"])
            for entry in data["scores"]:
                layer_set = LayerSet.from_dict(entry["layer_set"])
                layer_set.check_depth(search._depth)
                score = float(entry["hits"]), float(entry["trials"])
                if not (0 <= score[0] <= score[1] < math.inf and score[1]):
                    raise ValueError(f"{score[0]} hits of {score[1]}")
                search._scored[layer_set] = score
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise LayerSetError(f"the saved search cannot be used: {error}; start anew") from None
        search._choose(anew=True)
        return search
