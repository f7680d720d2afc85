"""One model over several processes: all do the steps that the first one decides on.

Tensor parallelism splits the matrices, so that each forward needs all processes, with the same
input, in the same order. The first has the engine; before it starts, continues or closes a
response it tells the others, who follow. What a step drafts must then be the same everywhere and
cannot depend on measured times, which differ: see `require_lockstep`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from typing import Any, NoReturn

import torch.distributed as dist
from torch import Tensor

from swift_sd.config import SwiftConfig
from swift_sd.decoding.trace import Step
from swift_sd.errors import ConfigError, SwiftError
from swift_sd.serve.decoding import Decoding
from swift_sd.serve.orders import Order, hear, tell
from swift_sd.swift import Swift

log = logging.getLogger(__name__)
SILENCE = timedelta(days=365)  # how long the others wait for a request


class Parted(Exception):  # noqa: N818 - says what became of the processes
    """Raised where the processes no longer do the same, and no further step can be done."""


def require_lockstep(config: SwiftConfig) -> None:
    """Raise `ConfigError` if processes could not do the same: drafts depend on measured times."""
    if not config.needs_no_clock:
        raise ConfigError(
            "over several processes drafts must not depend on measured times, which differ: add "
            "--early-stop 0.8 (the paper's rule), or --plain"
        )


def join(size: int) -> int:
    """Join the other processes that torchrun started; this one's rank.

    Raises:
        ConfigError: torchrun did not start `size` of them.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != size:
        raise ConfigError(
            f"--tensor-parallel {size} needs {size} processes and there are {world}: start it as "
            f"torchrun --nproc-per-node {size} -m swift_sd serve … --tensor-parallel {size} "
            "(pipeline parallelism is not offered: a draft is a second module tree over the same "
            "tensors, which a model cut into stages does not have in one process)"
        )
    if not dist.is_initialized():
        dist.init_process_group(timeout=SILENCE)
    return dist.get_rank()


def leave(code: int = 0) -> NoReturn:
    """End this process, at once; to be called behind `Leader.end` or `follow`.

    Python does not clean up: gloo's threads need it to let go of the last tensors they sent, and
    one that comes too late aborts the process (pytorch/pytorch#179291).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Leader:
    """On the first process: starts responses here and everywhere.

    Attributes:
        is_alone: the others stand where this process could not follow; they are told nothing more.
        has_ended: all others have heard of the end.
    """

    def __init__(self) -> None:
        self._numbers = count()
        self.is_alone = self.has_ended = False

    def start(
        self,
        model: str,
        swift: Swift,
        inputs: Mapping[str, Tensor],
        arguments: Mapping[str, Any],
        seed: int,
    ) -> Decoding:
        """As `Decoding`.

        Raises:
            SwiftError: the request is refused. Like any other failure before the first step, it is
                one of all processes.
            Parted: see `together`.
        """
        number = next(self._numbers)
        rows = {name: tensor.tolist() for name, tensor in inputs.items()}
        order = Order(
            verb="start",
            number=number,
            model=model,
            inputs=rows,
            arguments=dict(arguments),
            seed=seed,
        )
        with self.together():
            tell(order)
        return LedDecoding(self, number, swift, inputs, arguments, seed)

    def end(self) -> None:
        """Let the others go, if they can still hear it."""
        if not self.is_alone:
            tell(Order(verb="end"))
            dist.barrier()
            self.has_ended = True

    @contextmanager
    def together(self) -> Iterator[None]:
        """What all processes do.

        Raises:
            Parted: it failed, for a reason that may be this process's alone, say, a lack of memory.
                The others may be waiting for its part of a sum; torchrun ends them when it ends.
        """
        if self.is_alone:
            raise Parted("the processes of the model have come apart")
        try:
            yield
        except SwiftError:
            raise
        except Exception as error:
            self.is_alone = True
            raise Parted(f"the processes of the model have come apart: {error}") from error


class LedDecoding(Decoding):
    """A response that all processes decode.

    Args:
        leader: tells the others.
        number: which one; the rest as for `Decoding`.
    """

    def __init__(
        self,
        leader: Leader,
        number: int,
        swift: Swift,
        inputs: Mapping[str, Tensor],
        arguments: Mapping[str, Any],
        seed: int,
    ) -> None:
        super().__init__(swift, inputs, arguments, seed)
        self._leader, self._number = leader, number

    def next(self) -> Step | None:
        """Do one step, everywhere."""
        with self._leader.together():
            tell(Order(verb="next", number=self._number))
            return super().next()

    def close(self) -> None:
        """Give up, everywhere."""
        super().close()
        if not self._leader.is_alone:
            with self._leader.together():
                tell(Order(verb="close", number=self._number))


def follow(swifts: Mapping[str, Swift]) -> None:
    """On all other processes: do what the first one tells, until it ends.

    A failure before the first step is one of all, and only the client's concern. One in a step may
    be of this process alone: it ends, and torchrun ends all others.
    """
    open_ones: dict[int, Decoding] = {}
    while (order := hear()).verb != "end":
        if order.verb == "start":
            try:
                open_ones[order.number] = _started(swifts[order.model], order)
            except Exception:
                log.info("a request was not taken", exc_info=True)
        elif order.number in open_ones and order.verb == "close":
            open_ones.pop(order.number).close()
        elif order.number in open_ones:
            with suppress(SwiftError):
                open_ones[order.number].next()
    dist.barrier()


def _started(swift: Swift, order: Order) -> Decoding:
    inputs = {name: tensor.to(swift.model.device) for name, tensor in order.tensors().items()}
    return Decoding(swift, inputs, order.arguments, order.seed)
