"""Agents for tests: a fake machine, a fake scanner, and the parts of an agent around a stub server."""

import asyncio
import contextlib
import uuid
from collections.abc import Sequence
from contextlib import asynccontextmanager

import attrs
import httpx2

from redflag_agent.address import parse_address
from redflag_agent.agent import Surroundings
from redflag_agent.assembly import Opened, assemble
from redflag_agent.check_in import pace
from redflag_agent.data_dir import DataDirectory
from redflag_agent.database import Database
from redflag_agent.error_log import ErrorLog
from redflag_agent.executor import Commander, Journal, LocalCommander, Undelivered
from redflag_agent.identity import Identity, open_identity
from redflag_agent.installers.model import Installer
from redflag_agent.orders import hand_over
from redflag_agent.outbox import Outbox
from redflag_agent.register import register
from redflag_agent.runner import Runner
from redflag_agent.state import StateFile
from redflag_agent.tokens import Tokens
from redflag_agent.transport import ServerClient
from redflag_agent.trust import TrustStore
from redflag_core.errors import ScanError
from redflag_core.machine import RawMachine
from redflag_core.ports import Clock, Entropy
from redflag_core.resilience import RetryPolicy
from redflag_core.scanning import Package, PackageState, ScannerPolicy, ScanReport, ScanStatus
from redflag_core.testing import FrozenClock, SeededEntropy
from tests.helpers.stub_server import StubServer, mock_transport

AT_ONCE = RetryPolicy(attempts=3, wait_initial=0.0, wait_max=0.0, wait_jitter=0.0, timeout=30.0)
"""Three attempts without a pause."""

RAW = RawMachine(
    machine_id=bytes(range(16)),
    smbios_uuid="4c4c4544-0042-4a10-8053-b7c04f4e3132",
    board_serial="BOARD-7731",
    disk_serial="DISK-4242",
    boot_id="00000000-0000-4000-8000-000000000001",
)

OTHER = RawMachine(
    machine_id=bytes(range(100, 116)),
    smbios_uuid="5c4c4544-0042-4a10-8053-b7c04f4e3199",
    board_serial="BOARD-1111",
    disk_serial="DISK-9999",
    boot_id="00000000-0000-4000-8000-000000000002",
)


@attrs.define
class FakeMachine:
    """`redflag_core.ports.MachineIdentity` with ids that a test chose."""

    raw: RawMachine = RAW

    def read(self) -> RawMachine:
        """The ids."""
        return self.raw


def package(name: str, *, available: str | None = None, state: PackageState | None = None) -> Package:
    """A package, current unless something newer is available."""
    known = PackageState.CURRENT if available is None else PackageState.AVAILABLE
    return Package(name=name, arch="amd64", installed="1.0-1", available=available, state=state or known)


@attrs.define
class FakeScanner:
    """A scanner that finds what a test put there, or fails as a test wants."""

    packages: tuple[Package, ...] = ()
    failure: Exception | None = None
    name: str = "apt"
    warnings: tuple[str, ...] = ()
    scans: int = 0
    gate: asyncio.Event | None = None

    @property
    def manager(self) -> str:
        """Its package manager."""
        return self.name

    async def scan(self) -> ScanReport:
        """Look now."""
        self.scans += 1
        found = self.packages
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return scan_report(*found, scanner=self.name, warnings=self.warnings)


def scan_report(*packages: Package, scanner: str = "apt", warnings: tuple[str, ...] = ()) -> ScanReport:
    """A successful report."""
    return ScanReport(
        scanner=scanner,
        manager=scanner,
        taken_at=1_800_000_000,
        duration_ms=1200,
        status=ScanStatus.OK,
        packages=packages,
        warnings=warnings,
    )


def failed(error: str = "dpkg is broken") -> ScanError:
    """Why a scan failed."""
    return ScanError(error)


def new_id(number: int) -> str:
    """A UUID."""
    return str(uuid.UUID(int=number))


@attrs.define
class Parts:
    """An agent taken apart, around a stub server without a socket."""

    server: StubServer
    directory: DataDirectory
    clock: Clock
    entropy: Entropy
    machine: FakeMachine
    http: httpx2.AsyncClient
    state: StateFile
    identity: Identity
    database: Database
    client: ServerClient
    desk: Commander
    installers: Sequence[Installer] | None
    told: list[dict] = attrs.field(factory=list)

    def tell(self, event, **facts) -> None:
        """Remember what was told."""
        self.told.append({"event": event, **facts})

    @property
    def trust(self) -> TrustStore:
        """The trust store, as after a start."""
        store = TrustStore(self.directory.trust, self.state, self.clock)
        store.load()
        return store

    @property
    def tokens(self) -> Tokens:
        """Access tokens."""
        return Tokens(self.client, self.state, self.identity.executor, self.clock, self.entropy)

    @property
    def outbox(self) -> Outbox:
        """Reports."""
        return Outbox(self.database)

    @property
    def errors(self) -> ErrorLog:
        """Errors."""
        return ErrorLog(self.database, clock=self.clock, entropy=self.entropy)

    def runner(self, *scanners: FakeScanner, policy: ScannerPolicy | None = None) -> Runner:
        """All loops of the agent, as after a start; waiting is the event loop's own."""
        trust = self.trust
        opened = Opened(
            client=self.client,
            state=self.state,
            executor=self.identity.executor,
            trust=trust,
            database=self.database,
            clock=self.clock,
            entropy=self.entropy,
            sleep=asyncio.sleep,
            tell=self.tell,
        )

        def commander(rescan, on_error) -> Commander:
            if self.installers is None:
                return self.desk
            return LocalCommander(
                self.directory,
                self.state,
                self.identity.executor,
                held=trust.held,
                installers=self.installers,
                rescan=rescan,
                on_error=on_error,
                sleep=asyncio.sleep,
                launcher=lambda _name: (),
            )

        return assemble(opened, scanners, lambda _name: policy or ScannerPolicy(), commander)

    def delivery(self) -> "Rounds":
        """The agent's talk with the server, as after a start."""
        return Rounds(self.runner())

    async def register(self, **changes) -> None:
        """Register with the stub server."""
        token = self.server.registration_token(**changes)
        await register(self.client, token, identity=self.identity, state=self.state, trust=self.trust)


