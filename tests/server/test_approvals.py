"""Approvals: exported as they would be ordered, taken in when genuine, used as long as machines believe them."""

import asyncio
import json
from datetime import timedelta
from typing import Any
from uuid import UUID

import attrs
import pytest
from click.testing import CliRunner
from sqlalchemy import update

from redflag_core.approval_files import MAX_ANSWER_BYTES, check_transaction, parse_request
from redflag_core.approvals import check_approval
from redflag_core.command_queue import START_WITHIN_SECONDS
from redflag_core.commands import Command, CommandType
from redflag_core.encoding import b64decode, b64encode
from redflag_core.keys import SigningKey
from redflag_core.messages import Role
from redflag_core.patching import Change
from redflag_core.statements import Outcome
from redflag_core.trust import live_keys
from redflag_server.agents.tables import Agent
from redflag_server.approvals.requests import MAX_PLANS
from redflag_server.approvals.tables import Approval, CoveredCommand
from redflag_server.cli import main
from redflag_server.commands.tables import Command as CommandRow
from redflag_server.events.tables import Event
from redflag_server.plans.listing import NEEDS_APPROVAL
from redflag_server.trust.operator_keys import MAX_OPERATOR_KEYS, add_operator_key, revoke_operator_key
from redflag_server.trust.service import current_bundle, read_bundle
from redflag_server.trust.tables import OperatorKey, ServerState, TrustDocument
from tests.helpers.approvals import ALICE, BERT, let_approve, public, signed
from tests.helpers.databases import CURRENT
from tests.helpers.operators import API, api_key, first_place, new_place
from tests.helpers.patching import DEPENDENCY, REMOVAL, Ward, new_ward
from tests.helpers.server import Server, running

UNKNOWN_ID = "01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4eff"


@pytest.fixture
async def ward(server: Server) -> Ward:
    """A machine that lacks updates, and alice, who may approve."""
    await let_approve(server)
    return await new_ward(server, "curl", "openssl")


async def removal(ward: Ward, *names: str) -> dict[str, Any]:
    """A plan that removes something."""
    return await ward.plan(*(names or ("curl",)), extra=[REMOVAL])


async def export(ward: Ward, *plan_ids: str, status: int = 200) -> bytes:
    """The file for the operator."""
    query = "&".join(f"plan_id={plan_id}" for plan_id in plan_ids)
    answer = await ward.server.client.get(f"{API}/approvals/request?{query}", headers=ward.headers)
    assert status == answer.status_code, answer.text
    return answer.content


async def bring(ward: Ward, answer: Any, status: int = 200) -> dict[str, Any]:
    """Bring an answer."""
    done = await ward.server.client.post(f"{API}/approvals", json=answer, headers=ward.headers)
    assert status == done.status_code, done.text
    document: dict[str, Any] = done.json()
    return document


