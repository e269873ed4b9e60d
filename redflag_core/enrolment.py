"""
Becoming and staying an agent: registration tokens, repeated registrations, the refresh chain, status and pace.

Decisions only: values in, verdict out. The shell stores what a verdict says in one transaction.
"""

import hashlib
import re
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import attrs
from attrs import validators

from redflag_core import codec
from redflag_core._fields import UUID_FORM
from redflag_core.encoding import b64url_decode, b64url_encode
from redflag_core.errors import MalformedError
from redflag_core.freshness import unix
from redflag_core.ports import Entropy

SECRET_BYTES: Final = 32
ACCESS_TOKEN_SECONDS: Final = 24 * 3600
REFRESH_SECONDS: Final = 90 * 24 * 3600
"""A refresh secret that was not used for this long needs an operator's (or a rule's) word again."""

MISMATCH_GRACE_SECONDS: Final = 24 * 3600
"""With no matching request for this long, an agent whose evidence changed becomes `hardware_changed`."""

TOKEN_PREFIX: Final = "rfreg1."  # noqa: S105  (a format name)
MAX_TOKEN_TEXT: Final = 4096
MAX_ADDRESSES: Final = 8


class AgentStatus(StrEnum):
    """Where a registered agent stands."""

    PENDING = "pending"
    ACTIVE = "active"
    QUARANTINED = "quarantined"
    HARDWARE_CHANGED = "hardware_changed"
    RENEWAL_PENDING = "renewal_pending"
    EXECUTOR_ROLLED_BACK = "executor_rolled_back"
    """The executor's journal is older than what it has signed: it may have forgotten what it carried out."""
    REVOKED = "revoked"


class Access(StrEnum):
    """Classes of agent endpoints, by what they need."""

    TOKEN = "token"  # noqa: S105  (a class of endpoints)
    CHECK_IN = "check_in"
    STORE = "store"
    COMMANDS = "commands"


_ALLOWED: Final = {
    AgentStatus.PENDING: frozenset({Access.TOKEN, Access.CHECK_IN}),
    AgentStatus.ACTIVE: frozenset(Access),
    AgentStatus.QUARANTINED: frozenset[Access](),
    AgentStatus.HARDWARE_CHANGED: frozenset({Access.TOKEN, Access.CHECK_IN}),
    AgentStatus.RENEWAL_PENDING: frozenset[Access](),
    AgentStatus.EXECUTOR_ROLLED_BACK: frozenset({Access.TOKEN, Access.CHECK_IN, Access.STORE}),
    AgentStatus.REVOKED: frozenset[Access](),
}


def allows(status: AgentStatus, access: Access) -> bool:
    """Whether an agent of this status may use endpoints of this class. A pending agent stores no data."""
    return access in _ALLOWED[status]


# --- registration tokens ---------------------------------------------------------------------------------------


def _is_secret(_instance: Any, _attribute: Any, value: str) -> None:
    secret_digest(value)


@attrs.frozen
class RegistrationToken:
    """
    What a new agent is given: where to go, whom to believe, and a secret that takes a seat.

    Attributes:
        v: 1.
        id: Token id, a UUID.
        secret: 32 random bytes in base64url; the server keeps only a digest.
        server: Server id.
        root_fp: Fingerprint of the server's first root key.
        addresses: Base URLs, tried in order.
        tls: None for the system's certificate authorities; ``sha256:<64 hex>`` pins the server certificate's
            public key (SPKI); ``ca-sha256:<64 hex>`` the issuing certificate.
    """

    v: int = attrs.field(validator=validators.in_((1,)))
    id: str = attrs.field(validator=validators.matches_re(UUID_FORM))
    secret: str = attrs.field(validator=_is_secret, repr=False)
    server: str = attrs.field(validator=validators.matches_re(UUID_FORM))
    root_fp: str = attrs.field(validator=validators.matches_re("[0-9a-f]{64}"))
    addresses: tuple[str, ...] = attrs.field(
        validator=validators.deep_iterable(
            validators.matches_re("https?://[!-~]{1,250}"),
            validators.and_(validators.min_len(1), validators.max_len(MAX_ADDRESSES)),
        )
    )
    tls: str | None = attrs.field(
        default=None, validator=validators.optional(validators.matches_re("(ca-)?sha256:[0-9a-f]{64}"))
    )

    @property
    def credential(self) -> str:
        """What goes into the body of a registration: ``<token id>.<secret>``."""
        return f"{self.id}.{self.secret}"

    def text(self) -> str:
        """The one string that an operator copies."""
        return TOKEN_PREFIX + b64url_encode(codec.dump(self))


def parse_registration_token(text: str) -> RegistrationToken:
    """
    Read the string that an operator copied.

    Raises:
        MalformedError: Not a registration token.
    """
    stripped = text.strip()
    if not stripped.startswith(TOKEN_PREFIX) or len(stripped) > MAX_TOKEN_TEXT:
        raise MalformedError(f"a registration token starts with {TOKEN_PREFIX}: copy it whole")
    body = b64url_decode(stripped.removeprefix(TOKEN_PREFIX))
    return codec.parse(RegistrationToken, body, max_bytes=MAX_TOKEN_TEXT)


def parse_credential(text: str) -> tuple[str, bytes]:
    """
    Take ``<token id>.<secret>`` apart.

    Returns:
        The token id, and the digest under which the secret is on record.

    Raises:
        MalformedError: Another form.
    """
    token_id, dot, secret = text.partition(".")
    if not dot or not re.fullmatch(UUID_FORM, token_id):
        raise MalformedError("the registration token must be <id>.<secret>")
    return token_id, secret_digest(secret)


