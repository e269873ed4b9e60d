"""
Passwords: argon2id, off the event loop, a few at a time.

Sources: RFC 9106 (Argon2), OWASP ASVS 5.0 (6.2.1, 6.2.4, 6.2.8, 11.4.2). A password is taken exactly as typed.
"""

import asyncio
import re
from collections.abc import Callable
from typing import Final, TypeVar

import attrs
from nacl import pwhash
from nacl.exceptions import CryptoError

from redflag_server.problems import InvalidRequestError, UnavailableError

T = TypeVar("T")

MIN_LENGTH: Final = 12
MAX_LENGTH: Final = 1024
"""Longest password: far beyond any passphrase, short enough that hashing it costs nothing extra."""

MIN_DISTINCT: Final = 5
"""Different characters in a password: below, it is one key held down."""

OPERATIONS: Final = 2
MEMORY_BYTES: Final = 19 * 1024 * 1024
"""19 MiB and two passes: 20 ms on a small machine, and the least that OWASP advises for argon2id."""

PARALLEL: Final = 2
MAX_WAITING: Final = 64
"""Passwords that may wait for their turn, about a second's worth; further ones are told to come back."""

_NOBODY: Final = (
    "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
)
"""A hash of the same cost that no password has: an unknown name takes as long as a known one."""

_WORDS: Final = (
    "password", "passwort", "administrator", "admin", "welcome", "letmein", "redflag", "changeme", "iloveyou",
    "dragon", "monkey", "football", "baseball", "princess", "sunshine", "superman", "batman", "master", "secret",
    "server", "login", "default", "hello", "test", "user", "root", "q1w2e3r4", "1q2w3e4r", "1qaz2wsx", "p@ssw0rd",
    "passw0rd",
)  # fmt: skip
"""What the lists of leaked passwords of twelve characters and more are made of."""

_ROWS: Final = ("01234567890", "abcdefghijklmnopqrstuvwxyz", "qwertyuiop", "qwertzuiop", "asdfghjkl", "zxcvbnm")
_RUN: Final = 4
_LEFT: Final = 5
"""Letters and digits (a year has four) that must remain beside common words, runs of keys and the own name."""


def check_password(password: str, *, name: str) -> None:
    """
    Refuse a password that is easily guessed.

    Args:
        password: As typed.
        name: Name of the account: a password made of it is no secret.

    Raises:
        InvalidRequestError: Too short, too long, or guessable. The message says what to change.
    """
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise InvalidRequestError(f"a password has {MIN_LENGTH} to {MAX_LENGTH} characters: try a few words")
    if len(set(password)) < MIN_DISTINCT or len(_unguessable(password.casefold(), name)) < _LEFT:
        raise InvalidRequestError("this password is easily guessed: try a few words that do not belong together")


def _unguessable(text: str, name: str) -> str:
    """What remains of *text* without the user's name, common words and runs of neighbouring keys."""
    for word in (name, *_WORDS):
        text = text.replace(word, " ")
    for row in _ROWS:
        for keys in (row, row[::-1]):
            runs = (keys[start : start + _RUN] for start in range(len(keys) - _RUN + 1))
            text = re.sub(f"({'|'.join(runs)})+", " ", text)
    return re.sub(r"[\W_]", "", text)


@attrs.define
class Passwords:
    """Hashes and checks passwords for one event loop, at most `PARALLEL` at once."""

    _turns: asyncio.Semaphore = attrs.field(factory=lambda: asyncio.Semaphore(PARALLEL), init=False)
    _waiting: int = attrs.field(default=0, init=False)

    async def hash(self, password: str) -> str:
        """What is kept instead of *password*: algorithm, cost, salt and hash in one text."""
        return await self._in_turn(lambda: _hash(password))

    async def verify(self, kept: str | None, password: str) -> bool:
        """
        Whether *password* is the one that *kept* was made of.

        Args:
            kept: What `hash` returned; None for an unknown name, which takes the same time.
            password: Untrusted.
        """
        if len(password) > MAX_LENGTH:
            return False
        return await self._in_turn(lambda: _verify(kept or _NOBODY, password))

    async def _in_turn(self, work: Callable[[], T]) -> T:
        if self._waiting >= MAX_WAITING:
            raise UnavailableError("too many are signing in right now: try again in a moment")
        self._waiting += 1
        try:
            async with self._turns:
                return await asyncio.to_thread(work)
        finally:
            self._waiting -= 1


def _hash(password: str) -> str:
    return pwhash.argon2id.str(password.encode(), OPERATIONS, MEMORY_BYTES).decode("ascii")


def _verify(kept: str, password: str) -> bool:
    try:
        return pwhash.verify(kept.encode("ascii"), password.encode())
    except CryptoError:
        return False
