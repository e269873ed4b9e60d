"""Errors on their way to the server: counted, bounded, told once, without secrets."""

import pytest

from redflag_agent.database import Database
from redflag_agent.error_log import MAX_KEPT, ErrorLog
from redflag_core.errors import ScanError
from redflag_core.messages import MAX_ERRORS
from redflag_core.testing import START, FrozenClock, SeededEntropy

NOW = int(START.timestamp())


@pytest.fixture
def log(tmp_path):
    """An empty log."""
    with Database.open(tmp_path / "outbox.db") as database:
        log = ErrorLog(database, clock=FrozenClock(), entropy=SeededEntropy())
        log.clock = log._clock
        yield log


def raised(error):
    """The error as it is after being raised."""
    try:
        raise error
    except type(error) as caught:
        return caught


def test_equal_errors_count_up(log):
    """One row, with the first and the last time."""
    log.record("scanner.apt", ScanError("locked"))
    log.clock.advance(60)
    log.record("scanner.apt", ScanError("locked"))

    (error,) = log.batch().errors
    assert (2, NOW, NOW + 60, "scan_failed") == (error.count, error.first_seen, error.last_seen, error.type)


def test_different_errors_stay_apart(log):
    """By subsystem, type and message."""
    log.record("scanner.apt", ScanError("locked"))
    log.record("scanner.dnf", ScanError("locked"))
    log.record("scanner.apt", ScanError("broken"))

    assert 3 == len(log.batch().errors)


def test_nothing_to_tell_is_no_batch(log):
    """The server is not asked to store nothing."""
    assert log.batch() is None


def test_a_batch_is_the_same_until_it_is_accepted(log):
    """A lost answer repeats id and content, whatever happened meanwhile."""
    log.record("a", ScanError("first"))
    before = log.batch()
    log.record("a", ScanError("first"))
    log.record("a", ScanError("second"))

    assert before == log.batch()
    log.accept(before.batch_id)
    after = log.batch()
    assert ["first", "second"] == [error.message for error in after.errors]
    assert before.batch_id != after.batch_id


def test_a_batch_is_bounded_and_the_oldest_go_first(log):
    """The rest waits for the next."""
    for number in range(MAX_ERRORS + 5):
        log.record("a", ScanError(f"{number}"))

    first = log.batch()
    log.accept(first.batch_id)

    assert (MAX_ERRORS, "0") == (len(first.errors), first.errors[0].message)
    assert 5 == len(log.batch().errors)


def test_too_many_errors_drop_the_oldest_and_count_the_gap(log):
    """The server learns how many it will never see; the number is told once."""
    for number in range(MAX_KEPT + 7):
        log.record("a", ScanError(f"{number}"))

    first = log.batch()
    log.accept(first.batch_id)
    second = log.batch()

    assert (7, "7") == (first.dropped, first.errors[0].message)
    assert 0 == second.dropped


def test_a_batch_that_was_refused_counts_as_dropped(log):
    """Each occurrence, on top of what was dropped before; the next batch tells."""
    for number in range(MAX_KEPT + 7):
        log.record("a", ScanError(f"{number}"))
    first = log.batch()
    log.record("a", ScanError("twice"))
    log.record("a", ScanError("twice"))

    log.drop(first.batch_id)
    second = log.batch()

    assert (7, 7 + MAX_ERRORS) == (first.dropped, second.dropped)
    assert f"{7 + MAX_ERRORS}" == second.errors[0].message


def test_an_unexpected_error_is_told_by_type_and_place_only(log):
    """Its text may hold anything, a password too."""
    log.record("runner", raised(RuntimeError("password=hunter2")))

    (error,) = log.batch().errors
    assert ("RuntimeError", "unexpected RuntimeError") == (error.type, error.message)
    assert "test_error_log.py" in error.stack
    assert "hunter2" not in str(error.stack) + error.message


@pytest.mark.parametrize(
    "text",
    [
        "cannot fetch https://mirror:Zq7hunter2@deb.example/debian",
        "the proxy wants password=Zq7hunter2",
        "refused: Authorization: Bearer Zq7hunter2",
    ],
)
def test_a_secret_in_a_sentence_does_not_leave_the_machine(log, text):
    """What a tool printed may be part of an expected error."""
    log.record("scanner.apt", ScanError(text))

    (error,) = log.batch().errors
    assert "Zq7hunter2" not in error.message
    assert text[:10] == error.message[:10]


def test_long_and_strange_texts_fit(log):
    """Control characters and length are tamed before they are stored."""
    log.record("a", ScanError("x\x00\ud800" * 5000))

    assert len(log.batch().errors[0].message) <= 2000
