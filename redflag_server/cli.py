"""`redflag server ...`: what is done to a server from its own machine, also while it runs."""

import asyncio
import getpass
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn, TypeVar
from uuid import UUID

import attrs
import rich_click as click
from sqlalchemy import select

from redflag_core import __version__
from redflag_core.errors import RedFlagError
from redflag_core.system import SystemClock, SystemEntropy
from redflag_server.accounts.api_keys import KeyOrder, list_keys, make_key, revoke_key
from redflag_server.accounts.passwords import MAX_LENGTH
from redflag_server.accounts.permissions import EVERYTHING, PERMISSIONS, UserRole
from redflag_server.accounts.setup import issue_setup_link
from redflag_server.accounts.tables import Credential
from redflag_server.accounts.users import add_user, disable_user, find_user, list_users
from redflag_server.agents.registration_tokens import create_registration_token, list_tokens, revoke_token
from redflag_server.agents.schema import NewToken
from redflag_server.backup.create import Backup, back_up_to_file, back_up_to_stream, note_backup
from redflag_server.backup.placement import is_founded, shared_use
from redflag_server.backup.restore import restore
from redflag_server.backup.words import backup_lines, restore_lines
from redflag_server.db.pages import MAX_LIMIT, PageOf
from redflag_server.db.scope import Scope, scoped, whole_installation
from redflag_server.jobs.commands import jobs, tick
from redflag_server.migrating import migrate_postgresql
from redflag_server.organizations.service import organization_named, organization_of
from redflag_server.problems import NotFoundError
from redflag_server.run import run
from redflag_server.runtime import Runtime
from redflag_server.settings import Settings, check_database, default_data_directory, default_database
from redflag_server.start import open_runtime
from redflag_server.trust.operator_keys import add_operator_key, list_operator_keys, revoke_operator_key
from redflag_server.trust.tables import OperatorKey

T = TypeVar("T")

ALL: Final = PageOf(limit=MAX_LIMIT)
DAY: Final = 86_400
STREAM: Final = Path("-")

data_option = click.option(
    "--data",
    default=default_data_directory,
    type=click.Path(file_okay=False, path_type=Path),
    help="Data directory of the server.",
)
organization_option = click.option("--organization", metavar="NAME", help="Only this organization.")


