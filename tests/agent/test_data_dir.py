"""The data directory: private, and one agent's at a time."""

import os
import subprocess
import sys

import pytest

from redflag_agent.data_dir import DataDirectory, DataDirectoryError, InUseError
from tests.helpers.needs import needs_root


def test_a_new_directory_is_readable_by_its_owner_only(tmp_path):
    """Also below directories that did not exist."""
    directory = DataDirectory(tmp_path / "a" / "b")

    directory.prepare()

    assert 0o700 == directory.path.stat().st_mode & 0o777


def test_an_empty_directory_is_closed_to_others(tmp_path):
    """What an administrator just made with mkdir is taken as it is meant."""
    path = tmp_path / "a"
    path.mkdir(mode=0o755)

    DataDirectory(path).prepare()

    assert 0o700 == path.stat().st_mode & 0o777


def test_a_used_directory_that_is_open_to_others_is_refused(tmp_path):
    """Its modes are not changed behind anybody's back: it may be a home directory."""
    (tmp_path / "file").touch()
    tmp_path.chmod(0o755)

    with pytest.raises(DataDirectoryError, match="chmod 700"):
        DataDirectory(tmp_path).prepare()

    assert 0o755 == tmp_path.stat().st_mode & 0o777


def test_a_file_in_its_place_is_one_sentence(tmp_path):
    """Not a traceback."""
    (tmp_path / "a").touch()

    with pytest.raises(DataDirectoryError, match="cannot use"):
        DataDirectory(tmp_path / "a").prepare()


@needs_root()
def test_a_directory_of_another_user_is_refused(tmp_path):
    """Keys must not land where somebody else can replace them."""
    (tmp_path / "file").touch()
    os.chown(tmp_path, 12345, 12345)

    with pytest.raises(DataDirectoryError, match="another user"):
        DataDirectory(tmp_path).prepare()


def test_two_agents_cannot_use_one_directory(tmp_path):
    """The second is told in one sentence, and the first does not notice."""
    directory = DataDirectory(tmp_path)

    with directory.lock():
        with pytest.raises(InUseError, match="another agent"), directory.lock():
            pass
        assert directory.is_locked()


def test_a_lock_ends_with_its_process(tmp_path):
    """An agent that was killed leaves nothing behind that must be deleted by hand."""
    script = (
        "import sys, os, pathlib; from redflag_agent.data_dir import DataDirectory\n"
        "with DataDirectory(pathlib.Path(sys.argv[1])).lock():\n"
        "    print('locked', flush=True); sys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert b"locked\n" == child.stdout.readline()
        assert DataDirectory(tmp_path).is_locked()
        child.kill()

    assert not DataDirectory(tmp_path).is_locked()
    with DataDirectory(tmp_path).lock():
        pass
