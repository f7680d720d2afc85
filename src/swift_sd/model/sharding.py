"""Models whose matrices are sharded over processes, as transformers' tensor parallelism does it.

Each process holds a part of a matrix, as a `DTensor`, and runs the same forward: a layer's outputs
are either left apart, gathered, or summed over all processes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import gcd
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.integrations.tensor_parallel import ColwiseParallel

from swift_sd.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

HEADS = {"num_attention_heads": "attention heads", "num_key_value_heads": "key-value heads"}


def why_not_shardable(config: PretrainedConfig, processes: int) -> str | None:
    """Why `processes` cannot share such a model, and how many can; None if they can.

    Heads cannot be cut in two, unless the layer gathers them first. Of the vocabulary and of the
    width of an MLP the last process may hold less than the others.
    """
    text: Any = config.get_text_config(decoder=True)
    plan: dict[str, str] = getattr(text, "base_model_tp_plan", None) or {}
    if not plan:
        return (
            f"transformers has no plan of how to split {config.model_type}; run it in one process"
        )
    counts: dict[str, int] = {}
    if _splits(plan, "attn", "colwise") or _splits(plan, "attention", "colwise"):
        counts |= {
            words: gcd(*each)
            for name, words in HEADS.items()
            if any(each := _numbers(getattr(text, name, None)))
        }
    if "validate_param" in vars(ColwiseParallel):  # transformers before it gathered unequal parts
        counts["ids in the vocabulary"] = text.vocab_size
    if _splits(plan, "experts", "packed_colwise"):
        width = getattr(text, "moe_intermediate_size", None) or text.intermediate_size
        counts["numbers inside each expert"] = gcd(*_numbers(width))
    most = gcd(*counts.values())
    if most % processes == 0:
        return None
    able = [str(n) for n in range(2, most + 1) if most % n == 0]
    parts = (f"{words} ({count})" for words, count in counts.items() if count % processes)
    return f"{processes} processes cannot share its {' and '.join(parts)} alike; " + (
        f"{' or '.join(able)} can" if able else "run it in one process"
    )


def loading_options(config: PretrainedConfig, source: str, processes: int) -> dict[str, Any]:
    """What `from_pretrained` needs to shard a model; nothing has been loaded yet.

    Args:
        source: of the model, for the error.

    Raises:
        ConfigError: so many processes cannot share it; says how many can.
    """
    if processes == 1:
        return {}
    if (reason := why_not_shardable(config, processes)) is not None:
        raise ConfigError(f"{source} cannot be split over {processes} processes: {reason}")
    return {"distributed_config": DistributedConfig(tp_size=processes)}


def is_sharded(model: PreTrainedModel) -> bool:
    """Whether a forward needs other processes."""
    is_declared = (getattr(model, "tp_size", None) or 1) > 1
    return is_declared or any(is_dtensor(parameter) for parameter in model.parameters())


def is_dtensor(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether this process holds only a part of it, or a copy that others hold too."""
    if type(tensor) is Tensor or not dist.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def has_fsdp(model: nn.Module) -> bool:
    """Whether other processes' parts are put together by hooks, a group of layers at a time."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    return any(isinstance(one, FSDPModule | FullyShardedDataParallel) for one in model.modules())


def hold_everywhere(model: PreTrainedModel, flags: Sequence[bool]) -> list[bool]:
    """Which of the flags are set on all processes that share `model`, to be asked on each."""
    like = next((one for one in model.parameters() if is_dtensor(one)), None)
    if like is None:
        return list(flags)
    found = torch.tensor(flags, dtype=torch.int32, device=like.device)
    dist.all_reduce(found, dist.ReduceOp.MIN, group=like.device_mesh.get_group())
    return [bool(flag) for flag in found.tolist()]


def holds_everywhere(model: PreTrainedModel, flag: bool) -> bool:
    """Whether it is set on all processes that share `model`, to be asked on each."""
    return hold_everywhere(model, [flag])[0]


class Shard:
    """This process's part of a linear layer, and what it exchanges with the others.

    All processes make it together.

    Args:
        linear: of a sharded model; it is not changed.
        gathers: whether the layer gathers its outputs; if not given, all processes find it out
            together.

    Attributes:
        gathers: whether it does.
        linear: a linear layer over the process's own part; without a bias that is added to a sum.

    Raises:
        ValueError: the matrix is not split along one side, or by others than transformers.
    """

    def __init__(self, linear: Any, gathers: bool | None = None) -> None:
        from torch.distributed.tensor import Shard as Split

        weight: Any = linear.weight
        (placement, *others) = weight.placements
        is_wrapped = "forward" in vars(linear) and not linear._forward_hooks
        if others or type(placement) is not Split or not is_wrapped:
            raise ValueError(f"a matrix is placed as {weight.placements}, or not by transformers")
        self._mesh, self._out = weight.device_mesh, linear.out_features
        self._in = linear.in_features
        self._sums = placement.dim % 2 == 1
        if gathers is None and not self._sums:
            rows = torch.zeros(1, 1, self._in, dtype=weight.dtype, device=weight.device)
            gathers = linear(rows).shape[-1] == self._out
        self.gathers = bool(gathers)
        self.linear: Any = copy.copy(linear)
        del self.linear.forward  # which exchanges, by the layer's own parameters
        self.linear._parameters = {
            name: None if parameter is None else _own(parameter)
            for name, parameter in linear._parameters.items()
        }
        self.bias: Tensor | None = None
        if self._sums:
            self.bias = self.linear._parameters.pop("bias")
            self.linear._parameters["bias"] = None

    def taken(self, hidden_states: Tensor) -> Tensor:
        """The part `[…, own in]` of the layer's input `[…, in]` that this process multiplies.

        A model may have split the input before.
        """
        if not self._sums or hidden_states.shape[-1] != self._in:
            return hidden_states
        parts: tuple[Tensor, ...] = hidden_states.chunk(self._mesh.size(), -1)
        return parts[int(self._mesh.get_local_rank())]

    def given(self, output: Tensor) -> Tensor:
        """What the layer returns where this process's product is `output`, `[…, own out]`."""
        if self._sums:
            # The order of a sum of three may depend on where in the message a number is: each row
            # has a message of its own, as in plain decoding.
            alone = self._mesh.size() > 2
            for rows in torch.split(output, 1, dim=-2) if alone else [output]:
                dist.all_reduce(rows, group=self._mesh.get_group())
            return output if self.bias is None else output + self.bias
        if not self.gathers:
            return output
        from torch.distributed.tensor import DTensor
        from torch.distributed.tensor import Shard as Split

        shape = torch.Size((*output.shape[:-1], self._out))  # parts may differ in size
        stride = torch.empty(shape, device="meta").stride()
        split = [Split(output.dim() - 1)]
        parts: Any = DTensor.from_local(
            output, self._mesh, split, run_check=False, shape=shape, stride=stride
        )
        whole: Tensor = parts.full_tensor()
        return whole


class ShardedLinear(nn.Module):
    """A sharded linear layer with another product in the place of its own.

    Args:
        shard: of the layer.
        product: `[…, own in]` to `[…, own out]`.
    """

    def __init__(self, shard: Shard, product: nn.Module) -> None:
        super().__init__()
        self.shard, self.product = shard, product

    @property
    def weight(self) -> Any:
        """This process's part, for models that ask the layer for its weight."""
        return self.shard.linear.weight

    def forward(self, hidden_states: Tensor) -> Tensor:
        """As the layer's."""
        return self.shard.given(self.product(self.shard.taken(hidden_states)))


def _own(parameter: Tensor) -> nn.Parameter:
    held = parameter.to_local() if is_dtensor(parameter) else parameter
    return nn.Parameter(held.detach(), requires_grad=False)


def _splits(plan: dict[str, str], part: str, style: str) -> bool:
    return any(part in name and each == style for name, each in plan.items())


def _numbers(value: Any) -> list[int]:
    """Some configurations have one for each layer."""
    return [value] if isinstance(value, int) else list(value or ())
