"""What bounds a connection: how much it may bring, and how slow it may be."""

from __future__ import annotations

import asyncio
import logging

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from swift_sd.serve.failures import ApiError
from swift_sd.serve.limits import Limits

log = logging.getLogger(__name__)
PATIENCE = 4  # times the largest body; so much more is read, and forgotten, before the refusal


class Unread(Exception):  # noqa: N818 - what became of the answer
    """Raised inside the app when its client takes nothing more."""


class Transfer:
    """ASGI middleware: refuses large bodies, and leaves clients that do not read or write.

    Args:
        app: what is behind it.
        limits: bytes and seconds.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on within the limits."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sent(message: Message) -> None:
            try:
                async with asyncio.timeout(self._limits.transfer):
                    await send(message)
            except TimeoutError:
                raise Unread from None

        try:
            body = await self._body(scope, receive)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def received() -> Message:
            return unread.pop() if unread else await receive()

        try:
            await self._app(scope, received, sent)
        except Unread:  # the server closes the connection of an answer that does not end
            log.warning("a client did not read its answer; the connection is closed")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """All of the request's body.

        Raises:
            ApiError: 413, it is too large; 408, it came too slowly; 400, it did not come.
        """
        most = self._limits.body
        length = Headers(scope=scope).get("content-length", "0")
        size = int(length) if length.isdecimal() else 0
        parts: list[bytes] = []
        read = 0
        try:
            async with asyncio.timeout(self._limits.transfer):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "the connection was closed within the request")
                    body: bytes = message.get("body", b"")
                    read += len(body)
                    size = max(size, read)
                    if size <= most:
                        parts.append(body)
                    # Who is cut off while sending may not get to read why.
                    is_over = not message.get("more_body", False)
                    if size > most and (is_over or read > PATIENCE * most):
                        raise _too_large(most)
                    if is_over:
                        return b"".join(parts)
        except TimeoutError:
            raise ApiError(408, "the request's body came too slowly") from None


def _too_large(most: int) -> ApiError:
    return ApiError(
        413, f"the request is larger than {most} bytes; shorten it", headers={"Connection": "close"}
    )
