"""Key and secret files: private, whole or not there, and a sentence for everything that is wrong with one."""

import errno
import json
import os
import resource
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redflag_core import keyfiles
from redflag_core.encoding import b64url_encode
from redflag_core.errors import KeyFileError
from redflag_core.keyfiles import read_key, read_private, read_secret, write_key, write_private, write_secret
from redflag_core.keys import SigningKey
from redflag_core.testing import SeededEntropy
from tests.helpers.faults import Point, run_broken, trace
from tests.helpers.needs import needs, needs_root

KEY = SigningKey.from_seed(b"k" * 32)
PASSPHRASE = b"correct horse battery staple"
CLEAR = b'{"key_type":"ed25519","sealed":null,"seed":"a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=","v":1}\n'

WRITER = """
import sys
from pathlib import Path
from redflag_core.errors import KeyFileError
from redflag_core.keyfiles import write_private
try:
    write_private(Path(sys.argv[1]), b"new" * 100, replace=sys.argv[2] == "replace")
except KeyFileError as error:
    sys.exit(error.message)
"""
NEW = b"new" * 100
STEPS = {
    "replace": [Point("write", 1), Point("fsync", 1), Point("rename", 1), Point("unlink", 1), Point("fsync", 2)],
    "new": [Point("write", 1), Point("fsync", 1), Point("link", 1), Point("unlink", 1), Point("fsync", 2)],
}
MOMENTS = [(mode, point) for mode, points in STEPS.items() for point in points]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.key"


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """One sealed key for all tests: argon2id takes its time on purpose."""
    path = tmp_path_factory.mktemp("sealed") / "operator.key"
    write_key(path, KEY, passphrase=PASSPHRASE, entropy=SeededEntropy(1))
    return path.read_bytes()


def put(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def refusal(read, path, **arguments):
    with pytest.raises(KeyFileError) as caught:
        read(path, **arguments)
    assert str(path) in caught.value.message
    return caught.value.message


def writer(path, mode):
    return [sys.executable, "-B", "-c", WRITER, str(path), mode]


# What is written is what is read


def test_a_key_comes_back_from_its_file(path):
    """A key in clear has one form on the disk, is private, and opens without a passphrase."""
    write_key(path, KEY)

    assert KEY == read_key(path)
    assert CLEAR == path.read_bytes()
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert ["a.key"] == names(path.parent)


def test_a_sealed_key_opens_with_its_passphrase_only(path, sealed):
    """The right passphrase gives the key, another one a sentence, none the hint that one is needed."""
    put(path, sealed)

    assert KEY == read_key(path, passphrase=PASSPHRASE)
    assert "does not open with this passphrase" in refusal(read_key, path, passphrase=b"incorrect horse")
    assert "a passphrase is needed" in refusal(read_key, path)


def test_a_sealed_file_holds_nothing_of_the_key(sealed):
    """Neither the seed nor the public key can be read from it, and each file has its own salt and nonce."""
    assert KEY.seed not in sealed
    assert b"a2tra2tra2" not in sealed
    assert {"kdf", "ops", "memory", "salt", "box"} == set(json.loads(sealed)["sealed"])


@pytest.mark.parametrize("passphrase, entropy", [(b"", SeededEntropy()), (PASSPHRASE, None)])
def test_a_key_is_not_sealed_with_nothing(path, passphrase, entropy):
    """An empty passphrase or a missing source of salt is refused before anything is written."""
    with pytest.raises(KeyFileError, match="needs a passphrase that is not empty, and an entropy source"):
        write_key(path, KEY, passphrase=passphrase, entropy=entropy)

    assert [] == names(path.parent)


def test_a_secret_comes_back_from_its_file(path):
    """A secret has 32 random bytes, is private, and is read as it was made."""
    value = write_secret(path, SeededEntropy(5))

    assert value == read_secret(path) == SeededEntropy(5).token(32)
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o177])
def test_the_mode_does_not_depend_on_the_umask(path, umask):
    """A careless umask opens nothing."""
    before = os.umask(umask)
    try:
        write_private(path, b"data", replace=False)
    finally:
        os.umask(before)

    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


