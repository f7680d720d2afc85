"""How much the server takes on."""

from __future__ import annotations

from dataclasses import dataclass

from swift_sd.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Bounds on what clients may ask of the server together.

    Attributes:
        active: responses decoded in turn, a step each; every one holds a cache.
        waiting: requests that may wait behind them; further ones are refused with 429.
        tokens: longest answer; also the answer's limit where a chat request names none.
        seconds: from a request's arrival to its last token; then the answer ends as it stands.
        body: bytes of a request; fewer where they would not fit into the models' contexts.
        idle: seconds that a connection may bring nothing, outside requests and within their bodies.
        transfer: seconds that reading a request, or sending one piece of an answer, may take.
        grace: seconds that running responses get to finish when the server is stopped.

    Raises:
        ConfigError: a bound is not positive (`waiting` may be 0).
    """

    active: int = 4
    waiting: int = 64
    tokens: int = 4096
    seconds: float = 600.0
    body: int = 4 * 2**20
    idle: float = 20.0
    transfer: float = 60.0
    grace: float = 30.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0 or (value == 0 and name != "waiting"):
                raise ConfigError(f"the limit {name!r} is {value}; it must be above 0")

    @property
    def places(self) -> int:
        """Requests inside the server at one time."""
        return self.active + self.waiting

    @property
    def stored(self) -> int:
        """Bytes of bodies that wait to be read at one time."""
        return 4 * self.body

    @property
    def connections(self) -> int:
        """Connections at one time; a new one beyond them takes the place of an idle one."""
        return 4 * self.places + 256
