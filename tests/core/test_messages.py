"""Wire messages: what is inside an envelope or a body, and the bounds of every field."""

from contextlib import suppress

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core import codec, messages
from redflag_core.encoding import MAX_INTEGER, b64encode
from redflag_core.errors import MalformedError
from redflag_core.keys import SigningKey
from redflag_core.machine import MachineEvidence
from redflag_core.messages import (
    MAX_CONTEXT_BYTES,
    MAX_ERRORS,
    MAX_MOMENT,
    MAX_SCANNERS,
    MAX_SMALL_BODY,
    Accepted,
    CheckIn,
    CheckInAnswer,
    ClientError,
    Errors,
    EvidenceStatement,
    ExecutorProof,
    ExecutorState,
    OperatingSystem,
    Phase,
    Progress,
    PublicKey,
    Register,
    Registered,
    Report,
    ReportAccepted,
    Role,
    RootDocument,
    ScannerState,
    StatementPost,
    Token,
    TokenRequest,
    TrustBundle,
    TrustedKey,
    Versions,
)
from redflag_core.scanning import Package, PackageKey, PackageState, ScanStatus

KEY = SigningKey.from_seed(b"k" * 32)
PUBLIC = PublicKey.of(KEY)
ID = "0190b5a4-7a3c-7def-8abc-0123456789ab"
HASH = "0123456789abcdef" * 4
EVIDENCE = MachineEvidence(
    machine_id="a" * 32, smbios_uuid=None, board_serial="b" * 32, disk_serial=None, weak=(), container=False
)
OS = OperatingSystem("linux", "debian", "Debian GNU/Linux 12", "12", "6.1", "x86_64")
VERSIONS = Versions("0.1.0", (1,))
PACKAGE = Package(name="bash", arch="amd64", installed="1", available="2", state=PackageState.AVAILABLE)
STATE = ScannerState("apt", ScanStatus.OK, HASH, 5)
ERROR = ClientError("scanner.apt", "scan_failed", "no lists", 1, 5, 6, "line 1\nline 2", {"exit": 100})

BUNDLE_KEY = TrustedKey(PUBLIC.key, Role.OPERATOR, 0, MAX_MOMENT, (ID,))
REPORT = Report(1, ID, 5, 10, ScanStatus.OK, "apt", warnings=("old",), hash=HASH, packages=(PACKAGE,))
DELTA = attrs.evolve(REPORT, base=HASH, removed=(PackageKey("zsh", "amd64"),), facts={"reboot": True})
FAILED = Report(1, ID, 5, 10, ScanStatus.FAILED, "apt", error="no lists")
CHECK_IN = CheckIn(1, "state", ID, (STATE,), "evidence", OS, VERSIONS, "host", 50)

EXAMPLES = [
    PUBLIC,
    BUNDLE_KEY,
    TrustBundle(1, ID, 3, 5, 1, 6, (BUNDLE_KEY,)),
    RootDocument(1, ID, 1, 5, PUBLIC),
    EvidenceStatement(1, EVIDENCE),
    ExecutorProof(1, PUBLIC, PUBLIC, HASH, ID, HASH, ID),
    ExecutorState(1, ID, ID, 1, 2, 3, 4, 5),
    OS,
    VERSIONS,
    Register(1, f"{ID}.secret", PUBLIC, PUBLIC, "proof", "evidence", HASH, "host", OS, VERSIONS),
    Registered(1, ID, ID, "active", ID),
    TokenRequest(1, "A" * 43, HASH, "evidence", "state", ID),
    Token(1, "aa.bb.cc", 86400, 1),
    STATE,
    CHECK_IN,
    CheckIn(1, "state"),
    CheckInAnswer(1, 5, "active", 60, ("apt",), {"apt": HASH}, 1, 3, HASH, ("command",), (1,)),
    REPORT,
    DELTA,
    FAILED,
    ReportAccepted(1, accepted=True, hash=None),
    ERROR,
    Errors(1, ID, (ERROR,), 7),
    Accepted(),
    StatementPost(1, "statement"),
    Progress(1, ID, 4, Phase.RUNNING, "install", 50, ("Setting up nginx",)),
]
BY_TYPE = {type(example): example for example in EXAMPLES}


def refuse(example, **changes):
    """The message of the refusal of *example* with fields of its JSON form changed."""
    with pytest.raises(MalformedError) as caught:
        codec.structure(type(example), codec.unstructure(example) | changes)
    return caught.value.message


def accept(example, **changes):
    return codec.structure(type(example), codec.unstructure(example) | changes)


