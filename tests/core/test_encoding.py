"""Strict base64, hex and JSON: one spelling for each value, and nothing but `MalformedError` for the rest."""

import json
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from redflag_core.encoding import (
    MAX_DEPTH,
    MAX_INTEGER,
    MAX_ITEMS,
    b64decode,
    b64encode,
    b64url_decode,
    b64url_encode,
    check_storable,
    dump_json,
    hex_decode,
    parse_json,
    storable,
)
from redflag_core.errors import MalformedError, TooLargeError

STORABLE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-MAX_INTEGER, MAX_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | STORABLE
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(STORABLE, inner, max_size=4),
    max_leaves=20,
)


def read(data: bytes):
    return parse_json(data, max_bytes=1_000_000)


# base64 and hex


@given(st.binary(max_size=100))
def test_base64_comes_back_as_it_went_in(data):
    """Encoding and decoding are inverse, in both alphabets and in hex."""
    assert data == b64decode(b64encode(data))
    assert data == b64url_decode(b64url_encode(data))
    assert data == hex_decode(data.hex(), len(data))


@given(st.text(max_size=40) | st.text("AQgw=+/-_ \n", max_size=12))
@example("QR==")
@example("QUJ=")
@example("QQ=")
@example("QQ")
@example("QQ===")
@example("Q Q=")
@example("QQ==\n")
@example("QQ==QQ==")
@example("é")
def test_base64_has_one_spelling(text):
    """Any text is refused as malformed, or is exactly what encoding its value would give."""
    for decode, encode in ((b64decode, b64encode), (b64url_decode, b64url_encode)):
        with suppress(MalformedError):
            assert text == encode(decode(text))


@pytest.mark.parametrize("text", ["QR==", "QUJ=", "QQ", "Q", "QQ==\n", "-_-_", "QQ=", "QQ==QQ=="])
def test_lenient_base64_is_refused(text):
    """Dangling bits, missing padding, blanks and the other alphabet do not pass."""
    with pytest.raises(MalformedError):
        b64decode(text)


@pytest.mark.parametrize("text", ["QR", "QQ==", "QQ=", "Q", "QQ\n", "+/+/", "QUJ"])
def test_lenient_base64url_is_refused(text):
    """The last character has one form: a token text cannot be changed without changing its bytes."""
    with pytest.raises(MalformedError):
        b64url_decode(text)


@pytest.mark.parametrize("junk", ["*", " ", "\n"])
def test_junk_is_not_called_another_spelling(junk):
    """The message tells which of the two it is."""
    with pytest.raises(MalformedError, match=r"^not base64$"):
        b64decode(f"QQ{junk}==")
    with pytest.raises(MalformedError, match=r"^not base64url$"):
        b64url_decode(f"QQ{3 * junk}")


def test_base64url_has_no_padding():
    """And keeps every other last character."""
    assert ["", "QQ", "QUI", "AAAX", "AAA-", "AAA_"] == [
        b64url_encode(data) for data in (b"", b"A", b"AB", b"\0\0\x17", b"\0\0>", b"\0\0?")
    ]


@pytest.mark.parametrize("value", [None, 5, b"QQ==", ["QQ=="]])
def test_what_is_no_text_is_malformed(value):
    """A value of another type is the sender's mistake, not a crash."""
    for decode in (b64decode, b64url_decode):
        with pytest.raises(MalformedError):
            decode(value)
    with pytest.raises(MalformedError):
        hex_decode(value, 1)


@pytest.mark.parametrize("text", ["0", "000", "0G", "AA", "aa ", " a", "aa\n", "\u0660\u0660", "0x"])
def test_hex_is_lower_case_and_of_the_size_asked_for(text):
    """Upper case, blanks, other digits and other lengths are refused."""
    with pytest.raises(MalformedError, match="not 2 lower-case hex digits"):
        hex_decode(text, 1)


# JSON


