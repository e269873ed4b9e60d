"""Approvals: one operator's signature over exactly these commands, and no other, for a while."""

import hashlib
import uuid
from datetime import timedelta

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core import codec
from redflag_core.approvals import (
    APPROVAL_LEEWAY,
    APPROVAL_SECONDS,
    APPROVAL_TYPE,
    LEAF_TYPE,
    MAX_APPROVAL_BYTES,
    MAX_LEAVES,
    MAX_STARTS,
    Approval,
    ApprovalLeaf,
    ApprovalUse,
    approval_leaf,
    check_approval,
    covers,
    new_approval,
    open_approval,
    prove_approval,
    sign_approval,
)
from redflag_core.commands import (
    COMMAND_TYPE,
    ApprovalProof,
    Command,
    CommandType,
    Order,
    Orderable,
    Recipient,
    open_command,
    sign_command,
)
from redflag_core.encoding import b64decode, b64encode, dump_json
from redflag_core.envelope import MAX_ENVELOPE_BYTES, sign_envelope
from redflag_core.errors import (
    ConfigurationError,
    MalformedError,
    NeedsApprovalError,
    SignatureError,
    StaleError,
    TooLargeError,
    UnknownKeyError,
    VerificationError,
)
from redflag_core.keys import SigningKey
from redflag_core.testing import START, SeededEntropy

OPERATOR, STRANGER, COMMAND_KEY = (SigningKey.from_seed(bytes([number]) * 32) for number in (11, 12, 13))
KEYS = {OPERATOR.key_id: OPERATOR.verify_key}
ROOT_FP, ORGANIZATION = "ab" * 32, str(uuid.UUID(int=7))
PARAMS = b'{"manager":"apt"}'
WHO = Recipient(
    server=str(uuid.UUID(int=1)),
    agent_id=str(uuid.UUID(int=2)),
    machine_binding="c" * 32,
    key_fp="d" * 32,
    epoch=1,
)


def leaf(number=2, params=PARAMS, kind=CommandType.PACKAGES_UPGRADE) -> ApprovalLeaf:
    """The leaf of one machine."""
    return approval_leaf(str(uuid.UUID(int=number)), "c" * 32, kind, params)


def leaves(size: int) -> list[ApprovalLeaf]:
    """Leaves of this many machines; the first is that of `WHO`."""
    return [leaf(2 + number) for number in range(size)]


def approval(approved=None, **changes) -> Approval:
    """An approval from `START` on."""
    made = new_approval(
        approved or leaves(1),
        approval_id=str(uuid.UUID(int=9)),
        root_fp=ROOT_FP,
        organization=ORGANIZATION,
        now=START,
    )
    return attrs.evolve(made, **changes)


def ordered(proof: ApprovalProof | None, **changes) -> Command:
    """A verified command for `WHO` that carries this proof."""
    what = Orderable(
        cmd_id=str(uuid.UUID(int=99)),
        type=CommandType.PACKAGES_UPGRADE,
        params=PARAMS,
        start_by=2_000_000_000,
        approval=proof,
    )
    wire = sign_command(what, WHO, Order(1, 1, 1), COMMAND_KEY, now=START, entropy=SeededEntropy())
    command = open_command(wire, {COMMAND_KEY.key_id: COMMAND_KEY.verify_key}).body
    return attrs.evolve(command, **changes)


def judged(command: Command, *, keys=KEYS, now=START, **changes) -> ApprovalUse | None:
    """What a machine of this installation and organization says to it."""
    expected = {"root_fp": ROOT_FP, "organization": ORGANIZATION, **changes}
    return check_approval(command, keys, now=now, **expected)


