"""
Known answers of the wire protocol, for implementations in other languages and against accidents in this one.

`python -m tests.vectors.make` writes them anew. Every input is fixed, so the files only change when the protocol
does; and that takes a new version of it.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import attrs

from redflag_core import codec
from redflag_core.approvals import approval_leaf, new_approval, prove_approval, sign_approval
from redflag_core.commands import (
    CancelParams,
    HeartbeatParams,
    Order,
    Orderable,
    Params,
    PlanParams,
    Recipient,
    ScanParams,
    UpgradeParams,
    dump_params,
    open_command,
    sign_command,
)
from redflag_core.enrolment import RegistrationToken, new_secret, secret_digest
from redflag_core.envelope import pae, sign_envelope
from redflag_core.keys import SigningKey, VerifyKey
from redflag_core.machine import APP_ID, RawMachine, component, machine_id_component, make_evidence
from redflag_core.messages import PublicKey, Role, TrustedKey
from redflag_core.patching import Change, PackageTarget, Transaction
from redflag_core.scanning import PackageKey
from redflag_core.signed_requests import Request, new_nonce, parse_request, sign_request
from redflag_core.statements import (
    CommandAccepted,
    CommandRefused,
    CommandResult,
    Outcome,
    PackageOutcome,
    PackageResult,
    Statement,
    sign_statement,
)
from redflag_core.testing import START, SeededEntropy
from redflag_core.trust import DAY, Root, bundle_digest, first_root, new_bundle, next_root, sign_bundle
from redflag_core.webhooks import WebhookSecret, format_webhook_key, parse_webhook_key, sign_webhook
from tests.vectors import maintenance, purls, trees

HERE: Final = Path(__file__).parent
NOW: Final = int(START.timestamp())
SERVER: Final = "0190b5a4-7a3c-7def-8abc-0123456789ab"
ORGANIZATION: Final = "0190b5a4-7a3c-7def-8abc-00000000000a"
TOKEN_ID: Final = "0190b5a4-7a3c-7def-8abc-00000000000b"
AUTHORITY: Final = "rf.example.com"


def key(number: int) -> SigningKey:
    """The signing key with this number."""
    return SigningKey.from_seed(SeededEntropy(number).token(32))


def keys() -> list[Any]:
    """Seeds, public keys, ids and signatures."""
    return [
        {
            "seed": each.seed.hex(),
            "public_key": each.verify_key.public_key.hex(),
            "key_id": each.key_id,
            "fingerprint": each.verify_key.fingerprint,
            "message": message.hex(),
            "signature": each.sign(message).hex(),
        }
        for each, message in zip(map(key, (1, 2, 3)), (b"", b"redflag", bytes(range(256))), strict=True)
    ]


def envelopes() -> list[Any]:
    """Payloads, signing inputs and wire forms."""
    cases = (
        ("http://example.com/HelloWorld", b"hello world", (1,)),
        ("application/vnd.redflag.test.v1+json", b'{"v":1}', (1, 2)),
        ("text/\u20ac", b"\x00\xff\n", (3,)),
        ("empty", b"", (1,)),
    )
    return [
        {
            "type": kind,
            "payload": payload.hex(),
            "seeds": [key(number).seed.hex() for number in signers],
            "pae": pae(kind, payload).hex(),
            "wire": sign_envelope(kind, payload, *map(key, signers)).decode(),
        }
        for kind, payload, signers in cases
    ]


def signed_requests() -> list[Any]:
    """Requests, signing inputs and the headers that are added."""
    token, encoded = (b"authorization", b"Bearer aa.bb-_.cc"), (b"content-encoding", b"gzip")
    requests = (
        Request("POST", "/api/v1/agents/register", "", (), b'{"v":1}'),
        Request("POST", "/api/v1/agent/check-in", "wait=50", (token,), b'{"v":1}'),
        Request("POST", "/rmm/api/v1/agent/reports/apt", "", (encoded, token), bytes(range(256))),
        Request("GET", "/%7Ea/b%2Fc", "a=%20&b=1%2F2", (token,)),
        Request("GET", "", "", ()),
    )
    entropy = SeededEntropy(4)
    return [_signed_request(request, new_nonce(entropy)) for request in requests]


def _signed_request(request: Request, nonce: str) -> Any:
    added = sign_request(request, key(1), authority=AUTHORITY, now=START, nonce=nonce)
    signed = attrs.evolve(request, headers=(*request.headers, *added))
    with_token = request.header(b"authorization") is not None
    parsed = parse_request(signed, authorities=[AUTHORITY], with_token=with_token)
    return {
        "seed": key(1).seed.hex(),
        "authority": AUTHORITY,
        "created": NOW,
        "nonce": nonce,
        "method": request.method,
        "path": request.path,
        "query": request.query,
        "headers": _texts(request.headers),
        "body": request.body.hex(),
        "signing_input": parsed.signing_input.decode(),
        "added": _texts(added),
    }


def _texts(headers: Any) -> list[list[str]]:
    return [[name.decode(), value.decode()] for name, value in headers]


def trust() -> Any:
    """A root chain of two, and a bundle signed by its end."""
    root, successor = key(11), key(12)
    first = first_root(SERVER, root, now=START)
    second = next_root(SERVER, Root(1, root.verify_key), root, successor, now=START)
    trusted = (
        _trusted(13, Role.COMMAND),
        _trusted(14, Role.CHECKPOINT),
        _trusted(15, Role.OPERATOR, ORGANIZATION),
    )
    bundle = sign_bundle(new_bundle(SERVER, trusted, version=7, epoch=2, now=START), successor)
    return {
        "server": SERVER,
        "root_fp": root.verify_key.fingerprint,
        "now": NOW,
        "root_seeds": [root.seed.hex(), successor.seed.hex()],
        "roots": [first.decode(), second.decode()],
        "bundle": bundle.decode(),
        "bundle_digest": bundle_digest(bundle),
        "version": 7,
        "epoch": 2,
        "not_after": NOW + 90 * DAY,
        "organization": ORGANIZATION,
        "live": {"command": key(13).key_id, "checkpoint": key(14).key_id, "operator": key(15).key_id},
    }


def _trusted(number: int, role: Role, *organizations: str) -> TrustedKey:
    return TrustedKey(PublicKey.of(key(number)).key, role, NOW, NOW + 365 * DAY, organizations)


def registration_tokens() -> list[Any]:
    """Tokens and the text that an operator copies."""
    entropy = SeededEntropy(5)
    places = (
        (("https://rf.example.com",), None),
        (("https://10.0.0.1:8750", "http://127.0.0.1:8750/rmm"), "sha256:" + "ab" * 32),
        (("https://rf.lan",), "ca-sha256:" + "cd" * 32),
    )
    tokens = [
        RegistrationToken(1, TOKEN_ID, new_secret(entropy), SERVER, "ef" * 32, addresses, tls)
        for addresses, tls in places
    ]
    return [
        {
            "token": codec.unstructure(token),
            "text": token.text(),
            "credential": token.credential,
            "secret_digest": secret_digest(token.secret).hex(),
        }
        for token in tokens
    ]


def machines() -> Any:
    """Components of ids, and evidence with its digest."""
    ids = [bytes.fromhex(text) for text in ("3d1219c7c4c5404aaa1f6d2a48adfda4", "0123456789abcdef" * 2)]
    serials = ["4c4c4544-0051-3010-8052-b4c04f564231", "S4EWNX0R"]
    raw = RawMachine(machine_id=ids[0], smbios_uuid=serials[0], board_serial="none", disk_serial=serials[1])
    evidence = make_evidence(raw, replacement=SeededEntropy(6).token(16))
    return {
        "app_id": APP_ID.hex(),
        "machine_ids": [{"raw": raw.hex(), "component": machine_id_component(raw)} for raw in ids],
        "serials": [{"raw": raw, "component": component(raw.encode())} for raw in serials],
        "evidence": {"value": codec.unstructure(evidence), "digest": evidence.digest},
    }


AGENT: Final = "0190b5a4-7a3c-7def-8abc-00000000000c"
COMMAND: Final = "0190b5a4-7a3c-7def-8abc-00000000000d"
TRANSACTION: Final = Transaction(
    manager="apt",
    requested=(PackageKey("nginx", "amd64"),),
    changes=(
        Change(name="nginx", arch="amd64", before="1.22.1-9", after="1.22.1-9+deb12u1", origin="Debian-Security"),
        Change(name="libnginx", arch="all", after="1.0", held=False, authenticated=True),
        Change(name="rechtschreibung-\u00fc", arch="all", before="2", after="1", downgrade=True, held=True),
        Change(name="old", arch="amd64", before="1:0.9~rc1"),
    ),
    download_size=123_456,
    disk_size=-7,
)


def commands() -> list[Any]:
    """Commands of each type, as signed for one executor, and what they order."""
    target = PackageTarget(name="nginx", arch="amd64", installed="1.22.1-9", available="1.22.1-9+deb12u1")
    orders: tuple[tuple[str, Params], ...] = (
        ("scan.run", ScanParams()),
        ("scan.run", ScanParams("apt")),
        ("packages.plan", PlanParams("apt", (target,))),
        ("packages.upgrade", UpgradeParams("apt", (target,), TRANSACTION.plan_hash)),
        ("command.cancel", CancelParams(COMMAND)),
        ("agent.heartbeat", HeartbeatParams(600)),
    )
    entropy = SeededEntropy(7)
    return [
        _command(kind, dump_params(params), seq, entropy) for seq, (kind, params) in enumerate(orders, start=1)
    ]


def _command(kind: str, params: bytes, seq: int, entropy: SeededEntropy) -> Any:
    recipient = Recipient(
        server=SERVER,
        agent_id=AGENT,
        machine_binding=machine_id_component(bytes(range(16))),
        key_fp=key(22).key_id,
        epoch=2,
    )
    what = Orderable(cmd_id=f"{COMMAND[:-1]}{seq}", type=kind, params=params, start_by=NOW + 7 * DAY)
    wire = sign_command(what, recipient, Order(2, NOW, seq), key(21), now=START, entropy=entropy)
    opened = open_command(wire, {key(21).key_id: key(21).verify_key})
    return {
        "seed": key(21).seed.hex(),
        "type": kind,
        "params": params.decode(),
        "body": codec.unstructure(opened.body),
        "digest": opened.body.digest,
        "hash": opened.hash,
        "wire": wire.decode(),
    }


def approvals() -> Any:
    """An operator's approval of three commands, and each command with its proof, as signed for delivery."""
    operator, ordered = key(23), [ScanParams("apt"), ScanParams(None), HeartbeatParams(60)]
    kinds = ["scan.run", "scan.run", "agent.heartbeat"]
    texts = [dump_params(params) for params in ordered]
    binding = key(6).verify_key.fingerprint[:32]
    leaves = [approval_leaf(AGENT, binding, kind, text) for kind, text in zip(kinds, texts, strict=True)]
    approval = new_approval(
        leaves, approval_id=COMMAND, root_fp="ef" * 32, organization=ORGANIZATION, now=START, max_starts=2
    )
    wire = sign_approval(approval, operator)
    entropy, who = (
        SeededEntropy(8),
        Recipient(server=SERVER, agent_id=AGENT, machine_binding=binding, key_fp=key(7).key_id, epoch=2),
    )
    return {
        "seed": operator.seed.hex(),
        "command_seed": key(21).seed.hex(),
        "approval": codec.unstructure(approval),
        "wire": wire.decode(),
        "leaves": [leaf.data.decode() for leaf in leaves],
        "commands": [
            sign_command(
                Orderable(
                    cmd_id=COMMAND,
                    type=kind,
                    params=text,
                    start_by=NOW + 3600,
                    approval=prove_approval(wire, leaves, index),
                ),
                who,
                Order(2, NOW, index + 1),
                key(21),
                now=START,
                entropy=entropy,
            ).decode()
            for index, (kind, text) in enumerate(zip(kinds, texts, strict=True))
        ],
    }


