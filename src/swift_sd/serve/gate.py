"""How many requests are inside the server."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from swift_sd.serve.failures import ApiError

MEMORY = 0.8  # of what is remembered of a request's seconds, when the next one leaves
SMALL = 2**15  # bytes of a body that always fits
LONGEST = 60  # seconds that a client is told to wait


class Gate:
    """Lets in as many requests as there are places; the others are told when to come again.

    A client that has nothing inside finds a place even then, as long as there are not twice as
    many: one client alone cannot lock the others out. Used on one thread.

    Args:
        places: requests inside at one time.
        bytes: of bodies that wait to be read, all together.
    """

    def __init__(self, places: int, bytes: int) -> None:
        self._most_bytes = bytes
        self._bytes: Counter[str] = Counter()  # by client
        self._places = places
        self._inside: Counter[str] = Counter()  # by client
        self._seconds = 0.0  # that a request was inside, lately

    @contextmanager
    def passed(self, client: str) -> Iterator[None]:
        """Hold a place for `client`.

        Raises:
            ApiError: 429, there is none.
        """
        inside = self._inside.total()
        if inside >= (self._places if self._inside[client] else 2 * self._places):
            seconds = min(max(math.ceil(self._seconds / self._places), 1), LONGEST)
            raise ApiError(
                429,
                f"{inside} requests are being answered or wait; try again in {seconds} s",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(seconds)},
            )
        self._inside[client] += 1
        begin = time.monotonic()
        try:
            yield
        finally:
            self._inside[client] -= 1
            self._inside += Counter()  # forgets who has left
            spent = time.monotonic() - begin
            self._seconds = MEMORY * self._seconds + (1 - MEMORY) * spent

    @contextmanager
    def stored(self, client: str) -> Iterator[Callable[[int], None]]:
        """A function that is told how many bytes a body has or will have.

        It raises an ApiError, 429, where they do not fit. A client of whom nothing else is stored
        has twice the room.
        """
        mine = 0

        def store(size: int) -> None:
            nonlocal mine
            total = self._bytes.total() - mine + size
            most = self._most_bytes * (1 if self._bytes[client] > mine else 2)
            if size > SMALL and total > most:
                raise ApiError(
                    429,
                    "too many large requests wait to be read; try again in 1 s",
                    code="rate_limit_exceeded",
                    headers={"Retry-After": "1"},
                )
            self._bytes[client] += size - mine
            mine = size

        try:
            yield store
        finally:
            self._bytes[client] -= mine
            self._bytes += Counter()
