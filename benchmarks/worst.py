"""Where drafting can hardly pay: how much slower than plain decoding does it make anything?

    .venv/bin/python benchmarks/worst.py --out benchmarks/results/worst-smollm2-135m.json

Each case is a stream that one object answers, prompt by prompt beside our own plain decoding, the
two in turn first. What counts is plain decoding's time for each token ÷ ours, over all prompts;
with `--repeats` each stream begins anew so often, and the median counts. Plain decoding is our own
loop, which may be faster than transformers'.
"""

import json
from collections.abc import Callable, Iterator
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
from swift_sd.bench.questions import chosen
from swift_sd.loading import DEFAULT_MODEL, load
from swift_sd.testing.families import tiny_model

LENGTH = 64  # tokens of a random prompt
WARM_UP = 16  # tokens
GREEDY = {"do_sample": False}
SAMPLED = {"do_sample": True, "top_k": 0, "top_p": 1.0}


def timed(swift: Swift, inputs: Any, seed: int, arguments: dict[str, Any]) -> tuple[float, Any]:
    """Seconds for each new token, and the ids."""
    torch.manual_seed(seed)
    begin = perf_counter()
    out: Any = swift.generate(**inputs, **arguments)
    ids = out[0, inputs["input_ids"].shape[1] :].tolist()  # waits for the device
    return (perf_counter() - begin) / len(ids), ids


def random_prompts(
    size: int, count: int, device: torch.device, seed: int = 0
) -> list[dict[str, torch.Tensor]]:
    """Token ids without any sense."""
    random = torch.Generator().manual_seed(seed)
    ids = [torch.randint(size, (1, LENGTH), generator=random).to(device) for _ in range(count)]
    return [{"input_ids": each, "attention_mask": torch.ones_like(each)} for each in ids]


def cases(model: Any, tokenizer: Any, count: int, new: int) -> Iterator[tuple[str, Any, Any, Any]]:
    """Name, model, prompts and arguments of `generate`."""
    encode = Swift(model, tokenizer, SwiftConfig.plain()).encode
    asked, _ = chosen(None, None)
    texts = [encode([{"role": "user", "content": one.turns[0]}]) for one in asked[:count]]
    size = model.config.get_text_config().vocab_size
    hot = {**SAMPLED, "temperature": 1.5, "max_new_tokens": new}
    yield "temperature 1.5", model, texts, hot
    greedy = {**GREEDY, "max_new_tokens": new}
    yield "prompts of random tokens", model, random_prompts(size, count, model.device), greedy
    yield "answers of one token", model, texts, {**GREEDY, "max_new_tokens": 1}
    # Of random weights every sublayer matters, and no text is likelier than another.
    sampled = {**SAMPLED, "max_new_tokens": new, "eos_token_id": None}
    torch.manual_seed(0)
    random: Any = type(model)(model.config).to(model.device, model.dtype).eval()
    yield "random weights, as many", random, random_prompts(size, count, model.device), sampled
    alone: Any = tiny_model(
        "llama", layers=12, vocab_size=4096, hidden_size=256, head_dim=32, intermediate_size=768
    ).to(model.device, torch.bfloat16)
    yield "random weights, 1 ms a step", alone, random_prompts(4096, count, model.device), sampled


def measured(
    model: Any, tokenizer: Any, prompts: Any, arguments: Any, show: Callable[[Any], Any]
) -> dict[str, Any]:
    """The figures of a case."""
    plain, swift = Swift(model, tokenizer, SwiftConfig.plain()), Swift(model, tokenizer)
    other = random_prompts(model.config.get_text_config().vocab_size, 1, model.device, seed=1)[0]
    for one in (plain, swift):  # what is slow once shall be over
        timed(one, other, 0, {**GREEDY, "max_new_tokens": WARM_UP})
    ours, theirs, same = [], [], 0
    for number, inputs in enumerate(show(prompts)):
        order = (swift, plain) if number % 2 else (plain, swift)
        found = {one: timed(one, inputs, number, arguments) for one in order}
        ours.append(found[swift][0])
        theirs.append(found[plain][0])
        same += found[swift][1] == found[plain][1]
    ratios = [their / our for their, our in zip(theirs, ours, strict=True)]
    return {
        "ratio": sum(theirs) / sum(ours),
        "median": median(ratios),
        "min": min(ratios),
        "max": max(ratios),
        "identical": same,
        "prompts": len(prompts),
    }


def main(
    model: Annotated[str, typer.Option(help="As for swift-sd.")] = DEFAULT_MODEL,
    only: Annotated[str, typer.Option(help="Only cases with this in their name.")] = "",
    count: Annotated[int, typer.Option(min=1, max=24, help="Prompts of each case.")] = 24,
    new: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Streams of each case.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Also write the figures here, as JSON.")] = None,
) -> None:
    """Print what each case comes to."""
    target, tokenizer = load(model)
    table = Table("case", "plain ÷ ours", "of streams", "of prompts", "identical")
    figures = {}
    for name, one, prompts, arguments in cases(target, tokenizer, count, new):
        if only not in name:
            continue
        own = tokenizer if one is target else None
        streams = [
            measured(one, own, prompts, arguments, lambda each, name=name: track(each, name))
            for _ in range(repeats)
        ]
        facts = {"parameters": one.num_parameters(), "dtype": str(one.dtype), **arguments}
        ratios = [stream["ratio"] for stream in streams]
        figures[name] = {"ratio": median(ratios), "streams": streams, "settings": facts}
        least, most = (min(s["min"] for s in streams), max(s["max"] for s in streams))
        same, of = (sum(stream[key] for stream in streams) for key in ("identical", "prompts"))
        table.add_row(
            name,
            f"{median(ratios):.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
            f"{least:.2f} to {most:.2f}",
            f"{same} of {of}",
        )
    Console().print(table)
    if out is not None:
        settings = {"model": Path(model).name, "count": count, "new": new, "random": LENGTH}
        settings["repeats"] = repeats
        report = {"environment": describe_environment(target), "settings": settings}
        out.write_text(json.dumps({**report, "cases": figures}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
