"""Everything that has to be known to set up a server, here or on a replica elsewhere."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from swift_sd import loading
from swift_sd.config import SwiftConfig
from swift_sd.errors import ConfigError, ProfileError
from swift_sd.serve import lockstep
from swift_sd.serve.clients import check_proxies
from swift_sd.serve.companions import Loaded
from swift_sd.serve.engine import Engine
from swift_sd.serve.limits import Limits
from swift_sd.serve.metrics import Metrics
from swift_sd.serve.profiles import ProfileFile, stamp
from swift_sd.serve.served import Served
from swift_sd.swift import Swift

ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#@]+")


@dataclass(frozen=True)
class Spec:
    """What to serve; can be pickled.

    Attributes:
        models: what to load, by the name that clients use.
        dtype, device: see `loading.load`.
        config: how to draft.
        limits: what clients may ask for.
        api_keys: one of them has to be given, if there are any.
        trusted_proxies: addresses or networks whose X-Forwarded-For is believed.
        hosts: what a Host header may name, see `hosts.known_hosts`; None: anything.
        strict_fields: whether fields of requests that are not known are refused.
        cors: origins whose pages may ask, as `https://host:port`; "*" for all.
        profile: a file that keeps what is learned.
        tensor_parallel: over how many processes each model is split.

    Raises:
        ConfigError: no model, or several for one profile, or nothing for it to keep; a key that
            cannot be sent; a proxy or an origin that is none; drafts that would differ between
            processes.
    """

    models: dict[str, str]
    dtype: str = "auto"
    device: str = "auto"
    config: SwiftConfig = field(default_factory=SwiftConfig)
    limits: Limits = field(default_factory=Limits)
    api_keys: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = None
    strict_fields: bool = False
    cors: tuple[str, ...] = ()
    profile: Path | None = None
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("there is nothing to serve; name a model")
        if self.profile is not None and len(self.models) > 1:
            raise ConfigError(
                "a profile is for one model; start one server for each, or leave it out"
            )
        if self.profile is not None and self.tensor_parallel > 1:
            raise ConfigError("over several processes nothing is learned: drop --profile")
        if self.profile is not None and not self.config.searches:
            raise ConfigError(
                "with these settings nothing is learned that --profile could keep: drop it, or "
                "drop --plain, --layer-set, --early-stop and --max-draft-tokens 0"
            )
        if self.tensor_parallel > 1:
            lockstep.require_lockstep(self.config)
        for key in self.api_keys:
            if not key.isascii() or not key.isprintable() or " " in key or not key:
                raise ConfigError("an API key must be of ASCII characters without spaces")
        check_proxies(self.trusted_proxies)
        for origin in self.cors:
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"--cors {origin} is no origin: write https://host or http://host:port, with "
                    "nothing after it, or * for all"
                )


def named(sources: list[str]) -> dict[str, str]:
    """Models by name: `NAME=SOURCE` as given, a folder by its last part, all else as it is.

    Raises:
        ConfigError: two models have one name, or a name is empty.
    """
    models: dict[str, str] = {}
    for source in sources:
        name, separator, rest = source.partition("=")
        if separator:
            source = rest
        elif (folder := Path(os.path.expanduser(source))).is_dir():
            name = folder.resolve().name
        if not name or not source:
            raise ConfigError(f"{source!r} is no model; write NAME=FOLDER, a folder or a Hub id")
        if name in models:
            raise ConfigError(f"two models would be called {name!r}; write NAME=FOLDER")
        models[name] = source
    return models


def load(spec: Spec, tell: Callable[[str], None]) -> list[Served]:
    """Load all models of `spec`; `tell` hears what is being waited for.

    Raises:
        SwiftError: one of them cannot be had or served, or what it learns not be kept.
    """
    known = ProfileFile.start(spec.profile)
    leader = lockstep.Leader() if spec.tensor_parallel > 1 else None
    made: list[Served] = []
    for name, source in spec.models.items():
        model, tokenizer = loading.load(
            source,
            dtype=spec.dtype,
            device=spec.device,
            on_progress=tell,
            tensor_parallel=spec.tensor_parallel,
        )
        tell(f"looking for sublayers of {name} to skip")
        seen = stamp(known) if known is not None else None
        try:
            swift = Swift(model, tokenizer, spec.config, known)
        except ProfileError as error:
            ProfileFile.set_aside(known, error, seen)
            swift = Swift(model, tokenizer, spec.config)
        made.append(Served(name, swift, leader))
    return made


def make_engine(spec: Spec, served: list[Served]) -> tuple[Engine, Metrics]:
    """An engine for loaded models, observed by metrics."""
    metrics, loaded = Metrics(), _with_chores(spec, served)
    return Engine(loaded.models, spec.limits.active, metrics, loaded.chores), metrics


def loading_engine(spec: Spec, make: Callable[[], list[Served]]) -> tuple[Engine, Metrics]:
    """An engine that makes its models itself when it is started, observed by metrics."""
    metrics = Metrics()

    def load() -> Loaded:
        return _with_chores(spec, make())

    return Engine([], spec.limits.active, metrics, load=load), metrics


def _with_chores(spec: Spec, served: list[Served]) -> Loaded:
    if spec.profile is None:
        return Loaded(served)
    return Loaded(served, ProfileFile(served[0], spec.profile))
