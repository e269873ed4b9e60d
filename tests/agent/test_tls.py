"""TLS with real certificates on a real socket: authorities, pins, and nothing that passes without either."""

import hashlib
import select
import socket
import socketserver
import ssl
import subprocess
import threading
from contextlib import contextmanager

import pytest

from redflag_agent.address import parse_address
from redflag_agent.answers import UnreachableError
from redflag_agent.connection import open_http
from redflag_agent.tls import client_context
from redflag_agent.transport import ServerClient
from redflag_core.certificates import parse_certificate
from redflag_core.errors import ConfigurationError
from redflag_core.keys import SigningKey
from redflag_core.resilience import RetryPolicy
from redflag_core.testing import FrozenClock, SeededEntropy
from tests.helpers.needs import needs
from tests.helpers.stub_server import StubServer, serving

ONCE = RetryPolicy(attempts=1, wait_initial=0.0, wait_max=0.0, wait_jitter=0.0, timeout=10.0)
KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]

pytestmark = needs("openssl")


def openssl(*arguments, stdin=None):
    """Run openssl."""
    return subprocess.run(["openssl", *arguments], input=stdin, capture_output=True, check=True).stdout


def der(path):
    """A certificate in DER."""
    return openssl("x509", "-in", str(path), "-outform", "DER")


def self_signed(folder, name="other.example", days="30"):
    """A self-signed certificate whose name is not the one that the agent connects to."""
    folder.mkdir()
    openssl("req", "-x509", *KEY, "-subj", f"/CN={name}", "-days", days,
            "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"))  # fmt: skip
    return folder / "cert.pem", folder / "key.pem"


class Authority:
    """A private authority that issues a certificate for 127.0.0.1."""

    def __init__(self, folder, *, name="127.0.0.1"):
        self.certificate, key = self_signed(folder, "Private CA")
        request = openssl("req", "-new", *KEY, "-subj", "/CN=leaf", "-keyout", str(folder / "leaf.key"))
        (folder / "san.ext").write_text(
            f"subjectAltName={'IP' if name[0].isdigit() else 'DNS'}:{name}\nbasicConstraints=CA:FALSE\n"
        )
        leaf = openssl("x509", "-req", "-CA", str(self.certificate), "-CAkey", str(key), "-set_serial", "7",
                       "-days", "30", "-extfile", str(folder / "san.ext"), stdin=request)  # fmt: skip
        (folder / "leaf.pem").write_bytes(leaf)
        (folder / "chain.pem").write_bytes(leaf + self.certificate.read_bytes())
        self.leaf = folder / "leaf.pem", folder / "leaf.key"
        self.chain = folder / "chain.pem", folder / "leaf.key"
        self.pin = f"ca-sha256:{hashlib.sha256(der(self.certificate)).hexdigest()}"


async def fetch(port, **options):
    """Fetch a document with the options of a connection."""
    address = parse_address(f"https://127.0.0.1:{port}")
    async with open_http([address], **options) as http:
        key = SigningKey.from_seed(bytes(32))
        client = ServerClient([address], http, key, FrozenClock(), SeededEntropy(), retries=ONCE)
        first = await client.get("/trust/root/1")
        assert first == await client.get("/trust/root/1")
        return first


async def test_a_self_signed_server_is_believed_by_the_pin_of_its_key(tmp_path):
    """Whatever name and authority the certificate has: the key is the one that was pinned."""
    certificate = self_signed(tmp_path / "a")
    server = StubServer()
    with serving(server, certificate=certificate) as port:
        pin = parse_certificate(der(certificate[0])).pin

        assert server.roots[0] == await fetch(port, pin=pin)


async def test_another_key_is_refused_before_a_request_is_sent(tmp_path):
    """The handshake fails; the server sees nothing."""
    server = StubServer()
    with serving(server, certificate=self_signed(tmp_path / "a")) as port:
        with pytest.raises(UnreachableError, match="not the one that was pinned"):
            await fetch(port, pin="sha256:" + "0" * 64)

        assert [] == server.requests


async def test_without_pin_or_authority_a_self_signed_server_is_refused(tmp_path):
    """There is no flag that turns the check off."""
    server = StubServer()
    with serving(server, certificate=self_signed(tmp_path / "a")) as port:
        with pytest.raises(UnreachableError, match="certificate"):
            await fetch(port)

        assert [] == server.requests


async def test_a_private_authority_replaces_the_systems(tmp_path):
    """The usual check of chain and name against a file."""
    authority, server = Authority(tmp_path / "a"), StubServer()
    with serving(server, certificate=authority.leaf) as port:
        assert server.roots[0] == await fetch(port, ca_file=str(authority.certificate))


