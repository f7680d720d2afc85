"""Our search for the sublayers to skip: most tokens per second, of any size, in few scores."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from swift_sd.adapting.costs import Costs
from swift_sd.adapting.harms import LEAST_MISFIT, MISFIT, Harms
from swift_sd.adapting.objective import Array, Rates, layer_set_of, sublayer_bits
from swift_sd.adapting.search import is_matchness
from swift_sd.errors import LayerSetError
from swift_sd.model.layer_set import LayerSet

Verify = Callable[[int], float]

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
PATIENCE = 16  # such scores after which there is no hurry any more


@dataclass(frozen=True)
class _Score:
    """A set's bits, and on how many of how many tokens it agreed: old ones fade."""

    bits: Array
    hits: float
    trials: float

    def plus(self, hits: float, trials: float) -> _Score:
        return replace(self, hits=self.hits + hits, trials=self.trials + trials)

    def faded(self, weight: float) -> _Score:
        return replace(self, hits=self.hits * weight, trials=self.trials * weight)


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
        seed: of the candidates.
        max_draft: longest chain.
        hints: how much each sublayer seems to matter before any score; see `Harms`.
        rounded: whether drafts read rounded weights: they then err with nothing skipped, too.

    Attributes:
        best: the set to draft with.
        told, ignored: scores that counted, and that were no matchness.

    Raises:
        ConfigError: costs are not positive seconds, or what `verify` gives is not.
    """

    def __init__(
        self,
        costs: Costs,
        verify: Verify,
        seed: int = 0,
        max_draft: int = 25,
        hints: Sequence[float] = (),
        *,
        rounded: bool = False,
    ) -> None:
        self._depth, self._rounded = len(costs.attention), rounded
        self._rates = Rates(costs, verify, max_draft)
        self._random = np.random.default_rng(seed)
        self._harms = Harms(max(self._depth - 2, 0), self._random, hints, rounded=rounded)
        self._scored: dict[LayerSet, _Score] = {}
        self.told = self.ignored = 0
        self.best = LayerSet.none(self._depth)
        self.resume()
        self._choose()

    @property
    def is_finished(self) -> bool:
        """Whether little is left to win, or nothing was won for long.

        Little: knowing the harms exactly would on average, over the draws and over 10 scores, raise
        the rate by less than 1 %. Long: 120 scores without 1 % more. `resume` undoes it, and so
        does a score that is better than can be expected.
        """
        few = len(self._regrets) == RECENT and sum(self._regrets) < RECENT * REGRET
        return few or self._stale >= STALE or self._depth < 3

    @property
    def gain(self) -> float:
        """The rate expected of `best` as a multiple of plain decoding's, at least 1."""
        return self._rate / self._rates.plain

    @property
    def hope(self) -> float:
        """The rate to hope for soon, as a multiple of plain decoding's.

        What is to be expected if all harms were known, the less of it the more scores in a row have
        brought nothing: no more than `gain` after 16 of them.
        """
        return self.gain * (1 + self._regret * max(1 - self._stale / PATIENCE, 0.0))

    def is_of_use(self, score: float, trials: int) -> bool:
        """Whether drafts with `best` may be faster than none, on text where it scored so.

        Args:
            score: its matchness there; it counts as two standard deviations better.
            trials: tokens that it was scored on. What is no matchness says nothing.
        """
        if not is_matchness(score, trials):
            return True
        share = (score * trials + 1) / (trials + 2)
        hoped = min(share + 2 * math.sqrt(share * (1 - share) / (trials + 3)), 1.0)
        rates = self._rates.of(sublayer_bits(self.best)[None], np.array([hoped]))
        return float(rates[0]) > self._rates.plain

    def fork(self) -> RateSearch:
        """A search that goes on by itself from what is known."""
        other = copy.deepcopy(self)
        other.resume()
        return other

    def resume(self) -> None:
        """Search on: the stream has changed, and what was learned counts for less."""
        self._fade(RESUMED)
        self._regrets: deque[float] = deque(maxlen=RECENT)
        self._stale, self._mark = 0, 0.0

    def take_costs(self, costs: Costs) -> None:
        """Go by costs that were measured anew; search on if another set is best by them."""
        before = self.best
        self._rates.take(costs)
        self._choose()
        if self.best != before:
            self.resume()

    def ask(self) -> LayerSet:
        """A set that teaches something, or may well be better than `best`."""
        if self._depth < 3:
            return self.best
        kind, current = self._random.random(), sublayer_bits(self.best)
        if kind < REVISIT and self._tells(self.best):
            return self.best
        draw = self._random.integers(len(self._harms.draws))
        harms, rounding = self._harms.draws[draw], self._harms.rounding[draw]
        if kind < REVISIT + FLIP:
            flipped = np.abs(current - np.eye(len(current)))
            rates = self._rates.of(flipped, np.exp(-flipped @ harms - rounding))
            rates[~flipped.any(axis=1)] = 0.0
            return layer_set_of(self._depth, flipped[rates.argmax()])
        sets = self._rates.beginnings(harms)[1:]
        if kind < REVISIT + FLIP + GROW:
            least = FLOOR * self._harms.acceptance(np.zeros_like(sets[:1]))
            count = int((self._harms.acceptance(sets) >= least).sum())
            return layer_set_of(self._depth, sets[max(count - 1, 0)])
        rates = self._rates.of(sets, np.exp(-sets @ harms - rounding))
        return layer_set_of(self._depth, sets[rates.argmax()])

    def tell(self, layer_set: LayerSet, score: float, trials: int) -> None:
        """See `Search`."""
        layer_set.check_depth(self._depth)
        if not is_matchness(score, trials):
            self.ignored += 1
            return
        self.told += 1
        if self.is_finished and self._surpasses(layer_set, score, trials):
            self.resume()
        self._fade(FADE)
        if self._tells(layer_set):
            before = self._scored.pop(layer_set, None) or _Score(sublayer_bits(layer_set), 0.0, 0.0)
            self._scored[layer_set] = before.plus(score * trials, trials)
        self._choose()
        self._regrets.append(self._regret)
        self._stale += 1
        if self.gain > (1 + REGRET) * self._mark:
            self._stale, self._mark = 0, self.gain

    def _surpasses(self, layer_set: LayerSet, score: float, trials: int) -> bool:
        """Whether a score is better than any draw expects, by 2.5 standard deviations."""
        harms = self._harms.draws @ sublayer_bits(layer_set) + self._harms.rounding
        least = float(harms.min())
        most = math.exp(-least)
        misfit = most * (LEAST_MISFIT + MISFIT * least)
        return score > most + 2.5 * math.sqrt(most * (1 - most) / trials + misfit**2)

    def _tells(self, layer_set: LayerSet) -> bool:
        """Whether its score is not known beforehand."""
        return self._rounded or layer_set.skip_ratio > 0

    def _fade(self, weight: float) -> None:
        latest = list(self._scored.items())[-MEMORY:]
        self._scored = {layer_set: score.faded(weight) for layer_set, score in latest}

    def _choose(self, *, anew: bool = False) -> None:
        """Learn from all scores, and take the set that is then expected to be fastest."""
        self._rates.refresh()
        scores = list(self._scored.values())
        known = np.array([score.bits for score in scores])
        acceptance = np.empty(0)
        if scores:
            hits, trials = np.array([(score.hits, score.trials) for score in scores]).T
            acceptance = self._harms.learn(known, hits, trials, anew=anew)
        # The harm of an unknown sublayer has no mean to speak of; that of its acceptance counts.
        proposed = self._rates.beginnings(-np.log(np.exp(-self._harms.draws).mean(axis=0)))
        if scores:  # of what was scored, the scores themselves say more
            proposed = proposed[~(proposed[:, None] == known).all(axis=-1).any(axis=1)]
        sets = np.concatenate([proposed, known]) if scores else proposed
        expected = np.concatenate([self._harms.acceptance(proposed), acceptance])
        rates = self._rates.of(sets, expected)
        self.best = layer_set_of(self._depth, sets[rates.argmax()])
        self._rate = float(rates.max())
        harms = self._harms
        self._regret = self._rates.regret(sublayer_bits(self.best), harms.draws, harms.rounding)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form of what was learned; not of the costs, which are this machine's."""
        scores = [
            {"layer_set": layer_set.to_dict(), "hits": score.hits, "trials": score.trials}
            for layer_set, score in self._scored.items()
        ]
        return {
            "best": self.best.to_dict(),
            "gain": self.gain,
            "told": self.told,
            "finished": self.is_finished,
            "scores": scores,
        }

    def restore(self, data: Any) -> None:
        """Go on from what `to_dict` wrote; `best` follows from the costs as they are now.

        Raises:
            LayerSetError: the data is damaged, or for another number of layers.
        """
        self._scored, self.told, finished = _parsed(data, self._depth)
        self._choose(anew=True)
        if finished:
            self._stale, self._mark = STALE, self.gain


def check_saved(data: Any, depth: int) -> None:
    """Raise `LayerSetError` if `RateSearch.restore` would not take it for so many layers."""
    _parsed(data, depth)


def _parsed(data: Any, depth: int) -> tuple[dict[LayerSet, _Score], int, bool]:
    """Scores, how many there were, and whether the search was at its end."""
    scored: dict[LayerSet, _Score] = {}
    try:
        LayerSet.from_dict(data["best"]).check_depth(depth)
        for entry in data["scores"]:
            layer_set = LayerSet.from_dict(entry["layer_set"])
            layer_set.check_depth(depth)
            hits, trials = float(entry["hits"]), float(entry["trials"])
            if not (0 <= hits <= trials < math.inf and trials):
                raise ValueError(f"{hits} hits of {trials}")
            scored[layer_set] = _Score(sublayer_bits(layer_set), hits, trials)
        if not 1 <= float(data["gain"]) < math.inf:
            raise ValueError(f"a gain of {data['gain']}")
        return scored, int(data["told"]), bool(data["finished"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise LayerSetError(f"the saved search cannot be used: {error}; start anew") from None
