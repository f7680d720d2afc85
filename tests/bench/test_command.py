"""`swift-sd bench` from outside."""

import json
import os
import re
import signal
import subprocess
import sys
from time import monotonic, sleep

import pytest

from swift_sd.bench.catalogue import METHODS
from swift_sd.bench.questions import read_questions, shuffled
from swift_sd.bench.runner import Runner
from swift_sd.errors import SwiftError

RECORD = (
    *("question_id", "group", "method", "new_tokens", "seconds", "speedup"),
    *("tokens_per_forward", "identical"),
)
FIGURES = ("speedup", "min", "median", "max", "identical", "questions")
SMALL = ("--max-new-tokens", 4, "--methods", "hf,plain,swift")


@pytest.fixture
def run(bench, model_folder, questions_file, tmp_path):
    def start(*more, out="out"):
        given = ("--model", model_folder, "--questions", questions_file, "--out", tmp_path / out)
        return (*bench(*given, *SMALL, *more), tmp_path / out)

    return start


def test_writes_records_results_and_page_and_prints_the_table(run):
    status, out, err, folder = run()
    assert status == 0, err
    assert {path.name for path in folder.iterdir()} == {
        "records.jsonl",
        "results.json",
        "report.html",
    }
    results = json.loads((folder / "results.json").read_text())
    assert results["complete"]
    assert len(results["records"]) == 4 * 3
    assert set(results["summary"]) == {"hf", "plain", "swift"}
    assert set(results["summary"]["hf"]) == {"qa", "mt_bench", "overall"}
    for key in (
        "cpu",
        "cores",
        "threads",
        "memory",
        "torch",
        "transformers",
        "commit",
        "sources",
        "date",
    ):
        assert key in results["environment"]
    assert results["settings"]["max_new_tokens"] == 4
    assert not {"token_ids", "hf_token_ids"} & set(results["records"][0])
    # The names of design.md, through which others measure.
    assert results.keys() >= {"environment", "settings", "records", "summary"}
    for record in results["records"]:
        assert record.keys() >= set(RECORD)
        assert record["tokens_per_forward"] == 1 or record["method"] == "swift"
    for groups in results["summary"].values():
        for figures in groups.values():
            assert figures.keys() == {*FIGURES, "interval"}
    assert "(3/3)" in out
    assert re.search(r"swift: 95 % interval \d+\.\d\d to \d+\.\d\d; single questions", out)
    assert max(map(len, out.splitlines())) <= 80
    assert "report.html" in err


def test_the_same_command_again_times_nothing_anew(run):
    run()
    status, out, err, folder = run()
    assert status == 0
    assert "12 records are there already: complete" in err
    assert "(3/3)" in out
    assert re.search(r"swift: 95 % interval \d+\.\d\d to \d+\.\d\d; single questions", out)
    assert len((folder / "records.jsonl").read_text().splitlines()) > 12


def test_ctrl_c_keeps_what_there_is_and_says_how_to_go_on(run, monkeypatch):
    complete = Runner.run

    def interrupted(self):
        for made, record in enumerate(complete(self), start=1):
            yield record
            if made == 5:
                raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "run", interrupted)
    status, out, err, folder = run()
    assert status == 130
    assert "interrupted; the same command" in err
    assert "Warning: The run is not complete" in out
    results = json.loads((folder / "results.json").read_text())
    assert not results["complete"]
    assert len(results["records"]) == 5

    monkeypatch.undo()
    status, _, err, folder = run()
    assert status == 0
    assert "5 records are there already: 7 to go" in err
    assert len(json.loads((folder / "results.json").read_text())["records"]) == 12


