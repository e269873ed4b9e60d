"""
Whom the executor believes, and what time it takes it to be.

The network process holds the documents; nothing of them is believed here because it held them. The chain is
followed from the pinned fingerprint each time a command arrives: a few signatures, a few times a day.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs

from redflag_agent.executor.journal import Journal, Page
from redflag_core.commands import executor_time
from redflag_core.errors import UnknownKeyError
from redflag_core.freshness import unix
from redflag_core.keys import VerifyKey
from redflag_core.messages import Role, TrustBundle
from redflag_core.ports import Clock
from redflag_core.trust import check_bundle_end, live_keys, verify_bundle, verify_roots

if TYPE_CHECKING:
    from redflag_agent.state import Pins
    from redflag_agent.trust import Held

Documents: TypeAlias = "Callable[[], Held | None]"
"""What the network process holds of the root chain and the bundle: untrusted here."""

_BEFORE_EVERYTHING: Final = datetime(1970, 1, 1, tzinfo=UTC)


@attrs.frozen
class Timekeeper:
    """
    The executor's time: the system's, but never below what somebody who is believed has signed.

    Args:
        clock: System time.
        journal: Holds the high-water mark.
    """

    clock: Clock
    journal: Journal

    def now(self) -> datetime:
        """
        The time by which something may be judged.

        Raises:
            ClockError: The system clock is too far behind to judge anything.
            JournalError: The journal cannot be read.
        """
        with self.journal.page() as page:
            return self.on(page)

    def on(self, page: Page) -> datetime:
        """`now` within a transaction."""
        return executor_time(self.clock.now(), page.high_water())

    def floor(self) -> datetime:
        """The best that is known of the time, however wrong the system clock is."""
        with self.journal.page() as page:
            passed = page.high_water()
        return max(self.clock.now(), datetime.fromtimestamp(passed, tz=UTC))

    def stamp(self) -> int:
        """`floor` in unix seconds, to date a statement by."""
        return int(unix(self.floor()))


@attrs.frozen
class Authority:
    """
    Whom the executor believes now.

    Attributes:
        bundle: The verified trust bundle, not past its end.
        keys: Live command keys by id.
    """

    bundle: TrustBundle
    keys: Mapping[str, VerifyKey]


def verified_authority(held: "Held | None", pins: "Pins", journal: Journal, time: Timekeeper) -> Authority:
    """
    Verify the documents that are held, and note in the journal what the root says of the time.

    Args:
        held: Untrusted.
        pins: Whom this machine believes since its registration.
        journal: Remembers the newest bundle, so that an older one is refused.
        time: The executor's time.

    Raises:
        VerificationError: There is nobody to believe: no bundle, or one that is not signed by the root, older than
            one that was held, or past its end.
        JournalError: The journal cannot be used.
    """
    if held is None:
        raise UnknownKeyError("no trust bundle is held yet: the agent fetches it with its next check-in")
    root = verify_roots(held.roots, server=pins.server, root_fp=pins.root_fp)
    # Its end is judged once it is noted: a bundle of a higher epoch starts the time anew.
    bundle = verify_bundle(held.bundle, root.key, server=pins.server, now=_BEFORE_EVERYTHING)
    with journal.page() as page:
        page.adopt_bundle(version=bundle.version, epoch=bundle.epoch, iat=bundle.iat)
    now = time.floor()
    check_bundle_end(bundle, now=now)
    return Authority(bundle, live_keys(bundle, Role.COMMAND, now=now))