@attrs.define
class Rounds:
    """What the loops do with the server, step by step."""

    runner: Runner

    @property
    def trust(self) -> TrustStore:
        """The documents of trust that it uses."""
        return self.runner.check_ins.trust

    async def round(self) -> float:
        """Check in without waiting, hand over what was ordered, deliver; seconds until the next check-in."""
        answer = await self.runner.check_ins.check_in()
        await hand_over(answer.commands, self.runner.commander, self.runner.failures)
        await self.runner.delivery.send()
        return pace(answer)


class Desk:
    """
    A commander whose every move a test makes: it believes everything and does nothing by itself.

    `redflag_agent.executor.Commander`.
    """

    def __init__(self):
        self.news = asyncio.Event()
        self.received = []
        self.waiting = {}
        self.latest = None
        self.fast_until = None
        self.pages = 2
        self.failure = None

    def state(self, number, envelope, cmd_id=None):
        """State something."""
        self.waiting[number] = Undelivered(number, envelope, cmd_id)
        self.news.set()

    def show(self, progress):
        """Show how far it is."""
        self.latest = progress
        self.news.set()

    async def execute(self, envelope):
        """Take it."""
        self.received.append(envelope)
        if self.failure is not None:
            raise self.failure
        return b""

    def statements(self, *, skip=()):
        """A page of what waits."""
        return [each for number, each in sorted(self.waiting.items()) if number not in skip][: self.pages]

    def delivered(self, statement_id):
        """It has arrived."""
        self.waiting.pop(statement_id, None)

    def progress(self):
        """What is new."""
        latest, self.latest = self.latest, None
        return latest

    def busy(self):
        """Never: nothing is carried out here."""
        return False

    def heartbeat_until(self):
        """As the test says."""
        return self.fast_until

    async def work(self, stop):
        """Nothing."""
        await stop.wait()


@asynccontextmanager
async def agent_parts(
    path,
    server=None,
    *,
    clock=None,
    machine=None,
    seed=0,
    transport=None,
    http=None,
    commander=None,
    installers=None,
):
    """
    The parts of an agent in *path*. Open it twice for a restart.

    Args:
        path: Data directory.
        server: Stub server; a new one unless given.
        clock: The agent's time; the server's unless given.
        machine: What it runs on.
        seed: Another one after a restart: real entropy does not repeat itself either.
        transport: HTTP transport; the stub server's unless given.
        http: HTTP client in place of a transport; its owner closes it.
        commander: Who carries commands out; a `Desk` unless given.
        installers: With these, also with none of them, the real executor carries commands out.
    """
    server = server or StubServer(clock)
    clock = clock or server.clock
    entropy, machine = SeededEntropy(seed), machine or FakeMachine()
    directory = DataDirectory(path)
    directory.prepare()
    state = StateFile.open(directory.state)
    async with contextlib.AsyncExitStack() as stack:
        if http is None:
            http = httpx2.AsyncClient(transport=transport or mock_transport(server), trust_env=False)
            await stack.enter_async_context(http)
        journal = stack.enter_context(Journal.open(directory.journal))
        database = stack.enter_context(Database.open(directory.outbox))
        identity = open_identity(directory, state, machine=machine, clock=clock, entropy=entropy, journal=journal)
        addresses = tuple(map(parse_address, server.addresses))
        client = ServerClient(addresses, http, identity.agent_key, clock, entropy, retries=AT_ONCE)
        desk = commander or Desk()
        yield Parts(
            server=server,
            directory=directory,
            clock=clock,
            entropy=entropy,
            machine=machine,
            http=http,
            state=state,
            identity=identity,
            database=database,
            client=client,
            desk=desk,
            installers=installers,
        )


def surroundings(
    *scanners, clock=None, tell=None, sleep=asyncio.sleep, seed=0, machine=None, installers=()
) -> Surroundings:
    """The surroundings of a whole agent."""
    return Surroundings(
        clock=clock or FrozenClock(),
        entropy=SeededEntropy(seed),
        machine=machine or FakeMachine(),
        scanners=scanners,
        installers=installers,
        sleep=sleep,
        tell=tell or (lambda *_args, **_facts: None),
    )


def runner_of(parts: Parts, *scanners: FakeScanner, policy: ScannerPolicy | None = None) -> Runner:
    """The loops of the agent around *parts*."""
    return parts.runner(*scanners, policy=policy)


@asynccontextmanager
async def running(runner: Runner):
    """Let *runner* run beside the block, and tell it to stop at the block's end."""
    stop = asyncio.Event()
    task = asyncio.create_task(runner.run(stop))
    try:
        yield task
    finally:
        stop.set()
        await task
