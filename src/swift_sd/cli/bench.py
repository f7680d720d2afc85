"""`swift-sd bench`: what drafting gains here, beside the alternatives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from swift_sd.bench import questions as sources
from swift_sd.bench.catalogue import DEFAULT_METHODS, METHODS, checked_names
from swift_sd.bench.settings import Settings
from swift_sd.cli import options
from swift_sd.cli.session import loaded
from swift_sd.cli.terminal import note, progress
from swift_sd.errors import ConfigError
from swift_sd.loading import DEFAULT_MODEL
from swift_sd.model.layer_set import LayerSet

if TYPE_CHECKING:
    from swift_sd.bench.journal import Journal
    from swift_sd.bench.questions import Question
    from swift_sd.bench.runner import Runner

INTERRUPTED = 130
DEQUANTISED = (
    "This checkpoint was dequantised from a 4-bit file whose groups differ from those of the "
    "drafts' copies: a model that was never rounded may agree with its rounded copies less often."
)
LISTED = "\n\n".join(f"  {name:15} {method.about}" for name, method in METHODS.items())
EPILOG = f"""[bold]Methods[/bold]

{LISTED}

[bold]Examples[/bold]

  swift-sd bench --limit 1 -n 32                      # a first look

  swift-sd bench --methods hf,swift --stream          # what a service sees

  swift-sd bench --questions spec_bench.jsonl --out runs/mine

  swift-sd bench compare runs/before runs/mine
