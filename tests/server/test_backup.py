"""Backups and restores of a server: whole, private, refused when anything is wrong, safe against a crash."""

import asyncio
import contextlib
import fcntl
import gzip
import hashlib
import json
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import tarfile
from contextlib import closing
from datetime import UTC, datetime

import pytest
import pytest_asyncio
from alembic import command
from click.testing import CliRunner
from sqlalchemy import func, select, update

from redflag_core.commands import CommandType
from redflag_core.enrolment import AgentStatus
from redflag_core.errors import ConfigurationError, KeyFileError
from redflag_core.keyfiles import write_key
from redflag_core.keys import SigningKey
from redflag_core.scanning import inventory_hash
from redflag_core.statements import PackageOutcome, PackageResult
from redflag_core.testing import FrozenClock
from redflag_server.accounts.setup import issue_setup_link
from redflag_server.accounts.tables import SetupLink
from redflag_server.agents.sweep import mark_changed_hardware
from redflag_server.agents.tables import Agent, RegistrationToken
from redflag_server.backup.archive import DATABASE, DIGEST, MANIFEST, MEMBERS, BackupError, read_archive
from redflag_server.backup.create import _publish, back_up_to_stream
from redflag_server.backup.placement import NEW, READY, finish_restore, shared_use
from redflag_server.cli import main
from redflag_server.commands import queue
from redflag_server.commands.tables import Command
from redflag_server.db import migrate
from redflag_server.db.engine import Database
from redflag_server.events.tables import Event
from redflag_server.packages.ingest import _scanned
from redflag_server.packages.tables import Package, Scanner, ScanReport
from redflag_server.settings import Settings
from redflag_server.start import hold_directory
from redflag_server.trust.tables import ServerState
from tests.helpers.backups import ACTOR, back_up, contents, make, pack, rebuild, restore_from, tree
from tests.helpers.faults import Point, run_broken, trace
from tests.helpers.fleet import full_report, package
from tests.helpers.needs import needs, needs_root
from tests.helpers.operators import api_key, make_user, sign_in
from tests.helpers.orders import act, command_of, held_subjects, order
from tests.helpers.patching import new_ward
from tests.helpers.processes import REDFLAG, child
from tests.helpers.server import running

pytestmark = pytest.mark.sqlite

PACKAGES = [package(f"p{number}") for number in range(20)]


@pytest.fixture
def clock():
    """The time of everybody in a test."""
    return FrozenClock()


@pytest_asyncio.fixture
async def data(tmp_path, clock):
    """The directory of a stopped server that has seen something of everything."""
    async with running(tmp_path / "data", clock=clock) as server:
        machine = await server.agent()
        assert 200 == (await machine.report(server.client, full_report(PACKAGES))).status_code
        await make_user(server.runtime)
        await api_key(server.runtime, "agents:read")
        await sign_in(server.client)
        await server.token(seats=3)
    with hold_directory(tmp_path / "data"):  # as a server does while it runs
        return tmp_path / "data"


@pytest.fixture
def file(tmp_path, data, clock):
    """A backup of it."""
    return back_up(data, tmp_path / "backup.tar", clock)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sample(tmp_path_factory):
    """A backup of a young server, for tests that only read it."""
    folder = tmp_path_factory.mktemp("sample")
    async with running(folder / "data"):
        pass
    return back_up(folder / "data", folder / "backup.tar", FrozenClock())


async def redflag(*arguments, code=0, **options):
    """Run a command of the server's command line."""
    result = await asyncio.to_thread(CliRunner().invoke, main, list(map(str, arguments)), **options)
    assert code == result.exit_code, result.output
    return result


async def dump(data, clock):
    """Every row of a stopped server."""
    async with running(data, clock=clock) as server:
        return await server.dump()


def identity(data):
    """Server id, generation and the digest of the command key, without opening the server."""
    with closing(sqlite3.connect(data / DATABASE)) as database:
        ((server, gen),) = database.execute("SELECT server, gen FROM server_state").fetchall()
    return server, gen, hashlib.sha256((data / "keys/command.key").read_bytes()).hexdigest()


# --- the file --------------------------------------------------------------------------------------------------


