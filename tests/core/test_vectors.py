"""
The committed known answers hold, checked against the formats themselves where that is possible.

Whoever writes another implementation relies on these files; here they also notice a change that nobody meant.
"""

import hashlib
import hmac
import json
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from redflag_core import codec
from redflag_core.commands import dump_params, open_command, parse_params
from redflag_core.encoding import b64decode, b64url_decode
from redflag_core.enrolment import parse_credential, parse_registration_token
from redflag_core.envelope import pae, verify_envelope
from redflag_core.errors import MalformedError
from redflag_core.keys import SigningKey
from redflag_core.machine import MachineEvidence, component, machine_id_component
from redflag_core.messages import Role
from redflag_core.patching import Transaction
from redflag_core.scanning.purl import make_purl, parse_purl
from redflag_core.signed_requests import Request, parse_request, verify_request
from redflag_core.statements import open_statement
from redflag_core.trust import bundle_digest, live_keys, verify_bundle, verify_roots
from tests.vectors.make import HERE, files


def load(name):
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


def key(seed):
    return SigningKey.from_seed(bytes.fromhex(seed))


@pytest.mark.parametrize("name", files())
def test_making_the_vectors_again_gives_the_same_bytes(name):
    """Nothing in the protocol depends on anything but its inputs, and nothing has changed."""
    assert (HERE / name).read_text(encoding="utf-8") == files()[name]


def test_no_vector_is_forgotten():
    """Every committed file is one that is made."""
    assert {path.name for path in HERE.glob("*.json")} == set(files())


@pytest.mark.parametrize("case", load("keys"), ids=lambda case: case["key_id"])
def test_the_keys_are_what_another_implementation_says(case):
    """Public key and signature by the cryptography package, ids by the formula."""
    seed, public, message, signature = (
        bytes.fromhex(case[name]) for name in ("seed", "public_key", "message", "signature")
    )
    other = Ed25519PrivateKey.from_private_bytes(seed)

    assert public == other.public_key().public_bytes_raw()
    assert signature == other.sign(message)
    assert hashlib.sha256(public).hexdigest() == case["fingerprint"]
    assert case["fingerprint"][:32] == case["key_id"]


@pytest.mark.parametrize("case", load("envelopes"), ids=lambda case: case["type"])
def test_the_envelopes_verify(case):
    """The signing input by hand, each signature by the cryptography package, and the whole by our own verifier."""
    payload, kind, wire = bytes.fromhex(case["payload"]), case["type"], json.loads(case["wire"])
    keys = {signer.key_id: signer.verify_key for signer in map(key, case["seeds"])}
    by_hand = f"DSSEv1 {len(kind.encode())} {kind} {len(payload)} ".encode() + payload

    assert by_hand == bytes.fromhex(case["pae"]) == pae(kind, payload)
    assert (kind, payload) == (wire["payloadType"], b64decode(wire["payload"]))
    for entry in wire["signatures"]:
        public = Ed25519PublicKey.from_public_bytes(keys[entry["keyid"]].public_key)
        public.verify(b64decode(entry["sig"]), by_hand)
    assert payload == verify_envelope(case["wire"].encode(), kind, keys, threshold=len(keys)).payload


@pytest.mark.parametrize("case", load("signed_requests"), ids=lambda case: f"{case['method']} {case['path']}")
def test_the_signed_requests_verify(case):
    """The signature is over the signing input given, and the request verifies at its time."""
    headers = [(name.encode(), value.encode()) for name, value in case["headers"] + case["added"]]
    request = Request(case["method"], case["path"], case["query"], headers, bytes.fromhex(case["body"]))
    options = {"authorities": [case["authority"]], "with_token": request.header(b"authorization") is not None}
    signer = key(case["seed"])
    signature = b64decode(dict(case["added"])["signature"].removeprefix("rf=:").removesuffix(":"))

    Ed25519PublicKey.from_public_bytes(signer.verify_key.public_key).verify(
        signature, case["signing_input"].encode()
    )
    assert case["signing_input"].encode() == parse_request(request, **options).signing_input
    now = datetime.fromtimestamp(case["created"], UTC)
    assert case["nonce"] == verify_request(request, signer.verify_key, now=now, **options).nonce


def test_the_root_chain_and_bundle_verify():
    """From the pinned fingerprint to the live key of each role."""
    case = load("trust")
    now = datetime.fromtimestamp(case["now"], UTC)
    root = verify_roots([text.encode() for text in case["roots"]], server=case["server"], root_fp=case["root_fp"])
    bundle = verify_bundle(case["bundle"].encode(), root.key, server=case["server"], now=now)
    live = {
        role.value: next(iter(live_keys(bundle, role, now=now, organization=case["organization"])))
        for role in Role
    }

    assert (2, key(case["root_seeds"][1]).verify_key) == (root.n, root.key)
    assert (case["version"], case["epoch"], case["not_after"]) == (bundle.version, bundle.epoch, bundle.not_after)
    assert case["bundle_digest"] == bundle_digest(case["bundle"].encode())
    assert case["live"] == live


