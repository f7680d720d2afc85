"""Connections: what a request may bring before its body, and how long one may stay idle."""

from __future__ import annotations

import asyncio
import math
import time
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from swift_sd.serve.failures import ApiError

LARGEST = 2**16  # bytes of a request that are not its body
FIELD = 32  # bytes that each header counts for besides its own, as in HTTP/2
CHUNKS = 4096  # of a body, which may be small; all others have this many bytes on average:
CHUNK = 64
PIPELINED = 16  # requests sent before the first of them is answered
LINGER = 2.0  # seconds in which a refused client may read why


class Connection(HttpToolsProtocol):
    """uvicorn's protocol on httptools with the bounds it lacks.

    - Headers, trailers, and how finely a body is cut into chunks are bounded.
    - A request has to begin, and its headers have to be there, within `timeout_keep_alive` seconds
      of the connection's start or of the answer before it.
    - Where there are `most` connections, a new one ends the one that has been idle for longest; if
      none is idle, the one whose client has not read for longest.

    httptools rather than h11, whose parsing takes the event loop 30 to 70 times as long.
    """

    def __init__(self, *args: Any, most: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._most = most
        self._deadline: asyncio.TimerHandle | None = None  # while no request is being answered
        self._idle_since = 0.0  # finer than the loop's clock, which may stand for a millisecond
        self._unread_since = math.inf  # while its client leaves too much of an answer unread
        self._is_ended = False
        self._surplus = 0  # bytes of this request, less two for each one of its body
        self._head = self._body = self._chunks = 0  # bytes of headers and body; pieces of it
        self._is_large = self._is_refused = False
        self._unanswered: list[RequestResponseCycle] = []  # uvicorn keeps the newest alone

    # uvicorn narrows the transport's type, and so does this.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start waiting for a request; make room if there is none."""
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > self._most:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more: all requests are told, not only the newest."""
        self._rest()
        super().connection_lost(exc)
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()
        self._unanswered.clear()
        self.pipeline.clear()

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

    # An exception in these ends the parsing; then comes `send_400_response`.

    def on_message_begin(self) -> None:
        """Count anew."""
        self._head = self._body = self._chunks = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """It may be as long as headers."""
        self._head += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Also called for trailers."""
        self._head += len(name) + len(value) + FIELD
        if self._head > LARGEST:
            self._is_large = True
            raise ValueError("the headers are too large")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin to answer, now or later."""
        if len(self.pipeline) >= PIPELINED:
            raise ValueError("too many requests at once")
        super().on_headers_complete()
        self._unanswered.append(self.cycle)
        self.flow.resume_reading()  # else it would not be seen that the client has gone

    def on_body(self, body: bytes) -> None:
        """Many bytes are for the app to refuse; many pieces cost time here."""
        self._chunks += 1
        self._body += len(body)
        if self._chunks > CHUNKS + self._body // CHUNK:
            raise ValueError("the chunks are too small")
        self._surplus = max(0, self._surplus - 2 * len(body))
        super().on_body(body)
        if sum(len(cycle.body) for cycle, _ in self.pipeline) > LARGEST:
            raise ValueError("too much sent before the first request is answered")

    def on_message_complete(self) -> None:
        """What follows is another request."""
        self._surplus = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._unanswered = [one for one in self._unanswered if not one.response_complete]
        super().on_response_complete()
        self._unset_keepalive_if_required()  # one timer is enough
        self._watch()

    def pause_writing(self) -> None:
        """Too much is unread."""
        super().pause_writing()
        self._unread_since = time.perf_counter()

    def resume_writing(self) -> None:
        """It was read."""
        super().resume_writing()
        self._unread_since = math.inf

    def timeout_keep_alive_handler(self) -> None:
        """End a connection that has been idle for too long, whatever is unread."""
        self._end()

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be parsed, in the form of all other errors."""
        self._is_refused = True
        if self._is_busy:  # the client expects something else at this place
            self._end()
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
        self._deadline = self.loop.call_later(LINGER, self._end)

    @property
    def _is_busy(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _watch(self) -> None:
        """Have a deadline while no request is being answered."""
        if self._is_busy:
            self._rest()
        elif self._deadline is None and not self.transport.is_closing():
            self._idle_since = time.perf_counter()
            self._deadline = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _rest(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _make_room(self) -> None:
        """End the connection that has been idle, or else unread, for longest; or else this one."""
        others = [
            one
            for one in self.connections
            if isinstance(one, Connection) and one is not self and not one._is_ended
        ]
        idle = [one for one in others if one._deadline]
        if idle:
            min(idle, key=lambda one: one._idle_since)._end()
            return
        unread = [
            one for one in others if one._unread_since < math.inf or one.transport.is_closing()
        ]
        min(unread, key=lambda one: one._unread_since, default=self)._end()

    def _end(self) -> None:
        """Give the descriptor back at once: closing would wait until all was read."""
        self._is_ended = True
        self._rest()
        self.transport.abort()
