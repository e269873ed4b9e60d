"""Plans: what a machine would change is shown, confirmed and carried out exactly so, and every end is told."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID

import attrs
import pytest

from redflag_core import codec
from redflag_core.command_queue import LIVE
from redflag_core.commands import CommandType, UpgradeParams
from redflag_core.patching import Change, Transaction
from redflag_core.patching.plan import MAX_TARGETS
from redflag_core.scanning import Package as ScannedPackage
from redflag_core.scanning import PackageState
from redflag_core.statements import Outcome, PackageOutcome, PackageResult
from redflag_server.commands.queue import archive, cancel, release
from redflag_server.commands.tables import Command, CommandSubject
from redflag_server.commands.upkeep import expire_commands, raise_alarms
from redflag_server.events.tables import Event
from redflag_server.packages.tables import Package
from redflag_server.plans import service
from redflag_server.plans.listing import NEEDS_APPROVAL
from redflag_server.plans.tables import Plan
from tests.helpers.fleet import failed_scan, package
from tests.helpers.operators import add_machine, add_packages, api_key, first_place, new_place
from tests.helpers.orders import act, order
from tests.helpers.patching import DEPENDENCY, REMOVAL, Ward, new_ward
from tests.helpers.server import Server

S = PackageState
UNKNOWN_ID = "01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4eff"


@pytest.fixture
async def ward(server: Server) -> Ward:
    """A machine that lacks updates of curl and openssl."""
    return await new_ward(server, "curl", "openssl")


async def plan_row(ward: Ward, plan: dict[str, Any]) -> Plan:
    """A plan as it is stored."""
    row: Plan = await ward.server.row(Plan, Plan.id == UUID(plan["id"]))
    return row


async def command_of(ward: Ward, plan: dict[str, Any], kind: str = CommandType.PACKAGES_UPGRADE) -> Command:
    """The command of a plan."""
    row: Command = await ward.server.row(Command, Command.plan_id == UUID(plan["id"]), Command.type == kind)
    return row


async def plan_kinds(ward: Ward) -> list[str]:
    """Kinds of the events of plans, the oldest first."""
    kinds = await ward.server.event_kinds()
    return [kind.removeprefix("plan.") for kind in kinds if kind.startswith("plan.")]


def became(name: str, outcome: PackageOutcome) -> PackageResult:
    """What became of one package."""
    return PackageResult(name=name, arch="amd64", outcome=outcome)


def upgraded(name: str, **changes: Any) -> ScannedPackage:
    """A package that a scan sees upgraded."""
    return attrs.evolve(package(name), installed="2.0", **changes)


# --- the whole cycle ---


async def test_from_approval_to_installed(ward: Ward):
    """Approved, planned, ready, installing, installed: each step is a state, and an event of plan and package."""
    await ward.decide("approve", "curl")
    seen = [(await ward.states())["curl"]]
    made = await ward.order_plan("curl")
    seen.append((await ward.states())["curl"])
    await ward.answer_plan()
    ready = await ward.get(f"plans/{made['id']}")
    seen.append((await ward.states())["curl"])
    installing = await ward.install(ready)
    seen.append((await ward.states())["curl"])
    await ward.answer_install()
    done = await ward.get(f"plans/{made['id']}")

    assert ["approved", "planning", "approved", "installing"] == seen
    assert {"curl": "installed", "openssl": "available"} == await ward.states()
    assert ["planning", "ready", "installing", "done"] == [
        plan["state"] for plan in (made, ready, installing, done)
    ]
    assert ["made", "ready", "installing", "done"] == await plan_kinds(ward)
    assert ["approved", "planning", "planned", "installing", "installed"] == await ward.kinds("curl")


async def test_a_plan_shows_exactly_what_the_machine_would_change(ward: Ward):
    """Every change with its versions, what nobody asked for marked, sizes, and the hash that both ends know."""
    plan = await ward.plan("curl", extra=[DEPENDENCY])

    stored = codec.structure(Transaction, (await plan_row(ward, plan)).transaction)
    assert [("curl", "upgrade", "1.0", "2.0", False), ("lib-new", "install", None, "2.0", True)] == [
        (change["name"], change["kind"], change["before"], change["after"], change["extra"])
        for change in plan["transaction"]["changes"]
    ]
    assert (stored.plan_hash, 1000, 2, 1, 1) == (
        plan["transaction"]["hash"], plan["transaction"]["download_size"],
        plan["changes"], plan["extra"], plan["packages"],
    )  # fmt: skip


async def test_what_is_ordered_is_what_was_planned(ward: Ward):
    """The command to install names the packages, versions and hash of the plan."""
    plan = await ward.plan("curl", "openssl")
    await ward.install(plan)

    _, params = await ward.take(CommandType.PACKAGES_UPGRADE)

    assert isinstance(params, UpgradeParams)
    assert plan["transaction"]["hash"] == params.plan_hash
    assert [("curl", "1.0", "2.0"), ("openssl", "1.0", "2.0")] == [
        (target.name, target.installed, target.available) for target in params.packages
    ]


async def test_the_hash_is_computed_here(ward: Ward):
    """A machine cannot give a plan another hash than that of its changes: the server hashes what it shows."""
    plan = await ward.plan("curl", extra=[DEPENDENCY])
    row = await plan_row(ward, plan)

    assert codec.structure(Transaction, row.transaction).plan_hash == row.plan_hash == plan["transaction"]["hash"]


# --- confirmation ---


async def test_extra_changes_wait_for_confirmation(ward: Ward):
    """Who confirmed what and why is an event that lists the extra changes; only then can it be installed."""
    plan = await ward.plan("curl", extra=[DEPENDENCY])
    before = (plan["state"], (await ward.item("curl"))["state"], (await ward.item("curl"))["reason"])
    too_early = await ward.post(f"plans/{plan['id']}/install", 409)

    confirmed = await ward.post(f"plans/{plan['id']}/confirm", reason="it needs that")
    again = await ward.post(f"plans/{plan['id']}/confirm", reason="it needs that")

    assert ("needs_confirmation", "needs_confirmation") == before[:2]
    assert "1 package that nobody asked for" in before[2]
    assert "needs confirmation" in too_early["detail"]
    assert ("ready", "api-key:test", "approved") == (
        confirmed["state"], confirmed["confirmed_by"], (await ward.states())["curl"],
    )  # fmt: skip
    assert confirmed == again
    (event,) = await ward.server.rows(Event, Event.kind == "plan.confirmed")
    assert (["install lib-new 2.0"], 1) == (event.data["extra"], event.data["extra_count"])
    assert event.message.endswith("was confirmed: it needs that")
    assert "confirmed" in await ward.kinds("curl")


async def test_what_is_beyond_routine_is_not_ordered_without_an_approval(ward: Ward):
    """People may confirm it; installing it is refused with the way to an approval, and nothing is ordered."""
    plan = await ward.plan("curl", extra=[REMOVAL])
    assert (["removal"], NEEDS_APPROVAL, "needs_confirmation") == (
        plan["beyond_routine"], plan["advice"], plan["state"],
    )  # fmt: skip
    confirmed = await ward.post(f"plans/{plan['id']}/confirm")
    assert ("ready", NEEDS_APPROVAL) == (confirmed["state"], confirmed["advice"])

    refused = await ward.post(f"plans/{plan['id']}/install", 409)

    assert f"/api/v1/approvals/request?plan_id={plan['id']}" in refused["detail"]
    assert ("ready", "approved") == ((await plan_row(ward, plan)).state, (await ward.row("curl")).state)
    assert [] == await ward.server.rows(Command, Command.type == CommandType.PACKAGES_UPGRADE)


async def test_a_plan_without_extra_changes_needs_no_confirmation(ward: Ward):
    """There is nothing to agree to, and confirming it says so."""
    plan = await ward.plan("curl")

    answer = await ward.post(f"plans/{plan['id']}/confirm", 409)

    assert ("ready", None) == (plan["state"], plan["confirmed_at"])
    assert "ready" in answer["detail"]


@pytest.mark.parametrize("how", ["current", "gone", "excluded"])
@pytest.mark.parametrize("extra", [(), (DEPENDENCY,)])
async def test_a_plan_that_lost_a_package_is_dropped(ward: Ward, how: str, extra: Any):
    """Upgraded by hand, removed or excluded since: it could not be carried out as a whole any more."""
    plan = await ward.plan("curl", "openssl", extra=extra)
    if how == "excluded":
        await ward.decide("reject", "curl")
    else:
        after = [package("curl")] if how == "current" else []
        await ward.scan(*after, package("openssl", S.AVAILABLE))

    dropped = await ward.get(f"plans/{plan['id']}")
    assert ("dropped", "decided" if how == "excluded" else "scanned") == (dropped["state"], dropped["code"])
    assert ("approved", None) == ((await ward.row("openssl")).state, (await ward.row("openssl")).plan_id)
    for action in ("confirm", "install"):
        assert "dropped" in (await ward.post(f"plans/{plan['id']}/{action}", 409))["detail"]


# --- packages that leave a plan ---


async def test_held_and_stale_packages_leave_the_plan_and_the_rest_goes_on(ward: Ward):
    """The held one is held with the machine's reason, the stale one waits approved, the plan has the others."""
    await ward.scan(*(package(name, S.AVAILABLE) for name in ("curl", "openssl", "vim")))

    plan = await ward.plan("curl", "openssl", "vim", held=["openssl"], stale=["vim"])

    assert {"curl": "approved", "openssl": "held", "vim": "approved"} == await ward.states()
    rows = {name: await ward.row(name) for name in ("curl", "openssl", "vim")}
    assert [UUID(plan["id"]), None, None] == [rows[name].plan_id for name in rows]
    assert (None, "held with apt-mark") == (rows["openssl"].decision, (await ward.item("openssl"))["reason"])
    assert "other versions" in (await ward.item("vim"))["reason"]
    assert ["planned", "held", "stale"] == [target["outcome"] for target in plan["targets"]]
    assert ("ready", 1) == (plan["state"], plan["changes"])

    await ward.install(plan)
    await ward.answer_install()

    assert {"curl": "installed", "openssl": "held", "vim": "approved"} == await ward.states()
    final = (await ward.get(f"plans/{plan['id']}"))["targets"]
    assert ["installed", "held", "stale"] == [target["outcome"] for target in final]


