"""What the API says about accounts and keys."""

from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import attrs

from redflag_server.fields import MAX_LABEL, between, line

MAX_DAYS: Final = 3650
MAX_SCOPES: Final = 50


@attrs.frozen
class ApiKeyItem:
    """
    An API key, without its secret.

    Attributes:
        id: Its id.
        name: What it is for.
        scopes: Its permissions; ``*`` is all.
        organization_id: The one organization it sees; null for what its maker sees.
        created_at: When it was made.
        expires_at: When it ends by itself, or null.
        last_used_at: Its last use, to the minute, or null.
        revoked_at: When it was revoked, or null.
    """

    id: UUID
    name: str
    scopes: list[str]
    organization_id: UUID | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


@attrs.frozen
class NewApiKey:
    """
    Body of a request for a key.

    Attributes:
        name: What it is for.
        scopes: Its permissions; none that the maker does not have.
        organization_id: The one organization it sees, or null for what its maker sees.
        expires_in_days: When it ends by itself, or null for never.
    """

    name: str = attrs.field(validator=line(MAX_LABEL))
    scopes: tuple[str, ...] = attrs.field(
        validator=[attrs.validators.min_len(1), attrs.validators.max_len(MAX_SCOPES)]
    )
    organization_id: str | None = None
    expires_in_days: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(between(1, MAX_DAYS))
    )


@attrs.frozen
class MadeApiKey:
    """
    A key that was made.

    Attributes:
        key: The key itself. It is shown this once.
        api_key: Its record.
    """

    key: str = attrs.field(repr=False)
    api_key: ApiKeyItem


@attrs.frozen
class UserItem:
    """
    Somebody with an account.

    Attributes:
        id: Its id.
        name: With which to sign in.
        role: ``owner`` or ``viewer``.
        organization_id: The one organization it sees; null for all.
        created_at: When the account was made.
        disabled_at: When it was disabled, or null.
    """

    id: UUID
    name: str
    role: str
    organization_id: UUID | None
    created_at: datetime
    disabled_at: datetime | None


_MADE: Final = datetime(2026, 1, 2, 9, 30, tzinfo=UTC)
_ENDS: Final = datetime(2027, 1, 2, 9, 30, tzinfo=UTC)

API_KEY_EXAMPLE: Final = ApiKeyItem(
    id=UUID("01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e5f"),
    name="nightly report",
    scopes=["agents:read", "packages:read"],
    organization_id=UUID("01936f3e-0000-7000-8000-000000000001"),
    created_at=_MADE,
    expires_at=_ENDS,
    last_used_at=_MADE,
    revoked_at=None,
)
NEW_API_KEY_EXAMPLE: Final = NewApiKey("nightly report", ("agents:read", "packages:read"), None, 365)
MADE_API_KEY_EXAMPLE: Final = MadeApiKey("rfk_Q2hhbmdlIG1lOiB0aGlzIGlzIG9ubHkgYW4gZXhhbXA", API_KEY_EXAMPLE)
USER_EXAMPLE: Final = UserItem(
    id=UUID("01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e60"),
    name="alice",
    role="owner",
    organization_id=None,
    created_at=_MADE,
    disabled_at=None,
)
