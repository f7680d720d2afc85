"""Bodies of requests: how large they may be, and what is in them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from swift_sd.serve.failures import GONE, ApiError
from swift_sd.serve.limits import Limits
from swift_sd.serve.served import Served

T = TypeVar("T", bound=BaseModel)
FLOOR = 2**18  # bytes that every request may have
KEYS = 2**13
DEPTH = 64
# A string ends with the body if it does not end before: no attempt is made twice.
TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?+|[][{},:]', re.DOTALL)


@dataclass(frozen=True)
class Size:
    """What one request may bring.

    Attributes:
        bytes: of the body.
        values: elements of lists and of objects, all together.
    """

    bytes: int
    values: int


def size_for(models: Iterable[Served], limits: Limits) -> Size:
    """As much as fits into the longest context, whatever the text; `limits.body` at most."""
    most = Size(FLOOR, KEYS)
    for served in models:
        context = served.swift.context_length
        if context is None:
            return Size(limits.body, limits.body // 4)
        text = FLOOR + context * served.longest_token
        most = Size(max(most.bytes, text), max(most.values, KEYS + context))
    return Size(min(most.bytes, limits.body), most.values)


async def read(request: Request, size: Size, limits: Limits, store: Callable[[int], None]) -> bytes:
    """All of a request's body.

    Raises:
        ApiError: 413, it is too large; 408, it came too slowly; 429, `store` has no room for it;
            499, its client went; 400, it is not declared as JSON, as those from web
            pages elsewhere may not be.
    """
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if declared != "application/json" and not declared.endswith("+json"):
        raise ApiError(400, "the body is not declared as JSON: send Content-Type: application/json")
    length = request.headers.get("content-length", "0")
    announced = int(length) if length.isdecimal() else 0
    body, is_over = bytearray(), False
    try:
        async with asyncio.timeout(limits.transfer):
            while True:
                if max(announced, len(body)) > size.bytes:  # the connection forgets what else comes
                    raise ApiError(
                        413,
                        f"the request is larger than {size.bytes} bytes; shorten it",
                        code="context_length_exceeded",
                    )
                store(max(announced, len(body)))
                if is_over:
                    return bytes(body)
                async with asyncio.timeout(limits.idle):
                    message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ApiError(GONE, "the client left within its request")
                body += message.get("body", b"")
                is_over = not message.get("more_body", False)
    except TimeoutError:
        raise ApiError(
            408, "the request's body came too slowly", headers={"Connection": "close"}
        ) from None


def parsed(kind: type[T], body: bytes, size: Size) -> T:
    """What a body says. Not for the event loop.

    Raises:
        ApiError: 400, it is not JSON, or has too many keys, values or levels.
        RequestValidationError: it is not a `kind`.
    """
    _check(body, size)
    try:
        content = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
    raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in found])


def _check(body: bytes, size: Size) -> None:
    """Refuse what would take long to parse. Holds the interpreter's lock for a string at a time.

    Raises:
        ApiError: 400, it has too many keys, values or levels.
    """
    keys = values = strings = depth = 0
    for token in TOKEN.finditer(body):
        match body[token.start()]:
            case 0x5B | 0x7B:  # [ {
                depth += 1
                values += 1
            case 0x5D | 0x7D:  # ] }
                depth -= 1
            case 0x3A:  # :
                keys += 1
            case 0x2C:  # ,
                values += 1
            case _:
                strings += 1
        if max(values, strings - keys) > size.values or keys > KEYS or depth > DEPTH:
            raise ApiError(
                400,
                f"the body has more than {KEYS} keys, {size.values} values or {DEPTH} levels; "
                "shorten it",
            )
