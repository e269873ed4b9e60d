"""Advisories: severities that are never invented, ids of CVEs, CVSS, and which packages are concerned."""

import itertools
import math
import subprocess

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core import codec
from redflag_core.errors import MalformedError, ScanError
from redflag_core.scanning import Package, PackageState, Severity
from redflag_core.scanning.advisories import (
    MAX_FIXES,
    Advisory,
    Fix,
    Matcher,
    Standing,
    VersionOrder,
    cve_order,
    is_cve,
    parse_cve,
    severity_of_vector,
    severity_of_word,
    worst,
)
from redflag_core.scanning.cvss import MAX_VECTOR, base_score, severity_of_score
from redflag_core.scanning.model import MAX_CVES
from tests.helpers.needs import needs

# Severities


@pytest.mark.parametrize(
    "words,expected",
    [
        ("low Low LOW negligible unimportant", Severity.LOW),
        ("moderate medium Medium", Severity.MODERATE),
        ("important Important high HIGH", Severity.IMPORTANT),
        ("critical Critical", Severity.CRITICAL),
        ("none unspecified untriaged unknown severe 9.8", Severity.UNKNOWN),
    ],
)
def test_the_words_of_vendors_are_folded_and_no_other(words, expected):
    """Each scale has its words; one that nobody defined is not guessed."""
    assert {expected} == {severity_of_word(word) for word in words.split()}


@pytest.mark.parametrize("word", [None, "", "  ", "not yet assigned", "end-of-life", "lo w"])
def test_what_was_not_rated_stays_unknown(word):
    """No word, and words that say that there is no rating."""
    assert Severity.UNKNOWN is severity_of_word(word)


def test_blanks_around_a_word_do_not_matter():
    """Lists are often padded."""
    assert Severity.CRITICAL is severity_of_word(" Critical\n")


@given(st.text(max_size=20))
def test_any_word_has_a_severity(word):
    """Nothing is raised."""
    assert severity_of_word(word) in Severity


@pytest.mark.parametrize(
    "score,expected",
    [
        (0.0, Severity.UNKNOWN),
        (0.1, Severity.LOW),
        (3.9, Severity.LOW),
        (3.95, Severity.LOW),
        (4.0, Severity.MODERATE),
        (6.9, Severity.MODERATE),
        (7.0, Severity.IMPORTANT),
        (8.9, Severity.IMPORTANT),
        (9.0, Severity.CRITICAL),
        (10.0, Severity.CRITICAL),
    ],
)
def test_a_score_is_in_the_band_of_the_specification(score, expected):
    """The bands of CVSS 3 and 4 are the same, and both ends belong to them."""
    assert expected is severity_of_score(score)


@pytest.mark.parametrize("score", [-0.1, 10.1, math.inf, -math.inf, math.nan])
def test_what_is_no_score_is_refused(score):
    """A number beyond the scale has no band."""
    with pytest.raises(MalformedError):
        severity_of_score(score)


def test_the_worst_of_several_ratings_holds():
    """In whatever order they come; and none is no rating."""
    for order in itertools.permutations(Severity):
        assert Severity.CRITICAL is worst(order)
    assert Severity.LOW is worst([Severity.UNKNOWN, Severity.LOW])
    assert Severity.UNKNOWN is worst([])


# CVSS 3: what FIRST publishes in its documents of examples and what NVD publishes for well-known vulnerabilities.

