"""The queue of commands: one table of states, whose turn it is, order numbers that only grow, and alarms."""

import itertools
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core.command_queue import (
    ALLOWED,
    ENDED,
    EVENTS,
    LEASE_LONGEST,
    LEASE_SECONDS,
    LIVE,
    MAX_BYPASSING,
    ORDERED_BY_PEOPLE,
    OUTCOME_EVENTS,
    RETRY_FIRST,
    RETRY_LONGEST,
    UNACCEPTED,
    CommandEvent,
    CommandState,
    OrderVerdict,
    Standing,
    Waiting,
    after,
    is_overdue,
    judge_acceptance,
    judge_order,
    keeps_alarm,
    lease_seconds,
    may_end_unanswered,
    may_hand_out,
    may_release,
    may_retry,
    next_order,
    next_turn,
    noted_at,
    overdue_after,
    refusal_event,
    retry_delay,
    takes_commands,
)
from redflag_core.commands import BYPASSING, PARAMS, CommandType, Order
from redflag_core.encoding import MAX_INTEGER
from redflag_core.enrolment import AgentStatus
from redflag_core.errors import IllegalMoveError
from redflag_core.statements import Outcome

NOW = datetime(2026, 1, 2, 9, 30, tzinfo=UTC)
S, E = CommandState, CommandEvent
orders = st.builds(Order, st.integers(0, 3), st.integers(0, 3), st.integers(0, 5))


def waiting(number: int, **changes) -> Waiting:
    """A scan that was ordered and not handed out."""
    values = {"kind": "scan.run", "state": S.PENDING, "delivered": False, "start_by": NOW + timedelta(days=7)}
    return Waiting(id=UUID(int=number), **{**values, **changes})


def leased(number: int, seconds: float, **changes) -> Waiting:
    """A scan that was handed out, and *seconds* are left to answer."""
    until = NOW + timedelta(seconds=seconds)
    return waiting(number, state=S.LEASED, delivered=True, leased_until=until, **changes)


def numbers(commands) -> list[int]:
    """Which commands these are."""
    return [command.id.int for command in commands]


# --- states ---


@pytest.mark.parametrize("state, event", [*itertools.product(CommandState, CommandEvent)])
def test_nothing_moves_outside_the_table(state, event):
    """Each pair of state and event either has its one result, or is refused."""
    if state in EVENTS[event].origins:
        to = after(state, event)
        assert to is state or (state, to) in ALLOWED
    else:
        with pytest.raises(IllegalMoveError, match=state.value):
            after(state, event)


def test_the_life_of_a_command_that_works():
    """Ordered, handed out, accepted, started, done."""
    state = S.PENDING
    for event in (E.LEASE, E.ACCEPT, E.START, E.COMPLETE):
        state = after(state, event)

    assert S.COMPLETED is state


def test_what_was_given_up_may_turn_out_to_have_been_done():
    """A late result counts after cancelling and expiry, and only then: a result is never replaced by another."""
    late = {(before, to) for before, to in ALLOWED if before in ENDED}

    assert {S.CANCELLED, S.EXPIRED} == {before for before, _ in late}
    assert {S.COMPLETED, S.FAILED, S.INTERRUPTED} == {to for _, to in late}


def test_after_a_restore_what_was_accepted_is_asked_about_again():
    """It is handed out once more, though late, and ends by nothing but a signed answer or a person's word."""
    for state in (S.ACCEPTED, S.RUNNING):
        doubted = after(state, E.DOUBT)
        assert S.PENDING is doubted
        assert not may_end_unanswered(doubted, delivered=True)
    again = waiting(1, delivered=True, start_by=NOW - timedelta(days=1))

    assert [1] == numbers(next_turn([again], now=NOW).lease)


def test_every_outcome_ends_a_live_command():
    """Whatever an executor signs as a result has an event, and that event is allowed in every live state."""
    assert set(Outcome) == set(OUTCOME_EVENTS)
    for event, state in itertools.product(OUTCOME_EVENTS.values(), LIVE):
        assert after(state, event) in ENDED


def test_a_command_that_may_have_been_started_does_not_end_by_itself():
    """Cancelling and expiry end what was never handed out; the rest ends by the word of an operator."""
    for state, delivered in itertools.product(CommandState, (False, True)):
        by_itself = may_end_unanswered(state, delivered=delivered)
        by_word = may_release(state, delivered=delivered)

        assert (state is S.PENDING and not delivered) is by_itself
        assert (state in LIVE) is (by_itself or by_word)
        assert not (by_itself and by_word)


