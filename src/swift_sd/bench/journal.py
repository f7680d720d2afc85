"""The file in which a run is written down as it goes, so that it can be taken up again."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from swift_sd.bench.settings import difference
from swift_sd.errors import ConfigError

NAME, LOCK = "records.jsonl", ".lock"
HEAD = b'{"kind": "header"'  # how every journal begins
Entry = dict[str, Any]

# Where these differ, timings do not belong in one table.
SAME_MACHINE = (
    "machine", "cpu", "cores", "threads", "device", "dtype", "python", "torch", "transformers",
    "sources", "model", "compiled",
)  # fmt: skip


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes from writing in `folder`.

    It is made if it is not there, and then removed again if nothing was written.

    Raises:
        ConfigError: one does already.
    """
    was_there = folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"another process is writing in {folder}: wait for it, or give another --out"
        ) from None
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):  # it is not empty
            if not was_there:
                folder.rmdir()


def check_folder(folder: Path, settings: Entry) -> None:
    """See that a run with these settings may write in `folder`, before anything is loaded.

    Raises:
        ConfigError: the folder holds a run with other settings, or a damaged file.
    """
    header, _ = _read(folder / NAME)
    if header is not None:
        _require_same(folder, settings, header.get("settings", {}), _deciding(settings))


class Journal:
    """Lines of JSON in `folder`, each on the disk before the next is made.

    The first line holds settings and environment. A line is a record, a timing of the reference
    work, or the mark of a start; `kind` says which. Of a line that a crash cut off, nothing counts.

    Args:
        folder: made if it is not there.
        settings, environment: of this run; those of an earlier run in the folder must be the same.

    Raises:
        ConfigError: the folder holds a run with other settings, from another machine, or a damaged
            file.
    """

    def __init__(self, folder: Path, settings: Entry, environment: Entry) -> None:
        self.path = folder / NAME
        self.entries: list[Entry] = []
        folder.mkdir(parents=True, exist_ok=True)
        header, self.entries = _read(self.path)
        if header is None:
            header = {"kind": "header", "settings": settings, "environment": environment}
            self._write(header)
        _require_same(folder, settings, header.get("settings", {}), _deciding(settings))
        _require_same(folder, environment, header.get("environment", {}), SAME_MACHINE)
        self.environment: Entry = header["environment"]

    def append(self, kind: str, entry: Entry) -> None:
        """Write an entry; it is on the disk when this returns."""
        entry = {"kind": kind, **entry}
        # First, so that Ctrl-C while it is written does not make the results forget it.
        self.entries.append(json.loads(json.dumps(entry)))  # as it will be read: keys are texts
        self._write(entry)

    def of_kind(self, kind: str) -> list[Entry]:
        """The entries of one kind, in order, without the mark of their kind."""
        found = [entry for entry in self.entries if entry["kind"] == kind]
        return [{key: entry[key] for key in entry if key != "kind"} for entry in found]

    @property
    def records(self) -> list[Entry]:
        """One for each question, turn and method that was timed."""
        return self.of_kind("record")

    def _write(self, entry: Entry) -> None:
        with self.path.open("ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _read(path: Path) -> tuple[Entry | None, list[Entry]]:
    """Header and entries; a last line without its end is cut off the file."""
    if not path.exists():
        return None, []
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    # Even of a first line that a crash cut off. All else is not ours to shorten.
    if not (data.startswith(HEAD) or HEAD.startswith(data)):
        raise ConfigError(
            f"{path}, line 1 is damaged: it is no run of swift-sd bench; give another --out"
        )
    whole, _, torn = data.rpartition(b"\n")
    if torn:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - len(torn))
    entries: list[Entry] = []
    for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
        try:
            entry = json.loads(line)
            known = isinstance(entry, dict) and isinstance(entry.get("kind"), str)
        except ValueError:
            known = False
        if not known or (entry["kind"] == "header") != (number == 1):
            raise ConfigError(
                f"{path}, line {number} is damaged: remove the lines from there on and start "
                "again, or give another --out"
            )
        entries.append(entry)
    return (entries[0], entries[1:]) if entries else (None, [])


def _deciding(settings: Entry) -> tuple[str, ...]:
    """All but what is only said about a run."""
    return tuple(name for name in settings if name != "note")


def _require_same(folder: Path, wanted: Entry, found: Entry, keys: tuple[str, ...]) -> None:
    differs = difference(wanted, found, keys)
    if differs is not None:
        raise ConfigError(
            f"{folder} holds a run with other settings ({differs}): give another --out, or "
            "the settings of that run to continue it"
        )
