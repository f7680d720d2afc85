"""Is the engine itself cheap? Ratios measured alternately in one process, on a real model.

    make bench-engine                                   # the default model
    make bench-engine ARGS="--model path/to/model --out benchmarks/results/engine.json"

What is timed is the loop, not the method: prompts and drafts are whatever they are. For the speedup
of drafting on real questions there is a benchmark of its own.
"""

import json
import platform
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any
from unittest.mock import patch

import torch
import transformers
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from swift_sd import LayerSet, Swift, SwiftConfig
from swift_sd.adapting.costs import measure_costs
from swift_sd.decoding.acceptance import accept
from swift_sd.decoding.draft_tree import DraftTree
from swift_sd.loading import DEFAULT_MODEL, load
from swift_sd.model.compiled_draft import CompiledDraft
from swift_sd.model.compiled_target import CompiledTarget
from swift_sd.model.draft_view import DraftView
from swift_sd.model.kv_cache import KVCache, attention_windows
from swift_sd.model.tree_mask import TreeMask
from swift_sd.model.view import View

PROMPT = [{"role": "user", "content": "Explain in three sentences why the sky is blue."}]
CONTEXTS = (256, 8192)
VOCABULARY = 151_936


@dataclass
class Figure:
    """One measured ratio: its values, what it should reach, and in words what it is."""

    name: str
    values: list[float]
    goal: str
    reached: bool

    def row(self) -> list[str]:
        low, high = min(self.values), max(self.values)
        spread = f"{low:.3g} to {high:.3g}" if len(self.values) > 1 else "one value"
        verdict = "yes" if self.reached else "no"
        return [self.name, f"{median(self.values):.3g}", spread, self.goal, verdict]

    def as_dict(self) -> dict[str, Any]:
        values = [round(value, 6) for value in self.values[:50]]
        return {"median": median(self.values), "values": values, "goal": self.goal}


def seconds(call: Callable[[], Any]) -> float:
    begin = perf_counter()
    call()
    return perf_counter() - begin