PUBLISHED = {
    "CVSS:3.1/AV:N/AC:L/PR:N/UI:R/S:C/C:L/I:L/A:N": 6.1,  # CVE-2013-1937
    "CVSS:3.1/AV:N/AC:L/PR:L/UI:N/S:U/C:L/I:L/A:L": 6.3,
    "CVSS:3.1/AV:N/AC:L/PR:L/UI:N/S:C/C:L/I:L/A:N": 6.4,  # CVE-2013-0375
    "CVSS:3.1/AV:N/AC:H/PR:N/UI:R/S:U/C:L/I:N/A:N": 3.1,  # CVE-2014-3566
    "CVSS:3.1/AV:N/AC:L/PR:L/UI:N/S:C/C:H/I:H/A:H": 9.9,  # CVE-2012-1516
    "CVSS:3.1/AV:L/AC:L/PR:H/UI:N/S:U/C:L/I:L/A:L": 4.2,
    "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:N/A:N": 7.5,  # CVE-2014-0160
    "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H": 9.8,  # CVE-2014-6271
    "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:C/C:H/I:H/A:H": 10.0,  # CVE-2021-44228
    "CVSS:3.1/AV:N/AC:H/PR:N/UI:N/S:C/C:N/I:H/A:N": 6.8,  # CVE-2008-1447
    "CVSS:3.1/AV:L/AC:L/PR:N/UI:R/S:U/C:H/I:H/A:H": 7.8,
    "CVSS:3.1/AV:A/AC:L/PR:N/UI:N/S:U/C:H/I:N/A:N": 6.5,
    "CVSS:3.1/AV:P/AC:L/PR:N/UI:N/S:U/C:N/I:N/A:N": 0.0,
    "CVSS:3.0/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H": 9.8,
}

METRICS = {"AV": "NALP", "AC": "LH", "PR": "NLH", "UI": "NR", "S": "UC", "C": "HLN", "I": "HLN", "A": "HLN"}


@pytest.mark.parametrize("vector,score", PUBLISHED.items())
def test_published_vectors_have_their_published_scores(vector, score):
    """The formula, as its authors apply it."""
    assert score == base_score(vector)


