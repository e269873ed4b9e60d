"""Sign-in, sessions and forms: who gets in, how long, and what other sites can do."""

import base64
import re
from datetime import timedelta

import pytest
from sqlalchemy import update

from redflag_core.rate_limit import RateLimitPolicy
from redflag_server.accounts.permissions import UserRole
from redflag_server.accounts.tables import Credential, User
from redflag_server.accounts.users import disable_user
from redflag_server.dashboard.controller import safe_path
from redflag_server.db.scope import whole_installation
from redflag_server.events.tables import Event
from tests.helpers.operators import (
    API,
    COOKIE,
    FORM,
    PASSWORD,
    add_machine,
    first_place,
    form_token,
    make_user,
    sign_in,
)
from tests.helpers.server import running


async def signed_in(server, **changes):
    """Alice, signed in."""
    user = await make_user(server.runtime, **changes)
    answer = await sign_in(server.client, user.name)
    assert 303 == answer.status_code, answer.text
    return user


async def is_in(server):
    return (await server.client.get("/", follow_redirects=False)).status_code == 200


# --- getting in and out ---


async def test_a_person_signs_in_with_name_and_password(server):
    """The right name and password open a session, and the fleet page is shown."""
    await make_user(server.runtime)

    answer = await sign_in(server.client)

    assert (303, "/") == (answer.status_code, answer.headers["location"])
    assert await is_in(server)
    assert "user.signed_in" in await server.event_kinds()


async def test_the_name_is_the_same_in_every_spelling(server):
    """Case and surrounding blanks of a user name do not matter; those of a password do."""
    await make_user(server.runtime)

    answers = [await sign_in(server.client, *attempt) for attempt in ((" ALICE ",), ("alice", PASSWORD.upper()))]

    assert [303, 403] == [answer.status_code for answer in answers]


async def test_sign_out_ends_the_session_for_good(server):
    """After sign-out the same cookie lets nobody in."""
    await signed_in(server)
    cookie = server.client.cookies[COOKIE]
    token = await form_token(server.client)

    answer = await server.client.post(
        "/sign-out", data={"form_token": token}, headers=FORM, follow_redirects=False
    )
    server.client.cookies.set(COOKIE, cookie)

    assert (303, "/sign-in") == (answer.status_code, answer.headers["location"])
    assert not await is_in(server)
    assert "user.signed_out" in await server.event_kinds()


async def test_unknown_name_wrong_password_and_disabled_account_look_alike(server):
    """From the answer nobody learns whether an account exists."""
    await make_user(server.runtime)
    disabled = await make_user(server.runtime, "mallory", UserRole.VIEWER)
    await disable_user(server.runtime, whole_installation("test"), disabled.id, "left")

    answers = [
        await sign_in(server.client, name, password)
        for name, password in (("alice", "wrong " + PASSWORD), ("nobody", PASSWORD), ("mallory", PASSWORD))
    ]

    pages = {re.sub(r'value="(alice|nobody|mallory)"', "", answer.text) for answer in answers}
    assert [403] * 3 == [answer.status_code for answer in answers]
    assert 1 == len(pages)


async def test_an_unknown_name_costs_a_password_check_too(server, monkeypatch):
    """Known and unknown names take the same work: one hash of the same cost."""
    await make_user(server.runtime)
    kept_hashes = []
    verify = server.runtime.passwords.__class__.verify

    async def watched(self, kept, password):
        kept_hashes.append(kept)
        return await verify(self, kept, password)

    monkeypatch.setattr(server.runtime.passwords.__class__, "verify", watched)
    for name in ("alice", "nobody", "no such name!"):
        await sign_in(server.client, name, "wrong " + PASSWORD)

    assert [False, True, True] == [kept is None for kept in kept_hashes]


async def test_failed_sign_ins_are_events_without_what_was_typed(server):
    """A failure is on record, with the account if there is one, and never with the text of a mistyped field."""
    await make_user(server.runtime)

    await sign_in(server.client, "alice", "wrong " + PASSWORD)
    await sign_in(server.client, "my-password-in-the-wrong-field", "x")

    events = await server.rows(Event, Event.kind == "user.sign_in_failed")
    assert ["alice" in event.message for event in events] == [True, False]
    assert all("wrong-field" not in f"{event.message}{event.data}" for event in events)


