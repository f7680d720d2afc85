"""Which model and which machine something was learned on."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

SCHEME = 2  # of digests: those of another one cannot be compared
NUMBERS = 16  # of each tensor are looked at
WIDE = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # instructions that decide what a step costs


def model_fingerprint(model: PreTrainedModel) -> dict[str, Any]:
    """The model's shape and a digest of a few numbers of each parameter, which training moves.

    The weights are rounded to bfloat16 first: a checkpoint is the same model in either precision.
    """
    config = model.config.get_text_config(decoder=True)
    digest, numbers = hashlib.sha256(), []
    for parameter in model.parameters():
        flat = parameter.detach().reshape(-1)
        places = torch.tensor(_spread(len(flat), NUMBERS), dtype=torch.long, device=flat.device)
        numbers.append(flat[places].to(torch.bfloat16).view(torch.int16))
        digest.update(str(tuple(parameter.shape)).encode())
    first = numbers[0].device  # which sends one answer
    digest.update(torch.cat([some.to(first) for some in numbers]).cpu().numpy().tobytes())
    return {
        "family": str(model.config.model_type),
        "depth": int(config.num_hidden_layers),
        "hidden": int(config.hidden_size),
        "vocabulary": int(config.vocab_size),
        "digest": f"{SCHEME}-{digest.hexdigest()[:16]}",
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


@cache
def processor() -> str | None:
    """The processor's name as far as it is known, with family, model and wide instructions.

    Cloud machines of several generations go by one name, and differ in what a step costs.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    facts: dict[str, str] = {}
    for line in lines:  # of the first core
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    if "model name" not in facts:
        return platform.processor() or None
    kinds = [f"{key.split()[-1]} {facts[key]}" for key in ("cpu family", "model") if key in facts]
    flags = facts.get("flags", "").split()
    return f"{facts['model name']} ({', '.join([*kinds, *(i for i in WIDE if i in flags)])})"
