import json

import pytest

from swift_sd.bench.journal import NAME, Journal, alone, check_folder
from swift_sd.bench.questions import Question
from swift_sd.bench.results import collect
from swift_sd.errors import ConfigError

KEYS = ("question_id", "turn", "method", "token_ids", "hf_token_ids")


def _what(records):
    return [tuple(str(record[key]) for key in KEYS) for record in records]


@pytest.fixture
def finished(tmp_path, runner_in, settings_of, scripted_method):
    """A complete run, and a function that takes one up from what is left of its journal."""
    log = []
    # Turn 2's prompt holds hf's answer, which must come from the journal or be made anew.
    answers = {"hf": {"cd": [50, 51]}, "m": {"cd": [60]}, "n": {}}
    methods = {name: scripted_method(name, log, said) for name, said in answers.items()}
    settings = settings_of(methods=("hf", "m", "n"))

    def run(folder):
        runner, journal = runner_in(folder, settings, methods=methods)
        before = len(journal.records)
        made = list(runner.run())
        assert before + len(made) == runner.total
        return journal, made

    journal, _ = run(tmp_path / "whole")
    return journal, run


def _torn(tmp_path, data, name):
    folder = tmp_path / name
    folder.mkdir()
    (folder / NAME).write_bytes(data)
    return folder


def test_resumes_after_a_kill_behind_any_line(tmp_path, finished):
    whole, run = finished
    lines = whole.path.read_bytes().splitlines(keepends=True)
    for kept in range(len(lines) + 1):
        folder = _torn(tmp_path, b"".join(lines[:kept]), f"cut{kept}")
        there = sum(b'"kind": "record"' in line for line in lines[:kept])
        journal, made = run(folder)
        assert len(made) == 12 - there
        assert sorted(_what(journal.records)) == sorted(_what(whole.records))


def test_resumes_after_a_kill_in_the_middle_of_any_line(tmp_path, finished):
    whole, run = finished
    lines = whole.path.read_bytes().splitlines(keepends=True)
    for cut in range(len(lines)):
        for part in (1, len(lines[cut]) - 1):
            data = b"".join(lines[:cut]) + lines[cut][:part]
            journal, _ = run(_torn(tmp_path, data, f"torn{cut}-{part}"))
            assert sorted(_what(journal.records)) == sorted(_what(whole.records))
            for line in journal.path.read_text().splitlines():
                json.loads(line)


def test_a_complete_run_is_not_run_again(finished):
    whole, run = finished
    before = whole.path.read_bytes()
    _, made = run(whole.path.parent)
    assert made == []
    assert whole.path.read_bytes() == before


def test_the_rest_of_a_closed_run_is_made_later(tmp_path, runner_in, settings_of):
    settings = settings_of(methods=("plain",))
    runner, _ = runner_in(tmp_path, settings)
    records = runner.run()
    next(records)
    records.close()
    again, journal = runner_in(tmp_path, settings)
    assert (again.total, again.missing) == (4, 3)
    assert len(list(again.run())) == 3
    assert len(journal.records) == 4


def test_an_interrupted_stream_is_said_to_be_one(tmp_path, runner_in, settings_of):
    settings = settings_of(methods=("plain",), stream=True)
    records = runner_in(tmp_path, settings)[0].run()
    next(records)
    records.close()
    runner, journal = runner_in(tmp_path, settings)
    list(runner.run())
    warnings = collect(journal, settings, complete=True, skipped={})["warnings"]
    assert any("stream was interrupted (after 1 records)" in warning for warning in warnings)


def test_a_stream_that_was_interrupted_before_anything_was_timed_lost_nothing(
    tmp_path, runner_in, settings_of
):
    settings = settings_of(methods=("plain",), stream=True)
    runner_in(tmp_path, settings)[1].append("start", {"records": 0})
    runner, journal = runner_in(tmp_path, settings)
    list(runner.run())
    assert len(journal.of_kind("start")) == 2
    assert not collect(journal, settings, complete=True, skipped={})["warnings"][1:]


