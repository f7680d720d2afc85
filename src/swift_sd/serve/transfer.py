"""How slowly an answer may be read."""

from __future__ import annotations

import asyncio
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)


class Unread(Exception):  # noqa: N818 - what became of the answer
    """Raised inside the app when its client takes nothing more."""


class Transfer:
    """ASGI middleware: leaves clients that do not read their answers.

    Args:
        app: what is behind it.
        patience: seconds that sending a piece of an answer may take.
    """

    def __init__(self, app: ASGIApp, patience: float) -> None:
        self._app = app
        self._patience = patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on within the limits."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sent(message: Message) -> None:
            try:
                async with asyncio.timeout(self._patience):
                    await send(message)
            except TimeoutError:
                raise Unread from None

        try:
            await self._app(scope, receive, sent)
        except Unread:  # the server closes the connection of an answer that does not end
            log.warning("a client did not read its answer; the connection is closed")
