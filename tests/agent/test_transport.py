"""Signed HTTP: signed anew each time, bounded, patient where it helps, and quiet where it does not."""

import asyncio
import gzip
import json
import socket
import threading
from contextlib import contextmanager
from datetime import timedelta

import httpx2
import pytest

from redflag_agent.address import parse_address
from redflag_agent.answers import ServerFailedError, ServerRefusedError, ThrottledError, UnreachableError
from redflag_agent.connection import environment_proxy, open_http
from redflag_agent.transport import HELD_AT_LEAST, MAX_ANSWER, PollCutError, ServerClient
from redflag_core.commands import CommandType, ScanParams
from redflag_core.errors import CircuitOpenError
from redflag_core.keys import SigningKey
from redflag_core.resilience import RetryPolicy
from redflag_core.signed_requests import Request, verify_request
from redflag_core.system import SystemClock
from redflag_core.testing import START, FrozenClock, SeededEntropy
from tests.helpers.agents import AT_ONCE, agent_parts, failed
from tests.helpers.stub_server import StubServer, problem, serving

KEY = SigningKey.from_seed(bytes([3]) * 32)
TOKEN = "abc.def.ghi"
ONCE = RetryPolicy(attempts=1, wait_initial=0.0, wait_max=0.0, wait_jitter=0.0, timeout=30.0)


class Peer:
    """What answers: the answers of a test in turn, the last one for ever; every request is verified."""

    def __init__(self, *answers, clock=None, prefix=""):
        self.clock = clock or FrozenClock()
        self.answers = list(answers)
        self.seen = []
        self.verified = []
        self.prefix = prefix

    def handle(self, request):
        """Verify the signature of a POST, then answer."""
        self.seen.append(request)
        path, _, query = request.url.raw_path.decode().partition("?")
        if request.method == "POST":
            headers = [(name.lower(), value) for name, value in request.headers.raw]
            received = Request(request.method, path, query, headers, request.content)
            authority = request.headers["host"]
            with_token = "authorization" in request.headers
            self.verified.append(
                verify_request(
                    received, KEY.verify_key, authorities=[authority], now=self.server_now(), with_token=with_token
                )
            )
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer(request) if callable(answer) else answer

    def server_now(self):
        """The time that signatures are checked at; a test may replace it."""
        return self.clock.now() + timedelta(seconds=self.offset)

    offset = 0.0


def ok(body=b"{}"):
    """A good answer."""
    return lambda _request: httpx2.Response(200, stream=httpx2.ByteStream(body))


def bad(status, code="no", **headers):
    """A refusal."""
    answer = problem(status, code)
    return lambda _request: httpx2.Response(
        status, headers={**answer.headers, **headers}, stream=httpx2.ByteStream(answer.body)
    )


def broken(request):
    """A connection that breaks."""
    raise httpx2.ReadError("reset", request=request)


def client(peer, *addresses, retries=AT_ONCE):
    """A client of *peer*."""
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(peer.handle), trust_env=False)
    parsed = tuple(map(parse_address, addresses or ("https://rf.example",)))
    return ServerClient(parsed, http, KEY, peer.clock, SeededEntropy(), retries=retries)


async def test_a_request_verifies_with_and_without_a_token():
    """The profile covers the access token where there is one, and has none where there must be none."""
    peer = Peer(ok())
    there = client(peer)

    await there.post("/agent/check-in", b"{}", access_token=TOKEN)
    await there.post("/agent/token", b"{}")

    assert [TOKEN, None] == [request.access_token for request in peer.verified]
    assert ["/api/v1/agent/check-in", "/api/v1/agent/token"] == [request.url.path for request in peer.seen]


async def test_a_prefix_is_part_of_what_is_signed():
    """Behind a path prefix the signature covers the path as it goes on the wire."""
    peer = Peer(ok())

    await client(peer, "https://rf.example:8443/red/flag").post("/agent/token", b"{}")

    assert "/red/flag/api/v1/agent/token" == peer.seen[0].url.path
    assert "rf.example:8443" == peer.seen[0].headers["host"]


