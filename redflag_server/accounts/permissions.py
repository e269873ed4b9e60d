"""What callers may do: permissions by name, and the roles that hold them."""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final

from redflag_server.problems import InvalidRequestError

EVERYTHING: Final = "*"

PERMISSIONS: Final[Mapping[str, str]] = {
    "agents:read": "See machines and what is known of them.",
    "agents:write": "Approve, release and revoke machines.",
    "packages:read": "See packages, their states and plans.",
    "packages:write": "Decide about packages, plan their updates and install them.",
    "approvals:read": "See approvals of operators, and export what must be approved.",
    "approvals:write": "Bring approvals that operators signed.",
    "commands:read": "See commands, and what machines signed about them.",
    "commands:write": "Order scans; cancel, release, retry and archive commands.",
    "registration-tokens:read": "See registration tokens, never their secrets.",
    "registration-tokens:write": "Make and revoke registration tokens.",
    "events:read": "See what happened.",
    "errors:read": "See the errors of machines and of the server.",
    "errors:write": "Take errors for resolved, and delete them.",
    "jobs:read": "See work that was put off, and what failed.",
    "jobs:write": "Try failed jobs again, and remove them.",
    "rate-limits:read": "See how many requests are served, and what is left for a machine.",
    "rate-limits:write": "Set how many requests are served.",
    "api-keys:read": "See API keys, never their secrets.",
    "api-keys:write": "Make and revoke API keys.",
    "users:read": "See who has an account.",
    "users:write": "Disable accounts.",
}


class UserRole(StrEnum):
    """What a person is here."""

    OWNER = "owner"
    VIEWER = "viewer"


_HELD: Final[Mapping[UserRole, frozenset[str]]] = {
    UserRole.OWNER: frozenset({EVERYTHING}),
    UserRole.VIEWER: frozenset(name for name in PERMISSIONS if name.endswith(":read")),
}


def permissions_of(role: UserRole) -> frozenset[str]:
    """The permissions of everybody with *role*."""
    return _HELD[role]


def common(first: Iterable[str], second: Iterable[str]) -> frozenset[str]:
    """Permissions that both hold: what remains of a key when its maker's are fewer."""
    one, other = frozenset(first), frozenset(second)
    if EVERYTHING in one:
        return other
    return one if EVERYTHING in other else one & other


def check_permissions(names: Iterable[str]) -> tuple[str, ...]:
    """
    Check permissions asked for.

    Returns:
        Each once, in order of name.

    Raises:
        InvalidRequestError: None, or one that does not exist.
    """
    wanted = sorted(set(names))
    unknown = [name for name in wanted if name not in PERMISSIONS and name != EVERYTHING]
    if unknown or not wanted:
        wrong = f"there is no permission {unknown[0]!r}" if unknown else "name at least one permission"
        raise InvalidRequestError(f"{wrong}; there are {EVERYTHING}, {', '.join(PERMISSIONS)}")
    return tuple(wanted)
