"""Alembic's entry: the connection and its transaction are given by `redflag_server.db.migrate`."""

from alembic import context

from redflag_server.db.tables import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_as_batch=connection.dialect.name == "sqlite",
    transactional_ddl=False,  # the caller's transaction holds all of it
)
context.run_migrations()
