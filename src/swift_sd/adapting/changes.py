"""Notices when a share is no longer what it was, and not by chance."""

from __future__ import annotations

import math

FEWEST = 64  # trials before which there is nothing to compare with
MEMORY = 2048.0  # trials after which old ones count half
ODDS = 3.0  # times lower or higher: a change worth noticing
LIMIT = 12.0  # nats of evidence; by chance alone about once in exp(12) trials


class Changes:
    """Two CUSUM tests (Page 1954), for a share that fell and for one that rose.

    Each sums how much better a share with `ODDS` times lower (higher) odds explains what is seen
    than the share so far, starting again from 0 whenever that is negative. The share so far goes on
    being learned, so that a slow drift is no change.
    """

    def __init__(self) -> None:
        self._right = self._of = 0.0
        self._evidence = dict.fromkeys((1 / ODDS, ODDS), 0.0)

    def saw(self, right: int, of: int) -> bool:
        """Count `right` of `of` trials; whether the share has changed. If so, all starts anew."""
        if not 0 <= right <= of:
            raise ValueError(f"{right} of {of} trials")
        if self._of >= FEWEST:
            share = (self._right + 0.5) / (self._of + 1)
            for odds, before in self._evidence.items():
                other = share * odds / (share * odds + 1 - share)
                # What was right came first: a chain ends with what was wrong.
                sum_right = max(before + right * math.log(other / share), 0.0)
                gained = (of - right) * math.log((1 - other) / (1 - share))
                self._evidence[odds] = max(sum_right + gained, 0.0)
        if max(self._evidence.values()) > LIMIT:
            self.restart()
            return True
        fade = 0.5 if self._of + of > MEMORY else 1.0
        self._right, self._of = fade * (self._right + right), fade * (self._of + of)
        return False

    def restart(self) -> None:
        """Forget everything: what is observed is another thing from now on."""
        self._right = self._of = 0.0
        self._evidence = dict.fromkeys(self._evidence, 0.0)