@click.group("server", context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The RedFlag server."""


main.add_command(run)
main.add_command(tick)
main.add_command(jobs)


@main.command()
def version() -> None:
    """Show the version."""
    click.echo(__version__)


@main.command()
@click.option("--database", metavar="URL", help="postgresql://OWNER@HOST/NAME; REDFLAG_DATABASE without it.")
@click.option("--grant-to", "role", metavar="ROLE", help="The role that serves: it may read and change rows.")
def migrate(database: str | None, role: str | None) -> None:
    """Bring a PostgreSQL database to this release's schema, as the role that owns its tables."""
    url = database or default_database()
    if url is None:
        _fail(
            "say which database: --database postgresql://OWNER@HOST/NAME. With SQLite, a start does it by itself"
        )
    try:
        check_database(url)
        revision = asyncio.run(migrate_postgresql(url, role))
    except RedFlagError as error:
        _fail(error.message)
    click.echo(f"the database has the schema of this release ({revision})")


@main.command("setup-link")
@data_option
def setup_link(data: Path) -> None:
    """Make a link for setting up the first owner, valid for 15 minutes."""
    link = _run(data, issue_setup_link)
    if link is None:
        _fail("there is an owner already: add users with `redflag server user add`")
    click.echo(link)


@main.group()
def user() -> None:
    """People who may sign in."""


@user.command("add")
@click.argument("name")
@click.option("--role", required=True, type=click.Choice([role.value for role in UserRole]))
@organization_option
@click.option(
    "--password-stdin", is_flag=True, help="Read the password from standard input; else it is asked for."
)
@data_option
def user_add(name: str, *, role: str, organization: str | None, password_stdin: bool, data: Path) -> None:
    """Add somebody who may sign in."""
    _check_founded(data)
    password = (
        _read_password() if password_stdin else click.prompt("Password", hide_input=True, confirmation_prompt=True)
    )

    async def work(runtime: Runtime) -> str:
        organization_id = await _organization_id(runtime, organization)
        made = await add_user(
            runtime,
            name=name,
            password=password,
            role=UserRole(role),
            organization_id=organization_id,
            actor=_actor(),
        )
        return made.name

    click.echo(f"{_run(data, work)} may sign in as {role}.")


@user.command("list")
@data_option
def user_list(data: Path) -> None:
    """List who has an account."""

    async def work(runtime: Runtime) -> Iterable[tuple[object, ...]]:
        async with runtime.database.read() as session:
            page = await list_users(session, _everything(), ALL)
        return [(u.name, u.role, u.organization_id or "all", u.created_at, u.disabled_at) for u in page.items]

    _show(("Name", "Role", "Organization", "Made", "Disabled"), _run(data, work))


@user.command("disable")
@click.argument("name")
@click.option("--reason", default="disabled on the command line", show_default=True)
@data_option
def user_disable(name: str, reason: str, data: Path) -> None:
    """Cut somebody off at once: sessions and keys end too."""

    async def work(runtime: Runtime) -> None:
        async with runtime.database.read() as session:
            found = await find_user(session, name)
        if found is None:
            raise NotFoundError(f"there is no user {name}")
        await disable_user(runtime, _everything(), found.id, reason)

    _run(data, work)
    click.echo(f"{name} is cut off.")


@main.group("api-key")
def api_key() -> None:
    """Keys of scripts."""


@api_key.command("add")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    required=True,
    multiple=True,
    type=click.Choice([EVERYTHING, *PERMISSIONS]),
    help="What it may do; repeatable.",
)
@organization_option
@click.option("--expires-in-days", type=click.IntRange(1, 3650), help="Without, it does not end.")
@data_option
def api_key_add(
    name: str, scopes: tuple[str, ...], organization: str | None, expires_in_days: int | None, data: Path
) -> None:
    """Make a key. It is printed this once."""

    async def work(runtime: Runtime) -> str:
        organization_id = await _organization_id(runtime, organization)
        order = KeyOrder(name, scopes, organization_id, expires_in_days)
        _, text = await make_key(runtime, _everything(), order)
        return text

    click.echo(_run(data, work))


@api_key.command("list")
@data_option
def api_key_list(data: Path) -> None:
    """List keys, without their secrets."""

    async def work(runtime: Runtime) -> Iterable[tuple[object, ...]]:
        async with runtime.database.read() as session:
            page = await list_keys(session, _everything(), ALL)
        return [
            (
                k.id,
                k.name,
                " ".join(k.scopes),
                k.organization_id or "all",
                k.expires_at,
                k.last_used_at,
                k.revoked_at,
            )
            for k in page.items
        ]

    _show(("Id", "Name", "May", "Organization", "Ends", "Last used", "Revoked"), _run(data, work))


@api_key.command("revoke")
@click.argument("name_or_id")
@click.option("--reason", default="revoked on the command line", show_default=True)
@data_option
def api_key_revoke(name_or_id: str, reason: str, data: Path) -> None:
    """Revoke a key at once and for ever."""

    async def work(runtime: Runtime) -> None:
        for key_id in await _key_ids(runtime, name_or_id):
            await revoke_key(runtime, _everything(), key_id, reason)

    _run(data, work)
    click.echo(f"{name_or_id} is revoked.")


@main.group("registration-token")
def registration_token() -> None:
    """With what new machines register."""


@registration_token.command("add")
@click.argument("label")
@click.option("--seats", default=1, show_default=True, type=click.IntRange(1, 1000), help="How many machines.")
@click.option("--expires-in-days", default=1, show_default=True, type=click.IntRange(1, 30))
@click.option("--cidr", metavar="NETWORK", help="The only network it can be used from.")
@click.option("--needs-approval", is_flag=True, help="Machines wait for an operator's approval.")
@organization_option
@data_option
def registration_token_add(
    label: str,
    *,
    seats: int,
    expires_in_days: int,
    cidr: str | None,
    needs_approval: bool,
    organization: str | None,
    data: Path,
) -> None:
    """Make a token. It is printed this once."""

    async def work(runtime: Runtime) -> str:
        order = NewToken(label, seats, expires_in_days * DAY, None, cidr, needs_approval)
        visible = _everything(await _organization_id(runtime, organization))
        _, token = await create_registration_token(runtime, visible, order)
        return token.text()

    click.echo(_run(data, work))


