"""Errors for people: bounded, clean, and recognised when they come again."""

import traceback

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core import codec
from redflag_core.error_reports import (
    MAX_MESSAGE,
    MAX_STACK,
    cleaned,
    error_report,
    fingerprint,
    fixed_part,
    kinds_of,
    stack_of,
    type_of,
)
from redflag_core.errors import ScanError
from redflag_core.messages import MAX_CONTEXT_BYTES, ClientError, Errors
from redflag_core.redaction import REMOVED

ERROR = ClientError("scanner.apt", "ScanError", "apt-get ended with 100", 1, 50, 60)
BATCH = "00000000-0000-4000-8000-000000000000"


def fails(depth: int = 0):
    """Raise below some frames of this file."""
    if depth:
        fails(depth - 1)
    raise KeyError("x")


def caught(call) -> Exception:
    """What a call raises."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  (any)
        call()
    return caught.value


# --- the same error ---


@pytest.mark.parametrize(
    "one, other",
    [
        ("job 12 failed after 3.5 s", "job 7 failed after 120 s"),
        (f"no agent {BATCH}", "no agent 01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e61"),
        ("object at 0x7f12ab34cd", "object at 0x7f00000000"),
        ("10.0.0.1:80 does not answer", "192.0.2.77:8750 does not answer"),
        ("[fe80::1]:80 does not answer", "[2001:db8::aa:1]:443 does not answer"),
        ("cannot write /tmp/tmpab_12/lists", "cannot write /tmp/tmpzz-yy.x/lists"),
        ("bundle 9f86d081884c7d65 ended", "bundle 0f0f0f0f0f0f0f0f ended"),
        ("the token=abc was refused", "the token=xyz/9 was refused"),
    ],
)
def test_what_differs_each_time_does_not_count(one, other):
    """Numbers, ids, addresses, temporary names and what was removed."""
    first, second = (attrs.evolve(ERROR, message=message) for message in (one, other))

    assert fingerprint(cleaned(first)) == fingerprint(cleaned(second))


@pytest.mark.parametrize(
    "change",
    [
        {"subsystem": "scanner.dnf"},
        {"type": "KeyError"},
        {"message": "apt-get was killed with 100"},
        {"stack": "".join(traceback.format_tb(caught(fails).__traceback__))},
    ],
)
def test_what_stays_counts(change):
    """Where it was, what it is, what it says, and how the code came there."""
    assert fingerprint(ERROR) != fingerprint(attrs.evolve(ERROR, **change))


def test_words_that_look_like_numbers_stay():
    """Only hex with a digit in it is a number, and only in a word of its own."""
    assert "facade of deadbeef" == fixed_part("facade of deadbeef")
    assert "apt::Acquire" == fixed_part("apt::Acquire")


def test_lines_and_installation_do_not_count():
    """The same places in another release, installed elsewhere."""
    frame = '  File "{0}/redflag_agent/scanners/apt.py", line {1}, in scan\n    {2}\n'
    stacks = [frame.format("/opt/redflag", 12, "run()"), frame.format("C:\\apps", 99, "run(again=True)")]

    one, other = (fingerprint(attrs.evolve(ERROR, stack=stack)) for stack in stacks)

    assert one == other


def test_the_way_through_the_code_counts():
    """One frame more is another error."""
    one, other = (stack_of(caught(lambda depth=depth: fails(depth))) for depth in (0, 1))

    assert fingerprint(attrs.evolve(ERROR, stack=one)) != fingerprint(attrs.evolve(ERROR, stack=other))


def test_stacks_of_other_languages_are_compared_by_their_lines():
    """Without numbers."""
    one, other, third = (
        fingerprint(attrs.evolve(ERROR, stack=f"TypeError\n    at {name} (app.js:{line})"))
        for name, line in (("save", "1:2"), ("save", "30:7"), ("load", "1:2"))
    )

    assert one == other
    assert one != third


def test_the_fingerprint_stays():
    """It is stored: a change of the rule is a change of all rows."""
    assert "131f" == fingerprint(ERROR)[:4]


# --- kinds ---


def test_equal_errors_are_one_kind():
    """Their counts add up, the times are the first and the last, the sample is the last."""
    errors = [ERROR, attrs.evolve(ERROR, message="apt-get ended with 7", count=10**9, first_seen=40, last_seen=55)]

    (kind,) = kinds_of(errors)

    assert (10**9 + 1, 40, 60) == (kind.count, kind.first_seen, kind.last_seen)
    assert "apt-get ended with 7" == kind.sample.message


def test_kinds_come_in_the_order_of_fingerprints():
    """Two that store the same kinds lock them in the same order."""
    errors = [attrs.evolve(ERROR, type=name) for name in "abcdefgh"]

    kinds = [kind.fingerprint for kind in kinds_of(errors)]

    assert sorted(kinds) == kinds
    assert kinds == [kind.fingerprint for kind in kinds_of(reversed(errors))]


def test_times_that_contradict_are_put_right():
    """An error was not seen first after it was seen last."""
    assert 60 == cleaned(attrs.evolve(ERROR, first_seen=70)).first_seen


# --- clean and bounded ---


def test_no_field_keeps_a_secret():
    """Also the ones that are names."""
    secret = "password=Zq12345x"
    error = ClientError(secret, secret, secret, 1, 1, 1, f"a\n{secret}\nb", {"x": secret, secret: 1})

    assert "Zq12345x" not in str(cleaned(error))
    assert f"a\npassword={REMOVED}\nb" == cleaned(error).stack


def test_an_error_without_secrets_is_unchanged():
    """Nothing is lost on the way."""
    error = attrs.evolve(ERROR, stack=stack_of(caught(fails)), context={"exit": 100})

    assert error == cleaned(error)


def test_a_secret_is_removed_before_a_text_is_cut():
    """Else half of it would stay."""
    key = "-----BEGIN PRIVATE KEY-----\n" + "Zq12" * 20_000 + "\n-----END PRIVATE KEY-----\nend"

    report = error_report("a", "b", "x" * (MAX_MESSAGE - 30) + key, at=1, stack=key)

    assert "Zq12" not in report.message + report.stack
    assert report.stack.endswith("end")


@given(
    st.text(), st.text(), st.text(), st.none() | st.text(), st.dictionaries(st.text(), st.text() | st.integers())
)
def test_every_report_can_be_sent(subsystem, kind, message, stack, context):
    """Whatever was raised, it is a message of the protocol."""
    report = error_report(subsystem, kind, message, at=1, stack=stack, context=context)

    wire = codec.dump(Errors(1, BATCH, (report,)))

    assert report == codec.parse(Errors, wire, max_bytes=10**6).errors[0]


def test_a_report_is_bounded():
    """The end of a long stack and the beginning of a long message are kept."""
    report = error_report(
        "s" * 999, "t" * 999, "m" * 9999, at=1, stack="x" * 99_999 + "end", context={"a": "b" * 99}
    )

    assert (64, 128, MAX_MESSAGE, MAX_STACK) == tuple(
        map(len, (report.subsystem, report.type, report.message, report.stack))
    )
    assert report.stack.endswith("end")
    assert {} == error_report("s", "t", "m", at=1, context={"a": ["b" * 2000] * 20}).context
    assert MAX_CONTEXT_BYTES > len(str(report.context))


def test_an_expected_error_is_named_by_its_code():
    """Any other one by its class; where it happened is told without values."""
    error = caught(lambda: fails(1))

    assert ("scan_failed", "KeyError") == (type_of(ScanError("locked")), type_of(error))
    assert 4 == stack_of(error).count("test_error_reports.py")
    assert stack_of(KeyError("never raised")) is None
