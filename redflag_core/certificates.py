"""
The few fields of an X.509 certificate that a pin is made of, and the pin.

Not a validator: nothing here says that a certificate is to be trusted. Sources: RFC 5280, section 4.1
(certificates), X.690, section 8.1 (DER), RFC 7469, section 2.4 (pins of a public key).
"""

import hashlib
from typing import Final

import attrs

from redflag_core.errors import MalformedError

_VERSION_TAG: Final = 0xA0


@attrs.frozen
class Certificate:
    """
    Fields of a certificate, each in DER with its tag and length.

    Attributes:
        issuer: Who vouches for it.
        subject: Whose it is.
        public_key_info: Algorithm and public key (SPKI).
    """

    issuer: bytes
    subject: bytes
    public_key_info: bytes

    @property
    def vouches_for_itself(self) -> bool:
        """Whether no authority is named: issuer and subject are the same."""
        return self.issuer == self.subject

    @property
    def pin(self) -> str:
        """``sha256:<64 hex>`` over the public key: stays the same when the key is certified anew."""
        return f"sha256:{hashlib.sha256(self.public_key_info).hexdigest()}"


def parse_certificate(der: bytes) -> Certificate:
    """
    Take a certificate apart.

    Args:
        der: Untrusted bytes.

    Raises:
        MalformedError: Not a certificate.
    """
    try:
        fields = _content(_content(der))
        if fields[0] == _VERSION_TAG:
            _, fields = _split(fields)
        _, fields = _split(fields)  # serial number
        _, fields = _split(fields)  # algorithm of the signature
        issuer, fields = _split(fields)
        _, fields = _split(fields)  # validity
        subject, fields = _split(fields)
        public_key_info, _ = _split(fields)
    except IndexError:
        raise MalformedError("not a certificate in DER") from None
    return Certificate(issuer, subject, public_key_info)


def _split(data: bytes) -> tuple[bytes, bytes]:
    """The first element, whole, and what follows it; IndexError when it is cut off."""
    start, size = _bounds(data)
    return data[: start + size], data[start + size :]


def _content(data: bytes) -> bytes:
    start, size = _bounds(data)
    return data[start : start + size]


def _bounds(data: bytes) -> tuple[int, int]:
    start, size = 2, data[1]
    if size & 0x80:
        start = 2 + (size & 0x7F)
        size = int.from_bytes(data[2:start])
    if start + size > len(data):
        raise IndexError
    return start, size
