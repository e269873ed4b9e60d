"""Certificates are taken apart as far as pins need it."""

import base64
import contextlib
import hashlib
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core.certificates import parse_certificate
from redflag_core.errors import MalformedError
from tests.helpers.needs import needs

ED25519 = ["-newkey", "ed25519"]
P256 = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
RSA = ["-newkey", "rsa:2048"]


def openssl(*arguments, stdin=None):
    return subprocess.run(["openssl", *arguments], input=stdin, capture_output=True, check=True).stdout


def self_signed(folder, algorithm):
    openssl("req", "-x509", "-nodes", *algorithm, "-subj", "/CN=redflag.example", "-days", "30",
            "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.der"), "-outform", "DER")  # fmt: skip
    return (folder / "cert.der").read_bytes()


@needs("openssl")
@pytest.mark.parametrize("algorithm", [ED25519, P256, RSA], ids=["ed25519", "p256", "rsa"])
def test_the_pin_is_the_hash_that_openssl_makes_of_the_public_key(tmp_path, algorithm):
    """The pin is SHA-256 over the SubjectPublicKeyInfo, whatever the algorithm."""
    certificate = self_signed(tmp_path, algorithm)

    pem = openssl("x509", "-inform", "DER", "-pubkey", "-noout", stdin=certificate).splitlines()
    public_key_info = base64.b64decode(b"".join(pem[1:-1]))

    assert f"sha256:{hashlib.sha256(public_key_info).hexdigest()}" == parse_certificate(certificate).pin


@needs("openssl")
def test_a_certificate_of_an_authority_does_not_vouch_for_itself(tmp_path):
    """Self-signed and issued certificates are told apart by their names."""
    authority = self_signed(tmp_path, P256)
    openssl("x509", "-inform", "DER", "-in", str(tmp_path / "cert.der"), "-out", str(tmp_path / "ca.pem"))
    request = openssl(
        "req", "-new", "-nodes", *P256, "-subj", "/CN=leaf.example", "-keyout", str(tmp_path / "l.pem")
    )
    issued = openssl("x509", "-req", "-CA", str(tmp_path / "ca.pem"), "-CAkey", str(tmp_path / "key.pem"),
                     "-set_serial", "7", "-outform", "DER", stdin=request)  # fmt: skip

    assert [True, False] == [parse_certificate(der).vouches_for_itself for der in (authority, issued)]


@needs("openssl")
def test_a_certificate_cut_off_anywhere_in_its_fields_is_refused(tmp_path):
    """No prefix of a certificate is read as one."""
    certificate = self_signed(tmp_path, ED25519)

    for end in range(len(certificate)):
        with pytest.raises(MalformedError):
            parse_certificate(certificate[:end])


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(data):
    """Whatever arrives, nothing else than `MalformedError` is raised."""
    with contextlib.suppress(MalformedError):
        parse_certificate(data)
