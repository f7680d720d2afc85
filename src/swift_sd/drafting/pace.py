"""Seconds that draft steps and verifications take, as measured while they are at work."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch

from swift_sd.decoding.trace import Step

MEMORY = 33  # measurements of the target that count
DRAFT_MEMORY = 9  # of a draft, which may become another one
WELL_KNOWN = 3  # measurements
SAME = 0.005  # of a median: by less it has not changed
DRIFT_MEMORY = 9  # rounds that tell how fast the machine is now: fewer, or they would not notice
SETTLED = 5  # such rounds that are supposed to have shown no drift at first
FADE = 0.97  # weight of the rounds before
# The prior for numbers of rows not tried yet: flat while reading the weights takes longer than
# computing with them, then growing by a share of a step with each row. On a CPU the attention of
# each row takes its time from the start, where rows are computed exactly.
FLAT_ROWS = {"cpu": 1, "cuda": 64}
SLOPE = 0.12


@dataclass(frozen=True)
class Prior:
    """Costs measured before the first round, each counting as one measurement.

    Attributes:
        verify: seconds of a forward of the target by its rows; of one row it is a plain step.
        draft: seconds of a forward of the draft by its rows.
    """

    verify: Mapping[int, float] = field(default_factory=dict)
    draft: Mapping[int, float] = field(default_factory=dict)


class Curve:
    """Seconds of a forward by the number of its rows: medians, and what they say of other numbers.

    Args:
        flat: rows up to which a forward is expected to cost what one row costs.
        memory: measurements of a number of rows that count.
        known: seconds measured before, by rows.
    """

    def __init__(self, flat: int, memory: int, known: Mapping[int, float]) -> None:
        self._flat, self._memory = flat, memory
        self._seen: dict[int, deque[float]] = {}
        # Rows that were measured, ascending, and the median of each: replaced together, as another
        # thread may be reading.
        self._medians: dict[int, float] = {}
        self._answers: dict[int, float] = {}  # given since; a plain round asks for the same often
        for rows, seconds in known.items():
            self.saw(rows, seconds)

    def saw(self, rows: int, seconds: float) -> None:
        """Count a measurement."""
        if rows not in self._seen:
            self._seen[rows] = deque(maxlen=self._memory)
        self._seen[rows].append(seconds)
        now, before = median(tuple(self._seen[rows])), self._medians.get(rows, math.inf)
        if len(self._seen[rows]) > WELL_KNOWN and abs(now - before) <= SAME * before:
            return
        self._medians = dict(sorted({**self._medians, rows: now}.items()))
        self._answers = {}

    def knows(self, rows: int) -> bool:
        """Whether so many rows were measured often enough to tell by them how fast things are."""
        return len(self._seen.get(rows, ())) >= WELL_KNOWN

    def at(self, rows: int) -> float | None:
        """Seconds of a forward of `rows` rows; None if there was none yet of any."""
        answers = self._answers  # before what they follow from: that may be newer, never older
        if rows in answers:
            return answers[rows]
        known = tuple(self._medians.items())
        if not known:
            return None
        # No more than what more rows are well known to take.
        well_known = (s for n, s in known if n > rows and self.knows(n))
        answers[rows] = min(self._read(rows, known), *well_known, math.inf)
        return answers[rows]

    def _read(self, rows: int, known: Sequence[tuple[int, float]]) -> float:
        """Between the medians of two numbers of rows, or beyond them all."""
        place = bisect_left(known, rows, key=lambda one: one[0])
        if place < len(known) and known[place][0] == rows:
            return known[place][1]
        if 0 < place < len(known):
            (below, low), (above, high) = known[place - 1 : place + 1]
            return low + (rows - below) / (above - below) * (max(high, low) - low)
        nearest, seconds = known[0] if place == 0 else known[-1]
        expected = seconds * self._shape(rows) / self._shape(nearest)
        if place == 0 or len(known) < 2:
            return expected
        # What more rows have cost so far they will go on to cost.
        slope = max(0.0, (seconds - known[0][1]) / (nearest - known[0][0]))
        return max(expected, seconds + slope * (rows - nearest))

    def _shape(self, rows: int) -> float:
        return 1.0 + SLOPE * max(0, rows - self._flat)


class Pace:
    """What rounds cost, as the machine runs now.

    A machine's speed drifts, for drafts and plain steps alike. So measurements are kept as they
    would be at a common speed, and how fast the machine is now is told by verifications of late
    against what those of as many rows took before.

    Args:
        device: decides what is expected of numbers of rows that were never tried.
        prior: costs known beforehand.
    """

    def __init__(self, device: torch.device, prior: Prior | None = None) -> None:
        prior, flat = prior or Prior(), FLAT_ROWS.get(device.type, 1)
        self._verify = Curve(flat, MEMORY, prior.verify)
        self._draft = Curve(flat, DRAFT_MEMORY, prior.draft)
        self._overheads: deque[float] = deque(maxlen=MEMORY)  # of plain rounds, beside the forward
        self._overhead = 0.0  # their median
        self._drift: deque[float] = deque([1.0] * SETTLED, maxlen=DRIFT_MEMORY)
        self._slowness = 1.0  # of the machine now
        self._tokens = self._seconds = 0.0
        self.plain_rounds = int(1 in prior.verify)  # measured so far
        self.since_plain = 0  # rounds since the last one, that were counted
        self.since_draft = math.inf  # rounds since the last one with a draft, of any response

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
        self._verify.saw(rows, seconds / self._slowness)

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
        self._draft.saw(rows, seconds / self._slowness)

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
