"""Checkpoints: signed heads of all histories, and witnesses that hold the server to what it signed."""

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core import codec
from redflag_core.audit import AuditHead, AuditState, append_entry, verify_history
from redflag_core.checkpoints import (
    CHECKPOINT_TYPE,
    MAX_CHECKPOINT_AGE,
    MAX_PROOF,
    Checkpoint,
    HeadEvidence,
    advance_witness,
    check_checkpoint_age,
    new_checkpoint,
    prove_head,
    sign_checkpoint,
    verify_checkpoint,
    verify_head,
)
from redflag_core.encoding import b64decode, b64encode, dump_json
from redflag_core.envelope import sign_envelope
from redflag_core.errors import (
    ExpiredError,
    MalformedError,
    ProofError,
    RewrittenError,
    RollbackError,
    SignatureError,
    StaleError,
    UnknownKeyError,
    VerificationError,
    WrongRecipientError,
)
from redflag_core.freshness import TOLERANCE
from redflag_core.keys import SigningKey
from redflag_core.merkle import MAX_SIZE, MerkleTree, consistency_ranges, inclusion_ranges
from redflag_core.messages import BUNDLE_TYPE, PublicKey, Role, TrustedKey
from redflag_core.testing import START
from redflag_core.trust import DAY, new_bundle
from tests.vectors.make import HERE

SERVER = "0190b5a4-7a3c-7def-8abc-0123456789ab"
OTHER_SERVER = "0190b5a4-7a3c-7def-8abc-ba9876543210"
OURS, THEIRS, THIRD = (f"0190b5a4-7a3c-7def-8abc-00000000000{n}" for n in "abc")
RETIRED, CURRENT, COMMAND, STRANGER = (SigningKey.from_seed(bytes([n]) * 32) for n in (1, 2, 3, 4))
NOW = int(START.timestamp())
CASES = json.loads((HERE / "audit.json").read_text(encoding="utf-8"))


def trusted(key, role, not_before, not_after):
    return TrustedKey(PublicKey.of(key).key, role, not_before, not_after)


BUNDLE = new_bundle(
    SERVER,
    (
        trusted(RETIRED, Role.CHECKPOINT, NOW - 100 * DAY, NOW - 10 * DAY),
        trusted(CURRENT, Role.CHECKPOINT, NOW - 10 * DAY, NOW + 90 * DAY),
        trusted(COMMAND, Role.COMMAND, NOW - 100 * DAY, NOW + 90 * DAY),
    ),
    version=1,
    epoch=1,
    now=START,
)


@cache
def history(size, organization=OURS, change_at=0):
    """Entries of a history, and its state. Another *change_at* is another past from that position on."""
    state, entries = AuditState(organization=organization), []
    for number in range(1, size + 1):
        payload = f'{{"n":{number},"was":{number != change_at}}}'.lower()
        entry, state = append_entry(state, payload, salt=number.to_bytes(16))
        entries.append(entry)
    return entries, state


def heads(size, change_at=0, others=(3, 0)):
    """What a server has: ours in the middle."""
    return [
        history(others[0], THEIRS)[1].head,
        history(size, OURS, change_at)[1].head,
        history(others[1], THIRD)[1].head,
    ]


def checkpoint(n, size, change_at=0, key=CURRENT, **changes):
    """A signed checkpoint made *n* minutes after the start, and its heads."""
    before = Checkpoint(server=SERVER, n=n - 1, iat=0, organizations=3, root="ab" * 32) if n > 1 else None
    made = new_checkpoint(SERVER, heads(size, change_at), now=START + timedelta(minutes=n), before=before)
    return sign_checkpoint(attrs.evolve(made, **changes), key)


def evidence(n, size, change_at=0, key=CURRENT, index=1, **changes):
    return prove_head(checkpoint(n, size, change_at, key, **changes), heads(size, change_at), index)


def consistency(first, size, change_at=0):
    """What the server answers a witness."""
    leaves = (bytes.fromhex(entry.hash) for entry in history(size, OURS, change_at)[0])
    return [item.hex() for item in MerkleTree.of_hashes(leaves).consistency_proof(min(first, size))]


def verified(shown, organization=OURS, bundle=BUNDLE):
    return verify_head(shown, bundle, organization=organization)


def advance(kept, shown, proof, bundle=BUNDLE):
    return advance_witness(kept, shown, bundle, consistency=proof)


