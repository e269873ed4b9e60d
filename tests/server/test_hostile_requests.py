"""What a hostile review found: requests that raced an operator, odd methods, floods, clocks, and bad settings."""

import asyncio
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import attrs
import pytest
from sqlalchemy import event

from redflag_core.encoding import parse_json
from redflag_core.errors import ConfigurationError, MalformedError
from redflag_core.lifecycle import AgentAction
from redflag_core.messages import MAX_REPORT_BODY, MAX_SCANNERS, ClientError, Errors
from redflag_core.rate_limit import RateLimitPolicy
from redflag_core.scanning import PackageState
from redflag_core.system import SystemEntropy
from redflag_core.testing import FrozenClock
from redflag_server.addresses import client_address, network_of
from redflag_server.agents.operations import act
from redflag_server.agents.tables import Agent
from redflag_server.checkin.answers import CheckInRequest
from redflag_server.checkin.claims import AgentRequest
from redflag_server.checkin.nonces import purge_nonces
from redflag_server.checkin.room import LARGE_BODIES, LARGE_BODIES_OF_ONE
from redflag_server.checkin.service import check_in
from redflag_server.client_errors import tables as errors
from redflag_server.client_errors.storing import MAX_KINDS
from redflag_server.db.scope import whole_installation
from redflag_server.events.recorder import Refusal
from redflag_server.events.tables import Event
from redflag_server.jobs.list import JOBS
from redflag_server.jobs.retention import KEEP_GONE_PACKAGES, forget_old
from redflag_server.jobs.service import run_due
from redflag_server.packages.tables import Package, ScanReport
from redflag_server.settings import Settings
from redflag_server.start import open_runtime, prepare_directory
from tests.helpers.fleet import Machine, Signed, failed_scan, full_report, new_id, package
from tests.helpers.server import Server, running

OPERATOR = whole_installation("user:test")


