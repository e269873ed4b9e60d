"""Executors for tests: real journal, judgement and processes, and whoever orders, with keys that they believe."""

import asyncio
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

from redflag_agent.data_dir import DataDirectory
from redflag_agent.executor import Journal, LocalCommander
from redflag_agent.identity import Identity, open_identity
from redflag_agent.state import Pins, Registration, StateFile
from redflag_agent.trust import Held
from redflag_core import codec
from redflag_core.commands import (
    COMMAND_TYPE,
    CancelParams,
    Command,
    CommandType,
    HeartbeatParams,
    Order,
    Orderable,
    PlanParams,
    Recipient,
    ScanParams,
    UpgradeParams,
    dump_params,
    sign_command,
)
from redflag_core.envelope import parse_envelope, sign_envelope
from redflag_core.freshness import unix
from redflag_core.keys import SigningKey
from redflag_core.messages import Phase, Progress, PublicKey, Role, TrustedKey
from redflag_core.statements import CommandResult, open_statement
from redflag_core.testing import FrozenClock, SeededEntropy
from redflag_core.trust import DAY, Root, first_root, new_bundle, next_root, sign_bundle
from tests.helpers.agents import FakeMachine
from tests.helpers.shell_installer import ShellInstaller

SERVER, AGENT, ORGANIZATION = (str(uuid.UUID(int=number)) for number in (101, 102, 103))
PATIENCE = 30.0
"""Seconds that something real may take on a loaded machine."""


def key(number: int) -> SigningKey:
    """The signing key with this number."""
    return SigningKey.from_seed(bytes([number]) * 32)


def unique(number: int) -> str:
    """The command id with this number."""
    return str(uuid.UUID(int=10_000 + number))


@attrs.define
class Issuer:
    """Whoever orders: roots, a command key, a bundle, and numbers that grow."""

    clock: FrozenClock
    root: SigningKey = attrs.field(factory=lambda: key(1))
    command_key: SigningKey = attrs.field(factory=lambda: key(2))
    entropy: SeededEntropy = attrs.field(factory=SeededEntropy)
    version: int = 1
    epoch: int = 1
    gen: int = 7
    seq: int = 0
    lifetime: int = 90 * DAY
    roots: list[bytes] = attrs.field(factory=list)
    bundle: bytes = b""
    made: int = 0

    def __attrs_post_init__(self):
        self.roots = [first_root(SERVER, self.root, now=self.clock.now())]
        self.publish()

    @property
    def pins(self) -> Pins:
        """What a machine that registered here believes."""
        return Pins(SERVER, key(1).verify_key.fingerprint, ("https://rf.example",))

    def publish(self, *roles: Role, signer: SigningKey | None = None, **changes) -> None:
        """Make the bundle anew, with these changes."""
        now = int(unix(self.clock.now()))
        trusted = [
            TrustedKey(PublicKey.of(self.command_key).key, role, now - DAY, now + 365 * DAY)
            for role in roles or (Role.COMMAND,)
        ]
        bundle = new_bundle(
            SERVER, trusted, version=self.version, epoch=self.epoch, now=self.clock.now(), lifetime=self.lifetime
        )
        self.bundle = sign_bundle(attrs.evolve(bundle, **changes), signer or self.root)

    def turn_over(self, root: SigningKey, command_key: SigningKey) -> None:
        """After a theft: a new root, a new command key, the next epoch."""
        self.roots.append(
            next_root(SERVER, Root(len(self.roots), self.root.verify_key), self.root, root, now=self.clock.now())
        )
        self.root, self.command_key = root, command_key
        self.version, self.epoch, self.gen, self.seq = self.version + 1, self.epoch + 1, 0, 0
        self.publish()

    def held(self) -> Held:
        """What a machine that fetched everything holds."""
        return Held(tuple(self.roots), self.bundle)

    def next_order(self) -> Order:
        """The next order number."""
        self.seq += 1
        return Order(self.epoch, self.gen, self.seq)

    def order(self, kind, params, *, cmd_id=None, start_by=3600) -> Orderable:
        """What is ordered, once and for all."""
        self.made += 1
        text = params if isinstance(params, bytes) else dump_params(params)
        deadline = int(unix(self.clock.now())) + start_by
        return Orderable(cmd_id=cmd_id or unique(self.made), type=kind, params=text, start_by=deadline)

    def sign(self, what: Orderable, recipient: Recipient, *, order: Order | None = None) -> bytes:
        """Sign it for delivery, anew each time."""
        numbers = order or self.next_order()
        return sign_command(what, recipient, numbers, self.command_key, now=self.clock.now(), entropy=self.entropy)

    def sign_body(self, body: Command | bytes, signer: SigningKey | None = None) -> bytes:
        """Sign whatever a test makes of a command."""
        text = body if isinstance(body, bytes) else codec.dump(body)
        return sign_envelope(COMMAND_TYPE, text, signer or self.command_key)


