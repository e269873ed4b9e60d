"""Server CPU of one check-in on SQLite, one at a time, against a floor without database (same run)."""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
from litestar import Litestar, post

from redflag_core.keys import SigningKey
from tests.helpers.server import running

CALLS = 200


def measure() -> Iterator[str]:
    """Milliseconds of CPU for each, the client's part included in both, and the ratio."""
    floor, check_in = asyncio.run(_measure())
    yield f"floor (Litestar handler + one Ed25519 verification)  {1000 * floor:6.2f} ms"
    yield f"check-in, batch of one, SQLite FULL                  {1000 * check_in:6.2f} ms"
    yield f"ratio: {check_in / floor:.1f} (the hot path is a step of its own)"


async def _measure() -> tuple[float, float]:
    key = SigningKey.generate()
    signature = key.sign(b"x" * 600)

    @post("/floor")
    async def handler(body: bytes) -> dict[str, int]:
        key.verify_key.verify(b"x" * 600, signature)
        return {"v": len(body)}

    transport = httpx.ASGITransport(Litestar([handler], logging_config=None))
    async with httpx.AsyncClient(transport=transport, base_url="http://floor") as client:
        floor = await _cpu(lambda: client.post("/floor", content=b"x" * 600))
    with tempfile.TemporaryDirectory() as directory:
        async with running(Path(directory)) as server:
            server.clock._now = datetime.now(UTC)
            machine = await server.agent()
            check_in = await _cpu(lambda: machine.check_in(server.client))
    return floor, check_in


async def _cpu(call: Callable[[], Awaitable[httpx.Response]]) -> float:
    for _ in range(20):
        (await call()).raise_for_status()
    began = time.process_time()
    for _ in range(CALLS):
        await call()
    return (time.process_time() - began) / CALLS
