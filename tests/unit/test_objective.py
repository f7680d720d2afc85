"""The expected rate against sums by hand; the harms against scores whose law is known."""

import itertools
import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from swift_sd import LayerSet
from swift_sd.adapting.costs import Costs
from swift_sd.adapting.harms import Harms
from swift_sd.adapting.objective import (
    Rates,
    expected_rates,
    layer_set_of,
    sublayer_bits,
    verify_seconds,
)
from swift_sd.errors import ConfigError

COSTS = Costs(10.0, (1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0), 1.0, 8)


def best_rate(acceptance, step, verify, most):
    return float(expected_rates(acceptance, step, verify_seconds(verify, most)))


def test_it_is_the_best_of_all_lengths_by_the_formula_of_leviathan():
    def verify(rows):
        return 1.0 + 0.05 * rows

    a, step = 0.8, 0.3
    rates = [(1 - a ** (k + 1)) / (1 - a) / (k * step + verify(k + 1)) for k in range(9)]
    assert best_rate(a, step, verify, 8) == pytest.approx(max(rates))
    assert rates.index(max(rates)) not in (0, 8)


def test_drafts_that_are_never_right_yield_what_plain_decoding_does():
    assert best_rate(0.0, 0.1, lambda rows: 2.0, 8) == 0.5


def test_drafts_that_are_always_right_are_as_long_as_may_be():
    assert best_rate(1.0, 0.1, lambda rows: 1.0, 8) == pytest.approx(9 / 1.8)


def test_a_draft_step_as_dear_as_the_target_does_not_pay():
    assert best_rate(0.9, 1.0, lambda rows: 1.0, 8) == 1.0


@given(st.floats(0, 1), st.floats(0, 2), st.integers(0, 30))
def test_it_is_never_below_plain_decoding_and_never_below_worse_acceptance(a, step, most):
    rate = best_rate(a, step, lambda rows: 1.0, most)
    assert rate >= 1.0
    assert rate >= best_rate(a / 2, step, lambda rows: 1.0, most)


def test_near_certainty_nothing_is_lost_to_rounding():
    rates = expected_rates([1 - 1e-15, 1 - 1e-17, 1.0], [0.1] * 3, np.ones(26))
    assert rates == pytest.approx(26 / 3.5, rel=1e-12)


@pytest.mark.parametrize(("verify", "most"), [(math.nan, 4), (0.0, 4), (math.inf, 4), (1.0, -1)])
def test_times_that_are_no_seconds_are_refused(verify, most):
    with pytest.raises(ConfigError):
        verify_seconds(lambda rows: verify, most)


def test_a_draft_step_never_takes_less_than_what_cannot_be_skipped():
    clocks_disagree = Costs(3.0, (1.0,) * 5, (1.0,) * 5, 1.0, 8)
    every = sublayer_bits(LayerSet.every(5))
    rates = Rates(clocks_disagree, lambda rows: 3.0, 4).of(every[None], np.ones(1))
    assert rates == pytest.approx([5 / (4 * 1.0 + 3.0)])


@given(st.integers(1, 12), st.integers(0, 2**20))
def test_bits_and_sets_are_two_forms_of_the_same(depth, number):
    size = 2 * max(depth - 2, 0)
    bits = np.array([float(number >> i & 1) for i in range(size)])
    assert sublayer_bits(layer_set_of(depth, bits)).tolist() == bits.tolist()


def test_rates_of_sets_are_the_expected_rates_of_their_steps():
    rates = Rates(COSTS, lambda rows: 9.0 + rows, 6)
    chosen = LayerSet(4, {2}, {1})
    expected = best_rate(0.7, 10.0 - 2.0, lambda rows: 9.0 + rows, 6)
    assert rates.of(sublayer_bits(chosen)[None], np.array([0.7])) == pytest.approx([expected])
    assert rates.plain == 0.1


def test_beginnings_follow_the_order_of_harm_per_second_saved():
    costs = Costs(9.0, (1.0,) * 4, (2.0,) * 4, 0.0, 8)
    sets = Rates(costs, lambda rows: 9.0, 4).beginnings(np.array([0.3, 0.1, 0.1, 0.8]))
    order = [np.flatnonzero(after - before).tolist() for before, after in itertools.pairwise(sets)]
    assert order == [[2], [1], [0], [3]]


@pytest.mark.parametrize("seconds", [math.nan, -1.0, math.inf])
def test_costs_that_are_no_seconds_are_refused(seconds):
    with pytest.raises(ConfigError):
        Rates(Costs(10.0, (1.0, seconds, 1.0), (1.0,) * 3, 1.0, 8), lambda rows: 1.0, 4)
    with pytest.raises(ConfigError):
        Rates(Costs(seconds, (1.0,) * 3, (1.0,) * 3, 1.0, 8), lambda rows: 1.0, 4)


def test_verify_is_asked_for_every_width():
    assert verify_seconds(float, 3).tolist() == [1.0, 2.0, 3.0, 4.0]


def test_a_priori_skipping_the_least_harmful_tenth_loses_a_few_percent():
    harms = Harms(58, np.random.default_rng(0))
    least = np.sort(harms.draws, axis=1)[:, :11].sum(axis=1)
    assert 0.02 < np.median(least) < 0.15


def test_harms_are_learned_from_exact_scores_of_single_sublayers():
    true = np.array([0.0, 0.7, 0.1, 0.3])
    harms = Harms(2, np.random.default_rng(1))
    trials = np.full(4, 5000.0)
    harms.learn(np.eye(4), trials * np.exp(-true), trials, anew=True)
    assert harms.draws.mean(axis=0) == pytest.approx(true, abs=0.1)
    assert (harms.draws >= 0).all()


def test_the_harm_of_rounding_is_told_from_those_of_sublayers():
    sets = np.concatenate([np.zeros((1, 4)), np.eye(4)])
    true = np.array([0.0, 0.7, 0.1, 0.3])
    harms = Harms(2, np.random.default_rng(1), rounded=True)
    trials = np.full(5, 5000.0)
    harms.learn(sets, trials * np.exp(-sets @ true - 0.2), trials, anew=True)
    assert harms.draws.mean(axis=0) == pytest.approx(true, abs=0.1)
    assert harms.rounding.mean() == pytest.approx(0.2, abs=0.05)
    assert harms.acceptance(sets[:1])[0] == pytest.approx(np.exp(-0.2), abs=0.05)


def test_a_set_scored_often_is_believed_more_than_the_sum_of_its_harms():
    sets = np.array([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [1.0, 1.0, 0, 0]])
    trials = np.full(3, 5000.0)
    harms = Harms(2, np.random.default_rng(2))
    hits = trials * [0.8, 0.8, 0.5]  # together worse than 0.64
    expected = harms.learn(sets, hits, trials, anew=True)
    assert abs(expected[2] - 0.5) < abs(harms.acceptance(sets)[2] - 0.5)
