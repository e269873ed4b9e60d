"""Compressed bodies: gzip (RFC 1952), one member, and never more of it in memory than a plain body may have."""

import zlib

from redflag_core.errors import MalformedError, TooLargeError

GZIP = "gzip"
_GZIP_WINDOW = 16 + zlib.MAX_WBITS


def gunzip(body: bytes, *, max_bytes: int) -> bytes:
    """
    Decompress a body.

    Args:
        body: Untrusted bytes, bounded already.
        max_bytes: Longest result accepted. A body that would become larger is given up there, however small it is.

    Raises:
        MalformedError: It is not one whole gzip member.
        TooLargeError: It would become larger.
    """
    unpacker = zlib.decompressobj(_GZIP_WINDOW)
    try:
        plain = unpacker.decompress(body, max_bytes + 1)
    except zlib.error:
        raise MalformedError("the body is not gzip, as its content encoding says") from None
    if len(plain) > max_bytes:
        raise TooLargeError(f"the body is larger than {max_bytes} bytes when decompressed")
    if not unpacker.eof or unpacker.unused_data:
        raise MalformedError("the body must be one whole gzip member, and nothing after it")
    return plain
