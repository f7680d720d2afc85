"""What goes to the terminal beside the answer itself: progress, notes, figures, errors."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from swift_sd.loading import CONVERTING

Tell = Callable[[str], None]


@contextmanager
def progress(message: str) -> Iterator[Tell]:
    """Show on stderr what is being waited for; the yielded function changes the message.

    On a terminal this is one line that disappears at the end. Elsewhere only what takes very long
    is said.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: note(text) if text == CONVERTING else None
        return
    with console.status(f"[dim]{message} …") as status:
        yield lambda text: status.update(f"[dim]{text} …")


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """End at SIGTERM as a program does that does not handle it, as process 1 of a container too.

    The kernel ignores what process 1 does not handle.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: set from C


def _end(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(0)  # process 1 is still there


def write(piece: str) -> None:
    """Print a piece of an answer on stdout, at once."""
    sys.stdout.write(piece)
    sys.stdout.flush()


def note(message: str) -> None:
    """Tell on stderr something that the user should know but need not act on."""
    _print_to_stderr(f"swift-sd: note: {message}")


def fail(message: str) -> None:
    """Tell on stderr in one line why the command ends here."""
    _print_to_stderr(f"swift-sd: error: {' '.join(message.split())}", style="red")


def figures(text: str) -> None:
    """Print on stderr what a response cost."""
    _print_to_stderr(text, style="dim")


def _print_to_stderr(text: str, style: str | None = None) -> None:
    console = Console(stderr=True, highlight=False)
    # Wrapped by words for a reader; unwrapped for a program or a log.
    soft_wrap = not console.is_terminal
    console.print(text, style=style, markup=False, emoji=False, soft_wrap=soft_wrap)
