"""SQLite stores: they keep the contracts over threads, processes, forks and crashes, and never lose a claim."""

import asyncio
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from redflag_core.errors import ConfigurationError, MalformedError, StoreError
from redflag_core.freshness import RETENTION, TOLERANCE, next_horizon
from redflag_core.ports import NonceStore, RateLimitStore, SyncNonceStore, SyncRateLimitStore
from redflag_core.rate_limit import RateLimitPolicy
from redflag_core.stores import sqlite
from redflag_core.stores._tables import DELETE_BATCH
from redflag_core.stores.sqlite import (
    AsyncSqliteNonceStore,
    AsyncSqliteRateLimitStore,
    SqliteNonceStore,
    SqliteRateLimitStore,
)
from redflag_core.testing import (
    START,
    SharedNonceStoreContract,
    SharedRateLimitStoreContract,
    SharedSyncNonceStoreContract,
    SharedSyncRateLimitStoreContract,
)

NOW = int(START.timestamp())
POLICY = RateLimitPolicy(count=60, period_seconds=60, burst=20)
STRICT = RateLimitPolicy(1, 3600, 1)
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "stores.db"


@pytest.fixture
def opened():
    """Makes stores that are closed at the end."""
    stores = []

    def make(kind, *arguments, **options):
        stores.append(kind(*arguments, **options))
        stores[-1].create()
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
async def opened_async():
    """The same for stores of event loops: they are made by the loop's next turn."""
    stores = []

    def make(kind, *arguments, **options):
        stores.append(kind(*arguments, **options))
        return stores[-1]

    yield make
    for store in stores:
        await store.close()


def count(path, table):
    """Rows of a table."""
    with closing(sqlite3.connect(path)) as connection:
        [(number,)] = connection.execute(f"SELECT count(*) FROM {table}")
        return number


# The contracts


class TestSqliteNonceStore(SharedSyncNonceStoreContract):
    """With threads."""

    @pytest.fixture
    def open_store(self, opened, path):
        return lambda: opened(SqliteNonceStore, path)

    @pytest.fixture
    def store(self, open_store) -> SyncNonceStore:
        return open_store()


class TestSqliteRateLimitStore(SharedSyncRateLimitStoreContract):
    """With threads."""

    @pytest.fixture
    def open_store(self, opened, path):
        return lambda: opened(SqliteRateLimitStore, path)

    @pytest.fixture
    def store(self, open_store) -> SyncRateLimitStore:
        return open_store()


class TestAsyncSqliteNonceStore(SharedNonceStoreContract):
    """With an event loop."""

    @pytest.fixture
    def open_store(self, opened_async, path):
        return lambda: opened_async(AsyncSqliteNonceStore, path)

    @pytest.fixture
    async def store(self, open_store) -> NonceStore:
        store = open_store()
        await store.create()
        return store


class TestAsyncSqliteRateLimitStore(SharedRateLimitStoreContract):
    """With an event loop."""

    @pytest.fixture
    def open_store(self, opened_async, path):
        return lambda: opened_async(AsyncSqliteRateLimitStore, path)

    @pytest.fixture
    async def store(self, open_store) -> RateLimitStore:
        store = open_store()
        await store.create()
        return store


# Processes


def claim_in_process(path, nonces):
    """What a process claims."""
    with closing(SqliteNonceStore(path)) as store:
        return [nonce for nonce in nonces if store.claim("k", nonce, NOW)]


def take_in_process(path, times):
    """How many requests of a process pass."""
    with closing(SqliteRateLimitStore(path)) as store:
        return sum(store.take("key", POLICY, START).allowed for _ in range(times))


def test_processes_that_claim_at_once_share_the_nonces(opened, path):
    """Each of 60 nonces has one winner among three processes."""
    opened(SqliteNonceStore, path)
    nonces = [str(number) for number in range(60)]

    with ProcessPoolExecutor(3, mp_context=SPAWN) as pool:
        won = [nonce for part in pool.map(claim_in_process, [path] * 3, [nonces] * 3) for nonce in part]

    assert sorted(nonces) == sorted(won)


