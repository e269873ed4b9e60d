"""Signed requests with real clients, in front of real ASGI and WSGI applications."""

import http.client
import threading
from contextlib import contextmanager
from wsgiref.simple_server import WSGIRequestHandler, make_server

import attrs
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core.encoding import parse_json
from redflag_core.errors import (
    MalformedError,
    ReplayError,
    SignatureError,
    StaleError,
    TooLargeError,
    UnknownKeyError,
    VerificationError,
)
from redflag_core.http_auth import (
    MIN_OFFSET,
    VERIFIED,
    Answer,
    RequestAuth,
    RequestVerifier,
    SignedAsgi,
    SignedWsgi,
    problem,
    request_from_asgi,
    request_from_wsgi,
    send,
    send_async,
)
from redflag_core.keys import SigningKey
from redflag_core.signed_requests import Request
from redflag_core.testing import START, FrozenClock, MemoryNonceStore, SeededEntropy

KEY, STRANGER = (SigningKey.from_seed(bytes([number]) * 32) for number in (31, 32))
NAME = "rf.example.com"


class Ring:
    """Knows one key."""

    def find(self, key_id):
        """See `KeyRing.find`."""
        return KEY.verify_key if key_id == KEY.key_id else None


class SyncNonces:
    """A set behind a lock; threads race for it."""

    def __init__(self):
        self._claimed, self._lock = set(), threading.Lock()

    def claim(self, key_id, nonce, created):
        """See `SyncNonceStore.claim`."""
        with self._lock:
            entry = (key_id, nonce, created)
            free = entry not in self._claimed
            self._claimed.add(entry)
            return free


@pytest.fixture
def clock():
    """Both sides' time."""
    return FrozenClock()


def auth(clock, key=KEY, **options):
    """Somebody who signs."""
    return RequestAuth(key, NAME, clock, SeededEntropy(5), **options)


def verifier(clock, **options):
    """Somebody who judges."""
    return RequestVerifier(keys=Ring(), authorities=(NAME,), clock=clock, **options)


def request(method="POST", path="/reports/a%20b", query="x=1&y=%2F", body=b"body", **headers):
    """A request that nobody signed."""
    named = {"host": NAME, **headers}
    return Request(method, path, query, tuple((k.encode(), v.encode()) for k, v in named.items()), body)


# --- both sides, without a network -------------------------------------------------------------------------------


async def test_what_was_signed_is_admitted_once(clock):
    """By both forms of store; the second time it is a replay."""
    signed = auth(clock).sign(request())
    nonces, blocking, judge = MemoryNonceStore(), SyncNonces(), verifier(clock)

    verified = await judge.admit(signed, nonces)

    assert (KEY.key_id, b"body", None) == (verified.key_id, verified.body, verified.access_token)
    assert verified == judge.admit_sync(signed, blocking)
    with pytest.raises(ReplayError):
        await judge.admit(signed, nonces)
    with pytest.raises(ReplayError):
        judge.admit_sync(signed, blocking)


