"""First start, every start, the trust documents, and starts that must fail with a sentence."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import update

from redflag_core.errors import ConfigurationError, KeyFileError
from redflag_core.messages import Role
from redflag_core.system import SystemEntropy
from redflag_core.testing import FrozenClock
from redflag_core.trust import BUNDLE_LIFETIME, DAY, RENEW_BEFORE, live_keys, verify_bundle, verify_roots
from redflag_server.db import migrate
from redflag_server.db.tables import metadata
from redflag_server.jobs.list import JOBS
from redflag_server.jobs.service import run_due
from redflag_server.jobs.tables import Schedule
from redflag_server.settings import Settings
from redflag_server.start import open_runtime
from redflag_server.trust.tables import ServerState
from tests.helpers.needs import needs, needs_root
from tests.helpers.server import Server, running, settings_of


async def test_the_first_start_makes_keys_that_only_the_owner_can_read(server: Server):
    """Keys and secrets are 0600 in a directory of 0700, and none of them is in the database."""
    folder = server.runtime.settings.data / "keys"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}

    assert {"command.key", "checkpoint.key", "root.key", "agent-tokens.secret", "forms.secret"} <= set(modes)
    assert {0o600} == set(modes.values())
    assert 0o700 == stat.S_IMODE(folder.stat().st_mode)
    database = b"".join(path.read_bytes() for path in folder.parent.glob("redflag.db*"))
    assert server.runtime.keys.command.seed not in database
    assert server.runtime.keys.agent_tokens not in database


async def test_an_agent_can_verify_the_trust_it_is_given(server: Server):
    """Root chain and bundle verify from the fingerprint alone; command and checkpoint keys are live."""
    root = await server.client.get("/api/v1/trust/root/1")
    missing = await server.client.get("/api/v1/trust/root/2")
    bundle = await server.client.get("/api/v1/trust/bundle")

    runtime = server.runtime
    newest = verify_roots([root.content], server=runtime.server, root_fp=runtime.root_fp)
    trusted = verify_bundle(bundle.content, newest.key, server=runtime.server, now=server.clock.now())
    assert (404, 1) == (missing.status_code, trusted.version)
    for role, key in ((Role.COMMAND, runtime.keys.command), (Role.CHECKPOINT, runtime.keys.checkpoint)):
        assert {key.key_id: key.verify_key} == live_keys(trusted, role, now=server.clock.now())


async def test_the_bundle_is_renewed_thirty_days_before_its_end(server: Server):
    """The renewal job issues the next version in time, not earlier, and check-ins carry its digest."""
    machine = await server.agent()
    before = (await machine.check_in(server.client)).json()
    server.clock.advance(BUNDLE_LIFETIME - RENEW_BEFORE - DAY)
    await run_due(server.runtime, JOBS)
    early = (await server.client.get("/api/v1/trust/bundle")).content
    server.clock.advance(2 * DAY)
    await run_due(server.runtime, JOBS)
    late = (await server.client.get("/api/v1/trust/bundle")).content
    await machine.refresh(server.client)
    after = (await machine.check_in(server.client)).json()

    assert early != late
    assert ((1, 2), True) == (
        (before["bundle_version"], after["bundle_version"]),
        before["bundle"] != after["bundle"],
    )
    assert "trust.bundle_renewed" in await server.event_kinds()


async def test_a_job_runs_once_per_time_however_often_it_is_looked_for(server: Server):
    """Whoever claims a schedule runs it; the next look finds nothing due."""
    first = await run_due(server.runtime, JOBS)
    second = await run_due(server.runtime, JOBS)

    assert (sorted(JOBS), []) == (sorted(first), second)


async def test_a_failing_job_is_recorded_and_does_not_stop_the_others(server: Server):
    """The error is on the schedule's row; the rest ran."""
    from datetime import timedelta

    from redflag_server.jobs.service import Job, prepare

    async def fail(_runtime):
        raise ValueError("no luck")

    ran: list[str] = []

    async def succeed(_runtime):
        ran.append("good")

    jobs = {"bad": Job(timedelta(hours=1), fail), "good": Job(timedelta(hours=1), succeed)}
    await prepare(server.runtime, jobs)
    await run_due(server.runtime, jobs)

    assert ["good"] == ran
    assert "no luck" in (await server.row(Schedule, Schedule.name == "bad")).last_error


async def test_migrations_make_exactly_the_tables(server: Server):
    """The schema of a new database is the one that the code describes, and the second start changes nothing."""
    assert [] == await migrate.differences(server.runtime.database)
    assert not await migrate.pending(server.runtime.database)
    await migrate.upgrade(server.runtime.database)


async def test_every_tenant_table_has_an_organization(server: Server):
    """Tables without organization_id are a named list of what belongs to the installation."""
    without = {table.name for table in metadata.sorted_tables if "organization_id" not in table.columns}
    nullable = {
        table.name
        for table in metadata.sorted_tables
        if "organization_id" in table.columns and table.columns["organization_id"].nullable
    }
    installation = {
        "leases", "nonces", "operator_keys", "organizations", "rate_arrivals", "schedules", "server_state",
        "trust_documents", "unplaced_events",
    }  # fmt: skip
    assert installation == without - {"setup_links"}
    assert {"users", "credentials"} == nullable


