"""Kinds of input are as many as make a difference, and are found again."""

import numpy as np
import pytest

from swift_sd import LayerSet, LayerSetError
from swift_sd.adapting.kinds import MOST, Kinds

DIMENSIONS = 12


def prompts(axis, seed=0):
    """Prompts of one kind lie around one axis."""
    random = np.random.default_rng([seed, axis])
    centre = np.eye(DIMENSIONS)[axis]
    while True:
        yield centre + 0.05 * random.normal(size=DIMENSIONS)


def test_without_a_reason_there_is_one_kind():
    kinds = Kinds()
    assert {kinds.of(next(prompts(axis))).kind for axis in range(DIMENSIONS)} == {kinds.latest}
    assert len(kinds) == 1


def test_a_kind_that_was_split_off_is_met_again_and_the_first_one_too():
    kinds, streams = Kinds(), [prompts(0), prompts(1)]
    first = [kinds.of(next(streams[0])).kind for _ in range(5)][-1]
    met = kinds.of(next(streams[1]))
    assert met.kind is first
    kinds.split(met)
    second = met.kind
    assert second is not first
    for stream, expected in [(0, first), (1, second)] * 5:
        assert kinds.of(next(streams[stream])).kind is expected
    assert len(kinds) == 2


def test_the_second_prompt_of_all_may_be_another_kind_already():
    kinds = Kinds()
    first = kinds.of(next(prompts(0))).kind
    met = kinds.of(next(prompts(1)))
    kinds.split(met)
    assert met.kind is not first


def test_a_prompt_like_those_before_means_that_the_kind_has_changed():
    kinds, stream = Kinds(), prompts(0)
    for _ in range(6):
        kinds.of(next(stream))
    met = kinds.of(np.eye(DIMENSIONS)[0])
    kind = met.kind
    kinds.split(met)
    assert met.kind is kind
    assert len(kinds) == 1


def test_only_a_prompt_unlike_the_others_puts_a_set_in_doubt():
    kinds, stream = Kinds(), prompts(0)
    kind = [kinds.of(next(stream)).kind for _ in range(6)][-1]
    assert not kinds.of(next(prompts(1))).in_doubt  # nothing is skipped yet
    kind.saved = {"best": LayerSet(6, mlp=frozenset([2])).to_dict()}
    assert kinds.of(next(prompts(2))).in_doubt
    assert not kinds.of(np.eye(DIMENSIONS)[0]).in_doubt


def test_a_kind_on_which_what_is_known_is_of_no_use_begins_with_nothing():
    for knows_nothing in (False, True):
        kinds = Kinds()
        first = kinds.of(next(prompts(0))).kind
        first.influence, first.saved = (0.5,) * 8, {"best": LayerSet.none(6).to_dict()}
        met = kinds.of(next(prompts(1)))
        kinds.split(met, knows_nothing=knows_nothing)
        expected = (None, None) if knows_nothing else (first.influence, first.saved)
        assert (met.kind.influence, met.kind.saved) == expected
        assert kinds.latest is met.kind


def test_the_founder_of_a_kind_does_not_split_it_again():
    kinds, streams = Kinds(), [prompts(0), prompts(1)]
    for _ in range(3):
        kinds.of(next(streams[0]))
    met = kinds.of(next(streams[1]))
    kinds.split(met)
    founded = met.kind
    for joined in range(3):
        kinds.split(met)
        assert met.kind is founded
        assert founded.prompts == 1 + joined
        kinds.of(next(streams[1]))


def test_the_only_prompt_of_a_kind_is_no_reason_to_split_it():
    kinds = Kinds()
    met = kinds.of(next(prompts(0)))
    kind = met.kind
    kinds.split(met)
    assert met.kind is kind


def test_they_are_bounded_and_the_one_not_met_for_longest_goes():
    kinds = Kinds()
    rng = np.random.default_rng(0)
    kept = kinds.of(np.zeros(40)).kind
    for _ in range(3 * MOST):
        kinds.split(kinds.of(5 + 10 * rng.random(40)))
        assert kinds.of(np.zeros(40)).kind is kept
    assert len(kinds) <= MOST


def test_a_kind_survives_being_written_down():
    kinds, stream = Kinds(), prompts(3)
    for _ in range(4):
        kinds.of(next(stream))
    kind = kinds.latest
    kind.influence = (0.5,) * 8
    again = type(kind).from_dict(kind.to_dict(), 6)
    vector = next(stream)
    assert again.distance(vector) == pytest.approx(kind.distance(vector), rel=1e-2)
    assert (again.prompts, again.best, again.influence) == (4, None, kind.influence)


@pytest.mark.parametrize(
    "change",
    [
        *({"centre": "x"}, {"centre": [[1.0]]}, {"prompts": None}, {"apart": float("nan")}),
        *({"search": {"best": None}}, {"influence": [0.5] * 7}, {"influence": "x"}),
    ],
)
def test_a_damaged_kind_is_refused(change):
    kinds = Kinds()
    kinds.of(np.ones(3))
    with pytest.raises(LayerSetError):
        type(kinds.latest).from_dict({**kinds.latest.to_dict(), **change}, 6)