@registration_token.command("list")
@data_option
def registration_token_list(data: Path) -> None:
    """List tokens, without their secrets."""

    async def work(runtime: Runtime) -> Iterable[tuple[object, ...]]:
        page = await list_tokens(runtime, _everything(), ALL)
        return [
            (t.id, t.label, f"{t.used} of {t.seats}", t.expires_at, t.created_by, t.revoked_at) for t in page.items
        ]

    _show(("Id", "Label", "Used", "Ends", "Made by", "Revoked"), _run(data, work))


@registration_token.command("revoke")
@click.argument("token_id", type=click.UUID)
@click.option("--reason", default="revoked on the command line", show_default=True)
@data_option
def registration_token_revoke(token_id: UUID, reason: str, data: Path) -> None:
    """Revoke a token. Machines that registered with it stay."""
    _run(data, lambda runtime: revoke_token(runtime, _everything(), token_id, reason))
    click.echo(f"{token_id} is revoked.")


@main.group("operator-key")
def operator_key() -> None:
    """Keys with which people approve what goes beyond a routine update."""


@operator_key.command("add")
@click.argument("public_key")
@click.option("--name", required=True, help="Whose key it is.")
@click.option(
    "--organization",
    "organizations",
    required=True,
    multiple=True,
    metavar="NAME|ID",
    help="For whose machines it may approve; repeatable.",
)
@data_option
def operator_key_add(public_key: str, name: str, organizations: tuple[str, ...], data: Path) -> None:
    """Let machines believe what is approved with a key: the public half, as `redflag keys new` prints it."""

    async def work(runtime: Runtime) -> OperatorKey:
        async with runtime.database.read() as session:
            ids = {(await organization_of(session, each)).id for each in organizations}
        return await add_operator_key(runtime, public_key=public_key, name=name, organizations=ids, actor=_actor())

    added = _run(data, work)
    click.echo(f"{added.name} may approve with key {added.key_id}. Machines know it after their next check-in.")


@operator_key.command("list")
@data_option
def operator_key_list(data: Path) -> None:
    """List keys, also those that were revoked."""

    async def work(runtime: Runtime) -> Iterable[tuple[object, ...]]:
        async with runtime.database.read() as session:
            keys = await list_operator_keys(session)
        return [(k.key_id, k.name, " ".join(k.organizations), k.added_at, k.added_by, k.revoked_at) for k in keys]

    _show(("Id", "Name", "Organizations", "Added", "Added by", "Revoked"), _run(data, work))


@operator_key.command("revoke")
@click.argument("name_or_id")
@click.option("--reason", default="revoked on the command line", show_default=True)
@data_option
def operator_key_revoke(name_or_id: str, reason: str, data: Path) -> None:
    """Revoke a key for ever, and with it all that it approved and that was not started yet."""
    revoked = _run(data, lambda runtime: revoke_operator_key(runtime, name_or_id, reason, _actor()))
    click.echo(f"{revoked.name} may not approve any more. Machines know it after their next check-in.")


@main.command()
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, resolve_path=True, path_type=Path))
@click.option("--overwrite", is_flag=True, help="Take the place of FILE if there is one.")
@data_option
def backup(file: Path, *, overwrite: bool, data: Path) -> None:
    """Back up database and keys into FILE, also while the server runs. `-` is standard output."""
    target = None if file == STREAM else file
    if target is None and sys.stdout.isatty():
        _fail("a backup is not for the screen: name a file, or pipe it into a program")

    async def work() -> tuple[Backup, bool]:
        now = SystemClock().now()
        if target is None:
            made = back_up_to_stream(data, sys.stdout.buffer, now=now)
        else:
            made = back_up_to_file(data, target, overwrite=overwrite, now=now)
        to = "standard output" if target is None else str(target)
        return made, await note_backup(data, made, to, clock=SystemClock(), actor=_actor())

    made, noted = _on_server(data, work)
    for line in backup_lines(made, target, noted=noted):
        click.echo(line, err=target is None)