async def test_the_second_start_finds_everything(tmp_path: Path):
    """Server id, root and agents are the same after a restart."""
    async with running(tmp_path) as first:
        machine = await first.agent()
        before = (first.runtime.server, first.runtime.root_fp)
    async with running(tmp_path) as second:
        assert before == (second.runtime.server, second.runtime.root_fp)
        assert 200 == (await machine.check_in(second.client)).status_code


@pytest.mark.sqlite
async def test_sqlite_is_durable_and_checks_references(server: Server):
    """WAL, synchronous=FULL, foreign keys on."""
    async with server.runtime.database.read() as session:
        connection = await session.connection()
        pragmas = [
            (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert ["wal", 2, 1] == pragmas


@pytest.mark.parametrize("name", ["command.key", "agent-tokens.secret"])
async def test_a_key_that_others_can_read_stops_the_start(tmp_path: Path, name: str):
    """A mode weaker than 0600 is refused with a sentence that says chmod."""
    async with running(tmp_path):
        pass
    (tmp_path / "keys" / name).chmod(0o644)

    with pytest.raises(KeyFileError, match="chmod 600"):
        await open_runtime(settings_of(tmp_path), FrozenClock(), SystemEntropy())


@pytest.mark.parametrize("content", ["c2hvcnQ", "A" * 43, "not base64url!"])
async def test_a_weak_secret_stops_the_start(tmp_path: Path, content: str):
    """A short, constant or damaged secret is refused with a sentence."""
    async with running(tmp_path):
        pass
    (tmp_path / "keys" / "agent-tokens.secret").write_text(content)

    with pytest.raises(KeyFileError, match="delete it to have a new one made"):
        await open_runtime(settings_of(tmp_path), FrozenClock(), SystemEntropy())


async def test_a_missing_command_key_stops_the_start(tmp_path: Path):
    """Agents believe no other key: it is not silently made anew."""
    async with running(tmp_path):
        pass
    (tmp_path / "keys" / "command.key").unlink()

    with pytest.raises(KeyFileError, match="restore it from a backup"):
        await open_runtime(settings_of(tmp_path), FrozenClock(), SystemEntropy())


async def test_a_root_key_taken_off_the_server_does_not_stop_it(tmp_path: Path):
    """The root may be kept elsewhere after the first start; then nothing is renewed here."""
    clock = FrozenClock()
    async with running(tmp_path, clock=clock):
        pass
    (tmp_path / "keys" / "root.key").rename(tmp_path / "elsewhere.key")
    clock.advance(BUNDLE_LIFETIME)
    async with running(tmp_path, clock=clock) as server:
        await run_due(server.runtime, JOBS)
        assert 200 == (await server.client.get("/api/v1/trust/bundle")).status_code
        assert "trust.bundle_renewed" not in await server.event_kinds()


@pytest.mark.sqlite
async def test_a_damaged_database_stops_the_start(tmp_path: Path):
    """A file that is no database is a sentence, not a traceback."""
    async with running(tmp_path):
        pass
    (tmp_path / "redflag.db-wal").unlink(missing_ok=True)
    (tmp_path / "redflag.db").write_bytes(b"this is not a database" * 400)

    with pytest.raises(ConfigurationError, match="restore it from a backup"):
        await open_runtime(settings_of(tmp_path), FrozenClock(), SystemEntropy())


@needs_root()
@needs("unshare", "mount")
@pytest.mark.parametrize(
    "options, expected", [("size=64k", "is full"), ("size=8m,ro", "cannot be written")], ids=["full", "read-only"]
)
def test_a_full_or_read_only_disk_stops_the_start(tmp_path: Path, options: str, expected: str):
    """A real tmpfs that is full or read-only: one sentence on stderr, no traceback, exit status 1."""
    disk = tmp_path / "disk"
    disk.mkdir()
    redflag = Path(sys.executable).with_name("redflag")
    command = [str(redflag), "server", "run", "--data", str(disk), "--port", "0"]
    script = f'mount -t tmpfs -o {options} tmpfs "{disk}" && exec "$@"'

    ended = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *command],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONWARNINGS": ""},
    )

    assert 1 == ended.returncode, ended.stderr
    assert expected in ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout


def test_listening_beyond_this_machine_without_tls_is_refused(tmp_path: Path):
    """A non-loopback address needs TLS or a declared TLS proxy."""
    with pytest.raises(ConfigurationError, match="without TLS"):
        Settings(data=tmp_path, host="0.0.0.0")
    Settings(data=tmp_path, host="0.0.0.0", behind_tls_proxy=True, public_urls=("https://rf.example",))


@pytest.mark.parametrize("url", ["rf.example", "ftp://rf.example", "https://", "https://rf.example/?a=1"])
def test_a_public_url_that_is_none_is_refused(tmp_path: Path, url: str):
    """The sentence shows the form."""
    with pytest.raises(ConfigurationError, match=r"https://redflag\.example\.com"):
        Settings(data=tmp_path, public_urls=(url,))


async def test_the_nonce_horizon_of_a_restore_is_respected(server: Server):
    """What was signed at or before the stored horizon is told to try again later: nobody knows if it is new."""
    machine = await server.agent()
    horizon = int(server.clock.now().timestamp()) + 300
    async with server.runtime.database.write() as session:
        await session.execute(update(ServerState).values(nonce_horizon=horizon))

    answer = await machine.check_in(server.client)

    assert (503, "unavailable") == (answer.status_code, answer.json()["code"])
    assert answer.headers["retry-after"]
    server.clock.advance(301)
    assert 200 == (await machine.check_in(server.client)).status_code
