"""Operators in front of a server under test: their keys, and what they sign."""

import json
from typing import Any

from redflag_core.approval_files import dump_answer, parse_request
from redflag_core.approvals import new_approval, sign_approval
from redflag_core.encoding import b64encode
from redflag_core.keys import SigningKey
from redflag_core.system import SystemEntropy
from redflag_server.trust.operator_keys import add_operator_key
from tests.helpers.operators import first_place
from tests.helpers.server import Server

ALICE, BERT = (SigningKey.from_seed(bytes([n]) * 32) for n in (41, 42))


def public(key: SigningKey) -> str:
    """The public half, as the command line takes it."""
    return b64encode(key.verify_key.public_key)


async def let_approve(
    server: Server, key: SigningKey = ALICE, name: str = "alice", organizations: Any = None
) -> None:
    """Put an operator's key into the trust bundle, for the first organization unless others are named."""
    ids = organizations or {(await first_place(server.runtime)).organization_id}
    await add_operator_key(server.runtime, public_key=public(key), name=name, organizations=ids, actor="cli:test")


def signed(server: Server, asked: bytes, key: SigningKey = ALICE, **changes: Any) -> dict[str, Any]:
    """
    What an operator answers to an exported request.

    Args:
        server: Whose clock counts.
        asked: The file that was exported.
        key: The operator's key.
        changes: What is signed instead of what was asked for, as arguments of `new_approval`.
    """
    request = parse_request(asked)
    values: dict[str, Any] = {
        "approval_id": _uuid4(),
        "root_fp": request.root_fp,
        "organization": request.organization,
        "now": server.clock.now(),
        **changes,
    }
    leaves = values.pop("leaves", request.leaves)
    wire = sign_approval(new_approval(leaves, **values), key)
    document: dict[str, Any] = json.loads(dump_answer(wire, request))
    return document


def _uuid4() -> str:
    from uuid import UUID

    return str(UUID(bytes=SystemEntropy().token(16), version=4))
