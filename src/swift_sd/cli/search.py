"""`swift-sd search`: find the sublayers to skip before they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from swift_sd.cli import options
from swift_sd.cli.layer_map import layer_map
from swift_sd.cli.session import encode, fitting_tokens, opened
from swift_sd.cli.settings import sampling_arguments
from swift_sd.cli.terminal import note
from swift_sd.config import SwiftConfig
from swift_sd.errors import ConfigError
from swift_sd.loading import DEFAULT_MODEL

if TYPE_CHECKING:
    from swift_sd.swift import Swift

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
    """Find out which sublayers to skip, on prompts of yours, and write it down as a profile.

    Ctrl-C ends it with what was found. The same command again goes on from there.
    """
    texts = read_prompts(prompts)
    with opened(model, dtype=dtype, device=device, config=SwiftConfig(eager_search=True)) as swift:
        study = Study(swift, texts, out, max_new_tokens)
        interrupted = _watched(study)
        console = Console(highlight=False)
        console.print(layer_map(study.swift.layer_set))
        console.print(study.words, markup=False)
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
        text = path.read_text(encoding="utf-8")
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


class Study:
    """Answers prompts one after the other, and writes down after each what was learned.

    Args:
        swift: searches eagerly, and knows nothing yet.
        prompts: to answer.
        out: where the profile is; if there is one of the same prompts, they go on behind the last
            one answered, else all of them are answered.
        max_new_tokens: longest answer.

    Attributes:
        done: prompts answered.

    Raises:
        ProfileError: there is a file at `out` that is no profile of this model, or none can be
            written there.
    """

    def __init__(self, swift: Swift, prompts: list[str], out: Path, max_new_tokens: int) -> None:
        from swift_sd.adapting.profile import Profile
        from swift_sd.bench.questions import digest_of
        from swift_sd.swift import Swift

        self._prompts, self._out, self._most = prompts, out, max_new_tokens
        self._digest = digest_of([prompts, max_new_tokens])
        self.swift, self.done = swift, 0
        if out.exists():
            known = Profile.load(out)
            self.swift = Swift(swift.model, swift.tokenizer, swift.config, known)
            same = known.study.get("prompts") == self._digest
            self.done = min(int(known.study.get("done", 0)), len(prompts)) if same else 0
        self._save()  # before any work: a place that cannot be written is told at once

    @property
    def words(self) -> str:
        """What the search is doing."""
        return self.swift.search_state

    def __len__(self) -> int:
        return len(self._prompts)

    def run(self) -> Iterator[None]:
        """Answer what is left, one prompt at a time."""
        for text in self._prompts[self.done :]:
            try:
                self._answer(text)
                self.done += 1
            finally:
                self._save()
            yield

    def _answer(self, text: str) -> None:
        swift = self.swift
        template = getattr(swift.tokenizer, "chat_template", None)
        prompt: Any = text if template is None else [{"role": "user", "content": text}]
        inputs = encode(swift, prompt)
        room = fitting_tokens(swift, inputs["input_ids"].shape[1], self._most)
        for _ in swift.steps(**inputs, **sampling_arguments(0.0, None, None), max_new_tokens=room):
            pass

    def _save(self) -> None:
        study = {"prompts": self._digest, "done": self.done}
        replace(self.swift.profile, study=study).save(self._out)


def _watched(study: Study) -> bool:
    """Run the study, showing how far it is; whether Ctrl-C came between."""
    from swift_sd.bench.table import live_progress

    if study.done:
        left = len(study) - study.done
        note(f"{study.done} prompts are done already: {f'{left} to go' if left else 'all of them'}")
    with live_progress() as bar:
        task = bar.add_task("searching", total=len(study), completed=study.done)
        try:
            for _ in study.run():
                bar.update(task, advance=1, description=study.words)
        except KeyboardInterrupt:
            return True
    return False
