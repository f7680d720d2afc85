"""The app `swift-sd`, and how every way of ending looks from outside."""

from __future__ import annotations

import importlib.metadata
import io
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from swift_sd.cli import options
from swift_sd.cli.bench import app as bench
from swift_sd.cli.chat import EPILOG as CHAT_EPILOG
from swift_sd.cli.chat import chat
from swift_sd.cli.generate import EPILOG as GENERATE_EPILOG
from swift_sd.cli.generate import generate
from swift_sd.cli.inspect import EPILOG as INSPECT_EPILOG
from swift_sd.cli.inspect import inspect
from swift_sd.cli.search import EPILOG as SEARCH_EPILOG
from swift_sd.cli.search import search
from swift_sd.cli.serve import EPILOG as SERVE_EPILOG
from swift_sd.cli.serve import serve
from swift_sd.cli.terminal import ended_by_sigterm, fail
from swift_sd.errors import SwiftError

REFUSED, INTERRUPTED = 2, 130
# click's UsageError; where it lives depends on the release of typer
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
app.command(epilog=GENERATE_EPILOG)(generate)
app.command(epilog=CHAT_EPILOG)(chat)
app.command(epilog=INSPECT_EPILOG)(inspect)
app.command(epilog=SEARCH_EPILOG)(search)
app.command(epilog=SERVE_EPILOG)(serve)
app.add_typer(bench, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            version = importlib.metadata.version("swift-sd")
        except importlib.metadata.PackageNotFoundError:  # run from its sources
            version = "(not installed)"
        print(f"swift-sd {version}")
        raise typer.Exit


@app.callback()
def _about(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            metavar=options.FLAG,
            callback=_print_version,
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    """Faster text from a language model, and exactly the same text.

    The model drafts with cheaper views of itself and copies of the text, and verifies them in full.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status.

    0 if all went well, 2 if what was asked for was refused (one line on stderr says why), 130 if
    it was interrupted.
    """
    with ended_by_sigterm():
        return _run(list(sys.argv[1:] if arguments is None else arguments) or ["--help"])


def _run(given: list[str]) -> int:
    _never_fail_to_print()
    try:
        # The command itself, not `app(…)`, which installs a hook for uncaught exceptions.
        command = typer.main.get_command(app)
        status = command.main(args=given, prog_name="swift-sd", standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:
        message = _refusal(error)
        if message is None:
            raise
        fail(message)
        return REFUSED
    return status if isinstance(status, int) else 0


def _refusal(error: Exception) -> str | None:
    """What to tell the user about `error`; None if it is not theirs but a fault of the program."""
    if isinstance(error, USAGE_ERROR):
        path = getattr(getattr(error, "ctx", None), "command_path", "swift-sd")
        return f"{str(error.format_message()).rstrip('.')} (see {path} --help)"
    if isinstance(error, SwiftError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return None


def _never_fail_to_print() -> None:
    """Replace characters that the terminal's encoding lacks, rather than stopping half-way."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