async def approve(ward: Ward, plan: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Export, sign, bring."""
    return await bring(ward, signed(ward.server, await export(ward, plan["id"]), **changes))


async def confirmed(ward: Ward, plan: dict[str, Any]) -> dict[str, Any]:
    """A plan that people agreed to."""
    return await ward.post(f"plans/{plan['id']}/confirm")


async def ordered(ward: Ward, plan: dict[str, Any]) -> Command:
    """Install a plan; the command as its machine got it."""
    await ward.install(plan)
    cmd_id, _ = await ward.take(CommandType.PACKAGES_UPGRADE)
    return ward.machine.journal[cmd_id].command


async def believed(server: Server, command: Command) -> Any:
    """What an executor makes of the approval that a command carries."""
    place = await first_place(server.runtime)
    async with server.runtime.database.read() as session:
        bundle = read_bundle(await current_bundle(session))
    organization, now = str(place.organization_id), server.clock.now()
    keys = live_keys(bundle, Role.OPERATOR, now=now, organization=organization)
    return check_approval(command, keys, root_fp=server.runtime.root_fp, organization=organization, now=now)


# --- from the plan to the machine ---


async def test_an_approved_plan_is_ordered_with_its_proof(ward: Ward):
    """What the machine gets is exactly what was signed, and an executor believes it."""
    plan = await removal(ward)
    stored = await approve(ward, plan)
    assert "ready" == (await confirmed(ward, plan))["state"]

    command = await ordered(ward, plan)

    use = await believed(ward.server, command)
    assert (stored["approval"]["id"], 0, 1) == (use.approval_id, use.index, use.max_starts)
    (event,) = await ward.server.rows(Event, Event.kind == "plan.installing")
    assert stored["approval"]["id"] == event.data["approval"]


async def test_the_export_is_what_will_be_ordered(ward: Ward):
    """Byte for byte the parameters, for this agent and hardware, with the changes that the plan shows."""
    plan = await removal(ward)
    asked = parse_request(await export(ward, plan["id"]))
    await approve(ward, plan)
    await confirmed(ward, plan)

    command = await ordered(ward, plan)

    (item,) = asked.items
    runtime = ward.server.runtime
    assert (command.params, command.type, command.machine_binding) == (
        item.params,
        item.type,
        item.machine_binding,
    )
    assert (runtime.server, runtime.root_fp, "Default") == (asked.server, asked.root_fp, asked.organization_name)
    assert str((await first_place(runtime)).organization_id) == asked.organization
    assert plan["transaction"]["hash"] == check_transaction(item).plan_hash


async def test_one_signature_covers_several_machines_each_with_its_own_proof(ward: Ward):
    """Each machine gets its own leaf, and neither can use that of the other."""
    other = attrs.evolve(await new_ward(ward.server, "curl"), headers=ward.headers)
    wards = [ward, other]
    plans = [await removal(each) for each in wards]
    stored = await bring(ward, signed(ward.server, await export(ward, *(plan["id"] for plan in plans))))
    assert 2 == stored["approval"]["commands"]

    commands = []
    for each, plan in zip(wards, plans, strict=True):
        await confirmed(each, plan)
        commands.append(await ordered(each, plan))

    assert {0, 1} == {(await believed(ward.server, command)).index for command in commands}
    swapped = attrs.evolve(commands[0], approval=commands[1].approval)
    with pytest.raises(Exception, match="approved other commands"):
        await believed(ward.server, swapped)


async def test_it_can_be_approved_before_or_after_it_is_confirmed(ward: Ward):
    """The plan says who approved it and until when, and what to do next."""
    plan = await confirmed(ward, await removal(ward))
    assert (NEEDS_APPROVAL, None) == (plan["advice"], plan["approval"])

    stored = await approve(ward, plan, lifetime=3600)

    shown = await ward.get(f"plans/{plan['id']}")
    assert {
        "id": stored["approval"]["id"],
        "key_name": "alice",
        "valid_until": stored["approval"]["valid_until"],
    } == shown["approval"]
    assert "install it" == shown["advice"]


async def test_a_command_does_not_wait_longer_than_its_approval(ward: Ward):
    """A machine that returns later is not told to do what it would refuse."""
    plan = await removal(ward)
    await approve(ward, plan, lifetime=3600)
    await confirmed(ward, plan)
    await ward.install(plan)

    command = await ward.server.row(CommandRow, CommandRow.type == CommandType.PACKAGES_UPGRADE)
    assert ward.server.clock.now() + timedelta(hours=1) - command.start_by < timedelta(seconds=1)
    assert START_WITHIN_SECONDS > 3600


async def test_a_routine_plan_is_ordered_without_an_approval(ward: Ward):
    """Nothing is attached to what needs nothing."""
    plan = await confirmed(ward, await ward.plan("curl", extra=[DEPENDENCY]))

    command = await ordered(ward, plan)

    assert command.approval is None
    assert None is (await ward.get(f"plans/{plan['id']}"))["approval"]


async def test_what_the_machine_refuses_all_the_same_is_shown(ward: Ward):
    """It decides by itself; that it did not believe the approval is the end of the plan."""
    plan = await removal(ward)
    await approve(ward, plan)
    await confirmed(ward, plan)
    await ward.install(plan)
    cmd_id, _ = await ward.take(CommandType.PACKAGES_UPGRADE)
    detail = "the operator's approval has ended: it must be approved anew"
    await ward.end(cmd_id, Outcome.FAILED, code="needs_approval", detail=detail, started_at=None)

    item, failed = await ward.item("curl"), await ward.get(f"plans/{plan['id']}")
    assert ("failed", detail) == (item["state"], item["reason"])
    assert ("failed", "needs_approval", detail) == (failed["state"], failed["code"], failed["detail"])


# --- when an approval is worth nothing ---


async def refused(ward: Ward, plan: dict[str, Any]) -> None:
    """That nothing can be ordered now."""
    answer = await ward.post(f"plans/{plan['id']}/install", 409)
    assert "must approve" in answer["detail"]
    assert None is (await ward.get(f"plans/{plan['id']}"))["approval"]


async def test_an_approval_ends(ward: Ward):
    """At its last second it is there, a second later it is not."""
    plan = await removal(ward)
    await approve(ward, plan, lifetime=100)
    await confirmed(ward, plan)
    ward.server.clock.advance(99)
    assert "alice" == (await ward.get(f"plans/{plan['id']}"))["approval"]["key_name"]

    ward.server.clock.advance(2)
    await refused(ward, plan)
    (item,) = (await ward.get("approvals"))["items"]
    assert not item["live"]


async def test_with_its_key_an_approval_is_revoked(ward: Ward):
    """What alice approved is worth nothing once her key is."""
    plan = await confirmed(ward, await removal(ward))
    await approve(ward, plan)

    await revoke_operator_key(ward.server.runtime, "alice", "left", "cli:test")

    await refused(ward, plan)
    (item,) = (await ward.get("approvals"))["items"]
    assert ("alice", False) == (item["key_name"], item["live"])


async def test_an_approval_is_for_the_hardware_that_was_looked_at(ward: Ward):
    """The same agent on another machine is another command."""
    plan = await confirmed(ward, await removal(ward))
    await approve(ward, plan)
    async with ward.server.runtime.database.write() as session:
        await session.execute(update(Agent).values(machine_binding="f" * 32))

    await refused(ward, plan)


async def test_an_approval_is_for_one_plan(ward: Ward):
    """Other changes have another hash, and need another signature."""
    plan = await removal(ward)
    await approve(ward, plan)
    await ward.post(f"plans/{plan['id']}/discard")
    other = Change(name="lib-older", arch="amd64", before="1.0")
    made = await ward.order_plan("curl")
    await ward.answer_plan(extra=[other])

    await refused(ward, await confirmed(ward, made))


async def test_an_approval_is_used_up(ward: Ward):
    """The same plan again needs another signature once a machine accepted it as often as was agreed."""
    plan = await removal(ward)
    await approve(ward, plan, max_starts=2)
    for _ in range(2):
        await confirmed(ward, plan)
        await ward.install(plan)
        cmd_id, _params = await ward.take(CommandType.PACKAGES_UPGRADE)
        await ward.end(cmd_id, Outcome.FAILED, code="install_failed", detail="no")
        plan = await removal(ward)

    await refused(ward, await confirmed(ward, plan))


async def test_what_was_taken_back_before_it_was_handed_out_uses_nothing_up(ward: Ward):
    """Nobody started it, and nobody will."""
    plan = await removal(ward)
    await approve(ward, plan)
    await confirmed(ward, plan)
    await ward.install(plan)
    command = await ward.server.row(CommandRow, CommandRow.type == CommandType.PACKAGES_UPGRADE)
    await ward.post(f"commands/{command.id}/cancel")
    again = await ward.order_plan("curl")
    await ward.answer_plan(extra=[REMOVAL])

    await confirmed(ward, again)
    assert (await ordered(ward, again)).approval is not None


# --- taking answers in ---


async def test_the_same_approval_again_changes_nothing(ward: Ward):
    """Also many times at once: it is stored once, told once, and each is answered the same."""
    plan = await removal(ward)
    answer = signed(ward.server, await export(ward, plan["id"]))

    answers = await asyncio.gather(*(bring(ward, answer) for _ in range(5)))

    assert 1 == sum(each["made"] for each in answers)
    assert 1 == len({json.dumps(each["approval"]) for each in answers})
    assert (1, 1) == (len(await ward.server.rows(Approval)), len(await ward.server.rows(CoveredCommand)))
    (event,) = await ward.server.rows(Event, Event.kind == "approval.stored")
    assert event.message.startswith("alice approved 1 command, until ")
    assert (UUID(ward.machine.agent_id), ALICE.key_id) == (event.agent_id, event.data["key_id"])


async def nothing_is_stored(ward: Ward, answer: Any, status: int, words: str) -> None:
    """That an answer is refused, and nothing remembered."""
    refusal = await bring(ward, answer, status)
    assert words in refusal["detail"]
    assert [] == await ward.server.rows(Approval)
    assert "approval.stored" not in await ward.server.event_kinds()


@pytest.mark.parametrize("key", [BERT, SigningKey.from_seed(bytes(32))], ids=["other organization", "stranger"])
async def test_only_keys_of_the_organization_are_believed(ward: Ward, key: SigningKey):
    """Not a key that nobody knows, and not one that speaks for others."""
    other = await new_place(ward.server.runtime, "B")
    await let_approve(ward.server, BERT, "bert", {other.organization_id})
    plan = await removal(ward)
    answer = signed(ward.server, await export(ward, plan["id"]), key)

    await nothing_is_stored(ward, answer, 400, "not signed by a live operator key")


async def test_the_servers_own_keys_approve_nothing(ward: Ward):
    """Who has the server has these: they sign commands, and no approvals."""
    plan = await removal(ward)
    asked = await export(ward, plan["id"])
    keys = ward.server.runtime.keys
    assert keys.root is not None
    for key in (keys.command, keys.checkpoint, keys.root):
        await nothing_is_stored(ward, signed(ward.server, asked, key), 400, "not signed by a live operator key")


@pytest.mark.parametrize(
    "changes", [{"root_fp": "0" * 64}, {"organization": UNKNOWN_ID}], ids=["server", "organization"]
)
async def test_an_approval_for_others_is_refused(ward: Ward, changes: dict[str, Any]):
    """Signed by a key that both know."""
    plan = await removal(ward)
    answer = signed(ward.server, await export(ward, plan["id"]), **changes)

    await nothing_is_stored(ward, answer, 400, "another server or organization")


@pytest.mark.parametrize("change", ["swapped", "missing", "other"])
async def test_what_is_named_must_be_what_was_signed(ward: Ward, change: str):
    """In its order: neither more, nor less, nor anything else."""
    plans = [await removal(ward, "curl"), await removal(ward, "openssl")]
    answer = signed(ward.server, await export(ward, *(plan["id"] for plan in plans)))
    leaves = answer["leaves"]
    answer["leaves"] = {
        "swapped": leaves[::-1],
        "missing": leaves[:1],
        "other": [leaves[0], {**leaves[1], "params": "0" * 64}],
    }[change]

    await nothing_is_stored(ward, answer, 400, "what was signed is not what the file names")


async def test_an_approval_that_has_ended_is_refused(ward: Ward):
    """Brought too late."""
    plan = await removal(ward)
    answer = signed(ward.server, await export(ward, plan["id"]), lifetime=10)
    ward.server.clock.advance(11)

    await nothing_is_stored(ward, answer, 409, "has ended")


@pytest.mark.parametrize("ahead, status", [(60, 200), (62, 409)])
async def test_a_clock_that_is_ahead_is_named(ward: Ward, ahead: int, status: int):
    """What machines would not accept yet is refused; a minute is forgiven, as there."""
    plan = await removal(ward)
    asked = await export(ward, plan["id"])
    answer = signed(ward.server, asked, now=ward.server.clock.now() + timedelta(seconds=ahead))

    refusal = await bring(ward, answer, status)
    assert status == 200 or "clock" in refusal["detail"]


async def test_an_approval_for_a_machine_that_is_not_here_is_refused(ward: Ward):
    """A file for somebody else's machines says so."""
    plan = await removal(ward)
    answer = signed(ward.server, await export(ward, plan["id"]))
    answer["leaves"][0]["agent_id"] = UNKNOWN_ID

    await nothing_is_stored(ward, answer, 404, "machines that are not here")


@pytest.mark.parametrize(
    "damage",
    [
        lambda answer: answer | {"envelope": "eA=="},
        lambda answer: answer | {"envelope": b64encode(b64decode(answer["envelope"])[:-2] + b"}}")},
        lambda answer: answer | {"more": 1},
        lambda answer: answer | {"leaves": []},
        lambda answer: answer | {"v": 2},
        lambda answer: [],
    ],
)
async def test_a_damaged_answer_is_refused(ward: Ward, damage: Any):
    """Whatever it is, with 400."""
    plan = await removal(ward)
    answer = damage(signed(ward.server, await export(ward, plan["id"])))

    await bring(ward, answer, 400)
    assert [] == await ward.server.rows(Approval)


async def test_an_answer_has_a_bound(ward: Ward):
    """Beyond it, it is not read; up to it, it may be larger than other bodies."""
    for size, status in ((MAX_ANSWER_BYTES + 1, 413), (MAX_ANSWER_BYTES - 10, 400)):
        answer = await ward.server.client.post(
            f"{API}/approvals", content=b" " * size, headers={**ward.headers, "content-type": "application/json"}
        )
        assert status == answer.status_code, answer.text


# --- exporting ---


async def test_what_needs_no_approval_is_not_exported(ward: Ward):
    """A routine plan, one that its machine still makes, one that ended, one that does not exist."""
    routine = await ward.plan("curl", extra=[DEPENDENCY])
    assert b"routine" in await export(ward, routine["id"], status=409)
    await ward.decide("approve", "openssl")
    planning = await ward.order_plan("openssl")
    assert b"is planning" in await export(ward, planning["id"], status=409)
    await ward.answer_plan(extra=[REMOVAL])
    await ward.post(f"plans/{planning['id']}/discard")
    assert b"is dropped" in await export(ward, planning["id"], status=409)
    await export(ward, UNKNOWN_ID, status=404)
    assert b"not all of these" in await export(ward, routine["id"], UNKNOWN_ID, status=404)


@pytest.mark.parametrize("standing", [{"authenticated": False}, {"held": True}], ids=str)
async def test_what_no_approval_allows_is_not_exported(ward: Ward, standing: dict[str, bool]):
    """An unsigned repository, or a hold of the owner: the plan says so, and so does everything else."""
    plan = await ward.plan("curl", extra=[attrs.evolve(DEPENDENCY, **standing)])

    assert "no approval stands in" in plan["advice"]
    assert b"no approval stands in" in await export(ward, plan["id"], status=409)
    await confirmed(ward, plan)
    assert "no approval stands in" in (await ward.post(f"plans/{plan['id']}/install", 409))["detail"]


async def test_a_file_is_for_one_organization(ward: Ward):
    """Its key need not speak for others."""
    other = attrs.evolve(await new_ward(ward.server, "curl"), headers=ward.headers)
    plans = [await removal(ward), await removal(other)]
    place = await new_place(ward.server.runtime, "B")
    from redflag_server.plans.tables import Plan

    async with ward.server.runtime.database.write() as session:
        moved = update(Plan).where(Plan.id == UUID(plans[1]["id"])).values(organization_id=place.organization_id)
        await session.execute(moved)

    assert b"several organizations" in await export(ward, *(plan["id"] for plan in plans), status=409)


async def test_an_export_names_its_plans_and_is_a_download(ward: Ward):
    """None, too many, or no ids are refused; a plan twice is there once."""
    plan = await removal(ward)
    for query in ("", "?plan_id=x", "?" + "&".join([f"plan_id={UNKNOWN_ID}"] * (MAX_PLANS + 1))):
        answer = await ward.server.client.get(f"{API}/approvals/request{query}", headers=ward.headers)
        assert 400 == answer.status_code, answer.text
    assert 1 == len(parse_request(await export(ward, plan["id"], plan["id"])).items)
    answer = await ward.server.client.get(f"{API}/approvals/request?plan_id={plan['id']}", headers=ward.headers)
    assert 'attachment; filename="approval-request.json"' == answer.headers["content-disposition"]


@pytest.mark.parametrize(
    "scope, status", [("approvals:read", 403), ("packages:write", 403), ("approvals:write", 200)]
)
async def test_bringing_an_approval_needs_its_permission(ward: Ward, scope: str, status: int):
    """To see them is not to bring them, and to patch is neither."""
    plan = await removal(ward)
    answer = signed(ward.server, await export(ward, plan["id"]))
    headers = await api_key(ward.server.runtime, scope)

    done = await ward.server.client.post(f"{API}/approvals", json=answer, headers=headers)

    assert status == done.status_code
    listed = await ward.server.client.get(f"{API}/approvals", headers=headers)
    assert (200 if scope == "approvals:read" else 403) == listed.status_code


async def test_approvals_are_listed_newest_first(ward: Ward):
    """In pages, with whose key signed them."""
    plan = await removal(ward)
    stored = [(await approve(ward, plan))["approval"]["id"] for _ in range(3)]

    first = await ward.get("approvals?limit=2")
    second = await ward.get(f"approvals?limit=2&cursor={first['next']}")

    assert stored[::-1] == [item["id"] for item in (*first["items"], *second["items"])]
    assert {("alice", True, 1)} == {(i["key_name"], i["live"], i["commands"]) for i in first["items"]}


# --- keys of operators ---


async def bundle_of(server: Server) -> Any:
    """The bundle that machines get."""
    async with server.runtime.database.read() as session:
        return read_bundle(await current_bundle(session))


async def test_a_key_is_in_the_next_bundle_and_out_of_the_one_after(server: Server):
    """Signed by the root, for its organizations only; machines are told by the digest in the next check-in."""
    place = await first_place(server.runtime)
    machine = await server.agent()
    before, digest = await bundle_of(server), (await machine.check_in(server.client)).json()["bundle"]

    await let_approve(server)

    added, after = await bundle_of(server), (await machine.check_in(server.client)).json()["bundle"]
    (entry,) = [key for key in added.keys if key.role is Role.OPERATOR]
    assert (before.version + 1, before.epoch) == (added.version, added.epoch)
    assert (public(ALICE), (str(place.organization_id),)) == (entry.key, entry.organizations)
    assert digest != after
    await machine.learn_trust(server.client)

    await revoke_operator_key(server.runtime, ALICE.key_id, "left", "cli:test")

    removed = await bundle_of(server)
    assert (before.keys, before.version + 2) == (removed.keys, removed.version)
    kinds = await server.event_kinds()
    assert ["trust.operator_key_added", "trust.operator_key_revoked"] == [
        kind for kind in kinds if "operator_key" in kind
    ]
    assert 3 == len(await server.rows(TrustDocument, TrustDocument.kind == "bundle"))


async def test_a_renewed_bundle_keeps_the_keys_of_operators(server: Server):
    """Nobody has to add them anew every quarter."""
    from redflag_server.trust.service import renew

    await let_approve(server)
    server.clock.advance(timedelta(days=61).total_seconds())
    before = await bundle_of(server)
    async with server.runtime.database.write() as session:
        assert await renew(session, server.runtime.keys.root, now=server.clock.now())

    assert before.keys == (await bundle_of(server)).keys


async def test_after_a_restore_the_next_bundle_is_above_all_that_were_issued(server: Server):
    """Agents hold a later one than the server remembers: what is issued now must not look like a step back."""
    gen = int(server.clock.now().timestamp())
    async with server.runtime.database.write() as session:
        await session.execute(update(ServerState).values(gen=gen))  # as `redflag server restore` does

    await let_approve(server)
    first = (await bundle_of(server)).version
    await revoke_operator_key(server.runtime, "alice", "left", "cli:test")

    assert (gen, gen + 1) == (first, (await bundle_of(server)).version)


async def test_a_key_that_was_revoked_never_comes_back(server: Server):
    """Nor is a key there twice, nor a name, nor one of the server's own."""
    await let_approve(server)
    for key, name, words in (
        (ALICE, "bert", "there already"),
        (BERT, "alice", "has a key already"),
        (server.runtime.keys.command, "server", "key of the server itself"),
    ):
        with pytest.raises(Exception, match=words):
            await let_approve(server, key, name)
    await revoke_operator_key(server.runtime, "alice", "left", "cli:test")
    version = (await bundle_of(server)).version

    with pytest.raises(Exception, match="never comes back"):
        await let_approve(server)
    await revoke_operator_key(server.runtime, ALICE.key_id, "again", "cli:test")
    assert version == (await bundle_of(server)).version
    await let_approve(server, BERT, "alice")  # the name is free again


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 101, "\u202e"])
async def test_a_name_is_one_line(server: Server, name: str):
    """It is shown beside what was approved."""
    with pytest.raises(Exception, match="one line"):
        await let_approve(server, name=name)


