"""The journal: each command goes one way, each result is one, and what was said stays said."""

import sqlite3

import pytest

from redflag_agent.executor.errors import JournalError
from redflag_agent.executor.journal import DAY, DETAILS_KEPT, Arrival, Journal, Kind, State
from redflag_core.commands import Order
from redflag_core.errors import RollbackError
from redflag_core.statements import Outcome
from tests.helpers.agents import new_id


@pytest.fixture
def journal(tmp_path):
    """An empty journal."""
    with Journal.open(tmp_path / "executor.db") as opened:
        yield opened


def arrival(number=1, at=100, digest="d" * 64):
    """A command that arrives."""
    return Arrival(cmd_id=new_id(number), digest=digest, body="b" * 64, type="scan.run", at=at)


def accepted(page, number=1, at=100):
    """A command in the journal."""
    return page.accept(arrival(number, at), params=b"{}", start_by=1000)


def end(page, number=1, envelope=b"result", at=300):
    """End it."""
    return page.end(new_id(number), envelope, outcome=Outcome.COMPLETED, code=None, at=at)


def test_the_file_is_private_and_every_transaction_is_on_the_disk(journal):
    """So are the files that SQLite puts beside it."""
    with journal.page() as page:
        assert {0o600} == {path.stat().st_mode & 0o777 for path in journal._database.path.parent.iterdir()}
        assert (2,) == page.db.execute("PRAGMA synchronous").fetchone()
        assert ("wal",) == page.db.execute("PRAGMA journal_mode").fetchone()


def test_an_empty_journal_knows_nothing(journal):
    """Order and time begin at nothing."""
    with journal.page() as page:
        assert (Order(), 0, [], [], 0) == (
            page.last(),
            page.high_water(),
            page.open_entries(),
            page.undelivered(9),
            page.owed(),
        )
    assert 0 == journal.found


def test_all_of_a_page_counts_or_nothing(journal):
    """An error in the middle takes everything back."""

    def half():
        with journal.page() as page:
            accepted(page)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()

    with journal.page() as page:
        assert [] == page.open_entries()


def test_a_command_is_started_once_and_ends_once(journal):
    """Each claim is true for one caller only, whoever asks again and in whatever state."""
    with journal.page() as page:
        accepted(page)
        assert [True, False] == [page.start(new_id(1), at=200, change=b"{}") for _ in range(2)]
        assert [True, False] == [end(page) for _ in range(2)]
        assert not page.start(new_id(1), at=400, change=b"{}")
        entry = page.find(new_id(1))

    assert (State.DONE, 200, 300, Outcome.COMPLETED, None, None) == (
        entry.state,
        entry.started_at,
        entry.ended_at,
        entry.outcome,
        entry.params,
        entry.change,
    )


def test_what_is_not_there_is_neither_started_nor_ended(journal):
    """And leaves no result behind."""
    with journal.page() as page:
        assert not page.start(new_id(1), at=1, change=None)
        assert not end(page)
        page.bury(arrival(2), code="x", detail="y")
        assert not page.start(new_id(2), at=1, change=None)
        assert not end(page, 2)
        assert [] == page.undelivered(9)


@pytest.mark.parametrize("state", ["accepted", "starting", "done"])
@pytest.mark.parametrize("before", ["done", "never", "starting"])
def test_the_database_itself_lets_no_command_go_back(journal, before, state):
    """Whatever a mistake in the program tries."""
    with journal.page() as page:
        accepted(page)
        page.bury(arrival(2), code="x", detail="y")
        page.start(new_id(1), at=1, change=None)
        if before == "done":
            end(page)
    if (before, state) == ("starting", "done"):
        state = "never"
    number = 2 if before == "never" else 1
    with pytest.raises(JournalError, match="a command goes one way"), journal.page() as page:
        page.db.execute("UPDATE commands SET state = ? WHERE cmd_id = ?", (state, new_id(number)))


def test_an_id_is_used_once(journal):
    """A second order with it cannot be written."""
    with journal.page() as page:
        accepted(page)
    with pytest.raises(JournalError), journal.page() as page:
        accepted(page)
    with pytest.raises(JournalError), journal.page() as page:
        page.bury(arrival(), code="x", detail="y")