async def test_each_attempt_is_signed_with_a_fresh_nonce():
    """A repetition is a new message: the server never sees a nonce twice."""
    peer = Peer(broken, bad(503), ok())

    await client(peer).post("/agent/token", b"{}")

    assert 3 == len({request.nonce for request in peer.verified})


async def test_public_documents_are_fetched_without_signature_or_token():
    """Nothing of this agent is told for what anybody may read."""
    peer = Peer(ok(b"bundle"))

    assert b"bundle" == await client(peer).get("/trust/bundle")
    assert not {"signature", "authorization"} & set(peer.seen[0].headers)


@pytest.mark.parametrize("offset", [-86_400, 86_400, 301])
async def test_a_wrong_clock_is_learnt_from_the_server(offset):
    """Told that it is stale, the agent shifts only ``created``, at once, and keeps the shift."""
    date = (START + timedelta(seconds=offset)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    peer = Peer(ok())
    peer.offset = offset
    there = client(peer)
    accept = peer.handle

    def handle(request):
        try:
            return accept(request)
        except Exception:
            return bad(401, "stale", date=date)(request)

    there.http = httpx2.AsyncClient(transport=httpx2.MockTransport(handle), trust_env=False)
    await there.post("/agent/token", b"{}")
    await there.post("/agent/token", b"{}")

    assert offset == there.offset
    assert 3 == len(peer.seen)


async def test_a_stale_answer_is_not_repeated_for_ever():
    """One correction, then the refusal stands."""
    peer = Peer(bad(401, "stale", date="Thu, 01 Jan 2026 00:00:00 GMT"))

    with pytest.raises(ServerRefusedError):
        await client(peer).post("/agent/token", b"{}")

    assert 2 == len(peer.seen)


async def test_a_stale_answer_without_a_date_is_a_refusal():
    """Nothing can be learnt from it."""
    peer = Peer(bad(401, "stale"))

    with pytest.raises(ServerRefusedError):
        await client(peer).post("/agent/token", b"{}")

    assert 1 == len(peer.seen)


async def test_the_code_and_sentence_of_a_refusal_are_the_servers():
    """As types: status, code, sentence."""
    with pytest.raises(ServerRefusedError, match="no") as refusal:
        await client(Peer(bad(403, "agent_quarantined"))).post("/agent/token", b"{}")

    assert (403, "agent_quarantined") == (refusal.value.status, refusal.value.problem)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[1]", b'{"code": 5, "detail": {}}', b"\xff", b'{"code":"\\ud800"}']
)
async def test_a_refusal_in_any_form_is_a_type(body):
    """A proxy's page, or what is no problem document at all, raises nothing else."""
    peer = Peer(lambda _request: httpx2.Response(403, stream=httpx2.ByteStream(body)))

    with pytest.raises(ServerRefusedError) as refusal:
        await client(peer).post("/agent/token", b"{}")

    assert "http_403" == refusal.value.problem or body.startswith(b'{"code":"')


async def test_a_refusal_is_not_repeated():
    """The same request would be refused again."""
    peer = Peer(bad(400, "malformed"))

    with pytest.raises(ServerRefusedError):
        await client(peer).post("/agent/token", b"{}")

    assert 1 == len(peer.seen)


@pytest.mark.parametrize("failing", [broken, bad(500), bad(502), bad(503), bad(429)])
async def test_what_may_pass_is_tried_again(failing):
    """A broken connection, a failing or busy server."""
    peer = Peer(failing, ok(b"done"))

    assert b"done" == await client(peer).post("/agent/token", b"{}")


@pytest.mark.parametrize(
    "header, seconds",
    [("120", 120.0), ("Thu, 01 Jan 2026 00:02:00 GMT", 120.0), ("999999", 3600.0), ("soon", None), ("-5", None),
     ("Wed, 31 Dec 2025 00:00:00 GMT", 0.0), ("²", None)],
)  # fmt: skip
async def test_retry_after_is_honoured_and_bounded(header, seconds):
    """In both forms; a long wait is not begun here but handed to whoever paces the agent."""
    peer = Peer(
        lambda _request: httpx2.Response(
            429, headers={"retry-after": header.encode()}, stream=httpx2.ByteStream(b"")
        )
    )

    with pytest.raises(ThrottledError) as refusal:
        await client(peer, retries=ONCE if seconds in (0.0, None) else AT_ONCE).post("/agent/token", b"{}")

    assert seconds == refusal.value.retry_after
    assert 1 == len(peer.seen)


