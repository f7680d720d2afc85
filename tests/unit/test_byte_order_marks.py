"""A byte-order mark, with which some editors begin a file, is no part of what the file says."""

import json

import pytest

from swift_sd import LayerSet, Profile
from swift_sd.bench.journal import NAME, Journal
from swift_sd.bench.questions import read_questions
from swift_sd.bench.results import KEYS, read_results
from swift_sd.cli.search import read_prompts

MARK = b"\xef\xbb\xbf"


@pytest.fixture
def marked(tmp_path):
    """`marked(name, text)`: a file with a mark before the text."""

    def write(name, text):
        path = tmp_path / name
        path.write_bytes(MARK + text.encode())
        return path

    return write


def test_prompts(marked):
    assert read_prompts(marked("prompts.txt", "first\nsecond\n")) == ["first", "second"]


def test_questions(marked):
    line = json.dumps({"question_id": 1, "group": "qa", "turns": ["why?"]})
    (question,) = read_questions(marked("questions.jsonl", line))
    assert [*question.turns] == ["why?"]


def test_layer_sets(marked, tmp_path):
    given = LayerSet(6, {1}, {2, 3})
    given.save(tmp_path / "set.json")
    text = (tmp_path / "set.json").read_text(encoding="utf-8")
    assert LayerSet.load(marked("marked.json", text)) == given


def test_profiles(marked, tmp_path):
    given = Profile({"family": "llama"}, {"processor": "x"}, {"kinds": []})
    given.save(tmp_path / "profile.json")
    text = (tmp_path / "profile.json").read_text(encoding="utf-8")
    assert Profile.load(marked("marked.json", text)) == given


def test_results(marked):
    text = json.dumps(dict.fromkeys(KEYS, 1))
    assert read_results(marked("results.json", text)) == json.loads(text)


@pytest.mark.parametrize("torn", [b"", b'{"kind": "rec'])
def test_journals(tmp_path, torn):
    """Whose last line may have been cut off: what goes on behind it stays whole."""
    header = {"settings": {"model": "m"}, "environment": {}}
    Journal(tmp_path, header["settings"], header["environment"]).append("record", {"place": 1})
    whole = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(MARK + whole + torn)
    again = Journal(tmp_path, header["settings"], header["environment"])
    assert [entry["place"] for entry in again.of_kind("record")] == [1]
    assert (tmp_path / NAME).read_bytes() == MARK + whole
