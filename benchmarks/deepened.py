"""A model deepened by layers that contribute almost nothing: does the search find them?

.venv/bin/python benchmarks/deepened.py make /tmp/deepened
.venv/bin/swift-sd bench --model /tmp/deepened --suite builtin --stream --out /tmp/found
.venv/bin/python benchmarks/deepened.py judge /tmp/deepened /tmp/found
.venv/bin/python benchmarks/deepened.py settle /tmp/deepened --out /tmp/settle.json
"""

import json
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from swift_sd import LayerSet, Swift, SwiftConfig
from swift_sd.bench.environment import describe_environment
from swift_sd.bench.questions import chosen
from swift_sd.loading import DEFAULT_MODEL, load
from swift_sd.testing.planted import planted_model

PLANTED = "planted.json"

app = typer.Typer(pretty_exceptions_enable=False, no_args_is_help=True, help=__doc__)


@app.command()
def make(
    out: Annotated[Path, typer.Argument(help="Folder for the deepened model.")],
    model: Annotated[str, typer.Option(help="As for swift-sd.")] = DEFAULT_MODEL,
    extra_layers: Annotated[int, typer.Option(min=1, help="Layers to plant.")] = 30,
    seed: Annotated[int, typer.Option(help="Of their places.")] = 0,
    scale: Annotated[float, typer.Option(help="Of what they contribute.")] = 1e-4,
) -> None:
    """Save MODEL with layers planted at random places, in its own dtype."""
    original, tokenizer = load(model)
    # Planted in float32: in 16 bits rounding alone moves the logits of so many layers.
    deepened, planted = planted_model(
        original.float(), extra_layers=extra_layers, seed=seed, scale=scale
    )
    deepened.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / PLANTED).write_text(json.dumps(sorted(planted)) + "\n")
    print(f"{out}: {deepened.config.num_hidden_layers} layers, {len(planted)} of them planted")


@app.command()
def judge(
    deepened: Annotated[Path, typer.Argument(help="What `make` wrote.")],
    results: Annotated[Path, typer.Argument(help="A run of swift-sd bench with this model.")],
) -> None:
    """Print how many of the planted sublayers were skipped, question by question."""
    planted = set(json.loads((deepened / PLANTED).read_text()))
    records = json.loads((results / "results.json").read_text())["records"]
    table = Table("method", "question", "planted attention", "planted MLP", "others", "speedup")
    for record in records:
        skipped = record.get("layer_set")
        if skipped is None or record["method"] == "plain":
            continue
        attention, mlp = set(skipped["attention"]), set(skipped["mlp"])
        table.add_row(
            record["method"],
            str(record["question_id"]),
            f"{len(attention & planted)} of {len(planted)}",
            f"{len(mlp & planted)} of {len(planted)}",
            str(len(attention - planted) + len(mlp - planted)),
            f"{record['speedup']:.2f}",
        )
    Console().print(table)


@app.command()
def settle(
    deepened: Annotated[Path, typer.Argument(help="What `make` wrote.")],
    new: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 128,
    out: Annotated[Path | None, typer.Option(help="Also write the figures here, as JSON.")] = None,
) -> None:
    """Print how near a stream is, answer by answer, to the speed of one that knows it all.

    The built-in suite is answered once to learn what there is to learn. Then it is answered by an
    object that drafts with what was found and searches no more, by one that starts from nothing,
    and by one that skips nothing, in turn first.
    """
    model, tokenizer = load(str(deepened))
    planted = set(json.loads((deepened / PLANTED).read_text()))
    asked, _ = chosen(None, None)
    teacher = Swift(model, tokenizer)
    for question in track(asked, "learning", transient=True):
        _answers(question.turns, [teacher], new)
    settled, whole = (
        Swift(model, tokenizer, SwiftConfig(layer_set=layer_set))
        for layer_set in (teacher.layer_set, LayerSet.none(teacher.sublayers.depth))
    )
    fresh = Swift(model, tokenizer)
    columns = ("fresh's speed ÷ settled's", "÷ nothing skipped's", "planted", "others", "searching")
    table = Table("prompt", "question", *columns)
    records = []
    for place, question in enumerate(track(asked, "comparing", transient=True), 1):
        order = [settled, fresh, whole]
        seconds, searching = _answers(question.turns, order[place % 3 :] + order[: place % 3], new)
        skipped = fresh.layer_set
        found = len(skipped.attention & planted) + len(skipped.mlp & planted)
        others = len(skipped.attention - planted) + len(skipped.mlp - planted)
        record = {
            "question_id": question.question_id,
            "of_settled": seconds[settled] / seconds[fresh],
            "of_nothing_skipped": seconds[whole] / seconds[fresh],
            "planted_skipped": found,
            "others_skipped": others,
            "searching": searching[fresh] / seconds[fresh],
        }
        records.append(record)
        cells = (f"{cell:.2f}" if isinstance(cell, float) else cell for cell in record.values())
        table.add_row(*map(str, (place, *cells)))
    Console().print(table)
    if out is not None:
        report = {"environment": describe_environment(model), "settings": {"new": new}}
        out.write_text(json.dumps({**report, "prompts": records}, indent=1) + "\n")


def _answers(
    turns: Any, swifts: list[Swift], new: int
) -> tuple[dict[Swift, float], dict[Swift, float]]:
    """Seconds for each object's answers to one conversation, and of them for searching.

    All go on with the same answers.
    """
    seconds, messages = dict.fromkeys(swifts, 0.0), []
    searching = dict.fromkeys(swifts, 0.0)
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        for swift in swifts:
            begin = perf_counter()
            text = "".join(swift.stream(messages, do_sample=False, max_new_tokens=new))
            seconds[swift] += perf_counter() - begin
            searching[swift] += swift.trace.summary()["time_split"]["adapt"]
        messages.append({"role": "assistant", "content": text})
    return seconds, searching


if __name__ == "__main__":
    app()
