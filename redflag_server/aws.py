"""
The server as an AWS Lambda function: started once for each container, then one request at a time.

Nothing runs between two events: no job, no LISTEN, no check-in that is held open. What runs by itself elsewhere is
done by a scheduled event, see `Function`. The schema is never changed here, and no server is founded: both need
what is not on Lambda, the owner of the tables and the root key.
"""

import asyncio
import base64
import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

import attrs
from litestar import Litestar
from mangum import Mangum
from sqlalchemy import select
from sqlalchemy.exc import DatabaseError

from redflag_core.errors import ConfigurationError
from redflag_core.keyfiles import write_private
from redflag_core.ports import Clock, Entropy
from redflag_core.system import SystemClock, SystemEntropy
from redflag_server.app import create_app
from redflag_server.checkin.key_cache import KeyCache
from redflag_server.checkin.waiting import Waiting
from redflag_server.db import migrate
from redflag_server.db.engine import Database
from redflag_server.health.readiness import KEY_FILES
from redflag_server.jobs.background import tick
from redflag_server.runtime import Runtime
from redflag_server.settings import Settings
from redflag_server.start import open_runtime, prepare_directory
from redflag_server.trust.tables import ServerState

Event: TypeAlias = dict[str, Any]

Secrets: TypeAlias = Callable[[str], bytes]
"""Gives the content of a key file by its name, ``command.key``; raises `ConfigurationError` when there is none."""

TICK_SECONDS: Final = 50.0
"""How long a scheduled event works at most: one comes every minute."""


