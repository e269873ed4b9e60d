"""Machines that speak the real protocol to a server under test: keys, evidence, signatures, all of the core."""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import attrs

from redflag_core import codec
from redflag_core.commands import (
    CancelParams,
    Command,
    Order,
    Recipient,
    check_order,
    check_recipient,
    check_start_by,
    check_time,
    open_command,
    parse_params,
)
from redflag_core.encoding import b64decode, b64encode
from redflag_core.enrolment import RegistrationToken, new_secret, secret_digest
from redflag_core.envelope import sign_envelope
from redflag_core.errors import ConflictingCommandError, RedFlagError
from redflag_core.keys import SigningKey, VerifyKey
from redflag_core.machine import MachineEvidence, RawMachine, make_evidence
from redflag_core.messages import (
    EVIDENCE_TYPE,
    EXECUTOR_PROOF_TYPE,
    EXECUTOR_STATE_TYPE,
    CheckIn,
    Errors,
    EvidenceStatement,
    ExecutorProof,
    ExecutorState,
    OperatingSystem,
    Phase,
    Progress,
    PublicKey,
    Register,
    Report,
    Role,
    ScannerState,
    StatementPost,
    TokenRequest,
    Versions,
)
from redflag_core.scanning import Package, PackageState, ScanStatus, inventory_hash
from redflag_core.signed_requests import Request, new_nonce, sign_request
from redflag_core.statements import (
    CommandAccepted,
    CommandRefused,
    CommandResult,
    Outcome,
    Statement,
    sign_statement,
)
from redflag_core.system import SystemEntropy
from redflag_core.trust import live_keys, verify_bundle, verify_roots

Answer = Any
"""What a client returns: ``status_code``, ``json()``, ``headers``."""

ENTROPY = SystemEntropy()
API = "/api/v1"


