"""Are the tokens in 16 bits those of plain greedy decoding? And what does it cost to see to it?

    make bench-identity ARGS="--questions spec_bench.jsonl"
    make bench-identity ARGS="--model path/to/model --questions … --out benchmarks/results/x.json"

Every answer of transformers' plain greedy `generate` is generated again: by its own prompt lookup,
and by our loop with each setting of `exact`, from drafts that are as long as possible and right as
often as possible: they are copied from the plain answer, with an error and a few alternatives in
each, so that nearly every place is verified together with others. No drafter is harder on rounding.
"""

import json
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from swift_sd import SwiftConfig
from swift_sd.adapting.experience import TOLERANCE, Experience
from swift_sd.bench.conversation import encoded_turn
from swift_sd.bench.environment import describe_environment
from swift_sd.bench.questions import read_questions, suite
from swift_sd.decoding.draft_tree import DraftTree
from swift_sd.decoding.loop import decode
from swift_sd.decoding.request import Request
from swift_sd.loading import DEFAULT_MODEL, load
from swift_sd.model.sublayers import find_sublayers
from swift_sd.model.target import Target
from swift_sd.testing.scripted import ScriptedDrafter

LOOKUP = "transformers' prompt lookup"
NEAR_TIES = "near-ties decided again"  # "auto" where no operations are exact to the bit
CHAIN, LEAVES = 6, 2


class Copied:
    """Drafts six tokens of a known answer, every other time the last one wrong, and two leaves."""

    def __init__(self, answer: list[int], start: int) -> None:
        self.answer, self.start, self.turn = answer, start, 0

    def __call__(self, tokens: list[int], budget: int) -> DraftTree:
        coming = self.answer[len(tokens) - self.start :][: min(CHAIN, budget)]
        if not coming:
            return DraftTree()
        self.turn += 1
        if self.turn % 2:
            coming[-1] += -1 if coming[-1] else 1
        parents = [*range(-1, len(coming) - 1), *[-1] * LEAVES]
        return DraftTree([*coming, *(leaf + 10 for leaf in range(LEAVES))], parents)


def ways(model: Any) -> dict[str, tuple[Target, float]]:
    """What verifies, and with which tolerance, for each setting of `exact`."""
    found = {"off": (Target(model), 0.0), NEAR_TIES: (Target(model), TOLERANCE["auto"])}
    for exact in ("auto", "strict"):
        experience = Experience(model, find_sublayers(model), SwiftConfig(exact=exact))
        found[exact] = (experience.target(), experience.tolerance)
    return found


def ours(
    model: Any, inputs: Any, length: int, answer: list[int], way: tuple[Target, float]
) -> dict[str, Any]:
    """One answer through our loop."""
    target, tolerance = way
    figures: dict[str, Any] = {}

    def run(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        request = Request.checked(
            model, input_ids, logits_processor, stopping_criteria, generation_config, kwargs
        )
        state = request.start()
        drafter = ScriptedDrafter(Copied(answer, input_ids.shape[1]))
        rounds = decode(target, drafter, state, request.unread, CHAIN, tolerance=tolerance)
        steps = list(rounds)
        figures["again"] = sum(step.decided_again for step in steps)
        figures["again_seconds"] = sum(step.again for step in steps)
        figures["verify_seconds"] = sum(step.verify for step in steps)
        figures["forwards"] = len(steps) - 1
        return state.tokens.clone()

    figures["ids"] = generated(model, inputs, length, custom_generate=run)
    return figures


def theirs(model: Any, inputs: Any, length: int, **arguments: Any) -> dict[str, Any]:
    """One answer by transformers."""
    return {"ids": generated(model, inputs, length, **arguments)}


def generated(model: Any, inputs: Any, length: int, **arguments: Any) -> list[int]:
    """The ids of a greedy answer."""
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    output = model.generate(**inputs, **greedy, max_new_tokens=length, **arguments)
    return output[0, inputs["input_ids"].shape[1] :].tolist()


def timed(method: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
    begin = perf_counter()
    figures = method(*arguments, **options)
    return {**figures, "seconds": perf_counter() - begin}


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """One row for each way of generating."""
    names = [name for name, run in records[0].items() if isinstance(run, dict)]
    rows = {}
    for name in names:
        runs = [record[name] for record in records]
        row = {"identical": sum(run["identical"] for run in runs), "answers": len(runs)}
        row["seconds"] = sum(run["seconds"] for run in runs)
        if "again" in runs[0]:
            row["places"] = sum(record["tokens"] for record in records)
            row["decided_again"] = sum(run["again"] for run in runs)
            row["again_seconds"] = sum(run["again_seconds"] for run in runs)
            forwards = sum(run["forwards"] for run in runs)
            row["verify_ms"] = 1e3 * sum(run["verify_seconds"] for run in runs) / forwards
        rows[name] = row
    return rows


def show(rows: dict[str, Any]) -> None:
    """As a table."""
    table = Table("", "answers with the plain tokens", "decided again", "ms a verification", "s")
    for name, row in rows.items():
        label = name if name == LOOKUP else f"ours, {name}"
        again = f"{row['decided_again']} of {row['places']}" if "places" in row else "–"
        verify = f"{row['verify_ms']:.0f}" if "places" in row else "–"
        same = f"{row['identical']} of {row['answers']}"
        table.add_row(label, same, again, verify, f"{row['seconds']:.0f}")
    Console().print(table)


def main(
    model: Annotated[str, typer.Option(help="A name or a folder.")] = DEFAULT_MODEL,
    questions: Annotated[Path | None, typer.Option(help="Spec-Bench's JSON lines.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 128,
    limit: Annotated[int | None, typer.Option(help="Only the first so many questions.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
) -> None:
    """Count identical answers; ten minutes on a small model, an hour on one of 1.5B."""
    target, tokenizer = load(model)
    asked = (read_questions(questions) if questions else suite("builtin"))[:limit]
    ways_to_verify = ways(target)
    records: list[dict[str, Any]] = []
    try:
        with Progress() as progress, torch.inference_mode():
            task = progress.add_task("answering", total=len(asked))
            for question in asked:
                inputs = encoded_turn(target, tokenizer, question.turns[:1], [])
                plain = timed(theirs, target, inputs, max_new_tokens)
                record = {
                    "question_id": question.question_id,
                    "tokens": len(plain["ids"]),
                    "seconds": plain["seconds"],
                }
                looked_up = timed(
                    theirs, target, inputs, max_new_tokens, prompt_lookup_num_tokens=5
                )
                record[LOOKUP] = looked_up
                for name, way in ways_to_verify.items():
                    record[name] = timed(ours, target, inputs, max_new_tokens, plain["ids"], way)
                for name in (LOOKUP, *ways_to_verify):
                    record[name]["identical"] = record[name].pop("ids") == plain["ids"]
                records.append(record)
                progress.advance(task)
    except KeyboardInterrupt:
        print(f"interrupted after {len(records)} of {len(asked)} questions")
    if not records:
        raise typer.Exit(130)
    rows = summary(records)
    show(rows)
    if out:
        result = {
            "environment": describe_environment(target),
            "settings": {"model": model, "max_new_tokens": max_new_tokens},
            "summary": rows,
            "records": records,
        }
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
