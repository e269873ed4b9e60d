"""
Rollouts: an update goes through rings of machines, and each ring opens when the one before it proved it harmless.

`decide` is asked again and again, with all that is known of each machine. It says which may start now, opens the
next ring, and halts the rollout by itself when a ring's gate does not hold. Only a person resumes it.

Rules of the file:

- Silence after a start is a bad answer once the time for an answer has passed: an update that cuts machines off
  must not look harmless because nobody complains.
- A machine that is offline before its start proves nothing. Its ring waits for it for some time, then goes on
  without it; it is started when it comes back. A ring of which nobody answered opens nothing.
- A rate counts when enough machines have answered, or when no more answers can come. So neither one bad machine of
  two nor a ring that is too small decides by accident, and no rollout stands still without a reason.
- How many machines of an organization are exposed at once is bounded across all its rollouts: `blast_radius`.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

import attrs
from attrs import validators

from redflag_core._fields import UUID, each_once, line
from redflag_core.errors import IllegalMoveError
from redflag_core.freshness import unix

MAX_RINGS: Final = 20
"""More than anybody can follow; three are usual."""

MAX_RING_AGENTS: Final = 100_000
"""Machines of a ring: ten times the largest fleet that one server is built for."""

MAX_RING_NAME: Final = 64
MAX_DELAY: Final = 90 * 86_400
"""Longest soak, spread or wait, seconds: after three months another update has come."""

BLAST_PERCENT: Final = 10
"""Percent of an organization that may be exposed at once when nobody says otherwise."""

BLAST_MINIMUM: Final = 5
"""Machines that may be exposed at once, however small the organization: otherwise ten machines take ten days."""

_PERCENT: Final[Any] = validators.and_(validators.ge(0), validators.le(100))
_SECONDS: Final[Any] = validators.and_(validators.ge(0), validators.le(MAX_DELAY))


# --- what is rolled out to whom --------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Gate:
    """
    What a ring must show before the next one opens, and whenever it shows the opposite, the rollout halts.

    Attributes:
        max_failed: Percent of the answers that may be failed installations.
        min_returned: Percent of the machines that were rebooted that must come back.
        min_passed: Percent of the machines whose checks were run that must pass them.
        min_answers: Answers before one of these rates counts, unless no more can come.
        install_within: Seconds after its start in which a machine must say how it went.
        return_within: Seconds in which it must come back from a reboot.
        check_within: Seconds after it was installed, or came back, in which its checks must have answered. Where
            machines wait for a time to reboot, longer than that wait.
        wait_for_offline: Seconds after the ring opened for which it waits for machines that are offline.
    """

    max_failed: int = attrs.field(default=10, validator=_PERCENT)
    min_returned: int = attrs.field(default=95, validator=_PERCENT)
    min_passed: int = attrs.field(default=95, validator=_PERCENT)
    min_answers: int = attrs.field(default=5, validator=[validators.ge(1), validators.le(MAX_RING_AGENTS)])
    install_within: int = attrs.field(default=4 * 3600, validator=_SECONDS)
    return_within: int = attrs.field(default=3600, validator=_SECONDS)
    check_within: int = attrs.field(default=24 * 3600, validator=_SECONDS)
    wait_for_offline: int = attrs.field(default=3 * 86_400, validator=_SECONDS)


@attrs.frozen(kw_only=True)
class Ring:
    """
    A group of machines that get an update at about the same time.

    Attributes:
        name: For people.
        agents: Ids of its machines. Who belongs to it is the caller's decision.
        soak: Seconds from when it has settled until the next ring may open.
        spread: Seconds over which its starts are spread.
        gate: What it must show.
    """

    name: str = attrs.field(validator=line(MAX_RING_NAME))
    agents: tuple[str, ...] = attrs.field(
        validator=validators.deep_iterable(
            UUID, validators.and_(validators.min_len(1), validators.max_len(MAX_RING_AGENTS))
        )
    )
    soak: int = attrs.field(default=86_400, validator=_SECONDS)
    spread: int = attrs.field(default=0, validator=_SECONDS)
    gate: Gate = attrs.field(factory=Gate)


def _agents_once(_instance: Any, _attribute: Any, rings: tuple[Ring, ...]) -> None:
    agents = [agent for ring in rings for agent in ring.agents]
    if len(set(agents)) != len(agents):
        raise ValueError("rings: a machine is in one ring, once")


@attrs.frozen(kw_only=True)
class Rollout:
    """
    What does not change while a rollout runs.

    Attributes:
        id: Its id, a UUID. It decides which machines of a ring start first: not always the same ones.
        rings: In the order in which they open.
    """

    id: str = attrs.field(validator=UUID)
    rings: tuple[Ring, ...] = attrs.field(
        validator=[
            validators.min_len(1),
            validators.max_len(MAX_RINGS),
            each_once("a ring", lambda ring: ring.name),
            _agents_once,
        ]
    )


# --- what is known of each machine -----------------------------------------------------------------------------


class Stage(StrEnum):
    """How far a machine is."""

    WAITING = "waiting"
    """Not started."""
    INSTALLING = "installing"
    INSTALLED = "installed"
    """Its checks have not answered yet."""
    REBOOTING = "rebooting"
    RETURNED = "returned"
    """Back from the reboot; its checks have not answered yet."""
    HEALTHY = "healthy"
    """Its checks passed, or it is seen to be well where there are none."""
    FAILED = "failed"
    CHECK_FAILED = "check_failed"


@attrs.frozen(kw_only=True)
class Member:
    """
    What is known of one machine of a rollout.

    Attributes:
        agent_id: Its id.
        stage: How far it is.
        since: Since when, aware UTC; None while it waits.
        rebooted: Whether it came back from a reboot in this rollout.
        recovered: Whether it is known to be well again though it failed, or failed its checks: it was undone and
            checked, or a person looked. Its bad answer counts all the same.
        online: Whether it is there.
        ready: Whether nothing else holds it back: its window, a freeze, another rollout that is at work on it.
    """

    agent_id: str
    stage: Stage = Stage.WAITING
    since: datetime | None = None
    rebooted: bool = False
    recovered: bool = False
    online: bool = True
    ready: bool = True

    def __attrs_post_init__(self) -> None:
        """Without a time nobody would notice that it is silent."""
        if (self.since is None) != (self.stage is Stage.WAITING):
            raise ValueError("since goes with every stage but waiting")
        if self.recovered and self.stage not in (Stage.FAILED, Stage.CHECK_FAILED):
            raise ValueError("only a machine that failed recovers")

    @property
    def is_exposed(self) -> bool:
        """Whether it was started and is not known to be healthy again."""
        return self.stage not in (Stage.WAITING, Stage.HEALTHY) and not self.recovered


def blast_radius(agents: int, members: Iterable[Member], *, percent: int = BLAST_PERCENT) -> int:
    """
    How many machines of an organization may start now.

    Args:
        agents: Machines of the organization.
        members: Of all its rollouts, halted ones too. A machine that is in several counts once.
        percent: Percent of the organization that may be exposed at once; at least `BLAST_MINIMUM` machines may.

    Returns:
        Give it to `decide`, and what that leaves of it to the next rollout: `RolloutDecision.room`.
    """
    exposed = {member.agent_id for member in members if member.is_exposed}
    return max(0, max(agents * percent // 100, BLAST_MINIMUM) - len(exposed))


def start_delay(rollout_id: str, agent_id: str, spread: int) -> int:
    """
    Seconds after its ring opened at which a machine may start: always the same, and evenly spread.

    Args:
        rollout_id: Another rollout has another order.
        agent_id: The machine.
        spread: Seconds; the delay is below that.
    """
    digest = hashlib.sha256(f"{rollout_id}/{agent_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") * spread >> 64


# --- where a rollout stands ------------------------------------------------------------------------------------


@attrs.frozen
class OpenRing:
    """
    When a ring opened, and when it was first seen to be settled: everybody in it answered, or is not waited for.

    Attributes:
        opened_at: Aware UTC.
        settled_at: Likewise; None before. Who comes back later does not take it back.
    """

    opened_at: datetime
    settled_at: datetime | None = None


@attrs.frozen(kw_only=True)
class RolloutState:
    """
    Where a rollout stands: what is to be stored between two decisions.

    Attributes:
        rings: The rings that have opened, in their order.
        halted: Why it halted, a sentence; None while it runs.
        resumed_at: When a person last resumed it. Bad answers up to then are known to them and count no more.
    """

    rings: tuple[OpenRing, ...] = attrs.field(validator=validators.min_len(1))
    halted: str | None = None
    resumed_at: datetime | None = None


class Verdict(StrEnum):
    """Whether a machine may start now, or why not."""

    START = "start"
    STARTED = "started"
    """It was before."""
    RING_CLOSED = "ring_closed"
    SPREAD = "spread"
    """Its turn within the ring comes later."""
    OFFLINE = "offline"
    NOT_READY = "not_ready"
    NO_ROOM = "no_room"
    """Too many machines of the organization are exposed."""
    HALTED = "halted"


class RolloutPhase(StrEnum):
    """What a rollout is doing."""

    RUNNING = "running"
    HALTED = "halted"
    DONE = "done"
    """All rings have opened, settled and soaked. Machines that were offline are still started when they return."""


@attrs.frozen(kw_only=True)
class RolloutDecision:
    """
    What follows from all that is known.

    Attributes:
        state: To be stored.
        phase: What the rollout is doing.
        note: Why it halted, or what it waits for: a sentence for people.
        verdicts: For each machine of every ring.
        start: The machines that may start now, in this order.
        room: How many machines of the organization may start besides.
    """

    state: RolloutState
    phase: RolloutPhase
    note: str
    verdicts: Mapping[str, Verdict]
    start: tuple[str, ...]
    room: int


def begin(*, now: datetime) -> RolloutState:
    """The state of a rollout whose first ring opens now."""
    return RolloutState(rings=(OpenRing(now),))


def halt(state: RolloutState, reason: str) -> RolloutState:
    """
    Halt a rollout because a person wants it.

    Args:
        state: Where it stands.
        reason: A sentence. Who it was is the caller's to record.

    Raises:
        IllegalMoveError: It has halted already; the first reason stays.
    """
    if state.halted is not None:
        raise IllegalMoveError(f"the rollout has halted already: {state.halted}")
    return attrs.evolve(state, halted=reason)


def resume(state: RolloutState, *, now: datetime) -> RolloutState:
    """
    Go on after a halt. Every bad answer up to now is forgiven; new ones count.

    Args:
        state: Where it stands.
        now: Current time, aware UTC.

    Raises:
        IllegalMoveError: It has not halted.
    """
    if state.halted is None:
        raise IllegalMoveError("the rollout has not halted: there is nothing to resume")
    return attrs.evolve(state, halted=None, resumed_at=now)


def decide(
    rollout: Rollout, state: RolloutState, members: Mapping[str, Member], *, now: datetime, room: int
) -> RolloutDecision:
    """
    Decide who may start now, whether the next ring opens, and whether the rollout halts.

    Calling it again with the same values gives the same answer. Whoever starts machines stores the state and the
    new stages in one transaction, and asks for one rollout of an organization at a time: `blast_radius` counts on
    it.

    Args:
        rollout: The rings.
        state: Where it stands, from `begin` or from the last decision.
        members: By agent id. A machine that is not there counts as offline.
        now: Current time, aware UTC. Compared once.
        room: How many machines of the organization may start, from `blast_radius`.
    """
    unix(now)  # refuses a naive time
    view = _View(rollout, state, members, now)
    if state.halted is not None:
        return view.stand_still(state.halted, room)
    view = attrs.evolve(view, state=view.settle())
    reason = view.reason_to_halt(room)
    if reason is not None:
        return attrs.evolve(view, state=attrs.evolve(view.state, halted=reason)).stand_still(reason, room)
    return attrs.evolve(view, state=view.open_next()).go_on(room)


@attrs.frozen
class _Judged:
    """Answers to one question: how many there are, how many of them are bad, and what is allowed."""

    answers: int
    bad: int
    allowed: int
    sentence: str

    @property
    def holds(self) -> bool:
        return self.bad * 100 <= self.allowed * self.answers

    def __str__(self) -> str:
        return f"{self.bad} of {self.answers} machines {self.sentence}; at most {self.allowed} % may"


@attrs.frozen
class _View:
    """All that one decision looks at."""

    rollout: Rollout
    state: RolloutState
    members: Mapping[str, Member]
    now: datetime

    # Who answered what

    def of(self, ring: Ring) -> list[Member]:
        return [self.members.get(agent) or Member(agent_id=agent, online=False) for agent in ring.agents]

    def open_rings(self) -> Iterator[tuple[Ring, OpenRing]]:
        return zip(self.rollout.rings, self.state.rings, strict=False)  # the others are closed

    def overdue_at(self, member: Member, gate: Gate) -> datetime | None:
        """When its silence becomes a bad answer; None where nothing is expected of it."""
        within = {
            Stage.INSTALLING: gate.install_within,
            Stage.REBOOTING: gate.return_within,
            Stage.INSTALLED: gate.check_within,
            Stage.RETURNED: gate.check_within,
        }.get(member.stage)
        return None if within is None or member.since is None else member.since + timedelta(seconds=within)

    def is_under_way(self, member: Member, gate: Gate) -> bool:
        overdue_at = self.overdue_at(member, gate)
        return overdue_at is not None and self.now < overdue_at

    def is_left_out(self, member: Member, ring: Ring, opened: OpenRing) -> bool:
        patience = timedelta(seconds=ring.gate.wait_for_offline)
        return member.stage is Stage.WAITING and not member.online and self.now >= opened.opened_at + patience

    def has_answered(self, member: Member, gate: Gate) -> bool:
        return member.stage is not Stage.WAITING and not self.is_under_way(member, gate)

    def counts_as_bad(self, member: Member, gate: Gate) -> bool:
        """Whether its bad answer came after a person last looked."""
        came_at = self.overdue_at(member, gate) or member.since
        return self.state.resumed_at is None or (came_at is not None and came_at > self.state.resumed_at)

    # Gates

    def judged(self, members: Sequence[Member], gate: Gate) -> Iterator[_Judged]:
        """The three rates of a ring."""
        silent = [m for m in members if self.overdue_at(m, gate) and not self.is_under_way(m, gate)]

        def judge(good: int, bad: Iterable[Member], allowed: int, sentence: str) -> _Judged:
            counted = sum(self.counts_as_bad(member, gate) for member in bad)
            return _Judged(good + counted, counted, allowed, sentence)

        def at(among: Iterable[Member], *stages: Stage) -> list[Member]:
            return [member for member in among if member.stage in stages]

        installed = at(
            members, Stage.INSTALLED, Stage.REBOOTING, Stage.RETURNED, Stage.HEALTHY, Stage.CHECK_FAILED
        )
        back = [m for m in at(members, Stage.RETURNED, Stage.HEALTHY, Stage.CHECK_FAILED) if m.rebooted]
        failed = at(members, Stage.FAILED) + at(silent, Stage.INSTALLING)
        unchecked = at(members, Stage.CHECK_FAILED) + at(silent, Stage.INSTALLED, Stage.RETURNED)
        passed = at(members, Stage.HEALTHY)
        yield judge(len(installed), failed, gate.max_failed, "failed to install")
        yield judge(
            len(back), at(silent, Stage.REBOOTING), 100 - gate.min_returned, "did not return from a reboot"
        )
        yield judge(len(passed), unchecked, 100 - gate.min_passed, "did not pass their checks")

    def reason_to_halt(self, room: int) -> str | None:
        for ring, opened in self.open_rings():
            members = self.of(ring)
            is_final = self.is_settled(ring, opened) or self.is_stuck(room)
            for rate in self.judged(members, ring.gate):
                if not rate.holds and (is_final or rate.answers >= ring.gate.min_answers):
                    return f"ring {ring.name}: {rate}"
        return None

    def is_stuck(self, room: int) -> bool:
        """Whether no answer can come any more: nobody is under way, and nobody may start."""
        return room <= 0 and not any(
            self.is_under_way(member, ring.gate) for ring, _ in self.open_rings() for member in self.of(ring)
        )

    # Rings

    def is_settled(self, ring: Ring, opened: OpenRing) -> bool:
        return all(
            self.has_answered(member, ring.gate) or self.is_left_out(member, ring, opened)
            for member in self.of(ring)
        )

    def settle(self) -> RolloutState:
        rings = tuple(
            attrs.evolve(opened, settled_at=self.now)
            if opened.settled_at is None and self.is_settled(ring, opened)
            else opened
            for ring, opened in self.open_rings()
        )
        return attrs.evolve(self.state, rings=rings)

    def open_next(self) -> RolloutState:
        if len(self.state.rings) == len(self.rollout.rings) or not self.has_soaked() or not self.is_proven():
            return self.state
        return attrs.evolve(self.state, rings=(*self.state.rings, OpenRing(self.now)))

    def newest(self) -> tuple[Ring, OpenRing]:
        return self.rollout.rings[len(self.state.rings) - 1], self.state.rings[-1]

    def soaks_until(self) -> datetime | None:
        ring, opened = self.newest()
        return None if opened.settled_at is None else opened.settled_at + timedelta(seconds=ring.soak)

    def has_soaked(self) -> bool:
        until = self.soaks_until()
        return until is not None and self.now >= until

    def is_proven(self) -> bool:
        """Whether somebody answered, and no rate speaks against it, however few they are."""
        ring, _ = self.newest()
        members = self.of(ring)
        has_answers = any(self.has_answered(member, ring.gate) for member in members)
        return has_answers and all(rate.holds for rate in self.judged(members, ring.gate))

    # Answers

    def stand_still(self, reason: str, room: int) -> RolloutDecision:
        verdicts = {
            member.agent_id: Verdict.HALTED if member.stage is Stage.WAITING else Verdict.STARTED
            for ring in self.rollout.rings
            for member in self.of(ring)
        }
        return RolloutDecision(
            state=self.state, phase=RolloutPhase.HALTED, note=reason, verdicts=verdicts, start=(), room=room
        )

    def go_on(self, room: int) -> RolloutDecision:
        verdicts = {agent: Verdict.RING_CLOSED for ring in self.rollout.rings for agent in ring.agents}
        queue = []
        for ring, opened in self.open_rings():
            delays = {agent: start_delay(self.rollout.id, agent, ring.spread) for agent in ring.agents}
            for member in sorted(self.of(ring), key=lambda each: (delays[each.agent_id], each.agent_id)):
                due = opened.opened_at + timedelta(seconds=delays[member.agent_id])
                verdicts[member.agent_id] = self.verdict(member, due)
                if verdicts[member.agent_id] is Verdict.START:
                    queue.append(member.agent_id)
        start = tuple(queue[: max(room, 0)])
        verdicts |= dict.fromkeys(queue[len(start) :], Verdict.NO_ROOM)
        is_done = len(self.state.rings) == len(self.rollout.rings) and self.has_soaked()
        return RolloutDecision(
            state=self.state,
            phase=RolloutPhase.DONE if is_done else RolloutPhase.RUNNING,
            note="every ring has settled" if is_done else self.note(is_blocked=bool(queue) and not start),
            verdicts=verdicts,
            start=start,
            room=max(room, 0) - len(start),
        )

    def verdict(self, member: Member, due: datetime) -> Verdict:
        """Of a member of an open ring, were there room for all."""
        if member.stage is not Stage.WAITING:
            return Verdict.STARTED
        if not member.online:
            return Verdict.OFFLINE
        if not member.ready:
            return Verdict.NOT_READY
        return Verdict.START if self.now >= due else Verdict.SPREAD

    def note(self, is_blocked: bool) -> str:
        ring, _ = self.newest()
        until = self.soaks_until()
        if is_blocked:
            return (
                "too many machines of the organization are not known to be healthy: nothing starts until some are"
            )
        if until is not None and self.now < until:
            return f"ring {ring.name} soaks until {until.isoformat(timespec='seconds')}"
        missing = sum(not self.has_answered(member, ring.gate) for member in self.of(ring))
        return f"ring {ring.name}: {missing} of {len(ring.agents)} machines have not answered yet"
