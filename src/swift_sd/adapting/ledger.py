"""What drafting gained of late, drafter by drafter, and what finding out may cost."""

from __future__ import annotations

from swift_sd.decoding.trace import Step
from swift_sd.drafting.curve import FRESH
from swift_sd.drafting.pace import Pace

CREDIT = 2.0  # plain steps that finding out may cost at first
SHARE = 0.004  # of all time, what it may cost in the long run
# A machine whose plain steps have become so many times quicker is another one: losses are forgiven,
# once in so many plain steps.
QUICKER, FORGIVEN_EVERY = 1.5, 512
ASKING = 0.002  # of all time, what asking drafters may cost beyond what it wins
PAYS = 1.03  # times plain decoding's speed; what is less may be noise
FADE = 0.97  # weight of the drafted rounds before
TRUST, FORESIGHT = 4.0, 16.0  # in promises made from costs alone, and from what is foreseen
OUTLIER = 1.5  # times its usual seconds, beyond which a verification says nothing
# Plain steps that a round, and asking, may seem to cost: more, and the machine stood still.
STALL, ASKED_MOST = 16.0, 4.0
PROBATION = 8  # rounds of a drafter that is judged anew, of which the losses are those of a trial


class Purse:
    """What finding out may cost, and did, over all drafters and responses; in plain steps."""

    def __init__(self) -> None:
        self._elapsed = self._lost = self._asked = 0.0
        self._seconds, self._rounds = 0.0, 0  # not accounted for yet
        self._slowest = 0.0  # seconds that a plain step has taken since something was lost
        self._forgiven = 0.0  # plain steps that had gone by when a loss was forgiven last

    def elapse(self, seconds: float) -> int:
        """A round went by; how many did since time was accounted for."""
        self._seconds, self._rounds = self._seconds + seconds, self._rounds + 1
        return self._rounds

    def account(self, plain: float) -> None:
        """Count the time that went by, in plain steps of so many seconds.

        If those are much quicker than they were since a trial failed, a load has gone, and what
        did not pay then may do so now.
        """
        self._elapsed += self._seconds / plain
        self._seconds, self._rounds = 0.0, 0
        self._slowest = max(self._slowest, plain)
        if plain * QUICKER < self._slowest and self._elapsed > self._forgiven + FORGIVEN_EVERY:
            self._lost = min(self._lost, self._limit - CREDIT)
            self._slowest, self._forgiven = plain, self._elapsed

    def lose(self, cost: float) -> None:
        """A trial cost so many plain steps more than its tokens were worth."""
        self._lost, self._slowest = self._lost + cost, 0.0

    def ask(self, cost: float) -> None:
        """Drafters were asked what they promise; below 0 if a draft came of it that won time."""
        self._asked = max(self._asked + min(cost, ASKED_MOST), 0.0)

    @property
    def may_ask(self) -> bool:
        """Whether that may be done again: where a step takes a millisecond, it is no trifle."""
        return self._asked <= max(CREDIT, ASKING * self._elapsed)

    @property
    def may_lose(self) -> bool:
        """Whether there may be another trial. What it will cost is not known before."""
        return self._lost < self._limit

    @property
    def _limit(self) -> float:
        return max(CREDIT, SHARE * self._elapsed)


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
        self._probation = 0  # rounds from now on of which all losses are the purse's
        self._latest = self._pace.rounds  # when there was one last

    def renew(self) -> bool:
        """Forget what is known if it is old, before a trial; whether it was."""
        is_old = self._pace.rounds - self._latest > FRESH
        if is_old:
            self.forget()
            self._probation = PROBATION
        return is_old

    def expected(self, promise: float) -> float:
        """The speed that such a promise, a multiple of plain decoding's, comes down to."""
        return promise * self._tokens / self._promised

    @property
    def may_try(self) -> bool:
        """Whether it may be found out again. Plain rounds in between tell what is true of late."""
        return not self._pace.since_plain and self._purse.may_lose

    def record(self, step: Step, promise: float, learning: float = 0.0) -> None:
        """Count a round in which this drafter proposed and had promised such a speed.

        Args:
            learning: seconds that drafters took to learn from it, which plain decoding need not.
        """
        plain, verify = self._pace.step, self._pace.verify(1 + step.verified)
        if not plain or not verify:
            return
        seconds = step.seconds + learning - max(step.verify - OUTLIER * verify, 0.0)
        cost = min(seconds / plain, STALL)
        # Noise is not to win back what was lost.
        if self.expected(promise) <= PAYS or self._probation:
            self._purse.lose(max(cost - len(step.tokens), 0.0))
        self._probation = max(self._probation - 1, 0)
        if promise:  # of nothing, nothing can be learned
            self._tokens = FADE * self._tokens + len(step.tokens)
            self._promised = FADE * self._promised + promise * cost
        self._latest = self._pace.rounds
