"""Webhooks: who sent a message is proven, keys can be changed on either side, and junk is refused in one way."""

import base64
import hashlib
import hmac
import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from redflag_core.encoding import b64encode
from redflag_core.errors import (
    MalformedError,
    ReplayError,
    SignatureError,
    StaleError,
    TooLargeError,
    VerificationError,
)
from redflag_core.freshness import claim_nonce
from redflag_core.keys import SigningKey, VerifyKey
from redflag_core.testing import START, MemoryNonceStore, SeededEntropy
from redflag_core.webhooks import (
    MAX_BODY,
    MAX_ID,
    MAX_KEYS,
    MAX_SIGNATURES,
    MAX_TYPE,
    VerifiedWebhook,
    WebhookSecret,
    format_webhook_key,
    parse_webhook_key,
    sign_webhook,
    verify_webhook,
    webhook_body,
)
from tests.vectors.make import HERE

CREATED = int(START.timestamp())
BODY = b'{"type":"package.failed"}'
SECRET = WebhookSecret.generate(SeededEntropy(1))
OTHER = WebhookSecret.generate(SeededEntropy(2))
PRIVATE = SigningKey.from_seed(SeededEntropy(3).token(32))
FOREIGN = SigningKey.from_seed(SeededEntropy(4).token(32))
VECTORS = json.loads((HERE / "webhooks.json").read_text("utf-8"))


def signed(*keys, body=BODY, message_id="msg_1", now=START):
    return sign_webhook(body, *(keys or (SECRET,)), message_id=message_id, now=now)


def verified(headers, body=BODY, keys=(SECRET,), now=START, **options):
    return verify_webhook(headers, body, keys, now=now, **options)


class Pairs:
    """Headers that can hold a name twice, as multi-dicts do."""

    def __init__(self, *pairs):
        self._pairs = pairs

    def items(self):
        return self._pairs


# Both sides


@pytest.mark.parametrize("keys", [(SECRET, SECRET), (PRIVATE, PRIVATE.verify_key)], ids=["v1", "v1a"])
def test_what_was_signed_is_verified(keys):
    """The receiver gets the id, the time, the body and which key it was."""
    sender, receiver = keys

    webhook = verified(signed(sender), keys=[receiver])

    assert VerifiedWebhook("msg_1", CREATED, receiver.key_id, BODY) == webhook
    assert {"type": "package.failed"} == webhook.payload()


@given(st.binary(max_size=200), st.from_regex(r"[!-\-/-~]{1,256}", fullmatch=True), st.integers(1, 10**11))
def test_any_body_and_id_arrive_as_they_were_sent(body, message_id, created):
    """The signature is over raw bytes: nothing has to be text."""
    now = datetime.fromtimestamp(created, UTC)
    headers = sign_webhook(body, SECRET, PRIVATE, message_id=message_id, now=now)

    for key in (SECRET, PRIVATE.verify_key):
        assert VerifiedWebhook(message_id, created, key.key_id, body) == verified(headers, body, [key], now)


@pytest.mark.parametrize("receiver", [[SECRET], [OTHER], [OTHER, SECRET], [PRIVATE.verify_key]])
def test_a_sender_changes_its_key_without_losing_a_message(receiver):
    """Signed with the old and the new one, a message passes whoever knows either."""
    assert verified(signed(SECRET, OTHER, PRIVATE), keys=receiver).key_id in {key.key_id for key in receiver}


@pytest.mark.parametrize("sender", [SECRET, OTHER, PRIVATE])
def test_a_receiver_changes_its_key_without_losing_a_message(sender):
    """A receiver that knows the old and the new one says which was used."""
    assert sender.key_id == verified(signed(sender), keys=[SECRET, OTHER, PRIVATE.verify_key]).key_id


def test_the_first_key_on_record_that_signed_is_named():
    """While both are used, the order of the receiver decides which it hears of."""
    assert OTHER.key_id == verified(signed(SECRET, OTHER), keys=[OTHER, SECRET]).key_id