def proven(size: int = 1, index: int = 0, made: Approval | None = None, signer=OPERATOR) -> ApprovalProof:
    """The proof of one of the leaves of an approval."""
    approved = leaves(size)
    return prove_approval(sign_approval(made or approval(approved), signer), approved, index)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_each_command_of_an_approval_passes_and_says_what_is_used(size):
    """One signature covers a fleet: every machine checks its own leaf with a short proof."""
    for index in {0, size // 2, size - 1}:
        command = ordered(proven(size, index), agent_id=str(uuid.UUID(int=2 + index)))

        assert ApprovalUse(str(uuid.UUID(int=9)), index, 1) == judged(command)


def test_a_command_without_an_approval_uses_none():
    """Whether it needs one is decided elsewhere."""
    assert judged(ordered(None)) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"agent_id": str(uuid.UUID(int=3))},
        {"machine_binding": "e" * 32},
        {"type": CommandType.PACKAGES_PLAN.value},
        {"params": b64encode(PARAMS + b" ")},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_an_approval_is_for_exactly_one_machine_type_and_parameters(changes):
    """Whatever of these is another, somebody else would decide what was agreed to."""
    with pytest.raises(NeedsApprovalError, match="approved other commands"):
        judged(ordered(proven(), **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"cmd_id": str(uuid.UUID(int=98))},
        {"start_by": 1_900_000_000},
        {"seq": 5},
        {"nonce": "A" * 22},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_when_it_is_delivered_does_not_matter(changes):
    """What changes with each order or signature is not part of what was agreed to."""
    assert judged(ordered(proven(), **changes)) is not None


def test_a_proof_of_another_leaf_is_refused():
    """The index is part of what is proven."""
    approved = leaves(4)
    wire = sign_approval(approval(approved), OPERATOR)
    other = prove_approval(wire, approved, 1)

    for proof in (other, attrs.evolve(other, index=0), attrs.evolve(prove_approval(wire, approved, 0), index=4)):
        with pytest.raises(NeedsApprovalError):
            judged(ordered(proof))


def test_no_bit_of_a_proof_can_be_changed():
    """Each bit of each node is part of what is proven."""
    genuine = proven(5)
    for number, node in enumerate(genuine.proof):
        raw = b64decode(node)
        for bit in range(0, len(raw) * 8, 7):
            changed = bytearray(raw)
            changed[bit // 8] ^= 1 << bit % 8
            nodes = [*genuine.proof]
            nodes[number] = b64encode(bytes(changed))
            with pytest.raises(NeedsApprovalError):
                judged(ordered(attrs.evolve(genuine, proof=tuple(nodes))))


@pytest.mark.parametrize("nodes", [(), ("",), (b64encode(bytes(31)),), (b64encode(bytes(32)),) * 9], ids=len)
def test_a_proof_of_another_length_is_refused(nodes):
    """Too short, too long, or of nodes that are no hashes."""
    with pytest.raises(NeedsApprovalError):
        judged(ordered(attrs.evolve(proven(5), proof=nodes)))


def test_an_approval_is_worth_nothing_elsewhere():
    """Another installation, or another organization of this one."""
    for elsewhere in ({"root_fp": "cd" * 32}, {"organization": str(uuid.UUID(int=8))}):
        with pytest.raises(NeedsApprovalError, match="another installation or organization"):
            judged(ordered(proven()), **elsewhere)


def test_an_approval_holds_from_its_first_to_its_last_second():
    """With the leeway for clocks that differ: before it waits, after it never passes."""
    end = APPROVAL_SECONDS + APPROVAL_LEEWAY
    command = ordered(proven())

    assert judged(command, now=START - timedelta(seconds=APPROVAL_LEEWAY)) is not None
    assert judged(command, now=START + timedelta(seconds=end)) is not None
    with pytest.raises(StaleError):
        judged(command, now=START - timedelta(seconds=APPROVAL_LEEWAY + 1))
    with pytest.raises(NeedsApprovalError, match="has ended"):
        judged(command, now=START + timedelta(seconds=end + 1))


def test_only_an_operators_key_approves():
    """Not a stranger's, not the server's, and not a stranger's under the operator's name."""
    for signer in (STRANGER, COMMAND_KEY):
        with pytest.raises(UnknownKeyError):
            judged(ordered(proven(signer=signer)))
    forged = b64decode(proven(signer=STRANGER).envelope).replace(
        STRANGER.key_id.encode(), OPERATOR.key_id.encode()
    )
    with pytest.raises(SignatureError):
        judged(ordered(attrs.evolve(proven(), envelope=b64encode(forged))))
    with pytest.raises(UnknownKeyError):
        judged(ordered(proven()), keys={})


def test_another_signed_thing_is_no_approval():
    """Payload types are never interchangeable."""
    text = codec.dump(approval())
    for kind in (COMMAND_TYPE, LEAF_TYPE):
        with pytest.raises(MalformedError):
            open_approval(sign_envelope(kind, text, OPERATOR), KEYS)


@pytest.mark.parametrize(
    "changes",
    [
        {"leaves": 0},
        {"leaves": MAX_LEAVES + 1},
        {"max_starts": 0},
        {"max_starts": MAX_STARTS + 1},
        {"exp": int(START.timestamp()) + APPROVAL_SECONDS + 1},
        {"exp": int(START.timestamp()) - 1},
        {"v": 2},
        {"organization": ""},
        {"merkle_root": "x" * 64},
    ],
    ids=str,
)
def test_an_approval_out_of_its_bounds_is_refused(changes):
    """Signed or not: it ends, and covers what people can look through."""
    document = {**codec.unstructure(approval()), **changes}
    wire = sign_envelope(APPROVAL_TYPE, dump_json(document), OPERATOR)

    with pytest.raises(MalformedError):
        open_approval(wire, KEYS)


def test_an_approval_may_be_for_one_moment():
    """Nothing says how long it must be."""
    assert approval().nbf == approval(exp=approval().nbf).exp


def test_an_approval_of_the_longest_time_and_most_uses_passes():
    """The bounds themselves are allowed."""
    longest = approval(max_starts=MAX_STARTS)

    assert longest == open_approval(sign_approval(longest, OPERATOR), KEYS)
    assert APPROVAL_SECONDS == longest.exp - longest.nbf
    assert MAX_STARTS == judged(ordered(proven(made=longest))).max_starts


@pytest.mark.parametrize(
    "approved, changes, words",
    [
        ([], {}, "1 to 10000"),
        (leaves(1) * 2, {}, "each command once"),
        (leaves(1), {"lifetime": APPROVAL_SECONDS + 1}, "exp is"),
        (leaves(1), {"lifetime": -1}, "exp is"),
        (leaves(1), {"max_starts": 0}, "no approval"),
        (leaves(1), {"organization": "\n"}, "no approval"),
    ],
)
def test_what_cannot_be_approved_is_a_sentence(approved, changes, words):
    """Before anything is signed."""
    usual = {"approval_id": str(uuid.UUID(int=9)), "root_fp": ROOT_FP, "organization": ORGANIZATION, "now": START}
    with pytest.raises(ConfigurationError, match=words):
        new_approval(approved, **{**usual, **changes})


def test_an_approval_covers_its_leaves_in_their_order_and_no_others():
    """The server keeps them beside it, and checks that they belong together."""
    approved = leaves(3)
    made = approval(approved)

    assert covers(made, approved)
    for others in (approved[:2], approved[::-1], [*approved, leaf(9)], [*approved[:2], leaf(9)]):
        assert not covers(made, others)
    assert not covers(attrs.evolve(made, leaves=4), approved)


def test_two_operators_may_sign_and_one_is_enough():
    """Signatures of others are passed over."""
    made = approval()

    assert made == open_approval(sign_approval(made, STRANGER, OPERATOR), KEYS)


def test_a_leaf_names_the_digest_of_the_exact_parameters():
    """The text as it is in the command, byte for byte."""
    assert hashlib.sha256(PARAMS).hexdigest() == leaf().params
    assert leaf() == ApprovalLeaf.of(ordered(None))
    assert leaf().data.startswith(b"DSSEv1 %d %b " % (len(LEAF_TYPE), LEAF_TYPE.encode()))
    assert leaf().data != leaf(params=PARAMS + b" ").data


def test_the_largest_approval_fits_into_a_command_with_the_largest_parameters():
    """Sixteen signatures, a name of 64 characters, a proof in a tree of 10,000."""
    approved = leaves(MAX_LEAVES)
    made = approval(approved, organization="\N{SNOWMAN}" * 64)
    keys = [SigningKey.from_seed(bytes([number]) * 32) for number in range(16)]

    wire = sign_approval(made, *keys)
    proof = prove_approval(wire, approved, 0)

    assert len(wire) <= MAX_APPROVAL_BYTES
    assert 14 == len(proof.proof)
    what = Orderable(cmd_id=str(uuid.UUID(int=1)), type="packages.upgrade", params=bytes(30 * 1024), start_by=1,
                     approval=proof)  # fmt: skip
    signed = sign_command(what, WHO, Order(1, 1, 1), COMMAND_KEY, now=START, entropy=SeededEntropy())
    assert len(signed) <= MAX_ENVELOPE_BYTES


def test_more_than_the_longest_approval_is_not_read():
    """Its bound holds before anything else is looked at."""
    with pytest.raises(TooLargeError):
        open_approval(b" " * (MAX_APPROVAL_BYTES + 1), KEYS)


@given(st.binary(max_size=300))
def test_any_bytes_are_an_approval_or_refused(data):
    """Nothing else comes out."""
    with pytest.raises(VerificationError):
        open_approval(data, KEYS)


@given(st.binary(max_size=60), st.integers(0, 20), st.lists(st.binary(max_size=40), max_size=6))
def test_any_proof_is_refused_and_nothing_else_happens(envelope, index, nodes):
    """A hacked server may send what it likes beside a genuine approval, or instead of it."""
    genuine = b64decode(proven(5).envelope)
    for wire in (envelope, genuine):
        proof = ApprovalProof(b64encode(wire), index, tuple(map(b64encode, nodes)))
        with pytest.raises((VerificationError, NeedsApprovalError)):
            judged(ordered(proof))