async def test_attempts_of_one_address_are_limited(tmp_path):
    """Beyond the limit every attempt waits, also one with the right password, and the answer says how long."""
    limit = RateLimitPolicy(count=5, period_seconds=60, burst=5)
    async with running(tmp_path, sign_in_limit=limit) as server:
        await make_user(server.runtime)
        answers = [await sign_in(server.client, "alice", "wrong " + PASSWORD) for _ in range(5)]
        refused = await sign_in(server.client)
        server.clock.advance(float(refused.headers["retry-after"]))
        allowed = await sign_in(server.client)

    assert [403] * 5 == [answer.status_code for answer in answers]
    assert (429, "text/html; charset=utf-8") == (refused.status_code, refused.headers["content-type"])
    assert {"ratelimit", "ratelimit-policy"} <= set(refused.headers)
    assert 303 == allowed.status_code


# --- sessions ---


async def test_each_sign_in_has_a_new_session_and_ends_the_one_before(server):
    """A session id that was planted or known before is worth nothing after sign-in (no fixation)."""
    await signed_in(server)
    first = server.client.cookies[COOKIE]

    await sign_in(server.client)
    second = server.client.cookies[COOKIE]
    server.client.cookies.clear()
    server.client.cookies.set(COOKIE, first)

    assert first != second
    assert not await is_in(server)


async def test_a_planted_session_id_is_not_adopted(server):
    """Whatever the browser brings along, sign-in makes its own."""
    await make_user(server.runtime)
    planted = base64.urlsafe_b64encode(b"p" * 32).decode().rstrip("=")

    answer = await server.client.post(
        "/sign-in",
        data={"name": "alice", "password": PASSWORD},
        headers={**FORM, "cookie": f"{COOKIE}={planted}"},
        follow_redirects=False,
    )
    with_planted = await server.client.get("/", headers={"cookie": f"{COOKIE}={planted}"}, follow_redirects=False)

    assert planted not in answer.headers["set-cookie"]
    assert 303 == with_planted.status_code


async def test_a_disabled_person_is_cut_off_with_the_next_request(server):
    """Disabling an account ends its open sessions at once."""
    await make_user(server.runtime, "boss")
    user = await signed_in(server)
    assert await is_in(server)

    await disable_user(server.runtime, whole_installation("test"), user.id, "left")

    assert not await is_in(server)


async def test_a_session_ends_when_it_is_not_used(server):
    """Twelve hours without a request end it; requests in between keep it."""
    await signed_in(server)
    server.clock.advance(11.9 * 3600)
    kept = await is_in(server)
    server.clock.advance(11.9 * 3600)
    kept_again = await is_in(server)
    server.clock.advance(12 * 3600)

    assert [True, True, False] == [kept, kept_again, await is_in(server)]


async def test_a_page_left_open_keeps_no_session(server):
    """Pages that refresh themselves are not a person at work."""
    await signed_in(server)
    for _ in range(2):
        server.clock.advance(6.5 * 3600)
        answer = await server.client.get("/", headers={"x-refresh": "1"}, follow_redirects=False)

    assert 401 == answer.status_code


async def test_a_session_ends_after_a_week_however_much_it_is_used(server):
    """The absolute end holds for busy sessions too."""
    await signed_in(server)
    stays = []
    for _ in range(15):
        server.clock.advance(11.5 * 3600)
        stays.append(await is_in(server))

    assert [True] * 14 + [False] == stays


async def test_a_revoked_session_is_cut_off_at_once(server):
    """Nothing is cached: the row decides on every request."""
    await signed_in(server)

    async with server.runtime.database.write() as session:
        await session.execute(update(Credential).values(revoked_at=server.clock.now()))

    assert not await is_in(server)