def test_a_command_has_one_result(journal):
    """The database refuses a second one."""
    with journal.page() as page:
        accepted(page)
        end(page)
    with pytest.raises(JournalError), journal.page() as page:
        page.say(new_id(1), Kind.RESULT, b"another", at=1)


def test_commands_are_open_in_the_order_of_their_arrival(journal):
    """Until they end."""
    with journal.page() as page:
        for number in (3, 1, 2):
            accepted(page, number)
        page.start(new_id(1), at=1, change=None)
        end(page, 3)

        assert [new_id(1), new_id(2)] == [entry.cmd_id for entry in page.open_entries()]


def test_starts_of_changes_are_counted_for_a_day(journal):
    """Work that changes nothing is not among them."""
    with journal.page() as page:
        for number in range(1, 5):
            accepted(page, number)
        page.start(new_id(1), at=1000, change=b"{}")
        page.start(new_id(2), at=2000, change=None)
        page.start(new_id(3), at=3000, change=b"{}")
        assert [1000, 3000] == sorted(page.starts())
        page.start(new_id(4), at=1000 + DAY, change=b"{}")

        assert [3000, 1000 + DAY] == sorted(page.starts())


def test_what_was_found_is_what_was_there_before(tmp_path):
    """A process tells what it accepted itself from what an earlier one left."""
    with Journal.open(tmp_path / "executor.db") as journal, journal.page() as page:
        accepted(page)
    with Journal.open(tmp_path / "executor.db") as journal:
        with journal.page() as page:
            later = accepted(page, 2)
            found = page.find(new_id(1))

        assert found.number == journal.found < later.number


# --- statements


def test_statements_wait_in_their_order_until_they_are_delivered(journal):
    """An acceptance that a result has overtaken is not kept, once it arrived."""
    with journal.page() as page:
        accepted(page)
        page.say(new_id(1), Kind.ACCEPTED, b"accepted", at=100)
        end(page)
        assert [b"accepted", b"result"] == [each.envelope for each in page.undelivered(9)]
        first, second = page.undelivered(9)
        assert [first] == page.undelivered(1)
        assert [second] == page.undelivered(1, skip=[first.id])
        page.deliver(first.id)
        page.deliver(second.id)
        page.deliver(second.id)

        assert [] == page.undelivered(9)
        assert b"result" == page.repeat(new_id(1))
        assert [second] == page.undelivered(9)
        assert 1 == page.db.execute("SELECT count(*) FROM statements").fetchone()[0]


def test_the_acceptance_is_kept_as_long_as_the_command_is_open(journal):
    """Whoever asks again hears it again."""
    with journal.page() as page:
        accepted(page)
        page.say(new_id(1), Kind.ACCEPTED, b"accepted", at=100)
        page.deliver(page.undelivered(1)[0].id)
        assert b"accepted" == page.repeat(new_id(1))
        page.deliver(page.undelivered(1)[0].id)
        end(page)

        assert [b"result"] == [each.envelope for each in page.undelivered(9)]


def test_what_is_owed_is_what_waits_and_what_will_come(journal):
    """Open commands bring a result each."""
    with journal.page() as page:
        accepted(page)
        page.say(new_id(1), Kind.ACCEPTED, b"accepted", at=100)
        accepted(page, 2)
        assert 3 == page.owed()
        end(page)

        assert 3 == page.owed()


# --- time and order


def test_order_and_nonce_are_remembered_together(journal):
    """Old nonces go when their message is too old by itself."""
    with journal.page() as page:
        page.pass_order("n1", Order(1, 2, 3), keep_until=500, now=100)
        assert (True, False, Order(1, 2, 3)) == (page.knows_nonce("n1"), page.knows_nonce("n2"), page.last())
        page.pass_order("n2", Order(1, 2, 4), keep_until=900, now=500)
        assert page.knows_nonce("n1")
        page.pass_order("n3", Order(1, 2, 5), keep_until=900, now=501)

        assert (False, True, Order(1, 2, 5)) == (page.knows_nonce("n1"), page.knows_nonce("n2"), page.last())