@given(JSON)
def test_json_comes_back_as_it_went_in(value):
    """What is dumped is read again as the same value, of the same types."""
    again = read(dump_json(value))

    assert value == again
    assert json.dumps(value, sort_keys=True) == json.dumps(again, sort_keys=True)


@given(JSON)
def test_the_canonical_form_is_the_only_one(value):
    """Reading and dumping again gives the same bytes, and the order of keys does not matter."""
    data = dump_json(value)

    assert data == dump_json(read(data))
    if isinstance(value, dict):
        assert data == dump_json(dict(reversed(value.items())))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": -float("inf")}])
def test_nan_is_never_written(value):
    """A number that JSON does not have is a bug of the caller."""
    with pytest.raises(ValueError, match="Out of range float"):
        dump_json(value)


@given(
    st.binary(max_size=60) | JSON.map(dump_json).flatmap(lambda data: st.sampled_from([data[:-1], data + b"]"]))
)
def test_any_bytes_are_read_or_malformed(data):
    """Whatever comes in, the only exception that comes out is `MalformedError`."""
    with suppress(MalformedError):
        read(data)


@given(JSON, st.data())
def test_a_broken_document_is_read_or_malformed(value, data):
    """One byte changed anywhere does not bring another exception out."""
    broken = bytearray(dump_json(value))
    broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    with suppress(MalformedError):
        read(bytes(broken))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\x00}\x00",
        b'"\xc3"',
        b'"\xed\xa0\x80"',
        b"{} {}",
        b"{},",
        b"[1,]",
        b"{'a':1}",
        b"{a:1}",
        b"01",
        b"+1",
        b"1.",
        b".5",
        b"0x10",
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"[nan]",
        b"1e999",
        b"-1e999",
        b'"\x00"',
        b'"\n"',
        b'"\\u0000"',
        b'{"\\u0000":1}',
        b'["\\ud800"]',
        b'{"a":{"b":"\\udfff x"}}',
        b'"\\ude00\\ud83d"',
        b'"\\x41"',
        b'"abc',
        b'"abc\\',
        b"// comment\n1",
        b"{} // comment",
    ],
)
def test_what_is_not_one_strict_document_is_malformed(data):
    """No byte order mark, other encoding, trailing bytes, comments, NaN, NUL or lone surrogate gets in."""
    with pytest.raises(MalformedError):
        read(data)


@pytest.mark.parametrize("data", [b'{"a":1,"a":1}', b'[{"a":{"b":1,"c":2,"b":3}}]', b'{"a":1,"\\u0061":2}'])
def test_equal_keys_are_malformed(data):
    """Two readers that disagree on which of two equal keys counts would read two documents."""
    with pytest.raises(MalformedError, match="same key twice"):
        read(data)


def test_escaped_text_is_read():
    """Escapes of characters that any database can hold are fine, a pair of surrogates among them."""
    assert ["a", "\u20ac", "\U0001f600", "\t"] == read(b'["\\u0061","\\u20ac","\\ud83d\\ude00","\\t"]')
    assert {"a": [1, None, True]} == read(b'{"\\u0061":[1,null,true]}')


def test_the_bound_of_the_size_is_exact():
    """A document of the largest size is read, one byte more is too large whatever it holds."""
    assert [1] == parse_json(b"[1]", max_bytes=3)
    with pytest.raises(TooLargeError, match="larger than 3 bytes"):
        parse_json(b"[1] ", max_bytes=3)


def test_integers_are_exact_in_every_reader():
    """Integers up to 2**53 - 1 are read, larger ones would be rounded somewhere."""
    assert 9_007_199_254_740_991 == MAX_INTEGER
    for number in (MAX_INTEGER, -MAX_INTEGER, 0):
        assert number == read(str(number).encode())
    for number in (MAX_INTEGER + 1, -MAX_INTEGER - 1, 10**17):
        with pytest.raises(MalformedError, match="integer is too large"):
            read(str(number).encode())
    with pytest.raises(MalformedError, match="integer is too large"):
        read(b"1" * 100_000)


