"""Statements of the executor: three types, never taken for each other, bounded, of one agent and server."""

import hashlib
from itertools import permutations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core import codec
from redflag_core.commands import COMMAND_TYPE
from redflag_core.encoding import dump_json
from redflag_core.envelope import MAX_ENVELOPE_BYTES, parse_envelope, sign_envelope
from redflag_core.errors import (
    MalformedError,
    SignatureError,
    TooLargeError,
    UnknownKeyError,
    VerificationError,
    WrongRecipientError,
)
from redflag_core.keys import SigningKey
from redflag_core.messages import MAX_STATEMENT_TEXT
from redflag_core.patching import Change, Transaction
from redflag_core.patching.plan import MAX_TARGETS
from redflag_core.scanning import PackageKey
from redflag_core.statements import (
    ACCEPTED_TYPE,
    MAX_OUTPUT,
    MAX_STATEMENT_BYTES,
    REFUSED_TYPE,
    RESULT_TYPE,
    CommandAccepted,
    CommandRefused,
    CommandResult,
    Outcome,
    PackageOutcome,
    PackageResult,
    is_installed,
    open_statement,
    sign_statement,
    statement_digest,
)

EXECUTOR, STRANGER = (SigningKey.from_seed(bytes([n]) * 32) for n in (1, 2))
SERVER = "0190b5a4-7a3c-7def-8abc-0123456789ab"
AGENT = "0190b5a4-7a3c-7def-8abc-0123456789ac"
OTHER = "0190b5a4-7a3c-7def-8abc-0123456789ad"
WHO = {"server": SERVER, "agent_id": AGENT}
WHAT = {"cmd_id": OTHER, "digest": "a" * 64, "body": "b" * 64}
ACCEPTED = CommandAccepted(**WHO, **WHAT, epoch=1, gen=2, seq=3, iat=4)
REFUSED = CommandRefused(**WHO, **WHAT, code="local_limit", detail="not now", retry_after=900, iat=4)
RESULT = CommandResult(
    **WHO,
    **WHAT,
    outcome=Outcome.COMPLETED,
    started_at=5,
    finished_at=6,
    exit_status=0,
    output="Setting up nginx\n",
    output_bytes=17,
    transaction=Transaction(
        manager="apt",
        requested=(PackageKey("nginx", "amd64"),),
        changes=(Change(name="nginx", arch="amd64", before="1", after="2"),),
    ),
    packages=(PackageResult(name="nginx", arch="amd64", outcome=PackageOutcome.INSTALLED, installed="2"),),
    reboot_required=True,
    reboot_by=("linux-image",),
)
STATEMENTS = {ACCEPTED_TYPE: ACCEPTED, REFUSED_TYPE: REFUSED, RESULT_TYPE: RESULT}


def opened(wire, key=EXECUTOR, server=SERVER, agent_id=AGENT):
    """What the server reads."""
    return open_statement(wire, key.verify_key, server=server, agent_id=agent_id)


@pytest.mark.parametrize("kind", STATEMENTS)
def test_a_statement_comes_back_as_it_was(kind):
    """Signed by the executor, opened by the server, under its own type."""
    wire = sign_statement(STATEMENTS[kind], EXECUTOR)

    assert STATEMENTS[kind] == opened(wire)
    assert kind == parse_envelope(wire).payload_type


@pytest.mark.parametrize("kind", STATEMENTS)
def test_the_same_statement_is_the_same_bytes(kind):
    """So it is recorded once, however often it is sent."""
    assert sign_statement(STATEMENTS[kind], EXECUTOR) == sign_statement(STATEMENTS[kind], EXECUTOR)


def test_a_statement_is_known_by_what_was_signed():
    """White space around it makes no other statement; another statement has another digest."""
    wire = sign_statement(RESULT, EXECUTOR)

    assert hashlib.sha256(codec.dump(RESULT)).hexdigest() == statement_digest(wire)
    assert statement_digest(wire) == statement_digest(wire.replace(b"{", b"{ ", 1))
    assert statement_digest(wire) != statement_digest(sign_statement(ACCEPTED, EXECUTOR))


@pytest.mark.parametrize("kind, claimed", list(permutations(STATEMENTS, 2)))
def test_no_type_is_taken_for_another(kind, claimed):
    """The signature covers the type: another name on the envelope breaks it."""
    wire = sign_statement(STATEMENTS[kind], EXECUTOR).replace(kind.encode(), claimed.encode())

    with pytest.raises(SignatureError):
        opened(wire)
    with pytest.raises(MalformedError):
        opened(sign_envelope(claimed, codec.dump(STATEMENTS[kind]), EXECUTOR))


@pytest.mark.parametrize("kind", [COMMAND_TYPE, "text/plain", ""])
def test_an_executor_states_nothing_else(kind):
    """Though it signed it."""
    with pytest.raises(MalformedError, match="accepted, refused or ended"):
        opened(sign_envelope(kind, codec.dump(ACCEPTED), EXECUTOR))


def test_a_statement_of_another_executor_is_not_believed():
    """Neither under its own name nor under a borrowed one."""
    wire = sign_statement(RESULT, STRANGER)

    with pytest.raises(UnknownKeyError):
        opened(wire)
    with pytest.raises(SignatureError):
        opened(wire.replace(STRANGER.key_id.encode(), EXECUTOR.key_id.encode()))


