"""PostgreSQL stores, through both drivers: they keep the contracts over a real server, and a crash of it."""

import asyncio
import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from functools import partial

import pytest

from redflag_core.errors import ConfigurationError, StoreError
from redflag_core.freshness import RETENTION, TOLERANCE, next_horizon
from redflag_core.ports import NonceStore, RateLimitStore, SyncNonceStore, SyncRateLimitStore
from redflag_core.rate_limit import CLOCK_STEP, RateLimitPolicy
from redflag_core.stores._tables import DELETE_BATCH
from redflag_core.testing import (
    START,
    SharedNonceStoreContract,
    SharedRateLimitStoreContract,
    SharedSyncNonceStoreContract,
    SharedSyncRateLimitStoreContract,
)
from tests.beds.postgres import needs_postgres, running_server

with suppress(ImportError):
    import asyncpg
    import psycopg

    from redflag_core.stores.asyncpg import AsyncpgNonceStore, AsyncpgRateLimitStore
    from redflag_core.stores.psycopg import (
        AsyncPsycopgNonceStore,
        AsyncPsycopgRateLimitStore,
        PsycopgNonceStore,
        PsycopgRateLimitStore,
    )

pytestmark = needs_postgres

NOW = int(START.timestamp())
POLICY = RateLimitPolicy(count=60, period_seconds=60, burst=20)
STRICT = RateLimitPolicy(1, 3600, 1)
ISOLATIONS = ["read committed", "repeatable read", "serializable"]


def connecting(address, **options):
    """What gives a new connection for each ``with`` block."""
    return partial(psycopg.connect, address, **options)


def connecting_async(address, **options):
    """The same for event loops."""

    @asynccontextmanager
    async def connect():
        async with await psycopg.AsyncConnection.connect(address, **options) as connection:
            yield connection

    return connect


class Pool:
    """Lends connections and keeps them, as the pools of psycopg do."""

    def __init__(self, address):
        self._address, self._idle = address, []

    @contextmanager
    def connection(self):
        connection = self._idle.pop() if self._idle else psycopg.connect(self._address)
        yield connection
        self._idle.append(connection)

    def close(self):
        for connection in self._idle:
            connection.close()


class AsyncPool(Pool):
    """The same for event loops."""

    @asynccontextmanager
    async def connection(self):
        connection = self._idle.pop() if self._idle else await psycopg.AsyncConnection.connect(self._address)
        yield connection
        self._idle.append(connection)

    async def close(self):
        for connection in self._idle:
            await connection.close()


def rows(address, query):
    """What a query gives."""
    with psycopg.connect(address) as connection:
        return connection.execute(query).fetchall()


