"""
The executor's journal: what was accepted, started and ended, and what the server has not been told yet.

Rules of this file. What a statement says is on disk in the same transaction as the statement, so nothing is ever
said that a crash can take back. A command goes one way, from accepted over starting to done, or is never started;
the database refuses the rest by itself. Ids stay for ever: a command that comes again, however late, is known.
"""

import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Any, Final

import attrs

from redflag_agent.database import Database, Schema
from redflag_agent.executor.errors import JournalError
from redflag_core.approvals import ApprovalUse
from redflag_core.commands import Order
from redflag_core.errors import RollbackError
from redflag_core.statements import Outcome

DAY: Final = 86_400

DETAILS_KEPT: Final = 90 * DAY
"""Seconds for which a result is kept as it was signed. Afterwards its id, digest and outcome remain."""

_TABLES: Final = """
CREATE TABLE marks (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE nonces (nonce TEXT PRIMARY KEY, keep_until INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE commands (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    cmd_id TEXT NOT NULL UNIQUE, digest TEXT, body TEXT, type TEXT,
    state TEXT NOT NULL CHECK (state IN ('accepted', 'starting', 'done', 'never')),
    params BLOB, start_by INTEGER, change BLOB, repairs INTEGER NOT NULL DEFAULT 0,
    arrived_at INTEGER NOT NULL, started_at INTEGER, ended_at INTEGER, outcome TEXT, code TEXT, detail TEXT
) STRICT;
CREATE INDEX commands_open ON commands (number) WHERE state IN ('accepted', 'starting');
CREATE INDEX commands_arrived ON commands (arrived_at);
CREATE TRIGGER commands_go_one_way BEFORE UPDATE OF state ON commands
    WHEN old.state || '>' || new.state NOT IN ('accepted>starting', 'accepted>done', 'starting>done')
    BEGIN SELECT RAISE(ABORT, 'a command goes one way'); END;
CREATE TABLE statements (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    cmd_id TEXT NOT NULL, kind TEXT NOT NULL CHECK (kind IN ('accepted', 'refused', 'result')),
    envelope BLOB NOT NULL, delivered INTEGER NOT NULL DEFAULT 0, made_at INTEGER NOT NULL,
    UNIQUE (cmd_id, kind)
) STRICT;
CREATE INDEX statements_undelivered ON statements (id) WHERE NOT delivered;
CREATE TABLE starts (cmd_id TEXT PRIMARY KEY, started_at INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""

_APPROVALS: Final = """
ALTER TABLE commands ADD COLUMN approved INTEGER NOT NULL DEFAULT 0;
CREATE TABLE approval_uses (
    approval_id TEXT NOT NULL, leaf INTEGER NOT NULL, cmd_id TEXT NOT NULL, used_at INTEGER NOT NULL,
    PRIMARY KEY (approval_id, leaf, cmd_id)
) STRICT, WITHOUT ROWID;
"""

SCHEMA: Final = Schema(
    2,
    _TABLES,
    JournalError,
    "it is damaged; restore it from a backup of this machine, or move it away: the server then asks an operator"
    " whether this machine may go on",
    later=(_APPROVALS,),
)


class State(StrEnum):
    """Where a command stands in the journal."""

    ACCEPTED = "accepted"
    STARTING = "starting"
    DONE = "done"
    NEVER = "never"


class Kind(StrEnum):
    """What a kept statement is."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    RESULT = "result"


@attrs.frozen(kw_only=True)
class Entry:
    """
    A command in the journal.

    Attributes:
        number: Place in the order of arrival.
        cmd_id: Its id.
        digest: What it orders; None when it was cancelled before it arrived.
        body: Hash of what was accepted; None likewise.
        type: Its type; None likewise.
        state: Where it stands.
        params: Its parameters, until it has ended.
        start_by: Until when it may be started, unix seconds.
        approved: Whether it came with an operator's verified approval, which is spent.
        change: The transaction that was started, JSON, until it has ended.
        repairs: How many repairs were started after an interruption.
        started_at: Unix seconds.
        ended_at: Unix seconds; for one that never will be started, since when.
        outcome: How it ended.
        code: Code of the error that it ended with.
    """

    number: int
    cmd_id: str
    digest: str | None
    body: str | None
    type: str | None
    state: State
    params: bytes | None
    start_by: int | None
    approved: bool
    change: bytes | None
    repairs: int
    started_at: int | None
    ended_at: int | None
    outcome: Outcome | None
    code: str | None


@attrs.frozen
class Kept:
    """
    A signed statement in the journal.

    Attributes:
        id: Its number.
        cmd_id: The command that it is about.
        envelope: The signed bytes.
    """

    id: int
    cmd_id: str
    envelope: bytes