# Making checkpoints


def test_a_first_checkpoint_has_number_one():
    """And the time it was made, and how many organizations there are."""
    made = new_checkpoint(SERVER, heads(5), now=START)

    assert (1, SERVER, 1, NOW, 3) == (made.v, made.server, made.n, made.iat, made.organizations)
    assert MerkleTree.of(head.leaf for head in heads(5)).root().hex() == made.root


@pytest.mark.parametrize("seconds, expected", [(60, 60), (0, 0), (-60, 0)])
def test_a_later_checkpoint_is_never_dated_before(seconds, expected):
    """Its number is one more, though the clock of the server was set back."""
    before = new_checkpoint(SERVER, heads(5), now=START)

    after = new_checkpoint(SERVER, heads(6), now=START + timedelta(seconds=seconds), before=before)

    assert (2, NOW + expected) == (after.n, after.iat)


def test_a_clock_that_was_never_set_dates_a_checkpoint_at_its_beginning():
    """There is no earlier time on the wire."""
    before_1970 = datetime(1969, 12, 31, tzinfo=UTC)

    assert 0 == new_checkpoint(SERVER, heads(5), now=before_1970).iat


def test_a_checkpoint_covers_every_organization_that_there_was():
    """One that was closed keeps its place; a new one comes at the end; none is there twice."""
    before = new_checkpoint(SERVER, heads(5)[:2], now=START)

    assert 2 == new_checkpoint(SERVER, heads(5)[:2], now=START, before=before).organizations
    assert 3 == new_checkpoint(SERVER, heads(5), now=START, before=before).organizations
    with pytest.raises(ValueError, match="keeps its place"):
        new_checkpoint(SERVER, heads(5)[:1], now=START, before=before)
    with pytest.raises(ValueError, match="one head"):
        new_checkpoint(SERVER, [*heads(5), heads(6)[1]], now=START)


def test_a_server_without_organizations_has_checkpoints_too():
    """The tree of nothing."""
    assert (
        0
        == verify_checkpoint(sign_checkpoint(new_checkpoint(SERVER, [], now=START), CURRENT), BUNDLE).organizations
    )


# Verifying checkpoints


def test_a_checkpoint_comes_back_as_it_was_signed():
    """By a checkpoint key of the bundle."""
    made = new_checkpoint(SERVER, heads(5), now=START)

    assert made == verify_checkpoint(sign_checkpoint(made, CURRENT), BUNDLE)


@pytest.mark.parametrize("key", [COMMAND, STRANGER], ids=["command key", "stranger"])
def test_only_checkpoint_keys_sign_checkpoints(key):
    """A command key of the same server does not."""
    with pytest.raises(UnknownKeyError):
        verify_checkpoint(checkpoint(1, 5, key=key), BUNDLE)


@pytest.mark.parametrize(
    "days, key", [(-100, RETIRED), (-50, RETIRED), (-10, RETIRED), (-10, CURRENT), (90, CURRENT)]
)
def test_an_old_checkpoint_verifies_with_the_key_of_its_time(days, key):
    """A retired key stays listed: what it signed while it was valid is still proven, to the last second."""
    iat = NOW + days * DAY

    assert iat == verify_checkpoint(checkpoint(1, 5, key=key, iat=iat), BUNDLE).iat


@pytest.mark.parametrize(
    "iat, key",
    [
        (NOW - 100 * DAY - 1, RETIRED),
        (NOW - 10 * DAY + 1, RETIRED),
        (NOW, RETIRED),
        (NOW - 10 * DAY - 1, CURRENT),
        (NOW + 90 * DAY + 1, CURRENT),
    ],
)
def test_a_key_signs_for_its_own_time_only(iat, key):
    """A retired one signs nothing new, and a new one nothing old."""
    with pytest.raises(ExpiredError, match="not valid when it was made"):
        verify_checkpoint(checkpoint(1, 5, key=key, iat=iat), BUNDLE)


def test_a_key_that_was_listed_again_signs_in_both_times():
    """Each listing has its own times."""
    twice = attrs.evolve(BUNDLE, keys=(*BUNDLE.keys, trusted(RETIRED, Role.CHECKPOINT, NOW + DAY, NOW + 2 * DAY)))

    for iat in (NOW - 50 * DAY, NOW + DAY):
        assert iat == verify_checkpoint(checkpoint(1, 5, key=RETIRED, iat=iat), twice).iat
    with pytest.raises(ExpiredError):
        verify_checkpoint(checkpoint(1, 5, key=RETIRED, iat=NOW), twice)


