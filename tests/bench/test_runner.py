import copy
import dataclasses
import gc
import json
import math
import weakref

import pytest

from swift_sd import LayerSet
from swift_sd.bench.catalogue import METHODS
from swift_sd.bench.conversation import encoded_turn
from swift_sd.bench.journal import NAME, Journal
from swift_sd.bench.questions import Question
from swift_sd.bench.results import collect
from swift_sd.bench.runner import Runner
from swift_sd.errors import ConfigError


def _work(log):
    return [entry for entry in log if ":" in entry]


def _two(scripted_method, log, **answers):
    return {name: scripted_method(name, log, answers.get(name)) for name in ("hf", "m")}


@pytest.fixture
def log():
    return []


class Clock:
    """A second goes by with each look at it, and more where a test says so."""

    now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


def test_who_is_first_alternates_from_question_to_question(
    tmp_path, runner_in, settings_of, scripted_method, log
):
    asked = [Question(i, "g", (text,)) for i, text in enumerate("abc")]
    methods = _two(scripted_method, log)
    runner, _ = runner_in(tmp_path, settings_of(methods=("m",)), asked, methods=methods)
    list(runner.run())
    assert _work(log) == ["hf: a", "m: a", "m: b", "hf: b", "hf: c", "m: c"]


def test_two_methods_share_the_hf_between_them(
    tmp_path, runner_in, settings_of, scripted_method, log
):
    methods = {name: scripted_method(name, log) for name in ("hf", "m", "n", "o")}
    settings = settings_of(methods=("m", "n", "o"))
    asked = [Question(i, "g", (text,)) for i, text in enumerate("ab")]
    runner, _ = runner_in(tmp_path, settings, asked, methods=methods)
    list(runner.run())
    first, second = ["n: a", "hf: a", "m: a", "hf: a", "o: a"], ["m: b", "hf: b", "n: b"]
    assert _work(log) == [*first, *second, "o: b", "hf: b"]


def test_only_what_is_missing_of_two_is_timed(
    tmp_path, runner_in, settings_of, scripted_method, log
):
    methods = {name: scripted_method(name, log) for name in ("hf", "m", "n")}
    settings = settings_of(methods=("m", "n"))
    asked = [Question(1, "g", ("a",))]
    runner, _ = runner_in(tmp_path, settings, asked, methods=methods)
    next(iter(runner.run()))
    log.clear()
    runner, _ = runner_in(tmp_path, settings, asked, methods=methods)
    (record,) = runner.run()
    assert (record["method"], _work(log)) == ("n", ["n: a", "hf: a"])


def test_repeats_alternate_too_and_share_no_state(
    tmp_path, runner_in, settings_of, scripted_method, log
):
    settings = settings_of(methods=("m",), repeats=3)
    methods = _two(scripted_method, log)
    runner, _ = runner_in(tmp_path, settings, [Question(1, "g", ("a",))], methods=methods)
    record = next(iter(runner.run()))
    assert _work(log) == ["hf: a", "m: a", "m: a", "hf: a", "hf: a", "m: a"]
    assert log.count("start m") == 1 + 3  # the warm-up, then one a repeat
    assert len(record["repeat_seconds"]) == len(record["hf_repeat_seconds"]) == 3


def test_setting_up_comes_before_anything_is_timed_and_is_not_counted(
    tmp_path, runner_in, settings_of, scripted_method, log
):
    methods = {name: scripted_method(name, log) for name in ("hf", "m", "n")}
    quick, clock = methods["m"].start, Clock()

    def start(self):
        clock.now += 100
        return quick(self)

    methods["m"].start = start
    settings = settings_of(methods=("m", "n"))
    runner, _ = runner_in(
        tmp_path, settings, [Question(1, "g", ("a",))], methods=methods, clock=clock
    )
    of_m, _ = runner.run()
    begin = log.index("n: a") - 3
    assert log[begin : begin + 6] == ["start hf", "start m", "start n", "n: a", "hf: a", "m: a"]
    assert (of_m["seconds"], of_m["set_up_seconds"]) == (1, 101)


