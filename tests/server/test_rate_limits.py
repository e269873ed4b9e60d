"""Rate limits: which policy holds and why, and that it holds over all servers on one database."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core.errors import PolicyError
from redflag_core.rate_limit import RateLimitPolicy, parse, step
from redflag_core.testing import FrozenClock
from redflag_server.accounts.permissions import UserRole
from redflag_server.events.tables import Event
from redflag_server.jobs.retention import forget_old
from redflag_server.limits import AddressLimits
from redflag_server.problems import RateLimitedError
from redflag_server.rate_limits.arrivals import take
from redflag_server.rate_limits.classes import PROTECTIONS, RateClass, default_of, open_policy, text_of
from redflag_server.rate_limits.operators import OperatorLimits
from redflag_server.rate_limits.policies import FRESH_SECONDS, Policies
from redflag_server.rate_limits.tables import RateArrival, RateLimit
from redflag_server.settings import Settings
from tests.helpers.fleet import full_report, package
from tests.helpers.operators import API, api_key, first_place, make_user, new_place, sign_in
from tests.helpers.server import running

LIMITS = f"{API}/rate-limits"
HEADERS = {"ratelimit", "ratelimit-policy", "retry-after"}


@pytest.fixture
async def servers(database, tmp_path):
    """Servers on one database, with one clock: two on PostgreSQL; with SQLite there is one."""
    count, clock = 1 if database.template is None else 2, FrozenClock()
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(running(tmp_path / "data", clock=clock)) for _ in range(count)]


@pytest.fixture
def server(servers):
    """The first of them."""
    return servers[0]


async def put(server, headers, limit, policy, **changes):
    """Set a policy by the API."""
    body = {"limit": limit, "policy": policy, "reason": "for a test", **changes}
    return await server.client.put(LIMITS, headers=headers, json=body)


async def report(server, machine, number=0):
    """Send a report."""
    return await machine.report(server.client, full_report([package(f"lib{number}")]))


# --- policies ---


async def test_the_organizations_policy_comes_first_then_the_installations_then_the_built_in_one(server):
    """And the answer says which it is."""
    headers = await api_key(server.runtime, "*")
    place = await first_place(server.runtime)
    owner = {"organization_id": str(place.organization_id)}

    async def seen(**query):
        answer = await server.client.get(f"{LIMITS}/in-force", headers=headers, params=query)
        (item,) = [item for item in answer.json()["items"] if item["limit"] == "agent"]
        return item["source"], item["policy"]

    built_in = ("built-in", text_of(RateClass.AGENT, server.runtime.settings.agent_limit))
    assert [built_in] * 2 == [await seen(), await seen(**owner)]
    assert 200 == (await put(server, headers, "agent", "90/minute burst 30")).status_code
    assert [("installation", "90/minute per agent, burst 30")] * 2 == [await seen(), await seen(**owner)]
    assert 200 == (await put(server, headers, "agent", "120/minute per agent", **owner)).status_code
    assert ("organization", "120/minute per agent") == await seen(**owner)
    assert ("installation", "90/minute per agent, burst 30") == await seen()

    gone = {"limit": "agent", "reason": "enough", **owner}
    answers = [await server.client.post(f"{LIMITS}/delete", headers=headers, json=gone) for _ in range(2)]

    assert [200, 404] == [answer.status_code for answer in answers]
    assert "installation" == answers[0].json()["source"]
    assert ("installation", "90/minute per agent, burst 30") == await seen(**owner)


async def test_changes_are_events_and_the_list_says_who_made_them(server):
    """With the policy before, the one after, and why."""
    headers = await api_key(server.runtime, "*")
    await put(server, headers, "report", "30/hour burst 10")
    await put(server, headers, "report", "60/hour burst 10", reason="too few")
    (item,) = (await server.client.get(LIMITS, headers=headers)).json()["items"]
    gone = {"limit": "report", "reason": "enough"}
    await server.client.post(f"{LIMITS}/delete", headers=headers, json=gone)

    events = await server.rows(Event, Event.kind.startswith("rate_limit."))

    assert ["rate_limit.set", "rate_limit.set", "rate_limit.removed"] == [event.kind for event in events]
    assert ["60/hour per agent, burst 10", "report", None] == [
        item["policy"],
        item["limit"],
        item["organization_id"],
    ]
    assert {item["changed_by"]} == {event.actor for event in events}
    assert {
        "limit": "report",
        "before": "30/hour per agent, burst 10",
        "after": "60/hour per agent, burst 10",
        "reason": "too few",
    } == events[1].data
    assert [] == await server.rows(RateLimit)


@pytest.mark.parametrize("name", list(RateClass))
def test_a_policy_that_locks_everybody_out_is_refused(name):
    """The least is accepted; a little less is refused, with the least in the sentence."""
    least = PROTECTIONS[name].least
    slower = attrs.evolve(least, count=least.count - 1)
    smaller = attrs.evolve(least, burst=least.burst - 1)

    assert least == open_policy(name, str(least))
    for policy in (slower, smaller):
        with pytest.raises(PolicyError, match=f"at least {least}"):
            open_policy(name, text_of(name, policy))


def test_the_built_in_policies_could_be_set_too(tmp_path):
    """Nothing that holds by itself is below what can be set."""
    settings = Settings(data=tmp_path)
    defaults = {name: default_of(settings, name) for name in RateClass}

    set_by_hand = {name: policy and open_policy(name, text_of(name, policy)) for name, policy in defaults.items()}

    assert defaults == set_by_hand
    assert "60/minute per agent" == text_of(RateClass.AGENT, settings.agent_limit)


@pytest.mark.parametrize(
    "limit, policy, why",
    [
        ("agent", "1/hour", "must be at least"),
        ("agent", "60/minute per key", "is per agent"),
        ("agent", "soon", "is not a rate limit"),
        ("agent", "60/minute burst 1000001", "burst"),
        ("operator", "1/day", "sign in and change it back"),
        ("nothing", "60/minute", "limit"),
    ],
)
async def test_what_means_nothing_is_refused_and_changes_nothing(server, limit, policy, why):
    """400, with a sentence that says what is wrong."""
    answer = await put(server, await api_key(server.runtime, "*"), limit, policy)

    assert 400 == answer.status_code
    assert why in answer.json()["detail"]
    assert [] == await server.rows(RateLimit)


async def test_who_sees_one_organization_reads_its_limits_and_changes_none(server):
    """Limits protect the whole installation. Nobody without the permission reads any."""
    place, other = await first_place(server.runtime), await new_place(server.runtime, "other")
    mine = {"organization_id": str(place.organization_id)}
    headers = await api_key(server.runtime, "*", organization_id=place.organization_id)
    everything, nothing = await api_key(server.runtime, "*"), await api_key(server.runtime, "agents:read")
    await put(server, everything, "agent", "90/minute")
    await put(server, everything, "agent", "91/minute", organization_id=str(other.organization_id))
    await put(server, everything, "agent", "92/minute", **mine)

    codes = [
        (await put(server, headers, "agent", "60000/minute", **mine)).status_code,
        (await put(server, headers, "agent", "60000/minute")).status_code,
        (await put(server, headers, "agent", "90/minute", organization_id=str(other.organization_id))).status_code,
        (await server.client.get(LIMITS, headers=nothing)).status_code,
        (await put(server, everything, "sign-in", "60/minute", **mine)).status_code,
    ]
    items = (await server.client.get(LIMITS, headers=headers)).json()["items"]

    assert [403, 403, 404, 403, 400] == codes
    assert ["92/minute per agent"] == [item["policy"] for item in items]


@pytest.mark.postgresql
async def test_a_policy_set_on_one_server_holds_there_at_once_and_on_the_others_soon(servers):
    """Within the time for which policies are remembered, and not before that time is over."""
    here, there = servers[0], servers[-1]
    for server in servers:
        await server.runtime.policies.refresh()
    before = there.runtime.policies.required(RateClass.AGENT)
    wanted = parse("90/minute burst 30")

    assert 200 == (await put(here, await api_key(here.runtime, "*"), "agent", str(wanted))).status_code

    assert wanted == here.runtime.policies.required(RateClass.AGENT)
    if here is not there:
        await there.runtime.policies.refresh()
        assert before == there.runtime.policies.required(RateClass.AGENT)
    here.clock.advance(FRESH_SECONDS)
    await there.runtime.policies.refresh()
    assert wanted == there.runtime.policies.required(RateClass.AGENT)


async def test_policies_are_read_once_for_many_check_ins(server, monkeypatch):
    """No check-in costs a statement more: what was read holds for five seconds."""
    readings = []
    genuine = Policies._read

    async def counted(policies):
        readings.append(1)
        await genuine(policies)

    monkeypatch.setattr(Policies, "_read", counted)
    machine = await server.agent()
    server.clock.advance(FRESH_SECONDS)
    readings.clear()

    assert {200} == {(await machine.check_in(server.client)).status_code for _ in range(10)}
    assert [1] == readings


# --- machines ---


@pytest.mark.postgresql
async def test_the_policy_of_an_organization_holds_for_its_check_ins_over_all_servers(servers):
    """50 at once: as many pass as the burst says, wherever they are sent."""
    place, headers = await first_place(servers[0].runtime), await api_key(servers[0].runtime, "*")
    machine = await servers[0].agent()
    await put(servers[0], headers, "agent", "60/minute burst 12", organization_id=str(place.organization_id))
    servers[0].clock.advance(60)
    requests = [machine.sign("/agent/check-in", machine.check_in_body()) for _ in range(50)]

    answers = await asyncio.gather(
        *(request.send(servers[at % len(servers)].client) for at, request in enumerate(requests))
    )

    assert {200: 12, 429: 38} == Counter(answer.status_code for answer in answers)
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert set(refused.headers) >= HEADERS
    assert '"agent";q=60;w=60' == refused.headers["ratelimit-policy"]


@pytest.mark.postgresql
async def test_a_class_of_its_own_is_limited_beside_the_limit_of_all_requests(servers):
    """Reports beyond their policy are refused everywhere; check-ins are not, nor reports of another machine."""
    headers = await api_key(servers[0].runtime, "*")
    one, other = [await servers[0].agent() for _ in range(2)]
    await put(servers[0], headers, "report", "60/hour burst 5")
    servers[0].clock.advance(FRESH_SECONDS)

    answers = [await report(servers[at % len(servers)], one, at) for at in range(8)]

    assert [200] * 5 + [429] * 3 == [answer.status_code for answer in answers]
    assert '"report";q=60;w=3600' == answers[-1].headers["ratelimit-policy"]
    assert '"report";r=0;t=60' == answers[-1].headers["ratelimit"]
    assert "60" == answers[-1].headers["retry-after"]
    assert 200 == (await one.check_in(servers[0].client)).status_code
    assert 200 == (await report(servers[0], other)).status_code

    servers[0].clock.advance(60)

    assert [200, 429] == [(await report(servers[-1], one, at)).status_code for at in (9, 10)]


async def test_without_a_policy_of_its_own_a_class_writes_nothing(server):
    """Then a report costs what it did before there were such limits."""
    machine = await server.agent()

    assert 200 == (await report(server, machine)).status_code
    assert [] == await server.rows(RateArrival)


async def test_the_limits_of_a_machine_say_why_and_what_is_left(server):
    """For each class of its requests; the number goes down with each request."""
    headers = await api_key(server.runtime, "*")
    machine = await server.agent()
    await put(server, headers, "report", "60/hour burst 5")
    await put(server, headers, "agent", "60/minute burst 20")
    server.clock.advance(60)
    for at in range(5):
        await report(server, machine, at)

    answer = await server.client.get(f"{API}/agents/{machine.agent_id}/rate-limits", headers=headers)

    items = {item["limit"]: item for item in answer.json()["items"]}
    assert {"agent", "report", "result", "error", "token"} == set(items)
    assert (15, 0.0) == (items["agent"]["remaining"], items["agent"]["retry_after"])
    assert (0, 60.0) == (items["report"]["remaining"], items["report"]["retry_after"])
    assert ("built-in", None, None) == tuple(items["token"][key] for key in ("source", "policy", "remaining"))


async def test_a_forger_takes_nothing_of_a_victims_budget(server):
    """A request with the victim's key id and another's signature is refused before anything is charged."""
    headers = await api_key(server.runtime, "*")
    victim, forger = [await server.agent() for _ in range(2)]
    await put(server, headers, "agent", "60/minute burst 10")
    await put(server, headers, "report", "60/hour burst 5")
    server.clock.advance(60)
    own = forger.key
    forger.access_token, forger.key = victim.access_token, attrs.evolve(own)
    genuine = [victim.sign("/agent/check-in", victim.check_in_body()) for _ in range(10)]
    forged = [forger.sign("/agent/check-in", forger.check_in_body()) for _ in range(30)]
    for request in forged:
        stolen = request.headers["signature-input"].replace(own.key_id, victim.key.key_id)
        assert stolen != request.headers["signature-input"]
        request.headers["signature-input"] = stolen

    assert {"bad_signature"} == {(await request.send(server.client)).json()["code"] for request in forged}
    assert {200} == {(await request.send(server.client)).status_code for request in genuine}


# --- people and scripts ---


@pytest.mark.postgresql
@pytest.mark.parametrize("burst", [30, 100])
async def test_a_key_has_one_limit_over_all_servers_and_is_told_when_to_come_back(servers, burst):
    """With blocks or without: no server lets pass more, and together they let pass all."""
    everything, headers = [await api_key(servers[0].runtime, "*") for _ in range(2)]
    await put(servers[0], everything, "operator", f"60/minute burst {burst}")
    servers[0].clock.advance(FRESH_SECONDS)

    answers = await asyncio.gather(
        *(servers[at % len(servers)].client.get(LIMITS, headers=headers) for at in range(burst + 50))
    )

    assert {200: burst, 429: 50} == Counter(answer.status_code for answer in answers)
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert set(refused.headers) >= HEADERS
    assert '"operator";r=0;t=1' == refused.headers["ratelimit"]
    assert 200 == (await servers[0].client.get(LIMITS, headers=everything)).status_code
    servers[0].clock.advance(1)
    again = [
        (await server.client.get(LIMITS, headers=headers)).status_code for server in (servers[0], servers[-1])
    ]
    assert [200, 429] == again


async def test_a_session_is_limited_too_and_never_by_another_one(server):
    """Pages as well; what is not signed in has the limits of its address."""
    await put(server, await api_key(server.runtime, "*"), "operator", "60/minute burst 30")
    await make_user(server.runtime, "anna", UserRole.OWNER)
    await sign_in(server.client, "anna")

    codes = Counter([(await server.client.get("/")).status_code for _ in range(35)])

    assert {200: 30, 429: 5} == codes
    server.client.cookies.clear()
    await sign_in(server.client, "anna")
    assert 200 == (await server.client.get("/")).status_code


async def test_a_script_costs_one_write_for_a_block_of_requests(server, monkeypatch):
    """And who is refused costs none until a request is earned."""
    writes = []
    genuine = server.runtime.database.write

    def counted():
        writes.append(1)
        return genuine()

    policy = RateLimitPolicy(60, 60, 200)
    object.__setattr__(server.runtime.settings, "operator_limit", policy)
    monkeypatch.setattr(server.runtime.database, "write", counted)
    limits = server.runtime.operators
    for _ in range(200):
        await limits.charge("a", None)
    assert 10 == len(writes)

    for _ in range(20):
        with pytest.raises(RateLimitedError):
            await limits.charge("a", None)

    assert 10 == len(writes)


@pytest.mark.postgresql
async def test_what_is_left_of_an_old_block_is_not_used(server):
    """Two servers that had blocks, and rest: afterwards they let pass a burst together, not more."""
    object.__setattr__(server.runtime.settings, "operator_limit", RateLimitPolicy(60, 60, 100))
    runtime = server.runtime
    one, other = [OperatorLimits(runtime.database, runtime.clock, runtime.policies) for _ in range(2)]
    for limits in (one, other):
        await limits.charge("a", None)
    server.clock.advance(3600)

    passed = 0
    for at in range(200):
        try:
            await (one, other)[at % 2].charge("a", None)
            passed += 1
        except RateLimitedError:
            pass

    assert 100 == passed


# --- the arithmetic in the database ---


@pytest.mark.postgresql
async def test_the_database_computes_what_the_core_does(server):
    """To the last bit, over pauses, full bursts, policies that change and clocks that are set back."""
    policies = [
        parse(text) for text in ("60/minute burst 3", "7/13 seconds burst 5", "1000/second", "1/day burst 2")
    ]
    moments = [0, 0, 0, 0.001, 0.3, 1, 2, 60, -30, 3, -100, 0, -4000, 0, 0, 90_000, 1.7, 1.9, 0, 0]
    arrivals = {}
    for turn, pause in enumerate(moments * 4):
        server.clock.jump(pause)
        key, policy = f"k{turn % 2}", policies[(turn // 5) % 4]
        now = server.clock.now()
        arrivals[key], expected = step(arrivals.get(key), now.timestamp(), policy)

        async with server.runtime.database.write() as session:
            stored, decision = await take(session, key, policy, now)

        assert (arrivals[key], expected) == (stored, decision), turn


@pytest.mark.postgresql
async def test_fifty_at_once_for_a_new_key_are_counted_one_by_one(server):
    """The row that is not there yet is made once."""
    policy, now = RateLimitPolicy(60, 60, 7), server.clock.now()

    async def once():
        async with server.runtime.database.write() as session:
            return (await take(session, "new", policy, now))[1].allowed

    passed = await asyncio.gather(*(once() for _ in range(50)))

    assert 7 == sum(passed)


@pytest.mark.postgresql
async def test_rows_that_say_nothing_any_more_are_forgotten(server):
    """Those whose burst is full again; another one stays."""
    now = server.clock.now()
    async with server.runtime.database.write() as session:
        await take(session, "fast", RateLimitPolicy(60, 60, 60), now)
        await take(session, "slow", RateLimitPolicy(1, 86_400, 1), now)
    server.clock.advance(120)

    await forget_old(server.runtime)

    assert ["slow"] == [row.key for row in await server.rows(RateArrival)]


@given(
    texts=st.sampled_from([str(known.least) for known in PROTECTIONS.values()]), name=st.sampled_from(RateClass)
)
def test_what_is_stored_is_read_back_as_the_same_policy(texts, name):
    """The text form holds all that there is of a policy."""
    policy = parse(texts)

    assert policy == parse(text_of(name, policy).replace(f" per {PROTECTIONS[name].scope}", ""))


# --- addresses ---


async def test_limits_of_addresses_are_set_like_the_others(server):
    """Before anybody is known; so they are the same for all organizations."""
    headers = await api_key(server.runtime, "*")
    assert 200 == (await put(server, headers, "sign-in", "60/hour burst 5")).status_code

    codes = [(await sign_in(server.client, "nobody")).status_code for _ in range(7)]

    assert [403] * 5 + [429] * 2 == codes


@pytest.mark.parametrize("trusted, expected", [((), {200: 3, 429: 5}), (("127.0.0.1",), {200: 8})])
async def test_a_forwarded_address_is_believed_from_a_trusted_proxy_only(tmp_path, trusted, expected):
    """Otherwise whoever invents a new one for each request has no limit."""
    few = RateLimitPolicy(1, 60, 4)
    async with running(tmp_path / "data", address_limit=few, trusted_proxies=trusted) as server:
        machine = await server.agent()  # its token was the first request
        requests = [machine.sign("/agent/check-in", machine.check_in_body()) for _ in range(8)]
        for number, request in enumerate(requests):
            request.headers["x-forwarded-for"] = f"192.0.2.{number + 1}"

        codes = Counter([(await request.send(server.client)).status_code for request in requests])

    assert expected == codes


def test_addresses_that_are_limited_are_forgotten_oldest_first(monkeypatch):
    """Memory is bounded; whoever asks all the time is not forgotten."""
    monkeypatch.setattr("redflag_server.limits.MAX_ADDRESSES", 2)
    limits, policy = AddressLimits(FrozenClock()), RateLimitPolicy(1, 60, 2)
    for address in ("192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.3"):
        limits.charge("address", address, policy)

    with pytest.raises(RateLimitedError):
        limits.charge("address", "192.0.2.1", policy)
    limits.charge("address", "192.0.2.2", policy)