async def test_a_plan_of_nothing_is_dropped(ward: Ward):
    """All held: no plan to install, and it says so."""
    plan = await ward.plan("curl", held=["curl"])

    assert ("dropped", None) == (plan["state"], plan["transaction"])
    assert "none of these packages" in plan["detail"]
    assert "held" == (await ward.states())["curl"]


@pytest.mark.parametrize("decision", ["reject", "defer", "reopen", "exclude"])
@pytest.mark.parametrize("extra", [(), (DEPENDENCY,)])
async def test_a_decision_about_one_package_drops_the_plan_for_all(ward: Ward, decision: str, extra: Any):
    """A plan is carried out as a whole or not at all: the others stay approved and can be planned again."""
    plan = await ward.plan("curl", "openssl", extra=extra)
    end = {"until": "2026-06-01T00:00:00Z"} if decision == "defer" else {}

    await ward.decide(decision, "curl", **end)

    dropped = await ward.get(f"plans/{plan['id']}")
    assert ("dropped", "decided") == (dropped["state"], dropped["code"])
    assert "approved" == (await ward.states())["openssl"]
    assert [None, None] == [(await ward.row(name)).plan_id for name in ("curl", "openssl")]
    assert "patch day" == (await ward.item("openssl"))["reason"]
    await ward.order_plan("openssl")


