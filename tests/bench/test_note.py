"""What is said of the checkpoint beside figures of drafts that read rounded weights."""

import html
import json

import pytest

from swift_sd.cli.bench import DEQUANTISED


@pytest.fixture
def run(bench, model_folder, questions_file, tmp_path):
    def start(*more):
        given = ("--model", model_folder, "--questions", questions_file, "--limit", 1, "-n", 4)
        options = ("--methods", "hf,swift", "--dtype", "bfloat16", "--out", tmp_path / "out")
        status, out, err = bench(*given, *options, *more)
        assert status == 0, err
        return out, tmp_path / "out"

    return start


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), DEQUANTISED),
        (("--note", "of ours"), "of ours"),
        (("--note", ""), ""),
        (("--methods", "hf,no-rounding"), None),
    ],
)
def test_of_the_default_model_it_is_said_what_it_comes_from(
    run, model_folder, monkeypatch, arguments, said
):
    monkeypatch.setattr("swift_sd.cli.bench.DEFAULT_MODEL", str(model_folder))
    out, folder = run(*arguments)
    assert json.loads((folder / "results.json").read_text())["settings"]["note"] == said
    assert ("Note: " in out) == bool(said)
    page = (folder / "report.html").read_text()
    assert ("see the note" in page) == bool(said)
    if said:
        assert said in html.unescape(page)


def test_of_other_models_nothing_is_said(run):
    folder = run()[-1]
    assert json.loads((folder / "results.json").read_text())["settings"]["note"] is None
