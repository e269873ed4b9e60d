"""
What a verified request says about its machine, and what follows for the agent's record.

`admit` decides with the core and collects the changes and events in an `Outcome`; `Outcome.store` writes them in
the transaction of the request. A refusal is stored too: a quarantine or a mismatch must be on record.
"""

from datetime import datetime
from typing import Any

import attrs
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core import codec
from redflag_core.command_queue import OrderVerdict, judge_order, noted_at
from redflag_core.commands import Order
from redflag_core.enrolment import AgentStatus
from redflag_core.errors import MachineMismatchError, RedFlagError
from redflag_core.machine import BootVerdict, MachineEvidence, MachineVerdict, compare, judge_boot
from redflag_core.messages import ExecutorState
from redflag_server.agents.tables import Agent
from redflag_server.checkin.claims import STATUS_MESSAGES
from redflag_server.db.engine import wake_after_commit
from redflag_server.db.locks import Lock, take
from redflag_server.events.recorder import record
from redflag_server.plans.follow import agent_rebooted
from redflag_server.problems import AgentStateError, DuplicateMachineError


@attrs.define
class Outcome:
    """
    What one request does to the record of its agent.

    Attributes:
        agent: The record as it was, a row of `Agent`, locked.
        now: Database time, aware UTC.
        changes: New values of columns.
        events: What happened.
        refusal: Why the request must be refused, or None.
    """

    agent: Any
    now: datetime
    changes: dict[str, Any] = attrs.field(factory=dict)
    events: list[dict[str, Any]] = attrs.field(factory=list)
    refusal: RedFlagError | None = None

    def note(self, kind: str, message: str, *, code: str | None = None, **data: Any) -> None:
        """Add an event."""
        self.events.append({"kind": kind, "message": message, "code": code, "data": data})

    def set_status(self, status: AgentStatus, reason: str) -> None:
        """Move the agent to a status in which requests like this one are refused."""
        self.changes.update(status=status, status_reason=reason, status_at=self.now)
        self.refusal = AgentStateError(STATUS_MESSAGES[status], status)

    def quarantine(self, reason: str) -> None:
        """Cut the agent off at once, until an operator decides."""
        self.set_status(AgentStatus.QUARANTINED, reason)
        self.changes["token_version"] = self.agent.token_version + 1
        self.note("agent.quarantined", f"{self.agent.hostname} is quarantined: {reason}.")

    def value(self, column: str) -> Any:
        """The value of a column after the changes."""
        return self.changes.get(column, getattr(self.agent, column))

    async def store(self, session: AsyncSession) -> None:
        """Write changes and events in the open transaction."""
        if self.changes:
            table = Agent.__table__
            statement = update(table).where(table.c.id == self.agent.id)  # type: ignore[arg-type]
            await session.execute(statement.values(self.changes))
        if "status" in self.changes:
            wake_after_commit(session, self.agent.id)
        for event in self.events:
            await record(
                session,
                at=self.now,
                actor=f"agent:{self.agent.id}",
                organization_id=self.agent.organization_id,
                agent_id=self.agent.id,
                **event,
            )


async def admit(
    session: AsyncSession, agent: Any, evidence: MachineEvidence | None, boot_id: str | None, now: datetime
) -> Outcome:
    """
    Judge the machine of a verified request.

    Args:
        session: The open write transaction.
        agent: Row of `Agent`, locked.
        evidence: Verified evidence; None when the request's access token vouches for it.
        boot_id: Boot id sent.
        now: Database time, aware UTC.

    Returns:
        What follows; its ``refusal`` says whether the request goes on.
    """
    outcome = Outcome(agent, now)
    if evidence is not None:
        recorded = codec.structure(MachineEvidence, agent.evidence)
        if compare(recorded, evidence) is not MachineVerdict.MATCH:
            _refuse_mismatch(outcome, evidence)
            return outcome
        if evidence.digest != agent.evidence_digest:
            if evidence.binding != agent.machine_binding:
                await refuse_duplicate(session, evidence)
            _adopt(outcome, evidence)
    outcome.changes.update(last_match_at=now)
    if agent.mismatch_since is not None:
        outcome.changes.update(mismatch_since=None, presented_evidence=None)
    if _judge_boot(outcome, boot_id):
        await agent_rebooted(session, agent.id, now)
    return outcome


