"""Names that the server answers to: a web page elsewhere must not reach it by a name of its own."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from swift_sd.serve.failures import ApiError

LOCAL = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def known_hosts(host: str, allowed: Sequence[str], *, has_keys: bool) -> tuple[str, ...] | None:
    """What a request's Host header may name.

    Args:
        host: where the server listens. 0.0.0.0 and :: stand for every address, but for no name.
        allowed: more of them.
        has_keys: a browser that is led here has no key, so that names do not matter, unless the
            server is for this machine or says which are `allowed`.

    Returns:
        None: anything.
    """
    if has_keys and not allowed and not is_loopback(host):
        return None
    return (*LOCAL, host, *allowed)


class Hosts:
    """ASGI middleware: refuses requests for other hosts, as DNS rebinding brings them, with 421.

    starlette's own does not tell how to have a name accepted.

    Args:
        app: what is behind it.
        known: names, `*.domain`, addresses, 0.0.0.0 or :: for all addresses, `*` for anything.
    """

    def __init__(self, app: ASGIApp, known: Sequence[str]) -> None:
        self._app = app
        self._known = {host.lower() for host in known}
        self._domains = tuple(host[1:] for host in self._known if host.startswith("*"))
        addresses = [address for host in known if (address := _address(host)) is not None]
        self._knows_addresses = any(address.is_unspecified for address in addresses)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it with 421."""
        if scope["type"] == "http":
            host = _named(Headers(scope=scope).get("host", ""))
            if not self._is_known(host):
                refusal = ApiError(
                    421,
                    f"this server is not known as {host[:100]!r}; if it is, start it with "
                    "--allowed-host and that name",
                )
                await refusal.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_known(self, host: str) -> bool:
        if host in self._known or host.endswith(self._domains):
            return True
        return self._knows_addresses and _address(host) is not None


def _named(header: str) -> str:
    """The host in a Host header, without its port; empty if there is none."""
    try:
        return (urlsplit(f"//{header}").hostname or "").removesuffix(".")
    except ValueError:
        return ""


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
