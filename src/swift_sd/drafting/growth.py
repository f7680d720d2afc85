"""How a tree of drafted tokens grows: how deep, how wide, and what of it is verified."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Protocol

from swift_sd.decoding.draft_tree import DraftTree
from swift_sd.decoding.trace import Step
from swift_sd.drafting.calibration import Calibrations
from swift_sd.drafting.pace import Pace

MAX_NODES = 64
CANDIDATES = 8  # alternatives looked at for one place
FIRST_GUESS = 0.5  # below this chance a draft whose cost is not known yet goes no further
AHEAD = 1.1  # times the speed of drafting token by token that reading ahead must promise
LEAST = 0.01  # chance below which nothing is ever worth verifying
# A trial finds out what drafts cost and gain, whatever is believed: a chain of at most so many
# tokens, as long as it is as likely as that by the drafter's own word.
TRIED, TRIED_REACH = 4, 0.3

Widths = Sequence[tuple[float, int]]  # above a confidence so many candidates
Forward = tuple[int, float]  # of a draft: its rows and the seconds it took


class Growth(Protocol):
    """Decides on the shape of a tree whose main chain a drafter extends token by token.

    Attributes:
        widest: most candidates that `width` ever asks for.
    """

    widest: int

    def width(self, confidence: float) -> int:
        """Candidates to collect for a place whose likeliest token has `confidence`; 1 or more."""
        ...

    def goes_on(
        self, confidences: Sequence[float], sources: Sequence[str], *, is_trial: bool = False
    ) -> bool:
        """Whether to draft another token after a chain of such nodes (one at least).

        Args:
            is_trial: whether this is done to find out what drafts cost and gain.
        """
        ...

    def pruned(self, tree: DraftTree, *, is_trial: bool = False) -> DraftTree:
        """What of `tree` is worth verifying."""
        ...

    def learn(
        self, tree: DraftTree, path: Sequence[int], step: Step, forwards: Sequence[Forward]
    ) -> None:
        """See `Drafter.learn`; drafting took these `forwards`."""
        ...


class PaperGrowth:
    """Early stop and dynamic verification as published (SWIFT, section 4.2 and appendix).

    Args:
        early_stop: ε: no further behind a token less likely than this.
        widths: (confidence, candidates): above each confidence so many; in descending order, the
            last one for all others.
    """

    GREEDY: ClassVar[Widths] = ((0.95, 3), (0.8, 5), (0.5, 8), (0.0, 10))
    SAMPLING: ClassVar[Widths] = ((0.95, 1), (0.8, 3), (0.5, 5), (0.0, 10))
    CHAIN: ClassVar[Widths] = ((0.0, 1),)

    def __init__(self, early_stop: float, widths: Widths) -> None:
        self._early_stop = early_stop
        self._widths = widths
        self.widest = max(width for _, width in widths)

    def width(self, confidence: float) -> int:
        """See `Growth`."""
        return next((n for above, n in self._widths if confidence > above), self._widths[-1][1])

    def goes_on(
        self, confidences: Sequence[float], sources: Sequence[str], *, is_trial: bool = False
    ) -> bool:
        """See `Growth`."""
        return confidences[-1] >= self._early_stop

    def pruned(self, tree: DraftTree, *, is_trial: bool = False) -> DraftTree:
        """See `Growth`."""
        return tree

    def learn(
        self, tree: DraftTree, path: Sequence[int], step: Step, forwards: Sequence[Forward]
    ) -> None:
        """Nothing is learned."""


class CostGrowth:
    """The shape that gives most tokens per second.

    A round takes d draft steps and a verification of n rows, and gives one token and every node
    that is accepted. In the long run tokens ÷ seconds is best if each round maximises
    tokens - λ · seconds, where λ is the best rate itself (renewal reward): another step, another
    row, is worth it if what it will bring exceeds λ times what it costs.

    Args:
        calibrations: for each source from its confidence to the chance of acceptance; they learn.
        pace: what steps and rows cost; learns.
        is_tree: whether the target can verify alternatives.
    """

    def __init__(self, calibrations: Calibrations, pace: Pace, is_tree: bool) -> None:
        self.calibrations = calibrations
        self._pace = pace
        self.widest = CANDIDATES if is_tree else 1

    def width(self, confidence: float) -> int:
        """See `Growth`."""
        return self.widest

    def goes_on(
        self, confidences: Sequence[float], sources: Sequence[str], *, is_trial: bool = False
    ) -> bool:
        """See `Growth`. The next token is expected to be as likely as this one was."""
        if is_trial:
            return len(confidences) < TRIED and math.prod(confidences) > TRIED_REACH
        chances = [
            self.calibrations[source].chance(confidence)
            for confidence, source in zip(confidences, sources, strict=True)
        ]
        reach = math.prod(chances)
        step, depth = self._pace.draft_step, len(confidences)
        if step is None:
            return reach > FIRST_GUESS
        row = self._extra(depth + 1) - self._extra(depth)
        return reach * chances[-1] > self._rate * (step + row)

    def pruned(self, tree: DraftTree, *, is_trial: bool = False) -> DraftTree:
        """See `Growth`. The likeliest nodes, which a parent always precedes."""
        rate = self._rate
        if is_trial or self._pace.verify(1) is None:
            chain = tree.main_chain[:TRIED] if is_trial else tree.main_chain
            return tree.kept([row - 1 for row in chain])
        reaches = self.reaches(tree)
        order = sorted(range(len(tree)), key=lambda node: -reaches[node])[:MAX_NODES]
        best, gain, count = 0.0, 0.0, 0
        for nodes, node in enumerate(order, 1):
            gain += reaches[node]
            value = gain - rate * self._extra(nodes)
            if value > best:
                best, count = value, nodes
        return tree.kept(sorted(order[:count]))

    def promise(self, tree: DraftTree) -> float:
        """Speed to expect of a round that verifies `tree`, which is there already.

        As a multiple of plain decoding's; 0 for nothing at all.
        """
        alone, seconds = self._pace.verify(1), self._pace.verify(1 + len(tree))
        if not (len(tree) and alone and seconds):
            return 0.0
        return (1 + sum(self.reaches(tree))) * alone / seconds

    def head_start(self, chain: DraftTree) -> int:
        """How many tokens of a foreseen chain a draft should read at once.

        A forward over 1 + n rows gives the first token of a draft and another one for each of the n
        that the draft agrees to; as likely as the target does, it is supposed. The best n gives
        most of them a second; without measured costs it is 0.
        """
        alone = self._pace.draft(1)
        if not alone:
            return 0
        best, fastest, tokens = 0, AHEAD / alone, 1.0
        for count, reach in enumerate(self.reaches(chain), 1):
            tokens += reach
            seconds = self._pace.draft(1 + count) or alone
            if tokens / seconds > fastest:
                best, fastest = count, tokens / seconds
        return best

    def reaches(self, tree: DraftTree) -> list[float]:
        """For each node the chance that it comes out."""
        reaches: list[float] = []
        for node, (parent, confidence) in enumerate(zip(tree.parents, tree.chances, strict=True)):
            before = reaches[parent] if parent >= 0 else 1.0
            reaches.append(before * self.calibrations[tree.source(node + 1)].chance(confidence))
        return reaches

    @property
    def least(self) -> float:
        """The chance below which a node is not worth a row."""
        return max(LEAST, self._rate * self._extra(1))

    def learn(
        self, tree: DraftTree, path: Sequence[int], step: Step, forwards: Sequence[Forward]
    ) -> None:
        """See `Growth`."""
        taken = dict(zip(path, step.tokens, strict=False))
        for node, parent in enumerate(tree.parents):
            if parent + 1 in taken:
                row = tree.child(parent + 1, taken[parent + 1])
                source = self.calibrations[tree.source(node + 1)]
                source.tell(tree.chances[node], row == node + 1)
        for rows, seconds in forwards:
            self._pace.saw_draft(rows, seconds)

    @property
    def _rate(self) -> float:
        """λ: what was reached lately, and at least what plain decoding reaches."""
        alone = self._pace.verify(1)
        return max(self._pace.rate, 1 / alone if alone else 0.0)

    def _extra(self, nodes: int) -> float:
        """Seconds that verifying `nodes` more rows costs beyond one."""
        one, all_rows = self._pace.verify(1), self._pace.verify(1 + nodes)
        return all_rows - one if one is not None and all_rows is not None else 0.0