@pytest.mark.parametrize(
    "change",
    [
        {"body": BODY + b" "},
        {"body": b""},
        {"keys": [OTHER]},
        {"keys": [FOREIGN.verify_key]},
        {"keys": []},
    ],
)
@pytest.mark.parametrize("sender", [SECRET, PRIVATE])
def test_another_body_or_key_is_a_forgery(sender, change):
    """Nothing but exactly the bytes that were signed, by a key on record."""
    with pytest.raises(SignatureError, match="compare the keys"):
        verified(signed(sender), **change)


@pytest.mark.parametrize("name,value", [("webhook-id", "msg_2"), ("webhook-timestamp", str(CREATED + 1))])
@pytest.mark.parametrize("keys", [(SECRET, SECRET), (PRIVATE, PRIVATE.verify_key)], ids=["v1", "v1a"])
def test_id_and_time_are_signed_too(keys, name, value):
    """A caught message cannot be sent again under another id or as a newer one."""
    with pytest.raises(SignatureError):
        verified({**signed(keys[0]), name: value}, keys=[keys[1]])


def test_a_signature_of_one_version_does_not_pass_as_the_other():
    """A public key that is known to all never serves as a shared secret."""
    public = PRIVATE.verify_key.public_key
    forged = {**signed(WebhookSecret(public))}

    with pytest.raises(SignatureError):
        verified(forged, keys=[PRIVATE.verify_key])
    relabelled = signed(PRIVATE)["webhook-signature"].replace("v1a,", "v9,")
    with pytest.raises(SignatureError):
        verified({**signed(PRIVATE), "webhook-signature": relabelled}, keys=[PRIVATE.verify_key])


def test_signatures_of_unknown_versions_are_passed_over():
    """A sender may already use what comes after this release."""
    headers = signed()
    headers["webhook-signature"] = f"v2,AAAA {headers['webhook-signature']} v1b,="

    assert SECRET.key_id == verified(headers).key_id


# Time and replay


@pytest.mark.parametrize("age", [-300, 0, 300])
def test_the_tolerance_is_inclusive(age):
    """A message of exactly five minutes ago, or ahead, still passes."""
    assert CREATED == verified(signed(), now=START + timedelta(seconds=age)).created


@pytest.mark.parametrize("age,reason", [(-301, "future"), (301, "too old")])
def test_a_second_beyond_the_tolerance_is_stale(age, reason):
    """An old message that was recorded does not pass."""
    with pytest.raises(StaleError, match=reason):
        verified(signed(), now=START + timedelta(seconds=age))


def test_a_receiver_may_be_stricter():
    """The tolerance is the receiver's choice."""
    for age in (-10, 10):
        assert verified(signed(), now=START + timedelta(seconds=age), tolerance=10)
    for age in (-11, 11):
        with pytest.raises(StaleError):
            verified(signed(), now=START + timedelta(seconds=age), tolerance=10)


def test_a_stale_forgery_costs_no_signature_check():
    """Cheap first: the time is judged before any key is asked."""
    with pytest.raises(StaleError):
        verified(signed(OTHER), now=START + timedelta(hours=1))


def test_the_time_of_an_attempt_is_its_moment_in_any_zone():
    """A sender that keeps local time signs the same second."""
    from datetime import timezone

    assert signed() == signed(now=START.astimezone(timezone(timedelta(hours=-7))))


async def test_a_second_copy_of_an_attempt_is_a_replay_and_a_new_attempt_is_none():
    """A sender that tries again is heard; what was caught on the way is not."""
    store = MemoryNonceStore()
    again = START + timedelta(seconds=5)

    await claim_nonce(verified(signed()), store)
    with pytest.raises(ReplayError):
        await claim_nonce(verified(signed()), store)
    await claim_nonce(verified(signed(now=again), now=again), store)


# What arrives


def test_names_of_headers_are_read_in_any_case():
    """Proxies and frameworks write them as they like."""
    headers = signed()

    for spell in (str.upper, str.title):
        assert verified({spell(name): value for name, value in headers.items()})


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_header_is_there_once(name):
    """Which of two is meant nobody can say; without it there is nothing to check."""
    headers = signed()
    twice = Pairs(*headers.items(), (name.title(), headers[name]))
    missing = {key: value for key, value in headers.items() if key != name}

    with pytest.raises(MalformedError, match=f"{name} is there 2 times"):
        verified(twice)
    with pytest.raises(MalformedError, match=f"{name} is there 0 times"):
        verified(missing)


