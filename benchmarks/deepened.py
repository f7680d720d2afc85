"""A model deepened by layers that contribute almost nothing: does the search find them?

.venv/bin/python benchmarks/deepened.py make /tmp/deepened
.venv/bin/swift-sd bench --model /tmp/deepened --suite builtin --stream --out /tmp/found
.venv/bin/python benchmarks/deepened.py judge /tmp/deepened /tmp/found
"""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

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


if __name__ == "__main__":
    app()