def run(address, *statements):
    """Run statements."""
    with psycopg.connect(address, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.fixture
async def pools(postgres):
    """Makes pools of asyncpg that are closed at the end."""
    made = []

    async def make(size=10, **options):
        made.append(await asyncpg.create_pool(postgres, min_size=0, max_size=size, **options))
        return made[-1]

    yield make
    for pool in made:
        await pool.close()


@pytest.fixture
def pool(postgres):
    """Connections of psycopg."""
    pool = Pool(postgres)
    yield pool
    pool.close()


@pytest.fixture
async def async_pool(postgres):
    """Connections of psycopg for the loop of the test."""
    pool = AsyncPool(postgres)
    yield pool
    await pool.close()


# The contracts


class TestPsycopgNonceStore(SharedSyncNonceStoreContract):
    """With threads."""

    @pytest.fixture
    def open_store(self, pool):
        return lambda: PsycopgNonceStore(pool.connection)

    @pytest.fixture
    def store(self, open_store) -> SyncNonceStore:
        store = open_store()
        store.create()
        return store


class TestPsycopgRateLimitStore(SharedSyncRateLimitStoreContract):
    """With threads."""

    @pytest.fixture
    def open_store(self, pool):
        return lambda: PsycopgRateLimitStore(pool.connection)

    @pytest.fixture
    def store(self, open_store) -> SyncRateLimitStore:
        store = open_store()
        store.create()
        return store


class TestAsyncPsycopgNonceStore(SharedNonceStoreContract):
    """With an event loop."""

    @pytest.fixture
    def open_store(self, async_pool):
        return lambda: AsyncPsycopgNonceStore(async_pool.connection)

    @pytest.fixture
    async def store(self, open_store) -> NonceStore:
        store = open_store()
        await store.create()
        return store


class TestAsyncPsycopgRateLimitStore(SharedRateLimitStoreContract):
    """With an event loop."""

    @pytest.fixture
    def open_store(self, async_pool):
        return lambda: AsyncPsycopgRateLimitStore(async_pool.connection)

    @pytest.fixture
    async def store(self, open_store) -> RateLimitStore:
        store = open_store()
        await store.create()
        return store


class TestAsyncpgNonceStore(SharedNonceStoreContract):
    """With pools."""

    @pytest.fixture
    async def open_store(self, pools):
        waiting = [await pools() for _ in range(6)]
        return lambda: AsyncpgNonceStore(waiting.pop())

    @pytest.fixture
    async def store(self, open_store) -> NonceStore:
        store = open_store()
        await store.create()
        return store


class TestAsyncpgRateLimitStore(SharedRateLimitStoreContract):
    """With pools."""

    @pytest.fixture
    async def open_store(self, pools):
        waiting = [await pools() for _ in range(6)]
        return lambda: AsyncpgRateLimitStore(waiting.pop())

    @pytest.fixture
    async def store(self, open_store) -> RateLimitStore:
        store = open_store()
        await store.create()
        return store


# Both drivers


class Driver:
    """The stores of one driver, to be called from a test of an event loop."""

    def __init__(self, nonces, limits, connections):
        self._nonces, self._limits, self._connections = nonces, limits, connections

    async def nonces(self, **options):
        store = self._nonces(await self._connections(), **options)
        await store.create()
        return store

    async def limits(self, **options):
        store = self._limits(await self._connections(), **options)
        await store.create()
        return store

    async def without_tables(self):
        return self._nonces(await self._connections()), self._limits(await self._connections())


@pytest.fixture(params=["asyncpg", "psycopg"])
def driver(request, postgres, pools):
    """Each of the drivers for event loops."""
    if request.param == "asyncpg":
        return Driver(AsyncpgNonceStore, AsyncpgRateLimitStore, pools)

    async def connections():
        return connecting_async(postgres)

    return Driver(AsyncPsycopgNonceStore, AsyncPsycopgRateLimitStore, connections)


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_one_wins_at_every_isolation_level(postgres, driver, isolation):
    """A database whose transactions are stricter by default makes nobody fail, and nobody win twice."""
    nonces, limits = await driver.nonces(), await driver.limits()
    name = rows(postgres, "SELECT current_database()")[0][0]
    run(postgres, f"ALTER DATABASE {name} SET default_transaction_isolation = '{isolation}'")
    fresh, fresh_limits = await driver.nonces(), await driver.limits()

    for store, limit in ((nonces, limits), (fresh, fresh_limits)):
        number = str(id(store))
        claims = await asyncio.gather(*(store.claim("k", number, NOW) for _ in range(30)))
        taken = await asyncio.gather(*(limit.take(number, POLICY, START) for _ in range(50)))
        await asyncio.gather(*(store.forget(1000 + step) for step in range(5)))

        assert [False] * 29 + [True] == sorted(claims)
        assert 20 == sum(decision.allowed for decision in taken)


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_one_wins_at_every_isolation_level_without_an_event_loop(postgres, isolation):
    """The same for the store that blocks."""
    from concurrent.futures import ThreadPoolExecutor

    options = {"options": f"-c default_transaction_isolation={isolation.replace(' ', chr(92) + ' ')}"}
    nonces = PsycopgNonceStore(connecting(postgres, **options))
    limits = PsycopgRateLimitStore(connecting(postgres, autocommit=True, **options))
    nonces.create()
    limits.create()

    with ThreadPoolExecutor(25) as threads:
        claims = list(threads.map(lambda _: nonces.claim("k", "n", NOW), range(25)))
        taken = list(threads.map(lambda _: limits.take("k", POLICY, START), range(50)))

    assert [False] * 24 + [True] == sorted(claims)
    assert 20 == sum(decision.allowed for decision in taken)


async def test_a_claim_that_began_before_a_purge_does_not_pass_after_it(postgres, driver):
    """A replay that is held up until its nonce would be deleted: the purge waits for it, so it finds the nonce."""
    store = await driver.nonces()
    assert await store.claim("k", "n", 1000)
    # Stops a claim between reading the horizon and its insert, for as long as somebody holds the lock.
    run(
        postgres,
        "CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN new; END'",
        "CREATE TRIGGER stop BEFORE INSERT ON redflag_nonces FOR EACH ROW EXECUTE FUNCTION stop()",
    )
    async with await psycopg.AsyncConnection.connect(postgres) as other:
        await other.execute("SELECT pg_advisory_xact_lock(1)")
        replay = asyncio.create_task(store.claim("k", "n", 1000))
        await waiting(postgres, 1)
        purge = asyncio.create_task(store.forget(1000))
        await waiting(postgres, 2, unless=purge)
        await other.commit()

    assert (False, 1) == (await replay, await purge)


async def test_a_purge_leaves_who_was_charged_meanwhile(postgres, driver):
    """A key that was full when the purge looked, and no more when it deletes, is kept."""
    store = await driver.limits()
    assert (await store.take("key", POLICY, START)).allowed
    full = START + timedelta(hours=1)
    async with await psycopg.AsyncConnection.connect(postgres) as other:
        await other.execute(f"UPDATE redflag_rate_limits SET arrival = {full.timestamp() + 20}".encode())
        purge = asyncio.create_task(store.purge(full))
        await waiting(postgres, 1)
        await other.commit()

    assert 0 == await purge
    assert not (await store.take("key", POLICY, full)).allowed


async def waiting(address, number, *, unless=None):
    """Wait until *number* statements wait for a lock, or a task is done that should be one of them."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    while not (unless and unless.done()) and (await asyncio.to_thread(rows, address, query))[0][0] < number:
        pass


async def test_a_purge_deletes_in_batches(postgres, driver):
    """More than one batch is deleted, all of it, and nothing else."""
    nonces, limits = await driver.nonces(), await driver.limits()
    number = 2 * DELETE_BATCH + 7
    run(
        postgres,
        f"INSERT INTO redflag_nonces SELECT created, 'k', 'n' FROM generate_series(1, {number + 1}) AS created",
        f"INSERT INTO redflag_rate_limits SELECT k::text, 0, true FROM generate_series(1, {DELETE_BATCH}) AS k",
        f"INSERT INTO redflag_rate_limits VALUES ('late', {NOW}, true)",
    )

    assert number == await nonces.forget(number)
    assert DELETE_BATCH == await limits.purge(START)
    assert [(number + 1,)] == rows(postgres, "SELECT created FROM redflag_nonces")
    assert [("late",)] == rows(postgres, "SELECT key FROM redflag_rate_limits")


async def test_two_purges_at_once_delete_everything_once(postgres, driver):
    """Two processes with the same schedule do not disturb each other."""
    stores = [await driver.nonces(), await driver.nonces()]
    run(postgres, "INSERT INTO redflag_nonces SELECT created, 'k', 'n' FROM generate_series(1, 12000) AS created")

    deleted = await asyncio.gather(*(store.forget(12000) for store in stores))

    assert 12000 == sum(deleted)


@pytest.mark.parametrize(
    "stored", [0, NOW - RETENTION - 2, NOW - RETENTION, NOW, NOW + RETENTION, NOW + RETENTION + 1, 2 * NOW]
)
async def test_a_purge_moves_the_horizon_as_the_core_says(postgres, driver, stored):
    """Onwards, and back only when a wrong clock had set it."""
    store = await driver.nonces()
    await store.forget(stored)

    await store.purge(START)

    expected = [(next_horizon(stored, START),)]
    assert expected == rows(postgres, "SELECT horizon FROM redflag_nonces_horizon")


async def test_after_a_wrong_clock_messages_pass_again_and_replays_do_not(driver):
    """A purge a year ahead locks nobody out for a year, and opens nothing."""
    store = await driver.nonces()
    assert await store.claim("k", "n", NOW)
    await store.purge(START + timedelta(days=365))
    assert not await store.claim("k", "new", NOW)

    await store.purge(START)

    assert not await store.claim("k", "n", NOW)
    assert not await store.claim("k", "new", NOW + TOLERANCE)
    assert await store.claim("k", "new", NOW + TOLERANCE + 1)


async def test_the_time_of_the_database_can_count(postgres, driver):
    """Machines whose clocks differ by a day share one limit then."""
    store = await driver.limits(database_time=True)
    moments = [START, START + timedelta(days=1), START - timedelta(days=1)]

    decisions = [await store.take("key", STRICT, moment) for moment in moments]

    assert [True, False, False] == [decision.allowed for decision in decisions]
    assert 3500 < decisions[-1].retry_after <= 3600
    assert [(True,)] == rows(
        postgres,
        "SELECT arrival - extract(epoch FROM now()) BETWEEN 3500 AND 3600 FROM redflag_rate_limits",
    )
    assert 0 == await store.purge(START + timedelta(days=365))
    run(postgres, f"UPDATE redflag_rate_limits SET arrival = arrival - 3600 - {CLOCK_STEP}")
    assert 1 == await store.purge(START - timedelta(days=365))


async def test_tables_may_be_made_by_many_at_once(postgres, driver):
    """Replicas that start together do not disturb each other."""
    stores = [store for _ in range(5) for store in await driver.without_tables()]

    await asyncio.gather(*(store.create() for store in stores))

    assert await stores[0].claim("k", "n", NOW)


async def test_creating_again_keeps_what_is_there(driver):
    """Each start of a program may do it."""
    store = await driver.nonces()
    assert await store.claim("k", "n", NOW)
    await store.forget(1000)

    await store.create()

    assert not await store.claim("k", "n", NOW)
    assert not await store.claim("k", "m", 1000)


async def test_tables_may_be_made_by_own_migrations(postgres, driver):
    """The statements are public."""
    nonces, limits = await driver.without_tables()
    run(postgres, nonces.ddl, limits.ddl)

    assert await nonces.claim("k", "n", NOW)
    assert (await limits.take("k", STRICT, START)).allowed


async def test_stores_with_other_names_share_nothing(postgres, driver):
    """Another schema or table, also where the names are words of SQL or as long as they can be."""
    run(postgres, "CREATE SCHEMA one", 'CREATE SCHEMA "select"')
    names = [
        {},
        {"schema": "one"},
        {"schema": "select", "table": "group"},
        {"table": "a" * 40},
    ]
    stores = [await driver.nonces(**each) for each in names]

    assert [True] * 4 == [await store.claim("k", "n", NOW) for store in stores]
    assert [False] * 4 == [await store.claim("k", "n", NOW) for store in stores]
    limits = [await driver.limits(schema="one"), await driver.limits()]
    assert [True] * 2 == [(await store.take("k", STRICT, START)).allowed for store in limits]


async def test_a_store_without_tables_says_what_to_do(driver):
    """It does not make them behind anybody's back."""
    nonces, limits = await driver.without_tables()

    with pytest.raises(StoreError, match=r"create\(\)"):
        await nonces.claim("k", "n", NOW)
    with pytest.raises(StoreError, match=r"create\(\)"):
        await limits.take("k", STRICT, START)


async def test_a_store_whose_horizon_is_missing_refuses_everything(postgres, driver):
    """Who deleted the row, deleted what is known about the past."""
    store = await driver.nonces()
    run(postgres, "DELETE FROM redflag_nonces_horizon")

    assert not await store.claim("k", "n", NOW)


async def test_a_database_that_is_gone_is_no_answer(postgres, postgres_server, driver):
    """Neither True nor False: the caller refuses. The message has no text of the database in it."""
    store = await driver.nonces()
    assert await store.claim("k", "n", NOW)
    name = rows(postgres, "SELECT current_database()")[0][0]
    postgres_server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    postgres_server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")

    with pytest.raises(StoreError) as caught:
        await store.claim("k", "m", NOW)

    assert name not in caught.value.message
    postgres_server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    assert not await store.claim("k", "n", NOW)


async def test_a_store_does_not_go_through_a_fork(driver):
    """Two processes must not talk over one connection: the child is told what to do."""
    nonces, limits = await driver.nonces(), await driver.limits()
    mine = os.getpid()
    for store in (nonces, limits):
        store._database._process = mine + 1

    with pytest.raises(ConfigurationError, match="after it"):
        await nonces.claim("k", "n", NOW)
    with pytest.raises(ConfigurationError, match="after it"):
        await limits.take("k", STRICT, START)
    with pytest.raises(ConfigurationError, match="after it"):
        await nonces.create()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_is_refused_and_the_parent_goes_on(postgres):
    """Really forked, with the store that blocks."""
    store = PsycopgNonceStore(connecting(postgres))
    store.create()
    child = os.fork()
    if child == 0:  # pragma: no cover
        status = 1
        try:
            store.claim("k", "n", NOW)
        except ConfigurationError:
            status = 0
        finally:
            os._exit(status)

    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert store.claim("k", "n", NOW)


@pytest.mark.parametrize(
    "options", [{"table": "a b"}, {"table": 'a"'}, {"table": "A"}, {"schema": "a.b"}, {"schema": ""}]
)
def test_names_are_names(options):
    """They are the only thing that goes into SQL as text."""
    for kind in (
        AsyncpgNonceStore,
        AsyncpgRateLimitStore,
        PsycopgNonceStore,
        PsycopgRateLimitStore,
        AsyncPsycopgNonceStore,
        AsyncPsycopgRateLimitStore,
    ):
        with pytest.raises(ConfigurationError, match="lower-case letters"):
            kind(None, **options)


# Each driver


async def test_a_single_connection_is_no_pool(postgres):
    """What is claimed in somebody's transaction would be free again when that is undone."""
    connection = await asyncpg.connect(postgres)
    with pytest.raises(ConfigurationError, match="pool"):
        AsyncpgNonceStore(connection)
    await connection.close()


async def test_a_pool_that_is_closed_is_no_answer(pools):
    """A program that ends refuses what still comes."""
    pool = await pools()
    store = AsyncpgNonceStore(pool)
    await store.create()
    await pool.close()

    with pytest.raises(StoreError):
        await store.claim("k", "n", NOW)


async def test_a_cancelled_caller_does_not_stop_the_store(pools):
    """Its claim may be stored or not; the next is served."""
    store = AsyncpgNonceStore(await pools(size=1))
    await store.create()
    tasks = [asyncio.create_task(store.claim("k", str(number), NOW)) for number in range(10)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    assert await store.claim("k", "other", NOW)


async def test_a_pool_may_be_behind_a_pooler(pools):
    """Without prepared statements that outlive a transaction."""
    store = AsyncpgNonceStore(await pools(statement_cache_size=0))
    await store.create()

    assert [True, False] == [await store.claim("k", "n", NOW) for _ in range(2)]


def test_a_connection_in_a_transaction_is_refused(postgres):
    """The store would commit what is not its own, or be undone with it."""
    with psycopg.connect(postgres) as connection:
        PsycopgNonceStore(connecting(postgres)).create()
        connection.execute("SELECT 1")
        store = PsycopgNonceStore(lambda: Lent(connection))

        with pytest.raises(ConfigurationError, match="no transaction"):
            store.claim("k", "n", NOW)


async def test_a_connection_in_a_transaction_is_refused_by_an_event_loop_too(postgres):
    """The same."""
    async with await psycopg.AsyncConnection.connect(postgres) as connection:
        await connection.execute("SELECT 1")
        store = AsyncPsycopgNonceStore(lambda: Lent(connection))

        with pytest.raises(ConfigurationError, match="no transaction"):
            await store.claim("k", "n", NOW)
        with pytest.raises(ConfigurationError, match="no transaction"):
            await store.create()


class Lent:
    """A connection that is not closed at the end of a block, as a pool lends it."""

    def __init__(self, connection):
        self._connection = connection

    def __enter__(self):
        return self._connection

    def __exit__(self, *_error):
        return False

    async def __aenter__(self):
        return self._connection

    async def __aexit__(self, *_error):
        return False


@pytest.mark.parametrize("autocommit", [False, True])
def test_a_claim_is_committed_when_it_is_answered(postgres, autocommit):
    """Not when the connection goes back to its pool."""
    with psycopg.connect(postgres, autocommit=autocommit) as connection:
        store = PsycopgNonceStore(lambda: Lent(connection))
        store.create()

        assert store.claim("k", "n", NOW)
        assert [(1,)] == rows(postgres, "SELECT count(*) FROM redflag_nonces")
        assert not store.claim("k", "n", NOW)


def test_a_blocking_store_purges(postgres):
    """It has every verb of the others, and the time of the database too."""
    nonces = PsycopgNonceStore(connecting(postgres))
    limits = PsycopgRateLimitStore(connecting(postgres), database_time=True)
    nonces.create()
    limits.create()
    run(postgres, f"INSERT INTO redflag_nonces SELECT c, 'k', 'n' FROM generate_series(1, {DELETE_BATCH}) AS c")
    assert limits.take("k", STRICT, START).allowed

    assert DELETE_BATCH == nonces.purge(START)
    assert 0 == limits.purge(START + timedelta(days=365))
    assert not limits.take("k", STRICT, START + timedelta(days=365)).allowed


def test_a_blocking_store_without_tables_or_server_says_so(postgres, tmp_path):
    """What to do, and nothing of the database."""
    with pytest.raises(StoreError, match=r"create\(\)"):
        PsycopgNonceStore(connecting(postgres)).claim("k", "n", NOW)
    with pytest.raises(StoreError, match="does not answer"):
        PsycopgRateLimitStore(connecting(f"host={tmp_path}")).take("k", STRICT, START)


# Processes and crashes


def claim_in_process(address, nonces):
    """What a process claims."""
    store = PsycopgNonceStore(connecting(address))
    return [nonce for nonce in nonces if store.claim("k", nonce, NOW)]


def take_in_process(address, times):
    """How many requests of a process pass."""
    store = PsycopgRateLimitStore(connecting(address))
    return sum(store.take("key", POLICY, START).allowed for _ in range(times))


def test_processes_share_nonces_and_limits(postgres):
    """Three processes at once: each nonce has one winner, and the limit is one."""
    PsycopgNonceStore(connecting(postgres)).create()
    PsycopgRateLimitStore(connecting(postgres)).create()
    nonces = [str(number) for number in range(60)]

    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        claimed = pool.map(claim_in_process, [postgres] * 3, [nonces] * 3)
        allowed = pool.map(take_in_process, [postgres] * 3, [20] * 3)
        won = [nonce for part in claimed for nonce in part]

        assert 20 == sum(allowed)
    assert sorted(nonces) == sorted(won)


def test_a_claim_that_was_answered_survives_a_crash_of_the_server():
    """What was True before is a replay after it, and the horizon holds."""
    with running_server() as server:
        store = PsycopgNonceStore(connecting(server.address()))
        store.create()
        store.forget(1000)
        claimed, stop = [], threading.Event()

        def claim():
            for number in range(10**9):
                try:
                    assert store.claim("k", str(number), NOW)
                except StoreError:
                    return
                claimed.append(number)
                if number == 20:
                    stop.set()

        claimer = threading.Thread(target=claim)
        claimer.start()
        assert stop.wait(60)
        server.stop("immediate")
        claimer.join()
        server.start()

        assert [] == [number for number in claimed if store.claim("k", str(number), NOW)]
        assert not store.claim("k", "n", 1000)
        assert store.claim("k", "new", NOW)
