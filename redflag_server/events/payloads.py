"""
What of an event the chain covers: one text for each event, made from its row.

It is made from what the database gives back, not from what was written: so the row that people are shown is what
is verified, and nothing else has to be stored for it.
"""

import hashlib
from datetime import UTC
from uuid import UUID

from redflag_core.audit import MAX_PAYLOAD
from redflag_core.encoding import dump_json
from redflag_server.events.tables import Event


def payload_of(event: Event) -> str:
    """
    The payload of an event in its history: canonical JSON of all that it says.

    Args:
        event: As the database has it.

    Returns:
        At most `MAX_PAYLOAD` characters: what is longer is named by its digest.
    """
    facts = {
        "v": 1,
        "id": str(event.id),
        "at": event.at.astimezone(UTC).isoformat(timespec="microseconds"),
        "kind": event.kind,
        "actor": event.actor,
        "agent_id": _text(event.agent_id),
        "package_id": _text(event.package_id),
        "code": event.code,
        "message": event.message,
        "data": event.data,
    }
    text = dump_json(facts)
    if len(text) <= MAX_PAYLOAD:
        return text.decode()
    return dump_json({"v": 1, "id": str(event.id), "sha256": hashlib.sha256(text).hexdigest()}).decode()


def _text(identity: UUID | None) -> str | None:
    return None if identity is None else str(identity)
