"""What an integrity error is: a duplicate, which somebody can do something about, or a mistake of ours."""

import sqlite3
from typing import Final

from sqlalchemy.exc import IntegrityError

_POSTGRESQL: Final = "23505"
_SQLITE: Final = frozenset({sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY})


def is_duplicate(error: IntegrityError) -> bool:
    """Whether there is such a row already. A missing reference or a failed check is something else."""
    cause = error.orig
    return getattr(cause, "sqlstate", None) == _POSTGRESQL or getattr(cause, "sqlite_errorcode", None) in _SQLITE