def new_secret(entropy: Entropy) -> str:
    """32 random bytes in base64url: a refresh, registration, session or API secret."""
    return b64url_encode(entropy.token(SECRET_BYTES))


def secret_digest(secret: str) -> bytes:
    """
    SHA-256 over the bytes of a secret: what is kept instead of it. Secrets are random, so no salt is needed.

    Raises:
        MalformedError: Not 32 bytes of canonical base64url.
    """
    raw = b64url_decode(secret)
    if len(raw) != SECRET_BYTES:
        raise MalformedError(f"a secret has {SECRET_BYTES} bytes")
    return hashlib.sha256(raw).digest()


# --- repeated registrations ------------------------------------------------------------------------------------


class RegistrationVerdict(StrEnum):
    """What to do with a registration."""

    NEW = "new"
    REPEAT = "repeat"
    CONFLICT = "conflict"


@attrs.frozen
class RegistrationClaim:
    """What makes two registrations the same one."""

    key_id: str
    executor_key_id: str
    refresh_hash: bytes
    evidence_digest: str


def judge_registration(recorded: RegistrationClaim | None, presented: RegistrationClaim) -> RegistrationVerdict:
    """
    Same key, secret and evidence again is the answer lost on the way: repeat it, it costs no seat.

    Anything else with a key that is on record is a conflict; a duplicate never takes over a record.
    """
    if recorded is None:
        return RegistrationVerdict.NEW
    return RegistrationVerdict.REPEAT if recorded == presented else RegistrationVerdict.CONFLICT


# --- the refresh chain -----------------------------------------------------------------------------------------


class RefreshVerdict(StrEnum):
    """What a refresh request is."""

    ADVANCE = "advance"
    REPEAT = "repeat"
    ADOPT = "adopt"
    FORK = "fork"
    LAPSED = "lapsed"


@attrs.frozen
class RefreshChain:
    """
    The server's record of one agent's refresh secrets.

    Attributes:
        current: Digest of the secret that is due next.
        previous: Digest of the secret used last, or None before the first use.
        generation: How often the chain moved on.
        expires_at: Unix seconds after which the chain has lapsed.
        adopted_gen: The server generation in which a higher chain was adopted, or None.
    """

    current: bytes = attrs.field(repr=False)
    previous: bytes | None = attrs.field(repr=False)
    generation: int
    expires_at: int
    adopted_gen: int | None = None


def judge_refresh(
    chain: RefreshChain, *, current: bytes, successor: bytes, proven_generation: int, gen: int, now: datetime
) -> tuple[RefreshVerdict, RefreshChain]:
    """
    Decide on one refresh request of an agent whose key and machine were verified.

    The agent makes its successor secret durable before it asks, and repeats that same pair until it is
    answered: so the pair on record is a lost answer, and any other successor means that two hold the secret.

    Args:
        chain: The record.
        current: Digest of the secret presented.
        successor: Digest of the secret committed to.
        proven_generation: Refresh generation in the executor-signed state.
        gen: Generation of the server; raised when it is restored from a backup.
        now: Database time, aware UTC.

    Returns:
        The verdict, and the chain to store (unchanged for `FORK` and `LAPSED`).

    Raises:
        MalformedError: The successor is the secret itself: a chain must move.
    """
    if current == successor:
        raise MalformedError("the next refresh secret must be another one")
    moment = int(unix(now))
    moved = attrs.evolve(chain, current=successor, previous=current, expires_at=moment + REFRESH_SECONDS)
    repeated = (current, successor) == (chain.previous, chain.current)
    if repeated or current == chain.current:
        if moment > chain.expires_at:
            return RefreshVerdict.LAPSED, chain
        if repeated:
            return RefreshVerdict.REPEAT, moved
        return RefreshVerdict.ADVANCE, attrs.evolve(moved, generation=chain.generation + 1)
    if proven_generation > chain.generation and chain.adopted_gen != gen and gen > 0:
        return RefreshVerdict.ADOPT, attrs.evolve(moved, generation=proven_generation + 1, adopted_gen=gen)
    return RefreshVerdict.FORK, chain


# --- pace ------------------------------------------------------------------------------------------------------

CHECK_IN_SECONDS: Final = 60
"""Base interval of check-ins: a machine that is off is noticed within minutes, an idle fleet costs little."""


def next_check_in(*, base: int, jitter: float) -> int:
    """
    Seconds until an agent should come back: *base* spread by a quarter either way.

    Args:
        base: Seconds.
        jitter: Uniform in [0, 1).
    """
    return max(1, round(base * (0.75 + 0.5 * jitter)))


HELD_SPREAD: Final = 0.2
"""Part of a long-poll by which its end is drawn: agents that began to wait together do not come back together."""

POLL_PAUSE_SECONDS: Final = 1
"""Longest pause between two long-polls: a command that is ordered meanwhile still starts within a second."""


def hold_seconds(asked: int, *, jitter: float) -> float:
    """
    Seconds for which a check-in is held open when there is nothing to do.

    Args:
        asked: What the agent would wait, seconds.
        jitter: Uniform in [0, 1).
    """
    return asked * (1 - HELD_SPREAD * jitter)


def next_poll(*, jitter: float) -> int:
    """
    Seconds until an agent should come back whose check-in was held open.

    Args:
        jitter: Uniform in [0, 1).
    """
    return int((POLL_PAUSE_SECONDS + 1) * jitter)
