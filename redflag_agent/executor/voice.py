"""
What the executor says, signed with its key: accepted, refused, or how a command ended.

A result always fits: what people can do without is left out step by step, and what a plan cannot do without makes
it fail instead. What a package manager printed can hold anything and never keeps a result from being signed.
"""

import hashlib
from collections.abc import Iterator
from typing import Final

import attrs

from redflag_agent.executor.errors import ExecutorError
from redflag_agent.executor.identity import Executor
from redflag_agent.executor.journal import Entry, State
from redflag_agent.state import AgentState, Pins, Registration, StateFile
from redflag_core.commands import CommandType, VerifiedCommand
from redflag_core.errors import CommandRefusedError, RedFlagError, TooLargeError
from redflag_core.patching import Transaction
from redflag_core.scanning import MAX_TEXT, clean_text
from redflag_core.statements import (
    MAX_STATEMENT_BYTES,
    CommandAccepted,
    CommandRefused,
    CommandResult,
    Outcome,
    PackageResult,
    sign_statement,
)

FORGOTTEN: Final = "this ended more than 90 days ago: the details are not kept any longer"


@attrs.frozen
class Why:
    """
    Why a command was refused or did not complete.

    Attributes:
        code: Code of the error.
        detail: One line for people.
        retry_after: Seconds after which it may pass, None where that is not known.
    """

    code: str
    detail: str
    retry_after: int | None = None

    @classmethod
    def of(cls, error: RedFlagError) -> "Why":
        """The reason that an error gives."""
        retry_after = error.retry_after if isinstance(error, CommandRefusedError) else None
        return attrs.evolve(cls.because(error.code, error.message), retry_after=retry_after)

    @classmethod
    def because(cls, code: str, text: str) -> "Why":
        """A reason with a text of any length."""
        return cls(code, clean_text(text, max_len=MAX_TEXT) or code)


@attrs.frozen(kw_only=True)
class Ending:
    """
    How a command ended, before it is signed. Attributes as in `redflag_core.statements.CommandResult`.

    Attributes:
        why: Why it did not complete; None when it did.
    """

    outcome: Outcome
    why: Why | None = None
    exit_status: int | None = None
    output: str = ""
    output_bytes: int = 0
    transaction: Transaction | None = None
    packages: tuple[PackageResult, ...] = ()
    reboot_required: bool | None = None
    reboot_by: tuple[str, ...] = ()
    repaired: bool = False


def completed() -> Ending:
    """It did what was ordered."""
    return Ending(outcome=Outcome.COMPLETED)


def failed(error: RedFlagError, *packages: PackageResult) -> Ending:
    """It did not, and why."""
    return Ending(outcome=Outcome.FAILED, why=Why.of(error), packages=packages)


@attrs.frozen
class Who:
    """Which agent of which server this is."""

    pins: Pins
    registration: Registration


def who(state: AgentState) -> Who:
    """
    The registered parts of *state*.

    Raises:
        ExecutorError: It has none.
    """
    if state.pins is None or state.registration is None:
        raise ExecutorError("this agent is not registered: it takes no commands")
    return Who(state.pins, state.registration)


@attrs.frozen
class Refusable:
    """What is refused. Attributes as in `redflag_core.statements.CommandRefused`."""

    cmd_id: str | None
    digest: str | None
    body: str

    @classmethod
    def unread(cls, wire: bytes) -> "Refusable":
        """An envelope that nobody who is believed signed."""
        return cls(None, None, hashlib.sha256(wire).hexdigest())

    @classmethod
    def read(cls, command: VerifiedCommand) -> "Refusable":
        """A command that a key which is believed signed."""
        return cls(command.body.cmd_id, command.body.digest, command.hash)

    @classmethod
    def known(cls, entry: Entry) -> "Refusable":
        """A command in the journal."""
        return cls(entry.cmd_id, entry.digest, entry.body or "")


