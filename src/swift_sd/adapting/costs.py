"""What the parts of the model cost on this machine, measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from swift_sd.model.kv_cache import KVCache, attention_windows
from swift_sd.model.stubs import shared_copy_along
from swift_sd.model.sublayers import Sublayers
from swift_sd.model.view import View

WARM_UP = 2  # forwards not counted


@dataclass(frozen=True)
class Costs:
    """Seconds that one token takes: of the target, or of a draft that skips nothing.

    Attributes:
        step: a whole forward, one row.
        attention, mlp: each layer's sublayer with the norms that serve only it.
        head: the language modelling head; 0 where it was not told from the rest.
        context: positions in the cache while measuring.
    """

    step: float
    attention: tuple[float, ...]
    mlp: tuple[float, ...]
    head: float
    context: int

    @property
    def rest(self) -> float:
        """Everything else in a step: embedding, masks, rotary tables, residual sums, Python."""
        return max(self.step - sum(self.attention) - sum(self.mlp) - self.head, 0.0)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {
            "step": self.step,
            "attention": list(self.attention),
            "mlp": list(self.mlp),
            "head": self.head,
            "context": self.context,
        }

    @classmethod
    def from_dict(cls, data: Any, depth: int) -> Costs:
        """What `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: it did not, or for a model of another
                depth.
        """
        costs = cls(
            step=float(data["step"]),
            attention=tuple(map(float, data["attention"])),
            mlp=tuple(map(float, data["mlp"])),
            head=float(data["head"]),
            context=int(data["context"]),
        )
        if not len(costs.attention) == len(costs.mlp) == depth:
            raise ValueError(f"costs of {len(costs.attention)} layers for a model of {depth}")
        seconds = (costs.step, costs.head, *costs.attention, *costs.mlp)
        if not (costs.step > 0 and all(0 <= each < math.inf for each in seconds)):
            raise ValueError("costs are seconds, 0 or more")
        return costs


@torch.inference_mode()
def measure_costs(
    model: PreTrainedModel,
    sublayers: Sublayers,
    *,
    context: int = 64,
    repeats: int = 7,
    clock: Callable[[], float] = perf_counter,
) -> Costs:
    """Time one-token forwards of `model` behind `context` tokens, and the sublayers inside them.

    Whole steps and steps with stop-watches around the sublayers alternate, so that both see the
    same state of the machine. The model is not changed: the stop-watches are in a copy that shares
    its tensors. Of a model split over processes all of them do this together.
    """
    plain = View(model)
    cache = KVCache(attention_windows(model.config), reserve=context + 1)
    tokens = torch.zeros(1, context + 1, dtype=torch.long, device=model.device)
    plain.forward(tokens[:, :context], cache, keep=1)
    cache.commit(context)
    timed = TimedView(model, sublayers, clock)
    one = tokens[:, :1]
    for _ in range(WARM_UP):
        timed.step(one, cache, plain)
    return timed.costs([timed.step(one, cache, plain) for _ in range(repeats)], context)


@dataclass(frozen=True)
class Laps:
    """Seconds of one step: whole, of the head, and of each layer's sublayers."""

    step: float
    head: float
    parts: Mapping[tuple[int, str], float]


class TimedView(View):
    """The target with stop-watches around its sublayers; shares all tensors."""

    def __init__(
        self, model: PreTrainedModel, sublayers: Sublayers, clock: Callable[[], float]
    ) -> None:
        self._clock = clock
        self._watches: dict[tuple[int, str], list[float]] = {}

        def watched(index: int, kind: str, module: nn.Module) -> nn.Module:
            times = self._watches.setdefault((index, kind), [])
            return _StopWatch(module, times.append, self.wait, clock)

        layers = sublayers.wrapped(model, watched)
        super().__init__(shared_copy_along(model, sublayers.path, layers) if layers else model)
        self._depth = sublayers.depth
        self._head: Any = model.get_output_embeddings()

    def step(self, token: Tensor, cache: KVCache, plain: View) -> Laps:
        """Time a step of `plain`, then the parts of it; the cache is as before.

        Args:
            token: `[1, 1]`, int64.
        """
        step = _seconds(lambda: plain.forward(token, cache), self.wait, self._clock)
        cache.rollback()
        head = 0.0
        if self._head is not None:
            weight = self._head.weight
            hidden = torch.zeros(1, 1, weight.shape[1], dtype=weight.dtype, device=weight.device)
            head = _seconds(lambda: self._head(hidden), self.wait, self._clock)
        for times in self._watches.values():
            times.clear()
        self.forward(token, cache)
        cache.rollback()
        return Laps(step, head, {key: sum(times) for key, times in self._watches.items()})

    def costs(self, laps: Sequence[Laps], context: int) -> Costs:
        """Medians."""
        per_part = {key: median(lap.parts[key] for lap in laps) for key in laps[0].parts}
        return Costs(
            step=median(lap.step for lap in laps),
            attention=tuple(per_part[index, "attention"] for index in range(self._depth)),
            mlp=tuple(per_part[index, "mlp"] for index in range(self._depth)),
            head=median(lap.head for lap in laps),
            context=context,
        )


def _seconds(
    call: Callable[[], Any], wait: Callable[[], None], clock: Callable[[], float]
) -> float:
    wait()
    begin = clock()
    call()
    wait()
    return clock() - begin


class _StopWatch(nn.Module):
    """Runs a module and notes the seconds it took."""

    def __init__(
        self,
        module: nn.Module,
        note: Callable[[float], None],
        wait: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        super().__init__()
        self.module = module
        self._note = note
        self._wait, self._clock = wait, clock

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs: list[Any] = []
        self._note(
            _seconds(lambda: outputs.append(self.module(*args, **kwargs)), self._wait, self._clock)
        )
        return outputs[0]
