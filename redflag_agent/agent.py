"""Putting the agent together: what is opened, in which order, and how it becomes and stays an agent."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import attrs

from redflag_agent.address import Address
from redflag_agent.answers import ServerRefusedError, ThrottledError
from redflag_agent.assembly import Opened, assemble
from redflag_agent.connection import environment_proxy, open_http
from redflag_agent.data_dir import DataDirectory
from redflag_agent.database import Database
from redflag_agent.executor import Commander, Journal, LocalCommander, OnError, Rescan
from redflag_agent.identity import Identity, open_identity, renew_identity
from redflag_agent.installers.model import Installer
from redflag_agent.pace import pause_after
from redflag_agent.progress import Tell, line
from redflag_agent.register import pins_of, register
from redflag_agent.runner import Runner
from redflag_agent.settings import FROM_ENVIRONMENT, AgentSettings
from redflag_agent.state import Pins, StateFile
from redflag_agent.tokens import member
from redflag_agent.transport import ServerClient
from redflag_agent.trust import TrustStore
from redflag_agent.waiting import Sleep, pause
from redflag_core.enrolment import RegistrationToken
from redflag_core.errors import ConfigurationError, RedFlagError, VerificationError
from redflag_core.ports import Clock, Entropy, MachineIdentity
from redflag_core.resilience import random_fraction
from redflag_core.scanning import Scanner

log = logging.getLogger(__name__)


@attrs.frozen
class Surroundings:
    """
    What the agent does not make itself.

    Attributes:
        clock: Both kinds of time.
        entropy: Unpredictable bytes.
        machine: Reads this machine's ids.
        scanners: What can be scanned here.
        installers: The package managers that can be used here.
        sleep: How to wait.
        tell: Told what happens.
    """

    clock: Clock
    entropy: Entropy
    machine: MachineIdentity
    scanners: Sequence[Scanner]
    installers: Sequence[Installer]
    sleep: Sleep
    tell: Tell


@attrs.define
class Agent:
    """
    An open agent: it holds the lock of its data directory. Make one with `open_agent`.

    Args:
        directory: Where it keeps everything.
        settings: What people chose.
        around: What it does not make itself.
        state: What it remembers.
        identity: Its keys.
        database: The outbox' file.
    """

    directory: DataDirectory
    settings: AgentSettings
    around: Surroundings
    state: StateFile
    identity: Identity
    database: Database

    async def register(self, token: RegistrationToken, *, anew: bool = False) -> None:
        """
        Register with the server of *token*; with a record there already, only its addresses are taken over.

        Args:
            token: From an operator.
            anew: Discard keys and record first: for a machine whose record was deleted or revoked.

        Raises:
            ConfigurationError: This agent is registered with another server.
            RedFlagError: The server refused, is not the one named, or did not answer.
        """
        if anew:
            self.identity = self._renewed_identity()
        known = self.state.state
        if known.registration is not None and known.pins is not None:
            if (known.pins.server, known.pins.root_fp) != (token.server, token.root_fp):
                raise ConfigurationError(
                    f"this agent is registered with another server: move {self.directory.path} away to start anew"
                )
            self.state.update(pins=pins_of(token))
            return
        if known.pins is not None and known.pins.server != token.server:
            self.identity = self._renewed_identity()
        async with self._client(pins_of(token)) as client:
            done = await register(
                client, token, identity=self.identity, state=self.state, trust=self._trust_store()
            )
        self.around.tell("registered", agent_id=done.agent_id)
        log.info(line("registered", agent_id=done.agent_id, server=token.server))

    async def run(self, stop: asyncio.Event, token: RegistrationToken | None = None) -> None:
        """
        Register if need be, then scan and talk until *stop* is set.

        Raises:
            ConfigurationError: There is no record and no token, or the record is with another server.
            RedFlagError: The server refused the registration, or is not the one named.
        """
        if token is not None:
            await self._register_patiently(token, stop)
        if stop.is_set():
            return
        pins = member(self.state.state).pins
        async with self._client(pins) as client:
            await self._runner(client).run(stop)

    async def run_once(self, token: RegistrationToken | None = None) -> None:
        """
        Register if need be, scan everything once, carry out what is ordered, and deliver all of it.

        Raises:
            RedFlagError: It could not be delivered.
        """
        if token is not None:
            await self.register(token)
        pins = member(self.state.state).pins
        async with self._client(pins) as client:
            await self._runner(client).run_once()

    async def _register_patiently(self, token: RegistrationToken, stop: asyncio.Event) -> None:
        """Try again while the server cannot be reached: it may start at the same time as this agent."""
        failures = 0
        while not stop.is_set():
            try:
                await self.register(token)
                return
            except (ConfigurationError, VerificationError):
                raise
            except RedFlagError as error:
                if isinstance(error, ServerRefusedError) and not isinstance(error, ThrottledError):
                    raise
                failures += 1
                wait = pause_after(error, failures=failures, fraction=random_fraction(self.around.entropy))
                self.around.tell("error", code=error.code, detail=error.message)
                log.warning(line("registration_delayed", detail=error.message, wait=round(wait)))
            await pause(wait, stop, sleep=self.around.sleep)

    @asynccontextmanager
    async def _client(self, pins: Pins) -> AsyncIterator[ServerClient]:
        settings, around = self.settings, self.around
        addresses = settings.addresses(pins.addresses)
        http = open_http(
            addresses,
            pin=settings.tls_pin or pins.tls,
            ca_file=settings.ca_file,
            proxy=_proxy(settings, addresses),
        )
        async with http:
            yield ServerClient(addresses, http, self.identity.agent_key, around.clock, around.entropy)

    def _runner(self, client: ServerClient) -> Runner:
        around, trust = self.around, self._trust_store()
        opened = Opened(
            client=client,
            state=self.state,
            executor=self.identity.executor,
            trust=trust,
            database=self.database,
            clock=around.clock,
            entropy=around.entropy,
            sleep=around.sleep,
            tell=around.tell,
        )
        return assemble(opened, around.scanners, self.settings.policy, partial(self._commander, trust))

    def _commander(self, trust: TrustStore, rescan: Rescan, on_error: OnError) -> Commander:
        return LocalCommander(
            self.directory,
            self.state,
            self.identity.executor,
            held=trust.held,
            installers=self.around.installers,
            rescan=rescan,
            on_error=on_error,
            sleep=self.around.sleep,
        )

    def _trust_store(self) -> TrustStore:
        store = TrustStore(self.directory.trust, self.state, self.around.clock)
        store.load()
        return store

    def _renewed_identity(self) -> Identity:
        around = self.around
        return renew_identity(
            self.directory,
            self.state,
            machine=around.machine,
            clock=around.clock,
            entropy=around.entropy,
            journal=self.identity.executor.journal,
        )


@contextmanager
def open_agent(directory: DataDirectory, settings: AgentSettings, around: Surroundings) -> Iterator[Agent]:
    """
    Open the agent that lives in *directory*; it is made when nobody lives there.

    Raises:
        ConfigurationError: The directory, a key or the state must not or cannot be used.
        OutboxError: The outbox cannot be used.
        JournalError: The executor's journal cannot be used.
    """
    directory.prepare()
    with directory.lock(), Journal.open(directory.journal) as journal:
        state = StateFile.open(directory.state)
        identity = open_identity(
            directory,
            state,
            machine=around.machine,
            clock=around.clock,
            entropy=around.entropy,
            journal=journal,
        )
        with Database.open(directory.outbox) as database:
            yield Agent(directory, settings, around, state, identity, database)


def _proxy(settings: AgentSettings, addresses: Sequence[Address]) -> str | None:
    return environment_proxy(addresses) if settings.proxy == FROM_ENVIRONMENT else settings.proxy
