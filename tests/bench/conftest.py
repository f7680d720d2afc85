from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from swift_sd.adapting.governor import Governor
from swift_sd.adapting.ledger import Purse
from swift_sd.bench.journal import Journal
from swift_sd.bench.method import Answer, Method, Outcome, Subject
from swift_sd.bench.questions import Question, digest
from swift_sd.bench.runner import Runner
from swift_sd.bench.settings import Settings
from swift_sd.bench.statistics import summarise
from swift_sd.cli.main import main
from swift_sd.drafting.growth import CostGrowth

ENVIRONMENT = {"cpu": "a test", "torch": "0", "threads": 1, "swift_sd": "0"}


def scripted(name: str, log: list[str], answers: dict[str, list[int]] | None = None):
    """A method that says `answers[prompt]`, or else as many 40s as its state has met prompts."""

    class Scripted(Method):
        about = "for tests"

        def start(self) -> Answer:
            log.append(f"start {name}")
            met = []

            def answer(inputs: dict[str, Any], arguments: dict[str, Any]) -> Outcome:
                text = self.subject.tokenizer.decode(inputs["input_ids"][0])
                if "fruits" not in text:  # the warm-up is not of interest
                    log.append(f"{name}: {text}")
                met.append(text)
                ids = (answers or {}).get(text, [40, 41, 42])
                return Outcome(ids, {"seen": len(met)})

            return answer

    Scripted.name = name
    return Scripted


@pytest.fixture
def drafting(monkeypatch, clocked) -> None:
    """All drafters take turns in every round, whether it pays or not."""
    turns = count()
    monkeypatch.setattr(CostGrowth, "pruned", lambda self, tree, **_: tree)
    monkeypatch.setattr(Governor, "_is_plain_due", False)
    monkeypatch.setattr(Governor, "_choice", lambda self, promises: next(turns) % len(promises))
    monkeypatch.setattr(Purse, "may_ask", True)


@pytest.fixture
def scripted_method() -> Callable[..., type[Method]]:
    return scripted


@pytest.fixture
def questions() -> list[Question]:
    return [
        Question(1, "qa", ("ab",)),
        Question(2, "qa", ("cd", "ef")),
        Question("x", "rag", ("gh",)),
    ]


@pytest.fixture
def subject(model_of, tokenizer) -> Subject:
    return Subject(model_of("llama"), tokenizer, context=256)


@pytest.fixture
def settings_of(questions) -> Callable[..., Settings]:
    def make(**changes: Any) -> Settings:
        given = {
            "model": "tiny",
            "questions": "a test",
            "digest": digest(questions),
            "methods": ("hf", "swift"),
            "max_new_tokens": 6,
        }
        return Settings(**{**given, **changes})

    return make


@pytest.fixture
def runner_in(subject, questions) -> Callable[..., tuple[Runner, Journal]]:
    """`runner_in(folder, settings)`: a run over the test's questions."""

    def make(
        folder: Path, settings: Settings, asked: list[Question] | None = None, **kwargs: Any
    ) -> tuple[Runner, Journal]:
        journal = Journal(folder, settings.to_dict(), ENVIRONMENT)
        return Runner(
            subject, questions if asked is None else asked, settings, journal, **kwargs
        ), journal

    return make


def record(question_id, method="m", group="g", *, hf=(10.0, 10), mine=(5.0, 10), **changes):
    """A record by hand; `hf` and `mine` are seconds and tokens."""
    made = {
        "question_id": question_id,
        "group": group,
        "turn": 0,
        "index": 0,
        "method": method,
        "hf_seconds": hf[0],
        "hf_new_tokens": hf[1],
        "seconds": mine[0],
        "new_tokens": mine[1],
        "speedup": (hf[0] / hf[1]) / (mine[0] / mine[1]),
        "tokens_per_forward": None,
        "identical": True,
    }
    return {**made, **changes}


@pytest.fixture
def record_of() -> Callable[..., dict[str, Any]]:
    return record


@pytest.fixture
def results_of(settings_of) -> Callable[..., dict[str, Any]]:
    """`results_of(records)`: what a run with these records writes."""

    def make(records: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
        return {
            "environment": {**ENVIRONMENT, "memory": 2**34, "model": {"parameters": 10**9}},
            "settings": settings_of(**changes).to_dict(),
            "records": records,
            "summary": summarise(records),
            "drift": 0.01,
            "warnings": [],
        }

    return make


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, model_of, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "tiny"
    model_of("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def questions_file(tmp_path) -> Path:
    path = tmp_path / "asked.jsonl"
    asked = [("a", "qa", ["Why?"]), ("b", "qa", ["How?"]), ("c", "writing", ["Write.", "More."])]
    lines = [json.dumps({"question_id": i, "category": c, "turns": t}) for i, c, t in asked]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def bench(capfd) -> Callable[..., tuple[int, str, str]]:
    """Run `swift-sd bench` in this process: exit status, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main(["bench", *map(str, arguments)])
        out, err = capfd.readouterr()
        return status, out, err

    return run
