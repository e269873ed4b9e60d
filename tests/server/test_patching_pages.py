"""Pages on which people decide about updates, plan and install them, and see what machines were told to do."""

import json
import re
from collections import Counter
from datetime import timedelta

import attrs
import pytest
from sqlalchemy import update

from redflag_agent.executor import errors as executor_errors
from redflag_core.commands import CommandType
from redflag_core.encoding import b64decode
from redflag_core.errors import CommandRefusedError, VerificationError
from redflag_core.keys import VerifyKey
from redflag_core.patching import ApprovalReason, Change, ChangeKind, Decision, PlanState
from redflag_core.scanning import SCANNED_STATES, PackageState
from redflag_core.statements import Outcome, PackageOutcome, open_statement
from redflag_core.testing import START
from redflag_server.accounts.forms import MAX_CHOICES
from redflag_server.accounts.permissions import UserRole
from redflag_server.approvals.tables import Approval
from redflag_server.commands import queue
from redflag_server.commands.changes import RELEASED, RESTORED, REVOKED
from redflag_server.commands.tables import Command
from redflag_server.dashboard import package_controller, package_list_views, rendering, words
from redflag_server.dashboard.command_views import LISTED
from redflag_server.dashboard.history_views import EVENTS, KINDS_OF, Subject
from redflag_server.dashboard.package_list_views import NAMES, OPEN_STATES
from redflag_server.dashboard.pages import MAX_DETAILS
from redflag_server.packages.tables import Package
from redflag_server.plans import decisions
from redflag_server.plans.changes import DECIDED, DISCARDED, REPLACED, SCANNED
from redflag_server.plans.tables import Plan
from tests.helpers import orders
from tests.helpers.approvals import let_approve, signed
from tests.helpers.documents import read, table
from tests.helpers.fleet import package as seen_package
from tests.helpers.operators import (
    FORM,
    add_event,
    add_machine,
    add_packages,
    add_scanner,
    first_place,
    new_place,
)
from tests.helpers.pages import Text, visit
from tests.helpers.patching import DEPENDENCY, REMOVAL, new_ward

MANY = 600
"""More packages than a page shows of one state."""

HOSTILE = "<script>alert('1')</script>\"'&{{7*7}}</td>\u202e"


@pytest.fixture
async def alice(server):
    """Alice owns the installation and is signed in."""
    return await visit(server.runtime, server.client)


@pytest.fixture
async def ward(server, alice):
    """A machine that lacks three updates."""
    return await new_ward(server, "curl", "nginx", "openssl")


@pytest.fixture
async def place(server):
    """The organization that every server starts with."""
    return await first_place(server.runtime)


def machine_path(ward):
    return f"/machines/{ward.machine.agent_id}"


async def path_of(ward, name):
    return f"{machine_path(ward)}/packages/{(await ward.row(name)).id}"


async def ids(ward, *names):
    return [(await ward.row(name)).id for name in names]


async def make_plan(ward, *names, **answer):
    """Approve and plan over the API, answered by the machine; the path of its page."""
    return f"/plans/{(await ward.plan(*names, **answer))['id']}"


def missing(text, *expected):
    """What a page should say and does not."""
    return [words for words in expected if words not in text]


# --- deciding on the page of a machine ---


async def test_what_was_ticked_is_approved(ward, alice):
    """Two of three are approved; the page says so, by whom, when and why."""
    shown = await alice.do(
        f"{machine_path(ward)}/packages",
        chosen=await ids(ward, "curl", "nginx"),
        decision="approve",
        state="available",
        reason="they are tested",
    )

    assert {"curl": "approved", "nginx": "approved", "openssl": "available"} == await ward.states()
    assert "Done: nginx on machine-under-test was approved: they are tested (and 1 more like this)" in shown.text
    assert "Approved by alice just now: they are tested" in shown.text


@pytest.mark.parametrize(
    "decision,until,state,said",
    [
        ("approve", "", "approved", "Approved by alice"),
        ("reject", "", "excluded", "Rejected by alice"),
        ("exclude", "2026-02-01", "excluded", "Excluded by alice just now, until 2026-02-01"),
        ("exclude", "", "excluded", "Excluded by alice"),
        ("defer", "2026-02-01", "deferred", "Deferred by alice just now, until 2026-02-01"),
    ],
)
async def test_each_decision_is_made_and_shown(ward, alice, decision, until, state, said):
    """The word on the button is what happens, until the day that was picked."""
    shown = await alice.do(
        f"{machine_path(ward)}/packages", chosen=await ids(ward, "curl"), decision=decision, until=until
    )

    row = await ward.row("curl")
    assert (state, decision, "user:alice", "patch day") == (
        row.state, row.decision, row.decided_by, row.decision_reason
    )  # fmt: skip
    assert (f"{until}T00:00:00+00:00" if until else None) == (row.decided_until and row.decided_until.isoformat())
    assert said in shown.text


async def test_a_decision_is_taken_back(ward, alice):
    """Reopening leads to what the machine says, and no decision is left."""
    await ward.decide("reject", "curl")

    shown = await alice.do(
        f"{machine_path(ward)}/packages", chosen=await ids(ward, "curl"), decision="reopen", state="excluded"
    )

    assert ("available", None) == ((await ward.row("curl")).state, (await ward.row("curl")).decision)
    assert "Rejected" not in shown.text


async def test_all_of_a_state_are_decided_about_at_once(ward, alice):
    """The box above the table stands for all of that state, and for no other."""
    await ward.decide("reject", "nginx")

    await alice.do(f"{machine_path(ward)}/packages", decision="approve", state="available", every="yes")

    assert {"curl": "approved", "nginx": "excluded", "openssl": "approved"} == await ward.states()


async def test_a_large_decision_is_counted_to_the_last_package(server, place, alice):
    """What the page says was done is all that was done."""
    agent = await add_machine(server.runtime, place)
    await add_scanner(server.runtime, place, agent)
    await add_packages(server.runtime, place, agent, [(f"p-{number:03}", {}) for number in range(MANY)])

    shown = await alice.do(f"/machines/{agent}/packages", decision="approve", state="available", every="yes")

    assert f"(and {MANY - 1} more like this)" in shown.text


OFFERED = {
    PackageState.AVAILABLE: ["approve", "reject", "exclude", "defer"],
    PackageState.KEPT_BACK: ["approve", "reject", "exclude", "defer"],
    PackageState.HELD: ["reject", "exclude", "defer"],
    PackageState.PHASED: ["reject", "exclude", "defer"],
    PackageState.APPROVED: ["approve", "reject", "exclude", "defer", "reopen"],
    PackageState.DEFERRED: ["approve", "reject", "exclude", "defer", "reopen"],
    PackageState.EXCLUDED: ["approve", "reject", "exclude", "defer", "reopen"],
    PackageState.FAILED: ["approve", "reject", "exclude", "defer", "reopen"],
    PackageState.ROLLED_BACK: ["approve", "reject", "exclude", "defer", "reopen"],
    PackageState.NEEDS_CONFIRMATION: ["reject", "exclude", "defer", "reopen"],
    PackageState.UNKNOWN: ["reject", "exclude", "defer"],
    PackageState.INSTALLED: ["reject", "exclude", "reopen"],
    PackageState.CURRENT: ["reject", "exclude"],
    PackageState.PLANNING: [],
    PackageState.INSTALLING: [],
    PackageState.REBOOT_PENDING: ["reopen"],
}


