"""Questions to time: read from JSON lines, checked, cut to so many per group, shuffled."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from swift_sd.errors import ConfigError

BUILTIN = Path(__file__).with_name("builtin.jsonl")
SUITES = {"builtin": BUILTIN}

# Spec-Bench names what MT-Bench holds by its eight categories; the other five are groups already.
MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem")
GROUP_OF = dict.fromkeys((*MT_BENCH, "humanities"), "mt_bench")


@dataclass(frozen=True)
class Question:
    """One conversation to hold.

    Attributes:
        question_id: unique in its file.
        group: what it is summed up with.
        turns: what the user says, in order; at least one.
    """

    question_id: int | str
    group: str
    turns: tuple[str, ...]


def read_questions(path: Path) -> list[Question]:
    """The questions of a JSON-lines file; Spec-Bench's own file works as it is.

    Each line is `{"question_id": …, "group": …, "turns": […]}`; without a group, `category` stands
    for it. Blank lines are passed over, other keys ignored.

    Raises:
        ConfigError: the file cannot be read, holds no question, or a line is damaged; the message
            has its number.
    """
    try:
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except OSError as error:
        raise ConfigError(
            f"cannot read the questions {path}: {error.strerror or error}; check the path"
        ) from None
    questions: list[Question] = []
    line_of: dict[int | str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            question = _parsed(line)
        except ValueError as error:
            raise ConfigError(f"{path}, line {number}: {error}; correct or drop it") from None
        if question.question_id in line_of:
            raise ConfigError(
                f"{path}, line {number}: question_id {question.question_id!r} is that of line "
                f"{line_of[question.question_id]} too; give each question its own"
            )
        line_of[question.question_id] = number
        questions.append(question)
    if not questions:
        raise ConfigError(f"{path} holds no question: put one JSON object on each line")
    return questions


def suite(name: str) -> list[Question]:
    """The questions of a suite that comes with swift-sd.

    Raises:
        ConfigError: there is no such suite.
    """
    if name not in SUITES:
        raise ConfigError(f"there is no suite {name!r}: use one of {', '.join(SUITES)}")
    return read_questions(SUITES[name])


def chosen(path: Path | None, name: str | None) -> tuple[list[Question], str]:
    """The questions of a file or of a suite (the builtin one for neither), and words for them.

    Raises:
        ConfigError: both are given, or there are no such questions.
    """
    if path is not None and name is not None:
        raise ConfigError("--questions and --suite both say what to ask: drop one of them")
    if path is not None:
        return read_questions(path), path.name
    return suite(name or "builtin"), f"suite {name or 'builtin'}"


def limited(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """The first `limit` questions of each group, in their order; all of them for None.

    Raises:
        ConfigError: that leaves nothing to ask.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit is {limit}, which leaves every group empty: give 1 or more")
    seen: Counter[str] = Counter()
    kept = []
    for question in questions:
        seen[question.group] += 1
        if limit is None or seen[question.group] <= limit:
            kept.append(question)
    if not kept:
        raise ConfigError("there are no questions to ask: give a file with at least one")
    return kept


def shuffled(questions: Sequence[Question], seed: int) -> list[Question]:
    """The same questions in an order drawn from `seed`."""
    return Random(seed).sample(questions, len(questions))


def digest(questions: Sequence[Question]) -> str:
    """A short name for exactly these questions in this order, to tell two runs apart."""
    return digest_of([asdict(question) for question in questions])


def digest_of(data: Any) -> str:
    """A short name for JSON-ready data."""
    text = json.dumps(data)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _parsed(line: bytes) -> Question:
    try:
        data: Any = json.loads(line)
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from None
    if not isinstance(data, dict):
        raise ValueError(f"is {type(data).__name__}, not a JSON object")
    identity = data.get("question_id")
    if isinstance(identity, bool) or not isinstance(identity, int | str) or identity == "":
        raise ValueError("question_id is missing, or neither a number nor a text")
    _check_text("question_id", str(identity))
    return Question(identity, _group(data), _turns(data.get("turns")))


def _group(data: dict[str, Any]) -> str:
    group = data["group"] if "group" in data else data.get("category")
    if not isinstance(group, str) or not group.strip():
        raise ValueError("group is missing or empty (category stands for it in Spec-Bench's file)")
    _check_text("group", group)
    if group == "overall":
        raise ValueError('a group cannot be called "overall", which names the sum of all')
    return group if "group" in data else GROUP_OF.get(group, group)


def _turns(turns: Any) -> tuple[str, ...]:
    if not isinstance(turns, list) or not turns:
        raise ValueError("turns is missing or empty: give a list of at least one text")
    for turn in turns:
        if not isinstance(turn, str) or not turn.strip():
            raise ValueError("a turn is empty or no text")
        _check_text("a turn", turn)
    return tuple(turns)


def _check_text(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} holds half a character (a lone surrogate)") from None
