"""What the search may take of the time: more where more is to be won, little once it is settled."""

from __future__ import annotations

from collections import deque

from swift_sd.decoding.trace import Step
from swift_sd.drafting.pace import Pace

WINDOW = 32  # latest tokens to score on (SWIFT, section 5.1)
CHEAP = 2.0  # plain steps that reading a window may take
SHARE = 0.004  # of all time, what the search may take,
# or as large a share as the gain in sight, at most this one: it pays where a stream goes on for as
# long as it has.
MOST = 0.06
# What the first look may take: of all time, and of the time that drafts have won.
START, STAKE = 0.02, 0.12
# Of the time since the latest score, what another one may take where the search has ended: a stream
# may have changed in a way that drafts which skip nothing cannot notice.
PROBE = 0.002
DOUBT = 0.01  # of all time, for looking whether a set that wins is of use for an unusual prompt
# Of late, what scores may take at most: what was saved up long ago is not spent on one answer.
LATELY, FADE = 0.1, 0.98  # the weight of rounds before


class Allowance:
    """Seconds that went by, that drafts won and that the search took, over all responses.

    Args:
        pace: what rounds cost.
        eager: whether the search may take whatever it wants.
    """

    def __init__(self, pace: Pace, *, eager: bool) -> None:
        self._pace, self._eager = pace, eager
        self._elapsed = self._won = self._spent = self._doubted = 0.0
        self._late = self._late_spent = 0.0  # the same, of late
        self._since = 0.0  # since the latest score
        self._rounds: deque[Step] = deque()  # not accounted for yet
        # Of the latest score; before there is one, of the first look, which takes about as long.
        self._latest: float | None = None

    def elapse(self, step: Step) -> None:
        """Count a round, or the reading of a prompt, which plain decoding does as well."""
        self._rounds.append(step)

    def spend(self, seconds: float, *, scored: bool, doubted: bool) -> None:
        """Count what the search took.

        Args:
            scored: whether for a score, rather than for a first look.
            doubted: whether it was paid for by what doubts may take.
        """
        self._account()
        self._late_spent += seconds
        if scored or self._latest is None:
            self._latest = seconds
        if scored:
            self._since = 0.0
        if doubted:
            self._doubted += seconds
        else:
            self._spent += seconds

    def affords_start(self, promise: float, needed: float) -> bool:
        """Whether a search may begin.

        Args:
            promise: multiple of plain decoding's speed to hope for.
            needed: seconds of its first look.
        """
        self._account()
        return self._affords(needed, max(START, min(promise - 1, MOST)), STAKE)

    def affords_score(self, hope: float) -> bool:
        """Whether a search may go on that hopes for this multiple of the speed there is."""
        self._account()
        is_much = self._late_spent > LATELY * self._late
        affordable = self._affords(self._score, min(hope - 1, MOST), 0.0)
        return affordable and (self._eager or not is_much)

    @property
    def affords_probe(self) -> bool:
        """Whether a search that has ended may score a set, to see whether it is still right."""
        self._account()
        is_due = not self._eager and self._score <= PROBE * self._since
        return is_due and self.affords_score(1.0)

    @property
    def affords_doubt(self) -> bool:
        """Whether a set may be scored only to see whether it is of use for a prompt."""
        if self._eager or not self._pace.step:
            return self._eager
        self._account()
        most = min(DOUBT * self._elapsed, STAKE * self._won)
        return self._doubted + self._score <= most

    def _affords(self, needed: float, share: float, stake: float) -> bool:
        """Whether such shares, of all time and of the time won, leave so many seconds."""
        if self._eager or not self._pace.step:
            return self._pace.step is not None
        most = max(share, SHARE) * self._elapsed + stake * max(self._won, 0.0)
        return self._spent + needed <= most

    def _account(self) -> None:
        """Together, and not round by round: where a step takes a millisecond, it is no trifle."""
        plain = self._pace.step or 0.0
        while self._rounds:
            step = self._rounds.popleft()
            seconds = step.seconds
            self._elapsed += seconds
            self._since += seconds
            self._late = FADE * self._late + seconds
            self._late_spent *= FADE
            if not step.prefill:  # what tokens would have cost without drafts, less what they did
                self._won += len(step.tokens) * plain - seconds

    @property
    def _score(self) -> float:
        """What a score is expected to take."""
        return self._latest or CHEAP * (self._pace.verify(WINDOW) or 0.0)