def test_a_checkpoint_of_another_server_is_refused():
    """Though it was signed with the same key."""
    with pytest.raises(WrongRecipientError, match="another server"):
        verify_checkpoint(checkpoint(1, 5, server=OTHER_SERVER), BUNDLE)


def test_nothing_else_is_taken_for_a_checkpoint():
    """The payload type is signed."""
    body = codec.dump(new_checkpoint(SERVER, heads(5), now=START))

    with pytest.raises(MalformedError, match="not of type"):
        verify_checkpoint(sign_envelope(BUNDLE_TYPE, body, CURRENT), BUNDLE)
    with pytest.raises(SignatureError):
        verify_checkpoint(
            sign_envelope(BUNDLE_TYPE, body, CURRENT).replace(BUNDLE_TYPE.encode(), CHECKPOINT_TYPE.encode()),
            BUNDLE,
        )


def test_every_changed_byte_of_a_checkpoint_is_noticed():
    """Wherever it is."""
    wire = checkpoint(1, 5)
    for at in range(len(wire)):
        changed = bytearray(wire)
        changed[at] ^= 1
        with pytest.raises(VerificationError):
            verify_checkpoint(bytes(changed), BUNDLE)


@pytest.mark.parametrize(
    "changes",
    [{"n": 0}, {"v": 2}, {"iat": -1}, {"iat": 10**12}, {"root": "ab"}, {"organizations": -1}, {"more": 1}],
    ids=str,
)
def test_a_checkpoint_has_one_form(changes):
    """Though a checkpoint key signed it."""
    plain = {**codec.unstructure(new_checkpoint(SERVER, heads(5), now=START)), **changes}

    with pytest.raises(MalformedError):
        verify_checkpoint(sign_envelope(CHECKPOINT_TYPE, dump_json(plain), CURRENT), BUNDLE)


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_raise_one_family_only(data, is_signed):
    """As an envelope, or signed in one."""
    wire = sign_envelope(CHECKPOINT_TYPE, data, CURRENT) if is_signed else data

    with pytest.raises(VerificationError):
        verify_checkpoint(wire, BUNDLE)


@pytest.mark.parametrize("age", [-TOLERANCE, 0, MAX_CHECKPOINT_AGE])
def test_a_recent_checkpoint_may_be_the_newest(age):
    """To the second."""
    made = new_checkpoint(SERVER, heads(5), now=START)

    check_checkpoint_age(made, now=START + timedelta(seconds=age))


@pytest.mark.parametrize(
    "age, longest", [(-TOLERANCE - 1, 60), (61, 60), (MAX_CHECKPOINT_AGE + 1, MAX_CHECKPOINT_AGE)]
)
def test_a_server_that_shows_nothing_newer_is_noticed(age, longest):
    """Whoever hides what happened has to show something old."""
    made = new_checkpoint(SERVER, heads(5), now=START)

    with pytest.raises(StaleError, match="not of now"):
        check_checkpoint_age(made, now=START + timedelta(seconds=age), max_age=longest)


# Heads


@pytest.mark.parametrize("index, organization", [(0, THEIRS), (1, OURS), (2, THIRD)])
def test_each_organization_gets_evidence_of_its_own_head(index, organization):
    """With the proof that it is in the checkpoint."""
    shown = evidence(4, 7, index=index)

    assert 4 == verified(shown, organization).n
    assert heads(7)[index] == shown.head


def test_evidence_can_be_stored():
    """It comes back from JSON, and convicts whoever signed it."""
    shown = evidence(4, 7)

    assert shown == codec.parse(HeadEvidence, codec.dump(shown), max_bytes=100_000)


@pytest.mark.parametrize("text, is_taken", [("", False), ("x", True), ("x" * 16_384, True), ("x" * 16_385, False)])
def test_evidence_holds_a_checkpoint_of_bounded_length(text, is_taken):
    """Whether it is one shows when it is verified."""
    genuine = evidence(4, 7)

    if is_taken:
        assert text == attrs.evolve(genuine, checkpoint=text).checkpoint
    else:
        with pytest.raises(ValueError, match="checkpoint"):
            attrs.evolve(genuine, checkpoint=text)


