"""
Bring the database to this release's schema: Alembic, in one transaction, before serving.

A server does so itself with SQLite. With PostgreSQL the owner of the tables does, with ``redflag server migrate``:
the role that serves owns nothing, and can change data only.
"""

from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from redflag_core.errors import ConfigurationError
from redflag_server.db.engine import Database
from redflag_server.db.locks import Lock, take
from redflag_server.db.tables import metadata

MIGRATIONS = Path(__file__).parent / "migrations"


async def upgrade(database: Database) -> None:
    """
    Run the migrations that are missing. A failure leaves the schema as it was.

    SQLite can only change most of a table by making it anew, which must happen without foreign keys: on a
    connection of its own, and checked before it is committed.

    Raises:
        DatabaseError: A migration failed, or rows would have been left that point to nothing.
    """
    schema = Database(database.url, foreign_keys=False)
    try:
        async with schema.write() as session:
            connection = await session.connection()
            await connection.run_sync(_upgrade)
            await connection.run_sync(_refuse_dangling)
    finally:
        await schema.close()


async def grant(database: Database, role: str) -> None:
    """
    Let the role that serves read and change rows, and nothing else.

    Args:
        database: PostgreSQL, as the owner of the tables.
        role: Its name.

    Raises:
        DatabaseError: There is no such role.
    """
    async with database.write() as session:
        await take(session, Lock.RIGHTS)  # PostgreSQL refuses one of two that change the rights of a table at once
        quoted = session.get_bind().dialect.identifier_preparer.quote_identifier(role)
        schema = (await session.scalars(text("SELECT quote_ident(current_schema())"))).one()
        await session.execute(text(f"GRANT USAGE ON SCHEMA {schema} TO {quoted}"))
        rights = f"SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema}"
        await session.execute(text(f"GRANT {rights} TO {quoted}"))
        await session.execute(text(f"REVOKE INSERT, UPDATE, DELETE ON alembic_version FROM {quoted}"))


async def check(database: Database) -> None:
    """
    Refuse a schema that is not the one of this release.

    Raises:
        ConfigurationError: It is not. The message says what to do.
    """
    async with database.read() as session:
        found = await (await session.connection()).run_sync(_revisions)
    known = {script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()}
    if not found <= known:
        raise ConfigurationError(
            f"the database has the schema of a newer release ({', '.join(sorted(found))}): run that release"
        )
    if found != heads():
        held = "no schema yet" if not found else f"the schema of an older release ({', '.join(sorted(found))})"
        raise ConfigurationError(
            f"the database has {held}: run `redflag server migrate` as the role that owns its tables"
        )


async def pending(database: Database) -> bool:
    """Whether the schema is not the one of this release."""
    async with database.read() as session:
        return await (await session.connection()).run_sync(_pending)


async def differences(database: Database) -> list[object]:
    """What autogenerate would still change: empty when migrations and tables agree."""
    async with database.read() as session:
        return await (await session.connection()).run_sync(_differences)


def alembic_config() -> Config:
    """Alembic's configuration, without a file: everything is fixed."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _upgrade(connection: Connection) -> None:
    config = alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _refuse_dangling(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        dangling = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
        if dangling:
            raise IntegrityError("PRAGMA foreign_key_check", None, ValueError(f"rows of {dangling[0][0]} dangle"))


def _pending(connection: Connection) -> bool:
    return _revisions(connection) != heads()


def _revisions(connection: Connection) -> set[str]:
    return set(MigrationContext.configure(connection).get_current_heads())


def heads() -> set[str]:
    """Revision of this release's schema."""
    return set(ScriptDirectory.from_config(alembic_config()).get_heads())


def _differences(connection: Connection) -> list[object]:
    # SQLite keeps affinities, not types: there is nothing to compare.
    opts = {"compare_type": connection.dialect.name != "sqlite"}
    context = MigrationContext.configure(connection, opts=opts)
    return list(compare_metadata(context, metadata))
