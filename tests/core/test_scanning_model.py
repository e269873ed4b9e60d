"""What a scanner may say, and what is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core import codec
from redflag_core.errors import CircuitOpenError, MalformedError, ScanError
from redflag_core.scanning import (
    MAX_ERROR,
    MAX_NAME,
    MAX_PACKAGES,
    MAX_TEXT,
    MAX_WARNINGS,
    SCANNED_STATES,
    Package,
    PackageKey,
    PackageState,
    ScanReport,
    ScanStatus,
    Severity,
    clean_text,
    failed_report,
    index_packages,
)

OPENSSL = Package(
    name="openssl",
    arch="amd64",
    installed="3.0.15-1",
    available="3.0.16-1",
    state=PackageState.AVAILABLE,
    severity=Severity.IMPORTANT,
    security=True,
    origin="Debian-Security:12/stable-security",
    source="openssl",
    source_version="3.0.15-1",
    download_size=1_434_000,
    cves=("CVE-2025-12345",),
)


def report(**changes: Any) -> ScanReport:
    """A good report of one package, with *changes*."""
    fields: dict[str, Any] = {
        "scanner": "apt",
        "manager": "apt",
        "taken_at": 1_764_000_000,
        "duration_ms": 900,
        "status": ScanStatus.OK,
        "packages": (OPENSSL,),
    }
    return ScanReport(**(fields | changes))


def test_the_seventeen_states_of_the_product_exist():
    """Every state that the product speaks of has its word, and no other."""
    expected = (
        "current available approved deferred held kept_back phased excluded planning needs_confirmation "
        "installing reboot_pending installed failed rolled_back not_applicable unknown"
    )

    assert set(expected.split()) == set(PackageState)
    assert len(PackageState) == 17


def test_severities_are_ranked_from_unknown_to_critical():
    """Rank orders severities by how bad they are, not by their spelling."""
    assert ["unknown", "low", "moderate", "important", "critical"] == sorted(Severity, key=lambda s: s.rank)


@pytest.mark.parametrize("state", sorted(set(PackageState) - SCANNED_STATES))
def test_a_scanner_cannot_claim_what_people_or_installs_decide(state):
    """A report cannot say that a package is approved, installed or anything else a scanner cannot see."""
    with pytest.raises(ValueError, match="not one that a scanner can see"):
        Package(name="bash", arch="amd64", state=state)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "n" * (MAX_NAME + 1)},
        {"name": "a\nb"},
        {"name": "a\x1bb"},
        {"name": "a\ud800"},
        {"arch": ""},
        {"arch": "a" * 33},
        {"installed": ""},
        {"available": "1\x00"},
        {"reason": "r" * (MAX_TEXT + 1)},
        {"origin": "o\u2028"},
        {"source": "s" * (MAX_NAME + 1)},
        {"source_version": ""},
        {"download_size": -1},
        {"download_size": 2**53},
        {"cves": ("CVE-1",)},
        {"cves": ("CVE-2025-1234",) * 501},
    ],
)
def test_a_package_out_of_bounds_is_refused(fields):
    """Every field of a package has a bound, and text fields are one printable line."""
    good: dict[str, Any] = {"name": "bash", "arch": "amd64", "state": PackageState.CURRENT}

    with pytest.raises(ValueError, match=r".+"):
        Package(**(good | fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"scanner": "APT"},
        {"scanner": ""},
        {"manager": "a" * 33},
        {"taken_at": -1},
        {"duration_ms": 2**53},
        {"warnings": ("w" * (MAX_TEXT + 1),)},
        {"warnings": ("w",) * (MAX_WARNINGS + 1)},
        {"packages": (OPENSSL, OPENSSL)},
        {"facts": {str(n): n for n in range(65)}},
        {"facts": {"long": "x" * 33_000}},
        {"status": ScanStatus.OK, "error": "but"},
        {"status": ScanStatus.FAILED},
        {"status": ScanStatus.FAILED, "error": "it broke"},
        {"status": ScanStatus.OPEN, "packages": ()},
        {"status": ScanStatus.FAILED, "packages": (), "error": "e" * (MAX_ERROR + 1)},
    ],
)
def test_a_report_out_of_bounds_is_refused(fields):
    """A report is bounded, names each package once, and has either packages or an error."""
    with pytest.raises(ValueError, match=r".+"):
        report(**fields)


def test_a_report_holds_at_most_the_stated_number_of_packages():
    """The bound on packages is inclusive."""
    many = tuple(Package(name=f"p{n}", arch="all", state=PackageState.CURRENT) for n in range(MAX_PACKAGES + 1))

    assert MAX_PACKAGES == len(report(packages=many[:-1]).packages)
    with pytest.raises(ValueError, match="packages"):
        report(packages=many)


def test_a_report_survives_the_codec():
    """What a scanner says arrives as it was said."""
    sent = report(warnings=("lists are old",), facts={"held": 1, "deep": {"list": [None, True, 1.5]}})

    assert sent == codec.parse(ScanReport, codec.dump(sent), max_bytes=10_000)


@pytest.mark.parametrize(
    "change",
    [
        (b'"available"', b'"approved"'),
        (b'"apt"', b'"Apt"'),
        (b'"name":', b'"nickname":'),
        (b'"security":true', b'"security":1'),
        (b'"download_size":1434000', b'"download_size":"1434000"'),
    ],
)
def test_a_report_from_outside_is_refused_as_malformed(change):
    """A bad state, name, field or type in received bytes is `MalformedError`, not another exception."""
    data = codec.dump(report()).replace(*change)

    with pytest.raises(MalformedError):
        codec.parse(ScanReport, data, max_bytes=10_000)


def test_a_failed_scan_is_a_report_that_says_why():
    """A failed scan gives status, sentence and no packages."""
    failed = failed_report(ScanError("run dpkg"), scanner="apt", manager="apt", taken_at=5, duration_ms=7)

    assert (ScanStatus.FAILED, "run dpkg", ()) == (failed.status, failed.error, failed.packages)
    assert (5, 7) == (failed.taken_at, failed.duration_ms)


def test_a_scanner_with_an_open_circuit_is_told_apart():
    """A scan that was not tried has the status `open`, with the reason."""
    error = CircuitOpenError("three failures in a row", retry_after=60)

    skipped = failed_report(error, scanner="apt", manager="apt", taken_at=0, duration_ms=0)

    assert (ScanStatus.OPEN, "three failures in a row") == (skipped.status, skipped.error)


@pytest.mark.parametrize("error", [RuntimeError("token=s3cret"), KeyError(), ScanError("")])
def test_an_error_that_has_no_words_for_people_gives_only_its_type(error):
    """The text of an unexpected exception stays out of the report: it may hold anything."""
    failed = failed_report(error, scanner="apt", manager="apt", taken_at=0, duration_ms=0)

    assert f"unexpected {type(error).__name__}" == failed.error


def test_an_error_of_any_length_and_content_fits_into_a_report():
    """A package manager's output cannot break the report of its failure."""
    failed = failed_report(
        ScanError("\x1b[31m\ud800" + "x" * 10_000), scanner="apt", manager="apt", taken_at=0, duration_ms=0
    )

    assert failed.error is not None
    assert "\ufffd[31m\ufffdx" == failed.error[:7]
    assert MAX_ERROR == len(failed.error)


