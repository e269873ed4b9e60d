"""Rollouts: rings open one after the other, bad updates stop by themselves, and few machines are exposed."""

import random
from collections import Counter
from datetime import datetime, timedelta

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from redflag_core import codec
from redflag_core.errors import IllegalMoveError
from redflag_core.patching.rollouts import (
    BLAST_MINIMUM,
    BLAST_PERCENT,
    MAX_DELAY,
    MAX_RING_AGENTS,
    MAX_RING_NAME,
    MAX_RINGS,
    Gate,
    Member,
    OpenRing,
    Ring,
    Rollout,
    RolloutPhase,
    RolloutState,
    Stage,
    Verdict,
    begin,
    blast_radius,
    decide,
    halt,
    resume,
    start_delay,
)
from redflag_core.testing import START

ROLLOUT = "0190b5a4-7a3c-7def-8abc-0000000f0000"
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def agent(number):
    return f"0190b5a4-7a3c-7def-8abc-{number:012x}"


def at(seconds):
    return START + timedelta(seconds=seconds)


def rollout(*sizes, soak=3600, spread=0, **gate):
    """Rings of these sizes, numbered through."""
    names, rings, first = ["canary", "pilot", "broad"], [], 0
    for name, size in zip(names, sizes, strict=False):
        agents = tuple(agent(number) for number in range(first, first + size))
        rings.append(Ring(name=name, agents=agents, soak=soak, spread=spread, gate=Gate(**gate)))
        first += size
    return Rollout(id=ROLLOUT, rings=tuple(rings))


def members(*stages, since=START, first=0, **facts):
    """One machine for each stage."""
    return {
        agent(number): Member(
            agent_id=agent(number), stage=stage, since=None if stage is Stage.WAITING else since, **facts
        )
        for number, stage in enumerate(stages, start=first)
    }


def ask(plan, known, state=None, now=START, room=1000):
    return decide(plan, state or begin(now=START), known, now=now, room=room)


H, F, W = Stage.HEALTHY, Stage.FAILED, Stage.WAITING


# Values


def test_defaults_are_those_of_the_documentation():
    """Ten percent and five machines; four hours, an hour and a day to answer; three days for who is offline."""
    ring = Ring(name="a", agents=(agent(1),))
    gate = Gate()

    assert (10, 5) == (BLAST_PERCENT, BLAST_MINIMUM)
    assert (10, 95, 95, 5) == (gate.max_failed, gate.min_returned, gate.min_passed, gate.min_answers)
    assert (14_400, 3_600, 86_400, 259_200) == (
        gate.install_within,
        gate.return_within,
        gate.check_within,
        gate.wait_for_offline,
    )
    assert (86_400, 0, gate) == (ring.soak, ring.spread, ring.gate)


def test_the_bounds_are_those_that_were_chosen():
    """Rings, their machines and names, and how long anything may take."""
    assert (20, 100_000, 64, 7_776_000) == (MAX_RINGS, MAX_RING_AGENTS, MAX_RING_NAME, MAX_DELAY)
    assert MAX_DELAY == Gate(install_within=MAX_DELAY).install_within
    assert (0, 0) == (Gate(install_within=0).install_within, Gate(max_failed=0).max_failed)
    assert (1, MAX_RING_AGENTS) == (Gate(min_answers=1).min_answers, Gate(min_answers=MAX_RING_AGENTS).min_answers)
    with pytest.raises(ValueError, match="min_answers"):
        Gate(min_answers=MAX_RING_AGENTS + 1)


def test_a_rollout_can_be_stored():
    """Rings and gates come back from JSON."""
    plan = rollout(3, 5, min_answers=2)

    assert plan == codec.parse(Rollout, codec.dump(plan), max_bytes=10_000)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Rollout(id=ROLLOUT, rings=()),
        lambda: Rollout(id="x", rings=rollout(1).rings),
        lambda: Rollout(id=ROLLOUT, rings=rollout(2).rings * 2),
        lambda: Rollout(id=ROLLOUT, rings=(rollout(2).rings[0], attrs.evolve(rollout(2).rings[0], name="other"))),
        lambda: Ring(name="a", agents=(agent(1), agent(1))) and rollout_of(agent(1), agent(1)),
        lambda: Ring(name="a", agents=()),
        lambda: Ring(name="", agents=(agent(1),)),
        lambda: Ring(name="a", agents=("one",)),
        lambda: Ring(name="a", agents=(agent(1),), soak=-1),
        lambda: Ring(name="a", agents=(agent(1),), spread=MAX_DELAY + 1),
        lambda: Gate(max_failed=101),
        lambda: Gate(min_passed=-1),
        lambda: Gate(min_answers=0),
        lambda: Gate(install_within=MAX_DELAY + 1),
        lambda: RolloutState(rings=()),
    ],
)
def test_values_that_mean_nothing_are_refused(make):
    """When they are made, not in the night."""
    with pytest.raises(ValueError, match=r"\w"):
        make()