def by_the_book(chosen):
    """The base score of 3.1 in floating point, line by line as section 7 and appendix A have it."""
    weight = {
        "AV": {"N": 0.85, "A": 0.62, "L": 0.55, "P": 0.2},
        "AC": {"L": 0.77, "H": 0.44},
        "UI": {"N": 0.85, "R": 0.62},
    }
    impact = {"H": 0.56, "L": 0.22, "N": 0.0}
    changed = chosen["S"] == "C"
    privileges = {"N": 0.85, "L": 0.68 if changed else 0.62, "H": 0.5 if changed else 0.27}[chosen["PR"]]
    iss = 1 - (1 - impact[chosen["C"]]) * (1 - impact[chosen["I"]]) * (1 - impact[chosen["A"]])
    sub = 7.52 * (iss - 0.029) - 3.25 * (iss - 0.02) ** 15 if changed else 6.42 * iss
    if sub <= 0:
        return 0.0
    exploitability = 8.22 * privileges * math.prod(weight[name][chosen[name]] for name in weight)
    whole = round(min((1.08 if changed else 1.0) * (sub + exploitability), 10) * 100_000)
    return whole / 100_000 if whole % 10_000 == 0 else (whole // 10_000 + 1) / 10


def test_every_vector_of_3_1_has_the_score_of_the_specification():
    """All 2,592 of them, against the published arithmetic."""
    for values in itertools.product(*METRICS.values()):
        chosen = dict(zip(METRICS, values, strict=True))
        vector = "CVSS:3.1" + "".join(f"/{metric}:{value}" for metric, value in chosen.items())

        assert by_the_book(chosen) == base_score(vector), vector


def test_what_is_less_than_half_of_a_hundred_thousandth_is_not_rounded_up_since_3_1():
    """Otherwise the score would depend on how a machine computes: 3.0 rounds up whatever is above."""
    from fractions import Fraction

    from redflag_core.scanning.cvss import _round_up

    barely = Fraction(4) + Fraction(1, 1_000_000)

    assert (41, 40) == (_round_up(barely, 0), _round_up(barely, 1))
    assert (40, 40) == (_round_up(Fraction(4), 0), _round_up(Fraction(4), 1))
    assert (41, 41) == (_round_up(Fraction("4.02"), 0), _round_up(Fraction("4.02"), 1))


VECTOR = "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H"


def test_the_order_of_the_metrics_does_not_matter():
    """As the specification says."""
    prefix, *metrics = VECTOR.split("/")

    assert 9.8 == base_score("/".join([prefix, *reversed(metrics)]))


def test_temporal_and_environmental_metrics_do_not_change_the_base_score():
    """They are read, must have a value of theirs, and are left aside."""
    others = "/E:U/RL:O/RC:U/CR:L/IR:L/AR:L/MAV:P/MAC:H/MPR:H/MUI:R/MS:U/MC:N/MI:N/MA:N"

    assert 9.8 == base_score(VECTOR + others)
    assert len(VECTOR + others) <= MAX_VECTOR


@pytest.mark.parametrize(
    "vector",
    [
        "",
        "CVSS:3.1",
        "CVSS:3.1/",
        VECTOR.replace("3.1", "3.2"),
        VECTOR.replace("3.1", "4.0"),
        VECTOR.replace("CVSS:3.1/", ""),
        VECTOR.lower(),
        VECTOR + "/",
        VECTOR + "\n",
        VECTOR + "/AV:N",
        VECTOR + "/AV:P",
        VECTOR + "/E:Z",
        VECTOR + "/ZZ:N",
        VECTOR.replace("AV:N", "AV:X"),
        VECTOR.replace("/A:H", ""),
        VECTOR.replace("/A:H", "/A:HL"),
        VECTOR.replace("/A:H", "/A:"),
        VECTOR + "/E:X" * 60,
        "AV:N/AC:L/Au:N/C:P/I:P/A:P",
    ],
)
def test_what_is_no_vector_of_version_3_is_refused(vector):
    """A metric that is missing, unknown or there twice, another version, anything else."""
    with pytest.raises(MalformedError):
        base_score(vector)


@pytest.mark.parametrize("metric", METRICS)
def test_every_base_metric_is_needed(metric):
    """There is no value for one that is missing."""
    with pytest.raises(MalformedError):
        base_score("/".join(part for part in VECTOR.split("/") if not part.startswith(f"{metric}:")))


@given(
    st.text(max_size=40)
    | st.lists(
        st.sampled_from(["AV:N", "AC:L", "PR:H", "UI:R", "S:C", "C:L", "I:L", "A:N", "E:X"]), max_size=10
    ).map(lambda parts: "/".join(["CVSS:3.1", *parts]))
)
def test_any_text_has_a_score_or_is_malformed(text):
    """A score of the scale, or the one error."""
    try:
        score = base_score(text)
    except MalformedError:
        return
    assert 0.0 <= score <= 10.0
    assert score == round(score, 1)


def test_the_severity_of_a_vector_is_that_of_its_score():
    """And a vector without impact is not rated."""
    assert Severity.CRITICAL is severity_of_vector(VECTOR)
    assert Severity.MODERATE is severity_of_vector(next(iter(PUBLISHED)))
    assert Severity.UNKNOWN is severity_of_vector("CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:N/I:N/A:N")


# Ids of CVEs


@pytest.mark.parametrize("text", ["CVE-1999-0001", "CVE-2024-3094", "CVE-2021-1234567", "CVE-2024-" + "1" * 19])
def test_an_id_of_a_cve_is_one(text):
    """A year, and four to nineteen digits."""
    assert is_cve(text)
    assert text == parse_cve(text) == parse_cve(text.lower())
    assert not is_cve(text.lower())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "CVE-2024-309",
        "CVE-2024-" + "1" * 20,
        "CVE-24-3094",
        "CVE-20244-3094",
        "CVE-2024-3094\n",
        " CVE-2024-3094",
        "CVE-2024_3094",
        "CAN-2024-3094",
        "CVE-\u0662\u0660\u0662\u0664-3094",
        "CVE-2024-3094-1",
        "2024-3094",
    ],
)
def test_what_is_no_id_of_a_cve_is_refused(text):
    """Among them digits of other scripts, which look alike in a log."""
    assert not is_cve(text)
    with pytest.raises(MalformedError):
        parse_cve(text)


def test_a_scanner_cannot_report_a_cve_with_other_digits():
    """The report has the same form of an id."""
    with pytest.raises(ValueError, match="cves"):
        Package(name="x", arch="any", state=PackageState.CURRENT, cves=("CVE-\u0662\u0660\u0662\u0664-3094",))


