"""Commands: one form for each, bounds on every field, and each check of the executor on its own."""

import hashlib
from datetime import timedelta

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core import codec
from redflag_core.commands import (
    BYPASSING,
    CHANGING,
    CLOCK_TOLERANCE,
    COMMAND_LEEWAY,
    COMMAND_SECONDS,
    COMMAND_TYPE,
    CONSEQUENTIAL,
    HEARTBEAT_SECONDS,
    MAX_APPROVAL,
    MAX_PARAMS,
    PARAMS,
    ApprovalProof,
    CancelParams,
    Command,
    CommandType,
    HeartbeatParams,
    Order,
    Orderable,
    PlanParams,
    Recipient,
    ScanParams,
    UpgradeParams,
    check_order,
    check_recipient,
    check_start_by,
    check_time,
    command_digest,
    dump_params,
    executor_time,
    open_command,
    parse_params,
    sign_command,
    subjects_of,
)
from redflag_core.encoding import b64decode, b64encode, b64url_encode, dump_json
from redflag_core.envelope import MAX_ENVELOPE_BYTES, pae, parse_envelope, sign_envelope
from redflag_core.errors import (
    ClockError,
    LateCommandError,
    MachineMismatchError,
    MalformedError,
    ReplayError,
    RollbackError,
    SignatureError,
    StaleError,
    TooLargeError,
    UnknownCommandError,
    UnknownKeyError,
    VerificationError,
    WrongRecipientError,
)
from redflag_core.keys import SigningKey
from redflag_core.messages import MAX_MOMENT
from redflag_core.patching.plan import MAX_TARGETS, PackageTarget
from redflag_core.testing import START, SeededEntropy

KEY, STRANGER = (SigningKey.from_seed(bytes([n]) * 32) for n in (1, 2))
KEYS = {KEY.key_id: KEY.verify_key}
NOW = int(START.timestamp())
UUID = "0190b5a4-7a3c-7def-8abc-0123456789ab"
OTHER = "0190b5a4-7a3c-7def-8abc-0123456789ac"
RECIPIENT = Recipient(server=UUID, agent_id=UUID, machine_binding="a" * 32, key_fp="b" * 32, epoch=3)
ORDER = Order(3, 5, 8)
TARGET = PackageTarget(name="nginx", arch="amd64", installed="1.0-1", available="1.0-2")


def what(kind="scan.run", params=b"{}", **changes):
    """Something to order."""
    return Orderable(cmd_id=UUID, type=kind, params=params, start_by=NOW + 3600, **changes)


def signed(orderable=None, *, order=ORDER, now=START):
    """The envelope of a command."""
    return sign_command(orderable or what(), RECIPIENT, order, KEY, now=now, entropy=SeededEntropy())


COMMAND = open_command(signed(), KEYS).body


def later(seconds):
    """A time after the command was signed."""
    return START + timedelta(seconds=seconds)


# --- signing and opening


def test_a_command_says_what_was_ordered_and_for_whom():
    """Everything in it comes from the order, the recipient and the moment of signing."""
    opened = open_command(signed(), KEYS)

    assert (
        Command(
            v=1,
            cmd_id=UUID,
            agent_id=UUID,
            machine_binding="a" * 32,
            key_fp="b" * 32,
            server=UUID,
            epoch=3,
            gen=5,
            seq=8,
            type="scan.run",
            iat=NOW,
            exp=NOW + COMMAND_SECONDS,
            nonce=b64url_encode(SeededEntropy().token(16)),
            start_by=NOW + 3600,
            params=b64encode(b"{}"),
        )
        == opened.body
    )
    assert hashlib.sha256(parse_envelope(signed()).payload).hexdigest() == opened.hash


def test_each_signature_has_its_own_nonce_and_window_and_the_same_digest():
    """What is ordered does not change with its delivery."""
    entropy = SeededEntropy()
    first, second = (
        open_command(
            sign_command(what(), RECIPIENT, Order(3, 5, n), KEY, now=later(n), entropy=entropy), KEYS
        ).body
        for n in (1, 2)
    )

    assert first.digest == second.digest
    assert first.nonce != second.nonce
    assert (NOW + 1, NOW + 2) == (first.iat, second.iat)


