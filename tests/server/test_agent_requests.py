"""Signed requests of agents: what passes, and everything that does not."""

import asyncio
import base64
import gzip
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import jwt
import pytest

from redflag_core import codec
from redflag_core.keys import SigningKey
from redflag_core.messages import MAX_SMALL_BODY
from redflag_core.rate_limit import RateLimitPolicy
from redflag_core.testing import FrozenClock
from redflag_server.agents.tables import Agent
from redflag_server.events.tables import Event
from redflag_server.packages.tables import Package
from tests.helpers.fleet import Machine, Signed, full_report, package
from tests.helpers.server import Server, running


async def test_a_signed_check_in_is_answered(server: Server):
    """A registered agent checks in and learns the pace and the bundle."""
    machine = await server.agent()

    answer = await machine.check_in(server.client)

    assert 200 == answer.status_code
    body = answer.json()
    assert 45 <= body["next_check_in_seconds"] <= 75
    assert ("active", 1, []) == (body["status"], body["bundle_version"], body["commands"])


async def test_the_same_request_twice_succeeds_once(server: Server):
    """A replay of a genuine request is refused, and an event says so."""
    machine = await server.agent()
    signed = machine.sign("/agent/check-in", machine.check_in_body())

    first, second = await signed.send(server.client), await signed.send(server.client)

    assert (200, 401) == (first.status_code, second.status_code)
    assert "replayed" == second.json()["code"]
    assert ["replayed"] == await server.refusals()


async def test_a_replay_is_refused_after_a_restart(tmp_path: Path):
    """Nonces outlive the process."""
    clock = FrozenClock()
    async with running(tmp_path, clock=clock) as server:
        machine = await server.agent()
        signed = machine.sign("/agent/check-in", machine.check_in_body())
        assert 200 == (await signed.send(server.client)).status_code

    async with running(tmp_path, clock=clock) as restarted:
        answer = await signed.send(restarted.client)

    assert (401, "replayed") == (answer.status_code, answer.json()["code"])


async def test_hundreds_of_nonces_three_times_at_once_succeed_once_each(server: Server):
    """Of three concurrent copies of each of 200 requests exactly one is accepted."""
    token = await server.token(seats=10)
    machines = [await server.machine().enrol(server.client, token) for _ in range(10)]
    requests = [
        machine.sign("/agent/check-in", machine.check_in_body()) for machine in machines for _ in range(20)
    ]

    answers = await asyncio.gather(*(request.send(server.client) for request in requests * 3))

    codes = [answer.status_code for answer in answers]
    by_request = [sorted(codes[i :: len(requests)]) for i in range(len(requests))]
    assert [[200, 401, 401]] * 200 == by_request


async def test_a_replay_of_a_report_or_token_request_is_refused(server: Server):
    """Every signed endpoint claims the nonce, not only check-in."""
    machine = await server.agent()
    for path, body, with_token in (
        ("/agent/token", machine.token_body(), False),
        ("/agent/errors", b'{"v":1,"batch_id":"00000000-0000-4000-8000-000000000000","errors":[]}', True),
    ):
        signed = machine.sign(path, body, with_token=with_token)
        await signed.send(server.client)
        again = await signed.send(server.client)
        assert (401, "replayed") == (again.status_code, again.json()["code"]), path


def _flip(text: str, index: int) -> str:
    return text[:index] + ("A" if text[index] != "A" else "B") + text[index + 1 :]


def _changes(signed: Signed) -> dict[str, Signed]:
    """Requests that differ from a genuine one in one thing."""
    headers = signed.headers

    def with_header(name: str, value: str | None) -> Signed:
        changed = {key: text for key, text in headers.items() if key != name}
        return attrs.evolve(signed, headers=changed if value is None else {**changed, name: value})

    digest = base64.b64encode(b"0" * 32).decode()
    params = headers["signature-input"]
    cases = {
        "method": attrs.evolve(signed, method="PUT"),
        "path": attrs.evolve(signed, path=signed.path.replace("check-in", "errors")),
        "path spelling": attrs.evolve(signed, path=signed.path.replace("check-in", "check%2Din")),
        "query": attrs.evolve(signed, query="a=1"),
        "body": attrs.evolve(signed, body=signed.body + b" "),
        "body byte": attrs.evolve(signed, body=signed.body.replace(b'"v":1', b'"v":2')),
        "digest": with_header("content-digest", f"sha-256=:{digest}:"),
        "authorization": with_header(
            "authorization", _flip(headers["authorization"], -1 + len(headers["authorization"]))
        ),
        "nonce": with_header("signature-input", params.replace('nonce="', 'nonce="A', 1)[:-1] + '"'),
        "created": with_header("signature-input", params.replace("created=1", "created=2", 1)),
        "keyid": with_header("signature-input", _flip(params, params.index('keyid="') + 7)),
        "signature": with_header("signature", _flip(headers["signature"], 10)),
        "label": with_header("signature", headers["signature"].replace("rf=", "xx=")),
        "content-encoding": with_header("content-encoding", "gzip"),
    }
    for name in ("authorization", "content-digest", "signature-input", "signature"):
        cases[f"without {name}"] = with_header(name, None)
    return cases


