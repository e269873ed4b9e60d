"""
The first owner: made through a link that only the console shows, once, within minutes.

There is no default password. As soon as there is an owner the link is gone, and so is the page: it then is as
unknown as any other that does not exist.
"""

import hmac
from datetime import timedelta
from typing import Final

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.enrolment import new_secret, secret_digest
from redflag_server.accounts.credentials import session_digest
from redflag_server.accounts.passwords import check_password
from redflag_server.accounts.permissions import UserRole
from redflag_server.accounts.sessions import open_session
from redflag_server.accounts.tables import SetupLink
from redflag_server.accounts.users import account_name, has_owner, store_user
from redflag_server.db.locks import Lock, take
from redflag_server.events.recorder import record
from redflag_server.problems import InvalidRequestError, NotFoundError
from redflag_server.published import published
from redflag_server.runtime import Runtime

VALID: Final = timedelta(minutes=15)


async def issue_setup_link(runtime: Runtime) -> str | None:
    """
    Make a new link for setting up the first owner; the one before ends.

    Returns:
        The link, or None when there is an owner already.
    """
    now, secret = runtime.clock.now(), new_secret(runtime.entropy)
    async with runtime.database.write() as session:
        await take(session, Lock.SETUP)
        if await has_owner(session):
            return None
        await session.merge(SetupLink(id=1, digest=secret_digest(secret), expires_at=now + VALID))
        await record(
            session,
            at=now,
            kind="setup.link_issued",
            actor="server",
            message=f"A link for setting up the first owner was shown on the console, valid until {now + VALID}.",
        )
        address = (await published(session, runtime.settings)).addresses[0]
    return f"{address}/setup/{secret}"


async def check_setup_link(runtime: Runtime, secret: str) -> None:
    """
    Whether a link can be used now.

    Raises:
        NotFoundError: No; the message is that of any page that does not exist.
    """
    async with runtime.database.read() as session:
        await _check(session, runtime, secret)


async def complete_setup(
    runtime: Runtime, *, secret: str, name: str, password: str, again: str, address: str
) -> str:
    """
    Make the first owner, and sign it in. Of several at once, one is made.

    Args:
        runtime: The server.
        secret: From the link, untrusted.
        name: As typed.
        password: As typed.
        again: As typed the second time.
        address: Where the request comes from.

    Returns:
        The secret of the session, for the cookie.

    Raises:
        NotFoundError: The link cannot be used (any more).
        InvalidRequestError: A name or password that cannot be; the link stays.
    """
    await check_setup_link(runtime, secret)
    name = account_name(name)
    check_password(password, name=name)
    if password != again:
        raise InvalidRequestError("the two passwords are not the same")
    kept = await runtime.passwords.hash(password)
    async with runtime.database.write() as session:
        await take(session, Lock.SETUP)
        await _check(session, runtime, secret)
        # Taken by one statement: also where writers do not take turns, one of several wins.
        taken = await session.scalar(
            delete(SetupLink).where(SetupLink.digest == session_digest(secret)).returning(SetupLink.id)
        )
        if taken is None:
            raise NotFoundError("there is no such page")
        owner = await store_user(
            session,
            runtime,
            name=name,
            kept=kept,
            role=UserRole.OWNER,
            organization_id=None,
            actor=f"address:{address}",
        )
        return await open_session(session, runtime, owner, address)


async def _check(session: AsyncSession, runtime: Runtime, secret: str) -> None:
    link = (await session.scalars(select(SetupLink))).one_or_none()
    digest = session_digest(secret)
    usable = (
        link is not None
        and digest is not None
        and hmac.compare_digest(link.digest, digest)
        and runtime.clock.now() < link.expires_at
    )
    if not usable or await has_owner(session):
        raise NotFoundError("there is no such page")
