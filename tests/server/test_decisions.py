"""Decisions about packages: who, when, why and until when; each package has its own answer and timeline."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import attrs
import pytest
from sqlalchemy import update

from redflag_core.patching.states import ADVICE
from redflag_core.scanning import PackageState, Severity, inventory_hash
from redflag_server.events.tables import Event
from redflag_server.jobs.list import JOBS
from redflag_server.jobs.service import run_due
from redflag_server.packages.tables import Package
from redflag_server.plans.decisions import ENDS_AT_ONCE
from redflag_server.plans.schema import MAX_AT_ONCE
from tests.helpers.fleet import Machine, failed_scan, full_report, package
from tests.helpers.operators import (
    API,
    Place,
    add_machine,
    add_packages,
    add_scanner,
    api_key,
    first_place,
    new_place,
)
from tests.helpers.server import Server

S = PackageState
UNKNOWN_ID = "01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4eff"
DECISIONS = ("approve", "reject", "exclude", "defer", "reopen")


@attrs.define
class Desk:
    """Somebody who decides, over HTTP, about the packages of one machine."""

    server: Server
    place: Place
    agent_id: UUID
    headers: dict[str, str]

    async def add(self, **states: PackageState) -> None:
        """Packages by name, with the state that the scanner saw."""
        rows = [(name, {"state": state}) for name, state in states.items()]
        await add_packages(self.server.runtime, self.place, self.agent_id, rows)

    async def id_of(self, name: str) -> str:
        """Id of a package."""
        row = await self.server.row(Package, Package.name == name, Package.agent_id == self.agent_id)
        return str(row.id)

    async def post(self, path: str, **body: Any) -> Any:
        """The answer to a POST."""
        return await self.server.client.post(f"{API}/{path}", json=body, headers=self.headers)

    async def get(self, path: str) -> Any:
        """The document of a GET."""
        answer = await self.server.client.get(f"{API}/{path}", headers=self.headers)
        assert 200 == answer.status_code, answer.text
        return answer.json()

    async def decide(self, name: str, decision: str, **body: Any) -> Any:
        """The answer to one decision about one package."""
        body.setdefault("reason", "because")
        return await self.post(f"packages/{await self.id_of(name)}/{decision}", **body)

    async def done(self, name: str, decision: str, **body: Any) -> dict[str, Any]:
        """The package after a decision that was taken."""
        answer = await self.decide(name, decision, **body)
        assert 200 == answer.status_code, answer.text
        item: dict[str, Any] = answer.json()
        return item

    async def timeline(self, name: str) -> list[dict[str, Any]]:
        """The events of a package, newest first."""
        items: list[dict[str, Any]] = (await self.get(f"packages/{await self.id_of(name)}/timeline"))["items"]
        return items

    def later(self, **delta: float) -> str:
        """A time to come."""
        moment: datetime = self.server.clock.now() + timedelta(**delta)
        return moment.isoformat()


@pytest.fixture
async def desk(server: Server) -> Desk:
    """Somebody who may everything, and a machine whose scanner works."""
    place = await first_place(server.runtime)
    agent = await add_machine(server.runtime, place)
    await add_scanner(server.runtime, place, agent)
    made = Desk(server, place, agent, await api_key(server.runtime))
    await made.get("agents")  # from then on the key was used, which is noted
    return made


# --- one package ---


@pytest.mark.parametrize(
    "decision, until, state",
    [
        ("approve", False, "approved"),
        ("reject", False, "excluded"),
        ("exclude", False, "excluded"),
        ("exclude", True, "excluded"),
        ("defer", True, "deferred"),
    ],
)
async def test_a_decision_is_stored_with_who_when_why_and_until(
    desk: Desk, decision: str, until: bool, state: str
):
    """The package says what was decided, and its timeline has the same as an event."""
    await desk.add(curl=S.AVAILABLE)
    end = {"until": desk.later(days=3)} if until else {}

    item = await desk.done("curl", decision, reason="after the fair", **end)

    now = desk.server.clock.now()
    assert (state, decision, "api-key:test", "after the fair") == (
        item["state"], item["decision"], item["decided_by"], item["decision_reason"],
    )  # fmt: skip
    assert (now, now + timedelta(days=3) if until else None) == (
        datetime.fromisoformat(item["decided_at"]),
        datetime.fromisoformat(item["decided_until"]) if until else item["decided_until"],
    )
    assert item["reason"].startswith("after the fair")
    (event,) = await desk.timeline("curl")
    kinds = {"approve": "approved", "reject": "rejected", "exclude": "excluded", "defer": "deferred"}
    assert (f"package.{kinds[decision]}", "api-key:test", item["id"], str(desk.agent_id)) == (
        event["kind"], event["actor"], event["package_id"], event["agent_id"],
    )  # fmt: skip
    assert event["message"].startswith(f"curl on web-01 was {kinds[decision]}: after the fair")
    assert {"name": "curl", "installed": "1.0-1", "available": "1.1-1", "before": "available", "after": state} == {
        key: event["data"][key] for key in ("name", "installed", "available", "before", "after")
    }


async def test_reopening_takes_everything_back(desk: Desk):
    """The package is what its scanner sees, with the scanner's reason, and nobody's decision is left."""
    await desk.add(curl=S.KEPT_BACK)
    await desk.done("curl", "reject")

    item = await desk.done("curl", "reopen", reason="a mistake")

    assert {"state": "kept_back", "reason": None, "decision": None, "decided_by": None, "decided_at": None} == {
        key: item[key] for key in ("state", "reason", "decision", "decided_by", "decided_at")
    }
    assert ["package.reopened", "package.rejected"] == [event["kind"] for event in await desk.timeline("curl")]


@pytest.mark.parametrize("decision", DECISIONS)
async def test_deciding_the_same_again_changes_nothing(desk: Desk, decision: str):
    """A double click is answered the same and leaves one event."""
    await desk.add(curl=S.AVAILABLE)
    end = {"until": desk.later(days=3)} if decision == "defer" else {}
    if decision == "reopen":
        await desk.done("curl", "approve")

    first = await desk.done("curl", decision, **end)
    desk.server.clock.advance(60)
    again = await desk.done("curl", decision, **end)

    assert first == again
    kinds = [event["kind"] for event in await desk.timeline("curl")]
    assert sorted(set(kinds)) == sorted(kinds)


async def test_another_end_is_another_decision(desk: Desk):
    """Putting off for longer moves the end, and is told."""
    await desk.add(curl=S.AVAILABLE)
    await desk.done("curl", "defer", until=desk.later(days=1))

    item = await desk.done("curl", "defer", until=desk.later(days=9))

    assert desk.server.clock.now() + timedelta(days=9) == datetime.fromisoformat(item["decided_until"])
    assert ["package.deferred"] * 2 == [event["kind"] for event in await desk.timeline("curl")]


@pytest.mark.parametrize("state", [S.HELD, S.PHASED, S.UNKNOWN, S.CURRENT, S.NOT_APPLICABLE])
async def test_what_its_machine_would_not_install_is_not_approved(desk: Desk, state: PackageState):
    """Held, phased, not known, up to date and gone packages are refused with a sentence that says what to do."""
    seen = {"observed": state} if state in (S.HELD, S.PHASED, S.CURRENT) else {"observed": S.AVAILABLE}
    row = {"state": state, "present": state is not S.NOT_APPLICABLE, **seen}
    await add_packages(desk.server.runtime, desk.place, desk.agent_id, [("linux", row)])
    before = await desk.server.dump()

    answer = await desk.decide("linux", "approve")

    assert (409, "conflict") == (answer.status_code, answer.json()["code"])
    assert ADVICE[state] in answer.json()["detail"]
    assert before == await desk.server.dump()


@pytest.mark.parametrize(
    "state, decision",
    [
        *((state, decision) for state in (S.PLANNING, S.INSTALLING) for decision in DECISIONS),
        *((S.REBOOT_PENDING, decision) for decision in DECISIONS if decision != "reopen"),
    ],
)
async def test_nothing_is_decided_while_something_runs(desk: Desk, state: PackageState, decision: str):
    """A plan, an installation and a missing reboot end first."""
    row = {"state": state, "observed": S.AVAILABLE}
    await add_packages(desk.server.runtime, desk.place, desk.agent_id, [("curl", row)])
    end = {"until": desk.later(days=3)} if decision == "defer" else {}

    answer = await desk.decide("curl", decision, **end)

    assert 409 == answer.status_code
    assert ADVICE[state] in answer.json()["detail"]


async def test_a_reboot_that_nobody_saw_is_given_up_by_reopening(desk: Desk):
    """The machine may have been started anew unseen: the package is what its scanner sees, and can be decided."""
    rows = [(name, {"state": S.REBOOT_PENDING, "observed": seen}) for name, seen in
            (("curl", S.AVAILABLE), ("vim", S.CURRENT))]  # fmt: skip
    await add_packages(desk.server.runtime, desk.place, desk.agent_id, rows)

    states = [(await desk.decide(name, "reopen")).json()["state"] for name, _ in rows]

    assert ["available", "current"] == states
    assert 200 == (await desk.decide("curl", "approve")).status_code


async def test_approving_a_selection_leaves_what_was_decided_against(desk: Desk):
    """Somebody had a reason; each is named with it, and asked for by its state it is approved after all."""
    rows = [("curl", {}), ("bash", {}), ("vim", {}), ("nano", {})]
    await add_packages(desk.server.runtime, desk.place, desk.agent_id, rows)
    await desk.decide("bash", "reject", reason="breaks production")
    await desk.decide("vim", "defer", until=desk.later(days=3))
    body = {"decision": "approve", "reason": "patch day", "select": {"agent_id": str(desk.agent_id)}}

    answer = (await desk.post("packages/decide", **body)).json()

    assert (2, 2) == (answer["changed"], answer["refused"])
    details = {item["name"]: item["detail"] for item in answer["items"] if item["outcome"] == "refused"}
    assert {"bash", "vim"} == set(details)
    assert "breaks production" in details["bash"]
    body["select"]["states"] = ["excluded"]
    assert 1 == (await desk.post("packages/decide", **body)).json()["changed"]


async def test_a_newer_security_update_counts_while_a_reboot_is_missing(desk: Desk):
    """What the reboot will bring into use has a hole again."""
    rows = [
        ("linux", {"state": S.REBOOT_PENDING, "observed": S.AVAILABLE, "security": True}),
        ("curl", {"state": S.REBOOT_PENDING, "observed": S.CURRENT, "security": True}),
        ("bash", {"state": S.AVAILABLE, "observed": S.AVAILABLE, "security": True}),
    ]
    await add_packages(desk.server.runtime, desk.place, desk.agent_id, rows)

    (machine,) = (await desk.get("agents"))["items"]

    assert 2 == machine["security"]


async def test_a_machine_that_cannot_be_scanned_gets_nothing_approved(desk: Desk):
    """A deferred package of a scanner that fails may be held by now: who approves is told so."""
    machine = await desk.server.agent()
    await machine.report(desk.server.client, full_report([package("curl", S.AVAILABLE)]))
    of_machine = attrs.evolve(desk, agent_id=UUID(machine.agent_id))
    await of_machine.done("curl", "defer", until=desk.later(days=3))
    await machine.report(desk.server.client, failed_scan())

    answer = await of_machine.decide("curl", "approve")

    assert (409, True) == (answer.status_code, "unknown on its machine" in answer.json()["detail"])


@pytest.mark.parametrize("state", [S.CURRENT, S.AVAILABLE, S.HELD, S.PHASED, S.UNKNOWN])
async def test_a_package_can_be_excluded_before_there_is_an_update(desk: Desk, state: PackageState):
    """Exclusion is about the package: what is up to date, held or not known can be excluded too."""
    observed = S.CURRENT if state is S.UNKNOWN else state
    row = {"state": state, "observed": observed}
    await add_packages(desk.server.runtime, desk.place, desk.agent_id, [("linux", row)])

    item = await desk.done("linux", "exclude")

    assert "excluded" == item["state"]


# --- the time is over ---


async def run_jobs(server: Server) -> None:
    """What is due."""
    await run_due(server.runtime, {"end-decisions": JOBS["end-decisions"]})


@pytest.mark.parametrize("decision", ["defer", "exclude"])
async def test_a_decision_ends_by_itself(desk: Desk, decision: str):
    """When its time is over, not earlier, the package is again what its scanner sees, with an event."""
    await desk.add(curl=S.AVAILABLE)
    await desk.done("curl", decision, until=desk.later(hours=1), reason="the fair")

    desk.server.clock.advance(3599)
    await run_jobs(desk.server)
    early = await desk.get(f"packages/{await desk.id_of('curl')}")
    desk.server.clock.advance(61)
    await run_jobs(desk.server)
    item = await desk.get(f"packages/{await desk.id_of('curl')}")

    assert "available" != early["state"]
    assert ("available", None, None, None) == (
        item["state"], item["decision"], item["decided_until"], item["reason"],
    )  # fmt: skip
    event = (await desk.timeline("curl"))[0]
    assert ("package.decision_ended", "server") == (event["kind"], event["actor"])
    assert "the fair" in event["message"]


async def test_a_decision_ends_in_what_is_known(desk: Desk):
    """When the scanner fails at that time the package is unknown, when the package is gone it is gone."""
    machine = await desk.server.agent()
    of_machine = attrs.evolve(desk, agent_id=UUID(machine.agent_id))
    await machine.report(desk.server.client, full_report([package("curl", S.AVAILABLE)]))
    await of_machine.done("curl", "defer", until=desk.later(hours=1))
    await machine.report(desk.server.client, failed_scan())

    desk.server.clock.advance(3601)
    await run_jobs(desk.server)

    assert "unknown" == (await desk.get(f"packages/{await of_machine.id_of('curl')}"))["state"]


async def test_a_wave_of_decisions_ends_in_parts(desk: Desk):
    """More than one transaction takes ends in one run of the job."""
    number = ENDS_AT_ONCE + 3
    rows = [(f"p{index}", {}) for index in range(number)]
    await add_packages(desk.server.runtime, desk.place, desk.agent_id, rows)
    answer = await desk.post(
        "packages/decide", decision="defer", reason="the fair", until=desk.later(hours=1), select={}
    )
    assert number == answer.json()["changed"]

    desk.server.clock.advance(3601)
    await run_jobs(desk.server)

    assert {"available"} == {row.state for row in await desk.server.rows(Package)}


async def test_a_decision_that_a_scan_ended_is_not_ended_again(desk: Desk):
    """A deferred package that was upgraded by hand is up to date, and the next update is open at once."""
    machine = await desk.server.agent()
    of_machine = attrs.evolve(desk, agent_id=UUID(machine.agent_id))
    await machine.report(desk.server.client, full_report([package("curl", S.AVAILABLE)]))
    await of_machine.done("curl", "defer", until=desk.later(hours=1))

    await machine.report(desk.server.client, full_report([package("curl")]))
    desk.server.clock.advance(3601)
    await run_jobs(desk.server)

    row = await desk.server.row(Package, Package.name == "curl")
    assert ("current", None, None) == (row.state, row.decision, row.decided_until)
    (event, *_) = [
        event for event in await of_machine.timeline("curl") if event["kind"] == "package.decision_ended"
    ]
    assert ("curl is up to date now; it was deferred.", f"agent:{machine.agent_id}") == (
        event["message"], event["actor"],
    )  # fmt: skip


# --- many packages ---


async def test_each_package_of_many_has_its_own_outcome(desk: Desk):
    """One transaction: what can be is changed, what is so already is named so, what cannot be says why."""
    await desk.add(a=S.AVAILABLE, b=S.HELD, c=S.KEPT_BACK)
    await desk.done("c", "approve")
    ids = [await desk.id_of(name) for name in "abc"] + [UNKNOWN_ID]

    answer = await desk.post("packages/decide", decision="approve", reason="patch day", package_ids=ids)

    document = answer.json()
    assert (200, 1, 1, 1, 1) == (
        answer.status_code, document["changed"], document["already"], document["refused"], document["not_found"],
    )  # fmt: skip
    assert [("a", "changed", "approved"), ("b", "refused", "held"), ("c", "already", "approved"),
            (None, "not_found", None)] == [
        (item["name"], item["outcome"], item["state"]) for item in document["items"]
    ]  # fmt: skip
    assert ids == [item["package_id"] for item in document["items"]]
    assert ADVICE[S.HELD] in document["items"][1]["detail"]
    assert ["package.approved"] == [event["kind"] for event in await desk.timeline("a")]
    assert [] == await desk.timeline("b")


async def test_all_of_one_machine_that_a_filter_finds(desk: Desk):
    """What the list shows for a filter is what is decided about: no more, no less."""
    other = await add_machine(desk.server.runtime, desk.place, "db-01")
    of_other = attrs.evolve(desk, agent_id=other)
    await desk.add(a=S.AVAILABLE, b=S.AVAILABLE, c=S.HELD, d=S.CURRENT)
    await of_other.add(a=S.AVAILABLE)
    async with desk.server.runtime.database.write() as session:
        important = update(Package).where(Package.name == "a").values(severity=Severity.IMPORTANT)
        await session.execute(important)

    selection = {"agent_id": str(desk.agent_id), "severities": ["important"]}
    answer = await desk.post("packages/decide", decision="approve", reason="patch day", select=selection)

    assert [("a", "changed")] == [(item["name"], item["outcome"]) for item in answer.json()["items"]]
    states = {(row.agent_id, row.name): row.state for row in await desk.server.rows(Package)}
    assert ("approved", "available", "available") == (
        states[desk.agent_id, "a"], states[desk.agent_id, "b"], states[other, "a"],
    )  # fmt: skip


async def test_a_filter_that_finds_nothing_decides_nothing(desk: Desk):
    """An empty outcome, no event."""
    await desk.add(a=S.CURRENT)

    answer = await desk.post("packages/decide", decision="reject", reason="no", select={"name": "zzz"})

    assert (200, 0, []) == (answer.status_code, answer.json()["changed"], answer.json()["items"])


async def test_too_many_at_once_are_refused_as_a_whole(desk: Desk):
    """A filter that finds more than the bound changes nothing and says so."""
    rows = [(f"p{index}", {}) for index in range(MAX_AT_ONCE + 1)]
    await add_packages(desk.server.runtime, desk.place, desk.agent_id, rows)
    before = await desk.server.dump()

    answer = await desk.post("packages/decide", decision="approve", reason="all", select={})

    assert (409, True) == (answer.status_code, str(MAX_AT_ONCE) in answer.json()["detail"])
    assert before == await desk.server.dump()


async def test_as_many_as_the_bound_are_decided_at_once(desk: Desk):
    """The largest legal request fits into a body and is taken."""
    rows = [(f"p{index}", {}) for index in range(MAX_AT_ONCE)]
    await add_packages(desk.server.runtime, desk.place, desk.agent_id, rows)
    ids = [str(row.id) for row in await desk.server.rows(Package)]

    answer = await desk.post("packages/decide", decision="approve", reason="all", package_ids=ids)

    assert (200, MAX_AT_ONCE) == (answer.status_code, answer.json()["changed"])
    assert MAX_AT_ONCE == len(await desk.server.rows(Event, Event.kind == "package.approved"))


async def test_a_package_named_twice_is_decided_once(desk: Desk):
    """One outcome, one event."""
    await desk.add(a=S.AVAILABLE)
    package_id = await desk.id_of("a")

    answer = await desk.post("packages/decide", decision="approve", reason="x", package_ids=[package_id] * 2)

    assert 1 == len(answer.json()["items"])
    assert 1 == len(await desk.timeline("a"))


# --- bad input ---

ONE = {"decision": "approve", "reason": "x", "package_ids": [UNKNOWN_ID]}


@pytest.mark.parametrize(
    "changes, status, word",
    [
        ({"package_ids": []}, 400, "package_ids"),
        ({"package_ids": [UNKNOWN_ID] * (MAX_AT_ONCE + 1)}, 400, "package_ids"),
        ({"package_ids": ["../../x"]}, 400, "package_ids"),
        ({"package_ids": None}, 400, "package_ids"),
        ({"select": {}}, 400, "select"),
        ({"package_ids": None, "select": {"agent_id": "web-01"}}, 400, "agent_id"),
        ({"package_ids": None, "select": {"agent_id": UNKNOWN_ID}}, 404, "machine"),
        ({"package_ids": None, "select": {"state": ["held"]}}, 400, "state"),
        ({"package_ids": None, "select": {"states": ["best"]}}, 400, "states"),
        ({"decision": "delete"}, 400, "decision"),
        ({"reason": ""}, 400, "reason"),
        ({"reason": "two\nlines"}, 400, "reason"),
        ({"reason": None}, 400, "reason"),
        ({"until": "2026-02-01T00:00:00Z"}, 400, "until"),
        ({"decision": "defer"}, 400, "until"),
        ({"decision": "defer", "until": "tomorrow"}, 400, "until"),
        ({"decision": "defer", "until": "2099-01-01"}, 400, "until"),
        ({"decision": "defer", "until": "2001-01-01T00:00:00Z"}, 400, "until"),
        ({"decision": "exclude", "until": "9999-01-01T00:00:00Z"}, 400, "until"),
        ({"decision": "exclude", "until": "0001-01-01T00:00:00+23:59"}, 400, "until"),
        ({"extra": 1}, 400, "extra"),
        ({}, 404, "package"),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_a_bad_request_is_refused_and_names_what_is_wrong(
    desk: Desk, changes: dict[str, Any], status: int, word: str
):
    """4xx with the name of the field, never 500, and nothing is changed."""
    await desk.add(curl=S.AVAILABLE)
    before = await desk.server.dump()

    answer = await desk.post("packages/decide", **{**ONE, **changes})

    assert status == answer.status_code, answer.text
    assert word in answer.json()["detail"]
    assert before == await desk.server.dump()


@pytest.mark.parametrize("decision", DECISIONS)
async def test_an_unknown_package_is_not_found(desk: Desk, decision: str):
    """There is no such package, whatever is to be decided."""
    end = {"until": desk.later(days=1)} if decision == "defer" else {}

    answer = await desk.post(f"packages/{UNKNOWN_ID}/{decision}", reason="x", **end)

    assert (404, "there is no such package") == (answer.status_code, answer.json()["detail"])


async def test_the_packages_of_others_look_like_none(desk: Desk):
    """Among one's own, a foreign id has the answer of an unknown one; it stays as it is."""
    other = await new_place(desk.server.runtime, "B")
    agent = await add_machine(desk.server.runtime, other, "of-b")
    await attrs.evolve(desk, place=other, agent_id=agent).add(secret=S.AVAILABLE)
    await desk.add(mine=S.AVAILABLE)
    foreign = str((await desk.server.row(Package, Package.name == "secret")).id)
    headers = await api_key(desk.server.runtime, "*", organization_id=desk.place.organization_id)
    ids = [await desk.id_of("mine"), foreign, UNKNOWN_ID]

    answer = await attrs.evolve(desk, headers=headers).post(
        "packages/decide", decision="reject", reason="x", package_ids=ids
    )

    mine, theirs, unknown = answer.json()["items"]
    assert ("changed", "not_found") == (mine["outcome"], theirs["outcome"])
    assert {**unknown, "package_id": foreign} == theirs
    assert "available" == (await desk.server.row(Package, Package.name == "secret")).state


