"""
The defects that made headline features of the original fail, each as a test with its number.

The list is the one that this project keeps as facts about the original: sixteen defects of correctness. What is
on the server, or can be seen from it, is here. 4 and 11 have a side on the machine too, which the tests of the
agent's apt installer and scanner cover; of 8, what the agent's unit must not forbid is here.

These do not apply yet, because what they are about does not exist here:

- 7, versions and repositories of DNF mixed up: comes with the DNF scanner.
- 10, rejecting a Docker image fails and installing one scans: comes with container images.
- The words of severity of winget and Windows Update (4), the list of dependencies of winget that is no list (12)
  and the agent for macOS (15): come with those agents. What the server must take of them is here.
"""

import asyncio
from datetime import timedelta
from typing import Any

import attrs
import pytest

from redflag_core import codec
from redflag_core.command_queue import LEASE_SECONDS, CommandState
from redflag_core.commands import CommandType
from redflag_core.encoding import dump_json
from redflag_core.messages import OperatingSystem
from redflag_core.patching import PlanState
from redflag_core.scanning import SCANNED_STATES, PackageState, ScanStatus, Severity
from redflag_core.statements import Outcome, PackageOutcome
from redflag_server.agents.tables import Agent
from redflag_server.commands.tables import Command
from redflag_server.commands.upkeep import expire_commands, lapse_leases
from redflag_server.events.tables import Event
from redflag_server.packages.tables import Package, Scanner
from redflag_server.plans.tables import Plan
from tests.helpers.documents import blocks, read
from tests.helpers.fleet import full_report, package
from tests.helpers.patching import DEPENDENCY, Ward, new_ward
from tests.helpers.server import Server

S = PackageState
ENDED = {"completed", "failed", "interrupted", "cancelled", "expired"}


@pytest.fixture
async def ward(server: Server) -> Ward:
    """A machine that lacks updates of curl and openssl."""
    return await new_ward(server, "curl", "openssl")


async def order_scan(ward: Ward) -> dict[str, Any]:
    """Order a scan; the command."""
    ordered = await ward.post("commands", agent_id=ward.machine.agent_id, type="scan.run")
    command: dict[str, Any] = ordered["command"]
    return command


async def accept_next(ward: Ward) -> str:
    """Let the machine take and accept the next command; its id."""
    (wire,) = await ward.machine.fetch(ward.server.client)
    await ward.deliver(ward.machine.execute(wire))
    return list(ward.machine.journal)[-1]


# --- 1: a success violated a constraint, so that packages stayed "installing" for ever ---


async def test_original_bug_01_a_success_is_recorded(ward: Ward):
    """An update that the machine installed is installed here: package, plan and command, in one transaction."""
    plan = await ward.plan("curl")
    await ward.install(plan)

    await ward.answer_install()

    command = await ward.server.row(Command, Command.type == CommandType.PACKAGES_UPGRADE)
    assert ("installed", "done", "completed") == (
        (await ward.states())["curl"], (await ward.get(f"plans/{plan['id']}"))["state"], command.state,
    )  # fmt: skip


# --- 2: trying again violated a constraint ---


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.INTERRUPTED])
async def test_original_bug_02_a_retry_is_a_new_command_that_is_linked_and_carried_out(
    ward: Ward, outcome: Outcome
):
    """A command that did not work can be tried again, and the second one works."""
    first = await order_scan(ward)
    await ward.end(await accept_next(ward), outcome)

    again = (await ward.post(f"commands/{first['id']}/retry"))["command"]
    await ward.end(await accept_next(ward))

    (second,) = await ward.server.rows(Command, Command.state == CommandState.COMPLETED)
    assert (first["id"], again["id"]) == (str(second.retry_of), str(second.id))


# --- 3: confirming left the state as it was ---


async def test_original_bug_03_confirming_moves_the_state(ward: Ward):
    """A plan with extra changes is ready once it is confirmed, its package approved, and it can be installed."""
    plan = await ward.plan("curl", extra=[DEPENDENCY])
    before = (plan["state"], (await ward.states())["curl"])

    confirmed = await ward.post(f"plans/{plan['id']}/confirm")
    after = (confirmed["state"], (await ward.states())["curl"])
    await ward.install(confirmed)
    await ward.answer_install()

    assert [("needs_confirmation",) * 2, ("ready", "approved")] == [before, after]
    assert "installed" == (await ward.states())["curl"]