async def _revoke_during(server: Server, machine: Machine, signed: Any) -> Any:
    """Send a request, and revoke its agent between the gate and the work."""
    at_the_gate, engine = asyncio.Event(), server.runtime.database.engine.sync_engine

    def look(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if "nonces" in statement:
            at_the_gate.set()

    event.listen(engine, "before_cursor_execute", look)
    task = asyncio.create_task(signed.send(server.client))
    await at_the_gate.wait()
    event.remove(engine, "before_cursor_execute", look)
    await act(server.runtime, OPERATOR, UUID(machine.agent_id), AgentAction.REVOKE, "stolen")
    return await task


async def test_an_agent_revoked_during_a_token_request_stays_revoked(server: Server):
    """A lapsed chain or a fork does not overwrite the operator's word, and no token comes out."""
    machine = await server.agent()
    server.clock.advance(91 * 86_400)
    signed = machine.sign("/agent/token", machine.token_body(), with_token=False)

    answer = await _revoke_during(server, machine, signed)

    assert (403, "agent_revoked") == (answer.status_code, answer.json()["code"])
    assert "revoked" == (await server.row(Agent)).status


@pytest.mark.parametrize("what", ["report", "errors"])
async def test_an_agent_revoked_during_a_request_stores_nothing(server: Server, what: str):
    """What arrives after the revocation is refused, though the request passed the gate before it."""
    machine = await server.agent()
    error = ClientError("transport", "Timeout", "no answer", 1, 1, 1)
    signed = {
        "report": machine.sign("/agent/reports/apt", full_report([package("bash")])),
        "errors": machine.sign("/agent/errors", Errors(1, new_id(), (error,))),
    }[what]

    answer = await _revoke_during(server, machine, signed)

    assert (403, "agent_revoked") == (answer.status_code, answer.json()["code"])
    assert [] == [*await server.rows(Package), *await server.rows(errors.ClientError)]


async def test_odd_methods_are_never_an_error_of_the_server(server: Server):
    """Every method on every route: answered, never with a 500."""
    for route in server.app.routes:
        path = route.path.replace("{", "").replace("}", "").replace(":str", "").replace(":int", "")
        for method in ("OPTIONS", "HEAD", "PUT", "DELETE", "PATCH", "TRACE", "GET", "POST"):
            answer = await server.client.request(method, path)
            assert answer.status_code < 500, (method, path)


@pytest.mark.parametrize(
    "target", ["http://[", "//[x", "//evil.example", "https://evil.example", "/\\evil.example", "/a\nb", "a"]
)
async def test_a_link_to_sign_in_leads_nowhere_else(server: Server, target: str):
    """Whatever ``next`` says, it is a path of this server or nothing, and never an error."""
    answer = await server.client.get("/sign-in", params={"next": target})

    assert 200 == answer.status_code
    assert f'value="{target}"' not in answer.text


async def test_two_scanners_may_look_at_one_manager(server: Server):
    """Rows belong to a scanner: a second one with the same manager and package is not a clash."""
    machine = await server.agent()

    answers = [
        await machine.report(server.client, full_report([package("bash")]), name) for name in ("apt", "apt_two")
    ]

    assert [True, True] == [answer.json()["accepted"] for answer in answers]


async def test_a_scanner_that_changes_its_manager_takes_its_packages_along(server: Server):
    """The manager of the last report is the one shown."""
    machine = await server.agent()
    await machine.report(server.client, full_report([package("bash")]))
    newer = full_report([package("bash", PackageState.AVAILABLE)], manager="apt_pro")

    await machine.report(server.client, newer)

    assert "apt_pro" == (await server.row(Package)).manager


async def test_a_clock_that_was_ahead_locks_nobody_out(server: Server):
    """A minute a year ahead, and back: agents and jobs go on within minutes, and old requests stay refused."""
    machine = await server.agent()
    year = 365 * 86_400
    server.clock.jump(year)
    await run_due(server.runtime, JOBS)
    server.clock.jump(-year)
    old = machine.sign("/agent/check-in", machine.check_in_body())
    assert 503 == (await old.send(server.client)).status_code

    assert set(JOBS) == set(await run_due(server.runtime, JOBS))
    server.clock.advance(301)

    assert 200 == (await machine.check_in(server.client)).status_code
    assert 401 == (await old.send(server.client)).status_code
    assert "server.clock_set_back" in await server.event_kinds()


async def test_a_purge_does_not_move_the_horizon_of_a_restore(server: Server):
    """A horizon shortly ahead is a restore's: it stays."""
    from sqlalchemy import update

    from redflag_server.trust.tables import ServerState

    ahead = int(server.clock.now().timestamp()) + 300
    async with server.runtime.database.write() as session:
        await session.execute(update(ServerState).values(nonce_horizon=ahead))

    await purge_nonces(server.runtime)

    assert ahead == (await server.row(ServerState)).nonce_horizon


async def test_a_stranger_is_refused_before_its_body_is_read(server: Server):
    """A request whose key is not known costs its head only: sixteen megabytes are not taken from it."""
    stranger = server.machine()
    signed = stranger.sign("/agent/token", b"x" * 1000, with_token=False)

    assert (401, 0) == await _dribble(server, signed, b"x" * 65_536)


async def _dribble(server: Server, signed: Signed, *chunks: bytes, then: asyncio.Event | None = None) -> Any:
    """
    Send a request whose body has no end; its status, and how often its body was asked for.

    Args:
        server: The server.
        signed: The request; its body is not sent.
        chunks: Parts of the body.
        then: Set to close the connection after these parts; without it, they are sent for ever.
    """
    parts, sent, read = list(chunks), [], 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 1
        if then is not None and not parts:
            await then.wait()
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": parts.pop() if then else chunks[0], "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": signed.path,
        "raw_path": signed.path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in signed.headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8750),
        "state": {},
    }
    await server.app(scope, receive, send)
    return sent[0]["status"], read


async def _until_read(*tasks: asyncio.Task[Any], rounds: int = 500) -> None:
    """Let requests go as far as they get without more of their bodies."""
    for _ in range(rounds):
        await asyncio.sleep(0.001)
        if all(task.done() for task in tasks):
            return