"""

app = typer.Typer(rich_markup_mode="rich", add_completion=False)


@app.callback(invoke_without_command=True, epilog=EPILOG)
def bench(
    context: typer.Context,
    model: options.Model = DEFAULT_MODEL,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    questions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="JSON lines with question_id, group and turns; or Spec-Bench's."
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Questions that come with swift-sd: builtin (24)."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="Only the first K of each group.")
    ] = None,
    methods: Annotated[
        str, typer.Option(metavar="A,B,…", help="What to time; the list is below.")
    ] = ",".join(DEFAULT_METHODS),
    draft_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="A smaller model for hf-assisted.")
    ] = None,
    layer_set: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Skipped sublayers for swift-fixed (JSON).")
    ] = None,
    max_new_tokens: options.MaxNewTokens = 128,
    temperature: options.Temperature = 0.0,
    seed: options.Seed = 0,
    repeats: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="R",
            help="Timings of each pair; the median counts. Each has drafts' copies of its own.",
        ),
    ] = 1,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            metavar=options.FLAG,
            help="One Swift over all questions, not a fresh one for each.",
        ),
    ] = False,
    shuffle: Annotated[
        bool,
        typer.Option("--shuffle", metavar=options.FLAG, help="Ask in an order drawn from --seed."),
    ] = False,
    remark: Annotated[
        str | None,
        typer.Option("--note", metavar="TEXT", help="Said on the page, say, of the checkpoint."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where results go; one folder for each setting if not given."
        ),
    ] = None,
) -> None:
    """Time methods next to transformers' own generate, question by question.

    Writes records.jsonl as it goes, then results.json and report.html.
    The same command again takes up an interrupted run where it stopped.
    """
    if context.invoked_subcommand is not None:
        return
    every, source = sources.chosen(questions, suite)
    asked = sources.limited(every, limit)
    if shuffle:
        asked, source = sources.shuffled(asked, seed or 0), f"{source}, shuffled"
    skipped_layers = LayerSet.load(layer_set) if layer_set else None
    given = {"draft_model": draft_model, "layer_set": layer_set}
    names = checked_names(
        [name.strip() for name in methods.split(",") if name.strip()],
        [name for name, value in given.items() if value is not None],
    )
    settings = Settings(
        model=model,
        questions=source,
        digest=sources.digest(asked),
        methods=names,
        max_new_tokens=max_new_tokens,
        limit=limit,
        temperature=temperature,
        repeats=repeats,
        stream=stream,
        seed=seed or 0,
        dtype=dtype,
        device=device,
        draft_model=draft_model,
        layer_set=skipped_layers.to_dict() if skipped_layers else None,
        note=remark,
    )
    folder = out or Path(f"bench-{re.sub(r'[^A-Za-z0-9.]+', '-', model)}-{settings.fingerprint}")
    if _run(folder, asked, settings, skipped_layers):
        raise typer.Exit(INTERRUPTED)


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="results.json, or its folder.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="The later one.")],
    force: Annotated[
        bool,
        typer.Option("--force", metavar=options.FLAG, help="Even if the work was not the same."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", metavar=options.FLAG, help="Print a JSON list.")
    ] = False,
) -> None:
    """Say what changed from run A to run B beyond noise."""
    import json

    from swift_sd.bench.compare import BY_CHANCE, FEWEST, TOO_FEW, compare, comparison_table, notes
    from swift_sd.bench.results import read_results

    runs = read_results(before), read_results(after)
    rows = compare(*runs, force=force)
    if as_json:
        print(json.dumps(rows))
        return
    console = Console(highlight=False)
    console.print(comparison_table(rows))
    judged = sum(row["verdict"] != TOO_FEW for row in rows)
    console.print(
        f"B ÷ A: speedups, question by question; too few: less than {FEWEST} questions.\n"
        f"Of {judged} judged rows about {judged * BY_CHANCE:.1f} at most differ by chance alone.",
        style="dim",
    )
    for line in notes(*runs):
        console.print(line, markup=False)


@app.command()
def page(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="results.json or its folder.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="report.html beside the results if not set.")
    ] = None,
) -> None:
    """Write the page of a run again."""
    from swift_sd.bench.page import NAME, write_page
    from swift_sd.bench.results import read_results

    beside = results if results.is_dir() else results.parent
    target = out or beside / NAME
    write_page(target, read_results(results))
    note(f"wrote {target}")


def _run(
    folder: Path, asked: list[Question], settings: Settings, layer_set: LayerSet | None
) -> bool:
    """Time, write and show; whether Ctrl-C ended it early."""
    from swift_sd.bench.environment import describe_environment
    from swift_sd.bench.journal import Journal, alone, check_folder
    from swift_sd.bench.method import Subject
    from swift_sd.bench.runner import Runner
    from swift_sd.model.rope import decodable_length

    with alone(folder):
        check_folder(folder, settings.to_dict())
        with loaded(settings.model, dtype=settings.dtype, device=settings.device) as parts:
            assistant: tuple[Any, Any] = (None, None)
            if settings.draft_model is not None and "hf-assisted" in settings.methods:
                assistant = _assistant(settings)
            model, tokenizer = parts
            context = decodable_length(model.config)
            subject = Subject(model, tokenizer, context, *assistant, layer_set)
            journal = Journal(folder, settings.to_dict(), describe_environment(model))
            runner = Runner(subject, asked, settings, journal)
            try:
                interrupted = _time(runner)
            finally:
                _finish(folder, journal, settings, runner)
    if interrupted:
        note(f"interrupted; the same command with --out {folder} goes on from here")
    elif not journal.records and set(settings.methods) <= runner.skipped.keys():
        raise ConfigError("no method that was asked for can be timed with this model")
    elif not journal.records:
        raise ConfigError("nothing was timed: every prompt is longer than the model's context")
    return interrupted


def _assistant(settings: Settings) -> tuple[Any, Any]:
    from swift_sd import loading

    assert settings.draft_model is not None
    with progress("loading the draft model") as tell:
        return loading.load(
            settings.draft_model, dtype=settings.dtype, device=settings.device, on_progress=tell
        )


def _time(runner: Runner) -> bool:
    """Make all records, showing how far it is; whether Ctrl-C came between."""
    from swift_sd.bench.table import live_progress

    for name, reason in runner.skipped.items():
        note(f"{name} is skipped: {reason}")
    made = runner.total - runner.missing
    if made:
        left = f"{runner.missing} to go" if runner.missing else "complete; see --out for another"
        note(f"{made} records are there already: {left}")
    with live_progress() as bar:
        task = bar.add_task("warming up", total=runner.total, completed=made)
        try:
            for record in runner.run():
                words = escape(f"{record['method']} on {record['group']}")
                done = runner.total - runner.missing
                bar.update(task, completed=done, total=runner.total, description=words)
        except KeyboardInterrupt:
            return True
    return False


def _finish(folder: Path, journal: Journal, settings: Settings, runner: Runner) -> None:
    from swift_sd.bench import page
    from swift_sd.bench.results import NAME, collect, write_results
    from swift_sd.bench.table import print_results, rounding_of

    results = collect(journal, settings, complete=not runner.missing, skipped=runner.skipped)
    if settings.model == DEFAULT_MODEL and settings.note is None and rounding_of(results):
        results["settings"]["note"] = DEQUANTISED
    write_results(folder / NAME, results)
    console = Console(highlight=False)
    print_results(results, console)
    if not results["summary"]:
        return
    try:
        page.write_page(folder / page.NAME, results)
    except ConfigError as error:  # the figures are safe; only the page's libraries are missing
        note(str(error))
        return
    note(f"{folder / NAME} has all figures, {folder / page.NAME} shows them")
