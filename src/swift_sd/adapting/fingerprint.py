"""Which model and which machine something was learned on."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

TENSORS = 32  # looked into,
NUMBERS = 16  # at so many places each


def model_fingerprint(model: PreTrainedModel) -> dict[str, Any]:
    """The model's shape and a digest of a few of its weights, which differ in every checkpoint.

    The weights are rounded to bfloat16 first: a checkpoint is the same model in either precision.
    """
    config = model.config.get_text_config(decoder=True)
    parameters = list(model.parameters())
    digest = hashlib.sha256()
    for index in _spread(len(parameters), TENSORS):
        flat = parameters[index].detach().reshape(-1)
        places = torch.tensor(_spread(len(flat), NUMBERS), device=flat.device)
        numbers = flat[places].to(torch.bfloat16).view(torch.int16).cpu()
        digest.update(str(tuple(parameters[index].shape)).encode() + numbers.numpy().tobytes())
    return {
        "family": str(model.config.model_type),
        "depth": int(config.num_hidden_layers),
        "hidden": int(config.hidden_size),
        "vocabulary": int(config.vocab_size),
        "digest": digest.hexdigest()[:16],
    }


def machine_fingerprint(model: PreTrainedModel) -> dict[str, Any]:
    """Everything here that decides what a step costs."""
    is_cuda = model.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(model.device) if is_cuda else processor(),
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": str(model.config.get_text_config(decoder=True)._attn_implementation),
        "torch": torch.__version__,
    }


def _spread(count: int, most: int) -> list[int]:
    """Up to `most` indices below `count`, evenly."""
    return [index * count // most for index in range(most)] if count > most else [*range(count)]


def processor() -> str | None:
    """The processor's name as far as it is known."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or None
