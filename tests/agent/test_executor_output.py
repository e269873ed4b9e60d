"""What a package manager printed: readable, bounded, and never able to break a result."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_agent.executor.output import TAIL_BYTES, clean_output, last_lines, whole_lines
from redflag_core.encoding import dump_json, parse_json
from redflag_core.messages import MAX_PROGRESS_LINE, MAX_PROGRESS_LINES
from redflag_core.statements import MAX_OUTPUT


@pytest.mark.parametrize(
    "raw, text",
    [
        (b"plain\n\ttabbed\n", "plain\n\ttabbed\n"),
        ("größer €\n".encode(), "größer €\n"),
        (b"dos\r\nlines\r\n", "dos\nlines\n"),
        (b"10%\r50%\r100%\n", "100%\n"),
        (b"\x1b[32mgreen\x1b[0m \x1b]0;title\x07bell\n", "green bell\n"),
        (b"\x1b[1;1Hplaced\x1b(B\n", "placed\n"),
        (b"nul\x00byte\x7f\n", "nul\ufffdbyte\ufffd\n"),
        (b"\xff\xfe\n", "\ufffd\ufffd\n"),
        (b"last\r", "last"),
        (b"Get:1 http://me:s3cret@deb.example/ x\n", "Get:1 http://***@deb.example/ x\n"),
        (b"http://host:80/a@b, mail me@host:\n", "http://host:80/a@b, mail me@host:\n"),
        (b"", ""),
    ],
)
def test_what_only_a_terminal_understands_is_taken_out(raw, text):
    """Colours, positions and lines that were drawn over; what is unreadable is marked."""
    assert text == clean_output(raw)


@given(st.binary(max_size=3000))
def test_any_bytes_become_text_that_can_be_signed_and_read_again(raw):
    """No NUL, no lone surrogate, no control character but line ends and tabs."""
    text = clean_output(raw)

    assert text == parse_json(dump_json(text), max_bytes=1 << 20)
    assert not [each for each in text if each < " " and each not in "\n\t"]


def test_of_much_output_the_end_counts():
    """The last characters, however many bytes each of them takes."""
    assert "\u20ac" * MAX_OUTPUT == clean_output(("\u20ac" * TAIL_BYTES).encode()[-TAIL_BYTES:])


def test_a_line_without_an_end_takes_no_time():
    """Nothing in it is looked at again and again."""
    assert MAX_OUTPUT == len(clean_output(b"x\x1b[" * (TAIL_BYTES // 3) + b"x" * MAX_OUTPUT))


def test_people_see_the_last_lines():
    """Without the empty ones, each short enough for a page."""
    raw = b"\n".join(b"line %d" % number for number in range(100)) + b"\n\n  \n" + b"x" * 1000

    lines = last_lines(raw)

    assert MAX_PROGRESS_LINES == len(lines)
    assert ("line 99", "x" * (MAX_PROGRESS_LINE - 1) + "…") == lines[-2:]


@pytest.mark.parametrize(
    "tail, complete, text",
    [
        (b"one\ntwo\nthr", True, "one\ntwo\n"),
        (b"ne\ntwo\nthr", False, "two\n"),
        (b"half", True, ""),
        (b"half", False, ""),
        (b"", True, ""),
    ],
)
def test_only_whole_lines_of_a_status_count(tail, complete, text):
    """One that is being written, or whose beginning was cut off, says nothing."""
    assert text == whole_lines(tail, complete=complete)
