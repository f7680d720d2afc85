"""What drafts in 16, 8 and 4 bits take: memory, time to make them, time of a step; and how true.

    .venv/bin/python benchmarks/precisions.py --out benchmarks/results/precisions-smollm2-135m.json

Each precision has a process of its own, so that the most memory ever held is its own; loading the
model may hold more than anything after it. One question is answered, with no sublayer skipped;
speedups are `swift-sd bench`'s business. What is read from a file has just been written: most of it
is still in memory.
"""

import json
import os
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from swift_sd.loading import DEFAULT_MODEL

PROMPT = [{"role": "user", "content": "Explain in three sentences why the sky is blue."}]
BITS = (16, 8, 4)
MIB = 2**20


def most_memory() -> int:
    """Bytes that this process held at most so far."""
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024


def measured(model: str, bits: int, group: int, new: int) -> dict[str, Any]:
    """The figures of one precision."""
    from swift_sd import LayerSet, Swift, SwiftConfig
    from swift_sd.bench.environment import describe_environment
    from swift_sd.loading import load

    begin = perf_counter()
    target, tokenizer = load(model)
    loaded, most = perf_counter(), most_memory()
    none = LayerSet.none(target.config.get_text_config().num_hidden_layers)
    config: Any = {"draft_bits": bits, "draft_group": group, "drafters": ("model",)}
    config["layer_set"] = none
    swift = Swift(target, tokenizer, SwiftConfig(**config))
    made = perf_counter()
    inputs: Any = swift.encode(PROMPT)
    for _ in range(2):  # the second one's record has what steps took in the first
        swift.generate(**inputs, do_sample=False, max_new_tokens=new)
    assert swift.trace is not None
    figures = swift.trace.summary()
    weights = sum(each.nbytes for each in target.parameters())
    return {
        "bits": bits,
        "load_seconds": loaded - begin,
        "swift_seconds": made - loaded,
        "model_bytes": weights,
        "most_memory_loading": most,
        "most_memory": most_memory(),
        "draft_view": figures["draft_view"],
        "share_of_model": figures["draft_view"]["bytes"] / weights,
        "acceptance_rate": figures["acceptance_rate"],
        "environment": describe_environment(target),
    }


def seconds_with_file(model: str, bits: int, group: int) -> float:
    """That it takes to have the copies, from a file if there is one; it is written if not."""
    from swift_sd import Swift, SwiftConfig
    from swift_sd.loading import load

    target, tokenizer = load(model)
    config: Any = {"draft_bits": bits, "draft_group": group, "keep_copies": True}
    swift = Swift(target, tokenizer, SwiftConfig(**config))
    swift.generate(**swift.encode(PROMPT), do_sample=False, max_new_tokens=2)
    assert swift.trace is not None
    return float(swift.trace.summary()["draft_view"]["seconds"])


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What it returns; memory is then its own, and nothing is in memory already."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def main(
    model: Annotated[str, typer.Option(help="As for swift-sd.")] = DEFAULT_MODEL,
    group: Annotated[int, typer.Option(help="Rounded weights that share a scale.")] = 128,
    new: Annotated[int, typer.Option(min=2, help="Tokens of an answer.")] = 96,
    out: Annotated[Path | None, typer.Option(help="Also write the figures here, as JSON.")] = None,
) -> None:
    """Print what each precision takes."""
    rows = []
    for bits in track(BITS, "precisions", transient=True):
        row = in_own_process(measured, model, bits, group, new)
        if row["draft_view"]["compiled"]:
            with TemporaryDirectory() as cache:
                os.environ["SWIFT_SD_CACHE"] = cache
                turns = [in_own_process(seconds_with_file, model, bits, group) for _ in range(2)]
                del os.environ["SWIFT_SD_CACHE"]
            row |= {"seconds_to_make_and_keep": turns[0], "seconds_to_read": turns[1]}
        rows.append(row)
    environments = [row.pop("environment") for row in rows]
    columns = ("bits", "copies", "of the model", "made in", "read in", "most memory")
    table = Table(*columns, "step", "error")
    for row in rows:
        view = row["draft_view"]
        table.add_row(
            str(view["bits"]),
            f"{view['bytes'] / MIB:,.0f} MiB",
            f"{row['share_of_model']:.2f}",
            f"{view['seconds']:.1f} s",
            f"{row['seconds_to_read']:.1f} s" if "seconds_to_read" in row else "–",
            f"{row['most_memory'] / MIB:,.0f} MiB",
            f"{1e3 * view['step_seconds']:.1f} ms",
            f"{view['relative_error']:.3f}",
        )
    Console().print(table)
    if out is not None:
        settings = {"model": Path(model).name, "group": group, "new": new}
        report = {"environment": environments[0], "settings": settings, "precisions": rows}
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