def rollout_of(*agents):
    return Rollout(id=ROLLOUT, rings=(Ring(name="a", agents=agents),))


def test_there_is_a_largest_number_of_rings():
    """More than anybody can follow."""
    rings = tuple(Ring(name=f"r{n}", agents=(agent(n),)) for n in range(MAX_RINGS + 1))

    assert MAX_RINGS == len(Rollout(id=ROLLOUT, rings=rings[:-1]).rings)
    with pytest.raises(ValueError, match="rings"):
        Rollout(id=ROLLOUT, rings=rings)


@pytest.mark.parametrize("stage, since", [(Stage.WAITING, START), (Stage.INSTALLING, None)])
def test_a_stage_has_a_time(stage, since):
    """Without one nobody would notice silence."""
    with pytest.raises(ValueError, match="since goes with"):
        Member(agent_id=agent(1), stage=stage, since=since)


def test_only_a_machine_that_failed_recovers():
    """While it is at work, nobody can know: it would not be counted as exposed."""
    for stage in Stage:
        if stage in (Stage.FAILED, Stage.CHECK_FAILED):
            assert not members(stage, recovered=True)[agent(0)].is_exposed
        else:
            with pytest.raises(ValueError, match="only a machine that failed"):
                members(stage, recovered=True)


def test_a_naive_time_is_a_bug_of_the_caller():
    """It is refused before anything is decided."""
    with pytest.raises(ValueError, match="aware"):
        ask(rollout(2), {}, now=START.replace(tzinfo=None))


# Who may start


def test_only_the_first_ring_starts():
    """All of it when there is room and no spread; the others are closed."""
    plan = rollout(2, 3)

    answer = ask(plan, members(W, W, W, W, W))

    assert sorted(plan.rings[0].agents) == sorted(answer.start)
    assert {Verdict.START} == {answer.verdicts[each] for each in plan.rings[0].agents}
    assert {Verdict.RING_CLOSED} == {answer.verdicts[each] for each in plan.rings[1].agents}
    assert (RolloutPhase.RUNNING, 998) == (answer.phase, answer.room)


def test_each_machine_is_told_why_it_does_not_start():
    """Offline, held back by something else, started before, or unknown."""
    known = {
        agent(0): Member(agent_id=agent(0), online=False),
        agent(1): Member(agent_id=agent(1), ready=False),
        agent(2): Member(agent_id=agent(2), stage=Stage.INSTALLING, since=START),
        agent(4): Member(agent_id=agent(4), online=False, ready=False),
    }

    verdicts = ask(rollout(5), known).verdicts

    assert [Verdict.OFFLINE, Verdict.NOT_READY, Verdict.STARTED, Verdict.OFFLINE, Verdict.OFFLINE] == [
        verdicts[agent(number)] for number in range(5)
    ]


@pytest.mark.parametrize("room", [-1, 0, 1, 3, 4, 5])
def test_no_more_start_than_there_is_room_for(room):
    """The others hear that there is none; what is left is for the next rollout."""
    answer = ask(rollout(4), members(W, W, W, W), room=room)

    assert min(max(room, 0), 4) == len(answer.start)
    assert max(4 - max(room, 0), 0) == Counter(answer.verdicts.values())[Verdict.NO_ROOM]
    assert max(room - 4, 0) == answer.room


def test_the_earlier_ring_comes_first():
    """A canary that was offline is started before the next ring goes on."""
    state = RolloutState(rings=(OpenRing(START, START), OpenRing(START)))

    answer = ask(rollout(2, 3), members(H, W, W, W, W), state, room=2)

    assert agent(1) == answer.start[0]


def test_starts_are_spread_over_the_ring():
    """Each machine has its own time, the same at every question, and in the end all have started."""
    plan = rollout(40, spread=3600)
    known = members(*[W] * 40)
    delays = {each: start_delay(ROLLOUT, each, 3600) for each in plan.rings[0].agents}

    for seconds in (0, 900, 1800, 3600):
        answer = ask(plan, known, now=at(seconds))
        assert {each for each, delay in delays.items() if delay <= seconds} == set(answer.start)
        assert sorted(delays[each] for each in answer.start) == [delays[each] for each in answer.start]
    assert Verdict.SPREAD == ask(plan, known).verdicts[max(delays, key=delays.get)]
    latest = max(delays.values())
    assert (39, 40) == tuple(len(ask(plan, known, now=at(when)).start) for when in (latest - 1, latest))