@pytest.mark.parametrize("state", OFFERED)
async def test_only_what_is_possible_is_offered(server, place, alice, state):
    """Each state has its buttons, on the machine's page and on the package's own; while it is busy, none."""
    agent = await add_machine(server.runtime, place)
    await add_scanner(server.runtime, place, agent, status="failed" if state == PackageState.UNKNOWN else "ok",
                      error="x" if state == PackageState.UNKNOWN else None)  # fmt: skip
    await add_packages(server.runtime, place, agent, [("bash", {"state": state})])
    package = await server.row(Package)

    of_machine = await alice.open(f"/machines/{agent}?current=true")
    own = await alice.open(f"/machines/{agent}/packages/{package.id}")

    assert OFFERED[state] == of_machine.buttons == own.buttons
    assert len(of_machine.all("input", name="chosen")) == bool(OFFERED[state])


def test_every_state_that_a_page_shows_has_its_buttons():
    """The list above leaves out what is gone, and nothing else."""
    assert set(PackageState) - set(OFFERED) == {PackageState.NOT_APPLICABLE}


async def test_a_decision_without_a_reason_comes_back_with_what_was_typed(ward, alice):
    """The same page, a sentence, the ticks and the day; it waits without refreshing, and nothing has changed."""
    before = await ward.server.dump()

    shown = await alice.fail(
        f"{machine_path(ward)}/packages",
        400,
        chosen=await ids(ward, "curl"),
        decision="defer",
        state="available",
        until="2026-02-01",
        reason=" ",
    )

    assert "Say in one line why: it goes into the history." in shown.text
    assert [str((await ward.row("curl")).id)] == [box["value"] for box in shown.all("input", checked=None)
                                                  if "checked" in box]  # fmt: skip
    (until,) = shown.all("input", id="until-decide-available")
    assert "2026-02-01" == until["value"]
    (live,) = shown.all("div", id="live")
    assert ("0", machine_path(ward)) == (live["data-refresh-seconds"], live["data-refresh-url"])
    assert 1 == len(shown.all("div", role="alert"))
    assert before == await ward.server.dump()


@pytest.mark.parametrize(
    "fields,sentence",
    [
        ({"chosen": []}, "Choose at least one package"),
        ({"chosen": ["x"]}, "What was chosen is no package"),
        ({"decision": "explode"}, "Press one of the buttons"),
        ({"decision": "defer"}, "Until is missing: say until when it is deferred"),
        ({"decision": "defer", "until": "2025-12-31"}, "Until is not within the next five years"),
        ({"decision": "defer", "until": "soon"}, "Pick a day, or write it like 2026-01-31"),
        ({"decision": "approve", "until": "2026-02-01"}, "Until has no meaning for approve"),
        ({"reason": "x" * 501}, "Say in one line why"),
        ({"state": "nope", "every": "yes", "chosen": []}, "State is one of"),
    ],
)
async def test_every_mistake_is_a_sentence_on_the_same_page(ward, alice, fields, sentence):
    """Nothing that can be typed leads to a dead end or changes anything."""
    before, chosen = await ward.server.dump(), fields.pop("chosen", await ids(ward, "curl"))
    form = {"decision": "approve", "state": "available", **fields}

    shown = await alice.fail(f"{machine_path(ward)}/packages", 400, chosen=chosen, **form)

    assert sentence in shown.text
    assert "machine-under-test" in shown.text
    assert before == await ward.server.dump()


async def test_what_was_not_possible_is_named_with_the_reason(server, place, alice):
    """Of what was ticked, what can be done is done; the rest is listed, with what to do about each."""
    agent = await add_machine(server.runtime, place)
    await add_scanner(server.runtime, place, agent)
    held = [(f"held-{number}", {"state": PackageState.HELD}) for number in range(MAX_DETAILS + 2)]
    await add_packages(server.runtime, place, agent, [("free", {}), *held])
    chosen = [row.id for row in await server.rows(Package)]

    shown = await alice.fail(f"/machines/{agent}/packages", 409, chosen=chosen, decision="approve")

    assert f"Done for 1, not for {MAX_DETAILS + 2}. These stay as they are, and 2 more:" in shown.text
    assert "held-0: a package that is held" in shown.text
    assert MAX_DETAILS == len(re.findall(r"cannot be approved: release it on the machine itself", shown.text))
    assert "approved" == (await server.row(Package, Package.name == "free")).state


async def test_a_form_has_a_bound(ward, alice):
    """More ticks than any page has are refused."""
    chosen = range(MAX_CHOICES + 30)

    answer = await alice.send(f"{machine_path(ward)}/packages", chosen=chosen, reason="x", decision="approve")

    assert 400 == answer.status_code
    assert "this is not a form" in answer.text.lower()


# --- planning ---


async def test_approved_updates_are_planned_from_the_page_of_the_machine(ward, alice):
    """One button plans all that is approved; it leads to the plan, which waits for the machine."""
    nothing = await alice.open(machine_path(ward))
    await ward.decide("approve", "curl", "nginx")
    offered = await alice.open(machine_path(ward))

    shown = await alice.do(f"{machine_path(ward)}/plans")

    assert "not in a plan" not in nothing.text
    assert "2 approved updates are not in a plan" in offered.text
    assert [] == missing(shown.text, "Plan for 2 packages", "planning", "curl", "nginx", "The machine works out")
    assert {"curl": "planning", "nginx": "planning", "openssl": "available"} == await ward.states()


async def test_planning_nothing_is_a_sentence(ward, alice):
    """When nothing is approved any more, the page says what to do."""
    shown = await alice.fail(f"{machine_path(ward)}/plans", 409, reason="too late")

    assert "approve packages first" in shown.text


async def test_what_a_plan_leaves_out_is_said(server, place, alice):
    """A package whose name cannot be part of a command does not stop the others, and is named."""
    agent = await add_machine(server.runtime, place)
    await add_scanner(server.runtime, place, agent)
    approved = {"state": PackageState.APPROVED}
    await add_packages(server.runtime, place, agent, [("curl", approved), ("bash-", approved)])

    answer = await alice.send(f"/machines/{agent}/plans", reason="patch day")

    shown = Text(answer.text)
    assert 200 == answer.status_code
    assert "Planned, but not everything. 1 cannot be planned now:" in shown.text
    assert "bash-" in shown.text
    assert "Plan for 1 package" in shown.text


async def test_one_package_is_decided_about_and_planned_on_its_own_page(ward, alice):
    """Approve, then plan: each on the page of the package, with its timeline below."""
    path = await path_of(ward, "curl")
    approved = await alice.do(path, decision="approve", reason="it is tested")
    planned = await alice.do(f"{path}/plan")
    again = await alice.open(path)

    assert [] == missing(
        approved.text, "curl", "approved", "Approved by alice", "it is tested", "Plan this update"
    )
    assert "Plan for 1 package" in planned.text
    assert [] == missing(again.text, "planning", "is being planned", "was approved: it is tested by alice")
    assert again.text.index("is being planned") < again.text.index("was approved: it is tested")


async def test_a_mistake_on_a_package_stays_on_its_page(ward, alice):
    """Without a reason, and when the package is busy by now."""
    path = await path_of(ward, "curl")
    without = await alice.fail(path, 400, decision="approve", reason="")
    unplanned = await alice.fail(f"{path}/plan", 409)
    await ward.decide("approve", "curl")
    await ward.order_plan("curl")
    busy = await alice.fail(path, 409, decision="approve")

    assert "Say in one line why" in without.text
    assert "only approved packages can be planned" in unplanned.text
    assert "a package that is planning cannot be approved: wait for its plan, or discard the plan" in busy.text
    assert all(page.all("a", href=machine_path(ward)) for page in (without, unplanned, busy))


