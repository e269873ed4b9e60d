"""What happened: to a machine, to a package, and what somebody has just done."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

import attrs
from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_server.agents.tables import Agent
from redflag_server.db.pages import PageOf, fetch_page
from redflag_server.db.scope import Scope
from redflag_server.events.tables import Event
from redflag_server.plans.decisions import MAX_IN_TURN
from redflag_server.problems import NotFoundError

EVENTS: Final = 50
"""Events on one page."""

NEWS: Final = timedelta(minutes=2)
"""For how long a page says what was just done: long enough to read it, and to see it after a slow answer."""

SOME: Final = 2 * MAX_IN_TURN
"""Events among which a page looks for what was just done: one decision is an event for each package."""


class Subject(StrEnum):
    """What a history can be narrowed down to."""

    MACHINE = "machine"
    SCANS = "scans"
    PACKAGES = "packages"
    PLANS = "plans"
    COMMANDS = "commands"
    REFUSALS = "refusals"


KINDS_OF: Final = {
    Subject.MACHINE: ("agent.",),
    Subject.SCANS: ("scanner.", "packages."),
    Subject.PACKAGES: ("package.",),
    Subject.PLANS: ("plan.", "approval."),
    Subject.COMMANDS: ("command.",),
    Subject.REFUSALS: ("request.",),
}
"""How the kinds of events about a subject begin."""


@attrs.frozen
class History:
    """
    One page of events, newest first.

    Attributes:
        events: They.
        next: Cursor of the next page, or None.
    """

    events: Sequence[Event]
    next: str | None


@attrs.frozen
class News:
    """
    What the caller has just done.

    Attributes:
        message: The last event of it.
        more: How many others were part of it.
    """

    message: str
    more: int


async def see_history(
    session: AsyncSession,
    visible: Scope,
    agent_id: UUID,
    *,
    package_id: UUID | None = None,
    about: Subject | None = None,
    cursor: str | None = None,
) -> History:
    """
    One page of what happened to a machine, or to one package of it.

    Goes through the index of the machine's (the package's) events. Narrowed down to something rare, that can be
    all of them.
    """
    query = visible.select(Event).where(Event.agent_id == agent_id)
    if package_id is not None:
        query = query.where(Event.package_id == package_id)
    if about is not None:
        query = query.where(or_(*(Event.kind.startswith(kind, autoescape=True) for kind in KINDS_OF[about])))
    rows, following = await fetch_page(session, query, Event, PageOf(cursor, EVENTS, newest_first=True))
    return History([row[0] for row in rows], following)


async def see_hostname(session: AsyncSession, visible: Scope, agent_id: UUID) -> str:
    """
    What a machine calls itself.

    Raises:
        NotFoundError: No such machine, or not for the caller to see.
    """
    hostname = (await session.scalars(visible.select(Agent, Agent.hostname).where(Agent.id == agent_id))).first()
    if hostname is None:
        raise NotFoundError("there is no such machine")
    return str(hostname)


async def see_news(
    session: AsyncSession, visible: Scope, agent_id: UUID | None, now: datetime, *, since: datetime | None = None
) -> News | None:
    """
    What the caller did last, if that was just now; looked for among the last `SOME` events, by index.

    Args:
        session: An open transaction.
        visible: The caller.
        agent_id: To this machine; None for anywhere.
        now: Current time.
        since: When what the page shows changed last: what was done before is no news there.
    """
    recent = visible.select(Event, Event.id, Event.kind, Event.at, Event.actor)
    if agent_id is not None:
        recent = recent.where(Event.agent_id == agent_id)
    last = recent.order_by(Event.id.desc()).limit(SOME).subquery()
    own = select(last).where(
        last.c.actor == visible.caller.actor, last.c.at >= max(now - NEWS, since or now - NEWS)
    )
    newest = (await session.execute(own.order_by(last.c.id.desc()).limit(1))).one_or_none()
    if newest is None:
        return None
    same = own.where(last.c.kind == newest.kind, last.c.at == newest.at).subquery()
    alike = select(func.count()).select_from(same)
    message = await session.scalar(visible.select(Event, Event.message).where(Event.id == newest.id))
    return News(str(message), int((await session.execute(alike)).scalar_one()) - 1)