async def test_a_request_with_anything_changed_is_refused_and_changes_nothing(server: Server):
    """One header, byte, method, path or query changed: 4xx problem+json with a code, an event, the same state."""
    machine = await server.agent()
    before = await server.dump()
    for name, changed in _changes(machine.sign("/agent/check-in", machine.check_in_body())).items():
        answer = await changed.send(server.client)
        assert 400 <= answer.status_code < 500, name
        assert "application/problem+json" == answer.headers["content-type"], name
        assert answer.json()["code"], name
        assert before == await server.dump(), name
    assert len(await server.refusals()) >= 17


async def test_every_flipped_bit_of_the_signature_is_refused(server: Server):
    """A sample of all the bits of a signature: none of them is free."""
    machine = await server.agent()
    signed = machine.sign("/agent/check-in", machine.check_in_body())
    raw = base64.b64decode(signed.headers["signature"][4:-1])
    for bit in range(0, 512, 37):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        headers = {**signed.headers, "signature": f"rf=:{base64.b64encode(bytes(flipped)).decode()}:"}
        answer = await attrs.evolve(signed, headers=headers).send(server.client)
        assert (401, "bad_signature") == (answer.status_code, answer.json()["code"])
    assert 200 == (await signed.send(server.client)).status_code, "forgers burnt the nonce"


async def test_a_request_for_another_server_name_is_refused(server: Server):
    """The authority is signed: a request meant for another name does not verify here."""
    machine = await server.agent()
    machine.authority = "other.example.com"

    answer = await machine.check_in(server.client)

    assert (401, "bad_signature") == (answer.status_code, answer.json()["code"])


async def test_a_forwarded_host_is_not_believed(server: Server):
    """Forwarded headers do not change the name that must have been signed."""
    machine = await server.agent()
    signed = machine.sign("/agent/check-in", machine.check_in_body())
    headers = {**signed.headers, "x-forwarded-host": "other.example.com", "forwarded": "host=other.example.com"}

    assert 200 == (await attrs.evolve(signed, headers=headers).send(server.client)).status_code


@pytest.mark.parametrize("seconds", [-301, 301])
async def test_a_stale_request_is_answered_with_the_time(server: Server, seconds: int):
    """A wrong clock is 401 with a Date header, from which the agent learns its offset."""
    machine = await server.agent()
    created = server.clock.now() + timedelta(seconds=seconds)
    signed = machine.sign("/agent/check-in", machine.check_in_body(), created=created)

    answer = await signed.send(server.client)

    assert (401, "stale") == (answer.status_code, answer.json()["code"])
    assert "GMT" in answer.headers["date"]


@pytest.mark.parametrize("seconds", [-300, 300])
async def test_the_tolerance_is_inclusive(server: Server, seconds: int):
    """A clock that is wrong by exactly the tolerance is accepted."""
    machine = await server.agent()
    created = server.clock.now() + timedelta(seconds=seconds)
    signed = machine.sign("/agent/check-in", machine.check_in_body(), created=created)

    assert 200 == (await signed.send(server.client)).status_code


async def test_an_oversized_body_is_refused(server: Server):
    """A body over the bound is 413, whoever sends it."""
    machine = await server.agent()
    signed = machine.sign("/agent/check-in", b" " * (MAX_SMALL_BODY + 1))

    answer = await signed.send(server.client)

    assert (413, "too_large") == (answer.status_code, answer.json()["code"])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"v":1,"v":1}',
        b'{"v":NaN}',
        b"[" * 200,
        b'{"v":1,"state":"\\u0000"}',
        b'{"v":2,"state":"x","boot_id":null}',
        b'{"v":1,"state":"x","boot_id":null,"unknown":1}',
        b'{"v":1,"state":"AAAA","boot_id":null}',
    ],
)
async def test_a_malformed_body_is_refused(server: Server, body: bytes):
    """A genuine agent that sends nonsense gets 400 with a code; nothing changes but the nonce."""
    machine = await server.agent()
    before = await server.dump()

    answer = await machine.sign("/agent/check-in", body).send(server.client)

    assert (400, "malformed") == (answer.status_code, answer.json()["code"])
    assert before == await server.dump()


async def test_a_compressed_body_is_refused_with_the_encodings_accepted(server: Server):
    """A content encoding that is not offered is 415, not guessed at."""
    machine = await server.agent()
    signed = machine.sign("/agent/check-in", machine.check_in_body(), extra={"content-encoding": "gzip"})

    answer = await signed.send(server.client)

    assert (415, "unsupported_encoding") == (answer.status_code, answer.json()["code"])


