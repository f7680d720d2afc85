"""Answers on their way to a client that may leave at any time, or read slowly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from functools import partial
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from swift_sd.serve.answers import Form, server_sent
from swift_sd.serve.answers import event as as_event
from swift_sd.serve.desk import Conversation
from swift_sd.serve.failures import GONE, ApiError
from swift_sd.serve.jobs import Delta, End, Event
from swift_sd.serve.requests import StreamOptions

T = TypeVar("T")


async def reply(
    request: Request, conversation: Conversation, form: Form, streams: StreamOptions | None
) -> Response:
    """The answer, in one piece, or as a stream if `streams` says what it tells.

    Raises:
        ApiError: the request failed before there was anything to send.
    """
    stream: EventStream | None = None
    try:
        if streams is None:
            return await while_connected(request, _whole(conversation, form))
        first = await while_connected(request, conversation.next())
        if isinstance(first, Response):
            return first
        stream = EventStream(conversation, _chunks(conversation, form, streams, first))
        return stream
    finally:
        if stream is None:
            conversation.close()


async def _whole(conversation: Conversation, form: Form) -> Response:
    text = ""
    while not isinstance(news := await conversation.next(), End):
        assert isinstance(news, Delta)
        text += news.text
    answer = form.whole(text, news.reason, news.usage)
    return JSONResponse(answer.model_dump(mode="json", exclude_unset=True))


async def _chunks(
    conversation: Conversation, form: Form, streams: StreamOptions, first: Event
) -> AsyncIterator[bytes]:
    event = partial(as_event, has_usage=bool(streams.include_usage))
    opening = form.opening()
    if opening is not None:
        yield event(opening)
    news: Event = first
    try:
        while isinstance(news, Delta):
            if news.text:
                pieces = news.pieces if streams.include_origins else ()
                yield event(form.chunk(news.text), pieces)
            news = await conversation.next()
    except ApiError as error:
        yield server_sent(error.body.model_dump())
    else:
        assert isinstance(news, End)
        yield event(form.chunk("", news.reason))
        if streams.include_usage:
            yield event(form.closing(news.usage))
    yield b"data: [DONE]\n\n"


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T | Response:
    """The result of `work`, which is given up when the client goes away."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else Response(status_code=GONE)
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events; the conversation ends with the connection."""

    def __init__(self, conversation: Conversation, chunks: AsyncIterator[bytes]) -> None:
        # Proxies are not to wait for more before they pass a piece on.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(chunks, media_type="text/event-stream", headers=headers)
        self._conversation = conversation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of it, or as much as somebody reads."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._conversation.close()
