"""
What a bridge to another system must do: a ticket desk, a documentation system, an alarm service, a chat.

The engine that delivers owns order, locks, links and retries; a bridge only translates. So the contract is small:

1. An `Event` says what happened to what. Events of the same trouble have the same ``dedup_key`` and are delivered
   in the order of their ``position``, one at a time. From its opening to its end a trouble is one ``incident``.
2. For the first event of an incident the engine asks `Bridge.find` and then `Bridge.create`, and keeps the `Link`.
   For each later one it calls `Bridge.update`.
3. When the engine dies between creating and keeping the link, it does the same again: `find`, or a `create` that
   answers what is there, heals it. Hence the rule of every bridge: what it creates carries `Event.external_key`.
4. A bridge raises one of four `BridgeError`s, by what has to happen next: try again, let a person correct it, let
   a person sign in again, or make a new link. It does not retry, sleep or log by itself.
5. What comes in is a hint and never the truth: `InboundBridge.parse_inbound` verifies it and names the record; the
   engine then reads the record.

A bridge is only asked for what it says that it can do: see `Capability`.
"""

import hashlib
import re
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Protocol

import attrs
from attrs import validators

from redflag_core._fields import MOMENT, UUID, count, line, small
from redflag_core.encoding import JsonValue, check_storable, dump_json
from redflag_core.errors import (
    BridgeCredentialsError,
    BridgeError,
    BridgeGoneError,
    BridgeRejectedError,
    BridgeUnavailableError,
)
from redflag_core.scanning import Severity

MAX_TITLE: Final = 200
"""Longest title. Most desks take 100 to 255 characters: `shorten` fits it."""

MAX_DETAIL: Final = 8_192
"""Longest text below the title: the end of what a package manager said, and what to do."""

MAX_DATA_BYTES: Final = 16_384
"""Most data of an event. A webhook should have less than 20 kB in all."""

MAX_DEDUP_KEY: Final = 200
MAX_NAME: Final = 200
MAX_URL: Final = 2_000
MAX_EXTERNAL_ID: Final = 255
MAX_ETAG: Final = 255

MAX_RETRY_AFTER: Final = 86_400.0
"""Longest wait, in seconds, that another system can ask for: a day. Beyond it a person looks sooner anyway."""

_KIND: Final[Any] = validators.matches_re(r"[a-z_]{1,40}\.[a-z_]{1,40}")
_OPTIONAL_UUID: Final[Any] = validators.optional(UUID)
_SECONDS = re.compile(r"[0-9]{1,9}")


class Phase(StrEnum):
    """Where in the life of a trouble an event is."""

    OPEN = "open"
    UPDATE = "update"
    RESOLVE = "resolve"


class Capability(StrEnum):
    """
    What a bridge can do beyond creating.

    One with neither `FIND` nor `DEDUPLICATE`, a chat, may say something twice after a crash.
    """

    FIND = "find"
    """`Bridge.find` finds a record by `Event.external_key`."""

    DEDUPLICATE = "deduplicate"
    """`Bridge.create` of what is there already makes nothing new and answers what is there."""

    UPDATE = "update"
    """`Bridge.update` tells the record what happened: a note, new values, an answer in a chat."""

    RESOLVE = "resolve"
    """`Bridge.update` closes the record on `Phase.RESOLVE`."""

    READ = "read"
    """`Bridge.read` tells whether people closed the record on their side."""

    INBOUND = "inbound"
    """It is an `InboundBridge`."""


class RecordStatus(StrEnum):
    """What a record is in the other system."""

    OPEN = "open"
    CLOSED = "closed"


class FieldKind(StrEnum):
    """How a field of the settings is asked for and kept."""

    TEXT = "text"
    NUMBER = "number"
    FLAG = "flag"
    CHOICE = "choice"
    URL = "url"
    SECRET = "secret"  # noqa: S105  (the name of a kind)
    """Kept encrypted, never shown again, never logged."""


def _is_storable(_instance: Any, attribute: "attrs.Attribute[str]", value: str) -> None:
    check_storable(value, attribute.name, max_bytes=4 * MAX_DETAIL)


@attrs.frozen(kw_only=True)
class Subject:
    """
    What an event is about. What does not apply is None.

    Attributes:
        agent_id: The machine.
        hostname: Its name, for people.
        manager: The package manager.
        package: The package.
        plan_id: The plan.
        command_id: The command.
    """

    agent_id: str | None = attrs.field(default=None, validator=_OPTIONAL_UUID)
    hostname: str | None = attrs.field(default=None, validator=validators.optional(line(MAX_NAME)))
    manager: str | None = attrs.field(default=None, validator=validators.optional(line(MAX_NAME)))
    package: str | None = attrs.field(default=None, validator=validators.optional(line(MAX_NAME)))
    plan_id: str | None = attrs.field(default=None, validator=_OPTIONAL_UUID)
    command_id: str | None = attrs.field(default=None, validator=_OPTIONAL_UUID)


