"""`swift-sd inspect`: what a model is made of, and what its parts cost here."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from swift_sd.cli import options
from swift_sd.cli.session import opened
from swift_sd.cli.terminal import progress
from swift_sd.errors import ConfigError
from swift_sd.loading import DEFAULT_MODEL

if TYPE_CHECKING:
    from swift_sd.model.sublayers import LayerParts
    from swift_sd.swift import Swift

EPILOG = """[bold]Examples[/bold]

  swift-sd inspect

  swift-sd inspect ./my-model --dtype float32 --context 1024

  swift-sd inspect --json | jq .step_ms
"""


def inspect(
    model: options.ModelArgument = DEFAULT_MODEL,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    context: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tokens in the cache while measuring.")
    ] = 64,
    as_json: Annotated[
        bool, typer.Option("--json", metavar=options.FLAG, help="Print one JSON object.")
    ] = False,
) -> None:
    """Show a model's sublayers, which can be skipped, and what each costs on this machine."""
    with opened(model, dtype=dtype, device=device) as swift:
        longest = swift.context_length
        if longest is not None and context >= longest:
            raise ConfigError(f"--context is {context}, the model's is {longest}: give less")
        with progress("measuring"):
            facts = {"model": model, **_identity(swift), **_measured(swift, context)}
    if as_json:
        print(json.dumps(facts))
    else:
        _show(facts)


def _identity(swift: Swift) -> dict[str, Any]:
    """What the model is."""
    model = swift.model
    return {
        "family": model.config.model_type,
        "depth": swift.sublayers.depth,
        "parameters": model.num_parameters(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "max_context": swift.context_length,
        "speed_notes": swift.speed_notes,
    }


def _measured(swift: Swift, context: int) -> dict[str, Any]:
    """What a step and its parts cost, in milliseconds."""
    from swift_sd.model.kv_cache import attention_windows
    from swift_sd.model.layer_set import LayerSet

    costs = swift.costs(context)
    depth = swift.sublayers.depth
    skippable = LayerSet.every(depth).attention
    layers = [
        {
            "layer": index,
            "attention_ms": costs.attention[index] * 1e3,
            "mlp_ms": costs.mlp[index] * 1e3,
            "share": (costs.attention[index] + costs.mlp[index]) / costs.step,
            "window": window,
            "skippable": index in skippable,
            "skipped_with_attention": _children(parts, "attention"),
            "skipped_with_mlp": _children(parts, "mlp"),
        }
        for index, (window, parts) in enumerate(
            zip(attention_windows(swift.model.config), swift.sublayers.parts, strict=True)
        )
    ]
    unified = LayerSet.unified(depth).attention
    return {
        "context": costs.context,
        "step_ms": costs.step * 1e3,
        "head_ms": costs.head * 1e3,
        "rest_ms": costs.rest * 1e3,
        "unified_saves_ms": sum(costs.attention[i] + costs.mlp[i] for i in unified) * 1e3,
        "layers": layers,
    }


def _children(parts: LayerParts, kind: str) -> list[str]:
    """The sublayer's own name, then the children that serve nothing else."""
    name: str = getattr(parts, kind)
    return [name, *(child for child in getattr(parts, f"without_{kind}") if child != name)]


def _show(facts: dict[str, Any]) -> None:
    console = Console(highlight=False)
    console.print(facts["model"], style="bold", markup=False, emoji=False)
    millions = facts["parameters"] / 1e6
    limit = f", context {facts['max_context']:,}" if facts["max_context"] else ""
    console.print(
        f"{facts['family']}, {facts['depth']} layers, {millions:,.1f} M parameters, "
        f"{facts['dtype']} on {facts['device']}{limit}"
    )
    console.print(_table(facts))
    for line in _skipped_together(facts["layers"]):
        console.print(line)
    console.print()
    console.print(_totals(facts))
    for note in facts["speed_notes"]:
        console.print(f"\n[bold]slower here[/bold]: {escape(note)}")


def _table(facts: dict[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("layer", "attention ms", "MLP ms", "of a step", "window", "may be skipped"):
        table.add_column(column, justify="right")
    for layer in facts["layers"]:
        table.add_row(
            str(layer["layer"]),
            f"{layer['attention_ms']:.3f}",
            f"{layer['mlp_ms']:.3f}",
            f"{layer['share']:.1%}",
            "full" if layer["window"] is None else str(layer["window"]),
            "yes" if layer["skippable"] else "never",
        )
    return table


def _skipped_together(layers: list[dict[str, Any]]) -> list[str]:
    """For each run of layers of one kind: what a skip leaves out."""
    runs: list[tuple[int, int, str]] = []
    for layer in layers:
        attention = " + ".join(layer["skipped_with_attention"])
        text = f"attention = {attention}; MLP = {' + '.join(layer['skipped_with_mlp'])}"
        if runs and runs[-1][2] == text:
            runs[-1] = (runs[-1][0], layer["layer"], text)
        else:
            runs.append((layer["layer"], layer["layer"], text))
    return [f"\n[bold]{_span(first, last)}[/bold]: {text}" for first, last, text in runs]


def _span(first: int, last: int) -> str:
    return f"layer {first}" if first == last else f"layers {first} to {last}"


def _totals(facts: dict[str, Any]) -> str:
    step, saved = facts["step_ms"], facts["unified_saves_ms"]
    layers = sum(layer["attention_ms"] + layer["mlp_ms"] for layer in facts["layers"])
    parts = (("layers", layers), ("head", facts["head_ms"]), ("everything else", facts["rest_ms"]))
    listed = ", ".join(f"{name} {value:.2f} ms ({value / step:.0%})" for name, value in parts)
    return (
        f"[bold]one step[/bold] behind {facts['context']} tokens: {step:.2f} ms: {listed}\n"
        "[bold]the paper's unified set[/bold] (every second layer) saves at best "
        f"{saved:.2f} ms of it, {saved / step:.0%}"
    )
