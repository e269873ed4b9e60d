"""Signed requests: the one profile of RFC 9421, every way to miss it, and an independent implementation's word."""

import hashlib
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import attrs
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from http_message_signatures import HTTPMessageSigner, HTTPMessageVerifier, HTTPSignatureKeyResolver, algorithms
from hypothesis import given
from hypothesis import strategies as st

from redflag_core.encoding import b64encode
from redflag_core.errors import MalformedError, SignatureError, StaleError, VerificationError
from redflag_core.keys import SigningKey
from redflag_core.signed_requests import (
    Request,
    VerifiedRequest,
    new_nonce,
    parse_head,
    parse_request,
    sign_request,
    verify_request,
)
from redflag_core.testing import START, SeededEntropy

KEY = SigningKey.from_seed(b"a" * 32)
OTHER = SigningKey.from_seed(b"b" * 32)
AUTHORITIES = ("rf.example.com", "10.0.0.1:8750")
NONCE = "MDEyMzQ1Njc4OWFiY2RlZg"
CREATED = int(START.timestamp())
COVERED = ["@method", "@authority", "@path", "@query", "content-digest", "authorization"]

PLAIN = Request(
    "POST",
    "/api/v1/agent/check-in",
    "wait=5",
    (
        (b"host", b"rf.example.com"),
        (b"content-type", b"application/json"),
        (b"authorization", b"Bearer aa.bb-_.cc"),
    ),
    b'{"v":1}',
)


def signed(request=PLAIN, key=KEY, authority="rf.example.com", now=START, nonce=NONCE):
    added = sign_request(request, key, authority=authority, now=now, nonce=nonce)
    return attrs.evolve(request, headers=(*request.headers, *added))


SIGNED = signed()


def verify(request, key=KEY, now=START, **options):
    return verify_request(request, key.verify_key, **{"authorities": AUTHORITIES, "now": now} | options)


def with_header(request, name, value):
    """The request with one header replaced, added, or (value None) taken away."""
    kept = tuple(pair for pair in request.headers if pair[0] != name)
    return attrs.evolve(request, headers=kept if value is None else (*kept, (name, value)))


def without(request, name):
    return with_header(request, name, None)


def value_of(request, name):
    return dict(request.headers)[name]


def parameters(names=COVERED, **changes):
    """The signature parameters in the order of the profile; None leaves one out, text is inserted as it is."""
    values = {
        "created": str(CREATED),
        "expires": str(CREATED + 300),
        "nonce": f'"{NONCE}"',
        "keyid": f'"{KEY.key_id}"',
        "alg": '"ed25519"',
        "tag": '"redflag-agent-v1"',
    } | changes
    listed = " ".join(name if name.startswith('"') else f'"{name}"' for name in names)
    return f"({listed})" + "".join(f";{name}={value}" for name, value in values.items() if value is not None)


def forged(params, names=COVERED, request=PLAIN, label="rf", base_params=None):
    """A genuine signature by KEY over whatever profile *params* says: only the profile can refuse it."""
    digest = f"sha-256=:{b64encode(hashlib.sha256(request.body).digest())}:"
    values = {
        "@method": request.method,
        "@authority": "rf.example.com",
        "@path": request.path,
        "@query": f"?{request.query}",
        "@scheme": "https",
        "@target-uri": f"https://rf.example.com{request.path}?{request.query}",
        "content-digest": digest,
        **{name.decode(): value.decode() for name, value in request.headers},
    }
    lines = [f"{name}: 5" if name.startswith('"') else f'"{name}": {values.get(name, "")}' for name in names]
    base = "\n".join([*lines, f'"@signature-params": {base_params or params}']).encode()
    added = (
        (b"content-digest", digest.encode()),
        (b"signature-input", f"{label}={params}".encode()),
        (b"signature", f"{label}=:{b64encode(KEY.sign(base))}:".encode()),
    )
    return attrs.evolve(request, headers=(*request.headers, *added))


