"""All methods by name, and which of them can be asked for."""

from __future__ import annotations

from collections.abc import Sequence

from swift_sd.bench import ablations, methods
from swift_sd.bench.method import HF, REGISTERED, Method
from swift_sd.errors import ConfigError

__all__ = ["DEFAULT_METHODS", "HF", "METHODS", "ablations", "checked_names", "methods"]

METHODS: dict[str, type[Method]] = REGISTERED
DEFAULT_METHODS = (HF, "hf-lookup", "plain", "swift")


def checked_names(names: Sequence[str], given: Sequence[str] = ()) -> tuple[str, ...]:
    """`names` if all of them can be asked for.

    Args:
        given: fields of `Subject` that the user has filled.

    Raises:
        ConfigError: a name is unknown or comes twice, or what its method needs was not given.
    """
    for name in names:
        if name not in METHODS:
            raise ConfigError(f"there is no method {name!r}: choose from {', '.join(METHODS)}")
        if list(names).count(name) > 1:
            raise ConfigError(f"the method {name} is named twice: name it once")
        needs = METHODS[name].needs
        if needs is not None and needs not in given:
            option = f"--{needs.replace('_', '-')}"
            raise ConfigError(f"the method {name} needs {option}: give it, or drop the method")
    if not names:
        raise ConfigError(f"no method is named: choose from {', '.join(METHODS)}")
    return tuple(names)
