"""The two ids of an SMBIOS table, from sound tables and from any bytes at all."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core.machine_readers.smbios import MAX_TABLE_BYTES, SWAPPED_SINCE, SmbiosIds, parse_smbios
from tests.helpers.smbios import (
    END,
    TABLE,
    UUID_BYTES,
    UUID_MIXED,
    UUID_PLAIN,
    bios,
    board,
    structure,
    system,
)

V3 = (3, 2)


def test_both_ids_are_found_among_other_structures():
    """The UUID of type 1 and the serial of type 2, whatever stands around them."""
    assert SmbiosIds(UUID_MIXED, "/7VN4ZW2/CN1296") == parse_smbios(TABLE, version=V3)


@pytest.mark.parametrize(
    "version,expected",
    [((2, 4), UUID_PLAIN), ((2, 5), UUID_PLAIN), ((2, 6), UUID_MIXED), ((2, 7), UUID_MIXED), ((3, 0), UUID_MIXED)],
)
def test_the_byte_order_of_the_uuid_is_that_of_the_version(version, expected):
    """The first three fields are little-endian since 2.6, all bytes in order before."""
    assert expected == parse_smbios(TABLE, version=version).uuid


@given(st.uuids(), st.tuples(st.integers(0, 4), st.integers(0, 20)))
def test_any_uuid_is_read_as_it_was_written(written, version):
    """What a maker burns in, in the order of the version, comes out as the same UUID."""
    stored = written.bytes_le if version >= SWAPPED_SINCE else written.bytes

    read = parse_smbios(system(stored), version=version).uuid

    assert (None if written.int in (0, 2**128 - 1) else str(written)) == read


@pytest.mark.parametrize("unset", [bytes(16), b"\xff" * 16])
def test_a_uuid_that_is_not_set_is_absent(unset):
    """All zeros and all ones are how the specification says that there is none."""
    assert parse_smbios(system(unset), version=V3).uuid is None


@pytest.mark.parametrize("almost", [bytes(15) + b"\x01", b"\xff" * 15 + b"\xfe"])
def test_a_uuid_that_is_nearly_unset_is_one(almost):
    """Only all zeros and all ones stand for none."""
    assert str(uuid.UUID(bytes_le=almost)) == parse_smbios(system(almost), version=V3).uuid


def test_the_first_structure_of_a_type_counts():
    """As in the Linux kernel: the boards of a blade come after that of the machine."""
    table = system() + system(bytes(range(16))) + board(b"FIRST") + board(b"SECOND") + END

    assert SmbiosIds(UUID_MIXED, "FIRST") == parse_smbios(table, version=V3)


def test_a_damaged_first_structure_is_not_replaced_by_a_second():
    """Which board is meant does not depend on what is broken in the firmware."""
    table = structure(2, bytes([1, 2]), b"Maker", b"Board") + board(b"SECOND")

    assert SmbiosIds() == parse_smbios(table, version=V3)


def test_what_comes_after_the_end_is_not_read():
    """Type 127 ends the table, whatever memory holds behind it."""
    assert SmbiosIds() == parse_smbios(bios() + END + system() + board(), version=V3)


def test_a_table_without_an_end_is_read():
    """The end is often left out."""
    assert SmbiosIds(UUID_MIXED, "B1") == parse_smbios(system() + board(b"B1"), version=V3)


def test_an_old_structure_without_a_uuid_is_read():
    """SMBIOS 2.0 had only the strings."""
    old = structure(1, bytes([1, 2, 0, 3]), b"Maker", b"Product", b"Serial")

    assert SmbiosIds(None, "B1") == parse_smbios(old + board(b"B1"), version=(2, 0))


@pytest.mark.parametrize("cut", [15, 0])
def test_a_uuid_that_is_cut_off_is_absent(cut):
    """A formatted part that ends within the UUID has none."""
    assert parse_smbios(structure(1, bytes(4) + UUID_BYTES[:cut], b"M"), version=V3).uuid is None


def test_a_formatted_part_that_ends_with_its_field_is_long_enough():
    """The fields behind the ids were added later, and need not be there."""
    table = structure(1, bytes(4) + UUID_BYTES) + structure(2, bytes([0, 0, 0, 1]), b"B1")

    assert SmbiosIds(UUID_MIXED, "B1") == parse_smbios(table, version=V3)


@pytest.mark.parametrize("size,expected", [(3, None), (4, None), (5, None), (6, None), (7, None), (8, "B1")])
def test_a_board_whose_formatted_part_is_too_short_has_no_serial(size, expected):
    """The field is looked up only where it is."""
    table = structure(2, bytes([0, 0, 0, 1])[: size - 4], b"B1") if size >= 4 else bytes([2, 3, 0, 0]) + b"B1\0\0"

    assert expected == parse_smbios(table, version=V3).board_serial


@pytest.mark.parametrize("number,expected", [(0, None), (1, "ONE"), (2, "TWO"), (3, None), (255, None)])
def test_strings_are_counted_from_one(number, expected):
    """Zero stands for no string, and a number without a string for nothing."""
    table = structure(2, bytes([0, 0, 0, number, 0]), b"ONE", b"TWO")

    assert expected == parse_smbios(table, version=V3).board_serial


def test_a_structure_without_strings_has_no_first_string():
    """The two NULs that stand for no strings are not an empty string."""
    assert parse_smbios(structure(2, bytes([0, 0, 0, 1, 0])), version=V3).board_serial is None


def test_a_serial_is_stripped_and_its_bytes_are_never_an_error():
    """Blanks around it go; bytes that are no UTF-8 are marked, not refused."""
    assert "B\ufffd1" == parse_smbios(board(b"  B\xff1 "), version=V3).board_serial


def test_a_blank_serial_is_empty_and_not_absent():
    """A maker who wrote blanks has a placeholder there, which is weak, as under Linux."""
    assert parse_smbios(board(b"   "), version=V3).board_serial == ""


@pytest.mark.parametrize("size", [0, 1, 3])
def test_a_length_below_its_own_header_ends_the_table(size):
    """A length of 0 must not be read again and again."""
    assert SmbiosIds() == parse_smbios(bytes([1, size, 0, 0]) + UUID_BYTES * 2 + b"\0\0", version=V3)


def test_a_length_of_just_its_header_is_passed_over():
    """Such a structure says nothing, and the next one is read."""
    assert "B1" == parse_smbios(structure(126, b"") + board(b"B1"), version=V3).board_serial


def test_a_structure_that_reaches_beyond_the_table_is_absent():
    """Nothing is made of a structure without its end."""
    whole = system()

    assert UUID_MIXED == parse_smbios(whole, version=V3).uuid
    assert SmbiosIds() == parse_smbios(whole[:-1], version=V3)


def test_a_table_is_read_up_to_its_bound_and_no_further():
    """The longest table is read to its end; what lies beyond it is not there."""
    padding = structure(200, bytes(16), b"x" * (MAX_TABLE_BYTES - len(board()) - 20 - 2))

    assert MAX_TABLE_BYTES == len(padding + board())
    assert parse_smbios(padding + board(), version=V3).board_serial is not None
    assert SmbiosIds() == parse_smbios(b"\x7e\x04\0\0y\0\0" + padding + board(), version=V3)


@given(st.binary(max_size=300), st.tuples(st.integers(0, 255), st.integers(0, 255)))
def test_any_bytes_give_ids_or_nothing(table, version):
    """Hostile firmware raises nothing."""
    assert isinstance(parse_smbios(table, version=version), SmbiosIds)


@given(st.data())
def test_a_damaged_table_gives_ids_or_nothing(data):
    """A sound table with bytes replaced and cut off anywhere raises nothing."""
    table = bytearray(TABLE)
    for _ in range(data.draw(st.integers(1, 8))):
        table[data.draw(st.integers(0, len(table) - 1))] = data.draw(st.integers(0, 255))

    ids = parse_smbios(bytes(table[: data.draw(st.integers(0, len(table)))]), version=V3)

    assert ids.uuid is None or ids.uuid == str(uuid.UUID(ids.uuid))
    assert ids.board_serial is None or ids.board_serial == ids.board_serial.strip()


def test_the_ids_are_not_shown_by_repr():
    """They are secret towards the network, and logs are read there."""
    assert "SmbiosIds()" == repr(SmbiosIds(UUID_MIXED, "B1"))
