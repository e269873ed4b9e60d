"""Under which addresses, and with which TLS key, this server is reached: kept where the command line finds it."""

import ssl
from pathlib import Path

import attrs
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.certificates import parse_certificate
from redflag_core.errors import ConfigurationError, MalformedError
from redflag_server.runtime import Runtime
from redflag_server.settings import Settings
from redflag_server.trust.tables import ServerState


@attrs.frozen
class Published:
    """
    How the server is reached.

    Attributes:
        addresses: Base URLs, the main one first.
        tls: Pin of its TLS key, or None where an authority vouches for it.
    """

    addresses: tuple[str, ...]
    tls: str | None


async def publish(runtime: Runtime) -> None:
    """
    Keep what this start was told, for commands in other processes.

    Raises:
        ConfigurationError: The TLS certificate cannot be read.
    """
    values = {"addresses": list(runtime.settings.urls), "tls_pin": tls_pin(runtime.settings.tls_cert)}
    async with runtime.database.write() as session:
        await session.execute(update(ServerState).values(values))


async def published(session: AsyncSession, settings: Settings) -> Published:
    """How the server is reached, as it was told at its last start; before the first, as *settings* say."""
    addresses, pin = (await session.execute(select(ServerState.addresses, ServerState.tls_pin))).one()
    return Published(tuple(addresses) or settings.urls, pin)


def tls_pin(certificate: Path | None) -> str | None:
    """
    What an agent must see in the TLS handshake.

    A certificate that vouches for itself is pinned by its key. One of an authority is not: it would be refused
    as soon as it is renewed with another key, and the authority vouches for it.

    Raises:
        ConfigurationError: The file cannot be read, or holds no certificate.
    """
    if certificate is None:
        return None
    try:
        first, _, _ = certificate.read_text("ascii").partition("-----END CERTIFICATE-----")
        parsed = parse_certificate(ssl.PEM_cert_to_DER_cert(f"{first.strip()}\n-----END CERTIFICATE-----"))
    except (OSError, ValueError, MalformedError):
        raise ConfigurationError(f"{certificate} holds no TLS certificate in PEM form") from None
    return parsed.pin if parsed.vouches_for_itself else None
