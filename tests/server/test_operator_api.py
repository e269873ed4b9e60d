"""The API for people and scripts: lists, pages, filters, decisions, and bad input of every kind."""

from datetime import timedelta
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redflag_core import codec
from redflag_core.enrolment import AgentStatus, parse_registration_token
from redflag_core.errors import ConfigurationError
from redflag_core.machine import MachineEvidence
from redflag_core.scanning import PackageState, Severity
from redflag_server.agents.tables import Agent
from redflag_server.db.pages import MAX_LIMIT, make_cursor, parse_cursor
from redflag_server.events.tables import Event
from redflag_server.problems import InvalidRequestError
from redflag_server.published import tls_pin
from tests.helpers.operators import (
    API,
    add_error,
    add_event,
    add_machine,
    add_packages,
    add_scanner,
    api_key,
    evidence,
    first_place,
)
from tests.helpers.server import running


@pytest.fixture
async def place(server):
    """The organization that every server starts with."""
    return await first_place(server.runtime)


@pytest.fixture
async def key(server):
    """Headers with an API key that may everything."""
    return await api_key(server.runtime)


async def listed(server, key, query):
    answer = await server.client.get(f"{API}/{query}", headers=key)
    assert answer.status_code == 200, answer.text
    return answer.json()["items"]


# --- lists ---


async def test_a_machine_in_the_list_says_what_is_open_on_it(server, place, key):
    """Status, presence, open packages by state, security updates and failing scanners are all there."""
    agent = await add_machine(server.runtime, place)
    await add_scanner(server.runtime, place, agent, status="failed", error="damaged")
    await add_packages(
        server.runtime,
        place,
        agent,
        [
            ("a", {"security": True}),
            ("b", {}),
            ("c", {"state": PackageState.KEPT_BACK, "security": True}),
            ("d", {"state": PackageState.UNKNOWN, "security": True}),
            ("e", {"state": PackageState.CURRENT}),
            ("f", {"state": PackageState.NOT_APPLICABLE}),
        ],
    )

    (item,) = await listed(server, key, "agents")

    assert ("web-01", "active", "online") == (item["hostname"], item["status"], item["presence"])
    assert {"available": 2, "kept_back": 1, "unknown": 1} == item["packages"]
    assert (2, 1) == (item["security"], item["failing_scanners"])


async def test_presence_follows_the_pace_that_the_server_set(server, place, key):
    """A machine told to come back in 60 s is offline after 180 s; one that never checked in is neither."""
    await add_machine(server.runtime, place, "gone")
    await add_machine(server.runtime, place, "new", last_seen_at=None, next_check_in_at=None)
    at_once = [item["presence"] for item in await listed(server, key, "agents")]
    server.clock.advance(181)

    assert (["online", "never"], ["offline", "never"]) == (
        at_once,
        [item["presence"] for item in await listed(server, key, "agents")],
    )


async def test_machines_are_filtered_by_status_name_and_site(server, place, key):
    """Filters narrow the list; signs that SQL knows have no meaning in them."""
    for hostname, status in (
        ("web-01", "active"),
        ("WEB-02", "pending"),
        ("db_01", "revoked"),
        ("db%01", "active"),
    ):
        await add_machine(server.runtime, place, hostname, status=status)

    queries = {
        "hostname=web": {"web-01", "WEB-02"},
        "hostname=_": {"db_01"},
        "hostname=%25": {"db%01"},
        "status=pending&status=revoked": {"WEB-02", "db_01"},
        "status=active&hostname=web": {"web-01"},
        f"site={place.site_id}": {"web-01", "WEB-02", "db_01", "db%01"},
        "site=00000000-0000-0000-0000-000000000001": set(),
    }
    for query, expected in queries.items():
        assert expected == {item["hostname"] for item in await listed(server, key, f"agents?{query}")}, query


