"""
Settings of the agent: what people may choose, read from the command line and from `<data>/agent.toml`.

The command line wins. Proxy variables of the environment are read only when ``proxy`` is ``environment``: an agent
must not change its way because of a variable that something else set.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import attrs
from attrs import validators

from redflag_agent.address import Address, parse_address
from redflag_agent.tls import parse_pin
from redflag_core import codec
from redflag_core.encoding import JsonValue
from redflag_core.errors import ConfigurationError, MalformedError
from redflag_core.scanning import ScannerPolicy

MAX_FILE_BYTES: Final = 64 * 1024
"""A settings file has a dozen lines; a larger one is something else."""

FROM_ENVIRONMENT: Final = "environment"
LOG_LEVELS: Final = ("debug", "info", "warning", "error")


class SettingsError(ConfigurationError):
    """A setting means nothing. The message names it and shows what is accepted."""

    code = "settings"


@attrs.frozen(kw_only=True)
class AptSettings:
    """
    How apt is looked at; section ``[apt]``.

    Attributes:
        config: Configuration file that apt reads first (``APT_CONFIG``): another root than this machine's.
        path_prefix: Directory whose apt and dpkg tools win over the system's.
        refresh: ``auto`` fetches old package lists where this process may, ``off`` never does.
    """

    config: str | None = None
    path_prefix: str | None = None
    refresh: str = attrs.field(default="auto", validator=validators.in_(("auto", "off")))


@attrs.frozen(kw_only=True)
class AgentSettings:
    """
    What people chose.

    Attributes:
        servers: Addresses that replace those of the registration token, tried in order; empty: the token's.
        proxy: URL of an HTTP(S) proxy, ``environment`` to read it from the environment, or None.
        ca_file: Certificate authorities (PEM) that replace the system's.
        tls_pin: Replaces the pin of the registration token (`redflag_agent.tls`).
        scanners: Policy of each scanner by name; one that is not named has the default.
        apt: How apt is looked at.
        log_level: One of `LOG_LEVELS`.
    """

    servers: tuple[str, ...] = attrs.field(default=(), validator=validators.max_len(8))
    proxy: str | None = attrs.field(default=None, repr=False)
    ca_file: str | None = None
    tls_pin: str | None = None
    scanners: dict[str, ScannerPolicy] = attrs.field(factory=dict)
    apt: AptSettings = AptSettings()
    log_level: str = attrs.field(default="info", validator=validators.in_(LOG_LEVELS))

    def addresses(self, default: tuple[str, ...]) -> tuple[Address, ...]:
        """
        Where the server is.

        Args:
            default: Addresses of the registration, used when the settings name none.

        Raises:
            ConfigurationError: An address is not ``https://host``, or names plain HTTP beyond this machine.
        """
        return tuple(parse_address(text) for text in self.servers or default)

    def policy(self, scanner: str) -> ScannerPolicy:
        """When and how long *scanner* runs."""
        return self.scanners.get(scanner, ScannerPolicy())


def load_settings(path: Path, overrides: Mapping[str, Any]) -> AgentSettings:
    """
    Read the settings file, if there is one, and let *overrides* win.

    Args:
        path: TOML file. It need not exist.
        overrides: Values by name; those that are None or empty are passed over.

    Raises:
        SettingsError: The file cannot be read or holds a setting that means nothing.
    """
    values = _read(path)
    values.update({name: _as_json(value) for name, value in overrides.items() if value})
    try:
        settings = codec.structure(AgentSettings, values)
    except MalformedError as error:
        raise SettingsError(f"the settings, from the command line and {path}: {error.message}") from None
    _check(settings)
    return settings


def parse_interval(text: str) -> tuple[str, float]:
    """
    Read ``apt=3600``: a scanner and its interval in seconds.

    Raises:
        SettingsError: Another form.
    """
    name, _, seconds = text.partition("=")
    try:
        return name, float(ScannerPolicy(interval=float(seconds)).interval)
    except ValueError:
        raise SettingsError(f"{text!r} is no interval: write SCANNER=SECONDS, 60 or more") from None


def with_intervals(settings: AgentSettings, intervals: Mapping[str, float]) -> AgentSettings:
    """The settings with other intervals for the scanners named."""
    changed = {name: attrs.evolve(settings.policy(name), interval=value) for name, value in intervals.items()}
    return attrs.evolve(settings, scanners={**settings.scanners, **changed})


def _read(path: Path) -> dict[str, JsonValue]:
    import tomllib  # noqa: PLC0415  (most agents have no file)

    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise SettingsError(f"{path} is larger than {MAX_FILE_BYTES} bytes: it is no settings file")
        return tomllib.loads(text.decode())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"{path} is not TOML: {error}") from None


def _as_json(value: Any) -> JsonValue:
    return list(value) if isinstance(value, tuple) else value


def _check(settings: AgentSettings) -> None:
    settings.addresses(())
    for name, path in (("apt.config", settings.apt.config), ("apt.path_prefix", settings.apt.path_prefix)):
        if path is not None and not Path(path).exists():
            raise SettingsError(f"{name}: {path} does not exist")
    if settings.tls_pin is not None:
        parse_pin(settings.tls_pin)
    if settings.ca_file is not None and not Path(settings.ca_file).is_file():
        raise SettingsError(f"ca_file: {settings.ca_file} is not a file")
    if settings.proxy not in (None, FROM_ENVIRONMENT):
        _check_proxy(str(settings.proxy))


def _check_proxy(text: str) -> None:
    """Refuse a proxy URL without showing it: it may hold a password."""
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise SettingsError("proxy: write http://HOST:PORT, https://HOST:PORT, or environment")
