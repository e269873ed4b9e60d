"""Sign-in and sign-out."""

from sqlalchemy import delete, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.enrolment import new_secret, secret_digest
from redflag_server.accounts.credentials import IDLE, LONGEST, CredentialKind, Presented
from redflag_server.accounts.tables import Credential, User
from redflag_server.accounts.users import find_user
from redflag_server.events.recorder import Refusal, record
from redflag_server.problems import SignInRefusedError
from redflag_server.rate_limits.classes import RateClass
from redflag_server.runtime import Runtime


async def sign_in(runtime: Runtime, *, name: str, password: str, address: str, previous: Presented | None) -> str:
    """
    Open a session for the person with this name and password.

    Always a new session with a new secret: whatever the browser held before ends, so that nobody can plant a
    session that somebody else then signs in to.

    Args:
        runtime: The server.
        name: As typed, untrusted.
        password: As typed, untrusted.
        address: Where the request comes from.
        previous: The session that came with the request, if any.

    Returns:
        The secret of the session, for the cookie.

    Raises:
        RateLimitedError: Too many attempts from this address.
        SignInRefusedError: Unknown name, wrong password or disabled account: the three look and last alike.
    """
    runtime.limits.charge(RateClass.SIGN_IN, address, runtime.policies.required(RateClass.SIGN_IN))
    async with runtime.database.read() as session:
        user = await find_user(session, name)
    known = await runtime.passwords.verify(None if user is None else user.password_hash, password)
    if user is None or not known or user.disabled_at is not None:
        await _record_refusal(runtime, user, address)
        raise SignInRefusedError("the user name or the password is wrong")
    async with runtime.database.write() as session:
        await _end_dead_sessions(session, runtime)
        if previous is not None:
            await _revoke(session, runtime, previous.credential)
        return await open_session(session, runtime, user, address)


async def open_session(session: AsyncSession, runtime: Runtime, user: User, address: str) -> str:
    """Open a session for a person who has proven to be it, and return its secret."""
    now, secret = runtime.clock.now(), new_secret(runtime.entropy)
    session.add(
        Credential(
            user_id=user.id,
            kind=CredentialKind.SESSION,
            name=f"from {address}",
            digest=secret_digest(secret),
            scopes=[],
            created_at=now,
            last_used_at=now,
            expires_at=now + LONGEST,
        )
    )
    await record(
        session,
        at=now,
        kind="user.signed_in",
        actor=f"user:{user.name}",
        message=f"{user.name} signed in from {address}.",
        data={"user_id": str(user.id), "address": address},
    )
    return secret


async def sign_out(runtime: Runtime, presented: Presented, address: str) -> None:
    """End a session, for good."""
    user = presented.user
    name = "somebody" if user is None else user.name
    async with runtime.database.write() as session:
        await _revoke(session, runtime, presented.credential)
        await record(
            session,
            at=runtime.clock.now(),
            kind="user.signed_out",
            actor=f"user:{name}",
            message=f"{name} signed out from {address}.",
            data={"address": address},
        )


async def _revoke(session: AsyncSession, runtime: Runtime, credential: Credential) -> None:
    values = {"revoked_at": runtime.clock.now()}
    await session.execute(
        update(Credential).where(Credential.id == credential.id, Credential.revoked_at.is_(None)).values(values)
    )


async def _end_dead_sessions(session: AsyncSession, runtime: Runtime) -> None:
    """Remove sessions that nobody can use any more: history is in the events."""
    now = runtime.clock.now()
    dead = or_(
        Credential.revoked_at.is_not(None), Credential.expires_at <= now, Credential.last_used_at <= now - IDLE
    )
    # Those that another sign-in removes are left to it: two must not wait for each other in a circle.
    free = select(Credential.id).where(Credential.kind == CredentialKind.SESSION, dead)
    await session.execute(delete(Credential).where(Credential.id.in_(free.with_for_update(skip_locked=True))))


async def _record_refusal(runtime: Runtime, user: User | None, address: str) -> None:
    # What was typed as a name is not kept: it may be a password in the wrong field.
    who = "an unknown name" if user is None else user.name
    await runtime.refusals.record(
        Refusal(
            code="sign_in_refused",
            address=address,
            method="POST",
            path="/sign-in",
            kind="user.sign_in_failed",
            message=f"Somebody at {address} failed to sign in as {who}.",
        )
    )
