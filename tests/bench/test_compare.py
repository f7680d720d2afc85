import pytest

from swift_sd.bench.compare import FASTER, NOISE, SLOWER, TOO_FEW, compare
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
        ([2.5, 3.8, 5.2, 6.4, 7.4], FASTER),
        ([40, 60, 80, 100, 120.0], SLOWER),
        ([5.5, 7, 11.5, 12, 16], NOISE),
    ],
)
def test_paired_changes_are_judged_against_their_spread(run_of, later, verdict):
    earlier = [5.0, 7.5, 10.0, 12.5, 15.0]
    row = _overall(compare(run_of(earlier), run_of(later)))
    assert row["verdict"] == verdict
    assert row["questions"] == 5


def test_pairing_finds_a_small_change_that_the_spread_of_questions_would_hide(run_of):
    earlier = [1.0, 4.0, 9.0, 16.0, 25.0]
    row = _overall(compare(run_of(earlier), run_of([s / 1.05 for s in earlier])))
    assert row["verdict"] == FASTER
    assert row["ratio"] == pytest.approx(1.05)
    assert row["interval"] == [pytest.approx(1.05), pytest.approx(1.05)]


def test_the_ratio_is_a_geometric_mean(run_of):
    row = _overall(compare(run_of([4.0, 4.0]), run_of([1.0, 4.0])))
    assert row["ratio"] == pytest.approx(2.0)
    assert row["verdict"] == TOO_FEW  # two questions, whatever they say


def test_a_run_against_itself_shows_nothing(run_of):
    run = run_of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert {row["verdict"] for row in compare(run, run)} == {NOISE}


@pytest.mark.parametrize("change", [{"model": "other"}, {"digest": "x"}, {"max_new_tokens": 9}])
def test_other_work_is_refused_unless_forced(run_of, change):
    one, other = run_of([1.0] * 5), run_of([2.0] * 5, **change)
    with pytest.raises(ConfigError, match="--force") as caught:
        compare(one, other)
    assert next(iter(change)) in str(caught.value)
    assert _overall(compare(one, other, force=True))["verdict"] == SLOWER


@pytest.mark.parametrize(("factor", "verdict"), [(10.0, SLOWER), (1.1, NOISE), (0.1, FASTER)])
def test_without_shared_questions_intervals_must_not_meet(run_of, factor, verdict):
    seconds = [1.0, 1.2, 1.4, 1.6, 1.8]
    other = run_of([s * factor for s in seconds], first=100, digest="x")
    assert _overall(compare(run_of(seconds), other, force=True))["verdict"] == verdict


def test_nothing_in_common_is_refused(results_of, record_of):
    one, other = results_of([record_of(1, "m")]), results_of([record_of(1, "n")])
    with pytest.raises(ConfigError, match="in common"):
        compare(one, other)