async def test_a_revoked_agent_takes_no_room_from_others(server: Server):
    """Sixty-four copies of one signed head: refused unread, and a report of another agent is taken meanwhile."""
    token = await server.token(seats=2)
    revoked, other = [await server.machine().enrol(server.client, token) for _ in range(2)]
    signed = revoked.sign("/agent/reports/apt", full_report([package("bash")]))
    await act(server.runtime, OPERATOR, UUID(revoked.agent_id), AgentAction.REVOKE, "stolen")
    hung_up = asyncio.Event()
    copies = [asyncio.create_task(_dribble(server, signed, b"{", then=hung_up)) for _ in range(LARGE_BODIES)]

    async with asyncio.timeout(30):
        await _until_read(*copies)
        answer = await other.report(server.client, full_report([package("bash")]))
    hung_up.set()

    assert 200 == answer.status_code
    assert {(403, 0): 1, (401, 0): LARGE_BODIES - 1} == Counter(await asyncio.gather(*copies))


async def test_one_agent_has_room_for_two_large_bodies(server: Server):
    """A third is told to come back, unread; when the others ended, there is room again."""
    token = await server.token(seats=2)
    greedy, other = [await server.machine().enrol(server.client, token) for _ in range(2)]
    hung_up = asyncio.Event()

    def slow() -> asyncio.Task[Any]:
        signed = greedy.sign("/agent/reports/apt", full_report([package("bash")]))
        return asyncio.create_task(_dribble(server, signed, b"{", then=hung_up))

    held = [slow() for _ in range(LARGE_BODIES_OF_ONE)]
    await _until_read(*held, rounds=100)
    third = await greedy.report(server.client, full_report([package("bash")]))
    of_another = await other.report(server.client, full_report([package("bash")]))
    hung_up.set()
    ended = await asyncio.gather(*held)
    later = await greedy.report(server.client, full_report([package("bash")]))

    assert (503, "unavailable") == (third.status_code, third.json()["code"])
    assert third.headers["retry-after"]
    assert (200, 200) == (of_another.status_code, later.status_code)
    assert [(400, 2)] * LARGE_BODIES_OF_ONE == ended


async def test_a_body_that_does_not_fit_uses_up_the_nonce_of_its_head(server: Server):
    """The head was genuine, so it is claimed once, and its true body does not come again under it."""
    machine = await server.agent()
    signed = machine.sign("/agent/reports/apt", full_report([package("bash")]))

    other = await attrs.evolve(signed, body=b"{}").send(server.client)
    again = await signed.send(server.client)

    assert ("bad_signature", "replayed") == (other.json()["code"], again.json()["code"])
    assert [] == await server.rows(Package)


@pytest.mark.parametrize("path", ["/agent/reports/apt", "/agent/check-in"])
async def test_a_request_passes_the_gate_once(tmp_path: Path, path: str):
    """It is charged once: as many pass as the limit allows."""
    limit = RateLimitPolicy(count=1, period_seconds=60, burst=4)
    async with running(tmp_path, agent_limit=limit) as server:
        machine = await server.agent()
        server.clock.advance(300)
        body = full_report([package("bash")]) if "reports" in path else machine.check_in_body()
        codes = [(await machine.sign(path, body).send(server.client)).status_code for _ in range(5)]

    assert [200, 200, 200, 200, 429] == codes


async def test_one_agent_cannot_fill_the_disk_with_errors(server: Server):
    """The newest kinds are kept, and what was forgotten is counted in an event."""
    machine = await server.agent()
    for batch in range(0, MAX_KINDS + 100, 100):
        made = tuple(ClientError("a", f"b{batch + n}", "error", 1, 1, 1 + batch) for n in range(100))
        assert 200 == (await machine.send_errors(server.client, Errors(1, new_id(), made))).status_code

    kept = await server.rows(errors.ClientError)
    (event,) = await server.rows(Event, Event.kind == "agent.errors_dropped")
    assert (MAX_KINDS, 100) == (len(kept), event.data["forgotten"])
    assert "b0" not in {row.type for row in kept}


async def test_one_agent_has_a_bounded_number_of_scanners(server: Server):
    """One more is a conflict, not a row."""
    machine = await server.agent()
    for number in range(MAX_SCANNERS):
        assert 200 == (await machine.report(server.client, failed_scan(), f"scanner_{number}")).status_code

    answer = await machine.report(server.client, failed_scan(), "one_more")

    assert (409, "conflict") == (answer.status_code, answer.json()["code"])


