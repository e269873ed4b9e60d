"""
Checkpoints: the server signs what all histories are, and witnesses hold it to that.

A checkpoint signs a Merkle tree over the heads of all organizations, with the size of each. What one organization
gets of it is evidence: the signed checkpoint, its own head, and the proof that this head is in it. It shows
nothing of the others. Whoever keeps evidence is a witness: an agent, a customer, anybody. A witness accepts newer
evidence only with a proof that the history that it knows is the beginning of the one it is shown.

Rule of the file: the time of a checkpoint decides by which keys it may be signed, not the time now. Retired keys
stay in the bundle, and what they signed stays verifiable. Whether a checkpoint is recent is asked separately.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import attrs
from attrs import validators

from redflag_core import codec
from redflag_core._fields import HASH, MOMENT, UUID, VERSION, count
from redflag_core.audit import AuditHead
from redflag_core.encoding import MAX_INTEGER, b64decode, b64encode, hex_decode
from redflag_core.envelope import parse_envelope, sign_envelope, verify_envelope
from redflag_core.errors import (
    ExpiredError,
    RewrittenError,
    RollbackError,
    StaleError,
    VerificationError,
    WrongRecipientError,
)
from redflag_core.freshness import TOLERANCE, unix
from redflag_core.keys import SigningKey
from redflag_core.merkle import HASH_SIZE, MerkleTree, verify_consistency, verify_inclusion
from redflag_core.messages import MAX_ENVELOPE_TEXT, MAX_SMALL_BODY, Role, TrustBundle
from redflag_core.trust import live_keys

CHECKPOINT_TYPE: Final = "application/vnd.redflag.checkpoint.v1+json"

MAX_PROOF: Final = 54
"""Most hashes of a proof (see `redflag_core.merkle.MAX_SIZE`)."""

MAX_CHECKPOINT_AGE: Final = 86_400
"""Seconds. A server signs one far more often; one that shows a witness nothing newer for a day hides something."""

_PROOF: Final[Any] = validators.deep_iterable(HASH, validators.max_len(MAX_PROOF))


@attrs.frozen(kw_only=True)
class Checkpoint:
    """
    What all histories of a server were at some moment. Payload of `CHECKPOINT_TYPE`, signed by a checkpoint key.

    Attributes:
        v: 1.
        server: Server id.
        n: 1 for the first; each is one more than the one before it.
        iat: When it was made, unix seconds. Never earlier than the one before it.
        organizations: Leaves of the tree.
        root: Root of the tree over the heads of all organizations, 64 hex digits.
    """

    v: int = attrs.field(default=1, validator=VERSION)
    server: str = attrs.field(validator=UUID)
    n: int = attrs.field(validator=[validators.ge(1), validators.le(MAX_INTEGER)])
    iat: int = attrs.field(validator=MOMENT)
    organizations: int = attrs.field(validator=count())
    root: str = attrs.field(validator=HASH)


@attrs.frozen(kw_only=True)
class HeadEvidence:
    """
    That a server signed the head of a history: complete in itself, and what a witness keeps.

    Two of these that contradict each other convict the server: nobody else can have signed them.

    Attributes:
        v: 1.
        checkpoint: The envelope of a checkpoint, in base64.
        head: The head.
        index: Its leaf in the tree of the checkpoint. An organization keeps its index for ever.
        proof: That it is in this tree, each hash in hex.
    """

    v: int = attrs.field(default=1, validator=VERSION)
    checkpoint: str = attrs.field(validator=[validators.min_len(1), validators.max_len(MAX_ENVELOPE_TEXT)])
    head: AuditHead
    index: int = attrs.field(validator=count())
    proof: tuple[str, ...] = attrs.field(validator=_PROOF)


def new_checkpoint(
    server: str, heads: Sequence[AuditHead], *, now: datetime, before: Checkpoint | None = None
) -> Checkpoint:
    """
    The next checkpoint of a server.

    Args:
        server: Server id.
        heads: The heads of all organizations, oldest organization first: an organization keeps its place for ever,
            though it has been closed.
        now: Current time, aware UTC.
        before: The checkpoint before it, None for the first.

    Raises:
        ValueError: An organization is there twice, or one is gone.
    """
    if len({head.organization for head in heads}) != len(heads):
        raise ValueError("an organization has one head")
    if before is not None and before.organizations > len(heads):
        raise ValueError("an organization keeps its place, though it has been closed")
    return Checkpoint(
        server=server,
        n=1 if before is None else before.n + 1,
        iat=max(int(unix(now)), 0 if before is None else before.iat),
        organizations=len(heads),
        root=_tree(heads).root().hex(),
    )


def sign_checkpoint(checkpoint: Checkpoint, key: SigningKey) -> bytes:
    """The envelope of a checkpoint."""
    return sign_envelope(CHECKPOINT_TYPE, codec.dump(checkpoint), key)


def prove_head(checkpoint: bytes, heads: Sequence[AuditHead], index: int) -> HeadEvidence:
    """
    The evidence for one organization: it shows nothing of the others but how many there are.

    Args:
        checkpoint: Envelope of a checkpoint.
        heads: The heads that it was made of, in the same order.
        index: Which of them.
    """
    proof = tuple(item.hex() for item in _tree(heads).inclusion_proof(index))
    return HeadEvidence(checkpoint=b64encode(checkpoint), head=heads[index], index=index, proof=proof)


def verify_checkpoint(wire: bytes, bundle: TrustBundle) -> Checkpoint:
    """
    Verify a checkpoint, whenever it was made: its key must have been valid then.

    Whether it is recent enough is another question: `check_checkpoint_age`.

    Args:
        wire: Untrusted bytes.
        bundle: Verified bundle. Retired checkpoint keys are still in it.

    Raises:
        WrongRecipientError: A checkpoint of another server.
        ExpiredError: Its key was not valid at the time that it says it was made.
        VerificationError: Not signed by a checkpoint key, or malformed.
    """
    listed = [entry.open() for entry in bundle.keys if entry.role is Role.CHECKPOINT]
    keys = {key.key_id: key for key in listed}
    verified = verify_envelope(wire, CHECKPOINT_TYPE, keys)
    checkpoint = codec.parse(Checkpoint, verified.payload, max_bytes=MAX_SMALL_BODY)
    if checkpoint.server != bundle.server:
        raise WrongRecipientError("the checkpoint is of another server")
    made = datetime.fromtimestamp(checkpoint.iat, UTC)
    if not verified.key_ids & live_keys(bundle, Role.CHECKPOINT, now=made).keys():
        raise ExpiredError("the checkpoint is signed with a key that was not valid when it was made")
    return checkpoint


def check_checkpoint_age(checkpoint: Checkpoint, *, now: datetime, max_age: int = MAX_CHECKPOINT_AGE) -> None:
    """
    Refuse as the newest state a checkpoint that is old: the server may hide what happened since.

    Args:
        checkpoint: Verified.
        now: Current time, aware UTC.
        max_age: Seconds, inclusive.

    Raises:
        StaleError: Older than *max_age*, or of the future by more than the tolerance of the protocol.
    """
    if not -TOLERANCE <= unix(now) - checkpoint.iat <= max_age:
        raise StaleError(
            "the newest checkpoint is not of now: the server hides what happened, or a clock is wrong"
        )


def verify_head(evidence: HeadEvidence, bundle: TrustBundle, *, organization: str) -> Checkpoint:
    """
    Verify that the server signed the head in *evidence*.

    Args:
        evidence: Untrusted.
        bundle: Verified bundle.
        organization: Whose head is asked for.

    Returns:
        The checkpoint that it is in. ``evidence.head`` is trusted from here on.

    Raises:
        WrongRecipientError: Of another organization or server.
        VerificationError: Not signed, or the head is not in it.
    """
    checkpoint = verify_checkpoint(b64decode(evidence.checkpoint), bundle)
    if evidence.head.organization != organization:
        raise WrongRecipientError("the head is of another organization")
    verify_inclusion(
        evidence.head.leaf,
        index=evidence.index,
        size=checkpoint.organizations,
        proof=_hashes(evidence.proof),
        root=bytes.fromhex(checkpoint.root),
    )
    return checkpoint


def advance_witness(
    kept: HeadEvidence, evidence: HeadEvidence, bundle: TrustBundle, *, consistency: Sequence[str]
) -> HeadEvidence:
    """
    Go on from what a witness kept to what the server shows now, if the one is the beginning of the other.

    A witness starts with the first evidence that `verify_head` accepts, and keeps what this returns. It also
    compares what two witnesses of an organization were shown: take the older as *kept*.

    Args:
        kept: What this witness verified before. Trusted.
        evidence: What the server, or another witness, shows. Untrusted.
        bundle: Verified bundle.
        consistency: Untrusted: `MerkleTree.consistency_proof` from the size kept to the one shown, in hex.

    Returns:
        The evidence to keep from now on.

    Raises:
        RollbackError: A checkpoint older than the one kept: nothing new, and nothing proven.
        RewrittenError: What was witnessed is not the beginning of what is shown now: the history was rewritten, or
            the server shows different histories to different people. Keep both pieces of evidence.
        VerificationError: The evidence is not what it should be.
    """
    shown = verify_head(evidence, bundle, organization=kept.head.organization)
    known = _kept_checkpoint(kept)
    if shown.n < known.n:
        raise RollbackError(f"checkpoint {shown.n} is older than the one kept ({known.n})")
    if shown.iat < known.iat or (shown.n == known.n and shown != known) or evidence.index != kept.index:
        raise _rewritten(kept, "the server signed two checkpoints that contradict each other")
    try:
        verify_consistency(
            first=kept.head.size,
            first_root=bytes.fromhex(kept.head.root),
            size=evidence.head.size,
            root=bytes.fromhex(evidence.head.root),
            proof=_hashes(consistency),
        )
    except VerificationError as error:
        raise _rewritten(kept, error.message) from None
    return evidence


def _hashes(proof: Sequence[str]) -> list[bytes]:
    """The bytes of untrusted hashes."""
    return [hex_decode(item, HASH_SIZE) for item in proof]


def _rewritten(kept: HeadEvidence, why: str) -> RewrittenError:
    size = kept.head.size
    message = f"the server cannot show that the first {size} entries are still those that were witnessed: {why}"
    return RewrittenError(message, after=0, up_to=size)


def _kept_checkpoint(kept: HeadEvidence) -> Checkpoint:
    """The checkpoint in evidence that was verified when it was kept: its key may be gone since."""
    payload = parse_envelope(b64decode(kept.checkpoint)).payload
    return codec.parse(Checkpoint, payload, max_bytes=MAX_SMALL_BODY)


def _tree(heads: Sequence[AuditHead]) -> MerkleTree:
    return MerkleTree.of(head.leaf for head in heads)