@pytest.mark.parametrize(
    "name,value",
    [
        ("webhook-id", ""),
        ("webhook-id", "a.b"),
        ("webhook-id", "a b"),
        ("webhook-id", "ä"),
        ("webhook-id", "a" * (MAX_ID + 1)),
        ("webhook-timestamp", ""),
        ("webhook-timestamp", "0"),
        ("webhook-timestamp", "-1"),
        ("webhook-timestamp", "1e9"),
        ("webhook-timestamp", f"{CREATED}.0"),
        ("webhook-timestamp", f" {CREATED}"),
        ("webhook-timestamp", f"0{CREATED}"),
        ("webhook-timestamp", "١٢٣"),
        ("webhook-timestamp", "9" * 13),
        ("webhook-signature", ""),
        ("webhook-signature", "v1"),
        ("webhook-signature", "v1,"),
        ("webhook-signature", ",AAAA"),
        ("webhook-signature", "v1,A"),
        ("webhook-signature", "v1,AAAA"),
        ("webhook-signature", "v1a," + "A" * 43 + "="),
        ("webhook-signature", "v1," + "A" * 86 + "=="),
        ("webhook-signature", "v1," + "A" * 42 + "B="),
        ("webhook-signature", "V1," + "A" * 43 + "="),
        ("webhook-signature", "v2,AAAA  v2,AAAA"),
        ("webhook-signature", "v2,\N{KELVIN SIGN}"),
        ("webhook-signature", "v2," + "A" * 513),
        ("webhook-signature", "v1,A,A"),
    ],
)
def test_a_header_of_another_form_is_malformed(name, value):
    """There is one spelling of each; everything else is refused before any key is asked."""
    with pytest.raises(MalformedError):
        verified({**signed(), name: value})


def test_the_longest_of_everything_is_accepted():
    """Bounds are inclusive."""
    keys = [PRIVATE] * (MAX_SIGNATURES - 1) + [SECRET]
    body, message_id = b"x" * MAX_BODY, "a" * MAX_ID

    webhook = verified(
        signed(*keys, body=body, message_id=message_id), body, [*[FOREIGN.verify_key] * (MAX_KEYS - 1), SECRET]
    )

    assert (body, message_id) == (webhook.body, webhook.id)
    assert "a" * MAX_TYPE == json.loads(webhook_body("a" * MAX_TYPE, None, at=START))["type"]


def test_more_than_the_bounds_is_refused():
    """A forger must not make a receiver compute for long."""
    full = " ".join(["v2,AAAA"] * (MAX_SIGNATURES + 1))

    with pytest.raises(MalformedError, match="at most 8 signatures"):
        verified({**signed(), "webhook-signature": full})
    with pytest.raises(MalformedError, match="form"):
        verified({**signed(), "webhook-signature": " ".join(["v2," + "A" * 300] * 7)})
    with pytest.raises(TooLargeError):
        verified(signed(), b"x" * (MAX_BODY + 1))
    with pytest.raises(TooLargeError):
        verified(signed(), max_bytes=len(BODY) - 1)
    assert verified(signed(), max_bytes=len(BODY))
    with pytest.raises(ValueError, match="at most 8 keys"):
        verified(signed(), keys=[SECRET] * (MAX_KEYS + 1))


def test_a_header_has_2048_characters_at_most():
    """One more is refused before it is taken apart."""
    ours = signed()["webhook-signature"]
    padding = "v2,AAAA " * 2 + " ".join(["v2," + "A" * 486] * 4)
    text = f"{ours} {padding}"
    longest = text + "A" * (2048 - len(text))

    assert verified({**signed(), "webhook-signature": longest})
    with pytest.raises(MalformedError, match="does not have its form"):
        verified({**signed(), "webhook-signature": f"{longest}A"})


@given(
    st.dictionaries(
        st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature", "Webhook-Id", "x"]),
        st.text(max_size=80) | st.from_regex(r"(v1a?,[A-Za-z0-9+/]{43}= ?){1,9}") | st.just(str(CREATED)),
        max_size=4,
    ),
    st.binary(max_size=40),
)
def test_any_headers_and_body_are_verified_or_a_verification_error(headers, body):
    """No input does anything else."""
    with suppress(VerificationError):
        verify_webhook(headers, body, [SECRET, PRIVATE.verify_key], now=START)
        raise AssertionError("a forgery passed")