class Function:
    """
    The handler of a function: HTTP APIs, function URLs, load balancers, and schedules of EventBridge.

    Args:
        settings: Checked settings, with the public URL of the function. ``data`` is a directory of the container,
            ``/tmp/redflag``: only the key files are put there.
        secrets: Where the contents of the key files come from.
        clock: Wall and monotonic time.
        entropy: Randomness.

    Raises:
        ConfigurationError: A secret is missing, the schema is not the one of this release, or there is no server
            in the database yet. The message says what to do.
    """

    def __init__(
        self, settings: Settings, secrets: Secrets, *, clock: Clock | None = None, entropy: Entropy | None = None
    ) -> None:
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        try:
            put_keys(settings, secrets)
            self.run(self._start(clock or SystemClock(), entropy or SystemEntropy()))
        except BaseException:
            self._loop.close()
            raise
        asyncio.set_event_loop(self._loop)  # the adapter would make another one
        self._http = Mangum(self._serve, lifespan="off")

    def __call__(self, event: Event, context: Any) -> Event:
        """Handle one event."""
        if event.get("source") == "aws.events":
            done: Event = self.run(self._tick())
            return done
        asyncio.set_event_loop(self._loop)
        return self._http(event, context)

    def run(self, work: Any) -> Any:
        """Run something on the event loop of the function."""
        return self._loop.run_until_complete(work)

    def close(self) -> None:
        """End it, where something ends: Lambda just stops."""
        self.run(self._end())
        asyncio.set_event_loop(None)
        self._loop.close()

    async def _start(self, clock: Clock, entropy: Entropy) -> None:
        self.runtime = await _open(self._settings, clock, entropy)
        self.app: Litestar = create_app(
            self._settings, clock=clock, entropy=entropy, run_jobs=False, runtime=self.runtime, listen=False
        )
        self._stop, started = asyncio.Event(), asyncio.Event()
        self._life = asyncio.create_task(self._live(started))
        waiting = asyncio.create_task(started.wait())
        await asyncio.wait({self._life, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._life.done():
            await self._life

    async def _live(self, started: asyncio.Event) -> None:
        """The lifespan in a task of its own: it must begin and end in the same one."""
        async with self.app.lifespan():
            started.set()
            await self._stop.wait()

    async def _end(self) -> None:
        self._stop.set()
        await self._life

    async def _tick(self) -> Event:
        done = await tick(self.runtime, TICK_SECONDS)
        return {"in_time": done.in_time}

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        event: Event = scope["aws.event"]
        raw = raw_path(event).removeprefix(self._settings.prefix) or "/"
        inner = {
            **scope,
            "raw_path": raw.encode("latin-1"),
            "path": unquote(raw),
            "query_string": raw_query(event),
        }
        if "elb" in event["requestContext"]:
            inner["client"] = (_last_hop(scope["headers"]), 0)
        await self.app(inner, receive, send)  # type: ignore[arg-type]


def raw_path(event: Mapping[str, Any]) -> str:
    """The path as it was sent: what an agent signed. The adapter gives it decoded only."""
    path: str = event["rawPath"] if "rawPath" in event else event["path"]
    return path or "/"


def raw_query(event: Mapping[str, Any]) -> bytes:
    """The query as it was sent. A load balancer takes it apart, but decodes nothing."""
    if "rawQueryString" in event:
        return str(event["rawQueryString"]).encode()
    several: Mapping[str, Any] = event.get("multiValueQueryStringParameters") or {}
    pairs = [(name, value) for name, values in several.items() for value in values]
    pairs = pairs or list((event.get("queryStringParameters") or {}).items())
    return "&".join(f"{name}={value}" for name, value in pairs).encode()


def _last_hop(headers: Any) -> str:
    """The address that the load balancer itself saw; what stands before it anybody can write."""
    values = [value.decode("latin-1") for name, value in headers if name == b"x-forwarded-for"]
    return values[-1].rpartition(",")[2].strip() if values else ""


def put_keys(settings: Settings, secrets: Secrets) -> None:
    """Put the key files where the server reads them, for their owner only."""
    prepare_directory(settings.data)
    folder = settings.data / "keys"
    folder.mkdir(mode=0o700, exist_ok=True)
    for name in KEY_FILES:
        write_private(folder / name, secrets(name), replace=True)


async def _open(settings: Settings, clock: Clock, entropy: Entropy) -> Runtime:
    database = Database(settings.database_url)
    try:
        await migrate.check(database)
        async with database.read() as session:
            is_founded = (await session.scalars(select(ServerState))).one_or_none() is not None
    except (DatabaseError, OSError) as error:
        raise ConfigurationError("the database does not answer: is the function in its network?") from error
    finally:
        await database.close()
    if not is_founded:
        raise ConfigurationError(
            "there is no server in this database yet: run `redflag server run` once elsewhere"
        )
    runtime = await open_runtime(settings, clock, entropy)
    return attrs.evolve(runtime, waiting=Waiting(limit=0), agent_keys=KeyCache(limit=0))


# --- secrets -----------------------------------------------------------------------------------------------------


def from_environment(name: str) -> bytes:
    """The secret ``command.key`` from ``REDFLAG_SECRET_COMMAND_KEY``, in base64."""
    variable = "REDFLAG_SECRET_" + name.upper().replace(".", "_").replace("-", "_")
    text = os.environ.get(variable, "")
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError:
        content = b""
    if not content:
        raise ConfigurationError(f"{variable} must hold the file {name} in base64")
    return content


@attrs.frozen
class SecretsManager:
    """
    AWS Secrets Manager: one secret for each file, as text or binary.

    Args:
        prefix: Before the name, ``redflag/``.
        client: A client of boto3; None makes one, for which boto3 must be there, as it is on Lambda.
    """

    prefix: str = "redflag/"
    client: Any = attrs.field(factory=lambda: _boto3("secretsmanager"))

    def __call__(self, name: str) -> bytes:
        """The content of one file."""
        answer = self.client.get_secret_value(SecretId=self.prefix + name)
        binary = answer.get("SecretBinary")
        return bytes(binary) if binary is not None else str(answer["SecretString"]).encode()


@attrs.frozen
class ParameterStore:
    """
    Parameters of AWS Systems Manager, of type SecureString.

    Args:
        prefix: Before the name, ``/redflag/``.
        client: See `SecretsManager`.
    """

    prefix: str = "/redflag/"
    client: Any = attrs.field(factory=lambda: _boto3("ssm"))

    def __call__(self, name: str) -> bytes:
        """The content of one file."""
        answer = self.client.get_parameter(Name=self.prefix + name, WithDecryption=True)
        return str(answer["Parameter"]["Value"]).encode()


def _boto3(service: str) -> Any:
    try:
        boto3 = importlib.import_module("boto3")
    except ImportError:
        raise ConfigurationError("boto3 is not installed: it is on Lambda, or pip install boto3") from None
    return boto3.client(service)