# --- 4: one severity that was not on a list voided the whole report ---


async def test_original_bug_04_no_value_that_a_report_can_hold_voids_it(ward: Ward):
    """Every severity in every state, with every optional field there and absent, is stored."""
    texts = dict.fromkeys(("reason", "origin", "source", "source_version"), "text")
    optional = {**texts, "download_size": 1, "cves": ("CVE-2024-1234",)}
    packages = [
        package(f"{state}-{severity}-{len(fields)}", state, severity=severity, **fields)
        for state in sorted(SCANNED_STATES)
        for severity in Severity
        for fields in ({}, optional)
    ]

    await ward.scan(*packages)

    stored = await ward.server.rows(Package, Package.present)
    assert {(each.name, each.severity) for each in packages} == {(row.name, row.severity) for row in stored}


@pytest.mark.parametrize("severity", ["high", ""])
async def test_original_bug_04_a_foreign_word_is_named_and_spoils_nothing_else(ward: Ward, severity: str):
    """A report that an agent should never have made is refused with its field; what was known stays as it was."""
    report = codec.unstructure(full_report([package("curl", S.AVAILABLE), package("vim", S.AVAILABLE)]))
    report["packages"][1]["severity"] = severity
    before = await ward.server.dump()

    answer = await ward.machine.sign("/agent/reports/apt", dump_json(report)).send(ward.server.client)

    assert (400, True) == (answer.status_code, "severity" in answer.json()["detail"])
    assert before == await ward.server.dump()


# --- 5: results in the words of failure were refused ---


@pytest.mark.parametrize(
    "outcome, exit_status",
    [
        (Outcome.COMPLETED, 0),
        (Outcome.FAILED, 100),
        (Outcome.FAILED, -9),
        (Outcome.INTERRUPTED, None),
        (Outcome.CANCELLED, None),
    ],
)
async def test_original_bug_05_every_way_to_end_is_taken(ward: Ward, outcome: Outcome, exit_status: int | None):
    """Whatever the outcome and the exit status, the result is accepted and the command has ended."""
    await order_scan(ward)
    cmd_id = await accept_next(ward)

    await ward.end(cmd_id, outcome, exit_status=exit_status, output="what it printed")

    command = await ward.server.row(Command)
    assert (outcome.value, exit_status, "what it printed") == (
        command.state, command.result["exit_status"], command.result["output"],
    )  # fmt: skip


async def test_original_bug_05_a_scan_that_failed_is_taken(ward: Ward):
    """The report of a failure is accepted, and its command can end as failed."""
    await order_scan(ward)
    cmd_id = await accept_next(ward)
    failure = full_report([], status=ScanStatus.FAILED, error="dpkg is broken", hash=None)

    answer = await ward.machine.report(ward.server.client, failure)
    await ward.end(cmd_id, Outcome.FAILED, code="scan_failed", detail="dpkg is broken")

    scanner, command = await ward.server.row(Scanner), await ward.server.row(Command)
    assert (True, "failed", "failed", "scan_failed") == (
        answer.json()["accepted"], scanner.status, command.state, command.code,
    )  # fmt: skip


# --- 6: filters of the history failed in the database ---

FILTERS = {
    "events?kind=plan.made": 1,
    "events?kind=package.approved": 1,
    "events?code=replayed": 0,
    "events?agent_id={agent}&kind=package.approved": 1,
    "events?package_id={package}": 3,
    "commands?type=packages.plan": 1,
    "commands?type=packages.upgrade": 0,
    "commands?state=completed": 1,
    "commands?state=pending&state=failed": 0,
    "commands?agent_id={agent}&live=false": 1,
    "commands?live=true": 0,
    "commands?overdue=true": 0,
    "commands?plan_id={plan}": 1,
    "plans?state=ready": 1,
    "plans?state=failed": 0,
    "plans?agent_id={agent}": 1,
    "packages?state=approved": 1,
    "packages?severity=critical": 0,
    "packages?name=CUR": 1,
    "packages?manager=apt&agent_id={agent}": 2,
    "agents/{agent}/timeline?limit=1": 1,
    "packages/{package}/timeline": 3,
}


