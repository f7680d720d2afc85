"""Whose step comes next."""

from __future__ import annotations

from collections.abc import Iterable

MOST = 256  # clients whose use of time is remembered


class Turns:
    """Clients share the engine's time equally, however many answers each has in progress.

    Start-time fair queueing (Goyal et al. 1996): each client has a clock that its steps advance by
    the seconds they take, and the one that is furthest behind goes next. Who comes starts at the
    time of those who are there: nobody saves time up by staying away, and nobody loses what was
    used by leaving for a moment. Not thread-safe.
    """

    def __init__(self) -> None:
        self._clocks: dict[str, float] = {}  # who was served last comes last
        self._now = 0.0  # of the client that was served last, before its step

    def next(self, clients: Iterable[str]) -> str:
        """Who goes next of `clients`, which have something to do; of equals who is new.

        Raises:
            ValueError: there are none.
        """
        clocks = {client: max(self._clocks.get(client, 0.0), self._now) for client in clients}
        chosen = min(clocks, key=lambda client: (clocks[client], client in self._clocks))
        self._now = clocks[chosen]
        return chosen

    def spend(self, client: str, seconds: float) -> None:
        """`client` had a step that took so long."""
        begin = max(self._clocks.pop(client, 0.0), self._now)
        self._clocks = {one: time for one, time in self._clocks.items() if time >= self._now}
        self._clocks[client] = begin + seconds
        if len(self._clocks) > MOST:
            del self._clocks[next(iter(self._clocks))]
