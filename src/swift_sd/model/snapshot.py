"""What a forward of a model goes through, remembered so that a change is noticed cheaply."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from enum import Enum, auto
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from swift_sd.model.code_places import places_of_code
from swift_sd.model.foreign_code import GLOBAL_HOOKS

INTERNAL = frozenset(vars(nn.Module())) - {"training"}  # told apart by what they hold
IGNORED = frozenset({"generation_config"})  # of a model: no forward reads it
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
        like: an earlier one of the same modules; what that leaves out is left out again.
    """

    def __init__(self, model: PreTrainedModel, like: Snapshot | None = None) -> None:
        self._model = model
        modules = list(model.modules())
        inner = [vars(module) for module in modules]
        held = [each[name] for each in inner for name in HOLDERS]
        self._hooks = [each[name] for each in inner for name in HOOKS]
        self._empty = [each for each in held if not each]
        objects, self._containers = _reachable(inner)
        # Compared by identity first, so that equal ones cost next to nothing.
        self._dicts = [*inner, *(each for each in held if each), *map(vars, objects)]
        self._tensors = list(_tensors(inner))
        # What is left out: names, by the dictionary's id; whole containers and tensors.
        self._names_out: dict[int, frozenset[str]] = (
            {id(vars(model)): IGNORED} if like is None else like._names_out
        )
        self._moving: list[Any] = [] if like is None else like._moving
        self._note_values()
        self._hooked = self._current_hooks()
        self._places = places_of_code(model, modules)
        self._code = self._current_code()
        self._settings = _settings(model)

    def change(self) -> Change:
        """How the model differs from what it was."""
        try:
            has_same_weights = self._current_states() == self._states
            is_same = (
                self._current_values() == self._values
                and self._current_parts() == self._parts
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
        names, earlier = dict(self._names_out), before._named_values()
        for place, now in self._named_values().items():
            then = earlier.get(place, now)
            moving = {n for n in {*now, *then} if now.get(n, MISSING) is not then.get(n, MISSING)}
            if moving:
                names[place] = names.get(place, frozenset()) | moving
        known = before._inner_values()
        moved = [
            one
            for place, (one, now) in self._inner_values().items()
            if place not in known or _differ(known[place][1], now)
        ]
        self._names_out, self._moving = names, [*self._moving, *moved]
        self._note_values()

    def has_the_same_weights(self) -> bool:
        """Whether all tensors of it are as they were, whoever they belong to now."""
        return self._current_states() == self._states

    def shares_weights(self, other: Snapshot) -> bool:
        """Whether all tensors of it belong to the model of `other` too."""
        return {*map(id, self._tensors)} <= {*map(id, other._tensors)}

    def _note_values(self) -> None:
        """Remember everything that forwards themselves do not change."""
        moving = {*map(id, self._moving)}
        self._containers = [one for one in self._containers if id(one) not in moving]
        self._tensors = [one for one in self._tensors if id(one) not in moving]
        self._whole = [each for each in self._dicts if id(each) not in self._names_out]
        self._partly = [each for each in self._dicts if id(each) in self._names_out]
        self._names = [list(each) for each in self._whole]
        self._values, self._parts = self._current_values(), self._current_parts()
        self._copies = [_copied(each) for each in self._containers]
        self._is_counted = [not tensor.is_inference() for tensor in self._tensors]
        self._forms = self._current_forms()
        self._states = self._current_states()

    def _named_values(self) -> dict[int, dict[str, Any]]:
        """By the id of each dictionary, what was in it."""
        whole = zip(self._whole, self._names, self._values, strict=True)
        found = {id(each): dict(zip(*what, strict=True)) for each, *what in whole}
        return found | dict(zip(map(id, self._partly), self._parts, strict=True))

    def _inner_values(self) -> dict[int, tuple[Any, Any]]:
        """By its id each container and each tensor, with what was in it."""
        watched = zip(
            (*self._containers, *self._tensors), (*self._copies, *self._states), strict=True
        )
        return {id(one): (one, what) for one, what in watched}

    def _current_values(self) -> list[list[Any]]:
        return [list(each.values()) for each in self._whole]

    def _current_parts(self) -> list[dict[str, Any]]:
        return [
            {name: value for name, value in each.items() if name not in self._names_out[id(each)]}
            for each in self._partly
        ]

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


def _differ(one: Any, other: Any) -> bool:
    try:
        return bool(one != other)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return True  # what cannot be compared


def _settings(model: PreTrainedModel) -> tuple[Any, ...]:
    """How torch computes, beyond the model itself."""
    sdp: Any = torch.backends.cuda  # of a CPU's attention too
    backends: Any = torch.backends
    return (
        torch.get_num_threads() if model.device.type == "cpu" else None,
        torch._C._get_mkldnn_enabled(),
        # Not torch.get_float32_matmul_precision(), which warns in torch 2.9.
        *(at.fp32_precision for at in (backends, sdp.matmul, backends.mkldnn.matmul)),
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