# --- a package ---


async def test_a_package_shows_all_that_is_known_of_it(server, place, alice):
    """Versions, origin, source, size, vulnerabilities, the decision, and why the state is what it is."""
    agent = await add_machine(server.runtime, place)
    await add_scanner(server.runtime, place, agent)
    decided = {
        "decision": "defer",
        "decided_by": "api-key:nightly",
        "decided_at": START - timedelta(days=2),
        "decided_until": START + timedelta(days=40),
        "decision_reason": "not before the migration",
    }
    about = {
        "installed": "3.0.15",
        "available": "3.0.16",
        "security": True,
        "origin": "Debian-Security",
        "source": "openssl",
        "source_version": "3.0.15-1",
        "download_size": 1_434_120,
        "cves": ["CVE-2024-13176"],
        "state_reason": "put off by hand",
        "automatic": True,
    }
    await add_packages(
        server.runtime, place, agent, [("libssl3", {"state": PackageState.DEFERRED, **about, **decided})]
    )
    package = await server.row(Package)

    shown = (await alice.open(f"/machines/{agent}/packages/{package.id}")).text

    expected = (
        "libssl3",
        "deferred",
        "Somebody put the update off",
        "3.0.15",
        "3.0.16",
        "Debian-Security",
        "1.4 MB",
        "openssl 3.0.15-1",
        "CVE-2024-13176",
        "put off by hand",
        "other packages need it",
        "Deferred by API key nightly 2 days ago, until 2026-02-10",
        "not before the migration",
        "Nothing has happened to it yet",
    )
    assert [] == missing(shown, *expected)


async def test_the_timeline_of_a_package_has_pages(ward, alice):
    """Newest first, and only what is about this package."""
    for number in range(EVENTS):
        decision = "reject" if number % 2 else "approve"
        await ward.decide(decision, "curl", reason=f"reason {number}")
    await ward.decide("approve", "curl", "nginx", reason="the last one")
    path = await path_of(ward, "curl")

    first = await alice.open(path)
    (following,) = first.all("a", rel="next")
    second = await alice.open(following["href"])

    assert "curl on machine-under-test was approved: the last one" in first.text
    assert "nginx" not in first.text
    assert "reason 0 by" not in first.text
    assert "reason 0 by API key test" in second.text
    assert path in second.links


async def test_a_package_is_found_under_its_machine_only(server, place, ward, alice):
    """An id of another machine in the path is no page, and nothing is decided."""
    other, package = await add_machine(server.runtime, place, "other"), await ward.row("curl")

    await alice.open(f"/machines/{other}/packages/{package.id}", 404)
    await alice.fail(f"/machines/{other}/packages/{package.id}", 404, decision="approve")
    await alice.fail(f"/machines/{other}/packages/{package.id}/plan", 404)

    assert "available" == (await ward.row("curl")).state


# --- a plan ---


async def test_a_plan_is_looked_at_confirmed_installed_and_followed_to_its_end(ward, alice):
    """The whole way on the pages: what nobody asked for, why somebody must look, progress, result, proof."""
    path = await make_plan(ward, "curl", "openssl", extra=[DEPENDENCY])
    looked_at = await alice.open(path)
    confirmed = await alice.do(f"{path}/confirm", reason="the library is fine")
    ordered = await alice.do(f"{path}/install", reason="now is a good time")
    cmd_id, params = await ward.take(CommandType.PACKAGES_UPGRADE)
    await ward.machine.progress(
        ward.server.client, cmd_id, doing="unpacking openssl", percent=42, lines=("Unpacking",)
    )
    moving = await alice.open(path)
    of_machine = await alice.open(machine_path(ward))

    assert [] == missing(
        looked_at.text,
        "needs confirmation",
        "1 change that nobody asked for",
        "3 changes, 1 of them nobody",
        "Not on the machine yet: 1 package",
        "lib-new",
        "To a newer version: 2 packages",
        "1.0 kB",
        "nobody asked for this",
        params.plan_hash,
    )
    assert {f"{path}/confirm", f"{path}/discard"} == looked_at.actions
    assert "Done:" in confirmed.text
    assert {f"{path}/install", f"{path}/discard"} == confirmed.actions
    assert set() == ordered.actions
    for page in (moving, of_machine):
        assert [] == missing(page.text, "installing", "running", "unpacking openssl", "42 %")
        assert ["42"] == [bar["value"] for bar in page.all("progress")]
        assert ["2"] == [tag["data-refresh-seconds"] for tag in page.all("p") if "data-refresh-seconds" in tag]
    assert "Unpacking" in moving.text

    ward.server.clock.advance(95)
    result = {
        "exit_status": 0,
        "output": "Setting up openssl ...",
        "output_bytes": 100_000,
        "reboot_required": True,
        "reboot_by": ("libc6",),
        "started_at": int(START.timestamp()),
    }
    from redflag_core.statements import PackageResult

    results = tuple(
        PackageResult(name=each.name, arch=each.arch, outcome=PackageOutcome.INSTALLED, installed="2.0")
        for each in params.packages
    )
    await ward.end(cmd_id, packages=results, **result)
    done = await alice.open(path)

    assert [] == missing(
        done.text,
        "The machine carried it out",
        "1 min 35 s",
        "required",
        "by libc6",
        "installed",
        "Setting up openssl",
        "the end of 100 kB",
        "What was ordered to be changed",
    )
    assert set() == done.actions
    assert not [tag for tag in done.all("p") if "data-refresh-seconds" in tag]
    await _statements_are_proof(ward, alice, done)


async def _statements_are_proof(ward, alice, page):
    """What can be downloaded is what the executor signed, and the page has what it takes to verify it."""
    downloads = [link["href"] for link in page.all("a") if "download" in link]
    key = VerifyKey(b64decode(re.search(r"public key (\S+) \(key id", page.text)[1]))
    kinds = set()
    for href in downloads:
        answer = await alice.client.get(href)
        statement = open_statement(answer.content, key, server=ward.machine.server, agent_id=ward.machine.agent_id)
        kinds.add(type(statement).__name__)
        assert answer.headers["content-disposition"].startswith("attachment; filename=")
    assert {"CommandAccepted", "CommandResult"} == kinds
    assert 4 == len(downloads)  # of the plan and of the installation


BEYOND = [
    REMOVAL,
    Change(name="older", arch="amd64", before="2.0", after="1.0", downgrade=True),
    Change(name="mine", arch="amd64", before="1.0", after="2.0", origin="ours"),
]


@pytest.mark.parametrize(
    "standing, why, badge",
    [
        ({"authenticated": False}, "signature is not checked", "signature not checked"),
        ({"held": True}, "owner holds", "held on the machine"),
    ],
    ids=["unsigned", "held"],
)
async def test_what_no_approval_allows_is_not_offered(ward, alice, standing, why, badge):
    """The page says why, and that the machine will refuse it whoever approves it; it can be discarded."""
    odd = attrs.evolve(BEYOND[2], **standing)
    path = await make_plan(ward, "curl", extra=[*BEYOND[:2], odd])

    shown = await alice.open(path)

    assert [] == missing(
        shown.text,
        "This goes beyond a routine update",
        why,
        "No approval stands in for the signature of a repository, or for the word of the machine's owner",
        badge,
    )
    assert {f"{path}/discard"} == shown.actions
    assert [] == [link for link in shown.links if link.endswith("approval-request")]
    kinds = [tag["id"] for tag in shown.all("h3")]
    assert ["kind-remove", "kind-downgrade", "kind-upgrade"] == kinds


