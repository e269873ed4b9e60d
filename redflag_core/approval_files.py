"""
The two files of an approval: what a server asks for, and what an operator signed.

The request is carried to where the operator's key is, the answer is carried back. Neither is trusted. Of a request
only what is going to be signed counts: what is shown is worked out from the exact parameters, and a transaction
that does not have the hash in them is refused. Of an answer only the signature counts.
"""

from typing import Any, Final

import attrs
from attrs import validators

from redflag_core import codec
from redflag_core._fields import BINDING, HASH, UUID, VERSION, each_once, is_base64, line
from redflag_core.approvals import ApprovalLeaf, approval_leaf
from redflag_core.commands import MAX_APPROVAL, MAX_PARAMS, CommandType, UpgradeParams, parse_params
from redflag_core.encoding import b64decode, b64encode
from redflag_core.errors import CommandRefusedError, MalformedError
from redflag_core.patching.plan import NEVER_APPROVED, Transaction, beyond_routine

MAX_APPROVAL_ITEMS: Final = 500
"""Commands of one file: more than people look through, and few enough to prove each anew at every delivery."""

MAX_REQUEST_BYTES: Final = 16 * 1024 * 1024
"""Bytes of a request: a transaction has 1 to 400 KiB, and no document may have more items than fit into this."""

MAX_ANSWER_BYTES: Final = 512 * 1024
"""Bytes of an answer: 500 leaves of 300 bytes, and the envelope."""

MAX_HOSTNAME: Final = 253
"""Characters, as at registration."""

_PARAMS: Final[Any] = validators.and_(validators.max_len(MAX_PARAMS * 4 // 3 + 4), is_base64)
_ENVELOPE: Final[Any] = validators.and_(validators.min_len(1), validators.max_len(MAX_APPROVAL), is_base64)


@attrs.frozen(kw_only=True)
class ApprovalItem:
    """
    One command that is to be approved.

    Attributes:
        agent_id: The agent.
        hostname: How its machine is called. Only claimed: it is not part of what is signed.
        machine_binding: Its machine, 32 hex digits.
        type: Type of the command.
        params: The exact JSON text of its parameters in base64.
        transaction: What would be changed; it must have the hash that the parameters name.
    """

    agent_id: str = attrs.field(validator=UUID)
    hostname: str = attrs.field(validator=line(MAX_HOSTNAME))
    machine_binding: str = attrs.field(validator=BINDING)
    type: str = attrs.field(validator=validators.matches_re(r"[a-z]+\.[a-z_]{1,40}"))
    params: str = attrs.field(validator=_PARAMS)
    transaction: Transaction | None = None

    @property
    def leaf(self) -> ApprovalLeaf:
        """What is signed of it."""
        return approval_leaf(self.agent_id, self.machine_binding, self.type, b64decode(self.params))


@attrs.frozen(kw_only=True)
class ApprovalRequest:
    """
    What a server asks an operator to sign.

    Attributes:
        v: 1.
        server: The server's id.
        root_fp: Fingerprint of its first root key, as it says. The operator must know it from elsewhere.
        organization: Id of the organization whose machines these are.
        organization_name: How it is called. Only claimed.
        items: The commands, in the order of their proofs.
    """

    v: int = attrs.field(default=1, validator=VERSION)
    server: str = attrs.field(validator=UUID)
    root_fp: str = attrs.field(validator=HASH)
    organization: str = attrs.field(validator=line(64))
    organization_name: str = attrs.field(validator=line(256))
    items: tuple[ApprovalItem, ...] = attrs.field(
        validator=[
            validators.min_len(1),
            validators.max_len(MAX_APPROVAL_ITEMS),
            each_once("a command", lambda item: item.leaf),
        ]
    )

    @property
    def leaves(self) -> tuple[ApprovalLeaf, ...]:
        """What is signed, in order."""
        return tuple(item.leaf for item in self.items)


@attrs.frozen(kw_only=True)
class ApprovalAnswer:
    """
    What an operator signed, with what is needed to prove each command of it.

    Attributes:
        v: 1.
        envelope: The signed approval in base64.
        leaves: What it covers, in order.
    """

    v: int = attrs.field(default=1, validator=VERSION)
    envelope: str = attrs.field(validator=_ENVELOPE)
    leaves: tuple[ApprovalLeaf, ...] = attrs.field(
        validator=[validators.min_len(1), validators.max_len(MAX_APPROVAL_ITEMS)]
    )

    @property
    def wire(self) -> bytes:
        """The signed approval, untrusted until it is opened (`redflag_core.approvals.open_approval`)."""
        return b64decode(self.envelope)


def parse_request(data: bytes) -> ApprovalRequest:
    """
    Read a request.

    Args:
        data: Untrusted bytes of a file.

    Raises:
        MalformedError: It is none.
    """
    return codec.parse(ApprovalRequest, data, max_bytes=MAX_REQUEST_BYTES)


def dump_request(request: ApprovalRequest) -> bytes:
    """
    The file of a request.

    Raises:
        MalformedError: It would be larger than an operator's tool reads: ask for less at once.
    """
    data = codec.dump(request) + b"\n"
    try:
        parse_request(data)
    except MalformedError:
        raise MalformedError("the request is larger than one file may be: ask for less at once") from None
    return data


def parse_answer(data: bytes) -> ApprovalAnswer:
    """
    Read an answer. Nothing of it is verified by that.

    Args:
        data: Untrusted bytes of a file.

    Raises:
        MalformedError: It is none.
    """
    return codec.parse(ApprovalAnswer, data, max_bytes=MAX_ANSWER_BYTES)


def dump_answer(wire: bytes, request: ApprovalRequest) -> bytes:
    """
    The file of an answer.

    Args:
        wire: The signed approval.
        request: What was signed.
    """
    return codec.dump(ApprovalAnswer(envelope=b64encode(wire), leaves=request.leaves)) + b"\n"


def check_transaction(item: ApprovalItem) -> Transaction:
    """
    Work out what a command would change, from what is going to be signed.

    Args:
        item: Untrusted.

    Returns:
        The transaction, which has the hash that the parameters name: the machine makes exactly these changes.

    Raises:
        MalformedError: Another type than ``packages.upgrade``, no parameters of it, or the transaction is missing,
            another one, or one that no machine carries out.
    """
    try:
        params = parse_params(item.type, b64decode(item.params))
    except CommandRefusedError as error:
        raise MalformedError(error.message) from None
    if not isinstance(params, UpgradeParams):
        raise MalformedError(f"{item.type} needs no approval: only {CommandType.PACKAGES_UPGRADE} can")
    found = item.transaction
    if found is None or (found.manager, found.plan_hash) != (params.manager, params.plan_hash):
        raise MalformedError("the changes in the file are not those that would be signed: do not trust this file")
    if set(found.requested) != {target.key for target in params.packages}:
        raise MalformedError("what the order asks for is not what the changes are for: do not trust this file")
    if NEVER_APPROVED & beyond_routine(found):
        raise MalformedError("no approval allows this: its repository is not signed, or its owner holds a package")
    return found