@pytest.mark.parametrize(
    "change, error",
    [
        ({"method": "PUT"}, SignatureError),
        ({"path": "/reports/a b".replace(" ", "+")}, SignatureError),
        ({"query": "x=1"}, SignatureError),
        ({"body": b"Body"}, SignatureError),
        ({"headers": ()}, MalformedError),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value.__name__,
)
async def test_what_was_changed_on_the_way_is_refused(clock, change, error):
    """And its nonce stays free for the genuine request."""
    signed, nonces = auth(clock).sign(request()), MemoryNonceStore()

    with pytest.raises(error):
        await verifier(clock).admit(attrs.evolve(signed, **change), nonces)

    assert await verifier(clock).admit(signed, nonces)


async def test_strangers_and_old_requests_are_refused_before_the_body(clock):
    """Their head is enough."""
    stranger = auth(clock, STRANGER).sign(request())
    genuine = auth(clock).sign(request())

    with pytest.raises(UnknownKeyError):
        verifier(clock).check_head(attrs.evolve(stranger, body=b""))
    clock.advance(301)
    with pytest.raises(StaleError):
        verifier(clock).check_head(attrs.evolve(genuine, body=b""))


async def test_a_body_has_a_bound(clock):
    """One byte more is too large; the bound itself passes."""
    judge = verifier(clock, max_body=4)

    assert await judge.admit(auth(clock).sign(request(body=b"1234")), MemoryNonceStore())
    with pytest.raises(TooLargeError):
        await judge.admit(auth(clock).sign(request(body=b"12345")), MemoryNonceStore())


async def test_an_access_token_is_there_or_not_as_is_wanted(clock):
    """The application judges what it says."""
    with_token = auth(clock).sign(request(authorization="Bearer abc"))

    verified = await verifier(clock, with_token=True).admit(with_token, MemoryNonceStore())

    assert "abc" == verified.access_token
    with pytest.raises(MalformedError):
        verifier(clock).check_head(with_token)


async def test_a_path_prefix_that_a_proxy_took_away_is_part_of_what_was_signed(clock):
    """The sender signs the path that it sees."""
    signed = auth(clock).sign(request(path="/portal/reports"))
    received = attrs.evolve(signed, path="/reports")

    assert await verifier(clock, prefix="/portal").admit(received, MemoryNonceStore())
    with pytest.raises(SignatureError):
        verifier(clock).check_head(received)


# --- the flow ----------------------------------------------------------------------------------------------------


def dated(clock, seconds, status=401):
    """An answer of a server whose clock differs."""
    text = clock.now().timestamp() + seconds
    from email.utils import formatdate

    return Answer(status, ((b"Date", formatdate(text, usegmt=True).encode()),))


def test_a_sender_with_a_wrong_clock_learns_the_time_and_signs_again(clock):
    """The second attempt has another nonce and the server's time, and so has every request after it."""
    sender, sent = auth(clock), []

    def transport(signed):
        sent.append(signed)
        return (dated(clock, 4000) if len(sent) == 1 else Answer(200)), len(sent)

    assert 2 == send(sender.flow(request()), transport)
    assert 1 == send(sender.flow(request()), lambda signed: (sent.append(signed) or Answer(200), 1))
    assert 4000 == sender.offset
    server = FrozenClock(START)
    server.advance(4000)
    for signed in sent[1:]:
        assert verifier(server).check_head(signed)
    with pytest.raises(StaleError):
        verifier(server).check_head(sent[0])
    assert 3 == len({signed.header(b"signature-input") for signed in sent})


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200),
        Answer(403),
        Answer(401),
        Answer(401, ((b"date", b"yesterday"),)),
        Answer(401, ((b"date", b"\xff"),)),
        Answer(500, ((b"date", b"Thu, 01 Jan 2037 00:00:00 GMT"),)),
    ],
    ids=str,
)
def test_any_other_answer_ends_the_flow(clock, answer):
    """Nothing is sent twice because of it, and nothing is learnt."""
    sender = auth(clock)

    assert "once" == send(sender.flow(request()), lambda _signed: (answer, "once"))
    assert 0.0 == sender.offset


@pytest.mark.parametrize("seconds, attempts", [(MIN_OFFSET, 1), (MIN_OFFSET + 1, 2), (-MIN_OFFSET - 1, 2)])
def test_clocks_that_hardly_differ_are_not_the_reason(clock, seconds, attempts):
    """Then the refusal has another one, and signing again would not help."""
    count = []
    send(auth(clock).flow(request()), lambda signed: (dated(clock, seconds), count.append(signed)))

    assert attempts == len(count)


async def test_a_server_that_refuses_every_time_is_asked_twice(clock):
    """Also by a client that is awaited."""
    sent = []

    async def transport(signed):
        sent.append(signed)
        return dated(clock, 1000 * len(sent)), len(sent)

    assert 2 == await send_async(auth(clock).flow(request()), transport)


def test_signing_again_replaces_the_signature(clock):
    """Other headers stay as they are, in their order."""
    once = auth(clock).sign(request(accept="text/plain"))

    twice = auth(clock).sign(once)

    assert once == twice
    names = [name for name, _ in twice.headers]
    assert [b"host", b"accept", b"content-digest", b"signature-input", b"signature"] == names


# --- ASGI --------------------------------------------------------------------------------------------------------


async def echo(scope, receive, send):
    """An application that says who sent what."""
    message = await receive()
    assert not message["more_body"]
    text = scope[VERIFIED].key_id.encode() + b" " + message["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": text})


