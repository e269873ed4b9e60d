"""What an agent's executor signed: verified with its key before anything in it is believed."""

import hashlib
from uuid import UUID

from redflag_core import codec
from redflag_core.encoding import b64decode
from redflag_core.envelope import verify_envelope
from redflag_core.errors import WrongRecipientError
from redflag_core.keys import VerifyKey
from redflag_core.machine import MachineEvidence
from redflag_core.messages import (
    EVIDENCE_TYPE,
    EXECUTOR_PROOF_TYPE,
    EXECUTOR_STATE_TYPE,
    MAX_SMALL_BODY,
    EvidenceStatement,
    ExecutorProof,
    ExecutorState,
    Register,
)


def open_evidence(text: str, executor: VerifyKey) -> MachineEvidence:
    """
    Machine evidence of a request.

    Args:
        text: Untrusted envelope in base64.
        executor: Key of the agent's executor.

    Raises:
        VerificationError: Not signed by it, or malformed.
    """
    verified = verify_envelope(b64decode(text), EVIDENCE_TYPE, {executor.key_id: executor})
    return codec.parse(EvidenceStatement, verified.payload, max_bytes=MAX_SMALL_BODY).evidence


def open_state(text: str, executor: VerifyKey, *, server: str, agent_id: UUID) -> ExecutorState:
    """
    State of an agent's executor.

    Args:
        text: Untrusted envelope in base64.
        executor: Key of the agent's executor.
        server: This server's id.
        agent_id: The agent that sent it.

    Raises:
        VerificationError: Not signed by it, malformed, or of another agent or server.
    """
    verified = verify_envelope(b64decode(text), EXECUTOR_STATE_TYPE, {executor.key_id: executor})
    state = codec.parse(ExecutorState, verified.payload, max_bytes=MAX_SMALL_BODY)
    if (state.server, state.agent_id) != (server, str(agent_id)):
        raise WrongRecipientError("the executor's state is of another agent or server")
    return state


def check_proof(body: Register, *, server: str, root_fp: str, token_id: str) -> MachineEvidence:
    """
    Check that executor, agent key, evidence and server of a registration belong together.

    Args:
        body: Body of the registration; its request was signed by the agent key in it.
        server: This server's id.
        root_fp: Fingerprint of this server's first root.
        token_id: Id in the registration token presented.

    Returns:
        The machine evidence.

    Raises:
        VerificationError: The executor did not sign exactly this.
    """
    executor = body.executor_key.open()
    if executor == body.agent_key.open():
        raise WrongRecipientError("agent and executor must have keys of their own")
    verified = verify_envelope(b64decode(body.executor_proof), EXECUTOR_PROOF_TYPE, {executor.key_id: executor})
    proof = codec.parse(ExecutorProof, verified.payload, max_bytes=MAX_SMALL_BODY)
    digest = hashlib.sha256(b64decode(body.evidence)).hexdigest()
    expected = ExecutorProof(1, body.agent_key, body.executor_key, digest, server, root_fp, token_id)
    if proof != expected:
        raise WrongRecipientError("the executor's proof is for another key, machine, server or token")
    return open_evidence(body.evidence, executor)
