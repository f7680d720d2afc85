"""Who drafts, if anyone: never slower than plain decoding, but for what finding out costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swift_sd.decoding.draft_tree import DraftTree
from swift_sd.decoding.drafter import Drafter
from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.trace import Step
from swift_sd.drafting.growth import CostGrowth
from swift_sd.drafting.pace import Pace

CREDIT = 2.0  # plain steps that finding out may cost at first
SHARE = 0.01  # of all time, what it may cost later on
PAYS = 1.03  # times plain decoding's speed; what is less may be noise
FADE = 0.95  # weight of the drafted rounds before
PLAIN_EVERY = 64  # rounds after which a plain one shows again what plain decoding costs
PLAIN_FIRST = 2  # rounds of that kind at the start


class Ledger:
    """What a drafter gained or lost so far, in seconds, against decoding the same tokens plainly.

    While drafting pays it goes on. When it does not, it is tried again only as far as the losses
    stay within `CREDIT` steps and `SHARE` of the time: rarely, but for good, so that a change for
    the better is found.

    Args:
        pace: knows what a plain step costs.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._elapsed = 0.0
        self._lost = 0.0  # while finding out
        self._tokens = self._seconds = 0.0  # of late, in rounds with a draft

    @property
    def allows(self) -> bool:
        """Whether the drafter may propose in the next round."""
        step = self._pace.step
        if step is None:
            return False
        if self.advantage > PAYS:
            return True
        if self._pace.since_plain:  # in doubt, plain rounds in between tell what is true of late
            return False
        loss = max(self._seconds - self._tokens * step, 0.0) * (1 - FADE)
        return self._lost + loss <= CREDIT * step + SHARE * self._elapsed

    @property
    def advantage(self) -> float:
        """Speed with its drafts, of late, as a multiple of plain decoding's; 0 if not known yet."""
        step = self._pace.step
        return self._tokens * step / self._seconds if self._seconds and step else 0.0

    def record(self, step: Step, *, drafted: bool) -> None:
        """Count a round: whether this drafter proposed in it."""
        self._elapsed += step.seconds
        if not drafted:
            return
        if self._pace.step is not None and self.advantage <= PAYS:
            # Noise is not to win back what was lost: only losses count.
            self._lost += max(step.seconds - len(step.tokens) * self._pace.step, 0.0)
        self._tokens = FADE * self._tokens + len(step.tokens)
        self._seconds = FADE * self._seconds + step.seconds

    def forget(self) -> None:
        """The drafter is another one now: what it gained before says nothing."""
        self._tokens = self._seconds = 0.0


@dataclass(frozen=True)
class Governed:
    """A drafter and its account."""

    drafter: Drafter
    ledger: Ledger


class Governor:
    """Before each round: who drafts, if anyone.

    A draft that costs nothing is verified if it promises more tokens a second than what else could
    be done; one that takes forwards of its own is asked for while that pays.

    Args:
        free: proposes at no cost.
        dear: proposes at a cost.
        growth: what the free one's proposals promise.
        pace: what rounds cost.
    """

    def __init__(self, free: Governed, dear: Governed, growth: CostGrowth, pace: Pace) -> None:
        self._free, self._dear = free, dear
        self._growth, self._pace = growth, pace
        self._chosen: Governed | None = None

    @property
    def name(self) -> str:
        """Of the drafter that was asked last."""
        return self._chosen.drafter.name if self._chosen else "none"

    def propose(self, state: DecodingState, budget: int) -> DraftTree:
        """What the chosen drafter proposes; nothing in a plain round."""
        self._chosen = None
        step = self._pace.step
        if step is None or self._pace.plain_rounds < PLAIN_FIRST:
            return DraftTree()
        if self._pace.since_plain >= PLAIN_EVERY:
            return DraftTree()
        tree = self._free.drafter.propose(state, budget)
        spends = self._dear.ledger.allows
        rate = max(1.0, self._dear.ledger.advantage if spends else 0.0) / step
        if len(tree) and self._free.ledger.allows and self._growth.promise(tree) > rate:
            self._chosen = self._free
            return tree
        if spends:
            self._chosen = self._dear
            return self._dear.drafter.propose(state, budget)
        return DraftTree()

    def learn(self, tree: DraftTree, path: Sequence[int], step: Step) -> None:
        """See `Drafter.learn`."""
        self._pace.saw_round(step)
        if self._chosen is not None:
            self._chosen.drafter.learn(tree, path, step)
        else:
            self._pace.saw_plain(step.seconds)
        for one in (self._free, self._dear):
            one.ledger.record(step, drafted=self._chosen is one)
