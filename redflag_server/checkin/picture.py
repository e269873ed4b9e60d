"""What one look at the database shows of the agents of a batch, and what the batch leaves behind in it."""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import Any, NamedTuple, Protocol
from uuid import UUID

import attrs


class NonceUse(NamedTuple):
    """One use of a nonce by a verified request."""

    created: int
    key_id: str
    nonce: str


@attrs.frozen
class Known:
    """What is on record of one scanner of one agent. See `answers.KnownScan`."""

    status: str
    inventory_hash: str | None
    content: str | None
    taken_at: datetime


@attrs.frozen(kw_only=True)
class Member:
    """
    What is on record of one agent, as far as a plain check-in needs it.

    The columns are those of `Agent`. ``version`` tells whether the record changed since it was read; ``ordered``
    whether there are commands that no executor accepted; ``scans`` what is known of its scanners, by name.
    """

    id: UUID
    key_id: str
    status: str
    token_version: int
    evidence_digest: str
    boot_id: str | None
    previous_boot_id: str | None
    mismatched: bool = attrs.field(converter=bool)
    epoch: int
    gen: int
    seq: int
    order_at: int
    rate_arrival: float | None
    ordered: bool = attrs.field(converter=bool)
    scans: Mapping[str, Known]
    version: Any = None


@attrs.frozen
class Trust:
    """
    The trust bundle that agents should hold.

    Attributes:
        epoch: Its epoch.
        version: Its version.
        digest: SHA-256 of its envelope, 64 hex digits.
    """

    epoch: int
    version: int
    digest: str


@attrs.frozen
class Picture:
    """
    What was read for a batch.

    Attributes:
        horizon: Nothing signed at or before it can be claimed.
        free: Nonces that were claimed for this batch. One that is there twice counts for the first request.
        members: The agents, by id.
        trust: The current bundle.
    """

    horizon: int
    free: set[NonceUse]
    members: Mapping[UUID, Member]
    trust: Trust


@attrs.frozen
class Mark:
    """
    What is stored of one agent.

    Attributes:
        id: The agent.
        version: The record must still be this one.
        rate_arrival: Its rate limit, charged.
        seen: What its check-in leaves behind; None when it was refused, or is handled otherwise.
    """

    id: UUID
    version: Any
    rate_arrival: float
    seen: "Seen | None"


@attrs.frozen
class Seen:
    """What a plain check-in leaves behind, beside the time: columns of `Agent`."""

    last_address: str
    order_at: int
    next_check_in_at: datetime


Judge = Callable[[Picture], Sequence[Mark]]
"""Judges a picture; what is to be stored."""


class Gate(Protocol):
    """How a database is asked about a batch: claim, read, judge, store."""

    async def run(
        self, uses: AbstractSet[NonceUse], agents: AbstractSet[UUID], judge: Judge, now: datetime
    ) -> AbstractSet[UUID]:
        """
        Claim nonces and read, judge, and store what follows.

        Args:
            uses: Nonces to claim.
            agents: Agents to read.
            judge: Called once with what was read.
            now: Database time, aware UTC.

        Returns:
            Agents whose marks were not stored, since their record changed after it was read.

        Raises:
            OperationalError: The database cannot be used now. Nonces may be used up; nothing else was stored.
        """
        ...

    async def close(self) -> None:
        """Give back what it holds."""
        ...
