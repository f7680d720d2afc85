"""Connections: what a request may bring before its body, and how long one may stay idle."""

from __future__ import annotations

import asyncio
import math
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from swift_sd.serve.failures import ApiError

LARGEST = 2**16  # bytes of a request that are not its body
FRAMING = 8  # bytes that may come for each byte of a body sent in chunks
LINGER = 2.0  # seconds in which a refused client may read why


class Connection(HttpToolsProtocol):
    """uvicorn's protocol on httptools with the bounds it lacks.

    - Headers, trailers and the framing of chunks are bounded: 431.
    - A request has to begin, and its headers have to be there, within `timeout_keep_alive` seconds
      of the connection's start or of the answer before it.
    - Where there are `most` connections, a new one ends the one that has been idle for longest.

    httptools rather than h11, which takes 0.4 s of the event loop for 240 KB of one-byte chunks.
    """

    def __init__(self, *args: Any, most: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._most = most
        self._deadline: asyncio.TimerHandle | None = None  # while no request is being answered
        self._surplus = 0  # bytes of this request that are not its body
        self._is_large = self._is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start waiting for a request; make room if there is none."""
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > self._most:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._rest()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse it, unless the client was refused and is only sending on."""
        if self._is_refused:
            return
        self._surplus += len(data)
        super().data_received(data)
        if self._surplus > LARGEST and not self._is_refused:
            self._is_large = True
            self.send_400_response("")
        self._watch()

    def on_headers_complete(self) -> None:
        """Begin to answer, unless what came at once was too much."""
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > LARGEST:
            self._is_large = True
            raise ValueError("headers too large")  # ends the parsing: send_400_response
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Bytes of a body may be many, if they do not come one by one."""
        self._surplus = max(0, self._surplus - FRAMING * len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """What follows is another request."""
        self._surplus = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be parsed, in the form of all other errors."""
        self._is_refused = True
        if self._is_busy:  # the client expects something else at this place
            self.transport.close()
            return
        if self._is_large:
            refusal = ApiError(431, f"headers may have {LARGEST} bytes together; send fewer")
        else:
            refusal = ApiError(400, msg)
        answer = refusal.response()
        status = HTTPStatus(answer.status_code)
        head = [f"HTTP/1.1 {status} {status.phrase}".encode(), b"connection: close"]
        head += [name + b": " + value for name, value in answer.raw_headers]
        self.transport.write(b"\r\n".join([*head, b"", bytes(answer.body)]))
        # A connection that is closed while its client sends is reset, and the answer lost.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._rest()
        self._deadline = self.loop.call_later(LINGER, self.transport.close)

    @property
    def _is_busy(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _watch(self) -> None:
        """Have a deadline while no request is being answered."""
        if self._is_busy:
            self._rest()
        elif self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _rest(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _make_room(self) -> None:
        """End the connection that has been idle for longest; this one if no other is."""
        idle = (one for one in self.connections if isinstance(one, Connection) and one._deadline)
        oldest = min(idle, key=Connection._ends)
        oldest._rest()  # else it would be chosen again before it is gone
        oldest.transport.close()

    def _ends(self) -> float:
        return self._deadline.when() if self._deadline is not None else math.inf
