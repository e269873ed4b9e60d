"""What the stores share: names of tables, the one thing that is put into SQL as text, and moves of a horizon."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from redflag_core._fields import MAX_MOMENT
from redflag_core.errors import ConfigurationError
from redflag_core.freshness import RETENTION, TOLERANCE, horizon_after_purge, unix

NONCES: Final = "redflag_nonces"
RATE_LIMITS: Final = "redflag_rate_limits"

MAX_NAME: Final = 40
"""Longest name of a table: PostgreSQL cuts at 63 bytes, and names that are made from it have to fit."""

DELETE_BATCH: Final = 5_000
"""Rows that one statement of a purge deletes: claims wait for a few milliseconds, not for the whole purge."""

_NAME: Final = re.compile(rf"[a-z_][a-z0-9_]{{0,{MAX_NAME - 1}}}")


def quoted(name: str, *, schema: str | None = None, suffix: str = "") -> str:
    """
    A table in SQL.

    Args:
        name: Its name, from settings.
        schema: Its schema, or None for where the connection looks first.
        suffix: Of ours, behind the name.

    Raises:
        ConfigurationError: A name is not 1 to 40 lower-case letters, digits and ``_``, or begins with a digit.
    """
    for part in (name, schema):
        if part is not None and not _NAME.fullmatch(part):
            raise ConfigurationError(
                f"the name of a table or schema is 1 to {MAX_NAME} lower-case letters, digits and '_', "
                "and does not begin with a digit"
            )
    table = f'"{name}{suffix}"'
    return table if schema is None else f'"{schema}".{table}'


def filled(text: str, names: Mapping[str, str]) -> str:
    """*text* with checked names in their places."""
    for place, name in names.items():
        text = text.replace(place, name)
    return text


def horizon_of_forgetting(horizon: int) -> tuple[int, int, int]:
    """
    What the statement that moves a horizon is sent with: never back, to *horizon* where that is further.

    Args:
        horizon: Unix seconds.
    """
    return MAX_MOMENT, MAX_MOMENT, min(max(horizon, 0), MAX_MOMENT)


def horizon_of_purging(now: datetime) -> tuple[int, int, int]:
    """
    The same for a purge: beyond the first the second, else the third. See `redflag_core.freshness.next_horizon`.

    Args:
        now: Current time, aware UTC.
    """
    moment = int(unix(now))
    return moment + RETENTION, moment + TOLERANCE, horizon_after_purge(now)
