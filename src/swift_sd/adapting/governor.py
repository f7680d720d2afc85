"""Who drafts, if anyone: never slower than plain decoding, but for what finding out costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from swift_sd.decoding.draft_tree import DraftTree
from swift_sd.decoding.drafter import Drafter
from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.trace import Step
from swift_sd.drafting.pace import Pace

CREDIT = 3.5  # plain steps that finding out may cost at first
SHARE = 0.004  # of all time, what it may cost in the long run
PAYS = 1.03  # times plain decoding's speed; what is less may be noise
FADE = 0.95  # weight of the drafted rounds before
TRUST = 4.0  # plain steps' worth of weight of what is expected before a drafter was tried
SUPPOSED = 0.75  # share of right tokens of a drafter that was never tried
DEEPEST = 8  # tokens of a draft that such expectations look at
PLAIN_EVERY = 64  # rounds after which a plain one shows again what plain decoding costs
PLAIN_FIRST = 2  # such measurements before anything is drafted


class Purse:
    """What finding out may cost, and did, over all drafters and responses; in plain steps."""

    def __init__(self) -> None:
        self._elapsed = self._lost = 0.0

    def elapse(self, cost: float) -> None:
        """Time went by."""
        self._elapsed += cost

    def lose(self, cost: float) -> None:
        """A trial cost more than its tokens were worth."""
        self._lost += cost

    def affords(self, cost: float) -> bool:
        """Whether as much may be lost again."""
        return self._lost + cost <= max(CREDIT, SHARE * self._elapsed)


class Ledger:
    """What a drafter gained or lost of late against decoding the same tokens plainly.

    Each round is weighed against plain steps as they were at that time, so that a machine that is
    slow now and fast later deceives nobody.

    Args:
        pace: knows what a plain step costs.
        purse: pays for trials while drafting is not known to pay.
        expected: speed as a multiple of plain decoding's that is supposed at first.
    """

    def __init__(self, pace: Pace, purse: Purse, expected: Callable[[], float]) -> None:
        self._pace, self._purse, self._expected = pace, purse, expected
        self.forget()

    def forget(self) -> None:
        """The drafter is another one now: what it gained before says nothing."""
        self._tokens = self._cost = 0.0  # of late, in rounds with a draft; cost in plain steps
        self._trust = TRUST  # in what was supposed

    @property
    def advantage(self) -> float:
        """Speed with its drafts, of late, as a multiple of plain decoding's."""
        supposed = self._trust * self._expected()
        return (self._tokens + supposed) / (self._cost + self._trust)

    @property
    def pays(self) -> bool:
        """Whether its drafts are faster than plain decoding, as far as is known."""
        return self.advantage > PAYS

    @property
    def may_try(self) -> bool:
        """Whether it may be found out again. Plain rounds in between tell what is true of late."""
        loss = max(self._cost - self._tokens, 0.0) * (1 - FADE)
        return not self._pace.since_plain and self._purse.affords(loss)

    def record(self, step: Step) -> None:
        """Count a round in which this drafter proposed."""
        plain = self._pace.step
        if not plain:
            return
        cost = step.seconds / plain
        if not self.pays:  # noise is not to win back what was lost: only losses count
            self._purse.lose(max(cost - len(step.tokens), 0.0))
        self._tokens = FADE * self._tokens + len(step.tokens)
        self._cost = FADE * self._cost + cost
        self._trust *= FADE


def supposed(pace: Pace) -> float:
    """Speed as a multiple of plain decoding's that the costs of drafting let expect.

    The best depth d for Σ aⁱ tokens, i = 0 … d, in d draft steps and a verification, a the share of
    right tokens. 1 if nothing is known of what a draft costs.
    """
    plain, draft = pace.verify(1), pace.draft_step
    if not plain or not draft:
        return 1.0
    best, tokens = 0.0, 1.0
    for depth in range(1, DEEPEST + 1):
        tokens += SUPPOSED**depth
        seconds = depth * draft + (pace.verify(1 + depth) or plain)
        best = max(best, tokens * plain / seconds)
    return best


class Governed:
    """A drafter, its account, and what it promises.

    Args:
        drafter: who proposes when chosen.
        ledger: what came of it before.
        promise: tokens per second to expect of it in the next round, 0 for nothing; None if only
            the past tells.
    """

    def __init__(
        self,
        drafter: Drafter,
        ledger: Ledger,
        promise: Callable[[DecodingState, int], float] | None = None,
    ) -> None:
        self.drafter, self.ledger, self.promise = drafter, ledger, promise


class Governor:
    """Before each round: who drafts, if anyone.

    Whoever promises most tokens a second beyond plain decoding proposes, and is believed while its
    account says so. Where it does not, or where nobody promises a gain, one may try now and then,
    for what the purse affords.

    Args:
        drafters: in the order in which they try.
        pace: what rounds cost.
        purse: what finding out may cost.
    """

    def __init__(self, drafters: Sequence[Governed], pace: Pace, purse: Purse) -> None:
        self._all, self._pace, self._purse = drafters, pace, purse
        self._chosen: Governed | None = None

    @property
    def name(self) -> str:
        """Of the drafter that was asked last."""
        return self._chosen.drafter.name if self._chosen else "none"

    def propose(self, state: DecodingState, budget: int) -> DraftTree:
        """What the chosen drafter proposes; nothing in a plain round."""
        promised = [one.promise(state, budget) if one.promise else None for one in self._all]
        self._chosen = self._choice(promised)
        return self._chosen.drafter.propose(state, budget) if self._chosen else DraftTree()

    def learn(self, tree: DraftTree, path: Sequence[int], step: Step, logits: Tensor) -> None:
        """See `Drafter.learn`."""
        self._pace.saw_round(step)
        if self._chosen is None:
            self._pace.saw_plain(step.seconds)
        else:
            self._chosen.ledger.record(step)
        self._purse.elapse(step.seconds / self._pace.step if self._pace.step else 0.0)
        for one in self._all:
            if one is self._chosen or one.promise:
                one.drafter.learn(tree, path, step, logits)

    def _choice(self, promised: Sequence[float | None]) -> Governed | None:
        pace, step = self._pace, self._pace.step
        if step is None or pace.plain_rounds < PLAIN_FIRST or pace.since_plain >= PLAIN_EVERY:
            return None
        best, chosen = 1.0, None
        for one, promise in zip(self._all, promised, strict=True):
            advantage = one.ledger.advantage if promise is None else promise * step
            if one.ledger.pays and advantage > best:
                best, chosen = advantage, one
        if chosen is not None:
            return chosen
        for one, promise in zip(self._all, promised, strict=True):
            if (promise is None or promise * step > 1) and one.ledger.may_try:
                return one
        return None