# What passes


def test_a_signed_request_verifies():
    """What comes out is what was signed, and nothing that was not."""
    assert VerifiedRequest(KEY.key_id, CREATED, NONCE, "aa.bb-_.cc", b'{"v":1}') == verify(SIGNED)


def test_the_headers_are_those_of_the_profile():
    """Label, components, order and parameters, letter by letter."""
    digest = b64encode(hashlib.sha256(b'{"v":1}').digest())

    assert f"sha-256=:{digest}:".encode() == value_of(SIGNED, b"content-digest")
    assert (
        'rf=("@method" "@authority" "@path" "@query" "content-digest" "authorization")'
        f';created=1767225600;expires=1767225900;nonce="{NONCE}";keyid="{KEY.key_id}"'
        ';alg="ed25519";tag="redflag-agent-v1"'
    ).encode() == value_of(SIGNED, b"signature-input")
    assert forged(parameters()) == SIGNED


def test_the_signing_input_is_that_of_the_rfc():
    """One line for each component, then the parameters; no newline at the end."""
    parsed = parse_request(SIGNED, authorities=AUTHORITIES, with_token=True)

    assert (
        '"@method": POST\n'
        '"@authority": rf.example.com\n'
        '"@path": /api/v1/agent/check-in\n'
        '"@query": ?wait=5\n'
        f'"content-digest": {value_of(SIGNED, b"content-digest").decode()}\n'
        '"authorization": Bearer aa.bb-_.cc\n'
        f'"@signature-params": {parameters()}'
    ).encode() == parsed.signing_input


@pytest.mark.parametrize("query", ["", "a=1&b=%20%2F&c", "?", "%3f=%E2%82%AC"])
@pytest.mark.parametrize("path", ["", "/", "/a/../b", "/%7Euser/%2f", "/a//b;c=1"])
@pytest.mark.parametrize("encoding", [(), ((b"content-encoding", b"gzip"),)])
@pytest.mark.parametrize("token", [(), ((b"authorization", b"Bearer t"),)])
def test_any_target_encoding_and_token_can_be_signed(path, query, encoding, token):
    """Paths and queries are covered undecoded, and headers of the profile exactly when they are there."""
    request = Request("POST", path, query, (*token, *encoding), b"\x00\xff")

    assert b"\x00\xff" == verify(signed(request), with_token=bool(token)).body


def test_the_order_and_case_of_header_lines_do_not_matter():
    """Proxies may reorder lines, rewrite the case of names, and add headers that the profile does not cover."""
    noise = ((b"X-Forwarded-Host", b"evil.example.com"), (b"via", b"1.1 proxy"))
    shuffled = tuple((name.title(), value) for name, value in reversed(SIGNED.headers))

    assert verify(SIGNED) == verify(attrs.evolve(SIGNED, headers=(*noise, *shuffled)))


def test_the_token_is_covered_whatever_the_case_of_its_header():
    """A client that writes ``Authorization`` signs it too."""
    request = attrs.evolve(PLAIN, headers=((b"Host", b"rf.example.com"), (b"Authorization", b"Bearer t")))

    assert b'"authorization")' in value_of(signed(request), b"signature-input")
    assert "t" == verify(signed(request)).access_token


def test_the_case_of_a_host_does_not_matter():
    """Any of the public names may be written in capitals."""
    request = with_header(SIGNED, b"host", b"RF.Example.COM")

    assert verify(request, authorities=("main.example", "rf.example.com"))


@pytest.mark.parametrize("host", ["10.0.0.1:8750", "rf.example.com", "RF.Example.COM"])
def test_each_public_name_may_be_signed(host):
    """A server with several names accepts the one that was asked for."""
    request = with_header(PLAIN, b"host", host.encode())

    assert verify(signed(request, authority=host))