def test_the_digest_is_the_formula():
    """SHA-256(PAE(type, params) + cmd_id)."""
    expected = hashlib.sha256(pae("packages.plan", b'{"x":1}') + UUID.encode()).hexdigest()

    assert expected == command_digest(UUID, "packages.plan", b'{"x":1}')


@pytest.mark.parametrize(
    "other",
    [(OTHER, "scan.run", b"{}"), (UUID, "scan.ru", b"n{}"), (UUID, "scan.run", b"{} ")],
    ids=["id", "type", "params"],
)
def test_another_order_has_another_digest(other):
    """Nothing of id, type and parameters can be moved to its neighbour."""
    assert command_digest(UUID, "scan.run", b"{}") != command_digest(*other)


def test_a_command_by_another_key_is_not_opened():
    """Nor one whose signature is not of these bytes."""
    wire = signed()
    by_stranger = sign_envelope(COMMAND_TYPE, parse_envelope(wire).payload, STRANGER)

    with pytest.raises(UnknownKeyError):
        open_command(by_stranger, KEYS)
    with pytest.raises(SignatureError):
        open_command(by_stranger.replace(STRANGER.key_id.encode(), KEY.key_id.encode()), KEYS)


def test_the_signature_is_checked_before_anything_is_read():
    """What is no command is told apart only for those who have a key."""
    junk = sign_envelope(COMMAND_TYPE, b"junk", STRANGER)

    with pytest.raises(UnknownKeyError):
        open_command(junk, KEYS)
    with pytest.raises(MalformedError):
        open_command(sign_envelope(COMMAND_TYPE, b"junk", KEY), KEYS)


def test_another_type_of_document_is_no_command():
    """Though the command key signed it."""
    with pytest.raises(MalformedError):
        open_command(sign_envelope("text/plain", parse_envelope(signed()).payload, KEY), KEYS)


@given(st.binary(max_size=300))
def test_any_bytes_raise_one_family_only(wire):
    """Untrusted bytes raise `VerificationError` and nothing else."""
    with pytest.raises(VerificationError):
        open_command(wire, KEYS)


@given(st.binary(max_size=300))
def test_any_signed_bytes_raise_one_family_only(payload):
    """The same for what a taken-over server signs."""
    with pytest.raises(VerificationError):
        open_command(sign_envelope(COMMAND_TYPE, payload, KEY), KEYS)


def test_a_command_is_never_larger_than_an_envelope_may_be():
    """The largest order fits, twice in base64."""
    wire = signed(what(params=b"x" * MAX_PARAMS))

    assert len(wire) <= MAX_ENVELOPE_BYTES
    assert MAX_PARAMS == len(b64decode(open_command(wire, KEYS).body.params))
    with pytest.raises(TooLargeError):
        open_command(wire + b" " * MAX_ENVELOPE_BYTES, KEYS)


def test_an_order_that_fits_no_envelope_is_not_signed():
    """The largest parameters and the largest approval are too much for one envelope together."""
    approval = ApprovalProof(b64encode(b"e" * (MAX_APPROVAL * 3 // 4)), 0, ())

    with pytest.raises(MalformedError, match="order less at once"):
        signed(what(params=b"x" * MAX_PARAMS, approval=approval))


# --- the form


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2},
        {"cmd_id": "x"},
        {"cmd_id": UUID.upper()},
        {"agent_id": ""},
        {"machine_binding": "A" * 32},
        {"key_fp": "b" * 31},
        {"server": "s"},
        {"epoch": -1},
        {"gen": 2**53},
        {"gen": -1},
        {"seq": -1},
        {"type": "scan"},
        {"type": "scan.run\n"},
        {"type": "Scan.run"},
        {"iat": -1},
        {"exp": MAX_MOMENT + 1},
        {"iat": -1, "exp": 0},
        {"iat": MAX_MOMENT, "exp": MAX_MOMENT + 1},
        {"exp": NOW - 1},
        {"exp": NOW + COMMAND_SECONDS + 1},
        {"nonce": "n" * 21},
        {"nonce": "+" * 22},
        {"nonce": b64url_encode(b"n" * 17)},
        {"nonce": "nnnnnnnnnnnnnnnnnnnnnn"},
        {"start_by": -1},
        {"params": "e30"},
        {"params": "e31="},
        {"params": "A" * (MAX_PARAMS * 2)},
    ],
    ids=str,
)
def test_a_field_has_one_form(changes):
    """Bounds, one spelling of ids and base64, and a window of five minutes."""
    plain = {**codec.unstructure(COMMAND), **changes}

    with pytest.raises(MalformedError):
        open_command(sign_envelope(COMMAND_TYPE, dump_json(plain), KEY), KEYS)


