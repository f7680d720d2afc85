"""How many requests are inside the server."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from swift_sd.serve.failures import ApiError

MEMORY = 0.8  # of what is remembered of a request's seconds, when the next one leaves
LONGEST = 60  # seconds that a client is told to wait


class Gate:
    """Lets in as many requests as there are places; the others are told when to come again.

    A client that has nothing inside finds a place even then, as long as there are not twice as
    many: one client alone cannot lock the others out. Used on one thread.

    Args:
        places: requests inside at one time.
    """

    def __init__(self, places: int) -> None:
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
