"""Who drafts, if anyone: never slower than plain decoding, but for what finding out costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from torch import Tensor

from swift_sd.decoding.draft_tree import NOTHING, DraftTree
from swift_sd.decoding.drafter import Drafter
from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.trace import Step
from swift_sd.drafting.pace import Pace

CREDIT = 2.0  # plain steps that finding out may cost at first
SHARE = 0.004  # of all time, what it may cost in the long run
ASKING = 0.002  # of all time, what asking drafters may cost beyond what it wins
PAYS = 1.03  # times plain decoding's speed; what is less may be noise
FADE = 0.97  # weight of the drafted rounds before
TRUST, FORESIGHT = 4.0, 16.0  # in promises made from costs alone, and from what is foreseen
SUPPOSED = 0.75  # share of right tokens of a drafter that was never tried
DEEPEST = 8  # tokens of a draft that such expectations look at
OUTLIER = 1.5  # times its usual seconds, beyond which a verification says nothing
# Rounds after which a plain one shows again what plain decoding costs: so many for each such round
# that there was, and at last at most so many.
PLAIN_SOON, PLAIN_EVERY = 12, 64
PLAIN_FIRST = 2  # such measurements before anything is drafted
# Where a step takes less seconds than that, they are taken behind so many others: behind a draft,
# so small a model has lost its weights from the processor's cache, and a plain step seems dear.
SHORT, WARM = 0.004, 3
AT_ONCE = 32  # plain rounds accounted for together: where a step takes a millisecond, it matters


class Purse:
    """What finding out may cost, and did, over all drafters and responses; in plain steps."""

    def __init__(self) -> None:
        self._elapsed = self._lost = self._asked = 0.0
        self._seconds, self._rounds = 0.0, 0  # not accounted for yet

    def elapse(self, seconds: float) -> int:
        """A round went by; how many did since time was accounted for."""
        self._seconds, self._rounds = self._seconds + seconds, self._rounds + 1
        return self._rounds

    def account(self, plain: float) -> None:
        """Count the time that went by, in plain steps of so many seconds."""
        self._elapsed += self._seconds / plain
        self._seconds, self._rounds = 0.0, 0

    def lose(self, cost: float) -> None:
        """A trial cost more than its tokens were worth."""
        self._lost += cost

    def ask(self, cost: float) -> None:
        """Drafters were asked what they promise; below 0 if a draft came of it that won time."""
        self._asked = max(self._asked + cost, 0.0)

    @property
    def may_ask(self) -> bool:
        """Whether that may be done again: where a step takes a millisecond, it is no trifle."""
        return self._asked <= max(CREDIT, ASKING * self._elapsed)

    def affords(self, cost: float) -> bool:
        """Whether as much may be lost again."""
        return self._lost + cost <= max(CREDIT, SHARE * self._elapsed)


class Ledger:
    """How far a drafter's promises are kept, of late: tokens in a time, against plain decoding.

    Each round is weighed against plain steps as they were at that time, so that a machine that is
    slow now and fast later deceives nobody.

    Args:
        pace: knows what a plain step costs.
        purse: pays for trials while drafting is not known to pay.
        trust: tokens that promises are supposed to have kept before.
    """

    def __init__(self, pace: Pace, purse: Purse, trust: float) -> None:
        self._pace, self._purse, self._trust = pace, purse, trust
        self.forget()

    def forget(self) -> None:
        """The drafter is another one now: what it gained before says nothing."""
        self._promised = self._tokens = self._trust  # of late
        self._lost = self._rounds = 0.0  # of late; in plain steps

    def expected(self, promise: float) -> float:
        """The speed that such a promise, a multiple of plain decoding's, comes down to."""
        return promise * self._tokens / self._promised

    @property
    def may_try(self) -> bool:
        """Whether it may be found out again. Plain rounds in between tell what is true of late."""
        loss = self._lost / self._rounds if self._rounds else 0.0
        return not self._pace.since_plain and self._purse.affords(loss)

    def record(self, step: Step, promise: float, learning: float = 0.0) -> None:
        """Count a round in which this drafter proposed and had promised such a speed.

        Args:
            learning: seconds that drafters took to learn from it, which plain decoding need not.
        """
        plain, verify = self._pace.step, self._pace.verify(1 + step.verified)
        if not plain or not verify:
            return
        seconds = step.seconds + learning - max(step.verify - OUTLIER * verify, 0.0)
        cost = seconds / plain
        loss = max(cost - len(step.tokens), 0.0)
        if self.expected(promise) <= PAYS:  # noise is not to win back what was lost
            self._purse.lose(loss)
        self._tokens = FADE * self._tokens + len(step.tokens)
        self._promised = FADE * self._promised + promise * cost
        self._lost, self._rounds = FADE * self._lost + loss, FADE * self._rounds + 1


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


