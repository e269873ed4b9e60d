"""
Operator keys: whose public keys the trust bundle names, for which organizations.

The root signs each change, so a server without the root key cannot make one. What machines believe is the bundle;
the table says whose a key is.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.encoding import b64decode, b64encode
from redflag_core.errors import MalformedError
from redflag_core.keys import VerifyKey
from redflag_core.messages import Role, TrustBundle, TrustedKey
from redflag_core.trust import live_keys
from redflag_server.db.locks import Lock, take
from redflag_server.events.recorder import record
from redflag_server.problems import ConflictError, InvalidRequestError, NotFoundError
from redflag_server.runtime import Runtime
from redflag_server.trust.service import KEY_VALIDITY_SECONDS, current_bundle, issue, read_bundle
from redflag_server.trust.tables import OperatorKey

MAX_OPERATOR_KEYS: Final = 200
"""Live keys: each machine gets all of them, and a bundle has room for a few more."""

MAX_NAME: Final = 100
"""Characters of the name of a key: it is shown beside what was approved with it."""


async def add_operator_key(
    runtime: Runtime, *, public_key: str, name: str, organizations: Collection[UUID], actor: str
) -> OperatorKey:
    """
    Let machines believe approvals of a key.

    Args:
        runtime: The server.
        public_key: The public half in base64, as ``redflag keys new`` printed it.
        name: Whose it is, one line.
        organizations: For whose machines it may approve; at least one.
        actor: Who adds it, for the event.

    Raises:
        InvalidRequestError: No such key or name.
        ConflictError: The key is or was there already, the name is taken, or there are too many.
        ConfigurationError: The root key is not on this server.
    """
    key, now = _public_key(public_key), runtime.clock.now()
    async with runtime.database.write() as session:
        await take(session, Lock.TRUST)
        known = (await session.scalars(select(OperatorKey))).all()
        _check_new(known, key, _name(name))
        held = read_bundle(await current_bundle(session))
        _check_unused(held, key)
        row = OperatorKey(
            name=name,
            key_id=key.key_id,
            public_key=key.public_key,
            organizations=sorted(map(str, organizations)),
            added_at=now,
            added_by=actor[:128],
        )
        session.add(row)
        bundle = await issue(session, runtime.keys.root, (*held.keys, _trusted(row, now)), now=now)
        await record(
            session,
            at=now,
            kind="trust.operator_key_added",
            actor=actor,
            message=f"{name} may approve with key {key.key_id}, from trust bundle {bundle.version} on.",
            data={"key_id": key.key_id, "organizations": row.organizations, "version": bundle.version},
        )
        return row


async def revoke_operator_key(runtime: Runtime, name_or_id: str, reason: str, actor: str) -> OperatorKey:
    """
    Take a key out of the trust bundle, for ever. What it approved is worth nothing any more.

    Args:
        runtime: The server.
        name_or_id: Name of a live key, or the id of any.
        reason: Why, for the event.
        actor: Who revokes it.

    Raises:
        NotFoundError: There is no such key.
        ConfigurationError: The root key is not on this server.
    """
    now = runtime.clock.now()
    async with runtime.database.write() as session:
        await take(session, Lock.TRUST)
        row = _named((await session.scalars(select(OperatorKey))).all(), name_or_id)
        if row.revoked_at is not None:
            return row
        row.revoked_at = now
        held = read_bundle(await current_bundle(session))
        kept = tuple(key for key in held.keys if key.open().key_id != row.key_id)
        bundle = await issue(session, runtime.keys.root, kept, now=now)
        await record(
            session,
            at=now,
            kind="trust.operator_key_revoked",
            actor=actor,
            message=f"{row.name} may not approve any more, from trust bundle {bundle.version} on: {reason}",
            data={"key_id": row.key_id, "version": bundle.version, "reason": reason},
        )
        return row


async def list_operator_keys(session: AsyncSession) -> Sequence[OperatorKey]:
    """All keys, also those that were revoked, the oldest first."""
    return (await session.scalars(select(OperatorKey).order_by(OperatorKey.id))).all()


async def live_operator_keys(session: AsyncSession, organization_id: UUID, now: datetime) -> dict[str, VerifyKey]:
    """The keys whose approvals the machines of an organization believe now, by key id."""
    bundle = read_bundle(await current_bundle(session))
    return live_keys(bundle, Role.OPERATOR, now=now, organization=str(organization_id))


async def names_of_keys(session: AsyncSession, key_ids: Collection[str]) -> dict[str, str]:
    """Whose these keys are, by key id."""
    query = select(OperatorKey.key_id, OperatorKey.name).where(OperatorKey.key_id.in_(key_ids))
    return dict((await session.execute(query)).tuples().all())


def _public_key(text: str) -> VerifyKey:
    try:
        return VerifyKey(b64decode(text))
    except MalformedError:
        raise InvalidRequestError("that is no public key: take the one that `redflag keys show` prints") from None


def _name(name: str) -> str:
    if not name.strip() or not name.isprintable() or len(name) > MAX_NAME:
        raise InvalidRequestError(f"a key is named with one line of 1 to {MAX_NAME} characters")
    return name


def _check_new(known: Sequence[OperatorKey], key: VerifyKey, name: str) -> None:
    live = [each for each in known if each.revoked_at is None]
    same = next((each for each in known if each.key_id == key.key_id), None)
    if same is not None and same.revoked_at is not None:
        raise ConflictError(f"this key of {same.name} was revoked and never comes back: make a new one")
    if same is not None:
        raise ConflictError(f"this key is there already, as that of {same.name}")
    if any(each.name == name for each in live):
        raise ConflictError(f"{name} has a key already: revoke it first, or choose another name")
    if len(live) >= MAX_OPERATOR_KEYS:
        raise ConflictError(f"there are {MAX_OPERATOR_KEYS} keys: revoke those that nobody uses")


def _check_unused(held: TrustBundle, key: VerifyKey) -> None:
    """A key has one role: the server's own keys are on the server, and an operator's must not be."""
    if any(each.open() == key for each in held.keys):
        raise ConflictError("this is a key of the server itself: an operator needs one that is not on the server")


def _trusted(row: OperatorKey, now: datetime) -> TrustedKey:
    start = int(now.timestamp())
    return TrustedKey(
        b64encode(row.public_key), Role.OPERATOR, start, start + KEY_VALIDITY_SECONDS, tuple(row.organizations)
    )


def _named(known: Sequence[OperatorKey], name_or_id: str) -> OperatorKey:
    live = [each for each in known if each.revoked_at is None and each.name == name_or_id]
    found = next(iter([*live, *(each for each in known if each.key_id == name_or_id)]), None)
    if found is None:
        raise NotFoundError(f"there is no live operator key {name_or_id}: redflag server operator-key list")
    return found