async def test_what_goes_beyond_a_routine_update_is_approved_step_by_step(ward, alice):
    """Why, what to do, the file to take away, the answer to bring, who approved it; then it can be installed."""
    await let_approve(ward.server)
    path = await make_plan(ward, "curl", extra=BEYOND)
    shown = await alice.open(path)
    assert [] == missing(
        shown.text,
        "it would remove packages",
        "to older versions",
        "only with the signature of an operator",
        "redflag approve approval-request.json --key",
        "Removed from the machine: 1 package",
        "To an older version: 1 package",
        "ours",
    )
    assert {f"{path}/approve", f"{path}/confirm", f"{path}/discard"} == shown.actions
    confirmed = await alice.do(f"{path}/confirm", reason="all of that")
    assert {f"{path}/approve", f"{path}/discard"} == confirmed.actions

    (link,) = [link for link in shown.links if link.endswith("approval-request")]
    download = await alice.client.get(link)
    assert 'attachment; filename="approval-request.json"' == download.headers["content-disposition"]
    answer = signed(ward.server, download.content)
    pasted = json.dumps(answer, indent=1).replace("\n", "\r\n")
    approved = await alice.do(f"{path}/approve", approval=pasted)

    assert [] == missing(approved.text, "Approved by alice until 2026-01-", "Done: alice approved 1 command")
    assert {f"{path}/install", f"{path}/discard"} == approved.actions
    assert "installing" in (await alice.do(f"{path}/install", reason="now")).text


@pytest.mark.parametrize("approval", ["", "nonsense", "{}", "\u202e"])
async def test_what_is_no_approval_comes_back_to_the_page(ward, alice, approval):
    """With a sentence, and the field to try again; nothing is stored."""
    path = await make_plan(ward, "curl", extra=BEYOND)

    shown = await alice.fail(f"{path}/approve", 400, approval=approval)

    assert "That did not work" in shown.text
    assert f"{path}/approve" in shown.actions
    assert [] == await ward.server.rows(Approval)


async def test_an_approval_by_a_stranger_comes_back_to_the_page(ward, alice):
    """It says which keys there are for, and not that one should sign in."""
    path = await make_plan(ward, "curl", extra=BEYOND)
    answer = signed(ward.server, (await alice.client.get(f"{path}/approval-request")).content)
    known = await alice.fail(f"{path}/approve", 400, approval=json.dumps(answer))
    answer["leaves"][0]["agent_id"] = "01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4eff"
    other = await alice.fail(f"{path}/approve", 400, approval=json.dumps(answer))

    assert "not signed by a live operator key" in known.text
    assert "machines that are not here" in other.text


async def test_who_may_only_look_is_not_asked_for_an_approval(server, ward, alice):
    """A viewer sees that one is needed, and takes the request away; bringing an answer is for others."""
    path = await make_plan(ward, "curl", extra=BEYOND)
    viewer = await visit(server.runtime, server.client, "vera", UserRole.VIEWER)

    shown = await viewer.open(path)

    assert "only with the signature of an operator" in shown.text
    assert set() == shown.actions
    assert 200 == (await viewer.client.get(f"{path}/approval-request")).status_code
    assert 403 == (await viewer.send(f"{path}/approve", approval="{}")).status_code


async def test_what_was_done_is_said_until_something_newer_happened(ward, alice):
    """The page says what was just done for two minutes, and no more when the machine has answered."""
    path = await make_plan(ward, "curl")
    ordered = await alice.do(f"{path}/install", reason="now")
    ward.server.clock.advance(1)
    await ward.answer_install(Outcome.FAILED, PackageOutcome.FAILED)
    failed = await alice.open(f"{path}?done=true")
    machine = await alice.open(f"{machine_path(ward)}?done=true")
    ward.server.clock.advance(120)
    later = await alice.open(f"{machine_path(ward)}?done=true")

    said = [bool(page.all("div", role="status")) for page in (ordered, failed, machine, later)]
    assert [True, False, True, False] == said


async def test_a_plan_is_discarded(ward, alice):
    """Its packages stay approved, and the page says that it holds no more."""
    path = await make_plan(ward, "curl")

    shown = await alice.do(f"{path}/discard", reason="not today")

    assert [] == missing(shown.text, "dropped", "Somebody did not want it", "not today", "Plan anew to go on")
    assert set() == shown.actions
    assert "approved" == (await ward.row("curl")).state


async def test_what_a_plan_does_not_allow_comes_back_to_its_page(ward, alice):
    """Somebody else was faster: the page shows what is so now, and what was typed."""
    path = await make_plan(ward, "curl")
    without = await alice.fail(f"{path}/install", 400, reason="")
    twice = await alice.fail(f"{path}/confirm", 409, reason="I looked")
    await alice.do(f"{path}/install")
    late = await alice.fail(f"{path}/discard", 409, reason="changed my mind")

    assert "Say in one line why" in without.text
    assert "only one that is needs confirmation can be confirmed" in twice.text
    assert "this plan is being installed" in late.text.lower()
    assert "installing" in late.text


async def test_a_failed_installation_says_what_the_package_manager_said(ward, alice):
    """Outcome for each package, exit status, and its output, open to read."""
    path = await make_plan(ward, "curl", "openssl")
    await ward.install({"id": path.removeprefix("/plans/")})
    outcomes = {"curl": PackageOutcome.FAILED, "openssl": PackageOutcome.INSTALLED}
    output = "dpkg: error processing package curl (--configure)"

    await ward.answer_install(Outcome.FAILED, outcomes, exit_status=-9, output=output, output_bytes=len(output))
    shown = await alice.open(path)
    package = await alice.open(await path_of(ward, "curl"))

    assert [] == missing(
        shown.text,
        "It did not work",
        "not everything that was ordered is installed",
        "it did not work",
        "-9",
        "ended by signal 9",
        output,
    )
    assert "open" in shown.all("details")[0]
    assert "failed" in package.text


async def test_a_package_that_changed_since_is_named(ward, alice):
    """When a newer version appears, the page says beforehand that the machine will refuse the plan."""
    path = await make_plan(ward, "curl")
    newer = seen_package("curl", PackageState.AVAILABLE)
    await ward.scan(newer.__class__(**{**{f: getattr(newer, f) for f in ("name", "arch", "installed", "state")},
                                       "available": "3.0"}))  # fmt: skip

    shown = await alice.open(path)

    assert "Since it was planned, 3.0 is available by now. The machine will refuse the plan." in shown.text


async def test_plans_are_listed_and_narrowed_down(ward, alice):
    """All plans, newest first; by state; and a word where there is none."""
    nothing = await alice.open("/plans")
    confirm = await make_plan(ward, "curl", extra=[DEPENDENCY])
    ready = await make_plan(ward, "nginx")

    every = await alice.open("/plans?state=")
    one = await alice.open("/plans?state=needs_confirmation")
    none = await alice.open("/plans?state=failed")

    assert "No plan yet" in nothing.text
    assert [ready, confirm] == [link for link in every.links if link.startswith("/plans/")]
    assert [confirm] == [link for link in one.links if link.startswith("/plans/")]
    assert "No plan like this" in none.text
    await alice.open("/plans?state=nope", 400)


