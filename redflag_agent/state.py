"""
What the agent must remember: whom it believes, who it is, and its secrets. One file, written whole and fsynced.

Rule of this file: what a request commits to is on disk before the request is sent, so an agent that is killed at
any moment repeats the same request instead of making up a new one.
"""

from pathlib import Path
from typing import Any, Final

import attrs

from redflag_core import codec
from redflag_core.errors import ConfigurationError, MalformedError
from redflag_core.keyfiles import read_private, write_private

MAX_STATE_BYTES: Final = 64 * 1024
"""Eight addresses of 253 characters and an access token take less than 8 KiB."""


class StateError(ConfigurationError):
    """The state file cannot be used. The message says what to do."""

    code = "agent_state"


@attrs.frozen
class Pins:
    """
    Whom this agent believes, from the registration token.

    Attributes:
        server: Server id.
        root_fp: Fingerprint of the server's first root key.
        addresses: Base URLs, tried in order.
        tls: TLS pin, or None.
    """

    server: str
    root_fp: str
    addresses: tuple[str, ...]
    tls: str | None = None


@attrs.frozen
class Registration:
    """
    Who this agent is to the server.

    Attributes:
        agent_id: UUID of the record.
        organization: Whose machine it is, pinned.
    """

    agent_id: str
    organization: str


@attrs.frozen
class RefreshSecrets:
    """
    This side of the refresh chain.

    Attributes:
        current: The secret that is due.
        pending: Its successor, once it has been made; the same until the server has answered.
        generation: The server's count, as it last told.
    """

    current: str = attrs.field(repr=False)
    pending: str | None = attrs.field(default=None, repr=False)
    generation: int = 0


@attrs.frozen
class AccessToken:
    """
    What authorizes requests.

    Attributes:
        token: For the authorization header.
        obtained_at: Unix seconds, this clock.
        expires_in: Seconds from then.
        evidence: Digest of the evidence it was given for.
    """

    token: str = attrs.field(repr=False)
    obtained_at: int
    expires_in: int
    evidence: str


@attrs.frozen
class AgentState:
    """
    All that is remembered.

    Attributes:
        v: 1.
        made_for: Digest of the evidence with which keys and first secret were made; None while there are none.
        replace_machine_id: Whether the server found another agent with this machine id.
        pins: Whom to believe, once a registration token was given.
        registration: Set by the server's answer.
        refresh: This side of the refresh chain.
        access: The access token, or None before the first.
        bundle_version: Of the trust bundle held, 0 for none.
        bundle_epoch: Of the trust bundle held.
        status: The server's last word on this agent: a status, or the code of its refusal.
        status_detail: The server's sentence to it.
    """

    v: int = attrs.field(default=1, validator=attrs.validators.in_((1,)))
    made_for: str | None = None
    replace_machine_id: bool = False
    pins: Pins | None = None
    registration: Registration | None = None
    refresh: RefreshSecrets | None = None
    access: AccessToken | None = None
    bundle_version: int = 0
    bundle_epoch: int = 0
    status: str | None = None
    status_detail: str | None = None


@attrs.define
class StateFile:
    """
    The state and the file that holds it. One writer: the agent that holds the lock of the data directory.

    Attributes:
        path: The file.
        state: What it holds.
    """

    path: Path
    state: AgentState

    @classmethod
    def open(cls, path: Path) -> "StateFile":
        """
        Read the file; a missing one is the empty state.

        Raises:
            StateError: It is damaged.
            KeyFileError: It can be read by others, or not by this user.
        """
        if not path.exists():
            return cls(path, AgentState())
        try:
            data = read_private(path, max_bytes=MAX_STATE_BYTES)
            return cls(path, codec.parse(AgentState, data, max_bytes=MAX_STATE_BYTES))
        except MalformedError:
            raise StateError(
                f"{path} is damaged: restore it from a backup, or move it away and register this machine again"
            ) from None

    def update(self, **changes: Any) -> AgentState:
        """
        Change fields and make them durable before this returns; unchanged values cost nothing.

        Raises:
            KeyFileError: The system refuses to write; the state is then what it was.
        """
        changed = attrs.evolve(self.state, **changes)
        if changed != self.state:
            write_private(self.path, codec.dump(changed) + b"\n", replace=True)
            self.state = changed
        return self.state