# --- plans that cannot be made ---


async def test_a_plan_that_the_machine_could_not_make_is_failed_with_its_reason(ward: Ward):
    """Code and sentence are at the plan and at the package; approving again starts over."""
    why = {"code": "scan_failed", "detail": "dpkg is broken"}
    plan = await ward.plan("curl", outcome=Outcome.FAILED, transaction=None, packages=(), **why)

    item = await ward.item("curl")
    assert ("failed", "scan_failed", "dpkg is broken") == (plan["state"], plan["code"], plan["detail"])
    assert ("failed", "dpkg is broken") == (item["state"], item["reason"])
    assert ["approved", "planning", "failed"] == await ward.kinds("curl")

    again = await ward.plan("curl")
    assert "ready" == again["state"]


async def test_a_plan_that_was_cut_off_leaves_the_approval(ward: Ward):
    """The agent was restarted while it planned: nothing was changed and nothing is wrong."""
    why = {"code": "interrupted", "detail": "the agent was restarted"}
    plan = await ward.plan("curl", outcome=Outcome.INTERRUPTED, transaction=None, packages=(), **why)

    item = await ward.item("curl")
    assert ("dropped", "interrupted", "approved", None) == (
        plan["state"], plan["code"], item["state"], item["plan_id"],
    )  # fmt: skip
    assert "the agent was restarted" == item["reason"]


async def test_an_answer_about_other_packages_is_no_plan(ward: Ward):
    """A signed result can still be nonsense: it is shown as a failure, never as a plan."""
    other = Transaction(
        manager="apt",
        requested=(package("openssl").key,),
        changes=(Change(name="openssl", arch="amd64", before="1.0", after="2.0"),),
    )

    plan = await ward.plan("curl", transaction=other)

    assert ("failed", "malformed", None) == (plan["state"], plan["code"], plan["transaction"])
    assert {"curl": "failed", "openssl": "available"} == await ward.states()


async def test_a_plan_whose_command_expired_leaves_the_approval(ward: Ward):
    """The machine was away for too long: nothing was done, the approval stays, the plan is dropped."""
    await ward.decide("approve", "curl")
    plan = await ward.order_plan("curl")
    ward.server.clock.advance(8 * 86_400)
    await expire_commands(ward.server.runtime)

    dropped, row = await ward.get(f"plans/{plan['id']}"), await ward.row("curl")
    assert ("dropped", "approved", None) == (dropped["state"], row.state, row.plan_id)
    assert ["approved", "planning", "plan_dropped"] == await ward.kinds("curl")


@pytest.mark.parametrize("delivered", [False, True])
async def test_a_plan_is_discarded_while_it_is_made(ward: Ward, delivered: bool):
    """Its command is cancelled here or on the machine; what the machine answers later changes nothing."""
    await ward.decide("approve", "curl")
    plan = await ward.order_plan("curl")
    cmd_id = (await ward.take(CommandType.PACKAGES_PLAN))[0] if delivered else None

    discarded = await ward.post(f"plans/{plan['id']}/discard", reason="not today")
    again = await ward.post(f"plans/{plan['id']}/discard", reason="not today")
    command = await command_of(ward, plan, CommandType.PACKAGES_PLAN)

    assert ("dropped", "discarded", "not today") == (discarded["state"], discarded["code"], discarded["detail"])
    assert discarded == again
    assert ("accepted" if delivered else "cancelled") == command.state
    if cmd_id is not None:
        assert command.cancel_requested_at is not None
        busy = await ward.post("plans", 409, package_ids=[str((await ward.row("curl")).id)])
        assert "has not ended" in busy["detail"]
        await ward.end(cmd_id, Outcome.CANCELLED, code="cancelled", detail="not started", started_at=None)
    assert "dropped" == (await ward.get(f"plans/{plan['id']}"))["state"]
    assert ("approved", None) == ((await ward.row("curl")).state, (await ward.row("curl")).plan_id)
    await ward.order_plan("curl")


@pytest.mark.parametrize("whole_machine", [False, True])
async def test_what_a_machine_still_works_on_does_not_stop_the_others(ward: Ward, whole_machine: bool):
    """The command of a plan that was given up holds its package; the rest is planned, and the answer names it."""
    await ward.decide("approve", "curl", "openssl")
    plan = await ward.order_plan("curl")
    cmd_id, _ = await ward.take(CommandType.PACKAGES_PLAN)
    await ward.post(f"plans/{plan['id']}/discard")
    ids = [str((await ward.row(name)).id) for name in ("curl", "openssl")]

    which = {"agent_id": ward.machine.agent_id} if whole_machine else {"package_ids": ids}
    made = await ward.post("plans", 201, **which)

    assert [("curl", ids[0])] == [(each["name"], each["package_id"]) for each in made["skipped"]]
    assert f"packages.plan {cmd_id} of it has not ended" in made["skipped"][0]["detail"]
    assert [1] == [item["packages"] for item in made["items"]]
    assert {"curl": "approved", "openssl": "planning"} == await ward.states()


