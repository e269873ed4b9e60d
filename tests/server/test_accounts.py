"""Set-up, accounts, passwords and API keys."""

import asyncio
import logging

import attrs
import pytest

from redflag_server.accounts import passwords
from redflag_server.accounts.api_keys import KeyOrder, make_key, revoke_key
from redflag_server.accounts.authentication import Operator
from redflag_server.accounts.credentials import KEY_PREFIX
from redflag_server.accounts.passwords import MAX_LENGTH, MAX_WAITING, Passwords, check_password
from redflag_server.accounts.permissions import (
    EVERYTHING,
    PERMISSIONS,
    UserRole,
    check_permissions,
    common,
    permissions_of,
)
from redflag_server.accounts.schema import MadeApiKey
from redflag_server.accounts.setup import issue_setup_link
from redflag_server.accounts.tables import Credential, User
from redflag_server.accounts.users import account_name, add_user, disable_user
from redflag_server.agents.schema import MadeToken
from redflag_server.db.scope import whole_installation
from redflag_server.events.tables import Event
from redflag_server.problems import ConflictError, InvalidRequestError, UnavailableError
from tests.helpers.operators import (
    API,
    COOKIE,
    FORM,
    PASSWORD,
    add_machine,
    api_key,
    first_place,
    form_token,
    make_user,
    sign_in,
)

SETUP = {"name": "alice", "password": PASSWORD, "again": PASSWORD}


async def setup_path(server):
    link = await issue_setup_link(server.runtime)
    assert link is not None
    return link.removeprefix("http://127.0.0.1:8750")


# --- set-up ---


async def test_the_link_makes_the_first_owner_and_signs_it_in(server):
    """From the link on the console to the fleet page in one form."""
    path = await setup_path(server)

    form = await server.client.get(path)
    answer = await server.client.post(path, data=SETUP, headers=FORM, follow_redirects=False)

    owner = await server.row(User)
    assert (200, 303) == (form.status_code, answer.status_code)
    assert ("alice", "owner", None) == (owner.name, owner.role, owner.organization_id)
    assert 200 == (await server.client.get("/", follow_redirects=False)).status_code


async def test_with_an_owner_the_set_up_page_does_not_exist(server):
    """The used link, a new one and any other page answer alike, byte for byte; no new link is made."""
    path = await setup_path(server)
    await server.client.post(path, data=SETUP, headers=FORM)
    server.client.cookies.clear()

    answers = [
        await server.client.get(path),
        await server.client.post(path, data=SETUP, headers=FORM),
        await server.client.put(path),
        await server.client.get("/setup/" + "A" * 43),
        await server.client.get("/setup"),
        await server.client.get("/any-other-page"),
    ]

    assert [404] * 6 == [answer.status_code for answer in answers]
    assert 1 == len({answer.content for answer in answers})
    assert None is await issue_setup_link(server.runtime)


async def test_the_link_lasts_a_quarter_of_an_hour(server):
    """A link that was printed long ago is worth nothing."""
    path = await setup_path(server)
    server.clock.advance(15 * 60 - 1)
    before = (await server.client.get(path)).status_code
    server.clock.advance(1)

    assert [200, 404, 404] == [
        before,
        (await server.client.get(path)).status_code,
        (await server.client.post(path, data=SETUP, headers=FORM)).status_code,
    ]
    assert [] == await server.rows(User)


async def test_a_new_link_ends_the_one_before(server):
    """Only the latest link counts."""
    old, new = await setup_path(server), await setup_path(server)

    assert [404, 200] == [(await server.client.get(path)).status_code for path in (old, new)]


async def test_of_posts_at_the_same_time_one_makes_an_owner(server):
    """A race for the link has one winner."""
    path = await setup_path(server)
    forms = [{**SETUP, "name": f"user{number}"} for number in range(8)]

    answers = await asyncio.gather(
        *(server.client.post(path, data=form, headers=FORM, follow_redirects=False) for form in forms)
    )

    assert [303] + [404] * 7 == sorted(answer.status_code for answer in answers)
    assert 1 == len(await server.rows(User))


async def test_a_mistake_in_the_form_leaves_the_link(server):
    """A weak password, two different ones or an odd name are said, and can be corrected."""
    path = await setup_path(server)
    mistakes = [
        {**SETUP, "password": "short", "again": "short"},
        {**SETUP, "again": PASSWORD + "!"},
        {**SETUP, "name": "two words"},
        {**SETUP, "name": ""},
        {},
    ]

    answers = [await server.client.post(path, data={**form, "x": "1"}, headers=FORM) for form in mistakes]

    assert [400] * 5 == [answer.status_code for answer in answers]
    assert all('role="alert"' in answer.text for answer in answers)
    assert 303 == (await server.client.post(path, data=SETUP, headers=FORM, follow_redirects=False)).status_code


