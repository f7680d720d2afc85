"""Paths as clients put them together."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send


class Paths:
    """ASGI middleware: below /v1, several slashes are one, and one at the end is none.

    A client joins what it was told, `http://host/v1/`, to what it asks for, `/models`.

    Args:
        app: what is behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http":
            path = re.sub("/+", "/", scope["path"])
            if path.startswith("/v1/"):
                scope = {**scope, "path": path.rstrip("/")}
        await self._app(scope, receive, send)
