"""What the owner of a machine allows: read anew, believed only when nobody else could have written it."""

import os

import pytest

from redflag_agent.limits_file import MAX_FILE_BYTES, read_limits
from redflag_core.errors import LimitError
from redflag_core.patching import Limits, LocalWindow
from tests.helpers.needs import needs_root


@pytest.fixture
def path(tmp_path):
    """Where the file is."""
    return tmp_path / "limits.toml"


def refusal(path):
    """Why the file allows nothing."""
    with pytest.raises(LimitError) as caught:
        read_limits(path)
    assert 900 == caught.value.retry_after
    assert str(path) in caught.value.message
    return caught.value.message


def test_without_a_file_the_built_in_limits_hold(path):
    """Twenty changes a day, at any time."""
    assert Limits() == read_limits(path)


def test_all_that_can_be_said(path):
    """Each setting, and windows as tables."""
    path.write_text(
        """
changes = true
starts_per_day = 3
managers = ["apt"]

[[windows]]
days = ["sat", "sun"]
start = "22:00"
end = "04:00"
timezone = "Europe/Berlin"

[[windows]]
start = "12:00"
end = "13:00"
"""
    )

    assert Limits(
        starts_per_day=3,
        managers=("apt",),
        windows=(
            LocalWindow(days=("sat", "sun"), start="22:00", end="04:00", timezone="Europe/Berlin"),
            LocalWindow(start="12:00", end="13:00"),
        ),
    ) == read_limits(path)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("changes = ", "is not TOML"),
        ("changes = maybe", "is not TOML"),
        (b"\xff", "is not TOML"),
        ("a = " + "[" * 5000, "is not TOML"),
        ('changes = "no"', "changes"),
        ("starts_per_day = -1", "starts_per_day is out of bounds"),
        ("starts_per_day = 1.5", "starts_per_day"),
        ('managers = ["APT"]', "managers"),
        ("windows = true", "windows"),
        ('[[windows]]\nstart = "22:00"', "windows"),
        ("[[windows]]\nstart = 22:00:00\nend = 23:00:00", "start"),
        ('[[windows]]\nstart = "25:00"\nend = "04:00"', "start is out of bounds"),
        ('[[windows]]\nstart = "22:00"\nend = "04:00"\ntimezone = "Mars/Base"', "no time zone 'Mars/Base'"),
        ('[[windows]]\nstart = "22:00"\nend = "04:00"\ntimezone = "../../etc/passwd"', "no time zone"),
        ('[[windows]]\nstart = "22:00"\nend = "04:00"\ndays = ["caturday"]', "days"),
        ("reboots_per_day = 2", "reboots_per_day"),
        ("x = 1\n" * 12_000, "larger than"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_mistake_in_it_allows_nothing(path, text, reason):
    """A setting that means nothing must not become the built-in one: the sentence names it."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())

    assert reason in refusal(path)


def test_the_bound_of_the_size_is_exact(path):
    """A comment may fill it."""
    path.write_text("#" + "x" * (MAX_FILE_BYTES - 1))
    assert Limits() == read_limits(path)
    path.write_text("#" + "x" * MAX_FILE_BYTES)

    assert "larger than" in refusal(path)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o777])
def test_a_file_that_others_can_write_allows_nothing(path, mode):
    """The message says what to run, and to look at what it says."""
    path.write_text("changes = true")
    path.chmod(mode)

    assert "run chmod 644 on it, and look at what it says" in refusal(path)


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o444, 0o755])
def test_a_file_that_others_can_only_read_is_read(path, mode):
    """It holds no secret."""
    path.write_text("changes = false")
    path.chmod(mode)

    assert not read_limits(path).changes


@needs_root()
def test_a_file_of_another_user_allows_nothing(path):
    """Whoever owns the file may change it."""
    path.write_text("changes = true")
    os.chown(path, 12345, -1)

    assert "belongs to another user" in refusal(path)


def test_what_is_no_regular_file_is_refused_at_once(path):
    """A directory or a pipe is not listed or waited for."""
    path.mkdir()
    assert "Is a directory" in refusal(path)
    path.rmdir()
    os.mkfifo(path, 0o600)

    assert "is not a regular file" in refusal(path)