def test_cves_are_ordered_by_year_and_number():
    """Not by their text."""
    given = ["CVE-2024-10000", "CVE-1999-0001", "CVE-2024-9999"]

    assert ["CVE-1999-0001", "CVE-2024-9999", "CVE-2024-10000"] == sorted(given, key=cve_order)


# Advisories


def advisory(*fixes, **changes):
    fields = {"id": "DSA-1-1", "source": "debian", "cves": ("CVE-2024-0001",), "severity": Severity.IMPORTANT}
    return Advisory(**(fields | {"fixes": fixes} | changes))


def fix(version="2", **changes):
    return Fix(**({"manager": "apt", "name": "curl", "version": version} | changes))


@pytest.mark.parametrize(
    "fields",
    [
        {"id": ""},
        {"id": "x" * 65},
        {"source": ""},
        {"source": "a\nb"},
        {"cves": ("CVE-1",)},
        {"cves": ("CVE-2024-0001",) * 2},
        {"cves": tuple(f"CVE-2024-{number}" for number in range(10_000, 10_001 + MAX_CVES))},
        {"published": -1},
        {"published": 253_402_300_800},
        {"fixes": (fix(), fix("3"))},
        {"fixes": tuple(fix(name=f"p{number}") for number in range(MAX_FIXES + 1))},
    ],
    ids=lambda fields: str(fields)[:40],
)
def test_an_advisory_out_of_bounds_is_refused(fields):
    """Every field has a bound, and each CVE and package is there once."""
    with pytest.raises(ValueError, match=r".+"):
        advisory(**fields)


@pytest.mark.parametrize(
    "fields",
    [{"manager": ""}, {"name": ""}, {"name": "x" * 257}, {"release": ""}, {"version": ""}, {"version": "a\x00"}],
    ids=str,
)
def test_a_fix_out_of_bounds_is_refused(fields):
    """Every field has a bound."""
    with pytest.raises(ValueError, match=r".+"):
        fix(**fields)


def test_an_advisory_survives_the_codec():
    """It can be sent and stored; its largest form is within its bounds."""
    largest = advisory(
        *(fix(name=f"p{number}") for number in range(MAX_FIXES)),
        cves=tuple(f"CVE-2024-{number}" for number in range(10_000, 10_000 + MAX_CVES)),
        published=1_764_000_000,
    )

    assert largest == codec.parse(Advisory, codec.dump(largest), max_bytes=10**6)


@pytest.mark.parametrize(
    "change", [(b'"important"', b'"high"'), (b"CVE-2024-0001", b"cve-2024-0001"), (b'"id"', b'"ID"')]
)
def test_an_advisory_from_outside_is_refused_as_malformed(change):
    """Another severity, spelling or field is not taken for what it may have meant."""
    with pytest.raises(MalformedError):
        codec.parse(Advisory, codec.dump(advisory(fix())).replace(*change), max_bytes=10_000)


# Matching, with an order in which 10 is newer than 9


class Numbers:
    """An order of whole numbers. Its `compare` is far from -1 and 1: only the sign is promised."""

    def compare(self, one, other):
        if not (one + other).isdigit():
            raise ScanError(f"{one} or {other} is no version")
        return 1000 * (int(one) - int(other))


ORDER: VersionOrder = Numbers()
APT = Matcher("apt", "bookworm", ORDER)
CURL = Package(
    name="curl",
    arch="amd64",
    installed="9",
    available="10",
    state=PackageState.AVAILABLE,
    source="curl-source",
    source_version="9",
)


@pytest.mark.parametrize(
    "installed,fixed,expected",
    [
        ("9", "10", Standing.AFFECTED),
        ("10", "10", Standing.FIXED),
        ("11", "10", Standing.FIXED),
        ("9", None, Standing.AFFECTED),
        (None, "10", Standing.NOT_CONCERNED),
    ],
)
def test_an_older_version_than_the_fixed_one_is_affected(installed, fixed, expected):
    """The fixed version itself is not, and one that is not installed is not concerned."""
    package = attrs.evolve(CURL, installed=installed)

    assert expected is APT.standing(advisory(fix(fixed)), package)