async def test_dead_sessions_are_removed_when_somebody_signs_in(server):
    """Sessions that nobody can use any more do not pile up."""
    await signed_in(server)
    server.clock.advance(timedelta(days=8).total_seconds())

    await sign_in(server.client)

    assert 1 == len(await server.rows(Credential))


async def test_the_cookie_is_for_this_host_and_out_of_reach_of_scripts(tmp_path):
    """With TLS the cookie is Secure, HttpOnly, SameSite=Strict and bound to the host; on loopback not Secure."""
    for secure, name in ((True, "__Host-redflag"), (False, COOKIE)):
        async with running(tmp_path / name, behind_tls_proxy=secure) as server:
            await make_user(server.runtime)
            headers = {"sec-fetch-site": "same-origin"}
            answer = await server.client.post(
                "/sign-in", data={"name": "alice", "password": PASSWORD}, headers=headers, follow_redirects=False
            )
        kept, *attributes = [part.strip().lower() for part in answer.headers["set-cookie"].split(";")]
        assert kept.startswith(f"{name.lower()}=")
        assert {"httponly", "samesite=strict", "path=/"} <= set(attributes)
        assert secure is ("secure" in attributes)
        assert not any(attribute.startswith("domain") for attribute in attributes)


# --- other sites ---


async def test_forms_of_other_sites_are_refused(server):
    """Sign-in, sign-out and decisions are taken from pages of this server only, with the right token too."""
    await signed_in(server)
    token = await form_token(server.client)
    agent = await add_machine(server.runtime, await first_place(server.runtime))
    senders = [
        {"origin": "https://evil.example", "sec-fetch-site": "cross-site"},
        {"origin": FORM["origin"], "sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {"origin": "https://evil.example"},
        {"origin": "http://127.0.0.1:8751"},
        {"origin": "https://evil.example", "sec-fetch-site": "same-origin"},
        {"origin": "null"},
        {},
    ]
    forms = [
        ("/sign-in", {"name": "alice", "password": PASSWORD}),
        ("/sign-out", {"form_token": token}),
        (f"/machines/{agent}/revoke", {"form_token": token, "reason": "x"}),
        (f"{API}/agents/{agent}/revoke", {"form_token": token, "reason": "x"}),
    ]

    answers = {
        (str(headers), path): (
            await server.client.post(path, data=form, headers=headers, follow_redirects=False)
        ).status_code
        for headers in senders
        for path, form in forms
    }

    assert {} == {attempt: status for attempt, status in answers.items() if status != 403}
    assert await is_in(server)


async def test_forms_of_this_server_are_taken(server):
    """The browser's word that the page is ours is enough in each form in which browsers give it."""
    await make_user(server.runtime)
    senders = [
        FORM,
        {"sec-fetch-site": "same-origin"},
        {"origin": FORM["origin"]},
        {"origin": "null", "sec-fetch-site": "same-origin"},
    ]
    form = {"name": "alice", "password": PASSWORD}

    answers = [
        await server.client.post("/sign-in", data=form, headers=headers, follow_redirects=False)
        for headers in senders
    ]

    assert [303] * 4 == [answer.status_code for answer in answers]


async def test_what_changes_something_by_cookie_needs_the_form_token(server):
    """A cookie alone changes nothing, neither through a page nor through the API."""
    await signed_in(server)
    agent = await add_machine(server.runtime, await first_place(server.runtime))
    before = await server.dump()

    answers = [
        await server.client.post(f"/machines/{agent}/revoke", data={"reason": "x", **form}, headers=FORM)
        for form in ({}, {"form_token": ""}, {"form_token": "A" * 43})
    ]
    answers.append(await server.client.post(f"{API}/agents/{agent}/revoke", json={"reason": "x"}, headers=FORM))

    assert [403] * 4 == [answer.status_code for answer in answers]
    assert before == await server.dump()


async def test_the_token_of_another_session_is_refused(server):
    """Form tokens are bound to the session."""
    await signed_in(server)
    old = await form_token(server.client)
    await sign_in(server.client)

    answer = await server.client.post("/sign-out", data={"form_token": old}, headers=FORM, follow_redirects=False)

    assert 403 == answer.status_code
    assert await is_in(server)


async def test_the_api_takes_the_token_in_a_header(server):
    """A page's script may use the API with the session, its token in ``X-Form-Token``."""
    await signed_in(server)
    agent = await add_machine(server.runtime, await first_place(server.runtime))
    headers = {**FORM, "x-form-token": await form_token(server.client)}

    answer = await server.client.post(f"{API}/agents/{agent}/revoke", json={"reason": "scrapped"}, headers=headers)

    assert (200, "revoked") == (answer.status_code, answer.json()["agent"]["status"])


async def test_nothing_changes_by_get(server):
    """A link cannot sign out or decide."""
    await signed_in(server)
    agent = await add_machine(server.runtime, await first_place(server.runtime))
    before = await server.dump()

    answers = [await server.client.get(path) for path in ("/sign-out", f"/machines/{agent}/revoke")]

    assert [404, 404] == [answer.status_code for answer in answers]
    assert before == await server.dump()


# --- coming back to where one was ---


async def test_who_is_not_signed_in_is_asked_and_then_brought_back(server):
    """A page behind sign-in leads to the form, and the form leads back to the page."""
    await make_user(server.runtime)
    agent = await add_machine(server.runtime, await first_place(server.runtime))

    asked = await server.client.get(f"/machines/{agent}?current=true", follow_redirects=False)
    form = await server.client.get(asked.headers["location"])
    target = re.search(r'name="next" value="([^"]+)"', form.text)
    back = await sign_in(server.client, next=target[1])

    assert 303 == asked.status_code
    assert f"/machines/{agent}?current=true" == back.headers["location"]


@pytest.mark.parametrize(
    "target",
    ["//evil.example", "https://evil.example/", "/\\evil.example", "\\\\evil.example", "javascript:alert(1)", "",
     "evil", "/\t/evil.example", "/a\r\nSet-Cookie: x=1", "/%\n", "///evil.example", "/\u2028x", "http:/x"],
)  # fmt: skip
def test_sign_in_never_leads_to_another_site(target):
    """Whatever a link puts into ``next``, the way goes to a page of this server."""
    assert "/" == safe_path(target)


async def test_a_link_to_another_site_leads_to_the_fleet(server):
    """The form itself does not lead away either."""
    await make_user(server.runtime)

    answer = await sign_in(server.client, next="//evil.example")

    assert (303, "/") == (answer.status_code, answer.headers["location"])


def test_a_path_of_this_server_is_kept():
    """An ordinary path with a query is where sign-in leads to."""
    assert "/machines/1?current=true" == safe_path("/machines/1?current=true")


async def test_who_is_signed_in_is_not_asked_again(server):
    """The sign-in page leads on when there is a session."""
    await signed_in(server)

    answer = await server.client.get("/sign-in", follow_redirects=False)

    assert (303, "/") == (answer.status_code, answer.headers["location"])


# --- bad input ---


async def test_a_form_that_is_none_is_refused(server):
    """No body makes the form fail with more than a 4xx."""
    headers = {**FORM, "content-type": "application/x-www-form-urlencoded"}
    bodies = [
        b"",
        b"name",
        b"name=a&name=b&password=c",
        b"name=%00&password=x",
        b"name=%ff",
        b"\xff",
        b"a=1&" * 30,
        b"name=" + b"x" * 20_000,
        b"%",
        b"name=alice&password=" + b"%F0%9F%94%92" * 1300,
    ]

    answers = [await server.client.post("/sign-in", content=body, headers=headers) for body in bodies]

    assert {400, 413} >= {answer.status_code for answer in answers[:-1]}
    assert 403 == answers[-1].status_code


async def test_the_longest_password_can_be_used(server):
    """1024 characters of four bytes each fit through the form."""
    password = "".join(chr(0x1F600 + number % 64) for number in range(1024))
    await make_user(server.runtime)
    kept = await server.runtime.passwords.hash(password)
    async with server.runtime.database.write() as session:
        await session.execute(update(User).values(password_hash=kept))

    assert 303 == (await sign_in(server.client, "alice", password)).status_code
