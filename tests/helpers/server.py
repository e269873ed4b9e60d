"""A server under test: the real application on a real database, with a clock that tests move."""

import asyncio
import atexit
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import httpx
from litestar import Litestar
from sqlalchemy import insert, select
from uuid_utils.compat import uuid7

from redflag_core.enrolment import RegistrationToken, new_secret, secret_digest
from redflag_core.ports import Clock
from redflag_core.rate_limit import RateLimitPolicy
from redflag_core.system import SystemEntropy
from redflag_core.testing import FrozenClock
from redflag_server.agents.tables import RegistrationToken as TokenRow
from redflag_server.app import create_app
from redflag_server.events.tables import Event
from redflag_server.organizations.tables import INSTALLATION, Organization, Site
from redflag_server.runtime import Runtime
from redflag_server.settings import Settings
from redflag_server.start import open_runtime
from tests.helpers.databases import CURRENT
from tests.helpers.fleet import Machine

AUTHORITY = "127.0.0.1:8750"
NO_LIMIT = RateLimitPolicy(count=60_000, period_seconds=60, burst=60_000)


@attrs.define
class Server:
    """
    A running server under test.

    Attributes:
        app: The application.
        client: An HTTP client of it, in the same event loop: requests in `gather` really run at once.
        clock: Its clock.
    """

    app: Litestar
    client: httpx.AsyncClient
    clock: Any

    @property
    def runtime(self) -> Runtime:
        """What it holds."""
        runtime: Runtime = self.app.state.runtime
        return runtime

    def machine(self, **changes: Any) -> Machine:
        """A new machine with the server's time."""
        return Machine(now=self.clock.now, authority=AUTHORITY, **changes)

    async def agent(self, **changes: Any) -> Machine:
        """A machine that is registered and has an access token."""
        return await self.machine(**changes).enrol(self.client, await self.token())

    async def token(self, *, seats: int = 1, **changes: Any) -> RegistrationToken:
        """A registration token, straight into the database."""
        secret = new_secret(SystemEntropy())
        async with self.runtime.database.write() as session:
            organization = (
                await session.scalars(select(Organization).where(Organization.id != INSTALLATION).limit(1))
            ).one()
            site = (
                await session.scalars(select(Site).where(Site.organization_id == organization.id).limit(1))
            ).one()
            values = {
                "id": uuid7(),
                "organization_id": organization.id,
                "site_id": site.id,
                "label": "test",
                "digest": secret_digest(secret),
                "seats": seats,
                "used": 0,
                "expires_at": self.clock.now() + timedelta(days=1),
                "needs_approval": False,
                "created_at": self.clock.now(),
                "created_by": "user:test",
                **changes,
            }
            await session.execute(insert(TokenRow).values(values))
        return RegistrationToken(
            v=1,
            id=str(values["id"]),
            secret=secret,
            server=self.runtime.server,
            root_fp=self.runtime.root_fp,
            addresses=(f"http://{AUTHORITY}",),
        )

    async def rows(self, table: Any, *conditions: Any) -> Sequence[Any]:
        """Rows of a table, as they are now."""
        async with self.runtime.database.read() as session:
            return (await session.scalars(select(table).where(*conditions))).all()

    async def row(self, table: Any, *conditions: Any) -> Any:
        """The one row."""
        (row,) = await self.rows(table, *conditions)
        return row

    async def event_kinds(self) -> list[str]:
        """Kinds of all events, oldest first."""
        async with self.runtime.database.read() as session:
            return list((await session.scalars(select(Event.kind).order_by(Event.id))).all())

    async def refusals(self) -> list[str]:
        """Codes of the events of refused requests."""
        return [event.code for event in await self.rows(Event, Event.kind == "request.refused")]

    async def dump(self) -> dict[str, Any]:
        """Every row of every table but events, nonces and arrival times: what "no change" is compared with."""
        from redflag_server.db.tables import metadata

        state: dict[str, Any] = {}
        async with self.runtime.database.read() as session:
            for table in metadata.sorted_tables:
                if table.name not in ("events", "nonces", "rate_arrivals", "unplaced_events"):
                    columns = [column for column in table.columns if column.name != "rate_arrival"]
                    state[table.name] = sorted(map(repr, (await session.execute(select(*columns))).all()))
        return state


def settings_of(data: Path, **changes: Any) -> Settings:
    """Settings of the server in *data*, with its database where this test has it."""
    return Settings(**{"data": data, "postgresql": CURRENT.place.address(data), **changes})


@asynccontextmanager
async def running(
    data: Path, *, clock: Clock | None = None, limited: bool = False, **changes: Any
) -> AsyncIterator[Server]:
    """
    A server on *data*; again on the same directory, it is the same server restarted.

    Args:
        data: Data directory.
        clock: Its clock; a frozen one unless given.
        limited: Keep the rate limits of a real server.
        changes: Settings.
    """
    if clock is None and CURRENT.place.template is None:
        _begin_with(await _founded(), data)
    limits: dict[str, Any] = (
        {} if limited else dict.fromkeys(("agent_limit", "register_limit", "operator_limit"), NO_LIMIT)
    )
    settings = settings_of(data, **{**limits, **changes})
    used = clock or FrozenClock()
    app = create_app(settings, clock=used, entropy=SystemEntropy(), run_jobs=False)
    transport = httpx.ASGITransport(app)
    async with _alive(app), httpx.AsyncClient(transport=transport, base_url=f"http://{AUTHORITY}") as client:
        yield Server(app, client, used)


_FOUNDED: dict[int, Path] = {}


async def _founded() -> Path:
    """The data directory of a server that was started once: to copy it is far quicker than a first start."""
    process = os.getpid()
    if process not in _FOUNDED:
        folder = Path(tempfile.mkdtemp(prefix="rf-founded-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        runtime = await open_runtime(Settings(data=folder / "data"), FrozenClock(), SystemEntropy())
        await runtime.database.close()
        _FOUNDED[process] = folder / "data"
    return _FOUNDED[process]


def _begin_with(founded: Path, data: Path) -> None:
    if not data.exists():
        shutil.copytree(founded, data)


@asynccontextmanager
async def _alive(app: Litestar) -> AsyncIterator[None]:
    """The lifespan in a task of its own: fixtures are set up and torn down in different tasks."""
    started, stop = asyncio.Event(), asyncio.Event()

    async def live() -> None:
        async with app.lifespan():
            started.set()
            await stop.wait()

    task = asyncio.create_task(live())
    waiting = asyncio.create_task(started.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        waiting.cancel()
        await task
    yield
    stop.set()
    await task