@main.command("restore")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--replace", is_flag=True, help="Put a server that is there aside. Nothing is deleted.")
@data_option
def restore_command(file: Path, *, replace: bool, data: Path) -> None:
    """Restore the server in FILE. `-` is standard input. No server may run on the directory."""
    clock, entropy, actor = SystemClock(), SystemEntropy(), _actor()
    try:
        with _opened_backup(file) as source:
            done = asyncio.run(restore(source, data, replace=replace, clock=clock, entropy=entropy, actor=actor))
    except RedFlagError as error:
        _fail(error.message)
    for line in restore_lines(done, data, now=clock.now()):
        click.echo(line)


@contextmanager
def _opened_backup(file: Path) -> Iterator[BinaryIO]:
    """A backup that can be read twice."""
    try:
        if file != STREAM:
            with file.open("rb") as opened:
                yield opened
            return
        with tempfile.TemporaryFile() as spool:
            shutil.copyfileobj(sys.stdin.buffer, spool)
            spool.seek(0)
            yield spool
    except OSError as error:
        _fail(f"cannot read {file}: {error.strerror}")


def _run(data: Path, work: Callable[[Runtime], Awaitable[T]]) -> T:
    """Do *work* on the open server in *data*, or end with one sentence."""

    async def opened() -> T:
        settings = Settings(data=data, postgresql=default_database())
        runtime = await open_runtime(settings, SystemClock(), SystemEntropy())
        try:
            return await work(runtime)
        finally:
            await runtime.database.close()

    return _on_server(data, opened)


def _on_server(data: Path, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Do *work* while there is a server in *data* and nobody restores it, or end with one sentence."""
    _check_founded(data)
    try:
        with shared_use(data):
            return asyncio.run(work())
    except RedFlagError as error:
        _fail(error.message)


def _check_founded(data: Path) -> None:
    """Only a start makes a server: a command on a misspelt directory must not."""
    if not is_founded(data):
        _fail(f"there is no server in {data}: start one there first, or name another --data")


def _fail(sentence: str) -> NoReturn:
    click.echo(f"redflag: {sentence}", err=True)
    sys.exit(1)


def _actor() -> str:
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):
        return "cli"


def _everything(organization_id: UUID | None = None) -> Scope:
    """The statements of whoever can read the data directory, limited to one organization where one was named."""
    everything = whole_installation(_actor())
    if organization_id is None:
        return everything
    return scoped(attrs.evolve(everything.caller, organizations=frozenset({organization_id})))


async def _organization_id(runtime: Runtime, name: str | None) -> UUID | None:
    if name is None:
        return None
    async with runtime.database.read() as session:
        return (await organization_named(session, name)).id


async def _key_ids(runtime: Runtime, name_or_id: str) -> list[UUID]:
    """The keys with this id or name."""
    async with runtime.database.read() as session:
        keys = (await session.scalars(select(Credential).where(Credential.kind == "api_key"))).all()
    found = [key.id for key in keys if name_or_id in (key.name, str(key.id))]
    if not found:
        raise NotFoundError(f"there is no API key {name_or_id}")
    return found


def _read_password() -> str:
    """All of standard input, without the end of the line."""
    try:
        text = sys.stdin.buffer.read(MAX_LENGTH * 4 + 2).decode()
    except UnicodeDecodeError:
        _fail("the password is not UTF-8")
    return text.removesuffix("\n").removesuffix("\r")


def _show(titles: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    """Columns, each as wide as its longest cell: ids are copied from here, so nothing is cut."""
    lines = [titles, *(tuple(map(_cell, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: object) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    return "-" if value is None else str(value)