@pytest.mark.parametrize("how", ["revoked", "full"])
async def test_one_machine_that_takes_no_orders_does_not_stop_the_others(ward: Ward, how: str, monkeypatch: Any):
    """Its packages are named with the reason, and stay approved."""
    place = await first_place(ward.server.runtime)
    other = await add_machine(ward.server.runtime, place, "db-01")
    await add_packages(
        ward.server.runtime, place, other, [("vim", {"state": S.APPROVED, "observed": S.AVAILABLE})]
    )
    if how == "revoked":
        await ward.post(f"agents/{other}/revoke", reason="sold")
    else:
        await order(ward.server, other)
        monkeypatch.setattr(service, "MAX_LIVE", 1)
    await ward.decide("approve", "curl")
    (vim,) = await ward.server.rows(Package, Package.name == "vim")

    made = await ward.post("plans", 201, package_ids=[str((await ward.row("curl")).id), str(vim.id)])

    (skipped,) = made["skipped"]
    assert ("vim", 1) == (skipped["name"], len(made["items"]))
    assert ("is revoked" if how == "revoked" else "did not end: cancel some") in skipped["detail"]


async def test_a_late_result_of_an_archived_command_is_shown_again(ward: Ward):
    """Somebody gave it up and put it away; what the machine says now is news."""
    plan = await ward.plan("curl")
    await ward.install(plan)
    cmd_id, _ = await ward.take(CommandType.PACKAGES_UPGRADE)
    await act(ward.server, release, UUID(cmd_id))
    await act(ward.server, archive, UUID(cmd_id))

    await ward.end(
        cmd_id,
        Outcome.FAILED,
        code="install_failed",
        detail="broken",
        packages=(became("curl", PackageOutcome.FAILED),),
    )

    row = await command_of(ward, plan)
    assert ("failed", None) == (row.state, row.archived_at)


@pytest.mark.parametrize("stage", ["ordered", "handed out", "ready", "to be installed", "being installed"])
async def test_a_revoked_machine_leaves_nothing_open(ward: Ward, stage: str):
    """Nobody will answer any more: its commands and plans end, and no alarm follows."""
    if stage in ("ordered", "handed out"):
        await ward.decide("approve", "curl")
        plan = await ward.order_plan("curl")
    else:
        plan = await ward.plan("curl")
    if stage in ("to be installed", "being installed"):
        await ward.install(plan)
    if stage in ("handed out", "being installed"):
        await ward.machine.fetch(ward.server.client)

    await ward.post(f"agents/{ward.machine.agent_id}/revoke", reason="sold")
    ward.server.clock.advance(30 * 86_400)
    await raise_alarms(ward.server.runtime)

    plan = await ward.get(f"plans/{plan['id']}")
    commands = await ward.server.rows(Command)
    assert ("dropped", "agent_revoked", "sold") == (plan["state"], plan["code"], plan["detail"])
    assert "approved" == (await ward.row("curl")).state
    assert not [row.state for row in commands if row.state in LIVE or row.overdue_at]
    assert [] == await ward.server.rows(CommandSubject)


# --- installations that end otherwise ---


@pytest.mark.parametrize("code", ["plan_drifted", "start_by_passed", "cancelled", "not_started"])
async def test_what_was_not_started_leaves_the_approval(ward: Ward, code: str):
    """Nothing was changed and nothing is wrong: the package can be planned again."""
    plan = await ward.plan("curl")
    await ward.install(plan)
    cmd_id, _ = await ward.take(CommandType.PACKAGES_UPGRADE)

    await ward.end(cmd_id, Outcome.FAILED, code=code, detail="why", started_at=None)

    dropped, row = await ward.get(f"plans/{plan['id']}"), await ward.row("curl")
    assert ("dropped", code, "approved", None) == (dropped["state"], dropped["code"], row.state, row.plan_id)
    assert "not_installed" == (await ward.kinds("curl"))[-1]
    assert "ready" == (await ward.plan("curl"))["state"]


@pytest.mark.parametrize("how", [cancel, release])
async def test_a_command_that_an_operator_ends_leaves_the_approval(ward: Ward, how: Any):
    """Cancelled before it was handed out, or given up afterwards."""
    plan = await ward.plan("curl")
    await ward.install(plan)
    if how is release:
        await ward.machine.fetch(ward.server.client)

    await act(ward.server, how, (await command_of(ward, plan)).id)

    assert "approved" == (await ward.states())["curl"]
    assert "dropped" == (await ward.get(f"plans/{plan['id']}"))["state"]


@pytest.mark.parametrize("outcome", [PackageOutcome.INSTALLED, PackageOutcome.FAILED])
async def test_a_late_result_still_counts(ward: Ward, outcome: PackageOutcome):
    """What was given up here and carried out there is believed, and told."""
    plan = await ward.plan("curl")
    await ward.install(plan)
    cmd_id, _ = await ward.take(CommandType.PACKAGES_UPGRADE)
    await act(ward.server, release, cmd_id)

    whole = Outcome.COMPLETED if outcome is PackageOutcome.INSTALLED else Outcome.FAILED
    await ward.end(cmd_id, whole, packages=(became("curl", outcome),))

    expected = "done" if outcome is PackageOutcome.INSTALLED else "failed"
    assert expected == (await ward.get(f"plans/{plan['id']}"))["state"]
    assert outcome == (await ward.states())["curl"]


async def test_a_late_result_does_not_touch_what_was_decided_since(ward: Ward):
    """A package that somebody excluded after giving up stays excluded; the plan tells what happened."""
    plan = await ward.plan("curl")
    await ward.install(plan)
    cmd_id, _ = await ward.take(CommandType.PACKAGES_UPGRADE)
    await act(ward.server, release, cmd_id)
    await ward.decide("reject", "curl")

    await ward.end(cmd_id, packages=(became("curl", PackageOutcome.INSTALLED),))

    assert "excluded" == (await ward.states())["curl"]
    assert "done" == (await ward.get(f"plans/{plan['id']}"))["state"]


