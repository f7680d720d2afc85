"""A stream of several kinds of text, each with a layer set of its own: how soon is it fast again?

    .venv/bin/python benchmarks/kinds.py --out benchmarks/results/kinds.json

The model is built for it: for each kind other sublayers matter (`swift_sd.testing.switched`). Its
prompts come in blocks, all kinds one after the other, and the same once more. What counts is the
time of plain decoding ÷ ours, prompt by prompt; a block has settled when its last three have, and
is fast again from the first prompt on that reaches 95 % of that. Times are noisy, so it is told as
well behind which prompt the set is right.
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
RIGHT = 0.9  # of the sublayers that only other kinds need, skipped, and none that this one needs


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
    is_right = [
        not missed and spared >= RIGHT
        for missed, spared in zip(
            record["needed_but_skipped"], record["others_skipped"], strict=True
        )
    ]
    right = is_right.index(True) if any(is_right) else len(is_right)
    return {**record, "settled": settled, "prompts_until_back": back, "prompts_until_right": right}


def blocks(
    seed: int, kinds: int, prompts: int, rounds: int, new: int, console: Console
) -> list[dict[str, Any]]:
    """What each block of a stream comes to."""
    model, tokens, needed = switched_model(kinds=kinds, seed=seed)
    plain = Swift(model, config=SwiftConfig.plain())
    swift = Swift(model, config=SwiftConfig(drafters=("model",), draft_bits=16))
    random = torch.Generator().manual_seed(seed)
    records = []
    places = [(turn, kind) for turn in range(rounds) for kind in range(kinds)]
    for turn, kind in track(places, f"seed {seed}", console=console, transient=True):
        others = frozenset().union(*needed) - needed[kind]
        record: dict[str, Any] = {"seed": seed, "round": turn, "kind": kind, "identical": 0}
        record |= {"ratios": [], "needed_but_skipped": [], "others_skipped": []}
        for number in range(prompts):
            ids = torch.randint(
                tokens[kind].start, tokens[kind].stop, (1, PROMPT), generator=random
            )
            order = (swift, plain) if number % 2 else (plain, swift)
            timed = {one: seconds(one, ids, new, number) for one in order}
            (ours, found), (theirs, expected) = timed[swift], timed[plain]
            skipped = swift.trace.layer_set.mlp
            record["ratios"].append(theirs / ours)
            record["needed_but_skipped"].append(len(skipped & needed[kind]))
            record["others_skipped"].append(len(skipped & others) / len(others))
            record["identical"] += torch.equal(found, expected)
        records.append(block(record))
    console.print(f"seed {seed}: {swift.search_state}")
    return records


def main(
    kinds: Annotated[int, typer.Option(help="of text")] = 5,
    prompts: Annotated[int, typer.Option(help="in a block")] = 10,
    rounds: Annotated[int, typer.Option(help="times that each kind comes")] = 2,
    new: Annotated[int, typer.Option(help="tokens of an answer")] = 128,
    seeds: Annotated[int, typer.Option(help="streams, each of a model of its own")] = 1,
    out: Annotated[Path | None, typer.Option(help="also write the figures here, as JSON")] = None,
) -> None:
    """Print, block by block, the speed and the prompts until it was back."""
    console = Console()
    records = [
        record
        for seed in range(seeds)
        for record in blocks(seed, kinds, prompts, rounds, new, console)
    ]
    places = ("seed", "round", "kind")
    table = Table(*places, "settled", "prompts until back", "until the set is right", "identical")
    for record in records:
        table.add_row(
            *(str(record[key]) for key in places),
            f"{record['settled']:.2f}",
            str(record["prompts_until_back"]),
            str(record["prompts_until_right"]),
            f"{record['identical']} of {prompts}",
        )
    console.print(table)
    if out is not None:
        settings = {"kinds": kinds, "prompts": prompts, "rounds": rounds, "new": new}
        report = {
            "environment": describe_environment(switched_model(kinds=kinds)[0]),
            "settings": settings | {"seeds": seeds},
            "blocks": records,
        }
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
