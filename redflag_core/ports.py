"""
What a shell must provide: small protocols with atomic verbs.

A port never offers get-then-set: `NonceStore.claim` is one verb, so two callers cannot both win.
`redflag_core.testing` has fakes and contracts. The core calls a port from whichever thread or event loop its own
caller is in, and never from two at once by itself: each implementation says who may share it.
"""

from datetime import datetime
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from redflag_core.keys import VerifyKey
    from redflag_core.machine import RawMachine
    from redflag_core.rate_limit import Decision, RateLimitPolicy


class Clock(Protocol):
    """Two clocks that must never be mixed."""

    def now(self) -> datetime:
        """Wall time, aware UTC: for timestamps in protocols and records."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start that never go back: for durations, timeouts and breakers."""
        ...


class Entropy(Protocol):
    """A source of unpredictable bytes."""

    def token(self, size: int) -> bytes:
        """*size* fresh random bytes."""
        ...


class NonceStore(Protocol):
    """Remembers nonces at least until ``created + RETENTION`` (see `redflag_core.freshness`)."""

    async def claim(self, key_id: str, nonce: str, created: int) -> bool:
        """
        Take the nonce for its one use, atomically and durably.

        Args:
            key_id: Verified key id of the sender.
            nonce: Verified nonce text.
            created: Verified creation time of the message, unix seconds.

        Returns:
            True exactly once for each (key_id, nonce, created); False afterwards, and for every *created* at or
            below the horizon up to which nonces were purged.
        """
        ...


class SyncNonceStore(Protocol):
    """`NonceStore` for callers that block: its verb is not awaited."""

    def claim(self, key_id: str, nonce: str, created: int) -> bool:
        """See `NonceStore.claim`."""
        ...


class RateLimitStore(Protocol):
    """Holds one theoretical arrival time for each key."""

    async def take(self, key: str, policy: "RateLimitPolicy", now: datetime) -> "Decision":
        """Charge one request to *key* under *policy* at *now*, atomically, and say whether it is allowed."""
        ...


class SyncRateLimitStore(Protocol):
    """`RateLimitStore` for callers that block."""

    def take(self, key: str, policy: "RateLimitPolicy", now: datetime) -> "Decision":
        """See `RateLimitStore.take`."""
        ...


class KeyRing(Protocol):
    """Live keys by key id."""

    def find(self, key_id: str) -> "VerifyKey | None":
        """The live key with this id, or None."""
        ...


class Fetcher(Protocol):
    """Gets documents from an untrusted place."""

    def fetch(self, url: str, max_bytes: int) -> bytes:
        """The bytes at *url*, unverified; raises `MalformedError` when there are more than *max_bytes*."""
        ...


class MachineIdentity(Protocol):
    """Reads this machine's hardware and installation ids."""

    def read(self) -> "RawMachine":
        """What can be read now. Unreadable ids are None, never an error."""
        ...
