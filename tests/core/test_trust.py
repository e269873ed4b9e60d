"""Trust: the root chain from its pin, the bundle that only moves forward, and whose keys are live."""

from contextlib import suppress
from datetime import timedelta

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core import codec
from redflag_core.envelope import sign_envelope
from redflag_core.errors import (
    ConfigurationError,
    ExpiredError,
    MalformedError,
    RollbackError,
    UnknownKeyError,
    VerificationError,
    WrongRecipientError,
)
from redflag_core.keys import SigningKey
from redflag_core.messages import BUNDLE_TYPE, ROOT_TYPE, PublicKey, Role, RootDocument, TrustedKey
from redflag_core.testing import START
from redflag_core.trust import (
    BUNDLE_LIFETIME,
    DAY,
    MAX_ROOTS,
    RENEW_BEFORE,
    Root,
    bundle_digest,
    first_root,
    live_keys,
    new_bundle,
    next_root,
    renewal_due,
    sign_bundle,
    signs_commands,
    verify_bundle,
    verify_roots,
)

SERVER = "0190b5a4-7a3c-7def-8abc-0123456789ab"
OTHER_SERVER = "0190b5a4-7a3c-7def-8abc-ba9876543210"
NOW = int(START.timestamp())
ROOTS = [SigningKey.from_seed(bytes([n]) * 32) for n in range(1, 6)]
PIN = ROOTS[0].verify_key.fingerprint
COMMAND, CHECKPOINT, ALICE, BOB, STRANGER = (SigningKey.from_seed(bytes([n]) * 32) for n in range(10, 15))


def chain(length, server=SERVER):
    """Root documents 1 to *length*."""
    documents = [first_root(server, ROOTS[0], now=START)]
    for n in range(1, length):
        before = Root(n, ROOTS[n - 1].verify_key)
        documents.append(next_root(server, before, ROOTS[n - 1], ROOTS[n], now=START))
    return documents


def follow(documents, server=SERVER, root_fp=PIN):
    return verify_roots(documents, server=server, root_fp=root_fp)


def link(n, key, *signers, server=SERVER):
    """A root document with any number, key and signatures."""
    document = RootDocument(1, server, n, NOW, PublicKey.of(key))
    return sign_envelope(ROOT_TYPE, codec.dump(document), *signers)


def trusted(key, role, *organizations, not_before=NOW, not_after=NOW + DAY):
    return TrustedKey(PublicKey.of(key).key, role, not_before, not_after, organizations)


KEYS = (
    trusted(COMMAND, Role.COMMAND),
    trusted(CHECKPOINT, Role.CHECKPOINT),
    trusted(ALICE, Role.OPERATOR, "org-1", "org-2"),
    trusted(BOB, Role.OPERATOR, "org-2"),
)
BUNDLE = new_bundle(SERVER, KEYS, version=5, epoch=1, now=START)
WIRE = sign_bundle(BUNDLE, ROOTS[0])


def check(wire=WIRE, root=ROOTS[0], now=START, **options):
    return verify_bundle(wire, root.verify_key, **{"server": SERVER, "now": now} | options)


def signed(**changes):
    return sign_bundle(attrs.evolve(BUNDLE, **changes), ROOTS[0])


def test_the_times_are_those_of_the_protocol():
    """90 days of validity, renewed 30 days before the end."""
    assert (90 * 86_400, 30 * 86_400) == (BUNDLE_LIFETIME, RENEW_BEFORE)


# The root chain


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_chain_leads_from_the_pin_to_its_newest_root(length):
    """Each root is signed by itself and by the one before it."""
    assert Root(length, ROOTS[length - 1].verify_key) == follow(chain(length))


def test_another_pin_is_refused():
    """A server with another first root is another server, whatever its chain."""
    for pin in (ROOTS[1].verify_key.fingerprint, PIN.upper(), PIN[:32], "", "0" * 64):
        with pytest.raises(UnknownKeyError, match="not the one pinned"):
            follow(chain(3), root_fp=pin)