def test_only_what_ended_badly_is_tried_again():
    """Neither what is under way nor what worked."""
    assert {S.FAILED, S.INTERRUPTED, S.CANCELLED, S.EXPIRED} == {state for state in S if may_retry(state)}


@pytest.mark.parametrize(
    "code, never, event",
    [
        ("local_limit", False, E.RETURN),
        ("cancelled", False, E.RETURN),
        ("cancelled", True, E.CANCEL),
        ("start_by_passed", True, E.EXPIRE),
        ("plan_drifted", True, E.FAIL),
    ],
)
def test_what_a_refusal_means(code, never, event):
    """For now: it comes back. For ever: it ends, and the code says as what."""
    assert event is refusal_event(code, never=never)


# --- whose turn it is ---


def test_the_oldest_is_first_and_alone():
    """A machine is asked about one thing at a time."""
    assert [1] == numbers(next_turn([waiting(1), waiting(2)], now=NOW).lease)


def test_nothing_is_handed_out_while_an_answer_is_waited_for():
    """And the queue says when to look again."""
    turn = next_turn([leased(1, 25), waiting(2)], now=NOW)

    assert ([], NOW + timedelta(seconds=25)) == (list(turn.lease), turn.again)


def test_an_unanswered_command_is_handed_out_again():
    """A lease that ran out is no answer: the same command comes again, before later ones."""
    assert [1] == numbers(next_turn([leased(1, 0), waiting(2)], now=NOW).lease)


def test_a_machine_that_never_answers_is_asked_less_often():
    """A lost answer costs a minute; a machine that is broken is asked once an hour in the end."""
    assert {LEASE_SECONDS} == {lease_seconds(deliveries) for deliveries in range(1, 11)}
    assert [120, 240, LEASE_LONGEST] == [lease_seconds(deliveries) for deliveries in (11, 12, 10_000)]


def test_what_was_refused_for_now_waits_and_lets_others_pass():
    """Its time comes back, and meanwhile the next is handed out."""
    later = waiting(1, delivered=True, not_before=NOW + timedelta(seconds=30))

    assert [2] == numbers(next_turn([later, waiting(2)], now=NOW).lease)
    assert NOW + timedelta(seconds=30) == next_turn([later], now=NOW).again
    assert [1] == numbers(next_turn([later], now=NOW + timedelta(seconds=30)).lease)


@pytest.mark.parametrize("kind", sorted(BYPASSING))
def test_a_cancel_and_a_heartbeat_do_not_wait(kind):
    """They pass a command that is under way, and come before others in the same answer."""
    bypassing = waiting(2, kind=kind)

    assert [2] == numbers(next_turn([leased(1, 25), bypassing], now=NOW).lease)
    assert [2, 1] == numbers(next_turn([waiting(1), bypassing], now=NOW).lease)


def test_an_answer_is_bounded():
    """However many cancels there are, some of them wait for the next answer."""
    cancels = [waiting(number, kind="command.cancel") for number in range(1, 100)]

    assert list(range(1, MAX_BYPASSING + 1)) == numbers(next_turn(cancels, now=NOW).lease)


def test_what_is_too_late_and_was_never_handed_out_expires():
    """The machine never heard of it, so nobody needs its word."""
    turn = next_turn([waiting(1, start_by=NOW - timedelta(seconds=1)), waiting(2, start_by=NOW)], now=NOW)

    assert ([2], [1]) == (numbers(turn.lease), numbers(turn.expire))


def test_what_is_too_late_and_was_handed_out_once_is_handed_out_again():
    """Only the executor can say that it was not started."""
    turn = next_turn([leased(1, -1, start_by=NOW - timedelta(days=1))], now=NOW)

    assert ([1], []) == (numbers(turn.lease), numbers(turn.expire))


def test_an_empty_queue_asks_for_nothing():
    """Nothing to hand out, and nothing to come back for."""
    turn = next_turn([], now=NOW)

    assert ((), (), None) == (tuple(turn.lease), tuple(turn.expire), turn.again)


moments = st.integers(-100, 100).map(lambda seconds: NOW + timedelta(seconds=seconds))
kinds = st.sampled_from(["scan.run", "packages.plan", "command.cancel"])
commands = st.builds(
    waiting,
    st.integers(1, 50),
    kind=kinds,
    delivered=st.booleans(),
    start_by=moments,
    not_before=st.none() | moments,
) | st.builds(leased, st.integers(1, 50), st.integers(-100, 100), kind=kinds)