@pytest.mark.parametrize("case", load("registration_tokens"), ids=lambda case: str(case["token"]["tls"]))
def test_the_registration_tokens_parse(case):
    """The text is base64url of the token's JSON behind a prefix; the digest is that of the secret's bytes."""
    token = parse_registration_token(case["text"])

    assert case["token"] == codec.unstructure(token)
    assert case["token"] == json.loads(b64url_decode(case["text"].removeprefix("rfreg1.")))
    assert case["credential"] == token.credential
    assert (token.id, bytes.fromhex(case["secret_digest"])) == parse_credential(case["credential"])
    assert case["secret_digest"] == hashlib.sha256(b64url_decode(token.secret)).hexdigest()


def test_the_machine_components_are_the_formula():
    """HMAC-SHA256 with the id as the key, cut to 16 bytes; UUIDv4 bits for the machine id."""
    case = load("machines")
    app_id = bytes.fromhex(case["app_id"])
    for entry in case["serials"]:
        raw = entry["raw"].encode()
        assert entry["component"] == hmac.digest(raw, app_id, "sha256")[:16].hex() == component(raw)
    for entry in case["machine_ids"]:
        raw = bytes.fromhex(entry["raw"])
        bits = int.from_bytes(hmac.digest(raw, app_id, "sha256")[:16], "big")
        bits = bits & ~(0xF << 76) & ~(0x3 << 62) | 0x4 << 76 | 0x2 << 62
        assert entry["component"] == f"{bits:032x}" == machine_id_component(raw)


def test_the_evidence_digest_is_over_the_canonical_json():
    """Sorted keys, no spaces, UTF-8."""
    case = load("machines")["evidence"]
    canonical = json.dumps(case["value"], sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    assert case["digest"] == hashlib.sha256(canonical).hexdigest()
    assert case["digest"] == codec.structure(MachineEvidence, case["value"]).digest


@pytest.mark.parametrize("case", load("commands"), ids=lambda case: case["type"])
def test_the_commands_verify(case):
    """The signature by the cryptography package, digest and hash by the formulas, all of it by our own checks."""
    wire, signer = json.loads(case["wire"]), key(case["seed"])
    payload, params = b64decode(wire["payload"]), case["params"].encode()
    kind = "application/vnd.redflag.command.v1+json"
    by_hand = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    (entry,) = wire["signatures"]

    Ed25519PublicKey.from_public_bytes(signer.verify_key.public_key).verify(b64decode(entry["sig"]), by_hand)
    assert (kind, signer.key_id) == (wire["payloadType"], entry["keyid"])
    assert case["body"] == json.loads(payload)
    assert params == b64decode(case["body"]["params"])
    ordered = f"DSSEv1 {len(case['type'])} {case['type']} {len(params)} ".encode() + params
    assert case["digest"] == hashlib.sha256(ordered + case["body"]["cmd_id"].encode()).hexdigest()
    assert case["hash"] == hashlib.sha256(payload).hexdigest()
    opened = open_command(case["wire"].encode(), {signer.key_id: signer.verify_key})
    assert (case["hash"], case["digest"]) == (opened.hash, opened.body.digest)
    assert params == dump_params(parse_params(case["type"], params))


@pytest.mark.parametrize("case", load("statements"), ids=lambda case: str(len(case["wire"])))
def test_the_statements_verify(case):
    """The signature by the cryptography package, and the whole by what a server does."""
    wire, signer = json.loads(case["wire"]), key(case["seed"])
    payload, kind = b64decode(wire["payload"]), wire["payloadType"]
    by_hand = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    (entry,) = wire["signatures"]
    said = case["statement"]

    Ed25519PublicKey.from_public_bytes(signer.verify_key.public_key).verify(b64decode(entry["sig"]), by_hand)
    assert said == json.loads(payload)
    opened = open_statement(
        case["wire"].encode(), signer.verify_key, server=said["server"], agent_id=said["agent_id"]
    )
    assert said == codec.unstructure(opened)


@pytest.mark.parametrize("case", load("transactions"), ids=lambda case: case["plan_hash"][:8])
def test_the_plan_hash_is_over_the_canonical_json(case):
    """What is asked for and what changes, in order of name; sizes and origins are not in it."""
    value = case["transaction"]
    fields = ("name", "arch", "before", "after", "downgrade", "held", "authenticated")
    canonical = {
        "v": 1,
        "manager": value["manager"],
        "requested": sorted([each["name"], each["arch"]] for each in value["requested"]),
        "changes": [
            [each[field] for field in fields]
            for each in sorted(value["changes"], key=lambda each: (each["name"], each["arch"]))
        ],
    }
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    assert case["plan_hash"] == hashlib.sha256(text).hexdigest()
    assert case["plan_hash"] == codec.structure(Transaction, value).plan_hash


@pytest.mark.parametrize("case", load("purls")["canonical"], ids=lambda case: case["purl"])
def test_the_package_urls_are_made_and_read(case):
    """The parts give the text, and each spelling of it the parts."""
    purl = make_purl(
        case["type"],
        case["name"],
        namespace=case["namespace"],
        version=case["version"],
        qualifiers=case["qualifiers"],
        subpath=case["subpath"],
    )

    assert case["purl"] == str(purl)
    assert {purl} == {parse_purl(text) for text in (case["purl"], *case["same"])}


@pytest.mark.parametrize("text", load("purls")["refused"])
def test_what_is_no_package_url_is_refused(text):
    """The specification is read strictly, and in the same way everywhere."""
    with pytest.raises(MalformedError):
        parse_purl(text)
