"""The app on a port, until it is told to stop."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import sys
from contextlib import suppress
from functools import partial

import uvicorn

from swift_sd.errors import ConfigError, SwiftError
from swift_sd.serve.app import LAST_STEP, create_app
from swift_sd.serve.connections import Connection
from swift_sd.serve.engine import Engine
from swift_sd.serve.limits import Limits
from swift_sd.serve.metrics import Metrics
from swift_sd.serve.spec import Spec

INTERRUPTED = 130  # what shells expect of a program that SIGINT has ended


class Server(uvicorn.Server):
    """Stops in three steps: nothing new is taken, what runs is finished, the rest is given up."""

    def __init__(self, config: uvicorn.Config, engine: Engine, grace: float) -> None:
        super().__init__(config)
        self._engine, self._grace = engine, grace
        engine.on_end = self._stop  # without it there is nothing to serve

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn on SIGTERM and SIGINT."""
        self._engine.drain()
        over = asyncio.get_running_loop().call_later(self._grace, self._engine.give_up)
        try:
            await super().shutdown(sockets)
        finally:
            over.cancel()

    def _stop(self) -> None:
        self.should_exit = True


def listen(host: str, port: int, patience: float) -> socket.socket:
    """A socket that listens.

    Args:
        port: 0 for any that is free.
        patience: seconds that a client may leave what was sent to it unread; then the system ends
            the connection (where it can: Linux).

    Raises:
        ConfigError: the address is not this machine's, or something else listens there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {host}, port {port} ({error.strerror or error}): choose another "
            "--host or --port"
        ) from None
    with suppress(AttributeError, OSError):  # connections inherit it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * patience))
    return listener


def make_server(
    engine: Engine,
    metrics: Metrics,
    limits: Limits,
    *,
    api_keys: tuple[str, ...] = (),
    trusted_proxies: tuple[str, ...] = (),
    hosts: tuple[str, ...] | None = None,
    strict_fields: bool = False,
    cors: tuple[str, ...] = (),
    log_level: str = "info",
) -> Server:
    """A server that is not running yet; `run(sockets=[…])` blocks until it is stopped."""
    config = uvicorn.Config(
        create_app(
            engine,
            metrics,
            limits,
            api_keys,
            trusted_proxies,
            hosts,
            strict_fields=strict_fields,
            cors=cors,
        ),
        log_level=log_level,
        access_log=False,
        # Behind our own, which lets clients know.
        timeout_graceful_shutdown=math.ceil(limits.grace + LAST_STEP),
        # uvicorn calls it as it calls a class, which its annotation asks for.
        http=partial(Connection, most=limits.connections),  # type: ignore[arg-type]
        ws="none",
        timeout_keep_alive=limits.idle,  # type: ignore[arg-type]  # fractions are fine
        server_header=False,
        proxy_headers=False,  # the app believes whom it was told to, and not the whole machine
    )
    return Server(config, engine, limits.grace)


def run(spec: Spec, engine: Engine, metrics: Metrics, listener: socket.socket) -> None:
    """Answer at `listener` until SIGTERM or SIGINT, also while the engine loads its models.

    Raises:
        SwiftError: the engine has died, or models cannot be loaded.
    """
    server = make_server(
        engine,
        metrics,
        spec.limits,
        api_keys=spec.api_keys,
        trusted_proxies=spec.trusted_proxies,
        hosts=spec.hosts,
        strict_fields=spec.strict_fields,
        cors=spec.cors,
        log_level="warning",
    )
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        _leave_if_loading(engine, INTERRUPTED)
        raise
    if isinstance(engine.failure, SwiftError):
        raise engine.failure
    if engine.failure is not None:
        raise SwiftError(f"the engine has died of {engine.failure!r}; start the server again")


def _leave_if_loading(engine: Engine, code: int) -> None:
    """End this process at once if models are being made: Python would end under their thread."""
    if engine.is_loading:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