async def test_repetitions_have_a_budget():
    """A busy server gets the steady load and a tenth more, not a multiple of it."""
    peer = Peer(bad(429))
    there = client(peer)

    for _ in range(50):
        with pytest.raises(ThrottledError):
            await there.post("/agent/token", b"{}")

    assert 50 + 3 <= len(peer.seen) <= 50 + 3 + 5


async def test_a_server_that_keeps_failing_is_left_alone():
    """After five failures in a row nothing is sent until a trial is due; then one success closes the circuit."""
    peer = Peer(broken)
    there = client(peer, retries=ONCE)
    for _ in range(5):
        with pytest.raises(UnreachableError):
            await there.post("/agent/token", b"{}")
    sent = len(peer.seen)

    with pytest.raises(CircuitOpenError) as refusal:
        await there.post("/agent/token", b"{}")
    assert (sent, 60.0) == (len(peer.seen), refusal.value.retry_after)

    peer.clock.advance(61)
    peer.answers = [ok(b"back")]
    assert b"back" == await there.post("/agent/token", b"{}")


async def test_refusals_do_not_open_the_circuit():
    """A server that refuses works."""
    peer = Peer(bad(403))
    there = client(peer, retries=ONCE)
    for _ in range(20):
        with pytest.raises(ServerRefusedError):
            await there.post("/agent/token", b"{}")

    assert 20 == len(peer.seen)


def after(seconds, failing):
    """What takes that long before it fails."""

    def fail(request):
        fail.peer.clock.advance(seconds)
        return failing(request)

    fail.peer = Peer(fail)
    return fail.peer


def timeout(request):
    """An answer that does not come."""
    raise httpx2.ReadTimeout("", request=request)


def protocol(request):
    """A connection that ends without an answer."""
    raise httpx2.RemoteProtocolError("", request=request)


def refused(request):
    """Nobody listens."""
    raise httpx2.ConnectError("refused", request=request)


@pytest.mark.parametrize("failing", [broken, timeout, protocol, bad(408), bad(502), bad(504), bad(524)])
async def test_a_held_request_that_breaks_was_cut(failing):
    """It is not repeated at once, and says nothing about the server: the circuit stays closed."""
    peer = after(20.0, failing)
    there = client(peer)
    for _ in range(10):
        with pytest.raises(PollCutError, match="cut off after 20 s"):
            await there.post("/agent/check-in", b"{}", access_token=TOKEN, hold=50)

    assert (10, True) == (len(peer.seen), there.may_hold)


@pytest.mark.parametrize(
    "seconds, hold, failing",
    [
        (HELD_AT_LEAST - 0.5, 50, broken),
        (20.0, 0, broken),
        (20.0, 50, refused),
        (20.0, 50, bad(503)),
        (20.0, 50, bad(500)),
    ],
)
async def test_what_breaks_otherwise_is_a_failure(seconds, hold, failing):
    """At once, not held, never connected, or by the server's own word: that counts as it always did."""
    there = client(after(seconds, failing), retries=ONCE)
    for _ in range(5):
        with pytest.raises((UnreachableError, ServerFailedError)):
            await there.post("/agent/check-in", b"{}", access_token=TOKEN, hold=hold)

    assert not there.may_hold


async def test_a_held_request_may_take_as_long_as_it_is_held():
    """The time for reading is longer by that, and nothing else is."""
    peer = Peer(ok())
    there = client(peer)
    await there.post("/agent/check-in", b"{}", access_token=TOKEN, hold=50)
    await there.post("/agent/errors", b"{}", access_token=TOKEN)

    held, other = (request.extensions["timeout"] for request in peer.seen)
    assert {**other, "read": 80.0} == held
    assert {"connect": 10.0, "read": 30.0, "write": 30.0, "pool": 30.0} == other


