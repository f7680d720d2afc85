"""What do searches find where every set can be tried? On scores whose law is known, few layers.

    .venv/bin/python benchmarks/exhaustive.py --out benchmarks/results/exhaustive.json

As `search.py`, which has more layers than that: the true rate of the set that a search would draft
with, as a share of the best set's, after so many scored candidates. An exhaustive search scores
each of all sets once; so does chance, without an end, sets of any size.
"""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from search import MAX_DRAFT, RATIO, TRIALS, Planted, environment, verify

from swift_sd import LayerSet
from swift_sd.adapting.objective import layer_set_of
from swift_sd.adapting.paper_search import PaperSearch
from swift_sd.adapting.rate_search import RateSearch
from swift_sd.adapting.search import Search

CHECKED = (10, 25, 50, 100, 250, 1000)  # candidates; and all sets


def by_rate(planted: Planted, sets: Iterator[Any]) -> Iterator[LayerSet]:
    """The best of all that were scored, each once, by the rate that its score means."""
    best, highest = LayerSet.none(planted.depth), 0.0
    for bits in sets:
        candidate = layer_set_of(planted.depth, bits)
        rate = float(planted.rates.of(bits, np.array(planted.score(candidate))))
        if rate > highest:
            best, highest = candidate, rate
        yield best


def by_search(planted: Planted, search: Search) -> Iterator[LayerSet]:
    """The best that a search knows after each candidate; the last one once it is finished."""
    while True:
        if not search.is_finished:
            candidate = search.ask()
            search.tell(candidate, planted.score(candidate), TRIALS)
        yield search.best


def every_set(size: int, seed: int) -> Iterator[Any]:
    """All of them, in an order that says nothing."""
    for number in np.random.default_rng([seed, 2]).permutation(1 << size):
        yield (int(number) >> np.arange(size)) & 1


def any_set(size: int, seed: int) -> Iterator[Any]:
    """As many sublayers as chance has it, and which."""
    random = np.random.default_rng([seed, 3])
    while True:
        yield random.permutation(size) < random.integers(size + 1)


WAYS: dict[str, Callable[[Planted, int], Iterator[LayerSet]]] = {
    "ours": lambda planted, seed: by_search(
        planted, RateSearch(planted.costs, verify, seed, MAX_DRAFT)
    ),
    "paper": lambda planted, seed: by_search(planted, PaperSearch(planted.depth, RATIO, seed)),
    "random": lambda planted, seed: by_rate(planted, any_set(len(planted.harm), seed)),
    "exhaustive": lambda planted, seed: by_rate(planted, every_set(len(planted.harm), seed)),
}


def main(
    depth: Annotated[int, typer.Option(min=4, max=9, help="Layers of the objectives.")] = 8,
    seeds: Annotated[int, typer.Option(min=1, help="Objectives of each kind.")] = 10,
    first_seed: Annotated[int, typer.Option(help="Of these.")] = 100,
    out: Annotated[Path | None, typer.Option(help="Also write the figures here, as JSON.")] = None,
) -> None:
    """Print the share of the best rate that each search reaches, a median over objectives."""
    sets = 1 << 2 * (depth - 2)
    checked = [*(count for count in CHECKED if count < sets), sets]
    found: dict[tuple[str, str], list[list[float]]] = {}
    for kind in ("layers", "sublayers", "graded"):
        for seed in track(range(first_seed, first_seed + seeds), kind, transient=True):
            for name, way in WAYS.items():
                planted = Planted(kind, depth, seed)  # its own scores for each search
                bests = list(islice(way(planted, seed), sets))
                shares = [round(planted.share(bests[count - 1]), 3) for count in checked]
                found.setdefault((kind, name), []).append(shares)
    table = Table("objective", "search", *(f"of {count}" for count in checked))
    records = []
    for (kind, name), shares in found.items():
        middle = [round(median(column), 3) for column in zip(*shares, strict=True)]
        table.add_row(kind, name, *(f"{share:.0%}" for share in middle))
        named = dict(zip(map(str, checked), middle, strict=True))
        records.append({"objective": kind, "search": name, "median_share_after": named})
    Console().print(table)
    if out is not None:
        settings = {"depth": depth, "sets": sets, "seeds": seeds, "first_seed": first_seed}
        report = {"environment": environment(), "settings": settings, "records": records}
        out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
