"""Machine binding: copies of an agent on another machine, clones, and hardware that changes."""

from datetime import timedelta
from uuid import uuid4

import attrs

from redflag_core.encoding import b64encode
from redflag_server.agents.sweep import mark_changed_hardware
from redflag_server.agents.tables import Agent
from redflag_server.events.tables import Event
from tests.helpers.fleet import ENTROPY
from tests.helpers.server import Server


async def test_a_copy_on_another_machine_is_refused_and_the_original_goes_on(server: Server):
    """The whole state copied, no component equal: 403, an event says why, chain and record are untouched."""
    original = await server.agent()
    copy = attrs.evolve(original, machine_id=ENTROPY.token(16))
    before = await server.row(Agent)

    token = await copy.refresh(server.client)
    check_in = await copy.check_in(server.client, evidence=b64encode(copy.evidence_envelope()))

    after = await server.row(Agent)
    for answer in (token, check_in):
        assert (403, "machine_mismatch") == (answer.status_code, answer.json()["code"])
    events = await server.rows(Event, Event.kind == "agent.machine_mismatch")
    assert [original.agent_id] == [str(event.agent_id) for event in events], "once for one machine"
    assert (before.refresh_generation, before.evidence, "active") == (
        after.refresh_generation,
        after.evidence,
        after.status,
    )
    assert 200 == (await original.refresh(server.client)).status_code
    assert 200 == (await original.check_in(server.client)).status_code


async def test_only_other_hardware_for_a_day_waits_for_approval(server: Server):
    """Without one matching request for 24 hours the agent becomes hardware_changed; a matching one prevents it."""
    machine = await server.agent()
    moved = attrs.evolve(machine, machine_id=ENTROPY.token(16))
    await moved.refresh(server.client)

    server.clock.advance(timedelta(hours=23).total_seconds())
    await mark_changed_hardware(server.runtime)
    assert "active" == (await server.row(Agent)).status
    server.clock.advance(timedelta(hours=2).total_seconds())
    await mark_changed_hardware(server.runtime)

    assert "hardware_changed" == (await server.row(Agent)).status
    assert "agent.hardware_changed" in await server.event_kinds()


async def test_an_original_that_goes_on_is_never_marked(server: Server):
    """While the recorded machine keeps coming, a copy elsewhere changes nothing."""
    machine = await server.agent()
    copy = attrs.evolve(machine, machine_id=ENTROPY.token(16))
    await copy.refresh(server.client)
    server.clock.advance(25 * 3600)
    await machine.refresh(server.client)
    await mark_changed_hardware(server.runtime)

    assert "active" == (await server.row(Agent)).status


async def test_alternating_boot_ids_are_a_clone(server: Server):
    """Two machines with one state and one machine id take turns: quarantined."""
    machine = await server.agent()
    clone = attrs.evolve(machine, boot_id=str(uuid4()))
    assert 200 == (await clone.check_in(server.client)).status_code

    answer = await machine.check_in(server.client)

    assert (403, "agent_quarantined") == (answer.status_code, answer.json()["code"])
    assert "quarantined" == (await server.row(Agent)).status


async def test_a_reboot_is_not_a_clone(server: Server):
    """New boot ids that never come back are reboots, each an event."""
    machine = await server.agent()
    for _ in range(3):
        machine.boot_id = str(uuid4())
        assert 200 == (await machine.check_in(server.client)).status_code

    assert 3 == (await server.event_kinds()).count("agent.rebooted")


async def test_a_token_given_for_other_evidence_is_refused(server: Server):
    """When the recorded evidence changed, old access tokens ask for a refresh."""
    machine = await server.agent()
    async with server.runtime.database.write() as session:
        agent = await session.get(Agent, (await server.row(Agent)).id)
        assert agent is not None
        agent.evidence_digest = "0" * 64

    answer = await machine.check_in(server.client)

    assert (401, "bad_token") == (answer.status_code, answer.json()["code"])
