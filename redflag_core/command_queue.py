"""
The queue of commands to one agent: one table of states, and when a command is due, late or worth an alarm.

A lease is not a "sent" mark: until the executor signs that it accepted or refused, the command is delivered again.
What was delivered once may have been started, so from then on neither cancelling nor expiry ends it by itself:
only a signed answer does, or the word of an operator.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import attrs

from redflag_core.commands import CommandType, Order
from redflag_core.errors import IllegalMoveError
from redflag_core.resilience import full_jitter
from redflag_core.statements import Outcome

LEASE_SECONDS: Final = 60
"""How long a delivered command may stay unanswered before it is delivered again."""

START_WITHIN_SECONDS: Final = 7 * 86_400
"""How long a command may wait for its machine when nobody says otherwise: over a holiday week."""

RETRY_FIRST: Final = 30
RETRY_LONGEST: Final = 3_600
"""Seconds before a command that was refused for now is delivered again: doubled each time, up to an hour."""


class CommandState(StrEnum):
    """Where a command stands."""

    PENDING = "pending"
    LEASED = "leased"
    ACCEPTED = "accepted"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


LIVE: Final = frozenset({CommandState.PENDING, CommandState.LEASED, CommandState.ACCEPTED, CommandState.RUNNING})
"""States of a command that holds its subjects."""

UNACCEPTED: Final = frozenset({CommandState.PENDING, CommandState.LEASED})


class CommandEvent(StrEnum):
    """What can happen to a command."""

    LEASE = "lease"
    RETURN = "return"
    """The lease ran out unanswered, or the executor refused for now."""
    ACCEPT = "accept"
    START = "start"
    COMPLETE = "complete"
    FAIL = "fail"
    INTERRUPT = "interrupt"
    CANCEL = "cancel"
    EXPIRE = "expire"


@attrs.frozen
class _Rule:
    origins: frozenset[CommandState]
    to: CommandState


_S: Final = CommandState
_GIVEN_UP: Final = frozenset({_S.CANCELLED, _S.EXPIRED})
"""A late result still counts: what the machine says happened is true, whatever was believed before."""

EVENTS: Final[Mapping[CommandEvent, _Rule]] = {
    CommandEvent.LEASE: _Rule(UNACCEPTED, _S.LEASED),
    CommandEvent.RETURN: _Rule(frozenset({_S.LEASED}), _S.PENDING),
    CommandEvent.ACCEPT: _Rule(UNACCEPTED, _S.ACCEPTED),
    CommandEvent.START: _Rule(UNACCEPTED | {_S.ACCEPTED}, _S.RUNNING),
    CommandEvent.COMPLETE: _Rule(LIVE | _GIVEN_UP, _S.COMPLETED),
    CommandEvent.FAIL: _Rule(LIVE | _GIVEN_UP, _S.FAILED),
    CommandEvent.INTERRUPT: _Rule(LIVE | _GIVEN_UP, _S.INTERRUPTED),
    CommandEvent.CANCEL: _Rule(LIVE, _S.CANCELLED),
    CommandEvent.EXPIRE: _Rule(LIVE, _S.EXPIRED),
}
"""The table."""

ALLOWED: Final = frozenset(
    (origin, rule.to) for rule in EVENTS.values() for origin in rule.origins if origin is not rule.to
)
"""Every change of state that the table can make; databases refuse the rest by themselves."""

OUTCOME_EVENTS: Final[Mapping[Outcome, CommandEvent]] = {
    Outcome.COMPLETED: CommandEvent.COMPLETE,
    Outcome.FAILED: CommandEvent.FAIL,
    Outcome.INTERRUPTED: CommandEvent.INTERRUPT,
    Outcome.CANCELLED: CommandEvent.CANCEL,
}


def after(state: CommandState, event: CommandEvent) -> CommandState:
    """
    The state after an event.

    Raises:
        IllegalMoveError: The table has no such change.
    """
    rule = EVENTS[event]
    if state not in rule.origins:
        raise IllegalMoveError(f"a command that is {state} cannot {event}")
    return rule.to


def may_end_unanswered(state: CommandState, *, delivered: bool) -> bool:
    """
    Whether cancelling or expiry may end a command here, without a word of the machine.

    Args:
        state: Its state.
        delivered: Whether it was ever handed out: then the machine may have started it.
    """
    return state is CommandState.PENDING and not delivered


def refusal_event(code: str, *, never: bool) -> CommandEvent:
    """
    What a signed refusal means for a command.

    Args:
        code: Code of the refusal.
        never: Whether the executor will never start it.
    """
    if not never:
        return CommandEvent.RETURN
    if code == "cancelled":
        return CommandEvent.CANCEL
    return CommandEvent.EXPIRE if code == "start_by_passed" else CommandEvent.FAIL


def retry_delay(refusals: int, *, asked: int | None, fraction: float) -> int:
    """
    Seconds before a command that was refused for now is delivered again.

    Args:
        refusals: How often it was refused in a row, this one included.
        asked: What the executor asked for, None when it did not say.
        fraction: The draw, from 0 up to 1: machines that were refused together come back apart.
    """
    ceiling = min(RETRY_LONGEST, RETRY_FIRST * 2 ** min(refusals - 1, 10))
    least = min(asked or 0, RETRY_LONGEST)
    return max(1, least + int(full_jitter(ceiling, fraction)))


class OrderVerdict(StrEnum):
    """What an executor's signed order says, compared with what the server knows."""

    KNOWN = "known"
    SERVER_BEHIND = "server_behind"
    """The executor saw numbers that this server never gave out: the server was restored from a backup."""
    ROLLED_BACK = "rolled_back"
    """The executor is behind what it signed before: its journal was restored, so it may have forgotten work."""