def test_all_that_an_answer_takes_is_counted(
    tmp_path, runner_in, settings_of, scripted_method, log
):
    methods = _two(scripted_method, log)
    quick, clock = methods["m"].start, Clock()

    def start(self):
        answer = quick(self)

        def searching(inputs, arguments):
            clock.now += 100
            return answer(inputs, arguments)

        return searching

    methods["m"].start = start
    asked, settings = [Question(1, "g", ("a",))], settings_of(methods=("m",))
    runner, _ = runner_in(tmp_path, settings, asked, methods=methods, clock=clock)
    (record,) = runner.run()
    assert (record["seconds"], record["hf_seconds"]) == (101, 1)


def test_everything_is_warmed_up_before_anything_is_timed(
    tmp_path, runner_in, settings_of, scripted_method, log
):
    runner, _ = runner_in(tmp_path, settings_of(methods=("m",)), methods=_two(scripted_method, log))
    next(iter(runner.run()))
    first = next(place for place, entry in enumerate(log) if ":" in entry)
    assert {"start hf", "start m"} <= set(log[:first])


def test_an_answer_that_ends_early_ends_early_for_all(tmp_path, subject, settings_of, prompt):
    inputs = encoded_turn(subject.model, subject.tokenizer, ["ab"], [])
    said = METHODS["hf"](subject).start()(inputs, {"do_sample": False, "max_new_tokens": 6})
    model = copy.deepcopy(subject.model)
    model.generation_config.eos_token_id = said.token_ids[2]
    theirs = ("hf", "hf-lookup", "hf-assisted", "hf-early-exit")
    names = (*theirs, "plain", "swift", "swift-paper", "swift-fixed")
    settings = settings_of(methods=names)
    journal = Journal(tmp_path, settings.to_dict(), {})
    others = {"draft_model": subject.model, "draft_tokenizer": subject.tokenizer}
    given = dataclasses.replace(subject, model=model, layer_set=LayerSet(5, [2], [1]), **others)
    records = list(Runner(given, [Question(1, "g", ("ab",))], settings, journal).run())
    assert {record["method"] for record in records} == set(names)
    expected = said.token_ids[: said.token_ids.index(said.token_ids[2]) + 1]
    assert all(record["token_ids"] == record["hf_token_ids"] == expected for record in records)


@pytest.mark.parametrize(("stream", "started"), [(False, 1 + 3), (True, 1 + 1)])
def test_a_stream_keeps_one_state_over_all_questions(
    tmp_path, runner_in, settings_of, scripted_method, log, stream, started
):
    settings = settings_of(methods=("m",), stream=stream)
    runner, _ = runner_in(tmp_path, settings, methods=_two(scripted_method, log))
    list(runner.run())
    assert log.count("start m") == started


def test_a_conversation_goes_on_with_what_hf_said(
    tmp_path, runner_in, settings_of, scripted_method, log, tokenizer
):
    said = tokenizer("YES")["input_ids"]
    methods = _two(scripted_method, log, hf={"ab": said}, m={"ab": tokenizer("NO")["input_ids"]})
    asked = [Question(1, "g", ("ab", "cd"))]
    runner, _ = runner_in(tmp_path, settings_of(methods=("m",)), asked, methods=methods)
    first, second = runner.run()
    assert _work(log)[2:] == ["hf: ab\n\nYES\n\ncd", "m: ab\n\nYES\n\ncd"]
    assert (first["turn"], second["turn"]) == (0, 1)


def test_tokens_are_counted_from_ids_and_the_end_token_counts(
    tmp_path, runner_in, settings_of, scripted_method, log
):
    methods = _two(scripted_method, log, hf={"a": [40, 41, 42, 2]}, m={"a": [40, 41, 2]})
    asked = [Question(1, "g", ("a",))]
    runner, _ = runner_in(tmp_path, settings_of(methods=("m",)), asked, methods=methods)
    (record,) = runner.run()
    assert (record["hf_new_tokens"], record["new_tokens"]) == (4, 3)
    assert record["identical"] is False
    assert record["first_difference"] == 2
    expected = (record["hf_seconds"] / 4) / (record["seconds"] / 3)
    assert record["speedup"] == pytest.approx(expected)


def test_when_sampling_nothing_is_said_of_same_tokens(
    tmp_path, runner_in, settings_of, scripted_method, log
):
    settings = settings_of(methods=("m",), temperature=0.7)
    runner, _ = runner_in(tmp_path, settings, methods=_two(scripted_method, log))
    assert [record["identical"] for record in runner.run()] == [None] * 4