@dataclass(frozen=True)
class Governed:
    """A drafter and its account.

    Attributes:
        drafter: who proposes when chosen.
        ledger: what came of it before.
        promise: the speed to expect of it in the next round, as a multiple of plain decoding's; 0
            if it has nothing to propose. It is asked before a round, where that is affordable.
        foresees: whether that says something of this very round, so that less than 1 need not be
            tried; and whether it learns from rounds in which others proposed.
    """

    drafter: Drafter
    ledger: Ledger
    promise: Callable[[DecodingState, int], float]
    foresees: bool


class Governor:
    """Before each round: who drafts, if anyone.

    Whoever is expected to be fastest proposes, plain decoding being one of them. Where nobody is
    expected to be faster than that, one may try now and then, for what the purse affords.

    Args:
        drafters: in the order in which they try.
        pace: what rounds cost.
        purse: what finding out may cost.
        clock: tells the seconds that asking and learning take.
    """

    def __init__(
        self,
        drafters: Sequence[Governed],
        pace: Pace,
        purse: Purse,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._all, self._pace, self._purse, self._clock = drafters, pace, purse, clock
        self._chosen: Governed | None = None
        self._promise = 0.0  # of the one chosen
        self._asking = 0.0  # seconds, in this round; 0 where nobody was asked
        self._pays = False  # to draft, as far as was known when drafters were last asked
        self._unpaid = 0.0  # seconds behind the last draft, of keeping accounts

    @property
    def name(self) -> str:
        """Of the drafter that was asked last."""
        return self._chosen.drafter.name if self._chosen else "none"

    def propose(self, state: DecodingState, budget: int) -> DraftTree:
        """What the chosen drafter proposes; nothing in a plain round."""
        if self._is_plain_due or not (self._pays or self._purse.may_ask):
            return NOTHING
        begin = self._clock()
        promises = [one.promise(state, budget) for one in self._all]
        choice = self._choice(promises)
        self._asking = self._clock() - begin
        if choice is None:
            return NOTHING
        self._chosen, self._promise = self._all[choice], promises[choice]
        return self._chosen.drafter.propose(state, budget)

    def learn(self, tree: DraftTree, path: Sequence[int], step: Step, logits: Tensor) -> None:
        """See `Drafter.learn`."""
        begin = self._clock()
        pace, chosen = self._pace, self._chosen
        behind = pace.since_draft
        pace.since_draft = behind + 1 if chosen is None else 0
        rounds = self._purse.elapse(step.seconds)
        if not (self._asking or self._is_plain_due) and rounds < AT_ONCE:
            return
        tells = chosen is None and (behind >= WARM or (pace.step or SHORT) >= SHORT)
        pace.saw_round(step, is_usual=tells or step.verified > 0)
        if tells:
            pace.saw_plain(step)
        for one in self._all if self._asking else ():
            if one is chosen or one.foresees:
                one.drafter.learn(tree, path, step, logits)
        learning = self._clock() - begin
        if chosen is not None:
            chosen.ledger.record(step, self._promise, learning + self._unpaid)
        self._account(step, learning)
        # The loop asks nobody where there is no room for a draft.
        self._chosen, self._asking = None, 0.0
        self._unpaid = self._clock() - begin - learning if chosen is not None else 0.0

    def _account(self, step: Step, learning: float) -> None:
        if not (plain := self._pace.step):
            return
        self._purse.account(plain)
        if self._chosen is not None:
            self._purse.ask(min((step.seconds + learning) / plain - len(step.tokens), 0.0))
        elif self._asking:
            self._purse.ask((self._asking + learning) / plain)

    @property
    def _is_plain_due(self) -> bool:
        """Whether a plain round is to show what plain decoding takes, for want of such rounds."""
        plain, since = self._pace.plain_rounds, self._pace.since_plain
        return plain < PLAIN_FIRST or (self._pays and since >= min(PLAIN_SOON * plain, PLAIN_EVERY))

    def _choice(self, promises: Sequence[float]) -> int | None:
        """Which of all drafters proposes; None for a plain round."""
        all_of_them = range(len(self._all))
        expected = [
            one.ledger.expected(promise) for one, promise in zip(self._all, promises, strict=True)
        ]
        best = max(all_of_them, key=expected.__getitem__)
        self._pays = expected[best] > PAYS
        if self._pays:
            return best
        for one in all_of_them:
            in_doubt = promises[one] > 1 or not self._all[one].foresees
            if in_doubt and self._all[one].ledger.may_try:
                return one
        return None