@pytest.mark.parametrize("order", [[1], [0, 2], [0, 1, 3], [1, 0], [0, 0], [0, 1, 1], [0, 2, 1]])
def test_a_chain_has_no_gap_repetition_or_other_order(order):
    """Documents are those of 1, 2, 3, each once."""
    documents = chain(4)

    with pytest.raises(VerificationError):
        follow([documents[n] for n in order])


def test_a_chain_has_at_least_one_document_and_not_too_many():
    """Nothing is not trusted; neither is a chain that was made to keep us busy."""
    for documents in ([], chain(1) * (MAX_ROOTS + 1)):
        with pytest.raises(MalformedError, match="1 to 1000 documents"):
            follow(documents)
    with pytest.raises(MalformedError, match="must not follow itself"):
        follow(chain(1) * MAX_ROOTS)


def test_a_next_root_needs_the_signature_of_the_one_before_it():
    """Somebody who only has the new key names nobody."""
    with pytest.raises(UnknownKeyError, match="1 of the 2 signatures"):
        follow([*chain(1), link(2, ROOTS[1], ROOTS[1])])
    with pytest.raises(UnknownKeyError):
        follow([*chain(1), link(2, ROOTS[1], ROOTS[1], STRANGER)])


def test_a_next_root_needs_its_own_signature():
    """The key that is named must be in somebody's hands."""
    with pytest.raises(UnknownKeyError, match="1 of the 2 signatures"):
        follow([*chain(1), link(2, ROOTS[1], ROOTS[0])])


def test_a_first_root_needs_its_own_signature():
    """A document with the pinned key that somebody else signed."""
    with pytest.raises(UnknownKeyError):
        follow([link(1, ROOTS[0], STRANGER)])


def test_a_root_that_was_replaced_has_no_more_say():
    """Root 1 cannot name root 3 once there is a root 2: a stolen old key is worthless."""
    with pytest.raises(UnknownKeyError):
        follow([*chain(2), link(3, STRANGER, ROOTS[0], STRANGER)])


def test_a_root_does_not_follow_itself():
    """It would need only one signature."""
    with pytest.raises(MalformedError, match="must not follow itself"):
        follow([*chain(1), link(2, ROOTS[0], ROOTS[0])])


def test_a_chain_of_another_server_is_refused():
    """In whole, or from some document on."""
    with pytest.raises(WrongRecipientError):
        follow(chain(2, server=OTHER_SERVER))
    with pytest.raises(WrongRecipientError):
        follow([*chain(1), link(2, ROOTS[1], ROOTS[0], ROOTS[1], server=OTHER_SERVER)])


def test_a_document_has_the_number_of_its_place():
    """Root 3 cannot stand in for root 2."""
    with pytest.raises(WrongRecipientError, match="out of order"):
        follow([*chain(1), link(3, ROOTS[1], ROOTS[0], ROOTS[1])])


def test_every_changed_byte_of_a_root_document_is_noticed():
    """Whatever byte of the newest document changes, the chain ends before it."""
    documents = chain(2)
    for at in range(len(documents[1])):
        changed = bytearray(documents[1])
        changed[at] ^= 1
        with pytest.raises(VerificationError):
            follow([documents[0], bytes(changed)])


@given(st.lists(st.binary(max_size=40) | st.sampled_from(chain(3)), max_size=3))
def test_any_documents_are_a_chain_or_refused(documents):
    """The only exceptions for untrusted bytes are verification errors."""
    with suppress(VerificationError):
        assert len(documents) == follow(documents).n


def test_only_the_current_root_can_name_the_next():
    """Signing with another key is noticed where it happens, not by every agent."""
    with pytest.raises(UnknownKeyError, match="only the current root"):
        next_root(SERVER, Root(2, ROOTS[1].verify_key), ROOTS[0], ROOTS[2], now=START)


def test_another_kind_of_envelope_is_no_root():
    """A bundle signed by the root is not a root document, also when it has the same content."""
    document = codec.dump(RootDocument(1, SERVER, 1, NOW, PublicKey.of(ROOTS[0])))

    with pytest.raises(VerificationError):
        follow([sign_envelope(BUNDLE_TYPE, document, ROOTS[0])])


