"""What the machine calls itself: shown by the server, never trusted."""

import os
import platform
from typing import Final

from redflag_core import __version__
from redflag_core.messages import PROTOCOL_VERSIONS, OperatingSystem, Versions
from redflag_core.scanning import clean_text

MAX_HOSTNAME: Final = 253
"""Longest DNS name (RFC 1035, section 2.3.4)."""


def hostname() -> str:
    """The machine's name."""
    return clean_text(platform.node(), max_len=MAX_HOSTNAME) or "unnamed"


def operating_system() -> OperatingSystem:
    """From os-release(5) and the kernel."""
    release = _os_release()
    family = platform.system().lower() or "unknown"
    return OperatingSystem(
        family=clean_text(family, max_len=32),
        id=clean_text(release.get("ID", family), max_len=64),
        name=clean_text(release.get("PRETTY_NAME", family), max_len=200),
        version=_optional(release.get("VERSION_ID"), 100),
        kernel=_optional(platform.release(), 200),
        arch=_optional(platform.machine(), 32),
    )


def support_end() -> str | None:
    """The day on which the release says that it ends, as it is written in os-release(5)."""
    return _os_release().get("SUPPORT_END")


def versions() -> Versions:
    """What this agent is and speaks."""
    return Versions(__version__, PROTOCOL_VERSIONS)


def missing_rights() -> tuple[str, ...]:
    """What this process cannot do because it is not root, one sentence each."""
    if os.geteuid() == 0:
        return ()
    return (
        "not run as root, so package lists cannot be refreshed: what was published since is missing",
        "not run as root, so SMBIOS UUID and board serial cannot be read: fewer ids identify this machine",
    )


def _os_release() -> dict[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def _optional(text: str | None, max_len: int) -> str | None:
    return clean_text(text, max_len=max_len) if text else None
