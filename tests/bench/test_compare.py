import numpy as np
import pytest

from swift_sd.bench.compare import FASTER, NOISE, SLOWER, TOO_FEW, compare, notes
from swift_sd.bench.statistics import sign_flip_p_value
from swift_sd.errors import ConfigError


@pytest.fixture
def run_of(results_of, record_of):
    """`run_of(seconds)`: a run with one question for each number of the method's seconds."""

    def make(seconds, first=0, **changes):
        records = [record_of(i, mine=(s, 10)) for i, s in enumerate(seconds, start=first)]
        return results_of(records, **changes)

    return make


def _overall(rows):
    (row,) = [row for row in rows if row["group"] == "overall"]
    return row


@pytest.mark.parametrize(
    ("later", "verdict"),
    [
        ([2.5, 3.8, 5.2, 6.4, 7.4, 8.6], FASTER),
        ([40, 60, 80, 100, 120.0, 140], SLOWER),
        ([5.5, 7, 11.5, 12, 16, 17], NOISE),
    ],
)
def test_paired_changes_are_judged_against_their_spread(run_of, later, verdict):
    earlier = [5.0, 7.5, 10.0, 12.5, 15.0, 17.5]
    row = _overall(compare(run_of(earlier), run_of(later)))
    assert row["verdict"] == verdict
    assert row["questions"] == 6


def test_pairing_finds_a_small_change_that_the_spread_of_questions_would_hide(run_of):
    earlier = [1.0, 4.0, 9.0, 16.0, 25.0, 36.0]
    row = _overall(compare(run_of(earlier), run_of([s / 1.05 for s in earlier])))
    assert row["verdict"] == FASTER
    assert row["ratio"] == pytest.approx(1.05)
    assert row["interval"] == [pytest.approx(1.05), pytest.approx(1.05)]


def test_the_ratio_is_a_geometric_mean(run_of):
    row = _overall(compare(run_of([4.0, 4.0]), run_of([1.0, 4.0])))
    assert row["ratio"] == pytest.approx(2.0)
    assert row["verdict"] == TOO_FEW  # two questions, whatever they say


def test_a_run_against_itself_shows_nothing(run_of):
    run = run_of([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert {row["verdict"] for row in compare(run, run)} == {NOISE}


@pytest.mark.parametrize("change", [{"model": "other"}, {"digest": "x"}, {"max_new_tokens": 9}])
def test_other_work_is_refused_unless_forced(run_of, change):
    one, other = run_of([1.0] * 6), run_of([2.0] * 6, **change)
    with pytest.raises(ConfigError, match="--force") as caught:
        compare(one, other)
    assert next(iter(change)) in str(caught.value)
    assert _overall(compare(one, other, force=True))["verdict"] == SLOWER


@pytest.mark.parametrize(("factor", "verdict"), [(10.0, SLOWER), (1.1, NOISE), (0.1, FASTER)])
def test_without_shared_questions_intervals_must_not_meet(run_of, factor, verdict):
    seconds = [1.0, 1.2, 1.4, 1.6, 1.8, 2.0]
    other = run_of([s * factor for s in seconds], first=100, digest="x")
    assert _overall(compare(run_of(seconds), other, force=True))["verdict"] == verdict


def test_other_questions_of_the_same_number_are_not_paired(results_of, record_of):
    one, other = (
        results_of(
            [{**record_of(i), "prompt_tokens": 10 * i + size} for i in range(6)], digest=name
        )
        for name, size in (("a", 1), ("b", 2))
    )
    assert _overall(compare(one, other, force=True))["questions"] == 0
    assert (
        _overall(compare(one, {**one, "settings": other["settings"]}, force=True))["questions"] == 6
    )


def test_another_seed_is_told(run_of):
    assert any("seed is" in said for said in notes(run_of([1.0]), run_of([1.0], seed=7)))


def test_nothing_in_common_is_refused(results_of, record_of):
    one, other = results_of([record_of(1, "m")]), results_of([record_of(1, "n")])
    with pytest.raises(ConfigError, match="in common"):
        compare(one, other)


@pytest.mark.parametrize("count", [5, 6, 9, 20])
def test_chance_alone_is_called_a_change_as_rarely_as_is_said(count):
    random = np.random.default_rng(count)
    found = [sign_flip_p_value(random.standard_normal(count), 0) for _ in range(400)]
    called = sum(chance <= 0.05 for chance in found)
    assert called <= 400 * 0.05 + 3 * (400 * 0.05 * 0.95) ** 0.5
    if count == 5:
        assert not called  # which is why there must be six
    else:
        assert called


def test_one_model_may_lie_in_two_places_but_two_not_in_one(run_of):
    one = run_of([1.0] * 6, model="/here/tiny")
    other = run_of([1.0] * 6, model="/there/tiny")
    assert compare(one, other)  # all that these runs say is the name
    for run, digest in ((one, "a"), (other, "b")):
        run["environment"]["model"]["digest"] = digest
    with pytest.raises(ConfigError, match="model is 'b' here and 'a' there"):
        compare(one, other)


def test_a_question_with_one_turn_only_is_no_pair_for_one_with_both(results_of, record_of):
    whole = [record_of(i, turn=turn) for i in range(3) for turn in (0, 1)]
    row = _overall(compare(results_of(whole), results_of(whole[:-1])))
    assert row["questions"] == 2


def test_what_else_differs_is_said(results_of, record_of):
    one = results_of([record_of(1, "m"), record_of(1, "n")])
    other = results_of([record_of(1, "m", identical=False), record_of(1, "o")])
    other["environment"]["torch"] = "1"
    assert notes(one, one) == []
    assert notes(one, other) == [
        "torch is 0 in A and 1 in B.",
        "Only in A: n.",
        "Only in B: o.",
        "m gave hf's tokens in 1 of 1 questions in A, in 0 of 1 in B.",
    ]
