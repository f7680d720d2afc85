"""How many scored candidates does a search over layer sets take? On scores whose law is known.

    .venv/bin/python benchmarks/search.py --out benchmarks/results/search.json

No model is involved: some sublayers do no harm when they are skipped, the others multiply the
acceptance, and a score is the share of right ones of 32 tokens. What counts is the true rate of the
set that a search would draft with, as a share of the best set's. optuna is no dependency: what
needs it is left out where it is not installed.
"""

import importlib.util
import json
import platform
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from swift_sd import LayerSet
from swift_sd.adapting.costs import Costs
from swift_sd.adapting.objective import Rates, sublayer_bits
from swift_sd.adapting.paper_search import PaperSearch, upper_confidence_bound
from swift_sd.adapting.rate_search import RateSearch
from swift_sd.adapting.search import Search

TRIALS = 32  # tokens of a score
MAX_DRAFT = 12
ENOUGH = 0.9  # of the best rate
RATIO = 0.45  # skip ratio of the paper's search
Suggest = Callable[[Any, Any, int], Any]


class Planted:
    """Scores whose law is known; an MLP costs twice its attention, verification is flat."""

    def __init__(self, kind: str, depth: int, seed: int) -> None:
        # Not the searches' own stream: what is drawn for both from one seed would be the same.
        self.random = np.random.default_rng([seed, 1])
        self.depth = depth
        inner = depth - 2
        size = 2 * inner
        self.harm = self.random.uniform(0.05, 0.5, size)
        if kind == "layers":
            free = self.random.permutation(inner)[: depth // 2]
            self.harm[[*free, *(free + inner)]] = 0
        elif kind == "sublayers":
            self.harm[self.random.permutation(size)[:inner]] = 0
        else:  # graded: none is free, many are nearly so
            self.harm = self.random.gamma(0.4, 0.2, size)
        self.costs = Costs(1.0, (1 / (3 * depth),) * depth, (2 / (3 * depth),) * depth, 0.0, 0)
        self.rates = Rates(self.costs, verify, MAX_DRAFT)
        sets = self.rates.beginnings(self.harm)
        self.best = float(self.rates.of(sets, np.exp(-sets @ self.harm)).max())

    def score(self, layer_set: LayerSet) -> float:
        chance = np.exp(-self.harm @ sublayer_bits(layer_set))
        return float(self.random.binomial(TRIALS, chance) / TRIALS)

    def share(self, layer_set: LayerSet) -> float:
        bits = sublayer_bits(layer_set)
        return float(self.rates.of(bits, np.exp(-self.harm @ bits)) / self.best)


def verify(rows: int) -> float:
    return 1.0


def at_random(sets: Any, scores: Any, seed: int) -> Any:
    return np.random.default_rng(seed).random(sets.shape[1])


def by_optuna(name: str) -> Suggest:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def suggest(sets: Any, scores: Any, seed: int) -> Any:
        sampler: Any = optuna.samplers.TPESampler(seed=seed)
        if name == "GPSampler":
            sampler = optuna.samplers.GPSampler(seed=seed, deterministic_objective=False)
        names = [f"{index:04d}" for index in range(sets.shape[1])]
        space = {name: optuna.distributions.FloatDistribution(0, 1) for name in names}
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for bits, score in zip(sets, scores, strict=True):
            params = dict(zip(names, bits.tolist(), strict=True))
            study.add_trial(
                optuna.create_trial(params=params, distributions=space, value=float(score))
            )
        wish = study.ask(space).params
        return np.array([wish[name] for name in names])

    return suggest


def optimisers() -> dict[str, Suggest]:
    found: dict[str, Suggest] = {"random": at_random, "bayes_opt": upper_confidence_bound}
    if importlib.util.find_spec("optuna"):
        found |= {f"optuna {name}": by_optuna(name) for name in ("TPESampler", "GPSampler")}
    return found


def run(search: Search, planted: Planted, candidates: int) -> dict[str, Any]:
    """Scores until the set in use is good, and stays so for the rest of the search."""
    shares, asks, tells = [], [], []
    for _ in range(candidates):
        if search.is_finished:
            break
        begin = perf_counter()
        candidate = search.ask()
        asks.append(perf_counter() - begin)
        score = planted.score(candidate)
        begin = perf_counter()
        search.tell(candidate, score, TRIALS)
        tells.append(perf_counter() - begin)
        shares.append(planted.share(search.best))
    last_bad = max((n for n, share in enumerate(shares, 1) if share < ENOUGH), default=0)
    return {
        "until_enough": last_bad + 1 if last_bad < len(shares) else None,
        "scored": len(shares),
        "finished": search.is_finished,
        "final_share": round(shares[-1], 3),
        "ask_ms": round(1e3 * sum(asks) / len(asks), 3),
        "tell_ms": round(1e3 * sum(tells) / len(tells), 3),
    }


def suggestions(suggest: Suggest, size: int, scored: int, repeats: int) -> dict[str, float]:
    """Milliseconds, and the true matchness of the suggested set ÷ that of random sets.

    Skipping half of all sublayers multiplies the matchness by about 0.6 here, so that unlike with
    the planted objectives every score says something.
    """
    took, ratios = [], []
    for seed in range(repeats):
        random = np.random.default_rng([seed, 1])
        harm = random.uniform(0, 2 / size, size)
        sets = (random.random((scored, size)).argsort(axis=1) < size * RATIO).astype(float)
        chances = np.exp(-sets @ harm)
        scores = random.binomial(TRIALS, chances) / TRIALS
        begin = perf_counter()
        wish = suggest(sets, scores, seed)
        took.append(1e3 * (perf_counter() - begin))
        chosen = np.argsort(-wish, kind="stable")[: int(sets[0].sum())]
        ratios.append(float(np.exp(-harm[chosen].sum()) / chances.mean()))
    return {"ms": round(median(took), 2), "over_random": round(sum(ratios) / repeats, 3)}


def environment() -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    packages = ["numpy", "bayesian-optimization", "scikit-learn"]
    packages += ["optuna"] if importlib.util.find_spec("optuna") else []
    return {
        "machine": platform.processor() or platform.machine(),
        "commit": commit.stdout.strip(),
        **{package: version(package) for package in packages},
    }


def main(
    depth: Annotated[int, typer.Option(help="layers of the planted objectives")] = 60,
    seeds: Annotated[int, typer.Option(help="objectives of each kind")] = 3,
    first_seed: Annotated[int, typer.Option(help="of these")] = 100,
    candidates: Annotated[int, typer.Option(help="most that are scored")] = 250,
    repeats: Annotated[int, typer.Option(help="timed suggestions of each optimiser")] = 3,
    out: Annotated[Path | None, typer.Option(help="also write the figures here, as JSON")] = None,
) -> None:
    """Print candidates until 90 % of the best rate, and milliseconds per suggestion."""
    ways = optimisers()
    timing = {
        name: suggestions(suggest, 2 * (depth - 2), 200, repeats)
        for name, suggest in track(ways.items(), "suggestions", transient=True)
    }
    records = []
    for kind in ("layers", "sublayers", "graded"):
        for seed in track(range(first_seed, first_seed + seeds), kind, transient=True):
            # The optimisers take seconds for each suggestion: they see the first objective only.
            for name in ("rate", *ways) if seed == first_seed else ("rate", "random"):
                planted = Planted(kind, depth, seed)
                search: Search = (
                    RateSearch(planted.costs, verify, seed, MAX_DRAFT)
                    if name == "rate"
                    else PaperSearch(depth, RATIO, seed, ways[name])
                )
                record = {"objective": kind, "seed": seed, "search": name}
                records.append(record | run(search, planted, candidates))
    table = Table("objective", "search", "candidates to 90 %", "final share", "ms ask", "ms tell")
    for row in records:
        cells = [row["objective"], row["search"], row["until_enough"], row["final_share"]]
        table.add_row(*map(str, [*cells, row["ask_ms"], row["tell_ms"]]))
    console = Console()
    console.print(table)
    console.print("suggestions, 200 sets scored:", timing)
    if out is not None:
        report = {
            "environment": environment(),
            "settings": {
                **{"depth": depth, "seeds": seeds, "first_seed": first_seed},
                **{"candidates": candidates, "trials": TRIALS, "skip_ratio": RATIO},
            },
            "suggestions_200_scored": timing,
            "records": records,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
