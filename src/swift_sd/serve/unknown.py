"""What becomes of fields that the server does not know."""

from __future__ import annotations

import logging

from swift_sd.serve.failures import ApiError
from swift_sd.serve.requests import Ask

log = logging.getLogger(__name__)
HEADER = "x-ignored-fields"
MOST_TOLD = 1000  # different ones in the log; clients can make up any number


class UnknownFields:
    """Ignores them, and says so; or refuses them.

    Args:
        refused: whether a request that has some is refused.
    """

    def __init__(self, refused: bool) -> None:
        self._refused = refused
        self._told: set[str] = set()

    def headers(self, ask: Ask) -> dict[str, str]:
        """Headers of the answer that name what is ignored; in the log each name stands once.

        Raises:
            ApiError: 400, there are some, and they are refused.
        """
        names = ask.unknown
        if not names:
            return {}
        if self._refused:
            raise ApiError(400, f"{names[0]} is not supported; leave it out", param=names[0])
        if (fresh := set(names) - self._told) and len(self._told) < MOST_TOLD:
            self._told |= fresh
            log.warning("ignored in requests: %s", ", ".join(sorted(fresh)))
        return {HEADER: ", ".join(names)}