async def test_who_may_only_read_decides_nothing(desk: Desk):
    """Reading packages is one permission, deciding about them another."""
    await desk.add(curl=S.AVAILABLE)
    reader = attrs.evolve(desk, headers=await api_key(desk.server.runtime, "packages:read"))

    answer = await reader.decide("curl", "approve")

    assert (403, "available") == (answer.status_code, (await desk.server.row(Package)).state)


async def test_two_who_decide_at_once_both_get_an_answer(desk: Desk):
    """Decisions take turns: the package ends in the state of one of them, with an event for each."""
    import asyncio

    await desk.add(curl=S.AVAILABLE)

    answers = await asyncio.gather(*(desk.decide("curl", decision) for decision in ("approve", "reject") * 5))

    assert {200} == {answer.status_code for answer in answers}
    assert (await desk.server.row(Package)).state in ("approved", "excluded")


# --- scans and decisions ---


async def report(machine: Machine, server: Server, state: PackageState, **changes: Any) -> None:
    """A full scan that sees one package."""
    answer = await machine.report(server.client, full_report([package("curl", state, **changes)]))
    assert answer.json()["accepted"]


@pytest.mark.parametrize("decision", ["approve", "defer", "reject"])
async def test_a_rescan_leaves_a_decision_and_its_reason(desk: Desk, decision: str):
    """A newer version, a failed scan and its recovery: who decided what and why is still there."""
    machine = await desk.server.agent()
    of_machine = attrs.evolve(desk, agent_id=UUID(machine.agent_id))
    await report(machine, desk.server, S.AVAILABLE)
    end = {"until": desk.later(days=9)} if decision == "defer" else {}
    before = await of_machine.done("curl", decision, reason="because", **end)

    await report(machine, desk.server, S.AVAILABLE, origin="another")
    await machine.report(desk.server.client, failed_scan())
    await report(machine, desk.server, S.KEPT_BACK)

    after = await desk.get(f"packages/{before['id']}")
    kept = ("state", "reason", "decision", "decided_by", "decided_at", "decided_until", "decision_reason")
    assert {name: before[name] for name in kept} == {name: after[name] for name in kept}


