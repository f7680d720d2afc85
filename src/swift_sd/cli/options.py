"""The options that several commands share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from swift_sd.loading import DEFAULT_MODEL

FLAG = ""  # typer would show <bool>, as if a value had to follow
MODEL, DRAFTING, SAMPLING = "Model", "Drafting (changes the speed, not the text)", "Sampling"
TEMPERATURES = (0.01, 100.0)  # beyond them logits overflow, or every token is equally likely
MODEL_HELP = f"{DEFAULT_MODEL}, a folder in Hugging Face format, or the id of a Hub repository."


def _temperature(value: float) -> float:
    low, high = TEMPERATURES
    if value != 0 and not low <= value <= high:
        raise typer.BadParameter(f"{value} is neither 0 (greedy) nor from {low} to {high:g}")
    return value


def _top_p(value: float | None) -> float | None:
    if value is not None and not 0 < value <= 1:
        raise typer.BadParameter(f"{value} is not a probability above 0, at most 1")
    return value


def _seed(value: int | None) -> int | None:
    if value is not None and not 0 <= value < 2**64:
        raise typer.BadParameter(f"{value} is not a number from 0 to 2^64 - 1")
    return value


def _early_stop(value: float | None) -> float | None:
    if value is not None and (math.isnan(value) or not 0 <= value <= 1):
        raise typer.BadParameter(f"{value} is not a probability from 0 to 1")
    return value


Model = Annotated[
    str, typer.Option("--model", "-m", metavar="NAME", help=MODEL_HELP, rich_help_panel=MODEL)
]
ModelArgument = Annotated[str, typer.Argument(metavar="[MODEL]", help=MODEL_HELP)]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="TYPE",
        help="auto (as stored), bfloat16, float16 or float32.",
        rich_help_panel=MODEL,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="PLACE", help="auto (a GPU if there is one), cpu, cuda:1 …", rich_help_panel=MODEL
    ),
]
MaxNewTokens = Annotated[
    int, typer.Option("--max-new-tokens", "-n", min=1, metavar="N", help="Longest answer.")
]
System = Annotated[
    str | None, typer.Option(metavar="TEXT", help="System message before the conversation.")
]
Stop = Annotated[
    list[str] | None,
    typer.Option(metavar="STRING", help="End the answer behind this text. May be repeated."),
]
IgnoreEos = Annotated[
    bool,
    typer.Option("--ignore-eos", metavar=FLAG, help="Go on when the model would end its answer."),
]
Plain = Annotated[
    bool,
    typer.Option(
        "--plain", metavar=FLAG, help="Do not draft: one token a forward.", rich_help_panel=DRAFTING
    ),
]
LayerSetFile = Annotated[
    Path | None,
    typer.Option(
        "--layer-set",
        metavar="FILE",
        help="Sublayers that the draft skips (JSON); searched for if not given.",
        rich_help_panel=DRAFTING,
    ),
]
MaxDraftTokens = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=0,
        help="Most tokens drafted before they are verified.",
        rich_help_panel=DRAFTING,
    ),
]
EarlyStop = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        callback=_early_stop,
        help="Draft as in the paper, stopping behind a token less likely than this; measured "
        "costs decide if not given.",
        rich_help_panel=DRAFTING,
    ),
]
Exact = Annotated[
    str | None,
    typer.Option(
        metavar="MODE",
        help="auto, strict or off: what is done so that 16-bit rounding changes no token.",
        rich_help_panel=DRAFTING,
    ),
]
DraftBits = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Bits of the weights that drafts read: 4 or 8, in copies rounded for them; 16, the "
        "model's own: less memory, dearer drafts; or auto.",
        rich_help_panel=DRAFTING,
    ),
]
KeepCopies = Annotated[
    bool,
    typer.Option(
        "--keep-copies",
        metavar=FLAG,
        help="Keep the rounded weights that drafts read in the user's cache directory, to be ready "
        "sooner next time: 0.2 to 0.55 of the model's size.",
        rich_help_panel=DRAFTING,
    ),
]
Profile = Annotated[
    str,
    typer.Option(
        metavar="FILE",
        help="What was learned before, e.g. by swift-sd search. auto keeps it in the user's cache "
        "directory from one command to the next, none starts anew.",
        rich_help_panel=DRAFTING,
    ),
]
Temperature = Annotated[
    float,
    typer.Option(
        "--temperature",
        "-t",
        metavar="T",
        callback=_temperature,
        help="0 takes the likeliest token; above 0 samples.",
        rich_help_panel=SAMPLING,
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        callback=_top_p,
        help="Sample from the likeliest tokens that make up P.",
        rich_help_panel=SAMPLING,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        metavar="K",
        min=1,
        help="Sample from the K likeliest tokens.",
        rich_help_panel=SAMPLING,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        metavar="S",
        callback=_seed,
        help="Sample the same again.",
        rich_help_panel=SAMPLING,
    ),
]
