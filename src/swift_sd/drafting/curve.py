"""Seconds of a forward by the number of its rows: what was measured, and for how long it counts."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from statistics import median
from threading import RLock

WELL_KNOWN = 3  # measurements
SAME = 0.005  # of a median: by less it has not changed
# The shape for numbers of rows not tried yet: flat while reading the weights takes longer than
# computing with them, then growing by a share of a step with each row.
SLOPE = 0.12
FRESH = 256  # rounds within which what was measured is not doubted
CONTRADICTED = 1.5  # times quicker than believed: what is as old was measured on a busy machine
# Rounds for which a measurement counts at least; a dear one counts for longer, so that trying its
# rows again takes no more than this share of all time.
LIFETIME, RETRIED = 1024, 0.004


class Curve:
    """Medians of what forwards took, and what they say of other numbers of rows.

    Nothing is known for good. What was measured long ago counts as a single measurement beside new
    ones of as many rows; where one is far quicker than believed, everything as old is dropped; and
    what is never measured again expires. Numbers of rows without a measurement are expected to cost
    what those of their neighbours let expect.

    Args:
        flat: rows up to which a forward is expected to cost what one row costs.
        memory: measurements of a number of rows that count.
        multiples: costs measured beforehand by rows, as multiples of a plain step. Each counts as
            one measurement that was not made lately.
        keep: numbers of rows that are never dropped.
    """

    def __init__(
        self,
        flat: int,
        memory: int,
        multiples: Mapping[int, float] | None = None,
        keep: Container[int] = (),
    ) -> None:
        self._flat, self._memory, self._keep = flat, memory, keep
        self._multiples = dict(multiples or {})
        self._plain = 1.0  # seconds of a plain step
        self._seen: dict[int, deque[float]] = {}
        self._latest: dict[int, float] = {}  # the round in which so many rows were measured last
        self._medians: dict[int, float] = {}
        # Rows and seconds, ascending: replaced together, as another thread may be reading.
        self._known: tuple[tuple[int, float], ...] = ()
        self._answers: dict[int, float] = {}  # given since; a plain round asks for the same often
        self._changing = RLock()  # of responses on several threads
        self._refresh()

    def saw(self, rows: int, seconds: float, now: float = 0.0) -> bool:
        """Count a measurement made in round `now`.

        Returns:
            Whether it contradicts what was believed since long ago, which is dropped then.
        """
        with self._changing:
            is_fresh = self.is_fresh(rows, now)
            believed = None if is_fresh else self.at(rows)
            contradicts = believed is not None and seconds * CONTRADICTED < believed
            if contradicts:
                self._drop(lambda other: not self.is_fresh(other, now))
                self._seen.pop(rows, None)
            elif not is_fresh and rows in self._medians:
                self._seen[rows] = deque([self._medians[rows]], self._memory)
            self._seen.setdefault(rows, deque(maxlen=self._memory)).append(seconds)
            self._latest[rows] = now
            values = [*self._seen[rows]]
            if rows in self._multiples and len(values) < WELL_KNOWN:
                values.append(self._multiples[rows] * self._plain)
            new, before = median(values), self._medians.get(rows, math.inf)
            if len(values) <= WELL_KNOWN or abs(new - before) > SAME * before:
                self._medians[rows] = new
                self._refresh()
            return contradicts

    def measured_before(self, rows: int, seconds: float) -> None:
        """Take a measurement that was not made lately."""
        self._seen[rows], self._medians[rows] = deque([seconds], self._memory), seconds
        self._latest[rows] = -math.inf
        self._refresh()

    @property
    def plain(self) -> float:
        """Seconds of a plain step, by which what was measured beforehand is scaled."""
        return self._plain

    @plain.setter
    def plain(self, seconds: float) -> None:
        with self._changing:
            if abs(seconds - self._plain) > SAME * self._plain:
                self._plain = seconds
                self._refresh()

    def drop_multiples(self) -> None:
        """Forget what was measured beforehand."""
        with self._changing:
            self._multiples = {}
            self._refresh()

    def expire(self, now: float) -> None:
        """Drop what was not measured for so long that trying it again costs next to nothing."""

        def has_expired(rows: int) -> bool:
            age = now - max(self._latest.get(rows, 0.0), 0.0)
            seconds = self._medians.get(rows, self._multiples.get(rows, 0.0) * self._plain)
            return age > max(LIFETIME, (seconds / self._plain - 1) / RETRIED)

        with self._changing:
            self._drop(has_expired)

    def is_fresh(self, rows: int, now: float) -> bool:
        """Whether so many rows were measured within the latest rounds."""
        return now - self._latest.get(rows, -math.inf) <= FRESH

    def has_fresh(self, now: float) -> bool:
        """Whether several rows, however many, were measured within the latest rounds."""
        return any(rows > 1 and self.is_fresh(rows, now) for rows in [*self._latest])

    def knows(self, rows: int) -> bool:
        """Whether so many rows were measured often enough to tell by them how fast things are."""
        return len(self._seen.get(rows, ())) >= WELL_KNOWN

    def at(self, rows: int) -> float | None:
        """Seconds of a forward of `rows` rows; None if nothing is known of any."""
        answers = self._answers  # before what they follow from: that may be newer, never older
        if rows in answers:
            return answers[rows]
        known = self._known
        if not known:
            return None
        # No more than what more rows are well known to take.
        well_known = (s for n, s in known if n > rows and self.knows(n))
        answers[rows] = min(self._read(rows, known), *well_known, math.inf)
        return answers[rows]

    def _drop(self, rejected: Callable[[int], bool]) -> None:
        """Forget the numbers of rows that are `rejected`, whenever they were measured."""
        known = {*self._seen, *self._multiples}
        gone = [rows for rows in known if rows not in self._keep and rejected(rows)]
        for rows in gone:
            for kept in (self._seen, self._latest, self._medians, self._multiples):
                kept.pop(rows, None)
        if gone:
            self._refresh()

    def _refresh(self) -> None:
        scaled = {rows: multiple * self._plain for rows, multiple in self._multiples.items()}
        self._known = tuple(sorted((scaled | self._medians).items()))
        self._answers = {}

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
