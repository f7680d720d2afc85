"""Whether to draft at all: never slower than plain decoding, but for what finding out costs."""

from __future__ import annotations

from collections.abc import Sequence

from swift_sd.decoding.draft_tree import DraftTree
from swift_sd.decoding.drafter import Drafter
from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.trace import Step
from swift_sd.drafting.pace import Pace

CREDIT = 2.0  # plain steps that finding out may cost at first
SHARE = 0.01  # of all time, what it may cost later on
PAYS = 1.03  # times plain decoding's speed; what is less may be noise
FADE = 0.95  # weight of the drafted rounds before
PLAIN_EVERY = 64  # rounds after which a plain one shows again what plain decoding costs
PLAIN_FIRST = 2  # rounds of that kind at the start


class Ledger:
    """What drafting gained or lost so far, in seconds, against decoding the same tokens plainly.

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
        self._since_plain = PLAIN_EVERY
        self._plain_rounds = 0

    @property
    def allows(self) -> bool:
        """Whether to draft in the next round."""
        step = self._pace.step
        if step is None or self._plain_rounds < PLAIN_FIRST or self._since_plain >= PLAIN_EVERY:
            return False
        if self.advantage > PAYS:
            return True
        if self._since_plain:  # in doubt, plain rounds in between tell what is true of late
            return False
        loss = max(self._seconds - self._tokens * step, 0.0) * (1 - FADE)
        return self._lost + loss <= CREDIT * step + SHARE * self._elapsed

    @property
    def advantage(self) -> float:
        """Speed with drafts, of late, as a multiple of plain decoding's; 0 if not known yet."""
        step = self._pace.step
        return self._tokens * step / self._seconds if self._seconds and step else 0.0

    def record(self, step: Step, drafting: bool) -> None:
        """Count a round; `drafting`: whether a draft was asked for in it."""
        self._elapsed += step.seconds
        if not drafting:
            self._since_plain = 0
            self._plain_rounds += 1
            return
        self._since_plain += 1
        if self._pace.step is not None and self.advantage <= PAYS:
            # Noise is not to win back what was lost: only losses count.
            self._lost += max(step.seconds - len(step.tokens) * self._pace.step, 0.0)
        self._tokens = FADE * self._tokens + len(step.tokens)
        self._seconds = FADE * self._seconds + step.seconds


class Governed:
    """A drafter that is asked only while it pays.

    Args:
        drafter: proposes.
        ledger: remembers what came of it, over all responses.
    """

    def __init__(self, drafter: Drafter, ledger: Ledger, pace: Pace) -> None:
        self.name = drafter.name
        self._drafter = drafter
        self._ledger = ledger
        self._pace = pace
        self._is_asked = False

    def propose(self, state: DecodingState, budget: int) -> DraftTree:
        """What the drafter proposes; nothing while drafting does not pay."""
        self._is_asked = self._ledger.allows
        return self._drafter.propose(state, budget) if self._is_asked else DraftTree()

    def learn(self, tree: DraftTree, path: Sequence[int], step: Step) -> None:
        """See `Drafter.learn`."""
        self._pace.saw_round(step)
        if self._is_asked:
            self._drafter.learn(tree, path, step)
        else:
            self._pace.saw_plain(step.seconds)
        self._ledger.record(step, self._is_asked)
