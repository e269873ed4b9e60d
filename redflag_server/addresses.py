"""The address a request comes from: the peer's, or what a trusted proxy says of it."""

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Any

UNKNOWN = "unknown"
IPV4 = 4


def client_address(scope: Any, trusted_proxies: Sequence[str]) -> str:
    """
    Address of the client of an ASGI *scope*.

    Walks ``X-Forwarded-For`` from the right as long as the hop that wrote it is a trusted proxy; with no trusted
    proxies configured the header is not read at all.

    Args:
        scope: ASGI scope; its headers are untrusted.
        trusted_proxies: Networks of proxies whose word is taken.
    """
    peer = scope.get("client")
    address = _plain(peer[0] if peer else UNKNOWN)
    if not trusted_proxies:
        return address
    networks = [ipaddress.ip_network(text) for text in trusted_proxies]
    for hop in reversed(_forwarded(scope["headers"])):
        if not _within(address, networks):
            break
        address = _plain(hop)
    return address if _is_address(address) else UNKNOWN


def is_trusted_peer(scope: Any, trusted_proxies: Sequence[str]) -> bool:
    """Whether a request came from a proxy whose word is taken."""
    peer = scope.get("client")
    networks = [ipaddress.ip_network(text) for text in trusted_proxies]
    return bool(networks) and peer is not None and _within(_plain(peer[0]), networks)


def network_of(address: str) -> str:
    """What a limit is charged to: one IPv4 address, or one IPv6 /64, which is what a single host gets."""
    if not _is_address(address) or ipaddress.ip_address(address).version == IPV4:
        return address
    return str(ipaddress.ip_network((address, 64), strict=False))


def _plain(address: str) -> str:
    """
    An address by its own name, which is short.

    An IPv4 client of a listener for both families arrives as a mapped IPv6 address. The zone of an IPv6 address
    means something to the host that wrote it only, and may be of any length (RFC 4007, section 11).
    """
    address = address.partition("%")[0]
    if not _is_address(address):
        return address
    mapped = getattr(ipaddress.ip_address(address), "ipv4_mapped", None)
    return address if mapped is None else str(mapped)


def _forwarded(headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
    values = [value.decode("latin-1") for name, value in headers if name == b"x-forwarded-for"]
    return [hop.strip() for hop in ",".join(values).split(",") if hop.strip()]


def _within(address: str, networks: Iterable[Any]) -> bool:
    return _is_address(address) and any(ipaddress.ip_address(address) in network for network in networks)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