@given(st.lists(commands, max_size=12, unique_by=lambda command: command.id))
def test_a_turn_is_one_command_that_waits_for_others_at_most(queue):
    """Together with what is under way: never two. And whoever waits is told of a time that lies ahead."""
    turn = next_turn(queue, now=NOW)
    ordinary = [each for each in turn.lease if not each.bypasses]
    under_way = [each for each in queue if each.state is S.LEASED and not each.bypasses and not each.is_due(NOW)]

    assert len(ordinary) + bool(under_way) <= 1
    assert all(each.is_due(NOW) for each in turn.lease)
    assert turn.again is None or turn.again > NOW
    assert not set(numbers(turn.lease)) & set(numbers(turn.expire))


# --- refused for now ---


@given(st.integers(1, 10_000), st.none() | st.integers(0, 10**9), st.floats(0, 1, exclude_max=True))
def test_a_refused_command_comes_back_within_two_hours(refusals, asked, fraction):
    """Never at once, never later than twice the longest pause, and not before the executor asked for it."""
    delay = retry_delay(refusals, asked=asked, fraction=fraction)

    assert 1 <= delay <= 2 * RETRY_LONGEST
    assert delay >= min(asked or 0, RETRY_LONGEST)


def test_refusals_in_a_row_are_spread_wider():
    """The first is tried again within half a minute, the tenth within an hour."""
    assert RETRY_FIRST - 1 == retry_delay(1, asked=None, fraction=0.999)
    assert RETRY_LONGEST * 0.99 < retry_delay(10, asked=None, fraction=0.999) < RETRY_LONGEST


# --- order numbers ---


RECORDED, ISSUED = Order(1, 0, 5), Order(1, 0, 7)


def judged(reported: Order, *, at=100, recorded=RECORDED, recorded_at=90, issued=ISSUED) -> OrderVerdict:
    """The verdict on an executor that had signed 5 of 7 commands."""
    return judge_order(reported, at=at, recorded=recorded, recorded_at=recorded_at, issued=issued, epoch=1)


def test_an_executor_may_be_anywhere_between_what_it_signed_and_what_was_issued():
    """Requests may be under way, and commands may be lost."""
    assert {OrderVerdict.KNOWN} == {judged(Order(1, 0, seq)) for seq in (5, 6, 7)}


def test_a_number_that_was_never_given_out_means_that_the_server_is_behind():
    """It was restored: the machine knows more than it does."""
    assert OrderVerdict.SERVER_BEHIND is judged(Order(1, 0, 8))


def test_a_number_below_what_was_signed_means_that_the_journal_was_restored():
    """But only when it was signed later: requests may overtake each other."""
    assert OrderVerdict.ROLLED_BACK is judged(Order(1, 0, 4), at=91)
    assert OrderVerdict.KNOWN is judged(Order(1, 0, 4), at=90)
    assert OrderVerdict.KNOWN is judged(Order(1, 0, 4), at=1)


def test_a_new_executor_reports_the_epoch_of_its_bundle_and_is_not_ahead():
    """Nothing was issued to it, and still its epoch is not zero."""
    nothing = Order()
    assert OrderVerdict.KNOWN is judged(Order(1), recorded=nothing, recorded_at=0, issued=nothing)
    assert OrderVerdict.SERVER_BEHIND is judged(Order(1, 0, 1), recorded=nothing, recorded_at=0, issued=nothing)
    assert OrderVerdict.SERVER_BEHIND is judged(Order(2), recorded=nothing, recorded_at=0, issued=nothing)


@given(orders, orders, orders, st.integers(0, 5))
def test_the_next_order_is_above_everything(issued, recorded, reported, gen):
    """Whatever was issued or reported, the executor takes the next command, unless its epoch is ahead."""
    order = next_order(issued, max(recorded, reported), epoch=3, gen=gen)

    assert order > max(issued, recorded, reported)
    assert order.gen >= gen


def test_numbers_that_were_counted_up_are_left_behind_by_generation_and_epoch():
    """A full count goes on in the next generation; when that is full too, only the next epoch begins anew."""
    counted = Order(1, 0, MAX_INTEGER)
    full = Order(1, MAX_INTEGER, MAX_INTEGER)

    assert Order(1, 1, 1) == next_order(counted, Order(), epoch=1, gen=0)
    assert next_order(Order(1, 0, 5), full, epoch=1, gen=0) is None
    assert Order(2, 7, 1) == next_order(Order(1, 0, 5), full, epoch=2, gen=7)