class HttpxAuth(httpx.Auth):
    """The flow with httpx, as the how-to shows it."""

    requires_request_body = True

    def __init__(self, sender):
        self._sender = sender

    def auth_flow(self, request):
        """See `httpx.Auth.auth_flow`."""
        path, _, query = request.url.raw_path.decode("ascii").partition("?")
        flow = self._sender.flow(Request(request.method, path, query, request.headers.raw, request.content))
        signed = next(flow)
        while True:
            request.headers = httpx.Headers(list(signed.headers))
            response = yield request
            try:
                signed = flow.send(Answer(response.status_code, response.headers.raw))
            except StopIteration:
                return


def client(app, sender, **options):
    """A client of an application in this process."""
    transport = httpx.ASGITransport(app)
    return httpx.AsyncClient(transport=transport, base_url=f"https://{NAME}", auth=HttpxAuth(sender), **options)


async def test_an_asgi_application_behind_the_adapter_gets_verified_requests(clock):
    """It finds who sent it, and the body that was verified."""
    app = SignedAsgi(echo, verifier(clock), MemoryNonceStore())

    async with client(app, auth(clock)) as http_client:
        answer = await http_client.post("/a%2Fb/\N{SNOWMAN}?q=%20", content=b"hello")

    assert (200, f"{KEY.key_id} hello") == (answer.status_code, answer.text)


async def test_an_asgi_application_never_sees_what_is_not_signed(clock):
    """The answer is a problem document with the code."""
    reached = []

    async def app(*_anything):
        reached.append(1)

    guarded = SignedAsgi(app, verifier(clock), MemoryNonceStore())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(guarded), base_url=f"https://{NAME}") as bare:
        answer = await bare.post("/", content=b"hello")
    async with client(guarded, auth(clock, STRANGER)) as stranger:
        unknown = await stranger.get("/")

    assert (400, "malformed") == (answer.status_code, answer.json()["code"])
    assert (401, "unknown_key") == (unknown.status_code, unknown.json()["code"])
    assert "application/problem+json" == unknown.headers["content-type"]
    assert [] == reached


async def test_a_client_with_a_wrong_clock_gets_through_by_itself(clock):
    """The refusal says the time, the client signs once more."""
    server = FrozenClock()
    server.advance(7200)

    async with client(SignedAsgi(echo, verifier(server), MemoryNonceStore()), auth(clock)) as http_client:
        answer = await http_client.post("/", content=b"hello")

    assert 200 == answer.status_code


async def asgi(app, scope, *messages):
    """Call an ASGI application; what it sends, and how many messages it took."""
    waiting, sent = list(messages), []

    async def receive():
        return waiting.pop(0)

    async def answer(message):
        sent.append(message)

    await app(scope, receive, answer)
    return sent, len(messages) - len(waiting)


def scope_of(signed, **changes):
    """The scope of a request."""
    return {
        "type": "http",
        "method": signed.method,
        "path": "/decoded",
        "raw_path": signed.path.encode(),
        "query_string": signed.query.encode(),
        "headers": list(signed.headers),
        **changes,
    }


async def test_a_stranger_cannot_make_the_adapter_take_a_body(clock):
    """It is refused by its head: not one message is received."""
    signed = auth(clock, STRANGER).sign(request())

    sent, taken = await asgi(SignedAsgi(echo, verifier(clock), MemoryNonceStore()), scope_of(signed))

    assert (401, 0) == (sent[0]["status"], taken)


@pytest.mark.parametrize(
    "messages, code",
    [
        ([{"type": "http.request", "body": b"bo", "more_body": True}, {"type": "http.disconnect"}], "malformed"),
        ([{"type": "http.request", "body": b"bodY"}], "bad_signature"),
        ([{"type": "http.request", "body": b"b" * 9, "more_body": True}] * 3, "too_large"),
    ],
    ids=["cut", "changed", "long"],
)
async def test_a_body_that_is_not_the_signed_one_never_reaches_the_application(clock, messages, code):
    """A long one is given up as soon as it is too long, and the nonce stays free."""
    signed, nonces = auth(clock).sign(request()), MemoryNonceStore()
    guarded = SignedAsgi(echo, verifier(clock, max_body=10), nonces)

    sent, taken = await asgi(guarded, scope_of(signed), *messages)
    genuine, _ = await asgi(guarded, scope_of(signed), {"type": "http.request", "body": b"body"})

    assert code == parse_json(sent[1]["body"], max_bytes=1000)["code"]
    assert min(len(messages), 2) == taken
    assert 200 == genuine[0]["status"]