def follow_order(outcome: Outcome, state: ExecutorState, epoch: int) -> None:
    """
    Judge how far an executor says it has come, and note it.

    A server that is behind, since it was restored, goes on above the executor. An executor that is behind what it
    signed before may have forgotten what it carried out: it gets no command until an operator approves.

    Args:
        outcome: What the request does to the record, its machine judged already.
        state: What the executor signed.
        epoch: Of the current trust bundle.
    """
    agent = outcome.agent
    reported, recorded = Order(state.epoch, state.gen, state.seq), Order(agent.epoch, agent.gen, agent.seq)
    issued = Order(agent.issued_epoch, agent.issued_gen, agent.issued_seq)
    verdict = judge_order(
        reported, at=state.iat, recorded=recorded, recorded_at=agent.order_at, issued=issued, epoch=epoch
    )
    if verdict is OrderVerdict.ROLLED_BACK:
        _roll_back(outcome, recorded, reported)
        return
    highest = max(reported, recorded)
    outcome.changes.update(epoch=highest.epoch, gen=highest.gen, seq=highest.seq)
    outcome.changes["order_at"] = noted_at(state.iat, agent.order_at, now=outcome.now)
    if verdict is OrderVerdict.SERVER_BEHIND:
        outcome.changes.update(issued_epoch=reported.epoch, issued_gen=reported.gen, issued_seq=reported.seq)
        message = f"{agent.hostname} has seen higher numbers than this server gave out: it goes on above them."
        outcome.note("agent.order_moved", message, before=_numbers(issued), reported=_numbers(reported))


async def refuse_duplicate(session: AsyncSession, evidence: MachineEvidence) -> None:
    """
    A machine id belongs to one machine of the installation.

    Raises:
        DuplicateMachineError: Another agent has this machine id.
    """
    await take(session, Lock.MACHINE, evidence.binding)
    query = select(Agent.id).where(Agent.machine_binding == evidence.binding, Agent.status != AgentStatus.REVOKED)
    if (await session.scalars(query.limit(1))).first() is not None:
        raise DuplicateMachineError("another agent has this machine id: use a random one, and register again")


def _refuse_mismatch(outcome: Outcome, evidence: MachineEvidence) -> None:
    """Note what was shown, for an operator who approves it. The record itself stays as it is."""
    presented = codec.unstructure(evidence)
    if outcome.agent.mismatch_since is None or outcome.agent.presented_evidence != presented:
        # Once for each machine: a copy that tries again every minute tells nothing new.
        outcome.changes["presented_evidence"] = presented
        outcome.changes["mismatch_since"] = outcome.agent.mismatch_since or outcome.now
        message = f"A request with the key of {outcome.agent.hostname} came from another machine; it was refused."
        outcome.note("agent.machine_mismatch", message, code="machine_mismatch")
    outcome.refusal = MachineMismatchError(
        "this is not the machine that was registered: register it, or ask an operator to approve the change"
    )


def _adopt(outcome: Outcome, evidence: MachineEvidence) -> None:
    before, after = outcome.agent.evidence, codec.unstructure(evidence)
    changed = sorted(name for name in after if before.get(name) != after[name])
    outcome.changes.update(evidence=after, evidence_digest=evidence.digest, machine_binding=evidence.binding)
    message = f"Hardware of {outcome.agent.hostname} changed ({', '.join(changed)}); it is the same machine."
    outcome.note("agent.evidence_changed", message, changed=changed)


def _roll_back(outcome: Outcome, recorded: Order, reported: Order) -> None:
    """Commands stop, reports go on. One that is cut off for another reason keeps that."""
    agent = outcome.agent
    if agent.status != AgentStatus.ACTIVE:
        return
    reason = "its executor is behind what it signed before: its data was restored"
    outcome.changes.update(status=AgentStatus.EXECUTOR_ROLLED_BACK, status_reason=reason, status_at=outcome.now)
    message = f"{agent.hostname} gets no commands until it is approved: {reason}."
    outcome.note("agent.executor_rolled_back", message, recorded=_numbers(recorded), reported=_numbers(reported))


def _numbers(order: Order) -> list[int]:
    return list(attrs.astuple(order))


def _judge_boot(outcome: Outcome, boot_id: str | None) -> bool:
    """Note what the boot id says; whether the machine was started anew since the last request."""
    agent = outcome.agent
    verdict = judge_boot(agent.boot_id, agent.previous_boot_id, boot_id)
    if verdict is BootVerdict.CLONE:
        outcome.quarantine("two machines use its key in turn (their boot ids alternate)")
    elif verdict is BootVerdict.REBOOTED:
        outcome.changes.update(previous_boot_id=agent.boot_id, boot_id=boot_id)
        if agent.boot_id is not None:
            outcome.note("agent.rebooted", f"{agent.hostname} was started anew.")
            return True
    return False
