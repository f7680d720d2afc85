"""Whether code of others takes part in forwards, and what may then be done with the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as global_hooks
from transformers import PreTrainedModel

from swift_sd.model.kv_cache import KVCache, attention_windows
from swift_sd.model.view import View, spread_tokens

GLOBAL_HOOKS = (global_hooks._global_forward_hooks, global_hooks._global_forward_pre_hooks)
KNOWN = {"torch", "transformers"}  # packages whose modules see rows one by one
PREFIX, ROWS = 6, 4
SAME = 1e-3  # relative, in float32


def has_global_hooks() -> bool:
    """Whether torch calls something around the forward of every module, those of copies too."""
    return any(GLOBAL_HOOKS)


def is_watched(module: nn.Module) -> bool:
    """Whether something that is not the module's class has a part in its forwards."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def may_draft(model: PreTrainedModel, *, is_exact: bool) -> bool:
    """Whether verified rows are what plain decoding gives, as far as that is not known anyway.

    A hook may treat the last row in a way of its own, or all that it gets at once. In 16 bits this
    cannot be told from rounding, unless all comes out the same to the bit.

    Args:
        is_exact: whether a trial has shown that already.
    """
    if is_exact or not any(map(_is_of_others, model.modules())):
        return True
    return model.dtype in (torch.float32, torch.float64) and _rows_are_alike(model)


def _is_patched(kind: type[nn.Module]) -> bool:
    """Whether the `forward` of a class is another one than was written for it.

    As packages of faster kernels for training exchange those of transformers.
    """
    owner = next(one for one in kind.__mro__ if "forward" in vars(one))
    forward = vars(owner)["forward"]
    if owner is nn.Module:  # a container
        return False
    return (getattr(forward, "__module__", None), getattr(forward, "__qualname__", None)) != (
        owner.__module__,
        f"{owner.__qualname__}.forward",
    )


def is_foreign(kind: type[nn.Module]) -> bool:
    """Whether a class is of a package that is not known, or has another's `forward`.

    What such a forward reads may be anywhere, so that no snapshot holds all of it.
    """
    return _package(kind) not in KNOWN or _is_patched(kind)


def _is_of_others(module: nn.Module) -> bool:
    own = vars(module).get("forward")  # transformers puts sums over processes there
    hooks = module._forward_hooks or module._forward_pre_hooks
    return (
        bool(hooks) or is_foreign(type(module)) or (own is not None and _package(own) not in KNOWN)
    )


def _package(code: Any) -> str:
    return str(code.__module__).partition(".")[0]


@torch.inference_mode()
def _rows_are_alike(model: PreTrainedModel) -> bool:
    tokens, view = spread_tokens(model, PREFIX + ROWS), View(model)
    found = []
    for size in (1, ROWS):
        cache = KVCache(attention_windows(model.config))
        view.forward(tokens[:, :PREFIX], cache, keep=1)
        cache.commit(PREFIX)
        pieces = [
            view.forward(rows, cache) for rows in torch.split(tokens[:, PREFIX:], size, dim=1)
        ]
        found.append(torch.cat(pieces, dim=1).float())
    alone, together = found
    return bool((together - alone).norm() <= SAME * alone.norm())
