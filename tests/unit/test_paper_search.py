"""The paper's search: its candidates, its switch to a better set, and its three ends."""

import math

import numpy as np
import pytest

from swift_sd import LayerSet
from swift_sd.adapting.paper_search import PaperSearch, upper_confidence_bound
from swift_sd.errors import ConfigError


def test_it_starts_from_every_second_layer():
    search = PaperSearch(9, 0.45)
    assert search.best == search.ask() == LayerSet.unified(9)


@pytest.mark.parametrize(("depth", "ratio", "count"), [(9, 0.45, 6), (52, 0.29, 29), (3, 1, 2)])
def test_candidates_skip_exactly_the_ratio_rounded_down(depth, ratio, count):
    search = PaperSearch(depth, ratio)
    search.ask()
    for _ in range(20):
        candidate = search.ask()
        assert len(candidate.attention) + len(candidate.mlp) == count


def test_every_25th_candidate_comes_from_the_optimiser_and_all_scores():
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


def test_only_a_strictly_better_score_changes_the_best_set():
    search = PaperSearch(6, 0.5)
    first, second = LayerSet(6, {1}, {2}), LayerSet(6, {2}, {1})
    search.tell(first, 0.5, 32)
    assert search.best == first
    search.tell(second, 0.5, 32)
    assert search.best == first
    search.tell(second, 0.51, 32)
    assert search.best == second


def test_it_ends_when_the_score_is_above_095():
    search = PaperSearch(6, 0.5)
    search.tell(search.ask(), 0.95, 32)
    assert not search.is_finished
    search.tell(search.ask(), 0.96, 32)
    assert search.is_finished


def test_it_ends_after_300_candidates_without_improvement():
    search = PaperSearch(6, 0.5)
    for _ in range(301):
        assert not search.is_finished
        search.tell(LayerSet.unified(6), 0.3, 32)
    assert search.is_finished


def test_it_ends_after_1000_candidates():
    search = PaperSearch(6, 0.5)
    for turn in range(1000):
        assert not search.is_finished
        search.tell(LayerSet.unified(6), turn / 2000, 32)
    assert search.is_finished


@pytest.mark.parametrize("ratio", [0.0, -1.0, 1.5, math.nan])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ConfigError, match="skip_ratio"):
        PaperSearch(6, ratio)


def test_the_optimiser_prefers_what_scored_well_and_is_silent_about_repeats(capsys):
    sets = np.random.default_rng(0).integers(0, 2, (40, 6)).astype(float)
    scores = sets[:, 0] * 0.5 + (1 - sets[:, 1]) * 0.5
    wish = upper_confidence_bound(sets, scores, seed=0)
    assert wish.shape == (6,)
    assert 1 >= wish[0] > wish[1] >= 0
    assert capsys.readouterr() == ("", "")


def test_a_suggestion_is_far_better_than_the_best_of_many_points_at_random():
    """Scores fall with each sublayer skipped, as matchness does; 25 of 56 are skipped."""
    random = np.random.default_rng(0)
    harms = random.exponential(1, 56)

    def score(bits):
        return np.exp(-bits @ harms / 12)

    def skipped(wish):
        return np.isin(np.arange(56), np.argsort(-wish)[:25]).astype(float)

    sets = np.array([skipped(random.random(56)) for _ in range(100)])
    scores = score(sets)
    assert score(skipped(upper_confidence_bound(sets, scores, seed=0))) > 1.3 * scores.max()
