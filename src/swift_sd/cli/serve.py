"""`swift-sd serve`: models behind OpenAI's interface."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from swift_sd.cli import options
from swift_sd.cli.settings import draft_config
from swift_sd.cli.terminal import note, progress
from swift_sd.errors import ConfigError
from swift_sd.loading import DEFAULT_MODEL
from swift_sd.serve.limits import Limits

EPILOG = """[bold]Examples[/bold]

  swift-sd serve                             # the page is at http://127.0.0.1:8000

  swift-sd serve ./my-model coder=Qwen/Qwen2.5-Coder-1.5B-Instruct

  SWIFT_SD_API_KEY=secret swift-sd serve --host 0.0.0.0 --port 80

  swift-sd serve ./my-model --ray --replicas 2

  swift-sd serve --ray --autoscaling max_replicas=4

  torchrun --nproc-per-node 2 -m swift_sd serve … --tensor-parallel 2 --early-stop 0.8
"""
KEYS = "SWIFT_SD_API_KEY"
NETWORK, LIMITS, REPLICAS = "Network", "Limits", "Replicas"
USUAL = Limits()


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help=f"{options.MODEL_HELP} NAME=MODEL names it.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen.", rich_help_panel=NETWORK)
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, metavar="N", help="0 takes a free one.", rich_help_panel=NETWORK
        ),
    ] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            envvar=KEYS,
            help="Answer only who sends it. May be repeated.",
            rich_help_panel=NETWORK,
            show_default=False,
        ),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Pages from there may ask, as https://host; * for all. May be repeated.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    strict_fields: Annotated[
        bool,
        typer.Option(
            "--strict-fields",
            metavar=options.FLAG,
            help="Refuse requests with fields that are not known.",
            rich_help_panel=LIMITS,
        ),
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Clients call the server so; *.NAME for all below. May be repeated.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS",
            help="Believe its X-Forwarded-For: an address or network. May be repeated.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    max_active: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Responses made in turn.", rich_help_panel=LIMITS),
    ] = USUAL.active,
    max_queue: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Requests that may wait; then 429.", rich_help_panel=LIMITS
        ),
    ] = USUAL.waiting,
    max_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Longest answer.", rich_help_panel=LIMITS)
    ] = USUAL.tokens,
    max_seconds: Annotated[
        float,
        typer.Option(
            min=0.1, metavar="S", help="Longest a request may take.", rich_help_panel=LIMITS
        ),
    ] = USUAL.seconds,
    grace: Annotated[
        float,
        typer.Option(
            min=0.1, metavar="S", help="To finish answers at the end.", rich_help_panel=LIMITS
        ),
    ] = USUAL.grace,
    ray: Annotated[
        bool,
        typer.Option(
            "--ray", metavar=options.FLAG, help="Replicas on Ray Serve.", rich_help_panel=REPLICAS
        ),
    ] = False,
    replicas: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How many.", rich_help_panel=REPLICAS)
    ] = None,
    autoscaling: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="For Ray's AutoscalingConfig. May be repeated.",
            rich_help_panel=REPLICAS,
        ),
    ] = None,
    tensor_parallel: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Split models over N processes, started by torchrun.",
            rich_help_panel=REPLICAS,
        ),
    ] = 1,
    profile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keeps what is learned, and shares it between replicas.",
            rich_help_panel=REPLICAS,
        ),
    ] = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    plain: options.Plain = False,
    layer_set: options.LayerSetFile = None,
    max_draft_tokens: options.MaxDraftTokens = None,
    early_stop: options.EarlyStop = None,
    exact: options.Exact = None,
    draft_bits: options.DraftBits = None,
    keep_copies: options.KeepCopies = False,
) -> None:
    """Answer OpenAI's clients, and show on a page what happens.

    Ctrl-C or SIGTERM finishes the answers in the making, then stops.
    """
    config = draft_config(
        plain, layer_set, max_draft_tokens, early_stop, exact, draft_bits, keep_copies
    )
    limits = Limits(
        active=max_active, waiting=max_queue, tokens=max_tokens, seconds=max_seconds, grace=grace
    )
    scale = _scale(autoscaling or [])
    if not ray and (replicas is not None or scale):
        raise ConfigError("--replicas and --autoscaling are for --ray: add it, or drop them")
    if ray and tensor_parallel > 1:
        raise ConfigError("--ray does not start torchrun's processes: drop --tensor-parallel")
    if replicas is not None and scale:
        raise ConfigError("--autoscaling decides how many replicas there are: drop --replicas")
    for module in ("fastapi", "uvicorn", "httptools", "openai", "prometheus_client"):
        _require(module, "serve")
    if ray:
        _require("ray", "ray")
    with progress("starting"):
        from swift_sd.cli.serving import serve_here, serve_split
        from swift_sd.serve.hosts import is_loopback, known_hosts
        from swift_sd.serve.spec import Spec, named
    keys = _keys(api_key)
    spec = Spec(
        named(models or [DEFAULT_MODEL]),
        dtype=dtype,
        device=device,
        config=config,
        limits=limits,
        api_keys=keys,
        strict_fields=strict_fields,
        cors=tuple(cors or ()),
        trusted_proxies=tuple(trusted_proxy or ()),
        hosts=known_hosts(host, allowed_host or [], has_keys=bool(keys)),
        tensor_parallel=tensor_parallel,
        profile=profile.absolute() if profile is not None else None,
    )
    if not (is_loopback(host) or keys):
        note(f"anyone who reaches {host} is answered; --api-key asks for a key")
    if ray:
        from swift_sd.serve import replicas as on_ray

        on_ray.run(spec, host=host, port=port, replicas=replicas or 1, autoscaling=scale)
    elif tensor_parallel > 1:
        serve_split(spec, host, port)
    else:
        serve_here(spec, host, port)


def _scale(pairs: list[str]) -> dict[str, Any]:
    """`NAME=VALUE` for Ray, values as in JSON where they are that."""
    scale: dict[str, Any] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not (name and separator):
            raise ConfigError(f"--autoscaling {pair} is not NAME=VALUE, as in max_replicas=4")
        try:
            scale[name] = json.loads(value)
        except ValueError:
            scale[name] = value
    return scale


def _require(module: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"this needs more packages: pip install 'swift-sd[{extra}]'")


def _keys(given: list[str] | None) -> tuple[str, ...]:
    """The API keys. Whoever sets the variable wants one, though what it holds may be missing.

    Raises:
        ConfigError: the variable is set and empty.
    """
    if not given and KEYS in os.environ:
        raise ConfigError(f"{KEYS} is set but empty: give it a key, or unset it to answer anyone")
    return tuple(given or ())