async def test_there_are_not_more_keys_than_a_bundle_holds(server: Server):
    """The last one that fits is taken, the next one is not."""
    async with server.runtime.database.write() as session:
        session.add_all(
            OperatorKey(
                name=str(n), key_id=f"{n:032x}", public_key=bytes([n]) * 32, organizations=[],
                added_at=server.clock.now(), added_by="test",
            )
            for n in range(MAX_OPERATOR_KEYS - 1)
        )  # fmt: skip
    await let_approve(server)

    with pytest.raises(Exception, match="revoke those"):
        await let_approve(server, BERT, "bert")


async def test_without_the_root_key_nothing_is_changed(tmp_path: Any):
    """The sentence says what to do, and neither table nor bundle is touched."""
    async with running(tmp_path) as first:
        place = await first_place(first.runtime)
    (tmp_path / "keys" / "root.key").unlink()
    async with running(tmp_path) as server:
        before = await server.dump()
        with pytest.raises(Exception, match=r"put keys/root\.key back"):
            await add_operator_key(
                server.runtime, public_key=public(ALICE), name="alice", actor="cli:test",
                organizations={place.organization_id},
            )  # fmt: skip
        assert before == await server.dump()


async def redflag(data: Any, *arguments: str, code: int = 0) -> str:
    """Run a command of the server; what it printed."""
    command = ["operator-key", *arguments, "--data", str(data)]
    result = await asyncio.to_thread(CliRunner().invoke, main, command, env=CURRENT.place.environment(data))
    assert code == result.exit_code, result.output
    return result.output


