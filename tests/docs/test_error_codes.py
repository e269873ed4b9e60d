"""
Codes of errors are for ever: callers, dashboards and scripts decide by them.

`python -m tests.docs.test_error_codes` adds new codes to the list. It takes none away: to remove or rename one,
edit the list by hand, and say so in the changelog.
"""

from pathlib import Path

from tests.helpers.documents import read, table

KEPT = Path(__file__).with_name("error_codes.txt")
EVENTS = "docs/reference/events-and-errors.md"


def documented() -> list[str]:
    """Every code of the reference, with its HTTP status where it has one. Other tests compare it with the code."""
    answered = [f"{code} {status}" for code, status, *_ in table(read(EVENTS), "Code", "Status")]
    return sorted(answered + [code for code, _ in table(read(EVENTS), "Code", "What it means")])


def kept() -> list[str]:
    """The codes that were promised."""
    return KEPT.read_text("utf-8").splitlines()


def test_no_code_was_removed_or_renamed():
    """What a caller decides by today is there tomorrow, with the same HTTP status."""
    assert set() == set(kept()) - set(documented())


def test_a_new_code_is_promised_too():
    """The list is complete, so that the next change of it is noticed."""
    assert set() == set(documented()) - set(kept())


def test_a_code_means_one_thing():
    """None is in both tables, or twice in one."""
    codes = [line.partition(" ")[0] for line in documented()]

    assert len(codes) == len(set(codes))


if __name__ == "__main__":
    KEPT.write_text("".join(f"{line}\n" for line in sorted({*documented(), *(kept() if KEPT.exists() else ())})))
