"""Searches on scores whose law is known; any order of asking and telling."""

import itertools
import json
import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from swift_sd import LayerSet
from swift_sd.adapting.costs import Costs
from swift_sd.adapting.objective import Rates, sublayer_bits
from swift_sd.adapting.paper_search import PaperSearch, upper_confidence_bound
from swift_sd.adapting.rate_search import RateSearch
from swift_sd.adapting.search import Search
from swift_sd.errors import ConfigError, LayerSetError


def costs_of(depth):
    return Costs(1.0, (1 / (3 * depth),) * depth, (2 / (3 * depth),) * depth, 0.0, 8)


def plain(rows):
    return 1.0


class Planted:
    """Some layers do no harm when they are skipped, the others cost acceptance."""

    def __init__(self, depth, harmless, seed):
        self.random = np.random.default_rng([seed, 1])  # not the stream of the search
        inner = depth - 2
        layers = self.random.permutation(inner)[:harmless]
        self.harm = self.random.uniform(0.05, 0.5, 2 * inner)
        self.free = np.zeros(2 * inner, dtype=bool)
        self.free[layers] = self.free[layers + inner] = True
        self.harm[self.free] = 0.0
        self.rates = Rates(costs_of(depth), plain, 12)
        self.search = RateSearch(costs_of(depth), plain, seed=seed, max_draft=12)

    def turns(self, count, trials=32):
        for turn in range(count):
            if self.search.is_finished:
                return turn
            candidate = self.search.ask()
            chance = math.exp(-self.harm @ sublayer_bits(candidate))
            self.search.tell(candidate, self.random.binomial(trials, chance) / trials, trials)
        return count

    def rate(self, layer_set):
        bits = sublayer_bits(layer_set)
        return float(self.rates.of(bits, np.exp(-self.harm @ bits)))

    def found(self):
        bits = sublayer_bits(self.search.best).astype(bool)
        return (bits & self.free).sum() / self.free.sum(), (bits & ~self.free).sum()


SEARCHES = {
    "paper": lambda: PaperSearch(6, 0.5, suggest=lambda sets, scores, seed: sets[scores.argmax()]),
    "rate": lambda: RateSearch(costs_of(6), plain, max_draft=5),
}
score = st.one_of(st.floats(0, 1), st.floats(allow_nan=True))


@pytest.mark.parametrize("kind", SEARCHES)
@given(calls=st.lists(st.one_of(st.none(), st.tuples(st.booleans(), score, st.integers(-2, 64)))))
@settings(max_examples=30, deadline=None)
def test_any_sequence_of_asks_and_tells_leaves_a_valid_search(kind, calls):
    search: Search = SEARCHES[kind]()
    heard = 0
    for call in calls:
        if call is None:
            search.ask()
            continue
        asks, value, trials = call
        search.tell(search.ask() if asks else LayerSet(6, {2}, {3}), value, trials)
        heard += 0 <= value <= 1 and trials >= 1
    assert search.best.depth == 6
    assert search.told == heard
    assert search.ask().depth == 6


@pytest.mark.parametrize("kind", SEARCHES)
@pytest.mark.parametrize("value", [math.nan, -0.1, 1.1, math.inf, -math.inf])
def test_what_is_no_matchness_is_counted_and_never_chosen(kind, value):
    search, odd = SEARCHES[kind](), LayerSet(6, {4}, {1})
    before = search.best
    search.tell(odd, value, 32)
    search.tell(odd, 1.0, 0)
    assert (search.told, search.ignored) == (0, 2)
    assert search.best == before


@pytest.mark.parametrize("kind", SEARCHES)
def test_a_set_for_another_model_is_refused(kind):
    with pytest.raises(LayerSetError):
        SEARCHES[kind]().tell(LayerSet.none(7), 0.5, 32)


@pytest.mark.parametrize("kind", SEARCHES)
def test_the_same_seed_asks_the_same(kind):
    first, second = SEARCHES[kind](), SEARCHES[kind]()
    for turn in range(40):
        candidate = first.ask()
        assert candidate == second.ask()
        for search in (first, second):
            search.tell(candidate, turn % 7 / 7, 32)
    assert first.best == second.best


