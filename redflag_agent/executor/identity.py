"""What the executor says about the machine and itself, read anew each time and signed with its own key."""

import hashlib

import attrs

from redflag_core import codec
from redflag_core.envelope import sign_envelope
from redflag_core.freshness import unix
from redflag_core.keys import SigningKey, VerifyKey
from redflag_core.machine import make_evidence
from redflag_core.messages import (
    EVIDENCE_TYPE,
    EXECUTOR_PROOF_TYPE,
    EXECUTOR_STATE_TYPE,
    EvidenceStatement,
    ExecutorProof,
    ExecutorState,
    PublicKey,
)
from redflag_core.ports import Clock, MachineIdentity


@attrs.frozen
class Evidence:
    """
    A signed statement of which machine this is.

    Attributes:
        envelope: Envelope of `EVIDENCE_TYPE`. The same machine gives the same bytes.
        digest: Digest of the evidence in it, 64 hex digits.
        weak: Names of the components that say nothing on this machine.
        boot_id: Of the running kernel, or None.
    """

    envelope: bytes
    digest: str
    weak: tuple[str, ...]
    boot_id: str | None


@attrs.frozen
class Executor:
    """
    The executor's identity.

    Args:
        key: The executor key.
        machine: Reads this machine's ids.
        replacement: 16 random bytes, kept, that stand in for a weak machine id.
        clock: The executor's time.
    """

    key: SigningKey = attrs.field(repr=False)
    machine: MachineIdentity
    replacement: bytes = attrs.field(repr=False)
    clock: Clock

    @property
    def verify_key(self) -> VerifyKey:
        """The public half of the executor key."""
        return self.key.verify_key

    def evidence(self, *, replace_machine_id: bool = False) -> Evidence:
        """
        Read the hardware now, and sign what it shows.

        Args:
            replace_machine_id: Whether the server found another agent with this machine id.
        """
        raw = self.machine.read()
        shown = make_evidence(raw, replacement=self.replacement, replace_machine_id=replace_machine_id)
        envelope = sign_envelope(EVIDENCE_TYPE, codec.dump(EvidenceStatement(1, shown)), self.key)
        return Evidence(envelope, shown.digest, shown.weak, raw.boot_id)

    def proof(self, agent_key: VerifyKey, *, evidence: bytes, server: str, root_fp: str, token_id: str) -> bytes:
        """
        Sign that this executor and the holder of *agent_key* belong together.

        Args:
            agent_key: Public key of the network process.
            evidence: The evidence envelope that goes along.
            server: Server id.
            root_fp: Fingerprint of the server's first root key.
            token_id: The registration token used.

        Returns:
            Envelope of `EXECUTOR_PROOF_TYPE`.
        """
        statement = ExecutorProof(
            v=1,
            agent_key=PublicKey.of(agent_key),
            executor_key=PublicKey.of(self.key),
            evidence=hashlib.sha256(evidence).hexdigest(),
            server=server,
            root_fp=root_fp,
            token_id=token_id,
        )
        return sign_envelope(EXECUTOR_PROOF_TYPE, codec.dump(statement), self.key)

    def state(self, *, server: str, agent_id: str, epoch: int, refresh_generation: int) -> bytes:
        """
        Sign how far this executor has come. It takes no commands yet, so its order numbers are 0.

        Args:
            server: Server id.
            agent_id: Whose executor this is.
            epoch: Of the trust bundle held.
            refresh_generation: How often the refresh secret has moved on.

        Returns:
            Envelope of `EXECUTOR_STATE_TYPE`.
        """
        statement = ExecutorState(
            v=1,
            server=server,
            agent_id=agent_id,
            epoch=epoch,
            gen=0,
            seq=0,
            refresh_generation=refresh_generation,
            iat=int(unix(self.clock.now())),
        )
        return sign_envelope(EXECUTOR_STATE_TYPE, codec.dump(statement), self.key)
