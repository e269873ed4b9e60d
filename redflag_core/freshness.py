"""
Timestamp windows and nonces: the two halves of "not a replay".

A message is fresh when its time is within the tolerance; it is first when its nonce was never claimed. Check
freshness before the signature (cheap first), claim the nonce after it (a forger must not burn nonces).
"""

from datetime import datetime
from typing import Final, Protocol

from redflag_core._fields import MAX_MOMENT
from redflag_core.encoding import check_storable
from redflag_core.errors import MalformedError, ReplayError, StaleError
from redflag_core.ports import NonceStore, SyncNonceStore

TOLERANCE: Final = 300
"""Seconds a message may be old, or its clock wrong, either direction, inclusive."""

RETENTION: Final = 2 * TOLERANCE
"""Seconds after ``created`` for which a nonce is kept: twice what any message that still passes can be old."""


MAX_CLAIM_BYTES: Final = 512
"""Longest key id and nonce of a store, each in UTF-8. Ours have 32 and 22; ids of webhooks have up to 256."""


class Claimable(Protocol):
    """A verified message that carries a nonce."""

    @property
    def key_id(self) -> str:
        """Verified key id of the sender."""
        ...

    @property
    def nonce(self) -> str:
        """The nonce text."""
        ...

    @property
    def created(self) -> int:
        """Creation time, unix seconds."""
        ...


def unix(moment: datetime) -> float:
    """
    Unix seconds of an aware datetime.

    Raises:
        ValueError: A naive datetime: a bug of the caller.
    """
    if moment.utcoffset() is None:
        raise ValueError("now must be an aware datetime")
    return moment.timestamp()


def check_window(created: int, expires: int, *, now: datetime, tolerance: int = TOLERANCE) -> None:
    """
    Check that a message created at *created* is current.

    Args:
        created: Unverified creation time, unix seconds.
        expires: Unverified end of validity, unix seconds, inclusive.
        now: Current time, aware UTC. Compared once.
        tolerance: Largest allowed difference in seconds, either direction, inclusive.

    Raises:
        StaleError: Too old, too new, or past its own end.
    """
    current = unix(now)
    if created < current - tolerance or current > expires:
        raise StaleError("the message is too old: check the sender's clock, and send it again")
    if created > current + tolerance:
        raise StaleError("the message comes from the future: check the sender's clock")


def horizon_after_purge(now: datetime, *, retention: int = RETENTION) -> int:
    """
    The creation time, unix seconds, up to which nonces may be forgotten at *now*.

    Store this horizon first, then purge: `created` at or below it is refused from then on.
    """
    return int(unix(now)) - retention - 1


def next_horizon(stored: int, now: datetime) -> int:
    """
    What a purge stores as the horizon. It only moves on, with one exception.

    A horizon beyond what a restore sets was stored while the clock was wrong, and would refuse everything until
    that time. It is set to the end of the tolerance: all that was signed until now stays refused.

    Args:
        stored: The present horizon.
        now: Current time, aware UTC.
    """
    moment = int(unix(now))
    if stored > moment + RETENTION:
        return moment + TOLERANCE
    return max(stored, horizon_after_purge(now))


def check_claim(key_id: str, nonce: str, created: int) -> None:
    """
    Check that every store can keep a claim. Stores do this first, so that they all refuse the same ones.

    Args:
        key_id: Id of the sender's key, as it was verified: genuine senders may choose theirs.
        nonce: The nonce text, likewise.
        created: Creation time, unix seconds.

    Raises:
        MalformedError: A text holds U+0000 or a lone surrogate, which databases refuse, or the time is none.
        TooLargeError: A text is longer than `MAX_CLAIM_BYTES`.
    """
    check_storable(key_id, "the key id", max_bytes=MAX_CLAIM_BYTES)
    check_storable(nonce, "the nonce", max_bytes=MAX_CLAIM_BYTES)
    if not 0 <= created <= MAX_MOMENT:
        raise MalformedError("the creation time is not between 1970 and 9999")


def refuse_replay(claimed: bool) -> None:
    """
    Turn the answer of a nonce store into a verdict.

    Raises:
        ReplayError: The nonce was not free.
    """
    if not claimed:
        raise ReplayError("this message was received before: sign each attempt with a fresh nonce")


async def claim_nonce(message: Claimable, store: NonceStore) -> None:
    """
    Take the nonce of a verified message for its one use.

    Args:
        message: Verified message.
        store: Where nonces are claimed, atomically and durably.

    Raises:
        ReplayError: The nonce was claimed before, or is older than the store remembers.
    """
    refuse_replay(await store.claim(message.key_id, message.nonce, message.created))


def claim_nonce_sync(message: Claimable, store: SyncNonceStore) -> None:
    """`claim_nonce` with a store that blocks."""
    refuse_replay(store.claim(message.key_id, message.nonce, message.created))