@attrs.frozen(kw_only=True)
class Arrival:
    """
    A command as it arrives.

    Attributes:
        cmd_id: Its id.
        digest: What it orders; None for one that is cancelled before it arrives.
        body: Hash of the signed payload.
        type: Its type.
        at: Executor time, unix seconds.
    """

    cmd_id: str
    digest: str | None
    body: str | None
    type: str | None
    at: int


_ENTRY: Final = ", ".join(field.name for field in attrs.fields(Entry))
_OPEN: Final = "state IN ('accepted', 'starting')"


@attrs.frozen
class Page:
    """
    The journal within one transaction: all of what is written on it counts, or nothing.

    Args:
        db: The connection, inside a transaction.
    """

    db: sqlite3.Connection

    # --- time and order

    def last(self) -> Order:
        """Order of the last command that passed the check of its order."""
        return Order(self.mark("epoch"), self.mark("gen"), self.mark("seq"))

    def high_water(self) -> int:
        """The highest time that somebody who is believed has signed, unix seconds."""
        return self.mark("high_water")

    def raise_high_water(self, moment: int, *, most: int) -> None:
        """Note that *moment* has passed, but never more than *most* (unix seconds)."""
        self.set_mark("high_water", max(self.high_water(), min(moment, most)))

    def adopt_bundle(self, *, version: int, epoch: int, iat: int) -> None:
        """
        Note which trust bundle is held. A higher epoch starts the time anew: a stolen key may have moved it.

        Raises:
            RollbackError: A later one was held before.
        """
        held = self.mark("bundle_version"), self.mark("bundle_epoch")
        if (version, epoch) == held:
            return
        if version < held[0] or epoch < held[1]:
            raise RollbackError(f"trust bundle {version} is older than the one that was held before ({held[0]})")
        self.set_mark("high_water", iat if epoch > held[1] else max(self.high_water(), iat))
        self.set_mark("bundle_version", version)
        self.set_mark("bundle_epoch", epoch)

    def knows_nonce(self, nonce: str) -> bool:
        """Whether this signature was seen before."""
        return self._value("SELECT 1 FROM nonces WHERE nonce = ?", nonce) is not None

    def pass_order(self, nonce: str, order: Order, *, keep_until: int, now: int) -> None:
        """
        Note that a command passed the check of its order: no other with this nonce or a lower order will.

        Args:
            nonce: Of its signature.
            order: Where it stands.
            keep_until: From when on its own age refuses it, unix seconds.
            now: Executor time, unix seconds: nonces that nothing needs any more are forgotten.
        """
        self.db.execute("DELETE FROM nonces WHERE keep_until < ?", (now,))
        self.db.execute("INSERT INTO nonces VALUES (?, ?)", (nonce, keep_until))
        for name in ("epoch", "gen", "seq"):
            self.set_mark(name, getattr(order, name))

    def mark(self, name: str) -> int:
        """A number that is kept; 0 at first."""
        return int(self._value("SELECT value FROM marks WHERE name = ?", name) or 0)

    def set_mark(self, name: str, value: int) -> None:
        """Keep a number."""
        self.db.execute("INSERT OR REPLACE INTO marks VALUES (?, ?)", (name, value))

    # --- commands

    def find(self, cmd_id: str) -> Entry | None:
        """The command with this id."""
        found = self._entries("cmd_id = ?", cmd_id)
        return found[0] if found else None

    def open_entries(self) -> Sequence[Entry]:
        """Commands that are accepted or started and have not ended, in order of arrival."""
        return self._entries(_OPEN)

    def latest(self, most: int) -> Sequence[Entry]:
        """The last *most* commands that arrived, the newest first."""
        return self._entries("number > ?", self.last_number() - most)[::-1]

    def last_number(self) -> int:
        """Number of the last command that arrived; 0 when there was none."""
        return int(self._value("SELECT max(number) FROM commands") or 0)

    def arrived_since(self, moment: int) -> int:
        """How many commands arrived since *moment* (unix seconds), whatever became of them."""
        return int(self._value("SELECT count(*) FROM commands WHERE arrived_at > ?", moment))

    def accept(
        self, arrival: Arrival, *, params: bytes, start_by: int, approval: ApprovalUse | None = None
    ) -> Entry:
        """A command that will be carried out once. Its approval is spent from now on, whatever becomes of it."""
        self._add(arrival, State.ACCEPTED)
        self.db.execute(
            "UPDATE commands SET params = ?, start_by = ?, approved = ? WHERE cmd_id = ?",
            (params, start_by, approval is not None, arrival.cmd_id),
        )
        if approval is not None:
            used = (approval.approval_id, approval.index, arrival.cmd_id, arrival.at)
            self.db.execute("INSERT INTO approval_uses VALUES (?, ?, ?, ?)", used)
        return self._entries("cmd_id = ?", arrival.cmd_id)[0]

    def uses(self, approval: ApprovalUse) -> int:
        """How many commands were accepted with this leaf of an approval."""
        query = "SELECT count(*) FROM approval_uses WHERE approval_id = ? AND leaf = ?"
        return int(self._value(query, approval.approval_id, approval.index))

    def bury(self, arrival: Arrival, *, code: str, detail: str) -> None:
        """A command that will never be started."""
        self._add(arrival, State.NEVER)
        self.db.execute(
            "UPDATE commands SET ended_at = ?, code = ?, detail = ? WHERE cmd_id = ?",
            (arrival.at, code, detail, arrival.cmd_id),
        )

    def recognise(self, arrival: Arrival) -> None:
        """A command that was cancelled before it arrived: now it is known what it would have ordered."""
        self.db.execute(
            "UPDATE commands SET digest = ?, body = ?, type = ? WHERE cmd_id = ? AND digest IS NULL",
            (arrival.digest, arrival.body, arrival.type, arrival.cmd_id),
        )

    def start(self, cmd_id: str, *, at: int, change: bytes | None) -> bool:
        """
        Claim the one start of a command.

        Args:
            cmd_id: The command.
            at: Executor time, unix seconds.
            change: The transaction that is started; None for work that changes nothing and counts for no limit.

        Returns:
            Whether it may be started: False when it has been, or has ended.
        """
        claimed = self.db.execute(
            "UPDATE commands SET state = 'starting', started_at = ?, change = ?"
            " WHERE cmd_id = ? AND state = 'accepted'",
            (at, change, cmd_id),
        ).rowcount
        if claimed and change is not None:
            self.db.execute("DELETE FROM starts WHERE started_at <= ?", (at - DAY,))
            self.db.execute("INSERT OR REPLACE INTO starts VALUES (?, ?)", (cmd_id, at))
        return claimed == 1

    def starts(self) -> Sequence[int]:
        """When changes were started, at least those of the last day, unix seconds."""
        return [int(row[0]) for row in self.db.execute("SELECT started_at FROM starts")]

    def note_repair(self, cmd_id: str, number: int) -> None:
        """Claim the one start of a repair: the *number*-th after the interruption of a command."""
        self.db.execute(
            "UPDATE commands SET repairs = ? WHERE cmd_id = ? AND state = 'starting' AND repairs = ?",
            (number, cmd_id, number - 1),
        )

    def end(self, cmd_id: str, envelope: bytes, *, outcome: Outcome, code: str | None, at: int) -> bool:
        """
        Keep the one result of a command.

        Args:
            cmd_id: The command.
            envelope: The signed result.
            outcome: How it ended.
            code: Code of the error, None when it completed.
            at: Executor time, unix seconds.

        Returns:
            Whether it was open until now: False leaves everything as it is.
        """
        changes = "state = 'done', outcome = ?, code = ?, ended_at = ?, params = NULL, change = NULL"
        ended = self.db.execute(
            f"UPDATE commands SET {changes} WHERE cmd_id = ? AND {_OPEN}",  # noqa: S608
            (outcome.value, code, at, cmd_id),
        ).rowcount
        if ended:
            told = "DELETE FROM statements WHERE cmd_id = ? AND kind = 'accepted' AND delivered"
            self.db.execute(told, (cmd_id,))
            self.say(cmd_id, Kind.RESULT, envelope, at=at)
        return ended == 1

    # --- statements

    def say(self, cmd_id: str, kind: Kind, envelope: bytes, *, at: int) -> None:
        """Keep a statement until it is delivered, and longer."""
        self.db.execute(
            "INSERT INTO statements (cmd_id, kind, envelope, made_at) VALUES (?, ?, ?, ?)",
            (cmd_id, kind.value, envelope, at),
        )

    def repeat(self, cmd_id: str) -> bytes | None:
        """
        The newest statement about a command, to be delivered again: whoever asks has not got it.

        Returns:
            The signed bytes, None when they are not kept any more.
        """
        row = self.db.execute(
            "SELECT id, envelope FROM statements WHERE cmd_id = ? ORDER BY id DESC LIMIT 1", (cmd_id,)
        ).fetchone()
        if row is None:
            return None
        self.db.execute("UPDATE statements SET delivered = 0 WHERE id = ?", (row[0],))
        return bytes(row[1])

    def undelivered(self, most: int, *, skip: Collection[int] = ()) -> Sequence[Kept]:
        """The oldest *most* statements that the server has not got, apart from those to *skip*."""
        rows = self.db.execute(
            "SELECT id, cmd_id, envelope FROM statements WHERE NOT delivered ORDER BY id LIMIT ?",
            (most + len(skip),),
        )
        kept = (Kept(number, cmd_id, bytes(envelope)) for number, cmd_id, envelope in rows)
        return list(islice((each for each in kept if each.id not in skip), most))

    def owed(self) -> int:
        """How many statements the server has not got, those that open commands will bring included."""
        undelivered = self._value("SELECT count(*) FROM statements WHERE NOT delivered")
        return int(undelivered) + int(self._value(f"SELECT count(*) FROM commands WHERE {_OPEN}"))  # noqa: S608

    def deliver(self, statement_id: int) -> None:
        """The server has this statement. An ``accepted`` that a result has overtaken is not needed any more."""
        self.db.execute("UPDATE statements SET delivered = 1 WHERE id = ?", (statement_id,))
        self.db.execute(
            "DELETE FROM statements WHERE id = ? AND kind = 'accepted'"
            " AND EXISTS (SELECT 1 FROM commands WHERE cmd_id = statements.cmd_id AND state = 'done')",
            (statement_id,),
        )

    # --- housekeeping

    def forget_details(self, now: int) -> None:
        """Forget what was delivered and is older than `DETAILS_KEPT`; ids, digests and outcomes stay."""
        old = now - DETAILS_KEPT
        kinds = "kind IN ('refused', 'result')"
        self.db.execute(f"DELETE FROM statements WHERE delivered AND {kinds} AND made_at < ?", (old,))  # noqa: S608
        self.db.execute("UPDATE commands SET detail = NULL WHERE detail IS NOT NULL AND ended_at < ?", (old,))

    def settled(self, commands: Mapping[str, int]) -> Mapping[str, int]:
        """
        Which of these commands have ended for good: the server has what is to be said of them.

        Args:
            commands: Their ids, each with when something was last known of it, unix seconds: that counts for one
                that is not in the journal, because it was an earlier identity's.

        Returns:
            When each of them ended, unix seconds.
        """
        owed = "SELECT 1 FROM statements WHERE cmd_id = ? AND NOT delivered"
        found = {}
        for cmd_id, known_at in commands.items():
            entry = self.find(cmd_id)
            ended_at = known_at if entry is None else entry.ended_at
            if ended_at is not None and self._value(owed, cmd_id) is None:
                found[cmd_id] = ended_at
        return found

    def clear(self) -> None:
        """
        Forget the commands: they were another identity's.

        Today's starts stay, because they were this machine's, and so do spent approvals.
        """
        for table in ("marks", "nonces", "commands", "statements"):
            self.db.execute(f"DELETE FROM {table}")  # noqa: S608

    def _add(self, arrival: Arrival, state: State) -> None:
        self.db.execute(
            "INSERT INTO commands (cmd_id, digest, body, type, state, arrived_at) VALUES (?, ?, ?, ?, ?, ?)",
            (arrival.cmd_id, arrival.digest, arrival.body, arrival.type, state.value, arrival.at),
        )

    def _entries(self, where: str, *values: Any) -> list[Entry]:
        rows = self.db.execute(f"SELECT {_ENTRY} FROM commands WHERE {where} ORDER BY number", values)  # noqa: S608
        return [_entry(dict(zip((field.name for field in attrs.fields(Entry)), row, strict=True))) for row in rows]

    def _value(self, query: str, *values: Any) -> Any:
        row = self.db.execute(query, values).fetchone()
        return None if row is None else row[0]


