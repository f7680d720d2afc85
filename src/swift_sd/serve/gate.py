"""How many requests are inside the server."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from swift_sd.serve.failures import ApiError

MEMORY = 0.8  # of what is remembered of a request's seconds, when the next one leaves
LONGEST = 60  # seconds that a client is told to wait


class Gate:
    """Lets in as many requests as there are places; the others are told when to come again.

    Args:
        places: requests inside at one time. Used on one thread.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._inside = 0
        self._seconds = 0.0  # that a request was inside, lately

    @property
    def inside(self) -> int:
        """How many requests are inside."""
        return self._inside

    @contextmanager
    def passed(self) -> Iterator[None]:
        """Hold a place.

        Raises:
            ApiError: 429, there is none.
        """
        if self._inside >= self._places:
            seconds = min(max(math.ceil(self._seconds / self._places), 1), LONGEST)
            raise ApiError(
                429,
                f"{self._inside} requests are being answered or wait; try again in {seconds} s",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(seconds)},
            )
        self._inside += 1
        begin = time.monotonic()
        try:
            yield
        finally:
            self._inside -= 1
            spent = time.monotonic() - begin
            self._seconds = MEMORY * self._seconds + (1 - MEMORY) * spent
