"""
TLS towards the server: the system's or a private authority, or a pin from the registration token.

Three ways, none of which trusts blindly:

- no pin: the usual check of chain and host name, against the system's authorities or a file;
- ``sha256:<64 hex>``: the server's public key (SPKI, RFC 7469 section 2.4) is this one; the chain is not looked
  at, so a self-signed certificate with any name will do;
- ``ca-sha256:<64 hex>``: the chain that the server sends holds this authority (hash of the whole certificate).
  The first connection learns it and ends; from then on it is the only authority, with the usual check.

The pin is checked inside the handshake, before a byte of a request is sent: `ssl.SSLContext.sslobject_class` is
the documented place for that.
"""

import hashlib
import re
import ssl
from typing import Any, Final

import attrs

from redflag_core.certificates import parse_certificate
from redflag_core.errors import ConfigurationError, MalformedError

_PIN: Final = re.compile(r"(sha256|ca-sha256):([0-9a-f]{64})")
_DER: Final = 2
"""``ENCODING_DER`` of the interpreter's own TLS module."""


class LearntAuthorityError(ssl.SSLError):
    """The first connection with an authority's pin ends here, on purpose: the next one is checked in full."""


@attrs.frozen
class Pin:
    """
    What the server must show.

    Attributes:
        authority: True: a certificate of its chain; False: its own public key.
        digest: SHA-256, 32 bytes.
    """

    authority: bool
    digest: bytes


def parse_pin(text: str) -> Pin:
    """
    Read a pin.

    Raises:
        ConfigurationError: Neither form.
    """
    match = _PIN.fullmatch(text)
    if match is None:
        raise ConfigurationError("a TLS pin is sha256:<64 hex> (server key) or ca-sha256:<64 hex> (authority)")
    return Pin(match[1] == "ca-sha256", bytes.fromhex(match[2]))


def client_context(*, pin: str | None = None, ca_file: str | None = None) -> ssl.SSLContext:
    """
    The context for connections to the server: TLS 1.2 or newer.

    Args:
        pin: See the module; None for the usual check.
        ca_file: Authorities (PEM) that replace the system's. Not looked at with a pin of the server's key.

    Raises:
        ConfigurationError: The pin has no known form, or the file holds no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    wanted = None if pin is None else parse_pin(pin)
    if wanted is None or (wanted.authority and ca_file is not None):
        _load_authorities(context, ca_file)
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if wanted is not None:
        context.sslobject_class = _pinned(wanted)
    return context


def _load_authorities(context: ssl.SSLContext, ca_file: str | None) -> None:
    if ca_file is None:
        context.load_default_certs()
        return
    try:
        context.load_verify_locations(cafile=ca_file)
    except (OSError, ssl.SSLError):
        raise ConfigurationError(f"{ca_file} holds no certificates in PEM form") from None


def _pinned(pin: Pin) -> type[ssl.SSLObject]:
    class Pinned(ssl.SSLObject):
        """A connection whose handshake fails unless the pin is met."""

        def do_handshake(self) -> None:
            """See `ssl.SSLObject.do_handshake`."""
            super().do_handshake()
            if pin.authority:
                _check_authority(self, pin.digest)
            else:
                _check_key(self, pin.digest)

    return Pinned


def _check_key(connection: ssl.SSLObject, digest: bytes) -> None:
    try:
        key = parse_certificate(connection.getpeercert(binary_form=True) or b"").public_key_info
    except MalformedError:
        raise ssl.SSLCertVerificationError("the server sent no certificate that can be read") from None
    if hashlib.sha256(key).digest() != digest:
        raise ssl.SSLCertVerificationError("the server's key is not the one that was pinned")


def _check_authority(connection: ssl.SSLObject, digest: bytes) -> None:
    verified = connection.context.verify_mode is ssl.CERT_REQUIRED
    for certificate in _chain(connection, verified=verified):
        if hashlib.sha256(certificate).digest() == digest:
            if verified:
                return
            _trust_only(connection.context, certificate)
            raise LearntAuthorityError("the pinned authority was learnt: connect again")
    raise ssl.SSLCertVerificationError("the chain does not hold the pinned authority: name its file with ca_file")


def _trust_only(context: ssl.SSLContext, certificate: bytes) -> None:
    context.load_verify_locations(cadata=certificate)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_mode = ssl.CERT_REQUIRED
    context.check_hostname = True


def _chain(connection: ssl.SSLObject, *, verified: bool) -> list[bytes]:
    """The certificates in DER. Public from Python 3.13 on; before, the same under the hood."""
    name = "get_verified_chain" if verified else "get_unverified_chain"
    if hasattr(connection, name):
        chain: list[Any] = getattr(connection, name)()
    else:
        chain = getattr(connection._sslobj, name)() or []  # type: ignore[attr-defined]  # noqa: SLF001
    return [entry if isinstance(entry, bytes) else entry.public_bytes(_DER) for entry in chain]