async def test_a_half_failed_installation_says_of_each_package_what_it_is(ward: Ward):
    """What was installed is installed, what failed is failed with its reason, and the plan is failed."""
    plan = await ward.plan("curl", "openssl")
    await ward.install(plan)

    await ward.answer_install(
        Outcome.FAILED, {"curl": PackageOutcome.INSTALLED, "openssl": PackageOutcome.FAILED}, exit_status=100
    )

    failed = await ward.get(f"plans/{plan['id']}")
    assert {"curl": "installed", "openssl": "failed"} == await ward.states()
    assert ("failed", "install_failed", "it did not work") == (failed["state"], failed["code"], failed["detail"])
    assert "it did not work" == (await ward.item("openssl"))["reason"]
    assert failed["id"] == (await ward.item("openssl"))["plan_id"]


async def test_an_interrupted_installation_is_told_by_what_each_package_is(ward: Ward):
    """Installed before the power went, untouched, or broken."""
    await ward.scan(*(package(name, S.AVAILABLE) for name in ("curl", "openssl", "vim")))
    plan = await ward.plan("curl", "openssl", "vim")
    await ward.install(plan)

    outcomes = {
        "curl": PackageOutcome.INSTALLED, "openssl": PackageOutcome.UNCHANGED, "vim": PackageOutcome.FAILED,
    }  # fmt: skip
    await ward.answer_install(Outcome.INTERRUPTED, outcomes, code="interrupted", detail="power", repaired=True)

    assert {"curl": "installed", "openssl": "approved", "vim": "failed"} == await ward.states()
    assert None is (await ward.row("openssl")).plan_id


async def test_a_failure_stays_until_the_package_is_repaired(ward: Ward):
    """The rescan after a failed postinst sees the new version half configured: that is not "up to date"."""
    plan = await ward.plan("curl")
    await ward.install(plan)
    await ward.answer_install(Outcome.FAILED, PackageOutcome.FAILED)

    await ward.scan(upgraded("curl", reason="half-configured: run `dpkg --configure -a` as root"))
    broken = (await ward.states())["curl"]
    await ward.scan(upgraded("curl"))

    assert ("failed", "current") == (broken, (await ward.states())["curl"])


# --- reboots ---


async def test_what_asks_for_a_reboot_waits_for_it(ward: Ward):
    """Only the package that asks; the reboot finishes it, by the word of the machine."""
    plan = await ward.plan("curl", "openssl")
    await ward.install(plan)
    await ward.answer_install(reboot_required=True, reboot_by=("openssl",))
    before = await ward.states()
    await ward.scan(upgraded("curl"), upgraded("openssl"))
    scanned = await ward.states()

    await ward.reboot()

    assert {"curl": "installed", "openssl": "reboot_pending"} == before == scanned
    assert {"curl": "installed", "openssl": "installed"} == await ward.states()
    assert ["reboot_pending", "installed"] == (await ward.kinds("openssl"))[-2:]
    (event,) = [event for event in await ward.server.rows(Event) if "in use since the reboot" in event.message]
    assert f"agent:{ward.machine.agent_id}" == event.actor


async def test_a_result_that_comes_after_the_reboot_waits_for_nothing(ward: Ward):
    """The machine was started anew before its result was delivered."""
    plan = await ward.plan("openssl")
    await ward.install(plan)
    cmd_id, _ = await ward.take(CommandType.PACKAGES_UPGRADE)
    result = (became("openssl", PackageOutcome.INSTALLED),)
    signed = ward.machine.run(cmd_id, packages=result, reboot_required=True, reboot_by=("openssl",))
    ward.server.clock.advance(120)
    await ward.reboot()

    await ward.deliver(signed)

    assert "installed" == (await ward.states())["openssl"]


async def test_the_start_that_interrupted_an_update_is_not_the_reboot_after_it(ward: Ward):
    """It was repaired after the power came back, before the first check-in: the next start brings it into use."""
    plan = await ward.plan("openssl")
    await ward.install(plan)
    cmd_id, _ = await ward.take(CommandType.PACKAGES_UPGRADE)
    ward.server.clock.advance(60)
    result = (became("openssl", PackageOutcome.INSTALLED),)
    signed = ward.machine.run(
        cmd_id,
        Outcome.INTERRUPTED,
        code="interrupted",
        detail="the power was cut",
        packages=result,
        reboot_required=True,
        reboot_by=("openssl",),
    )
    ward.server.clock.advance(60)
    await ward.reboot()

    await ward.deliver(signed)

    assert "reboot_pending" == (await ward.states())["openssl"]


async def test_an_older_reboot_does_not_count(ward: Ward):
    """The reboot of last week finishes nothing that was installed today."""
    await ward.reboot()
    ward.server.clock.advance(120)
    plan = await ward.plan("openssl")
    await ward.install(plan)

    await ward.answer_install(reboot_required=True, reboot_by=("openssl",))

    assert "reboot_pending" == (await ward.states())["openssl"]


@pytest.mark.parametrize("rebooted_after", [True, False])
async def test_a_clock_that_is_ahead_hides_no_reboot(ward: Ward, rebooted_after: bool):
    """Its clock and the server's are never compared: a reboot after the update finishes it, no earlier one."""
    clock = ward.server.clock
    ward.machine.now = lambda: clock.now() + timedelta(seconds=25)
    plan = await ward.plan("openssl")
    if not rebooted_after:
        await ward.reboot()
        clock.advance(10)
    await ward.install(plan)
    cmd_id, _ = await ward.take(CommandType.PACKAGES_UPGRADE)
    result = (became("openssl", PackageOutcome.INSTALLED),)
    signed = ward.machine.run(cmd_id, packages=result, reboot_required=True, reboot_by=("openssl",))
    clock.advance(10)
    if rebooted_after:
        await ward.reboot()

    await ward.deliver(signed)

    assert ("installed" if rebooted_after else "reboot_pending") == (await ward.states())["openssl"]