@pytest.mark.parametrize(
    "changes",
    [
        {"manager": "dnf"},
        {"name": "libcurl"},
        {"release": "trixie"},
        {"name": "curl", "source": True},
        {"name": "curl-source"},
    ],
    ids=str,
)
def test_another_package_is_not_concerned(changes):
    """Manager, name, kind of name and release must be those of the package."""
    assert Standing.NOT_CONCERNED is APT.standing(advisory(fix("10", **changes)), CURL)


@pytest.mark.parametrize("release", ["bookworm", None])
def test_a_fix_for_the_release_and_one_for_all_concern_the_package(release):
    """Windows and winget have no releases."""
    assert Standing.AFFECTED is APT.standing(advisory(fix("10", release=release)), CURL)


def test_the_fix_for_the_release_counts_before_the_one_for_all():
    """Distributions fix older versions than the authors do."""
    both = advisory(fix("9", release="bookworm"), fix("10"), fix("8", release="bullseye"))

    assert Standing.FIXED is APT.standing(both, CURL)
    assert Standing.AFFECTED is Matcher("apt", "trixie", ORDER).standing(both, CURL)


def test_a_machine_of_an_unknown_release_matches_fixes_for_all_only():
    """Which of several releases it is must not be guessed."""
    unknown = Matcher("apt", None, ORDER)

    assert Standing.NOT_CONCERNED is unknown.standing(advisory(fix("10", release="bookworm")), CURL)
    assert Standing.AFFECTED is unknown.standing(advisory(fix("10")), CURL)


def test_a_source_package_is_compared_with_the_version_of_the_source():
    """That of the binary counts differently."""
    package = attrs.evolve(CURL, installed="99", source_version="9")

    assert Standing.AFFECTED is APT.standing(advisory(fix("10", name="curl-source", source=True)), package)


def test_a_package_without_a_known_source_is_not_concerned_by_sources():
    """Nothing is guessed from its name."""
    package = attrs.evolve(CURL, source="curl", source_version=None)

    assert Standing.NOT_CONCERNED is APT.standing(advisory(fix("10", name="curl", source=True)), package)


def test_all_fixes_of_a_package_must_be_installed():
    """One that speaks of the binary and one that speaks of its source."""
    both = advisory(fix("9"), fix("10", name="curl-source", source=True))

    assert Standing.AFFECTED is APT.standing(both, CURL)


def test_an_advisory_without_packages_concerns_nobody():
    """It may get some later."""
    assert Standing.NOT_CONCERNED is APT.standing(advisory(), CURL)


def test_what_the_manager_takes_for_no_version_is_a_failure_of_the_scan():
    """It is neither affected nor fixed."""
    with pytest.raises(ScanError):
        APT.standing(advisory(fix("x")), CURL)


@pytest.mark.parametrize(
    "installed,available,fixed,expected",
    [
        ("9", "10", "10", True),
        ("9", "11", "10", True),
        ("8", "9", "10", False),
        ("9", None, "10", False),
        ("10", "11", "10", False),
        ("9", "10", None, False),
    ],
)
def test_an_update_closes_what_it_brings_the_fix_of(installed, available, fixed, expected):
    """Not what is fixed already, and not what is fixed later."""
    package = attrs.evolve(CURL, installed=installed, available=available)

    assert expected is APT.is_closed_by_update(advisory(fix(fixed)), package)


@pytest.mark.parametrize("installed,expected", [("9", True), ("8", False)])
def test_an_update_closes_a_fix_of_its_source_only_where_both_count_alike(installed, expected):
    """The source's version of an update is not told: it is known where the binary has the same now."""
    package = attrs.evolve(CURL, installed=installed, source_version="9")

    assert expected is APT.is_closed_by_update(advisory(fix("10", name="curl-source", source=True)), package)


