"""Where the code is found that forwards run: what somebody may exchange for other code."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn
from transformers import AttentionInterface, PreTrainedModel


def places_of_code(
    model: PreTrainedModel, modules: Iterable[nn.Module]
) -> list[tuple[Mapping[str, Any], str]]:
    """Where the functions are found that forwards run, by namespace and name.

    From each class's `forward` on: its other methods, what its code refers to in its module, and
    what it takes from modules such as `torch.nn.functional`; the same of the functions that are
    found there, but not inside torch.
    """
    places: dict[tuple[int, str], tuple[Mapping[str, Any], str]] = {}
    seen: set[Any] = set()

    def note(space: Mapping[str, Any], name: str) -> Any:
        places[id(space), name] = space, name
        return space.get(name)

    def follow(function: Any, kinds: tuple[type, ...]) -> None:
        for one in _functions_within(function):
            if (one, kinds) in seen:
                continue
            seen.add((one, kinds))
            names, is_torchs = set(_names(one.__code__)), _is_of_torch(one)
            for value in [note(one.__globals__, name) for name in names & one.__globals__.keys()]:
                if isinstance(value, types.ModuleType):
                    for name in names & vars(value).keys():
                        note(vars(value), name)
                elif not is_torchs:
                    follow(value, ())
            for kind in () if is_torchs else kinds:
                for name in names & vars(kind).keys():
                    follow(note(vars(kind), name), kinds)

    for kind in {type(module) for module in modules}:
        line = tuple(one for one in kind.__mro__ if one not in (nn.Module, object))
        for one in line:  # those before its owner too, which may be given one
            found = note(vars(one), "forward")
            if found is not None:
                follow(found, line)
                break
    note(vars(nn.Module), "__call__")
    note(vars(nn.Module), "_call_impl")
    name = model.config.get_text_config(decoder=True)._attn_implementation
    follow(note(AttentionInterface._global_mapping, name), ())
    return list(places.values())


def _is_of_torch(function: Any) -> bool:
    return str(function.__module__).split(".")[0] == "torch"


def _functions_within(value: Any) -> Iterator[Any]:
    """The function itself, and those that its decorators put it into."""
    left, seen = [value], set()
    while left:
        one = left.pop()
        one = one.__func__ if isinstance(one, staticmethod | classmethod) else one
        one = one.fget if isinstance(one, property) else one
        if not isinstance(one, types.FunctionType) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        left.append(getattr(one, "__wrapped__", None))
        for cell in one.__closure__ or ():
            try:
                left.append(cell.cell_contents)
            except ValueError:  # not filled yet
                continue


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
