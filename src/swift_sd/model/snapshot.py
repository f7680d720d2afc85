"""What a forward of a model goes through, remembered so that a change is noticed cheaply."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from enum import Enum, auto
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from swift_sd.model.foreign_code import GLOBAL_HOOKS

INTERNAL = frozenset(vars(nn.Module())) - {"training"}  # told apart by what they hold
IGNORED = {"generation_config"}  # of a model: no forward reads it
HOLDERS = ("_modules", "_parameters", "_buffers")
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
MISSING = object()


class Change(Enum):
    """What has become of a model."""

    NOTHING = auto()
    WEIGHTS = auto()
    STRUCTURE = auto()


class Snapshot:
    """A model at one moment, its weights apart from everything else.

    Everything else is the modules, their attributes and hooks, the classes' code and what that
    refers to, the configuration, the form of the weights, and how torch was set. Of the weights it
    is which they are, where they lie and how often they were written to. Numbers are not compared:
    what is written into `.data` is not seen.

    Args:
        model: any; it is not changed.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        modules = list(model.modules())
        inner = [vars(module) for module in modules]
        held = [each[name] for each in inner for name in HOLDERS]
        self._hooks = [each[name] for each in inner for name in HOOKS]
        self._empty = [each for each in held if not each]
        objects, self._containers = _reachable(inner)
        # Compared by identity first, so that equal ones cost next to nothing.
        self._dicts = [*inner, *(each for each in held if each), *map(vars, objects)]
        self._names = [list(each) for each in self._dicts]
        self._values = self._current_values()
        self._copies = [_copied(each) for each in self._containers]
        self._hooked = self._current_hooks()
        self._places = _places_of_code(model, modules)
        self._code = self._current_code()
        self._settings = _settings(model)
        self._tensors = list(_tensors(inner))
        self._is_counted = [not tensor.is_inference() for tensor in self._tensors]
        self._forms = self._current_forms()
        self._states = self._current_states()

    def change(self) -> Change:
        """How the model differs from what it was."""
        try:
            has_same_weights = self._current_states() == self._states
            is_same = (
                self._current_values() == self._values
                and not any(self._empty)
                and self._current_hooks() == self._hooked
                and self._current_code() == self._code
                and _settings(self._model) == self._settings
                and self._containers == self._copies
                and (has_same_weights or self._current_forms() == self._forms)
            )
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return Change.STRUCTURE  # what is there now cannot even be compared
        if not is_same:
            return Change.STRUCTURE
        return Change.NOTHING if has_same_weights else Change.WEIGHTS

    def leave_out_what_changed_since(self, before: Snapshot) -> None:
        """Of what forwards themselves change, such as counters, nothing is told from now on.

        Args:
            before: a snapshot of the same model, from before some forwards.
        """
        each_one = zip(before._dicts, before._names, before._values, strict=True)
        earlier = {id(one): dict(zip(*what, strict=True)) for one, *what in each_one}
        stable = []
        for each in self._dicts:
            known = earlier.get(id(each), each)
            if all(known.get(name) is value for name, value in each.items()):
                stable.append(each)
            else:
                same = (name for name in each if known.get(name) is each[name])
                self._places += [(each, name) for name in same]
        self._dicts, self._values = stable, [list(each.values()) for each in stable]
        self._code = self._current_code()

    def shares_weights(self, other: Snapshot) -> bool:
        """Whether all tensors of it belong to the model of `other` too."""
        return {*map(id, self._tensors)} <= {*map(id, other._tensors)}

    def _current_values(self) -> list[list[Any]]:
        return [list(each.values()) for each in self._dicts]

    def _current_hooks(self) -> list[Any]:
        return [list(each.items()) for each in (*self._hooks, *GLOBAL_HOOKS) if each]

    def _current_code(self) -> list[Any]:
        found = [space.get(name, MISSING) for space, name in self._places]
        return [(each, getattr(each, "__code__", None)) for each in found]

    def _current_states(self) -> list[Any]:
        return [
            (_address(tensor), tensor._version if counted else 0)
            for tensor, counted in zip(self._tensors, self._is_counted, strict=True)
        ]

    def _current_forms(self) -> list[Any]:
        return [
            (type(each), each.dtype, each.device, each.layout, tuple(each.shape), _stride(each))
            for each in self._tensors
        ]


def _settings(model: PreTrainedModel) -> tuple[Any, ...]:
    """How torch computes, beyond the model itself."""
    sdp: Any = torch.backends.cuda  # of a CPU's attention too
    return (
        torch.get_num_threads() if model.device.type == "cpu" else None,
        torch._C._get_mkldnn_enabled(),
        torch.get_float32_matmul_precision(),
        sdp.flash_sdp_enabled(),
        sdp.mem_efficient_sdp_enabled(),
        sdp.math_sdp_enabled(),
    )


def _address(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a subclass without memory of its own: its parts are looked at
        return 0


def _stride(tensor: Tensor) -> tuple[int, ...] | None:
    return tensor.stride() if tensor.layout is torch.strided else None


def _tensors(inner: Iterable[Mapping[str, Any]]) -> Iterator[Tensor]:
    """All tensors of modules, as parameters, buffers or attributes, and those they consist of."""
    seen: set[int] = set()
    left = [
        value
        for each in inner
        for value in chain(each["_parameters"].values(), each["_buffers"].values(), each.values())
        if isinstance(value, Tensor)
    ]
    while left:
        tensor = left.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        yield tensor
        if type(tensor) not in (Tensor, nn.Parameter) and hasattr(tensor, "__tensor_flatten__"):
            names, _ = tensor.__tensor_flatten__()
            parts = (getattr(tensor, name) for name in names)
            left += [part for part in parts if isinstance(part, Tensor)]


def _reachable(inner: Iterable[Mapping[str, Any]]) -> tuple[list[Any], list[Any]]:
    """Configurations and records that modules refer to, and containers, which change inside."""
    objects: dict[int, Any] = {}
    containers: dict[int, Any] = {}
    left = [
        value
        for each in inner
        for name, value in each.items()
        if name not in INTERNAL and name not in IGNORED
    ]
    while left:
        value = left.pop()
        if isinstance(value, list | dict | set):
            if id(value) not in containers and _is_comparable(value):
                containers[id(value)] = value
        elif id(value) not in objects and _is_record(value):
            objects[id(value)] = value
            left += vars(value).values()
    return list(objects.values()), list(containers.values())


def _is_record(value: Any) -> bool:
    is_instance = is_dataclass(value) and not isinstance(value, type) and hasattr(value, "__dict__")
    return is_instance or isinstance(value, PreTrainedConfig)


def _is_comparable(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value
    return not any(isinstance(part, Tensor) for part in parts)


def _copied(value: Any) -> Any:
    """A copy in which nested lists, dictionaries and sets are copies too."""
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_copied(part) for part in value]
    return set(value) if isinstance(value, set) else value


def _places_of_code(
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
