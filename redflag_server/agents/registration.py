"""Registration: the decisions are `redflag_core.enrolment`'s, this stores what they say."""

import hmac
import ipaddress
from datetime import datetime
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from redflag_core import codec
from redflag_core.encoding import hex_decode
from redflag_core.enrolment import (
    REFRESH_SECONDS,
    AgentStatus,
    RegistrationClaim,
    RegistrationVerdict,
    judge_registration,
    parse_credential,
)
from redflag_core.machine import MachineEvidence
from redflag_core.messages import Register, Registered
from redflag_server.agents.admission import refuse_duplicate
from redflag_server.agents.statements import check_proof
from redflag_server.agents.tables import Agent, RegistrationToken
from redflag_server.checkin.authentication import VerifiedNewcomer
from redflag_server.db.duplicates import is_duplicate
from redflag_server.db.locks import Lock, take
from redflag_server.events.recorder import record
from redflag_server.problems import RegistrationConflictError, RegistrationRefusedError
from redflag_server.runtime import Runtime


async def register(runtime: Runtime, newcomer: VerifiedNewcomer, body: Register) -> Registered:
    """
    Register an agent, or repeat the answer to the same registration.

    Args:
        runtime: The server.
        newcomer: The verified sender; its key is the agent key in *body*.
        body: The registration.

    Raises:
        RegistrationRefusedError: The token gives no seat.
        RegistrationConflictError: The key is registered with other data.
        DuplicateMachineError: Another agent has this machine id.
        VerificationError: The executor did not sign this.
    """
    token_id, digest = parse_credential(body.registration_token)
    evidence = check_proof(body, server=runtime.server, root_fp=runtime.root_fp, token_id=token_id)
    claim = RegistrationClaim(
        key_id=newcomer.request.key_id,
        executor_key_id=body.executor_key.open().key_id,
        refresh_hash=hex_decode(body.refresh_hash, 32),
        evidence_digest=evidence.digest,
    )
    async with runtime.database.write() as session:
        await take(session, Lock.MACHINE, evidence.binding)  # the same registration may come twice at once
        recorded = await _recorded(session, claim)
        verdict = judge_registration(_claim_of(recorded), claim)
        if verdict is RegistrationVerdict.CONFLICT:
            raise _conflict()
        if verdict is RegistrationVerdict.REPEAT:
            return _registered(runtime, recorded)
        now = runtime.clock.now()
        token = await _usable_token(session, token_id, digest, newcomer.address, now)
        await refuse_duplicate(session, evidence)
        await _take_seat(session, token)
        agent = _new_agent(token, body, claim=claim, evidence=evidence, address=newcomer.address, now=now)
        session.add(agent)
        try:
            await session.flush()
        except IntegrityError as error:
            if not is_duplicate(error):
                raise
            raise _conflict() from None  # another machine with this key was a moment earlier
        await _record_registration(session, agent, token, newcomer.address)
        return _registered(runtime, agent)


def _conflict() -> RegistrationConflictError:
    return RegistrationConflictError("this key is registered already, with other data: make new keys")


async def _recorded(session: AsyncSession, claim: RegistrationClaim) -> Agent | None:
    query = select(Agent).where((Agent.key_id == claim.key_id) | (Agent.executor_key_id == claim.executor_key_id))
    agents = (await session.scalars(query.order_by(Agent.key_id != claim.key_id).limit(1))).all()
    return agents[0] if agents else None


def _claim_of(agent: Agent | None) -> RegistrationClaim | None:
    if agent is None:
        return None
    return RegistrationClaim(
        agent.key_id, agent.executor_key_id, agent.first_refresh_hash, agent.first_evidence_digest
    )


async def _usable_token(
    session: AsyncSession, token_id: str, digest: bytes, address: str, now: datetime
) -> RegistrationToken:
    """The token, if it can be used at all; whether a seat is left is decided when it is taken."""
    token = await session.get(RegistrationToken, _uuid(token_id), with_for_update={"key_share": True})
    # One sentence for all: a guesser learns nothing about tokens that exist.
    refused = RegistrationRefusedError("the registration token is not valid (any more): ask for a new one")
    if token is None or not hmac.compare_digest(token.digest, digest):
        raise refused
    if token.revoked_at is not None or token.expires_at <= now or not _within(address, token.cidr):
        raise refused
    return token


async def _take_seat(session: AsyncSession, token: RegistrationToken) -> None:
    """Take one seat in one statement: of concurrent registrations as many pass as there are seats."""
    taken = await session.scalar(
        update(RegistrationToken)
        .where(RegistrationToken.id == token.id, RegistrationToken.used < RegistrationToken.seats)
        .values(used=RegistrationToken.used + 1)
        .returning(RegistrationToken.id)
        .execution_options(synchronize_session=False)
    )
    if taken is None:
        raise RegistrationRefusedError("every seat of this registration token is taken: ask for a new one")


def _new_agent(
    token: RegistrationToken,
    body: Register,
    *,
    claim: RegistrationClaim,
    evidence: MachineEvidence,
    address: str,
    now: datetime,
) -> Agent:
    executor = body.executor_key.open()
    return Agent(
        id=uuid7(),
        organization_id=token.organization_id,
        site_id=token.site_id,
        hostname=body.hostname,
        os=codec.unstructure(body.os),
        agent_version=body.versions.agent,
        protocol=list(body.versions.protocol),
        status=AgentStatus.PENDING if token.needs_approval else AgentStatus.ACTIVE,
        status_reason="registered with a token that needs approval" if token.needs_approval else "registered",
        status_at=now,
        registered_at=now,
        registered_with=token.id,
        key_type=body.agent_key.key_type,
        key_id=claim.key_id,
        public_key=body.agent_key.open().public_key,
        executor_key_id=executor.key_id,
        executor_key=executor.public_key,
        machine_binding=evidence.binding,
        evidence=codec.unstructure(evidence),
        evidence_digest=evidence.digest,
        last_match_at=now,
        first_refresh_hash=claim.refresh_hash,
        first_evidence_digest=claim.evidence_digest,
        refresh_current=claim.refresh_hash,
        refresh_expires_at=int(now.timestamp()) + REFRESH_SECONDS,
        last_seen_at=now,
        last_address=address,
    )


async def _record_registration(
    session: AsyncSession, agent: Agent, token: RegistrationToken, address: str
) -> None:
    await record(
        session,
        at=agent.registered_at,
        kind="agent.registered",
        actor=f"agent:{agent.id}",
        message=f"{agent.hostname} registered with the token {token.label!r}; it is {agent.status}.",
        organization_id=agent.organization_id,
        agent_id=agent.id,
        data={"address": address, "token": str(token.id), "weak": agent.evidence["weak"]},
    )


def _registered(runtime: Runtime, agent: Agent | None) -> Registered:
    assert agent is not None  # noqa: S101  (a repeat has a record)
    return Registered(1, str(agent.id), runtime.server, agent.status, str(agent.organization_id))


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise RegistrationRefusedError(
            "the registration token is not valid (any more): ask for a new one"
        ) from None


def _within(address: str, cidr: str | None) -> bool:
    if cidr is None:
        return True
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(cidr)
    except ValueError:
        return False
