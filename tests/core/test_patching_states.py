"""The table of moves: all that can happen is in it, no decision is lost, and refusals say what to do."""

from datetime import UTC, datetime, timedelta
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core.errors import IllegalMoveError
from redflag_core.patching import (
    ALLOWED,
    DECIDABLE,
    MOVES,
    Decision,
    Move,
    PlanState,
    Sighting,
    can,
    move,
    plan_states,
)
from redflag_core.patching.states import ADVICE, LONGEST_DECISION, UNDECIDED, why_not_until
from redflag_core.scanning import PENDING_STATES, SCANNED_STATES, PackageState, fold
from redflag_core.scanning.states import RUNNING

S = PackageState

SIGHTINGS = st.builds(
    Sighting,
    observed=st.sampled_from(sorted(SCANNED_STATES)),
    present=st.booleans(),
    scan_ok=st.booleans(),
    damaged=st.booleans(),
    newer=st.booleans(),
)
STEPS = st.lists(st.tuples(st.sampled_from([*Move, None]), SIGHTINGS), max_size=20)
SCANS = st.lists(SIGHTINGS, max_size=20)

PEOPLE = {Move.APPROVE: S.APPROVED, Move.EXCLUDE: S.EXCLUDED, Move.DEFER: S.DEFERRED}
EVERY_MOVE = [(how, origin) for how, rule in MOVES.items() for origin in sorted(rule.origins)]


def scanned(state: PackageState | None, seen: Sighting) -> PackageState:
    """The state after a scan that saw this."""
    observed = seen.observed if seen.present else None
    return fold(state, observed, scan_ok=seen.scan_ok, damaged=seen.damaged)


def after_step(state: PackageState, how: Move | None, seen: Sighting) -> PackageState:
    """The state after a scan (None) or a move; the same when the move is refused."""
    if how is None:
        return scanned(state, seen)
    return move(state, how, seen) if can(state, how, seen) else state


# --- the table and what can happen ---


@given(first=SIGHTINGS, steps=STEPS)
def test_everything_that_can_happen_is_in_the_table(first: Sighting, steps):
    """From the first sighting on, through any moves and scans, each change of state is an allowed pair."""
    state = scanned(None, first)
    for how, seen in steps:
        after = after_step(state, how, seen)
        assert after is state or (state, after) in ALLOWED
        state = after


def test_every_allowed_pair_can_be_reached():
    """The table has no pair that nothing makes, and every state can be reached from a first sighting."""
    seen = [
        Sighting(observed=observed, present=present, scan_ok=scan_ok, damaged=damaged, newer=newer)
        for observed, present, scan_ok, damaged, newer in product(SCANNED_STATES, *([(True, False)] * 4))
    ]
    reached, frontier, pairs = set(), {scanned(None, each) for each in seen}, set()
    while frontier:
        state = frontier.pop()
        reached.add(state)
        after = {scanned(state, each) for each in seen}
        after |= {move(state, how, each) for how, each in product(Move, seen) if can(state, how, each)}
        pairs |= {(state, each) for each in after - {state}}
        frontier |= after - reached

    assert set(PackageState) == reached
    assert ALLOWED == pairs


@pytest.mark.parametrize("how, origin", EVERY_MOVE)
def test_a_move_leads_where_its_rule_says(how: Move, origin: PackageState):
    """For a package that scans see as they did when it began, the rule's target is the answer."""
    seen = Sighting(observed=S.AVAILABLE)

    assert (MOVES[how].to or S.AVAILABLE) is move(origin, how, seen)


@given(state=st.sampled_from(PackageState), how=st.sampled_from(Move), seen=SIGHTINGS)
def test_a_refused_move_says_what_to_do(state: PackageState, how: Move, seen: Sighting):
    """`can` agrees with `move`, and the refusal is a sentence with advice."""
    if can(state, how, seen):
        move(state, how, seen)
        return
    with pytest.raises(IllegalMoveError) as error:
        move(state, how, seen)
    assert error.value.message.startswith("a package that is ")
    assert any(error.value.message.endswith(f": {advice}") for advice in ADVICE.values())


