"""Becoming an agent: one request that may be repeated until it is answered, after the server proved who it is."""

import uuid
from typing import Final

from redflag_agent import host
from redflag_agent.answers import ServerRefusedError
from redflag_agent.identity import Identity
from redflag_agent.state import Pins, Registration, StateFile
from redflag_agent.transport import ServerClient
from redflag_agent.trust import TrustStore
from redflag_core import codec
from redflag_core.encoding import b64encode
from redflag_core.enrolment import RegistrationToken, secret_digest
from redflag_core.errors import ConfigurationError, MalformedError, WrongRecipientError
from redflag_core.messages import MAX_SMALL_BODY, PublicKey, Register, Registered

DUPLICATE: Final = "duplicate_machine_id"
"""The server's code for a machine id that another agent has: this one then shows a random one of its own."""


def pins_of(token: RegistrationToken) -> Pins:
    """What a registration token says about whom to believe."""
    return Pins(token.server, token.root_fp, token.addresses, token.tls)


async def register(
    client: ServerClient, token: RegistrationToken, *, identity: Identity, state: StateFile, trust: TrustStore
) -> Registration:
    """
    Register this machine, or learn the record that a lost answer was about.

    The keys and the first refresh secret are on disk already (`redflag_agent.identity`); the server's roots and
    bundle are verified against the token before anything about this machine is sent.

    Returns:
        The registration, durable.

    Raises:
        VerificationError: The server is not the one that the token names.
        ServerRefusedError: It does not want this machine.
        UnreachableError: Nobody answered: try again.
    """
    pins = pins_of(token)
    state.update(pins=pins)
    await trust.refresh(client, pins)
    answer = await _ask(client, token, identity, state)
    if answer.server != token.server:
        raise WrongRecipientError("the answer to the registration is of another server")
    registration = Registration(_record_id(answer.agent_id), answer.organization)
    state.update(registration=registration, status=answer.status, status_detail=None)
    return registration


async def _ask(client: ServerClient, token: RegistrationToken, identity: Identity, state: StateFile) -> Registered:
    try:
        wire = await client.post("/agents/register", _body(token, identity, state))
    except ServerRefusedError as refusal:
        if refusal.problem != DUPLICATE or state.state.replace_machine_id:
            raise
        replaced = identity.executor.evidence(replace_machine_id=True)
        state.update(replace_machine_id=True, made_for=replaced.digest)
        wire = await client.post("/agents/register", _body(token, identity, state))
    return codec.parse(Registered, wire, max_bytes=MAX_SMALL_BODY)


def _body(token: RegistrationToken, identity: Identity, state: StateFile) -> bytes:
    refresh = state.state.refresh
    if refresh is None:
        raise ConfigurationError("the state holds keys without a refresh secret: move it away and register again")
    executor = identity.executor
    evidence = executor.evidence(replace_machine_id=state.state.replace_machine_id).envelope
    proof = executor.proof(
        identity.agent_key.verify_key,
        evidence=evidence,
        server=token.server,
        root_fp=token.root_fp,
        token_id=token.id,
    )
    return codec.dump(
        Register(
            v=1,
            registration_token=token.credential,
            agent_key=PublicKey.of(identity.agent_key),
            executor_key=PublicKey.of(executor.verify_key),
            executor_proof=b64encode(proof),
            evidence=b64encode(evidence),
            refresh_hash=secret_digest(refresh.current).hex(),
            hostname=host.hostname(),
            os=host.operating_system(),
            versions=host.versions(),
        )
    )


def _record_id(text: str) -> str:
    """The id of the record, in the one spelling that signed statements use."""
    try:
        if str(uuid.UUID(text)) == text:
            return text
    except ValueError:
        pass
    raise MalformedError("the server gave this agent an id that is no UUID")