@pytest.mark.parametrize("depth", [1, 2])
def test_where_nothing_may_be_skipped_there_is_nothing_to_search(depth):
    for search in (PaperSearch(depth, 0.5), RateSearch(costs_of(depth), plain)):
        assert search.ask() == search.best == LayerSet.none(depth)
        search.tell(search.best, 1.0, 32)
        assert search.is_finished


class TestPaperSearch:
    def test_it_starts_from_every_second_layer(self):
        search = PaperSearch(9, 0.45)
        assert search.best == search.ask() == LayerSet.unified(9)

    @pytest.mark.parametrize(("depth", "ratio", "count"), [(9, 0.45, 6), (52, 0.29, 29), (3, 1, 2)])
    def test_candidates_skip_exactly_the_ratio_rounded_down(self, depth, ratio, count):
        search = PaperSearch(depth, ratio)
        search.ask()
        for _ in range(20):
            candidate = search.ask()
            assert len(candidate.attention) + len(candidate.mlp) == count

    def test_every_25th_candidate_comes_from_the_optimiser_and_all_scores(self):
        seen = []

        def suggest(sets, scores, seed):
            seen.append(scores.tolist())
            return np.arange(sets.shape[1])

        search = PaperSearch(6, 0.5, suggest=suggest)
        for turn in range(1, 51):
            candidate = search.ask()
            if turn % 25 == 0:
                assert candidate == LayerSet(6, set(), {1, 2, 3, 4})
            search.tell(candidate, turn / 100, 32)
        assert [len(scores) for scores in seen] == [24, 49]
        assert seen[1][:2] == [0.01, 0.02]

    def test_only_a_strictly_better_score_changes_the_best_set(self):
        search = PaperSearch(6, 0.5)
        first, second = LayerSet(6, {1}, {2}), LayerSet(6, {2}, {1})
        search.tell(first, 0.5, 32)
        assert search.best == first
        search.tell(second, 0.5, 32)
        assert search.best == first
        search.tell(second, 0.51, 32)
        assert search.best == second

    def test_it_ends_when_the_score_is_above_095(self):
        search = PaperSearch(6, 0.5)
        search.tell(search.ask(), 0.95, 32)
        assert not search.is_finished
        search.tell(search.ask(), 0.96, 32)
        assert search.is_finished

    def test_it_ends_after_300_candidates_without_improvement(self):
        search = PaperSearch(6, 0.5)
        for _ in range(301):
            assert not search.is_finished
            search.tell(LayerSet.unified(6), 0.3, 32)
        assert search.is_finished

    def test_it_ends_after_1000_candidates(self):
        search = PaperSearch(6, 0.5)
        for turn in range(1000):
            assert not search.is_finished
            search.tell(LayerSet.unified(6), turn / 2000, 32)
        assert search.is_finished

    @pytest.mark.parametrize("ratio", [0.0, -1.0, 1.5, math.nan])
    def test_a_ratio_out_of_range_is_refused(self, ratio):
        with pytest.raises(ConfigError, match="skip_ratio"):
            PaperSearch(6, ratio)

    def test_the_optimiser_prefers_what_scored_well_and_is_silent_about_repeats(self, capsys):
        sets = np.random.default_rng(0).integers(0, 2, (40, 6)).astype(float)
        scores = sets[:, 0] * 0.5 + (1 - sets[:, 1]) * 0.5
        wish = upper_confidence_bound(sets, scores, seed=0)
        assert wish.shape == (6,)
        assert 1 >= wish[0] > wish[1] >= 0
        assert capsys.readouterr() == ("", "")