def test_numbers_keep_their_kind():
    """1 stays an integer, 1.0 and 1e3 are floats."""
    assert [int, float, float, int] == [type(number) for number in read(b"[1,1.0,1e3,-0]")]


@pytest.mark.parametrize("opening, closing", [(b"[", b"]"), (b'{"a":', b"}")])
def test_nesting_is_bounded_before_the_parser_recurses(opening, closing):
    """The deepest allowed nesting is read; deeper is refused, at any depth, open or closed."""
    assert read(opening * MAX_DEPTH + b"1" + closing * MAX_DEPTH)
    for depth in (MAX_DEPTH + 1, 100_000):
        for data in (opening * depth + b"1" + closing * depth, opening * depth):
            with pytest.raises(MalformedError, match="nested deeper than 32"):
                read(data)


@given(STORABLE | st.text('[{"\\]}', max_size=30), st.integers(1, 50))
def test_brackets_inside_texts_are_not_nesting(text, count):
    """A text may hold any number of brackets, quotes and backslashes."""
    value = {text * count: [text * count]}

    assert value == read(dump_json(value))


def test_width_is_not_nesting():
    """Closed brackets give their depth back."""
    wide = b",".join([b"[]"] * 1000)

    assert [[]] * 1000 == read(b"[" + wide + b"]")
    assert read(b"[" + wide + b"," + b"[" * (MAX_DEPTH - 1) + b"]" * MAX_DEPTH)
    with pytest.raises(MalformedError, match="nested deeper"):
        read(b"[" + wide + b"," + b"[" * MAX_DEPTH + b"]" * (MAX_DEPTH + 1))


def test_nesting_goes_on_behind_what_was_closed():
    """One step back is one level, and a text is none."""
    too_deep = MAX_DEPTH + 1
    for data in (b"[" * 20 + b"[]," + b"[" * (too_deep - 20) + b"]" * too_deep, b'["x",' * too_deep):
        with pytest.raises(MalformedError, match="nested deeper"):
            read(data)


@pytest.mark.parametrize("item, values", [(b"1", 1), (b"[]", 2), (b"{}", 2)])
def test_the_number_of_values_is_bounded(item, values):
    """A small document of very many values would burn the processor; the longest report has fewer."""
    most = MAX_ITEMS // values
    longest = b"[" + b",".join([item] * most) + b"]"

    assert most == len(parse_json(longest, max_bytes=len(longest)))
    with pytest.raises(MalformedError, match="more than 500000 items"):
        parse_json(longest[:-1] + b"," + item + b"]", max_bytes=2 * len(longest))


# Texts for databases


@pytest.mark.parametrize("text", ["abcde", "\u20aca", "\U0001f600", "';--"])
def test_a_text_of_few_bytes_is_storable(text):
    """Its bytes in UTF-8 are counted, and what they say does not matter."""
    check_storable(text, "the name", max_bytes=len(text.encode()))
    with pytest.raises(TooLargeError, match=f"^the name is longer than {len(text.encode()) - 1} bytes$"):
        check_storable(text, "the name", max_bytes=len(text.encode()) - 1)


@pytest.mark.parametrize("text", ["\x00", "a\x00b", "\ud800", "a\udfff"])
def test_what_no_database_keeps_is_refused_or_replaced(text):
    """U+0000 and lone surrogates."""
    with pytest.raises(MalformedError, match=r"^the name holds U\+0000"):
        check_storable(text, "the name", max_bytes=100)
    check_storable(storable(text), "the name", max_bytes=100)
    assert "a\ufffdb\u20ac" == storable("a\x00b\u20ac")


def test_a_hostile_document_costs_linear_time():
    """A document of quotes, backslashes or brackets is refused without backtracking."""
    for data in (b'"' * 200_001, b"\\" * 200_001, b'"\\' * 100_001, b'"' + b"\\\\" * 100_001, b'["' * 100_001):
        with pytest.raises(MalformedError):
            read(data)
