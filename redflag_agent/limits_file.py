"""
What the owner of this machine allows: `limits.toml`, which no server can write.

The file is read anew for every change, so that what its owner writes counts at once. A file that others could have
written, or that means nothing, allows nothing: a mistake in it must not open the machine.
"""

import os
import stat
import tomllib
from pathlib import Path
from typing import Final, NoReturn

from redflag_core import codec
from redflag_core.errors import LimitError, MalformedError
from redflag_core.patching import Limits

MAX_FILE_BYTES: Final = 64 * 1024
"""50 windows take 5 KiB."""

UNUSABLE_RETRY: Final = 900
"""Seconds after which a command is tried again when the file cannot be used: its owner has to correct it first."""


def read_limits(path: Path) -> Limits:
    """
    Read the owner's limits.

    Args:
        path: TOML file. Without one, the built-in limits hold.

    Raises:
        LimitError: It cannot be read, others can write it, or it means nothing. Then nothing may be changed.
    """
    try:
        text = _read(path)
    except FileNotFoundError:
        return Limits()
    except OSError as error:
        _refuse(f"cannot read {path}: {error.strerror}")
    try:
        return codec.structure(Limits, tomllib.loads(text.decode()))
    except MalformedError as error:
        _refuse(f"{path} means nothing: {error.message}")
    except (ValueError, RecursionError) as error:
        _refuse(f"{path} is not TOML: {error}")


def _read(path: Path) -> bytes:
    with open(path, "rb", opener=_open_without_waiting) as file:  # Path.open takes no opener
        _refuse_of_others(path, os.fstat(file.fileno()))
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        _refuse(f"{path} is larger than {MAX_FILE_BYTES} bytes: it is something else")
    return data


def _open_without_waiting(path: str, flags: int) -> int:
    """Do not wait for the other end of a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _refuse_of_others(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        _refuse(f"{path} is not a regular file")
    if os.name == "nt":  # pragma: no cover  (Windows keeps access lists, not modes)
        return
    if status.st_uid not in (os.geteuid(), 0):
        _refuse(f"{path} belongs to another user: run chown root on it")
    if status.st_mode & 0o022:
        _refuse(f"{path} can be written by others: run chmod 644 on it, and look at what it says")


def _refuse(reason: str) -> NoReturn:
    raise LimitError(f"nothing is changed on this machine: {reason}", retry_after=UNUSABLE_RETRY)