def test_a_backup_is_a_tar_archive_that_needs_nothing_of_ours(tmp_path, file):
    """GNU tar lists and unpacks it, sha256sum checks the manifest, and the manifest the rest."""
    listed = subprocess.run(["tar", "-tf", file], capture_output=True, text=True, check=True).stdout.split()
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["tar", "-xf", file, "-C", out], check=True)
    subprocess.run(["sha256sum", "--check", "--strict", DIGEST], cwd=out, check=True, capture_output=True)
    manifest = json.loads((out / MANIFEST).read_bytes())

    assert [MANIFEST, DIGEST, *MEMBERS] == listed
    assert list(MEMBERS) == [member["name"] for member in manifest["members"]]
    for member in manifest["members"]:
        data = (out / member["name"]).read_bytes()
        assert (member["size"], member["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_the_archive_is_byte_for_byte_what_pythons_tarfile_would_write(file):
    """Our writer has an independent one beside it."""
    found = contents(file)

    assert pack(found.items(), json.loads(found[MANIFEST])["created_at"]) == file.read_bytes()


def test_the_manifest_says_what_it_is_a_backup_of(data, file, clock):
    """Server, root, time, schema and release, as the server has them."""
    manifest = json.loads(contents(file)[MANIFEST])

    with closing(sqlite3.connect(data / DATABASE)) as database:
        (known,) = database.execute("SELECT server, root_fp FROM server_state").fetchall()
        ((revision,),) = database.execute("SELECT version_num FROM alembic_version").fetchall()
    assert (known, revision) == ((manifest["server"], manifest["root_fp"]), manifest["revision"])
    assert (1, int(clock.now().timestamp())) == (manifest["v"], manifest["created_at"])


def test_every_file_of_the_keys_folder_is_in_it(data, file):
    """A key that the server learns to make must be added to the format, or backups would lack it."""
    kept = {f"keys/{path.name}": path.read_bytes() for path in (data / "keys").iterdir()}

    assert kept == {name: content for name, content in contents(file).items() if name.startswith("keys/")}


def test_it_is_private_whole_and_alone(tmp_path, data, clock):
    """One file, 0600, nothing else left beside it, and the data directory is as it was."""
    before, umask, place = tree(data), os.umask(0), tmp_path / "place"
    place.mkdir()
    try:
        target = back_up(data, place / "b.tar", clock)
    finally:
        os.umask(umask)

    assert {"b.tar": ("-rw-------", target.read_bytes())} == tree(place)
    assert before == tree(data)


def test_what_was_deleted_is_not_in_it(tmp_path, data, clock):
    """Free space in the database can hold what was deleted; the backup has none."""
    secret = b"digest-of-a-link-that-is-gone"
    with closing(sqlite3.connect(data / DATABASE)) as database:
        database.execute("PRAGMA secure_delete=OFF")
        with database:
            database.execute("INSERT INTO setup_links VALUES (1, ?, '2026-01-01')", (secret,))
        with database:
            database.execute("DELETE FROM setup_links")

    file = back_up(data, tmp_path / "b.tar", clock)

    assert secret in (data / DATABASE).read_bytes()
    assert secret not in file.read_bytes()


async def test_a_backup_of_a_busy_server_is_one_state(tmp_path, clock):
    """While machines report, another process backs up: each inventory in the backup is that of its hash."""
    data, file = tmp_path / "data", tmp_path / "b.tar"
    async with running(data, clock=clock) as server:
        machines = [await server.agent() for _ in range(3)]
        stop, started, sent = asyncio.Event(), asyncio.Event(), []

        async def keep_reporting(machine, seed):
            rng = random.Random(seed)
            while not stop.is_set():
                found = [package(f"p{number}") for number in rng.sample(range(300), 150)]
                answer = await machine.report(server.client, full_report(found))
                assert 200 == answer.status_code, answer.text
                sent.append(machine.agent_id)
                if len(sent) >= 10:
                    started.set()

        writing = [asyncio.create_task(keep_reporting(machine, seed)) for seed, machine in enumerate(machines)]
        await started.wait()
        before = len(sent)
        process = await asyncio.create_subprocess_exec(REDFLAG, "server", "backup", file, "--data", data)
        assert 0 == await process.wait()
        during = len(sent) - before
        stop.set()
        await asyncio.gather(*writing)

    await restore_from(file, tmp_path / "other", clock)
    async with running(tmp_path / "other", clock=clock) as server:
        reports = len(await server.rows(ScanReport))
        scanners = await server.rows(Scanner)
        for scanner in scanners:
            rows = await server.rows(Package, Package.agent_id == scanner.agent_id, Package.present.is_(True))
            assert scanner.inventory_hash == inventory_hash([_scanned(row) for row in rows])
    assert during > 5, "nothing was written meanwhile"
    assert 3 == len(scanners)
    assert before <= reports <= before + during


async def test_a_backup_is_an_event(tmp_path, data, clock):
    """Who made it, where it is, and the digest of the file; the event is not in the backup itself."""
    file = tmp_path / "b.tar"
    result = await redflag("backup", file, "--data", data)

    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    async with running(data, clock=clock) as server:
        event = await server.row(Event, Event.kind == "server.backed_up")
    assert {"to": str(file), "size": file.stat().st_size, "sha256": digest} == event.data
    assert event.actor.startswith("cli")
    assert [] == [words for words in ("in clear", digest, str(file)) if words not in result.stdout]
    await restore_from(file, tmp_path / "other", clock)
    async with running(tmp_path / "other", clock=clock) as server:
        assert "server.backed_up" not in await server.event_kinds()


async def test_a_backup_can_go_through_a_pipe_and_back(tmp_path, data, clock):
    """Standard output is the archive and nothing else; standard input restores it."""
    result = await redflag("backup", "-", "--data", data)
    done = await redflag("restore", "-", "--data", tmp_path / "other", input=result.stdout_bytes)

    piped = tmp_path / "piped.tar"
    piped.write_bytes(result.stdout_bytes)
    assert [MANIFEST, DIGEST, *MEMBERS] == list(contents(piped))
    assert "in clear" in result.stderr
    assert "root fingerprint" in done.stdout
    assert identity(data)[0] == identity(tmp_path / "other")[0]


async def test_a_root_key_that_was_taken_off_is_not_in_it(tmp_path, data, clock):
    """The backup says that it lacks it, and its restore makes a server without it."""
    (data / "keys/root.key").rename(tmp_path / "safe.key")
    file = tmp_path / "b.tar"

    result = await redflag("backup", file, "--data", data)
    await restore_from(file, tmp_path / "other", clock)

    assert "root key is not on this server" in result.stdout
    assert "keys/root.key" not in contents(file)
    async with running(tmp_path / "other", clock=clock) as server:
        assert server.runtime.keys.root is None


async def test_a_backup_does_not_change_the_schema(tmp_path, data, clock):
    """Before an update, the new release backs up what the old one has: as it is, and without an event."""
    older = await downgrade(data)
    result = await redflag("backup", tmp_path / "b.tar", "--data", data)

    assert older == json.loads(contents(tmp_path / "b.tar")[MANIFEST])["revision"]
    assert "There is no event" in result.stdout
    with closing(sqlite3.connect(data / DATABASE)) as database:
        assert [(older,)] == database.execute("SELECT version_num FROM alembic_version").fetchall()


async def downgrade(data):
    """Take a database back to the schema before the last one."""
    database = Database(Settings(data=data).database_url, foreign_keys=False)

    def go_back(connection):
        config = migrate.alembic_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "-1")

    async with database.write() as session:
        await (await session.connection()).run_sync(go_back)
    await database.close()
    with closing(sqlite3.connect(data / DATABASE)) as opened:
        ((revision,),) = opened.execute("SELECT version_num FROM alembic_version").fetchall()
    return revision


def test_a_file_that_exists_is_not_overwritten(tmp_path, data, file, clock):
    """Only when told; then the new one takes its place in one step."""
    before = file.read_bytes()
    with pytest.raises(ConfigurationError, match="--overwrite"):
        make(data, file, clock)
    assert before == file.read_bytes()

    clock.advance(60)
    made = make(data, file, clock, overwrite=True)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == made.sha256 != hashlib.sha256(before).hexdigest()


def test_a_file_made_meanwhile_is_not_overwritten_either(tmp_path, file):
    """Whoever made the name first keeps it."""
    target = tmp_path / "b.tar"
    target.write_bytes(b"mine")

    with pytest.raises(FileExistsError):
        _publish(file, target, overwrite=False)

    assert b"mine" == target.read_bytes()


@needs("strace")
def test_a_file_system_without_hard_links_will_do(tmp_path, data):
    """USB sticks and network shares have none: the file is there all the same, whole."""
    target = tmp_path / "b.tar"

    done = run_broken([REDFLAG, "server", "backup", str(target), "--data", str(data)], Point("link", 1), "EIO")

    assert 0 == done.returncode, done.stderr
    assert not refuses(target)


@pytest.mark.parametrize("name", [DATABASE, "keys/root.key", "b.tar", "replaced-1/b.tar"])
def test_a_backup_is_not_put_into_what_it_saves(data, clock, name):
    """It would be lost with it, or destroy it."""
    before = tree(data)

    with pytest.raises(ConfigurationError, match="in the data directory"):
        make(data, data / name, clock, overwrite=True)

    assert before == tree(data)


def test_a_place_that_is_not_there_is_said(tmp_path, data, clock):
    """A directory is not made: it may be a disk that is not mounted."""
    with pytest.raises(ConfigurationError, match="there is no directory"):
        make(data, tmp_path / "usb" / "b.tar", clock)


@pytest.mark.parametrize("damage", ["page", "no database", "key", "no key", "open key"])
def test_what_could_not_be_restored_is_no_backup(tmp_path, data, clock, damage):
    """A damaged database or key is said now, not on the day of the restore, and no file is left."""
    database, key = data / DATABASE, data / "keys/command.key"
    if damage == "page":
        with database.open("r+b") as opened:
            for page in range(3, database.stat().st_size // 4096, 2):
                opened.seek(page * 4096)
                opened.write(b"\xff" * 200)
    elif damage == "no database":
        database.write_bytes(b"this is no database" * 500)
    elif damage == "key":
        key.write_bytes(b"{}")
    elif damage == "no key":
        key.unlink()
    else:
        key.chmod(0o644)
    place = tmp_path / "place"
    place.mkdir()

    with pytest.raises((ConfigurationError, KeyFileError)) as refusal:
        make(data, place / "b.tar", clock)

    assert {} == tree(place)
    assert "Traceback" not in refusal.value.message


@needs_root()
@needs("unshare", "mount")
@pytest.mark.parametrize("what", ["backup", "restore"])
def test_a_full_disk_is_a_sentence(tmp_path, data, file, what):
    """A real tmpfs without room: exit status 1, one line, nothing half, and what was there is as it was."""
    disk = tmp_path / "disk"
    disk.mkdir()
    commands = {
        "backup": f"{REDFLAG} server backup {disk}/b.tar --data {data}",
        "restore": f"{REDFLAG} server restore {file} --data {disk}",
    }
    script = (
        f"mount -t tmpfs -o size=256k,mode=700 tmpfs {disk} && {commands[what]}; code=$?; ls -A {disk}; exit $code"
    )

    ended = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False, timeout=60
    )

    assert (1, 1) == (ended.returncode, len(ended.stderr.splitlines())), ended.stderr
    assert "full" in ended.stderr or "No space left" in ended.stderr
    assert set(ended.stdout.split()) <= {".lock"}


# --- what is refused -------------------------------------------------------------------------------------------


async def refused(file, directory, clock, words=""):
    """Restoring *file* is refused, and changes neither a directory with a server nor one that is not there."""
    before = tree(directory)
    with pytest.raises(BackupError) as refusal:
        await restore_from(file, directory, clock)
    assert before == tree(directory)
    missing = directory.parent / "not-there"
    with pytest.raises(BackupError):
        await restore_from(file, missing, clock)
    assert not missing.exists()
    assert words in refusal.value.message
    assert "\n" not in refusal.value.message
    return refusal.value.message


def places(file):
    """A byte of everything in a backup: each header field, contents, digests, paddings, the end."""
    size, at, found = file.stat().st_size, 0, []
    for name, content in contents(file).items():
        found += [
            at + field for field in (0, 40, 99, 100, 108, 116, 124, 135, 136, 148, 156, 157, 257, 265, 345, 511)
        ]
        found += [at + 512, at + 512 + len(content) // 2, at + 512 + len(content) - 1]
        padding = -len(content) % 512
        found += [at + 512 + len(content), at + 512 + len(content) + padding - 1] if padding else []
        at += 512 + len(content) + padding
        assert name
    return [*found, at, at + 1024, size - 1]


def refuses(file):
    """Whether the bytes are refused before anything is written."""
    with file.open("rb") as source, contextlib.suppress(BackupError):
        read_archive(source)
        return False
    return True


def flipped(file, target, place, bit=0):
    """The same file with one bit changed."""
    damaged = bytearray(file.read_bytes())
    damaged[place] ^= 1 << bit
    target.write_bytes(damaged)
    return target


def test_one_flipped_bit_anywhere_is_refused(tmp_path, sample):
    """There is no byte in a backup that does not matter."""
    accepted = [
        (place, bit)
        for place in places(sample)
        for bit in (0, 5, 7)
        if not refuses(flipped(sample, tmp_path / "x", place, bit))
    ]

    assert [] == accepted


@pytest.mark.full
def test_one_flipped_bit_in_any_byte_is_refused(tmp_path, sample):
    """Every byte of everything but the database, and a sweep through that."""
    start = sample.stat().st_size - len(contents(sample)[DATABASE])
    swept = [*range(start), *range(start, sample.stat().st_size, 251)]

    assert [] == [place for place in swept if not refuses(flipped(sample, tmp_path / "x", place, place % 8))]


def test_a_backup_that_is_cut_short_is_refused(tmp_path, sample):
    """Wherever the copy ended."""
    whole, short = sample.read_bytes(), tmp_path / "short"
    for size in {
        0,
        1,
        511,
        512,
        513,
        2048,
        *(place for place in places(sample)),
        len(whole) - 512,
        len(whole) - 1,
    }:
        short.write_bytes(whole[:size])
        assert refuses(short), size


async def test_what_is_no_backup_is_said_and_changes_nothing(tmp_path, data, file, clock):
    """Other files, packed and padded ones, and archives with more in them than a backup has."""
    found, at = contents(file), int(clock.now().timestamp())
    other = tmp_path / "x"
    for content, words in (
        (b"", "not a backup"),
        (b"hello", "not a backup"),
        (bytes(10_240), "not a backup"),
        (gzip.compress(file.read_bytes()), "decompress it first"),
        ((data / DATABASE).read_bytes(), "not a backup"),
        (pack([("etc/passwd", b"root")], at), "not a backup"),
        (pack([*list(found.items())[1:]], at), "not a backup"),
        (file.read_bytes() + b"\0", "follows its end"),
        (file.read_bytes() + bytes(10_240), "follows its end"),
        (pack([*found.items(), ("keys/extra.key", b"x")], at), "damaged"),
        (pack([*list(found.items())[:-1]], at), "damaged"),
        (pack(found.items(), at + 1), "damaged"),
    ):
        other.write_bytes(content)
        await refused(other, data, clock, words)


@pytest.mark.parametrize(
    "name",
    ["../redflag.db", "/etc/passwd", "keys/../../x", "keys//command.key", "./redflag.db", "keys", "REDFLAG.DB"],
)
async def test_no_other_name_is_ever_written(tmp_path, data, file, clock, name):
    """A name that is not one of a backup's is refused, in the manifest and beside it."""
    for parts in ({name: b"evil"}, {DATABASE: None, name: b"evil"}):
        await refused(rebuild(file, tmp_path / "x", parts), data, clock, "manifest is wrong")
    found, evil = contents(file), (name, b"evil")
    for entries in ([*found.items(), evil], [*list(found.items())[:2], evil, *list(found.items())[2:]]):
        (tmp_path / "y").write_bytes(pack(entries, int(clock.now().timestamp())))
        await refused(tmp_path / "y", data, clock, "damaged")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE]
)
async def test_only_regular_files_are_members(tmp_path, data, file, clock, kind):
    """A link, a device or a directory under the name of a key is refused."""
    whole = bytearray(file.read_bytes())
    place = 512 * (1 + -(-len(contents(file)[MANIFEST]) // 512) + 2)
    header = tarfile.TarInfo.frombuf(bytes(whole[place : place + 512]), "ascii", "strict")
    assert "keys/command.key" == header.name
    header.type, header.linkname = kind, "/etc/shadow"
    whole[place : place + 512] = header.tobuf(tarfile.GNU_FORMAT)[:512]
    (tmp_path / "x").write_bytes(whole)

    await refused(tmp_path / "x", data, clock, "damaged")


async def test_a_newer_format_and_a_newer_schema_are_told_from_damage(tmp_path, data, file, clock):
    """The sentence says to install the newer release."""
    newer = rebuild(file, tmp_path / "x", v=2, encrypted=True)
    await refused(newer, data, clock, "format 2, of a newer release")
    later = rebuild(file, tmp_path / "y", revision="9999", release="7.0.0")
    await refused(later, data, clock, "release 7.0.0, which is newer")


@pytest.mark.parametrize(
    "changes",
    [
        {"server": "00000000-0000-4000-8000-000000000000"},
        {"root_fp": "0" * 64},
        {"revision": "0001"},
        {"members": []},
        {"extra": 1},
        {"created_at": -1},
        {"server": "../x"},
        {"v": True},
        {"v": 0},
    ],
    ids=str,
)
async def test_a_manifest_that_does_not_fit_is_refused(tmp_path, data, file, clock, changes):
    """Well formed, with good digests, and still not of what is in it."""
    await refused(rebuild(file, tmp_path / "x", **changes), data, clock)


async def test_parts_that_do_not_belong_together_are_refused(tmp_path, data, file, clock):
    """Keys of another server, a missing or damaged one, another database: agents would believe nothing of it."""
    async with running(tmp_path / "stranger", clock=clock):
        pass
    stranger = contents(back_up(tmp_path / "stranger", tmp_path / "stranger.tar", clock))
    own_root = tmp_path / "root.key"
    write_key(own_root, SigningKey.generate())
    for members, words in (
        ({"keys/command.key": stranger["keys/command.key"]}, "not those of its database"),
        ({"keys/checkpoint.key": stranger["keys/checkpoint.key"]}, "not those of its database"),
        ({"keys/root.key": own_root.read_bytes()}, "not those of its database"),
        ({DATABASE: stranger[DATABASE]}, "of another database"),
        ({"keys/command.key": None}, "manifest is wrong"),
        ({DATABASE: None}, "manifest is wrong"),
        ({"keys/command.key": b"{}"}, "a key in the backup cannot be used"),
        ({"keys/forms.secret": b"short"}, "a key in the backup cannot be used"),
        ({DATABASE: b"no database" * 1000}, "damaged"),
        ({DATABASE: contents(file)[DATABASE][:-4096]}, "damaged"),
        ({"keys/command.key": b"x" * 5000}, "too large"),
    ):
        await refused(rebuild(file, tmp_path / "x", members), data, clock, words)


async def test_a_backup_without_secrets_is_restored_with_new_ones(tmp_path, data, file, clock):
    """Secrets are made anew where they are missing, as a server does at its start."""
    await restore_from(
        rebuild(file, tmp_path / "x", {"keys/agent-tokens.secret": None, "keys/forms.secret": None}),
        tmp_path / "other",
        clock,
    )

    async with running(tmp_path / "other", clock=clock) as server:
        assert 32 == len(server.runtime.keys.agent_tokens)


# --- where it goes ---------------------------------------------------------------------------------------------


async def test_a_server_that_is_there_is_not_replaced_by_accident(tmp_path, data, file, clock):
    """Without --replace nothing is changed, on the command line too."""
    before = tree(data)

    with pytest.raises(ConfigurationError, match="--replace"):
        await restore_from(file, data, clock, replace=False)
    result = await redflag("restore", file, "--data", data, code=1)

    assert ("", 1) == (result.stdout, len(result.stderr.splitlines()))
    assert before == tree(data)


@pytest.mark.parametrize("left", [DATABASE, f"{DATABASE}-wal", "keys", READY])
async def test_what_is_left_of_a_server_counts_as_one(tmp_path, file, clock, left):
    """A log without its database would be taken for one of the new database."""
    directory = tmp_path / "rest"
    (directory / left).mkdir(parents=True)
    directory.chmod(0o700)

    with pytest.raises(ConfigurationError, match="--replace"):
        await restore_from(file, directory, clock, replace=False)


async def test_a_running_server_is_not_replaced(tmp_path, data, file, clock):
    """Whoever holds the directory keeps it."""
    with hold_directory(data):
        before = tree(data)
        with pytest.raises(ConfigurationError, match="another RedFlag server"):
            await restore_from(file, data, clock)
        assert before == tree(data)


async def test_a_command_that_works_on_it_is_waited_for_by_people(data, file, clock):
    """A restore refuses while a command works on the directory; a command refuses while a restore is under way."""
    with shared_use(data), pytest.raises(ConfigurationError, match="another redflag command"):
        await restore_from(file, data, clock)

    handle = os.open(data, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    result = await redflag("user", "list", "--data", data, code=1)
    os.close(handle)

    assert "a restore into" in result.stderr
    await redflag("user", "list", "--data", data)


async def test_a_database_that_another_program_has_open_is_not_moved(data, file, clock):
    """SQLite finds its log by name: moved away under a program, it would write into the new server's."""
    script = (
        "import signal, sqlite3, sys; database = sqlite3.connect(sys.argv[1]);"
        "database.execute('SELECT 1 FROM server_state').fetchall(); print('open', flush=True); signal.pause()"
    )
    with child(sys.executable, "-c", script, str(data / DATABASE)) as holder:
        holder.until("open")
        with pytest.raises(ConfigurationError, match="another program has"):
            await restore_from(file, data, clock)
    await restore_from(file, data, clock)


async def test_a_directory_that_others_can_read_gets_no_keys(tmp_path, file, clock):
    """A directory with something in it must be private already."""
    open_one = tmp_path / "open"
    open_one.mkdir(mode=0o755)
    (open_one / "something").touch()

    with pytest.raises(ConfigurationError, match="open to others"):
        await restore_from(file, open_one, clock)

    assert {"something"} == set(tree(open_one))


@needs_root()
async def test_a_directory_of_another_user_is_refused(tmp_path, file, clock):
    """The server would refuse keys that belong to root."""
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, 65534, 65534)

    with pytest.raises(ConfigurationError, match="run as that user"):
        await restore_from(file, theirs, clock)

    assert {} == tree(theirs)


@pytest.mark.parametrize("exists", [False, True])
async def test_a_new_place_gets_the_whole_server_privately(tmp_path, data, file, clock, exists):
    """Files 0600, directories 0700, one database file without a log, keys byte for byte, nothing else."""
    new = tmp_path / "deep" / "new" if not exists else tmp_path / "new"
    if exists:
        new.mkdir()
    umask = os.umask(0)
    try:
        done = await restore_from(file, new, clock, replace=False)
    finally:
        os.umask(umask)

    found = tree(new)
    assert {".lock", DATABASE, "keys", *(name for name in MEMBERS if name != DATABASE)} == set(found)
    assert {"-rw-------", "drwx------"} == {mode for mode, _ in found.values()}
    assert 0o700 == stat.S_IMODE(new.stat().st_mode)
    assert all(found[name][1] == content for name, content in contents(file).items() if name.startswith("keys/"))
    assert done.replaced is None


async def test_what_was_there_is_put_aside_whole_and_the_rest_stays(tmp_path, data, file, clock):
    """The old server with its log is in replaced-1; the local agent's directory is the very same one."""
    (data / "agent").mkdir()
    (data / "agent/state.json").write_text("{}")
    agent = (data / "agent").stat().st_ino
    log = data / f"{DATABASE}-wal"
    log.write_bytes(b"a log that was never folded in")
    old = {name: entry for name, entry in tree(data).items() if name not in (".lock", "agent", "agent/state.json")}

    first = await restore_from(file, data, clock)
    second = await restore_from(file, data, clock)

    assert (data / "replaced-1", data / "replaced-2") == (first.replaced, second.replaced)
    assert old == tree(first.replaced)
    assert agent == (data / "agent").stat().st_ino
    assert not log.exists()
    assert {DATABASE, "keys", ".lock", "agent", "replaced-1", "replaced-2"} == {
        path.name for path in data.iterdir()
    }


async def test_one_can_go_back_to_what_was_put_aside(tmp_path, data, file, clock):
    """A backup of the replaced server is restored like any other."""
    async with running(tmp_path / "stranger", clock=clock):
        pass
    stranger = back_up(tmp_path / "stranger", tmp_path / "s.tar", clock)
    before = identity(data)
    done = await restore_from(stranger, data, clock)
    assert before[0] != identity(data)[0]

    back = back_up(done.replaced, tmp_path / "back.tar", clock)
    await restore_from(back, data, clock)

    assert (before[0], before[2]) == (identity(data)[0], identity(data)[2])
    assert before[1] < identity(data)[1]


async def test_a_damaged_server_can_be_replaced(tmp_path, data, file, clock):
    """That is what backups are for."""
    (data / DATABASE).write_bytes(b"nothing that can be read" * 1000)
    (data / "keys/command.key").unlink()

    done = await restore_from(file, data, clock)

    assert b"nothing that can" == (done.replaced / DATABASE).read_bytes()[:16]
    async with running(data, clock=clock) as server:
        assert 1 == len(await server.rows(Agent))


async def test_what_killed_restores_left_is_removed_by_the_next(data, file, clock):
    """It holds keys, and nobody uses it."""
    leftover = data / ".restoring-abc" / NEW
    leftover.mkdir(parents=True)
    (leftover / "command.key").write_text("{}")

    await restore_from(file, data, clock)

    assert [] == list(data.glob(".restoring-*"))


# --- what comes back -------------------------------------------------------------------------------------------


async def test_everything_comes_back_and_only_what_must_change_does(tmp_path, data, file, clock):
    """Row by row: machines, inventories, accounts and keys are those of the backup."""
    before = await dump(data, clock)

    await restore_from(file, tmp_path / "other", clock)

    after = await dump(tmp_path / "other", clock)
    changed = {table for table in before if before[table] != after[table]}
    assert {"server_state", "credentials", "registration_tokens"} == changed
    assert {table: len(rows) for table, rows in before.items()} == {
        table: len(rows) for table, rows in after.items()
    }
    assert 20 == len(after["packages"])


async def test_generation_and_horizon_jump(tmp_path, data, file, clock):
    """As the core decides: the time, and five minutes ahead; a horizon that is higher stays."""
    clock.advance(86_400)
    moment = int(clock.now().timestamp())
    done = await restore_from(file, data, clock)
    assert (moment, moment + 300) == (done.outcome.gen, done.outcome.nonce_horizon)

    async with running(data, clock=clock) as server, server.runtime.database.write() as session:
        await session.execute(update(ServerState).values(nonce_horizon=moment + 500, gen=moment + 1000))
    again = await restore_from(back_up(data, tmp_path / "ahead.tar", clock), data, clock)

    assert (moment + 1001, moment + 500) == (again.outcome.gen, again.outcome.nonce_horizon)
    async with running(data, clock=clock) as server:
        state = await server.row(ServerState)
        assert (moment + 1001, moment + 500) == (state.gen, state.nonce_horizon)


async def test_a_session_of_the_backup_lets_nobody_in(tmp_path, clock):
    """Somebody may have signed out since; an API key opens the API as before."""
    data = tmp_path / "data"
    async with running(data, clock=clock) as server:
        await make_user(server.runtime)
        key = await api_key(server.runtime, "agents:read")
        await sign_in(server.client)
        cookies = dict(server.client.cookies)
        assert 200 == (await server.client.get("/")).status_code
    file = back_up(data, tmp_path / "b.tar", clock)

    done = await restore_from(file, data, clock)

    async with running(data, clock=clock) as server:
        server.client.cookies.update(cookies)
        assert 303 == (await server.client.get("/", follow_redirects=False)).status_code
        assert 200 == (await server.client.get("/api/v1/agents", headers=key)).status_code
        assert 303 == (await sign_in(server.client)).status_code
        assert 200 == (await server.client.get("/")).status_code
    assert (1, 1, 1) == (done.outcome.sessions, done.outcome.api_keys, done.outcome.users)


async def test_a_set_up_link_of_the_backup_is_void(tmp_path, clock):
    """It may have been used since, by somebody who was the first owner then."""
    data = tmp_path / "data"
    async with running(data, clock=clock) as server:
        link = (await issue_setup_link(server.runtime)).removeprefix("http://127.0.0.1:8750")
        assert 200 == (await server.client.get(link)).status_code

    await restore_from(back_up(data, tmp_path / "b.tar", clock), data, clock)

    async with running(data, clock=clock) as server:
        assert 404 == (await server.client.get(link)).status_code
        assert [] == await server.rows(SetupLink)


async def test_open_registration_tokens_are_revoked(tmp_path, clock):
    """A seat that was taken since would be free again: whoever has the text gets none, and an event says why."""
    data = tmp_path / "data"
    async with running(data, clock=clock) as server:
        usable, expired = await server.token(seats=2), await server.token(expires_at=clock.now())
        used = await server.token()
        await server.machine().enrol(server.client, used)
    clock.advance(10)
    done = await restore_from(back_up(data, tmp_path / "b.tar", clock), data, clock)

    clock.advance(400)
    async with running(data, clock=clock) as server:
        answer = await server.machine().register(server.client, usable)
        assert (403, "registration_refused") == (answer.status_code, answer.json()["code"])
        revoked = await server.rows(RegistrationToken, RegistrationToken.revoked_at.is_not(None))
        event = await server.row(Event, Event.kind == "registration_token.revoked")
        assert [usable.id] == [str(token.id) for token in revoked]
        assert usable.id == event.data["registration_token_id"]
        fresh = await server.token()
        assert 201 == (await server.machine().register(server.client, fresh)).status_code
    assert 1 == done.outcome.registration_tokens
    assert expired


async def test_a_machine_that_was_doubted_gets_its_day_again(tmp_path, clock):
    """The server was away: no match in that time says nothing about the hardware."""
    data = tmp_path / "data"
    async with running(data, clock=clock) as server:
        machine = await server.agent()
        async with server.runtime.database.write() as session:
            await session.execute(update(Agent).values(mismatch_since=clock.now()))
    file = back_up(data, tmp_path / "b.tar", clock)
    clock.advance(2 * 86_400)

    await restore_from(file, data, clock)

    async with running(data, clock=clock) as server:
        await mark_changed_hardware(server.runtime)
        assert AgentStatus.ACTIVE == (await server.row(Agent)).status
        clock.advance(86_400 + 1)
        await mark_changed_hardware(server.runtime)
        assert AgentStatus.HARDWARE_CHANGED == (await server.row(Agent)).status
    assert machine.agent_id


async def test_what_no_machine_was_given_does_not_start_by_itself(tmp_path, clock):
    """An update that somebody cancelled after the backup stays undone: plan dropped, package approved, told."""
    data = tmp_path / "data"
    async with running(data, clock=clock) as server:
        ward = await new_ward(server, "curl")
        plan = await ward.install(await ward.plan("curl"))
        file = back_up(data, tmp_path / "b.tar", clock)
        upgrade = await server.row(Command, Command.type == "packages.upgrade")
        await act(server, queue.cancel, upgrade.id)
    clock.advance(60)

    await restore_from(file, data, clock)

    clock.advance(301)
    async with running(data, clock=clock) as server:
        ward.server = server
        (wire,) = await ward.machine.fetch(server.client)
        await ward.deliver(ward.machine.execute(wire))
        command = await command_of(server, upgrade.id)
        assert ("expired", "start_by_passed") == (command.state, command.code)
        assert {"curl": "approved"} == await ward.states()
        assert "dropped" == (await ward.get(f"plans/{plan['id']}"))["state"]
        assert set() == await held_subjects(server)
    assert str(upgrade.id) not in ward.machine.starts


async def test_what_was_carried_out_in_the_lost_time_counts(tmp_path, clock):
    """Ordered, backed up, carried out, restored: the result that comes is true, and nothing runs twice."""
    data = tmp_path / "data"
    async with running(data, clock=clock) as server:
        ward = await new_ward(server, "curl")
        plan = await ward.install(await ward.plan("curl"))
        file = back_up(data, tmp_path / "b.tar", clock)
        cmd_id, _ = await ward.take(CommandType.PACKAGES_UPGRADE)
        result = (PackageResult(name="curl", arch="amd64", outcome=PackageOutcome.INSTALLED),)
        signed = ward.machine.run(cmd_id, packages=result)
    clock.advance(60)

    await restore_from(file, data, clock)

    clock.advance(301)
    async with running(data, clock=clock) as server:
        ward.server = server
        await ward.deliver(signed)
        assert "completed" == (await command_of(server, cmd_id)).state
        assert {"curl": "installed"} == await ward.states()
        assert "done" == (await ward.get(f"plans/{plan['id']}"))["state"]
        assert not {"command.foreign", "command.contradicted"} & set(await server.event_kinds())
    assert 1 == ward.machine.starts.count(cmd_id)


async def test_what_was_handed_out_is_asked_about_and_a_cancellation_stays(tmp_path, clock):
    """Nobody had accepted it, so it starts nowhere any more; the cancellation is carried out, without an alarm."""
    data = tmp_path / "data"
    async with running(data, clock=clock) as server:
        machine = await server.agent()
        await machine.learn_trust(server.client)
        first = await order(server, machine.agent_id)
        await machine.fetch(server.client)
        await act(server, queue.cancel, first)
    clock.advance(60)

    await restore_from(back_up(data, tmp_path / "b.tar", clock), data, clock)

    clock.advance(301)
    async with running(data, clock=clock) as server:
        await answer_all(server, machine)
        states = {row.type: row.state for row in await server.rows(Command)}
        kinds = set(await server.event_kinds())
    assert {"scan.run": "cancelled", "command.cancel": "accepted"} == states
    assert [] == machine.starts
    assert not {"command.foreign", "command.contradicted"} & kinds


@pytest.mark.parametrize("how", ["released", "revoked"])
async def test_what_was_given_up_after_the_backup_does_not_start(tmp_path, clock, how):
    """Its answer was lost, somebody gave it up, and then the server forgot that: the machine does not start it."""
    data = tmp_path / "data"
    async with running(data, clock=clock) as server:
        ward = await new_ward(server, "curl")
        await ward.machine.learn_trust(server.client)
        plan = await ward.plan("curl")
        await ward.install(plan)
        await ward.machine.fetch(server.client)
    file = back_up(data, tmp_path / "b.tar", clock)
    async with running(data, clock=clock) as server:
        ward.server = server
        if how == "revoked":
            await ward.post(f"agents/{ward.machine.agent_id}/revoke", reason="sold")
        else:
            (row,) = await server.rows(Command, Command.type == "packages.upgrade")
            await act(server, queue.release, row.id)
    clock.advance(60)

    await restore_from(file, data, clock)

    clock.advance(301)
    async with running(data, clock=clock) as server:
        ward.server = server
        await answer_all(server, ward.machine)
        (row,) = await server.rows(Command, Command.type == "packages.upgrade")
        assert ("expired", {"curl": "approved"}) == (row.state, await ward.states())
    assert not [start for start in ward.machine.starts if start == str(row.id)]


async def answer_all(server, machine):
    """Take what is handed out until nothing is, and deliver every answer."""
    for _ in range(5):
        wires = await machine.fetch(server.client)
        for wire in wires:
            answer = await machine.deliver(server.client, machine.execute(wire))
            assert 200 == answer.status_code, answer.text
        if not wires:
            return


async def test_a_restore_is_an_event(data, file, clock):
    """Who did it, from which backup, and what was changed, in the transaction of the change."""
    made = int(clock.now().timestamp())
    clock.advance(3600)

    done = await restore_from(file, data, clock)

    async with running(data, clock=clock) as server:
        event = await server.row(Event, Event.kind == "server.restored")
    assert (ACTOR, clock.now(), made) == (event.actor, event.at, event.data["created_at"])
    assert (done.outcome.gen, 1, 1) == (
        event.data["gen"],
        event.data["sessions"],
        event.data["registration_tokens"],
    )
    assert "2026-01-01 00:00 UTC" in event.message


async def test_restored_again_from_the_same_file_it_is_the_same(tmp_path, data, file, clock):
    """But for the time of the restore."""
    states = []
    for number in range(2):
        clock.advance(600)
        await restore_from(file, data, clock)
        async with running(data, clock=clock) as server:
            state = await server.dump()
            assert ["server.restored"] == [kind for kind in await server.event_kinds() if "restored" in kind]
        states.append({table: rows for table, rows in state.items() if table in ("agents", "packages", "users")})
        assert number or states[0]["packages"]

    assert states[0] == states[1]


async def test_a_backup_of_an_older_schema_is_brought_up(tmp_path, data, clock):
    """The database of the release before: migrated, and its rows are there."""
    older = await downgrade(data)
    file = back_up(data, tmp_path / "old.tar", clock)
    assert older == json.loads(contents(file)[MANIFEST])["revision"]

    await restore_from(file, tmp_path / "other", clock)

    async with running(tmp_path / "other", clock=clock) as server:
        assert not await migrate.pending(server.runtime.database)
        assert [] == await migrate.differences(server.runtime.database)
        assert (1, 20) == (len(await server.rows(Agent)), len(await server.rows(Package)))


async def test_the_command_says_what_people_must_do(tmp_path, data, clock):
    """From when on agents are answered, what to compare, and what came back that was perhaps revoked since."""
    await redflag("backup", tmp_path / "b.tar", "--data", data)

    out = (await redflag("restore", tmp_path / "b.tar", "--data", data, "--replace")).stdout

    with closing(sqlite3.connect(data / DATABASE)) as database:
        ((root_fp, horizon),) = database.execute("SELECT root_fp, nonce_horizon FROM server_state").fetchall()
    answers = datetime.fromtimestamp(horizon + 60, tz=UTC)
    for words in (
        root_fp,
        f"{answers:%H:%M} UTC on",
        "1 users, 1 API keys and 1 machines",
        str(data / "replaced-1"),
    ):
        assert words in out
    assert "set its clock" not in out


async def test_a_clock_that_is_behind_the_backup_is_said(tmp_path, data):
    """Nothing could tell then which requests are old."""
    ahead = FrozenClock(datetime(2200, 1, 1, tzinfo=UTC))
    back_up(data, tmp_path / "b.tar", ahead)

    out = (await redflag("restore", tmp_path / "b.tar", "--data", tmp_path / "other")).stdout

    assert "set its clock" in out


# --- crashes ---------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def two(tmp_path, clock):
    """A stopped server, and a backup of another one."""
    for name in ("old", "new"):
        async with running(tmp_path / name, clock=clock) as server:
            await server.agent()
    return tmp_path / "old", back_up(tmp_path / "new", tmp_path / "new.tar", clock)


def restoring(data, file):
    return [REDFLAG, "server", "restore", str(file), "--data", str(data), "--replace"]


async def old_or_new(data, old, new, clock):
    """What the next start finds: the old server as it was, or the complete new one."""
    async with running(data, clock=clock) as server:
        assert 1 == len(await server.rows(Agent))
        kinds = await server.event_kinds()
    found = identity(data)
    assert (found[0], found[2]) in {(old[0], old[2]), (new[0], new[2])}
    is_new = found[0] == new[0]
    assert is_new == ("server.restored" in kinds) == (found[1] > 0)
    assert not (data / READY).exists()
    return is_new


def sweep(command):
    """
    Every changing call of a command, and which threads are counted together.

    strace counts in each thread by itself. In the main one each call can be hit; in those of the database driver,
    the first that gets so far.
    """
    driver = [Point(call, n) for call in ("fdatasync", "unlink", "ftruncate", "pwrite64") for n in range(1, 40, 3)]
    return [*((point, False) for point in trace(command, follow=False)), *((point, True) for point in driver)]


def broken(command, point, fault, follow):
    """Run a command with a fault; None when no thread of the driver gets so far."""
    try:
        return run_broken(command, point, fault, follow=follow)
    except AssertionError:
        if not follow:
            raise
        return None


async def _kill_restores(tmp_path, two, clock, points):
    data, file = two
    pristine = tmp_path / "pristine"
    shutil.copytree(data, pristine, symlinks=True)
    old, new = identity(data), identity(tmp_path / "new")
    outcomes = []
    for point, follow in points:
        shutil.rmtree(data)
        shutil.copytree(pristine, data, symlinks=True)
        data.chmod(0o700)
        if broken(restoring(data, file), point, "kill", follow) is None:
            continue
        outcomes.append(await old_or_new(data, old, new, clock))
        await restore_from(file, data, clock)
        assert await old_or_new(data, old, new, clock)
        assert {".lock", DATABASE, "keys"} == {path.name for path in data.iterdir() if "replaced" not in path.name}
    return outcomes


@needs("strace")
async def test_a_killed_restore_leaves_the_old_server_or_the_new_one(tmp_path, two, clock):
    """Kill -9 at each step of putting it in place: never half, and the next restore clears up."""
    renames = [(Point("rename", n), False) for n in (1, 2, 4, 6)]  # decide, move the first, the last, put aside

    assert [False, True, True, True] == await _kill_restores(tmp_path, two, clock, renames)


@needs("strace")
def test_the_renames_of_a_restore_are_those_that_are_broken(tmp_path, data, file):
    """One decides; keys and database of the old server go and those of the new one come; one puts aside."""
    needed = trace(restoring(data, file))

    assert [Point("rename", n) for n in range(1, 7)] == [point for point in needed if point.call == "rename"]


@pytest.mark.full
@needs("strace")
async def test_a_restore_killed_at_any_moment_leaves_the_old_server_or_the_new_one(tmp_path, two, clock):
    """The same at every call that changes the disk: old up to one moment, and new from then on."""
    data, file = two
    shutil.copytree(data, tmp_path / "traced")
    points = sweep(restoring(tmp_path / "traced", file))
    main = sum(not follow for _, follow in points)

    outcomes = await _kill_restores(tmp_path, two, clock, points)

    assert sorted(outcomes[:main]) == outcomes[:main]
    assert {False, True} == set(outcomes[:main])
    assert {False} == set(outcomes[main:])


async def _fail_restores(tmp_path, two, clock, fault, points):
    """Whether each failing call came after the decision; old or new also then, and one sentence."""
    data, file = two
    pristine = tmp_path / "pristine"
    shutil.copytree(data, pristine, symlinks=True)
    old, new = identity(data), identity(tmp_path / "new")
    outcomes = []
    for point, follow in points:
        shutil.rmtree(data)
        shutil.copytree(pristine, data, symlinks=True)
        data.chmod(0o700)
        before = tree(data)
        done = broken(restoring(data, file), point, fault, follow)
        if done is None:
            continue
        decided = "the next start completes it" in done.stderr
        if done.returncode:
            assert (1, 1) == (done.returncode, len(done.stderr.splitlines())), (point, done.stderr)
            assert done.stderr.startswith("redflag: ")
            untouched = {**before, ".lock": ("-rw-------", b"")}
            assert decided or untouched == {**tree(data), ".lock": ("-rw-------", b"")}, point
        outcomes.append(await old_or_new(data, old, new, clock))
        assert outcomes[-1] == (decided or not done.returncode), point
    return outcomes


@needs("strace")
@pytest.mark.parametrize(
    "fault,points,outcomes",
    [
        (
            "ENOSPC",
            [Point("write", 4), Point("pwrite64", 20), Point("rename", 1), Point("rename", 3)],
            [0, 0, 0, 1],
        ),
        pytest.param(
            "EIO",
            [Point("fsync", 3), Point("fdatasync", 3), Point("fsync", 12), Point("rename", 5)],
            [0, 0, 1, 1],
            marks=pytest.mark.full,
        ),
    ],
)
async def test_a_disk_that_fails_a_restore_is_a_sentence(tmp_path, two, clock, fault, points, outcomes):
    """Before the decision everything is as it was; after it, the next start goes on."""
    assert outcomes == await _fail_restores(tmp_path, two, clock, fault, [(point, True) for point in points])


@pytest.mark.full
@needs("strace")
@pytest.mark.parametrize("fault", ["ENOSPC", "EIO"])
async def test_a_disk_that_fails_a_restore_at_any_moment_is_a_sentence(tmp_path, two, clock, fault):
    """The same for every call that changes the disk, but for those that print."""
    data, file = two
    shutil.copytree(data, tmp_path / "traced")
    points = sweep(restoring(tmp_path / "traced", file))
    printing = max(number for number, (point, _) in enumerate(points) if point.call == "fsync") + 1
    driver = [(point, follow) for point, follow in points if follow]

    assert {False, True} == set(await _fail_restores(tmp_path, two, clock, fault, points[:printing] + driver))


async def test_what_was_prepared_besides_is_kept_and_not_in_the_way(tmp_path, two, clock):
    """A file that does not belong there ends beside what was replaced."""
    data, file = two
    await restore_from(file, tmp_path / "other", clock)
    area = data / READY
    (area / NEW).mkdir(parents=True)
    (area / NEW / "stray").write_text("x")
    for name in (DATABASE, "keys"):
        (tmp_path / "other" / name).rename(area / NEW / name)

    aside = finish_restore(data)

    assert "x" == (aside / NEW / "stray").read_text()
    async with running(data, clock=clock) as server:
        assert 1 == len(await server.rows(Agent))


async def test_whoever_opens_the_directory_next_finishes_a_restore(tmp_path, two, clock):
    """A command as well as a start, several at once, and each only once."""
    data, file = two
    new = identity(tmp_path / "new")
    await restore_from(file, tmp_path / "other", clock)
    area = data / READY
    (area / NEW).mkdir(parents=True)
    for name in (DATABASE, "keys"):
        (tmp_path / "other" / name).rename(area / NEW / name)

    found = await asyncio.gather(*(asyncio.to_thread(finish_restore, data) for _ in range(8)))
    await redflag("user", "list", "--data", data)

    assert [data / "replaced-1"] == [path for path in found if path is not None]
    assert new[0] == identity(data)[0]
    assert finish_restore(data) is None


async def test_a_command_finishes_a_restore_that_was_decided(tmp_path, two, clock):
    """It works on the new server, not on what is left of the old one."""
    data, file = two
    await restore_from(file, tmp_path / "other", clock)
    area = data / READY
    (area / NEW).mkdir(parents=True)
    (data / "keys").rename(area / "keys")
    (data / DATABASE).rename(area / DATABASE)
    for name in (DATABASE, "keys"):
        (tmp_path / "other" / name).rename(area / NEW / name)

    await redflag("backup", tmp_path / "b.tar", "--data", data)

    assert identity(tmp_path / "new")[0] == json.loads(contents(tmp_path / "b.tar")[MANIFEST])["server"]
    assert {DATABASE, "keys"} <= set(tree(data / "replaced-1"))


def backing_up(data, target):
    return [REDFLAG, "server", "backup", str(target), "--data", str(data), "--overwrite"]


def _kill_backups(data, target, points):
    """Kill backups over an older one: what is under the name is one of the two, whole."""
    older = target.read_bytes()
    for point, follow in points:
        target.write_bytes(older)
        broken(backing_up(data, target), point, "kill", follow)
        assert target.read_bytes() == older or not refuses(target), point
        assert all(path.stat().st_mode & 0o077 == 0 for path in target.parent.glob(".redflag-backup-*"))
        with closing(sqlite3.connect(data / DATABASE)) as database:
            assert [("ok",)] == database.execute("PRAGMA integrity_check").fetchall()


@needs("strace")
def test_a_killed_backup_leaves_the_older_one(data, file):
    """While it is written, and around the moment at which it gets its name."""
    points = [Point("write", 3), Point("fsync", 1), Point("rename", 1), Point("fsync", 2)]

    _kill_backups(data, file, [(point, False) for point in points])


@pytest.mark.full
@needs("strace")
def test_a_backup_killed_at_any_moment_leaves_the_older_one(data, file):
    """The same at every call that changes the disk."""
    _kill_backups(data, file, sweep(backing_up(data, file)))


def test_a_stream_that_ends_early_is_a_sentence(data, clock):
    """Nobody reads on: the backup fails and says so."""

    class Closed:
        def write(self, _data):
            raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(ConfigurationError, match="Broken pipe"):
        back_up_to_stream(data, Closed(), now=clock.now())


async def test_a_restore_under_load_of_commands_is_safe(tmp_path, two, clock):
    """Commands and restores at once: each is done or refused with a sentence, and the server stays whole."""
    data, file = two

    async def one(number):
        if number % 2 == 0:
            process = await asyncio.create_subprocess_exec(
                *restoring(data, file), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
        else:
            process = await asyncio.create_subprocess_exec(
                REDFLAG,
                "server",
                "user",
                "list",
                "--data",
                data,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        _, err = await process.communicate()
        return process.returncode, err.decode()

    ended = await asyncio.gather(*(one(number) for number in range(4)))

    for code, err in ended:
        assert code == 0 or (1, 1) == (code, len(err.splitlines())), err
        assert "Traceback" not in err
    with closing(sqlite3.connect(data / DATABASE)) as database:
        assert [("ok",)] == database.execute("PRAGMA integrity_check").fetchall()
    async with running(data, clock=clock) as server, server.runtime.database.read() as session:
        assert 1 == (await session.scalars(select(func.count()).select_from(Agent))).one()