@attrs.frozen
class Signed:
    """A signed request, ready to be sent, sent twice, or tampered with."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def url(self) -> str:
        """Path and query as they go on the wire."""
        return self.path + (f"?{self.query}" if self.query else "")

    async def send(self, client: Any) -> Answer:
        """Send it as it is."""
        return await client.request(self.method, self.url, content=self.body, headers=self.headers)


@attrs.define
class Entry:
    """What the journal has of one command: the command, and the last that was signed about it."""

    command: Command
    body: str
    statement: bytes = b""


@attrs.define
class Machine:
    """
    One machine with its agent's keys, and an executor that judges commands with the core and keeps a journal.

    Args:
        now: Tells the time that its requests are signed with.
        authority: Public name of the server.
        prefix: Path of its public URL.
    """

    now: Any
    authority: str
    prefix: str = attrs.field(default="", kw_only=True)
    machine_id: bytes = attrs.field(factory=lambda: ENTROPY.token(16))
    key: SigningKey = attrs.field(factory=SigningKey.generate)
    executor: SigningKey = attrs.field(factory=SigningKey.generate)
    secret: str = attrs.field(factory=lambda: new_secret(ENTROPY))
    pending: str = attrs.field(factory=lambda: new_secret(ENTROPY))
    generation: int = 0
    boot_id: str = attrs.field(factory=lambda: str(uuid4()))
    server: str = ""
    agent_id: str = ""
    access_token: str | None = None
    root_fp: str = ""
    order: Order = attrs.field(factory=lambda: Order(1))
    command_keys: dict[str, VerifyKey] = attrs.field(factory=dict)
    nonces: set[str] = attrs.field(factory=set)
    journal: dict[str, Entry] = attrs.field(factory=dict)
    tombstones: set[str] = attrs.field(factory=set)
    starts: list[str] = attrs.field(factory=list)

    # --- statements ---

    def evidence(self) -> MachineEvidence:
        """What the machine shows of itself."""
        return make_evidence(RawMachine(machine_id=self.machine_id), replacement=b"0123456789abcdef")

    def evidence_envelope(self) -> bytes:
        """The same, signed by the executor."""
        return sign_envelope(EVIDENCE_TYPE, codec.dump(EvidenceStatement(1, self.evidence())), self.executor)

    def state(self, **changes: Any) -> str:
        """State of the executor, signed, in base64."""
        state = ExecutorState(
            v=1,
            server=self.server,
            agent_id=self.agent_id,
            epoch=self.order.epoch,
            gen=self.order.gen,
            seq=self.order.seq,
            refresh_generation=self.generation,
            iat=int(self.now().timestamp()),
        )
        state = attrs.evolve(state, **changes)
        return b64encode(sign_envelope(EXECUTOR_STATE_TYPE, codec.dump(state), self.executor))

    # --- bodies ---

    def register_body(self, token: RegistrationToken, **changes: Any) -> Register:
        """A registration with *token*."""
        evidence = self.evidence_envelope()
        proof = ExecutorProof(
            v=1,
            agent_key=PublicKey.of(self.key),
            executor_key=PublicKey.of(self.executor),
            evidence=hashlib.sha256(evidence).hexdigest(),
            server=token.server,
            root_fp=token.root_fp,
            token_id=token.id,
        )
        body = Register(
            v=1,
            registration_token=token.credential,
            agent_key=proof.agent_key,
            executor_key=proof.executor_key,
            executor_proof=b64encode(sign_envelope(EXECUTOR_PROOF_TYPE, codec.dump(proof), self.executor)),
            evidence=b64encode(evidence),
            refresh_hash=secret_digest(self.secret).hex(),
            hostname="machine-under-test",
            os=OperatingSystem("linux", "debian", "Debian GNU/Linux 12 (bookworm)", "12"),
            versions=Versions("0.1.0", (1,)),
        )
        return attrs.evolve(body, **changes)

    def token_body(self, **changes: Any) -> TokenRequest:
        """A request for an access token."""
        body = TokenRequest(
            v=1,
            current=self.secret,
            next_hash=secret_digest(self.pending).hex(),
            evidence=b64encode(self.evidence_envelope()),
            state=self.state(),
            boot_id=self.boot_id,
        )
        return attrs.evolve(body, **changes)

    def check_in_body(self, scanners: Sequence[ScannerState] = (), **changes: Any) -> CheckIn:
        """A check-in."""
        body = CheckIn(v=1, state=self.state(), boot_id=self.boot_id, scanners=tuple(scanners))
        return attrs.evolve(body, **changes)

    # --- requests ---

    def sign(
        self,
        path: str,
        body: Any,
        *,
        with_token: bool = True,
        method: str = "POST",
        query: str = "",
        created: datetime | None = None,
        extra: dict[str, str] | None = None,
    ) -> Signed:
        """Sign a request; *body* is a message of the core, or raw bytes."""
        raw = body if isinstance(body, bytes) else codec.dump(body)
        headers = {"host": self.authority, "content-type": "application/json", **(extra or {})}
        if with_token and self.access_token is not None:
            headers["authorization"] = f"Bearer {self.access_token}"
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        target = self.prefix + API + path
        request = Request(method, target, query, pairs, raw)
        added = sign_request(
            request, self.key, authority=self.authority, now=created or self.now(), nonce=new_nonce(ENTROPY)
        )
        headers.update({name.decode(): value.decode() for name, value in added})
        return Signed(method, target, query, headers, raw)

    async def register(self, client: Any, token: RegistrationToken) -> Answer:
        """Register, and remember who this machine now is."""
        signed = self.sign("/agents/register", self.register_body(token), with_token=False)
        answer = await signed.send(client)
        if answer.status_code == 201:
            self.server, self.agent_id = token.server, answer.json()["agent_id"]
            self.root_fp = token.root_fp
        return answer

    async def refresh(self, client: Any) -> Answer:
        """Get an access token, and move the chain on when it was given."""
        answer = await self.sign("/agent/token", self.token_body(), with_token=False).send(client)
        if answer.status_code == 200:
            self.take_token(answer.json())
        return answer

    def take_token(self, token: dict[str, Any]) -> None:
        """What an agent does with the answer: the successor is due now."""
        self.access_token = token["access_token"]
        self.generation = token["refresh_generation"]
        self.secret, self.pending = self.pending, new_secret(ENTROPY)

    async def enrol(self, client: Any, token: RegistrationToken) -> "Machine":
        """Register and get a token."""
        assert (await self.register(client, token)).status_code == 201
        assert (await self.refresh(client)).status_code == 200
        return self

    async def check_in(self, client: Any, scanners: Sequence[ScannerState] = (), **changes: Any) -> Answer:
        """Check in."""
        return await self.sign("/agent/check-in", self.check_in_body(scanners, **changes)).send(client)

    async def report(self, client: Any, report: Report, scanner: str = "apt") -> Answer:
        """Send a report."""
        return await self.sign(f"/agent/reports/{scanner}", report).send(client)

    async def send_errors(self, client: Any, errors: Errors) -> Answer:
        """Send errors."""
        return await self.sign("/agent/errors", errors).send(client)

    # --- commands ---

    async def learn_trust(self, client: Any) -> None:
        """Follow the root chain from the pin, and take the command keys of the bundle."""
        root = verify_roots(
            [(await client.get(f"{self.prefix}{API}/trust/root/1")).content],
            server=self.server,
            root_fp=self.root_fp,
        )
        wire = (await client.get(f"{self.prefix}{API}/trust/bundle")).content
        bundle = verify_bundle(wire, root.key, server=self.server, now=self.now())
        self.command_keys = live_keys(bundle, Role.COMMAND, now=self.now())

    async def fetch(self, client: Any, **changes: Any) -> list[bytes]:
        """Check in; the envelopes that were handed out."""
        if not self.command_keys:
            await self.learn_trust(client)
        answer = await self.check_in(client, **changes)
        assert answer.status_code == 200, answer.text
        return [b64decode(text) for text in answer.json()["commands"]]

    def execute(self, wire: bytes) -> bytes:
        """Judge a command in the executor's order; what was signed about it."""
        try:
            opened = open_command(wire, self.command_keys)
        except RedFlagError as error:
            return self.refuse(None, hashlib.sha256(wire).hexdigest(), error)
        command = opened.body
        try:
            check_recipient(command, self.recipient())
            check_time(command, now=self.now())
            check_order(command, self.order, nonce_seen=command.nonce in self.nonces)
        except RedFlagError as error:
            return self.refuse(command, opened.hash, error)
        self.nonces.add(command.nonce)
        self.order = command.order
        known = self.journal.get(command.cmd_id)
        if known is not None and known.command.digest != command.digest:
            return self.refuse(command, opened.hash, ConflictingCommandError("known with another order"))
        if known is not None and known.statement:
            return known.statement
        return self._take(Entry(command, opened.hash))

    def _take(self, entry: Entry) -> bytes:
        command = entry.command
        self.journal[command.cmd_id] = entry
        if command.cmd_id in self.tombstones:
            entry.statement = self.never(command.cmd_id)
            return entry.statement
        try:
            params = parse_params(command.type, b64decode(command.params))
            check_start_by(command.start_by, now=self.now())
        except RedFlagError as error:
            entry.statement = self.refuse(command, entry.body, error, never=True)
            return entry.statement
        if isinstance(params, CancelParams):
            self._cancel(params.cmd_id)
        entry.statement = self.sign_statement(self.accepted(command.cmd_id))
        return entry.statement

    def _cancel(self, cmd_id: str) -> None:
        if cmd_id not in self.starts:
            self.tombstones.add(cmd_id)
            if cmd_id in self.journal:
                self.journal[cmd_id].statement = self.never(cmd_id)

    def never(self, cmd_id: str, code: str = "cancelled") -> bytes:
        """That a command will never be started, signed."""
        entry = self.journal[cmd_id]
        return self.refuse(entry.command, entry.body, RedFlagError("not started"), code=code, never=True)

    def recipient(self) -> Recipient:
        """Whom commands must be for."""
        return Recipient(
            server=self.server,
            agent_id=self.agent_id,
            machine_binding=self.evidence().binding,
            key_fp=self.executor.key_id,
            epoch=self.order.epoch,
        )

    def accepted(self, cmd_id: str, **changes: Any) -> CommandAccepted:
        """That it is in the journal."""
        entry = self.journal[cmd_id]
        command = entry.command
        statement = CommandAccepted(
            server=self.server,
            agent_id=self.agent_id,
            cmd_id=cmd_id,
            digest=command.digest,
            body=entry.body,
            epoch=command.epoch,
            gen=command.gen,
            seq=command.seq,
            iat=self._iat(),
        )
        return attrs.evolve(statement, **changes)

    def refuse(
        self,
        command: Command | None,
        body: str,
        error: RedFlagError,
        *,
        code: str | None = None,
        never: bool = False,
        retry_after: int | None = None,
    ) -> bytes:
        """That it was not accepted, signed."""
        statement = CommandRefused(
            server=self.server,
            agent_id=self.agent_id,
            cmd_id=None if command is None else command.cmd_id,
            digest=None if command is None else command.digest,
            body=body,
            code=code or error.code,
            detail=error.message,
            never=never,
            retry_after=retry_after,
            iat=self._iat(),
        )
        return self.sign_statement(statement)

    def run(self, cmd_id: str, outcome: Outcome = Outcome.COMPLETED, **changes: Any) -> bytes:
        """Start an accepted command, once, and end it; its result, signed."""
        assert cmd_id not in self.starts, "started twice"
        self.starts.append(cmd_id)
        self.journal[cmd_id].statement = self.sign_statement(self.result(cmd_id, outcome, **changes))
        return self.journal[cmd_id].statement

    def result(self, cmd_id: str, outcome: Outcome = Outcome.COMPLETED, **changes: Any) -> CommandResult:
        """How it ended."""
        entry = self.journal[cmd_id]
        why = {} if outcome is Outcome.COMPLETED else {"code": "install_failed", "detail": "it did not work"}
        statement = CommandResult(
            server=self.server,
            agent_id=self.agent_id,
            cmd_id=cmd_id,
            digest=entry.command.digest,
            body=entry.body,
            outcome=outcome,
            started_at=self._iat(),
            finished_at=self._iat(),
            **why,
        )
        return attrs.evolve(statement, **changes)

    def sign_statement(self, statement: Statement) -> bytes:
        """The envelope of what the executor says."""
        return sign_statement(statement, self.executor)

    async def deliver(self, client: Any, wire: bytes) -> Answer:
        """Send a signed statement."""
        return await self.sign("/agent/results", StatementPost(v=1, statement=b64encode(wire))).send(client)

    async def progress(self, client: Any, cmd_id: str, number: int = 1, **changes: Any) -> Answer:
        """Say how far a command is."""
        body = Progress(v=1, cmd_id=cmd_id, number=number, phase=Phase.RUNNING, doing="unpacking")
        return await self.sign("/agent/progress", attrs.evolve(body, **changes)).send(client)

    def _iat(self) -> int:
        return int(self.now().timestamp())


def package(name: str, state: PackageState = PackageState.CURRENT, **changes: Any) -> Package:
    """A package as a scanner sees it."""
    available = None if state is PackageState.CURRENT else "2.0"
    return Package(name=name, arch="amd64", installed="1.0", available=available, state=state, **changes)


def full_report(packages: Sequence[Package], **changes: Any) -> Report:
    """A full report of *packages*."""
    report = Report(
        v=1,
        report_id=str(uuid4()),
        taken_at=1_767_225_600,
        duration_ms=10,
        status=ScanStatus.OK,
        manager="apt",
        hash=inventory_hash(packages),
        packages=tuple(packages),
    )
    return attrs.evolve(report, **changes)


def failed_scan(error: str = "apt-get: the lists are damaged") -> Report:
    """A report of a scan that failed."""
    return Report(
        v=1,
        report_id=str(uuid4()),
        taken_at=1_767_225_600,
        duration_ms=10,
        status=ScanStatus.FAILED,
        manager="apt",
        error=error,
    )


def new_id() -> str:
    """A UUID in text."""
    return str(UUID(bytes=ENTROPY.token(16), version=4))
