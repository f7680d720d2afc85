import pytest

from swift_sd.bench.method import Outcome
from swift_sd.bench.results import collect, drift, read_results, write_results
from swift_sd.bench.statistics import interval_of, pairs_by_method, ratio_of_sums, summarise
from swift_sd.bench.stopwatch import Timing, middle
from swift_sd.errors import ConfigError


def test_speedup_is_the_ratio_of_total_rates(record_of):
    # hf: 10 s for 10 tokens and 2 s for 10; the method: 4 s for 10 and 4 s for 30.
    records = [
        record_of(1, hf=(10.0, 10), mine=(4.0, 10)),
        record_of(2, hf=(2.0, 10), mine=(4.0, 30)),
    ]
    figures = summarise(records)["m"]["overall"]
    assert figures["speedup"] == pytest.approx((12 / 20) / (8 / 40))  # 3, unlike …
    assert figures["speedup"] != pytest.approx((2.5 + 1.5) / 2)  # … the mean of the ratios,
    assert figures["speedup"] != pytest.approx(12 / 8)  # … seconds alone,
    assert figures["speedup"] != pytest.approx((1.0 + 0.2) / (0.4 + 4 / 30))  # … or unweighted
    assert (figures["min"], figures["max"]) == (pytest.approx(1.5), pytest.approx(2.5))
    assert figures["median"] == pytest.approx(2.0)
    assert figures["questions"] == figures["identical"] == 2


def test_groups_are_summed_apart_and_methods_too(record_of):
    records = [
        record_of(1, group="a", mine=(5.0, 10)),
        record_of(2, group="b", mine=(2.0, 10)),
        record_of(1, "n", group="a", mine=(20.0, 10)),
    ]
    summary = summarise(records)
    assert list(summary["m"]) == ["a", "b", "overall"]
    assert summary["m"]["a"]["speedup"] == pytest.approx(2)
    assert summary["m"]["b"]["speedup"] == pytest.approx(5)
    assert summary["m"]["overall"]["speedup"] == pytest.approx(20 / 7)
    assert summary["n"]["overall"]["speedup"] == pytest.approx(0.5)


def test_turns_of_a_conversation_are_one_question(record_of):
    records = [
        record_of(1, mine=(5.0, 10)),
        record_of(1, mine=(10.0, 10), turn=1, identical=False),
    ]
    (pair,) = pairs_by_method(records)["m"]
    assert (pair.seconds, pair.new_tokens) == (15.0, 20)
    figures = summarise(records)["m"]["g"]
    assert (figures["questions"], figures["identical"]) == (1, 0)
    assert figures["speedup"] == pytest.approx(20 / 15)
    assert figures["interval"] is None  # of one question the spread is not known


def test_outputs_that_differ_are_counted_not_dropped(record_of):
    records = [record_of(1), record_of(2, mine=(1.0, 10), identical=False)]
    figures = summarise(records)["m"]["g"]
    assert (figures["identical"], figures["questions"]) == (1, 2)
    assert figures["max"] == pytest.approx(10)


def test_sampled_runs_count_no_same_outputs(record_of):
    assert summarise([record_of(1, identical=None)])["m"]["g"]["identical"] is None


def test_the_interval_is_the_same_for_the_same_seed(record_of):
    pairs = pairs_by_method([record_of(i, mine=(1.37**i, 7 + i)) for i in range(8)])["m"]
    first = interval_of(pairs, seed=1)
    assert first == interval_of(pairs, seed=1)
    assert first != interval_of(pairs, seed=2)
    low, high = first
    assert low < ratio_of_sums(pairs) < high


def test_equal_questions_leave_no_doubt(record_of):
    pairs = pairs_by_method([record_of(i) for i in range(5)])["m"]
    assert interval_of(pairs, seed=0) == pytest.approx([2.0, 2.0])


def test_drift_is_the_slowest_against_the_quickest():
    assert drift([{"seconds": 2.0}]) is None
    assert drift([{"seconds": s} for s in (2.0, 2.5, 2.2)]) == pytest.approx(0.25)


@pytest.mark.parametrize(("seconds", "warned"), [(1.14, False), (1.16, True)])
def test_more_than_15_percent_of_drift_is_warned_of(
    tmp_path, runner_in, settings_of, seconds, warned
):
    _, journal = runner_in(tmp_path, settings_of())
    for value in (1.0, seconds):
        journal.append("reference", {"seconds": value, "records": 0})
    results = collect(journal, settings_of(), complete=True, skipped={})
    assert any("drifted by 16%" in warning for warning in results["warnings"]) == warned


def test_what_is_missing_or_skipped_is_said(tmp_path, runner_in, settings_of):
    _, journal = runner_in(tmp_path, settings_of())
    results = collect(journal, settings_of(), complete=False, skipped={"hf-early-exit": "why"})
    assert "not complete" in results["warnings"][0]
    assert results["warnings"][1] == "hf-early-exit was skipped: why."


def test_results_are_read_back_from_file_and_folder(tmp_path, results_of, record_of):
    results = results_of([record_of(1)])
    write_results(tmp_path / "results.json", results)
    assert read_results(tmp_path) == read_results(tmp_path / "results.json") == results
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(("text", "word"), [("{", "damaged"), ("[]", "no results"), ("{}", "no")])
def test_files_that_hold_no_results_are_refused(tmp_path, text, word):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=word):
        read_results(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_results(tmp_path / "none.json")


def test_of_repeats_the_pair_with_the_median_ratio_counts():
    """Where the machine was slow for both, no side is taken from another repeat."""

    def timing(seconds):
        return Timing(Outcome([1], {}), seconds)

    mine, theirs = [timing(1.0), timing(5.0), timing(2.0)], [timing(2.0), timing(15.0), timing(9.0)]
    assert middle(mine, theirs) == (mine[1], theirs[1])  # 3, of 2, 3 and 4.5
    assert middle(mine[:2], theirs[:2]) == (mine[0], theirs[0])
