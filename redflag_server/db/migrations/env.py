"""Alembic's entry: the connection and its transaction are given by `redflag_server.db.migrate`."""

from alembic import context

from redflag_server.db.tables import metadata

MIGRATION_LOCK = 0x52_45_44_46_4C_41_47
"""Key of the advisory lock of PostgreSQL ("REDFLAG"): of several that start together, one at a time migrates.
Those of `db.locks` have two numbers, and are others."""

connection = context.config.attributes["connection"]
if connection.dialect.name == "postgresql":
    # Held until the caller's transaction ends. Whoever waited for it sees what the one before has done.
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
    # Before a table is changed, whoever uses it must have ended; all others would wait behind us meanwhile.
    connection.exec_driver_sql("SET LOCAL lock_timeout = '30s'")
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_as_batch=connection.dialect.name == "sqlite",
    transactional_ddl=False,  # the caller's transaction holds all of it
)
context.run_migrations()