def test_processes_that_charge_at_once_share_the_limit(opened, path):
    """Sixty requests of three processes pass as far as the burst."""
    opened(SqliteRateLimitStore, path)

    with ProcessPoolExecutor(3, mp_context=SPAWN) as pool:
        assert 20 == sum(pool.map(take_in_process, [path] * 3, [20] * 3))


def in_child(work):
    """Run *work* in a fork; whether it came to its end."""
    child = os.fork()
    if child == 0:  # pragma: no cover
        status = 1
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_store_may_be_made_before_a_fork(opened, path):
    """The child opens its own connection, sees what the parent claimed, and both go on."""
    store = opened(SqliteNonceStore, path)
    limits = opened(SqliteRateLimitStore, path)
    assert store.claim("k", "before", NOW)
    assert limits.take("key", STRICT, START).allowed

    def child():
        fresh = store.claim("k", "child", NOW) and not store.claim("k", "before", NOW)
        return fresh and not limits.take("key", STRICT, START).allowed and not store.claim("k", "child", NOW)

    assert in_child(child)
    assert not store.claim("k", "child", NOW)
    assert store.claim("k", "after", NOW)
    with closing(sqlite3.connect(path)) as connection:
        assert [("ok",)] == connection.execute("PRAGMA integrity_check").fetchall()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_during_a_claim_does_not_lock_the_child_out(opened, path):
    """Another thread holds the store at the fork: the child's has a lock of its own."""
    store = opened(SqliteNonceStore, path)
    entered, leave = threading.Event(), threading.Event()

    def hold(_connection):
        entered.set()
        assert leave.wait(60)

    with ThreadPoolExecutor(1) as thread:
        held = thread.submit(store._database.run, hold)
        assert entered.wait(60)
        claimed = in_child(lambda: store.claim("k", "child", NOW))
        leave.set()
        held.result()

    assert claimed
    assert not store.claim("k", "child", NOW)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_a_store_of_an_event_loop_may_be_made_before_a_fork(opened_async, path):
    """Its thread is not in the child, which starts one."""
    store = opened_async(AsyncSqliteNonceStore, path)
    await store.create()
    assert await store.claim("k", "before", NOW)

    def child():
        asyncio._set_running_loop(None)
        return asyncio.new_event_loop().run_until_complete(store.claim("k", "child", NOW))

    assert in_child(child)
    assert not await store.claim("k", "child", NOW)


CLAIMER = """
import sys
from redflag_core.stores.sqlite import SqliteNonceStore
store = SqliteNonceStore(sys.argv[1])
for number in range(10**9):
    assert store.claim("k", str(number), 1000)
    print(number, flush=True)
"""


def test_a_claim_that_was_answered_survives_a_kill(opened, path):
    """Whatever a process said True to before kill -9 is a replay after it."""
    store = opened(SqliteNonceStore, path)
    with subprocess.Popen([sys.executable, "-c", CLAIMER, path], stdout=subprocess.PIPE, text=True) as claimer:
        answered = [int(next(claimer.stdout)) for _ in range(50)]
        claimer.send_signal(signal.SIGKILL)
        answered += [int(line) for line in claimer.stdout if line.endswith("\n")]

    assert [] == [number for number in answered if store.claim("k", str(number), 1000)]
    assert store.claim("k", str(answered[-1] + 10), 1000)


def test_a_claim_waits_for_the_disk_and_a_limit_does_not(opened, path):
    """A power failure must not open a replay; a burst that comes twice does no harm."""

    def settings(store):
        return store._database.run(
            lambda connection: [
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("journal_mode", "synchronous", "fullfsync")
            ]
        )

    assert ["wal", 2, 1] == settings(opened(SqliteNonceStore, path))
    assert ["wal", 1, 1] == settings(opened(SqliteRateLimitStore, path))


# Purges


def test_a_purge_deletes_in_batches(opened, path):
    """More than one batch is deleted, all of it, and nothing else."""
    store = opened(SqliteNonceStore, path)
    rows = 2 * DELETE_BATCH + 7
    with closing(sqlite3.connect(path)) as connection:
        connection.executemany(
            "INSERT INTO redflag_nonces (created, key_id, nonce) VALUES (?, 'k', 'n')",
            ((created,) for created in range(1, rows + 2)),
        )
        connection.commit()

    assert rows == store.forget(rows)
    assert 1 == count(path, "redflag_nonces")