class Generation:
    """The same request, decoded by transformers, by our loop without drafts, and with drafts."""

    def __init__(self, model: Any, tokenizer: Any, tokens: int) -> None:
        self.plain = Swift(model, tokenizer, SwiftConfig.plain())
        self.drafting = Swift(model, tokenizer)
        self.model = model
        self.request = {
            **self.plain.encode(PROMPT),
            "do_sample": False,
            "max_new_tokens": tokens,
            "eos_token_id": None,
        }

    def loop_over_transformers(self, repeats: int) -> Figure:
        ways = {"theirs": self.model.generate, "ours": self.plain.generate}
        ratios = []
        for turn in track(range(repeats + 1), "plain loop ÷ transformers", transient=True):
            order = ("theirs", "ours") if turn % 2 else ("ours", "theirs")
            took = {way: seconds(lambda way=way: ways[way](**self.request)) for way in order}
            ratios.append(took["ours"] / took["theirs"])
        values = ratios[1:]  # the first is the warm-up
        return Figure("plain loop ÷ transformers.generate", values, "≤ 1.00", median(values) <= 1.0)

    def outside_forwards(self, swift: Swift, name: str, repeats: int, goal: float) -> Figure:
        inside = 0.0

        def timed(forward: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal inside
                begin = perf_counter()
                try:
                    return forward(*args, **kwargs)
                finally:
                    inside += perf_counter() - begin

            return call

        shares = []
        for _ in track(range(repeats), f"outside forwards, {name}", transient=True):
            inside = 0.0
            with ExitStack() as watched:
                for kind in (View, CompiledTarget, CompiledDraft):
                    watched.enter_context(patch.object(kind, "forward", timed(kind.forward)))
                swift.generate(**self.request)
            assert swift.trace is not None
            shares.append(1 - inside / swift.trace.seconds)
        return Figure(f"time outside forwards, {name}", shares, f"≤ {goal}", median(shares) <= goal)


def saving_over_cost(swift: Swift, layer_set: LayerSet, name: str, repeats: int) -> Figure:
    """Time that a one-row forward loses when sublayers are skipped ÷ their measured cost."""
    model = swift.model
    whole = DraftView(model, swift.sublayers, LayerSet.none(layer_set.depth))
    skipping = DraftView(model, swift.sublayers, layer_set)
    cache = KVCache(attention_windows(model.config), reserve=66)
    tokens = torch.zeros(1, 64, dtype=torch.long, device=model.device)
    whole.forward(tokens, cache, keep=1)
    cache.commit(64)

    def step(view: DraftView) -> float:
        took = seconds(lambda: view.forward(tokens[:, :1], cache))
        cache.rollback()
        return took

    shares = []
    for _ in track(range(repeats), f"saving, {name}", transient=True):
        costs = measure_costs(model, swift.sublayers)
        cost = sum(costs.attention[i] for i in layer_set.attention)
        cost += sum(costs.mlp[i] for i in layer_set.mlp)
        pairs = [(step(whole), step(skipping)) for _ in range(9)]
        shares.append(median(full - short for full, short in pairs) / cost)
    return Figure(f"saving ÷ cost of sublayers, {name}", shares, "≥ 0.9", median(shares) >= 0.9)


def bookkeeping(model: Any) -> list[Figure]:
    """Milliseconds of a commit and a rollback behind short and long prefixes, and their ratio."""
    tokens = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    sample = KVCache(attention_windows(model.config))
    View(model).forward(tokens, sample)
    took: dict[int, list[float]] = {context: [] for context in CONTEXTS}
    caches = {
        context: KVCache(attention_windows(model.config), context + 16) for context in CONTEXTS
    }
    for context, cache in caches.items():
        for layer, buffer in enumerate(sample.buffers):
            keys, values = buffer.tail(1)
            cache.update(keys.repeat(1, 1, context, 1), values.repeat(1, 1, context, 1), layer)
        cache.advance(context)
        cache.commit(context)

    def once(cache: KVCache, context: int) -> None:
        cache.advance(8)
        cache.commit(4)
        cache.advance(8)
        cache.rollback()
        cache.committed = cache.cursor = context

    for _ in range(2000):
        for context, cache in caches.items():
            took[context].append(1e3 * seconds(lambda c=cache, n=context: once(c, n)))
    short, long = (median(took[context]) for context in CONTEXTS)
    figures = [
        Figure(f"commit + rollback at {context}, ms", values, "< 1", median(values) < 1)
        for context, values in took.items()
    ]
    ratio = [long / short]
    return [*figures, Figure("the same, 8,192 ÷ 256", ratio, "≤ 1.5", ratio[0] <= 1.5)]


def tree_of_64() -> Figure:
    """Milliseconds to build a tree, its mask behind 1,024 positions, and to accept from it."""
    draw = random.Random(0)
    parents = [*range(-1, 7), *(draw.randrange(-1, 8) for _ in range(56))]
    tokens = [draw.randrange(VOCABULARY) for _ in parents]
    cache = KVCache([None])
    cache.advance(1024)
    cache.commit(1024)
    logits = torch.randn(1, 65, VOCABULARY).to(torch.bfloat16)
    for row in range(8):  # the main chain is right
        logits[0, row, tokens[row]] = 100.0

    def once() -> None:
        tree = DraftTree(tokens, parents)
        TreeMask(torch.nn.Identity())(tree.ancestry, cache, torch.bfloat16, torch.device("cpu"))
        rows = list(accept(tree, lambda row: int(logits[:, row].float().argmax())))
        assert len(rows) >= 9

    took = [1e3 * seconds(once) for _ in range(200)]
    name = "tree of 64 nodes, mask and acceptance, ms"
    return Figure(name, took, "< 1.5", median(took) < 1.5)


def peak_memory(model: str, dtype: str, tokens: int) -> Figure:
    """Peak resident memory of a process that drafts ÷ of one that calls transformers.

    Drafts read the model's own weights: what rounded copies take is `precisions.py`'s business.
    """
    peaks = {}
    for way in ("transformers", "swift"):
        command = [sys.executable, __file__, "--peak-of", way, "--model", model]
        command += ["--dtype", dtype, "--tokens", str(tokens)]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[way] = float(result.stdout.strip())
    ratio = peaks["swift"] / peaks["transformers"]
    return Figure("peak memory ÷ transformers'", [ratio], "≤ 1.1", ratio <= 1.1)


def print_peak(way: str, model_name: str, dtype: str, tokens: int) -> None:
    """Peak resident KiB while generating behind a long prompt; what loading took is not in it."""
    model, _ = load(model_name, dtype=dtype)
    prompt = torch.randint(100, 1000, (1, 1024), generator=torch.Generator().manual_seed(0))
    request = {"attention_mask": torch.ones_like(prompt), "do_sample": False}
    own_weights = SwiftConfig(draft_bits=16)
    generate = model.generate if way == "transformers" else Swift(model, None, own_weights).generate
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far (Linux)
    generate(prompt, max_new_tokens=tokens, eos_token_id=None, **request)
    status = Path("/proc/self/status").read_text()
    print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def environment(model: Any, name: str) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return {
        "model": Path(name).name,
        "dtype": str(model.dtype),
        "device": str(model.device),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": commit.stdout.strip(),
    }


def main(
    model: Annotated[str, typer.Option(help="a name, folder or Hub id")] = DEFAULT_MODEL,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32")] = "auto",
    tokens: Annotated[int, typer.Option(help="new tokens of each generation")] = 32,
    repeats: Annotated[int, typer.Option(help="measurements of each figure")] = 15,
    out: Annotated[Path | None, typer.Option(help="also write the figures here, as JSON")] = None,
    peak_of: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Print the engine's overheads as ratios."""
    if peak_of is not None:
        print_peak(peak_of, model, dtype, tokens)
        return
    console = Console()
    loaded, tokenizer = load(model, dtype=dtype, on_progress=console.print)
    runs = Generation(loaded, tokenizer, tokens)
    depth = runs.plain.sublayers.depth
    big = sum(parameter.numel() for parameter in loaded.parameters()) > 1e9
    goal = 0.03 if big else 0.10
    figures = [
        runs.loop_over_transformers(repeats),
        runs.outside_forwards(runs.plain, "no drafting", repeats, goal),
        runs.outside_forwards(runs.drafting, "drafting", repeats, goal),
        saving_over_cost(runs.plain, LayerSet.unified(depth), "every second", repeats),
        saving_over_cost(runs.plain, LayerSet.every(depth), "all allowed", repeats),
        *bookkeeping(loaded),
        tree_of_64(),
        peak_memory(model, dtype, tokens),
    ]
    table = Table("figure", "median", "spread", "to reach", "reached", title=Path(model).name)
    for figure in figures:
        table.add_row(*figure.row())
    console.print(table)
    if out is not None:
        report = {
            "environment": environment(loaded, model),
            "settings": {"tokens": tokens, "repeats": repeats},
            "figures": {figure.name: figure.as_dict() for figure in figures},
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