# An existing file


@pytest.mark.parametrize("existing", ["file", "directory", "dangling link"])
def test_an_existing_file_is_never_replaced(path, existing):
    """Keys and secrets that are there stay what they are, and so does everything else of that name."""
    if existing == "file":
        put(path, b"precious")
    elif existing == "directory":
        path.mkdir()
    else:
        path.symlink_to(path.parent / "elsewhere")
    before = path.lstat()

    for write in (lambda: write_key(path, KEY), lambda: write_secret(path, SeededEntropy())):
        with pytest.raises(KeyFileError, match="exists already and is never overwritten"):
            write()

    assert (before.st_ino, before.st_mtime_ns) == (path.lstat().st_ino, path.lstat().st_mtime_ns)
    assert ["a.key"] == names(path.parent)


def test_replacing_makes_a_new_private_file(path):
    """The mode of the old file is not taken over, and a link is replaced, not followed."""
    target = put(path.parent / "target", b"other", mode=0o644)
    path.symlink_to(target)

    write_private(path, b"new", replace=True)

    assert b"new" == read_private(path)
    assert b"other" == target.read_bytes()
    assert 0o600 == stat.S_IMODE(path.lstat().st_mode)


def test_of_writers_at_once_one_wins_whole(path):
    """Whoever is told that the file was made finds its own content in it, and nobody else is told so."""

    def write(n):
        with suppress(KeyFileError):
            write_private(path, b"%d" % n * 10_000, replace=False)
            return n

    with ThreadPoolExecutor(8) as pool:
        for _ in range(25):
            winners = [n for n in pool.map(write, range(8)) if n is not None]
            assert [path.read_bytes()] == [b"%d" % n * 10_000 for n in winners]
            path.unlink()

    assert [] == names(path.parent)


# What is refused


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o666, 0o777])
def test_a_file_that_others_can_use_is_refused(path, mode):
    """Any right of group or others is too much; the message says what to run."""
    put(path, CLEAR, mode=mode)

    for read in (read_private, read_key, read_secret):
        assert "run chmod 600 on it" in refusal(read, path)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_file_for_its_owner_only_is_read(path, mode):
    """What the owner may do with it does not matter."""
    assert KEY == read_key(put(path, CLEAR, mode=mode))


@needs_root()
def test_a_file_of_another_user_is_refused(path):
    """Whoever owns the file may change it: it must be this user or root."""
    os.chown(put(path, CLEAR), 12345, -1)

    assert "belongs to another user" in refusal(read_key, path)


def test_what_is_no_regular_file_is_refused_at_once(path):
    """A link, a directory or a pipe is not followed, listed or waited for."""
    path.symlink_to(put(path.parent / "target", CLEAR))
    assert "it is a symbolic link" in refusal(read_key, path)

    path.unlink()
    path.mkdir()
    assert "Is a directory" in refusal(read_key, path)

    path.rmdir()
    os.mkfifo(path, 0o600)
    assert "is not a regular file" in refusal(read_key, path)


def test_a_missing_file_or_directory_is_named(tmp_path):
    """The message names the file that is wanted, for reading and for writing."""
    path = tmp_path / "missing" / "a.key"

    assert "No such file" in refusal(read_key, path)
    assert "No such file" in refusal(write_key, path, key=KEY)


def test_the_bound_of_the_size_is_exact(path):
    """The largest file is read, one byte more is something else."""
    put(path, b"x" * 4096)

    assert 4096 == len(read_private(path))
    assert "larger than 4095 bytes" in refusal(read_private, path, max_bytes=4095)


