"""The search for the fastest layer set, on scores whose law is known."""

import itertools
import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from swift_sd import LayerSet
from swift_sd.adapting.rate_search import RateSearch


class Planted:
    """Some sublayers do no harm when they are skipped, the others cost acceptance."""

    def __init__(self, depth, harmless, seed, knows=False):
        self.random = np.random.default_rng(seed)
        size = 2 * (depth - 2)
        self.depth = depth
        self.harm = self.random.uniform(0.05, 0.5, size)
        self.free = set(self.random.permutation(size)[: int(harmless * size)].tolist())
        self.harm[list(self.free)] = 0.0
        self.saved = np.where(np.arange(size) < depth - 2, 1.0, 2.0) / (3 * depth)
        hint = (
            self.harm / 0.4 * self.random.uniform(0.7, 1.4, size) if knows else np.full(size, 0.3)
        )
        self.search = RateSearch(depth, self.saved, hint, 1.0, lambda rows: 1.0, 12, seed=seed)

    def chance(self, layer_set):
        return math.exp(-sum(self.harm[i] for i in self.skipped(layer_set)))

    def skipped(self, layer_set):
        inner = self.depth - 2
        return {i - 1 for i in layer_set.attention} | {inner + i - 1 for i in layer_set.mlp}

    def turn(self, tokens=32):
        candidate = self.search.ask()
        right = self.random.binomial(tokens, self.chance(candidate))
        self.search.tell(candidate, right / tokens, tokens)

    def rate(self, layer_set):
        chance = min(self.chance(layer_set), 1 - 1e-9)
        step = 1 - sum(self.saved[i] for i in self.skipped(layer_set))
        return max((1 - chance ** (k + 1)) / (1 - chance) / (k * step + 1) for k in range(1, 13))


@pytest.mark.parametrize("seed", range(4))
def test_with_a_hint_they_are_found_at_once(seed):
    planted = Planted(60, 0.5, seed, knows=True)
    for _ in range(3):
        planted.turn()
    found = planted.skipped(planted.search.best)
    assert len(found & planted.free) >= 0.9 * len(planted.free)
    assert len(found - planted.free) <= 3
    assert planted.search.gain > 1.5


@pytest.mark.parametrize("seed", range(8))
def test_it_comes_near_the_best_of_all_sets(seed):
    planted = Planted(6, 0.3, seed)
    for _ in range(120):
        planted.turn()
    inner = range(1, 5)
    parts = [frozenset(layers) for n in range(5) for layers in itertools.combinations(inner, n)]
    best = max(planted.rate(LayerSet(6, a, m)) for a in parts for m in parts if a or m)
    assert planted.rate(planted.search.best) > 0.93 * best


def test_where_nothing_is_redundant_no_gain_is_promised():
    planted = Planted(30, 0.0, 1)
    for _ in range(60):
        planted.turn()
    assert planted.search.gain < 1.1


def test_it_settles_and_can_be_woken():
    planted = Planted(20, 0.5, 0, knows=True)
    for _ in range(80):
        planted.turn()
    assert planted.search.is_settled
    planted.search.resume()
    assert not planted.search.is_settled


def test_a_change_is_followed():
    planted = Planted(30, 0.5, 2, knows=True)
    for _ in range(60):
        planted.turn()
    now_harmful = sorted(planted.free)[:6]
    planted.harm[now_harmful] = 0.4
    for _ in range(150):
        planted.turn()
    assert len(planted.skipped(planted.search.best) & set(now_harmful)) <= 1


@given(
    st.lists(st.tuples(st.booleans(), st.floats(allow_nan=True), st.integers(-2, 40)), max_size=30)
)
@settings(max_examples=60, deadline=None)
def test_any_sequence_of_asks_and_tells_leaves_a_valid_set(calls):
    search = RateSearch(6, [0.1] * 8, [0.2] * 8, 1.0, lambda rows: 1.0, 5)
    for asks, score, tokens in calls:
        candidate = search.ask() if asks else LayerSet(6, {2}, {3})
        search.tell(candidate, score, tokens)
    assert search.best.depth == 6
    assert math.isfinite(search.gain)


def test_what_is_no_fraction_is_ignored():
    search = RateSearch(6, [0.1] * 8, [0.2] * 8, 1.0, lambda rows: 1.0, 5)
    for score in (math.nan, -0.1, 1.1, math.inf):
        search.tell(search.best, score, 32)
    assert search.told == 0
