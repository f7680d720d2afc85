"""What the first of several processes tells the others, as JSON in plain tensors.

Whatever arrives is read as data. Nothing is unpickled: a process that has joined under a false name
could otherwise have any code run.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

LONGEST = 1 << 28  # bytes of an order; one for a prompt of a million tokens takes 10 MB
Rows = Annotated[list[Annotated[list[int], Field(fail_fast=True)]], Field(max_length=1)]
Number = bool | int | float | None


class NoOrder(Exception):  # noqa: N818 - says what was heard
    """Raised where something else was heard than an order: the first process is not ours."""


class Order(BaseModel):
    """One order; numbers and names, nothing that could be run.

    Attributes:
        verb: what to do.
        number: of the response.
        model: the name of what is to answer.
        inputs: `input_ids` and `attention_mask`, `[1, n]`, of integers.
        arguments: for `Swift.steps`.
        seed: of sampling.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    verb: Literal["start", "next", "close", "end"]
    number: int = 0
    model: str = ""
    inputs: dict[str, Rows] = {}
    arguments: dict[str, Number] = {}
    seed: int = 0

    def tensors(self) -> dict[str, Tensor]:
        """The inputs, int64, on the CPU."""
        return {name: torch.tensor(rows, device="cpu") for name, rows in self.inputs.items()}


def tell(order: Order) -> None:
    """On the first process: have all others `hear` it."""
    text = torch.frombuffer(bytearray(order.model_dump_json().encode()), dtype=torch.uint8)
    dist.broadcast(torch.tensor([len(text)], device="cpu"), src=0)
    dist.broadcast(text, src=0)


def hear() -> Order:
    """On the others: wait for the next order.

    Raises:
        NoOrder: it is none.
    """
    length = torch.zeros(1, dtype=torch.int64, device="cpu")
    dist.broadcast(length, src=0)
    if not 0 < int(length) <= LONGEST:
        raise NoOrder(f"an order of {int(length)} bytes")
    text = torch.empty(int(length), dtype=torch.uint8, device="cpu")
    dist.broadcast(text, src=0)
    try:
        return Order.model_validate_json(text.numpy().tobytes())
    except ValidationError as error:
        raise NoOrder(f"the first process says no order ({error.error_count()} faults)") from None