@given(st.text(), st.integers(1, 20))
def test_clean_text_is_always_storable(text, max_len):
    """Clean text is as long as allowed, printable, and stays what it is when cleaned again."""
    clean = clean_text(text, max_len=max_len)

    assert len(clean) == min(len(text), max_len)
    assert clean == clean_text(clean, max_len=max_len)
    clean.encode()


def test_text_that_is_clean_and_short_is_left_alone():
    """Umlauts, tabs excepted, and emoji are text."""
    assert "Übersetzt 🎉" == clean_text("Übersetzt 🎉", max_len=20)


def test_keys_sort_by_name_then_architecture():
    """The order of keys is total, so that records are repeatable."""
    keys = [PackageKey("b", "all"), PackageKey("a", "i386"), PackageKey("a", "amd64")]

    assert [PackageKey("a", "amd64"), PackageKey("a", "i386"), PackageKey("b", "all")] == sorted(keys)


def test_the_same_name_on_two_architectures_is_two_packages():
    """Name and architecture together identify a package."""
    foreign = Package(name="openssl", arch="i386", state=PackageState.CURRENT)

    assert {OPENSSL.key: OPENSSL, foreign.key: foreign} == index_packages((OPENSSL, foreign))


@pytest.mark.parametrize("character", ["\u202e", "\u2066", "\u200b", "\ufeff", "\u2060"])
def test_clean_text_reads_as_what_it_is(character):
    """Nothing turns the text around or hides in it; joiners that scripts and emoji need stay."""
    assert "lib\ufffdssl" == clean_text(f"lib{character}ssl", max_len=20)
    assert "नी\u200d \U0001f469\u200d\U0001f680" == clean_text("नी\u200d \U0001f469\u200d\U0001f680", max_len=20)
