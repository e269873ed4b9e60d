"""Scan reports: the rows are exactly the inventory of the accepted hash, and failures are not emptiness."""

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redflag_core.messages import Report, ScannerState
from redflag_core.scanning import PackageState, ScanStatus, Severity, content_digest, delta, inventory_hash
from redflag_server.packages.tables import Package, Scanner, ScanReport
from tests.helpers.fleet import failed_scan, full_report, new_id, package
from tests.helpers.server import Server, running

BASH, CURL = package("bash"), package("curl", PackageState.AVAILABLE, security=True, severity=Severity.IMPORTANT)
HELD = package("linux", PackageState.HELD, reason="held by apt-mark")


async def _states(server: Server) -> dict[str, str]:
    return {row.name: row.state for row in await server.rows(Package)}


async def test_a_full_report_is_stored(server: Server):
    """Every package with its state, severity and reason; the hash is the server's from then on."""
    machine = await server.agent()

    answer = await machine.report(server.client, full_report([BASH, CURL, HELD]))

    assert {"v": 1, "accepted": True, "hash": inventory_hash([BASH, CURL, HELD])} == answer.json()
    assert {"bash": "current", "curl": "available", "linux": "held"} == await _states(server)
    curl = await server.row(Package, Package.name == "curl")
    assert ("important", True, "1.0", "2.0") == (curl.severity, curl.security, curl.installed, curl.available)


async def test_the_same_report_twice_is_stored_once(server: Server):
    """A lost answer is repeated; nothing is doubled."""
    machine = await server.agent()
    report = full_report([BASH])

    answers = [await machine.report(server.client, report) for _ in range(2)]

    assert answers[0].json() == answers[1].json()
    assert (1, 1) == (len(await server.rows(ScanReport)), len(await server.rows(Package)))


async def test_a_report_id_of_another_agent_is_a_conflict(server: Server):
    """An agent cannot make its report look like somebody else's."""
    one, other = await server.agent(), await server.agent()
    report = full_report([BASH])
    await one.report(server.client, report)

    answer = await other.report(server.client, report)

    assert (409, "conflict") == (answer.status_code, answer.json()["code"])


async def test_a_delta_changes_only_what_it_names(server: Server):
    """Upserts and removals against the accepted hash lead to the announced one."""
    machine = await server.agent()
    before = [BASH, CURL, HELD]
    await machine.report(server.client, full_report(before))
    after = [BASH, package("curl"), package("wget", PackageState.PHASED)]
    change = delta(before, after)

    answer = await machine.report(
        server.client,
        full_report(
            change.upserts, base=inventory_hash(before), hash=inventory_hash(after), removed=change.removed
        ),
    )

    assert (True, inventory_hash(after)) == (answer.json()["accepted"], answer.json()["hash"])
    expected = {"bash": "current", "curl": "current", "linux": "not_applicable", "wget": "phased"}
    assert expected == await _states(server)


@pytest.mark.parametrize("wrong", ["base", "hash", "removed"])
async def test_a_delta_that_does_not_fit_asks_for_everything(server: Server, wrong: str):
    """Another base, a wrong result, an unknown removal: nothing changes, a full report is asked for."""
    machine = await server.agent()
    await machine.report(server.client, full_report([BASH]))
    good = {"base": inventory_hash([BASH]), "hash": inventory_hash([CURL]), "removed": (BASH.key,)}
    bad = {"base": "1" * 64, "hash": "1" * 64, "removed": (HELD.key,)}
    before = await server.dump()

    answer = await machine.report(server.client, full_report([CURL], **{**good, wrong: bad[wrong]}))

    assert {"v": 1, "accepted": False, "hash": inventory_hash([BASH])} == answer.json()
    assert before == await server.dump()


async def test_a_full_report_with_a_wrong_hash_is_malformed(server: Server):
    """The hash proves that what arrived is what was sent."""
    machine = await server.agent()

    answer = await machine.report(server.client, full_report([BASH], hash=inventory_hash([CURL])))

    assert (400, "malformed") == (answer.status_code, answer.json()["code"])
    assert [] == await server.rows(Package)


async def test_a_failed_scan_makes_packages_unknown_and_a_good_one_knows_them_again(server: Server):
    """Not knowing is never "up to date": states come back with the next success, also without a change."""
    machine = await server.agent()
    await machine.report(server.client, full_report([BASH, CURL]))

    await machine.report(server.client, failed_scan())
    scanner = await server.row(Scanner)
    assert {"bash": "unknown", "curl": "unknown"} == await _states(server)
    assert ("failed", "apt-get: the lists are damaged") == (scanner.status, scanner.error)

    unchanged = inventory_hash([BASH, CURL])
    answer = await machine.report(server.client, full_report([], base=unchanged, hash=unchanged))

    assert answer.json()["accepted"]
    assert {"bash": "current", "curl": "available"} == await _states(server)
    kinds = await server.event_kinds()
    assert ("scanner.failed" in kinds, "scanner.recovered" in kinds) == (True, True)


