"""`swift-sd generate`: one answer."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from swift_sd.cli import options
from swift_sd.cli.layer_map import layer_map
from swift_sd.cli.session import fitting_tokens, opened, set_seed, stream_answer
from swift_sd.cli.settings import (
    BYTE_ORDER_MARK,
    checked_text,
    draft_config,
    profile_of,
    sampling_arguments,
)
from swift_sd.cli.terminal import figures, note, write
from swift_sd.errors import ConfigError, PromptError
from swift_sd.loading import DEFAULT_MODEL

if TYPE_CHECKING:
    from torch import Tensor

    from swift_sd.cli.session import Answer
    from swift_sd.swift import Swift

EPILOG = """[bold]Examples[/bold]

  swift-sd generate "Why is the sky blue?"

  swift-sd generate --raw "def fibonacci(n):" --stop "print(" -n 100

  cat notes.txt | swift-sd generate --system "Summarise." -t 0.7 --seed 1

  swift-sd generate --json --plain "Hello" | jq .tokens_per_second
"""
INTERRUPTED = 130


def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="What to answer; - or nothing reads it from stdin.", show_default=False
        ),
    ] = None,
    model: options.Model = DEFAULT_MODEL,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    max_new_tokens: options.MaxNewTokens = 256,
    system: options.System = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            metavar=options.FLAG,
            help="Continue the prompt as it stands: no chat template.",
        ),
    ] = False,
    stop: options.Stop = None,
    ignore_eos: options.IgnoreEos = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            metavar=options.FLAG,
            help="Print text, token ids and figures as one JSON object.",
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", metavar=options.FLAG, help="Also show which sublayers are skipped."
        ),
    ] = False,
    plain: options.Plain = False,
    layer_set: options.LayerSetFile = None,
    max_draft_tokens: options.MaxDraftTokens = None,
    early_stop: options.EarlyStop = None,
    exact: options.Exact = None,
    draft_bits: options.DraftBits = None,
    keep_copies: options.KeepCopies = False,
    profile: options.Profile = "auto",
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    seed: options.Seed = None,
) -> None:
    """Answer one prompt. The text goes to stdout as it is made, the figures to stderr.

    The prompt is sent as a chat message if the model has a chat template.
    """
    config = draft_config(
        plain, layer_set, max_draft_tokens, early_stop, exact, draft_bits, keep_copies
    )
    arguments = sampling_arguments(temperature, top_p, top_k)
    if raw and system is not None:
        raise ConfigError(
            "--raw sends no chat messages, so --system has no place: drop one of them"
        )
    arguments |= _ending(stop, ignore_eos)
    checked_text("--system", system)
    text = _read_prompt(prompt, raw)

    with opened(
        model, dtype=dtype, device=device, config=config, profile=profile_of(profile)
    ) as swift:
        inputs = _encode_prompt(swift, text, system, raw)
        prompt_tokens = inputs["input_ids"].shape[1]
        arguments["max_new_tokens"] = _fit(swift, prompt_tokens, max_new_tokens)
        set_seed(seed)
        answer = stream_answer(swift, inputs, arguments, _discard if as_json else write)
        if swift.trace is None:  # interrupted before anything was done
            raise typer.Exit(INTERRUPTED)
        if as_json:
            facts = {"prompt_tokens": prompt_tokens, "model": model}
            print(json.dumps(_as_dict(answer, swift) | facts))
        else:
            _end_line(answer)
            figures(swift.report())
            if verbose:
                Console(stderr=True, highlight=False).print(layer_map(swift.layer_set))
    if answer.interrupted:
        raise typer.Exit(INTERRUPTED)


def _ending(stop: list[str] | None, ignore_eos: bool) -> dict[str, Any]:
    """Arguments of `generate` that say where the answer ends."""
    for string in stop or []:
        if not checked_text("--stop", string):
            raise ConfigError("--stop is empty: give the text at which the answer ends")
    stopping: dict[str, Any] = {"stop_strings": stop} if stop else {}
    return stopping | ({"eos_token_id": None} if ignore_eos else {})


def _read_prompt(prompt: str | None, raw: bool) -> str:
    """The prompt from the command line, or else from stdin.

    Raises:
        PromptError: there is none, or it is not text.
    """
    if prompt is None and sys.stdin.isatty():
        raise PromptError('no prompt: give one, e.g. swift-sd generate "Hello", or pipe it in')
    if prompt is None or prompt == "-":
        try:
            prompt = sys.stdin.read().removeprefix(BYTE_ORDER_MARK)
        except UnicodeDecodeError:
            raise PromptError("stdin is not UTF-8 text: convert it first") from None
        if not raw:
            prompt = prompt.rstrip("\r\n")
    if not (prompt if raw else prompt.strip()):
        raise PromptError("the prompt is empty: give it some text")
    checked_text("the prompt", prompt)
    return prompt


def _encode_prompt(swift: Swift, text: str, system: str | None, raw: bool) -> dict[str, Tensor]:
    has_template = getattr(swift.tokenizer, "chat_template", None) is not None
    if system is not None and not has_template:
        raise ConfigError(
            "this model has no chat template for --system: put the text in the prompt"
        )
    if raw or not has_template:
        return swift.encode(text)
    opening = [] if system is None else [{"role": "system", "content": system}]
    return swift.encode([*opening, {"role": "user", "content": text}])


def _fit(swift: Swift, prompt_tokens: int, wanted: int) -> int:
    room = fitting_tokens(swift, prompt_tokens, wanted)
    if room < wanted:
        note(f"the context has room for {room} new tokens only, so --max-new-tokens is {room}")
    return room


def _as_dict(answer: Answer, swift: Swift) -> dict[str, Any]:
    assert swift.trace is not None
    return swift.trace.summary() | {"text": answer.text, "token_ids": answer.token_ids}


def _discard(piece: str) -> None:
    """With --json nothing is printed before the end."""


def _end_line(answer: Answer) -> None:
    """Set the figures apart on a terminal; end the last line for whatever reads a pipe."""
    write("" if answer.text.endswith("\n") else "\n")
    if sys.stdout.isatty():
        write("\n")