# --- commands ---


async def test_commands_that_have_not_ended_come_first(server, place, alice):
    """Then those that have, newest first; each with its machine, who ordered it and why."""
    agent = await add_machine(server.runtime, place)
    ended = await orders.order(server, agent, reason="the first")
    await orders.act(server, queue.cancel, ended, "a mistake")
    live = await orders.order(server, agent, reason="the second")

    shown = await alice.open("/commands")

    assert [f"/commands/{live}", f"/commands/{ended}"] == [link for link in shown.links if "/commands/" in link]
    assert [] == missing(
        shown.text,
        "Not ended",
        "Scan: everything",
        "waiting",
        "the second",
        "web-01",
        "Ended",
        "cancelled",
        "the first",
        "by alice",
    )


@pytest.mark.parametrize(
    "query,found",
    [
        ("", ["late", "fine", "gone"]),
        ("state=", ["late", "fine", "gone"]),
        ("state=pending", ["late", "fine"]),
        ("state=cancelled", ["gone"]),
        ("state=failed", []),
        ("overdue=true", ["late"]),
        ("overdue=true&state=cancelled", []),
    ],
)
async def test_commands_are_narrowed_down(server, place, alice, query, found):
    """By state and by whether they take too long."""
    agent = await add_machine(server.runtime, place)
    names = {}
    for name, kind in (("late", orders.SCAN), ("fine", orders.HEARTBEAT)):
        names[await orders.order(server, agent, kind)] = name
    gone = await orders.order(server, await add_machine(server.runtime, place, "db-01"))
    await orders.act(server, queue.cancel, gone)
    names[gone] = "gone"
    async with server.runtime.database.write() as session:
        late = next(command for command, name in names.items() if name == "late")
        (await session.get_one(Command, late)).overdue_at = server.clock.now()

    shown = await alice.open(f"/commands?{query}")

    links = [link.removeprefix("/commands/") for link in shown.links if "/commands/" in link]
    assert found == [names[command] for command in map(type(gone), links)]


async def test_commands_of_one_machine(server, place, alice):
    """The filter names the machine; one that there is not is not found."""
    web, db = await add_machine(server.runtime, place), await add_machine(server.runtime, place, "db-01")
    await orders.order(server, web)
    of_db = await orders.order(server, db)

    shown = await alice.open(f"/commands?agent_id={db}")

    assert [f"/commands/{of_db}"] == [link for link in shown.links if "/commands/" in link]
    assert "Only those of db-01" in shown.text
    await alice.open("/commands?agent_id=00000000-0000-0000-0000-000000000001", 404)


async def test_many_commands_have_pages(server, place, alice):
    """No page holds more than its bound, and archived ones are left out."""
    agent = await add_machine(server.runtime, place)
    for number in range(LISTED + 2):
        command = await orders.order(server, agent, reason=f"number {number:02}")
        await orders.act(server, queue.cancel, command)
    await orders.act(server, queue.archive, command)

    first = await alice.open("/commands?state=cancelled")
    (following,) = first.all("a", rel="next")
    second = await alice.open(following["href"])

    assert [LISTED, 1] == [len(set(re.findall(r"number \d\d", page.text))) for page in (first, second)]
    assert "number 00" in second.text
    assert f"number {LISTED + 1}" not in first.text
    assert "state=cancelled" in following["href"]


@pytest.mark.parametrize("query", ["state=pending", "overdue=true"])
async def test_many_commands_that_have_not_ended_have_pages(server, place, alice, query):
    """Every one can be looked at; the list of all says that it shows only the oldest."""
    for number in range(LISTED + 2):
        agent = await add_machine(server.runtime, place, f"m-{number}")
        await orders.order(server, agent, reason=f"number {number:02}")
    async with server.runtime.database.write() as session:
        await session.execute(update(Command).values(overdue_at=server.clock.now()))

    every = await alice.open("/commands")
    first = await alice.open(f"/commands?{query}")
    (following,) = first.all("a", rel="next")
    second = await alice.open(following["href"])

    assert "There are more: these are the oldest. Choose a state to see all." in every.text
    assert "these are the oldest" not in first.text
    assert [LISTED, 2] == [len(set(re.findall(r"number \d\d", page.text))) for page in (first, second)]


async def test_an_empty_list_of_commands_says_how_there_will_be_some(server, alice):
    """A new server has none; a filter that fits nothing says so."""
    assert "No command yet" in (await alice.open("/commands")).text
    assert "No command like this" in (await alice.open("/commands?state=failed")).text
    await alice.open("/commands?state=nope", 400)


async def test_a_command_that_nobody_was_given_is_cancelled(server, place, alice):
    """At once, and then it can be tried again, or archived."""
    agent = await add_machine(server.runtime, place)
    path = f"/commands/{await orders.order(server, agent, reason='to see more')}"
    before = await alice.open(path)
    after = await alice.do(f"{path}/cancel", reason="not needed")
    again = await alice.do(f"{path}/retry", reason="needed after all")
    archived = await alice.do(f"{path}/archive", reason="tidy")

    assert [] == missing(before.text, "Scan: everything", "waiting", "to see more", "by alice", "in 7 days",
                  "it is cancelled at once and never started")  # fmt: skip
    assert {f"{path}/cancel"} == before.actions
    assert [] == missing(after.text, "Done:", "cancelled", "not needed")
    assert {f"{path}/retry", f"{path}/archive"} == after.actions
    assert [] == missing(again.text, "waiting", "needed after all", "an earlier command")
    assert [] == missing(archived.text, "archived", "a later command")
    assert {f"{path}/retry"} == archived.actions


async def test_a_command_that_was_handed_out_is_cancelled_by_the_machine_only(ward, alice):
    """The page says so before, asks the machine, and offers to stop waiting for it."""
    path = await make_plan(ward, "curl")
    await ward.install({"id": path.removeprefix("/plans/")})
    cmd_id, _ = await ward.take(CommandType.PACKAGES_UPGRADE)
    url = f"/commands/{cmd_id}"

    before = await alice.open(url)
    asked = await alice.do(f"{url}/cancel", reason="too early")
    released = await alice.do(f"{url}/release", reason="the machine is gone")

    assert [] == missing(
        before.text,
        "accepted",
        "nothing here stops a package manager halfway",
        "Ask the machine to cancel",
        "a late result still counts",
        "1 package it is about",
    )
    assert {f"{url}/cancel", f"{url}/release"} == before.actions
    assert "The machine was asked to cancel it" in asked.text
    assert {f"{url}/release"} == asked.actions
    assert [] == missing(released.text, "cancelled", "Somebody stopped waiting", "the machine is gone")


async def test_what_a_command_does_not_allow_comes_back_to_its_page(server, place, alice):
    """Without a reason, or when it ended meanwhile."""
    agent = await add_machine(server.runtime, place)
    path = f"/commands/{await orders.order(server, agent)}"
    without = await alice.fail(f"{path}/cancel", 400, reason="")
    early = await alice.fail(f"{path}/archive", 409, reason="tidy")
    await orders.act(server, queue.cancel, path.removeprefix("/commands/"))
    late = await alice.fail(f"{path}/release", 409, reason="tidy")

    assert "Say in one line why" in without.text
    assert "only what ended can be archived" in early.text
    assert "it is cancelled" in late.text
    await alice.fail(f"{path}/explode", 404)


