"""`swift-sd search`: find out how to draft before it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from swift_sd.cli import options
from swift_sd.cli.layer_map import layer_map
from swift_sd.cli.session import loaded
from swift_sd.cli.terminal import note, progress
from swift_sd.errors import ConfigError
from swift_sd.loading import DEFAULT_MODEL

if TYPE_CHECKING:
    from swift_sd.cli.study import Study

EPILOG = """[bold]Examples[/bold]

  swift-sd search --prompts prompts.txt --out smollm2.json

  swift-sd search ./my-model --prompts spec_bench.jsonl --out mine.json -n 128

  swift-sd generate --model ./my-model --profile mine.json "Hello"

[bold]Prompts[/bold]

  FILE.jsonl has an object with "turns" on each line, as for swift-sd bench; any other file has
  one prompt on each line. Some twenty that are like your own will do.
"""
INTERRUPTED = 130


def search(
    prompts: Annotated[
        Path, typer.Option(metavar="FILE", help="What to answer meanwhile.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The profile to write (JSON).", show_default=False)
    ],
    model: options.ModelArgument = DEFAULT_MODEL,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    max_new_tokens: options.MaxNewTokens = 64,
) -> None:
    """Find out which sublayers to skip, and in how many bits to draft, on prompts of yours.

    All prompts are answered with drafts in 4 bits, then in 8, then with the model's own weights;
    what promises most tokens per second is written down as a profile. Ctrl-C ends it with what was
    found. The same command again goes on from there.
    """
    texts = read_prompts(prompts)
    with loaded(model, dtype=dtype, device=device) as (subject, tokenizer):
        with progress("preparing drafts"):
            from swift_sd.cli.study import Study

            study = Study(subject, tokenizer, texts, out, max_new_tokens)
        interrupted = _watched(study)
        console = Console(highlight=False)
        console.print(layer_map(study.layer_set))
        console.print(study.verdict, markup=False)
    note(f"{out} is written: swift-sd generate --profile {out} …, or Swift(model, profile=…)")
    if interrupted:
        note("interrupted; the same command goes on from here")
        raise typer.Exit(INTERRUPTED)


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file; of questions with several turns the first.

    Raises:
        ConfigError: it cannot be read, is not UTF-8 text, or holds none.
    """
    if path.suffix in (".jsonl", ".json"):
        from swift_sd.bench.questions import read_questions

        return [question.turns[0] for question in read_questions(path)]
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(
            f"cannot read the prompts {path}: {error.strerror or error}; check the path"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text: convert it first") from None
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise ConfigError(f"{path} holds no prompt: put one on each line")
    return prompts


def _watched(study: Study) -> bool:
    """Run the study, showing how far it is; whether Ctrl-C came between."""
    from swift_sd.bench.table import live_progress

    if study.done:
        rest = f"goes on behind answer {study.done} of {len(study)}"
        note("all answers are there already" if study.done == len(study) else rest)
    with live_progress() as bar:
        task = bar.add_task("searching", total=len(study), completed=study.done)
        try:
            for _ in study.run():
                bar.update(task, completed=study.done, total=len(study), description=study.progress)
        except KeyboardInterrupt:
            return True
    return False
