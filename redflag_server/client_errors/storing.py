"""Count kinds of errors in their rows: one statement, however many there are, and however many do so at once."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import Table, case, delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from redflag_core.error_reports import ErrorKind
from redflag_server.client_errors.tables import NO_AGENT, ClientError, ErrorSource
from redflag_server.organizations.tables import INSTALLATION

MAX_KINDS: Final = 500
"""Kinds of errors kept for one agent, and for the server: more than anybody reads, some megabytes at most."""

_TABLE: Final[Table] = ClientError.__table__  # type: ignore[assignment]
_SAMPLE: Final = ("subsystem", "type", "message", "stack", "context")


@attrs.frozen
class Owner:
    """
    Whose errors they are.

    Attributes:
        source: Who met them.
        organization_id: Whose rows they are.
        agent_id: The agent, if it was one.
    """

    source: ErrorSource
    organization_id: UUID
    agent_id: UUID | None = None


SERVER: Final = Owner(ErrorSource.SERVER, INSTALLATION)
"""Errors of the server are the installation's."""


async def count_errors(session: AsyncSession, owner: Owner, kinds: Sequence[ErrorKind], now: datetime) -> int:
    """
    Count errors in the rows of their kinds, making those that are missing.

    A kind that was resolved is open again if it was seen after that. Times that are still to come are those of a
    wrong clock: they are taken for now, so that no row stays for ever.

    Args:
        session: The open write transaction.
        owner: Whose they are.
        kinds: Each kind once, in the order of fingerprints.
        now: Database time, aware UTC.

    Returns:
        How many kinds were forgotten, because there were too many.
    """
    if kinds:
        await session.execute(_statement(session, owner), [_row(owner, kind, now) for kind in kinds])
    return await _forget_oldest(session, owner)


def _statement(session: AsyncSession, owner: Owner) -> Any:
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    statement = dialect.insert(_TABLE)
    known, new = _TABLE.c, statement.excluded
    changes: dict[str, Any] = {name: new[name] for name in _SAMPLE}
    changes["count"] = known.count + new.count
    changes["first_seen_at"] = _pick(new.first_seen_at < known.first_seen_at, new, known, "first_seen_at")
    changes["last_seen_at"] = _pick(new.last_seen_at > known.last_seen_at, new, known, "last_seen_at")
    changes["resolved_at"] = case((new.last_seen_at > known.resolved_at, None), else_=known.resolved_at)
    if owner.agent_id is None:
        keys = ["organization_id", "source", "digest"]
        return statement.on_conflict_do_update(index_elements=keys, index_where=NO_AGENT, set_=changes)
    return statement.on_conflict_do_update(index_elements=["agent_id", "digest"], set_=changes)


def _pick(condition: Any, new: Any, known: Any, name: str) -> Any:
    return case((condition, new[name]), else_=known[name])


def _row(owner: Owner, kind: ErrorKind, now: datetime) -> dict[str, Any]:
    last = min(_time(kind.last_seen), now)
    return {
        "id": uuid7(),
        **attrs.asdict(owner),
        "digest": kind.fingerprint,
        **{name: getattr(kind.sample, name) for name in _SAMPLE},
        "count": kind.count,
        "first_seen_at": min(_time(kind.first_seen), last),
        "last_seen_at": last,
    }


async def _forget_oldest(session: AsyncSession, owner: Owner) -> int:
    """Keep the newest `MAX_KINDS`: nobody must fill the disk."""
    own = (ClientError.source == owner.source, ClientError.organization_id == owner.organization_id)
    oldest = (
        select(ClientError.id)
        .where(*own, ClientError.agent_id == owner.agent_id)
        .order_by(ClientError.last_seen_at.desc(), ClientError.id.desc())
        .offset(MAX_KINDS)
    )
    ids = (await session.scalars(oldest)).all()
    if ids:
        await session.execute(delete(ClientError).where(ClientError.id.in_(ids)))
    return len(ids)


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, tz=UTC)