async def test_packages_up_to_date_are_hidden_until_asked_for(server, place, key):
    """The list is what is open; the rest is one filter away. Each item has the fields of the protocol."""
    agent = await add_machine(server.runtime, place)
    states = [PackageState.AVAILABLE, PackageState.HELD, PackageState.CURRENT, PackageState.NOT_APPLICABLE]
    await add_packages(server.runtime, place, agent, [(state, {"state": state}) for state in states])

    queries = {
        "": {"available", "held"},
        "include_current=true": {"available", "held", "current"},
        "include_current=false": {"available", "held"},
        "state=current": {"current"},
        "state=held&state=not_applicable": {"held", "not_applicable"},
    }
    for query, expected in queries.items():
        items = await listed(server, key, f"packages?{query}")
        assert expected == {item["state"] for item in items}, query
        fields = [
            "id",
            "agent_id",
            "manager",
            "name",
            "arch",
            "installed",
            "available",
            "severity",
            "state",
            "reason",
        ]
        assert all(set(fields) <= set(item) for item in items)
        assert all(("web-01", str(agent)) == (item["hostname"], item["agent_id"]) for item in items)


async def test_packages_are_filtered_by_machine_name_severity_and_manager(server, place, key):
    """Each filter alone and together."""
    one, two = [await add_machine(server.runtime, place, name) for name in ("one", "two")]
    await add_packages(server.runtime, place, one, [("openssl", {"severity": Severity.CRITICAL}), ("curl", {})])
    await add_packages(server.runtime, place, two, [("libssl3", {"manager": "dnf", "severity": Severity.LOW})])

    queries = {
        f"agent_id={one}": {"openssl", "curl"},
        "name=SSL": {"openssl", "libssl3"},
        "severity=critical&severity=low": {"openssl", "libssl3"},
        "manager=dnf": {"libssl3"},
        f"name=ssl&agent_id={two}&severity=critical": set(),
    }
    for query, expected in queries.items():
        assert expected == {item["name"] for item in await listed(server, key, f"packages?{query}")}, query


async def test_events_come_newest_first_and_are_filtered(server, place, key):
    """What happened last is on top; kind, machine and code narrow it down."""
    agent = await add_machine(server.runtime, place)
    await add_event(server.runtime, place, agent, "first")
    await add_event(server.runtime, place, agent, "second")
    await server.client.get(f"{API}/agents")

    assert ["second", "first"] == [e["message"] for e in await listed(server, key, f"events?agent_id={agent}")]
    assert 2 == len(await listed(server, key, "events?kind=agent.rebooted"))
    assert 1 == len(await listed(server, key, "events?code=not_authenticated"))


async def test_errors_are_listed_by_machine(server, place, key):
    """What a machine reported is there, with its count."""
    agent = await add_machine(server.runtime, place)
    await add_error(server.runtime, place, agent)

    (item,) = await listed(server, key, f"client-errors?agent_id={agent}&subsystem=scanner.apt")

    assert ("ScanError", 1) == (item["type"], item["count"])


async def test_one_machine_has_its_scanners(server, place, key):
    """The detail says what each scanner could not do, and since when."""
    agent = await add_machine(server.runtime, place)
    await add_scanner(server.runtime, place, agent, status="open", error="it kept failing", warnings=["old lists"])

    detail = (await server.client.get(f"{API}/agents/{agent}", headers=key)).json()

    (scanner,) = detail["scanners"]
    assert ("open", "it kept failing", ["old lists"]) == (scanner["status"], scanner["error"], scanner["warnings"])
    assert detail["agent"]["id"] == str(agent)


# --- pages ---


async def test_pages_show_every_row_once(server, place, key):
    """Following ``next`` from page to page gives each row exactly once, also while rows are added."""
    agent = await add_machine(server.runtime, place)
    names = [f"package-{number:03}" for number in range(25)]
    await add_packages(server.runtime, place, agent, [(name, {}) for name in names])

    seen, cursor, pages = [], "", 0
    while cursor is not None:
        page = (await server.client.get(f"{API}/packages?limit=10{cursor}", headers=key)).json()
        seen += [item["name"] for item in page["items"]]
        cursor = page["next"] and f"&cursor={page['next']}"
        pages += 1
        if pages == 1:
            await add_packages(server.runtime, place, agent, [("package-late", {})])

    assert ([*names, "package-late"], 3) == (seen, pages)


