"""Where files that can be made again are kept."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import time
import warnings
from contextlib import suppress
from pathlib import Path
from threading import Lock

import platformdirs
from filelock import FileLock, Timeout

PREFIX, LOCK = "swift-sd-", "in-use"  # of private folders, and a file in each
YOUNG = 60.0  # seconds in which a folder may not be locked yet
NOWHERE = Path(os.devnull, "swift-sd")  # where nothing is and nothing can be written

_private: dict[int, Path] = {}  # by process: one that was forked has a folder of its own
_making = Lock()


def cache_root() -> Path:
    """`$SWIFT_SD_CACHE`, or a folder in the user's cache directory; it may not exist yet.

    If it exists, what it holds may have been put there by somebody else and be only for reading.
    Where there is no such folder, and none can be made, it is `private_root()`.
    """
    root = _configured_root()
    if root is None:
        return private_root("this user has no home directory")
    if not _is_usable(root):
        return private_root(f"{root} is no folder that can be used")
    return root


def _is_usable(root: Path) -> bool:
    """Whether it is a folder that can be looked into, or could be made one."""
    if os.path.lexists(root):
        return os.path.isdir(root) and os.access(root, os.R_OK | os.X_OK)
    above = next(folder for folder in root.absolute().parents if os.path.lexists(folder))
    return os.path.isdir(above) and os.access(above, os.W_OK | os.X_OK)


def private_root(reason: str) -> Path:
    """A folder that only this process's user can look into, and that goes with the process.

    Warns when it is made.

    Args:
        reason: why it is needed.
    """
    process = os.getpid()
    with _making:
        is_new = process not in _private
        if is_new:
            _private[process] = _made_folder(process)
    if is_new:
        warnings.warn(
            f"{reason}: compiled code, profiles and the converted default model are not kept from "
            "one process to the next; set SWIFT_SD_CACHE to a folder that can be written",
            stacklevel=3,
        )
    return _private[process]


def _configured_root() -> Path | None:
    try:
        root = Path(os.environ.get("SWIFT_SD_CACHE") or platformdirs.user_cache_path("swift-sd"))
        root = root.expanduser()
    except RuntimeError:  # a user without a home directory, here or in the path
        return None
    return root


def _made_folder(process: int) -> Path:
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    except OSError:  # not even that; whoever writes will be told
        return NOWHERE
    lock = FileLock(folder / LOCK)  # held until the process ends, however it does
    with suppress(OSError):
        lock.acquire(blocking=False)
    atexit.register(_remove, folder, process, lock)
    _remove_abandoned(folder)
    return folder


def _remove_abandoned(folder: Path) -> None:
    """Remove folders beside `folder` of processes that were killed."""
    for other in folder.parent.glob(f"{PREFIX}*"):
        with suppress(OSError, Timeout):
            facts = other.stat()
            is_old = facts.st_mtime < time.time() - YOUNG
            if is_old and facts.st_uid == folder.stat().st_uid and (other / LOCK).is_file():
                with FileLock(other / LOCK, blocking=False):
                    shutil.rmtree(other, ignore_errors=True)


def _remove(folder: Path, process: int, lock: FileLock) -> None:
    if os.getpid() == process:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)