@pytest.mark.parametrize("host", [None, b"127.0.0.1:8750", b"evil.example.com"])
def test_behind_a_proxy_the_main_name_counts(host):
    """A Host that is none of the public names, or none, stands for the first of them."""
    assert verify(with_header(SIGNED, b"host", host))


def test_a_prefix_that_a_proxy_took_away_is_put_back():
    """The client signs the public path; the server knows what is missing of it."""
    public = signed(attrs.evolve(PLAIN, path="/rmm/api/v1/agent/check-in"))

    assert verify(attrs.evolve(public, path="/api/v1/agent/check-in"), prefix="/rmm")
    with pytest.raises(SignatureError):
        verify(attrs.evolve(public, path="/api/v1/agent/check-in"))


@pytest.mark.parametrize("offset", [-300, 0, 300])
def test_the_clock_may_be_off_by_the_tolerance(offset):
    """Exactly five minutes either way pass, one second more does not."""
    assert verify(signed(now=START + timedelta(seconds=offset)))
    with pytest.raises(StaleError):
        verify(signed(now=START + timedelta(seconds=offset + (offset >= 0) * 301 - (offset < 0))))


def test_a_smaller_tolerance_can_be_asked_for():
    """It is the caller's, not the protocol's."""
    verify(signed(now=START + timedelta(seconds=5)), tolerance=5)
    with pytest.raises(StaleError):
        verify(signed(now=START + timedelta(seconds=6)), tolerance=5)


def test_nonces_are_fresh_text_of_22_characters():
    """16 bytes of the entropy source, in base64url."""
    entropy = SeededEntropy()
    nonces = {new_nonce(entropy) for _ in range(100)}

    assert 100 == len(nonces)
    assert {22} == {len(nonce) for nonce in nonces}


# What was changed on the way


def test_every_flipped_bit_of_what_is_covered_is_refused():
    """No bit of the body or of the four headers can change."""
    headers = [b"authorization", b"content-digest", b"signature-input", b"signature"]
    changed = [attrs.evolve(SIGNED, body=flip(SIGNED.body, bit)) for bit in range(8 * len(SIGNED.body))]
    for name in headers:
        value = value_of(SIGNED, name)
        changed += [with_header(SIGNED, name, flip(value, bit)) for bit in range(8 * len(value))]

    for request in changed:
        with pytest.raises((SignatureError, MalformedError)):
            verify(request)


def test_every_flipped_bit_of_the_request_line_is_refused():
    """Nor can a bit of method, path or query."""
    for field in ("method", "path", "query"):
        value = getattr(SIGNED, field).encode()
        for bit in range(8 * len(value)):
            with pytest.raises((SignatureError, MalformedError)):
                verify(attrs.evolve(SIGNED, **{field: flip(value, bit).decode("latin-1")}))


def flip(data, bit):
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "PUT"},
        {"method": "GET"},
        {"method": "post"},
        {"method": ""},
        {"method": "POST /"},
        {"path": "/api/v1/agent/check-in/"},
        {"path": "/api/v1/agent//check-in"},
        {"path": "/api/v1/agent/check%2Din"},
        {"path": "/api/v1/agent/check-in\n"},
        {"path": "/api/v1/agent/check-in?wait=5", "query": ""},
        {"path": ""},
        {"query": ""},
        {"query": "wait=50"},
        {"query": "wait=5&wait=6"},
        {"query": "WAIT=5"},
        {"query": "wait=5#"},
        {"query": "wait=5 "},
        {"body": b""},
        {"body": b'{"v":1}\n'},
        {"body": b'{"v": 1}'},
    ],
)
def test_a_changed_request_is_refused(changes):
    """Another method, path, query or body is another request, also where a web server would see the same."""
    with pytest.raises(VerificationError):
        verify(attrs.evolve(SIGNED, **changes))