def test_there_is_advice_for_every_state():
    """No state leaves people alone."""
    assert set(PackageState) == set(ADVICE)


# --- scans ---


@given(state=st.sampled_from(sorted(RUNNING)), scans=SCANS)
def test_no_scan_resets_what_runs(state: PackageState, scans):
    """A plan, an installation and a missing reboot end with their own result, whatever is scanned meanwhile."""
    after = state
    for seen in scans:
        after = scanned(after, seen)

    assert state is after


@given(state=st.sampled_from(sorted(DECIDABLE - UNDECIDED)), scans=SCANS)
def test_no_scan_resets_a_decision_while_there_is_an_update(state: PackageState, scans):
    """Scans that fail or still see an update leave it; gone closes it, up to date ends all but exclusion."""
    for seen in scans:
        after = scanned(state, seen)
        if not seen.scan_ok or (seen.present and seen.observed in PENDING_STATES):
            assert state is after
        elif not seen.present:
            assert S.NOT_APPLICABLE is after
        elif state is S.EXCLUDED or (state is S.FAILED and seen.damaged):
            assert state is after
        else:
            assert S.CURRENT is after


@given(scans=SCANS, back=st.sampled_from(sorted(SCANNED_STATES)))
def test_gone_closes_and_reappearing_opens_again(scans, back: PackageState):
    """Whatever happened before: not listed is closed, and a package that comes back is what it is seen to be."""
    state: PackageState | None = None
    for seen in scans:
        state = scanned(state, seen)

    gone = fold(state, None, scan_ok=True)

    assert S.NOT_APPLICABLE is gone
    assert S.NOT_APPLICABLE is fold(gone, None, scan_ok=False)
    assert back is fold(gone, back, scan_ok=True)


def test_a_failed_installation_is_not_over_because_its_version_is_there():
    """What the manager left half configured is newest and broken: it stays failed until it is repaired."""
    broken = fold(S.FAILED, S.CURRENT, scan_ok=True, damaged=True)

    assert (S.FAILED, S.CURRENT) == (broken, fold(broken, S.CURRENT, scan_ok=True))


# --- people ---


@pytest.mark.parametrize("how", PEOPLE)
@pytest.mark.parametrize("state", sorted(PackageState))
def test_people_decide_only_where_something_can_be_decided(how: Move, state: PackageState):
    """While something runs, and about what is gone, nobody decides anything."""
    seen = Sighting(observed=S.AVAILABLE)

    if state in RUNNING or state is S.NOT_APPLICABLE:
        assert not can(state, how, seen)
    elif state in DECIDABLE - {S.NEEDS_CONFIRMATION}:
        assert PEOPLE[how] is move(state, how, seen)


@pytest.mark.parametrize(
    "seen, word",
    [
        (Sighting(observed=S.HELD), "held"),
        (Sighting(observed=S.PHASED), "phased"),
        (Sighting(observed=S.CURRENT), "up to date"),
        (Sighting(observed=S.AVAILABLE, scan_ok=False), "unknown"),
        (Sighting(observed=S.AVAILABLE, present=False), "gone"),
    ],
)
@pytest.mark.parametrize("state", sorted(DECIDABLE - {S.NEEDS_CONFIRMATION, S.AVAILABLE, S.KEPT_BACK}))
def test_what_its_machine_would_not_install_cannot_be_approved(state: PackageState, seen: Sighting, word: str):
    """An older decision does not hide that the package is held, phased, gone, up to date or not known now."""
    with pytest.raises(IllegalMoveError, match=word):
        move(state, Move.APPROVE, seen)


def test_a_plan_with_extra_changes_is_not_approved_past_its_confirmation():
    """Approving again is no way around confirming."""
    with pytest.raises(IllegalMoveError, match="confirm its plan"):
        move(S.NEEDS_CONFIRMATION, Move.APPROVE, Sighting(observed=S.AVAILABLE))


@given(state=st.sampled_from(sorted(MOVES[Move.REOPEN].origins)), seen=SIGHTINGS)
def test_what_is_reopened_is_what_scans_see(state: PackageState, seen: Sighting):
    """Taking a decision back never makes a package look better than it is known to be."""
    assert scanned(None if seen.present else S.NOT_APPLICABLE, seen) is move(state, Move.REOPEN, seen)


