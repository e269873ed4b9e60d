"""What one running server holds: made once at start, handed to services. No module keeps state of its own."""

from typing import Any

import attrs
from litestar import Request

from redflag_core.ports import Clock, Entropy
from redflag_server.accounts.passwords import Passwords
from redflag_server.agents.access_tokens import TokenCache
from redflag_server.checkin.batching import Batcher
from redflag_server.checkin.gate import open_gate
from redflag_server.checkin.key_cache import KeyCache
from redflag_server.checkin.picture import Gate
from redflag_server.checkin.room import Room
from redflag_server.checkin.waiting import Waiting
from redflag_server.client_errors.capture import ServerErrors
from redflag_server.db.engine import Database
from redflag_server.events.recorder import RefusalRecorder
from redflag_server.limits import AddressLimits
from redflag_server.rate_limits.operators import OperatorLimits
from redflag_server.rate_limits.policies import Policies
from redflag_server.settings import Settings
from redflag_server.trust.keystore import KeyStore


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
        policies: Which rate limits hold.
        operators: Limits of sessions and API keys.
        passwords: Hashes and checks passwords.
        waiting: Check-ins that are held open.
        large_bodies: Room that is taken while a large body is read and handled.
        agent_keys: Keys of agents that were here lately.
        access_tokens: Verifies access tokens of agents.
        check_ins: Gathers check-ins while others are with the database.
        gate: How the database is asked about a batch of them.
        errors: Errors of this server that are not stored yet.
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
    large_bodies: Room = attrs.field(factory=Room)
    agent_keys: KeyCache = attrs.field(factory=KeyCache)
    access_tokens: TokenCache = attrs.field(
        default=attrs.Factory(lambda self: TokenCache(self.keys.agent_tokens, self.server), takes_self=True)
    )
    check_ins: Batcher = attrs.field(factory=Batcher)
    gate: Gate = attrs.field(default=attrs.Factory(lambda self: open_gate(self.database), takes_self=True))
    policies: Policies = attrs.field(
        default=attrs.Factory(lambda self: Policies(self.database, self.clock, self.settings), takes_self=True)
    )
    operators: OperatorLimits = attrs.field(
        default=attrs.Factory(
            lambda self: OperatorLimits(self.database, self.clock, self.policies), takes_self=True
        )
    )
    errors: ServerErrors = attrs.field(
        default=attrs.Factory(lambda self: ServerErrors(self.database, self.clock), takes_self=True)
    )

    def __attrs_post_init__(self) -> None:
        """What is committed for an agent wakes its check-in."""
        self.database.on_wake = self.waiting.wake


def provide_runtime(request: Request[Any, Any, Any]) -> Runtime:
    """Dependency: the runtime of the app that serves *request*."""
    runtime: Runtime = request.app.state.runtime
    return runtime
