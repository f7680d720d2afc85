"""A copy of a model whose linear layers have 4- or 8-bit weights, by torch's packed kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from swift_sd.model.compiled_rows import Around
from swift_sd.model.plain_tensors import is_plain_linear
from swift_sd.model.sharding import Shard, ShardedLinear, hold_everywhere, is_dtensor
from swift_sd.model.stubs import replaced

TILES = {"cpu": (1,), "cuda": (8, 4, 2)}  # of 16 weights that torch can pack together, by device
DTYPES = {"cpu": (torch.bfloat16, torch.float16, torch.float32), "cuda": (torch.bfloat16,)}
GROUPS = (256, 128, 64, 32)  # that the packed kernels know
OUTPUTS = 64  # rows of weights that the packed kernels take at once
AT_ONCE = 1 << 24  # weights that are rounded together: in 32 bits they take much memory


class FourBits(Around):
    """Weights in 4 bits by groups along the rows, rounded to nearest: code · scale + offset.

    Args:
        linear: not changed; its bias is shared.
        group: most weights that share a scale; fewer where that does not divide the width.
        kind: type of the device that is packed for; the weight's own if not given.

    Raises:
        ValueError: a shape, dtype or device for which torch has no such kernel.
    """

    def __init__(self, linear: nn.Linear, group: int, kind: str | None = None) -> None:
        super().__init__(linear)
        weight = linear.weight.detach()
        out, width = weight.shape
        kind = kind or weight.device.type
        # On a GPU torch has the kernel for bfloat16 alone.
        if kind not in TILES or weight.dtype not in DTYPES[kind]:
            raise ValueError(f"no 4-bit kernel for {weight.dtype} on {kind}")
        sizes = (size for size in GROUPS if size <= group)
        group = next((size for size in sizes if width % size == 0), 0)
        tiles = next((tiles for tiles in TILES[kind] if width % (16 * tiles) == 0), 0)
        if not group or not tiles or out % OUTPUTS:
            raise ValueError(f"no 4-bit kernel for {out} x {width}")
        self.group, self.is_cpu = group, kind == "cpu"
        parts = [_rounded(part, group) for part in _parts(weight)]
        codes, scales, middles = (torch.cat(each) for each in zip(*parts, strict=True))
        # [groups, out, 2]: what a code of 8 stands for is stored, not what 0 does.
        self.scales = torch.stack([scales, middles], -1).transpose(0, 1).to(weight.dtype)
        self.scales = self.scales.contiguous()
        aten: Any = torch.ops.aten
        if self.is_cpu:
            self.packed = aten._convert_weight_to_int4pack_for_cpu(codes.int(), tiles)
        else:
            pairs = codes[:, ::2] << 4 | codes[:, 1::2]
            self.packed = aten._convert_weight_to_int4pack(pairs, tiles)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[batch, rows, out]`."""
        aten: Any = torch.ops.aten
        multiply = aten._weight_int4pack_mm_for_cpu if self.is_cpu else aten._weight_int4pack_mm
        rows = hidden_states.reshape(-1, hidden_states.shape[-1]).contiguous()
        output: Tensor = multiply(rows, self.packed, self.group, self.scales)
        output = output.view(*hidden_states.shape[:-1], -1)
        return output if self.bias is None else output + self.bias


class EightBits(Around):
    """Weights in 8 bits with a scale for each row.

    Args:
        linear: not changed; its bias is shared.
        group: not needed here.

    Raises:
        ValueError: a shape or dtype for which torch has no such kernel.
    """

    def __init__(self, linear: nn.Linear, group: int) -> None:
        super().__init__(linear)
        weight = linear.weight.detach()
        if weight.dtype not in (torch.bfloat16, torch.float16) or weight.shape[1] % 32:
            raise ValueError(f"no 8-bit kernel for {weight.dtype}, width {weight.shape[1]}")
        scales = weight.abs().amax(dim=1).float() / 127
        divisors = _parts(scales.clamp(min=1e-12)[:, None].expand_as(weight))
        codes = [
            (part.float() / divisor).round().clamp(-127, 127).to(torch.int8)
            for part, divisor in zip(_parts(weight), divisors, strict=True)
        ]
        self.codes = torch.cat(codes)
        self.scales = scales.to(weight.dtype)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[batch, rows, out]`."""
        aten: Any = torch.ops.aten
        rows = hidden_states.reshape(-1, hidden_states.shape[-1]).contiguous()
        output: Tensor = aten._weight_int8pack_mm(rows, self.codes, self.scales)
        output = output.view(*hidden_states.shape[:-1], -1)
        return output if self.bias is None else output + self.bias


@torch.no_grad()
def quantised_copy(model: PreTrainedModel, bits: int, group: int) -> nn.Module | None:
    """A copy of `model` over the same tensors but for those of its linear layers.

    Layers for which torch has no kernel stay as they are. None if those hold most of the weights.

    Args:
        bits: 4 or 8.
        group: weights that share a scale, for 4 bits.
    """
    form = FourBits if bits == 4 else EightBits
    linears = {name: one for name, one in model.named_modules() if isinstance(one, nn.Linear)}
    new: dict[str, nn.Module] = {}
    for name, linear in linears.items():
        try:
            if is_dtensor(linear.weight):
                new[name] = _sharded(linear, form, group)
            elif is_plain_linear(linear):
                new[name] = form(linear, group)
        except ValueError:
            continue
    flags = hold_everywhere(model, [name in new for name in linears])
    new = {name: new[name] for name, flag in zip(linears, flags, strict=True) if flag}
    total = sum(linear.weight.numel() for linear in linears.values())
    made = sum(linears[name].weight.numel() for name in new)
    return replaced(model, new) if 2 * made > total else None


def _sharded(linear: nn.Linear, form: type[FourBits | EightBits], group: int) -> nn.Module:
    """Raises `ValueError` as `form` does; then the other processes may still have made theirs."""
    shard = Shard(linear)
    try:
        product = form(shard.linear, group)
        # Now, when the others do not wait for it: torch may find out late that it has no kernel.
        product(shard.linear.weight.new_zeros(1, 1, shard.linear.weight.shape[1]))
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return ShardedLinear(shard, product)


def _parts(weight: Tensor) -> list[Tensor]:
    """Its rows, as many together as `AT_ONCE` allows."""
    rows = max(1, AT_ONCE // weight.shape[1])
    return [weight[begin : begin + rows] for begin in range(0, len(weight), rows)]


def _rounded(weight: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes 0 to 15, `[out, width]`, uint8; scales and what 8 stands for, `[out, groups]`."""
    parts = weight.float().view(len(weight), -1, group)
    low, high = parts.amin(dim=2, keepdim=True), parts.amax(dim=2, keepdim=True)
    scales = ((high - low) / 15).clamp(min=1e-12).to(weight.dtype).float()
    codes = ((parts - low) / scales).round().clamp(0, 15)
    middles = (low + 8 * scales)[..., 0]
    return codes.flatten(1).to(torch.uint8), scales[..., 0], middles