def test_a_package_is_rated_by_what_its_update_closes():
    """CVEs of all closed advisories, newest first, and the worst severity of them."""
    advisories = [
        advisory(fix("10"), cves=("CVE-2024-9999", "CVE-2024-10000"), severity=Severity.MODERATE),
        advisory(fix("10"), cves=("CVE-2023-1111", "CVE-2024-9999"), severity=Severity.CRITICAL),
        advisory(fix("11"), cves=("CVE-2025-0001",), severity=Severity.CRITICAL),
        advisory(fix("9"), cves=("CVE-2022-0001",), severity=Severity.CRITICAL),
    ]

    rated = APT.rate(CURL, advisories)

    assert ("CVE-2024-10000", "CVE-2024-9999", "CVE-2023-1111") == rated.cves
    assert Severity.CRITICAL is rated.severity
    assert CURL == attrs.evolve(rated, cves=(), severity=CURL.severity)


def test_what_a_scanner_said_itself_is_kept():
    """The package manager may know more than the advisories."""
    package = attrs.evolve(CURL, cves=("CVE-2020-0001",), severity=Severity.CRITICAL)

    rated = APT.rate(package, [advisory(fix("10"), severity=Severity.LOW)])

    assert (("CVE-2024-0001", "CVE-2020-0001"), Severity.CRITICAL) == (rated.cves, rated.severity)


def test_a_package_that_nobody_rated_stays_unknown():
    """Neither an advisory without a severity nor none at all makes one."""
    assert Severity.UNKNOWN is APT.rate(CURL, [advisory(fix("10"), severity=Severity.UNKNOWN)]).severity
    assert CURL == APT.rate(CURL, [])


def test_the_cves_of_a_package_have_a_bound():
    """The newest are kept."""
    many = [
        advisory(fix("10"), cves=tuple(f"CVE-{year}-{number}" for number in range(1000, 1000 + MAX_CVES)))
        for year in (2023, 2024)
    ]

    rated = APT.rate(CURL, many)

    assert MAX_CVES == len(rated.cves)
    assert {"2024"} == {cve.split("-")[1] for cve in rated.cves}


@given(st.integers(0, 20), st.none() | st.integers(0, 20), st.none() | st.integers(0, 20))
def test_what_an_update_closes_was_open_and_is_fixed_after_it(installed, available, fixed):
    """Whatever the versions, the three questions agree."""
    texts = [None if number is None else str(number) for number in (installed, available, fixed)]
    package = attrs.evolve(CURL, installed=texts[0], available=texts[1])
    warning = advisory(fix(texts[2]))
    closed = APT.is_closed_by_update(warning, package)

    updated = attrs.evolve(package, installed=texts[1])
    assert closed == (
        Standing.AFFECTED is APT.standing(warning, package) and Standing.FIXED is APT.standing(warning, updated)
    )


# A real order


class DpkgOrder:
    """The order of dpkg, by dpkg."""

    def compare(self, one, other):
        """Ask for older, then for newer."""
        return self._is(one, "gt", other) - self._is(one, "lt", other)

    def _is(self, one, relation, other):
        command = ["dpkg", "--compare-versions", one, relation, other]
        status = subprocess.run(command, check=False, capture_output=True, timeout=30).returncode
        if status not in (0, 1):
            raise ScanError(f"dpkg cannot compare {one} with {other}")
        return status == 0


@needs("dpkg")
@pytest.mark.parametrize(
    "installed,fixed,expected",
    [
        ("7.88.1-10+deb12u5", "7.88.1-10+deb12u12", Standing.AFFECTED),
        ("7.88.1-10+deb12u12", "7.88.1-10+deb12u5", Standing.FIXED),
        ("1:1.0-1", "2.0-1", Standing.FIXED),
        ("2.0~rc1-1", "2.0-1", Standing.AFFECTED),
        ("2.0-1", "2.0-1", Standing.FIXED),
        ("2.0-1+b1", "2.0-1", Standing.FIXED),
    ],
)
def test_advisories_match_in_the_order_of_dpkg(installed, fixed, expected):
    """Epochs, tildes and numbers within a revision are dpkg's to compare."""
    package = attrs.evolve(CURL, installed=installed)

    assert expected is Matcher("apt", "bookworm", DpkgOrder()).standing(advisory(fix(fixed)), package)
