"""
Approvals: an operator's signed agreement to exactly these commands, made where no server can reach.

A routine update needs only the server's key. What goes beyond needs a key that is not on the server: an operator
signs the root of a Merkle tree (RFC 9162) whose leaves name one machine, one type and one set of parameters each.
So one signature covers a whole fleet, each machine gets a proof of its own leaf only, and nobody can put a leaf in
afterwards. The executor checks all of it, and counts how often a leaf was used.
"""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

import attrs
from attrs import validators

from redflag_core import codec
from redflag_core._fields import BINDING, HASH, MOMENT, UUID, VERSION, count, line
from redflag_core.commands import MAX_APPROVAL, ApprovalProof, Command
from redflag_core.encoding import b64decode, b64encode
from redflag_core.envelope import pae, sign_envelope, verify_envelope
from redflag_core.errors import ConfigurationError, NeedsApprovalError, ProofError, StaleError
from redflag_core.freshness import unix
from redflag_core.keys import SigningKey, VerifyKey
from redflag_core.merkle import MerkleTree, verify_inclusion

APPROVAL_TYPE: Final = "application/vnd.redflag.approval.v1+json"
LEAF_TYPE: Final = "application/vnd.redflag.approval-leaf.v1+json"

MAX_APPROVAL_BYTES: Final = MAX_APPROVAL * 3 // 4
"""Bytes of a signed approval: in base64 it still fits into a command."""

APPROVAL_SECONDS: Final = 7 * 86_400
"""Longest validity of an approval: over a holiday week, as long as a command waits."""

APPROVAL_LEEWAY: Final = 60
"""Seconds by which the clocks of operator and machine may differ."""

MAX_LEAVES: Final = 10_000
"""Commands that one signature approves: more than people can look through."""

MAX_STARTS: Final = 10
"""Times that one leaf may be used: an agreement to do something once, and again when it did not work."""


@attrs.frozen(kw_only=True)
class ApprovalLeaf:
    """
    One command that is approved: what, and on which machine.

    Attributes:
        agent_id: The agent.
        machine_binding: Its machine, 32 hex digits.
        type: Type of the command.
        params: SHA-256 of the exact JSON text of its parameters, 64 hex digits.
    """

    agent_id: str = attrs.field(validator=UUID)
    machine_binding: str = attrs.field(validator=BINDING)
    type: str = attrs.field(validator=validators.matches_re(r"[a-z]+\.[a-z_]{1,40}"))
    params: str = attrs.field(validator=HASH)

    @classmethod
    def of(cls, command: Command) -> "ApprovalLeaf":
        """The leaf that must be approved for *command*."""
        return approval_leaf(command.agent_id, command.machine_binding, command.type, b64decode(command.params))

    @property
    def data(self) -> bytes:
        """What the tree is made over: the PAE of `LEAF_TYPE` and the JSON text."""
        return pae(LEAF_TYPE, codec.dump(self))


@attrs.frozen(kw_only=True)
class Approval:
    """
    What an operator signs. Payload of `APPROVAL_TYPE`.

    Attributes:
        v: 1.
        id: UUID, made when it is signed.
        root_fp: Fingerprint of the installation's first root key: an approval is worth nothing elsewhere.
        organization: The organization whose machines these are.
        merkle_root: Root of the tree over the leaves, 64 hex digits.
        leaves: How many leaves there are.
        nbf: First second of validity, unix.
        exp: Last second of validity, unix; at most `APPROVAL_SECONDS` after *nbf*.
        max_starts: How often each leaf may be used.
    """

    v: int = attrs.field(validator=VERSION)
    id: str = attrs.field(validator=UUID)
    root_fp: str = attrs.field(validator=HASH)
    organization: str = attrs.field(validator=line(64))
    merkle_root: str = attrs.field(validator=HASH)
    leaves: int = attrs.field(validator=[validators.ge(1), count(MAX_LEAVES)])
    nbf: int = attrs.field(validator=MOMENT)
    exp: int = attrs.field(validator=MOMENT)
    max_starts: int = attrs.field(validator=[validators.ge(1), count(MAX_STARTS)])

    def __attrs_post_init__(self) -> None:
        """An approval ends: what was agreed to last month is not what somebody wants now."""
        if not self.nbf <= self.exp <= self.nbf + APPROVAL_SECONDS:
            raise ValueError(f"exp is 0 to {APPROVAL_SECONDS} seconds after nbf")


@attrs.frozen
class ApprovalUse:
    """
    A verified approval of one command, to be counted by whoever starts it.

    Attributes:
        approval_id: The approval.
        index: Which of its leaves.
        max_starts: How often that leaf may be used.
    """

    approval_id: str
    index: int
    max_starts: int


def approval_leaf(agent_id: str, machine_binding: str, kind: str, params: bytes) -> ApprovalLeaf:
    """
    The leaf of a command that is to be approved.

    Args:
        agent_id: The agent.
        machine_binding: Its machine, 32 hex digits.
        kind: Type of the command.
        params: The exact JSON text of its parameters.

    Raises:
        ValueError: One of them is none.
    """
    digest = hashlib.sha256(params).hexdigest()
    return ApprovalLeaf(agent_id=agent_id, machine_binding=machine_binding, type=kind, params=digest)