def test_every_message_has_an_example_here():
    """A new message is not forgotten by the tests below."""
    assert {
        value for value in vars(messages).values() if attrs.has(value) and value.__module__ == messages.__name__
    } == set(BY_TYPE)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_every_message_comes_back_as_it_went_out(example):
    """The codec reads what it wrote, and the bytes are canonical."""
    data = codec.dump(example)

    assert example == codec.parse(type(example), data, max_bytes=MAX_SMALL_BODY)
    assert data == codec.dump(codec.parse(type(example), data, max_bytes=MAX_SMALL_BODY))


@pytest.mark.parametrize("example", BY_TYPE.values(), ids=lambda example: type(example).__name__)
def test_unknown_and_missing_fields_are_refused(example):
    """Within a version there are no other fields, and those without a default must be there."""
    assert "extra fields found (surprise)" in refuse(example, surprise=1)
    for field in attrs.fields(type(example)):
        if field.default is attrs.NOTHING:
            value = codec.unstructure(example)
            del value[field.name]
            with pytest.raises(MalformedError, match=rf"required field missing @ \$\.{field.name}$"):
                codec.structure(type(example), value)


@pytest.mark.parametrize("example", BY_TYPE.values(), ids=lambda example: type(example).__name__)
@given(st.data())
def test_any_value_in_any_field_is_a_message_or_malformed(example, data):
    """Whatever JSON stands in a field, the only exception is `MalformedError`."""
    value = codec.unstructure(example)
    junk = (
        st.none()
        | st.booleans()
        | st.integers(-MAX_INTEGER, MAX_INTEGER)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=5)
        | st.sampled_from([[], {}, [1], {"a": 1}, [None], [{}], "A" * 44, "=" * 44])
    )
    value[data.draw(st.sampled_from(sorted(value)))] = data.draw(junk)
    with suppress(MalformedError):
        assert isinstance(codec.structure(type(example), value), type(example))


@pytest.mark.parametrize(
    "example", [e for e in BY_TYPE.values() if hasattr(e, "v")], ids=lambda example: type(example).__name__
)
@pytest.mark.parametrize("version", [0, 2, -1, "1", True, None])
def test_only_known_versions_are_read(example, version):
    """A message of another version has other fields: it is not half understood."""
    assert refuse(example, v=version)


# Bounds


@pytest.mark.parametrize(
    "kind, field",
    [
        (kind, field.name)
        for kind in BY_TYPE
        if kind not in (Token, CheckInAnswer)  # answers: the agent keeps their numbers within bounds of its own
        for field in attrs.fields(kind)
        if field.type is int
    ],
    ids=str,
)
def test_numbers_of_requests_are_bounded(kind, field):
    """No number is negative or larger than a database or a calendar can hold."""
    assert refuse(BY_TYPE[kind], **{field: -1})
    with pytest.raises(MalformedError):
        codec.parse(kind, codec.dump(codec.unstructure(BY_TYPE[kind]) | {field: 2**63}), max_bytes=MAX_SMALL_BODY)


@pytest.mark.parametrize(
    "example, field",
    [
        (BUNDLE_KEY, "not_before"),
        (BUNDLE_KEY, "not_after"),
        (BY_TYPE[TrustBundle], "iat"),
        (BY_TYPE[TrustBundle], "not_after"),
        (BY_TYPE[RootDocument], "iat"),
        (BY_TYPE[ExecutorState], "iat"),
        (STATE, "taken_at"),
        (REPORT, "taken_at"),
        (ERROR, "first_seen"),
        (ERROR, "last_seen"),
    ],
    ids=str,
)
def test_moments_end_with_the_year_9999(example, field):
    """A time that no calendar can show is refused here, not where somebody shows it."""
    assert accept(example, **{field: MAX_MOMENT})
    assert f"{field} is out of bounds" in refuse(example, **{field: MAX_MOMENT + 1})