NOW = datetime(2026, 1, 2, 9, 30, tzinfo=UTC)
SOON, LAST = NOW + timedelta(microseconds=1), NOW + LONGEST_DECISION


@pytest.mark.parametrize("decision", Decision)
@pytest.mark.parametrize(
    "until, in_time",
    [
        (SOON, True),
        (LAST, True),
        (NOW, False),
        (NOW - timedelta(days=1), False),
        (LAST + timedelta(seconds=1), False),
    ],
)
def test_only_what_can_end_ends_and_in_the_time_to_come(decision: Decision, until: datetime, in_time: bool):
    """Deferrals and exclusions have an end that is after now and not beyond five years; others have none."""
    can_end = decision in (Decision.DEFER, Decision.EXCLUDE)

    assert (can_end and in_time) is (why_not_until(decision, until, NOW) is None)
    assert (decision is Decision.DEFER) is (why_not_until(decision, None, NOW) is not None)


# --- what was seen while something ran ---


@given(
    state=st.sampled_from(sorted(RUNNING)),
    how=st.sampled_from([*Move]),
    seen=SIGHTINGS.filter(lambda seen: not seen.present),
)
def test_what_vanished_while_something_ran_is_closed_at_its_end(state: PackageState, how: Move, seen: Sighting):
    """A package that is gone does not stay open because nobody could say so at the time."""
    if can(state, how, seen):
        assert move(state, how, seen) in {S.NOT_APPLICABLE, S.REBOOT_PENDING}


@pytest.mark.parametrize("observed", sorted(SCANNED_STATES))
@pytest.mark.parametrize("state, how", [(S.INSTALLING, Move.INSTALL_DONE), (S.REBOOT_PENDING, Move.REBOOTED)])
def test_a_newer_version_that_came_meanwhile_is_shown(state: PackageState, how: Move, observed: PackageState):
    """Installed is said of the newest version only; what the scan before the installation saw does not count."""
    old, new = Sighting(observed=observed), Sighting(observed=observed, newer=True)

    assert S.INSTALLED is move(state, how, old)
    assert (observed if observed in PENDING_STATES else S.INSTALLED) is move(state, how, new)


@pytest.mark.parametrize("how", [Move.PLAN_CLEAN, Move.PLAN_DROPPED, Move.PLAN_EXTRA])
def test_an_update_that_somebody_installed_during_the_plan_is_not_approved_any_more(how: Move):
    """There is nothing left to install."""
    assert S.CURRENT is move(S.PLANNING, how, Sighting(observed=S.CURRENT))


@pytest.mark.parametrize("state", [S.APPROVED, S.FAILED])
@pytest.mark.parametrize("how", [Move.INSTALL_DONE, Move.INSTALL_NEEDS_REBOOT, Move.INSTALL_FAILED])
def test_a_late_result_still_counts(state: PackageState, how: Move):
    """What was given up here and carried out there is believed."""
    assert MOVES[how].to is move(state, how, Sighting(observed=S.AVAILABLE))


# --- plans ---


def test_a_plan_goes_one_way():
    """No move leads back, and only a late result moves a plan that has ended."""
    ended = set(PlanState) - plan_states.OPEN
    onward: dict[PlanState, set[PlanState]] = {state: set() for state in PlanState}
    for before, after in plan_states.ALLOWED:
        onward[before].add(after)
    for _ in PlanState:
        for state in PlanState:
            onward[state] |= {far for near in onward[state] for far in onward[near]}

    assert not any(state in onward[state] for state in PlanState)
    assert all(onward[state] <= {PlanState.DONE, PlanState.FAILED} for state in ended)


@pytest.mark.parametrize("before", PlanState)
@pytest.mark.parametrize("after", PlanState)
def test_plans_move_as_their_table_says(before: PlanState, after: PlanState):
    """Each legal move passes, each other one is refused with a sentence."""
    if (before, after) in plan_states.ALLOWED:
        assert after is plan_states.advance(before, after)
        return
    with pytest.raises(IllegalMoveError, match=before.value.replace("_", " ")):
        plan_states.advance(before, after)