@pytest.mark.parametrize("name", [b"authorization", b"content-digest", b"signature-input", b"signature"])
def test_a_header_of_the_profile_is_there_exactly_once(name):
    """Taken away, repeated, repeated empty or in another case, or joined in one line: refused."""
    value = value_of(SIGNED, name)
    broken = [
        without(SIGNED, name),
        *(
            attrs.evolve(SIGNED, headers=(*SIGNED.headers, (again, text)))
            for again in (name, name.upper())
            for text in (value, b"")
        ),
        with_header(SIGNED, name, value + b", " + value),
        with_header(SIGNED, name, b" " + value),
        with_header(SIGNED, name, value + b"\n"),
        with_header(SIGNED, name, value + b"\xff"),
        with_header(SIGNED, name, value + b"a" * 9000),
        with_header(SIGNED, name, b""),
    ]

    for request in broken:
        with pytest.raises((MalformedError, SignatureError)):
            verify(request)


def test_a_request_to_another_server_is_refused():
    """A signature for another public name is not for this server, whatever Host says."""
    elsewhere = signed(authority="evil.example.com")

    for host in (b"rf.example.com", b"evil.example.com", b"10.0.0.1:8750"):
        with pytest.raises(SignatureError):
            verify(with_header(elsewhere, b"host", host))


def test_the_name_signed_is_the_one_that_was_asked_for():
    """Two names of one server are two audiences: a request cannot be moved, and two Hosts are refused."""
    with pytest.raises(SignatureError):
        verify(with_header(SIGNED, b"host", b"10.0.0.1:8750"))
    with pytest.raises(MalformedError, match="host is there 2 times"):
        verify(attrs.evolve(SIGNED, headers=(*SIGNED.headers, (b"host", b"rf.example.com"))))


def test_another_key_is_refused():
    """Neither a request of somebody else, nor one with a borrowed key id."""
    with pytest.raises(SignatureError, match="another key"):
        verify(SIGNED, key=OTHER)
    with pytest.raises(SignatureError, match="does not verify"):
        verify(forged(parameters(keyid=f'"{OTHER.key_id}"')), key=OTHER)


# A genuine signature over another profile


@pytest.mark.parametrize(
    "names",
    [
        *([name for name in COVERED if name != left_out] for left_out in COVERED),
        [],
        [*COVERED, "content-type"],
        [*COVERED, "host"],
        ["@scheme", *COVERED],
        [*COVERED, "@target-uri"],
        [*COVERED, "@method"],
        [*COVERED, "authorization"],
        [*COVERED[:5], "content-encoding", "authorization"],
        list(reversed(COVERED)),
        ["@authority", "@method", *COVERED[2:]],
        [*COVERED[:3], '"@query-param";name="wait"', *COVERED[4:]],
        [*COVERED[:4], '"content-digest";sf', "authorization"],
        [*COVERED[:4], '"content-digest";req', "authorization"],
        ["@Method", *COVERED[1:]],
    ],
    ids=" ".join,
)
def test_only_the_components_of_the_profile_in_its_order_are_accepted(names):
    """One more, less, twice or with a parameter, another order: refused though the signature is genuine."""
    with pytest.raises(MalformedError):
        verify(forged(parameters(names), names))