def test_ctrl_c_in_a_terminal_keeps_what_there_is(model_folder, tmp_path):
    folder, questions, many = tmp_path / "out", tmp_path / "many.jsonl", 2000
    asked = [{"question_id": i, "category": "qa", "turns": ["Why?"]} for i in range(many)]
    questions.write_text("\n".join(map(json.dumps, asked)))
    command = [sys.executable, "-m", "swift_sd", "bench", "--model", model_folder]
    command += ["--questions", questions, "--out", folder, "--methods", "plain"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def as_in_a_terminal():
        """A background job, as the tests may be run, ignores the signal, and so would its child."""
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with subprocess.Popen(
        [*map(str, command), "--max-new-tokens", "8"],
        stderr=subprocess.PIPE,
        env=environment,
        preexec_fn=as_in_a_terminal,
    ) as process:
        journal, until = folder / "records.jsonl", monotonic() + 300
        while not (journal.is_file() and '"kind": "record"' in journal.read_text()):
            assert process.poll() is None
            assert monotonic() < until
            sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert b"interrupted; the same command" in err
    assert b"Traceback" not in err
    results = json.loads((folder / "results.json").read_text())
    assert 1 <= len(results["records"]) < many
    assert (folder / "report.html").is_file()


def test_a_terminal_shows_how_far_it_is_and_the_time_left(run, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if stderr were a terminal
    status, _, err, _ = run()
    assert status == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", err)
    assert re.search(r"swift on \w+ .*\d+/12 .*\d:\d\d:\d\d left \d:\d\d:\d\d", shown)


def test_what_breaks_midway_leaves_the_figures_so_far(run, monkeypatch):
    complete = Runner.run

    def breaking(self):
        for made, record in enumerate(complete(self), start=1):
            yield record
            if made == 5:
                raise SwiftError("it broke")

    monkeypatch.setattr(Runner, "run", breaking)
    status, _, err, folder = run()
    assert status != 0
    assert "it broke" in err
    assert len(json.loads((folder / "results.json").read_text())["records"]) == 5


def test_a_run_without_any_method_left_says_why_and_fails(bench, model_folder, tmp_path):
    def broken(self):
        raise RuntimeError("not with this one")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(METHODS["hf-lookup"], "start", broken)
        given = ("--model", model_folder, "--limit", 1, "--methods", "hf-lookup", "-n", 4)
        status, out, err = bench(*given, "--out", tmp_path / "out")
    assert status == 2
    assert "hf-lookup was skipped: RuntimeError: not with this one" in out
    assert "no method that was asked for" in err


def test_a_folder_with_other_settings_is_refused_before_a_model_is_loaded(run):
    run()
    _refused(run("--model", "no/such/model", "--seed", 3), "model is 'no/such/model' here")


def test_ctrl_c_before_the_first_record_leaves_no_page(run, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "run", interrupted)
    status, out, _, folder = run()
    assert status == 130
    assert "nothing was timed yet" in out
    assert not (folder / "report.html").exists()


def _refused(result, *words):
    status, out, err = result[:3]
    assert (status, out) == (2, ""), err
    assert err.splitlines()[-1].startswith("swift-sd: error: "), err
    for word in words:
        assert word in err


def test_other_settings_in_the_same_folder_are_refused(run):
    run()
    _refused(run("--seed", 3), "seed is 3 here and 0 there", "--out")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--methods", "hf,swfit"), "hf-lookup"),
        (("--methods", "hf-assisted"), "--draft-model"),
        (("--methods", "swift-fixed"), "--layer-set"),
        (("--methods", ","), "no method"),
        (("--suite", "mine"), "builtin"),
        (("--suite", "builtin", "--questions", "x.jsonl"), "--suite"),
        (("--questions", "absent.jsonl"), "absent.jsonl"),
        (("--limit", "0"), "--limit"),
        (("--repeats", "0"), "--repeats"),
        (("--temperature", "-1"), "-1"),
        (("compar",), "compar"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(bench, arguments, word):
    _refused(bench(*arguments), word)


def test_a_damaged_question_is_named_with_its_line(bench, questions_file):
    questions_file.write_text(questions_file.read_text() + "\n{}\n")
    _refused(bench("--questions", questions_file), "line 4", str(questions_file))


def test_compares_two_runs(run, bench, tmp_path):
    run(out="a")
    run(out="b")
    status, out, _ = bench("compare", tmp_path / "a", tmp_path / "b" / "results.json")
    assert status == 0
    assert "too few: less than 6 questions" in out
    assert "…" not in out
    assert "mt_bench" in out
    assert max(map(len, out.splitlines())) <= 80
    status, out, _ = bench("compare", tmp_path / "a", tmp_path / "a", "--json")
    assert {row["method"] for row in json.loads(out)} == {"hf", "plain", "swift"}


def test_makes_the_page_again(run, bench, tmp_path):
    folder = run()[-1]
    (folder / "report.html").unlink()
    assert bench("page", folder)[0] == 0
    assert bench("page", folder / "results.json", "--out", tmp_path / "p.html")[0] == 0
    assert (tmp_path / "p.html").read_text() == (folder / "report.html").read_text()


def test_sampling_and_a_stream_with_repeats(run):
    status, out, err, folder = run("-t", 0.8, "--stream", "--repeats", 2, "--limit", 1)
    assert status == 0, err
    results = json.loads((folder / "results.json").read_text())
    assert {record["identical"] for record in results["records"]} == {None}
    assert "In brackets" not in out


def test_questions_are_asked_in_an_order_drawn_from_the_seed(run, questions_file):
    given = read_questions(questions_file)
    seed = next(seed for seed in range(99) if shuffled(given, seed) != given)
    status, _, err, folder = run("--shuffle", "--seed", seed, "--methods", "plain")
    assert status == 0, err
    results = json.loads((folder / "results.json").read_text())
    asked = list(dict.fromkeys(record["question_id"] for record in results["records"]))
    assert asked == [question.question_id for question in shuffled(given, seed)]
    assert results["settings"]["questions"].endswith("shuffled")


@pytest.mark.parametrize("command", [(), ("compare",), ("page",)])
def test_help_is_quick_and_fits_a_terminal(command):
    program = (
        "import sys; from swift_sd.cli.main import main; status = main(sys.argv[1:]);"
        "assert not {'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "bench", *command, "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Usage: swift-sd bench" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