@pytest.mark.parametrize("who", [{"server": OTHER}, {"agent_id": OTHER}], ids=str)
def test_a_statement_of_another_agent_or_server_is_refused(who):
    """A machine that changed hands cannot bring along what it did before."""
    with pytest.raises(WrongRecipientError):
        opened(sign_statement(RESULT, EXECUTOR), **who)


@given(st.binary(max_size=300))
def test_any_bytes_raise_one_family_only(wire):
    """Untrusted bytes raise `VerificationError` and nothing else."""
    with pytest.raises(VerificationError):
        opened(wire)


@given(st.sampled_from(sorted(STATEMENTS)), st.binary(max_size=300))
def test_any_signed_bytes_raise_one_family_only(kind, payload):
    """The same for what a taken-over executor signs."""
    with pytest.raises(VerificationError):
        opened(sign_envelope(kind, payload, EXECUTOR))


def test_a_statement_has_a_largest_size():
    """It fits into the body that brings it, in base64."""
    assert MAX_STATEMENT_TEXT >= 4 * -(-MAX_STATEMENT_BYTES // 3)
    with pytest.raises(TooLargeError):
        opened(sign_statement(RESULT, EXECUTOR) + b" " * MAX_STATEMENT_BYTES)


@pytest.mark.parametrize(
    "statement, changes",
    [
        (ACCEPTED, {"v": 2}),
        (ACCEPTED, {"digest": "A" * 64}),
        (ACCEPTED, {"seq": -1}),
        (ACCEPTED, {"more": 1}),
        (REFUSED, {"cmd_id": None}),
        (REFUSED, {"digest": None}),
        (REFUSED, {"cmd_id": None, "digest": None, "never": True}),
        (REFUSED, {"body": ""}),
        (REFUSED, {"code": ""}),
        (REFUSED, {"code": "c" * 65}),
        (REFUSED, {"detail": "two\nlines"}),
        (REFUSED, {"retry_after": -1}),
        (REFUSED, {"never": 1}),
        (RESULT, {"outcome": "fine"}),
        (RESULT, {"outcome": "failed"}),
        (RESULT, {"code": "boom", "detail": "why"}),
        (RESULT, {"outcome": "failed", "code": "boom"}),
        (RESULT, {"outcome": "failed", "detail": "why"}),
        (RESULT, {"exit_status": 1025}),
        (RESULT, {"output": "x" * (MAX_OUTPUT + 1)}),
        (RESULT, {"output_bytes": -1}),
        (RESULT, {"reboot_by": ["x"] * 101}),
        (RESULT, {"packages": [{"name": "a", "arch": "all", "outcome": "installed"}] * 2}),
        (RESULT, {"packages": [{"name": "a", "arch": "all", "outcome": "gone"}]}),
    ],
    ids=str,
)
def test_a_field_has_one_form(statement, changes):
    """Bounds, one line where there is one, and what goes together goes together."""
    kind = next(name for name, each in STATEMENTS.items() if each is statement)
    plain = {**codec.unstructure(statement), **changes}

    with pytest.raises(MalformedError):
        opened(sign_envelope(kind, dump_json(plain), EXECUTOR))


def test_a_result_names_each_package_once_and_not_too_many():
    """As many as a plan may have."""
    (one,) = RESULT.packages
    many = tuple(attrs.evolve(one, name=f"p{n}") for n in range(MAX_TARGETS + 1))

    assert MAX_TARGETS == len(attrs.evolve(RESULT, packages=many[:-1]).packages)
    for packages, sentence in ((many, "packages"), ((one, one), ": a package is named once")):
        with pytest.raises(ValueError, match=sentence):
            attrs.evolve(RESULT, packages=packages)


def test_a_statement_may_be_larger_than_an_order():
    """A long output and every package: it is read, and known by its digest."""
    (one,) = RESULT.packages
    packages = tuple(attrs.evolve(one, name=f"p{n:03}", reason="r" * 500) for n in range(MAX_TARGETS))
    large = attrs.evolve(RESULT, packages=packages)
    wire = sign_statement(large, EXECUTOR)

    assert MAX_ENVELOPE_BYTES < len(wire)
    assert large == opened(wire)
    assert hashlib.sha256(codec.dump(large)).hexdigest() == statement_digest(wire)


def test_a_refusal_of_unread_bytes_names_no_command():
    """It has the hash of the bytes, and cannot promise anything for ever."""
    unread = attrs.evolve(REFUSED, cmd_id=None, digest=None)

    assert unread == opened(sign_statement(unread, EXECUTOR))
    with pytest.raises(ValueError, match="never needs a cmd_id"):
        attrs.evolve(unread, never=True)


def test_the_output_may_hold_anything_that_json_can():
    """Lines, tabs, control characters and every alphabet."""
    result = attrs.evolve(RESULT, output="a\tb\r\n\x1b[1m\u2028\U0001f600" * 100)

    assert result == opened(sign_statement(result, EXECUTOR))


@pytest.mark.parametrize(
    "outcomes, damaged, expected",
    [
        (["installed", "installed"], [], True),
        ([], [], True),
        (["installed", "unchanged"], [], False),
        (["installed", "failed"], [], False),
        (["held"], [], False),
        (["installed"], ["other"], False),
    ],
)
def test_an_installation_did_all_or_not(outcomes, damaged, expected):
    """Every package is there, and the package manager has finished with all of them."""
    packages = [
        PackageResult(name=f"p{n}", arch="all", outcome=PackageOutcome(outcome))
        for n, outcome in enumerate(outcomes)
    ]

    assert expected is is_installed(packages, damaged=damaged)
