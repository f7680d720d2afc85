"""Keeps what is learned in a file: over restarts, and shared between replicas."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from swift_sd.adapting.profile import Profile
from swift_sd.errors import ProfileError
from swift_sd.serve.served import Served

log = logging.getLogger(__name__)
PERIOD = 30.0  # seconds between two looks


class ProfileFile:
    """Saves what a model learned, and takes over what another process has saved since.

    The later writer wins: replicas see alike traffic, and what one of them gives up it has soon
    learned again. Responses in the making keep what they started with. To be called on the
    engine's thread, often.

    Args:
        served: the model; its `swift` takes over what is newer.
        path: of the file, which need not exist; on storage that all replicas see.
        period: seconds between two looks.
    """

    def __init__(self, served: Served, path: Path, period: float = PERIOD) -> None:
        self._swift = served.swift
        self._path = path
        self._period = period
        self._next = 0.0
        self._seen = stamp(self._path)
        self._known = self._learned()

    @staticmethod
    def start(path: Path | None) -> Path | None:
        """What to make a `Swift` with: the file, if there is one yet.

        Raises:
            ProfileError: nothing can be kept there.
        """
        if path is None:
            return None
        try:
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-"):
                return path if path.exists() else None
        except OSError as error:
            raise ProfileError(
                f"no profile can be kept at {path} ({error.strerror or error}): give --profile a "
                "file in a folder that can be written"
            ) from None

    @staticmethod
    def set_aside(path: Path | None, reason: ProfileError, seen: tuple[int, int] | None) -> None:
        """Rename a file that cannot be used: a server that is started again would meet it again.

        Nothing is done where another process has renamed or replaced it meanwhile.

        Args:
            path: of the file.
            reason: why it cannot be used.
            seen: its `stamp` from before it was loaded.

        Raises:
            ProfileError: `reason`, where there is no such file or it cannot be renamed.
        """
        if path is None:
            raise reason
        now = stamp(path)
        if now is None or now != seen:  # another replica was faster
            log.warning("%s. Another process has seen to it, and learning starts anew", reason)
            return
        if not path.is_file():
            raise reason
        names = (path.with_name(f"{path.name}.unusable-{number}") for number in count(1))
        aside = next(name for name in names if not name.exists())
        try:
            path.rename(aside)
        except FileNotFoundError:
            return
        except OSError:
            raise reason from None
        log.warning("%s. It is set aside as %s, and learning starts anew", reason, aside)

    def __call__(self) -> None:
        """Save or take over, if it is time to."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._period
        self._carefully(self.update)

    def finish(self) -> None:
        """Save what is new, whatever another process has saved since."""
        self._carefully(self._save)

    def _carefully(self, work: Callable[[], None]) -> None:
        try:
            work()
        except ProfileError as error:  # what runs goes on without
            log.warning("%s", error)

    def update(self) -> None:
        """Save or take over now.

        Raises:
            ProfileError: the file cannot be written, or what another process wrote cannot be used.
        """
        now = stamp(self._path)
        if now is not None and now != self._seen:
            self._seen = now
            self._swift.profile = Profile.load(self._path)
            self._known = self._learned()
        else:
            self._save()

    def _save(self) -> None:
        learned = self._learned()
        if learned != self._known:
            self._swift.profile.save(self._path)
            self._seen, self._known = stamp(self._path), learned

    def _learned(self) -> list[Any]:
        """What is worth a file: not how many prompts there were."""
        return [kind["search"] for kind in self._swift.profile.learned["kinds"]]


def stamp(path: Path) -> tuple[int, int] | None:
    """What tells one version of a file from another; None where there is none.

    Raises:
        ProfileError: it cannot be looked at.
    """
    try:
        facts = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ProfileError(f"cannot look at {path}: {error.strerror or error}") from None
    return facts.st_ino, facts.st_mtime_ns
