"""One response's steps."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Mapping
from typing import Any

import torch
from torch import Tensor

from swift_sd.decoding.randomness import get_state, set_state
from swift_sd.decoding.trace import Step
from swift_sd.swift import Swift


class Decoding:
    """The steps of one response, with random numbers of its own.

    Several may be open at a time, a step here and a step there: each finds the random numbers as it
    left them, so that a seed gives the sample that it gives alone.

    Args:
        swift: decodes.
        inputs, arguments: for `Swift.steps`.
        seed: of sampling.

    Raises:
        SwiftError: the request is refused.
    """

    def __init__(
        self, swift: Swift, inputs: Mapping[str, Tensor], arguments: Mapping[str, Any], seed: int
    ) -> None:
        self._device = swift.model.device
        self._randomness = _seeded(self._device, seed) if arguments.get("do_sample") else None
        self._steps: Generator[Step] = swift.steps(**inputs, **arguments)

    def next(self) -> Step | None:
        """Do one step; None if the response is complete."""
        if self._randomness is None:
            return next(self._steps, None)
        set_state(self._randomness, self._device)
        step = next(self._steps, None)
        self._randomness = get_state(self._device)
        return step

    def close(self) -> None:
        """Give up, or clean up; may be called at any time between steps."""
        self._steps.close()


def fresh_seed() -> int:
    """One that nobody can foresee."""
    return secrets.randbits(63)


def _seeded(device: torch.device, seed: int) -> Tensor:
    """The state that `torch.manual_seed(seed)` leads to, without going there."""
    return torch.Generator(device).manual_seed(seed).get_state()