@attrs.frozen(kw_only=True)
class Event:
    """
    Something that happened, for the other system.

    Attributes:
        id: Its id: the same in every attempt.
        position: Its place in the order of the organization's events. Higher is later.
        kind: What happened: ``package.failed``.
        phase: Whether it begins, goes on or is over.
        at: When, unix seconds.
        organization: Whose it is.
        site: Where, or None.
        subject: To what.
        dedup_key: Which trouble. The same trouble has the same key within its organization:
            ``package:<agent>:<manager>:<package>``.
        incident: Which time that this trouble came. A new one begins when it comes back after it was over.
        severity: How bad.
        title: One sentence.
        detail: More, in lines.
        url: Where people read on in the dashboard, or None.
        data: For machines.
    """

    id: str = attrs.field(validator=UUID)
    position: int = attrs.field(validator=count())
    kind: str = attrs.field(validator=_KIND)
    phase: Phase
    at: int = attrs.field(validator=MOMENT)
    organization: str = attrs.field(validator=UUID)
    site: str | None = attrs.field(default=None, validator=_OPTIONAL_UUID)
    subject: Subject = attrs.field(factory=Subject)
    dedup_key: str = attrs.field(validator=line(MAX_DEDUP_KEY))
    incident: str = attrs.field(validator=UUID)
    severity: Severity = Severity.UNKNOWN
    title: str = attrs.field(validator=line(MAX_TITLE))
    detail: str = attrs.field(default="", validator=[validators.max_len(MAX_DETAIL), _is_storable])
    url: str | None = attrs.field(default=None, validator=validators.optional(line(MAX_URL)))
    data: dict[str, JsonValue] = attrs.field(factory=dict, validator=small(MAX_DATA_BYTES))

    @property
    def external_key(self) -> str:
        """
        What a created record carries: ``redflag-`` and 32 hex digits, one for each incident.

        It has no character that any query language knows, and tells a reader nothing about the organization.
        """
        what = dump_json([self.organization, self.dedup_key, self.incident])
        return f"redflag-{hashlib.sha256(what).hexdigest()[:32]}"


@attrs.frozen(kw_only=True)
class Link:
    """
    A record in the other system that stands for an incident.

    Attributes:
        external_key: The incident: `Event.external_key`.
        external_id: The record's id there.
        url: Where people see it, or None.
        etag: What the other system wants to see again with a change, or None.
    """

    external_key: str = attrs.field(validator=line(MAX_EXTERNAL_ID))
    external_id: str = attrs.field(validator=line(MAX_EXTERNAL_ID))
    url: str | None = attrs.field(default=None, validator=validators.optional(line(MAX_URL)))
    etag: str | None = attrs.field(default=None, validator=validators.optional(line(MAX_ETAG)))


@attrs.frozen(kw_only=True)
class Record:
    """
    What was read of a record.

    Attributes:
        external_id: Its id.
        status: Whether it is open.
        changed_by_us: Whether the last change was this connection's own: then nobody is to be told.
    """

    external_id: str = attrs.field(validator=line(MAX_EXTERNAL_ID))
    status: RecordStatus
    changed_by_us: bool = False


@attrs.frozen(kw_only=True)
class Health:
    """
    The answer to "test connection" when it works. When it does not, `Bridge.check` raises.

    Attributes:
        account: As whom the other system knows us, for people.
        version: Its version, or None.
        missing: Rights that the account lacks for what it is to do, in the other system's words. Empty is good.
    """

    account: str = attrs.field(validator=line(MAX_NAME))
    version: str | None = attrs.field(default=None, validator=validators.optional(line(MAX_NAME)))
    missing: tuple[str, ...] = attrs.field(
        default=(), validator=validators.deep_iterable(line(MAX_NAME), validators.max_len(50))
    )


@attrs.frozen(kw_only=True)
class Field:
    """
    One field of the settings of a connection.

    Attributes:
        name: Its key.
        title: What people see.
        kind: How it is asked for and kept.
        required: Whether a connection needs it.
        help: Where to find the value, one sentence.
        choices: Values of a `FieldKind.CHOICE`.
    """

    name: str = attrs.field(validator=validators.matches_re(r"[a-z][a-z0-9_]{0,39}"))
    title: str = attrs.field(validator=line(MAX_NAME))
    kind: FieldKind = FieldKind.TEXT
    required: bool = True
    help: str = ""
    choices: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        if bool(self.choices) != (self.kind is FieldKind.CHOICE):
            raise ValueError(f"{self.name}: choices belong to a choice, and to nothing else")