async def test_a_body_in_pieces_is_one(clock):
    """However the server cuts it."""
    signed = auth(clock).sign(request())
    pieces = [{"type": "http.request", "body": b"bo", "more_body": True}, {"type": "http.request", "body": b"dy"}]

    sent, _ = await asgi(SignedAsgi(echo, verifier(clock), MemoryNonceStore()), scope_of(signed), *pieces)

    assert sent[1]["body"].endswith(b" body")


async def test_after_the_body_an_application_hears_what_the_server_says(clock):
    """Such as that the client went away."""
    heard = []

    async def app(_scope, receive, _send):
        heard.extend([await receive(), await receive()])

    signed = auth(clock).sign(request())
    messages = [{"type": "http.request", "body": b"body"}, {"type": "http.disconnect"}]
    await asgi(SignedAsgi(app, verifier(clock), MemoryNonceStore()), scope_of(signed), *messages)

    assert ["http.request", "http.disconnect"] == [message["type"] for message in heard]


async def test_the_life_of_a_server_passes_and_a_websocket_does_not(clock):
    """Nothing of a WebSocket is signed here, so nobody gets one."""
    reached = []

    async def app(scope, _receive, _send):
        reached.append(scope["type"])

    guarded = SignedAsgi(app, verifier(clock), MemoryNonceStore())
    await asgi(guarded, {"type": "lifespan"})
    sent, _ = await asgi(guarded, {"type": "websocket"}, {"type": "websocket.connect"})

    assert ["lifespan"] == reached
    assert [{"type": "websocket.close", "code": 1008}] == sent


def test_without_a_raw_path_it_is_quoted_as_clients_do(clock):
    """Some servers keep only the decoded path; a query in the raw path is not part of it."""
    scope = scope_of(request())

    assert "/a%20b%C3%A9:@!$&'()*+,;=-._~" == request_from_asgi({**scope, "raw_path": None,
        "path": "/a b\N{LATIN SMALL LETTER E WITH ACUTE}:@!$&'()*+,;=-._~"}).path  # fmt: skip
    assert "/x" == request_from_asgi({**scope, "raw_path": b"/x?y"}).path


# --- WSGI --------------------------------------------------------------------------------------------------------


def wsgi_echo(environ, start_response):
    """An application that says who sent what."""
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ[VERIFIED].key_id.encode() + b" " + body]


class _Quiet(WSGIRequestHandler):
    """Keeps the target as it was received, as production servers do, and logs nothing."""

    def get_environ(self):
        """The environment, with the raw target."""
        return {**super().get_environ(), "RAW_URI": self.path}

    def log_message(self, *_anything):
        """Nothing."""


