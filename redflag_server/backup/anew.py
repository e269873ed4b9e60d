"""
What must not go on as it is in a database that comes back from a backup: put right in one transaction.

What was used up, ended or revoked since the backup is forgotten. What agents use up is jumped over (`recovery` in
the core). What people and machines come in with, and can have again in a minute, ends: sessions, set-up links and
registration tokens. Commands are asked about, and none is started that was not started before: somebody may have
taken it back. What cannot be had again so easily comes back as it was, and is counted for the operator: accounts,
API keys, machines. So do jobs that were put off: they are done at least once, and so may be done again.
"""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import attrs
from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.command_queue import EVENTS, LIVE, UNACCEPTED, CommandEvent, CommandState
from redflag_core.commands import CommandType
from redflag_core.enrolment import AgentStatus
from redflag_core.recovery import ServerCounters, after_restore
from redflag_server.accounts.credentials import CredentialKind
from redflag_server.accounts.tables import Credential, SetupLink, User
from redflag_server.agents.tables import Agent, RegistrationToken
from redflag_server.backup.archive import Manifest
from redflag_server.commands.changes import RESTORED, Change, change
from redflag_server.commands.tables import Command
from redflag_server.events.recorder import record
from redflag_server.jobs.tables import Lease, QueuedJob
from redflag_server.trust.tables import ServerState

LONG_OVER: Final = timedelta(hours=1)
"""How long ago a command that no machine had accepted had to be started: over on every machine's clock."""


@attrs.frozen
class Outcome:
    """
    What a restore changed, and what it brought back.

    Attributes:
        gen: The new generation of the server.
        nonce_horizon: Unix seconds until which agents are not answered.
        sessions: Sessions that were ended.
        registration_tokens: Registration tokens that were revoked.
        users: Accounts that may sign in.
        api_keys: API keys that are live.
        machines: Machines that are not revoked.
    """

    gen: int
    nonce_horizon: int
    sessions: int
    registration_tokens: int
    users: int
    api_keys: int
    machines: int


async def begin_anew(session: AsyncSession, manifest: Manifest, *, now: datetime, actor: str) -> Outcome:
    """
    Make a restored database fit to be served.

    Args:
        session: An open write transaction.
        manifest: The backup that it comes from.
        now: Current time, aware UTC; the server that was replaced has stopped.
        actor: Who restores, for the events.
    """
    counters = await _jump(session, now)
    sessions = await _end_sessions(session, now)
    await session.execute(delete(SetupLink))
    tokens = await _revoke_tokens(session, now, actor)
    await _restart_grace(session, now)
    await _forget_leases(session)
    await _settle_commands(session, now, actor)
    outcome = Outcome(
        gen=counters.gen,
        nonce_horizon=counters.nonce_horizon,
        sessions=sessions,
        registration_tokens=tokens,
        users=await _count(session, User.disabled_at.is_(None)),
        api_keys=await _count(session, Credential.kind == CredentialKind.API_KEY, *_live(Credential, now)),
        machines=await _count(session, Agent.status != AgentStatus.REVOKED),
    )
    await _record(session, manifest, outcome, now=now, actor=actor)
    return outcome


async def _jump(session: AsyncSession, now: datetime) -> ServerCounters:
    state = (await session.scalars(select(ServerState))).one()
    counters = after_restore(ServerCounters(state.gen, state.nonce_horizon), now=now)
    state.gen, state.nonce_horizon = counters.gen, counters.nonce_horizon
    return counters


async def _end_sessions(session: AsyncSession, now: datetime) -> int:
    """Somebody may have signed out, or been signed out, since."""
    open_ones = (Credential.kind == CredentialKind.SESSION, Credential.revoked_at.is_(None))
    result = await session.execute(update(Credential).where(*open_ones).values(revoked_at=now))
    return int(result.rowcount)  # type: ignore[attr-defined]


async def _revoke_tokens(session: AsyncSession, now: datetime, actor: str) -> int:
    """Seats that were taken since are free again, and a token that was revoked since is not."""
    usable = (*_live(RegistrationToken, now), RegistrationToken.used < RegistrationToken.seats)
    tokens = (await session.scalars(select(RegistrationToken).where(*usable))).all()
    for token in tokens:
        token.revoked_at = now
        await record(
            session,
            at=now,
            kind="registration_token.revoked",
            actor=actor,
            message=f"The registration token {token.label} was revoked: the server was restored from a backup.",
            organization_id=token.organization_id,
            data={"registration_token_id": str(token.id), "reason": "restored"},
        )
    return len(tokens)


async def _restart_grace(session: AsyncSession, now: datetime) -> None:
    """A machine that could not show itself because the server was away must not count as changed."""
    doubted = update(Agent).where(Agent.mismatch_since.is_not(None))
    await session.execute(doubted.values(mismatch_since=now))


async def _forget_leases(session: AsyncSession) -> None:
    """Whoever held one has stopped. What was begun and not finished is begun again."""
    await session.execute(delete(Lease))
    leased = update(QueuedJob).where(QueuedJob.lease_until.is_not(None))
    await session.execute(leased.values(lease_holder=None, lease_until=None))


async def _settle_commands(session: AsyncSession, now: datetime, actor: str) -> None:
    """
    Ask every machine what became of its commands, and let nothing start that was not started before.

    What no machine had accepted may have been taken back since the backup, whether it was handed out or not, or
    accepted and carried out, and nobody here would know. It may not be started any more: an executor that never
    saw it signs that, and one that did answers what became of it. A cancellation may still be carried out: it
    starts nothing.

    What was accepted before may have ended, and its result does not come again by itself. It is handed out again:
    an executor that knows it starts nothing, and answers what became of it.
    """
    why = Change(actor=actor, now=now, code=RESTORED, why="the server was restored from a backup")
    live = select(Command).where(Command.state.in_(LIVE)).order_by(Command.id)
    for command in (await session.scalars(live)).all():
        state = CommandState(command.state)
        if state in UNACCEPTED:
            command.code = RESTORED
        if state in UNACCEPTED and command.type != CommandType.COMMAND_CANCEL:
            command.start_by = min(command.start_by, now - LONG_OVER)
        command.delivered_at = command.delivered_at or now
        if state in EVENTS[CommandEvent.DOUBT].origins:
            await change(session, command, CommandEvent.DOUBT, why)


def _live(table: Any, now: datetime) -> tuple[Any, ...]:
    return table.revoked_at.is_(None), or_(table.expires_at.is_(None), table.expires_at > now)


async def _count(session: AsyncSession, *conditions: Any) -> int:
    return (await session.scalars(select(func.count()).where(*conditions))).one()


async def _record(
    session: AsyncSession, manifest: Manifest, outcome: Outcome, *, now: datetime, actor: str
) -> None:
    made = f"{datetime.fromtimestamp(manifest.created_at, tz=UTC):%Y-%m-%d %H:%M} UTC"
    await record(
        session,
        at=now,
        kind="server.restored",
        actor=actor,
        message=f"The server was restored from a backup of {made}. What happened since is not on record.",
        data={"created_at": manifest.created_at, "release": manifest.release, **attrs.asdict(outcome)},
    )
