"""Any history of scans, decisions, plans, results, reboots and time: no error, and nothing contradicts."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redflag_core.command_queue import LIVE
from redflag_core.commands import PlanParams, UpgradeParams, parse_params
from redflag_core.encoding import b64decode
from redflag_core.patching import ALLOWED, Change, PlanState, Transaction
from redflag_core.patching.states import UNDECIDED
from redflag_core.scanning import SCANNED_STATES, PackageState
from redflag_core.scanning.states import RUNNING
from redflag_core.statements import Outcome, PackageOutcome, PackageResult
from redflag_server.commands import queue
from redflag_server.commands.tables import Command
from redflag_server.events.tables import Event
from redflag_server.jobs.list import JOBS
from redflag_server.jobs.service import run_due
from redflag_server.packages.tables import Package
from redflag_server.plans.tables import Plan
from redflag_server.problems import ConflictError
from tests.helpers.fleet import failed_scan, package
from tests.helpers.operators import API
from tests.helpers.orders import act
from tests.helpers.patching import DEPENDENCY, REMOVAL, Ward, new_ward
from tests.helpers.server import Server

S = PackageState
NAMES: Final = ("curl", "openssl")
WAITED_FOR: Final = {
    S.PLANNING: "planning",
    S.INSTALLING: "installing",
    S.NEEDS_CONFIRMATION: "needs_confirmation",
}
"""In these states a package waits for its plan, which is in the state beside."""

SEEN = st.dictionaries(
    st.sampled_from(NAMES), st.tuples(st.sampled_from(sorted(SCANNED_STATES)), st.sampled_from(["2.0", "3.0"]))
)
OUTCOMES = st.fixed_dictionaries({name: st.sampled_from(PackageOutcome) for name in NAMES})
STEPS = st.one_of(
    st.tuples(st.just("scan"), SEEN),
    st.tuples(st.just("fail"), st.none()),
    st.tuples(
        st.just("decide"),
        st.tuples(st.sampled_from(NAMES), st.sampled_from(["approve", "reject", "exclude", "defer", "reopen"])),
    ),
    st.tuples(st.just("approve"), st.none()),
    st.tuples(st.just("plan"), st.none()),
    st.tuples(st.just("act"), st.sampled_from(["confirm", "discard", "install", "install"])),
    st.tuples(st.just("end"), st.sampled_from(["cancel", "release"])),
    st.tuples(
        st.just("answer"),
        st.tuples(
            st.sampled_from(Outcome), OUTCOMES, st.sampled_from([(), (DEPENDENCY,), (REMOVAL,)]), st.booleans()
        ),
    ),
    st.tuples(st.just("work"), st.none()),
    st.tuples(st.just("reboot"), st.none()),
    st.tuples(st.just("time"), st.sampled_from([61, 3_601, 8 * 86_400])),
)


@attrs.define
class History:
    """One machine and its history."""

    ward: Ward
    accepted: list[str] = attrs.field(factory=list)

    async def scan(self, seen: dict[str, tuple[PackageState, str]]) -> None:
        """A full scan."""
        packages = [
            attrs.evolve(package(name, state), available=None if state is S.CURRENT else version)
            for name, (state, version) in sorted(seen.items())
        ]
        await self.ward.scan(*packages)

    async def fail(self, _nothing: None) -> None:
        """A scan that fails."""
        await self.ward.machine.report(self.ward.server.client, failed_scan())

    async def decide(self, what: tuple[str, str]) -> None:
        """Somebody decides something, if there is such a package."""
        name, decision = what
        rows = await self.ward.server.rows(Package, Package.name == name, Package.agent_id == self._agent)
        end = (self.ward.server.clock.now() + timedelta(days=30)).isoformat()
        until = {"until": end} if decision == "defer" else {}
        for row in rows:
            await self._post(f"packages/{row.id}/{decision}", **until)

    async def approve(self, _nothing: None) -> None:
        """Somebody approves whatever can be."""
        selection = {"agent_id": str(self._agent)}
        await self._post("packages/decide", decision="approve", select=selection)

    async def plan(self, _nothing: None) -> None:
        """Somebody has all that is approved planned."""
        await self._post("plans", agent_id=str(self._agent))

    async def act(self, action: str) -> None:
        """Somebody does something with the newest plan."""
        plans = await self.ward.server.rows(Plan, Plan.agent_id == self._agent)
        if plans:
            await self._post(f"plans/{max(plan.id for plan in plans)}/{action}")

    async def end(self, how: str) -> None:
        """Somebody ends the newest command by a word."""
        commands = await self.ward.server.rows(Command, Command.agent_id == self._agent, Command.state.in_(LIVE))
        if commands:
            try:
                await act(self.ward.server, getattr(queue, how), max(command.id for command in commands))
            except ConflictError:
                return

    async def answer(self, what: tuple[Outcome, dict[str, PackageOutcome], tuple[Change, ...], bool]) -> None:
        """The machine takes what there is, and ends all that it accepted in one way."""
        await self.take()
        while self.accepted:
            await self._carry_out(self.accepted.pop(0), *what)

    async def work(self, _nothing: None) -> None:
        """The machine takes what there is, and everything goes well."""
        await self.answer((Outcome.COMPLETED, {}, (), False))

    async def reboot(self, _nothing: None) -> None:
        """The machine is started anew."""
        await self.ward.reboot()

    async def time(self, seconds: int) -> None:
        """Time passes, and the jobs run."""
        self.ward.server.clock.advance(seconds)
        await run_due(self.ward.server.runtime, JOBS)
        await self.ward.machine.refresh(self.ward.server.client)
        await self.ward.machine.learn_trust(self.ward.server.client)

    async def take(self) -> None:
        """The machine accepts what it is handed."""
        machine, client = self.ward.machine, self.ward.server.client
        for wire in await machine.fetch(client):
            await self.ward.deliver(machine.execute(wire))
            self.accepted.append(list(machine.journal)[-1])

    async def _carry_out(
        self,
        cmd_id: str,
        outcome: Outcome,
        outcomes: dict[str, PackageOutcome],
        extra: tuple[Change, ...],
        reboot: bool,
    ) -> None:
        machine = self.ward.machine
        if cmd_id in machine.tombstones or cmd_id in machine.starts:
            await self.ward.deliver(machine.journal[cmd_id].statement)
            return
        command = machine.journal[cmd_id].command
        params = parse_params(command.type, b64decode(command.params))
        facts: dict[str, Any] = {}
        if isinstance(params, PlanParams | UpgradeParams):
            usual = PackageOutcome.PLANNED if isinstance(params, PlanParams) else PackageOutcome.INSTALLED
            facts["packages"] = tuple(
                PackageResult(name=each.name, arch=each.arch, outcome=outcomes.get(each.name, usual))
                for each in params.packages
            )
            facts["transaction"] = _transaction(params, facts["packages"], extra)
            facts.update(reboot_required=reboot)
        await self.ward.deliver(machine.run(cmd_id, outcome, **facts))

    async def _post(self, path: str, **body: Any) -> None:
        body = {"reason": "a test", **body}
        answer = await self.ward.server.client.post(f"{API}/{path}", json=body, headers=self.ward.headers)
        assert answer.status_code in (200, 201, 409), answer.text

    @property
    def _agent(self) -> UUID:
        return UUID(self.ward.machine.agent_id)

    # --- what must hold at any time ---

    async def check(self) -> None:
        """Packages, plans and commands agree with each other."""
        server = self.ward.server
        plans = {plan.id: plan for plan in await server.rows(Plan, Plan.agent_id == self._agent)}
        packages = await server.rows(Package, Package.agent_id == self._agent)
        live = await server.rows(Command, Command.agent_id == self._agent, Command.state.in_(LIVE))
        for row in packages:
            _check_package(row, plans)
        for plan in plans.values():
            working = [each for each in live if each.plan_id == plan.id and each.cancel_requested_at is None]
            if plan.state in (PlanState.PLANNING, PlanState.INSTALLING):
                assert 1 == len([each for each in live if each.plan_id == plan.id])
            else:
                assert [] == working
            if plan.state in (PlanState.READY, PlanState.NEEDS_CONFIRMATION):
                _check_waiting(plan, packages)


def _transaction(
    params: PlanParams | UpgradeParams, packages: Sequence[PackageResult], extra: tuple[Change, ...]
) -> Transaction | None:
    planned = {result.key for result in packages if result.outcome is PackageOutcome.PLANNED}
    able = [target for target in params.packages if target.key in planned]
    if not able:
        return None
    changes = [
        Change(name=each.name, arch=each.arch, before=each.installed, after=each.available) for each in able
    ]
    return Transaction(manager="apt", requested=tuple(each.key for each in able), changes=(*changes, *extra))


def _check_package(row: Package, plans: dict[UUID, Plan]) -> None:
    state = PackageState(row.state)
    if state in UNDECIDED:
        assert (None, None, None) == (row.plan_id, row.decision, row.decided_until), row.state
    else:
        assert row.decision is not None, row.state
    if not row.present:
        assert state is S.NOT_APPLICABLE or state in RUNNING
    if state in WAITED_FOR:
        assert WAITED_FOR[state] == plans[row.plan_id].state
    if state in (S.EXCLUDED, S.DEFERRED):
        assert row.plan_id is None


def _check_waiting(plan: Plan, packages: Sequence[Package]) -> None:
    """Every package that a plan would change is there, as the plan left it."""
    assert plan.transaction is not None
    state = S.APPROVED if plan.state == PlanState.READY else S.NEEDS_CONFIRMATION
    waiting = {row.name for row in packages if row.plan_id == plan.id and row.state == state}
    assert {key["name"] for key in plan.transaction["requested"]} == waiting


async def live(server: Server, steps: Sequence[tuple[str, Any]]) -> None:
    """Let a new machine live through *steps*; look at everything after each."""
    history = History(await new_ward(server, *NAMES))
    for name, what in steps:
        await getattr(history, name)(what)
        await history.check()
    events = await server.rows(Event, Event.agent_id == UUID(history.ward.machine.agent_id))
    moves = [(event.data["before"], event.data["after"]) for event in events if "after" in event.data]
    assert all(before == after or (before, after) in ALLOWED for before, after in moves)


ANY_HISTORY = given(steps=st.lists(STEPS, min_size=6, max_size=14))
QUIET = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}


@ANY_HISTORY
@settings(max_examples=15, **QUIET)
async def test_any_history_contradicts_nothing(server: Server, steps: Sequence[tuple[str, Any]]):
    """After each step packages, plans and commands agree, and every move that was told is one of the table."""
    await live(server, steps)


@pytest.mark.full
@ANY_HISTORY
@settings(max_examples=300, **QUIET)
async def test_any_history_contradicts_nothing_in_many(server: Server, steps: Sequence[tuple[str, Any]]):
    """The same, for many more histories."""
    await live(server, steps)


async def test_a_package_that_vanishes_while_it_is_planned_contradicts_nothing(server: Server):
    """A history that once left a plan ready without its package."""
    await live(server, [("decide", ("curl", "approve")), ("plan", None), ("scan", {}), ("work", None)])


async def test_the_longest_way_contradicts_nothing(server: Server):
    """A history that goes through every state that this release sets."""
    await live(
        server,
        [
            ("approve", None),
            ("plan", None),
            ("answer", (Outcome.COMPLETED, {}, (DEPENDENCY,), False)),
            ("act", "confirm"),
            ("act", "install"),
            ("answer", (Outcome.FAILED, {"curl": PackageOutcome.INSTALLED}, (), True)),
            ("reboot", None),
            ("scan", {"curl": (S.AVAILABLE, "3.0"), "openssl": (S.AVAILABLE, "3.0")}),
            ("decide", ("openssl", "defer")),
            ("decide", ("curl", "approve")),
            ("plan", None),
            ("time", 8 * 86_400),
            ("scan", {}),
        ],
    )