@pytest.mark.parametrize("size", [0, 1, 10, len(CLEAR) // 2, len(CLEAR) - 3])
def test_a_truncated_key_file_is_damaged(path, size):
    """The message says to restore it."""
    assert "is damaged: restore it from a backup" in refusal(read_key, put(path, CLEAR[:size]))


@pytest.mark.parametrize(
    "old, new",
    [
        (b'"seed"', b'"sead"'),
        (b"a2tra2tr", b"a2tr"),
        (b"a2s=", b"a2t="),
        (b'"v":1', b'"v":"1"'),
        (b'"v":1', b'"v":1,"v":1'),
        (b'"sealed":null', b'"sealed":{}'),
        (b'"a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="', b"null"),
    ],
)
def test_a_damaged_key_file_is_not_opened(path, old, new):
    """Another field, a seed of another length or spelling, or no seed at all: damaged."""
    assert "is damaged" in refusal(read_key, put(path, CLEAR.replace(old, new)))


@pytest.mark.parametrize("old, new", [(b'"v":1', b'"v":2'), (b"ed25519", b"p256")])
def test_a_key_file_of_another_release_is_named_as_such(path, old, new):
    """A version or key type of the future is not "damaged"."""
    assert "not known to this release" in refusal(read_key, put(path, CLEAR.replace(old, new)))


@pytest.mark.parametrize(
    "change",
    [
        {"ops": 0},
        {"ops": -1},
        {"ops": keyfiles.MAX_OPS_LIMIT + 1},
        {"memory": 0},
        {"memory": keyfiles.MIN_MEMORY_LIMIT - 1},
        {"memory": keyfiles.MAX_MEMORY_LIMIT + 1},
        {"kdf": "scrypt"},
        {"salt": "AAAA"},
        {"salt": "A"},
        {"box": "AAAA"},
        {"box": ""},
    ],
)
def test_a_damaged_sealed_file_is_refused_before_the_work(path, sealed, change, monkeypatch):
    """Limits out of bounds and wrong sizes are found before a second of work and a gigabyte are spent on them."""
    content = json.loads(sealed)
    content["sealed"].update(change)
    put(path, json.dumps(content).encode())
    monkeypatch.setattr(keyfiles.pwhash.argon2id, "kdf", None)

    assert "is damaged" in refusal(read_key, path, passphrase=PASSPHRASE)


def test_a_file_that_is_both_clear_and_sealed_is_damaged(path, sealed):
    """There is one seed in a file."""
    both = json.loads(CLEAR) | {"sealed": json.loads(sealed)["sealed"]}

    assert "is damaged" in refusal(read_key, put(path, json.dumps(both).encode()), passphrase=PASSPHRASE)


def test_a_changed_box_does_not_open(path, sealed):
    """The box is authenticated: a flipped bit gives no other key."""
    content = json.loads(sealed)
    box = content["sealed"]["box"]
    content["sealed"].update(box=box[:-8] + ("A" if box[-8] != "A" else "B") + box[-7:], ops=1, memory=8192)

    put(path, json.dumps(content).encode())

    assert "does not open with this passphrase" in refusal(read_key, path, passphrase=PASSPHRASE)


def test_a_lack_of_memory_is_said(path, sealed):
    """A machine that is too small is not told that the passphrase is wrong."""
    put(path, sealed)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + keyfiles.MEMORY_LIMIT // 2, hard))
    try:
        with pytest.raises(KeyFileError, match=r"^sealing a key with a passphrase needs 256 MiB of free memory$"):
            read_key(path, passphrase=PASSPHRASE)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@given(st.binary(max_size=80) | st.sampled_from([CLEAR, CLEAR[:40]]), st.integers(0, 200), st.integers(0, 255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_content_is_a_key_or_a_sentence(path, content, at, byte):
    """Whatever is in the file, the only exception is `KeyFileError`; the same for a secret."""
    put(path, content[:at] + bytes([byte]) + content[at + 1 :])

    for read in (read_key, read_secret):
        with suppress(KeyFileError):
            read(path)


def test_the_text_of_a_key_file_never_shows_the_seed(path):
    """A traceback that shows local values shows no seed."""
    assert "a2tr" not in repr(keyfiles._KeyFile(1, "ed25519", seed="a2tra2tra2s="))
    assert not any(field.repr for field in attrs.fields(keyfiles._KeyFile) if field.name == "seed")


# Weak secrets


@pytest.mark.parametrize(
    "text, sentence",
    [
        (b"", "is shorter than 32 bytes"),
        (b"c2hvcnQ", "is shorter than 32 bytes"),
        (b"A" * 42, "is shorter than 32 bytes"),
        (b"A" * 41, "is not base64url"),
        (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "is not random"),
        (b"changeme" * 6, "is not random"),
        (b"password", "is shorter than 32 bytes"),
        (b"not base64url at all!", "is not base64url"),
        (b"\xff\xfe", "is not base64url"),
        (b"a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=", "is not base64url"),
    ],
)
def test_a_weak_secret_is_refused_with_a_sentence(path, text, sentence):
    """Short, typed, repeated or garbled: the message says that deleting the file makes a new one."""
    message = refusal(read_secret, put(path, text + b"\n"))

    assert sentence in message
    assert "delete it to have a new one made" in message


def test_a_secret_needs_eight_different_bytes(path):
    """The line between typed and random is far from both: 7 values in 32 bytes are refused, 8 are not."""
    assert "is not random" in refusal(read_secret, put(path, b64url_encode(bytes(range(7)) * 5).encode()))
    assert bytes(range(8)) * 4 == read_secret(put(path, b64url_encode(bytes(range(8)) * 4).encode()))


# Crashes, full and dying disks


@needs("strace")
@pytest.mark.parametrize("mode", STEPS)
def test_the_content_is_durable_before_the_name_and_the_name_before_the_answer(path, mode):
    """write, fsync, rename or link, fsync of the directory: a power cut at any moment loses nothing promised."""
    if mode == "replace":
        put(path, b"old")

    assert STEPS[mode] == trace(writer(path, mode))


@needs("strace")
@pytest.mark.parametrize("mode, point", MOMENTS)
def test_a_kill_at_any_moment_leaves_the_old_state_or_the_new(path, mode, point):
    """Never a torn file, never another mode, and the next attempt works."""
    states = {NEW, b"old"} if mode == "replace" else {NEW, None}
    if mode == "replace":
        put(path, b"old")

    run_broken(writer(path, mode), point, "kill")

    assert (path.read_bytes() if path.exists() else None) in states
    assert {0o600} >= {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    write_private(path, NEW, replace=True)
    assert NEW == read_private(path)


@needs("strace")
@pytest.mark.parametrize("fault", ["ENOSPC", pytest.param("EIO", marks=pytest.mark.full)])
@pytest.mark.parametrize("mode, point", MOMENTS)
def test_a_disk_that_fails_at_any_moment_leaves_the_old_state_or_the_new(path, mode, point, fault):
    """The failure is told in a sentence, and what was written so far is cleared away."""
    states = {NEW, b"old"} if mode == "replace" else {NEW, None}
    if mode == "replace":
        put(path, b"old")

    done = run_broken(writer(path, mode), point, fault)

    assert f"cannot write {path}: {os.strerror(getattr(errno, fault))}\n" == done.stderr
    assert (path.read_bytes() if path.exists() else None) in states
    assert point.call == "unlink" or {"a.key"} >= set(names(path.parent))


@needs("unshare", "mount")
@needs_root()
@pytest.mark.parametrize(
    "prepare, reason",
    [
        ("head -c 4096 /dev/zero > fill", "No space left on device"),
        ("mount -o remount,ro .", "Read-only file system"),
    ],
)
def test_a_full_or_read_only_disk_is_a_sentence(path, prepare, reason):
    """The real thing: a file system without room, or one that cannot be written."""
    directory = path.parent
    script = f'mount -t tmpfs -o size=4k none "$1" && cd "$1" && {prepare} && shift && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", script, "sh", str(directory), *writer(path, "new")]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (1, f"cannot write {path}: {reason}\n") == (done.returncode, done.stderr)
