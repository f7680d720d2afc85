"""SWIFT's drafter: the target with some of its sublayers left out (SWIFT, section 4.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from time import perf_counter

import torch
from torch import Tensor

from swift_sd.decoding.draft_tree import ROOT, DraftTree
from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.trace import Step
from swift_sd.drafting.growth import Forward, Growth
from swift_sd.drafting.recall import RecallDrafter
from swift_sd.model.draft_weights import AnyDraft
from swift_sd.model.shortlist import Shortlist

OWN, AGREED = "layer_skip", "cascade"


class LayerSkipDrafter:
    """Decodes with the sub-network; the candidates it did not choose become leaves.

    With a drafter that costs nothing at hand it is the second stage of a cascade: it reads several
    foreseen tokens in one forward, keeps those that it would have drafted, and goes on from there.

    Args:
        view: the sub-network.
        growth: how deep and how wide to go.
        recall: foresees tokens at no cost; it must have been asked for its promise in this round.
        shortlist: the tokens that `view` chooses among, if not all; told of the text.
        clock: tells the seconds that its forwards take.
    """

    def __init__(
        self,
        view: AnyDraft,
        growth: Growth,
        recall: RecallDrafter | None = None,
        shortlist: Shortlist | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.view = view
        self.growth = growth
        self._clock = clock
        self._recall, self._shortlist = recall, shortlist
        self._listed = 0  # tokens of the text that the shortlist knows of
        self._forwards: list[Forward] = []
        self.name = OWN

    def propose(self, state: DecodingState, budget: int, *, is_trial: bool = False) -> DraftTree:
        """A chain of up to `budget` tokens after `state`, with siblings; on trials see `Growth`."""
        self._list(state)
        draft = _Draft()
        ahead = self._recall.start() if self._recall else []
        self.name = AGREED if ahead else OWN
        self._forwards = []
        goes_on = True
        while goes_on:
            begin = self._clock()
            goes_on = self._read(state, draft, ahead, budget)
            self._forwards.append((1 + len(ahead), self._clock() - begin))
            goes_on = goes_on and self.growth.goes_on(
                draft.confidences, draft.sources, is_trial=is_trial
            )
            ahead = []
        state.cache.rollback()
        tree = draft.tree()
        if self._recall and len(tree):
            tree = self._recall.extended(state, tree, budget)
        return self.growth.pruned(tree, is_trial=is_trial)

    def learn(self, tree: DraftTree, path: Sequence[int], step: Step, logits: Tensor) -> None:
        """See `Drafter.learn`."""
        self.growth.learn(tree, path, step, self._forwards)

    def _list(self, state: DecodingState) -> None:
        """Tell the shortlist of the text: first the prompt, then what the target says."""
        if self._shortlist is None:
            return
        new: list[int] = state.tokens[0, self._listed :].tolist()
        if self._listed:
            self._shortlist.judge(new)
        else:
            self._shortlist.add([*new, *state.stopping.eos])
        self._listed += len(new)

    def _read(self, state: DecodingState, draft: _Draft, ahead: Sequence[int], budget: int) -> bool:
        """Add what the sub-network says behind the draft, and behind `ahead` as far as it agrees.

        Returns:
            Whether there may be more behind it.
        """
        if draft.chain:
            tokens = torch.tensor([draft.chain[-1:]], dtype=torch.long, device=state.device)
        else:
            tokens = state.last_token_and(ahead)
        logits = self.view.forward(tokens, state.cache)  # [1, 1 + ahead, vocabulary]
        for place, foreseen in enumerate([*ahead, None]):
            candidates = self._candidates(state.guess(draft.chain, logits[:, place]))
            if not candidates:
                return False
            best = candidates[0][0]
            draft.add(candidates, AGREED if best == foreseen else OWN)
            if best in state.stopping.eos or len(draft.chain) >= budget:
                return False
            if best != foreseen:
                state.cache.retreat(len(ahead) - place)
                break
        return True

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


class _Draft:
    """A chain in the making and the alternatives to its tokens."""

    def __init__(self) -> None:
        self.chain: list[int] = []
        self.confidences: list[float] = []
        self.sources: list[str] = []
        self._leaves: list[tuple[int, int, float]] = []  # parent, token, confidence

    def add(self, candidates: Sequence[tuple[int, float]], source: str) -> None:
        """Go on with the first of these tokens."""
        (best, confidence), *others = candidates
        self._leaves += [(len(self.chain) - 1, *other) for other in others]
        self.chain.append(best)
        self.confidences.append(confidence)
        self.sources.append(source)

    def tree(self) -> DraftTree:
        """The chain first, then its leaves."""
        return DraftTree(
            [*self.chain, *(token for _, token, _ in self._leaves)],
            [*range(ROOT, len(self.chain) - 1), *(parent for parent, _, _ in self._leaves)],
            [*self.confidences, *(confidence for _, _, confidence in self._leaves)],
            [*self.sources, *(OWN for _ in self._leaves)],
        )