@pytest.mark.parametrize(
    "changes",
    [
        {"created": None},
        {"expires": None},
        {"nonce": None},
        {"keyid": None},
        {"alg": None},
        {"tag": None},
        {"expires": str(CREATED + 299)},
        {"expires": str(CREATED + 301)},
        {"expires": str(CREATED)},
        {"expires": str(CREATED - 300)},
        {"created": f"0{CREATED}"},
        {"created": f"{CREATED}.0"},
        {"created": f"+{CREATED}"},
        {"created": f"-{CREATED}"},
        {"created": f'"{CREATED}"'},
        {"created": "1" * 13, "expires": "1" * 13},
        {"created": "0", "expires": "300"},
        {"nonce": f'"{NONCE[:-1]}"'},
        {"nonce": f'"{NONCE}A"'},
        {"nonce": f'"{NONCE[:-1]}h"'},
        {"nonce": f'"{NONCE}=="'},
        {"nonce": f'"{NONCE[:-2]}+w"'},
        {"nonce": f"{NONCE}"},
        {"nonce": f":{NONCE}==:"},
        {"keyid": f'"{KEY.key_id.upper()}"'},
        {"keyid": f'"{KEY.key_id}0"'},
        {"keyid": f'"{KEY.key_id[:-1]}"'},
        {"keyid": '""'},
        {"alg": '"hmac-sha256"'},
        {"alg": '"rsa-pss-sha512"'},
        {"alg": '"ecdsa-p256-sha256"'},
        {"alg": '"ED25519"'},
        {"alg": '"none"'},
        {"alg": '""'},
        {"alg": "ed25519"},
        {"tag": '"redflag-agent-v2"'},
        {"tag": '"redflag-agent-v1 "'},
        {"tag": '"Redflag-Agent-V1"'},
        {"tag": '""'},
        {"tag": '"redflag-agent-v1";x=1'},
        {"tag": '"redflag-agent-v1";created=1'},
        {"tag": '"redflag-agent-v1", rf2=()'},
        {"tag": '"redflag-agent-v1"\n'},
    ],
    ids=str,
)
def test_only_the_parameters_of_the_profile_are_accepted(changes):
    """Another algorithm, tag, lifetime or spelling, one more or less: refused though the signature is genuine."""
    with pytest.raises(MalformedError):
        verify(forged(parameters(**changes)))


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda text: text.replace(";created", "; created"),
        lambda text: text.replace('" "', '"  "', 1),
        lambda text: text.replace("(", "( ", 1),
        lambda text: text.replace(";created=", ";Created="),
        lambda text: text + ";",
        lambda text: text + " ",
        lambda text: "\t" + text,
        lambda text: text.replace(f";created={CREATED}", "") + f";created={CREATED}",
    ],
)
def test_the_parameters_have_one_spelling(rewrite):
    """What a lenient parser of structured fields would take is refused, also when it was signed like that."""
    rewritten = rewrite(parameters())

    for base_params in (rewritten, parameters()):
        with pytest.raises(MalformedError):
            verify(forged(rewritten, base_params=base_params))


@pytest.mark.parametrize("label", ["sig1", "RF", "rf2", "", "rf rf"])
def test_only_the_label_of_the_profile_is_accepted(label):
    """A signature under another label is not looked at."""
    with pytest.raises(MalformedError):
        verify(forged(parameters(), label=label))


def test_a_second_signature_is_refused():
    """Nobody chooses between signatures: there is one, in one line."""
    for name in (b"signature-input", b"signature"):
        two = value_of(SIGNED, name) + b", " + value_of(forged(parameters(), label="sig1"), name)
        with pytest.raises(MalformedError):
            verify(with_header(SIGNED, name, two))


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda text: text.replace("=:", ":", 1),
        lambda text: text.replace("==:", ":"),
        lambda text: text.replace("==:", "=:"),
        lambda text: text.replace("rf=", "sig1="),
        lambda text: text + ";x=1",
        lambda text: text.replace("rf=:", 'rf="').replace("==:", '=="'),
        lambda text: text[:10] + " " + text[10:],
        lambda text: text[:10] + "-" + text[11:],
        lambda text: text[:10] + text[14:],
        lambda text: text[:10] + "AAAA" + text[10:],
        lambda text: text[:-4] + chr(ord(text[-4]) + 1) + "==:",
    ],
)
def test_the_signature_has_one_spelling(rewrite):
    """Base64 of 64 bytes, canonical, and nothing beside it."""
    value = value_of(SIGNED, b"signature").decode()

    with pytest.raises(MalformedError):
        verify(with_header(SIGNED, b"signature", rewrite(value).encode()))


