"""The state of torch's default generator of a device, which sampling draws from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def get_state(device: torch.device) -> Tensor:
    """The state now, a copy."""
    if device.type == "cpu":
        return torch.get_rng_state()
    module: Any = torch.get_device_module(device)
    state: Tensor = module.get_rng_state(device)
    return state


def set_state(state: Tensor, device: torch.device) -> None:
    """Go on from a `state` that `get_state` returned."""
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        module: Any = torch.get_device_module(device)
        module.set_rng_state(state, device)