@pytest.mark.parametrize("field", [each.name for each in attrs.fields(Command) if each.name != "approval"])
@pytest.mark.parametrize("value", [None, [], {}, True, 1.5], ids=str)
def test_a_field_has_one_type(field, value):
    """Nothing is converted: not a number from a text, not a text from nothing."""
    plain = {**codec.unstructure(COMMAND), field: value}

    with pytest.raises(MalformedError):
        open_command(sign_envelope(COMMAND_TYPE, dump_json(plain), KEY), KEYS)


@pytest.mark.parametrize("field", [each.name for each in attrs.fields(Command) if each.name != "approval"])
def test_no_field_may_be_missing(field):
    """Only the approval may be left out."""
    plain = codec.unstructure(COMMAND)
    del plain[field]

    with pytest.raises(MalformedError):
        open_command(sign_envelope(COMMAND_TYPE, dump_json(plain), KEY), KEYS)


def test_unknown_and_double_fields_are_refused():
    """A new field is a new version."""
    text = codec.dump(COMMAND)
    for payload in (text[:-1] + b',"more":1}', text[:-1] + b',"v":1}', text.replace(b'"seq":8', b'"seq":NaN')):
        with pytest.raises(MalformedError):
            open_command(sign_envelope(COMMAND_TYPE, payload, KEY), KEYS)


def test_a_window_may_be_one_moment():
    """Nothing says how long it must be."""
    assert NOW == attrs.evolve(COMMAND, exp=NOW).exp


def test_parameters_and_approval_are_as_long_as_they_may_be():
    """To the byte, in base64."""
    attrs.evolve(COMMAND, params=b64encode(b"p" * MAX_PARAMS))
    ApprovalProof("A" * MAX_APPROVAL, 0, ())

    with pytest.raises(ValueError, match="params"):
        attrs.evolve(COMMAND, params=b64encode(b"p" * (MAX_PARAMS + 1)))
    with pytest.raises(ValueError, match="envelope"):
        ApprovalProof("A" * (MAX_APPROVAL + 4), 0, ())


def test_an_agent_that_was_never_ordered_anything_stands_before_all():
    """The first order has higher numbers."""
    assert Order(0, 0, 0) == Order()


def test_an_approval_has_a_place():
    """Envelope, index and proof, bounded."""
    proof = ApprovalProof(b64encode(b"x"), 0, (b64encode(b"y" * 32),) * 64)
    plain = {**codec.unstructure(COMMAND), "approval": codec.unstructure(proof)}

    assert proof == open_command(sign_envelope(COMMAND_TYPE, dump_json(plain), KEY), KEYS).body.approval
    for bad in ({"index": -1}, {"proof": ["x"]}, {"proof": ["eQ=="] * 65}, {"envelope": "x"}):
        plain["approval"] = {**codec.unstructure(proof), **bad}
        with pytest.raises(MalformedError):
            open_command(sign_envelope(COMMAND_TYPE, dump_json(plain), KEY), KEYS)


# --- types and parameters


