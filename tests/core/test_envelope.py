"""Envelopes (DSSE): the specification's signing input, and no byte that can be changed."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core.encoding import b64encode
from redflag_core.envelope import (
    MAX_ENVELOPE_BYTES,
    MAX_SIGNATURES,
    Envelope,
    VerifiedPayload,
    pae,
    parse_envelope,
    sign_envelope,
    verify_envelope,
)
from redflag_core.errors import MalformedError, SignatureError, TooLargeError, UnknownKeyError, VerificationError
from redflag_core.keys import SigningKey

ONE, TWO, THREE = (SigningKey.from_seed(bytes([n]) * 32) for n in (1, 2, 3))
TYPE = "application/vnd.redflag.test.v1+json"
PAYLOAD = b'{"v":1}'
WIRE = sign_envelope(TYPE, PAYLOAD, ONE)


def ring(*keys):
    return {key.key_id: key.verify_key for key in keys}


def wire(**changes):
    return json.dumps(json.loads(WIRE) | changes).encode()


def signature(key, sig=None):
    return {"keyid": key.key_id, "sig": b64encode(key.sign(pae(TYPE, PAYLOAD)) if sig is None else sig)}


# The signing input


def test_the_signing_input_is_that_of_the_specification():
    """The example of the DSSE specification."""
    assert b"DSSEv1 29 http://example.com/HelloWorld 11 hello world" == pae(
        "http://example.com/HelloWorld", b"hello world"
    )


def test_lengths_are_those_of_the_bytes():
    """Not of the characters, and nothing ends at a NUL or a space."""
    assert b"DSSEv1 3 \xe2\x82\xac 4 \x00 1\n" == pae("\u20ac", b"\x00 1\n")
    assert b"DSSEv1 0  0 " == pae("", b"")


@given(st.tuples(st.text("a1 ", max_size=6), st.binary(max_size=6)), st.tuples(st.text("a1 "), st.binary()))
def test_no_two_messages_have_the_same_signing_input(one, other):
    """Moving bytes between type and payload changes the input."""
    assert (one == other) == (pae(*one) == pae(*other))


# Round trips


@given(st.binary(max_size=200), st.lists(st.sampled_from([ONE, TWO, THREE]), min_size=1, max_size=3, unique=True))
def test_a_payload_comes_back_with_the_keys_that_signed_it(payload, keys):
    """What was signed is what is verified, by whom it was signed."""
    verified = verify_envelope(sign_envelope(TYPE, payload, *keys), TYPE, ring(*keys), threshold=len(keys))

    assert VerifiedPayload(payload, frozenset(key.key_id for key in keys)) == verified


def test_the_wire_form_is_that_of_the_specification():
    """Field names, standard base64, hex key ids."""
    assert {
        "payload": "eyJ2IjoxfQ==",
        "payloadType": TYPE,
        "signatures": [{"keyid": ONE.key_id, "sig": b64encode(ONE.sign(pae(TYPE, PAYLOAD)))}],
    } == json.loads(WIRE)


def test_an_envelope_can_be_taken_apart_without_belief():
    """Parsing needs no key and verifies nothing."""
    forged = wire(signatures=[signature(ONE, bytes(64))])

    assert Envelope(TYPE, PAYLOAD, ((ONE.key_id, bytes(64)),)) == parse_envelope(forged)


def test_an_envelope_without_a_key_cannot_be_made():
    """Signing with nothing is a bug, not an unsigned envelope."""
    with pytest.raises(ValueError, match="signatures"):
        sign_envelope(TYPE, PAYLOAD)


def test_an_envelope_has_at_most_sixteen_signatures():
    """More than any threshold needs is refused where it is made, as it is where it is read."""
    keys = [SigningKey.from_seed(bytes([number]) * 32) for number in range(17)]

    assert sign_envelope("type", b"", *keys[:16])
    with pytest.raises(ValueError, match="1 to 16"):
        sign_envelope("type", b"", *keys)


# Tampering


def test_every_flipped_bit_is_noticed():
    """Whatever bit of an envelope changes, it is refused."""
    for bit in range(len(WIRE) * 8):
        flipped = bytearray(WIRE)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(VerificationError):
            verify_envelope(bytes(flipped), TYPE, ring(ONE))


@given(st.binary(max_size=50) | st.integers(0, len(WIRE)).map(lambda end: WIRE[:end] + b" "))
def test_any_bytes_are_verified_or_refused(data):
    """The only exceptions for untrusted bytes are verification errors."""
    with suppress(VerificationError):
        assert PAYLOAD == verify_envelope(data, TYPE, ring(ONE)).payload


@pytest.mark.parametrize(
    "changes",
    [
        {"payload": "eyJ2IjoxfQ"},
        {"payload": "eyJ2IjoxfR=="},
        {"payload": "eyJ2IjoxfQ==\n"},
        {"payload": "-_-_"},
        {"payload": None},
        {"payloadType": None},
        {"signatures": []},
        {"signatures": None},
        {"signatures": {}},
        {"signatures": [signature(ONE)] * (MAX_SIGNATURES + 1)},
        {"signatures": [signature(ONE) | {"cert": "x"}]},
        {"signatures": [{"sig": signature(ONE)["sig"]}]},
        {"signatures": [{"keyid": ONE.key_id, "sig": signature(ONE)["sig"].rstrip("=")}]},
        {"signatures": [{"keyid": 5, "sig": signature(ONE)["sig"]}]},
        {"unknown": 1},
    ],
)
def test_another_shape_is_malformed(changes):
    """Base64 of one spelling, one to sixteen signatures, no further fields."""
    with pytest.raises(MalformedError):
        verify_envelope(wire(**changes), TYPE, ring(ONE))


@pytest.mark.parametrize("size", [0, 1, 63, 65, 128])
def test_a_signature_of_another_length_is_bad(size):
    """A short or long signature is a bad signature."""
    with pytest.raises(SignatureError):
        verify_envelope(wire(signatures=[signature(ONE, bytes(size))]), TYPE, ring(ONE))


def test_types_are_never_interchangeable():
    """A genuine envelope of one type is refused where another is expected, and a renamed one does not verify."""
    with pytest.raises(MalformedError, match="not of type other"):
        verify_envelope(WIRE, "other", ring(ONE))
    with pytest.raises(SignatureError):
        verify_envelope(wire(payloadType="other"), "other", ring(ONE))


def test_the_bound_of_the_size_is_exact():
    """The largest envelope passes, one byte more does not."""
    assert (65_536, 16) == (MAX_ENVELOPE_BYTES, MAX_SIGNATURES)
    with pytest.raises(TooLargeError, match="larger than 65536 bytes"):
        verify_envelope(b" " * 65_537, TYPE, ring(ONE))
    assert verify_envelope(WIRE, TYPE, ring(ONE), max_bytes=len(WIRE))
    with pytest.raises(TooLargeError):
        verify_envelope(WIRE, TYPE, ring(ONE), max_bytes=len(WIRE) - 1)
    with pytest.raises(TooLargeError):
        parse_envelope(b" " * 65_537)


# Keys and thresholds


def test_a_signature_by_an_unknown_key_is_not_enough():
    """Nobody that this side knows has signed."""
    with pytest.raises(UnknownKeyError, match="0 of the 1 signatures needed"):
        verify_envelope(WIRE, TYPE, ring(TWO))
    with pytest.raises(UnknownKeyError):
        verify_envelope(WIRE, TYPE, {})


def test_a_stolen_key_id_does_not_help():
    """Another key's signature under a known key id is a bad signature."""
    forged = {"keyid": ONE.key_id, "sig": signature(TWO)["sig"]}

    with pytest.raises(SignatureError):
        verify_envelope(wire(signatures=[forged]), TYPE, ring(ONE, TWO))


