"""The server's command line: what scripts use, also while the server runs."""

import asyncio
import sqlite3
import stat
import threading

import pytest
from click.testing import CliRunner

from redflag_core import __version__
from redflag_core.enrolment import parse_registration_token
from redflag_server.accounts.tables import Credential, User
from redflag_server.agents.tables import RegistrationToken
from redflag_server.cli import main
from redflag_server.events.tables import Event
from tests.helpers.databases import CURRENT
from tests.helpers.operators import API, PASSWORD, sign_in
from tests.helpers.server import running


@pytest.fixture
def data(tmp_path):
    """A data directory in which nothing is yet."""
    return tmp_path / "data"


async def redflag(data, *arguments, stdin=None, code=0):
    """Run a command on a loop of its own; what it wrote to standard output and error."""
    command = [*arguments, "--data", str(data)]
    variables = CURRENT.place.environment(data)
    result = await asyncio.to_thread(CliRunner().invoke, main, command, input=stdin, env=variables)
    assert code == result.exit_code, result.output
    return result.stdout, result.stderr


async def found(data):
    """The first start, which makes the server."""
    async with running(data):
        pass


async def add_owner(data):
    await found(data)
    return await redflag(
        data, "user", "add", "alice", "--role", "owner", "--password-stdin", stdin=PASSWORD + "\n"
    )


async def test_a_user_made_on_the_command_line_signs_in(data):
    """What is made while the server is stopped is there when it starts."""
    await add_owner(data)

    async with running(data) as server:
        assert 303 == (await sign_in(server.client)).status_code


async def test_a_key_is_printed_once_and_opens_the_api(data):
    """Standard output is the key and nothing else, so that a script can take it as it is."""
    await found(data)
    out, err = await redflag(
        data, "api-key", "add", "backup", "--scope", "agents:read", "--scope", "packages:read"
    )
    headers = {"authorization": f"Bearer {out.strip()}"}

    async with running(data) as server:
        statuses = [
            (await server.client.get(f"{API}/{path}", headers=headers)).status_code
            for path in ("agents", "packages", "events")
        ]

    assert ("", True) == (err, out.strip().startswith("rfk_"))
    assert 1 == len(out.splitlines())
    assert [200, 200, 403] == statuses


async def test_commands_work_while_the_server_runs(data):
    """Accounts, keys and their ends take effect on the running server at once."""
    async with running(data) as server:
        key, _ = await redflag(data, "api-key", "add", "k", "--scope", "*")
        headers = {"authorization": f"Bearer {key.strip()}"}
        before = (await server.client.get(f"{API}/agents", headers=headers)).status_code
        await redflag(data, "api-key", "revoke", "k")
        after = (await server.client.get(f"{API}/agents", headers=headers)).status_code
        await redflag(data, "user", "add", "bob", "--role", "viewer", "--password-stdin", stdin=PASSWORD)
        signed_in = (await sign_in(server.client, "bob")).status_code
        await redflag(data, "user", "disable", "bob", "--reason", "left")
        cut_off = (await server.client.get("/", follow_redirects=False)).status_code
        kinds = await server.event_kinds()

    assert [200, 401, 303, 303] == [before, after, signed_in, cut_off]
    assert {"api_key.created", "api_key.revoked", "user.created", "user.disabled"} <= set(kinds)


async def test_a_token_leads_to_the_addresses_of_the_running_server(data):
    """What was said at the last start is what the token carries."""
    async with running(data, public_urls=("https://redflag.example.com",), behind_tls_proxy=True) as server:
        identity = server.runtime.server

    out, _ = await redflag(data, "registration-token", "add", "office", "--seats", "3", "--cidr", "192.0.2.0/24")
    token = parse_registration_token(out)

    assert (("https://redflag.example.com",), identity) == (token.addresses, token.server)
    async with running(data) as server:
        row = await server.row(RegistrationToken)
        assert (3, "192.0.2.0/24", True) == (row.seats, row.cidr, row.created_by.startswith("cli"))
    await redflag(data, "registration-token", "revoke", token.id)
    assert token.id in (await redflag(data, "registration-token", "list"))[0]


async def test_a_set_up_link_opens_the_form_of_the_running_server(data):
    """The link of another process works on the server, until there is an owner: then none is made."""
    async with running(data):
        pass
    out, _ = await redflag(data, "setup-link")

    assert out.startswith("http://127.0.0.1:8750/setup/")
    async with running(data) as server:
        assert 200 == (await server.client.get(out.strip().removeprefix("http://127.0.0.1:8750"))).status_code
    await add_owner(data)
    _, err = await redflag(data, "setup-link", code=1)
    assert "there is an owner already" in err


async def test_lists_show_whole_ids_and_no_secrets(data):
    """What is copied from a list is whole; what is secret is not in it."""
    await add_owner(data)
    key, _ = await redflag(data, "api-key", "add", "backup", "--scope", "agents:read", "--expires-in-days", "30")
    token, _ = await redflag(data, "registration-token", "add", "office")

    users, keys, tokens = [
        (await redflag(data, name, "list"))[0] for name in ("user", "api-key", "registration-token")
    ]

    async with running(data) as server:
        key_row = await server.row(Credential)
        token_row = await server.row(RegistrationToken)
    assert "alice" in users
    assert str(key_row.id) in keys
    assert str(token_row.id) in tokens
    assert not any(
        secret.strip() in keys + tokens for secret in (key, token, parse_registration_token(token).secret)
    )


