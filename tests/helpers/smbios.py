"""SMBIOS tables as firmware lays them out (DSP0134), for the parser and for the readers that use it."""

END = bytes([127, 4, 0xFE, 0xFF]) + b"\0\0"

UUID_BYTES = bytes(range(0x10, 0x20))
UUID_MIXED = "13121110-1514-1716-1819-1a1b1c1d1e1f"
"""`UUID_BYTES` since SMBIOS 2.6."""

UUID_PLAIN = "10111213-1415-1617-1819-1a1b1c1d1e1f"
"""`UUID_BYTES` before."""


def structure(kind, formatted, *strings):
    """One structure: header, formatted part, and its strings with the NULs that end them."""
    header = bytes([kind, 4 + len(formatted), kind, 0])
    return header + formatted + (b"\0".join(strings) + b"\0\0" if strings else b"\0\0")


def system(uuid=UUID_BYTES):
    """System Information: maker, product, version, serial, then the UUID."""
    return structure(1, bytes([1, 2, 0, 3]) + uuid + bytes([6, 0, 0]), b"Maker", b"Product", b"SYSTEM-SERIAL")


def board(serial=b"/7VN4ZW2/CN1296"):
    """Baseboard Information: maker, product, version, then the serial."""
    return structure(2, bytes([1, 2, 3, 4, 0, 9, 0, 0, 0, 10, 0]), b"Maker", b"Board", b"A00", serial)


def bios():
    """BIOS Information, which comes first and means nothing here."""
    return structure(0, bytes([1, 2, 0, 0xF0, 3, 0]) + bytes(8), b"Vendor", b"1.2.3", b"01/02/2024")


TABLE = bios() + system() + structure(3, bytes(9)) + board() + END
