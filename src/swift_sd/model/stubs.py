"""Stand-ins for what is left out, and copies of modules that share their tensors."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from swift_sd.errors import UnsupportedModel


def shared_copy(module: nn.Module, children: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of `module` with some children replaced.

    Parameters, buffers and all other children are the same objects as in the original, which does
    not change.

    Raises:
        UnsupportedModel: the module has a `forward` of its own: the copy would run the original.
    """
    if "forward" in vars(module):
        raise UnsupportedModel(
            f"the forward of a {type(module).__name__} was replaced on the object (compiled or "
            "patched); delete that attribute, or load the model anew"
        )
    twin = copy.copy(module)
    twin._modules = {**module._modules, **children}
    return twin


def shared_copy_along(
    module: nn.Module, path: tuple[str, ...], children: Mapping[str, nn.Module]
) -> nn.Module:
    """A copy of `module` in which only the modules along `path` are new.

    `children` replace those of the module at the end of the path.
    """
    if path:
        child = shared_copy_along(module.get_submodule(path[0]), path[1:], children)
        children = {path[0]: child}
    return shared_copy(module, children)


def replaced(module: nn.Module, new: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of `module` in which the submodules named in `new` are replaced, at any depth.

    What is new for a module itself is the copy to go on with.
    """
    parts = [name.split(".") for name in new]
    leading = {".".join(names[:end]) for names in parts for end in range(1, len(names) + 1)}

    def copied(module: nn.Module, path: str) -> nn.Module:
        inside = path + "." if path else ""
        children = {
            name: copied(child, inside + name)
            for name, child in module.named_children()
            if inside + name in leading
        }
        start = new.get(path, module)
        return shared_copy(start, children) if children else start

    return copied(module, "")


class PassThrough(nn.Module):
    """Returns its first argument: in place of a whole layer, or of the norm of a skipped sublayer.

    Args:
        extra: how many more values, all None, its caller unpacks.
    """

    def __init__(self, extra: int = 0) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """`hidden_states`, the same object."""
        return (hidden_states, *[None] * self.extra) if self.extra else hidden_states


class Neutralised(nn.Module):
    """Runs a sublayer but takes its contribution out of the output, whose form it remembers.

    Most sublayers contribute by being added to the residual stream: theirs is replaced by zeros.
    One with an argument `residual` (bloom's) adds the stream itself: it is replaced by that
    argument.
    """

    def __init__(self, sublayer: nn.Module) -> None:
        super().__init__()
        self.sublayer = sublayer
        names = list(inspect.signature(type(sublayer).forward).parameters)[1:]
        self.residual = names.index("residual") if "residual" in names else None
        self.width = 0
        self.extra = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the sublayer returns, its contribution replaced."""
        output = self.sublayer(*args, **kwargs)
        contribution, *others = output if isinstance(output, tuple) else (output,)
        self.width, self.extra = contribution.shape[-1], len(others)
        nothing = _residual(self.residual, args, kwargs)
        if nothing is None:
            nothing = torch.zeros_like(contribution)
        return (nothing, *others) if isinstance(output, tuple) else nothing


class Skipped(nn.Module):
    """Returns what a `Neutralised` sublayer returned, without running the sublayer."""

    def __init__(self, measured: Neutralised) -> None:
        super().__init__()
        self.residual, self.width, self.extra = measured.residual, measured.width, measured.extra

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """No contribution, in the sublayer's own form."""
        nothing = _residual(self.residual, args, kwargs)
        if nothing is None:
            hidden: Tensor = args[0] if args else kwargs["hidden_states"]
            nothing = hidden.new_zeros(*hidden.shape[:-1], self.width)
        return (nothing, *[None] * self.extra) if self.extra else nothing


def _residual(place: int | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    if place is None:
        return None
    found: Tensor = args[place] if place < len(args) else kwargs["residual"]
    return found