def test_exactly_one_batch_is_deleted_too(opened, path):
    """The loop ends, whatever the number."""
    store = opened(SqliteRateLimitStore, path)
    with closing(sqlite3.connect(path)) as connection:
        connection.executemany(
            "INSERT INTO redflag_rate_limits (key, arrival) VALUES (?, 0)", ((i,) for i in range(DELETE_BATCH))
        )
        connection.commit()

    assert DELETE_BATCH == store.purge(START)
    assert 0 == count(path, "redflag_rate_limits")


@pytest.mark.parametrize(
    "stored", [0, NOW - RETENTION - 2, NOW - RETENTION, NOW, NOW + RETENTION, NOW + RETENTION + 1, 2 * NOW]
)
def test_a_purge_moves_the_horizon_as_the_core_says(opened, path, stored):
    """Onwards, and back only when a wrong clock had set it."""
    store = opened(SqliteNonceStore, path)
    store.forget(stored)

    store.purge(START)

    with closing(sqlite3.connect(path)) as connection:
        assert [(next_horizon(stored, START),)] == connection.execute(
            "SELECT horizon FROM redflag_nonces_horizon"
        ).fetchall()


def test_after_a_wrong_clock_messages_pass_again_and_replays_do_not(opened, path):
    """A purge a year ahead locks nobody out for a year, and opens nothing."""
    store = opened(SqliteNonceStore, path)
    assert store.claim("k", "n", NOW)
    store.purge(START + timedelta(days=365))
    assert not store.claim("k", "new", NOW)

    store.purge(START)

    assert not store.claim("k", "n", NOW)
    assert not store.claim("k", "new", NOW + TOLERANCE)
    assert store.claim("k", "new", NOW + TOLERANCE + 1)


def test_a_refused_request_writes_nothing(opened, path):
    """Who hammers does not wear the disk."""
    store = opened(SqliteRateLimitStore, path)
    assert store.take("key", STRICT, START).allowed
    changes = store._database.run(lambda connection: connection.total_changes)

    for _ in range(10):
        assert not store.take("key", STRICT, START).allowed

    assert changes == store._database.run(lambda connection: connection.total_changes)


# Tables


@pytest.mark.parametrize("kind", [SqliteNonceStore, SqliteRateLimitStore])
@pytest.mark.parametrize(
    "table", ["", "a b", 'a"', "a;", "A", "1a", "ä", "a.b", "a" * 41, "a\n", "redflag_nonces; DROP TABLE x"]
)
def test_the_name_of_a_table_is_a_name(path, kind, table):
    """It is the only thing that goes into SQL as text."""
    with pytest.raises(ConfigurationError, match="lower-case letters"):
        kind(path, table=table)


def test_stores_with_other_tables_share_nothing(opened, path):
    """Also where the names are words of SQL, or as long as they can be."""
    names = ["select", "group", "_", "a" * 40]
    stores = [opened(SqliteNonceStore, path, table=name) for name in names]
    limits = [opened(SqliteRateLimitStore, path, table=f"{name[:34]}_limit") for name in names]

    assert [True] * 4 == [store.claim("k", "n", NOW) for store in stores]
    assert [False] * 4 == [store.claim("k", "n", NOW) for store in stores]
    assert [True] * 4 == [store.take("k", STRICT, START).allowed for store in limits]


def test_tables_may_be_made_by_own_migrations_and_twice(opened, path):
    """The statements are public, and creating what is there keeps what is in it."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(SqliteNonceStore(path).ddl)
    store = opened(SqliteNonceStore, path)
    assert store.claim("k", "n", NOW)
    store.forget(1000)

    store.create()

    assert not store.claim("k", "n", NOW)
    assert not store.claim("k", "m", 1000)


def test_a_store_without_tables_says_what_to_do(path):
    """It does not make them behind anybody's back, and it claims nothing."""
    with closing(SqliteNonceStore(path)) as store, pytest.raises(StoreError, match=r"create\(\)"):
        store.claim("k", "n", NOW)


