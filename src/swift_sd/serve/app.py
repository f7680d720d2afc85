"""The app: OpenAI's endpoints, health, metrics, and the page."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import FileResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion
from pydantic import BaseModel
from starlette.types import ASGIApp
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from swift_sd.serve import failures
from swift_sd.serve.answers import ChatForm, Form, TextForm, model_card
from swift_sd.serve.clients import client_of
from swift_sd.serve.desk import Desk
from swift_sd.serve.engine import Engine
from swift_sd.serve.failures import ApiError, ErrorBody
from swift_sd.serve.keys import Keys
from swift_sd.serve.limits import Limits
from swift_sd.serve.metrics import Counted, Metrics
from swift_sd.serve.replies import reply, while_connected
from swift_sd.serve.requests import Ask, Chat, Complete, StreamOptions
from swift_sd.serve.transfer import Transfer

LAST_STEP = 5.0  # seconds; uvicorn has waited for the answers, as long as it may
STATIC = Path(__file__).parent / "static"
CONTENT = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request is refused; the message says why."},
    "5XX": {"model": ErrorBody, "description": "The server could not answer."},
}
EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
STREAMED: dict[str, Any] = {"text/event-stream": {"schema": EVENT}}


class Models(BaseModel):
    """The body of `GET /v1/models`."""

    object: str = "list"
    data: list[Model]


class Health(BaseModel):
    """The body of `GET /health`."""

    status: str
    active: int
    waiting: int


class Status(BaseModel):
    """The body of `GET /status`: what the page shows of each model."""

    active: int
    waiting: int
    models: dict[str, dict[str, Any]]


def create_app(
    engine: Engine,
    metrics: Metrics,
    limits: Limits,
    api_keys: Sequence[str] = (),
    trusted_proxies: Sequence[str] = (),
) -> ASGIApp:
    """The whole app around an engine, which it starts and stops with itself.

    Args:
        engine: not started yet.
        metrics: observes the engine.
        limits: what clients may ask for.
        api_keys: one of them has to be given as a bearer token, if there are any.
        trusted_proxies: addresses or networks whose X-Forwarded-For is believed.
    """
    desk = Desk(engine, limits)
    metrics.watch(engine)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        engine.close(LAST_STEP)
        desk.close()

    app = FastAPI(
        title="swift-sd",
        summary="OpenAI's interface to models that draft for themselves.",
        lifespan=lifespan,
        docs_url=None,  # both load scripts from other hosts
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    failures.install(app)
    app.include_router(_open_routes(desk))
    app.include_router(_routes(desk, metrics, by_key=bool(api_keys)))
    app.mount("/static", StaticFiles(directory=STATIC))
    guarded: Any = Keys(Transfer(app, limits), api_keys)
    if trusted_proxies:
        guarded = ProxyHeadersMiddleware(guarded, list(trusted_proxies))
    return Counted(guarded, metrics)


def _open_routes(desk: Desk) -> APIRouter:
    """What needs no key; see `keys.OPEN`."""
    routes = APIRouter(responses=ERRORS)

    @routes.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        headers = {"Content-Security-Policy": CONTENT, "X-Content-Type-Options": "nosniff"}
        return FileResponse(STATIC / "index.html", headers=headers)

    @routes.get("/health")
    async def health() -> Health:
        """Whether requests are answered; 503 while the server stops."""
        load = desk.engine.load
        if not desk.engine.is_alive:
            raise ApiError(503, "the server is shutting down")
        return Health(status="ok", active=load.active, waiting=load.waiting)

    return routes


def _routes(desk: Desk, metrics: Metrics, *, by_key: bool) -> APIRouter:
    routes = APIRouter(responses=ERRORS)
    created = int(time.time())

    async def answered(ask: Chat | Complete, request: Request, form: Form) -> Response:
        client = client_of(request.scope, by_key=by_key)
        conversation = await while_connected(request, desk.open(ask, client))
        if isinstance(conversation, Response):  # the client has gone
            return conversation
        return await reply(request, conversation, form, _streams(ask))

    @routes.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={200: {"content": STREAMED}},
    )
    async def chat(ask: Chat, request: Request) -> Response:
        """Answer a conversation, whole or as a stream of server-sent events."""
        return await answered(ask, request, ChatForm(ask.model))

    @routes.post(
        "/v1/completions", response_model=Completion, responses={200: {"content": STREAMED}}
    )
    async def complete(ask: Complete, request: Request) -> Response:
        """Continue a text, whole or as a stream of server-sent events."""
        return await answered(ask, request, TextForm(ask.model))

    @routes.get("/v1/models")
    async def models() -> Models:
        """The models that can be asked."""
        return Models(data=[model_card(name, created) for name in desk.engine.models])

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> Model:
        """One of them."""
        return model_card(desk.model(name).name, created)

    @routes.get("/status")
    async def status() -> Status:
        """What each model does now: speeds, skipped sublayers, accepted lengths."""
        load, served = desk.engine.load, desk.engine.models
        states = {name: one.figures.state() for name, one in served.items()}
        return Status(active=load.active, waiting=load.waiting, models=states)

    @routes.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> PlainTextResponse:
        """Figures for Prometheus."""
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")

    return routes


def _streams(ask: Ask) -> StreamOptions | None:
    return (ask.stream_options or StreamOptions()) if ask.stream else None
