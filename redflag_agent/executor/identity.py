"""What the executor says about the machine and itself, read anew each time and signed with its own key."""

import hashlib

import attrs

from redflag_agent.executor.journal import Journal
from redflag_core import codec
from redflag_core.commands import Order
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
        binding: The ``machine_binding`` of commands for this machine.
        weak: Names of the components that say nothing on this machine.
        boot_id: Of the running kernel, or None.
    """

    envelope: bytes
    digest: str
    binding: str
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
        clock: System time.
        journal: What was ordered and done.
    """

    key: SigningKey = attrs.field(repr=False)
    machine: MachineIdentity
    replacement: bytes = attrs.field(repr=False)
    clock: Clock
    journal: Journal

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
        return Evidence(envelope, shown.digest, shown.binding, shown.weak, raw.boot_id)

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
        Sign how far this executor has come: the order of the last command that passed, and its time.

        Args:
            server: Server id.
            agent_id: Whose executor this is.
            epoch: Of the trust bundle held.
            refresh_generation: How often the refresh secret has moved on.

        Returns:
            Envelope of `EXECUTOR_STATE_TYPE`.

        Raises:
            JournalError: The journal cannot be read.
        """
        with self.journal.page() as page:
            order, passed = max(page.last(), Order(epoch)), page.high_water()
        statement = ExecutorState(
            v=1,
            server=server,
            agent_id=agent_id,
            epoch=order.epoch,
            gen=order.gen,
            seq=order.seq,
            refresh_generation=refresh_generation,
            iat=max(passed, int(unix(self.clock.now()))),
        )
        return sign_envelope(EXECUTOR_STATE_TYPE, codec.dump(statement), self.key)