# The bundle


def test_a_bundle_signed_by_the_root_is_trusted():
    """What comes out is what was signed."""
    assert BUNDLE == check()
    assert (NOW, NOW + BUNDLE_LIFETIME) == (BUNDLE.iat, BUNDLE.not_after)


def test_a_bundle_signed_by_anybody_else_is_not():
    """Neither by a stranger nor by a root that was replaced."""
    with pytest.raises(UnknownKeyError):
        check(sign_bundle(BUNDLE, STRANGER))
    with pytest.raises(UnknownKeyError):
        check(root=ROOTS[1])


def test_every_changed_byte_of_a_bundle_is_noticed():
    """Whatever changes, it is refused."""
    for at in range(len(WIRE)):
        changed = bytearray(WIRE)
        changed[at] ^= 1
        with pytest.raises(VerificationError):
            check(bytes(changed))


def test_the_payload_of_a_bundle_is_read_strictly():
    """The root's signature does not excuse an unknown field or another version."""
    good = codec.unstructure(BUNDLE)
    for payload in (good | {"v": 2}, good | {"scope": "all"}, good | {"keys": [{}]}, good | {"iat": -1}, {}):
        with pytest.raises(MalformedError):
            check(sign_envelope(BUNDLE_TYPE, codec.dump(payload), ROOTS[0]))


def test_another_kind_of_envelope_is_no_bundle():
    """A root document does not pass for a bundle, nor does any other type with a bundle in it."""
    with pytest.raises(MalformedError):
        check(sign_envelope(ROOT_TYPE, codec.dump(BUNDLE), ROOTS[0]))
    with pytest.raises(MalformedError):
        check(chain(1)[0])


def test_a_bundle_of_another_server_is_refused():
    """Also when the same root signed it."""
    with pytest.raises(WrongRecipientError):
        check(signed(server=OTHER_SERVER))


@pytest.mark.parametrize("held, accepted", [(0, True), (4, True), (5, True), (6, False), (10**9, False)])
def test_a_bundle_never_goes_back(held, accepted):
    """A newer one replaces the one held, the one held passes again, an older one does not."""
    if accepted:
        assert 5 == check(held_version=held).version
    else:
        with pytest.raises(RollbackError, match=f"bundle 5 is older than the one held .{held}."):
            check(held_version=held)


def test_the_first_bundle_may_have_any_number():
    """Nothing is held that it could go back behind."""
    assert 0 == check(signed(version=0)).version


def test_a_bundle_ends_with_its_last_second():
    """not_after is inclusive, one second later it has expired."""
    end = START + timedelta(seconds=BUNDLE_LIFETIME)

    assert check(now=end)
    with pytest.raises(ExpiredError, match="past its end"):
        check(now=end + timedelta(seconds=1))


def test_a_bundle_may_be_valid_for_one_second_only():
    """One that ends when it begins is odd, not wrong."""
    assert NOW == check(signed(not_after=NOW)).not_after


@pytest.mark.parametrize("not_after", [NOW - 1, NOW + BUNDLE_LIFETIME + 1, NOW + 10 * BUNDLE_LIFETIME])
def test_a_bundle_is_valid_for_90_days_at_most(not_after):
    """A longer one is refused though the root signed it, and so is one that ends before it begins."""
    with pytest.raises(ExpiredError, match="longer validity"):
        check(signed(not_after=not_after))


def test_a_machine_whose_clock_is_behind_believes_the_bundle():
    """The root says when it was issued: a wrong clock must not keep a machine from its keys."""
    assert check(now=START - timedelta(days=400))


@given(st.binary(max_size=60))
def test_any_bytes_are_a_bundle_or_refused(data):
    """The only exceptions for untrusted bytes are verification errors."""
    with pytest.raises(VerificationError):
        check(data)


@pytest.mark.parametrize("lifetime, expected", [(60, 60), (BUNDLE_LIFETIME + 1, BUNDLE_LIFETIME)])
def test_a_new_bundle_is_never_too_long(lifetime, expected):
    """A longer lifetime than is accepted cannot be issued."""
    bundle = new_bundle(SERVER, KEYS, version=1, epoch=0, now=START, lifetime=lifetime)

    assert NOW + expected == bundle.not_after
    assert bundle == check(sign_bundle(bundle, ROOTS[0]))