async def test_set_up_is_refused_to_other_sites(server):
    """Also the set-up form must come from this server's own page."""
    path = await setup_path(server)

    answer = await server.client.post(path, data=SETUP, headers={"sec-fetch-site": "cross-site"})

    assert 403 == answer.status_code
    assert [] == await server.rows(User)


async def test_a_sign_in_page_without_accounts_says_what_to_do(server):
    """Before set-up the page names the command that makes a link."""
    assert "redflag server setup-link" in (await server.client.get("/sign-in")).text


# --- passwords ---


def test_the_hash_is_argon2id_with_at_least_the_advised_cost():
    """19 MiB and two passes (OWASP), and the hash for unknown names costs the same."""
    kept = asyncio.run(Passwords().hash(PASSWORD))

    assert kept.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert kept.split("$")[:4] == passwords._NOBODY.split("$")[:4]


def test_a_password_is_taken_exactly_as_typed():
    """Blanks, case and the form of accents all count, and nothing is cut off."""
    long = "ö" * 500 + "".join(map(str, range(180)))

    async def check():
        store = Passwords()
        kept = await store.hash(long)
        return [await store.verify(kept, text) for text in (long, long[:-1], long + " ", long.upper())]

    assert [True, False, False, False] == asyncio.run(check())


@pytest.mark.parametrize(
    "password",
    ["", "short", "elevenchars", "x" * (MAX_LENGTH + 1), "aaaaaaaaaaaaaaaa", "abababababab", "password1234",
     "Passw0rd2024!!", "qwertyuiop12", "123456789012", "210987654321", "alice-alice-2024", "RedFlagRedFlag1",
     "administrator1", "abcdefghijkl"],
)  # fmt: skip
def test_guessable_passwords_are_refused(password):
    """Too short, too long, one key held down, common words, rows of keys, the own name."""
    with pytest.raises(InvalidRequestError):
        check_password(password, name="alice")


@pytest.mark.parametrize(
    "password",
    [
        PASSWORD,
        "x" * 10 + "yzabc1 Q",
        "8471925561038472",
        "tr0ub4dor&3xyz",
        "пять смешных слов",
        "🐴🔋📎🌍🎈🧊 horses",
    ],
)
def test_other_passwords_are_taken(password):
    """Nobody is asked for a capital letter, a digit and a sign."""
    check_password(password, name="alice")


def test_hashing_never_holds_more_than_its_bound():
    """Passwords wait for their turn up to a bound; then people are told to come back."""

    async def crowd():
        store = Passwords()
        return await asyncio.gather(
            *(store.verify(None, "x" * 12) for _ in range(MAX_WAITING + 5)), return_exceptions=True
        )

    results = asyncio.run(crowd())

    assert MAX_WAITING == results.count(False)
    assert 5 == sum(isinstance(result, UnavailableError) for result in results)


# --- accounts ---


@pytest.mark.parametrize(
    "text,expected",
    [
        (" Alice ", "alice"),
        ("a.b+c@x-y.example", "a.b+c@x-y.example"),
        ("Ⓐlice", "alice"),
        ("Jörg", "jörg"),
    ],
)
def test_a_name_has_one_spelling(text, expected):
    """Names that look alike are one name."""
    assert expected == account_name(text)


@pytest.mark.parametrize("text", ["", " ", "two words", "a\0b", "-x", "x" * 65, "a\u202eb", "<b>", "a/b"])
def test_odd_names_are_refused(text):
    """No blanks, control characters or markup in names."""
    with pytest.raises(InvalidRequestError):
        account_name(text)


async def test_a_name_is_given_once(server):
    """A second account of the same name is a conflict, in any spelling."""
    await make_user(server.runtime)

    with pytest.raises(ConflictError):
        await make_user(server.runtime, "ALICE")


async def test_the_last_owner_stays(server):
    """The last one who could undo it cannot be disabled; with another owner it can."""
    visible = whole_installation("test")
    alice = await make_user(server.runtime)
    with pytest.raises(ConflictError):
        await disable_user(server.runtime, visible, alice.id, "left")

    await make_user(server.runtime, "bob")
    disabled = await disable_user(server.runtime, visible, alice.id, "left")

    assert server.clock.now() == disabled.disabled_at


# --- permissions and API keys ---


def test_an_owner_may_everything_and_a_viewer_may_look():
    """Viewers hold every permission to read and none to change."""
    assert {EVERYTHING} == permissions_of(UserRole.OWNER)
    assert {name for name in PERMISSIONS if name.endswith(":read")} == permissions_of(UserRole.VIEWER)
    assert not any(name.endswith(":write") for name in permissions_of(UserRole.VIEWER))