class Journal:
    """
    The journal. Make one with `open`; close it, or use it as a context manager.

    Args:
        database: Its file.

    Attributes:
        found: Number of the last command that was in it when it was opened: what an earlier process accepted.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        with self.page() as page:
            self.found = page.last_number()

    @classmethod
    def open(cls, path: Path) -> "Journal":
        """
        Open the file, made 0600 when it is not there.

        Raises:
            JournalError: The disk is full or read-only, or the file is damaged or of a newer release.
        """
        database = Database.open(path, SCHEMA)
        try:
            return cls(database)
        except BaseException:
            database.close()
            raise

    def start_anew(self, aside: Path) -> None:
        """
        Forget the commands of another identity; today's starts stay, because they were this machine's.

        Args:
            aside: Where a copy of everything goes first, if there were commands: it is evidence of what was done.

        Raises:
            JournalError: The system refuses to write. Then nothing is forgotten.
        """
        with self.page() as page:
            used = page.last_number() > 0
        if used:
            self._database.copy_to(aside)
        with self.page() as page:
            page.clear()

    def close(self) -> None:
        """Close the file. What was written stays."""
        self._database.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @contextmanager
    def page(self) -> Iterator[Page]:
        """
        One transaction: durable at its end, or nothing of it.

        Raises:
            JournalError: The disk is full, or the file is damaged.
        """
        with self._database.transaction() as db:
            yield Page(db)


def _entry(values: dict[str, Any]) -> Entry:
    outcome = values.pop("outcome")
    state, approved = State(values.pop("state")), bool(values.pop("approved"))
    return Entry(**values, state=state, approved=approved, outcome=None if outcome is None else Outcome(outcome))