async def test_the_last_page_has_no_next(server, place, key):
    """A page that holds all that is left ends the list."""
    for number in range(2):
        await add_machine(server.runtime, place, f"m{number}")

    pages = [
        (await server.client.get(f"{API}/agents?limit={limit}", headers=key)).json() for limit in (1, 2, MAX_LIMIT)
    ]

    assert [(1, True), (2, False), (2, False)] == [
        (len(page["items"]), page["next"] is not None) for page in pages
    ]


async def test_newest_first_goes_on_with_older_ones(server, place, key):
    """Paging backwards in time skips nothing."""
    agent = await add_machine(server.runtime, place)
    for number in range(5):
        await add_event(server.runtime, place, agent, str(number))
    query = f"events?agent_id={agent}&limit=2"
    first = (await server.client.get(f"{API}/{query}", headers=key)).json()
    second = (await server.client.get(f"{API}/{query}&cursor={first['next']}", headers=key)).json()

    assert ["4", "3", "2", "1"] == [event["message"] for event in first["items"] + second["items"]]


@given(st.text(max_size=70))
def test_any_text_is_a_cursor_or_refused(text):
    """Nothing but a cursor of ours is taken, and it has one spelling."""
    try:
        last = parse_cursor(text)
    except InvalidRequestError:
        return
    assert text == make_cursor(last)


# --- bad input ---


BAD_QUERIES = {
    "agents": [
        *("limit=0", "limit=-1", f"limit={MAX_LIMIT + 1}", "limit=x", "limit=", "limit=" + "9" * 400),
        *("limit=1&limit=2", "hostname=a&hostname=b", "limit=1%00", "hostname=a%00b", "status=active%00", "%00=1"),
        *("cursor=", "cursor=x", "cursor=" + "A" * 22 + "=", "cursor=" + "A" * 65),
        *("status=nope", "status=", "site=x", "hostname=" + "x" * 257),
        *("host=a", "Limit=1", "state=held", "="),
    ],
    "packages": [
        *("state=nope", "state=held&state=nope", "severity=9", "include_current=maybe"),
        *("agent_id=x", "agent_id=", "name=%00", "manager=" + "x" * 33),
    ],
    "events": ["agent_id=1", "kind=" + "x" * 129, "code=%00"],
    "client-errors": [
        *(
            "agent_id=1",
            "subsystem=%00",
            "source=browser",
            "since=yesterday",
            "until=2026-02-01",
            "resolved=perhaps",
        ),
        *("text=" + "x" * 257, "digest=" + "x" * 65, "kind=x"),
    ],
    "client-errors/counts": ["text=x", "since=", "limit=1"],
    "api-keys": ["x=1"],
    "users": ["x=1"],
    "registration-tokens": ["x=1"],
}


async def test_bad_queries_are_refused(server, key):
    """Each is a 400 problem with a code and a sentence."""
    for path, queries in BAD_QUERIES.items():
        for query in queries:
            answer = await server.client.get(f"{API}/{path}?{query}", headers=key)
            assert (400, "application/problem+json") == (answer.status_code, answer.headers["content-type"]), query
            assert answer.json()["code"] in {"invalid_request", "malformed"}, query
            assert answer.json()["detail"], query