@pytest.mark.parametrize(
    "make",
    [
        lambda body: f"sha-512=:{b64encode(hashlib.sha512(body).digest())}:",
        lambda body: f"sha-256=:{b64encode(hashlib.sha256(body).digest())}:, unixsum=:AAA=:",
        lambda body: f"SHA-256=:{b64encode(hashlib.sha256(body).digest())}:",
        lambda body: f"sha-256={b64encode(hashlib.sha256(body).digest())}",
        lambda body: f"sha-256=:{hashlib.sha256(body).hexdigest()}:",
        lambda body: f"sha-256=:{b64encode(hashlib.sha256(body).digest())[:-1]}:",
        lambda body: f"sha-256=:{b64encode(hashlib.sha256(body).digest())[:-2]}B=:",
        lambda body: f"sha-256=:{b64encode(hashlib.sha256(body).digest()[:31])}:",
        lambda body: f"md5=:{b64encode(hashlib.md5(body).digest())}:",
        lambda body: "",
    ],
)
def test_the_digest_has_one_spelling(make):
    """SHA-256 alone, canonical; a digest that this side does not compute cannot be chosen."""
    with pytest.raises(MalformedError):
        verify(with_header(SIGNED, b"content-digest", make(SIGNED.body).encode()))


def test_a_digest_of_another_body_is_a_bad_signature():
    """Also when that digest itself is genuinely signed."""
    other = signed(attrs.evolve(PLAIN, body=b"other"))

    with pytest.raises(SignatureError, match="digest is not of this body"):
        verify(attrs.evolve(other, body=PLAIN.body))


# The access token


def test_the_token_is_required_where_it_is_required():
    """A request without one is refused there, though it is signed as the other endpoints want it."""
    with pytest.raises(MalformedError, match="must be a bearer token"):
        verify(signed(without(PLAIN, b"authorization")))


def test_the_token_is_forbidden_where_it_is_forbidden():
    """Register and token requests come before there is one: covered or not, the header must be absent."""
    covered = [name for name in COVERED if name != "authorization"]

    for request in (SIGNED, forged(parameters(covered), covered)):
        with pytest.raises(MalformedError):
            verify(request, with_token=False)
    assert verify(signed(without(PLAIN, b"authorization")), with_token=False).access_token is None


def test_a_token_that_was_not_signed_is_refused():
    """A header added, or a coverage claimed, on the way."""
    bare = signed(without(PLAIN, b"authorization"))

    with pytest.raises(MalformedError):
        verify(with_header(bare, b"authorization", b"Bearer stolen"))
    with pytest.raises(MalformedError):
        verify(without(SIGNED, b"authorization"), with_token=False)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"bearer x",
        b"BEARER x",
        b"Basic eDp5",
        b"Bearer a b",
        b"Bearer  a",
        b"Bearer a=b",
        b"x",
    ],
)
def test_the_token_is_a_bearer_token(value):
    """Any other scheme or spelling is refused though it was signed."""
    with pytest.raises(MalformedError):
        verify(signed(with_header(PLAIN, b"authorization", value)))


# The content encoding


def test_a_content_encoding_is_covered_when_it_is_there():
    """Adding, taking away or changing it on the way is noticed: the same bytes would be read as others."""
    zipped = signed(with_header(PLAIN, b"content-encoding", b"gzip"))

    assert b'"content-digest" "content-encoding" "authorization")' in value_of(zipped, b"signature-input")
    assert verify(zipped)
    for request in (
        with_header(SIGNED, b"content-encoding", b"gzip"),
        without(zipped, b"content-encoding"),
        with_header(zipped, b"content-encoding", b"br"),
        attrs.evolve(zipped, headers=(*zipped.headers, (b"content-encoding", b"gzip"))),
    ):
        with pytest.raises((MalformedError, SignatureError)):
            verify(request)