async def test_a_compressed_report_is_stored_like_a_plain_one(server: Server):
    """The signature is over what was sent; the report is what it was before."""
    machine = await server.agent()
    report = full_report([package(f"package-{number}") for number in range(50)])

    answer = await packed(machine, "/agent/reports/apt", codec.dump(report)).send(server.client)

    assert (200, report.hash) == (answer.status_code, answer.json()["hash"])
    assert 50 == len(await server.rows(Package))


@pytest.mark.parametrize(
    "damage, status, code",
    [
        (lambda wire: wire[:-1], 400, "malformed"),
        (lambda wire: wire + b"x", 400, "malformed"),
        (lambda wire: wire + wire, 400, "malformed"),
        (lambda wire: b"{}", 400, "malformed"),
        (lambda wire: gzip.compress(b""), 400, "malformed"),
        (lambda wire: gzip.compress(bytes(17 * 1024 * 1024)), 413, "too_large"),
    ],
    ids=["cut off", "trailing", "twice", "not gzip", "empty", "bomb"],
)
async def test_a_body_that_is_no_gzip_or_becomes_too_large_is_refused(server: Server, damage, status, code):
    """A bomb is given up at the size that a plain body may have."""
    machine = await server.agent()
    wire = damage(gzip.compress(codec.dump(full_report([package("bash")]))))

    answer = await packed(machine, "/agent/reports/apt", wire, compress=bytes).send(server.client)

    assert (status, code) == (answer.status_code, answer.json()["code"])
    assert [] == await server.rows(Package)


async def test_the_encoding_of_a_body_is_signed(server: Server):
    """Whoever is in between cannot let a body be read in another way."""
    machine = await server.agent()
    signed = packed(machine, "/agent/reports/apt", codec.dump(full_report([package("bash")])))

    for name in ("identity", "gzip, gzip", None):
        headers = {key: value for key, value in signed.headers.items() if key != "content-encoding"}
        changed = attrs.evolve(signed, headers=headers | ({} if name is None else {"content-encoding": name}))
        answer = await changed.send(server.client)

        assert answer.status_code in (400, 401, 415), name
    assert [] == await server.rows(Package)


def packed(machine, path, body, compress=gzip.compress):
    """A signed request with a compressed body."""
    return machine.sign(path, compress(body), extra={"content-encoding": "gzip"})


async def test_an_unknown_key_is_refused(server: Server):
    """Somebody with a key of their own gets nowhere."""
    machine = await server.agent()
    machine.key = SigningKey.generate()

    answer = await machine.check_in(server.client)

    assert 401 == answer.status_code


async def test_the_token_of_another_agent_is_refused(server: Server):
    """An access token is bound to the key it was given to."""
    one, other = await server.agent(), await server.agent()
    one.access_token = other.access_token

    answer = await one.check_in(server.client)

    assert (401, "bad_token") == (answer.status_code, answer.json()["code"])


def _forged(claims: dict[str, Any], secret: bytes, algorithm: str, typ: str = "redflag-agent+jwt") -> str:
    return jwt.encode(claims, secret, algorithm=algorithm, headers={"typ": typ})


async def test_forged_access_tokens_are_refused(server: Server):
    """Another secret, algorithm, type, audience, issuer, or no expiry: not a token of this server."""
    machine = await server.agent()
    secret = server.runtime.keys.agent_tokens
    genuine = jwt.decode(machine.access_token, options={"verify_signature": False})
    forgeries = [
        _forged(genuine, b"0" * 32, "HS256"),
        _forged(genuine, secret * 2, "HS512"),
        _forged(genuine, secret, "HS256", typ="JWT"),
        _forged({**genuine, "aud": "redflag-user"}, secret, "HS256"),
        _forged({**genuine, "iss": "00000000-0000-4000-8000-000000000000"}, secret, "HS256"),
        _forged({k: v for k, v in genuine.items() if k != "exp"}, secret, "HS256"),
        _forged({**genuine, "exp": genuine["nbf"] - 1}, secret, "HS256"),
        _forged({**genuine, "cnf": {}}, secret, "HS256"),
        _forged({**genuine, "sub": "nobody"}, secret, "HS256"),
        jwt.encode(genuine, "", algorithm="none"),
        "a.b.c",
    ]
    for forged in forgeries:
        machine.access_token = forged
        answer = await machine.check_in(server.client)
        assert (401, "bad_token") == (answer.status_code, answer.json()["code"]), forged


