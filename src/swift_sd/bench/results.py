"""`results.json`: everything a run found, with where it comes from."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from swift_sd.bench.journal import Entry, Journal
from swift_sd.bench.records import ONLY_IN_JOURNAL
from swift_sd.bench.settings import Settings
from swift_sd.bench.statistics import summarise
from swift_sd.errors import ConfigError

NAME = "results.json"
DRIFT = 0.15
KEYS = {"environment", "settings", "records", "summary"}


def collect(
    journal: Journal, settings: Settings, *, complete: bool, skipped: dict[str, str]
) -> dict[str, Any]:
    """What the journal holds, summed up; see design.md for the keys.

    Of a record, `tokens_per_forward` is None where nothing but the prompt was read (an answer of
    one token), and `identical` when sampling.

    Args:
        complete: whether all records are there.
        skipped: methods that the model does not support, and why.
    """
    records = [
        {key: value for key, value in record.items() if key not in ONLY_IN_JOURNAL}
        for record in journal.records
    ]
    reference = journal.of_kind("reference")
    results = {
        "environment": journal.environment,
        "settings": settings.to_publish(),
        "complete": complete,
        "skipped": skipped,
        "left_out": _left_out(journal),
        "reference": reference,
        "drift": drift(reference),
        "starts": [entry["records"] for entry in journal.of_kind("start")],
        "records": records,
        "summary": summarise(records, settings.seed),
    }
    return {**results, "warnings": _warnings(results)}


def drift(reference: list[Entry]) -> float | None:
    """By how much the slowest timing of the reference work exceeds the quickest; None for one."""
    seconds = [entry["seconds"] for entry in reference]
    return max(seconds) / min(seconds) - 1 if len(seconds) > 1 else None


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Write JSON to `path`: all of it, or nothing."""
    write_atomically(path, json.dumps(results, indent=1) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` such that no reader ever meets a part of it."""
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        # Of half characters, which paths and notes may hold, question marks are left.
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
        os.chmod(draft, 0o644)  # mkstemp is more private than a report must be
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def read_results(path: Path) -> dict[str, Any]:
    """Results written by `write_results`; `path` may be the folder that holds them.

    Raises:
        ConfigError: there are none, or the file holds something else.
    """
    file = path / NAME if path.is_dir() else path
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the results {file}: {error.strerror or error}; give a results.json "
            "or the folder of a run"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{file} is damaged ({error}): run the benchmark again") from None
    if not isinstance(data, dict) or not data.keys() >= KEYS:
        raise ConfigError(f"{file} holds no results of swift-sd bench: give its results.json")
    return data


def _left_out(journal: Journal) -> list[Entry]:
    """Turns whose prompt the model's context has no room for, each once."""
    found: dict[tuple[Any, int], Entry] = {}
    for entry in journal.of_kind("left_out"):
        key = (entry["question_id"], entry["turn"])
        names = ("question_id", "group", "turn", "prompt_tokens")
        found[key] = {name: entry[name] for name in names}
    return list(found.values())


def _questions_by_method(records: list[Entry]) -> dict[str, int]:
    """Of how many questions there are records."""
    found: dict[str, set[Any]] = {}
    for record in records:
        found.setdefault(record["method"], set()).add(record["question_id"])
    return {method: len(questions) for method, questions in found.items()}


def _warnings(results: dict[str, Any]) -> list[str]:
    """What a reader of the figures must know, in sentences."""
    said = []
    if not results["complete"]:
        said.append("The run is not complete: only what was timed so far is here.")
    if results["drift"] is not None and results["drift"] > DRIFT:
        said.append(
            f"The machine's speed drifted by {results['drift']:.0%} during the run (a fixed piece "
            "of work, timed again and again). Ratios are of neighbouring timings and suffer less, "
            "but repeat the run on a quiet machine before relying on it."
        )
    asked = _questions_by_method(results["records"])
    for name, reason in results["skipped"].items():
        if name not in asked:
            said.append(f"{name} was skipped: {reason}.")
        else:
            said.append(
                f"{name} stopped after {asked[name]} questions, and its figures are of these: "
                f"{reason}."
            )
    if results["left_out"]:
        groups = ", ".join(sorted({entry["group"] for entry in results["left_out"]}))
        said.append(
            f"{len(results['left_out'])} turns (of {groups}) are left out for every method: the "
            "prompt is longer than the model's context."
        )
    interrupted = [count for count in results["starts"] if count]
    if results["settings"]["stream"] and interrupted:
        at = ", ".join(map(str, interrupted))
        said.append(
            f"The stream was interrupted (after {at} records), and what Swift had learned by then "
            "was lost."
        )
    return said
