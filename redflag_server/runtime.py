"""What one running server holds: made once at start, handed to services. No module keeps state of its own."""

import asyncio
from typing import Any, Final

import attrs
from litestar import Request

from redflag_core.ports import Clock, Entropy
from redflag_server.accounts.passwords import Passwords
from redflag_server.checkin.waiting import Waiting
from redflag_server.db.engine import Database
from redflag_server.events.recorder import RefusalRecorder
from redflag_server.limits import AddressLimits
from redflag_server.settings import Settings
from redflag_server.trust.keystore import KeyStore

LARGE_BODIES: Final = 64
"""Reports and results handled at once: they have up to 16 MiB each, and all of it is in memory."""


@attrs.frozen
class Runtime:
    """
    The parts of one server.

    Attributes:
        settings: Checked settings.
        clock: Wall and monotonic time. With SQLite the database's time is this clock.
        entropy: Randomness.
        database: The database.
        keys: The server's keys and secrets.
        server: Server id, a UUID.
        root_fp: Fingerprint of the first root key.
        refusals: Recorder of refused requests.
        limits: Coarse limits by address.
        passwords: Hashes and checks passwords.
        waiting: Check-ins that are held open.
        large_bodies: Taken while a large body is read and handled.
    """

    settings: Settings
    clock: Clock
    entropy: Entropy
    database: Database
    keys: KeyStore
    server: str
    root_fp: str
    refusals: RefusalRecorder
    limits: AddressLimits
    passwords: Passwords
    waiting: Waiting = attrs.field(factory=Waiting)
    large_bodies: asyncio.Semaphore = attrs.field(factory=lambda: asyncio.Semaphore(LARGE_BODIES))

    def __attrs_post_init__(self) -> None:
        """What is committed for an agent wakes its check-in."""
        self.database.on_wake = self.waiting.wake


def provide_runtime(request: Request[Any, Any, Any]) -> Runtime:
    """Dependency: the runtime of the app that serves *request*."""
    runtime: Runtime = request.app.state.runtime
    return runtime
