"""Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from swift_sd.errors import SwiftError, UnsupportedArgument
from swift_sd.serve.engine import Refused
from swift_sd.serve.lockstep import Parted
from swift_sd.serve.requests import ROLES

log = logging.getLogger(__name__)
KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
GONE = 499  # what nginx logs for a client that closed the connection; nobody receives it
LONGEST = 500  # characters of a message


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class ApiError(Exception):
    """Raised to answer with an error.

    Args:
        status: of HTTP.
        message: for a person: cause and remedy.
        param: the field of the request that is wrong.
        code: for programs, where OpenAI has one.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.body = ErrorBody(
            error=ErrorDetail(message=message[:LONGEST], type=kind, param=param, code=code)
        )

    def response(self) -> JSONResponse:
        """As an answer."""
        return JSONResponse(self.body.model_dump(), self.status, self.headers)


def as_api_error(error: BaseException) -> ApiError:
    """What to tell the client about an exception."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Refused | Parted):
        return ApiError(503, str(error), headers={"Retry-After": "5"})
    if isinstance(error, UnsupportedArgument):
        return ApiError(400, str(error), param=error.argument)
    if isinstance(error, SwiftError):
        return ApiError(400, str(error))
    return ApiError(500, "the server failed at this request; its log says why")


def install(app: FastAPI) -> None:
    """Make `app` answer all errors in this form."""

    @app.exception_handler(ApiError)
    async def told(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return _explained(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        return ApiError(error.status_code, str(error.detail), headers=error.headers).response()

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()  # starlette logs it


def _explained(errors: Any) -> ApiError:
    """The first thing that is wrong with a request's body, in a sentence.

    Values may be of several types; of the branches that pydantic tried, the one that got furthest
    is what was meant.
    """
    worst = max(errors, key=lambda error: len(error["loc"]))
    kind, reason = worst["type"], worst["msg"]
    first, rest = worst["loc"][1:2], worst["loc"][2:]
    kept = [part for part in rest if isinstance(part, int) or _is_field(part)]
    names = [str(part) for part in (*first, *kept)]
    if kind.startswith("union_tag"):  # a message whose role is missing or none of ours
        names.append("role")
    param = ".".join(names) or None
    if kind == "missing":
        return ApiError(400, f"{param or 'the body'} is missing", param=param)
    return ApiError(400, f"{param or 'the body'}: {reason}", param=param)


def _is_field(part: str) -> bool:
    """Whether it names a field, and not a branch of a union, such as `list[int]` or a role."""
    return part.isidentifier() and part not in {"str", "int", "float", "bool", *ROLES}
