"""Access tokens and the refresh chain: the decisions are `redflag_core.enrolment`'s, this stores what they say."""

from typing import Any

from sqlalchemy import select

from redflag_core.encoding import hex_decode
from redflag_core.enrolment import (
    ACCESS_TOKEN_SECONDS,
    AgentStatus,
    RefreshChain,
    RefreshVerdict,
    judge_refresh,
    secret_digest,
)
from redflag_core.messages import Token, TokenRequest
from redflag_server.agents import access_tokens
from redflag_server.agents.access_tokens import AccessClaims
from redflag_server.agents.admission import Outcome, admit, follow_order
from redflag_server.agents.statements import open_evidence, open_state
from redflag_server.checkin.authentication import VerifiedAgent
from redflag_server.checkin.claims import recheck
from redflag_server.problems import RefreshForkError
from redflag_server.runtime import Runtime
from redflag_server.trust.tables import ServerState


async def give_token(runtime: Runtime, sender: VerifiedAgent, body: TokenRequest) -> Token:
    """
    Move the refresh chain on and give an access token.

    Args:
        runtime: The server.
        sender: The verified agent.
        body: Its refresh secret, the successor, evidence and state.

    Raises:
        MachineMismatchError: Evidence of another machine: the record is untouched, an event says why.
        RefreshForkError: Two hold the secret: the agent is quarantined.
        AgentStateError: Its refresh chain lapsed, or it is a clone.
        VerificationError: The executor did not sign this.
    """
    agent_id = sender.entry.agent_id
    evidence = open_evidence(body.evidence, sender.executor_key)
    state = open_state(body.state, sender.executor_key, server=runtime.server, agent_id=agent_id)
    current, successor = secret_digest(body.current), hex_decode(body.next_hash, 32)
    async with runtime.database.write() as session:
        now = runtime.clock.now()
        agent = await recheck(session, sender.entry)
        gen, epoch = (await session.execute(select(ServerState.gen, ServerState.epoch))).one()
        outcome = await admit(session, agent, evidence, body.boot_id, now)
        if outcome.refusal is None:
            follow_order(outcome, state, epoch)
            verdict, chain = judge_refresh(
                _chain_of(agent),
                current=current,
                successor=successor,
                proven_generation=state.refresh_generation,
                gen=gen,
                now=now,
            )
            _follow(outcome, verdict, chain)
        await outcome.store(session)
    if outcome.refusal is not None:
        raise outcome.refusal
    claims = AccessClaims(
        agent_id=agent_id,
        key_id=agent.key_id,
        token_version=outcome.value("token_version"),
        refresh_generation=outcome.value("refresh_generation"),
        evidence_digest=outcome.value("evidence_digest"),
    )
    token = access_tokens.issue(
        claims, secret=runtime.keys.agent_tokens, server=runtime.server, now=now, entropy=runtime.entropy
    )
    return Token(1, token, ACCESS_TOKEN_SECONDS, claims.refresh_generation)


def _chain_of(agent: Any) -> RefreshChain:
    return RefreshChain(
        current=agent.refresh_current,
        previous=agent.refresh_previous,
        generation=agent.refresh_generation,
        expires_at=agent.refresh_expires_at,
        adopted_gen=agent.refresh_adopted_gen,
    )


def _follow(outcome: Outcome, verdict: RefreshVerdict, chain: RefreshChain) -> None:
    """Do what a verdict says."""
    hostname = outcome.agent.hostname
    if verdict is RefreshVerdict.FORK:
        outcome.quarantine("its refresh secret was used by two")
        outcome.refusal = RefreshForkError("this refresh secret was used by another: the agent is quarantined")
        return
    if verdict is RefreshVerdict.LAPSED:
        outcome.set_status(AgentStatus.RENEWAL_PENDING, "it was away for longer than its refresh secret is valid")
        outcome.note("agent.renewal_pending", f"{hostname} came back after a long time and waits for approval.")
        return
    if verdict is RefreshVerdict.ADOPT:
        message = f"The server was behind {hostname} after a restore, and took over its refresh secret."
        outcome.note("agent.refresh_adopted", message)
    outcome.changes.update(
        refresh_current=chain.current,
        refresh_previous=chain.previous,
        refresh_generation=chain.generation,
        refresh_expires_at=chain.expires_at,
        refresh_adopted_gen=chain.adopted_gen,
    )
