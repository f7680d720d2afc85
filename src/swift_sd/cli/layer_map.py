"""A picture of which sublayers are skipped."""

from __future__ import annotations

from rich.text import Text

from swift_sd.model.layer_set import LayerSet

RUNS, SKIPPED, NEVER = "■", "·", "□"
PER_LINE = 60  # layers


def layer_map(layer_set: LayerSet) -> Text:
    """One mark a sublayer, attention above MLP, layers from left to right."""
    picture = Text()
    for first in range(0, layer_set.depth, PER_LINE):
        layers = range(first, min(first + PER_LINE, layer_set.depth))
        picture.append(f"{'layer':10}{_ruler(layers)}\n", style="dim")
        for name, skipped in (("attention", layer_set.attention), ("MLP", layer_set.mlp)):
            picture.append(f"{name:10}")
            for layer in layers:
                picture.append(*_mark(layer, skipped, layer_set.depth))
            picture.append("\n")
    legend = f"{RUNS} runs  {SKIPPED} skipped  {NEVER} never skipped"
    return picture.append(f"{legend}: {layer_set}", style="dim")


def _mark(layer: int, skipped: frozenset[int], depth: int) -> tuple[str, str]:
    if layer in skipped:
        return SKIPPED, "dim"
    return (NEVER, "dim") if layer in (0, depth - 1) else (RUNS, "green")


def _ruler(layers: range) -> str:
    """Every tenth layer by its number."""
    return "".join(f"{layer:<10}" for layer in layers if layer % 10 == 0).rstrip()
