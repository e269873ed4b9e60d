"""
Approvals that operators signed: taken in, found for a command, proven when it is delivered.

The core verifies. An approval is believed as long as its key is in the trust bundle and it has not ended; the
machine decides the same by itself, and counts for itself how often each command of it was started.
"""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from uuid import UUID

import attrs
from sqlalchemy import func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core import codec
from redflag_core.approval_files import ApprovalAnswer
from redflag_core.approvals import (
    APPROVAL_LEEWAY,
    Approval,
    ApprovalLeaf,
    approval_leaf,
    covers,
    open_approval,
    prove_approval,
)
from redflag_core.command_queue import LIVE
from redflag_core.commands import ApprovalProof, CommandType
from redflag_core.envelope import parse_envelope
from redflag_core.errors import VerificationError
from redflag_core.keys import VerifyKey
from redflag_server.agents.tables import Agent
from redflag_server.approvals import tables
from redflag_server.approvals.listing import summary
from redflag_server.approvals.schema import StoredApproval
from redflag_server.approvals.tables import CoveredCommand
from redflag_server.commands.tables import Command
from redflag_server.db.duplicates import is_duplicate
from redflag_server.db.scope import Scope
from redflag_server.events.recorder import record
from redflag_server.problems import ConflictError, InvalidRequestError, NotFoundError
from redflag_server.runtime import Runtime
from redflag_server.trust.operator_keys import live_operator_keys, names_of_keys


@attrs.frozen
class LiveApproval:
    """
    An approval of one command that its machine believes now.

    Attributes:
        row: The approval.
        index: Which of its leaves the command is.
        key_name: Whose key signed it.
    """

    row: tables.Approval
    index: int
    key_name: str


# --- taking in ---


async def store_approval(runtime: Runtime, visible: Scope, answer: ApprovalAnswer) -> StoredApproval:
    """
    Take in what an operator signed. The same approval again changes nothing.

    Args:
        runtime: The server.
        visible: Who brings it.
        answer: Untrusted.

    Raises:
        NotFoundError: It names machines that are not here, or not for the caller to see.
        InvalidRequestError: Its machines are of several organizations; it is not signed by a live operator key of
            theirs; it is for another server; or it covers other commands than it names.
        ConflictError: It has ended, or is not valid yet.
    """
    now = runtime.clock.now()
    async with runtime.database.write() as session:
        organization_id = await _organization(session, visible, answer.leaves)
        keys = await live_operator_keys(session, organization_id, now)
        approval, key_id = _opened(answer, keys)
        _check_ours(runtime, approval, answer.leaves, organization_id)
        _check_time(approval, now)
        known = await _stored(session, UUID(approval.id))
        row = known or _row(visible.caller.actor, answer, approval, now)
        if known is None:
            row.organization_id, row.key_id = organization_id, key_id
            known = await _store_once(session, row, answer.leaves)
            row = known or row
        names = await names_of_keys(session, [row.key_id])
        return StoredApproval(summary(row, names, {row.key_id}, now), known is None)


async def _organization(session: AsyncSession, visible: Scope, leaves: Sequence[ApprovalLeaf]) -> UUID:
    agents = {UUID(leaf.agent_id) for leaf in leaves}
    query = visible.select(Agent, Agent.id, Agent.organization_id).where(Agent.id.in_(agents))
    rows = (await session.execute(query)).all()
    organizations: set[UUID] = {row.organization_id for row in rows}
    if len(rows) < len(agents):
        raise NotFoundError("this approval is for machines that are not here")
    if len(organizations) > 1:
        raise InvalidRequestError("this approval is for machines of several organizations")
    return organizations.pop()


def _opened(answer: ApprovalAnswer, keys: Mapping[str, VerifyKey]) -> tuple[Approval, str]:
    """The approval and the key that signed it; raises `InvalidRequestError`."""
    try:
        approval = open_approval(answer.wire, keys)
    except VerificationError:
        raise InvalidRequestError(
            "this is not signed by a live operator key of the organization: `redflag server operator-key list` "
            "shows which there are"
        ) from None
    signers = [key_id for key_id, _ in parse_envelope(answer.wire).signatures if key_id in keys]
    return approval, signers[0]


def _check_ours(
    runtime: Runtime, approval: Approval, leaves: Sequence[ApprovalLeaf], organization_id: UUID
) -> None:
    if approval.root_fp != runtime.root_fp or approval.organization != str(organization_id):
        raise InvalidRequestError("this approval is for another server or organization")
    if not covers(approval, leaves):
        raise InvalidRequestError(
            "what was signed is not what the file names: take it as `redflag approve` wrote it"
        )


def _check_time(approval: Approval, now: datetime) -> None:
    if approval.exp < now.timestamp():
        raise ConflictError("this approval has ended: it must be approved anew")
    if approval.nbf > now.timestamp() + APPROVAL_LEEWAY:
        raise ConflictError(
            "this approval was made in the future: set the clock of the operator, or of this server"
        )


