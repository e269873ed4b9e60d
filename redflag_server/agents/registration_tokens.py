"""Registration tokens: made, listed, revoked. The text that machines get is shown once."""

import ipaddress
from datetime import timedelta
from uuid import UUID

from redflag_core.enrolment import RegistrationToken, new_secret, secret_digest
from redflag_server.agents import tables
from redflag_server.agents.schema import NewToken, TokenItem
from redflag_server.db.pages import Page, PageOf, fetch_page
from redflag_server.db.scope import Scope
from redflag_server.events.recorder import record
from redflag_server.fields import uuid_of
from redflag_server.organizations.service import find_site
from redflag_server.problems import InvalidRequestError, NotFoundError
from redflag_server.published import published
from redflag_server.runtime import Runtime


async def create_registration_token(
    runtime: Runtime, visible: Scope, order: NewToken
) -> tuple[TokenItem, RegistrationToken]:
    """
    Make a registration token.

    Args:
        runtime: The server.
        visible: Who makes it; the token is of an organization that it may see.
        order: What is wanted; its bounds were checked when it was made.

    Returns:
        The record, and the token with its secret: only a digest is kept, so it cannot be shown again.

    Raises:
        InvalidRequestError: The network or the site id is none.
        NotFoundError: No such site, or not for the caller to see.
    """
    now, secret = runtime.clock.now(), new_secret(runtime.entropy)
    site_id, cidr = uuid_of("site_id", order.site_id), _network(order.cidr)
    async with runtime.database.write() as session:
        site = await find_site(session, visible, site_id)
        token = tables.RegistrationToken(
            organization_id=site.organization_id,
            site_id=site.id,
            label=order.label,
            digest=secret_digest(secret),
            seats=order.seats,
            used=0,
            expires_at=now + timedelta(seconds=order.expires_in_seconds),
            cidr=cidr,
            needs_approval=order.needs_approval,
            created_at=now,
            created_by=visible.caller.actor,
        )
        session.add(token)
        await session.flush()
        await record(
            session,
            at=now,
            kind="registration_token.created",
            actor=visible.caller.actor,
            message=f"The registration token {token.label} was made, for {token.seats} machines.",
            organization_id=token.organization_id,
            data={"registration_token_id": str(token.id), "seats": token.seats, "cidr": cidr},
        )
        reached = await published(session, runtime.settings)
    text = RegistrationToken(
        v=1,
        id=str(token.id),
        secret=secret,
        server=runtime.server,
        root_fp=runtime.root_fp,
        addresses=reached.addresses,
        tls=reached.tls,
    )
    return token_item(token), text


async def list_tokens(runtime: Runtime, visible: Scope, wanted: PageOf) -> Page[TokenItem]:
    """One page of the registration tokens that the caller may see."""
    async with runtime.database.read() as session:
        query = visible.select(tables.RegistrationToken)
        rows, cursor = await fetch_page(session, query, tables.RegistrationToken, wanted)
    return Page([token_item(row[0]) for row in rows], cursor)


async def revoke_token(runtime: Runtime, visible: Scope, token_id: UUID, reason: str) -> TokenItem:
    """
    Revoke a registration token: nobody registers with it any more. Again, it does nothing.

    Machines that registered with it stay.

    Raises:
        NotFoundError: No such token, or not for the caller to see.
    """
    now = runtime.clock.now()
    query = visible.select(tables.RegistrationToken).where(tables.RegistrationToken.id == token_id)
    query = query.with_for_update(key_share=True)
    async with runtime.database.write() as session:
        token: tables.RegistrationToken | None = (await session.scalars(query)).one_or_none()
        if token is None:
            raise NotFoundError("there is no such registration token")
        if token.revoked_at is None:
            token.revoked_at = now
            await record(
                session,
                at=now,
                kind="registration_token.revoked",
                actor=visible.caller.actor,
                message=f"The registration token {token.label} was revoked: {reason}",
                organization_id=token.organization_id,
                data={"registration_token_id": str(token.id), "reason": reason},
            )
        return token_item(token)


def token_item(token: tables.RegistrationToken) -> TokenItem:
    """What is shown of a token."""
    return TokenItem(
        id=token.id,
        organization_id=token.organization_id,
        site_id=token.site_id,
        label=token.label,
        seats=token.seats,
        used=token.used,
        expires_at=token.expires_at,
        cidr=token.cidr,
        needs_approval=token.needs_approval,
        created_at=token.created_at,
        created_by=token.created_by,
        revoked_at=token.revoked_at,
    )


def _network(text: str | None) -> str | None:
    try:
        return None if text is None else str(ipaddress.ip_network(text.strip()))
    except ValueError:
        raise InvalidRequestError("cidr is not a network: write 192.0.2.0/24") from None
