"""A drafter that costs nothing: what the text and the target have said before."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from typing import NamedTuple

from torch import Tensor

from swift_sd.decoding.draft_tree import NOTHING, ROOT, DraftTree
from swift_sd.decoding.noise import wins
from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.trace import Step
from swift_sd.drafting.copying import Copies
from swift_sd.drafting.growth import CostGrowth
from swift_sd.drafting.recycling import Successors
from swift_sd.drafting.suffixes import Ending

MOST = 32  # nodes looked at
COPYING, RECYCLING = "copying", "recycling"


class RecallDrafter:
    """Copies of the text and runner-ups of the target in one tree, the likeliest nodes first.

    It foresees something for every place that it is asked about, verified or not, so that each
    token that comes out tells how far its sources are to be trusted: before they are relied on.

    Args:
        growth: how much of a tree is worth verifying, and how likely a node is.
        successors: runner-ups seen so far, in this response and before; None to recycle none.
        copies: whether to copy from the text.
    """

    def __init__(
        self, growth: CostGrowth, successors: Successors | None, *, copies: bool = True
    ) -> None:
        self._growth = growth
        self._successors = successors
        self._copying = copies
        self._copies = Copies()
        self._foreseen = self._offer = NOTHING
        self._latest: tuple[int, int] | None = None  # tokens that the next one follows

    @property
    def name(self) -> str:
        """Of the sources that what was proposed last comes from."""
        return "+".join(sorted(set(self._offer.sources))) or COPYING

    def promise(self, state: DecodingState, budget: int) -> float:
        """Speed to expect of a round with what `propose` returns next: see `CostGrowth`."""
        self._copies.extend(state.tokens[0, len(self._copies) :].tolist())
        self._latest = _two_latest(state)
        self._foreseen = self.extended(state, NOTHING, budget)
        self._offer = self._growth.pruned(self._foreseen)
        return self._growth.promise(self._offer)

    def propose(self, state: DecodingState, budget: int, *, is_trial: bool = False) -> DraftTree:
        """See `Drafter.propose` and, on trials, `Growth`; to be asked for its `promise` before."""
        if is_trial:
            self._offer = self._growth.pruned(self._foreseen, is_trial=True)
        return self._offer

    def has_draft(self) -> bool:
        """Whether it foresees anything, worth verifying or not; after its `promise`."""
        return len(self._foreseen) > 0

    def start(self) -> list[int]:
        """What it foresees, as far as another drafter had better read it at once: see `Growth`."""
        chain = self._foreseen.kept([row - 1 for row in self._foreseen.main_chain])
        return list(chain.tokens[: self._growth.head_start(chain)])

    def learn(self, tree: DraftTree, path: Sequence[int], step: Step, logits: Tensor) -> None:
        """See `Drafter.learn`; told of every round, whoever proposed."""
        if self._successors is not None and self._latest is not None:  # it was asked
            self._successors.learn([*self._latest, *step.tokens[:-1]], logits[list(path)])
        row: int | None = 0
        for token in step.tokens:
            if row is None:
                break
            self._judge(row, token)
            row = self._foreseen.child(row, token)
        self._foreseen, self._latest = NOTHING, None

    def _judge(self, row: int, token: int) -> None:
        """Tell the calibrations what came of what was foreseen behind `row`."""
        foreseen = self._foreseen
        for node in foreseen.behind(row):
            calibration = self._growth.calibrations[foreseen.sources[node]]
            calibration.tell(foreseen.chances[node], foreseen.tokens[node] == token)

    def extended(self, state: DecodingState, tree: DraftTree, budget: int) -> DraftTree:
        """`tree` with further nodes behind the tip of its main chain, the likeliest first.

        Args:
            tree: what another drafter has proposed, or nothing.
        """
        tokens, parents = list(tree.tokens), list(tree.parents)
        chances, sources = list(tree.chances), list(tree.sources)
        tip, reach, chain = ROOT, 1.0, tree.main_chain
        place = Place(self._copies.ending, *_two_latest(state), 0)
        if chain:
            tip, reach = chain[-1] - 1, self._growth.reaches(tree)[chain[-1] - 1]
        for row in chain:
            place = self._behind(place, tree.tokens[row - 1])
        frontier, least = [(-reach, tip, place)], self._growth.least
        while frontier and len(tokens) < len(tree) + MOST:
            less, parent, place = heappop(frontier)
            if place.depth >= budget or place.token in state.stopping.eos:
                continue
            for source, token, confidence in self._followers(state, place):
                chance = -less * self._growth.calibrations[source].chance(confidence)
                # What may come next is noted in any case, to be judged.
                if place.depth and chance < least:
                    continue
                tokens.append(token)
                parents.append(parent)
                chances.append(confidence)
                sources.append(source)
                heappush(frontier, (-chance, len(tokens) - 1, self._behind(place, token)))
        return DraftTree(tokens, parents, chances, sources)

    def _behind(self, place: Place, token: int) -> Place:
        ending = self._copies.behind(place.ending, token)
        return Place(ending, place.token, token, place.depth + 1)

    def _followers(self, state: DecodingState, place: Place) -> list[tuple[str, int, float]]:
        """What may come at a place: source, token and confidence of each, the likeliest first."""
        copied = dict(self._copies.continuations(place.ending)) if self._copying else {}
        found = {token: (COPYING, confidence) for token, confidence in copied.items()}
        known = self._successors
        seen = known.behind(place.before, place.token) if known is not None else []
        # As alternatives they share the chance that no copy is right.
        left, others = 1 - sum(copied.values()), 1 - sum(s for t, s in seen if t in copied)
        for token, share in seen:
            found.setdefault(token, (RECYCLING, left * share / others))
        if state.noise is not None and found:
            numbers = state.numbers(place.depth, list(found))
            found = {
                token: (source, wins(chance, number))
                for (token, (source, chance)), number in zip(found.items(), numbers, strict=True)
            }
        ranked = sorted(found.items(), key=lambda one: -one[1][1])[: self._growth.widest]
        return [(source, token, confidence) for token, (source, confidence) in ranked]


class Place(NamedTuple):
    """Where a token may come: the ending of all before it, the two latest of them, its depth."""

    ending: Ending
    before: int
    token: int
    depth: int


def _two_latest(state: DecodingState) -> tuple[int, int]:
    """The last two tokens; of a single one, that one twice."""
    tokens: list[int] = state.tokens[0, -2:].tolist()
    return tokens[0], tokens[-1]