@given(st.binary(max_size=60) | st.just(BODY))
def test_any_payload_is_json_or_malformed(body):
    """A signed body may still be junk."""
    webhook = verified(signed(body=body), body)

    with suppress(MalformedError):
        webhook.payload()


# What is sent


@pytest.mark.parametrize("message_id", ["", "a.b", "a b", "ä", "a\n", "a" * (MAX_ID + 1)])
def test_an_id_that_no_receiver_takes_is_not_sent(message_id):
    """The full stop separates what is signed; a line end would be another header."""
    with pytest.raises(MalformedError, match="id of a webhook"):
        signed(message_id=message_id)


def test_what_no_receiver_takes_is_not_signed():
    """The bounds of both sides are the same."""
    with pytest.raises(MalformedError, match="at most 8"):
        signed(*[SECRET] * (MAX_SIGNATURES + 1))
    with pytest.raises(TooLargeError):
        signed(body=b"x" * (MAX_BODY + 1))
    with pytest.raises(ValueError, match="aware"):
        signed(now=datetime(2026, 1, 1))  # noqa: DTZ001


def test_a_body_has_the_recommended_form():
    """Type, the time of what happened, and the data."""
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    assert b'{"data":{"n":1},"timestamp":"2026-01-02T03:04:05Z","type":"package.failed"}' == webhook_body(
        "package.failed", {"n": 1}, at=at
    )


@pytest.mark.parametrize("kind", ["", ".", "a.", ".a", "a..b", "a b", "a-b", "ä", "a\n", "a" * (MAX_TYPE + 1)])
def test_a_type_is_words_and_full_stops(kind):
    """Receivers route by it."""
    with pytest.raises(MalformedError, match="type of a webhook"):
        webhook_body(kind, None, at=START)


# Keys


@pytest.mark.parametrize("key", [SECRET, WebhookSecret(b"x" * 24), WebhookSecret(b"x" * 64), PRIVATE])
def test_a_key_survives_its_text(key):
    """What is written in settings is the key."""
    assert key == parse_webhook_key(format_webhook_key(key))
    assert FOREIGN.verify_key == parse_webhook_key(format_webhook_key(FOREIGN.verify_key))


def test_the_kind_of_a_key_is_its_prefix():
    """Whoever pastes the private half into the receiver's settings can see it."""
    texts = [format_webhook_key(key) for key in (SECRET, PRIVATE, PRIVATE.verify_key)]

    assert ["whsec", "whsk", "whpk"] == [text.partition("_")[0] for text in texts]


def test_a_private_key_is_read_in_both_usual_forms():
    """Others write the public key behind the seed; it must be the right one."""
    both = PRIVATE.seed + PRIVATE.verify_key.public_key

    assert PRIVATE == parse_webhook_key("whsk_" + b64encode(both))
    for wrong in (PRIVATE.seed + FOREIGN.verify_key.public_key, both[:-1], both + b"x"):
        with pytest.raises(MalformedError, match="alone or with its public key"):
            parse_webhook_key("whsk_" + b64encode(wrong))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "_",
        "whsec",
        "whsec_",
        "whsec_" + b64encode(b"x" * 23),
        "whsec_" + b64encode(b"x" * 65),
        "WHSEC_" + b64encode(b"x" * 32),
        " whsec_" + b64encode(b"x" * 32),
        "whsec_" + b64encode(b"x" * 32).rstrip("="),
        "whsk_" + b64encode(b"x" * 31),
        "whpk_" + b64encode(b"x" * 31),
        "whpk_" + b64encode(b"x" * 33),
        "whsec_" + "A" * 200,
        None,
        b"whsec_" + b"A" * 32,
    ],
)
def test_another_text_is_no_key(text):
    """The message does not repeat it: it may be a secret with a typing error."""
    with pytest.raises(MalformedError) as caught:
        parse_webhook_key(text)

    assert not text or str(text)[6:] == "" or str(text)[6:] not in caught.value.message