async def test_an_access_token_ends_after_a_day(server: Server):
    """24 hours and a second later a new one is needed, and the refresh secret gives it."""
    machine = await server.agent()
    server.clock.advance(24 * 3600 + 1)

    assert "bad_token" == (await machine.check_in(server.client)).json()["code"]
    assert 200 == (await machine.refresh(server.client)).status_code
    assert 200 == (await machine.check_in(server.client)).status_code


async def test_an_authorization_header_is_refused_where_there_is_no_token_yet(server: Server):
    """Before there is an access token the header must be absent."""
    machine = await server.agent()

    answer = await machine.sign("/agent/token", machine.token_body(), with_token=True).send(server.client)

    assert (400, "malformed") == (answer.status_code, answer.json()["code"])


async def test_the_rate_limit_of_an_agent_holds(tmp_path: Path):
    """The third of a burst of two is 429 with Retry-After; later it passes; others are not affected."""
    limit = RateLimitPolicy(count=60, period_seconds=60, burst=2)
    async with running(tmp_path, agent_limit=limit) as server:
        token = await server.token(seats=2)
        one = await server.machine().enrol(server.client, token)
        other = await server.machine().enrol(server.client, token)
        server.clock.advance(60)
        codes = [(await one.check_in(server.client)).status_code for _ in range(2)]

        refused = await one.check_in(server.client)

        assert [200, 200] == codes
        assert (429, "rate_limited") == (refused.status_code, refused.json()["code"])
        assert int(refused.headers["retry-after"]) >= 1
        assert {"ratelimit", "ratelimit-policy"} <= set(refused.headers)
        assert 200 == (await other.check_in(server.client)).status_code
        server.clock.advance(1)
        assert 200 == (await one.check_in(server.client)).status_code


async def test_forged_requests_do_not_charge_the_victim(tmp_path: Path):
    """A forger who knows a key id cannot drain its budget: the limit is charged after verification."""
    limit = RateLimitPolicy(count=60, period_seconds=60, burst=2)
    async with running(tmp_path, agent_limit=limit) as server:
        machine = await server.agent()
        server.clock.advance(60)
        for _ in range(5):
            signed = machine.sign("/agent/check-in", machine.check_in_body())
            headers = {**signed.headers, "signature": _flip(signed.headers["signature"], 20)}
            assert 401 == (await attrs.evolve(signed, headers=headers).send(server.client)).status_code

        assert 200 == (await machine.check_in(server.client)).status_code


async def test_refused_requests_cannot_fill_the_disk(server: Server):
    """Of thousands of refusals from one address a bounded number becomes events, the rest is counted."""
    for _ in range(300):
        await server.client.post("/api/v1/agent/check-in", content=b"x")
    written = len(await server.refusals())
    server.clock.advance(60)
    await server.client.post("/api/v1/agent/check-in", content=b"x")
    last = (await server.rows(Event, Event.kind == "request.refused"))[-1]

    assert written <= 25
    assert 300 - written == last.data["suppressed_before"]


async def test_a_purge_does_not_free_a_nonce(server: Server):
    """After nonces are purged, what they protected is too old anyway."""
    from redflag_server.checkin.nonces import purge_nonces
    from redflag_server.checkin.tables import Nonce

    machine = await server.agent()
    signed = machine.sign("/agent/check-in", machine.check_in_body())
    assert 200 == (await signed.send(server.client)).status_code
    server.clock.advance(700)
    await purge_nonces(server.runtime)
    server.clock.jump(-650)  # an attacker's best case: the clock is set back

    answer = await signed.send(server.client)

    assert [] == await server.rows(Nonce)
    assert (503, "unavailable") == (answer.status_code, answer.json()["code"])


async def test_check_in_notes_who_was_there(server: Server):
    """The record has the time, the address and what the machine says of itself."""
    machine = await server.agent()
    server.clock.advance(100)

    await machine.check_in(server.client, hostname="new-name")

    agent = await server.row(Agent)
    assert (server.clock.now(), "new-name") == (agent.last_seen_at, agent.hostname)


async def test_agent_routes_say_what_they_need(server: Server):
    """Every route below /agent/ is behind the authentication middleware."""
    from redflag_server.checkin.authentication import AgentAuthentication, AgentRoute

    for route in server.app.routes:
        if route.path.startswith(("/api/v1/agent/", "/api/v1/agents/register")):
            for handler in route.route_handlers:  # type: ignore[union-attr]
                assert isinstance(handler.opt.get("agent"), AgentRoute) or "OPTIONS" in handler.http_methods
                if "OPTIONS" not in handler.http_methods:
                    assert AgentAuthentication in handler.resolve_middleware()


async def test_machine_helper_is_honest(server: Server):
    """The test's own machine is refused when it signs with a key that is not registered (the tests can fail)."""
    machine: Machine = await server.agent()
    machine.executor = SigningKey.generate()

    answer = await machine.check_in(server.client)

    assert 401 == answer.status_code
