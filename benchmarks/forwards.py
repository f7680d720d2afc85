"""How many forwards do searches take until planted layers are found? On models, scored on text.

    .venv/bin/python benchmarks/deepened.py make /tmp/deepened
    .venv/bin/python benchmarks/forwards.py /tmp/deepened --out benchmarks/results/forwards.json

A score is one forward of the sub-network over 32 tokens of a response, as while it runs, of several
responses in turn; drafts read the model's own 16 bits. Ours also takes a forward for the influence
of the sublayers, and a few over one token for their costs. What a set is worth in the end is
measured on other responses. Tiny models of random weights come before those that are given.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from deepened import PLANTED
from exhaustive import any_set
from rich.console import Console
from rich.progress import track
from rich.table import Table
from search import MAX_DRAFT, RATIO
from transformers import LogitsProcessorList, MaxLengthCriteria, StoppingCriteriaList
from transformers import PreTrainedModel as Model

from swift_sd import LayerSet
from swift_sd.adapting.adaptation import LOOKED_AT
from swift_sd.adapting.allowance import WINDOW
from swift_sd.adapting.basis import draft_costs, measured_influence
from swift_sd.adapting.matchness import Window
from swift_sd.adapting.objective import Rates, layer_set_of, sublayer_bits
from swift_sd.adapting.paper_search import PaperSearch
from swift_sd.adapting.rate_search import RateSearch
from swift_sd.adapting.search import Search
from swift_sd.bench.environment import describe_environment
from swift_sd.bench.questions import chosen
from swift_sd.decoding.loop import decode
from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.stopping import Stopping
from swift_sd.decoding.warping import Warping
from swift_sd.drafting.pace import Pace
from swift_sd.loading import load
from swift_sd.model.draft_view import DraftView
from swift_sd.model.kv_cache import KVCache, attention_windows
from swift_sd.model.sublayers import find_sublayers
from swift_sd.model.target import Target
from swift_sd.testing.families import tiny_model
from swift_sd.testing.planted import planted_model

ENOUGH = 0.9  # of the planted sublayers
RESPONSES = 8  # half to score on, half to judge by


class AtRandom:
    """Sets of any size; the best is the one with the highest rate that its score means."""

    def __init__(self, rates: Rates, depth: int, seed: int) -> None:
        self._rates, self._sets = rates, any_set(2 * (depth - 2), seed)
        self.best, self._highest = LayerSet.none(depth), rates.plain
        self.is_finished = False

    def ask(self) -> LayerSet:
        """See `Search`."""
        return layer_set_of(self.best.depth, next(self._sets))

    def tell(self, layer_set: LayerSet, score: float, trials: int) -> None:
        """See `Search`."""
        rate = float(self._rates.of(sublayer_bits(layer_set), np.array(score)))
        if rate > self._highest:
            self.best, self._highest = layer_set, rate


@dataclass
class Subject:
    """A model with planted layers, and responses of it."""

    name: str
    model: Model
    planted: frozenset[int]
    states: list[DecodingState]

    def __post_init__(self) -> None:
        self.sublayers = find_sublayers(self.model)
        depth = self.sublayers.depth
        self.view = DraftView(self.model, self.sublayers, LayerSet.none(depth))
        state = self.states[0]
        pace = Pace(self.model.device)
        self.influence = measured_influence(self.model, self.sublayers, state, LOOKED_AT)
        self.costs = draft_costs(self.view, state, pace)
        self.rates = Rates(self.costs, self.verify, MAX_DRAFT)

    def verify(self, rows: int) -> float:
        return self.costs.step

    def matchness(self, layer_set: LayerSet, state: DecodingState) -> float:
        self.view.use(layer_set)
        return Window(None, state, WINDOW).matchness(self.view)

    def found(self, layer_set: LayerSet) -> tuple[int, int]:
        """How many planted sublayers it skips, and how many others."""
        parts = (layer_set.attention, layer_set.mlp)
        return sum(len(part & self.planted) for part in parts), sum(
            len(part - self.planted) for part in parts
        )

    def judged(self, layer_set: LayerSet) -> dict[str, float]:
        """On responses that no search has seen: matchness, and the speed that it lets expect."""
        others = self.states[RESPONSES // 2 :]
        score = sum(self.matchness(layer_set, state) for state in others) / len(others)
        rate = float(self.rates.of(sublayer_bits(layer_set), np.array(score)))
        return {"matchness": round(score, 3), "speed": round(rate / self.rates.plain, 2)}


def searches(subject: Subject, seed: int) -> dict[str, Search]:
    """By name; what they know beforehand is in their names."""
    depth, costs = subject.sublayers.depth, subject.costs
    given: Any = {"seed": seed, "max_draft": MAX_DRAFT}
    return {
        "default": RateSearch(costs, subject.verify, hints=subject.influence, **given),
        "default, influence unknown": RateSearch(costs, subject.verify, **given),
        "paper": PaperSearch(depth, RATIO, seed),
        "random": AtRandom(subject.rates, depth, seed),
    }


def run(search: Search, subject: Subject, candidates: int) -> dict[str, Any]:
    """Forwards until the set in use skips nine tenths of what was planted, and stays so."""
    states = cycle(subject.states[: RESPONSES // 2])
    bests: list[LayerSet] = []
    for state in islice(states, candidates):
        if search.is_finished:
            break
        candidate = search.ask()
        search.tell(candidate, subject.matchness(candidate, state), WINDOW)
        bests.append(search.best)
    all_planted = 2 * len(subject.planted)
    bad = [subject.found(best)[0] < ENOUGH * all_planted for best in bests]
    last_bad = max((n for n, is_bad in enumerate(bad, 1) if is_bad), default=0)
    planted, others = subject.found(search.best)
    return {
        "forwards_until_enough": last_bad + 1 if last_bad < len(bests) else None,
        "forwards": len(bests),
        "finished": search.is_finished,
        "planted_skipped": planted,
        "planted": all_planted,
        "others_skipped": others,
        **subject.judged(search.best),
    }


def answered(model: Model, prompt: torch.Tensor, new: int) -> DecodingState:
    """A greedy response of so many tokens."""
    criteria = StoppingCriteriaList([MaxLengthCriteria(prompt.shape[1] + new)])
    warping = Warping(LogitsProcessorList(), do_sample=False)
    cache = KVCache(attention_windows(model.config))
    state = DecodingState(prompt, cache, warping, Stopping(criteria))
    for _ in decode(Target(model), None, state, prompt, 0):
        pass
    return state


def tiny_subjects(new: int) -> Iterator[Subject]:
    for family in ("llama", "gpt2"):
        model, planted = planted_model(tiny_model(family, layers=8), extra_layers=8)
        draws = (torch.Generator().manual_seed(seed) for seed in range(RESPONSES))
        prompts = [torch.randint(3, 100, (1, 20), generator=draw) for draw in draws]
        states = [answered(model, prompt, new) for prompt in prompts]
        yield Subject(f"tiny {family}", model, planted, states)


def subject_in(folder: Path, new: int) -> Subject:
    model, tokenizer = load(str(folder))
    encode: Callable[..., Any] = tokenizer.apply_chat_template
    states = []
    for question in track(chosen(None, None)[0][:RESPONSES], "answering", transient=True):
        messages = [{"role": "user", "content": question.turns[0]}]
        ids = encode(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        states.append(answered(model, ids["input_ids"], new))
    planted = frozenset(json.loads((folder / PLANTED).read_text()))
    return Subject(folder.name, model, planted, states)


def main(
    models: Annotated[list[Path] | None, typer.Argument(help="Folders by deepened.py.")] = None,
    candidates: Annotated[int, typer.Option(min=1, help="Most that are scored.")] = 250,
    seeds: Annotated[int, typer.Option(min=1, help="Of each search.")] = 3,
    new: Annotated[int, typer.Option(min=WINDOW + 1, help="Tokens of a response.")] = 48,
    out: Annotated[Path | None, typer.Option(help="Also write the figures here, as JSON.")] = None,
) -> None:
    """Print the forwards that each search took, and what it came to."""
    columns = ("model", "search", "until 90 %", "forwards", "planted", "others", "speed")
    table, records, environment = Table(*columns), [], {}
    subjects = [*tiny_subjects(new), *(subject_in(folder, new) for folder in models or ())]
    for subject in subjects:
        environment = describe_environment(subject.model)
        for seed in track(range(seeds), subject.name, transient=True):
            for name, search in searches(subject, seed).items():
                record = run(search, subject, candidates)
                records.append({"model": subject.name, "search": name, "seed": seed, **record})
                until = record["forwards_until_enough"] or "never"
                found = f"{record['planted_skipped']} of {record['planted']}"
                cells = [until, record["forwards"], found, record["others_skipped"]]
                table.add_row(subject.name, name, *map(str, cells), f"{record['speed']:.2f}")
    Console().print(table)
    if out is not None:
        settings = {"candidates": candidates, "seeds": seeds, "new": new, "skip_ratio": RATIO}
        report = {"environment": environment, "settings": settings, "records": records}
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