@pytest.mark.parametrize("encoding", [b"gzip, br", b"GZIP", b"", b"gzip ", b"g\xc3\xa9"])
def test_a_content_encoding_is_one_word(encoding):
    """A list of encodings, or another spelling, is refused before it is signed and when it comes in."""
    request = with_header(PLAIN, b"content-encoding", encoding)

    with pytest.raises(MalformedError):
        signed(request)
    with pytest.raises(MalformedError):
        verify(with_header(SIGNED, b"content-encoding", encoding))


def test_the_bound_of_a_header_is_exact():
    """The longest one is read; one byte more is neither signed nor read."""
    longest = signed(with_header(PLAIN, b"authorization", b"Bearer " + b"a" * 8185))
    longer = with_header(longest, b"authorization", b"Bearer " + b"a" * 8186)

    assert verify(longest)
    for use in (verify, signed):
        with pytest.raises(MalformedError, match="authorization is not short ASCII text"):
            use(longer)


# Signing what could not be verified


@pytest.mark.parametrize(
    "changes", [{"method": "post"}, {"path": '/\n"@query": ?'}, {"path": "/é"}, {"query": "a b"}]
)
def test_what_no_server_would_take_is_neither_signed_nor_verified(changes):
    """A line break in a path would write lines of the signing input."""
    request = attrs.evolve(PLAIN, **changes)

    with pytest.raises(MalformedError, match="not of HTTP"):
        signed(request)
    with pytest.raises(MalformedError, match="not of HTTP"):
        verify(forged(parameters(), request=request))


# The order of the checks


def test_the_time_is_checked_before_the_signature():
    """A stale forgery is told that it is stale: its clock error can be cured."""
    with pytest.raises(StaleError):
        verify(with_header(signed(now=START - timedelta(days=1)), b"signature", value_of(SIGNED, b"signature")))


def test_parsing_believes_nothing():
    """The shape needs no key; the parsed request says whose key to look up and verifies with that one only."""
    forgery = with_header(SIGNED, b"signature", b"rf=:" + b"A" * 86 + b"==:")
    parsed = parse_request(forgery, authorities=AUTHORITIES, with_token=True)

    assert (KEY.key_id, CREATED, CREATED + 300, NONCE) == (
        parsed.key_id,
        parsed.created,
        parsed.expires,
        parsed.nonce,
    )
    with pytest.raises(SignatureError):
        parsed.verify(KEY.verify_key)


def test_a_head_has_no_body_yet():
    """Whatever arrived with it: the body is the one that is given later, if it has the digest."""
    head = parse_head(SIGNED, authorities=AUTHORITIES, with_token=True)

    assert b"" == head.body
    assert PLAIN.body == head.with_body(PLAIN.body).verify(KEY.verify_key).body
    with pytest.raises(SignatureError):
        head.with_body(b"")


def test_no_text_form_shows_a_token_or_a_body():
    """Requests are logged, parsed or verified: tokens and bodies (refresh secrets) are not in the text."""
    for value in (SIGNED, parse_request(SIGNED, authorities=AUTHORITIES, with_token=True), verify(SIGNED)):
        assert "aa.bb" not in repr(value)
        assert "rf=:" not in repr(value)
        assert '{"v"' not in repr(value)
        assert "signature=" not in repr(value)


# Anything


HEADER_NAMES = st.sampled_from(
    [b"authorization", b"content-digest", b"content-encoding", b"host", b"signature", b"signature-input"]
)


@given(
    st.text(max_size=5),
    st.text(max_size=10),
    st.text(max_size=10),
    st.lists(st.tuples(HEADER_NAMES, st.binary(max_size=20) | st.sampled_from([v for _, v in SIGNED.headers]))),
    st.binary(max_size=10),
    st.booleans(),
)
def test_any_request_is_verified_or_refused(method, path, query, headers, body, with_token):
    """Whatever is received, nothing but a verification error comes out."""
    for request in (
        Request(method, path, query, headers, body),
        attrs.evolve(SIGNED, headers=(*headers, *SIGNED.headers)),
        attrs.evolve(SIGNED, headers=headers),
    ):
        with suppress(VerificationError):
            verify(request, with_token=with_token)


