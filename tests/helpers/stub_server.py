"""
A RedFlag server in memory, for tests of the agent: it verifies everything with redflag_core, as the real one does.

`StubServer.handle` is the whole of it; `mock_transport` puts it behind an HTTP client without a socket, and
`serving` on a loopback port, with TLS if wanted. `script` is for what goes wrong: functions that see each request
and may answer in its place, or break the connection after it was handled. With `holds` it holds check-ins open, as
the real one does: until there is a command, or for as long as the agent asked for.
"""

import asyncio
import gzip
import hashlib
import json
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import attrs
import httpx2

from redflag_core import codec
from redflag_core.command_queue import LEASE_SECONDS, next_order
from redflag_core.commands import (
    BYPASSING,
    CommandType,
    Order,
    Orderable,
    Params,
    Recipient,
    dump_params,
    sign_command,
)
from redflag_core.encoding import b64decode, b64encode, b64url_encode
from redflag_core.enrolment import (
    ACCESS_TOKEN_SECONDS,
    REFRESH_SECONDS,
    RefreshChain,
    RefreshVerdict,
    RegistrationClaim,
    RegistrationToken,
    RegistrationVerdict,
    judge_refresh,
    judge_registration,
    parse_credential,
    secret_digest,
)
from redflag_core.envelope import verify_envelope
from redflag_core.errors import RedFlagError, ReplayError, StaleError
from redflag_core.freshness import unix
from redflag_core.keys import SigningKey, VerifyKey
from redflag_core.machine import MachineEvidence, MachineVerdict, compare
from redflag_core.messages import (
    EVIDENCE_TYPE,
    EXECUTOR_PROOF_TYPE,
    EXECUTOR_STATE_TYPE,
    MAX_REPORT_BODY,
    MAX_SMALL_BODY,
    MAX_STATEMENT_BODY,
    Accepted,
    CheckIn,
    CheckInAnswer,
    Errors,
    EvidenceStatement,
    ExecutorProof,
    ExecutorState,
    Progress,
    PublicKey,
    Register,
    Registered,
    Report,
    ReportAccepted,
    Role,
    StatementPost,
    Token,
    TokenRequest,
    TrustedKey,
)
from redflag_core.scanning import Package, PackageDelta, PackageKey, apply_delta, inventory_hash
from redflag_core.signed_requests import Request, VerifiedRequest, parse_request, verify_request
from redflag_core.statements import CommandRefused, CommandResult, Statement, open_statement
from redflag_core.testing import FrozenClock, SeededEntropy
from redflag_core.trust import Root, bundle_digest, first_root, new_bundle, next_root, sign_bundle

API = "/api/v1"