def test_a_store_whose_horizon_is_missing_refuses_everything(opened, path):
    """Who deleted the row, deleted what is known about the past."""
    store = opened(SqliteNonceStore, path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM redflag_nonces_horizon")
        connection.commit()

    assert not store.claim("k", "n", NOW)


@pytest.mark.parametrize("where", ["", ":memory:", "file:x?mode=memory"])
def test_a_store_needs_a_file(where):
    """What is in memory is not kept, and each process would have its own."""
    with pytest.raises(ConfigurationError, match="path of a file"):
        SqliteNonceStore(where)


# Trouble


@pytest.mark.parametrize("content", [b"not a database" * 100, None])
def test_a_damaged_database_is_no_answer(path, content):
    """Neither True nor False: the caller refuses."""
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)

    with closing(SqliteNonceStore(path)) as store, pytest.raises(StoreError):
        store.claim("k", "n", NOW)


def test_a_writer_that_does_not_end_is_no_answer(opened, path, monkeypatch):
    """After the timeout the call fails; when the writer is gone, the next passes."""
    monkeypatch.setattr(sqlite, "TIMEOUT", 0.05)
    store = opened(SqliteNonceStore, path)
    limits = opened(SqliteRateLimitStore, path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError):
            store.claim("k", "n", NOW)
        with pytest.raises(StoreError):
            limits.take("key", STRICT, START)
        other.execute("ROLLBACK")

    assert store.claim("k", "n", NOW)
    assert limits.take("key", STRICT, START).allowed


def test_what_is_interrupted_leaves_no_transaction_open(opened, path):
    """The next call starts anew, and other processes are not locked out."""
    limits = opened(SqliteRateLimitStore, path)

    def interrupted(connection):
        connection.execute("BEGIN IMMEDIATE")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        limits._database.run(interrupted)

    assert opened(SqliteRateLimitStore, path).take("key", STRICT, START).allowed


def test_a_closed_store_opens_again(opened, path):
    """Closing gives the file back; what was claimed is claimed."""
    store = opened(SqliteNonceStore, path)
    assert store.claim("k", "n", NOW)
    store.close()
    store.close()

    assert not store.claim("k", "n", NOW)


async def test_the_event_loop_goes_on_while_the_disk_is_busy(opened_async, path):
    """A claim that waits for another process does not hold up anybody else."""
    store = opened_async(AsyncSqliteNonceStore, path)
    await store.create()
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(store.claim("k", "n", NOW))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not waiting.done()
        other.execute("ROLLBACK")

    assert await waiting


async def test_claims_that_wait_are_stored_together(opened_async, path, monkeypatch):
    """The disk is waited for a few times, not a hundred; each gets its own answer; batches have a bound."""
    monkeypatch.setattr(sqlite, "CLAIM_BATCH", 40)
    store = opened_async(AsyncSqliteNonceStore, path)
    await store.create()
    statements = []
    store._store._database.run(lambda connection: connection.set_trace_callback(statements.append))
    numbers = [*range(50), *range(50)]
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = [asyncio.create_task(store.claim("k", str(number), NOW)) for number in numbers]
        for _ in range(10):
            await asyncio.sleep(0)
        other.execute("ROLLBACK")
    claimed = await asyncio.gather(*waiting)

    assert list(range(50)) == [number for number, won in zip(numbers, claimed, strict=True) if won]
    assert 3 <= statements.count("COMMIT") <= 5


async def test_a_batch_that_fails_is_an_answer_to_nobody(opened_async, path, monkeypatch):
    """Each of those who waited is told, and the next claim passes."""
    monkeypatch.setattr(sqlite, "TIMEOUT", 0.05)
    store = opened_async(AsyncSqliteNonceStore, path)
    await store.create()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        claims = (store.claim("k", str(number), NOW) for number in range(20))
        answers = await asyncio.gather(*claims, return_exceptions=True)
        other.execute("ROLLBACK")

    assert [StoreError] * 20 == [type(answer) for answer in answers]
    assert await store.claim("k", "0", NOW)