def test_a_conversation_is_told_anew_to_who_has_not_met_its_first_turn(
    tmp_path, runner_in, settings_of, scripted_method
):
    log, asked = [], [Question(1, "g", ("ab", "cd"))]
    methods = {name: scripted_method(name, log) for name in ("hf", "m")}
    settings = settings_of(methods=("m",))
    next(iter(runner_in(tmp_path, settings, asked, methods=methods)[0].run()))
    log.clear()
    (record,) = runner_in(tmp_path, settings, asked, methods=methods)[0].run()
    assert record["turn"] == 1
    assert [entry.split(":")[0] for entry in log if ":" in entry] == ["hf", "m", "hf", "m"]
    assert next(entry for entry in log if entry.startswith("m:")) == "m: ab"


@pytest.mark.parametrize(
    "change", [{"max_new_tokens": 7}, {"methods": ("hf",)}, {"digest": "other"}, {"seed": 1}]
)
def test_other_settings_in_the_same_folder_are_refused(tmp_path, settings_of, change):
    Journal(tmp_path, settings_of().to_dict(), {"cpu": "a"})
    with pytest.raises(ConfigError, match="--out") as caught:
        Journal(tmp_path, settings_of(**change).to_dict(), {"cpu": "a"})
    assert next(iter(change)) in str(caught.value)


def test_what_is_only_said_of_a_run_may_be_said_otherwise(tmp_path, settings_of):
    Journal(tmp_path, settings_of(note="one").to_dict(), {"cpu": "a"})
    check_folder(tmp_path, settings_of(note="another").to_dict())
    with pytest.raises(ConfigError, match="seed is 5"):
        check_folder(tmp_path, settings_of(seed=5).to_dict())
    check_folder(tmp_path / "absent", settings_of(seed=5).to_dict())


def test_another_machine_in_the_same_folder_is_refused(tmp_path, settings_of):
    Journal(tmp_path, settings_of().to_dict(), {"cpu": "a", "date": "1"})
    Journal(tmp_path, settings_of().to_dict(), {"cpu": "a", "date": "2"})
    with pytest.raises(ConfigError, match="cpu is 'b' here and 'a' there"):
        Journal(tmp_path, settings_of().to_dict(), {"cpu": "b"})


def test_two_processes_do_not_write_in_one_folder(tmp_path):
    folder = tmp_path / "run"
    refused = pytest.raises(ConfigError, match="another process")
    with alone(folder), refused, alone(folder):
        pass
    assert not folder.exists()
    with alone(folder):
        (folder / "x").touch()
    assert [path.name for path in folder.iterdir()] == ["x"]


def test_a_kill_between_turns_that_are_left_out_is_made_good(tmp_path, runner_in, settings_of):
    asked = [Question(1, "g", ("a" * 300, "b")), Question(2, "g", ("a",))]
    settings = settings_of(methods=("plain",))
    runner, whole = runner_in(tmp_path / "whole", settings, asked)
    list(runner.run())
    lines = whole.path.read_bytes().splitlines(keepends=True)
    cuts = [n for n, line in enumerate(lines, 1) if b'"kind": "left_out"' in line]
    assert len(cuts) == 2
    for cut in cuts:
        folder = _torn(tmp_path, b"".join(lines[:cut]), f"left-out-{cut}")
        again, journal = runner_in(folder, settings, asked)
        list(again.run())
        assert again.missing == 0
        results = collect(journal, settings, complete=True, skipped={})
        assert [entry["turn"] for entry in results["left_out"]] == [0, 1]


@pytest.mark.parametrize("data", [b'{"mine": 1}', b'{"mine": 1}\n{"mine": 2}', b"mine\n"])
def test_a_file_of_somebody_elses_is_left_as_it_is(tmp_path, settings_of, data):
    folder = _torn(tmp_path, data, "theirs")
    with pytest.raises(ConfigError, match="no run of swift-sd bench"):
        check_folder(folder, settings_of().to_dict())
    assert (folder / NAME).read_bytes() == data


def test_a_line_damaged_in_the_middle_is_named(tmp_path, finished, settings_of):
    whole, run = finished
    lines = whole.path.read_bytes().splitlines(keepends=True)
    lines[4] = b"{nonsense\n"
    with pytest.raises(ConfigError, match="line 5 is damaged"):
        run(_torn(tmp_path, b"".join(lines), "damaged"))