@given(st.data())
def test_any_header_value_is_verified_or_refused(data):
    """One header of a good request replaced by nearly the same: verified if it is the same, else refused."""
    name = data.draw(
        st.sampled_from([name for name, _ in SIGNED.headers if name not in (b"host", b"content-type")])
    )
    value = bytearray(value_of(SIGNED, name))
    start = data.draw(st.integers(0, len(value)))
    end = data.draw(st.integers(start, min(len(value), start + 4)))
    value[start:end] = data.draw(st.binary(max_size=4) | st.text('rf=:";()0A ', max_size=4).map(str.encode))

    if value == value_of(SIGNED, name):
        assert verify(with_header(SIGNED, name, bytes(value)))
    else:
        with pytest.raises((MalformedError, SignatureError)):
            verify(with_header(SIGNED, name, bytes(value)))


# An independent implementation


class Keys(HTTPSignatureKeyResolver):
    def resolve_private_key(self, key_id):
        return Ed25519PrivateKey.from_private_bytes(KEY.seed)

    def resolve_public_key(self, key_id):
        assert KEY.key_id == key_id
        return Ed25519PrivateKey.from_private_bytes(KEY.seed).public_key()


def foreign(request):
    """The request as the other library wants it."""
    url = f"https://rf.example.com{request.path}" + (f"?{request.query}" if request.query else "")
    headers = {name.decode().title(): value.decode() for name, value in request.headers}
    return SimpleNamespace(method=request.method, url=url, headers=headers)


REQUESTS = [
    PLAIN,
    attrs.evolve(PLAIN, query="", body=b""),
    attrs.evolve(PLAIN, path="/", query="a=%20&b"),
    without(PLAIN, b"authorization"),
    with_header(PLAIN, b"content-encoding", b"gzip"),
    attrs.evolve(PLAIN, method="GET", path="/%7Ea/b%2Fc", body=b""),
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_what_we_sign_another_implementation_verifies(request_):
    """The library http-message-signatures accepts our requests, digest of the body included."""
    request = signed(request_, now=datetime.now(UTC))
    verifier = HTTPMessageVerifier(signature_algorithm=algorithms.ED25519, key_resolver=Keys())

    (result,) = verifier.verify(foreign(request), expect_tag="redflag-agent-v1", body=request.body)

    assert request.body == result.body
    assert "rf" == result.label


@pytest.mark.parametrize("request_", REQUESTS)
def test_what_another_implementation_signs_we_verify(request_):
    """Signing input and signature made by that library are accepted; only the order of parameters is given."""
    names = COVERED[:5] + [
        name for name in ("content-encoding", "authorization") if name.encode() in dict(request_.headers)
    ]
    message = foreign(request_)
    message.headers["Content-Digest"] = value_of(signed(request_), b"content-digest").decode()
    signer = HTTPMessageSigner(signature_algorithm=algorithms.ED25519, key_resolver=Keys())
    order = ("created", "expires", "nonce", "keyid", "alg", "tag")
    values = (CREATED, CREATED + 300, NONCE, KEY.key_id, "ed25519", "redflag-agent-v1")
    base, params, _ = signer._build_signature_base(
        message,
        covered_component_ids=signer._parse_covered_component_ids(names),
        signature_params=dict(zip(order, values, strict=True)),
    )
    signature = algorithms.ED25519(private_key=Keys().resolve_private_key("")).sign(base.encode())
    request = attrs.evolve(
        request_,
        headers=(
            *request_.headers,
            (b"content-digest", message.headers["Content-Digest"].encode()),
            (b"signature-input", f"rf={params}".encode()),
            (b"signature", f"rf=:{b64encode(signature)}:".encode()),
        ),
    )

    assert signed(request_) == request
    assert verify(request, with_token="authorization" in names)