def body_of(wire: bytes) -> Command:
    """What a command says."""
    return codec.parse(Command, parse_envelope(wire).payload, max_bytes=1 << 20)


@attrs.define
class Bench:
    """An executor that was opened, and what a test does with it."""

    path: Path
    directory: DataDirectory
    issuer: Issuer
    clock: FrozenClock
    machine: FakeMachine
    state: StateFile
    identity: Identity
    journal: Journal
    installer: ShellInstaller
    commander: LocalCommander
    errors: list[tuple[str, BaseException]]
    scans: list[str | None]
    scan_failure: list[Exception]
    shown: Progress | None = None

    @property
    def recipient(self) -> Recipient:
        """Who this executor is."""
        return Recipient(
            server=SERVER,
            agent_id=AGENT,
            machine_binding=self.identity.executor.evidence().binding,
            key_fp=self.identity.executor.verify_key.key_id,
            epoch=self.issuer.epoch,
        )

    # --- orders

    def scan(self, scanner=None, **options) -> Orderable:
        """``scan.run``."""
        return self.issuer.order(CommandType.SCAN_RUN, ScanParams(scanner), **options)

    def plan(self, *names, **options) -> Orderable:
        """``packages.plan``."""
        targets = tuple(map(self.installer.target, names))
        return self.issuer.order(CommandType.PACKAGES_PLAN, PlanParams("shell", targets), **options)

    async def upgrade(self, *names, plan_hash=None, **options) -> Orderable:
        """``packages.upgrade`` to what is available, planned now."""
        targets = tuple(map(self.installer.target, names))
        planned = await self.installer.plan(targets)
        digest = plan_hash or planned.transaction.plan_hash
        return self.issuer.order(CommandType.PACKAGES_UPGRADE, UpgradeParams("shell", targets, digest), **options)

    def cancel(self, what, **options) -> Orderable:
        """``command.cancel``."""
        cmd_id = what if isinstance(what, str) else what.cmd_id
        return self.issuer.order(CommandType.COMMAND_CANCEL, CancelParams(cmd_id), **options)

    def heartbeat(self, seconds=600, **options) -> Orderable:
        """``agent.heartbeat``."""
        return self.issuer.order(CommandType.AGENT_HEARTBEAT, HeartbeatParams(seconds), **options)

    # --- what comes of them

    async def deliver(self, what: Orderable, *, order: Order | None = None):
        """Sign, deliver, and open the answer."""
        return self.opened(await self.commander.execute(self.issuer.sign(what, self.recipient, order=order)))

    async def execute(self, wire: bytes):
        """Deliver bytes, and open the answer."""
        return self.opened(await self.commander.execute(wire))

    def opened(self, envelope: bytes):
        """What the executor says, its signature verified."""
        return open_statement(envelope, self.identity.executor.verify_key, server=SERVER, agent_id=AGENT)

    def said(self) -> list:
        """What the server has not got yet."""
        return [self.opened(each.envelope) for each in self.commander.statements()]

    def results(self) -> dict[str, CommandResult]:
        """The results among it, by command."""
        return {each.cmd_id: each for each in self.said() if isinstance(each, CommandResult)}

    def take_all(self) -> list:
        """Deliver everything to the server; what it got."""
        got = []
        while waiting := self.commander.statements():
            for each in waiting:
                got.append(self.opened(each.envelope))
                self.commander.delivered(each.id)
        return got

    @contextmanager
    def limits(self, text: str):
        """Write the owner's file."""
        self.directory.limits.write_text(text)
        yield
        self.directory.limits.unlink()

    async def work_until(self, condition) -> None:
        """Work until *condition* holds, then stop as the agent does."""
        stop = asyncio.Event()
        working = asyncio.create_task(self.commander.work(stop))
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition():
                    if working.done():
                        await working
                        raise AssertionError("the work ended by itself")
                    await asyncio.sleep(0.01)
        finally:
            stop.set()
            await working

    def shows(self, phase: Phase | None = None) -> bool:
        """Whether there is new progress (of this phase), kept in `shown`."""
        new = self.commander.progress()
        self.shown = new or self.shown
        return new is not None and phase in (None, new.phase)

    def reached(self, name: str) -> bool:
        """Whether the installation has come to a package whose gate is closed."""
        return (self.installer.root / "reached" / name).exists()

    async def work_off(self) -> None:
        """Work until nothing is left to do."""
        await self.work_until(lambda: not self.commander.busy())

    async def carry_out(self, what: Orderable) -> CommandResult:
        """Deliver, work, and return the result."""
        await self.deliver(what)
        await self.work_until(lambda: what.cmd_id in self.results())
        return self.results()[what.cmd_id]

    def journalled(self) -> dict[str, list]:
        """Everything in the journal, to compare."""
        with self.journal.page() as page:
            tables = [row[0] for row in page.db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return {
                name: page.db.execute(f"SELECT * FROM {name}").fetchall()
                for name in tables
                if not name.startswith("sqlite_")
            }


def short_sleep(seconds: float):
    """Wait for real, but never for long: what is awaited here is another process."""
    return asyncio.sleep(min(seconds, 0.01))


@contextmanager
def bench(
    path: Path,
    issuer: Issuer | None = None,
    *,
    clock=None,
    machine=None,
    installers=None,
    sleep=short_sleep,
    launcher=lambda _name: (),
):
    """
    An executor in *path*. Open it again for a restart.

    Args:
        path: Everything is in here.
        issuer: Who orders; a new one unless given.
        clock: The executor's time; the issuer's unless given.
        machine: What it runs on.
        installers: Package managers; a shell unless given.
        sleep: How it waits.
        launcher: What comes before the command line of a runner.
    """
    issuer = issuer or Issuer(clock or FrozenClock())
    clock, machine = clock or issuer.clock, machine or FakeMachine()
    directory = DataDirectory(path / "data")
    directory.prepare()
    root = path / "root"
    shell = ShellInstaller(root) if root.exists() else ShellInstaller.build(root, a=("1", "2"), b=("1", "2"))
    state = StateFile.open(directory.state)
    errors, scans, failures = [], [], []

    async def rescan(scanner):
        scans.append(scanner)
        with suppress(IndexError):
            raise failures.pop()

    with Journal.open(directory.journal) as journal:
        identity = open_identity(
            directory, state, machine=machine, clock=clock, entropy=SeededEntropy(9), journal=journal
        )
        state.update(pins=issuer.pins, registration=Registration(AGENT, ORGANIZATION))
        commander = LocalCommander(
            directory,
            state,
            identity.executor,
            held=issuer.held,
            installers=[shell] if installers is None else installers,
            rescan=rescan,
            on_error=lambda subsystem, error: errors.append((subsystem, error)),
            sleep=sleep,
            launcher=launcher,
        )
        yield Bench(
            path,
            directory,
            issuer,
            clock,
            machine,
            state,
            identity,
            journal,
            shell,
            commander,
            errors,
            scans,
            failures,
        )
