"""SWIFT's drafter: the target with some of its sublayers left out (SWIFT, section 4.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from swift_sd.decoding.draft_tree import ROOT, DraftTree
from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.trace import Step
from swift_sd.drafting.growth import Growth
from swift_sd.model.draft_weights import AnyDraft


class LayerSkipDrafter:
    """Decodes with the sub-network; the candidates it did not choose become leaves.

    Args:
        view: the sub-network.
        growth: how deep and how wide to go.
    """

    name = "layer_skip"

    def __init__(self, view: AnyDraft, growth: Growth) -> None:
        self.view = view
        self.growth = growth
        self._forwards = 0

    def propose(self, state: DecodingState, budget: int) -> DraftTree:
        """A chain of up to `budget` tokens behind `state`, with siblings."""
        chain: list[int] = []
        confidences: list[float] = []
        leaves: list[tuple[int, int, float]] = []  # parent, token, confidence
        token = state.last_token
        self._forwards = 0
        while len(chain) < budget:
            logits = self.view.forward(token, state.cache)[:, -1]  # [1, vocabulary]
            self._forwards += 1
            candidates = self._candidates(state.guess(chain, logits))
            if not candidates:
                break
            (best, confidence), *others = candidates
            leaves += [(len(chain) - 1, *other) for other in others]
            chain.append(best)
            confidences.append(confidence)
            if best in state.stopping.eos or not self.growth.goes_on(confidences):
                break
            token = torch.tensor([[best]], device=state.device)
        state.cache.rollback()
        tree = DraftTree(
            [*chain, *(token for _, token, _ in leaves)],
            [*range(ROOT, len(chain) - 1), *(parent for parent, _, _ in leaves)],
            [*confidences, *(confidence for _, _, confidence in leaves)],
        )
        return self.growth.pruned(tree)

    def learn(self, tree: DraftTree, path: Sequence[int], step: Step) -> None:
        """See `Drafter.learn`."""
        self.growth.learn(tree, path, step, self._forwards)

    def _candidates(self, chances: Tensor) -> list[tuple[int, float]]:
        """The likeliest tokens of `[vocabulary]` with their chances, in descending order.

        None at all if the sub-network computed no distribution: it may overflow where the target
        does not.
        """
        top = chances.topk(min(self.growth.widest, len(chances)))
        numbers = torch.stack([top.indices.double(), top.values.double()]).tolist()
        candidates = [(int(token), chance) for token, chance in zip(*numbers, strict=True)]
        if math.isnan(candidates[0][1]):
            return []
        width = self.growth.width(candidates[0][1])
        return [candidates[0], *(one for one in candidates[1:width] if one[1] > 0)]
