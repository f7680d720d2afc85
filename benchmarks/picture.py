"""One picture of several runs of `swift-sd bench`: what each method makes of each model.

    R=benchmarks/results/bench
    .venv/bin/python benchmarks/picture.py docs/speed.svg $R-smollm2-135m-paper $R-qwen*-paper

Bars are speeds over all questions as multiples of plain `generate`, lines their 95 % intervals. Of
several runs of a model the last one that has a method counts for it.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.figure import Figure

METHODS = {  # what is shown, the words for it, and its colour
    "hf-lookup": ("prompt lookup", "#b8b8b8"),
    "swift-paper": ("the paper's SWIFT, in this library", "#8f8f8f"),
    "plain": ("swift-sd without drafts", "#9ecae1"),
    "swift": ("swift-sd", "#0072b2"),
}
WIDTH = 0.16  # of a bar


def main(
    out: Annotated[Path, typer.Argument(help="The picture, .svg or .png.")],
    runs: Annotated[list[Path], typer.Argument(help="Folders that swift-sd bench wrote.")],
) -> None:
    """Draw OUT from RUNS."""
    models: dict[str, dict[str, Any]] = {}
    for run in runs:
        results = json.loads((run / "results.json").read_text(encoding="utf-8"))
        found = models.setdefault(results["settings"]["model"], {})
        found |= {method: groups["overall"] for method, groups in results["summary"].items()}
    figure = Figure(figsize=(8.5, 3.2), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    for method, (words, colour) in METHODS.items():
        places, speeds, below, above = [], [], [], []
        for place, found in enumerate(models.values()):
            shown = [one for one in METHODS if one in found]
            if method not in shown:
                continue
            places.append(place + (shown.index(method) - (len(shown) - 1) / 2) * WIDTH)
            speed = found[method]["speedup"]
            low, high = found[method]["interval"] or (speed, speed)  # of one question there is none
            speeds.append(speed)
            below.append(max(speed - low, 0.0))
            above.append(max(high - speed, 0.0))
        if not places:
            continue
        axes.bar(places, speeds, WIDTH * 0.9, color=colour, label=words)
        axes.errorbar(places, speeds, [below, above], fmt="none", ecolor="#333333", linewidth=1)
        for place, speed, extra in zip(places, speeds, above, strict=True):
            axes.text(place, speed + extra + 0.05, f"{speed:.2f}", ha="center", fontsize=8)
    axes.axhline(1, color="#333333", linewidth=0.8)
    axes.set_xticks(range(len(models)), list(models))
    axes.set_ylabel("times plain generate")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(METHODS), frameon=False, fontsize=9)
    figure.savefig(out)


if __name__ == "__main__":
    typer.run(main)