@contextmanager
def served(app):
    """A real WSGI server on loopback; its port."""
    with make_server("127.0.0.1", 0, app, handler_class=_Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def over_http(port, signed):
    """Send a signed request with the standard library; the answer's status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    target = signed.path + (f"?{signed.query}" if signed.query else "")
    connection.putrequest(signed.method, target, skip_host=True, skip_accept_encoding=True)
    for name, value in (*signed.headers, (b"content-length", b"%d" % len(signed.body))):
        connection.putheader(name.decode(), value.decode())
    connection.endheaders(signed.body)
    answer = connection.getresponse()
    result = answer.status, answer.read(), dict(answer.getheaders())
    connection.close()
    return result


def test_a_wsgi_application_behind_the_adapter_gets_verified_requests(clock):
    """Through a real server and a real client; a replay, a stranger and a changed body do not come through."""
    signed = auth(clock).sign(request(path="/a%2Fb/c"))
    stranger = auth(clock, STRANGER).sign(request())
    with served(SignedWsgi(wsgi_echo, verifier(clock), SyncNonces())) as port:
        changed = over_http(port, attrs.evolve(signed, body=b"bodY"))
        first, again, unknown = over_http(port, signed), over_http(port, signed), over_http(port, stranger)
        clock.advance(1000)
        stale = over_http(port, attrs.evolve(signed))

    assert (200, f"{KEY.key_id} body".encode()) == first[:2]
    codes = [parse_json(answer[1], max_bytes=1000)["code"] for answer in (changed, again, unknown, stale)]
    assert ["bad_signature", "replayed", "unknown_key", "stale"] == codes
    assert "Thu, 01 Jan 2026 00:16:40 GMT" == stale[2]["Date"]
    assert "application/problem+json" == unknown[2]["Content-Type"]


def environ_of(signed, **changes):
    """A WSGI environment of a request, without a raw target."""
    headers = {f"HTTP_{k.decode().upper().replace('-', '_')}": v.decode() for k, v in signed.headers}
    return {
        "REQUEST_METHOD": signed.method,
        "QUERY_STRING": signed.query,
        "PATH_INFO": "/reports/a b",
        **headers,
        **changes,
    }


def test_without_a_raw_target_the_path_is_quoted_as_clients_do():
    """Script name and path together, bytes as they came (PEP 3333)."""
    eacute = "\N{LATIN SMALL LETTER E WITH ACUTE}".encode().decode("latin-1")
    environ = environ_of(request(), SCRIPT_NAME="/portal", PATH_INFO=f"/a b{eacute}")

    assert "/portal/a%20b%C3%A9" == request_from_wsgi(environ).path
    assert "/raw%20path" == request_from_wsgi({**environ, "REQUEST_URI": "/raw%20path?x"}).path
    assert "/portal/a%20b%C3%A9" == request_from_wsgi({**environ, "REQUEST_URI": "http://other/x"}).path


def test_headers_of_a_wsgi_environment_have_their_names_back():
    """Also those that have none of the prefix; an empty one is none."""
    environ = {**environ_of(request()), "CONTENT_TYPE": "text/plain", "CONTENT_LENGTH": "", "SERVER_NAME": "x"}

    headers = dict(request_from_wsgi(environ).headers)

    assert {b"host": NAME.encode(), b"content-type": b"text/plain"} == headers


@pytest.mark.parametrize("length, code", [("x", "malformed"), ("-1", "malformed"), ("9" * 9, "too_large")])
def test_a_wsgi_body_is_taken_by_its_length_and_no_further(clock, length, code):
    """One that is no number or too much is refused without reading."""
    signed, said = auth(clock).sign(request()), []
    guarded = SignedWsgi(wsgi_echo, verifier(clock), SyncNonces())
    environ = environ_of(signed, RAW_URI=signed.path, CONTENT_LENGTH=length)

    body = b"".join(guarded(environ, lambda status, headers: said.append((status, headers))))

    assert code == parse_json(body, max_bytes=1000)["code"]
    assert {"malformed": "400 Bad Request", "too_large": "413 Content Too Large"}[code] == said[0][0]


def test_a_wsgi_request_without_a_body_needs_no_length(clock):
    """PEP 3333 leaves it out or empty."""
    signed = auth(clock).sign(request("GET", body=b""))
    for length in ({}, {"CONTENT_LENGTH": ""}):
        environ = environ_of(signed, RAW_URI=signed.path, **{"wsgi.input": Empty(), **length})
        guarded = SignedWsgi(wsgi_echo, verifier(clock), SyncNonces())
        assert b"".join(guarded(environ, lambda *_: None)).startswith(KEY.key_id.encode())


class Empty:
    """Input without anything in it."""

    def read(self, size):
        """Nothing."""
        assert 0 == size
        return b""


# --- the refusal -------------------------------------------------------------------------------------------------


def test_a_refusal_names_the_code_and_for_time_also_the_time(clock):
    """A document that says its own length."""
    for error, status in ((MalformedError("a"), 400), (TooLargeError("b"), 413), (ReplayError("c"), 401)):
        said, headers, body = problem(error, clock)
        document = parse_json(body, max_bytes=1000)
        assert (status, status, error.code) == (said, document["status"], document["code"])
        assert str(len(body)).encode() == dict(headers)[b"content-length"]
        assert b"date" not in dict(headers)
    assert b"Thu, 01 Jan 2026 00:00:00 GMT" == dict(problem(StaleError("d"), clock)[1])[b"date"]


HEADER = st.tuples(
    st.sampled_from([b"signature", b"signature-input", b"content-digest", b"authorization", b"host", b"x"]),
    st.binary(max_size=40),
)


@given(st.text(max_size=5), st.text(max_size=20), st.lists(HEADER, max_size=8), st.binary(max_size=20))
def test_whatever_comes_is_verified_or_refused(method, path, headers, body):
    """Nothing else happens, whoever sends it."""
    with pytest.raises(VerificationError):
        verifier(FrozenClock()).admit_sync(Request(method, path, "", headers, body), SyncNonces())