class TestRateSearch:
    @pytest.mark.parametrize("seed", [11, 12])
    def test_it_finds_the_planted_layers_of_sixty(self, seed):
        planted = Planted(60, 30, seed)
        planted.turns(240)
        share, wrong = planted.found()
        assert share >= 0.9
        assert wrong <= 1

    @pytest.mark.parametrize("seed", range(6))
    def test_it_comes_near_the_best_of_all_sets(self, seed):
        planted = Planted(5, 1, seed)
        planted.turns(60)
        inner = [frozenset(c) for n in range(4) for c in itertools.combinations((1, 2, 3), n)]
        best = max(planted.rate(LayerSet(5, a, m)) for a in inner for m in inner)
        assert planted.rate(planted.search.best) > 0.95 * best

    def test_where_nothing_is_redundant_it_decodes_plainly_and_ends_soon(self):
        planted = Planted(30, 0, 0)
        planted.harm += 0.2
        assert planted.turns(150) < 150
        assert planted.search.gain < 1.05
        assert planted.rate(planted.search.best) > 0.98

    def test_it_ends_when_all_is_found_and_can_be_resumed(self):
        planted = Planted(16, 7, 3)
        assert planted.turns(250) < 250
        assert planted.search.gain > 1.3
        planted.search.resume()
        assert not planted.search.is_finished

    def test_when_the_stream_changes_it_lets_go_of_what_harms_now(self):
        planted = Planted(16, 8, 1)
        planted.turns(150)
        lost = np.flatnonzero(planted.free)[:4]
        planted.harm[lost] = 0.5
        planted.search.resume()
        planted.turns(150)
        assert sublayer_bits(planted.search.best)[lost].sum() <= 1

    def test_a_lucky_score_is_not_kept(self):
        search = RateSearch(costs_of(8), plain)
        lucky = LayerSet.every(8)
        search.tell(lucky, 1.0, 8)
        for _ in range(12):
            search.tell(lucky, 0.1, 32)
        assert search.best != lucky
        assert search.gain < 1.5

    def test_the_set_in_use_is_scored_again_now_and_then(self):
        planted = Planted(16, 8, 2)
        planted.turns(60)
        assert planted.search.best in [planted.search.ask() for _ in range(60)]

    def test_before_any_score_it_starts_small(self):
        ratios = [RateSearch(costs_of(60), plain, seed=s).ask().skip_ratio for s in range(20)]
        assert min(ratios) > 0
        assert sum(ratio <= 0.25 for ratio in ratios) >= 14

    def test_a_gain_is_never_below_plain_decoding(self):
        search = RateSearch(costs_of(8), plain)
        assert search.gain >= 1
        for _ in range(20):
            search.tell(search.ask(), 0.0, 32)
        assert search.gain >= 1
        assert search.best == LayerSet.none(8) or search.gain > 1

    def test_where_drafts_are_forbidden_nothing_is_skipped(self):
        search = RateSearch(costs_of(8), plain, max_draft=0)
        search.tell(search.ask(), 1.0, 32)
        assert (search.best, search.gain) == (LayerSet.none(8), 1.0)

    def test_what_verify_learned_since_is_heeded(self):
        width = {"cost": 0.0}
        search = RateSearch(costs_of(8), lambda rows: 1.0 + width["cost"] * (rows - 1))
        search.tell(LayerSet.every(8), 1.0, 500)
        cheap, width["cost"] = search.gain, 1.0
        search.tell(LayerSet.every(8), 1.0, 500)
        assert search.gain < cheap

    def test_a_saved_search_knows_what_it_knew(self):
        planted = Planted(16, 8, 5)
        planted.turns(100)
        saved = json.loads(json.dumps(planted.search.to_dict()))
        loaded = RateSearch.from_dict(saved, costs_of(16), plain, seed=1, max_draft=12)
        assert loaded.to_dict() == planted.search.to_dict()
        assert loaded.gain == pytest.approx(planted.search.gain, rel=0.1)
        assert planted.rate(loaded.best) > 0.9 * planted.rate(planted.search.best)

    @pytest.mark.parametrize(
        "change",
        [
            {"best": LayerSet.none(7).to_dict()},
            {"best": None},
            {"scores": None},
            {"scores": [{}]},
            {"told": "many"},
            {"scores": [{"layer_set": LayerSet.none(7).to_dict(), "hits": 1, "trials": 2}]},
            {"scores": [{"layer_set": LayerSet.every(6).to_dict(), "hits": 3, "trials": 2}]},
            {"scores": [{"layer_set": LayerSet.every(6).to_dict(), "hits": math.nan, "trials": 2}]},
        ],
    )
    def test_a_damaged_form_is_refused(self, change):
        data = {**RateSearch(costs_of(6), plain).to_dict(), **change}
        with pytest.raises(LayerSetError):
            RateSearch.from_dict(data, costs_of(6), plain)
        with pytest.raises(LayerSetError):
            RateSearch.from_dict(None, costs_of(6), plain)