async def test_a_newer_version_that_came_while_a_reboot_was_missing_is_shown(ward: Ward):
    """After the reboot the next update is open, not hidden behind "installed"."""
    plan = await ward.plan("openssl")
    await ward.install(plan)
    await ward.answer_install(reboot_required=True, reboot_by=("openssl",))
    newer = package("openssl", S.AVAILABLE)
    await ward.scan(package("curl", S.AVAILABLE), attrs.evolve(newer, installed="2.0", available="3.0"))

    await ward.reboot()

    row = await ward.row("openssl")
    assert ("available", None, None) == (row.state, row.plan_id, row.decision)


# --- scans in between ---


async def test_an_installation_is_not_reset_by_any_scan(ward: Ward):
    """A full scan, a failed one and one that does not list the package, while it is planned and installed."""
    await ward.decide("approve", "curl", "openssl")
    await ward.order_plan("curl", "openssl")
    for step in ("planning", "installing"):
        for scan in ([package("curl", S.AVAILABLE)], [package("curl"), package("openssl", S.HELD)]):
            await ward.scan(*scan)
            await ward.machine.report(ward.server.client, failed_scan())
            assert {"curl": step, "openssl": step} == await ward.states()
        if step == "planning":
            await ward.scan(package("curl", S.AVAILABLE), package("openssl", S.AVAILABLE))
            await ward.answer_plan()
            (plan,) = (await ward.get("plans"))["items"]
            await ward.install(plan)
    await ward.scan(upgraded("curl"))

    await ward.answer_install()

    assert {"curl": "installed", "openssl": "not_applicable"} == await ward.states()


@pytest.mark.parametrize("scanned", [[package("curl")], []], ids=["up to date", "gone"])
@pytest.mark.parametrize("extra", [(), (DEPENDENCY,)])
async def test_what_a_scan_took_away_while_it_was_planned_drops_the_plan(ward: Ward, scanned: Any, extra: Any):
    """The machine planned for a package that was upgraded or removed meanwhile: there is nothing to install."""
    await ward.decide("approve", "curl", "openssl")
    made = await ward.order_plan("curl", "openssl")
    await ward.scan(*scanned, package("openssl", S.AVAILABLE))

    await ward.answer_plan(extra=extra)

    plan = await ward.get(f"plans/{made['id']}")
    assert ("dropped", "scanned") == (plan["state"], plan["code"])
    assert {"curl": "current" if scanned else "not_applicable", "openssl": "approved"} == await ward.states()
    assert None is (await ward.row("openssl")).plan_id


async def test_a_plan_says_what_changed_since(ward: Ward):
    """A newer version came out: the approval and the plan stay, the plan names it, the machine will refuse it."""
    plan = await ward.plan("curl", "openssl")
    newer = attrs.evolve(package("curl", S.AVAILABLE), available="3.0")

    await ward.scan(newer, package("openssl", S.AVAILABLE))

    after = await ward.get(f"plans/{plan['id']}")
    assert {"curl": "approved", "openssl": "approved"} == await ward.states()
    assert ("ready", ["3.0 is available by now", None]) == (
        after["state"], [target["changed"] for target in after["targets"]],
    )  # fmt: skip


async def test_a_plan_says_that_nothing_newer_is_known_any_more(ward: Ward):
    """Held since, and the repositories have no newer version by now: the plan will not be carried out."""
    plan = await ward.plan("curl")

    await ward.scan(attrs.evolve(package("curl", S.HELD), available=None), package("openssl", S.AVAILABLE))

    (target,) = (await ward.get(f"plans/{plan['id']}"))["targets"]
    assert ("nothing newer is known by now", "approved") == (target["changed"], target["state"])


async def test_a_plan_says_that_another_version_is_installed_by_now(ward: Ward):
    """Upgraded by hand to something in between."""
    plan = await ward.plan("curl")

    await ward.scan(attrs.evolve(package("curl", S.AVAILABLE), installed="1.5"), package("openssl", S.AVAILABLE))

    (target,) = (await ward.get(f"plans/{plan['id']}"))["targets"]
    assert ("1.5 is installed by now", "approved") == (target["changed"], target["state"])


async def test_what_a_plan_that_ended_left_behind_is_not_its_change(ward: Ward):
    """After the installation other versions are there on purpose."""
    plan = await ward.plan("curl")
    await ward.install(plan)
    await ward.answer_install()
    await ward.scan(upgraded("curl"), package("openssl", S.AVAILABLE))

    (target,) = (await ward.get(f"plans/{plan['id']}"))["targets"]

    assert (None, "installed", "installed") == (target["changed"], target["outcome"], target["state"])


async def test_an_installed_package_reopens_with_the_next_version(ward: Ward):
    """And nobody's old approval is left on it."""
    plan = await ward.plan("curl")
    await ward.install(plan)
    await ward.answer_install()
    await ward.scan(upgraded("curl"), package("openssl", S.AVAILABLE))
    installed = (await ward.states())["curl"]

    newer = attrs.evolve(package("curl", S.AVAILABLE), installed="2.0", available="3.0")
    await ward.scan(newer, package("openssl", S.AVAILABLE))

    row = await ward.row("curl")
    assert ("installed", "available", None, None) == (installed, row.state, row.decision, row.plan_id)


# --- making plans ---


async def test_one_plan_for_each_machine(server: Server):
    """Packages of two machines are two plans with two commands, made in one go."""
    one, other = await new_ward(server, "curl", "vim"), await new_ward(server, "curl")
    await one.decide("approve", "curl", "vim")
    await other.decide("approve", "curl")
    ids = [str((await one.row(name)).id) for name in ("curl", "vim")] + [str((await other.row("curl")).id)]

    made = await one.post("plans", 201, package_ids=ids)

    assert {(one.machine.agent_id, 2), (other.machine.agent_id, 1)} == {
        (item["agent_id"], item["packages"]) for item in made["items"]
    }
    assert 2 == len(await server.rows(Command, Command.type == CommandType.PACKAGES_PLAN))


