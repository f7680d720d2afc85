"""A drafter that costs nothing: it goes on as the text went on the last time."""

from __future__ import annotations

from collections.abc import Sequence

from swift_sd.decoding.draft_tree import DraftTree
from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.trace import Step
from swift_sd.drafting.growth import Growth
from swift_sd.drafting.suffixes import SuffixAutomaton

MOST = 24  # tokens to copy at once


class CopyDrafter:
    """Continues the longest ending of prompt and response that has occurred before.

    Args:
        growth: how much of a continuation is worth verifying.
    """

    name = "copying"

    def __init__(self, growth: Growth) -> None:
        self.growth = growth
        self._text = SuffixAutomaton()

    def propose(self, state: DecodingState, budget: int) -> DraftTree:
        """What came behind the last such ending; nothing if there is none."""
        text = self._text
        for token in state.tokens[0, len(text.tokens) :].tolist():
            text.add(token)
        length, place = text.match()
        if not length:
            return DraftTree()
        copied: list[int] = []
        while len(copied) < min(budget, MOST):
            # What repeats itself right away is copied from what was copied.
            ahead = place + len(copied) - len(text.tokens)
            copied.append(text.tokens[ahead] if ahead < 0 else copied[ahead])
            if copied[-1] in state.stopping.eos:
                break
        chances = [confidence(length + depth) for depth in range(len(copied))]
        return self.growth.pruned(DraftTree.chain(copied, chances))

    def learn(self, tree: DraftTree, path: Sequence[int], step: Step) -> None:
        """See `Drafter.learn`."""
        self.growth.learn(tree, path, step, 0)


def confidence(length: int) -> float:
    """How far an ending of `length` tokens that occurred before is trusted, unless it is known."""
    return length / (length + 2)