async def test_an_approval_ends_with_its_update_and_its_package(desk: Desk):
    """Up to date or gone, nobody's approval is left behind for what comes later, and the timeline says so."""
    machine = await desk.server.agent()
    of_machine = attrs.evolve(desk, agent_id=UUID(machine.agent_id))
    for gone in ([package("curl")], []):
        await report(machine, desk.server, S.AVAILABLE)
        await of_machine.done("curl", "approve")

        await machine.report(desk.server.client, full_report(gone))
        closed = await desk.server.row(Package, Package.name == "curl")
        await report(machine, desk.server, S.AVAILABLE)

        again = await desk.server.row(Package, Package.name == "curl")
        assert (None, None, None, None) == (
            closed.decision, closed.decided_by, closed.decision_reason, closed.state_reason,
        )  # fmt: skip
        assert ("available", None) == (again.state, again.decision)
    kinds = [event["kind"] for event in await of_machine.timeline("curl")]
    assert ["package.decision_ended", "package.approved"] * 2 == kinds


async def test_what_was_found_out_outside_of_scans_gives_way_to_the_next_report(desk: Desk):
    """A package that a plan found held, and that scans never saw so, is again what the next report implies."""
    machine = await desk.server.agent()
    seen = [package("curl", S.AVAILABLE), package("bash")]
    await machine.report(desk.server.client, full_report(seen))
    async with desk.server.runtime.database.write() as session:
        held = update(Package).where(Package.name == "curl").values(state=S.HELD, state_reason="held")
        await session.execute(held)

    after = [package("curl", S.AVAILABLE), package("bash", S.AVAILABLE)]
    await machine.report(
        desk.server.client, full_report(after[1:], base=inventory_hash(seen), hash=inventory_hash(after))
    )

    row = await desk.server.row(Package, Package.name == "curl")
    assert ("available", None) == (row.state, row.state_reason)


async def test_a_timeline_is_walked_in_pages(desk: Desk):
    """No event is skipped or shown twice."""
    await desk.add(curl=S.AVAILABLE)
    for _ in range(3):
        await desk.done("curl", "reject")
        await desk.done("curl", "reopen")
    path, seen = f"packages/{await desk.id_of('curl')}/timeline?limit=4", []

    page = await desk.get(path)
    while True:
        seen += [event["kind"] for event in page["items"]]
        if page["next"] is None:
            break
        page = await desk.get(f"{path}&cursor={page['next']}")

    assert ["package.reopened", "package.rejected"] * 3 == seen


async def test_the_timeline_of_a_machine_has_that_of_its_packages(desk: Desk):
    """One place to read what happened on a machine; one that does not exist has none."""
    await desk.add(curl=S.AVAILABLE)
    await desk.done("curl", "approve")

    events = (await desk.get(f"agents/{desk.agent_id}/timeline"))["items"]
    missing = await desk.server.client.get(f"{API}/agents/{UNKNOWN_ID}/timeline", headers=desk.headers)

    assert "package.approved" in [event["kind"] for event in events]
    assert 404 == missing.status_code