@attrs.frozen(kw_only=True)
class Manifest:
    """
    What a bridge is, before it is connected to anything.

    Attributes:
        name: Its key: ``connectwise``. The name of its entry point.
        title: What people see.
        capabilities: What it can do.
        fields: What a connection needs to be told.
        longest_title: Characters that the other system takes as a title; `shorten` fits them.
    """

    name: str = attrs.field(validator=validators.matches_re(r"[a-z][a-z0-9_]{0,39}"))
    title: str = attrs.field(validator=line(MAX_NAME))
    capabilities: frozenset[Capability]
    fields: tuple[Field, ...] = ()
    longest_title: int = attrs.field(default=MAX_TITLE, validator=[validators.ge(20), validators.le(MAX_TITLE)])

    @property
    def secrets(self) -> frozenset[str]:
        """Names of the fields that hold secrets."""
        return frozenset(field.name for field in self.fields if field.kind is FieldKind.SECRET)


@attrs.frozen(kw_only=True)
class InboundHint:
    """
    What a message from the other system points at. Nothing else of the message is used.

    Attributes:
        delivery: Id of the message, by which a second copy is known; None when the system has none.
        external_id: The record that may have changed.
    """

    delivery: str | None = attrs.field(default=None, validator=validators.optional(line(MAX_EXTERNAL_ID)))
    external_id: str = attrs.field(validator=line(MAX_EXTERNAL_ID))


class Bridge(Protocol):
    """
    One connection to another system. For one event loop; safe to call for several incidents at once.

    Every verb may raise a `BridgeError`, and nothing else: any other exception is a bug of the bridge, after which
    the engine treats the event as rejected.
    """

    @property
    def manifest(self) -> Manifest:
        """What it is and can do."""
        ...

    async def check(self) -> Health:
        """Prove that the other system answers and knows us. Changes nothing there."""
        ...

    async def find(self, external_key: str) -> Link | None:
        """
        The record that carries *external_key*, or None. With `Capability.FIND`.

        A record that people closed is found too. Of several the oldest counts.
        """
        ...

    async def create(self, event: Event) -> Link:
        """
        Make the record of an incident, carrying `Event.external_key`.

        With `Capability.DEDUPLICATE` it is idempotent: when an open record is there already, that one is the
        answer. Where the other system has no such thing, a bridge may find first and create then: the engine calls
        it for one event of an incident at a time.
        """
        ...

    async def update(self, link: Link, event: Event) -> Link:
        """
        Tell the record what happened; on `Phase.RESOLVE` close it. With `Capability.UPDATE` or `RESOLVE`.

        Closing what is closed changes nothing and is no error.

        Returns:
            The link to keep: a new etag or address may have come.

        Raises:
            BridgeGoneError: The record is no longer there.
        """
        ...

    async def read(self, link: Link) -> Record:
        """
        What the record is now. With `Capability.READ`.

        Raises:
            BridgeGoneError: The record is no longer there.
        """
        ...


class InboundBridge(Bridge, Protocol):
    """A bridge whose system tells about changes."""

    def parse_inbound(self, headers: Iterable[tuple[str, str]], body: bytes, now: datetime) -> InboundHint:
        """
        Verify a message and say which record it is about. Pure: no request is made for it.

        Raises:
            VerificationError: The message must not be trusted. Any other exception is a bug.
        """
        ...


def shorten(text: str, limit: int) -> str:
    """
    *text* in at most *limit* characters, with an ellipsis where it was cut.

    Args:
        text: What is to be shown.
        limit: What the other system takes, at least 1.
    """
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "\u2026"


def error_of_status(status: int, *, retry_after: str | None = None) -> BridgeError | None:
    """
    What an HTTP status means for an event, unless the other system has meanings of its own.

    Args:
        status: The status.
        retry_after: The header of this name, untrusted. Only its form in seconds is used.

    Returns:
        None for success. A redirect is a mistake in the settings: following it would send secrets elsewhere.
    """
    if 200 <= status < 300:
        return None
    if status in (408, 425, 429) or status >= 500:
        return BridgeUnavailableError(
            f"the other system answered {status}: it is tried again", retry_after=_wait(retry_after)
        )
    if status in (401, 403):
        return BridgeCredentialsError(
            f"the other system answered {status}: check the account of this connection and its rights"
        )
    if status in (404, 410):
        return BridgeGoneError(f"the other system answered {status}: the record is no longer there")
    return BridgeRejectedError(
        f"the other system answered {status}: compare the settings of this connection with what it expects"
    )


def _wait(text: str | None) -> float | None:
    seconds = text.strip() if text is not None else ""
    return min(float(seconds), MAX_RETRY_AFTER) if _SECONDS.fullmatch(seconds) else None