@pytest.mark.parametrize(
    "example, field, limit",
    [
        (OS, "family", 32),
        (OS, "id", 64),
        (OS, "name", 200),
        (OS, "version", 100),
        (OS, "kernel", 200),
        (OS, "arch", 32),
        (VERSIONS, "agent", 64),
        (BY_TYPE[Register], "hostname", 253),
        (BY_TYPE[Register], "registration_token", 128),
        (BY_TYPE[Register], "evidence", 16 * 1024),
        (BY_TYPE[Register], "executor_proof", 16 * 1024),
        (BY_TYPE[TokenRequest], "evidence", 16 * 1024),
        (BY_TYPE[TokenRequest], "state", 16 * 1024),
        (BY_TYPE[TokenRequest], "boot_id", 64),
        (CHECK_IN, "hostname", 253),
        (CHECK_IN, "evidence", 16 * 1024),
        (CHECK_IN, "state", 16 * 1024),
        (CHECK_IN, "boot_id", 64),
        (FAILED, "error", 2000),
        (ERROR, "subsystem", 64),
        (ERROR, "type", 128),
        (ERROR, "message", 2000),
    ],
    ids=str,
)
def test_texts_are_one_line_of_bounded_length(example, field, limit):
    """The longest line passes; longer, empty, or with a control character is refused."""
    assert accept(example, **{field: "é" * limit})
    assert f"{field} is out of bounds" in refuse(example, **{field: "é" * (limit + 1)})
    assert f"{field} is out of bounds" in refuse(example, **{field: ""})
    for character in "\n\r\t\x1b\x7f\x85\u2028":
        assert f"{field} holds a control character" in refuse(example, **{field: f"a{character}b"})


@pytest.mark.parametrize(
    "kind, field",
    [
        (TrustBundle, "server"),
        (RootDocument, "server"),
        (ExecutorProof, "server"),
        (ExecutorProof, "token_id"),
        (ExecutorState, "server"),
        (ExecutorState, "agent_id"),
        (Report, "report_id"),
        (Errors, "batch_id"),
    ],
)
def test_ids_are_uuids_of_one_spelling(kind, field):
    """Lower case with dashes, nothing around them."""
    for text in (ID.upper(), ID.replace("-", ""), f"{{{ID}}}", ID + "\n", f" {ID}", ID[:-1], "", f"urn:uuid:{ID}"):
        assert f"{field} is out of bounds" in refuse(BY_TYPE[kind], **{field: text})


@pytest.mark.parametrize(
    "example, field",
    [
        (BY_TYPE[ExecutorProof], "evidence"),
        (BY_TYPE[ExecutorProof], "root_fp"),
        (BY_TYPE[Register], "refresh_hash"),
        (BY_TYPE[TokenRequest], "next_hash"),
        (STATE, "hash"),
        (DELTA, "base"),
        (REPORT, "hash"),
    ],
    ids=str,
)
def test_hashes_are_64_lower_case_digits(example, field):
    """Nothing else compares equal to a digest by accident."""
    for text in (HASH.upper(), HASH[:-1], HASH + "0", HASH + "\n", "", "g" * 64):
        assert f"{field} is out of bounds" in refuse(example, **{field: text})


@pytest.mark.parametrize("kind", [PublicKey, TrustedKey])
def test_a_key_on_the_wire_is_a_key(kind):
    """What is not 32 bytes of canonical base64 is refused when it is read, not when it is used."""
    key = BY_TYPE[kind].key

    assert KEY.verify_key == accept(BY_TYPE[kind]).open()
    for text in ("", "AAAA", key[:-1], key + "\n", key[:-2] + "t=", b64encode(bytes(33)), "-" * 43 + "="):
        assert "$" in refuse(BY_TYPE[kind], key=text)
    assert "key_type is out of bounds" in refuse(BY_TYPE[kind], key_type="p256")


def test_a_public_key_is_made_of_either_half():
    """The wire form of a pair is that of its public half."""
    assert PublicKey.of(KEY) == PublicKey.of(KEY.verify_key)


def test_lists_are_bounded():
    """Keys, organizations, scanners, errors, warnings, protocols: the largest number passes, one more does not."""
    scanners = [codec.unstructure(attrs.evolve(STATE, scanner=f"s{n}")) for n in range(MAX_SCANNERS + 1)]
    error = codec.unstructure(ERROR)

    assert accept(CHECK_IN, scanners=scanners[:-1])
    assert "scanners is out of bounds" in refuse(CHECK_IN, scanners=scanners)
    assert accept(BY_TYPE[Errors], errors=[error] * MAX_ERRORS)
    assert "errors is out of bounds" in refuse(BY_TYPE[Errors], errors=[error] * (MAX_ERRORS + 1))
    assert "errors is out of bounds" in refuse(BY_TYPE[Errors], errors=[])
    assert accept(REPORT, warnings=["w" * 1000] * 100)
    assert "warnings is out of bounds" in refuse(REPORT, warnings=["w"] * 101)
    assert "warnings is out of bounds" in refuse(REPORT, warnings=["w" * 1001])
    assert "warnings holds a control character" in refuse(REPORT, warnings=["a\nb"])
    assert "protocol is out of bounds" in refuse(VERSIONS, protocol=[])
    assert "protocol is out of bounds" in refuse(VERSIONS, protocol=[1] * 9)
    assert "keys is out of bounds" in refuse(BY_TYPE[TrustBundle], keys=[codec.unstructure(BUNDLE_KEY)] * 1001)
    assert "organizations is out of bounds" in refuse(BUNDLE_KEY, organizations=["o"] * 1001)
    assert "organizations is out of bounds" in refuse(BUNDLE_KEY, organizations=["o" * 65])