def test_a_head_of_another_organization_is_refused():
    """Though it is genuine."""
    with pytest.raises(WrongRecipientError, match="another organization"):
        verified(evidence(4, 7, index=0))


@pytest.mark.parametrize(
    "changes",
    [
        {"head": AuditHead(organization=OURS, size=7, root="ab" * 32)},
        {"head": AuditHead(organization=OURS, size=6, root=heads(7)[1].root)},
        {"index": 0},
        {"index": 2},
        {"index": 3},
        {"proof": ()},
        {"proof": ("ab" * 32,) * 2},
    ],
    ids=str,
)
def test_a_head_that_was_not_signed_is_refused(changes):
    """Its size and root, its place and the proof are all checked."""
    with pytest.raises(ProofError):
        verified(attrs.evolve(evidence(4, 7), **changes))


@given(
    st.text(max_size=40),
    st.integers(0, 4),
    st.lists(st.sampled_from(["ab" * 32, *evidence(4, 7).proof]), max_size=3),
)
def test_any_evidence_raises_one_family_only(text, index, proof):
    """Untrusted fields that have their form are refused in one way, or are the true ones."""
    genuine = evidence(4, 7)
    with suppress(VerificationError):
        assert genuine == attrs.evolve(genuine, index=index, proof=tuple(proof)) or verified(
            attrs.evolve(genuine, index=index, proof=tuple(proof))
        )
    with pytest.raises(VerificationError):
        verified(attrs.evolve(genuine, checkpoint=text or "x"))


def test_the_longest_proofs_fit():
    """Of a tree as large as one can be."""
    assert (54, 86_400) == (MAX_PROOF, MAX_CHECKPOINT_AGE)
    assert MAX_PROOF >= len(inclusion_ranges(0, MAX_SIZE))
    assert MAX_PROOF >= max(len(consistency_ranges(MAX_SIZE - back, MAX_SIZE)) for back in range(200))
    with pytest.raises(ValueError, match="proof"):
        attrs.evolve(evidence(4, 7), proof=("ab" * 32,) * (MAX_PROOF + 1))


# Witnesses


@pytest.mark.parametrize("first, later", [(0, 0), (0, 9), (1, 2), (4, 9), (7, 8), (9, 9)])
def test_a_witness_goes_on_with_a_history_that_grew(first, later):
    """And keeps the newer evidence."""
    kept, shown = evidence(2, first), evidence(3, later)

    assert shown == advance(kept, shown, consistency(first, later))


def test_a_witness_may_skip_checkpoints_and_see_one_again():
    """It was away, or asks twice."""
    kept = evidence(2, 4)

    assert kept == advance(kept, kept, [])
    assert 9 == advance(kept, evidence(90, 9), consistency(4, 9)).head.size


@pytest.mark.parametrize("change_at", range(1, 6))
@pytest.mark.parametrize("later", [5, 6, 9])
def test_a_history_that_was_rewritten_after_it_was_witnessed_is_noticed(change_at, later):
    """Whatever was changed in it, and however much was appended: no proof leads from the one to the other."""
    kept = evidence(2, 5)
    for proof in (consistency(5, later), consistency(5, later, change_at), []):
        with pytest.raises(RewrittenError, match=r"^the server cannot show that the first 5 entries") as caught:
            advance(kept, evidence(3, later, change_at), proof)
        assert (0, 5) == (caught.value.after, caught.value.up_to)


def test_the_entries_of_a_rewritten_history_do_not_fit_what_was_witnessed():
    """Whoever has the entries sees it without the server: the kept head says so."""
    kept = evidence(2, 5)

    for later in (5, 9):
        verify_history(history(later)[0], start=AuditState(organization=OURS), heads=[kept.head])
        with pytest.raises(RewrittenError):
            verify_history(history(later, OURS, 3)[0], start=AuditState(organization=OURS), heads=[kept.head])


def test_what_was_changed_before_the_first_evidence_is_not_noticed():
    """That is the limit: a witness speaks for the time since it began to look."""
    assert 2 == verified(evidence(2, 5, change_at=3)).n