def test_a_nonce_cannot_be_used_twice(journal):
    """The database refuses it, whatever was asked before."""
    with journal.page() as page:
        page.pass_order("n1", Order(1, 2, 3), keep_until=500, now=100)
    with pytest.raises(JournalError), journal.page() as page:
        page.pass_order("n1", Order(1, 2, 4), keep_until=500, now=100)


def test_the_high_water_mark_rises_to_a_bound(journal):
    """And never falls by itself."""
    with journal.page() as page:
        for moment, expected in ((100, 100), (50, 100), (300, 200), (150, 200)):
            page.raise_high_water(moment, most=200)
            assert expected == page.high_water()


def test_the_newest_bundle_is_remembered(journal):
    """Its issue moves the time on; a higher epoch sets it; an older bundle is refused."""
    with journal.page() as page:
        page.adopt_bundle(version=3, epoch=1, iat=100)
        page.raise_high_water(900, most=1000)
        page.adopt_bundle(version=3, epoch=1, iat=100)
        page.adopt_bundle(version=4, epoch=1, iat=200)
        assert 900 == page.high_water()
        page.adopt_bundle(version=5, epoch=2, iat=300)
        assert 300 == page.high_water()
        page.adopt_bundle(version=6, epoch=2, iat=400)
        assert 400 == page.high_water()
        for version, epoch in ((5, 2), (7, 1), (5, 1)):
            with pytest.raises(RollbackError):
                page.adopt_bundle(version=version, epoch=epoch, iat=999)


# --- housekeeping


def test_details_go_after_ninety_days_and_ids_stay(journal):
    """Only of what the server has."""
    with journal.page() as page:
        for number in (1, 2):
            accepted(page, number)
            end(page, number)
        page.bury(arrival(3), code="x", detail="y")
        page.say(new_id(3), Kind.REFUSED, b"refused", at=100)
        for each in page.undelivered(9):
            if each.cmd_id != new_id(2):
                page.deliver(each.id)
        page.forget_details(300 + DETAILS_KEPT)
        assert b"result" == page.repeat(new_id(1))
        page.deliver(page.undelivered(9)[0].id)
        page.forget_details(301 + DETAILS_KEPT)

        assert [None, b"result", None] == [page.repeat(new_id(number)) for number in (1, 2, 3)]
        assert [Outcome.COMPLETED, Outcome.COMPLETED, None] == [page.find(new_id(n)).outcome for n in (1, 2, 3)]
        assert "x" == page.find(new_id(3)).code


def test_what_is_settled_is_known_with_its_end(journal):
    """What is not in the journal was an earlier identity's: when something was last known of it counts."""
    with journal.page() as page:
        for number in (1, 2, 3):
            accepted(page, number)
        end(page, 1)
        end(page, 2)
        page.deliver(page.undelivered(9)[0].id)

        assert {new_id(1): 300, new_id(9): 90} == page.settled({new_id(n): 10 * n for n in (1, 2, 3, 9)})


def test_another_identity_begins_anew_with_the_starts_of_this_machine(journal):
    """Registering again is no way around the limits of the owner."""
    with journal.page() as page:
        page.pass_order("n1", Order(1, 2, 3), keep_until=500, now=100)
        page.raise_high_water(900, most=1000)
        accepted(page)
        page.start(new_id(1), at=200, change=b"{}")
        end(page)
        page.clear()

        assert (Order(), 0, None, [], [200]) == (
            page.last(),
            page.high_water(),
            page.find(new_id(1)),
            page.undelivered(9),
            page.starts(),
        )


def test_a_damaged_file_is_told_and_not_replaced(tmp_path):
    """What was done must not be forgotten by accident."""
    path = tmp_path / "executor.db"
    path.write_bytes(b"no database" * 1000)

    with pytest.raises(JournalError, match="asks an operator"):
        Journal.open(path)
    assert path.read_bytes().startswith(b"no database")


def test_a_file_of_a_newer_release_is_not_touched(tmp_path):
    """The message says to update."""
    path = tmp_path / "executor.db"
    Journal.open(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()

    with pytest.raises(JournalError, match="newer release"):
        Journal.open(path)
