"""
How the agent stands with the server, as the last check-in told: may things be delivered, and what does it hold.

The loop that checks in writes it, the loop that delivers reads it. A check-in may be held open for most of a
minute while reports are delivered: what its answer says of a scanner whose report was accepted meanwhile may be
older than what is known here, so it is passed over. The next check-in says it again if it was true.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import NewType

import attrs

from redflag_core.enrolment import Access, AgentStatus, allows

Mark = NewType("Mark", Mapping[str, int])
"""How many reports of each scanner had been accepted when a check-in was sent."""


@attrs.define
class Contact:
    """
    What both loops know.

    Attributes:
        news: Set when there is something to deliver, or when what may be delivered has changed.
    """

    news: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _status: AgentStatus | None = attrs.field(default=None, init=False)
    _bases: dict[str, str] = attrs.field(factory=dict, init=False)
    _accepted: Counter[str] = attrs.field(factory=Counter, init=False)
    _put_off: set[str] = attrs.field(factory=set, init=False)

    def allows(self, access: Access) -> bool:
        """Whether the last check-in succeeded, and the status that it told may use endpoints of this class."""
        return self._status is not None and allows(self._status, access)

    def base(self, scanner: str) -> str | None:
        """Hash of the inventory that the server holds for *scanner*, as far as is known."""
        return self._bases.get(scanner)

    def mark(self) -> Mark:
        """What `told` needs to know later: to be taken before a check-in is sent."""
        return Mark(self._accepted.copy())

    def is_current(self, scanner: str, since: Mark) -> bool:
        """Whether nothing was accepted of *scanner* since then: a word of that time about it still holds."""
        return self._accepted[scanner] == since.get(scanner, 0)

    def told(self, status: AgentStatus, bases: Mapping[str, str], *, since: Mark) -> None:
        """
        A check-in was answered.

        Args:
            status: Where this agent stands.
            bases: Hash of the inventory that the server holds for each scanner.
            since: When the check-in was sent.
        """
        self._status = status
        newer = {scanner: held for scanner, held in self._bases.items() if not self.is_current(scanner, since)}
        self._bases = {**bases, **newer}
        self._put_off.clear()
        self.news.set()

    def put_off(self, scanner: str) -> None:
        """The server did not take a whole report: it is not sent again before the next answer to a check-in."""
        self._put_off.add(scanner)

    def is_put_off(self, scanner: str) -> bool:
        """See `put_off`."""
        return scanner in self._put_off

    def lost(self) -> None:
        """A check-in failed. Until one succeeds nothing is delivered: one loop asks, and not both."""
        self._status = None

    def accepted(self, scanner: str, inventory: str | None) -> None:
        """
        The server accepted a report.

        Args:
            scanner: Whose.
            inventory: Its hash; None for a failed scan, which leaves the inventory as it was.
        """
        self._accepted[scanner] += 1
        if inventory is not None:
            self._bases[scanner] = inventory