async def test_a_certificate_for_another_name_is_refused(tmp_path):
    """Of the right authority, for another host."""
    authority, server = Authority(tmp_path / "a", name="elsewhere.example"), StubServer()
    with serving(server, certificate=authority.chain) as port:
        for options in ({"ca_file": str(authority.certificate)}, {"pin": authority.pin}):
            with pytest.raises(UnreachableError, match=r"IP address mismatch|not valid for"):
                await fetch(port, **options)

        assert [] == server.requests


async def test_a_pinned_authority_is_learnt_from_the_chain_and_then_checked_in_full(tmp_path):
    """No file is needed: the hash says which certificate of the chain is the authority."""
    authority, server = Authority(tmp_path / "a"), StubServer()
    with serving(server, certificate=authority.chain) as port:
        assert server.roots[0] == await fetch(port, pin=authority.pin)


async def test_a_chain_that_only_shows_the_pinned_authority_is_refused(tmp_path):
    """A forger sends his own certificate and, after it, the genuine authority, which did not issue it."""
    authority, server = Authority(tmp_path / "a"), StubServer()
    forged, key = self_signed(tmp_path / "b", "127.0.0.1")
    chain = tmp_path / "forged.pem"
    chain.write_bytes(forged.read_bytes() + authority.certificate.read_bytes())
    with serving(server, certificate=(chain, key)) as port:
        with pytest.raises(UnreachableError, match="certificate verify failed"):
            await fetch(port, pin=authority.pin)

        assert [] == server.requests


async def test_a_server_that_does_not_send_its_authority_needs_the_file(tmp_path):
    """The message says so; with the file, pin and chain are both checked."""
    authority, server = Authority(tmp_path / "a"), StubServer()
    with serving(server, certificate=authority.leaf) as port:
        with pytest.raises(UnreachableError, match="ca_file"):
            await fetch(port, pin=authority.pin)

        assert server.roots[0] == await fetch(port, pin=authority.pin, ca_file=str(authority.certificate))


async def test_an_authority_of_the_file_that_is_not_the_pinned_one_is_refused(tmp_path):
    """Both must hold."""
    authority, server = Authority(tmp_path / "a"), StubServer()
    with serving(server, certificate=authority.chain) as port:
        with pytest.raises(UnreachableError, match="pinned authority"):
            await fetch(port, pin="ca-sha256:" + "0" * 64, ca_file=str(authority.certificate))

        assert [] == server.requests


async def test_a_proxy_carries_the_handshake_and_cannot_look_inside(tmp_path):
    """Through a CONNECT tunnel the pin is the server's, and the server's alone."""
    certificate, server = self_signed(tmp_path / "a"), StubServer()
    with serving(server, certificate=certificate) as port, tunnels() as (proxy_port, seen):
        proxy = f"http://127.0.0.1:{proxy_port}"
        pin = parse_certificate(der(certificate[0])).pin
        assert server.roots[0] == await fetch(port, pin=pin, proxy=proxy)
        with pytest.raises(UnreachableError, match="not the one that was pinned"):
            await fetch(port, pin="sha256:" + "0" * 64, proxy=proxy)

    assert {f"CONNECT 127.0.0.1:{port} HTTP/1.1"} == set(seen)


@contextmanager
def tunnels():
    """A proxy that opens tunnels; the request lines it saw."""
    seen = []

    class Tunnel(socketserver.StreamRequestHandler):
        def handle(self):
            head = self.rfile.readline().decode().strip()
            while self.rfile.readline().strip():
                pass
            seen.append(head)
            host, port = head.split()[1].rsplit(":", 1)
            with socket.create_connection((host, int(port))) as upstream:
                self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
                ends = {self.connection: upstream, upstream: self.connection}
                while True:
                    for end in select.select(list(ends), [], [])[0]:
                        data = end.recv(65536)
                        if not data:
                            return
                        ends[end].sendall(data)

    class Proxy(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *_args):
            """A tunnel that breaks is no news."""

    with Proxy(("127.0.0.1", 0), Tunnel) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.01,), daemon=True).start()
        yield proxy.server_address[1], seen
        proxy.shutdown()


@pytest.mark.parametrize("pin", ["", "sha256:", "sha256:zz", "sha1:" + "0" * 40, "sha256:" + "A" * 64])
def test_a_pin_of_another_form_is_refused(pin):
    """A pin that is not understood never means "no pin"."""
    with pytest.raises(ConfigurationError, match="TLS pin"):
        client_context(pin=pin)


def test_a_file_without_certificates_is_a_sentence(tmp_path):
    """It names the file."""
    (tmp_path / "ca.pem").write_text("nothing")

    with pytest.raises(ConfigurationError, match=r"ca\.pem"):
        client_context(ca_file=str(tmp_path / "ca.pem"))


def test_old_tls_is_off():
    """TLS 1.2 is the oldest that is spoken."""
    assert ssl.TLSVersion.TLSv1_2 == client_context().minimum_version