async def test_addresses_are_tried_in_order_and_the_one_that_answers_is_kept():
    """The first is broken: the second is asked, and asked first from then on."""
    peer = Peer(lambda request: broken(request) if request.url.host == "a.example" else ok()(request))
    there = client(peer, "https://a.example", "https://b.example", retries=ONCE)

    await there.post("/agent/token", b"{}")
    await there.post("/agent/token", b"{}")

    assert ["a.example", "b.example", "b.example"] == [request.url.host for request in peer.seen]


async def test_a_refusal_at_one_address_is_not_carried_to_the_next():
    """It is the same server."""
    peer = Peer(bad(403))

    with pytest.raises(ServerRefusedError):
        await client(peer, "https://a.example", "https://b.example").post("/agent/token", b"{}")

    assert 1 == len(peer.seen)


async def test_an_answer_that_never_ends_is_cut_off():
    """Memory is bounded whatever answers."""

    async def endless():
        while True:
            yield bytes(65536)

    class Endless(httpx2.AsyncByteStream):
        async def __aiter__(self):
            async for chunk in endless():
                yield chunk

    peer = Peer(lambda _request: httpx2.Response(200, stream=Endless()))

    with pytest.raises(UnreachableError, match=f"{MAX_ANSWER}"):
        await client(peer, retries=ONCE).get("/trust/bundle")


async def test_a_compressed_answer_is_refused():
    """It was not asked for: a few bytes could become gigabytes."""
    peer = Peer(
        lambda _request: httpx2.Response(
            200, headers={"content-encoding": "gzip"}, stream=httpx2.ByteStream(b"\x1f\x8b")
        )
    )

    with pytest.raises(UnreachableError, match="compressed"):
        await client(peer, retries=ONCE).get("/trust/bundle")


LARGE = b'{"packages": "' + b"abcdefgh" * 1000 + b'"}'


@pytest.mark.parametrize("path", ["/agent/reports/apt", "/agent/results", "/agent/errors"])
async def test_a_large_body_travels_compressed_and_is_signed_as_it_travels(path):
    """A full inventory is a tenth of its size on the line."""
    peer = Peer(ok())

    await client(peer).post(path, LARGE, access_token=TOKEN)

    (request,) = peer.seen
    assert "gzip" == request.headers["content-encoding"]
    assert len(request.content) < len(LARGE) // 5
    assert LARGE == gzip.decompress(request.content)
    assert 1 == len(peer.verified)


@pytest.mark.parametrize("path, body", [("/agent/check-in", LARGE), ("/agent/results", b"{}")])
async def test_what_gains_nothing_travels_as_it_is(path, body):
    """Small bodies, and those of endpoints that take small ones only."""
    peer = Peer(ok())

    await client(peer).post(path, body, access_token=TOKEN)

    assert (body, None) == (peer.seen[0].content, peer.seen[0].headers.get("content-encoding"))


async def test_a_server_that_takes_no_compressed_body_is_sent_plain_ones():
    """It says so once; from then on nothing is compressed."""
    peer = Peer(bad(415, "unsupported_encoding"), ok())
    there = client(peer)

    await there.post("/agent/results", LARGE, access_token=TOKEN)
    await there.post("/agent/results", LARGE, access_token=TOKEN)

    assert ["gzip", None, None] == [request.headers.get("content-encoding") for request in peer.seen]
    assert [LARGE, LARGE] == [request.content for request in peer.seen[1:]]


async def test_another_refusal_of_a_compressed_body_is_a_refusal():
    """It is not repeated without compression."""
    peer = Peer(bad(400, "malformed"))

    with pytest.raises(ServerRefusedError, match="malformed"):
        await client(peer).post("/agent/results", LARGE, access_token=TOKEN)
    assert 1 == len(peer.seen)


async def test_a_redirect_is_not_followed():
    """A token must not go where an answer points."""
    peer = Peer(
        lambda _request: httpx2.Response(
            302, headers={"location": "https://evil.example/"}, stream=httpx2.ByteStream(b"")
        )
    )

    with pytest.raises(UnreachableError, match="redirect"):
        await client(peer, retries=ONCE).post("/agent/token", b"{}", access_token=TOKEN)

    assert ["rf.example"] == [request.url.host for request in peer.seen]


