"""
The queue of commands to one agent: one table of states, and when a command is due, late or worth an alarm.

A lease is not a "sent" mark: until the executor signs that it accepted or refused, the command is delivered again.
What was delivered once may have been started, so from then on neither cancelling nor expiry ends it by itself:
only a signed answer does, or the word of an operator.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

import attrs

from redflag_core.commands import BYPASSING, CommandType, Order
from redflag_core.encoding import MAX_INTEGER
from redflag_core.enrolment import Access, AgentStatus, allows
from redflag_core.errors import IllegalMoveError
from redflag_core.freshness import TOLERANCE, unix
from redflag_core.resilience import full_jitter
from redflag_core.statements import Outcome

LEASE_SECONDS: Final = 60
"""How long a delivered command may stay unanswered before it is delivered again."""

LEASE_LONGEST: Final = 3_600
PATIENT_DELIVERIES: Final = 10
"""After so many the time is doubled with each, up to an hour: a machine that never answers fills no history."""

START_WITHIN_SECONDS: Final = 7 * 86_400
"""How long a command may wait for its machine when nobody says otherwise: over a holiday week."""

RETRY_FIRST: Final = 30
RETRY_LONGEST: Final = 3_600
"""Seconds before a command that was refused for now is delivered again: doubled each time, up to an hour."""


MAX_LIVE: Final = 1_000
"""Most live commands of one agent: what nobody would look through by hand, and a night of an agent."""

MAX_BYPASSING: Final = 8
"""Commands in one answer that do not wait for others: small ones, so that the answer stays small."""


LONGEST_WAIT: Final = timedelta(seconds=max(LEASE_LONGEST, 2 * RETRY_LONGEST))
"""Longest time for which any rule here makes a command wait: for an answer, or until it is delivered again."""


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

ENDED: Final = frozenset(CommandState) - LIVE

ORDERED_BY_PEOPLE: Final = frozenset({CommandType.SCAN_RUN, CommandType.AGENT_HEARTBEAT})
"""Types that somebody orders by itself. The others come from a plan, or from cancelling."""


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
    DOUBT = "doubt"
    """The server goes on from a backup: what the executor signed since is not on record, so it is asked again."""


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
    CommandEvent.START: _Rule(frozenset({_S.ACCEPTED}), _S.RUNNING),
    CommandEvent.COMPLETE: _Rule(LIVE | _GIVEN_UP, _S.COMPLETED),
    CommandEvent.FAIL: _Rule(LIVE | _GIVEN_UP, _S.FAILED),
    CommandEvent.INTERRUPT: _Rule(LIVE | _GIVEN_UP, _S.INTERRUPTED),
    CommandEvent.CANCEL: _Rule(LIVE, _S.CANCELLED),
    CommandEvent.EXPIRE: _Rule(LIVE, _S.EXPIRED),
    CommandEvent.DOUBT: _Rule(LIVE - UNACCEPTED, _S.PENDING),
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


def may_release(state: CommandState, *, delivered: bool) -> bool:
    """
    Whether the word of an operator may end a command here: it was handed out, and nobody answers for it.

    Args:
        state: Its state.
        delivered: Whether it was ever handed out: if not, cancelling ends it.
    """
    return state in LIVE and not may_end_unanswered(state, delivered=delivered)


def may_retry(state: CommandState) -> bool:
    """Whether the same may be ordered again, as a command of its own: it ended, and not as it was meant to."""
    return state in ENDED and state is not CommandState.COMPLETED


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


# --- whose turn it is --------------------------------------------------------------------------------------------


def takes_commands(status: AgentStatus, *, held_epoch: int, epoch: int) -> bool:
    """
    Whether an agent may be given commands now.

    Args:
        status: Its status.
        held_epoch: Epoch of the trust bundle that its executor holds, as that signed.
        epoch: Of the current bundle. An executor that holds another one would refuse: it gets the bundle first.
    """
    return allows(status, Access.COMMANDS) and held_epoch == epoch


@attrs.frozen(kw_only=True)
class Waiting:
    """
    A command that no executor has accepted.

    Attributes:
        id: Its id.
        kind: Its type.
        state: One of `UNACCEPTED`.
        delivered: Whether it was ever handed out.
        start_by: Until when it may be started.
        not_before: It was refused for now: when it is due again.
        leased_until: It was handed out: how long its answer is waited for.
    """

    id: UUID
    kind: str
    state: CommandState
    delivered: bool
    start_by: datetime
    not_before: datetime | None = None
    leased_until: datetime | None = None

    @property
    def bypasses(self) -> bool:
        """Whether it waits for no other command."""
        return self.kind in BYPASSING

    @property
    def due_at(self) -> datetime | None:
        """When it is handed out next; None for at once."""
        return self.leased_until if self.state is CommandState.LEASED else self.not_before

    def is_due(self, now: datetime) -> bool:
        """Whether it may be handed out. A time that no rule sets was set by a clock that was ahead: it is over."""
        return self.due_at is None or not now < self.due_at <= now + LONGEST_WAIT


@attrs.frozen
class Turn:
    """
    What to do with the queue of one agent now.

    Attributes:
        lease: To be handed out, in this order.
        expire: Too late to be started, and the machine never heard of them.
        again: When something is due that is not due now; None for nothing, or when something is handed out.
    """

    lease: Sequence[Waiting] = ()
    expire: Sequence[Waiting] = ()
    again: datetime | None = None


def lease_seconds(deliveries: int) -> int:
    """
    How long the answer to a delivery is waited for.

    Args:
        deliveries: How often the command was handed out, this time included.
    """
    return min(LEASE_LONGEST, LEASE_SECONDS << min(max(deliveries - PATIENT_DELIVERIES, 0), 10))


def next_turn(queue: Iterable[Waiting], *, now: datetime) -> Turn:
    """
    Decide what one agent gets.

    At most one command that waits for others is on its way, so a machine that does not answer is asked about one
    thing only. What was handed out once is handed out again though it is too late to start it: only the executor
    can say that it was not started.

    Args:
        queue: Its unaccepted commands, the oldest first.
        now: Current time, aware UTC.
    """
    waiting: list[Waiting] = []
    expire: list[Waiting] = []
    for each in queue:
        (waiting if each.delivered or now <= each.start_by else expire).append(each)
    ordinary = [each for each in waiting if not each.bypasses]
    under_way = [each for each in ordinary if each.state is CommandState.LEASED and not each.is_due(now)]
    candidates = under_way or ordinary
    bypassing = [each for each in waiting if each.bypasses]
    lease = [each for each in bypassing if each.is_due(now)][:MAX_BYPASSING]
    lease += [each for each in candidates if each.is_due(now)][:1]
    later = [each.due_at for each in (*bypassing, *candidates) if each.due_at is not None and not each.is_due(now)]
    return Turn(lease, expire, None if lease else min(later, default=None))


# --- order numbers -----------------------------------------------------------------------------------------------


class OrderVerdict(StrEnum):
    """What an executor's signed order says, compared with what the server knows."""

    KNOWN = "known"
    SERVER_BEHIND = "server_behind"
    """The executor saw numbers that this server never gave out: the server was restored from a backup."""
    ROLLED_BACK = "rolled_back"
    """The executor is behind what it signed before: its journal was restored, so it may have forgotten work."""