@pytest.mark.parametrize("query", FILTERS)
async def test_original_bug_06_every_filter_finds_what_it_says(ward: Ward, query: str):
    """Each answers, with exactly what matches."""
    plan = await ward.plan("curl")
    ids = {"agent": ward.machine.agent_id, "plan": plan["id"], "package": (await ward.row("curl")).id}

    found = await ward.get(query.format(**ids))

    assert FILTERS[query] == len(found["items"])


# --- 8: the agent's unit made /usr read-only for the package managers that it started ---


def test_original_bug_08_the_unit_of_the_agent_lets_its_package_managers_write():
    """The unit that the how-to shows forbids nothing that an installation needs, and needs no rule of sudo."""
    (_, unit) = blocks(read("docs/how-to/run-as-a-service.md"), "ini")
    settings = [line.partition("=")[0] for line in unit.splitlines()]

    assert "ExecStart=/opt/redflag/bin/redflag agent run" in unit
    forbidding = ("Protect", "ReadOnly", "Inaccessible", "Private", "NoNew", "Capability", "System", "User")
    assert [] == [name for name in settings if name.startswith(forbidding)]


# --- 9: a rescan reset what was decided or running; newer versions and removals were not seen ---


@pytest.mark.parametrize("state", ["approved", "deferred", "excluded", "needs_confirmation", "failed"])
async def test_original_bug_09_a_rescan_does_not_reset_what_was_decided(ward: Ward, state: str):
    """The same update seen again, and a newer one: the decision is still there, the versions are the new ones."""
    if state == "needs_confirmation":
        await ward.plan("curl", extra=[DEPENDENCY])
    elif state == "failed":
        await ward.plan("curl", outcome=Outcome.FAILED, transaction=None, packages=())
    else:
        end = {"until": "2026-06-01T00:00:00Z"} if state == "deferred" else {}
        await ward.decide({"approved": "approve", "deferred": "defer", "excluded": "reject"}[state], "curl", **end)

    for available in ("2.0", "3.0"):
        seen = attrs.evolve(package("curl", S.AVAILABLE), available=available)
        await ward.scan(seen, package("openssl", S.AVAILABLE))

    row = await ward.row("curl")
    assert (state, "3.0") == (row.state, row.available)


async def test_original_bug_09_a_rescan_does_not_reset_what_is_running(ward: Ward):
    """A plan under way and an installation under way."""
    await ward.decide("approve", "curl")
    plan = await ward.order_plan("curl")
    await ward.scan(package("curl", S.AVAILABLE), package("openssl", S.AVAILABLE))
    planning = (await ward.states())["curl"]
    await ward.answer_plan()
    await ward.install(await ward.get(f"plans/{plan['id']}"))
    await ward.scan(package("curl", S.AVAILABLE), package("openssl", S.AVAILABLE))

    assert ("planning", "installing") == (planning, (await ward.states())["curl"])


async def test_original_bug_09_newer_versions_of_what_was_installed_come_up_again(ward: Ward):
    """Installed is no end: the next version is open, with the installed version as it is now."""
    await ward.install(await ward.plan("curl"))
    await ward.answer_install()
    await ward.scan(attrs.evolve(package("curl"), installed="2.0"), package("openssl", S.AVAILABLE))
    await ward.scan(
        attrs.evolve(package("curl", S.AVAILABLE), installed="2.0", available="3.0"),
        package("openssl", S.AVAILABLE),
    )

    item = await ward.item("curl")

    assert ("available", "2.0", "3.0") == (item["state"], item["installed"], item["available"])