async def test_a_package_that_comes_back_is_open_again(server: Server):
    """Gone closes, seen again reopens, in one row with one history."""
    machine = await server.agent()
    for packages in ([CURL], [], [CURL]):
        await machine.report(server.client, full_report(packages))

    rows = await server.rows(Package)
    assert [("curl", "available")] == [(row.name, row.state) for row in rows]


async def test_check_in_asks_for_reports_that_the_server_does_not_hold(server: Server):
    """An unchanged inventory is not asked for again; a changed or failed one is."""
    machine = await server.agent()
    held = inventory_hash([BASH])
    state = ScannerState("apt", ScanStatus.OK, held, 1_767_225_700)

    first = (await machine.check_in(server.client, [state])).json()
    await machine.report(server.client, full_report([BASH]))
    second = (await machine.check_in(server.client, [state])).json()
    third = (await machine.check_in(server.client, [attrs.evolve(state, hash="1" * 64)])).json()
    fourth = (await machine.check_in(server.client, [ScannerState("apt", ScanStatus.FAILED, None, 1)])).json()

    wanted = [answer["reports_wanted"] for answer in (first, second, third, fourth)]
    assert [["apt"], [], ["apt"], ["apt"]] == wanted
    assert {"apt": held} == second["report_bases"]


def facts_report(number: int, **changes: Any) -> Report:
    """A report of a scanner that has no packages."""
    return full_report([], manager="storage", facts={"number": number}, **changes)


def state_of(report: Report) -> ScannerState:
    """What a check-in says of the scan that *report* was made of."""
    content = content_digest(
        status=report.status,
        error=report.error,
        warnings=report.warnings,
        facts=report.facts,
        inventory=report.hash,
    )
    return ScannerState("storage", report.status, report.hash, report.taken_at, content)


async def test_facts_change_while_the_inventory_does_not(server: Server):
    """A scanner of facts always has the same, empty inventory: its news are taken all the same."""
    machine = await server.agent()
    empty = inventory_hash([])

    for report in (facts_report(1), facts_report(2, base=empty), facts_report(3)):
        answer = await machine.report(server.client, report, scanner="storage")

        assert {"v": 1, "accepted": True, "hash": empty} == answer.json()
        assert report.facts == (await server.row(Scanner)).facts
        assert [] == (await machine.check_in(server.client, [state_of(report)])).json()["reports_wanted"]
    assert 3 == len(await server.rows(ScanReport))
    assert "packages.reported" not in await server.event_kinds()


@pytest.mark.parametrize(
    "changes",
    [
        {"facts": {"number": 2}},
        {"warnings": ("another",)},
        {"status": ScanStatus.FAILED, "error": "broken", "hash": None, "facts": {}},
    ],
    ids=str,
)
async def test_check_in_asks_for_whatever_is_news(server: Server, changes: dict[str, Any]):
    """Not only packages: facts and warnings that the server does not hold are asked for too."""
    machine = await server.agent()
    held = facts_report(1)
    await machine.report(server.client, held, scanner="storage")

    wanted = [
        (await machine.check_in(server.client, [state_of(report)])).json()["reports_wanted"]
        for report in (held, attrs.evolve(held, **changes))
    ]

    assert [[], ["storage"]] == wanted


@pytest.mark.sqlite
async def test_a_server_that_was_set_back_asks_for_the_facts_again(tmp_path: Path):
    """An old snapshot of its disk has the same inventory hash and old facts: these are not shown as new."""
    old = facts_report(1)
    new = facts_report(2, base=inventory_hash([]), taken_at=old.taken_at + 60)
    async with running(tmp_path / "data") as server:
        machine = await server.agent()
        await machine.report(server.client, old, scanner="storage")
    shutil.copytree(tmp_path / "data", tmp_path / "snapshot")
    async with running(tmp_path / "data") as server:
        await machine.report(server.client, new, scanner="storage")

    async with running(tmp_path / "snapshot") as server:
        answer = (await machine.check_in(server.client, [state_of(new)])).json()
        before = (await server.row(Scanner)).taken_at
        await machine.report(server.client, attrs.evolve(new, report_id=new_id()), scanner="storage")

        assert (["storage"], datetime.fromtimestamp(old.taken_at, tz=UTC)) == (answer["reports_wanted"], before)
        assert {"number": 2} == (await server.row(Scanner)).facts


