"""``redflag server migrate``: the schema of a PostgreSQL database, changed by the role that owns it."""

from sqlalchemy.exc import DatabaseError

from redflag_core.errors import ConfigurationError
from redflag_server.db import migrate
from redflag_server.db.engine import Database
from redflag_server.db.postgresql import reason_of


async def migrate_postgresql(url: str, role: str | None) -> str:
    """
    Run the migrations that are missing; of several that start together, one at a time.

    Args:
        url: Address of the database, checked, with the role that owns the tables.
        role: The role that serves, if it is to be given its rights.

    Returns:
        The revision of the schema.

    Raises:
        ConfigurationError: It was not done, and nothing was changed. The message says why.
    """
    database = Database(url)
    try:
        await migrate.upgrade(database)
        if role is not None:
            await migrate.grant(database, role)
        return ", ".join(sorted(migrate.heads()))
    except DatabaseError as error:
        raise ConfigurationError(f"the database was not migrated: {reason_of(error)}") from error
    finally:
        await database.close()
