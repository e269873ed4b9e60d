"""
What operators may do with an agent, and whether it is there: decisions over status and time.

One table says from which status each action leads where; everything that is not in it is refused.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from redflag_core.enrolment import AgentStatus

MISSED_CHECK_INS: Final = 3
"""Check-ins in a row that an agent must miss before it counts as offline: one lost answer is not an outage."""


class AgentAction(StrEnum):
    """What an operator can do with an agent."""

    APPROVE = "approve"
    RELEASE = "release"
    REVOKE = "revoke"


class Presence(StrEnum):
    """Whether an agent is there."""

    ONLINE = "online"
    OFFLINE = "offline"
    NEVER = "never"


_FROM: Final[Mapping[AgentAction, frozenset[AgentStatus]]] = {
    AgentAction.APPROVE: frozenset(
        {
            AgentStatus.PENDING,
            AgentStatus.HARDWARE_CHANGED,
            AgentStatus.RENEWAL_PENDING,
            AgentStatus.EXECUTOR_ROLLED_BACK,
        }
    ),
    AgentAction.RELEASE: frozenset({AgentStatus.QUARANTINED}),
    AgentAction.REVOKE: frozenset(AgentStatus) - {AgentStatus.REVOKED},
}

_TO: Final[Mapping[AgentAction, AgentStatus]] = {
    AgentAction.APPROVE: AgentStatus.ACTIVE,
    AgentAction.RELEASE: AgentStatus.ACTIVE,
    AgentAction.REVOKE: AgentStatus.REVOKED,
}


def result_of(action: AgentAction) -> AgentStatus:
    """The status that *action* leads to. An agent that has it already is left alone: the action is done."""
    return _TO[action]


def permits(status: AgentStatus, action: AgentAction) -> bool:
    """Whether *action* changes an agent of this status. Nothing brings a revoked key back."""
    return status in _FROM[action]


def presence(*, last_seen: datetime | None, next_due: datetime | None, now: datetime) -> Presence:
    """
    Whether an agent is there.

    Args:
        last_seen: Its last accepted check-in, None before the first.
        next_due: When it was told to come back.
        now: Current time, aware UTC.
    """
    if last_seen is None or next_due is None:
        return Presence.NEVER
    return Presence.ONLINE if now <= last_seen + MISSED_CHECK_INS * (next_due - last_seen) else Presence.OFFLINE


def expected_by(now: datetime, *, pause: float, base: int) -> datetime:
    """
    When an agent is expected back at the latest: what `presence` is told as *next_due*.

    An agent that polls is told to come back at once, and may be carrying something out first. It is not missed
    sooner than one that checks in at the ordinary pace.

    Args:
        now: When it was answered, or began to wait for an answer.
        pause: Seconds after which it was told to come back, the waiting included.
        base: The ordinary interval, seconds.
    """
    return now + timedelta(seconds=max(pause, base))