def test_a_history_that_became_shorter_is_noticed():
    """Truncation after a witnessed checkpoint."""
    with pytest.raises(RewrittenError, match="not the beginning"):
        advance(evidence(2, 5), evidence(3, 4), consistency(4, 5))


def test_an_older_checkpoint_proves_nothing():
    """It may be an answer that was late; it is not kept."""
    with pytest.raises(RollbackError, match="checkpoint 2 is older than the one kept"):
        advance(evidence(3, 5), evidence(2, 5), [])


def test_two_checkpoints_with_one_number_convict_the_server():
    """It showed different histories to different people, or forgot what it had signed."""
    with pytest.raises(RewrittenError, match="contradict each other"):
        advance(evidence(3, 5), evidence(3, 6), consistency(5, 6))
    with pytest.raises(RewrittenError, match="contradict each other"):
        advance(evidence(3, 5), evidence(3, 5, iat=NOW + 500), [])


def test_two_witnesses_notice_a_split_view_when_they_compare():
    """The later evidence of one is shown to the other, with the proof that the server gives."""
    mine, yours = evidence(3, 5), evidence(4, 7, change_at=5)

    assert evidence(4, 7) == advance(mine, evidence(4, 7), consistency(5, 7))
    with pytest.raises(RewrittenError):
        advance(mine, yours, consistency(5, 7, change_at=5))


def test_an_organization_keeps_its_place():
    """Two leaves for one organization would be two histories: a witness sees always the same one."""
    double = [*heads(5), history(7, OURS, 3)[1].head]
    root = MerkleTree.of(head.leaf for head in double).root().hex()
    wire = checkpoint(3, 5, organizations=4, root=root)

    assert verified(prove_head(wire, double, 3)).n == 3
    with pytest.raises(RewrittenError, match="contradict each other"):
        advance(evidence(2, 5), prove_head(wire, double, 3), [])


def test_a_later_checkpoint_that_is_dated_before_is_noticed():
    """A stolen key that was retired can only sign for its own time."""
    with pytest.raises(RewrittenError, match="contradict each other"):
        advance(evidence(3, 5), evidence(4, 5, iat=NOW - 50 * DAY, key=RETIRED), [])


def test_a_witness_believes_nothing_that_is_not_signed():
    """Evidence is verified before anything else is looked at."""
    kept = evidence(2, 5)

    with pytest.raises(UnknownKeyError):
        advance(kept, evidence(3, 6, key=STRANGER), consistency(5, 6))
    with pytest.raises(WrongRecipientError):
        advance(kept, evidence(3, 6, index=0), consistency(5, 6))


def test_a_witness_needs_the_key_of_what_it_kept_no_more():
    """It verified it when it kept it."""
    kept = evidence(2, 5, iat=NOW - 50 * DAY, key=RETIRED)
    renewed = attrs.evolve(BUNDLE, keys=BUNDLE.keys[1:])

    assert evidence(3, 6) == advance(kept, evidence(3, 6), consistency(5, 6), renewed)


@given(st.lists(st.text(max_size=70) | st.sampled_from(consistency(5, 9)), max_size=5))
def test_any_proof_is_the_true_one_or_refused(proof):
    """Untrusted text raises one error."""
    if proof == consistency(5, 9):
        assert evidence(3, 9) == advance(evidence(2, 5), evidence(3, 9), proof)
    else:
        with pytest.raises(RewrittenError):
            advance(evidence(2, 5), evidence(3, 9), proof)


# The committed known answers


def test_the_known_answers_hold():
    """Checkpoints, evidence and what a witness does with them."""
    key = SigningKey.from_seed(bytes.fromhex(CASES["seed"]))
    bundle = attrs.evolve(BUNDLE, keys=(trusted(key, Role.CHECKPOINT, NOW, NOW + DAY),))
    first, second = (codec.structure(HeadEvidence, each) for each in CASES["evidence"])

    for shown, plain in zip((first, second), CASES["checkpoints"], strict=True):
        assert plain == codec.unstructure(verified(shown, CASES["organization"], bundle))
        assert shown.checkpoint == b64encode(b64decode(shown.checkpoint))
    assert second == advance(first, second, CASES["consistency"], bundle)
    root = MerkleTree.of(leaf.encode() for leaf in CASES["head_leaves"]).root().hex()
    assert root == CASES["checkpoints"][1]["root"]
    assert CASES["head_leaves"][0] == second.head.leaf.decode()
