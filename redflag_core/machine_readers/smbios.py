"""
The two ids in a machine's SMBIOS table, from its bytes: the UUID of the system and the serial of the main board.

Rules for the whole file:

- The bytes are the firmware's and may be anything: what is damaged is absent, and nothing raises.
- The same machine gives the same ids as under Linux, whose kernel reads this table too (sysfs ``dmi/id``).

Source: DMTF DSP0134, System Management BIOS Reference Specification: structure header and text strings
(section 6.1), System Information (type 1), Baseboard Information (type 2), end of table (type 127).
"""

import uuid
from collections.abc import Iterator
from typing import Final

import attrs

MAX_TABLE_BYTES: Final = 2**20
"""Longest table that is read. SMBIOS 2 allows 64 KiB; the tables of large servers have about as much."""

SWAPPED_SINCE: Final = (2, 6)
"""First version that has the first three fields of the UUID in little-endian order (section 7.2.1)."""

_HEADER_SIZE: Final = 4
"""Type, length of the formatted part, handle (2 bytes)."""

_SYSTEM, _BASEBOARD, _END = 1, 2, 127
_UUID: Final = slice(0x08, 0x18)
_BOARD_SERIAL: Final = 0x07
_UNSET: Final = (bytes(16), b"\xff" * 16)
"""What the specification says of a UUID of zeros (not present) and of ones (could be set, is not)."""


@attrs.frozen
class SmbiosIds:
    """
    What the table says; None where it says nothing.

    Attributes:
        uuid: UUID of the system, canonical spelling.
        board_serial: Serial number of the main board, as its maker wrote it.
    """

    uuid: str | None = attrs.field(default=None, repr=False)
    board_serial: str | None = attrs.field(default=None, repr=False)


def parse_smbios(table: bytes, *, version: tuple[int, int]) -> SmbiosIds:
    """
    Find the ids in a table. The first structure of a type counts, as for the Linux kernel.

    Args:
        table: All structures, untrusted; what is beyond `MAX_TABLE_BYTES` is not looked at.
        version: Major and minor version of SMBIOS that the firmware claims.
    """
    first: dict[int, tuple[bytes, tuple[bytes, ...]]] = {}
    for kind, formatted, strings in _structures(table[:MAX_TABLE_BYTES]):
        first.setdefault(kind, (formatted, strings))
    nothing = b"", ()
    system, _ = first.get(_SYSTEM, nothing)
    board, texts = first.get(_BASEBOARD, nothing)
    return SmbiosIds(uuid=_uuid(system, version), board_serial=_text(board, _BOARD_SERIAL, texts))


def _structures(table: bytes) -> Iterator[tuple[int, bytes, tuple[bytes, ...]]]:
    """Type, formatted part and strings of each structure, up to the end or the first that cannot be one."""
    start = 0
    while start + _HEADER_SIZE <= len(table):
        kind, size = table[start], table[start + 1]
        # An empty string ends them: two NULs, which is also all that follows where there are none.
        end = table.find(b"\0\0", start + size)
        if size < _HEADER_SIZE or end < 0 or kind == _END:
            return
        strings = table[start + size : end]
        yield kind, table[start : start + size], tuple(strings.split(b"\0")) if strings else ()
        start = end + 2


def _uuid(system: bytes, version: tuple[int, int]) -> str | None:
    raw = system[_UUID]
    if len(raw) != 16 or raw in _UNSET:
        return None
    return str(uuid.UUID(bytes_le=raw) if version >= SWAPPED_SINCE else uuid.UUID(bytes=raw))


def _text(formatted: bytes, offset: int, strings: tuple[bytes, ...]) -> str | None:
    """The string whose number, counted from 1, is at *offset*; 0 stands for none."""
    number = formatted[offset] if offset < len(formatted) else 0
    if not 1 <= number <= len(strings):
        return None
    return strings[number - 1].decode("utf-8", "replace").strip()