def test_the_types_are_those_of_the_protocol():
    """Eight routine ones, seven that need an operator; this release carries out five."""
    assert (15, 7) == (len(CommandType), len(CONSEQUENTIAL))
    assert set(PARAMS) == {
        CommandType.SCAN_RUN,
        CommandType.PACKAGES_PLAN,
        CommandType.PACKAGES_UPGRADE,
        CommandType.COMMAND_CANCEL,
        CommandType.AGENT_HEARTBEAT,
    }
    assert not CONSEQUENTIAL & set(PARAMS)
    assert CHANGING | BYPASSING <= set(PARAMS)
    assert not CHANGING & BYPASSING


GOOD = [
    ("scan.run", ScanParams()),
    ("scan.run", ScanParams("apt")),
    ("packages.plan", PlanParams("apt", (TARGET,))),
    ("packages.upgrade", UpgradeParams("apt", (TARGET,), "0" * 64)),
    ("command.cancel", CancelParams(UUID)),
    ("agent.heartbeat", HeartbeatParams(10)),
    ("agent.heartbeat", HeartbeatParams(HEARTBEAT_SECONDS)),
]
PACKAGE, HASH = codec.dump(TARGET), b"0" * 64


@pytest.mark.parametrize("kind, params", GOOD, ids=str)
def test_parameters_come_back_as_they_were(kind, params):
    """From values to the text in a command and back."""
    assert params == parse_params(kind, dump_params(params))


@pytest.mark.parametrize(
    "kind, text, sentence",
    [
        ("shell.run", b"{}", "this agent does not carry out shell.run"),
        ("system.reboot", b"{}", "does not carry out system.reboot"),
        ("packages.remove", b"{}", "with an approval or without"),
        ("scan.run", b"", "no parameters of scan.run"),
        ("scan.run", b'{"scanner":1}', "no parameters of scan.run"),
        ("scan.run", b'{"scanner":"a b"}', "scanner is out of bounds"),
        ("scan.run", b'{"script":"id"}', "no parameters of scan.run"),
        ("packages.plan", b'{"manager":"apt","packages":[]}', "packages is out of bounds"),
        ("packages.plan", b'{"manager":"a t","packages":[%b]}' % PACKAGE, "manager is out of bounds"),
        ("packages.upgrade", b'{"manager":"apt","packages":[],"plan_hash":"%b"}' % HASH, "packages is out of"),
        (
            "packages.upgrade",
            b'{"manager":"","packages":[%b],"plan_hash":"%b"}' % (PACKAGE, HASH),
            "manager is out",
        ),
        ("packages.upgrade", b'{"manager":"apt","packages":[%b],"plan_hash":"0"}' % PACKAGE, "plan_hash is out"),
        ("packages.upgrade", b'{"manager":"apt","packages":[%b]}' % PACKAGE, "no parameters of packages.upgrade"),
        ("agent.heartbeat", b'{"seconds":9}', "seconds is out of bounds"),
        ("agent.heartbeat", b'{"seconds":3601}', "seconds is out of bounds"),
        ("command.cancel", b'{"cmd_id":"x"}', "cmd_id is out of bounds"),
    ],
)
def test_what_is_not_carried_out_is_refused_with_a_sentence(kind, text, sentence):
    """Another type, or parameters that are not those of the type: known to be final."""
    with pytest.raises(UnknownCommandError, match=sentence):
        parse_params(kind, text)


def test_a_package_is_ordered_once_and_not_too_many_are():
    """What people see in a plan is what is in it."""
    with pytest.raises(ValueError, match=": a package is named once"):
        PlanParams("apt", (TARGET, TARGET))
    many = tuple(attrs.evolve(TARGET, name=f"p{n}") for n in range(MAX_TARGETS + 1))
    assert MAX_TARGETS == len(PlanParams("apt", many[:-1]).packages)
    with pytest.raises(ValueError, match="packages"):
        PlanParams("apt", many)


def test_too_many_parameters_are_refused_before_they_are_signed():
    """The sentence says what to do."""
    many = tuple(attrs.evolve(TARGET, name="p" * 200 + str(n)) for n in range(MAX_TARGETS))

    with pytest.raises(MalformedError, match="order less at once"):
        dump_params(PlanParams("apt", many))


