"""A stream of several kinds of text, each with a layer set of its own: how soon is it fast again?

    .venv/bin/python benchmarks/kinds.py --out benchmarks/results/kinds.json

The model is built for it: for each kind other sublayers matter (`swift_sd.testing.switched`). Its
prompts come in blocks, all kinds one after the other, and the same once more. What counts is the
time of plain decoding ÷ ours, prompt by prompt; a block has settled when its last three have, and
is fast again from the first prompt on that reaches 95 % of that.
"""

import json
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from swift_sd import Swift, SwiftConfig
from swift_sd.bench.environment import describe_environment
from swift_sd.testing.switched import switched_model

PROMPT = 24  # tokens
LAST = 3  # prompts of a block that say what its settled speed is
BACK = 0.95


def seconds(swift: Swift, ids: torch.Tensor, new: int, seed: int) -> tuple[float, torch.Tensor]:
    """Sampled: the greedy text of a random model soon repeats itself."""
    torch.manual_seed(seed)
    begin = perf_counter()
    out: Any = swift.generate(
        ids, do_sample=True, temperature=0.7, max_new_tokens=new, eos_token_id=None
    )
    return perf_counter() - begin, out


def block(record: dict[str, Any]) -> dict[str, Any]:
    """Adds what a block comes to."""
    ratios = record["ratios"]
    settled = median(ratios[-LAST:])
    back = next((n for n, ratio in enumerate(ratios) if ratio >= BACK * settled), len(ratios))
    return {**record, "settled": settled, "prompts_until_back": back}


def main(
    kinds: Annotated[int, typer.Option(help="of text")] = 5,
    prompts: Annotated[int, typer.Option(help="in a block")] = 10,
    rounds: Annotated[int, typer.Option(help="times that each kind comes")] = 2,
    new: Annotated[int, typer.Option(help="tokens of an answer")] = 128,
    seed: Annotated[int, typer.Option(help="of model and prompts")] = 0,
    out: Annotated[Path | None, typer.Option(help="also write the figures here, as JSON")] = None,
) -> None:
    """Print, block by block, the speed and the prompts until it was back."""
    model, tokens, needed = switched_model(kinds=kinds, seed=seed)
    plain = Swift(model, config=SwiftConfig.plain())
    swift = Swift(model, config=SwiftConfig(drafters=("model",), draft_bits=16))
    random = torch.Generator().manual_seed(seed)
    records = []
    for turn, kind in track(
        [(turn, kind) for turn in range(rounds) for kind in range(kinds)], "blocks", transient=True
    ):
        ratios, same = [], 0
        for number in range(prompts):
            ids = torch.randint(
                tokens[kind].start, tokens[kind].stop, (1, PROMPT), generator=random
            )
            (ours, found), (theirs, expected) = (
                seconds(one, ids, new, number) for one in (swift, plain)
            )
            ratios.append(theirs / ours)
            same += torch.equal(found, expected)
        missed = len(needed[kind] & swift.layer_set.mlp)
        others = frozenset().union(*needed) - needed[kind]
        spared = len(others & swift.layer_set.mlp) / len(others)
        records.append(
            block(
                {
                    **{"round": turn, "kind": kind, "ratios": ratios, "identical": same},
                    **{"needed_but_skipped": missed, "others_skipped": spared},
                }
            )
        )
    table = Table("round", "kind", "settled", "prompts until back", "identical", "others skipped")
    for record in records:
        table.add_row(
            *(str(record[key]) for key in ("round", "kind")),
            f"{record['settled']:.2f}",
            str(record["prompts_until_back"]),
            f"{record['identical']} of {prompts}",
            f"{record['others_skipped']:.0%}",
        )
    console = Console()
    console.print(table)
    console.print(swift.search_state)
    if out is not None:
        settings = {"kinds": kinds, "prompts": prompts, "rounds": rounds, "new": new, "seed": seed}
        report = {
            "environment": describe_environment(model),
            "settings": settings,
            "blocks": records,
        }
        out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