async def test_a_scan_is_ordered_from_the_page_of_a_machine(server, place, alice):
    """A machine that takes part can be asked to scan; again, it is the same command."""
    agent = await add_machine(server.runtime, place)
    path = f"/machines/{agent}/scan"

    shown = await alice.do(path, reason="after the maintenance")
    await alice.do(path, reason="impatient")
    wrong = await alice.fail(path, 400, reason="")

    assert [] == missing(shown.text, "Scan: everything", "after the maintenance", "waiting")
    assert 1 == len(await server.rows(Command))
    assert "Say in one line why" in wrong.text


# --- the whole fleet ---


async def test_the_numbers_of_the_fleet_lead_to_what_they_count(server, place, alice):
    """Each number is a link to a list in which exactly as many are counted, an approved hole still being one."""
    agent = await add_machine(server.runtime, place)
    await add_scanner(server.runtime, place, agent)
    secure, states = {"security": True}, PackageState
    packages = [
        ("a", secure),
        ("b", {}),
        ("c", {"state": states.HELD}),
        ("d", {"state": states.KEPT_BACK, **secure}),
        ("e", {"state": states.PHASED}),
        ("f", {"state": states.UNKNOWN, **secure}),
        ("g", {"state": states.APPROVED, **secure}),
        ("h", {"state": states.FAILED}),
    ]
    await add_packages(server.runtime, place, agent, packages)

    fleet = await alice.open("/")
    counted = {}
    for link in fleet.all("a"):
        if link["href"].startswith("/packages?"):
            found = (await alice.open(link["href"])).all("a", **{"class": "name"})
            counted[link["href"]] = len(found)

    assert {
        "/packages?security=true": 3,
        "/packages?state=available": 2,
        "/packages?state=approved": 1,
        "/packages?state=held&state=kept_back&state=phased": 3,
        "/packages?state=unknown": 1,
        "/packages?state=failed": 1,
    } == counted
    assert [] == missing(
        fleet.text, "Security updates 3", "Available 2", "1 more approved", "Not now 3", "Unknown 1"
    )


async def test_what_needs_somebody_is_on_top(server, ward, alice):
    """Plans to confirm and to install, failed updates, late commands: each number is a link to them."""
    quiet = await alice.open("/")
    await ward.install(await ward.plan("openssl"))
    await ward.answer_install(Outcome.FAILED, PackageOutcome.FAILED)
    await make_plan(ward, "curl", extra=[DEPENDENCY])
    await make_plan(ward, "nginx")
    command = await orders.order(server, ward.machine.agent_id)
    async with server.runtime.database.write() as session:
        (await session.get_one(Command, command)).overdue_at = server.clock.now()

    busy = await alice.open("/")

    assert "Needs you" not in quiet.text
    assert [] == missing(
        busy.text, "Needs you: 1 plan to confirm 1 plan to install 1 failed update 1 overdue command"
    )
    for link in (
        "/plans?state=needs_confirmation",
        "/plans?state=ready",
        "/packages?state=failed",
        "/commands?overdue=true",
    ):
        assert link in busy.links
        assert 1 == len((await alice.open(link)).all("a", **{"class": "name"}))


async def test_packages_are_listed_by_name_over_all_machines(server, place, alice):
    """How many machines lack each, in which states; those with security updates first, then by name."""
    web, db = await add_machine(server.runtime, place), await add_machine(server.runtime, place, "db-01")
    gone = await add_machine(server.runtime, place, "gone", status="revoked")
    for agent in (web, db, gone):
        await add_packages(server.runtime, place, agent, [("bash", {}), ("zlib", {"security": agent == db})])
    await add_packages(server.runtime, place, web, [("held", {"state": PackageState.HELD}),
                                                    ("fine", {"state": PackageState.CURRENT})])  # fmt: skip

    shown = await alice.open("/packages")

    names = [re.search(r"name=(\w+)", link["href"])[1] for link in shown.all("a", **{"class": "name"})]
    assert ["zlib", "bash", "held"] == names
    assert "zlib apt 2 machines 1 security update 2 available 1.1-1" in shown.text
    assert "held apt 1 machine 1 held" in shown.text


async def test_a_package_leads_to_the_machines_that_lack_it(server, place, alice):
    """Each with its state, version and decision, and a link to the package there."""
    web = await add_machine(server.runtime, place)
    await add_packages(server.runtime, place, web, [("bash", {"available": "5.3"}), ("other", {})])
    package = await server.row(Package, Package.name == "bash")

    shown = await alice.open("/packages/machines?manager=apt&name=bash")
    nothing = await alice.open("/packages/machines?manager=apt&name=nope")

    assert f"/machines/{web}/packages/{package.id}" in shown.links
    assert [] == missing(shown.text, "bash", "web-01", "available", "5.3")
    assert "other" not in shown.text
    assert "Nothing is open" in nothing.text
    await alice.open("/packages/machines?name=bash", 400)


async def test_many_packages_have_pages(server, place, alice):
    """Pages follow the order: nothing is skipped, nothing shown twice, and the filter is kept."""
    agent = await add_machine(server.runtime, place)
    names = [(f"p-{number:03}", {"security": number % 2 == 0}) for number in range(2 * NAMES + 1)]
    await add_packages(server.runtime, place, agent, names)
    path, found = "/packages?name=p-", []
    for _ in range(3):
        page = await alice.open(path)
        found += re.findall(r"p-\d{3}(?= apt)", page.text)
        path = next(iter(page.all("a", rel="next")), {"href": ""})["href"]

    expected = [name for name, _ in names[::2]] + [name for name, _ in names[1::2]]
    assert expected == found
    assert "" == path


@pytest.mark.parametrize(
    "cursor",
    ["x", "AAAA", "W10", "WzEsMiwzXQ", "bnVsbA", "W3RydWUsImEiLCJiIl0", "WzIsImEiLCJiIl0", "Wy0xLCJhIiwiYiJd"],
)
async def test_a_cursor_that_means_nothing_is_refused(server, alice, cursor):
    """Not base64, not JSON, a list of other things: a sentence, no error of the server."""
    await alice.open(f"/packages?cursor={cursor}", 400)


async def test_packages_are_approved_on_every_machine_on_which_that_is_possible(server, place, alice):
    """What is held somewhere stays held, other organizations and other packages are left alone."""
    web, db = await add_machine(server.runtime, place), await add_machine(server.runtime, place, "db-01")
    await add_packages(server.runtime, place, web, [("bash", {}), ("curl", {})])
    await add_packages(
        server.runtime, place, db, [("bash", {"state": PackageState.HELD}), ("curl", {}), ("vim", {})]
    )

    shown = await alice.do("/packages", chosen=["apt:bash", "apt:curl"], decision="approve", reason="a bad bug")

    states = sorted((row.name, row.state) for row in await server.rows(Package))
    assert [("bash", "approved"), ("bash", "held"), ("curl", "approved"), ("curl", "approved"),
            ("vim", "available")] == states  # fmt: skip
    assert "(and 2 more like this)" in shown.text


async def test_a_decision_over_a_large_fleet_is_made_in_parts(server, place, alice, monkeypatch):
    """What is held or was rejected stays so and hides none of the others; the page counts all that was decided."""
    monkeypatch.setattr(package_list_views, "ROWS", 2)
    monkeypatch.setattr(decisions, "MAX_AT_ONCE", 2)
    held = {"state": PackageState.HELD}
    excluded = {"state": PackageState.EXCLUDED, "decision": "reject"}
    for number, columns in enumerate([held, held, {}, excluded, {}, {}, {}, {}]):
        agent = await add_machine(server.runtime, place, f"web-{number}")
        await add_packages(server.runtime, place, agent, [("bash", columns)])

    shown = await alice.do("/packages", chosen=["apt:bash"], decision="approve", reason="a bad bug")

    states = Counter(row.state for row in await server.rows(Package))
    assert {"held": 2, "excluded": 1, "approved": 5} == states
    assert "(and 4 more like this)" in shown.text