def test_parameters_of_the_very_largest_size_can_be_ordered():
    """To the byte."""
    many = [attrs.evolve(TARGET, name="p" * 190 + f"{n:03}") for n in range(117)]
    room = MAX_PARAMS - len(dump_params(PlanParams("apt", (*many, attrs.evolve(TARGET, name="x"))))) + 1
    fits, too_large = (PlanParams("apt", (*many, attrs.evolve(TARGET, name="x" * n))) for n in (room, room + 1))

    assert MAX_PARAMS == len(dump_params(fits))
    assert fits == parse_params("packages.plan", dump_params(fits))
    with pytest.raises(MalformedError):
        dump_params(too_large)


def test_subjects_say_what_a_command_is_about():
    """Each package of a plan or an upgrade, the command that is cancelled, the scanner, or the type itself."""
    subjects = [subjects_of(CommandType(kind), params) for kind, params in GOOD]

    assert [
        {"scan:*"},
        {"scan:apt"},
        {"apt:nginx:amd64"},
        {"apt:nginx:amd64"},
        {f"cancel:{UUID}"},
        {"agent.heartbeat"},
        {"agent.heartbeat"},
    ] == subjects


# --- the executor's checks


@pytest.mark.parametrize("field", ["server", "agent_id", "key_fp", "epoch", "machine_binding"])
def test_a_command_is_for_one_executor_on_one_machine(field):
    """Each of the five must be its own."""
    other = {"epoch": 4, "key_fp": "c" * 32, "machine_binding": "c" * 32}.get(field, OTHER)
    check_recipient(COMMAND, RECIPIENT)

    with pytest.raises(MachineMismatchError if field == "machine_binding" else WrongRecipientError):
        check_recipient(attrs.evolve(COMMAND, **{field: other}), RECIPIENT)


@pytest.mark.parametrize(
    "seconds, passes",
    [
        (-COMMAND_LEEWAY - 1, False),
        (-COMMAND_LEEWAY, True),
        (COMMAND_SECONDS + COMMAND_LEEWAY, True),
        (COMMAND_SECONDS + COMMAND_LEEWAY + 1, False),
    ],
)
def test_the_window_has_a_minute_at_both_ends(seconds, passes):
    """``iat - 60 <= now <= exp + 60``."""
    if passes:
        check_time(COMMAND, now=later(seconds))
    else:
        with pytest.raises(StaleError):
            check_time(COMMAND, now=later(seconds))


@pytest.mark.parametrize(
    "behind, expected", [(-100, -100), (0, 0), (100, 0), (CLOCK_TOLERANCE, 0), (CLOCK_TOLERANCE + 1, None)]
)
def test_the_executors_time_never_goes_back(behind, expected):
    """The system's, but not below the high-water mark; far below it, nothing can be judged."""
    system, high_water = later(-behind), NOW
    if expected is None:
        with pytest.raises(ClockError, match="301 s behind: set it"):
            executor_time(system, high_water)
    else:
        assert later(-expected) == executor_time(system, high_water)


@pytest.mark.parametrize("last", [ORDER, Order(3, 5, 9), Order(3, 6, 0), Order(4, 0, 0)], ids=str)
def test_a_number_that_is_not_higher_is_a_rollback(last):
    """Compared from left to right: epoch, generation, sequence."""
    with pytest.raises(RollbackError):
        check_order(COMMAND, last, nonce_seen=False)


@pytest.mark.parametrize("last", [Order(), Order(3, 5, 7), Order(3, 4, 999), Order(2, 999, 999)], ids=str)
def test_a_higher_number_passes(last):
    """A new epoch or generation starts the rest anew."""
    check_order(COMMAND, last, nonce_seen=False)


def test_a_nonce_that_was_seen_is_a_replay_whatever_the_order():
    """The nonce is looked at first: the code says what happened."""
    for last in (Order(), Order(9, 9, 9)):
        with pytest.raises(ReplayError):
            check_order(COMMAND, last, nonce_seen=True)


def test_work_may_start_until_its_time_has_passed():
    """The last second counts."""
    check_start_by(NOW, now=START)
    with pytest.raises(LateCommandError):
        check_start_by(NOW, now=START + timedelta(milliseconds=1))
