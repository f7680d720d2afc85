"""Our search, on scores whose law is known."""

import itertools
import json
import math

import numpy as np
import pytest

from swift_sd import LayerSet
from swift_sd.adapting.costs import Costs
from swift_sd.adapting.objective import Rates, sublayer_bits
from swift_sd.adapting.rate_search import PATIENCE, RateSearch
from swift_sd.errors import LayerSetError


def costs_of(depth):
    return Costs(1.0, (1 / (3 * depth),) * depth, (2 / (3 * depth),) * depth, 0.0, 8)


def plain(rows):
    return 1.0


class Planted:
    """Some layers do no harm when they are skipped, the others cost acceptance."""

    def __init__(self, depth, harmless, seed, rounding=0.0):
        self.random = np.random.default_rng([seed, 1])  # not the stream of the search
        inner = depth - 2
        layers = self.random.permutation(inner)[:harmless]
        self.harm = self.random.uniform(0.05, 0.5, 2 * inner)
        self.free = np.zeros(2 * inner, dtype=bool)
        self.free[layers] = self.free[layers + inner] = True
        self.harm[self.free] = 0.0
        self.rounding = rounding  # the harm of the weights drafts read, whatever they skip
        self.rates = Rates(costs_of(depth), plain, 12)
        self.search = RateSearch(
            costs_of(depth), plain, seed=seed, max_draft=12, rounded=rounding > 0
        )

    def turns(self, count, trials=32):
        for turn in range(count):
            if self.search.is_finished:
                return turn
            candidate = self.search.ask()
            chance = math.exp(-self.harm @ sublayer_bits(candidate) - self.rounding)
            self.search.tell(candidate, self.random.binomial(trials, chance) / trials, trials)
        return count

    def rate(self, layer_set):
        bits = sublayer_bits(layer_set)
        return float(self.rates.of(bits, np.exp(-self.harm @ bits - self.rounding)))

    def found(self):
        bits = sublayer_bits(self.search.best).astype(bool)
        return (bits & self.free).sum() / self.free.sum(), (bits & ~self.free).sum()


@pytest.mark.parametrize("seed", [11, 12])
def test_it_finds_the_planted_layers_of_sixty(seed):
    planted = Planted(60, 30, seed)
    planted.turns(240)
    share, wrong = planted.found()
    assert share >= 0.9
    assert wrong <= 1


@pytest.mark.parametrize("seed", range(6))
def test_it_comes_near_the_best_of_all_sets(seed):
    planted = Planted(5, 1, seed)
    planted.turns(60)
    inner = [frozenset(c) for n in range(4) for c in itertools.combinations((1, 2, 3), n)]
    best = max(planted.rate(LayerSet(5, a, m)) for a in inner for m in inner)
    assert planted.rate(planted.search.best) > 0.95 * best


def test_where_nothing_is_redundant_it_decodes_plainly_and_ends_soon():
    planted = Planted(30, 0, 0)
    planted.harm += 0.2
    assert planted.turns(150) < 150
    assert planted.search.gain < 1.05
    assert planted.rate(planted.search.best) > 0.98


@pytest.mark.parametrize("rounding", [0.02, 0.1, 0.2])
def test_what_rounded_weights_cost_is_not_blamed_on_the_skipped_sublayers(rounding):
    planted = Planted(16, 6, 4, rounding)
    planted.turns(150)
    share, wrong = planted.found()
    assert share >= 0.8
    assert wrong <= 1
    expected = planted.rate(planted.search.best) / planted.rates.plain
    assert planted.search.gain == pytest.approx(expected, rel=0.1)


def test_rounded_weights_are_scored_with_nothing_skipped_too():
    nothing, random = LayerSet.none(30), np.random.default_rng(0)
    search = RateSearch(costs_of(30), lambda rows: 4.0, rounded=True)
    for _ in range(60):
        candidate = search.ask()
        chance = math.exp(-0.3 - 0.5 * sublayer_bits(candidate).sum())
        search.tell(candidate, random.binomial(32, chance) / 32, 32)
    assert search.best == nothing
    assert nothing in [search.ask() for _ in range(60)]
    rates = Rates(costs_of(30), lambda rows: 4.0, 25)
    expected = float(rates.of(sublayer_bits(nothing), np.exp(-0.3))) / rates.plain
    assert search.gain == pytest.approx(expected, rel=0.1)