def test_several_claims_are_stored_or_none(opened, path):
    """In their order; what no store keeps stops them before anything is stored."""
    store = opened(SqliteNonceStore, path)
    claims = [("k", "a", NOW), ("k", "b", NOW), ("k", "a", NOW)]

    with pytest.raises(MalformedError):
        store.claim_all([*claims, ("k", "\x00", NOW)])
    assert [True, True, False] == store.claim_all(claims)
    assert [False, True] == store.claim_all([("k", "b", NOW), ("k", "c", NOW)])
    assert [] == store.claim_all([])


def test_a_limit_is_read_after_others_have_written(opened, path):
    """Who reads first and waits then would pass on an old count, or fail."""
    store = opened(SqliteRateLimitStore, path)
    assert store.take("key", STRICT, START - timedelta(days=1)).allowed
    begun, committed, early = threading.Event(), threading.Event(), []

    def trace(statement):
        if statement.startswith("BEGIN"):
            begun.set()
        elif not committed.is_set():
            early.append(statement)

    store._database.run(lambda connection: connection.set_trace_callback(trace))
    with closing(sqlite3.connect(path, isolation_level=None)) as other, ThreadPoolExecutor(1) as thread:
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE redflag_rate_limits SET arrival = ?", (NOW + 3600,))
        taken = thread.submit(store.take, "key", STRICT, START)
        assert begun.wait(60)
        committed.set()
        other.execute("COMMIT")

        assert not taken.result().allowed
    assert [] == early


async def test_calls_that_wait_have_a_bound(opened_async, path, monkeypatch):
    """A disk that stopped does not fill the memory; who is refused may come again."""
    monkeypatch.setattr(sqlite, "MAX_WAITING", 3)
    store = opened_async(AsyncSqliteNonceStore, path)
    await store.create()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = [asyncio.create_task(store.claim("k", str(number), NOW)) for number in range(4)]
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        with pytest.raises(StoreError, match="too many"):
            done.pop().result()
        other.execute("ROLLBACK")

    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert 3 == answers.count(True)
    assert await store.claim("k", "later", NOW)


async def test_a_cancelled_caller_does_not_stop_the_store(opened_async, path):
    """What it began is done all the same, so its nonce is used up, and the next is served."""
    store = opened_async(AsyncSqliteNonceStore, path)
    await store.create()
    task = asyncio.create_task(store.claim("k", "n", NOW))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await store.claim("k", "other", NOW)
    assert not await store.claim("k", "n", NOW)


async def test_callers_that_give_up_leave_nothing_behind(opened_async, path, monkeypatch):
    """Neither room that is never given back, nor claims that pile up."""
    monkeypatch.setattr(sqlite, "MAX_WAITING", 3)
    store = opened_async(AsyncSqliteNonceStore, path)
    await store.create()
    for number in range(5):
        tasks = [asyncio.create_task(store.claim("k", f"{number}", NOW)) for _ in range(3)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # The thread has done what it was given before this.
        await asyncio.wrap_future(store._threads._by_process[os.getpid()].executor.submit(list))

        assert not await store.claim("k", f"{number}", NOW)
        assert [0] == [len(waiting) for waiting in store._claims._by_process.values()]


async def test_async_stores_purge_and_show_their_tables(opened_async, path):
    """They have every verb of the ones that block."""
    nonces, limits = opened_async(AsyncSqliteNonceStore, path), opened_async(AsyncSqliteRateLimitStore, path)
    await nonces.create()
    await limits.create()
    assert await nonces.claim("k", "n", NOW)

    assert 0 == await nonces.purge(START)
    assert 1 == await nonces.purge(START + timedelta(days=1))
    assert (SqliteNonceStore(path).ddl, SqliteRateLimitStore(path).ddl) == (nonces.ddl, limits.ddl)


async def test_an_async_store_that_was_closed_opens_again(path):
    """Its thread ends with it, and another starts; who closes it twice at once closes it once."""
    store = AsyncSqliteNonceStore(path)
    await store.create()
    await asyncio.gather(store.close(), store.close())

    assert await store.claim("k", "n", NOW)
    await store.close()
