"""Seconds that draft steps and verifications take, as measured while they are at work."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

import torch

from swift_sd.decoding.trace import Step
from swift_sd.drafting.curve import Curve

MEMORY = 33  # measurements of the target that count
DRAFT_MEMORY = 9  # of a draft, which may become another one
DRIFT_MEMORY = 9  # rounds that tell how fast the machine is now: fewer, or they would not notice
SETTLED = 5  # such rounds that are supposed to have shown no drift at first
FADE = 0.97  # weight of the rounds before
# Rows that are expected to cost what one does; see `Curve`. On a CPU each row's attention takes its
# time from the start, where rows are computed exactly.
FLAT_ROWS = {"cpu": 1, "cuda": 64}
EXPIRY = 64  # rounds between looks at what has expired


@dataclass(frozen=True)
class Prior:
    """Costs measured before the first round, all of them in turn, so that their ratios are true.

    Attributes:
        verify: seconds of a forward of the target by its rows; of one row it is a plain step,
            without which nothing of the rest is believed.
        draft: seconds of a forward of the draft by its rows.
    """

    verify: Mapping[int, float] = field(default_factory=dict)
    draft: Mapping[int, float] = field(default_factory=dict)


class Pace:
    """What rounds cost, as the machine runs now.

    A machine's speed drifts, for drafts and plain steps alike. So measurements are kept as they
    would be at a common speed, and how fast the machine is now is told by verifications of late
    against what those of as many rows took before. What was measured beforehand counts by its
    ratio to a plain step, until a measurement contradicts it.

    Args:
        device: decides what is expected of numbers of rows that were never tried.
        prior: costs known beforehand.
    """

    def __init__(self, device: torch.device, prior: Prior | None = None) -> None:
        if prior is None or not prior.verify.get(1):  # nothing can be scaled
            prior = Prior()
        flat, plain = FLAT_ROWS.get(device.type, 1), prior.verify.get(1, 1.0)
        several = {rows: seconds for rows, seconds in prior.verify.items() if rows > 1}
        self._verify, self._draft = (
            Curve(flat, memory, {rows: seconds / plain for rows, seconds in part.items()}, keep)
            for part, memory, keep in ((several, MEMORY, (1,)), (prior.draft, DRAFT_MEMORY, ()))
        )
        self._overheads: deque[float] = deque(maxlen=MEMORY)  # of plain rounds, beside the forward
        self._overhead = 0.0  # their median
        self._drift: deque[float] = deque([1.0] * SETTLED, maxlen=DRIFT_MEMORY)
        self._slowness = 1.0  # of the machine now
        self._tokens = self._seconds = 0.0
        self.plain_rounds = int(1 in prior.verify)  # measured so far
        self.since_plain = 0  # rounds since the last one, that were counted
        self.since_draft = math.inf  # rounds since the last one with a draft, of any response
        self.rounds = 0  # that went by, of all responses
        if 1 in prior.verify:
            self._verify.measured_before(1, plain)
            self._scale()

    def elapse(self) -> None:
        """A round goes by, whether or not it will be counted."""
        self.rounds += 1
        if self.rounds % EXPIRY == 0:
            self._verify.expire(self.rounds)
            self._draft.expire(self.rounds)

    @property
    def is_doubtful(self) -> bool:
        """Whether nothing is known from the latest rounds of what several rows cost."""
        return not self._verify.has_fresh(self.rounds)

    def saw_round(self, step: Step, *, is_usual: bool = True) -> None:
        """Count a round with its verification and the tokens that came of it.

        Args:
            is_usual: whether the verification took what those of as many rows take.
        """
        if is_usual:
            self._saw_verification(1 + step.verified, step.verify)
        self._tokens = FADE * self._tokens + len(step.tokens)
        self._seconds = FADE * self._seconds + step.seconds
        self.since_plain += 1

    def _saw_verification(self, rows: int, seconds: float) -> None:
        if self._verify.knows(rows) and (expected := self._verify.at(rows)):
            self._drift.append(seconds / expected)
            self._slowness = median(self._drift) or 1.0
        self._count(self._verify, rows, seconds)
        if rows == 1:
            self._scale()

    def _count(self, curve: Curve, rows: int, seconds: float) -> None:
        """A prior of which a part is far from true was not measured on this machine as it is."""
        if curve.saw(rows, seconds / self._slowness, self.rounds):
            self._verify.drop_multiples()
            self._draft.drop_multiples()

    def _scale(self) -> None:
        plain = self._verify.at(1)
        if plain:
            self._verify.plain = self._draft.plain = plain

    def saw_plain(self, step: Step) -> None:
        """Count a round in which nothing was drafted, after `saw_round`.

        The time that drafters took to say so is none of plain decoding's.
        """
        self._overheads.append((step.seconds - step.draft - step.verify) / self._slowness)
        self._overhead = median(self._overheads)
        self.plain_rounds += 1
        self.since_plain = 0

    def saw_draft(self, rows: int, seconds: float) -> None:
        """Count a forward of the draft over so many rows."""
        self._count(self._draft, rows, seconds)

    @property
    def rate(self) -> float:
        """Tokens per second lately; 0 before the first round."""
        return self._tokens / self._seconds if self._seconds else 0.0

    @property
    def step(self) -> float | None:
        """Seconds that a token takes without drafting; None if there was no such round yet."""
        forward = self.verify(1)
        if forward is None or not self.plain_rounds:
            return None
        return forward + self._overhead * self._slowness

    @property
    def draft_step(self) -> float | None:
        """Seconds of one step of a draft; None if there was none yet."""
        return self.draft(1)

    def draft(self, rows: int) -> float | None:
        """Seconds of a forward of the draft over `rows` rows; None if there was none yet of any."""
        seconds = self._draft.at(rows)
        return None if seconds is None else seconds * self._slowness

    def verify(self, rows: int) -> float | None:
        """Seconds of a verification of `rows` rows; None if there was none yet of any."""
        seconds = self._verify.at(rows)
        return None if seconds is None else seconds * self._slowness
