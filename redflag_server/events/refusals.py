"""Every refused API request leaves an event: hooked in where all errors of all routes pass."""

from typing import Final

from litestar import Litestar
from litestar.exceptions import HTTPException
from litestar.types import Scope

from redflag_core.errors import RedFlagError
from redflag_server.addresses import client_address
from redflag_server.checkin.authentication import verified_sender
from redflag_server.events.recorder import Refusal
from redflag_server.organizations.tables import INSTALLATION
from redflag_server.problems import status_of
from redflag_server.runtime import Runtime

OWN_EVENTS: Final = frozenset({"machine_mismatch", "refresh_fork"})
"""Refusals that are recorded with their consequence, in their own transaction."""


async def record_refusal(error: Exception, scope: Scope) -> None:
    """
    Record a request that was refused with a 4xx.

    Args:
        error: Why.
        scope: The request; untrusted but for a verified sender.
    """
    if not scope["path"].startswith("/api/"):
        return
    if isinstance(error, RedFlagError):
        code, message, status = error.code, error.message, int(status_of(error))
    elif isinstance(error, HTTPException):
        code, message, status = "invalid_request", str(error.detail), error.status_code
    else:
        return
    if not 400 <= status < 500 or code in OWN_EVENTS:
        return
    runtime: Runtime = Litestar.from_scope(scope).state.runtime
    sender = verified_sender(scope)
    await runtime.refusals.record(
        Refusal(
            code=code,
            address=client_address(scope, runtime.settings.trusted_proxies),
            method=str(scope.get("method", "")),
            path=storable(scope["path"]),
            message=storable(message)[:1000],
            organization_id=INSTALLATION if sender is None else sender.organization_id,
            agent_id=None if sender is None else sender.entry.agent_id,
        )
    )


def storable(text: str) -> str:
    """A text that came from outside without the one character that PostgreSQL does not store."""
    return text.replace("\x00", "\ufffd")
