"""Ed25519 keys: the vectors of the RFC, what libsodium refuses that others accept, values that keep secrets."""

import copy
import hashlib

import attrs
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from redflag_core.errors import MalformedError, SignatureError
from redflag_core.keys import SigningKey, VerifyKey, fingerprint, key_id

# RFC 8032, section 7.1: seed, public key, message, signature.
RFC_8032 = {
    "TEST 1": (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
            "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
        ),
    ),
    "TEST 2": (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        ),
    ),
    "TEST 3": (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        (
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
            "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
        ),
    ),
}
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493

# Every encoding of a point whose order divides 8: the canonical ones, and those with y >= p or a wrong sign bit.
SMALL_ORDER = [
    bytes.fromhex(text)
    for text in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000080",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    )
]
KEY = SigningKey.from_seed(b"k" * 32)
MESSAGES = [b"", *(b"message %d" % n for n in range(8))]


def lenient(public_key, message, signature):
    """What a verifier says that only follows the equation of the RFC."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@pytest.mark.parametrize("name", RFC_8032)
def test_the_vectors_of_the_rfc_hold(name):
    """Public key and signature are those of RFC 8032, and verify."""
    seed, public, message, signature = (bytes.fromhex(text) for text in RFC_8032[name])
    key = SigningKey.from_seed(seed)

    assert public == key.verify_key.public_key
    assert signature == key.sign(message)
    VerifyKey(public).verify(message, signature)


def test_the_key_id_is_a_prefix_of_the_fingerprint():
    """Fingerprint: SHA-256 over the raw key; key id: its first 32 digits; both halves of a pair agree."""
    public = KEY.verify_key

    assert hashlib.sha256(public.public_key).hexdigest() == public.fingerprint == fingerprint(public.public_key)
    assert public.fingerprint[:32] == public.key_id == key_id(public.public_key) == KEY.key_id


@given(st.binary(max_size=200), st.binary(min_size=32, max_size=32))
def test_what_a_key_signs_it_verifies_and_no_other_key_does(message, seed):
    """A signature verifies with its own key only."""
    key = SigningKey.from_seed(seed)
    signature = key.sign(message)

    key.verify_key.verify(message, signature)
    with pytest.raises(SignatureError):
        KEY.verify_key.verify(message, signature)


def test_every_flipped_bit_breaks_the_signature():
    """No bit of message or signature is without meaning."""
    message = b"upgrade"
    signed = message + KEY.sign(message)

    for bit in range(len(signed) * 8):
        flipped = bytearray(signed)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SignatureError):
            KEY.verify_key.verify(bytes(flipped[: len(message)]), bytes(flipped[len(message) :]))


@pytest.mark.parametrize("size", [0, 1, 32, 63, 65, 128])
def test_a_signature_of_another_length_does_not_verify(size):
    """PyNaCl has an error of its own for these; ours is the one for every bad signature."""
    with pytest.raises(SignatureError, match="64 bytes"):
        KEY.verify_key.verify(b"message", (KEY.sign(b"message") * 2)[:size])


def test_a_malleable_signature_does_not_verify():
    """S + L satisfies the same equation; a second valid signature would be a second identity of a message."""
    signature = KEY.sign(b"message")
    scalar = int.from_bytes(signature[32:], "little")

    for multiple in range(1, 16):
        other = signature[:32] + (scalar + multiple * GROUP_ORDER).to_bytes(33, "little")[:32]
        with pytest.raises(SignatureError):
            KEY.verify_key.verify(b"message", other)


@pytest.mark.parametrize("public_key", SMALL_ORDER, ids=bytes.hex)
def test_a_key_of_small_order_verifies_nothing(public_key):
    """For such a key anybody can write a signature that fits any message."""
    for message in MESSAGES:
        for point in SMALL_ORDER:
            with pytest.raises(SignatureError):
                VerifyKey(public_key).verify(message, point + bytes(32))


def test_other_verifiers_accept_keys_of_small_order():
    """The forgeries tried above are real ones: a verifier that only follows the equation takes them."""
    forged = [
        (public_key, message, point + bytes(32))
        for public_key in SMALL_ORDER
        for point in SMALL_ORDER
        for message in MESSAGES
    ]

    assert sum(lenient(*forgery) for forgery in forged) > 50


@pytest.mark.parametrize("value", [b"", b"x" * 31, b"x" * 33, b"x" * 64, "x" * 32, None, bytearray(32)])
def test_a_key_of_another_length_is_malformed(value):
    """Public keys and seeds are exactly 32 bytes."""
    with pytest.raises(MalformedError, match="public key has 32 bytes"):
        VerifyKey(value)
    with pytest.raises(MalformedError, match="seed has 32 bytes"):
        SigningKey.from_seed(value)


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=80), st.binary(max_size=80))
def test_any_public_key_and_signature_verify_or_fail(public_key, message, signature):
    """Bytes that are no point of the curve are a bad signature too, never a crash."""
    with pytest.raises(SignatureError):
        VerifyKey(public_key).verify(message, signature)


def test_generated_keys_differ():
    """Each generated key is a new one."""
    assert 3 == len({SigningKey.generate() for _ in range(3)})


def test_keys_are_values():
    """Keys with the same bytes are equal and have the same hash, and only those; copies are as good."""
    same, other = SigningKey.from_seed(KEY.seed), SigningKey.from_seed(b"o" * 32)

    assert (KEY, KEY.verify_key) == (same, same.verify_key)
    assert {KEY, KEY.verify_key} == {KEY, KEY.verify_key, same, same.verify_key, copy.copy(KEY)}
    assert KEY != other
    assert KEY.verify_key != other.verify_key
    assert KEY != KEY.verify_key
    assert KEY != KEY.seed


def test_the_public_half_is_computed_and_never_given():
    """A private key cannot be paired with somebody else's public one."""
    other = SigningKey.from_seed(b"o" * 32)

    with pytest.raises(TypeError):
        SigningKey(KEY._key, verify_key=other.verify_key)
    assert hash(KEY) != hash(other)


def test_keys_cannot_be_changed():
    """A key that is shared between threads stays what it is."""
    for key in (KEY, KEY.verify_key):
        for name in ("verify_key", "public_key", "_key", "anything"):
            with pytest.raises((attrs.exceptions.FrozenInstanceError, AttributeError)):
                setattr(key, name, None)


def test_the_text_of_a_key_is_its_id():
    """Neither the seed nor anything else but the key id is shown."""
    assert f"SigningKey(key_id='{KEY.key_id}')" == repr(KEY) == str(KEY)
    assert f"VerifyKey(key_id='{KEY.key_id}')" == repr(KEY.verify_key)
