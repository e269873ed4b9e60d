"""Opening the way to the server: TLS, proxy and limits of the one HTTP client that the agent has."""

import ssl
from collections.abc import Sequence
from typing import Final

import httpx2

from redflag_agent.address import Address
from redflag_agent.tls import client_context

READ_TIMEOUT: Final = 30.0
"""Seconds for each read or write."""

CONNECT_TIMEOUT: Final = 10.0

LIMITS: Final = httpx2.Limits(max_connections=4, max_keepalive_connections=2, keepalive_expiry=5.0)
"""One agent talks to one server with two requests at a time: a check-in that is held open, and what is delivered
meanwhile. An idle connection would cost the server memory."""


def timeout_with(hold: int) -> httpx2.Timeout:
    """
    Timeouts of one request.

    Args:
        hold: Seconds for which the server may hold it open, on top of the time that any answer may take.
    """
    return httpx2.Timeout(READ_TIMEOUT, connect=CONNECT_TIMEOUT, read=READ_TIMEOUT + hold)


def open_http(
    addresses: Sequence[Address], *, pin: str | None = None, ca_file: str | None = None, proxy: str | None = None
) -> httpx2.AsyncClient:
    """
    An HTTP client for the server: it reads no environment and follows no redirect.

    Args:
        addresses: Where the server is. With plain HTTP only (on this machine), no authorities are loaded.
        pin: See `redflag_agent.tls`.
        ca_file: Authorities (PEM) that replace the system's.
        proxy: URL of an HTTP(S) proxy, or None for none.

    Raises:
        ConfigurationError: The pin or the file means nothing.
    """
    secure = any(address.scheme == "https" for address in addresses)
    context = client_context(pin=pin, ca_file=ca_file) if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    transport = httpx2.AsyncHTTPTransport(
        verify=context, trust_env=False, limits=LIMITS, proxy=_proxy(proxy, ca_file)
    )
    return httpx2.AsyncClient(transport=transport, trust_env=False, timeout=timeout_with(0))


def environment_proxy(addresses: Sequence[Address]) -> str | None:
    """The proxy that the environment names for the first address, if any: only called when asked for."""
    from urllib.request import getproxies, proxy_bypass  # noqa: PLC0415  (heavy, rarely needed)

    first = addresses[0]
    return None if proxy_bypass(first.authority) else getproxies().get(first.scheme)


def _proxy(proxy: str | None, ca_file: str | None) -> httpx2.Proxy | None:
    if proxy is None:
        return None
    secure = proxy.startswith("https:")
    return httpx2.Proxy(proxy, ssl_context=client_context(ca_file=ca_file) if secure else None)