async def test_original_bug_09_a_package_that_vanished_is_closed(ward: Ward):
    """It does not wait for ever; when it comes back it is open."""
    await ward.decide("approve", "curl")

    await ward.scan(package("openssl", S.AVAILABLE))
    gone = (await ward.states())["curl"]
    await ward.scan(package("curl", S.AVAILABLE), package("openssl", S.AVAILABLE))

    assert ("not_applicable", "available") == (gone, (await ward.states())["curl"])


# --- 11: without a name, the name of the action was installed ---


@pytest.mark.parametrize(
    "body",
    [{}, {"package_ids": []}, {"package_ids": ["update_all"]}, {"package_ids": [""]}, {"package_ids": None}],
)
async def test_original_bug_11_without_a_package_nothing_is_ordered(ward: Ward, body: dict[str, Any]):
    """No package is no order; a word is no package."""
    await ward.decide("approve", "curl")

    await ward.post("plans", 400, **body)

    assert [] == await ward.server.rows(Command)


async def test_original_bug_11_all_is_what_is_approved_by_name(ward: Ward):
    """An order for a whole machine names each package with its versions; one with nothing approved is none."""
    await ward.post("plans", 409, agent_id=ward.machine.agent_id)
    await ward.decide("approve", "curl")

    await ward.post("plans", 201, agent_id=ward.machine.agent_id)

    _, params = await ward.take(CommandType.PACKAGES_PLAN)
    assert [("curl", "1.0", "2.0")] == [(each.name, each.installed, each.available) for each in params.packages]


# --- 12: a plan that brings nothing along was refused, and its command was stuck ---


async def test_original_bug_12_a_plan_without_dependencies_is_taken(ward: Ward):
    """Nothing extra is the best plan: it is ready at once, and its command has ended."""
    plan = await ward.plan("curl")

    command = await ward.server.row(Command)
    assert ("ready", 0, "completed") == (plan["state"], plan["extra"], command.state)


# --- 13: paths that returned early left a command "sent", lost ones never came again, waiting ones never ended ---


async def test_original_bug_13_an_answer_that_got_lost_is_delivered_again(ward: Ward):
    """A check-in whose answer never arrived costs a minute, not two hours; the command is started once."""
    await order_scan(ward)
    await ward.machine.fetch(ward.server.client)  # the answer gets lost on the way

    ward.server.clock.advance(LEASE_SECONDS + 1)
    await lapse_leases(ward.server.runtime)
    cmd_id = await accept_next(ward)
    await ward.end(cmd_id)

    command = await ward.server.row(Command)
    assert ("completed", 2, [cmd_id]) == (command.state, command.deliveries, ward.machine.starts)


async def test_original_bug_13_what_an_agent_does_not_know_ends(ward: Ward):
    """What the machine does not carry out it refuses for good: command, plan and package say so."""
    await ward.decide("approve", "curl")
    plan = await ward.order_plan("curl")
    (wire,) = await ward.machine.fetch(ward.server.client)
    ward.machine.execute(wire)
    (cmd_id,) = ward.machine.journal

    await ward.deliver(ward.machine.never(cmd_id, code="unknown_command"))

    command = await ward.server.row(Command)
    failed = await ward.get(f"plans/{plan['id']}")
    assert ("failed", "unknown_command") == (command.state, command.code)
    assert ("failed", "unknown_command", "failed") == (
        failed["state"], failed["code"], (await ward.states())["curl"],
    )  # fmt: skip


async def test_original_bug_13_what_waits_for_a_machine_that_never_returns_expires(ward: Ward):
    """A command that nobody fetched ends by itself; its package waits approved again."""
    await ward.decide("approve", "curl")
    plan = await ward.order_plan("curl")

    ward.server.clock.advance(timedelta(days=8).total_seconds())
    await expire_commands(ward.server.runtime)

    assert ("expired", "dropped", "approved") == (
        (await ward.server.row(Command)).state,
        (await ward.get(f"plans/{plan['id']}"))["state"],
        (await ward.states())["curl"],
    )


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("packages", [PackageOutcome.INSTALLED, PackageOutcome.FAILED, PackageOutcome.UNCHANGED])
async def test_original_bug_13_no_end_leaves_a_package_running(
    ward: Ward, outcome: Outcome, packages: PackageOutcome
):
    """However an installation ends, plan, command and package have ended too."""
    await ward.install(await ward.plan("curl"))

    await ward.answer_install(outcome, packages)

    plan, command = await ward.server.row(Plan), (await ward.server.rows(Command))[-1]
    assert plan.state in {PlanState.DONE, PlanState.FAILED, PlanState.DROPPED}
    assert command.state in ENDED
    assert (await ward.states())["curl"] in {"installed", "failed", "approved"}