def test_what_two_have_in_common():
    """A key never has more than its maker, whichever of them holds everything."""
    some, others = {"agents:read", "packages:read"}, {"agents:read", "agents:write"}

    assert {"agents:read"} == common(some, others)
    assert some == common(some, {EVERYTHING}) == common({EVERYTHING}, some)


@pytest.mark.parametrize("names", [(), ("agents:reed",), ("agents:read", "x")])
def test_unknown_permissions_are_refused(names):
    """A misspelt permission is named, and so are those that there are."""
    with pytest.raises(InvalidRequestError, match="agents:read"):
        check_permissions(names)


async def test_a_key_opens_what_its_permissions_say(server):
    """Each permission opens its own endpoints: everything else is refused with 403."""
    wanted = {"agents": "agents:read", "packages": "packages:read", "events": "events:read",
              "registration-tokens": "registration-tokens:read", "api-keys": "api-keys:read",
              "client-errors": "errors:read", "users": "users:read"}  # fmt: skip
    for permission in wanted.values():
        headers = await api_key(server.runtime, permission)
        for path, needed in wanted.items():
            answer = await server.client.get(f"{API}/{path}", headers=headers)
            assert (200 if needed == permission else 403) == answer.status_code, (permission, path)


async def test_a_key_to_read_changes_nothing(server):
    """Reading permissions are refused on every POST, and nothing changes."""
    headers = await api_key(server.runtime, *(name for name in PERMISSIONS if name.endswith(":read")))
    before = await server.dump()
    body = {"label": "x", "seats": 1, "expires_in_seconds": 60}

    answers = [
        await server.client.post(f"{API}/registration-tokens", headers=headers, json=body),
        await server.client.post(
            f"{API}/api-keys", headers=headers, json={"name": "x", "scopes": ["agents:read"]}
        ),
    ]

    assert [403, 403] == [answer.status_code for answer in answers]
    after = await server.dump()
    assert {**before, "credentials": None} == {**after, "credentials": None}
    assert len(before["credentials"]) == len(after["credentials"])


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer ", "Bearer x", "Bearer rfk_", "Bearer rfk_" + "A" * 43, "Basic YWxpY2U6eA==",
     "bearer rfk_\xff", "rfk_" + "A" * 43],
)  # fmt: skip
async def test_what_is_no_key_lets_nobody_in(server, value):
    """Any other authorization is 401 with a challenge, never an error of the server."""
    answer = await server.client.get(f"{API}/agents", headers={"authorization": value.encode("latin-1")})

    assert (401, "Bearer", "not_authenticated") == (
        answer.status_code,
        answer.headers["www-authenticate"],
        answer.json()["code"],
    )


async def test_a_revoked_or_expired_key_is_cut_off_at_once(server):
    """The next request after the end is refused."""
    visible = whole_installation("test")
    key, text = await make_key(server.runtime, visible, KeyOrder("a", ("*",)))
    _, ending = await make_key(server.runtime, visible, KeyOrder("b", ("*",), expires_in_days=1))

    async def status(secret):
        headers = {"authorization": f"Bearer {secret}"}
        return (await server.client.get(f"{API}/agents", headers=headers)).status_code

    before = [await status(text), await status(ending)]
    await revoke_key(server.runtime, visible, key.id, "lost")
    server.clock.advance(86_400)

    assert ([200, 200], [401, 401]) == (before, [await status(text), await status(ending)])


async def test_a_persons_keys_end_with_the_person(server):
    """Disabling somebody cuts off the keys that this person made."""
    await make_user(server.runtime, "boss")
    alice = await make_user(server.runtime)
    await sign_in(server.client)
    headers = {**FORM, "x-form-token": await form_token(server.client)}
    made = await server.client.post(f"{API}/api-keys", headers=headers, json={"name": "x", "scopes": ["*"]})
    server.client.cookies.clear()
    key = {"authorization": f"Bearer {made.json()['key']}"}
    before = (await server.client.get(f"{API}/agents", headers=key)).status_code

    await disable_user(server.runtime, whole_installation("test"), alice.id, "left")

    assert (201, 200, 401) == (
        made.status_code,
        before,
        (await server.client.get(f"{API}/agents", headers=key)).status_code,
    )


async def test_nobody_makes_a_key_with_more_than_it_has(server):
    """A key that may make keys cannot make one that may more, or see more."""
    place = await first_place(server.runtime)
    headers = await api_key(server.runtime, "api-keys:write", "agents:read", organization_id=place.organization_id)

    async def make(**body):
        answer = await server.client.post(f"{API}/api-keys", headers=headers, json={"name": "x", **body})
        return answer.status_code, answer.json()

    refused = [await make(scopes=scopes) for scopes in (["*"], ["agents:write"], ["agents:read", "users:read"])]
    status, made = await make(scopes=["agents:read"])

    assert [403] * 3 == [code for code, _ in refused]
    assert (201, str(place.organization_id)) == (status, made["api_key"]["organization_id"])