async def test_all_approved_packages_of_a_machine(ward: Ward):
    """When only the machine is named: what is approved, and nothing else."""
    await ward.scan(package("curl", S.AVAILABLE), package("openssl", S.AVAILABLE), package("vim", S.AVAILABLE))
    await ward.decide("approve", "curl", "vim")

    made = await ward.post("plans", 201, agent_id=ward.machine.agent_id)

    assert {"curl": "planning", "openssl": "available", "vim": "planning"} == await ward.states()
    assert (2, 0, []) == (made["items"][0]["packages"], made["left"], made["skipped"])


async def test_more_than_one_plan_takes_are_planned_in_turn(server: Server):
    """Security updates first; the rest stays approved, and the answer says how many wait."""
    place, names = await first_place(server.runtime), [f"p{number:03d}" for number in range(MAX_TARGETS + 7)]
    agent = await add_machine(server.runtime, place)
    rows = [(name, {"state": S.APPROVED, "observed": S.AVAILABLE, "security": name > "p200"}) for name in names]
    await add_packages(server.runtime, place, agent, rows)
    ward = Ward(server, server.machine(), await api_key(server.runtime))
    ids = [str(row.id) for row in await server.rows(Package)]

    refused = await ward.post("plans", 409, package_ids=ids)
    made = await ward.post("plans", 201, agent_id=str(agent))

    left = {row.name for row in await server.rows(Package, Package.state == S.APPROVED)}
    assert str(MAX_TARGETS) in refused["detail"]
    assert (MAX_TARGETS, 7, 7) == (made["items"][0]["packages"], made["left"], len(left))
    assert not left & {name for name in names if name > "p200"}


async def test_long_names_leave_room_for_fewer(server: Server):
    """A command has a bound in bytes too: as many as fit are planned, and what is ordered later fits as well."""
    place = await first_place(server.runtime)
    agent = await add_machine(server.runtime, place)
    versions = {"installed": "1" * 200, "available": "2" * 200}
    rows = [
        ("n" * 150 + str(number), {"state": S.APPROVED, "observed": S.AVAILABLE, **versions})
        for number in range(150)
    ]
    await add_packages(server.runtime, place, agent, rows)
    ward = Ward(server, server.machine(), await api_key(server.runtime))

    made = await ward.post("plans", 201, agent_id=str(agent))

    assert 150 == made["items"][0]["packages"] + made["left"]
    assert 20 < made["items"][0]["packages"] < 100


async def test_one_package_that_cannot_be_planned_does_not_stop_the_others(server: Server):
    """A name that means something to a package manager never becomes part of a command, and is named."""
    ward = await new_ward(server, "curl", "bash-", "openssl")
    await ward.decide("approve", "curl", "bash-")

    alone = await ward.post("plans", 409, package_ids=[str((await ward.row("bash-")).id)])
    made = await ward.post("plans", 201, agent_id=ward.machine.agent_id)

    assert "bash- cannot be planned" in alone["detail"]
    (skipped,) = made["skipped"]
    assert ("bash-", 1) == (skipped["name"], made["items"][0]["packages"])
    assert "bash- cannot be planned" in skipped["detail"]
    assert {"bash-": "approved", "curl": "planning", "openssl": "available"} == await ward.states()


async def test_a_package_that_is_planned_anew_leaves_its_older_plan(ward: Ward):
    """The older plan is dropped: it could not be carried out as a whole any more."""
    old = await ward.plan("curl", "openssl")

    new = await ward.order_plan("curl")

    dropped = await ward.get(f"plans/{old['id']}")
    assert ("dropped", "replaced") == (dropped["state"], dropped["code"])
    assert (UUID(new["id"]), None) == ((await ward.row("curl")).plan_id, (await ward.row("openssl")).plan_id)


@pytest.mark.parametrize("state", ["available", "excluded", "planning", "needs_confirmation"])
async def test_only_approved_packages_are_planned(ward: Ward, state: str):
    """Anything else is refused as a whole, and names the package."""
    if state == "excluded":
        await ward.decide("reject", "curl")
    elif state == "needs_confirmation":
        await ward.plan("curl", extra=[DEPENDENCY])
    elif state == "planning":
        await ward.decide("approve", "curl")
        await ward.order_plan("curl")
    await ward.decide("approve", "openssl")
    before = await ward.server.dump()

    ids = [str((await ward.row(name)).id) for name in ("openssl", "curl")]
    answer = await ward.post("plans", 409, package_ids=ids)

    assert f"curl is {state.replace('_', ' ')}" in answer["detail"]
    assert before == await ward.server.dump()


async def test_a_machine_with_nothing_approved_has_nothing_to_plan(ward: Ward):
    """It says what to do."""
    answer = await ward.post("plans", 409, agent_id=ward.machine.agent_id)

    assert "approve packages first" in answer["detail"]


async def test_a_revoked_machine_plans_nothing(ward: Ward):
    """It never answers."""
    await ward.decide("approve", "curl")
    await ward.post(f"agents/{ward.machine.agent_id}/revoke")

    answer = await ward.post("plans", 409, agent_id=ward.machine.agent_id)

    assert "revoked" in answer["detail"]
    assert "approved" == (await ward.states())["curl"]


