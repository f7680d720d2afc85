"""What compiled code may be given: the one way from a tensor to its address."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from swift_sd.model.foreign_code import is_watched
from swift_sd.native.compiler import NoKernelsError

ORDINARY = (Tensor, nn.Parameter)


def is_plain(tensor: Tensor | None, dtype: torch.dtype | None = None) -> bool:
    """Whether the numbers lie in this machine's memory, strided, as the tensor says.

    Subclasses (quantised weights, weights split over processes, tensors that only pretend) keep
    them elsewhere or in another form, whatever they say of themselves.

    Args:
        dtype: that it must have, if any.
    """
    return (
        tensor is not None
        and type(tensor) in ORDINARY
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and tensor.device.type == "cpu"
        and (dtype is None or tensor.dtype == dtype)
        and not torch._is_functional_tensor(tensor)
        and not tensor.is_neg()
        and not tensor.is_conj()
        and _is_in_memory(tensor)
    )


def address(tensor: Tensor, dtype: torch.dtype, *, contiguous: bool = True) -> int:
    """Where the numbers of `tensor` begin, for compiled code; it must be kept alive meanwhile.

    Args:
        contiguous: whether they must lie in one piece; else the caller tells the strides.

    Raises:
        NoKernelsError: the tensor is not plain, of another type or in several pieces.
    """
    if not is_plain(tensor, dtype) or (contiguous and not tensor.is_contiguous()):
        raise NoKernelsError(
            f"a {type(tensor).__name__} is not a plain tensor of {dtype} in one piece"
        )
    return tensor.data_ptr()


def is_plain_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer of torch and nothing else has a part in what it computes."""
    return (
        type(module) is nn.Linear
        and not is_watched(module)
        and all(
            type(one) in ORDINARY and one.layout is torch.strided
            for one in (module.weight, module.bias)
            if one is not None
        )
    )


def _is_in_memory(tensor: Tensor) -> bool:
    """Whether its storage is as large as its shape needs: that of a sharded one may be freed."""
    if not tensor.numel():
        return True
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = tensor.storage_offset() + sum((size - 1) * stride for size, stride in steps)
    return tensor.untyped_storage().nbytes() >= (last + 1) * tensor.element_size()