async def test_keys_are_managed_on_the_command_line(tmp_path: Any):
    """Added by name or id of the organization, listed whole, revoked by name; also while the server runs."""
    async with running(tmp_path) as server:
        place = await first_place(server.runtime)
        await redflag(tmp_path, "add", public(ALICE), "--name", "alice", "--organization", "Default")
        organization = str(place.organization_id)
        await redflag(tmp_path, "add", public(BERT), "--name", "bert", "--organization", organization)
        assert {ALICE.key_id, BERT.key_id} == {
            key.open().key_id for key in (await bundle_of(server)).keys if key.role is Role.OPERATOR
        }
        listed = await redflag(tmp_path, "list")
        assert all(text in listed for text in (ALICE.key_id, BERT.key_id, "alice", "bert", organization))
        assert "alice may not approve" in await redflag(tmp_path, "revoke", "alice", "--reason", "left")
        assert [BERT.key_id] == [
            key.open().key_id for key in (await bundle_of(server)).keys if key.role is Role.OPERATOR
        ]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["add", "eA==", "--name", "a", "--organization", "Default"], "no public key"),
        (["add", "?", "--name", "a", "--organization", "Default"], "no public key"),
        (["add", public(ALICE), "--name", "a", "--organization", "Nobody"], "there is no organization"),
        (["add", public(ALICE), "--name", "a", "--organization", str(UUID(int=0))], "there is no organization"),
        (["revoke", "nobody"], "no live operator key"),
    ],
)
async def test_what_cannot_be_done_with_keys_is_one_sentence(tmp_path: Any, arguments: list[str], words: str):
    """And nothing is changed."""
    async with running(tmp_path) as server:
        before = await server.dump()
        assert words in await redflag(tmp_path, *arguments, code=1)
        assert before == await server.dump()