async def _stored(session: AsyncSession, signed_id: UUID) -> tables.Approval | None:
    found: tables.Approval | None = (
        await session.scalars(select(tables.Approval).where(tables.Approval.signed_id == signed_id))
    ).one_or_none()
    return found


def _row(actor: str, answer: ApprovalAnswer, approval: Approval, now: datetime) -> tables.Approval:
    return tables.Approval(
        signed_id=UUID(approval.id),
        envelope=answer.wire,
        covered=[codec.unstructure(leaf) for leaf in answer.leaves],
        max_starts=approval.max_starts,
        valid_from=datetime.fromtimestamp(approval.nbf, UTC),
        valid_until=datetime.fromtimestamp(approval.exp, UTC),
        stored_at=now,
        stored_by=actor[:128],
    )


async def _store_once(
    session: AsyncSession, row: tables.Approval, leaves: Sequence[ApprovalLeaf]
) -> tables.Approval | None:
    """Store an approval; the one that is there, when another transaction was a moment earlier."""
    try:
        async with session.begin_nested():
            await _store(session, row, leaves)
    except IntegrityError as error:
        if not is_duplicate(error):
            raise
        known = await _stored(session, row.signed_id)
        if known is None:
            raise
        return known
    return None


async def _store(session: AsyncSession, row: tables.Approval, leaves: Sequence[ApprovalLeaf]) -> None:
    session.add(row)
    await session.flush()
    session.add_all(
        CoveredCommand(
            organization_id=row.organization_id,
            approval_id=row.id,
            position=position,
            agent_id=UUID(leaf.agent_id),
            digest=_digest(leaf),
        )
        for position, leaf in enumerate(leaves)
    )
    await session.flush()
    await _tell(session, row)


async def _tell(session: AsyncSession, row: tables.Approval) -> None:
    names = await names_of_keys(session, [row.key_id])
    agents = {leaf["agent_id"] for leaf in row.covered}
    number = len(row.covered)
    await record(
        session,
        at=row.stored_at,
        kind="approval.stored",
        actor=row.stored_by,
        message=f"{names.get(row.key_id, row.key_id)} approved {number} command{'' if number == 1 else 's'}, "
        f"until {row.valid_until:%Y-%m-%d %H:%M} UTC.",
        organization_id=row.organization_id,
        agent_id=UUID(min(agents)) if len(agents) == 1 else None,
        data={"approval": str(row.signed_id), "key_id": row.key_id, "commands": number},
    )


# --- using ---


async def approval_of(
    session: AsyncSession, machine: Agent, kind: CommandType, params: bytes, now: datetime
) -> LiveApproval | None:
    """
    The approval of a command that its machine believes now; the one that is valid longest, if there are several.

    Args:
        session: An open transaction.
        machine: The machine that the command is for.
        kind: Type of the command.
        params: The exact JSON text of its parameters.
        now: Database time, aware UTC.
    """
    leaf = approval_leaf(str(machine.id), machine.machine_binding, kind.value, params)
    query = (
        select(tables.Approval, CoveredCommand.position)
        .join(CoveredCommand, CoveredCommand.approval_id == tables.Approval.id)
        .where(
            CoveredCommand.agent_id == machine.id,
            CoveredCommand.digest == _digest(leaf),
            tables.Approval.valid_until >= now,
        )
        .order_by(tables.Approval.valid_until.desc(), tables.Approval.id)
    )
    rows = (await session.execute(query)).tuples().all()
    keys = await live_operator_keys(session, machine.organization_id, now) if rows else {}
    for row, index in rows:
        if row.key_id in keys and await _uses(session, row, index) < row.max_starts:
            names = await names_of_keys(session, [row.key_id])
            return LiveApproval(row, index, names.get(row.key_id, row.key_id))
    return None


async def proof_for(session: AsyncSession, command: Command) -> ApprovalProof | None:
    """What goes with a command when it is delivered; None for one without an approval."""
    if command.approval_id is None or command.approval_index is None:
        return None
    row = await session.get_one(tables.Approval, command.approval_id)
    leaves = [codec.structure(ApprovalLeaf, leaf) for leaf in row.covered]
    return prove_approval(row.envelope, leaves, command.approval_index)


async def _uses(session: AsyncSession, row: tables.Approval, index: int) -> int:
    """How many commands used a leaf up, or may do so yet."""
    query = select(func.count()).where(
        Command.approval_id == row.id,
        Command.approval_index == index,
        or_(Command.accepted_at.is_not(None), Command.state.in_(LIVE)),
    )
    return (await session.scalars(query)).one()


def _digest(leaf: ApprovalLeaf) -> str:
    return hashlib.sha256(leaf.data).hexdigest()