def test_nothing_is_handed_out_to_an_executor_that_says_less_than_before():
    """Whatever its clock says: it was overtaken, or its journal was restored."""
    assert may_hand_out(Order(1, 0, 5), Order(1, 0, 5))
    assert not may_hand_out(Order(1, 0, 4), Order(1, 0, 5))


def test_a_clock_that_was_ahead_hides_a_lost_journal_for_minutes_only():
    """The time of the last statement is believed up to five minutes ahead of the server's."""
    now = int(NOW.timestamp())

    assert now + 300 == noted_at(4_000_000_000, now - 9, now=NOW)
    assert now - 9 == noted_at(now - 60, now - 9, now=NOW)


def test_a_wait_that_no_rule_makes_is_over():
    """A clock that was ahead must not give a command away for years."""
    ahead = timedelta(days=9_000)
    for stuck in (leased(1, seconds=ahead.total_seconds()), waiting(1, not_before=NOW + ahead)):
        assert [1] == numbers(next_turn([stuck], now=NOW).lease)
    assert [] == numbers(next_turn([leased(1, seconds=LEASE_LONGEST)], now=NOW).lease)


@given(orders, orders, st.integers(1, 100), st.integers(1, 100))
def test_an_executor_that_only_goes_forward_is_never_accused(recorded, reported, recorded_at, at):
    """Rolled back is said of those alone that signed less later."""
    verdict = judge_order(
        reported, at=at, recorded=recorded, recorded_at=recorded_at, issued=Order(9, 9, 9), epoch=1
    )

    assert (OrderVerdict.ROLLED_BACK is verdict) == (reported < recorded and at > recorded_at)


def test_what_was_accepted_must_have_been_handed_out():
    """Unless a restored server can have forgotten it: then its order is of a generation before the restore."""
    assert Standing.OURS is judge_acceptance(Order(1, 0, 1), issued=True, gen=0)
    assert Standing.FOREIGN is judge_acceptance(Order(1, 0, 1), issued=False, gen=0)
    assert Standing.BEFORE_RESTORE is judge_acceptance(Order(1, 0, 1), issued=False, gen=1_700_000_000)
    assert Standing.FOREIGN is judge_acceptance(Order(1, 1_700_000_000, 1), issued=False, gen=1_700_000_000)


# --- alarms ---


@pytest.mark.parametrize("kind, state", [*itertools.product(PARAMS, CommandState)])
def test_every_live_state_has_an_alarm_and_no_other(kind, state):
    """What ended is not overdue."""
    assert (state in LIVE) is (overdue_after(kind, state) is not None)


@pytest.mark.parametrize("state", sorted(UNACCEPTED))
def test_being_handed_out_again_and_again_is_no_progress(state):
    """A machine that never answers is overdue an hour after the order, however often it was asked."""
    long_ago, just_now = NOW - timedelta(hours=1), NOW - timedelta(seconds=LEASE_SECONDS)

    assert is_overdue("scan.run", state, created_at=long_ago, state_at=just_now, now=NOW)
    assert not is_overdue("scan.run", state, created_at=just_now, state_at=just_now, now=NOW)


def test_work_has_the_time_of_its_type():
    """An installation may take hours; a scan may not."""
    began = {"created_at": NOW - timedelta(days=1), "state_at": NOW - timedelta(hours=1), "now": NOW}

    assert is_overdue("scan.run", S.RUNNING, **began)
    assert not is_overdue("packages.upgrade", S.RUNNING, **began)
    assert not is_overdue("scan.run", S.COMPLETED, **began)


def test_an_alarm_ends_with_the_state_that_it_is_about():
    """Being handed out again is the same waiting; being accepted is not."""
    assert keeps_alarm(S.PENDING, S.LEASED)
    assert not keeps_alarm(S.LEASED, S.ACCEPTED)
    assert not keeps_alarm(S.ACCEPTED, S.RUNNING)


def test_people_order_only_what_changes_nothing():
    """Everything else comes from a plan that somebody looked at."""
    assert {CommandType.SCAN_RUN, CommandType.AGENT_HEARTBEAT} == ORDERED_BY_PEOPLE


@pytest.mark.parametrize("status", AgentStatus)
@pytest.mark.parametrize("held", [1, 2, 3])
def test_only_an_approved_agent_with_the_current_epoch_is_given_commands(status, held):
    """An executor with another epoch would refuse: it gets the trust bundle first."""
    assert (status is AgentStatus.ACTIVE and held == 2) == takes_commands(status, held_epoch=held, epoch=2)