@pytest.mark.parametrize(
    "body, status, word",
    [
        ({}, 400, "package_ids or agent_id"),
        ({"package_ids": [], "agent_id": None}, 400, "package_ids"),
        ({"package_ids": [UNKNOWN_ID], "agent_id": UNKNOWN_ID}, 400, "package_ids or agent_id"),
        ({"package_ids": ["curl"]}, 400, "package_ids"),
        ({"agent_id": "web-01"}, 400, "agent_id"),
        ({"agent_id": UNKNOWN_ID}, 404, "machine"),
        ({"package_ids": [UNKNOWN_ID]}, 404, "package"),
        ({"package_ids": [UNKNOWN_ID], "force": True}, 400, "force"),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_a_bad_request_for_plans_names_what_is_wrong(ward: Ward, body: Any, status: int, word: str):
    """4xx, never 500, and nothing is made."""
    answer = await ward.post("plans", status, **body)

    assert word in answer["detail"]
    assert [] == await ward.server.rows(Plan)


async def test_one_unknown_package_among_known_ones_stops_the_request(ward: Ward):
    """A plan of less than what was asked for would be a surprise."""
    await ward.decide("approve", "curl")

    await ward.post("plans", 404, package_ids=[str((await ward.row("curl")).id), UNKNOWN_ID])

    assert "approved" == (await ward.states())["curl"]


# --- what people do with plans ---


async def test_installing_twice_orders_once(ward: Ward):
    """A double click, or two people: one command, the same answer."""
    plan = await ward.plan("curl")

    answers = await asyncio.gather(*(ward.install(plan) for _ in range(4)))

    assert ["installing"] * 4 == [answer["state"] for answer in answers]
    await command_of(ward, plan)
    assert 1 == (await plan_kinds(ward)).count("installing")


@pytest.mark.parametrize("action", ["confirm", "install", "discard"])
async def test_a_plan_that_is_done_is_done(ward: Ward, action: str):
    """Nothing moves it any more, and the refusal says where it stands."""
    plan = await ward.plan("curl")
    await ward.install(plan)
    await ward.answer_install()

    answer = await ward.post(f"plans/{plan['id']}/{action}", 409)

    assert "done" in answer["detail"]


async def test_a_plan_that_is_being_installed_is_not_discarded(ward: Ward):
    """Its command may have been started: cancelling that is another thing."""
    plan = await ward.plan("curl")
    await ward.install(plan)

    answer = await ward.post(f"plans/{plan['id']}/discard", 409)

    assert "cancel its command" in answer["detail"]


@pytest.mark.parametrize("extra", [(), (DEPENDENCY,)])
async def test_a_discarded_plan_leaves_its_packages_approved(ward: Ward, extra: Any):
    """People did not want this plan; that they want the update stays."""
    plan = await ward.plan("curl", extra=extra)

    await ward.post(f"plans/{plan['id']}/discard", reason="not that library")

    row = await ward.row("curl")
    assert ("approved", None, "approve") == (row.state, row.plan_id, row.decision)
    assert "plan_dropped" == (await ward.kinds("curl"))[-1]
    (event,) = await ward.server.rows(Event, Event.kind == "plan.dropped")
    assert ("discarded", True) == (event.code, event.message.endswith("was dropped: not that library"))


@pytest.mark.parametrize("action", ["confirm", "install", "discard"])
async def test_an_unknown_plan_is_not_found(ward: Ward, action: str):
    """There is no such plan."""
    answer = await ward.post(f"plans/{UNKNOWN_ID}/{action}", 404)

    assert "there is no such plan" == answer["detail"]


async def test_who_may_only_read_plans_nothing(ward: Ward):
    """Reading plans is one permission, making and installing them another."""
    plan = await ward.plan("curl")
    await ward.decide("approve", "openssl")
    reader = attrs.evolve(ward, headers=await api_key(ward.server.runtime, "packages:read"))

    await reader.post("plans", 403, agent_id=ward.machine.agent_id)
    for action in ("confirm", "install", "discard"):
        await reader.post(f"plans/{plan['id']}/{action}", 403)

    assert "ready" == (await reader.get(f"plans/{plan['id']}"))["state"]


async def test_plans_are_listed_newest_first_and_filtered(server: Server):
    """By machine and by state; a foreign organization has none."""
    one, other = await new_ward(server, "curl", "vim"), await new_ward(server, "curl")
    first, second, third = await one.plan("curl"), await one.plan("vim"), await other.plan("curl")
    await one.install(second)
    stranger = await new_place(server.runtime, "B")
    headers = await api_key(server.runtime, "*", organization_id=stranger.organization_id)

    async def listed(query: str, who: Ward = one) -> list[str]:
        return [item["id"] for item in (await who.get(f"plans{query}"))["items"]]

    assert [third["id"], second["id"], first["id"]] == await listed("")
    assert [second["id"], first["id"]] == await listed(f"?agent_id={one.machine.agent_id}")
    assert [second["id"]] == await listed("?state=installing")
    assert [third["id"], first["id"]] == await listed("?state=ready&state=done")
    assert [] == await listed("", attrs.evolve(one, headers=headers))
    page = await one.get("plans?limit=2")
    assert [first["id"]] == await listed(f"?cursor={page['next']}")


async def test_whose_names_are_too_long_for_a_command_is_refused_with_a_sentence(server: Server):
    """An explicit request for more bytes than a command has names the bound."""
    place = await first_place(server.runtime)
    agent = await add_machine(server.runtime, place)
    versions = {"installed": "1" * 200, "available": "2" * 200, "state": S.APPROVED, "observed": S.AVAILABLE}
    await add_packages(
        server.runtime, place, agent, [("n" * 150 + str(number), versions) for number in range(100)]
    )
    ward = Ward(server, server.machine(), await api_key(server.runtime))

    answer = await ward.post("plans", 409, package_ids=[str(row.id) for row in await server.rows(Package)])

    assert "name fewer" in answer["detail"]