def test_signatures_for_other_readers_are_passed_over():
    """An envelope may carry signatures that this side has no key for, before and after the one it knows."""
    others = wire(signatures=[signature(TWO), signature(ONE), signature(THREE, b"?")])

    assert frozenset({ONE.key_id}) == verify_envelope(others, TYPE, ring(ONE)).key_ids


def test_one_bad_signature_by_a_known_key_refuses_the_envelope():
    """Also when enough others are good: somebody has tampered."""
    tampered = wire(signatures=[signature(ONE), signature(TWO, bytes(64))])

    with pytest.raises(SignatureError):
        verify_envelope(tampered, TYPE, ring(ONE, TWO))


def test_a_key_counts_once_however_often_it_signs():
    """A threshold of two needs two keys."""
    twice = wire(signatures=[signature(ONE), signature(ONE)])

    with pytest.raises(UnknownKeyError, match="1 of the 2 signatures needed"):
        verify_envelope(twice, TYPE, ring(ONE, TWO), threshold=2)


def test_a_key_counts_once_under_however_many_names():
    """A ring that lists one key twice does not make two signers of it."""
    alias = {"keyid": "alias", "sig": signature(ONE)["sig"]}
    keys = ring(ONE) | {"alias": ONE.verify_key}

    with pytest.raises(UnknownKeyError):
        verify_envelope(wire(signatures=[signature(ONE), alias]), TYPE, keys, threshold=2)


@pytest.mark.parametrize("threshold", [0, -1])
def test_a_threshold_below_one_is_one(threshold):
    """No mistake of a caller makes an unsigned envelope pass."""
    with pytest.raises(UnknownKeyError):
        verify_envelope(WIRE, TYPE, ring(TWO), threshold=threshold)


def test_more_signers_than_needed_are_fine():
    """A threshold is a least number."""
    both = sign_envelope(TYPE, PAYLOAD, ONE, TWO)

    assert {ONE.key_id, TWO.key_id} == verify_envelope(both, TYPE, ring(ONE, TWO)).key_ids
