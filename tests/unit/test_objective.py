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
    draft_step_seconds,
    expected_rate,
    expected_rates,
    layer_set_of,
    sublayer_bits,
    verify_seconds,
)
from swift_sd.errors import ConfigError, LayerSetError

COSTS = Costs(10.0, (1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0), 1.0, 8)


def test_it_is_the_best_of_all_lengths_by_the_formula_of_leviathan():
    def verify(rows):
        return 1.0 + 0.05 * rows

    a, step = 0.8, 0.3
    rates = [(1 - a ** (k + 1)) / (1 - a) / (k * step + verify(k + 1)) for k in range(9)]
    rate, length = expected_rate(a, step, verify, 8)
    assert rate == pytest.approx(max(rates))
    assert length == rates.index(max(rates))


def test_drafts_that_are_never_right_are_not_made():
    assert expected_rate(0.0, 0.1, lambda rows: 2.0, 8) == (0.5, 0)


def test_drafts_that_are_always_right_are_as_long_as_may_be():
    rate, length = expected_rate(1.0, 0.1, lambda rows: 1.0, 8)
    assert (rate, length) == (pytest.approx(9 / 1.8), 8)


def test_a_draft_step_as_dear_as_the_target_does_not_pay():
    assert expected_rate(0.9, 1.0, lambda rows: 1.0, 8)[1] == 0


@given(st.floats(0, 1), st.floats(0, 2), st.integers(0, 30))
def test_it_is_never_below_plain_decoding_and_never_below_worse_acceptance(a, step, most):
    rate, length = expected_rate(a, step, lambda rows: 1.0, most)
    assert 0 <= length <= most
    assert rate >= 1.0
    assert rate >= expected_rate(a / 2, step, lambda rows: 1.0, most)[0]


def test_near_certainty_nothing_is_lost_to_rounding():
    rates = expected_rates([1 - 1e-15, 1 - 1e-17, 1.0], [0.1] * 3, np.ones(26))
    assert rates == pytest.approx(26 / 3.5, rel=1e-12)


@pytest.mark.parametrize(
    ("acceptance", "step", "verify", "most"),
    [
        (math.nan, 0.1, 1.0, 4),
        (1.1, 0.1, 1.0, 4),
        (-0.1, 0.1, 1.0, 4),
        (0.5, math.nan, 1.0, 4),
        (0.5, -1.0, 1.0, 4),
        (0.5, 0.1, math.nan, 4),
        (0.5, 0.1, 0.0, 4),
        (0.5, 0.1, 1.0, -1),
    ],
)
def test_what_is_no_number_in_range_is_refused(acceptance, step, verify, most):
    with pytest.raises(ConfigError):
        expected_rate(acceptance, step, lambda rows: verify, most)


def test_a_draft_step_is_a_step_less_what_is_skipped():
    assert draft_step_seconds(COSTS, LayerSet(4, {1}, {1, 2})) == 7.0


def test_a_draft_step_never_takes_less_than_what_cannot_be_skipped():
    clocks_disagree = Costs(3.0, (1.0,) * 5, (1.0,) * 5, 1.0, 8)
    assert draft_step_seconds(clocks_disagree, LayerSet.every(5)) == 1.0


def test_a_set_for_another_model_is_refused():
    with pytest.raises(LayerSetError, match="6 layers"):
        draft_step_seconds(COSTS, LayerSet.none(6))


@given(st.integers(1, 12), st.integers(0, 2**20))
def test_bits_and_sets_are_two_forms_of_the_same(depth, number):
    size = 2 * max(depth - 2, 0)
    bits = np.array([float(number >> i & 1) for i in range(size)])
    assert sublayer_bits(layer_set_of(depth, bits)).tolist() == bits.tolist()


def test_rates_of_sets_are_the_expected_rates_of_their_steps():
    rates = Rates(COSTS, lambda rows: 9.0 + rows, 6)
    chosen = LayerSet(4, {2}, {1})
    step = draft_step_seconds(COSTS, chosen)
    expected = expected_rate(0.7, step, lambda rows: 9.0 + rows, 6)[0]
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
