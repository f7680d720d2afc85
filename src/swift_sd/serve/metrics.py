"""Figures for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from swift_sd.decoding.trace import Step
from swift_sd.serve.engine import Engine

ACCEPTED = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24)
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counts for one server, in a registry of its own. An `Observer` of the engine."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        by_model, name = ["model"], "swift_sd_{}".format
        self._tokens = Counter(name("tokens"), "Tokens generated.", by_model, registry=registry)
        self._drafted = Counter(
            name("drafted_tokens"),
            "Tokens proposed on the main chain.",
            by_model,
            registry=registry,
        )
        self._taken = Counter(
            name("accepted_tokens"), "Proposed tokens that came out.", by_model, registry=registry
        )
        self._steps = Counter(
            name("steps"), "Rounds of the loop.", ["model", "drafter"], registry=registry
        )
        self._accepted = Histogram(
            name("accepted_per_draft"),
            "Accepted tokens of a draft.",
            by_model,
            buckets=ACCEPTED,
            registry=registry,
        )
        self._busy = Counter(name("step_seconds"), "Time in steps.", by_model, registry=registry)
        self._requests = Histogram(
            name("request_seconds"),
            "Requests by endpoint and status, with their seconds.",
            ["path", "status"],
            buckets=SECONDS,
            registry=registry,
        )

    def watch(self, engine: Engine) -> None:
        """Tell the engine's load and speeds too, whenever somebody asks."""
        self._registry.register(_Now(engine))

    def stepped(self, model: str, step: Step, seconds: float) -> None:
        """See `Observer`."""
        self._tokens.labels(model).inc(len(step.tokens))
        self._busy.labels(model).inc(seconds)
        self._steps.labels(model, step.drafter or "none").inc()
        if step.drafter is not None:
            self._drafted.labels(model).inc(step.drafted)
            self._taken.labels(model).inc(step.accepted)
            self._accepted.labels(model).observe(step.accepted)

    def requested(self, path: str, status: int, seconds: float) -> None:
        """Count a request; `path` is that of a route, of which there are few."""
        self._requests.labels(path, str(status)).observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)


class Counted:
    """ASGI middleware: counts requests, and times them up to the last byte of the answer.

    Args:
        app: what is behind it.
        metrics: where they are counted.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        status = 0

        async def sent(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self._metrics.requested(path, status, time.perf_counter() - begin)


class _Now(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        load = self._engine.load
        yield _gauge("swift_sd_active", "Responses in the making.", {(): load.active})
        yield _gauge("swift_sd_waiting", "Requests that wait for their turn.", {(): load.waiting})
        speeds: dict[tuple[str, ...], float] = {}
        skipped: dict[tuple[str, ...], float] = {}
        for model, served in self._engine.models.items():
            state, now = served.figures.state(), served.figures.speeds()
            for way, speed in (("now", now.now), ("plain", now.plain)):
                if speed is not None:
                    speeds[model, way] = speed
            for kind in ("attention", "mlp"):
                skipped[model, kind] = len(state[kind])
        yield _gauge(
            "swift_sd_tokens_per_second",
            "Over the latest steps, and as measured without drafts.",
            speeds,
            ("model", "way"),
        )
        yield _gauge(
            "swift_sd_skipped_sublayers", "Left out of drafts.", skipped, ("model", "kind")
        )


def _gauge(
    name: str, about: str, values: dict[tuple[str, ...], float], labels: tuple[str, ...] = ()
) -> Metric:
    family = GaugeMetricFamily(name, about, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family