async def test_a_decision_about_too_much_changes_nothing(server, place, alice, monkeypatch):
    """Somebody waits for the page: beyond a bound it says to choose fewer."""
    monkeypatch.setattr(decisions, "MAX_IN_TURN", 1)
    monkeypatch.setattr(package_controller, "MAX_IN_TURN", 1)
    for name in ("web", "db"):
        agent = await add_machine(server.runtime, place, name)
        await add_packages(server.runtime, place, agent, [("bash", {})])

    refused = await alice.fail("/packages", 409, chosen=["apt:bash"], decision="approve")

    assert "These are more than 1 packages: choose fewer; nothing was decided" in refused.text
    assert ["available"] * 2 == [row.state for row in await server.rows(Package)]


async def test_a_decision_over_the_fleet_that_is_possible_nowhere_is_a_sentence(server, place, alice):
    """Nothing ticked, nothing possible, nothing known: the list is shown again, with what was ticked."""
    agent = await add_machine(server.runtime, place)
    await add_packages(server.runtime, place, agent, [("bash", {"state": PackageState.HELD})])

    empty = await alice.fail("/packages", 400, decision="approve")
    nowhere = await alice.fail("/packages", 409, chosen=["apt:bash"], decision="approve")
    unknown = await alice.fail("/packages", 409, chosen=["x"], decision="approve")

    assert "Choose at least one package" in empty.text
    assert "What you chose can be approved on no machine now" in nowhere.text
    assert ["apt:bash"] == [box["value"] for box in nowhere.all("input", name="chosen") if "checked" in box]
    assert "on no machine now" in unknown.text


async def test_a_person_of_one_organization_decides_about_its_own_machines(server, place):
    """The same name on a machine of another client is not touched, and not counted."""
    other = await new_place(server.runtime, "B")
    bert = await visit(server.runtime, server.client, "bert", organization_id=other.organization_id)
    for where, name in ((place, "of-a"), (other, "of-b")):
        agent = await add_machine(server.runtime, where, name)
        await add_packages(server.runtime, where, agent, [("bash", {})])

    shown = await bert.do("/packages", chosen=["apt:bash"], decision="approve")

    assert "bash apt 1 machine" in shown.text
    by_machine = {row.organization_id: row.state for row in await server.rows(Package)}
    assert {place.organization_id: "available", other.organization_id: "approved"} == by_machine


async def test_an_empty_fleet_lacks_nothing(server, alice):
    """The list of packages says so, and what a filter does not find."""
    assert "Nothing is open" in (await alice.open("/packages?state=")).text
    assert "No package like this" in (await alice.open("/packages?name=nope")).text
    await alice.open("/packages?state=nope", 400)


# --- history ---


async def test_the_history_of_a_machine_has_pages_and_a_filter(server, place, alice):
    """All events, newest first; narrowed down to what they are about."""
    agent = await add_machine(server.runtime, place)
    for number in range(EVENTS + 1):
        await add_event(server.runtime, place, agent, f"number {number:02}")
    await orders.order(server, agent, reason="look")
    path = f"/machines/{agent}/history"

    first = await alice.open(f"{path}?about=")
    (following,) = first.all("a", rel="next")
    second = await alice.open(following["href"])
    commands = await alice.open(f"{path}?about=commands")
    nothing = await alice.open(f"{path}?about=plans")

    assert "was ordered for web-01: look" in first.text
    assert [EVENTS - 1, 2] == [len(set(re.findall(r"number \d\d", page.text))) for page in (first, second)]
    assert "number" not in commands.text
    assert "was ordered for web-01: look" in commands.text
    assert "Nothing like this has happened" in nothing.text
    assert path in (await alice.open(f"/machines/{agent}")).links
    await alice.open(f"{path}?about=nope", 400)
    await alice.open("/machines/00000000-0000-0000-0000-000000000001/history", 404)


def test_every_kind_of_event_about_a_machine_belongs_to_a_subject():
    """No event of a machine is found only by reading everything."""
    kinds = [row[0] for row in table(read("docs/reference/events-and-errors.md"), "Kind", "What happened")]
    others = {"server", "setup", "trust", "user", "api_key", "registration_token", "rate_limit", "error", "job"}
    of_machines = [kind for kind in kinds if kind.split(".")[0] not in others]
    starts = tuple(start for some in KINDS_OF.values() for start in some)

    assert [] == [kind for kind in of_machines if not kind.startswith(starts)]
    assert set(Subject) == set(KINDS_OF) == set(words.SUBJECTS)


# --- who may what ---


async def test_a_viewer_sees_everything_and_can_change_nothing(server, ward, alice):
    """No button on any page; what is sent nevertheless is refused and changes nothing."""
    plan = await make_plan(ward, "curl", extra=[DEPENDENCY])
    package, command = await path_of(ward, "curl"), await orders.order(server, ward.machine.agent_id)
    bert = await visit(server.runtime, server.client, "bert", UserRole.VIEWER)
    pages = [
        "/",
        "/packages",
        "/packages/machines?manager=apt&name=curl",
        "/plans",
        "/commands",
        machine_path(ward),
        package,
        plan,
        f"/commands/{command}",
        f"{machine_path(ward)}/history",
    ]

    shown = [await bert.open(path) for path in pages]
    before = await server.dump()
    posts = [
        f"{machine_path(ward)}/packages",
        f"{machine_path(ward)}/plans",
        f"{machine_path(ward)}/scan",
        package,
        f"{package}/plan",
        f"{plan}/confirm",
        f"{plan}/discard",
        f"{plan}/install",
        "/packages",
        *(f"/commands/{command}/{action}" for action in ("cancel", "release", "retry", "archive")),
    ]
    answers = [await bert.send(path, reason="x", decision="approve", chosen=["x"]) for path in posts]

    assert [set()] * len(pages) == [page.actions for page in shown]
    assert not [box for page in shown for box in page.all("input", name="chosen")]
    assert [403] * len(posts) == [answer.status_code for answer in answers]
    assert before == await server.dump()


async def test_a_form_without_its_token_changes_nothing(server, ward, alice):
    """Every form of these pages carries the token of the session, and is refused without it."""
    plan = await make_plan(ward, "curl", extra=[DEPENDENCY])
    command = await orders.order(server, ward.machine.agent_id)
    pages = [machine_path(ward), await path_of(ward, "nginx"), plan, f"/commands/{command}", "/packages"]
    shown = [await alice.open(path) for path in pages]
    before = await server.dump()
    actions = sorted({action for page in shown for action in page.actions})

    answers = [await server.client.post(action, data={"reason": "x"}, headers=FORM) for action in actions]

    assert [403] * len(actions) == [answer.status_code for answer in answers]
    assert 8 <= len(actions)
    for page in shown:
        assert len(page.all("form", method="post")) == len(page.all("input", name="form_token"))
    assert before == await server.dump()


# --- hostile content ---