async def test_old_reports_and_gone_packages_are_forgotten(server: Server):
    """History has an end; the inventory itself stays."""
    machine = await server.agent()
    await machine.report(server.client, full_report([package("bash"), package("curl")]))
    await machine.report(server.client, full_report([package("bash")]))
    server.clock.advance((KEEP_GONE_PACKAGES + timedelta(days=1)).total_seconds())

    await forget_old(server.runtime)

    assert ["bash"] == [row.name for row in await server.rows(Package)]
    assert [] == await server.rows(ScanReport)


async def test_a_second_check_in_of_a_batch_sees_what_the_first_did(server: Server):
    """A clone found by the first request cuts off the second, in the same transaction."""
    machine = await server.agent()
    agent = await server.row(Agent)
    older = agent.boot_id
    machine.boot_id = new_id()
    await machine.check_in(server.client)

    def request(boot_id: str) -> CheckInRequest:
        from redflag_core.enrolment import Access
        from redflag_core.signed_requests import VerifiedRequest, new_nonce
        from redflag_core.system import SystemEntropy

        created = int(server.clock.now().timestamp())
        verified = VerifiedRequest(machine.key.key_id, created, new_nonce(SystemEntropy()), None, b"")
        entry = AgentRequest(agent.id, agent.organization_id, verified, None, Access.CHECK_IN, "127.0.0.1")
        body = machine.check_in_body(boot_id=boot_id)
        from redflag_core.encoding import b64decode
        from redflag_server.agents.statements import open_state

        assert b64decode(body.state)
        state = open_state(body.state, machine.executor.verify_key, server=machine.server, agent_id=agent.id)
        return CheckInRequest(entry, body, state, None)

    answers = await check_in(server.runtime, [request(older), request(machine.boot_id)])

    assert ["agent_quarantined"] * 2 == [getattr(answer, "code", "answered") for answer in answers]


@pytest.mark.parametrize("body", [b"[" + b"1," * 600_000 + b"1]", b"[" + b"[]," * 300_000 + b"[]]"])
def test_a_document_of_countless_items_is_refused_at_once(body: bytes):
    """The bound is on what parsing costs, not only on bytes."""
    with pytest.raises(MalformedError, match="items"):
        parse_json(body, max_bytes=MAX_REPORT_BODY)


async def test_refused_requests_of_an_agent_are_charged(tmp_path: Path):
    """A revoked agent that goes on asking is told to slow down like any other."""
    limit = RateLimitPolicy(count=60, period_seconds=60, burst=3)
    async with running(tmp_path, agent_limit=limit) as server:
        machine = await server.agent()
        server.clock.advance(60)
        await act(server.runtime, OPERATOR, UUID(machine.agent_id), AgentAction.REVOKE, "stolen")

        codes = [(await machine.check_in(server.client)).status_code for _ in range(5)]

    assert [403, 403, 403, 429, 429] == codes


async def test_a_refusal_at_the_gate_is_an_event_of_the_agent(server: Server):
    """Whoever looks at the machine, or at its organization, sees that something was refused."""
    machine = await server.agent()
    signed = machine.sign("/agent/reports/apt", full_report([package("bash")]))
    for _ in range(2):
        await signed.send(server.client)

    event = await server.row(Event, Event.code == "replayed")
    assert machine.agent_id == str(event.agent_id)
    assert (await server.row(Agent)).organization_id == event.organization_id


async def test_a_flood_of_one_kind_of_refusal_does_not_hide_another(server: Server):
    """Each code has a budget of its own."""
    for number in range(700):
        address = f"10.0.{number // 250}.{number % 250}"
        await server.runtime.refusals.record(Refusal("malformed", address, "POST", "/", "no"))

    await server.runtime.refusals.record(Refusal("sign_in_refused", "10.9.9.9", "POST", "/sign-in", "no"))

    assert "sign_in_refused" in await server.refusals()


def test_limits_are_charged_to_a_network_that_one_host_has():
    """One IPv4 address, or the /64 of an IPv6 address."""
    assert "192.0.2.7" == network_of("192.0.2.7")
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:2") == "2001:db8::/64"
    assert "unknown" == network_of("unknown")


