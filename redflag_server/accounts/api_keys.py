"""API keys: made, listed, revoked. The key itself is shown once, when it is made."""

from datetime import datetime, timedelta
from uuid import UUID

import attrs
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.enrolment import new_secret, secret_digest
from redflag_server.accounts.credentials import KEY_PREFIX, CredentialKind
from redflag_server.accounts.permissions import check_permissions, common
from redflag_server.accounts.schema import ApiKeyItem
from redflag_server.accounts.tables import Credential
from redflag_server.db.pages import Page, PageOf, fetch_page
from redflag_server.db.scope import Caller, Scope
from redflag_server.events.recorder import record
from redflag_server.organizations.service import find_organization
from redflag_server.organizations.tables import INSTALLATION
from redflag_server.problems import ForbiddenError, NotFoundError
from redflag_server.runtime import Runtime


@attrs.frozen
class KeyOrder:
    """
    A key that somebody wants.

    Attributes:
        name: What it is for.
        scopes: Its permissions.
        organization_id: The one organization it sees; None for what its maker sees.
        expires_in_days: None for a key without end.
    """

    name: str
    scopes: tuple[str, ...]
    organization_id: UUID | None = None
    expires_in_days: int | None = None


async def make_key(runtime: Runtime, visible: Scope, order: KeyOrder) -> tuple[Credential, str]:
    """
    Make an API key, with no more permissions than its maker has.

    Returns:
        Its record, and the key: only its digest is kept, so it cannot be shown again.

    Raises:
        InvalidRequestError: A permission that does not exist.
        ForbiddenError: A permission or organization that the maker does not have.
    """
    scopes = check_permissions(order.scopes)
    if common(scopes, visible.caller.scopes) != frozenset(scopes):
        raise ForbiddenError("a key can have no permission that its maker does not have")
    now, secret = runtime.clock.now(), new_secret(runtime.entropy)
    days = order.expires_in_days
    async with runtime.database.write() as session:
        key = Credential(
            user_id=visible.caller.user_id,
            kind=CredentialKind.API_KEY,
            name=order.name,
            digest=secret_digest(secret),
            scopes=list(scopes),
            organization_id=await _organization(session, visible, order.organization_id),
            created_at=now,
            expires_at=None if days is None else now + timedelta(days=days),
        )
        session.add(key)
        await session.flush()
        await record(
            session,
            at=now,
            kind="api_key.created",
            actor=visible.caller.actor,
            message=f"The API key {order.name} was made. It may: {', '.join(scopes)}.",
            organization_id=key.organization_id or INSTALLATION,
            data={"api_key_id": str(key.id), "scopes": list(scopes)},
        )
    return key, KEY_PREFIX + secret


async def list_keys(session: AsyncSession, visible: Scope, wanted: PageOf) -> Page[ApiKeyItem]:
    """One page of the API keys that the caller may see."""
    query = visible.select(Credential).where(Credential.kind == CredentialKind.API_KEY)
    rows, cursor = await fetch_page(session, query, Credential, wanted)
    return Page([key_item(row[0]) for row in rows], cursor)


async def revoke_key(runtime: Runtime, visible: Scope, key_id: UUID, reason: str) -> ApiKeyItem:
    """
    Revoke an API key, at once and for ever. Again, it does nothing.

    Raises:
        NotFoundError: No such key, or not for the caller to see.
    """
    now = runtime.clock.now()
    query = visible.select(Credential).where(Credential.id == key_id, Credential.kind == CredentialKind.API_KEY)
    query = query.with_for_update()
    async with runtime.database.write() as session:
        key: Credential | None = (await session.scalars(query)).one_or_none()
        if key is None:
            raise NotFoundError("there is no such API key")
        if key.revoked_at is None:
            key.revoked_at = now
            await _record_revoked(session, visible.caller, key, reason, now)
        return key_item(key)


def key_item(key: Credential) -> ApiKeyItem:
    """What is shown of a key."""
    return ApiKeyItem(
        id=key.id,
        name=key.name,
        scopes=list(key.scopes),
        organization_id=key.organization_id,
        created_at=key.created_at,
        expires_at=key.expires_at,
        last_used_at=key.last_used_at,
        revoked_at=key.revoked_at,
    )


async def _record_revoked(
    session: AsyncSession, caller: Caller, key: Credential, reason: str, now: datetime
) -> None:
    await record(
        session,
        at=now,
        kind="api_key.revoked",
        actor=caller.actor,
        message=f"The API key {key.name} was revoked: {reason}",
        organization_id=key.organization_id or INSTALLATION,
        data={"api_key_id": str(key.id), "reason": reason},
    )


async def _organization(session: AsyncSession, visible: Scope, wanted: UUID | None) -> UUID | None:
    """The organization of a new key: never a wider view than its maker's."""
    if wanted is not None:
        return (await find_organization(session, visible, wanted)).id
    mine = visible.caller.organizations
    if mine is None:
        return None
    if len(mine) != 1:
        raise ForbiddenError("say which organization the key is for: organization_id")
    return next(iter(mine))
