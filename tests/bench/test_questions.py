import json
from collections import Counter
from dataclasses import replace

import pytest

from swift_sd.bench.questions import (
    Question,
    digest,
    limited,
    read_questions,
    shuffled,
    suite,
)
from swift_sd.errors import ConfigError

GOOD = '{"question_id": 1, "group": "qa", "turns": ["Hello?"]}'
SPEC_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem")


def _file(tmp_path, *lines):
    path = tmp_path / "asked.jsonl"
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines))
    return path


def test_reads_ids_groups_and_turns(tmp_path):
    other = '{"question_id": "b", "group": "rag", "turns": ["One", "Two"], "reference": []}'
    assert read_questions(_file(tmp_path, GOOD, "", other)) == [
        Question(1, "qa", ("Hello?",)),
        Question("b", "rag", ("One", "Two")),
    ]


def test_a_last_line_with_windows_ends_is_fine(tmp_path):
    assert len(read_questions(_file(tmp_path, GOOD + "\r", ""))) == 1


@pytest.mark.parametrize("category", [*SPEC_BENCH, "humanities"])
def test_spec_benchs_conversations_are_one_group(tmp_path, category):
    line = json.dumps({"question_id": 81, "category": category, "turns": ["a", "b"]})
    assert read_questions(_file(tmp_path, line))[0].group == "mt_bench"


@pytest.mark.parametrize("name", ["translation", "summarization", "qa", "math_reasoning", "rag"])
def test_spec_benchs_other_categories_are_groups(tmp_path, name):
    line = json.dumps({"question_id": 81, "category": name, "turns": ["a"]})
    assert read_questions(_file(tmp_path, line))[0].group == name


def test_a_group_goes_before_a_category(tmp_path):
    line = json.dumps({"question_id": 1, "group": "math", "category": "qa", "turns": ["a"]})
    assert read_questions(_file(tmp_path, line))[0].group == "math"


@pytest.mark.parametrize(
    ("damaged", "word"),
    [
        ('{"question_id": 2, "group"', "not JSON"),
        (b'{"question_id": 2, "turns": ["\xff"]}', "UTF-8"),
        ("[1]", "list"),
        ('{"group": "qa", "turns": ["a"]}', "question_id"),
        ('{"question_id": true, "group": "qa", "turns": ["a"]}', "question_id"),
        ('{"question_id": 2, "turns": ["a"]}', "group"),
        ('{"question_id": 2, "group": " ", "turns": ["a"]}', "group"),
        ('{"question_id": 2, "group": "overall", "turns": ["a"]}', "overall"),
        ('{"question_id": 2, "group": "qa"}', "turns"),
        ('{"question_id": 2, "group": "qa", "turns": []}', "turns"),
        ('{"question_id": 2, "group": "qa", "turns": "a"}', "turns"),
        ('{"question_id": 2, "group": "qa", "turns": [" "]}', "turn is empty"),
        ('{"question_id": 2, "group": "qa", "turns": [3]}', "turn is empty"),
        ('{"question_id": 2, "group": "qa", "turns": ["\\ud800"]}', "surrogate"),
        ('{"question_id": "\\ud800", "group": "qa", "turns": ["a"]}', "question_id holds half"),
        ('{"question_id": 2, "group": "\\ud800", "turns": ["a"]}', "group holds half"),
        (GOOD, "line 1 too"),
    ],
)
def test_a_damaged_line_is_named_with_its_number(tmp_path, damaged, word):
    path = _file(tmp_path, GOOD, "", damaged)
    with pytest.raises(ConfigError, match="line 3") as caught:
        read_questions(path)
    assert word in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a_file_without_questions_is_refused(tmp_path, content):
    with pytest.raises(ConfigError, match="no question"):
        read_questions(_file(tmp_path, content))


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_questions(tmp_path / "none.jsonl")


def test_limit_takes_the_first_of_each_group(questions):
    assert [question.question_id for question in limited(questions, 1)] == [1, "x"]
    assert limited(questions, None) == questions


@pytest.mark.parametrize(("asked", "limit"), [([], None), ([Question(1, "a", ("b",))], 0)])
def test_nothing_to_ask_is_refused(asked, limit):
    with pytest.raises(ConfigError, match=r"empty|no questions"):
        limited(asked, limit)


def test_the_digest_tells_questions_apart(questions):
    assert digest(questions) == digest(list(questions))
    assert digest(questions) != digest(questions[::-1])


def test_shuffling_keeps_every_question(questions):
    many = [replace(questions[0], question_id=number) for number in range(30)]
    mixed = shuffled(many, 0)
    assert mixed != many
    assert sorted(mixed, key=lambda question: question.question_id) == many
    assert (shuffled(many, 0) == mixed, shuffled(many, 1) == mixed) == (True, False)


def test_the_builtin_suite_has_three_for_each_of_eight_groups():
    asked = suite("builtin")
    groups = Counter(question.group for question in asked)
    assert set(groups.values()) == {3}
    assert set(groups) == {
        "mt_bench",
        "translation",
        "summarization",
        "qa",
        "math_reasoning",
        "rag",
        "code_editing",
        "story",
    }
    assert len({question.turns for question in asked}) == 24


def test_an_unknown_suite_is_refused():
    with pytest.raises(ConfigError, match="builtin"):
        suite("mine")
