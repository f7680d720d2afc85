"""Where figures come from: written beside every result."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def describe_environment(model: PreTrainedModel) -> dict[str, Any]:
    """Machine, versions, commit and model, ready for JSON; None for what cannot be found out."""
    import torch
    import transformers

    from swift_sd.adapting.fingerprint import model_fingerprint, processor
    from swift_sd.native.compiler import find_kernels

    generation: Any = model.generation_config
    device = model.device
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": _memory(),
        "device": str(device),
        "compiled": device.type == "cpu" and find_kernels() is not None,
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "dtype": str(model.dtype).removeprefix("torch."),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "swift_sd": _version(),
        "commit": _commit(),
        "sources": _sources(),
        "model": {
            "family": model.config.model_type,
            "parameters": model.num_parameters(),
            "layers": model.config.get_text_config().num_hidden_layers,
            "digest": model_fingerprint(model)["digest"],
            "generation_config": generation.to_diff_dict(),
        },
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _memory() -> int | None:
    """Bytes of main memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not everywhere
        return None


def _version() -> str | None:
    try:
        return importlib.metadata.version("swift-sd")
    except importlib.metadata.PackageNotFoundError:
        return None


def _sources() -> str:
    """A digest of this package's files: what ran, whatever was committed meanwhile."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _commit() -> str | None:
    """The commit of these sources, with a + if they were changed since; None outside a checkout."""
    here = Path(__file__).parent
    try:
        # An installed copy may lie inside somebody else's checkout, which does not track it.
        _git(here, "ls-files", "--error-unmatch", "../__init__.py")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no", "..")
        return _git(here, "rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
