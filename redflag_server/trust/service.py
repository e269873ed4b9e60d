"""The trust bundle and root documents: made at first start, renewed before their end, served as they are."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.codec import parse
from redflag_core.encoding import b64encode
from redflag_core.envelope import parse_envelope
from redflag_core.errors import ConfigurationError
from redflag_core.keys import SigningKey
from redflag_core.messages import MAX_BUNDLE_BYTES, Role, TrustBundle, TrustedKey
from redflag_core.ports import Clock, Entropy
from redflag_core.trust import first_root, new_bundle, renewal_due, sign_bundle
from redflag_server.db.locks import Lock, take
from redflag_server.events.recorder import record
from redflag_server.events.tables import Event
from redflag_server.trust.keystore import KeyStore
from redflag_server.trust.tables import ServerState, TrustDocument

KEY_VALIDITY_SECONDS: Final = 10 * 365 * 86_400
"""Validity of command and checkpoint keys within bundles: bundles end much sooner; rotation replaces keys."""


async def found(session: AsyncSession, keys: KeyStore, clock: Clock, entropy: Entropy) -> ServerState:
    """Write the first root document and bundle, and the server's own row. Only for an empty database."""
    if keys.root is None:
        raise ConfigurationError("the first start makes the root key: there must be one")
    now = clock.now()
    server = str(UUID(bytes=entropy.token(16), version=4))
    state = ServerState(
        id=1,
        server=server,
        root_fp=keys.root.verify_key.fingerprint,
        epoch=1,
        gen=0,
        nonce_horizon=0,
        created_at=now,
    )
    session.add(state)
    await _store(session, "root", 1, first_root(server, keys.root, now=now), now)
    bundle = new_bundle(server, _trusted(keys, now), version=1, epoch=1, now=now)
    await _store(session, "bundle", 1, sign_bundle(bundle, keys.root), now)
    await session.flush()
    return state


async def renew(session: AsyncSession, root: SigningKey | None, *, now: datetime) -> bool:
    """
    Issue the next bundle when it is due.

    Returns:
        Whether a new one was issued. Without the root key on the server nothing is.
    """
    await take(session, Lock.TRUST)
    held = read_bundle(await current_bundle(session))
    if not renewal_due(held, now=now):
        return False
    if root is None:
        await _warn(session, held, now)
        return False
    bundle = await issue(session, root, held.keys, now=now)
    await record(
        session,
        at=now,
        kind="trust.bundle_renewed",
        actor="server",
        message=f"Trust bundle {bundle.version} was issued.",
        data={"version": bundle.version, "not_after": bundle.not_after},
    )
    return True


async def issue(
    session: AsyncSession, root: SigningKey | None, keys: Sequence[TrustedKey], *, now: datetime
) -> TrustBundle:
    """
    Issue the next bundle, with these keys. Agents are told of it with their next check-in.

    Raises:
        ConfigurationError: The root key is not on this server, or there are too many keys for one bundle.
    """
    if root is None:
        raise ConfigurationError(
            "the root key is not on this server, and only it can sign a new trust bundle: put keys/root.key back "
            "for this command. A later release will sign a bundle where the root key is kept"
        )
    held, gen = read_bundle(await current_bundle(session)), (await session.scalars(select(ServerState.gen))).one()
    # A server that was restored does not know which versions it issued since: its generation is above all of them.
    version = max(held.version + 1, gen)
    bundle = new_bundle(held.server, keys, version=version, epoch=held.epoch, now=now)
    await _store(session, "bundle", bundle.version, sign_bundle(bundle, root), now)
    return bundle


async def _warn(session: AsyncSession, held: TrustBundle, now: datetime) -> None:
    """Say once a day that the bundle must be renewed by hand."""
    since = select(Event.id).where(Event.kind == "trust.renewal_due", Event.at > now - timedelta(days=1))
    if (await session.scalars(since.limit(1))).first() is not None:
        return
    end = datetime.fromtimestamp(held.not_after, tz=UTC)
    message = f"The trust bundle ends on {end:%Y-%m-%d}, and the root key is not on this server: renew it by hand."
    await record(session, at=now, kind="trust.renewal_due", actor="server", message=message)


async def current_bundle(session: AsyncSession) -> TrustDocument:
    """The newest bundle, as served."""
    query = select(TrustDocument).where(TrustDocument.kind == "bundle").order_by(TrustDocument.version.desc())
    document: TrustDocument = (await session.scalars(query.limit(1))).one()
    return document


async def root_document(session: AsyncSession, n: int) -> TrustDocument | None:
    """Root document *n*, as served."""
    return await session.get(TrustDocument, ("root", n))


def read_bundle(document: TrustDocument) -> TrustBundle:
    """What a bundle of our own database says; it was signed here, so it is not verified again."""
    payload = parse_envelope(document.envelope, max_bytes=MAX_BUNDLE_BYTES).payload
    return parse(TrustBundle, payload, max_bytes=MAX_BUNDLE_BYTES)


def _trusted(keys: KeyStore, now: datetime) -> tuple[TrustedKey, ...]:
    start = int(now.timestamp())
    end = start + KEY_VALIDITY_SECONDS
    return tuple(
        TrustedKey(b64encode(key.verify_key.public_key), role, start, end)
        for key, role in ((keys.command, Role.COMMAND), (keys.checkpoint, Role.CHECKPOINT))
    )


async def _store(session: AsyncSession, kind: str, version: int, envelope: bytes, now: datetime) -> None:
    digest = hashlib.sha256(envelope).hexdigest()
    values = {"kind": kind, "version": version, "envelope": envelope, "digest": digest, "created_at": now}
    await session.execute(insert(TrustDocument).values(values))
