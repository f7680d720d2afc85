"""The app: OpenAI's endpoints, health, metrics, and the page."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import FileResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from swift_sd.serve import bodies, failures
from swift_sd.serve.answers import ChatForm, Form, TextForm, model_card
from swift_sd.serve.clients import client_of
from swift_sd.serve.desk import Desk
from swift_sd.serve.engine import Engine, State
from swift_sd.serve.failures import ErrorBody
from swift_sd.serve.hosts import Hosts
from swift_sd.serve.keys import Keys
from swift_sd.serve.limits import Limits
from swift_sd.serve.metrics import Counted, Metrics
from swift_sd.serve.paths import Paths
from swift_sd.serve.replies import reply, while_connected
from swift_sd.serve.requests import Ask, Chat, Complete, StreamOptions
from swift_sd.serve.transfer import Transfer
from swift_sd.serve.unknown import HEADER, UnknownFields

LAST_STEP = 5.0  # seconds; uvicorn has waited for the answers, as long as it may
STATIC = Path(__file__).parent / "static"
CONTENT = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request is refused; the message says why."},
    "5XX": {"model": ErrorBody, "description": "The server could not answer."},
}
REFERENCE = "#/components/schemas/{model}"
EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
STREAMED: dict[str, Any] = {"text/event-stream": {"schema": EVENT}}


class Models(BaseModel):
    """The body of `GET /v1/models`."""

    object: str = "list"
    data: list[Model]


class Health(BaseModel):
    """The body of `GET /health`."""

    status: State
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
    hosts: Sequence[str] | None = None,
    *,
    strict_fields: bool = False,
    cors: Sequence[str] = (),
) -> ASGIApp:
    """The whole app around an engine, which it starts and stops with itself.

    Args:
        engine: not started yet.
        metrics: observes the engine.
        limits: what clients may ask for.
        api_keys: one of them has to be given as a bearer token, if there are any.
        strict_fields: whether fields that are not known are refused.
        cors: origins whose pages may ask, from visitors' browsers; "*" for all.
        trusted_proxies: addresses or networks whose X-Forwarded-For is believed.
        hosts: what a Host header may name, see `Hosts`; None: anything.
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
    _describe_bodies(app)
    app.include_router(_open_routes(desk))
    unknown = UnknownFields(strict_fields)
    app.include_router(_routes(desk, metrics, unknown, by_key=bool(api_keys)))
    app.mount("/static", StaticFiles(directory=STATIC))
    guarded: Any = Keys(Transfer(app, limits.transfer), api_keys)
    if cors:  # before keys: browsers ask without one whether they may ask
        guarded = CORSMiddleware(
            guarded,
            allow_origins=cors,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=[HEADER, "retry-after"],
        )
    if hosts is not None:
        guarded = Hosts(guarded, hosts)
    if trusted_proxies:
        guarded = ProxyHeadersMiddleware(guarded, list(trusted_proxies))
    return Paths(Counted(guarded, metrics))


def _open_routes(desk: Desk) -> APIRouter:
    """What needs no key; see `keys.OPEN`."""
    routes = APIRouter(responses=ERRORS)

    @routes.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        headers = {"Content-Security-Policy": CONTENT, "X-Content-Type-Options": "nosniff"}
        return FileResponse(STATIC / "index.html", headers=headers)

    @routes.get("/health", responses={503: {"model": Health}})
    async def health(response: Response) -> Health:
        """Whether requests are answered; 503 while models load, a step hangs, or it stops."""
        load, status = desk.engine.load, desk.engine.health
        if status != "ok":
            response.status_code = 503
        return Health(status=status, active=load.active, waiting=load.waiting)

    return routes


def _routes(desk: Desk, metrics: Metrics, unknown: UnknownFields, *, by_key: bool) -> APIRouter:
    routes = APIRouter(responses=ERRORS)
    created = int(time.time())

    async def answered(
        request: Request, kind: type[Chat | Complete], form: Callable[[str], Form]
    ) -> Response:
        deadline = time.monotonic() + desk.limits.seconds
        client = client_of(request.scope, by_key=by_key)
        with ExitStack() as place, desk.gate.stored(client) as store:
            place.enter_context(desk.gate.passed(client))
            body = await bodies.read(request, desk.size, desk.limits, store)
            size = len(body)
            ask = await while_connected(request, desk.parse(kind, body, client, deadline))
            del body
            if isinstance(ask, Response):  # the client has gone
                return ask
            told = unknown.headers(ask)
            conversation = await while_connected(
                request, desk.open(ask, size, client, deadline, place)
            )
            if isinstance(conversation, Response):
                return conversation
        name, streams = ask.model, _streams(ask)
        del ask  # what was asked is not kept while it is answered
        response = await reply(request, conversation, form(name), streams)
        response.headers.update(told)
        return response

    @routes.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={200: {"content": STREAMED}},
        openapi_extra=_body_of(Chat),
    )
    async def chat(request: Request) -> Response:
        """Answer a conversation, whole or as a stream of server-sent events."""
        return await answered(request, Chat, ChatForm)

    @routes.post(
        "/v1/completions",
        response_model=Completion,
        responses={200: {"content": STREAMED}},
        openapi_extra=_body_of(Complete),
    )
    async def complete(request: Request) -> Response:
        """Continue a text, whole or as a stream of server-sent events."""
        return await answered(request, Complete, TextForm)

    @routes.get("/v1/models")
    async def models() -> Models:
        """The models that can be asked."""
        return Models(data=[model_card(name, created) for name in desk.models])

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> Model:
        """One of them."""
        return model_card(desk.model(name).name, created)

    @routes.get("/status")
    async def status() -> Status:
        """What each model does now: speeds, skipped sublayers, accepted lengths."""
        load, served = desk.engine.load, desk.models
        states = {name: one.figures.state() for name, one in served.items()}
        return Status(active=load.active, waiting=load.waiting, models=states)

    @routes.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> PlainTextResponse:
        """Figures for Prometheus."""
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")

    return routes


def _streams(ask: Ask) -> StreamOptions | None:
    return (ask.stream_options or StreamOptions()) if ask.stream else None


def _body_of(kind: type[Ask]) -> dict[str, Any]:
    """For a route's document; FastAPI would parse the body on the event loop."""
    schema = {"$ref": REFERENCE.format(model=kind.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _describe_bodies(app: FastAPI) -> None:
    """Put what `_body_of` refers to into the app's document."""
    document = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            kinds: Any = [(kind, "validation") for kind in (Chat, Complete)]
            _, schemas = models_json_schema(kinds, ref_template=REFERENCE)
            document()["components"]["schemas"].update(schemas["$defs"])
        return document()

    app.openapi = described  # type: ignore[method-assign]  # as FastAPI's documentation has it