def test_of_two_layers_only_the_rounding_is_learned():
    search = RateSearch(costs_of(2), lambda rows: 3.0, rounded=True)
    before = search.gain
    search.tell(search.ask(), 0.5, 64)
    assert 1 < search.gain < before


def test_it_ends_when_all_is_found_and_can_be_resumed():
    planted = Planted(16, 7, 3)
    assert planted.turns(250) < 250
    assert planted.search.gain > 1.3
    planted.search.resume()
    assert not planted.search.is_finished


def test_when_the_stream_changes_it_lets_go_of_what_harms_now():
    planted = Planted(16, 8, 1)
    planted.turns(150)
    lost = np.flatnonzero(planted.free)[:4]
    planted.harm[lost] = 0.5
    planted.search.resume()
    planted.turns(150)
    assert sublayer_bits(planted.search.best)[lost].sum() <= 1


def test_a_lucky_score_is_not_kept():
    search = RateSearch(costs_of(8), plain)
    lucky = LayerSet.every(8)
    search.tell(lucky, 1.0, 8)
    for _ in range(12):
        search.tell(lucky, 0.1, 32)
    assert search.best != lucky
    assert search.gain < 1.5


def test_the_set_in_use_is_scored_again_now_and_then():
    planted = Planted(16, 8, 2)
    planted.turns(60)
    assert planted.search.best in [planted.search.ask() for _ in range(60)]


def test_before_any_score_it_starts_small():
    ratios = [RateSearch(costs_of(60), plain, seed=s).ask().skip_ratio for s in range(20)]
    assert min(ratios) > 0
    assert sum(ratio <= 0.25 for ratio in ratios) >= 14


def test_a_gain_is_never_below_plain_decoding():
    search = RateSearch(costs_of(8), plain)
    assert search.gain >= 1
    for _ in range(20):
        search.tell(search.ask(), 0.0, 32)
    assert search.gain >= 1
    assert search.best == LayerSet.none(8) or search.gain > 1


def test_where_drafts_are_forbidden_nothing_is_skipped():
    search = RateSearch(costs_of(8), plain, max_draft=0)
    search.tell(search.ask(), 1.0, 32)
    assert (search.best, search.gain) == (LayerSet.none(8), 1.0)


def test_what_verify_learned_since_is_heeded():
    width = {"cost": 0.0}
    search = RateSearch(costs_of(8), lambda rows: 1.0 + width["cost"] * (rows - 1))
    search.tell(LayerSet.every(8), 1.0, 500)
    cheap, width["cost"] = search.gain, 1.0
    search.tell(LayerSet.every(8), 1.0, 500)
    assert search.gain < cheap


def test_a_saved_search_knows_what_it_knew():
    planted = Planted(16, 8, 5)
    planted.turns(100)
    saved = json.loads(json.dumps(planted.search.to_dict()))
    loaded = RateSearch(costs_of(16), plain, seed=1, max_draft=12)
    loaded.restore(saved)
    assert loaded.to_dict() | {"gain": 0} == planted.search.to_dict() | {"gain": 0}
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
def test_a_damaged_form_is_refused(change):
    data = {**RateSearch(costs_of(6), plain).to_dict(), **change}
    with pytest.raises(LayerSetError):
        RateSearch(costs_of(6), plain).restore(data)
    with pytest.raises(LayerSetError):
        RateSearch(costs_of(6), plain).restore(None)


def test_a_hint_of_what_matters_saves_most_of_the_scores():
    planted = Planted(60, 30, 7)
    hints = (planted.harm + 0.002) * planted.random.uniform(0.6, 1.5, len(planted.harm))
    planted.search = RateSearch(costs_of(60), plain, seed=7, max_draft=12, hints=hints)
    assert planted.search.hope > 1.1
    planted.turns(12)
    share, wrong = planted.found()
    assert share >= 0.9
    assert wrong <= 3