async def test_original_bug_13_many_who_fetch_at_once_get_one_command(ward: Ward):
    """Looking and marking is one step: concurrent check-ins of a machine do not get the same command twice."""
    await order_scan(ward)
    await ward.machine.learn_trust(ward.server.client)

    fetched = await asyncio.gather(*(ward.machine.fetch(ward.server.client) for _ in range(6)))

    assert 1 == sum(len(wires) for wires in fetched)
    assert 1 == (await ward.server.row(Command)).deliveries


# --- 14: changes that overlapped were lost ---


async def test_original_bug_14_changes_at_the_same_time_are_all_kept(ward: Ward):
    """Check-ins with news, a report and decisions about the same machine at once: each leaves its mark."""
    ids = {name: (await ward.row(name)).id for name in ("curl", "openssl")}
    client, machine = ward.server.client, ward.machine
    seen = [package(name, S.AVAILABLE) for name in ("curl", "openssl", "vim")]

    await asyncio.gather(
        machine.check_in(client, hostname="renamed"),
        machine.report(client, full_report(seen)),
        ward.post(f"packages/{ids['curl']}/approve"),
        ward.post(f"packages/{ids['openssl']}/reject"),
        machine.check_in(client, os=OperatingSystem("linux", "debian", "Debian GNU/Linux 13 (trixie)", "13")),
    )

    agent = await ward.server.row(Agent)
    assert ("renamed", "13") == (agent.hostname, agent.os["version"])
    assert {"curl": "approved", "openssl": "excluded", "vim": "available"} == await ward.states()


async def test_original_bug_14_the_last_contact_never_goes_back(ward: Ward):
    """A decision about a machine that checks in meanwhile does not write an older time over a newer one."""
    before = (await ward.server.row(Agent)).last_seen_at
    ward.server.clock.advance(60)

    await asyncio.gather(
        ward.machine.check_in(ward.server.client), *(ward.decide("reject", name) for name in ("curl", "openssl"))
    )

    assert before + timedelta(seconds=60) == (await ward.server.row(Agent)).last_seen_at


# --- 15: machines of one family could not register ---


@pytest.mark.parametrize("family", ["linux", "windows", "darwin", "macos", "freebsd"])
async def test_original_bug_15_a_machine_of_any_family_is_taken(server: Server, family: str):
    """The server keeps no list of operating systems: what a machine says of itself is stored and shown."""
    machine, token = server.machine(), await server.token()
    body = machine.register_body(token, os=OperatingSystem(family, "some-id", "Some OS 1.0", "1.0"))

    answer = await machine.sign("/agents/register", body, with_token=False).send(server.client)

    assert 201 == answer.status_code, answer.text
    assert family == (await server.row(Agent)).os["family"]


# --- 16: what was absent made all of it absent ---


async def test_original_bug_16_what_is_absent_stays_absent_and_the_rest_stays(ward: Ward):
    """A plan without a transaction, packages without a reason, a scan without facts: nothing else is lost."""
    await ward.scan(*(attrs.evolve(package(name, S.AVAILABLE), reason=None) for name in ("curl", "openssl")))
    plan = await ward.plan("curl", "openssl", held=["curl", "openssl"])

    row = await ward.server.row(Plan)
    assert (None, 2, 2) == (row.transaction, len(row.targets), len(row.outcomes))
    assert ["held", "held"] == [target["outcome"] for target in plan["targets"]]
    assert {} == (await ward.server.row(Scanner)).facts
    assert {"openssl"} == {
        event.data["name"]
        for event in await ward.server.rows(Event, Event.package_id == (await ward.row("openssl")).id)
    }