def statements() -> list[Any]:
    """What an executor states, each kind of it."""
    known = {"cmd_id": COMMAND, "digest": "ab" * 32, "body": "cd" * 32}
    who = {"server": SERVER, "agent_id": AGENT}
    package = PackageResult(
        name="nginx", arch="amd64", outcome=PackageOutcome.FAILED, installed="1", reason="\u20ac"
    )
    result = CommandResult(
        **who,
        **known,
        outcome=Outcome.FAILED,
        code="install_failed",
        detail="install ended with status 100; not installed: nginx",
        started_at=NOW,
        finished_at=NOW + 60,
        exit_status=100,
        output="dpkg: error\n",
        output_bytes=12,
        transaction=TRANSACTION,
        packages=(package,),
        reboot_required=False,
    )
    made: tuple[Statement, ...] = (
        CommandAccepted(**who, **known, epoch=2, gen=NOW, seq=3, iat=NOW),
        CommandRefused(**who, body="ef" * 32, code="unknown_key", detail="nobody who is believed", iat=NOW),
        CommandRefused(**who, **known, code="start_by_passed", detail="too late", never=True, iat=NOW),
        result,
        CommandResult(**who, **known, outcome=Outcome.COMPLETED, finished_at=NOW),
    )
    return [
        {
            "seed": key(22).seed.hex(),
            "statement": codec.unstructure(each),
            "wire": sign_statement(each, key(22)).decode(),
        }
        for each in made
    ]


