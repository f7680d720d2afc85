"""Who a request comes from: the one answer that places, turns and memories go by."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import Scope

from swift_sd.errors import ConfigError

PREFIX = 64  # bits; whoever has an IPv6 address usually has all that share these
LONGEST = 64  # characters of what is not an address after all


def client_of(scope: Scope, *, by_key: bool) -> str:
    """A name for the client, `key …` or `address …`; equal for two requests of one client.

    Args:
        scope: of ASGI. Its `client` is the peer, or what a trusted proxy said of it.
        by_key: the server asks for API keys and has checked the one that came. Elsewhere a key may
            be anything, so that the address counts.
    """
    if by_key:
        given = Headers(scope=scope).get("authorization", "")
        return f"key {hashlib.sha256(given.encode()).hexdigest()}"
    host = scope["client"][0] if scope.get("client") else ""
    return f"address {_network(host)}"


def memory_of(client: str) -> str | None:
    """Whose texts may help to answer `client`: its own where it has a key, else all others'."""
    return client if client.startswith("key ") else None


def _network(host: str) -> str:
    """The addresses that one client has at its disposal."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])  # without the interface
    except ValueError:
        return host[:LONGEST]
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return str(ipaddress.ip_network((address, PREFIX), strict=False))
        return str(address.ipv4_mapped)
    return str(address)


def check_proxies(proxies: Sequence[str]) -> None:
    """Refuse what is no address: it would be trusted silently by nobody.

    Raises:
        ConfigError: one of them is neither an address nor a network.
    """
    for proxy in proxies:
        try:
            ipaddress.ip_network(proxy)
        except ValueError as error:
            raise ConfigError(
                f"--trusted-proxy {proxy!r} is no address or network such as 10.0.0.0/8 ({error})"
            ) from None