async def test_an_agent_that_tells_no_digest_is_judged_by_its_hash(server: Server):
    """The field may be left out."""
    machine = await server.agent()
    await machine.report(server.client, facts_report(1), scanner="storage")
    state = attrs.evolve(state_of(facts_report(2)), content=None)

    assert [] == (await machine.check_in(server.client, [state])).json()["reports_wanted"]


async def test_an_unchanged_scan_is_noted_by_the_check_in(server: Server):
    """That the machine was looked at again is known without sending the inventory again."""
    machine = await server.agent()
    await machine.report(server.client, full_report([BASH]))
    before = (await server.row(Scanner)).succeeded_at

    await machine.check_in(
        server.client, [ScannerState("apt", ScanStatus.OK, inventory_hash([BASH]), 1_767_229_200)]
    )

    assert (await server.row(Scanner)).succeeded_at > before


@pytest.mark.parametrize("scanner", ["APT", "a" * 33, "apt%00", "../apt", "apt;", "1apt"])
async def test_a_hostile_scanner_name_is_refused(server: Server, scanner: str):
    """The path is data: 4xx, never 500."""
    machine = await server.agent()

    answer = await machine.report(server.client, full_report([BASH]), scanner=scanner)

    assert 400 <= answer.status_code < 500
    assert "application/problem+json" == answer.headers["content-type"]


_INVENTORIES = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d"]),
    st.sampled_from([PackageState.CURRENT, PackageState.AVAILABLE, PackageState.HELD]),
)


_HISTORIES = st.lists(st.tuples(_INVENTORIES, st.booleans()), min_size=1, max_size=6)


@given(history=_HISTORIES)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_after_any_history_the_rows_are_the_last_inventory(server: Server, history):
    """Full reports and deltas in any mix: what is present equals what was reported last."""
    machine = await server.agent()
    held: list = []
    for inventory, wanted_full in history:
        packages = [package(name, state) for name, state in sorted(inventory.items())]
        if wanted_full or not held:
            report = full_report(packages)
        else:
            change = delta(held, packages)
            report = full_report(
                change.upserts, base=inventory_hash(held), hash=inventory_hash(packages), removed=change.removed
            )
        assert (await machine.report(server.client, report)).json()["accepted"]
        held = packages
        from uuid import UUID

        rows = await server.rows(Package, Package.agent_id == UUID(machine.agent_id))
        assert {p.name: p.state for p in packages} == {r.name: r.state for r in rows if r.present}
        assert all(r.state == "not_applicable" for r in rows if not r.present)


async def test_a_large_inventory_is_accepted(server: Server):
    """A full desktop of 3,000 packages is one report."""
    machine = await server.agent()
    packages = [package(f"package-{number}") for number in range(3000)]

    answer = await machine.report(server.client, full_report(packages))

    assert answer.json()["accepted"]
    assert 3000 == len(await server.rows(Package))


async def test_the_largest_legal_batch_of_errors_is_accepted(server: Server):
    """Every field as long as it may be, in the characters that take the most bytes."""
    from redflag_core.encoding import dump_json
    from redflag_core.messages import MAX_CONTEXT_BYTES, MAX_ERRORS, Errors
    from redflag_core.messages import ClientError as WireError

    widest = "\U0001f6a9"
    error = WireError(
        subsystem=widest * 64,
        type=widest * 128,
        message=widest * 2000,
        count=10**9,
        first_seen=1_767_225_600,
        last_seen=1_767_225_700,
        stack="\x01" * 16_000,
        context={"a": "x" * (MAX_CONTEXT_BYTES - len(dump_json({"a": ""})))},
    )
    machine = await server.agent()

    answer = await machine.send_errors(server.client, Errors(1, new_id(), (error,) * MAX_ERRORS, 10**9))

    assert 200 == answer.status_code, answer.text


async def test_errors_of_an_agent_are_counted_not_repeated(server: Server):
    """Equal errors are one row; the same batch again counts once; what was dropped is an event."""
    from redflag_core.messages import ClientError as WireError
    from redflag_core.messages import Errors
    from redflag_server.client_errors.tables import ClientError

    machine = await server.agent()
    error = WireError("transport", "TimeoutError", "no answer", 2, 1_767_225_600, 1_767_225_700)
    batch = Errors(1, new_id(), (error,), dropped=3)

    codes = [(await machine.send_errors(server.client, batch)).status_code for _ in range(2)]
    await machine.send_errors(server.client, attrs.evolve(batch, batch_id=new_id(), dropped=0))

    row = await server.row(ClientError)
    assert ([200, 200], 4) == (codes, row.count)
    assert 1 == (await server.event_kinds()).count("agent.errors_dropped")