async def test_a_key_is_no_way_into_the_pages(server):
    """Pages are for people: an API key opens none, and a session with a bad key in the header is not used."""
    await make_user(server.runtime)
    key = await api_key(server.runtime)

    page = await server.client.get("/", headers=key, follow_redirects=False)
    await sign_in(server.client)
    answer = await server.client.get(f"{API}/agents", headers={"authorization": "Bearer x"})

    assert (303, 401) == (page.status_code, answer.status_code)


# --- secrets ---


async def test_secrets_are_shown_once_and_kept_nowhere(server, tmp_path, caplog):
    """Keys, tokens, links, passwords and sessions are in no log, no event and no file of the database."""
    caplog.set_level(logging.DEBUG)
    path = await setup_path(server)
    await server.client.post(path, data=SETUP, headers=FORM)
    session = server.client.cookies[COOKIE]
    token = await form_token(server.client)
    headers = {**FORM, "x-form-token": token}
    key = (
        await server.client.post(f"{API}/api-keys", headers=headers, json={"name": "x", "scopes": ["*"]})
    ).json()
    order = {"label": "x", "seats": 1, "expires_in_seconds": 60}
    text = (await server.client.post(f"{API}/registration-tokens", headers=headers, json=order)).json()["text"]
    await server.client.get(f"{API}/agents", headers={"authorization": f"Bearer {key['key']}"})
    await server.client.get(f"{API}/agents", headers={"authorization": f"Bearer {key['key']}x"})
    await sign_in(server.client, "alice", PASSWORD + "!")
    listed = [
        (await server.client.get(f"{API}/{name}")).text for name in ("api-keys", "registration-tokens", "events")
    ]

    secrets = [path.removeprefix("/setup/"), session, token, key["key"].removeprefix(KEY_PREFIX), text, PASSWORD]
    ours = "".join(record.getMessage() for record in caplog.records if not record.name.startswith("httpx"))
    stored = b"".join(file.read_bytes() for file in (tmp_path / "data").iterdir() if file.is_file())
    for secret in secrets:
        assert secret not in ours
        assert secret.encode() not in stored
        assert not any(secret in page for page in listed)


async def test_who_did_what_is_on_record(server):
    """Making, revoking and disabling are events with the name of who did it."""
    await make_user(server.runtime)
    await sign_in(server.client)
    headers = {**FORM, "x-form-token": await form_token(server.client)}
    made = await server.client.post(f"{API}/api-keys", headers=headers, json={"name": "backup", "scopes": ["*"]})
    url = f"{API}/api-keys/{made.json()['api_key']['id']}/revoke"
    first = await server.client.post(url, headers=headers, json={"reason": "the laptop is lost"})
    again = await server.client.post(url, headers=headers, json={"reason": "again"})

    events = await server.rows(Event, Event.kind.like("api_key.%"))
    assert ["user:alice"] * 2 == [event.actor for event in events]
    assert "The API key backup was revoked: the laptop is lost" == events[-1].message
    assert first.json() == again.json()


def test_secrets_do_not_show_in_texts_of_objects():
    """What may be logged by accident shows no secret."""
    for kind, field in ((MadeApiKey, "key"), (MadeToken, "text"), (Operator, "form_token")):
        assert not getattr(attrs.fields(kind), field).repr


async def test_a_viewer_looks_and_changes_nothing(server):
    """The pages of a viewer have no buttons to decide, and deciding is refused."""
    agent = await add_machine(server.runtime, await first_place(server.runtime))
    await make_user(server.runtime, "victor", UserRole.VIEWER)
    await sign_in(server.client, "victor")
    page = await server.client.get(f"/machines/{agent}")
    form = {"form_token": await form_token(server.client), "reason": "x"}

    answer = await server.client.post(f"/machines/{agent}/revoke", data=form, headers=FORM)

    assert (200, 403) == (page.status_code, answer.status_code)
    assert "Decide" not in page.text


async def test_an_account_of_one_organization_is_no_way_to_the_others(server):
    """The organization of an account holds for its keys too, when none is named."""
    place = await first_place(server.runtime)
    user = await add_user(
        server.runtime, name="olga", password=PASSWORD, role=UserRole.OWNER,
        organization_id=place.organization_id, actor="test",
    )  # fmt: skip
    await sign_in(server.client, "olga")
    headers = {**FORM, "x-form-token": await form_token(server.client)}
    made = await server.client.post(f"{API}/api-keys", headers=headers, json={"name": "x", "scopes": ["*"]})

    assert str(place.organization_id) == made.json()["api_key"]["organization_id"]
    assert user.id == (await server.row(Credential, Credential.kind == "api_key")).user_id