def new_approval(
    leaves: Sequence[ApprovalLeaf],
    *,
    approval_id: str,
    root_fp: str,
    organization: str,
    now: datetime,
    lifetime: int = APPROVAL_SECONDS,
    max_starts: int = 1,
) -> Approval:
    """
    An approval that is valid from *now*.

    Args:
        leaves: What is approved, 1 to `MAX_LEAVES`, each once. Their order is that of the proofs.
        approval_id: A fresh UUID.
        root_fp: Fingerprint of the first root key, known to the operator and not only told by the server.
        organization: Whose machines these are.
        now: The operator's time, aware UTC.
        lifetime: Seconds of validity, at most `APPROVAL_SECONDS`.
        max_starts: How often each leaf may be used, at most `MAX_STARTS`.

    Raises:
        ConfigurationError: No leaves, too many, the same twice, or a number out of its bounds.
    """
    if not 1 <= len(leaves) <= MAX_LEAVES:
        raise ConfigurationError(f"an approval covers 1 to {MAX_LEAVES} commands")
    if len(set(leaves)) < len(leaves):
        raise ConfigurationError("an approval names each command once: take the repeated one out")
    nbf = int(unix(now))
    try:
        return Approval(
            v=1,
            id=approval_id,
            root_fp=root_fp,
            organization=organization,
            merkle_root=_tree(leaves).root().hex(),
            leaves=len(leaves),
            nbf=nbf,
            exp=nbf + lifetime,
            max_starts=max_starts,
        )
    except ValueError as error:
        raise ConfigurationError(f"this is no approval: {error}") from None


def sign_approval(approval: Approval, *keys: SigningKey) -> bytes:
    """
    The envelope of an approval.

    Args:
        approval: What is agreed to.
        keys: Operator keys, at least one.
    """
    return sign_envelope(APPROVAL_TYPE, codec.dump(approval), *keys)


def open_approval(wire: bytes, keys: Mapping[str, VerifyKey]) -> Approval:
    """
    Verify the signature of an approval, and only then read it.

    Args:
        wire: Untrusted bytes.
        keys: Live operator keys of the organization, by id (`redflag_core.trust.live_keys`).

    Raises:
        VerificationError: Too large, not strict, not signed by one of *keys*, or no approval.
    """
    verified = verify_envelope(wire, APPROVAL_TYPE, keys, max_bytes=MAX_APPROVAL_BYTES)
    return codec.parse(Approval, verified.payload, max_bytes=MAX_APPROVAL_BYTES)


def prove_approval(wire: bytes, leaves: Sequence[ApprovalLeaf], index: int) -> ApprovalProof:
    """
    What goes with one of the approved commands.

    Args:
        wire: The signed approval.
        leaves: All leaves, in their order.
        index: Which of them this command is.
    """
    proof = _tree(leaves).inclusion_proof(index)
    return ApprovalProof(b64encode(wire), index, tuple(b64encode(node) for node in proof))


def covers(approval: Approval, leaves: Sequence[ApprovalLeaf]) -> bool:
    """Whether an approval is about exactly these leaves, in this order."""
    return len(leaves) == approval.leaves and _tree(leaves).root().hex() == approval.merkle_root


def check_approval(
    command: Command, keys: Mapping[str, VerifyKey], *, root_fp: str, organization: str, now: datetime
) -> ApprovalUse | None:
    """
    Verify the approval that a command carries. How often it was used is for the caller to count.

    Args:
        command: A verified command for this machine.
        keys: Live operator keys of this machine's organization, by id.
        root_fp: Fingerprint of the first root key, pinned at registration.
        organization: Pinned at registration.
        now: The executor's time.

    Returns:
        What is used; None when the command carries no approval.

    Raises:
        StaleError: It is not valid yet.
        NeedsApprovalError: It has ended, is for another installation or organization, or not for this command.
        VerificationError: It is not signed by one of *keys*, or malformed.
    """
    shown = command.approval
    if shown is None:
        return None
    approval = open_approval(b64decode(shown.envelope), keys)
    moment = unix(now)
    if approval.nbf - APPROVAL_LEEWAY > moment:
        raise StaleError("the approval is not valid yet, or this machine's clock is wrong")
    if approval.exp + APPROVAL_LEEWAY < moment:
        raise NeedsApprovalError("the operator's approval has ended: it must be approved anew")
    if approval.root_fp != root_fp or approval.organization != organization:
        raise NeedsApprovalError("the operator's approval is for another installation or organization")
    _check_leaf(command, approval, shown)
    return ApprovalUse(approval.id, shown.index, approval.max_starts)


def _tree(leaves: Sequence[ApprovalLeaf]) -> MerkleTree:
    return MerkleTree.of(leaf.data for leaf in leaves)


def _check_leaf(command: Command, approval: Approval, shown: ApprovalProof) -> None:
    try:
        verify_inclusion(
            ApprovalLeaf.of(command).data,
            index=shown.index,
            size=approval.leaves,
            proof=[b64decode(node) for node in shown.proof],
            root=bytes.fromhex(approval.merkle_root),
        )
    except ProofError:
        raise NeedsApprovalError("the operator approved other commands, and not this one") from None