async def test_hostile_content_is_shown_as_it_is(server, place, alice):
    """Names, versions, reasons, progress, output, details and origins come from outside: none of it is markup."""
    agent = await add_machine(server.runtime, place, HOSTILE)
    await add_scanner(server.runtime, place, agent)
    decided = {
        "decision": "approve",
        "decided_by": f"user:{HOSTILE}",
        "decided_at": START,
        "decision_reason": HOSTILE,
    }
    hostile = {"installed": HOSTILE, "available": HOSTILE, "state": PackageState.FAILED, "origin": HOSTILE,
               "reason": HOSTILE, "state_reason": HOSTILE, "source": HOSTILE, **decided}  # fmt: skip
    await add_packages(server.runtime, place, agent, [(HOSTILE, hostile)])
    package = await server.row(Package)
    plan, commands = await _hostile_plan(server, place, agent)
    pages = ["/", "/packages", f"/machines/{agent}", f"/machines/{agent}/packages/{package.id}", f"/plans/{plan}",
             "/plans", "/commands", *(f"/commands/{command}" for command in commands),
             f"/machines/{agent}/history"]  # fmt: skip

    for path in pages:
        answer = await server.client.get(path)
        shown = Text(answer.text)
        assert 200 == answer.status_code, (path, answer.text)
        assert "<script>alert" not in answer.text, path
        assert 1 == len(shown.all("script")), path
        assert HOSTILE in "".join(shown.words), path


async def _hostile_plan(server, place, agent):
    """A plan and its commands with hostile text wherever a machine or a person could have put it."""
    from redflag_core import codec
    from redflag_core.patching import PackageTarget, Transaction
    from redflag_core.scanning import PackageKey

    target = PackageTarget(name="curl", arch="amd64", installed="1", available=HOSTILE.replace("\u202e", ""))
    change = Change(name=HOSTILE, arch="amd64", after=HOSTILE, origin=HOSTILE)
    transaction = Transaction(manager="apt", requested=(PackageKey("curl", "amd64"),), changes=(change,))
    outcome = {"name": "curl", "arch": "amd64", "outcome": "failed", "installed": HOSTILE, "reason": HOSTILE}
    plan = Plan(
        organization_id=place.organization_id, agent_id=agent, manager="apt", scanner="apt",
        state=PlanState.FAILED, state_at=START, targets=[codec.unstructure(target)],
        transaction=codec.unstructure(transaction), plan_hash=transaction.plan_hash, outcomes=[outcome],
        beyond_routine=[], created_at=START, created_by=f"user:{HOSTILE}", code="unheard_of", detail=HOSTILE,
    )  # fmt: skip
    async with server.runtime.database.write() as session:
        session.add(plan)
    live = await orders.order(server, agent, reason=HOSTILE)
    ended = await orders.order(server, agent, orders.HEARTBEAT, reason=HOSTILE)
    await orders.act(server, queue.cancel, ended, HOSTILE)
    told = {"doing": HOSTILE, "percent": 5, "lines": [HOSTILE], "number": 1, "phase": "running", "at": 1}
    async with server.runtime.database.write() as session:
        (await session.get_one(Command, live)).progress = told
        row = await session.get_one(Command, ended)
        row.plan_id, row.result = plan.id, {"output": HOSTILE, "output_bytes": 9, "packages": [outcome],
                                            "reboot_required": True, "reboot_by": [HOSTILE]}  # fmt: skip
    return plan.id, [live, ended]


async def test_nothing_on_these_pages_needs_inline_code(server, ward, alice):
    """No script, style or handler in the page itself, and nothing from elsewhere."""
    plan = await make_plan(ward, "curl", extra=[DEPENDENCY])
    command = (await server.rows(Command))[0].id
    pages = [machine_path(ward), await path_of(ward, "curl"), plan, "/plans", f"/commands/{command}", "/commands",
             "/packages", f"{machine_path(ward)}/history"]  # fmt: skip
    for path in pages:
        shown = await alice.open(path)
        part = (await server.client.get(path, headers={"x-refresh": "1"})).text
        assert part.strip() in (await server.client.get(path)).text, path
        for tag, attributes in shown.tags:
            assert tag != "style"
            assert not [name for name in attributes if name == "style" or name.startswith("on")], path
            for name in ("src", "href", "action", "data-refresh-url"):
                assert (attributes.get(name) or "/").startswith(("/", "#")), path


# --- words ---


def test_everything_about_commands_and_plans_has_a_word():
    """No state, type, outcome or code that can be shown is shown under its code name only."""
    from redflag_core.command_queue import CommandState

    assert set(CommandState) == set(words.COMMAND_STATES) == set(words.COMMAND_EXPLANATIONS)
    assert set(CommandType) == set(words.COMMAND_TYPES)
    assert set(PlanState) == set(words.PLAN_STATES) == set(words.PLAN_EXPLANATIONS)
    assert set(ApprovalReason) == set(words.APPROVAL_REASONS)
    assert set(ChangeKind) == set(words.CHANGE_KINDS)
    assert set(PackageOutcome) == set(words.OUTCOMES)
    assert set(Decision) == set(words.DECISIONS) == set(words.DECIDED)
    assert {*OPEN_STATES} < set(words.STATES)
    assert set(SCANNED_STATES) - {PackageState.CURRENT} < {*OPEN_STATES}


def subclasses(error):
    return {error, *(found for each in error.__subclasses__() for found in subclasses(each))}


def test_every_code_with_which_the_server_ends_something_has_a_sentence():
    """Released, restored, and what ends plans: explained like the codes of machines."""
    own = {RELEASED, RESTORED, REVOKED, DISCARDED, REPLACED, DECIDED, SCANNED}

    assert set() == own - set(words.CODES)


def test_every_code_of_an_executor_has_a_sentence():
    """What a machine can answer to a command is explained, not only quoted."""
    own = {
        item.code
        for item in vars(executor_errors).values()
        if getattr(item, "__module__", "") == executor_errors.__name__
    }
    core = {error.code for base in (VerificationError, CommandRefusedError) for error in subclasses(base)
            if error.__module__ == "redflag_core.errors"}  # fmt: skip

    of_histories = {"bad_proof", "history_broken", "history_rewritten"}  # no executor judges those

    assert set() == (own | core) - of_histories - set(words.CODES)


@pytest.mark.parametrize(
    "seconds,expected",
    [(-5, "now"), (0, "now"), (1, "in 1 min"), (3600, "in 1 h"), (86_400, "in 1 day"), (13 * 86_400, "in 13 days"),
     (14 * 86_400, "2026-01-15")],
)  # fmt: skip
def test_times_to_come_are_said_as_people_say_them(seconds, expected):
    """Roughly at first, and as a date when it is far ahead."""
    assert expected == rendering.ahead(START + timedelta(seconds=seconds), START)


@pytest.mark.parametrize(
    "seconds,expected",
    [(0, "0 s"), (59.9, "59 s"), (95, "1 min 35 s"), (3_600, "1 h 0 min"), (9_000, "2 h 30 min")],
)
def test_durations_have_the_units_that_say_most(seconds, expected):
    """Seconds, minutes, hours."""
    assert expected == rendering.lasting(timedelta(seconds=seconds))


@pytest.mark.parametrize(
    "actor,expected",
    [
        ("user:alice", "alice"),
        ("api-key:nightly", "API key nightly"),
        ("agent:01936f3e", "the machine"),
        ("server", "the server"),
        ("address:192.0.2.1", "address:192.0.2.1"),
    ],
)
def test_people_are_called_by_their_names(actor, expected):
    """Actors of events, as people would say them."""
    assert expected == rendering.who(actor)