async def test_an_unknown_query_parameter_is_named(server, key):
    """A misspelt filter does not look like "no filter"."""
    answer = await server.client.get(f"{API}/agents?hostnmae=web", headers=key)

    assert "'hostnmae'" in answer.json()["detail"]
    assert "hostname" in answer.json()["detail"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_no_query_is_an_error_of_the_server(server, key, data):
    """Whatever is in a query string, the answer is a 2xx or a 4xx."""
    path = data.draw(st.sampled_from(sorted(BAD_QUERIES)))
    names = st.sampled_from(["limit", "cursor", "status", "state", "hostname", "name", "agent_id", "kind"])
    query = data.draw(st.lists(st.tuples(names, st.text(st.characters(codec="utf-8"), max_size=20)), max_size=4))

    answer = await server.client.get(f"{API}/{path}", params=query, headers=key)

    assert answer.status_code in (200, 400)


BAD_REASONS = [
    *(b"", b"null", b"[]", b"{", b"\xff", b"{}", b"[" * 100_000),
    *(b'{"reason":1}', b'{"reason":null}', b'{"reason":NaN}', b'{"reason":""}', b'{"reason":"  "}'),
    *(b'{"reason":"a","x":1}', b'{"reason":"a","reason":"b"}'),
    *(b'{"reason":"a\\u0000"}', b'{"reason":"a\\nb"}', b'{"reason":"\\ud800"}'),
    *(b'{"reason":"' + b"x" * 501 + b'"}', b'{"reason":"' + b"x" * 70_000 + b'"}'),
]


async def test_bad_bodies_are_refused_and_change_nothing(server, place, key):
    """Not JSON, unknown, missing or double fields, wrong types, control characters, too long: each a 4xx."""
    agent = await add_machine(server.runtime, place)
    await server.client.get(f"{API}/agents", headers=key)
    before = await server.dump()

    for body in BAD_REASONS:
        headers = {**key, "content-type": "application/json"}
        answer = await server.client.post(f"{API}/agents/{agent}/revoke", content=body, headers=headers)
        assert answer.status_code in (400, 413), body[:40]
        assert "application/problem+json" == answer.headers["content-type"]

    assert before == await server.dump()


async def test_any_content_type_is_read_as_json(server, place, key):
    """What a client says about the body does not matter: it is JSON or it is refused."""
    agent = await add_machine(server.runtime, place)
    types = ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", "x"]

    answers = [
        await server.client.post(
            f"{API}/agents/{agent}/revoke", content=b"reason=x", headers={**key, "content-type": kind}
        )
        for kind in types
    ]

    assert [400] * 4 == [answer.status_code for answer in answers]


async def test_ids_that_are_none_are_not_found(server, key):
    """A path with anything but a known UUID is 404, whatever is in it."""
    for text in (
        "x",
        "1",
        "%00",
        "..%2f..%2fetc",
        "00000000-0000-0000-0000-000000000001",
        "'--",
        "%ff",
        "x" * 3000,
    ):
        answer = await server.client.get(f"{API}/agents/{text}", headers=key)
        assert (404, "not_found") == (answer.status_code, answer.json()["code"]), text


async def test_bad_orders_for_registration_tokens_are_refused(server, key):
    """Bounds, types, networks and unknown fields: each is named in a 400."""
    changes = [
        *({"seats": seats} for seats in (0, 1001, "1", True, 1.5)),
        *({"expires_in_seconds": seconds} for seconds in (0, 30 * 86_400 + 1)),
        *({"label": label} for label in ("", "a\tb", "x" * 201)),
        *({"cidr": cidr} for cidr in ("nowhere", "10.0.0.1/8", "x" * 65)),
        {"site_id": "x"},
        {"needs_approval": "yes"},
        {"organization_id": None},
    ]
    for change in changes:
        order = {"label": "office", "seats": 1, "expires_in_seconds": 60, **change}
        answer = await server.client.post(f"{API}/registration-tokens", json=order, headers=key)
        assert 400 == answer.status_code, change
        assert next(iter(change)) in answer.json()["detail"], change


# --- registration tokens ---


async def test_a_token_is_all_that_a_machine_needs(server, key):
    """The text leads a machine to this server, which lets it in, as often as there are seats."""
    order = {"label": "office", "seats": 1, "expires_in_seconds": 3600}
    made = (await server.client.post(f"{API}/registration-tokens", json=order, headers=key)).json()
    token = parse_registration_token(made["text"])

    first = await server.machine().register(server.client, token)
    second = await server.machine().register(server.client, token)

    assert (server.runtime.server, server.runtime.root_fp) == (token.server, token.root_fp)
    assert (server.runtime.settings.urls, None) == (token.addresses, token.tls)
    assert [201, 403] == [first.status_code, second.status_code]
    (item,) = await listed(server, key, "registration-tokens")
    assert (1, 1, "api-key:test") == (item["used"], item["seats"], item["created_by"])


async def test_a_revoked_token_lets_nobody_in_and_keeps_who_is_in(server, key):
    """Revoking ends the token for new machines; machines that registered with it stay."""
    order = {"label": "office", "seats": 5, "expires_in_seconds": 3600}
    made = (await server.client.post(f"{API}/registration-tokens", json=order, headers=key)).json()
    token = parse_registration_token(made["text"])
    machine = await server.machine().enrol(server.client, token)
    url = f"{API}/registration-tokens/{token.id}/revoke"

    revoked = [await server.client.post(url, json={"reason": "leaked"}, headers=key) for _ in range(2)]

    assert [200, 200] == [answer.status_code for answer in revoked]
    assert 403 == (await server.machine().register(server.client, token)).status_code
    assert 200 == (await machine.check_in(server.client)).status_code
    assert 1 == (await server.event_kinds()).count("registration_token.revoked")


def test_a_certificate_that_is_none_stops_the_start(tmp_path):
    """Without a certificate there is no pin; a file that holds none is refused with its name."""
    (tmp_path / "none.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")

    assert None is tls_pin(None)
    for name in ("none.pem", "missing.pem"):
        with pytest.raises(ConfigurationError, match=name):
            tls_pin(tmp_path / name)


# --- decisions ---


async def decide(server, key, agent, action, reason="looked at it"):
    return await server.client.post(f"{API}/agents/{agent}/{action}", json={"reason": reason}, headers=key)


async def test_each_decision_fits_some_statuses(server, place, key):
    """Approve is for those who wait, release for the quarantined, revoke for all; the rest is a conflict."""
    done = {AgentStatus.ACTIVE}
    fits = {
        "approve": set(AgentStatus) - {AgentStatus.QUARANTINED, AgentStatus.REVOKED},
        "release": {AgentStatus.QUARANTINED} | done,
        "revoke": set(AgentStatus),
    }
    for status in AgentStatus:
        for action, statuses in fits.items():
            agent = await add_machine(server.runtime, place, status=status)
            answer = await decide(server, key, agent, action)
            assert (200 if status in statuses else 409) == answer.status_code, (status, action)


async def test_a_decision_is_an_event_and_doing_it_again_is_none(server, place, key):
    """Who, what and why are on record, once."""
    agent = await add_machine(server.runtime, place, status=AgentStatus.PENDING)

    answers = [await decide(server, key, agent, "approve", "seen on the rack") for _ in range(3)]

    event = await server.row(Event, Event.kind == "agent.approved")
    assert [200] * 3 == [answer.status_code for answer in answers]
    assert ("api-key:test", agent, place.organization_id) == (event.actor, event.agent_id, event.organization_id)
    assert "web-01 was approved: seen on the rack" == event.message
    assert {"before": "pending", "reason": "seen on the rack"} == event.data


async def test_a_pending_machine_takes_part_once_approved(server, key):
    """From registration with a token that needs approval to the first stored report."""
    token = await server.token(needs_approval=True)
    machine = await server.machine().enrol(server.client, token)
    before = (await machine.check_in(server.client)).json()["status"]

    await decide(server, key, machine.agent_id, "approve")

    assert ("pending", "active") == (before, (await machine.check_in(server.client)).json()["status"])


async def test_approving_changed_hardware_makes_it_the_hardware_on_record(server, place, key):
    """What was shown is adopted, and the mismatch is over."""
    shown = codec.unstructure(evidence("ab" * 16))
    now = server.clock.now()
    agent = await add_machine(
        server.runtime, place, status=AgentStatus.HARDWARE_CHANGED, presented_evidence=shown, mismatch_since=now
    )

    await decide(server, key, agent, "approve")

    row = await server.row(Agent)
    adopted = codec.structure(MachineEvidence, row.evidence)
    assert ("active", "ab" * 16, adopted.digest) == (row.status, row.machine_binding, row.evidence_digest)
    assert (None, None) == (row.presented_evidence, row.mismatch_since)


async def test_the_hardware_of_another_machine_is_not_adopted(server, place, key):
    """A duplicate never takes over a record, with an operator's help neither; after revoking it can."""
    taken = await add_machine(server.runtime, place, "first", machine_binding="ab" * 16)
    shown = codec.unstructure(evidence("ab" * 16))
    agent = await add_machine(
        server.runtime, place, "second", status=AgentStatus.HARDWARE_CHANGED, presented_evidence=shown
    )

    refused = await decide(server, key, agent, "approve")
    await decide(server, key, taken, "revoke")

    assert [409, 200] == [refused.status_code, (await decide(server, key, agent, "approve")).status_code]


async def test_a_lapsed_machine_gets_a_token_again_once_approved(server, key):
    """Ninety days away, then approved: the refresh chain goes on where it stopped."""
    machine = await server.agent()
    server.clock.advance(timedelta(days=91).total_seconds())
    lapsed = await machine.refresh(server.client)

    await decide(server, key, machine.agent_id, "approve")

    assert ("agent_renewal_pending", 200) == (
        lapsed.json()["code"],
        (await machine.refresh(server.client)).status_code,
    )


async def test_release_ends_every_token_and_lets_the_machine_come_back(server, key):
    """After a clone alarm the machine that is released asks for a new token and goes on; the old one is dead."""
    machine = await server.agent(boot_id="boot-a")
    for boot in ("boot-b", "boot-a"):
        machine.boot_id = boot
        answer = await machine.check_in(server.client)
    assert "agent_quarantined" == answer.json()["code"]

    await decide(server, key, machine.agent_id, "release")
    with_old = await machine.check_in(server.client)
    await machine.refresh(server.client)
    with_new = await machine.check_in(server.client)

    assert [401, 200] == [with_old.status_code, with_new.status_code]


async def test_two_that_go_on_with_one_key_are_cut_off_again(server, key):
    """A release helps one machine; alternating boots quarantine the key once more."""
    machine = await server.agent(boot_id="boot-a")
    for boot in ("boot-b", "boot-a"):
        machine.boot_id = boot
        await machine.check_in(server.client)
    await decide(server, key, machine.agent_id, "release")
    await machine.refresh(server.client)

    codes = []
    for boot in ("boot-a", "boot-b", "boot-a"):
        machine.boot_id = boot
        codes.append((await machine.check_in(server.client)).json().get("code"))

    assert [None, None, "agent_quarantined"] == codes


async def test_a_revoked_machine_is_cut_off_at_once_and_for_ever(server, key):
    """Its tokens, its refresh secret and its key are worth nothing; its history stays; nothing brings it back."""
    machine = await server.agent()

    await decide(server, key, machine.agent_id, "revoke", "stolen")

    refused = [await machine.check_in(server.client), await machine.refresh(server.client)]
    assert all(answer.status_code in (401, 403) for answer in refused)
    assert [409, 409] == [
        (await decide(server, key, machine.agent_id, action)).status_code for action in ("approve", "release")
    ]
    assert "agent.registered" in await server.event_kinds()
    assert 200 == (await server.client.get(f"{API}/agents/{machine.agent_id}", headers=key)).status_code


# --- what the server says of itself ---


async def test_links_and_tokens_carry_the_addresses_of_the_last_start(tmp_path):
    """What the command line prints is how the running server is reached."""
    urls = ("https://redflag.example.com/r", "https://192.0.2.1:8750")
    async with running(tmp_path, public_urls=urls, behind_tls_proxy=True) as server:
        headers = await api_key(server.runtime)
        order = {"label": "x", "seats": 1, "expires_in_seconds": 60}
        made = (await server.client.post(f"{API}/registration-tokens", json=order, headers=headers)).json()

    assert urls == parse_registration_token(made["text"]).addresses


async def test_ids_are_uuids_in_the_order_of_time(server, place, key):
    """Ids sort as things happened, so that pages do."""
    made = [await add_machine(server.runtime, place, f"m{number}") for number in range(5)]

    ids = [UUID(item["id"]) for item in await listed(server, key, "agents")]

    assert made == ids == sorted(ids)
    assert {7} == {identifier.version for identifier in ids}