def test_free_facts_are_bounded_in_number_and_size():
    """What has no schema has a size."""
    assert accept(REPORT, facts={str(n): n for n in range(64)})
    assert "facts is out of bounds" in refuse(REPORT, facts={str(n): n for n in range(65)})
    assert "facts take more than 32768 bytes" in refuse(REPORT, facts={"a": ["x" * 40_000]})
    assert "context is out of bounds" in refuse(ERROR, context={str(n): n for n in range(51)})
    assert f"context take more than {MAX_CONTEXT_BYTES} bytes" in refuse(ERROR, context={"a": "x" * 20_000})
    assert "stack is out of bounds" in refuse(ERROR, stack="x" * 16_001)


@pytest.mark.parametrize("name", ["", "Apt", "apt-get", "_apt", "1apt", "a" * 33, "apt\n", "../apt"])
def test_names_of_scanners_are_simple(name):
    """They become parts of addresses, metrics and file names."""
    assert "scanner is out of bounds" in refuse(STATE, scanner=name)
    assert "manager is out of bounds" in refuse(REPORT, manager=name)


def test_a_wait_is_shorter_than_a_proxy_is_patient():
    """Up to 50 seconds."""
    assert accept(CHECK_IN, wait=50)
    for wait in (51, -1):
        assert "wait is out of bounds" in refuse(CHECK_IN, wait=wait)


def test_a_refresh_secret_is_43_characters():
    """Its text form is the one of 32 bytes."""
    for text in ("", "A" * 42, "A" * 44, "A" * 42 + "=", "A" * 42 + "+"):
        assert "current is out of bounds" in refuse(BY_TYPE[TokenRequest], current=text)


# What goes together


def test_a_failed_scan_says_why_and_nothing_about_packages():
    """Neither a hash nor packages nor a base; and a reason."""
    package, key = codec.unstructure(PACKAGE), {"name": "zsh", "arch": "amd64"}

    for changes in ({"packages": [package]}, {"base": HASH}, {"base": HASH, "removed": [key]}):
        assert "a failed scan says nothing about packages" in refuse(FAILED, **changes)
    assert "hash goes with status ok" in refuse(FAILED, hash=HASH)
    assert "error goes with every status but ok" in refuse(FAILED, error=None)
    assert accept(FAILED, status="open")


def test_a_successful_scan_has_a_hash_and_no_error():
    """Also when nothing is installed."""
    assert accept(REPORT, packages=[])
    assert "hash goes with status ok" in refuse(REPORT, hash=None)
    assert "error goes with every status but ok" in refuse(REPORT, error="but")


def test_only_a_delta_removes():
    """A full report is the whole inventory: there is nothing to remove."""
    assert "a full report removes nothing" in refuse(DELTA, base=None)


def test_a_package_is_named_once_in_a_report():
    """Neither twice present, nor twice removed, nor both."""
    bash, zsh = codec.unstructure(PACKAGE), {"name": "zsh", "arch": "amd64"}

    assert "a report names a package once" in refuse(REPORT, packages=[bash, bash | {"installed": "3"}])
    assert "a report names a package once" in refuse(DELTA, removed=[zsh, zsh])
    assert "a report names a package once" in refuse(DELTA, removed=[{"name": "bash", "arch": "amd64"}])
    assert accept(REPORT, packages=[bash, bash | {"arch": "i386"}])


def test_a_scanner_is_named_once_in_a_check_in():
    """It has one last run."""
    state = codec.unstructure(STATE)

    assert "a scanner is named once" in refuse(CHECK_IN, scanners=[state, state | {"status": "failed"}])


def test_no_text_form_shows_a_secret():
    """Tokens and refresh secrets stay out of logs and tracebacks."""
    assert "A" * 43 not in repr(BY_TYPE[TokenRequest])
    assert "aa.bb.cc" not in repr(BY_TYPE[Token])
    assert "secret" not in repr(BY_TYPE[Register])
