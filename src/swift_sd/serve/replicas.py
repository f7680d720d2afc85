"""The same app on several replicas: Ray Serve starts them, watches them, and shares out requests.

Needs `pip install 'swift-sd[serve,ray]'`.
"""

from __future__ import annotations

import signal
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, HTTPOptions
from starlette.types import ASGIApp

from swift_sd.errors import ConfigError, SwiftError
from swift_sd.serve.app import create_app
from swift_sd.serve.spec import Spec, load, make_engine

APP = "swift-sd"


class Replica:
    """One process with models and an engine of its own.

    Args:
        spec: what to serve.
    """

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._engine, self._metrics = make_engine(spec, load(spec, lambda message: None))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Ray when the replica starts."""
        spec = self._spec
        return create_app(
            self._engine,
            self._metrics,
            spec.limits,
            spec.api_keys,
            spec.trusted_proxies,
            spec.hosts,
            strict_fields=spec.strict_fields,
            cors=spec.cors,
        )

    def check_health(self) -> None:
        """Called by Ray every few seconds; a replica whose engine has died or hangs is replaced.

        Raises:
            RuntimeError: it has, or does.
        """
        if (health := self._engine.health) in ("stopping", "stalled"):
            raise RuntimeError(f"the engine is {health}")


def deployed(spec: Spec, replicas: int, autoscaling: dict[str, Any]) -> Any:
    """The application for `serve.run`.

    Args:
        spec: what each replica serves.
        replicas: how many; not used where there is `autoscaling`.
        autoscaling: for Ray's `AutoscalingConfig`, as it names them.

    Raises:
        ConfigError: `autoscaling` is not what Ray knows.
    """
    scale: dict[str, Any] = {"num_replicas": replicas}
    if autoscaling:
        unknown = sorted(autoscaling.keys() - AutoscalingConfig.model_fields.keys())
        if unknown:
            raise ConfigError(f"--autoscaling: Ray knows no {', '.join(unknown)}")
        try:
            scale = {"autoscaling_config": AutoscalingConfig(**autoscaling)}
        except ValueError as error:
            raise ConfigError(f"--autoscaling is not what Ray knows: {error}") from None
    deployment: Any = serve.deployment(
        name=APP,
        # More than a replica takes: it answers 429 itself, instead of letting requests pile up.
        max_ongoing_requests=2 * spec.limits.places + 8,
        graceful_shutdown_timeout_s=spec.limits.grace,
        **scale,
    )(serve.ingress()(Replica))
    return deployment.bind(spec)


def run(spec: Spec, *, host: str, port: int, replicas: int, autoscaling: dict[str, Any]) -> None:
    """Serve on replicas, on a Ray cluster that is there or on this machine.

    On Ctrl-C or SIGTERM the answers in the making are finished.

    Raises:
        ConfigError: `autoscaling` is not what Ray knows.
        SwiftError: the replicas cannot be started.
    """
    app = deployed(spec, replicas, autoscaling)
    serve.start(http_options=HTTPOptions(host=host, port=port))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray has put another one there
    try:
        serve.run(app, name=APP, route_prefix="/", blocking=True)
    except KeyboardInterrupt:
        serve.delete(APP)
    except RuntimeError as error:
        told = [one.message for one in serve.status().applications[APP].deployments.values()]
        reasons = [words.strip().splitlines()[-1] for words in told if words.strip()]
        serve.delete(APP)
        raise SwiftError(
            f"the replicas cannot be started: {(reasons or [str(error)])[0]}; correct that, or see "
            "Ray's logs, and start again"
        ) from None