def judge_order(reported: Order, *, at: int, recorded: Order, recorded_at: int, issued: Order) -> OrderVerdict:
    """
    Compare how far an executor says it has come with what is known of it.

    Args:
        reported: What it signed now.
        at: When it signed that, executor time, unix seconds.
        recorded: The highest that it signed before.
        recorded_at: When it signed the last statement that is known. Requests may overtake each other: only a
            later statement can show that something was lost.
        issued: The highest that was ever given out to it, as far as this server knows.
    """
    if reported > max(issued, recorded):
        return OrderVerdict.SERVER_BEHIND
    if reported < recorded and at > recorded_at:
        return OrderVerdict.ROLLED_BACK
    return OrderVerdict.KNOWN


def next_order(issued: Order, recorded: Order, *, epoch: int, gen: int) -> Order:
    """
    The order of the next command to one agent: above everything that was issued to it or that it reported.

    Args:
        issued: The highest that was given out.
        recorded: The highest that the executor signed.
        epoch: Of the current trust bundle.
        gen: The server's generation.
    """
    highest = max(issued, recorded)
    return Order(epoch, max(gen, highest.gen), highest.seq + 1)


_DELIVERY_ALARM: Final = 3_600
_RESULT_ALARMS: Final[Mapping[CommandType, int]] = {
    CommandType.SCAN_RUN: 1_800,
    CommandType.PACKAGES_PLAN: 1_800,
    CommandType.PACKAGES_UPGRADE: 4 * 3_600,
    CommandType.COMMAND_CANCEL: 900,
    CommandType.AGENT_HEARTBEAT: 900,
}


def overdue_after(kind: str, state: CommandState) -> int | None:
    """
    Seconds in a state after which somebody should look; None when it has ended. It is an alarm, nothing changes.

    Args:
        kind: Type of the command.
        state: Its state.
    """
    if state not in LIVE:
        return None
    if state in UNACCEPTED:
        return _DELIVERY_ALARM
    return _RESULT_ALARMS.get(CommandType(kind), _DELIVERY_ALARM)
