"""What the contracts see when a call fails."""

from collections.abc import Awaitable

from redflag_core.errors import RedFlagError


async def error_of(call: Awaitable[object]) -> RedFlagError:
    """What *call* raises. That it raises nothing fails the test."""
    try:
        await call
    except RedFlagError as error:
        return error
    raise AssertionError("nothing was raised")