def judge_order(
    reported: Order, *, at: int, recorded: Order, recorded_at: int, issued: Order, epoch: int
) -> OrderVerdict:
    """
    Compare how far an executor says it has come with what is known of it.

    An executor that holds the current bundle and has accepted nothing reports its epoch alone: that is known.

    Args:
        reported: What it signed now.
        at: When it signed that, executor time, unix seconds.
        recorded: The highest that it signed before.
        recorded_at: When it signed the last statement that is known. Requests may overtake each other: only a
            later statement can show that something was lost.
        issued: The highest that was ever given out to it, as far as this server knows.
        epoch: Of the current trust bundle.
    """
    if reported > max(issued, recorded, Order(epoch)):
        return OrderVerdict.SERVER_BEHIND
    if reported < recorded and at > recorded_at:
        return OrderVerdict.ROLLED_BACK
    return OrderVerdict.KNOWN


def noted_at(at: int, recorded_at: int, *, now: datetime) -> int:
    """
    When an executor signed its last statement, as it is recorded.

    Args:
        at: When it says that it signed this one, unix seconds.
        recorded_at: What is recorded.
        now: Current time, aware UTC: a clock that was ahead once must not hide for years that something was lost.
    """
    return min(max(at, recorded_at), int(unix(now)) + TOLERANCE)


def may_hand_out(reported: Order, recorded: Order) -> bool:
    """
    Whether a request may be answered with commands, by how far its executor says it has come.

    One that is behind what is recorded was overtaken by a later one, or comes from an executor whose journal was
    restored, whatever its clock says.

    Args:
        reported: What the executor signed for this request.
        recorded: The highest that it ever signed.
    """
    return reported >= recorded


def next_order(issued: Order, recorded: Order, *, epoch: int, gen: int) -> Order | None:
    """
    The order of the next command to one agent: above everything that was issued to it or that it reported.

    A higher epoch begins anew, as it does for executors: how far a thief of the old key counted does not matter.

    Args:
        issued: The highest that was given out.
        recorded: The highest that the executor signed.
        epoch: Of the current trust bundle.
        gen: The server's generation.

    Returns:
        The order; None when this epoch has no higher one: only the next epoch brings the agent back.
    """
    highest = max(issued, recorded)
    if epoch > highest.epoch:
        return Order(epoch, gen, 1)
    if highest.seq < MAX_INTEGER:
        return Order(epoch, max(gen, highest.gen), highest.seq + 1)
    return Order(epoch, max(gen, highest.gen + 1), 1) if highest.gen < MAX_INTEGER else None


class Standing(StrEnum):
    """Whether what an executor accepted was handed out by this server."""

    OURS = "ours"
    BEFORE_RESTORE = "before_restore"
    """Handed out after the backup was made from which this server was restored."""
    FOREIGN = "foreign"
    """Somebody else signs with the command key, or the executor makes things up."""


def judge_acceptance(order: Order, *, issued: bool, gen: int) -> Standing:
    """
    Judge what an executor says that it accepted.

    Args:
        order: Order of what it accepted, as it signed.
        issued: Whether this server knows that it signed exactly that, with that order, for that command.
        gen: Generation of this server: raised with every restore.
    """
    if issued:
        return Standing.OURS
    return Standing.BEFORE_RESTORE if order.gen < gen else Standing.FOREIGN


# --- alarms ------------------------------------------------------------------------------------------------------

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


def is_overdue(kind: str, state: CommandState, *, created_at: datetime, state_at: datetime, now: datetime) -> bool:
    """
    Whether somebody should look at a command.

    Until it is accepted, its age counts: being handed out again and again is no progress.

    Args:
        kind: Type of the command.
        state: Its state.
        created_at: When it was ordered.
        state_at: Since when it has its state.
        now: Current time, aware UTC.
    """
    limit = overdue_after(kind, state)
    since = created_at if state in UNACCEPTED else state_at
    return limit is not None and (now - since).total_seconds() >= limit


def keeps_alarm(before: CommandState, to: CommandState) -> bool:
    """Whether an alarm about a command goes on when its state changes: it still waits to be accepted."""
    return before in UNACCEPTED and to in UNACCEPTED