@attrs.frozen
class Answer:
    """An HTTP answer."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = attrs.field(factory=dict)


class LostAnswerError(Exception):
    """The request was handled, and the connection broke before the answer arrived."""


class Refusal(Exception):  # noqa: N818  (not an error of this program)
    """A problem+json answer."""

    def __init__(self, status: int, code: str, detail: str = "no", headers: dict[str, str] | None = None) -> None:
        super().__init__(code)
        self.answer = problem(status, code, detail, headers)


def problem(status: int, code: str, detail: str = "no", headers: dict[str, str] | None = None) -> Answer:
    """Problem details (RFC 9457)."""
    body = json.dumps({"type": "about:blank", "status": status, "code": code, "detail": detail}).encode()
    return Answer(status, body, {"content-type": "application/problem+json", **(headers or {})})


@attrs.define
class Ordered:
    """A command in the queue."""

    what: Orderable
    leased_until: float = 0.0
    answered: bool = False


@attrs.define
class Record:
    """What the server knows of an agent."""

    agent_id: str
    claim: RegistrationClaim
    key: VerifyKey
    executor: VerifyKey
    evidence: MachineEvidence
    chain: RefreshChain
    status: str = "active"
    access_tokens: dict[str, tuple[str, float]] = attrs.field(factory=dict)
    inventories: dict[str, tuple[Package, ...]] = attrs.field(factory=dict)
    statuses: dict[str, str] = attrs.field(factory=dict)
    check_ins: list[CheckIn] = attrs.field(factory=list)
    reports: list[Report] = attrs.field(factory=list)
    errors: dict[str, Errors] = attrs.field(factory=dict)
    generations: list[int] = attrs.field(factory=list)
    commands: dict[str, Ordered] = attrs.field(factory=dict)
    issued: Order = attrs.field(factory=Order)
    reported: Order = attrs.field(factory=Order)
    statements: list[Statement] = attrs.field(factory=list)
    envelopes: list[bytes] = attrs.field(factory=list)
    """Each statement that arrived, also again."""
    progress: list[Progress] = attrs.field(factory=list)

    def results(self) -> dict[str, CommandResult]:
        """Results by command."""
        return {each.cmd_id: each for each in self.statements if isinstance(each, CommandResult)}


@attrs.frozen
class Held:
    """A check-in that is held open."""

    record: Record
    body: CheckIn


class StubServer:
    """
    The server.

    Args:
        clock: Its time.
        authorities: Its public names, the main one first.
        addresses: What its registration tokens say.
        tls: TLS pin of its registration tokens.
    """

    def __init__(self, clock=None, authorities=("rf.example",), addresses=("https://rf.example",), tls=None):
        self.clock = clock or FrozenClock()
        self.authorities = list(authorities)
        self.addresses = tuple(addresses)
        self.tls = tls
        self.id = str(uuid.UUID(int=1))
        self.root = SigningKey.from_seed(bytes([1]) * 32)
        self.root_fp = self.root.verify_key.fingerprint
        self.roots = [first_root(self.id, self.root, now=self.clock.now())]
        self.current = Root(1, self.root.verify_key)
        self.command_key = SigningKey.from_seed(bytes([2]) * 32)
        self.bundle = b""
        self.epoch = 0
        self.publish(version=1, epoch=0)
        self.agents: dict[str, Record] = {}
        self.tokens: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.nonces: set[tuple[str, str, int]] = set()
        self.script: list[Callable[[Request], Answer | None]] = []
        self.pace = 60
        self.holds = False
        self.gen = 0
        self.waiters: set[Callable[[], None]] = set()
        self._secrets = 0
        self._lock = threading.Lock()

    # --- what tests set up ---

    def rename(self, *, seed: int) -> None:
        """Become another installation: another id, another root."""
        self.id = str(uuid.UUID(int=seed))
        self.root = SigningKey.from_seed(bytes([seed]) * 32)
        self.root_fp = self.root.verify_key.fingerprint
        self.roots = [first_root(self.id, self.root, now=self.clock.now())]
        self.current = Root(1, self.root.verify_key)
        self.publish(version=1)

    def publish(self, *, version: int, epoch: int = 0) -> None:
        """Sign a bundle with the newest root."""
        now = int(unix(self.clock.now()))
        key = self.command_key
        trusted = TrustedKey(PublicKey.of(key).key, Role.COMMAND, now - 60, now + 10**6)
        self.epoch = epoch
        bundle = new_bundle(self.id, [trusted], version=version, epoch=epoch, now=self.clock.now())
        self.bundle = sign_bundle(bundle, self.root)

    def rotate_root(self) -> None:
        """Name a new root."""
        new = SigningKey.from_seed(bytes([10 + len(self.roots)]) * 32)
        self.roots.append(next_root(self.id, self.current, self.root, new, now=self.clock.now()))
        self.root, self.current = new, Root(len(self.roots), new.verify_key)

    def registration_token(self, **changes) -> RegistrationToken:
        """A registration token of this server."""
        secret = self._secret()
        token_id = str(uuid.uuid5(uuid.NAMESPACE_OID, secret))
        self.tokens[token_id] = secret_digest(secret)
        token = RegistrationToken(1, token_id, secret, self.id, self.root_fp, self.addresses, self.tls)
        return attrs.evolve(token, **changes)

    def only_agent(self) -> Record:
        """The record of the one agent there is."""
        (record,) = self.agents.values()
        return record

    def withdraw_access_tokens(self) -> None:
        """Make every access token invalid."""
        for record in self.agents.values():
            record.access_tokens.clear()

    def order(self, params: Params, kind: CommandType, *, start_by: int | None = None) -> str:
        """Order something of the one agent there is; the id of the command."""
        cmd_id = str(uuid.UUID(int=5000 + len(self.only_agent().commands)))
        end = start_by or int(unix(self.clock.now())) + 86_400
        self.only_agent().commands[cmd_id] = Ordered(
            Orderable(cmd_id=cmd_id, type=kind, params=dump_params(params), start_by=end)
        )
        self.ring()
        return cmd_id

    def ring(self) -> None:
        """Whoever waits looks again."""
        for waiter in list(self.waiters):
            waiter()

    # --- HTTP ---

    def handle(self, request: Request) -> Answer | Held:
        """Answer one request; or hold it, and then its answer is what `finish` gives."""
        with self._lock:
            self.requests.append((request.method, request.path))
            for step in list(self.script):
                answer = step(request)
                if answer is not None:
                    return answer
            return self.answer(request)

    def finish(self, held: Held) -> Answer:
        """Answer a check-in that was held."""
        with self._lock:
            return self._check_in_answer(held.record, held.body)

    def answer(self, request: Request) -> Answer | Held:
        """Answer one request by the rules."""
        try:
            return self._route(request)
        except Refusal as refusal:
            return refusal.answer
        except StaleError as error:
            return problem(
                401, error.code, error.message, {"date": format_datetime(self.clock.now(), usegmt=True)}
            )
        except RedFlagError as error:
            return problem(401, error.code, error.message)

    def _route(self, request: Request) -> Answer | Held:
        path = request.path.removeprefix(API)
        if request.method == "GET" and path == "/trust/bundle":
            return Answer(200, self.bundle)
        if request.method == "GET" and path.startswith("/trust/root/"):
            n = int(path.rsplit("/", 1)[1])
            return Answer(200, self.roots[n - 1]) if n <= len(self.roots) else problem(404, "not_found")
        if path == "/agents/register":
            return self._register(request)
        if path == "/agent/token":
            return self._token(*self._verified(request, with_token=False))
        record, verified = self._verified(request, with_token=True)
        if path == "/agent/check-in":
            return self._check_in(record, verified)
        if path.startswith("/agent/reports/"):
            return self._report(record, verified, path.rsplit("/", 1)[1])
        if path == "/agent/errors":
            batch = codec.parse(Errors, verified.body, max_bytes=MAX_SMALL_BODY * 64)
            record.errors[batch.batch_id] = batch
            return Answer(202, codec.dump(Accepted()))
        if path == "/agent/results":
            return self._statement(record, verified)
        if path == "/agent/progress":
            record.progress.append(codec.parse(Progress, verified.body, max_bytes=MAX_SMALL_BODY))
            return Answer(202, codec.dump(Accepted()))
        return problem(404, "not_found")

    # --- agents ---

    def _register(self, request: Request) -> Answer:
        body = codec.parse(Register, request.body, max_bytes=MAX_SMALL_BODY)
        key, executor = body.agent_key.open(), body.executor_key.open()
        verified = verify_request(
            request, key, authorities=self.authorities, now=self.clock.now(), with_token=False
        )
        self._claim(verified)
        evidence = self._evidence(body.evidence, executor)
        proof = codec.parse(
            ExecutorProof,
            verify_envelope(
                b64decode(body.executor_proof), EXECUTOR_PROOF_TYPE, {executor.key_id: executor}
            ).payload,
            max_bytes=MAX_SMALL_BODY,
        )
        assert proof.agent_key == body.agent_key
        assert proof.executor_key == body.executor_key
        assert proof.evidence == hashlib.sha256(b64decode(body.evidence)).hexdigest()
        assert (proof.server, proof.root_fp) == (self.id, self.root_fp)
        token_id, digest = parse_credential(body.registration_token)
        assert proof.token_id == token_id
        claim = RegistrationClaim(key.key_id, executor.key_id, bytes.fromhex(body.refresh_hash), evidence.digest)
        recorded = self.agents.get(key.key_id)
        verdict = judge_registration(recorded.claim if recorded else None, claim)
        if verdict is RegistrationVerdict.CONFLICT:
            raise Refusal(409, "registration_conflict")
        if recorded is None:
            if self.tokens.pop(token_id, None) != digest:
                raise Refusal(403, "registration_refused", "ask for a new token")
            if any(other.evidence.binding == evidence.binding for other in self.agents.values()):
                self.tokens[token_id] = digest
                raise Refusal(409, "duplicate_machine_id")
            recorded = Record(
                str(uuid.UUID(int=1000 + len(self.agents))),
                claim,
                key,
                executor,
                evidence,
                RefreshChain(claim.refresh_hash, None, 0, int(unix(self.clock.now())) + REFRESH_SECONDS),
            )
            self.agents[key.key_id] = recorded
        answer = Registered(1, recorded.agent_id, self.id, recorded.status, str(uuid.UUID(int=7)))
        return Answer(201, codec.dump(answer))

    def _token(self, record: Record, verified: VerifiedRequest) -> Answer:
        if record.status in ("quarantined", "revoked", "renewal_pending"):
            raise Refusal(403, f"agent_{record.status}", "an operator must look at it")
        body = codec.parse(TokenRequest, verified.body, max_bytes=MAX_SMALL_BODY)
        evidence = self._evidence(body.evidence, record.executor)
        state = self._state(body.state, record)
        if compare(record.evidence, evidence) is not MachineVerdict.MATCH:
            raise Refusal(403, "machine_mismatch", "this is another machine")
        record.evidence = evidence
        verdict, chain = judge_refresh(
            record.chain,
            current=secret_digest(body.current),
            successor=bytes.fromhex(body.next_hash),
            proven_generation=state.refresh_generation,
            gen=self.gen,
            now=self.clock.now(),
        )
        if verdict is RefreshVerdict.FORK:
            record.status = "quarantined"
            raise Refusal(403, "refresh_fork", "two hold the same secret")
        if verdict is RefreshVerdict.LAPSED:
            record.status = "renewal_pending"
            raise Refusal(403, "agent_renewal_pending")
        record.chain = chain
        record.generations.append(chain.generation)
        access = self._secret()
        record.access_tokens[access] = (evidence.digest, unix(self.clock.now()) + ACCESS_TOKEN_SECONDS)
        return Answer(200, codec.dump(Token(1, access, ACCESS_TOKEN_SECONDS, chain.generation)))

    def _check_in(self, record: Record, verified: VerifiedRequest) -> Answer | Held:
        body = codec.parse(CheckIn, verified.body, max_bytes=MAX_SMALL_BODY)
        state = self._state(body.state, record)
        record.reported = max(record.reported, Order(state.epoch, state.gen, state.seq))
        record.check_ins.append(body)
        if self.holds and body.wait and not self.due(record):
            return Held(record, body)
        return self._check_in_answer(record, body)

    def due(self, record: Record) -> list[Ordered]:
        """Commands to deliver now: those that do not wait for others, and one of the rest at a time."""
        if record.status != "active":
            return []
        unanswered = [each for each in record.commands.values() if not each.answered]
        waiting = [each for each in unanswered if each.what.type not in BYPASSING][:1]
        bypassing = [each for each in unanswered if each.what.type in BYPASSING]
        now = unix(self.clock.now())
        return [each for each in (*bypassing, *waiting) if each.leased_until <= now]

    def _lease(self, record: Record, ordered: Ordered) -> str:
        record.issued = next_order(record.issued, record.reported, epoch=self.epoch, gen=self.gen)
        ordered.leased_until = unix(self.clock.now()) + LEASE_SECONDS
        recipient = Recipient(
            server=self.id,
            agent_id=record.agent_id,
            machine_binding=record.evidence.binding,
            key_fp=record.executor.key_id,
            epoch=self.epoch,
        )
        self._secrets += 1
        entropy = SeededEntropy(self._secrets)
        wire = sign_command(
            ordered.what, recipient, record.issued, self.command_key, now=self.clock.now(), entropy=entropy
        )
        return b64encode(wire)

    def _statement(self, record: Record, verified: VerifiedRequest) -> Answer:
        if record.status not in ("active", "executor_rolled_back"):
            raise Refusal(403, f"agent_{record.status}")
        post = codec.parse(StatementPost, verified.body, max_bytes=MAX_STATEMENT_BODY)
        wire = b64decode(post.statement)
        statement = open_statement(wire, record.executor, server=self.id, agent_id=record.agent_id)
        if wire not in record.envelopes:
            record.statements.append(statement)
        record.envelopes.append(wire)
        ordered = record.commands.get(statement.cmd_id or "")
        if ordered is not None and (not isinstance(statement, CommandRefused) or statement.never):
            ordered.answered = True
        return Answer(202, codec.dump(Accepted()))

    def _check_in_answer(self, record: Record, body: CheckIn) -> Answer:
        bases = {name: inventory_hash(packages) for name, packages in record.inventories.items()}
        wanted = [
            scan.scanner
            for scan in body.scanners
            if record.statuses.get(scan.scanner) != scan.status
            or (scan.status == "ok" and bases.get(scan.scanner) != scan.hash)
        ]
        answer = CheckInAnswer(
            v=1,
            server_time=int(unix(self.clock.now())),
            status=record.status,
            next_check_in_seconds=self.pace,
            reports_wanted=tuple(wanted) if record.status in ("active", "executor_rolled_back") else (),
            report_bases=bases,
            epoch=self.epoch,
            bundle_version=1,
            bundle=bundle_digest(self.bundle),
            commands=tuple(self._lease(record, each) for each in self.due(record)),
        )
        return Answer(200, codec.dump(answer))

    def _report(self, record: Record, verified: VerifiedRequest, scanner: str) -> Answer:
        if record.status not in ("active", "executor_rolled_back"):
            raise Refusal(403, f"agent_{record.status}")
        body = codec.parse(Report, verified.body, max_bytes=MAX_REPORT_BODY)
        record.reports.append(body)
        held = record.inventories.get(scanner)
        if body.hash is not None:
            before = () if body.base is None else held
            if before is None or (body.base is not None and inventory_hash(before) != body.base):
                return Answer(200, codec.dump(ReportAccepted(1, False, None)))
            removed = tuple(PackageKey(key.name, key.arch) for key in body.removed)
            after = apply_delta(before, PackageDelta(body.packages, removed))
            assert body.hash == inventory_hash(after)
            record.inventories[scanner] = after
        record.statuses[scanner] = body.status
        return Answer(200, codec.dump(ReportAccepted(1, True, body.hash)))

    # --- verification ---

    def _verified(self, request: Request, *, with_token: bool) -> tuple[Record, VerifiedRequest]:
        parsed = parse_request(request, authorities=self.authorities, with_token=with_token)
        record = self.agents.get(parsed.key_id)
        if record is None:
            raise Refusal(401, "unknown_key", "this key is not registered here")
        verified = verify_request(
            request, record.key, authorities=self.authorities, now=self.clock.now(), with_token=with_token
        )
        if with_token:
            self._check_access(record, verified)
        self._claim(verified)
        if request.header(b"content-encoding") == "gzip":
            verified = attrs.evolve(verified, body=gzip.decompress(verified.body))
        return record, verified

    def _check_access(self, record: Record, verified: VerifiedRequest) -> None:
        digest, end = record.access_tokens.get(verified.access_token or "", ("", 0.0))
        if digest != record.evidence.digest or unix(self.clock.now()) >= end:
            raise Refusal(401, "bad_token", "ask for a new one")
        if record.status in ("quarantined", "revoked", "renewal_pending"):
            raise Refusal(403, f"agent_{record.status}", "an operator must look at it")

    def _claim(self, verified: VerifiedRequest) -> None:
        entry = (verified.key_id, verified.nonce, verified.created)
        if entry in self.nonces:
            raise ReplayError("replayed")
        self.nonces.add(entry)

    def _evidence(self, text: str, executor: VerifyKey) -> MachineEvidence:
        payload = verify_envelope(b64decode(text), EVIDENCE_TYPE, {executor.key_id: executor}).payload
        return codec.parse(EvidenceStatement, payload, max_bytes=MAX_SMALL_BODY).evidence

    def _state(self, text: str, record: Record) -> ExecutorState:
        keys = {record.executor.key_id: record.executor}
        payload = verify_envelope(b64decode(text), EXECUTOR_STATE_TYPE, keys).payload
        state = codec.parse(ExecutorState, payload, max_bytes=MAX_SMALL_BODY)
        assert (state.server, state.agent_id) == (self.id, record.agent_id)
        return state

    def _secret(self) -> str:
        self._secrets += 1
        return b64url_encode(hashlib.sha256(f"stub secret {self._secrets}".encode()).digest())


# --- ways to reach it -------------------------------------------------------------------------------------------


def mock_transport(server: StubServer) -> httpx2.MockTransport:
    """An HTTP transport that ends in *server*, without a socket."""

    async def hold(held: Held) -> Answer:
        rung = asyncio.Event()
        server.waiters.add(rung.set)
        try:
            async with asyncio.timeout(held.body.wait):
                while not server.due(held.record):
                    await rung.wait()
                    rung.clear()
        except TimeoutError:
            pass
        finally:
            server.waiters.discard(rung.set)
        return server.finish(held)

    async def handle(request: httpx2.Request) -> httpx2.Response:
        path, _, query = request.url.raw_path.decode().partition("?")
        headers = [(name.lower(), value) for name, value in request.headers.raw]
        try:
            answer = server.handle(Request(request.method, path, query, headers, request.content))
        except LostAnswerError:
            raise httpx2.ReadError("the connection broke", request=request) from None
        if isinstance(answer, Held):
            answer = await hold(answer)
        # A stream, because the agent reads answers as they come.
        return httpx2.Response(answer.status, headers=answer.headers, stream=httpx2.ByteStream(answer.body))

    return httpx2.MockTransport(handle)


@contextmanager
def serving(server: StubServer, *, certificate=None) -> Iterator[int]:
    """
    Serve on a loopback port until the block ends.

    Args:
        server: What answers. Its authorities and addresses are set to the port.
        certificate: Pair of paths (certificate chain, key) for TLS.

    Yields:
        The port.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self._answer()

        def do_POST(self):
            self._answer()

        def _answer(self):
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            path, _, query = self.path.partition("?")
            headers = [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
            try:
                answer = server.handle(Request(self.command, path, query, headers, body))
            except LostAnswerError:
                self.close_connection = True
                return
            if isinstance(answer, Held):
                answer = self._hold(answer)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() != "date":
                    self.send_header(name, value)
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def _hold(self, held):
            rung, end = threading.Event(), time.monotonic() + held.body.wait
            server.waiters.add(rung.set)
            while not server.due(held.record) and rung.wait(max(0.0, end - time.monotonic())):
                rung.clear()
            server.waiters.discard(rung.set)
            return server.finish(held)

        def log_message(self, *_args):
            """Say nothing."""

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *_args):
            """A client that leaves, or a handshake that fails on purpose, is no news."""

    http = Quiet(("127.0.0.1", 0), Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        http.socket = context.wrap_socket(http.socket, server_side=True, do_handshake_on_connect=False)
    port = http.server_address[1]
    scheme = "http" if certificate is None else "https"
    server.authorities = [f"127.0.0.1:{port}", f"localhost:{port}"]
    server.addresses = (f"{scheme}://127.0.0.1:{port}",)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield port
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