@attrs.frozen
class Voice:
    """
    Signs statements.

    Args:
        executor: Whose key it is.
        state: Which agent of which server this is.
    """

    executor: Executor
    state: StateFile

    def accepted(self, command: VerifiedCommand, *, at: int) -> bytes:
        """The command is in the journal. Say so only in the transaction that puts it there."""
        body, known = command.body, who(self.state.state)
        statement = CommandAccepted(
            server=known.pins.server,
            agent_id=known.registration.agent_id,
            cmd_id=body.cmd_id,
            digest=body.digest,
            body=command.hash,
            epoch=body.epoch,
            gen=body.gen,
            seq=body.seq,
            iat=at,
        )
        return sign_statement(statement, self.executor.key)

    def refused(self, what: Refusable, why: Why, *, at: int, never: bool) -> bytes:
        """
        A command was not accepted.

        Args:
            what: The command, as far as it is known.
            why: Why.
            at: Executor time, unix seconds.
            never: Whether it will never be started: then its id is in the journal.
        """
        known = who(self.state.state)
        statement = CommandRefused(
            server=known.pins.server,
            agent_id=known.registration.agent_id,
            cmd_id=what.cmd_id,
            digest=what.digest,
            body=what.body,
            code=why.code,
            detail=why.detail,
            never=never,
            retry_after=None if never else why.retry_after,
            iat=at,
        )
        return sign_statement(statement, self.executor.key)

    def result(self, entry: Entry, ending: Ending, *, at: int) -> tuple[bytes, CommandResult]:
        """
        How a command ended, as large as may be said.

        Args:
            entry: The command.
            ending: How it ended.
            at: Executor time, unix seconds.

        Returns:
            The signed bytes, and what they say.
        """
        for result in _smaller_and_smaller(self._result(entry, ending, at), entry):
            try:
                wire = sign_statement(result, self.executor.key)
            except UnicodeError:  # a lone surrogate in a name or reason cannot be written at all
                continue
            if len(wire) <= MAX_STATEMENT_BYTES:
                return wire, result
        raise ExecutorError("a result without details is too large: this is a mistake of this release")

    def forgotten(self, entry: Entry) -> bytes:
        """The statement about a command whose details are not kept any more: the same bytes each time."""
        why, at = Why(entry.code or ExecutorError.code, FORGOTTEN), entry.ended_at or 0
        if entry.state is State.NEVER:
            return self.refused(Refusable.known(entry), why, at=at, never=True)
        outcome = entry.outcome or Outcome.FAILED
        ending = Ending(outcome=outcome, why=None if outcome is Outcome.COMPLETED else why)
        return self.result(entry, ending, at=at)[0]

    def _result(self, entry: Entry, ending: Ending, at: int) -> CommandResult:
        values = attrs.asdict(ending, recurse=False)
        why, known = values.pop("why"), who(self.state.state)
        return CommandResult(
            server=known.pins.server,
            agent_id=known.registration.agent_id,
            cmd_id=entry.cmd_id,
            digest=entry.digest or "",
            body=entry.body or "",
            code=None if why is None else why.code,
            detail=None if why is None else why.detail,
            started_at=entry.started_at,
            finished_at=at,
            **values,
        )


def _smaller_and_smaller(result: CommandResult, entry: Entry) -> Iterator[CommandResult]:
    """The result, then less and less of it: origins, the transaction, the output, reasons."""
    yield result
    transaction = result.transaction
    if transaction is not None:
        changes = tuple(attrs.evolve(change, origin=None) for change in transaction.changes)
        yield attrs.evolve(result, transaction=attrs.evolve(transaction, changes=changes))
    result = _without_transaction(result, entry)
    yield result
    result = attrs.evolve(result, output="")
    yield result
    yield attrs.evolve(result, packages=tuple(attrs.evolve(each, reason=None) for each in result.packages))
    yield attrs.evolve(result, packages=())


def _without_transaction(result: CommandResult, entry: Entry) -> CommandResult:
    """A plan without its transaction would be none."""
    if entry.type != CommandType.PACKAGES_PLAN or result.transaction is None:
        return attrs.evolve(result, transaction=None)
    why = Why.of(TooLargeError("the plan is too large to be told: plan fewer packages at once"))
    return attrs.evolve(result, transaction=None, outcome=Outcome.FAILED, code=why.code, detail=why.detail)
