"""Fixtures of the server's tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.helpers.server import Server, running


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A running server with an empty fleet."""
    async with running(tmp_path / "data") as running_server:
        yield running_server