def test_the_longest_key_text_is_read():
    """64 bytes in base64, with the prefix, are within the bound."""
    assert WebhookSecret(b"x" * 64) == parse_webhook_key("whsec_" + b64encode(b"x" * 64))
    with pytest.raises(MalformedError, match="base64"):
        parse_webhook_key("whsec_" + "A" * 122)
    with pytest.raises(MalformedError, match="not the key"):
        parse_webhook_key("whsec_" + "A" * 123)


def test_a_typing_error_behind_the_prefix_is_not_blamed_on_the_prefix():
    """The text of the key goes on to its end, though there is another underscore in it."""
    with pytest.raises(MalformedError, match="base64"):
        parse_webhook_key("whpk_AAA_")


@given(st.text(max_size=100) | st.from_regex(r"wh(sec|sk|pk)_[A-Za-z0-9+/=]{0,90}", fullmatch=True))
def test_any_text_is_a_key_or_malformed(text):
    """No input does anything else."""
    with suppress(MalformedError):
        assert text == format_webhook_key(parse_webhook_key(text)) or text.startswith("whsk_")


def test_secrets_do_not_show():
    """Neither in a log nor in a traceback; what is shown tells them apart."""
    assert f"WebhookSecret(key_id={SECRET.key_id!r})" == repr(SECRET) == str(SECRET)
    assert SECRET.key_id != OTHER.key_id
    assert 32 == len(SECRET.key_id)
    assert hashlib.sha256(SECRET.secret).hexdigest()[:32] != SECRET.key_id
    assert "package" not in repr(verified(signed()))


def test_secrets_are_equal_by_value():
    """They can be compared and collected."""
    assert {SECRET} == {WebhookSecret(SECRET.secret), SECRET}
    assert SECRET != OTHER
    assert hash(SECRET) != hash(OTHER)
    assert SECRET != SECRET.secret


@pytest.mark.parametrize("secret", [b"x" * 23, b"x" * 65, "x" * 32, None])
def test_a_secret_has_its_size(secret):
    """Shorter is weak, longer is not what the specification knows."""
    with pytest.raises(MalformedError, match="24 to 64"):
        WebhookSecret(secret)


# Other implementations


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case["id"])
def test_the_vectors_hold(case):
    """Each signature by the standard library and the cryptography package, and the whole by our own receiver."""
    body = bytes.fromhex(case["body"])
    signing_input = f"{case['id']}.{case['timestamp']}.".encode() + body
    signatures = case["headers"]["webhook-signature"].split(" ")
    now = datetime.fromtimestamp(case["timestamp"], UTC)

    for text, key_id, signature in zip(case["verified_with"], case["key_ids"], signatures, strict=True):
        kind, _, encoded = text.partition("_")
        version, _, value = signature.partition(",")
        raw, made = base64.b64decode(encoded), base64.b64decode(value)
        if kind == "whsec":
            assert ("v1", hmac.digest(raw, signing_input, "sha256")) == (version, made)
            assert hashlib.sha256(b"webhook secret\0" + raw).hexdigest()[:32] == key_id
        else:
            Ed25519PublicKey.from_public_bytes(raw).verify(made, signing_input)
            assert ("whpk", "v1a", VerifyKey(raw).key_id) == (kind, version, key_id)
        receiver = parse_webhook_key(text)
        expected = VerifiedWebhook(case["id"], case["timestamp"], key_id, body)
        assert expected == verify_webhook(case["headers"], body, [receiver], now=now)


def test_an_independent_library_accepts_what_we_send():
    """The reference library of the specification, which knows `v1` and reads the real clock."""
    now = datetime.now(UTC)
    library = Webhook(format_webhook_key(SECRET))
    headers = sign_webhook(BODY, PRIVATE, SECRET, message_id="msg_1", now=now)

    assert {"type": "package.failed"} == library.verify(BODY.decode(), headers)


def test_we_accept_what_an_independent_library_sends():
    """And its message is verified here."""
    signature = Webhook(format_webhook_key(SECRET)).sign("msg_1", START, BODY.decode())
    headers = {
        "Webhook-Id": "msg_1",
        "Webhook-Timestamp": str(CREATED),
        "Webhook-Signature": f"{signature} v1a,{b64encode(PRIVATE.sign(b'x'))}",
    }

    assert SECRET.key_id == verified(headers).key_id