@pytest.mark.parametrize(
    "peer, forwarded, trusted, expected",
    [
        ("::ffff:10.0.0.5", None, (), "10.0.0.5"),
        ("::ffff:10.0.0.5", "192.0.2.7", ("10.0.0.0/8",), "192.0.2.7"),
        ("10.0.0.5", "::ffff:192.0.2.7", ("10.0.0.0/8",), "192.0.2.7"),
        ("10.0.0.5", "192.0.2.7, 203.0.113.9", ("10.0.0.0/8",), "203.0.113.9"),
        ("198.51.100.1", "192.0.2.7", ("10.0.0.0/8",), "198.51.100.1"),
        ("10.0.0.5", "nonsense", ("10.0.0.0/8",), "unknown"),
        ("10.0.0.5", "fe80::1%" + "z" * 300, ("10.0.0.0/8",), "fe80::1"),
    ],
)
def test_the_client_address_is_the_one_that_a_trusted_hop_saw(peer, forwarded, trusted, expected):
    """Mapped addresses are called by their IPv4 name; only configured proxies are believed."""
    headers = [] if forwarded is None else [(b"x-forwarded-for", forwarded.encode())]

    assert expected == client_address({"client": (peer, 1), "headers": headers}, trusted)


@pytest.mark.parametrize("url", ["https://[::1", "https://a:99999", "https://a:x", "https://a:0"])
def test_a_public_url_that_cannot_be_parsed_is_a_sentence(tmp_path: Path, url: str):
    """Found at the start, not at the first request."""
    with pytest.raises(ConfigurationError, match="public URL"):
        Settings(data=tmp_path, public_urls=(url,))


def test_the_mode_of_a_directory_that_holds_something_is_left_alone(tmp_path: Path):
    """``--data /srv`` by mistake changes nothing there; an empty directory is made private."""
    used, empty = tmp_path / "used", tmp_path / "empty"
    for place in (used, empty):
        place.mkdir()
        place.chmod(0o755)
    (used / "file").touch()

    with pytest.raises(ConfigurationError, match="chmod 700"):
        prepare_directory(used)
    prepare_directory(empty)

    assert (0o755, 0o700) == tuple(place.stat().st_mode & 0o777 for place in (used, empty))


async def test_keys_that_are_no_directory_are_a_sentence(tmp_path: Path):
    """A file where the keys should be stops the start without a traceback."""
    (tmp_path / "keys").touch()

    with pytest.raises(ConfigurationError, match="cannot be used"):
        await open_runtime(Settings(data=tmp_path), FrozenClock(), SystemEntropy())


async def test_a_machine_id_is_not_taken_over_by_changing_hardware(server: Server):
    """A matching machine that now shows another agent's machine id is refused as a duplicate."""
    from redflag_core import codec
    from redflag_core.encoding import b64encode
    from redflag_core.envelope import sign_envelope
    from redflag_core.machine import MachineEvidence
    from redflag_core.messages import EVIDENCE_TYPE, EvidenceStatement

    other, machine = await server.agent(), await server.agent()
    stays = {"smbios_uuid": "a" * 32, "board_serial": "b" * 32}
    async with server.runtime.database.write() as session:
        row = await session.get(Agent, UUID(machine.agent_id))
        assert row is not None
        row.evidence = {**row.evidence, **stays}
        row.evidence_digest = codec.structure(MachineEvidence, row.evidence).digest
    shown = attrs.evolve(machine.evidence(), machine_id=other.evidence().machine_id, **stays)
    signed = sign_envelope(EVIDENCE_TYPE, codec.dump(EvidenceStatement(1, shown)), machine.executor)

    body = machine.token_body(evidence=b64encode(signed))
    answer = await machine.sign("/agent/token", body, with_token=False).send(server.client)

    assert (409, "duplicate_machine_id") == (answer.status_code, answer.json()["code"])


async def test_a_bundle_that_nobody_can_renew_is_announced_once_a_day(tmp_path: Path):
    """Without the root key on the server the end of the bundle is an event, not a surprise."""
    clock = FrozenClock()
    async with running(tmp_path, clock=clock):
        pass
    (tmp_path / "keys" / "root.key").unlink()
    clock.advance(65 * 86_400)
    async with running(tmp_path, clock=clock) as server:
        for _ in range(3):
            await run_due(server.runtime, JOBS)
            clock.advance(3601)

        assert 1 == (await server.event_kinds()).count("trust.renewal_due")