def test_what_nobody_would_accept_is_not_issued():
    """A bundle with 900 keys passes; one that is too large to be accepted is not signed."""
    many = tuple(trusted(SigningKey.from_seed(n.to_bytes(32, "big")), Role.OPERATOR, SERVER) for n in range(1000))

    assert 900 == len(check(signed(keys=many[:900])).keys)
    with pytest.raises(ConfigurationError, match="too large"):
        signed(keys=many)


def test_the_digest_is_that_of_the_bytes_as_sent():
    """Another envelope of the same bundle has another digest."""
    assert bundle_digest(WIRE) != bundle_digest(WIRE + b" ")
    assert 64 == len(bundle_digest(WIRE))


def test_a_bundle_is_renewed_30_days_before_its_end():
    """From that second on."""
    due = START + timedelta(seconds=BUNDLE_LIFETIME - RENEW_BEFORE)

    assert not renewal_due(BUNDLE, now=due - timedelta(seconds=1))
    assert renewal_due(BUNDLE, now=due)


# Live keys


def test_keys_are_live_for_their_role_only():
    """A command key signs no approvals, an operator key no commands."""
    assert {COMMAND.key_id: COMMAND.verify_key} == live_keys(BUNDLE, Role.COMMAND, now=START)
    assert {CHECKPOINT.key_id: CHECKPOINT.verify_key} == live_keys(BUNDLE, Role.CHECKPOINT, now=START)


@pytest.mark.parametrize(
    "organization, operators",
    [("org-1", [ALICE]), ("org-2", [ALICE, BOB]), ("org-3", []), ("org", []), (None, [])],
)
def test_operators_speak_for_their_organizations_only(organization, operators):
    """Without an organization nobody speaks."""
    live = live_keys(BUNDLE, Role.OPERATOR, now=START, organization=organization)

    assert {key.key_id: key.verify_key for key in operators} == live


@pytest.mark.parametrize("offset, live", [(-1, False), (0, True), (DAY, True), (DAY + 1, False)])
def test_keys_are_live_from_their_first_to_their_last_second(offset, live):
    """Both inclusive."""
    assert live == bool(live_keys(BUNDLE, Role.COMMAND, now=START + timedelta(seconds=offset)))


def test_keys_overlap_while_they_are_rotated():
    """Two keys of one role are live at once, and a retired one drops out at its end."""
    old = trusted(COMMAND, Role.COMMAND, not_after=NOW + 10)
    new = trusted(STRANGER, Role.COMMAND, not_before=NOW + 5)
    bundle = attrs.evolve(BUNDLE, keys=(old, new))

    counts = [len(live_keys(bundle, Role.COMMAND, now=START + timedelta(seconds=s))) for s in (0, 5, 10, 11)]

    assert [1, 2, 2, 1] == counts


def test_a_command_key_is_believed_while_bundle_and_key_are_valid():
    """Not after the end of either, not under another role, and not before the bundle names it."""
    key = COMMAND.key_id

    assert signs_commands(BUNDLE, key, now=START)
    assert not signs_commands(BUNDLE, STRANGER.key_id, now=START)
    lasting = attrs.evolve(BUNDLE, keys=(trusted(COMMAND, Role.COMMAND, not_after=NOW + 1000 * DAY),))
    assert signs_commands(lasting, key, now=START + timedelta(seconds=BUNDLE_LIFETIME))
    assert not signs_commands(lasting, key, now=START + timedelta(seconds=BUNDLE_LIFETIME + 1))
    other_role = attrs.evolve(BUNDLE, keys=(trusted(COMMAND, Role.CHECKPOINT),))
    assert not signs_commands(other_role, key, now=START)
    ended = attrs.evolve(BUNDLE, keys=(trusted(COMMAND, Role.COMMAND, not_after=NOW),))
    assert not signs_commands(ended, key, now=START + timedelta(seconds=1))
