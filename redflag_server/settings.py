"""How one server is set up. Values are checked before anything starts; a refusal says what to change."""

import ipaddress
import os
from functools import cached_property
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import attrs

from redflag_core.errors import ConfigurationError
from redflag_core.rate_limit import RateLimitPolicy

DEFAULT_PORT: Final = 8750
MAX_PUBLIC_URLS: Final = 8
MAX_KEEP_DAYS: Final = 3650
MIN_METRICS_TOKEN: Final = 32
"""Characters: nothing limits how often somebody guesses."""


def _policy(count: int, burst: int) -> RateLimitPolicy:
    return RateLimitPolicy(count=count, period_seconds=60, burst=burst)


@attrs.frozen(kw_only=True)
class Settings:
    """
    Settings of a server.

    Attributes:
        data: Directory of the database, keys and secrets; 0700.
        host: Address to listen on.
        port: Port to listen on.
        public_urls: Base URLs under which agents and people reach the server, the main one first. Empty means the
            listening address.
        tls_cert: PEM certificate chain, or None.
        tls_key: PEM private key, or None.
        behind_tls_proxy: A TLS proxy in front is declared: cookies are marked secure and HSTS is sent.
        trusted_proxies: Addresses or networks whose ``X-Forwarded-For`` is believed for limits and events.
        agent_limit: Requests of one agent, charged after verification.
        address_limit: Requests of one address to agent endpoints, before verification: coarse, since many agents
            share an address behind NAT.
        register_limit: Registrations from one address.
        sign_in_limit: Attempts to sign in from one address.
        operator_limit: Requests of one session or API key.
        check_in_seconds: Base interval between check-ins of an agent.
        keep_errors_days: Days after which errors that were not seen any more are forgotten.
        postgresql: Address of the database, ``postgresql://...``, perhaps with a password; None for SQLite in the
            data directory.
        metrics_token: What Prometheus must show to read ``/metrics``; None for no metrics.
        access_log: Whether every request is a line of the log.
    """

    data: Path
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    public_urls: tuple[str, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    behind_tls_proxy: bool = False
    trusted_proxies: tuple[str, ...] = ()
    agent_limit: RateLimitPolicy = _policy(60, 60)
    address_limit: RateLimitPolicy = _policy(6000, 3000)
    register_limit: RateLimitPolicy = _policy(60, 100)
    sign_in_limit: RateLimitPolicy = _policy(10, 10)
    operator_limit: RateLimitPolicy = _policy(600, 300)
    check_in_seconds: int = 60
    keep_errors_days: int = 90
    postgresql: str | None = attrs.field(default=None, repr=False)
    metrics_token: str | None = attrs.field(default=None, repr=False)
    access_log: bool = False

    def __attrs_post_init__(self) -> None:
        """Refuse what must not run."""
        if not 0 <= self.port <= 65_535:
            raise ConfigurationError("the port must be between 0 and 65535")
        if not 1 <= self.keep_errors_days <= MAX_KEEP_DAYS:
            raise ConfigurationError(f"errors are kept for 1 to {MAX_KEEP_DAYS} days")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigurationError("a TLS certificate and its key go together: give both or neither")
        if not (self.is_loopback or self.is_secure):
            raise ConfigurationError(
                f"refusing to listen on {self.host} without TLS: give --tls-cert and --tls-key, or say "
                "--behind-tls-proxy when a proxy in front ends TLS, or listen on 127.0.0.1"
            )
        if len(self.public_urls) > MAX_PUBLIC_URLS:
            raise ConfigurationError(f"at most {MAX_PUBLIC_URLS} public URLs")
        for url in self.public_urls:
            _check_url(url)
        for proxy in self.trusted_proxies:
            _check_network(proxy)
        if self.postgresql is not None:
            check_database(self.postgresql)
        if self.metrics_token is not None and len(self.metrics_token) < MIN_METRICS_TOKEN:
            raise ConfigurationError(f"the token of the metrics must have at least {MIN_METRICS_TOKEN} characters")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the listener."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def is_secure(self) -> bool:
        """Whether people and agents arrive over TLS."""
        return self.tls_cert is not None or self.behind_tls_proxy

    @cached_property
    def urls(self) -> tuple[str, ...]:
        """The public base URLs, without a trailing slash."""
        if self.public_urls:
            return tuple(url.rstrip("/") for url in self.public_urls)
        scheme = "https" if self.is_secure else "http"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (f"{scheme}://{host}:{self.port}",)

    @cached_property
    def authorities(self) -> tuple[str, ...]:
        """Public names as they appear in signed requests: lower case, the scheme's default port left out."""
        return tuple(dict.fromkeys(authority_of(url) for url in self.urls))

    @cached_property
    def prefix(self) -> str:
        """Path prefix of the main public URL that a proxy takes away."""
        return urlsplit(self.urls[0]).path

    @property
    def database(self) -> Path:
        """File of the embedded database."""
        return self.data / "redflag.db"

    @property
    def database_url(self) -> str:
        """Address of the database: PostgreSQL's, or of the embedded one."""
        return self.postgresql or f"sqlite+aiosqlite:///{self.database}"


def default_data_directory() -> Path:
    """``/var/lib/redflag`` for root, else in the home directory; ``REDFLAG_DATA`` wins. Read when asked."""
    chosen = os.environ.get("REDFLAG_DATA")
    if chosen:
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/var/lib/redflag")
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "redflag"


def default_database() -> str | None:
    """``REDFLAG_DATABASE``, or None for SQLite in the data directory. Read when asked."""
    return os.environ.get("REDFLAG_DATABASE") or None


def default_metrics_token() -> str | None:
    """``REDFLAG_METRICS_TOKEN``, or None for no metrics. Read when asked."""
    return os.environ.get("REDFLAG_METRICS_TOKEN") or None


def check_database(url: str) -> None:
    """
    Refuse what is not the address of a PostgreSQL database, without repeating it: a password may be in it.

    Raises:
        ConfigurationError: It is not.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("postgresql", "postgres") and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigurationError(
            "the database must be postgresql://USER@HOST/NAME; leave it out for SQLite in the data directory"
        )


def authority_of(url: str) -> str:
    """The authority of a URL in the form of RFC 9421, section 2.2.3."""
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}[parts.scheme]
    host = (parts.hostname or "").lower()
    host = f"[{host}]" if ":" in host else host
    return host if parts.port in (None, default) else f"{host}:{parts.port}"


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets that do not match, a port that is none
        usable = False
    if not usable or parts.query or parts.fragment:
        raise ConfigurationError(f"{url!r} is not a public URL: write https://redflag.example.com")


def _check_network(text: str) -> None:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        raise ConfigurationError(f"{text!r} is not an address or network: write 10.0.0.0/8") from None
