"""The schema, one migration for each change; Alembic runs them."""
