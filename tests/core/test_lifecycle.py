"""What operators may do with agents, and when an agent counts as there."""

from datetime import timedelta

import pytest

from redflag_core.enrolment import AgentStatus
from redflag_core.lifecycle import AgentAction, Presence, expected_by, permits, presence, result_of
from redflag_core.testing import START

PERMITTED = {
    AgentAction.APPROVE: {
        AgentStatus.PENDING,
        AgentStatus.HARDWARE_CHANGED,
        AgentStatus.RENEWAL_PENDING,
        AgentStatus.EXECUTOR_ROLLED_BACK,
    },
    AgentAction.RELEASE: {AgentStatus.QUARANTINED},
    AgentAction.REVOKE: set(AgentStatus) - {AgentStatus.REVOKED},
}


@pytest.mark.parametrize("action", AgentAction)
@pytest.mark.parametrize("status", AgentStatus)
def test_each_action_leads_on_from_its_own_statuses_only(action, status):
    """Approval is for agents that wait, release for quarantined ones, and a revoked one stays revoked."""
    assert permits(status, action) is (status in PERMITTED[action])


def test_every_action_has_a_result():
    """Approved and released agents work again, revoked ones never do."""
    assert [AgentStatus.ACTIVE, AgentStatus.ACTIVE, AgentStatus.REVOKED] == [result_of(a) for a in AgentAction]


@pytest.mark.parametrize(
    "seconds,expected",
    [(0, Presence.ONLINE), (180, Presence.ONLINE), (180.001, Presence.OFFLINE), (1e6, Presence.OFFLINE)],
)
def test_an_agent_is_offline_after_three_missed_check_ins(seconds, expected):
    """Told to come back in 60 s, it is online up to and including 180 s of silence."""
    now = START + timedelta(seconds=seconds)

    assert expected is presence(last_seen=START, next_due=START + timedelta(seconds=60), now=now)


@pytest.mark.parametrize("last_seen, next_due", [(None, None), (START, None), (None, START)])
def test_an_agent_that_never_checked_in_is_neither_online_nor_offline(last_seen, next_due):
    """Registered but silent is told apart from gone."""
    assert Presence.NEVER is presence(last_seen=last_seen, next_due=next_due, now=START)


@pytest.mark.parametrize("pause, expected", [(0, 60), (1, 60), (60, 60), (75, 75), (51, 60)])
def test_an_agent_that_polls_is_not_missed_sooner_than_one_that_checks_in(pause, expected):
    """Told to come back at once, it may be busy with what it was given."""
    due = expected_by(START, pause=pause, base=60)

    assert START + timedelta(seconds=expected) == due
    assert Presence.ONLINE is presence(last_seen=START, next_due=due, now=START + timedelta(seconds=180))