def transactions() -> list[Any]:
    """A transaction with every kind of change, and its plan hash."""
    return [{"transaction": codec.unstructure(TRANSACTION), "plan_hash": TRANSACTION.plan_hash}]


def webhooks() -> list[Any]:
    """Messages signed by secrets and private keys; the first two are the published known answers of the format."""
    published = ("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b'{"test": 2432232314}')
    pair = "6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="
    secrets = [format_webhook_key(WebhookSecret(SeededEntropy(31).token(size))) for size in (24, 64)]
    private = format_webhook_key(key(32))
    cases = (
        (*published, ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]),
        (*published, ["whsk_" + pair]),
        ("msg_1", NOW, b"", secrets[:1]),
        ("rotation", NOW, bytes(range(256)), [*secrets, private]),
        ("0190b5a4-7a3c-7def-8abc-000000000001", NOW, '{"type":"a.b","data":"\u20ac"}'.encode(), [private]),
    )
    return [_webhook(*case) for case in cases]


def _webhook(message_id: str, created: int, body: bytes, texts: list[str]) -> Any:
    signers = [each for each in map(parse_webhook_key, texts) if not isinstance(each, VerifyKey)]
    now = datetime.fromtimestamp(created, UTC)
    receivers = [each.verify_key if isinstance(each, SigningKey) else each for each in signers]
    return {
        "id": message_id,
        "timestamp": created,
        "body": body.hex(),
        "signed_with": texts,
        "verified_with": [format_webhook_key(each) for each in receivers],
        "key_ids": [each.key_id for each in receivers],
        "headers": sign_webhook(body, *signers, message_id=message_id, now=now),
    }


def files() -> dict[str, str]:
    """Name and content of every file of vectors."""
    content = {
        "keys": keys(),
        "envelopes": envelopes(),
        "signed_requests": signed_requests(),
        "trust": trust(),
        "registration_tokens": registration_tokens(),
        "machines": machines(),
        "commands": commands(),
        "statements": statements(),
        "approvals": approvals(),
        "transactions": transactions(),
        "merkle": trees.merkle(),
        "audit": trees.audit(),
        "webhooks": webhooks(),
        "windows": maintenance.windows(),
        "purls": purls.purls(),
    }
    return {f"{name}.json": json.dumps(value, indent=1) + "\n" for name, value in content.items()}


if __name__ == "__main__":
    for name, text in files().items():
        (HERE / name).write_text(text, encoding="utf-8")
