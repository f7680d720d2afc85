"""What a search starts from: the seconds and the influence of each sublayer, measured once."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

from transformers import PreTrainedModel

from swift_sd.adapting.costs import Costs, TimedView
from swift_sd.adapting.influence import InfluenceView
from swift_sd.adapting.objective import Rates
from swift_sd.decoding.state import DecodingState
from swift_sd.model.sublayers import Sublayers


@dataclass(frozen=True)
class Basis:
    """Known before any score.

    Attributes:
        costs: of this machine.
        influence: how much each sublayer adds to the residual stream: attention of layers 1 to
            depth - 2, then their MLPs.
    """

    costs: Costs
    influence: tuple[float, ...]


def measured_influence(
    model: PreTrainedModel, sublayers: Sublayers, state: DecodingState, tokens: int
) -> tuple[float, ...]:
    """By one forward over the latest `tokens`; the cache is as before."""
    view = InfluenceView(model, sublayers)
    end = state.cache.committed
    with state.cache.rewound(tokens):
        view.forward(state.tokens[:, end - tokens : end].to(state.device), state.cache, keep=1)
    influence = view.influence
    return (*influence.attention[1:-1], *influence.mlp[1:-1])


def measured_costs(
    model: PreTrainedModel, sublayers: Sublayers, state: DecodingState, plain: float
) -> Costs:
    """By one timed step, as shares of a `plain` one: it may have been a slow moment."""
    timed, one = TimedView(model, sublayers), state.tokens[:, -2:-1].to(state.device)
    with state.cache.rewound(1):
        lap = timed.step(one, state.cache, timed)
    inner = range(1, sublayers.depth - 1)
    scale = plain / max(lap.step, sum(lap.parts.values()) + lap.head)
    # Layers are alike, and one lap is noisy: the median stands for each.
    attention, mlp = (
        scale * median(lap.parts[layer, kind] for layer in inner) for kind in ("attention", "mlp")
    )
    return Costs(
        step=plain,
        attention=(attention,) * sublayers.depth,
        mlp=(mlp,) * sublayers.depth,
        head=scale * lap.head,
        context=state.cache.committed,
    )


def costs_to_dict(costs: Costs) -> dict[str, Any]:
    """A JSON-ready form."""
    return {
        "step": costs.step,
        "attention": list(costs.attention),
        "mlp": list(costs.mlp),
        "head": costs.head,
        "context": costs.context,
    }


def costs_from_dict(data: Any, depth: int) -> Costs:
    """What `costs_to_dict` wrote.

    Raises:
        KeyError, TypeError, ValueError: it did not, or for a model of another depth.
    """
    costs = Costs(
        step=float(data["step"]),
        attention=tuple(map(float, data["attention"])),
        mlp=tuple(map(float, data["mlp"])),
        head=float(data["head"]),
        context=int(data["context"]),
    )
    if not len(costs.attention) == len(costs.mlp) == depth:
        raise ValueError(f"costs of {len(costs.attention)} layers for a model of {depth}")
    Rates(costs, lambda rows: costs.step, 1)  # refuses what is no seconds
    return costs