@pytest.mark.parametrize(
    "arguments,stdin,sentence",
    [
        (("user", "add", "bob", "--role", "viewer", "--password-stdin"), "short\n", "12 to 1024 characters"),
        (("user", "add", "bob", "--role", "viewer", "--password-stdin"), b"\xff" * 20, "not UTF-8"),
        (("user", "add", "two words", "--role", "viewer", "--password-stdin"), PASSWORD, "a user name has"),
        (("user", "add", "ALICE", "--role", "viewer", "--password-stdin"), PASSWORD, "choose another name"),
        (
            ("user", "add", "bob", "--role", "viewer", "--organization", "X", "--password-stdin"),
            PASSWORD,
            "Default",
        ),
        (("user", "disable", "nobody"), None, "there is no user"),
        (("user", "disable", "alice"), None, "last owner"),
        (("api-key", "revoke", "nothing"), None, "there is no API key"),
        (("api-key", "add", "k", "--scope", "*", "--organization", "X"), None, "there is no organization"),
        (("registration-token", "add", "x", "--cidr", "y"), None, "cidr"),
        (("registration-token", "revoke", "00000000-0000-0000-0000-000000000001"), None, "no such"),
    ],
)
async def test_what_cannot_be_done_is_one_sentence(data, arguments, stdin, sentence):
    """Exit code 1, nothing on standard output, one line on standard error without a traceback."""
    await add_owner(data)

    out, err = await redflag(data, *arguments, stdin=stdin, code=1)

    assert "" == out
    assert sentence in err
    assert 1 == len(err.splitlines())
    assert err.startswith("redflag: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("user", "add", "bob", "--password-stdin"),
        ("user", "add", "bob", "--role", "admin", "--password-stdin"),
        ("api-key", "add", "k"),
        ("api-key", "add", "k", "--scope", "agents:reed"),
        ("registration-token", "add", "x", "--seats", "0"),
        ("registration-token", "revoke", "x"),
        ("user", "remove"),
    ],
)
async def test_wrong_usage_ends_with_2(data, arguments):
    """What is no command of ours is told apart from what could not be done, and makes nothing."""
    await redflag(data, *arguments, code=2)

    assert not data.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("setup-link",),
        ("user", "add", "alice", "--role", "owner"),
        ("user", "add", "alice", "--role", "owner", "--password-stdin"),
        ("user", "list"),
        ("user", "disable", "alice"),
        ("api-key", "add", "k", "--scope", "*"),
        ("api-key", "list"),
        ("api-key", "revoke", "k"),
        ("registration-token", "add", "office"),
        ("registration-token", "list"),
        ("registration-token", "revoke", "00000000-0000-0000-0000-000000000001"),
        ("backup", "backup.tar"),
        ("backup", "-"),
        ("operator-key", "add", "eA==", "--name", "alice", "--organization", "Default"),
        ("operator-key", "list"),
        ("operator-key", "revoke", "alice"),
        ("jobs", "list"),
        ("jobs", "retry", "00000000-0000-0000-0000-000000000001"),
        ("jobs", "discard", "00000000-0000-0000-0000-000000000001"),
        ("tick",),
    ],
)
@pytest.mark.parametrize("exists", [False, True])
async def test_where_there_is_no_server_nothing_is_made(data, arguments, exists):
    """A misspelt directory is said before a password is asked for, and not filled."""
    if exists:
        data.mkdir(mode=0o700)

    out, err = await redflag(data, *arguments, code=1)

    assert ("", 1) == (out, len(err.splitlines()))
    assert f"there is no server in {data}" in err
    assert [] == (list(data.iterdir()) if exists else [path for path in data.parent.iterdir() if path == data])


def test_every_command_on_a_server_is_tried_where_there_is_none():
    """A new command of this group must refuse a misspelt directory too, and be in the list above."""

    def paths(group, *names):
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from paths(command, *names, name)
            else:
                yield (*names, name)

    marks = test_where_there_is_no_server_nothing_is_made.pytestmark
    tried = {words for mark in marks if "arguments" == mark.args[0] for words in mark.args[1]}
    missing = {path for path in paths(main) if not any(path == words[: len(path)] for words in tried)}

    assert {("run",), ("version",), ("restore",), ("migrate",)} == missing


@pytest.mark.sqlite
async def test_a_damaged_database_is_one_sentence(data):
    """No traceback, and nothing is made in its place."""
    await add_owner(data)
    (data / "redflag.db").write_bytes(b"this is no database at all" * 1000)

    _, err = await redflag(data, "user", "list", code=1)

    assert "damaged" in err
    assert 1 == len(err.splitlines())


async def test_what_the_command_line_makes_is_private(data):
    """The data directory and all files in it are for the owner only."""
    await add_owner(data)

    assert 0o700 == stat.S_IMODE(data.stat().st_mode)
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in (data / "keys").iterdir())


@pytest.mark.sqlite
async def test_a_locked_database_is_waited_for(data):
    """A writer that holds the database for a moment delays a command, and does not fail it."""
    await add_owner(data)
    other = sqlite3.connect(data / "redflag.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.5, other.execute, ["COMMIT"])
    release.start()

    await redflag(data, "user", "add", "bob", "--role", "viewer", "--password-stdin", stdin=PASSWORD)

    release.join()
    other.close()


def test_version():
    """The version is that of the distribution."""
    assert __version__ == CliRunner().invoke(main, ["version"]).stdout.strip()


async def test_who_used_the_command_line_is_on_record(data):
    """Events name the command line and the account of the operating system."""
    await add_owner(data)

    async with running(data) as server:
        event = await server.row(Event, Event.kind == "user.created")
        assert event.actor.startswith("cli")
        assert "alice" == (await server.row(User)).name
