"""Which way of plain check-ins a database has."""

from redflag_server.checkin.gate_postgresql import PostgresqlGate
from redflag_server.checkin.gate_sqlite import SqliteGate
from redflag_server.checkin.picture import Gate
from redflag_server.db.engine import Database


def open_gate(database: Database) -> Gate:
    """The gate of a database. Nothing is connected before the first check-in."""
    return PostgresqlGate(database) if database.is_postgresql else SqliteGate(database)
