"""`swift-sd search`, and profiles on the command line."""

import json
import re
from types import SimpleNamespace

import pytest

from swift_sd.adapting import adaptation
from swift_sd.adapting.profile import VERSION
from swift_sd.cli.layer_map import layer_map
from swift_sd.cli.study import Study
from swift_sd.model.layer_set import LayerSet

pytestmark = pytest.mark.usefixtures("clocked")

WORDS = "w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12 w13 w14"


@pytest.fixture
def prompts_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(f"w{index} {WORDS}" for index in range(20, 24)) + "\n\n")
    return path


@pytest.fixture
def search(swift_sd, model_folder, prompts_file, tmp_path):
    out = tmp_path / "profile.json"

    def run(*arguments, model=model_folder, prompts=prompts_file, out=out):
        return (
            *swift_sd(
                *("search", model, "--prompts", prompts, "--out", out, "-n", 24),
                *("--dtype", "bfloat16", *arguments),
            ),
            out,
        )

    return run


def test_it_writes_a_profile_and_shows_what_it_found(search, swift_sd, model_folder):
    status, out, err, path = search()
    assert status == 0, err
    assert "skipped" in out
    assert "attention" in out
    assert "the search" in out
    assert f"{path} is written" in err
    profile = json.loads(path.read_text())
    assert profile["study"]["done"] == 8
    both = profile["study"]["learned"]
    assert [learned["kinds"][0]["search"]["told"] > 0 for learned in both.values()] == [True, True]
    assert profile["learned"] == both[str(profile["bits"])]
    assert [*both] == ["8", "16"]  # four bits do not go into rows as short as these
    words = " ".join(out.split())
    assert all(re.search(rf"in {bits} bits \d+\.\d\dx", words) for bits in both)
    status, out, err = swift_sd(
        "generate", "-m", model_folder, "--profile", path, "-v", "-n", 20, f"w5 {WORDS}"
    )
    assert status == 0
    assert "skipping:" in err
    assert "never skipped" in err


def test_the_same_command_goes_on_where_ctrl_c_stopped_it(search, monkeypatch):
    answered, answer = [], Study._answer

    def interrupted(self, text):
        answered.append(text)
        if len(answered) == 3:
            raise KeyboardInterrupt
        answer(self, text)

    monkeypatch.setattr(Study, "_answer", interrupted)
    status, out, err, path = search()
    assert status == 130
    assert "interrupted; the same command goes on" in err
    assert "attention" in out
    profile = json.loads(path.read_text())
    assert profile["study"]["done"] == 2
    assert profile["bits"] is None  # before all were tried
    status, _, err, path = search()
    assert status == 0
    assert "goes on behind answer 2 of 8" in err
    assert json.loads(path.read_text())["study"]["done"] == 8
    rest = ["w22", "w23", "w20", "w21", "w22", "w23"]
    assert [text.split()[0] for text in answered] == ["w20", "w21", "w22", *rest]
    status, _, err, path = search()
    assert status == 0
    assert "all answers are there already" in err


def test_a_terminal_of_80_columns_shows_how_far_it_is_and_the_time_left(search, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if stderr were a terminal
    monkeypatch.setenv("COLUMNS", "80")
    status, out, err, _ = search()
    assert status == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", err)
    lines = re.split(r"[\r\n]+", shown)
    whole = r"drafts in (8|16) bits +\S+ +[1-8]/8 +\d:\d\d:\d\d left \d:\d\d:\d\d"
    assert [line for line in lines if re.search(whole, line)], shown
    assert max(map(len, lines)) <= 80
    assert "the search" in out


def told_in(path):
    """Candidates scored with each precision."""
    both = json.loads(path.read_text())["study"]["learned"]
    return [learned["kinds"][-1]["search"]["told"] for learned in both.values()]


def test_other_prompts_start_from_what_is_known(search, tmp_path):
    path = search()[-1]
    told = told_in(path)
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"question_id": 1, "group": "a", "turns": [WORDS, "w3"]}))
    status, _, err, path = search(prompts=other)
    assert status == 0
    assert "already" not in err
    profile = json.loads(path.read_text())
    assert profile["study"]["done"] == 2
    assert all(now >= before for now, before in zip(told_in(path), told, strict=True))


def test_what_cannot_be_done_is_refused(search, refused, tmp_path):
    refused(search(prompts=tmp_path / "absent.txt")[:3], "absent.txt")
    (tmp_path / "empty.txt").write_text("\n \n")
    refused(search(prompts=tmp_path / "empty.txt")[:3], "holds no prompt")
    refused(search(out=tmp_path / "no" / "x.json")[:3], "cannot write")
    path = search()[-1]
    other = json.loads(path.read_text())
    other["model"]["digest"] = "another"
    path.write_text(json.dumps(other))
    refused(search()[:3], "another model")
    path.write_text("{")
    refused(search()[:3], "damaged")


@pytest.mark.parametrize(
    ("change", "words"),
    [({"machine": {"threads": 999}}, "of another machine"), ({"study": {}}, "other text")],
)
def test_what_is_no_study_of_this_machine_is_not_overwritten(search, refused, change, words):
    path = search()[-1]
    kept = json.dumps({**json.loads(path.read_text()), **change})
    path.write_text(kept)
    refused(search()[:3], words)
    assert path.read_text() == kept


@pytest.mark.parametrize(("gains", "best"), [((1.2, 1.9, 1.5), 8), ((2.0, 1.0, 2.0), 16)])
def test_the_precision_that_promises_most_is_chosen(gains, best):
    study = object.__new__(Study)
    study._known = dict(zip((4, 8, 16), (SimpleNamespace(gain=one) for one in gains), strict=True))
    assert study._best == best


def test_generate_keeps_what_it_learned_unless_told_not_to(
    swift_sd, model_folder, own_cache, monkeypatch
):
    ask = ("generate", "-m", model_folder, "-n", 60, "--ignore-eos", f"w5 {WORDS}")
    for arguments in (("--profile", "none"), ("--plain",)):
        assert swift_sd(*ask, *arguments)[0] == 0
        assert not (own_cache / "profiles").exists()
    # So that something is learned for sure, however short the answer.
    monkeypatch.setattr(adaptation.Adaptation, "_may_search", lambda self, kind: True)
    monkeypatch.setattr(adaptation, "AT_ONCE", 1)
    assert swift_sd(*ask)[0] == 0
    (file,) = (own_cache / "profiles").glob("*")
    assert json.loads(file.read_text())["version"] == VERSION


def test_the_map_marks_every_sublayer():
    text = str(layer_map(LayerSet(62, {1, 2, 60}, {3})))
    lines = text.splitlines()
    assert lines[0].split() == ["layer", "0", "10", "20", "30", "40", "50"]
    assert lines[1] == "attention " + "□··" + "■" * 57
    assert lines[2] == "MLP       " + "□■■·" + "■" * 56
    assert lines[4] == "attention ·□"
    assert max(map(len, lines[:-1])) <= 72


def test_where_no_rounded_weights_can_be_had_the_prompts_are_answered_once(search):
    status, out, _, path = search("--dtype", "float32")
    assert status == 0
    profile = json.loads(path.read_text())
    assert (profile["bits"], profile["study"]["done"]) == (16, 4)
    assert [*profile["study"]["learned"]] == ["16"]
    assert re.search(r"in 16 bits \d+\.\d\dx", " ".join(out.split()))
