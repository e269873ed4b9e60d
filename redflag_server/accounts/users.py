"""People: made, listed, disabled."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_server.accounts.passwords import check_password
from redflag_server.accounts.permissions import UserRole
from redflag_server.accounts.schema import UserItem
from redflag_server.accounts.tables import User
from redflag_server.db.duplicates import is_duplicate
from redflag_server.db.pages import Page, PageOf, fetch_page
from redflag_server.db.scope import Scope
from redflag_server.events.recorder import record
from redflag_server.problems import ConflictError, InvalidRequestError, NotFoundError
from redflag_server.runtime import Runtime

MAX_NAME: Final = 64
_NAME: Final = re.compile(r"\w[\w.@+-]*")


def account_name(text: str) -> str:
    """
    The one spelling of an account's name.

    Args:
        text: As typed, untrusted.

    Raises:
        InvalidRequestError: Not a name.
    """
    name = unicodedata.normalize("NFKC", text.strip()).casefold()
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise InvalidRequestError(f"a user name has 1 to {MAX_NAME} letters, digits or . @ + _ - and no spaces")
    return name


async def has_owner(session: AsyncSession) -> bool:
    """Whether somebody was ever made owner, disabled or not: then set-up is over."""
    query = select(User.id).where(User.role == UserRole.OWNER).limit(1)
    return (await session.scalars(query)).first() is not None


async def add_user(
    runtime: Runtime, *, name: str, password: str, role: UserRole, organization_id: UUID | None, actor: str
) -> User:
    """
    Make an account.

    Args:
        runtime: The server.
        name: As typed.
        password: As typed.
        role: What the person is.
        organization_id: The one organization it sees; None for all.
        actor: Who makes it, for the event.

    Raises:
        InvalidRequestError: A name or password that cannot be.
        ConflictError: The name is taken.
    """
    name = account_name(name)
    check_password(password, name=name)
    kept = await runtime.passwords.hash(password)
    async with runtime.database.write() as session:
        return await store_user(
            session, runtime, name=name, kept=kept, role=role, organization_id=organization_id, actor=actor
        )


async def store_user(
    session: AsyncSession,
    runtime: Runtime,
    *,
    name: str,
    kept: str,
    role: UserRole,
    organization_id: UUID | None,
    actor: str,
) -> User:
    """Write an account whose name and password were checked; raises `ConflictError` when the name is taken."""
    now = runtime.clock.now()
    user = User(name=name, role=role, organization_id=organization_id, password_hash=kept, created_at=now)
    session.add(user)
    try:
        await session.flush()
    except IntegrityError as error:
        if not is_duplicate(error):
            raise
        raise ConflictError(f"there is a user {name} already: choose another name") from None
    await record(
        session,
        at=now,
        kind="user.created",
        actor=actor,
        message=f"{name} got an account as {role}.",
        data={"user_id": str(user.id), "role": role},
    )
    return user


async def disable_user(runtime: Runtime, visible: Scope, user_id: UUID, reason: str) -> UserItem:
    """
    Cut a person off, at once: sessions and the keys made by it end too. Again, it does nothing.

    Raises:
        NotFoundError: No such account, or not for the caller to see.
        ConflictError: The last owner: nobody could undo it.
    """
    now = runtime.clock.now()
    async with runtime.database.write() as session:
        owners = await _lock_owners(session)  # of two owners who disable each other, one stays
        query = visible.select(User).where(User.id == user_id).with_for_update(key_share=True)
        user: User | None = (await session.scalars(query)).one_or_none()
        if user is None:
            raise NotFoundError("there is no such user")
        if user.disabled_at is not None:
            return user_item(user)
        if owners == [user.id]:
            raise ConflictError(f"{user.name} is the last owner: make another one first")
        user.disabled_at = now
        await record(
            session,
            at=now,
            kind="user.disabled",
            actor=visible.caller.actor,
            message=f"{user.name} may not sign in any more: {reason}",
            data={"user_id": str(user.id), "reason": reason},
        )
        return user_item(user)


async def list_users(session: AsyncSession, visible: Scope, wanted: PageOf) -> Page[UserItem]:
    """One page of the people whom the caller may see."""
    rows, cursor = await fetch_page(session, visible.select(User), User, wanted)
    return Page([user_item(row[0]) for row in rows], cursor)


def user_item(user: User) -> UserItem:
    """What is shown of a person."""
    return UserItem(user.id, user.name, user.role, user.organization_id, user.created_at, user.disabled_at)


async def find_user(session: AsyncSession, name: str) -> User | None:
    """The account with this name, in whatever spelling it was typed."""
    try:
        query = select(User).where(User.name == account_name(name))
    except InvalidRequestError:
        return None
    user: User | None = (await session.scalars(query)).one_or_none()
    return user


async def _lock_owners(session: AsyncSession) -> Sequence[UUID]:
    """Owners of the whole installation who can sign in, locked in the order of their ids."""
    query = select(User.id).where(
        User.role == UserRole.OWNER, User.disabled_at.is_(None), User.organization_id.is_(None)
    )
    return (await session.scalars(query.order_by(User.id).with_for_update(key_share=True))).all()
