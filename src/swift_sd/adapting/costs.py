"""What the parts of the model cost on this machine, measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from swift_sd.model.kv_cache import KVCache, attention_windows
from swift_sd.model.stubs import shared_copy, shared_copy_along
from swift_sd.model.sublayers import Sublayers
from swift_sd.model.view import View

WARM_UP = 2  # forwards not counted


@dataclass(frozen=True)
class Costs:
    """Seconds that one token takes, medians of several forwards.

    Attributes:
        step: a whole forward of the target, one row.
        attention, mlp: each layer's sublayer with the norms that serve only it.
        head: the language modelling head.
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


@torch.inference_mode()
def measure_costs(
    model: PreTrainedModel, sublayers: Sublayers, *, context: int = 64, repeats: int = 7
) -> Costs:
    """Time one-token forwards of `model` behind `context` tokens, and the sublayers inside them.

    Whole steps and steps with stop-watches around the sublayers alternate, so that both see the
    same state of the machine. The model is not changed: the stop-watches are in a copy that shares
    its tensors.
    """
    wait = _waiter(model.device)
    watches: dict[tuple[int, str], list[float]] = {}
    timed = View(_with_stop_watches(model, sublayers, watches, wait))
    plain = View(model)
    cache = KVCache(attention_windows(model.config), reserve=context + 1)
    tokens = torch.zeros(1, context + 1, dtype=torch.long, device=model.device)
    plain.forward(tokens[:, :context], cache, keep=1)
    cache.commit(context)

    head: Any = model.get_output_embeddings()
    hidden = head.weight.new_zeros(1, 1, head.weight.shape[1]) if head is not None else None
    steps, heads, sums = [], [], []
    for _ in range(WARM_UP + repeats):
        steps.append(_seconds(lambda: plain.forward(tokens[:, :1], cache), wait))
        cache.rollback()
        if hidden is not None:
            heads.append(_seconds(lambda: head(hidden), wait))
        watches.clear()
        timed.forward(tokens[:, :1], cache)
        cache.rollback()
        sums.append({key: sum(parts) for key, parts in watches.items()})
    per_part = {key: median(one[key] for one in sums[WARM_UP:]) for key in sums[0]}
    return Costs(
        step=median(steps[WARM_UP:]),
        attention=tuple(per_part[index, "attention"] for index in range(sublayers.depth)),
        mlp=tuple(per_part[index, "mlp"] for index in range(sublayers.depth)),
        head=median(heads[WARM_UP:]) if heads else 0.0,
        context=context,
    )


def _waiter(device: torch.device) -> Callable[[], None]:
    """What to call for all work that was handed to the device to be done."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


def _seconds(call: Callable[[], Any], wait: Callable[[], None]) -> float:
    wait()
    begin = perf_counter()
    call()
    wait()
    return perf_counter() - begin


class _StopWatch(nn.Module):
    """Runs a module and notes the seconds it took."""

    def __init__(self, module: nn.Module, note: Callable[[float], None], wait: Callable[[], None]):
        super().__init__()
        self.module = module
        self._note = note
        self._wait = wait

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs: list[Any] = []
        self._note(_seconds(lambda: outputs.append(self.module(*args, **kwargs)), self._wait))
        return outputs[0]


def _with_stop_watches(
    model: PreTrainedModel,
    sublayers: Sublayers,
    watches: dict[tuple[int, str], list[float]],
    wait: Callable[[], None],
) -> nn.Module:
    layers = model.get_submodule(".".join(sublayers.path))
    timed: dict[str, nn.Module] = {}
    for index, (layer, parts) in enumerate(zip(layers.children(), sublayers.parts, strict=True)):
        children: dict[str, nn.Module] = {}
        names: Mapping[str, Mapping[str, nn.Module]] = {
            "attention": parts.without_attention,
            "mlp": parts.without_mlp,
        }
        for kind, replaced in names.items():
            key = (index, kind)

            def note(seconds: float, key: tuple[int, str] = key) -> None:
                watches.setdefault(key, []).append(seconds)

            for name in replaced:
                children[name] = _StopWatch(layer.get_submodule(name), note, wait)
        timed[str(index)] = shared_copy(layer, children)
    return shared_copy_along(model, sublayers.path, timed)
