"""Seconds that draft steps and verifications take, as measured while they are at work."""

from __future__ import annotations

from collections import deque
from statistics import median

import torch

from swift_sd.decoding.trace import Step

MEMORY = 9  # measurements that count
PLAIN_MEMORY = 33  # of plain steps, which everything is judged by
FADE = 0.97  # weight of the rounds before
# The prior for numbers of rows not tried yet: flat while reading the weights takes longer than
# computing with them, then growing by a share of a step with each row. On a CPU the attention of
# each row takes its time from the start, where rows are computed exactly.
FLAT_ROWS = {"cpu": 1, "cuda": 64}
SLOPE = 0.12


class Pace:
    """Medians of recent measurements.

    Args:
        device: decides what is expected of numbers of rows that were never verified.
    """

    def __init__(self, device: torch.device) -> None:
        self._flat = FLAT_ROWS.get(device.type, 1)
        self._verify: dict[int, deque[float]] = {}
        self._draft: deque[float] = deque(maxlen=MEMORY)
        self._plain: deque[float] = deque(maxlen=PLAIN_MEMORY)
        self._tokens = self._seconds = 0.0
        self.plain_rounds = 0  # seen so far
        self.since_plain = 0  # rounds since the last one

    def saw_round(self, step: Step) -> None:
        """Count a round with its verification and the tokens that came of it."""
        self._verify.setdefault(1 + step.verified, deque(maxlen=MEMORY)).append(step.verify)
        self._tokens = FADE * self._tokens + len(step.tokens)
        self._seconds = FADE * self._seconds + step.seconds
        self.since_plain += 1

    def saw_plain(self, seconds: float) -> None:
        """Count a round in which nothing was asked of a drafter."""
        self._plain.append(seconds)
        self.plain_rounds += 1
        self.since_plain = 0

    def saw_draft(self, steps: int, seconds: float) -> None:
        """Count a draft of `steps` forwards."""
        self._draft.append(seconds / steps)

    @property
    def rate(self) -> float:
        """Tokens per second lately; 0 before the first round."""
        return self._tokens / self._seconds if self._seconds else 0.0

    @property
    def step(self) -> float | None:
        """Seconds that a token takes without drafting; None if there was no such round yet."""
        return median(self._plain) if self._plain else None

    @property
    def draft_step(self) -> float | None:
        """Seconds of one step of a draft; None if there was none yet."""
        return median(self._draft) if self._draft else None

    def verify(self, rows: int) -> float | None:
        """Seconds of a verification of `rows` rows; None if there was none yet of any."""
        if not self._verify:
            return None
        seen = sorted(self._verify)
        below = max((n for n in seen if n <= rows), default=None)
        above = min((n for n in seen if n >= rows), default=None)
        if below is not None and above is not None:
            low, high = median(self._verify[below]), median(self._verify[above])
            part = (rows - below) / (above - below) if above > below else 0.0
            return low + part * (max(high, low) - low)
        nearest = below if below is not None else above
        assert nearest is not None
        seconds = median(self._verify[nearest])
        expected = seconds * self._shape(rows) / self._shape(nearest)
        if below is None or len(seen) < 2:
            return expected
        # What more rows have cost so far they will go on to cost.
        first = median(self._verify[seen[0]])
        slope = max(0.0, (seconds - first) / (nearest - seen[0]))
        return max(expected, seconds + slope * (rows - nearest))

    def _shape(self, rows: int) -> float:
        return 1.0 + SLOPE * max(0, rows - self._flat)
