"""What a search starts from: the seconds and the influence of each sublayer."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import perf_counter

from torch import nn

from swift_sd.adapting.costs import Costs
from swift_sd.adapting.influence import InfluenceView
from swift_sd.decoding.state import DecodingState
from swift_sd.drafting.pace import Pace
from swift_sd.model.draft_weights import AnyDraft
from swift_sd.model.layer_set import LayerSet
from swift_sd.model.sublayers import Sublayers

TURNS = 3  # of which the quickest counts
DRAFT_STEPS = 2.5  # of each turn, about
UNCOMPILED = 2.0  # times what a verification takes


def measured_influence(
    model: nn.Module, sublayers: Sublayers, state: DecodingState, tokens: int
) -> tuple[float, ...]:
    """How much each sublayer adds to the residual stream, by one forward over the latest `tokens`.

    Attention of layers 1 to depth - 2, then their MLPs. The cache is as before.

    Args:
        model: the target, or what computes the same more quickly.
    """
    view = InfluenceView(model, sublayers)
    read = state.tokens[:, -tokens - 1 : -1].to(state.device)
    with state.cache.rewound(tokens):
        view.forward(read, state.cache, keep=1)
    shares = (*view.influence.attention[1:-1], *view.influence.mlp[1:-1])
    # In 16 bits hidden states may overflow; then nothing is known.
    return shares if all(map(math.isfinite, shares)) else (1.0,) * len(shares)


def draft_costs(
    view: AnyDraft,
    state: DecodingState,
    pace: Pace,
    clock: Callable[[], float] = perf_counter,
) -> Costs:
    """What sublayers cost a draft step: by what a step loses that leaves all of a kind out.

    Layers are taken to be alike: each stands for all of its kind.
    """
    before = view.layer_set
    depth, inner = before.depth, frozenset(range(1, before.depth - 1))
    one = state.tokens[:, -2:-1].to(state.device)
    none = LayerSet.none(depth)
    no_attention, no_mlp = LayerSet(depth, inner), LayerSet(depth, mlp=inner)
    sets = {before, none, no_attention, no_mlp}

    def seconds(layer_set: LayerSet) -> float:
        view.use(layer_set)
        begin = clock()
        view.forward(one, state.cache).flatten()[:1].tolist()  # waits for the device
        state.cache.rollback()
        return clock() - begin

    with state.cache.rewound(1):
        try:  # in turn, so that a slow moment meets all of them
            turns = [{layer_set: seconds(layer_set) for layer_set in sets} for _ in range(TURNS)]
        finally:
            view.use(before)
    quickest = {layer_set: min(turn[layer_set] for turn in turns) for layer_set in sets}
    whole = quickest[none]
    # As multiples of the step that drafts take: it may have been a slow moment.
    scale = pace.draft_step / quickest[before] if pace.draft_step else 1.0
    attention, mlp = (
        scale * max(whole - quickest[without], 0.0) / max(len(inner), 1)
        for without in (no_attention, no_mlp)
    )
    return Costs(
        step=scale * whole,
        attention=(attention,) * depth,
        mlp=(mlp,) * depth,
        head=0.0,
        context=state.cache.committed,
    )


def seconds_to_measure(
    pace: Pace, tokens: int, influence: tuple[float, ...] | None, costs: Costs | None
) -> float:
    """What measuring what is None is expected to take, influence on so many tokens."""
    # What is read with meters is not read by compiled code.
    reading = UNCOMPILED * (pace.verify(tokens) or 0.0) if influence is None else 0.0
    step = pace.draft_step or pace.step or 0.0
    return reading + (DRAFT_STEPS * TURNS * step if costs is None else 0.0)
