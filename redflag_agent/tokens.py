"""
Access tokens, and the chain of refresh secrets that earns them.

The successor secret is on disk before its hash is sent, and the same pair is sent until it is answered. An agent
that was killed between sending and storing asks again with what the server already knows, and gets its answer.
Several requests may be under way at once, but one renewal at a time: two would be a fork of the chain.
"""

import asyncio
from datetime import datetime
from typing import Final

import attrs

from redflag_agent.answers import ServerRefusedError
from redflag_agent.executor import Evidence, Executor
from redflag_agent.state import AccessToken, AgentState, Pins, RefreshSecrets, Registration, StateFile
from redflag_agent.transport import ServerClient
from redflag_core import codec
from redflag_core.encoding import b64encode
from redflag_core.enrolment import new_secret, secret_digest
from redflag_core.errors import ConfigurationError
from redflag_core.freshness import unix
from redflag_core.messages import MAX_SMALL_BODY, Token, TokenRequest
from redflag_core.ports import Clock, Entropy

RENEW_SHARE: Final = 0.1
"""A token is renewed in the last tenth of its life: 2.4 hours of a day, longer than most outages."""

WORN_OUT: Final = "bad_token"
"""Code (401) that a new access token helps against."""


class NotRegisteredError(ConfigurationError):
    """This agent has no record at a server yet."""

    code = "not_registered"


@attrs.frozen
class Member:
    """What a registered agent has: the parts of the state that are then never missing."""

    pins: Pins
    registration: Registration
    refresh: RefreshSecrets


def member(state: AgentState) -> Member:
    """
    The registered parts of *state*.

    Raises:
        NotRegisteredError: It has none.
    """
    if state.pins is None or state.registration is None or state.refresh is None:
        raise NotRegisteredError("this agent is not registered: run redflag agent register --token-stdin")
    return Member(state.pins, state.registration, state.refresh)


def renewal_due(access: AccessToken | None, evidence: str, *, now: datetime) -> bool:
    """
    Whether a new access token is needed.

    Args:
        access: The one held.
        evidence: Digest of the evidence that this machine shows now.
        now: Current time of this machine.
    """
    if access is None or access.evidence != evidence:
        return True
    end = access.obtained_at + access.expires_in
    return unix(now) >= end - RENEW_SHARE * access.expires_in


@attrs.define
class Tokens:
    """
    Requests that carry a valid access token.

    Args:
        client: The server.
        state: Where secrets are kept.
        executor: Signs what the token is given for.
        clock: Wall time.
        entropy: Draws successor secrets.
    """

    client: ServerClient
    state: StateFile
    executor: Executor
    clock: Clock
    entropy: Entropy
    _renewing: asyncio.Lock = attrs.field(factory=asyncio.Lock, init=False)

    async def post(
        self, path: str, body: bytes, evidence: Evidence, *, hold: int = 0, once: bool = False
    ) -> bytes:
        """
        Send a request with an access token, renewed first when it is worn out.

        Args:
            path: See `ServerClient.post`.
            body: JSON.
            evidence: What this machine shows now.
            hold: See `ServerClient.post`.
            once: Likewise.
        """
        await self.ensure(evidence)
        token = self._token()
        try:
            return await self.client.post(path, body, access_token=token, hold=hold, once=once)
        except ServerRefusedError as refusal:
            if refusal.status != 401 or refusal.problem != WORN_OUT:
                raise
        await self._replace(token, evidence)
        return await self.client.post(path, body, access_token=self._token(), hold=hold, once=once)

    async def ensure(self, evidence: Evidence) -> None:
        """Renew the access token if it is worn out, or was given for another machine than *evidence* shows."""
        async with self._renewing:
            if renewal_due(self.state.state.access, evidence.digest, now=self.clock.now()):
                await self._renew(evidence)

    async def _replace(self, refused: str, evidence: Evidence) -> None:
        """Renew the access token that was refused, unless another request has done that meanwhile."""
        async with self._renewing:
            if self._token() == refused:
                await self._renew(evidence)

    async def renew(self, evidence: Evidence) -> None:
        """
        Get a new access token and move the refresh chain on by one.

        Raises:
            NotRegisteredError: There is no record to renew anything for.
            AnswerError, UnreachableError: See `ServerClient.post`.
        """
        async with self._renewing:
            await self._renew(evidence)

    async def _renew(self, evidence: Evidence) -> None:
        known = member(self.state.state)
        pending = known.refresh.pending or new_secret(self.entropy)
        self.state.update(refresh=attrs.evolve(known.refresh, pending=pending))
        wire = await self.client.post("/agent/token", self._request(known, pending, evidence))
        answer = codec.parse(Token, wire, max_bytes=MAX_SMALL_BODY)
        obtained_at = int(unix(self.clock.now()))
        self.state.update(
            refresh=RefreshSecrets(pending, generation=answer.refresh_generation),
            access=AccessToken(answer.access_token, obtained_at, answer.expires_in, evidence.digest),
        )

    def executor_state(self) -> str:
        """The executor's signed statement of how far it has come, in base64."""
        state = self.state.state
        known = member(state)
        envelope = self.executor.state(
            server=known.pins.server,
            agent_id=known.registration.agent_id,
            epoch=state.bundle_epoch,
            refresh_generation=known.refresh.generation,
        )
        return b64encode(envelope)

    def _request(self, known: Member, pending: str, evidence: Evidence) -> bytes:
        return codec.dump(
            TokenRequest(
                v=1,
                current=known.refresh.current,
                next_hash=secret_digest(pending).hex(),
                evidence=b64encode(evidence.envelope),
                state=self.executor_state(),
                boot_id=evidence.boot_id,
            )
        )

    def _token(self) -> str:
        access = self.state.state.access
        return "" if access is None else access.token
