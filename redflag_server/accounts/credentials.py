"""
Sessions and API keys: found by the digest of their secret, and live only as long as everything behind them is.

Nothing is cached: a session that was revoked, a key that expired or a person that was disabled is cut off with
the next request.
"""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

import attrs
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.enrolment import secret_digest
from redflag_core.errors import MalformedError
from redflag_server.accounts.permissions import UserRole, common, permissions_of
from redflag_server.accounts.tables import Credential, User
from redflag_server.db.scope import Caller

KEY_PREFIX: Final = "rfk_"
"""First characters of every API key, so that scanners of leaked secrets find them."""

IDLE: Final = timedelta(hours=12)
"""A session ends when it is not used for so long: a working day with its breaks fits in."""

LONGEST: Final = timedelta(days=7)
"""A session ends after so long, used or not."""

USE_NOTED: Final = timedelta(minutes=1)
"""How exactly the last use is kept: not every request has to write."""


class CredentialKind(StrEnum):
    """How somebody came in."""

    SESSION = "session"
    API_KEY = "api_key"


@attrs.frozen
class Presented:
    """A credential on record that is live, and whose it is (None: a key that belongs to no person)."""

    credential: Credential
    user: User | None

    @property
    def caller(self) -> Caller:
        """Who is asking, with what both the credential and the person behind it may do and see."""
        credential, user = self.credential, self.user
        is_key = credential.kind == CredentialKind.API_KEY
        held = None if user is None else permissions_of(UserRole(user.role))
        scopes = common(credential.scopes, held or {"*"}) if is_key else held or frozenset()
        owner = credential.organization_id or (None if user is None else user.organization_id)
        return Caller(
            actor=f"api-key:{credential.name}" if is_key or user is None else f"user:{user.name}",
            scopes=scopes,
            organizations=None if owner is None else frozenset({owner}),
            credential_id=credential.id,
            user_id=None if user is None else user.id,
        )


def key_digest(text: str) -> bytes | None:
    """The digest of an API key, None when *text* is none."""
    return session_digest(text.removeprefix(KEY_PREFIX)) if text.startswith(KEY_PREFIX) else None


def session_digest(text: str) -> bytes | None:
    """The digest of a session secret, None when *text* is none."""
    try:
        return secret_digest(text)
    except MalformedError:
        return None


async def find(session: AsyncSession, kind: CredentialKind, digest: bytes, now: datetime) -> Presented | None:
    """The live credential with this digest."""
    query = (
        select(Credential, User)
        .join(User, User.id == Credential.user_id, isouter=True)
        .where(Credential.digest == digest, Credential.kind == kind)
    )
    row = (await session.execute(query)).one_or_none()
    return Presented(*row) if row is not None and is_live(row[0], row[1], now) else None


def is_live(credential: Credential, user: User | None, now: datetime) -> bool:
    """Whether a credential lets somebody in at *now*."""
    if credential.revoked_at is not None or (credential.expires_at is not None and now >= credential.expires_at):
        return False
    if user is not None and user.disabled_at is not None:
        return False
    if credential.kind == CredentialKind.API_KEY:
        return True
    return user is not None and now < (credential.last_used_at or credential.created_at) + IDLE


def use_is_news(credential: Credential, now: datetime) -> bool:
    """Whether this use is later enough than the last one to be written down."""
    return credential.last_used_at is None or now - credential.last_used_at >= USE_NOTED


async def note_use(session: AsyncSession, credential: Credential, now: datetime) -> None:
    """Write down that the credential was used."""
    await session.execute(update(Credential).where(Credential.id == credential.id).values(last_used_at=now))
