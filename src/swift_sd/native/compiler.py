"""Compiles our kernels with the machine's own C compiler, once, and loads them."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from swift_sd.cache_folder import cache_root, private_root
from swift_sd.kept_files import is_whole, seal

SOURCES = ("rows.c", "attention.c", "target.c", "quantise.c", "draft.c")
HEADERS = (
    "vectors.h",
    "rows.h",
    "row_lanes.h",
    "row_pairs.h",
    "attention.h",
    "cache_rows.h",
    "draft.h",
    "products.h",
)
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-fPIC", "-shared", "-lm")
SECONDS = 120  # that a compiler may take; it takes two
VERSION_SECONDS = 10  # to tell its version

_hanging: dict[str, float] = {}  # compilers that took longer than so many seconds


class NoKernelsError(Exception):
    """Raised where the kernels cannot be had; the message says why. Nobody needs them."""


def load_kernels() -> ctypes.CDLL:
    """The kernels, compiled for this machine's processor.

    What was compiled is kept in `cache_root()`, or if nothing can be written there in
    `private_root()`. Loaded after torch, they share its threads.

    Raises:
        NoKernelsError: there is no C compiler, it cannot be run or takes too long, or it does not
            understand them.
    """
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        raise NoKernelsError("no C compiler is installed (cc)")
    folder = Path(__file__).parent
    texts = [(folder / name).read_bytes() for name in (*SOURCES, *HEADERS)]
    told = [compiler, _version(compiler), platform.machine(), _processor(), *FLAGS]
    digest = hashlib.sha256(b"\0".join([*texts, *(text.encode() for text in told)])).hexdigest()
    root, name = cache_root(), f"kernels-{digest[:16]}.so"
    if (library := _loaded(root / name)) is not None:
        return library
    try:
        root.mkdir(parents=True, exist_ok=True)
        return _compiled(compiler, folder, root / name)
    except OSError as error:
        root = private_root(f"nothing can be written in {root} ({error.strerror or error})")
    try:
        return _loaded(root / name) or _compiled(compiler, folder, root / name)
    except OSError as error:
        raise NoKernelsError(f"nothing can be compiled and run here: {error}") from None


def find_kernels() -> ctypes.CDLL | None:
    """The same, or None where they cannot be had."""
    try:
        return load_kernels()
    except NoKernelsError:
        return None


def _loaded(path: Path) -> ctypes.CDLL | None:
    """What was compiled before, unless it is damaged or in a folder of somebody else's."""
    try:
        return ctypes.CDLL(str(path)) if path.is_file() and is_whole(path) else None
    except OSError:
        return None


def _compiled(compiler: str, folder: Path, path: Path) -> ctypes.CDLL:
    handle, scratch = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(handle)
    try:
        sources = [str(folder / name) for name in SOURCES]
        done = _answer([compiler, *sources, *FLAGS, "-o", scratch], SECONDS)
        if done.returncode and not shutil.disk_usage(path.parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if done.returncode:
            raise NoKernelsError(f"{compiler} does not compile the kernels: {done.stderr[:300]}")
        seal(Path(scratch))  # a library may have anything at its end
        os.replace(scratch, path)  # whole or not at all: others may be compiling it too
        return ctypes.CDLL(str(path))
    finally:
        Path(scratch).unlink(missing_ok=True)


def _version(compiler: str) -> str:
    return _answer([compiler, "--version"], VERSION_SECONDS).stdout


def _answer(command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """What a compiler says and returns; one that hangs is not waited for again."""
    compiler = command[0]
    if compiler not in _hanging:
        try:
            return subprocess.run(
                command,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                text=True,
                errors="replace",
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            _hanging[compiler] = seconds
        except OSError as error:
            raise NoKernelsError(f"{compiler} cannot be run: {error.strerror or error}") from None
    raise NoKernelsError(f"{compiler} took more than {_hanging[compiler]} s")


def _processor() -> str:
    """What a kernel compiled here may not be run without."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(
        sorted({line for line in text.splitlines() if line.split("\t")[0].strip() in wanted})
    )
