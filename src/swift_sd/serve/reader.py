"""Work on requests that would hold up the event loop: parsing them, and reading their prompts."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
SHORT = 2**15  # bytes


class Reader:
    """Two threads, one for short requests and one for long ones, which clients take in turn.

    A client with a hundred long prompts delays another one's long prompt by one of them, and short
    ones not at all. Used on one event loop.
    """

    def __init__(self) -> None:
        self._short, self._long = _Lane("swift-reader-short"), _Lane("swift-reader-long")

    async def run(self, client: str, size: int, work: Callable[[], T]) -> T:
        """Do `work` on a thread when it is this client's turn.

        Args:
            client: whose turn it takes.
            size: bytes that `work` is about.
            work: dropped at once if the caller is cancelled while it waits.
        """
        return await (self._short if size <= SHORT else self._long).run(client, work)

    def close(self) -> None:
        """Begin nothing more."""
        for lane in (self._short, self._long):
            lane.close()


class _Lane:
    """One thread. What waits for it waits here: an executor would keep what was cancelled."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, name)
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._is_busy = False

    async def run(self, client: str, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        await self._turn(loop, client)

        def done(_: Future[T]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._pass_on)

        running = self._thread.submit(work)
        # Not when the caller goes: the thread is busy until the work ends.
        running.add_done_callback(done)
        return await asyncio.wrap_future(running)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _turn(self, loop: asyncio.AbstractEventLoop, client: str) -> None:
        if not self._is_busy:
            self._is_busy = True
            return
        ticket: asyncio.Future[None] = loop.create_future()
        self._waiting.setdefault(client, deque()).append(ticket)
        try:
            await ticket
        except asyncio.CancelledError:
            if not ticket.cancelled():  # called up while leaving
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """Call up the next one who still waits."""
        while self._waiting:
            client, tickets = self._waiting.popitem(last=False)
            while tickets and tickets[0].done():  # its caller has gone
                tickets.popleft()
            if tickets:
                tickets.popleft().set_result(None)
                if tickets:
                    self._waiting[client] = tickets  # after all other clients
                return
        self._is_busy = False