def test_a_misleading_hint_is_overcome():
    planted = Planted(16, 8, 9)
    hints = planted.random.uniform(0.05, 1, len(planted.harm))
    planted.search = RateSearch(costs_of(16), plain, seed=9, max_draft=12, hints=hints)
    planted.turns(200)
    assert planted.found()[0] >= 0.9


@pytest.mark.parametrize("hints", [[1.0], [math.nan] * 12, [0.0] * 12, [math.inf] * 12])
def test_hints_that_say_nothing_are_as_good_as_none(hints):
    plainly, hinted = (RateSearch(costs_of(8), plain, hints=given) for given in ((), hints))
    for _ in range(5):
        candidate = plainly.ask()
        assert hinted.ask() == candidate
        plainly.tell(candidate, 0.5, 32)
        hinted.tell(candidate, 0.5, 32)
    assert hinted.best == plainly.best


def test_what_may_be_hoped_for_is_never_less_than_what_is_in_hand():
    planted = Planted(16, 7, 3)
    for _ in range(20):
        planted.turns(5)
        assert planted.search.hope >= planted.search.gain - 1e-9


def test_a_fork_goes_its_own_way():
    planted = Planted(16, 8, 2)
    planted.turns(60)
    fork, before = planted.search.fork(), planted.search.to_dict()
    assert not fork.is_finished
    for _ in range(30):
        fork.tell(fork.ask(), 0.0, 32)
    assert planted.search.to_dict() == before
    assert fork.told == planted.search.told + 30


def test_a_set_is_of_no_use_where_even_a_lucky_score_would_not_pay():
    planted = Planted(16, 8, 2)
    planted.turns(60)
    search = planted.search
    assert search.gain > 1
    useful = [hits for hits in range(33) if search.is_of_use(hits / 32, 32)]
    assert useful == list(range(useful[0], 33))  # the better the score, the likelier
    assert 0 < useful[0] < 32
    # Of more tokens no luck is to be supposed: what pays there is what pays.
    rates = planted.rates.of(sublayer_bits(search.best)[None], np.arange(0, 1, 0.01)[:, None])
    least = 0.01 * int((rates[:, 0] > planted.rates.plain).argmax())
    assert search.is_of_use(least + 0.02, 10**6)
    assert not search.is_of_use(least - 0.02, 10**6)
    assert useful[0] / 32 < least


def test_a_finished_search_is_still_finished_when_it_is_loaded():
    planted = Planted(16, 7, 3)
    assert planted.turns(250) < 250
    loaded = RateSearch(costs_of(16), plain)
    loaded.restore(planted.search.to_dict())
    assert loaded.is_finished
    loaded.resume()
    assert not loaded.is_finished


def test_what_is_hoped_for_fades_while_scores_bring_nothing():
    search, hopes = RateSearch(costs_of(30), plain, max_draft=12), []
    for _ in range(PATIENCE + 2):
        search.tell(LayerSet(30, {5}, {5}), 0.0, 32)
        hopes.append(search.hope / search.gain)
    assert hopes[0] > 1.02
    assert hopes[-1] == 1
    search.resume()
    assert search.hope > search.gain


def test_costs_of_a_busy_moment_are_corrected_when_they_are_measured_again():
    """As if sublayers had cost next to nothing, so that none seemed worth skipping."""
    planted = Planted(20, harmless=9, seed=3)
    busy = Costs(1.0, (1e-6,) * 20, (1e-6,) * 20, 0.0, 8)
    search = planted.search = RateSearch(busy, plain, seed=3, max_draft=12)
    planted.turns(200)
    assert search.is_finished
    worth = planted.rate(search.best)
    search.take_costs(costs_of(20))
    assert not search.is_finished
    planted.turns(200)
    assert planted.rate(search.best) > 1.3 * worth
