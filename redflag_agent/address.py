"""Where the server is: base URLs, checked before anything is sent to them."""

import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

import attrs

from redflag_core.errors import ConfigurationError

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_HOST: Final = re.compile(r"[a-z0-9.-]{1,253}|[0-9a-f:.]{2,45}")
_PREFIX: Final = re.compile(r"(/[A-Za-z0-9._~-]+)*/?")


@attrs.frozen
class Address:
    """
    A base URL of the server.

    Attributes:
        scheme: ``https``; ``http`` only on this machine.
        authority: Host in lower case, with the port unless it is the scheme's default: what requests sign.
        prefix: Path before ``/api/v1``, without a slash at its end.
    """

    scheme: str
    authority: str
    prefix: str = ""

    def url(self, target: str) -> str:
        """The URL of *target*, a path with its query, as it goes on the wire."""
        return f"{self.scheme}://{self.authority}{self.prefix}{target}"

    def __str__(self) -> str:
        return self.url("")


def parse_address(text: str) -> Address:
    """
    Read a base URL.

    Plain HTTP is for this machine only: there is no flag that sends tokens over the network in clear.

    Raises:
        ConfigurationError: Not ``https://HOST[:PORT][/PREFIX]``.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise _error(text) from None
    host = (parts.hostname or "").lower()
    extras = parts.query or parts.fragment or "@" in parts.netloc or not text.isprintable()
    shape = _HOST.fullmatch(host) and _PREFIX.fullmatch(parts.path)
    if parts.scheme not in _DEFAULT_PORTS or extras or not shape:
        raise _error(text)
    if parts.scheme == "http" and not is_loopback(host):
        raise ConfigurationError(f"{text}: plain http is for this machine only; give the server a certificate")
    name = f"[{host}]" if ":" in host else host
    default = port in (None, _DEFAULT_PORTS[parts.scheme])
    return Address(parts.scheme, name if default else f"{name}:{port}", parts.path.rstrip("/"))


def is_loopback(host: str) -> bool:
    """Whether *host* is this machine, by number or as ``localhost``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _error(text: str) -> ConfigurationError:
    shown = "the server address" if "@" in text else text
    return ConfigurationError(f"{shown}: write https://HOST[:PORT], or http://127.0.0.1:PORT on the same machine")
