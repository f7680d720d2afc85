"""Files that are kept to be read again: written whole, and found out when that is no longer so."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

LIST = "digests.json"  # in a folder: of each other file its size and its digest
LENGTH = hashlib.sha256().digest_size
ABANDONED = 3600.0  # seconds after which nobody writes a folder any more


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Fill `folder` through `write`, with files only, such that it exists whole or not at all.

    The files go to a temporary sibling that is renamed at the end. When two processes start at
    once, both write, one rename wins and the other's copy is thrown away; so is a folder that was
    there and is damaged, and what processes that were killed have left.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{folder.name}-*"):
        with suppress(OSError):
            latest = max(one.stat().st_mtime for one in (left, *left.rglob("*")))
            if time.time() - latest > ABANDONED:
                shutil.rmtree(left)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    draft = scratch / "new"
    try:
        draft.mkdir()
        write(draft)
        seal_folder(draft)
        try:
            draft.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            if not is_whole_folder(folder):
                folder.rename(scratch / "damaged")
                draft.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def seal_folder(folder: Path) -> None:
    """Note the digests of the files in `folder`."""
    noted = {path.name: _facts(path) for path in sorted(folder.iterdir())}
    (folder / LIST).write_text(json.dumps(noted), encoding="utf-8")


def is_whole_folder(folder: Path) -> bool:
    """Whether all files that `seal_folder` noted are there and unchanged; reads them.

    Raises:
        PermissionError: `folder` is somebody else's.
    """
    try:
        noted = json.loads((folder / LIST).read_text(encoding="utf-8"))
        return all(_is_so(folder / name, *facts) for name, facts in noted.items())
    except PermissionError:
        raise
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def seal(path: Path) -> None:
    """Append the digest of a file to it; what reads it must not mind."""
    with path.open("rb+") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        file.write(digest)


def is_whole(path: Path) -> bool:
    """Whether a file is what `seal` made of it; reads it.

    Raises:
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    return hashlib.sha256(content[:-LENGTH]).digest() == content[-LENGTH:]


def _is_so(path: Path, size: int, digest: str) -> bool:
    return path.stat().st_size == size and _facts(path) == (size, digest)


def _facts(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return path.stat().st_size, digest