# --- the real client on a real socket ---------------------------------------------------------------------------


async def test_the_bytes_on_a_real_socket_verify():
    """What httpx2 sends is what was signed: host, path and digest arrive as they were."""
    server = StubServer()
    with serving(server) as port:
        address = parse_address(f"http://127.0.0.1:{port}")
        async with open_http([address]) as http:
            there = ServerClient([address], http, KEY, server.clock, SeededEntropy(), retries=ONCE)
            with pytest.raises(ServerRefusedError) as refusal:
                await there.post("/agent/token", json.dumps({}).encode())

    assert "unknown_key" == refusal.value.problem


async def test_what_is_delivered_does_not_wait_for_a_check_in_that_is_held(tmp_path):
    """On real connections: while the server holds one, other requests come and go beside it."""
    server = StubServer(SystemClock())
    server.holds = True
    with serving(server):
        address = parse_address(server.addresses[0])
        async with open_http([address]) as http, agent_parts(tmp_path / "a", server, http=http) as parts:
            await parts.register()
            runner = parts.runner()
            await runner.check_ins.check_in()
            asked, loop = asyncio.Event(), asyncio.get_running_loop()
            server.script.append(lambda _request: loop.call_soon_threadsafe(asked.set) and None)
            held = asyncio.create_task(runner.check_ins.check_in(hold=50))
            await asked.wait()
            for number in range(20):
                parts.errors.record("x", failed(f"error {number}"))
                await runner.delivery.send()
            assert (20, False) == (len(server.only_agent().errors), held.done())

            server.order(ScanParams(), CommandType.SCAN_RUN)

            assert 1 == len((await held).commands)


async def test_nobody_there_is_a_sentence():
    """It names the address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = parse_address(f"http://127.0.0.1:{listener.getsockname()[1]}")
    async with open_http([address]) as http:
        there = ServerClient([address], http, KEY, FrozenClock(), SeededEntropy(), retries=ONCE)
        with pytest.raises(UnreachableError, match=f"{address} cannot be reached"):
            await there.get("/trust/bundle")


async def test_a_proxy_is_used_when_it_is_set(monkeypatch):
    """Requests go through it, with its credentials; the environment alone changes nothing."""
    server = StubServer()
    with serving(server) as port, proxy() as (proxy_port, seen):
        address = parse_address(f"http://127.0.0.1:{port}")
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy_port}")
        assert server.roots[0] == await fetch(address, None)
        assert [] == seen

        assert server.roots[0] == await fetch(address, f"http://user:pass@127.0.0.1:{proxy_port}")

    (request,) = seen
    assert request.startswith(f"GET http://127.0.0.1:{port}/api/v1/trust/root/1 ")
    assert "proxy-authorization: basic dxnlcjpwyxnz" in request.lower()


def test_the_environments_proxy_is_read_only_when_asked(monkeypatch):
    """And its exceptions with it."""
    address = parse_address("https://rf.example")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert "http://proxy.example:3128" == environment_proxy([address])

    monkeypatch.setenv("no_proxy", "rf.example")
    assert environment_proxy([address]) is None


async def fetch(address, proxy_url):
    """Fetch a document, through a proxy or not."""
    async with open_http([address], proxy=proxy_url) as http:
        there = ServerClient([address], http, KEY, FrozenClock(), SeededEntropy(), retries=ONCE)
        return await there.get("/trust/root/1")


@contextmanager
def proxy():
    """A proxy for one plain request: notes its head and passes it on."""
    seen = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            with connection:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += connection.recv(65536)
                seen.append(head.decode())
                target = head.split(b" ")[1].decode()
                host, port = target.split("/")[2].split(":")
                path = "/" + target.split("/", 3)[3]
                with socket.create_connection((host, int(port))) as upstream:
                    upstream.sendall(
                        f"GET {path} HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\n\r\n".encode()
                    )
                    while data := upstream.recv(65536):
                        connection.sendall(data)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], seen