@given(st.uuids(), st.uuids(), st.integers(0, MAX_DELAY))
def test_a_delay_is_below_the_spread(one, other, spread):
    """And does not depend on anything but the two ids."""
    delay = start_delay(str(one), str(other), spread)

    assert 0 <= delay < max(spread, 1)
    assert delay == start_delay(str(one), str(other), spread)


def test_delays_are_even_and_differ_between_rollouts():
    """About a tenth of the machines in each tenth of the time, and not always the same first."""
    delays = [start_delay(ROLLOUT, agent(number), 1000) for number in range(5000)]
    others = [start_delay(agent(0), agent(number), 1000) for number in range(5000)]

    tenths = Counter(delay // 100 for delay in delays)
    assert set(range(10)) == set(tenths)
    assert all(400 <= count <= 600 for count in tenths.values())
    assert 50 > sum(one == other for one, other in zip(delays, others, strict=True))


# Rings


def test_the_next_ring_opens_when_the_one_before_it_has_soaked():
    """To the second, counted from when it was seen to be settled."""
    plan, known = rollout(2, 3), members(H, H, W, W, W)

    settled = ask(plan, known, now=at(100))
    before = ask(plan, known, settled.state, now=at(3699))
    after = ask(plan, known, before.state, now=at(3700))

    assert at(100) == settled.state.rings[0].settled_at
    assert (1, ()) == (len(before.state.rings), before.start)
    assert f"ring canary soaks until {at(3700).isoformat()}" == before.note
    assert OpenRing(at(3700)) == after.state.rings[1]
    assert {agent(2), agent(3), agent(4)} == set(after.start)


def test_one_ring_opens_at_a_time():
    """Though everything in the next one is done already."""
    plan, known = rollout(1, 1, 1, soak=0), members(H, H, W)

    first = ask(plan, known)
    second = ask(plan, known, first.state)

    assert (2, 3) == (len(first.state.rings), len(second.state.rings))


@pytest.mark.parametrize(
    "stage", [Stage.INSTALLING, Stage.INSTALLED, Stage.REBOOTING, Stage.RETURNED, Stage.WAITING]
)
def test_a_ring_waits_for_everybody_who_will_answer(stage):
    """Installing, rebooting, being checked, or about to start."""
    answer = ask(rollout(3, 1, soak=0), members(H, H, stage, W), room=0)

    assert 1 == len(answer.state.rings)
    assert answer.state.rings[0].settled_at is None


def test_a_note_says_what_is_missing():
    """For people who look at a rollout that does not go on."""
    assert "ring canary: 2 of 3 machines have not answered yet" == ask(rollout(3), members(H, W, W)).note
    blocked = ask(rollout(3), members(H, W, W), room=0)
    assert blocked.note.startswith("too many machines of the organization are not known to be healthy")


def test_a_ring_goes_on_without_machines_that_stay_offline():
    """They do not hold it up for ever, and they do not count as healthy."""
    plan, known = rollout(3, 1, soak=0, wait_for_offline=600), members(H, H)

    assert 1 == len(ask(plan, known, now=at(599)).state.rings)
    assert 2 == len(ask(plan, known, now=at(600)).state.rings)


def test_machines_that_are_held_back_by_something_else_are_waited_for():
    """A window comes."""
    known = members(H, H) | {agent(2): Member(agent_id=agent(2), ready=False)}

    assert 1 == len(ask(rollout(3, 1, soak=0), known, now=START + 30 * DAY).state.rings)


def test_a_machine_that_comes_back_late_is_started():
    """In a ring that has settled, and does not take back that it did."""
    plan, known = rollout(3, 2, soak=7200, wait_for_offline=600), members(H, H)
    settled = ask(plan, known, now=at(600)).state

    back = ask(plan, known | members(W, first=2), settled, now=at(700))
    at_work = ask(plan, known | members(Stage.INSTALLING, first=2, since=at(700)), back.state, now=at(7800))

    assert (agent(2),) == back.start
    assert at(600) == at_work.state.rings[0].settled_at
    assert 2 == len(at_work.state.rings)


def test_a_ring_of_which_nobody_answered_opens_nothing():
    """Nothing is known of the update then, however long everybody was waited for."""
    answer = ask(rollout(3, 1, soak=0), {}, now=START + 30 * DAY)

    assert 1 == len(answer.state.rings)
    assert (RolloutPhase.RUNNING, "ring canary: 3 of 3 machines have not answered yet") == (
        answer.phase,
        answer.note,
    )


def test_a_rollout_is_done_when_its_last_ring_has_soaked():
    """Machines that come back later are started all the same."""
    plan, known = rollout(2, 2, wait_for_offline=0), members(H, H, H)
    state = RolloutState(rings=(OpenRing(START, START), OpenRing(START, START)))

    assert RolloutPhase.RUNNING is ask(plan, known, state, now=at(3599)).phase
    done = ask(plan, known | members(W, first=3), state, now=at(3600))
    assert (RolloutPhase.DONE, "every ring has settled", (agent(3),)) == (done.phase, done.note, done.start)


def test_the_same_question_has_the_same_answer():
    """Nothing is remembered but the state."""
    plan, known = rollout(4, 4, spread=600), members(H, W, Stage.INSTALLING, F)

    assert ask(plan, known, now=at(60)) == ask(plan, dict(reversed(known.items())), now=at(60))


# Gates

C = Stage.CHECK_FAILED


@pytest.mark.parametrize(
    "bad, good, halts",
    [(0, 5, False), (1, 9, False), (1, 8, True), (2, 18, False), (2, 17, True), (1, 3, False), (1, 4, True)],
)
def test_too_many_failed_installations_halt_a_rollout(bad, good, halts):
    """More than ten percent, of at least five answers while others are still to come."""
    answer = ask(rollout(30, 2), members(*[F] * bad, *[H] * good, Stage.INSTALLING))

    assert halts is (answer.phase is RolloutPhase.HALTED)
    if halts:
        total = bad + good
        assert f"ring canary: {bad} of {total} machines failed to install; at most 10 % may" == answer.note
        assert (answer.note, ()) == (answer.state.halted, answer.start)
        assert {Verdict.HALTED, Verdict.STARTED} == set(answer.verdicts.values())


@pytest.mark.parametrize(
    "bad, good, halts", [(1, 19, False), (1, 18, True), (2, 38, False), (1, 3, False), (1, 4, True)]
)
def test_machines_that_do_not_return_halt_a_rollout(bad, good, halts):
    """More than five percent of those that were rebooted; the others do not count."""
    plan = rollout(90, 2, max_failed=100, return_within=600)
    known = members(*[Stage.REBOOTING] * bad) | members(*[Stage.RETURNED] * good, first=bad, rebooted=True)
    known |= members(*[H] * 40, first=bad + good)

    early, late = (ask(plan, known, now=at(seconds)) for seconds in (599, 600))

    assert RolloutPhase.RUNNING is early.phase
    assert halts is (late.phase is RolloutPhase.HALTED)
    if halts:
        assert (
            f"ring canary: {bad} of {bad + good} machines did not return from a reboot; at most 5 % may"
            == late.note
        )


@pytest.mark.parametrize("bad, good, halts", [(1, 19, False), (1, 18, True), (1, 3, False), (1, 4, True)])
def test_checks_that_do_not_pass_halt_a_rollout(bad, good, halts):
    """More than five percent."""
    answer = ask(rollout(30, 2), members(*[C] * bad, *[H] * good, Stage.INSTALLED))

    assert halts is (answer.phase is RolloutPhase.HALTED)
    if halts:
        assert (
            f"ring canary: {bad} of {bad + good} machines did not pass their checks; at most 5 % may"
            == answer.note
        )


@pytest.mark.parametrize(
    "stage, within, sentence",
    [
        (Stage.INSTALLING, "install_within", "failed to install"),
        (Stage.REBOOTING, "return_within", "did not return"),
        (Stage.INSTALLED, "check_within", "did not pass their checks"),
        (Stage.RETURNED, "check_within", "did not pass their checks"),
    ],
)
def test_silence_is_a_bad_answer_when_its_time_has_passed(stage, within, sentence):
    """An update that cuts machines off does not look harmless. To the second."""
    plan, known = rollout(6, 1, **{within: 500}), members(*[stage] * 6, rebooted=stage is Stage.RETURNED)

    assert RolloutPhase.RUNNING is ask(plan, known, now=at(499)).phase
    late = ask(plan, known, now=at(500))
    assert RolloutPhase.HALTED is late.phase
    assert f"6 of 6 machines {sentence}" in late.note


@pytest.mark.parametrize("stages, halts", [((F, H), True), ((H, H), False), ((F, W), False), ((C, H, H), True)])
def test_a_small_ring_is_judged_when_everybody_answered(stages, halts):
    """Below the number of answers that counts: no more will come."""
    answer = ask(rollout(len(stages), 1), members(*stages))

    assert halts is (answer.phase is RolloutPhase.HALTED)


def test_a_ring_is_judged_when_no_more_answers_can_come():
    """Five failures of a large ring use up the room: the rollout halts and does not stand still."""
    plan, known = rollout(50, 1, min_answers=10), members(*[F] * 5, *[W] * 45)

    assert RolloutPhase.RUNNING is ask(plan, known, room=1).phase
    assert RolloutPhase.HALTED is ask(plan, known, room=0).phase
    assert RolloutPhase.HALTED is ask(plan, known, room=-1).phase
    assert RolloutPhase.RUNNING is ask(plan, known | members(Stage.INSTALLING, first=5), room=0).phase
    assert RolloutPhase.RUNNING is ask(plan, known | members(*[H] * 45, first=5), room=0).phase


def test_an_earlier_ring_still_halts_a_rollout():
    """A check that fails a day later, while the next ring is at work."""
    state = RolloutState(rings=(OpenRing(START, START), OpenRing(START)))

    answer = ask(rollout(5, 5), members(C, H, H, H, H, *[W] * 5), state)

    assert (RolloutPhase.HALTED, ()) == (answer.phase, answer.start)
    assert answer.note.startswith("ring canary: 1 of 5")


def test_a_ring_with_a_bad_rate_opens_nothing_though_it_does_not_count_yet():
    """Few answers, one of them bad, and a machine that came back late is at work."""
    plan = rollout(3, 1, soak=0, wait_for_offline=0)
    state = RolloutState(rings=(OpenRing(START, START),))
    known = members(H, F, Stage.INSTALLING, W)

    waiting = ask(plan, known, state)

    assert (RolloutPhase.RUNNING, 1) == (waiting.phase, len(waiting.state.rings))
    assert "1 of 3 machines have not answered yet" in waiting.note
    assert RolloutPhase.HALTED is ask(plan, known | members(H, first=2), state).phase


# Halt and resume


def test_a_halted_rollout_starts_nothing():
    """Whatever changes, until a person resumes it; nothing of its state moves."""
    state = attrs.evolve(begin(now=START), halted="ring canary: why")

    answer = ask(rollout(2, 2, soak=0), members(H, W, W, W), state, now=START + DAY)

    assert (state, RolloutPhase.HALTED, "ring canary: why", ()) == (
        answer.state,
        answer.phase,
        answer.note,
        answer.start,
    )
    assert [Verdict.STARTED, *[Verdict.HALTED] * 3] == [answer.verdicts[agent(number)] for number in range(4)]
    assert 1000 == answer.room


def test_a_person_halts_a_rollout_once():
    """The first reason stays."""
    state = halt(begin(now=START), "the vendor withdrew it")

    assert "the vendor withdrew it" == ask(rollout(1), members(W), state).note
    with pytest.raises(IllegalMoveError, match="the vendor withdrew it"):
        halt(state, "me too")


def test_only_a_halted_rollout_is_resumed():
    """There is nothing else to resume."""
    with pytest.raises(IllegalMoveError, match="has not halted"):
        resume(begin(now=START), now=START)


def test_after_a_resume_known_failures_are_forgiven():
    """The rollout goes on; a new failure of too many halts it again."""
    plan, known = rollout(40, 1), members(*[F] * 5, *[W] * 35)
    halted = ask(plan, known, now=at(60))

    resumed = resume(halted.state, now=at(120))
    goes_on = ask(plan, known, resumed, now=at(120))
    worse = known | members(F, first=5, since=at(121)) | members(*[H] * 4, first=6)
    again = ask(plan, worse, goes_on.state, now=at(200))

    assert (None, at(120)) == (resumed.halted, resumed.resumed_at)
    assert (RolloutPhase.RUNNING, 35) == (goes_on.phase, len(goes_on.start))
    assert "ring canary: 1 of 5 machines failed to install; at most 10 % may" == again.note


@pytest.mark.parametrize("since, halts", [(119, False), (120, False), (121, True)])
def test_what_came_after_the_resume_counts(since, halts):
    """To the second, for answers and for silence."""
    state = attrs.evolve(begin(now=START), resumed_at=at(120))
    failed = members(*[F] * 6, since=at(since))
    silent = members(*[Stage.INSTALLING] * 6, since=at(since - 60))

    for known in (failed, silent):
        answer = ask(rollout(6, 1, install_within=60), known, state, now=at(1000))
        assert halts is (answer.phase is RolloutPhase.HALTED)


def test_a_ring_whose_failures_were_all_forgiven_lets_the_next_one_open():
    """A person decided that."""
    state = resume(halt(begin(now=START), "bad"), now=START)

    assert 2 == len(ask(rollout(2, 1, soak=0), members(F, F, W), state).state.rings)


# Blast radius


@pytest.mark.parametrize(
    "agents, percent, expected",
    [
        (0, 10, 5),
        (3, 10, 5),
        (59, 10, 5),
        (60, 10, 6),
        (1000, 10, 100),
        (1000, 0, 5),
        (1000, 100, 1000),
        (19, 33, 6),
    ],
)
def test_the_larger_of_a_part_and_five_machines_may_be_exposed(agents, percent, expected):
    """Rounded down: never more."""
    assert expected == blast_radius(agents, [], percent=percent)


def test_the_usual_part_is_ten_percent():
    """When nobody says otherwise."""
    assert 7 == blast_radius(79, [])


@pytest.mark.parametrize("stage", Stage)
def test_a_machine_is_exposed_until_it_is_known_to_be_healthy(stage):
    """Also when it failed, when it is silent, and when its rollout has halted."""
    known = members(stage)[agent(0)]

    assert 5 - (stage not in (Stage.WAITING, Stage.HEALTHY)) == blast_radius(10, [known, known])


def test_a_machine_in_two_rollouts_is_one_machine():
    """And there is never less room than none."""
    one, other = members(*[F] * 4), members(*[Stage.INSTALLING] * 8, first=2)

    assert 10 == blast_radius(200, [*one.values(), *other.values()])
    assert 0 == blast_radius(10, [*one.values(), *other.values()])


# A thousand machines


class Fleet:
    """Machines that do what they are told, with an update that is good or bad for them."""

    def __init__(self, plan, is_bad, *, badness, organization=1000, offline=(), minutes=10):
        self.plan, self.state, self.now, self.minutes = plan, begin(now=START), START, minutes
        self.is_bad, self.badness, self.organization = is_bad, badness, organization
        self.known = {
            each: Member(agent_id=each, online=each not in offline) for ring in plan.rings for each in ring.agents
        }
        self.random = random.Random(7)
        self.most_exposed = 0

    def step(self):
        """What happens in some minutes."""
        for member in list(self.known.values()):
            self.act(member)
        answer = decide(
            self.plan,
            self.state,
            self.known,
            now=self.now,
            room=blast_radius(self.organization, self.known.values()),
        )
        self.state = answer.state
        for each in answer.start:
            self.known[each] = Member(agent_id=each, stage=Stage.INSTALLING, since=self.now)
        self.most_exposed = max(self.most_exposed, sum(member.is_exposed for member in self.known.values()))
        self.now += timedelta(minutes=self.minutes)
        return answer

    def act(self, member):
        bad = self.is_bad(member.agent_id)
        if member.stage is Stage.INSTALLING:
            if bad and self.badness == "silent":
                return
            self.move(member, Stage.FAILED if bad and self.badness == "failed" else Stage.REBOOTING)
        elif member.stage is Stage.REBOOTING and not (bad and self.badness == "lost"):
            self.move(member, Stage.RETURNED, rebooted=True)
        elif member.stage is Stage.RETURNED:
            self.move(member, Stage.CHECK_FAILED if bad and self.badness == "check" else Stage.HEALTHY)

    def move(self, member, stage, **facts):
        if self.random.random() < 0.5:
            self.known[member.agent_id] = attrs.evolve(member, stage=stage, since=self.now, **facts)

    def run(self, days):
        for _ in range(days * 1440 // self.minutes):
            answer = self.step()
            if answer.phase is not RolloutPhase.RUNNING:
                break
        return answer

    def stages(self, ring):
        return Counter(self.known[each].stage for each in self.plan.rings[ring].agents)


def thousand(**gate):
    return rollout(20, 180, 800, soak=6 * 3600, spread=3600, **gate)


@pytest.mark.parametrize(
    "badness, sentence",
    [
        ("failed", "failed to install"),
        ("silent", "failed to install"),
        ("lost", "did not return from a reboot"),
        ("check", "did not pass their checks"),
    ],
)
def test_a_bad_package_in_the_canary_ring_goes_no_further(badness, sentence):
    """Of 1,000 machines none outside the canary ring was started, and the reason is recorded."""
    fleet = Fleet(thousand(), lambda _each: True, badness=badness)

    answer = fleet.run(days=7)

    assert RolloutPhase.HALTED is answer.phase
    assert answer.note == fleet.state.halted
    assert answer.note.startswith("ring canary: ")
    assert sentence in answer.note
    assert Counter({Stage.WAITING: 180}) == fleet.stages(1)
    assert Counter({Stage.WAITING: 800}) == fleet.stages(2)
    assert 1 == len(fleet.state.rings)
    assert () == fleet.step().start


def test_a_package_that_is_bad_for_a_few_stops_in_the_ring_where_it_shows():
    """The canaries are well; in the next ring every fourth machine fails, and the last ring sees nothing of it."""
    plan = thousand()
    fleet = Fleet(
        plan, lambda each: each in plan.rings[1].agents and int(each[-3:], 16) % 4 == 0, badness="failed"
    )

    answer = fleet.run(days=7)

    assert RolloutPhase.HALTED is answer.phase
    assert answer.note.startswith("ring pilot: ")
    assert Counter({Stage.HEALTHY: 20}) == fleet.stages(0)
    assert Counter({Stage.WAITING: 800}) == fleet.stages(2)


def test_a_good_package_reaches_every_machine_that_is_there():
    """Ring after ring, never more than a tenth of the organization at once; who is offline is left out."""
    offline = {agent(3), *(agent(number) for number in range(300, 320))}
    patient = {"install_within": 86_400, "return_within": 86_400, "wait_for_offline": 43_200}
    fleet = Fleet(thousand(**patient), lambda _each: False, badness="failed", offline=offline, minutes=60)

    answer = fleet.run(days=20)

    assert RolloutPhase.DONE is answer.phase
    assert 979 == sum(fleet.stages(ring)[Stage.HEALTHY] for ring in range(3))
    assert offline == {each for each, member in fleet.known.items() if member.stage is Stage.WAITING}
    assert 90 < fleet.most_exposed <= 100
    assert all(
        later.opened_at >= ring.settled_at + 6 * HOUR
        for ring, later in zip(fleet.state.rings, fleet.state.rings[1:], strict=False)
    )


# Whatever the machines do

NEXT = {
    Stage.INSTALLING: [Stage.INSTALLED, Stage.REBOOTING, Stage.FAILED],
    Stage.INSTALLED: [Stage.REBOOTING, Stage.HEALTHY, Stage.CHECK_FAILED],
    Stage.REBOOTING: [Stage.RETURNED],
    Stage.RETURNED: [Stage.HEALTHY, Stage.CHECK_FAILED],
}
PICK = st.integers(0, 10**6)


class Rollouts(RuleBasedStateMachine):
    """Two rollouts of one organization, machines that do anything in any order, and people."""

    @initialize(agents=st.integers(8, 90), percent=st.integers(0, 60), small=st.booleans())
    def begin_both(self, agents, percent, small):
        self.agents, self.percent, self.now = agents, percent, START
        gate = {"install_within": 3600, "return_within": 1800, "check_within": 3600, "wait_for_offline": 7200}
        first = rollout(2 if small else 6, 6, 90, soak=1800, min_answers=3, **gate)
        ids = [agent(number) for number in range(6, 26)]
        second = Rollout(
            id=agent(999),
            rings=tuple(
                Ring(name=name, agents=tuple(some), soak=0, spread=600, gate=Gate(min_answers=2, **gate))
                for name, some in (("one", ids[:4]), ("two", ids[4:]))
            ),
        )
        self.plans = [first, second]
        self.states = [begin(now=START), begin(now=START)]
        self.known = [
            {each: Member(agent_id=each) for ring in plan.rings for each in ring.agents} for plan in self.plans
        ]
        self.is_resumed = [False, False]

    @property
    def limit(self):
        return max(self.agents * self.percent // 100, 5)

    def exposed(self):
        return {m.agent_id for known in self.known for m in known.values() if m.is_exposed}

    @rule(which=st.integers(0, 1))
    def decide_and_start(self, which):
        plan, state, known = self.plans[which], self.states[which], self.known[which]
        other = self.known[1 - which]
        seen = {
            each: attrs.evolve(member, ready=member.ready and not (each in other and other[each].is_exposed))
            for each, member in known.items()
        }
        room = blast_radius(self.agents, [m for each in self.known for m in each.values()], percent=self.percent)
        answer = decide(plan, state, seen, now=self.now, room=room)

        self.check(plan, state, seen, answer, room)
        self.states[which] = answer.state
        for each in answer.start:
            known[each] = attrs.evolve(known[each], stage=Stage.INSTALLING, since=self.now)

    def check(self, plan, state, seen, answer, room):
        opened = plan.rings[: len(answer.state.rings)]
        may = {each for ring in opened for each in ring.agents}
        assert len(answer.start) == len(set(answer.start)) <= room
        assert answer.room == room - len(answer.start)
        for each in answer.start:
            assert each in may
            assert Stage.WAITING is seen[each].stage
            assert seen[each].online
            assert seen[each].ready
        if state.halted is not None:
            assert state == answer.state
        if answer.state.halted is not None:
            assert () == answer.start
            assert answer.note == answer.state.halted
        assert set(answer.start) == {each for each, verdict in answer.verdicts.items() if verdict is Verdict.START}
        assert {each for ring in plan.rings for each in ring.agents} == set(answer.verdicts)
        if len(answer.state.rings) > len(state.rings):
            self.check_opening(plan, state, seen, answer)

    def check_opening(self, plan, state, seen, answer):
        assert len(answer.state.rings) == len(state.rings) + 1
        ring, before = plan.rings[len(state.rings) - 1], answer.state.rings[-2]
        assert self.now >= before.settled_at + timedelta(seconds=ring.soak)
        stages = Counter(seen[each].stage for each in ring.agents)
        assert sum(stages.values()) > stages[Stage.WAITING]
        if state.resumed_at is None:
            done = sum(stages.values()) - stages[Stage.WAITING] - stages[Stage.INSTALLING]
            assert stages[F] * 10 <= done
            assert stages[C] * 20 <= stages[C] + stages[H]

    @rule(pick=PICK, which=st.integers(0, 1), choice=PICK)
    def machine_goes_on(self, pick, which, choice):
        under_way = [m for m in self.known[which].values() if m.stage in NEXT]
        if under_way:
            member = under_way[pick % len(under_way)]
            stages = NEXT[member.stage]
            stage = stages[choice % len(stages)]
            self.known[which][member.agent_id] = attrs.evolve(
                member, stage=stage, since=self.now, rebooted=member.rebooted or stage is Stage.RETURNED
            )

    @rule(which=st.integers(0, 1))
    def all_go_on_well(self, which):
        for member in list(self.known[which].values()):
            if member.stage in NEXT:
                self.known[which][member.agent_id] = attrs.evolve(member, stage=Stage.HEALTHY, since=self.now)

    @rule(pick=PICK, which=st.integers(0, 1), name=st.sampled_from(["online", "ready", "recovered"]))
    def something_changes(self, pick, which, name):
        members_ = list(self.known[which].values())
        member = members_[pick % len(members_)]
        if name != "recovered" or (member.stage in (F, C) and not member.recovered):
            self.known[which][member.agent_id] = attrs.evolve(member, **{name: not getattr(member, name)})

    @rule(seconds=st.sampled_from([1, 60, 600, 1800, 3600, 7200, 86_400]))
    def time_passes(self, seconds):
        self.now += timedelta(seconds=seconds)

    @precondition(lambda self: any(state.halted for state in self.states))
    @rule()
    def a_person_resumes(self):
        self.states = [resume(state, now=self.now) if state.halted else state for state in self.states]

    @rule(which=st.integers(0, 1), yes=st.integers(0, 5))
    def a_person_halts(self, which, yes):
        if yes == 0 and self.states[which].halted is None:
            self.states[which] = halt(self.states[which], "because")

    @invariant()
    def never_more_exposed_than_the_limit(self):
        if hasattr(self, "agents"):
            assert len(self.exposed()) <= self.limit


TestWhateverTheMachinesDo = Rollouts.TestCase
TestWhateverTheMachinesDo.settings = settings(max_examples=30, stateful_step_count=50, deadline=None)


@pytest.mark.full
class TestWhateverTheMachinesDoForLong(Rollouts.TestCase):
    """The same, many times and for longer."""

    settings = settings(max_examples=400, stateful_step_count=120, deadline=None)


@given(
    st.lists(st.sampled_from(Stage), min_size=1, max_size=12),
    st.integers(0, 3),
    st.integers(-3, 12),
    st.integers(0, 200_000),
    st.booleans(),
)
def test_a_decision_is_complete_whatever_is_known(stages, closed, room, seconds, online):
    """Every machine of every ring has a verdict, and a halt has a reason."""
    plan = rollout(len(stages), closed + 1)
    known = members(*stages, online=online)

    answer = ask(plan, known, now=at(seconds), room=room)

    assert {each for ring in plan.rings for each in ring.agents} == set(answer.verdicts)
    assert (answer.phase is RolloutPhase.HALTED) == (answer.state.halted is not None)
    assert answer.note.isprintable()
    assert isinstance(answer.state.rings[0].opened_at, datetime)