@pytest.mark.usefixtures("drafting")
def test_all_methods_give_hfs_tokens_on_a_real_model(tmp_path, runner_in, settings_of):
    names = ("hf", "hf-lookup", "hf-early-exit", "plain", "swift", "swift-paper")
    runner, journal = runner_in(tmp_path, settings_of(methods=names))
    records = list(runner.run())
    assert len(records) == runner.total == 4 * len(names)
    assert runner.missing == 0
    assert runner.skipped == {}
    for record in records:
        assert record["identical"], record
        assert record["first_difference"] is None
        assert 1 <= record["new_tokens"] <= 6
        assert record["speedup"] > 0
        assert math.isfinite(record["speedup"])
        assert record["tokens_per_forward"] is None or record["tokens_per_forward"] >= 1
    for record in records:
        if record["method"] in ("hf", "plain") and record["new_tokens"] > 1:
            assert record["tokens_per_forward"] == 1
    ours = [record for record in records if record["method"] == "swift"]
    assert all(record["accepted_histogram"] for record in ours)
    assert all(record["time_split"]["verify"] > 0 for record in ours)
    results = collect(journal, settings_of(methods=names), complete=True, skipped={})
    assert results["summary"]["hf"]["overall"]["identical"] == 3
    assert len(results["reference"]) >= 2
    assert set(results["summary"]["swift"]) == {"qa", "rag", "overall"}


def test_sampling_is_seeded_by_question(tmp_path, runner_in, settings_of):
    settings = settings_of(methods=("hf",), temperature=1.0)
    ids = []
    for folder in ("a", "b"):
        _, journal = made = runner_in(tmp_path / folder, settings)
        list(made[0].run())
        ids.append([record["token_ids"] for record in journal.records])
    assert ids[0] == ids[1]


def test_records_are_on_the_disk_when_they_are_made(
    tmp_path, runner_in, settings_of, scripted_method, log
):
    methods = _two(scripted_method, log)
    runner, _ = runner_in(tmp_path, settings_of(methods=("m",)), methods=methods)
    for made, record in enumerate(runner.run(), start=1):
        lines = [json.loads(line) for line in (tmp_path / NAME).read_text().splitlines()]
        written = [line for line in lines if line["kind"] == "record"]
        assert len(written) == made
        assert written[-1]["question_id"] == record["question_id"]


def test_a_prompt_beyond_the_context_is_left_out_for_all(tmp_path, runner_in, settings_of):
    asked = [Question(1, "g", ("a" * 300, "b")), Question(2, "g", ("a" * 253,))]
    settings = settings_of(methods=("hf", "plain"))
    runner, journal = runner_in(tmp_path, settings, asked)
    records = list(runner.run())
    assert [record["question_id"] for record in records] == [2, 2]
    assert {record["new_tokens"] for record in records} == {3}
    assert runner.missing == 0
    results = collect(journal, settings, complete=True, skipped={})
    assert [entry["turn"] for entry in results["left_out"]] == [0, 1]
    assert "2 turns (of g) are left out" in " ".join(results["warnings"])
    again, _ = runner_in(tmp_path, settings, asked)
    assert again.missing == 0


def test_what_one_question_leaves_behind_is_gone_before_the_next_is_timed(
    tmp_path, runner_in, settings_of, scripted_method, log
):
    """Also where it is in a cycle, as what a Swift object holds is."""
    left, alive = [], []

    class Kept:
        pass

    class Cyclic(scripted_method("m", log)):
        def start(self):
            alive.append(sum(one() is not None for one in left))
            kept = Kept()
            kept.itself = kept
            left.append(weakref.ref(kept))
            return super().start()

    methods = {"hf": scripted_method("hf", log), "m": Cyclic}
    asked = [Question(i, "g", (text,)) for i, text in enumerate("abc")]
    runner, _ = runner_in(tmp_path, settings_of(methods=("m",)), asked, methods=methods)
    gc.disable()
    try:
        list(runner.run())
    finally:
        gc.enable()
    assert alive == [0] * len(alive)
    assert len(alive) == 4  # the warm-up and three questions


def test_no_questions_are_refused(tmp_path, runner_in, settings_of):
    with pytest.raises(ConfigError, match="no questions"):
        runner_in(tmp_path, settings_of(), [])
