"""Who is let in where API keys are asked for."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from swift_sd.serve.failures import ApiError

OPEN = {"/", "/health", "/openapi.json"}
OPEN_FOLDER = "/static/"


class Keys:
    """ASGI middleware: asks for a key on all other paths, before anything of a body is read.

    Args:
        app: what is behind it.
        api_keys: one of them has to come as a bearer token, if there are any.
    """

    def __init__(self, app: ASGIApp, api_keys: Sequence[str]) -> None:
        self._app = app
        self._expected = [f"Bearer {key}".encode() for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it with 401."""
        if scope["type"] == "http" and not self._is_let_in(scope):
            refusal = ApiError(
                401,
                "the API key is missing or wrong; send it as Authorization: Bearer …",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
            await refusal.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_let_in(self, scope: Scope) -> bool:
        path: str = scope["path"]
        if not self._expected or path in OPEN or path.startswith(OPEN_FOLDER):
            return True
        given = Headers(scope=scope).get("authorization", "").encode()
        known = [hmac.compare_digest(given, one) for one in self._expected]  # all of them, always
        return any(known)
