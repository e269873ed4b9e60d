"""Reading what apt and dpkg print: known forms exactly, unknown and hostile ones without harm."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_agent.scanners import apt_output
from redflag_agent.scanners.apt_output import (
    FIELD,
    INVENTORY_FORMAT,
    RECORD,
    TARGETS_FORMAT,
    Offer,
    Planned,
    Repositories,
    is_name,
    is_security,
    messages,
    parse_inventory,
    parse_policy,
    parse_shell,
    parse_simulation,
    parse_sizes,
    parse_targets,
)
from redflag_core.errors import ScanError

UPGRADE = """\
Reading package lists...
The following NEW packages will be installed:
  linux-image-6.1.0-40-amd64
Remv victim [1.0-1]
Purg old [1] [broken ]
Remv swapped [1.0]
Inst swapped [1.0] (2.0 Debian:12/stable [all])
Inst linux-image-6.1.0-40-amd64 (6.1.153-1 Debian-Security:12/stable-security [amd64])
Inst libc6 [2.36-9+deb12u9] (2.36-9+deb12u10 Debian:12.9/stable, Debian-Security:12/stable-security [amd64]) [a ]
Inst libc6:i386 [2.36-9+deb12u9] (2.36-9+deb12u10 Debian:12.9/stable [i386]) [x:amd64 on y:i386] [z:i386 ]
Inst node [1:20.1-1] (1:20.2-1 Node Source [x] (y):nodistro [amd64]) []
Inst local [1] (2 localhost [all])
Conf libc6 (2.36-9+deb12u10 Debian:12.9/stable [amd64])
"""


def record(*fields: str) -> str:
    """One record of dpkg-query with these fields instead of the first ones of a good package."""
    good = ["bash", "amd64", "5.2-1", "install", "installed", "bash", "5.2-1"]
    return FIELD.join([*fields, *good[len(fields) :]]) + RECORD


def test_inst_lines_are_upgrades_or_additions():
    """What has an installed version in brackets is upgraded; the rest is new."""
    plan = parse_simulation(UPGRADE)

    assert ["swapped", "libc6", "libc6:i386", "node", "local"] == list(plan.upgrades)
    assert ("linux-image-6.1.0-40-amd64",) == plan.additions


def test_only_what_stays_away_is_removed():
    """A package that apt removes for a moment to put a newer one in its place is not a removal."""
    assert ("victim", "old") == parse_simulation(UPGRADE).removals


@pytest.mark.parametrize(
    "expected",
    [
        Planned(
            "libc6",
            "2.36-9+deb12u9",
            "2.36-9+deb12u10",
            "Debian:12.9/stable, Debian-Security:12/stable-security",
            "amd64",
        ),
        Planned("libc6:i386", "2.36-9+deb12u9", "2.36-9+deb12u10", "Debian:12.9/stable", "i386"),
        Planned("node", "1:20.1-1", "1:20.2-1", "Node Source [x] (y):nodistro", "amd64"),
        Planned("local", "1", "2", "localhost", "all"),
    ],
)
def test_all_parts_of_an_inst_line_are_read(expected):
    """Versions, origins with spaces and brackets in them, architecture, and whatever apt adds behind."""
    assert expected == parse_simulation(UPGRADE).upgrades[expected.label]


@pytest.mark.parametrize(
    "line", ["Inst ", "Inst bash", "Inst bash [1]", "Inst bash [1] (2", "Inst bash [1] 2 Debian [all]"]
)
def test_an_inst_line_of_another_form_ends_the_scan(line):
    """An update that cannot be read is not skipped: that would hide it."""
    with pytest.raises(ScanError, match="form that this release does not know"):
        parse_simulation(f"Inst a [1] (2 Debian [all])\n{line}\n")


def test_a_label_of_a_repository_cannot_forge_a_line():
    """Line separators other than the newline are part of a text."""
    forged = "Inst a [1] (2 Evil\u2028Inst b [1] (2 x [all]):stable [all])\n"

    assert ["a"] == list(parse_simulation(forged).upgrades)


def test_only_what_is_on_the_machine_is_in_the_inventory():
    """Removed packages that left settings, and packages that never were there, are not installed."""
    text = "".join(
        [
            record("whole"),
            record("triggered", "amd64", "1", "install", "triggers-pending"),
            record("half", "amd64", "1", "install", "half-configured"),
            record("settings", "amd64", "1", "deinstall", "config-files"),
            record("never", "", "", "unknown", "not-installed", "", ""),
        ]
    )

    installed, unreadable = parse_inventory(text)

    assert ({("whole", "amd64"), ("triggered", "amd64"), ("half", "amd64")}, 0) == (set(installed), unreadable)


def test_apt_names_foreign_packages_with_their_architecture():
    """The machine's own architecture and `all` have no suffix."""
    installed, _ = parse_inventory(record("a", "amd64") + record("a", "i386") + record("b", "all"))

    assert ["a", "a:i386", "b"] == [package.label("amd64") for package in installed.values()]


@pytest.mark.parametrize(
    "bad",
    [
        record("-oAPT::Get::Force-Yes=true"),
        record("a b"),
        record("a\nInst"),
        record("a*"),
        record("/etc/passwd"),
        record("a=1"),
        record(""),
        record("n" * 300),
        record("\ufffd"),
        record("a", ""),
        record("a", "amd 64"),
        record("a", "amd64", ""),
        f"a{FIELD}amd64{RECORD}",
        record()[:-1] + FIELD + "more" + RECORD,
        RECORD,
    ],
)
def test_a_record_that_means_nothing_is_counted(bad):
    """Hostile or damaged records are told by their number and do not touch the others."""
    installed, unreadable = parse_inventory(record("before") + bad + record("after"))

    assert (["before", "after"], 1) == ([name for name, _ in installed], unreadable)


POLICY = """\
rf-secure:
  Installed: 1.0-1
  Candidate: 2.0-1
  Version table:
     2.0-1 500
        500 file:/repo stable/main amd64 Packages
     1.0-1+deb12u1 500
        500 file:/repo stable-security/main amd64 Packages
        500 file:/repo stable/main amd64 Packages
 *** 1.0-1 500
        500 file:/repo stable/main amd64 Packages
        100 /var/lib/dpkg/status
     0.9-1 -1
         -1 file:/repo old/main amd64 Packages
libc6:i386:
  Installed: 2.36
  Candidate: 2.36
  Version table:
 *** 2.36 1001
       1001 file:/repo stable/main i386 Packages
rf-phased:
  Installed: 1.0
  Candidate: {candidate}
  Version table:
     2.0 {priority} (phased 10%)
        500 file:/repo stable/main amd64 Packages
 *** 1.0 500
        100 /var/lib/dpkg/status
"""


def test_a_version_table_has_what_is_newer_with_its_sources():
    """Versions above the installed one, newest first, and where each is from."""
    table = parse_policy(POLICY)["rf-secure"]

    assert "2.0-1" == table.candidate
    assert (
        Offer("2.0-1", 500, None, ("file:/repo stable/main amd64 Packages",)),
        Offer(
            "1.0-1+deb12u1",
            500,
            None,
            ("file:/repo stable-security/main amd64 Packages", "file:/repo stable/main amd64 Packages"),
        ),
    ) == table.newer


def test_a_version_table_finds_every_version_by_its_exact_text():
    """Newer, installed and older ones are found with their priority; part of a version is none."""
    table = parse_policy(POLICY)["rf-secure"]

    found = {version: table.find(version) for version in ("2.0-1", "1.0-1", "0.9-1", "2.0", "2.0-1*")}
    assert {"2.0-1": 500, "1.0-1": 500, "0.9-1": -1, "2.0": None, "2.0-1*": None} == {
        version: offer and offer.priority for version, offer in found.items()
    }


def test_a_foreign_package_without_news_has_an_empty_table():
    """The architecture is part of the label, and nothing newer means no offer."""
    table = parse_policy(POLICY)["libc6:i386"]

    assert ((), None) == (table.newer, table.best())


@pytest.mark.parametrize("candidate, priority", [("2.0", "500"), ("1.0", "1")])
def test_a_phased_version_is_found_in_old_and_new_releases_of_apt(candidate, priority):
    """Newer apt takes a phased version out of the choice by its priority; older apt keeps it back later."""
    table = parse_policy(POLICY.format(candidate=candidate, priority=priority))["rf-phased"]

    assert Offer("2.0", int(priority), 10, ("file:/repo stable/main amd64 Packages",)) == table.best()


def test_a_version_that_apt_would_not_choose_is_no_offer():
    """A newer version with a low priority (a pin, backports) is not what the machine lacks."""
    text = POLICY.replace("Candidate: 2.0-1", "Candidate: 1.0-1")

    assert parse_policy(text)["rf-secure"].best() is None


def test_an_upgrade_includes_the_versions_it_skips():
    """Up to the newest there are two, up to the security fix one, and none up to an unknown version."""
    table = parse_policy(POLICY)["rf-secure"]

    assert [2, 1, 0] == [len(table.up_to(version)) for version in ("2.0-1", "1.0-1+deb12u1", "0.5")]


@pytest.mark.parametrize(
    "expected, origin",
    [
        (True, "Debian-Security:12/stable-security"),
        (True, "Debian:12.9/stable, Debian-Security:12/stable-security"),
        (True, "Debian-Security:10/oldoldstable"),
        (True, "Ubuntu:22.04/jammy-updates, Ubuntu:22.04/jammy-security"),
        (True, "UbuntuESMApps:22.04/jammy-apps-security"),
        (False, "Debian:12.9/stable"),
        (False, "Ubuntu:22.04/jammy-updates"),
        (False, "Security Onion:2/main"),
        (False, "localhost"),
        (False, ""),
    ],
)
def test_a_security_repository_is_known_by_label_or_suite(expected, origin):
    """Debian's label and the suites that end in -security, and no other word that looks like it."""
    assert expected is is_security(origin)


def test_targets_give_sources_their_origin():
    """A line of a version table leads to label, version and suite as apt prints them in its plans."""
    fields = [
        ("https://deb.example", "bookworm/updates", "Debian-Security", "12", "stable", "bookworm"),
        ("https://deb.example", "bookworm", "Debian", "12.9", "stable", "bookworm"),
        ("https://node.example", "nodistro", "Node Source", "$(VERSION)", "$(SUITE)", "nodistro"),
        ("file:/flat", "./", "$(LABEL)", "$(VERSION)", "$(SUITE)", "$(CODENAME)"),
    ]
    targets = parse_targets("".join(FIELD.join(line) + "\n" for line in fields) + "half a line\n")
    repositories = Repositories({(site, release): origin for site, release, origin in targets})

    assert [
        "Debian-Security:12/stable",
        "Debian:12.9/stable",
        "Node Source:nodistro",
        "file:/flat",
        "/var/lib/dpkg/status",
    ] == [
        repositories.origin(source)
        for source in (
            "https://deb.example bookworm/updates/main/contrib amd64 Packages",
            "https://deb.example bookworm/main amd64 Packages",
            "https://node.example nodistro/main amd64 Packages",
            "file:/flat ./ Packages",
            "/var/lib/dpkg/status",
        )
    ]


def test_sizes_are_read_by_name_version_and_architecture():
    """Each stanza gives one size; a stanza without a good one gives none."""
    text = (
        "Package: a\nVersion: 1\nArchitecture: amd64\nDescription: x\n Size: 5\nSize: 70936\n\n"
        "Package: b\nVersion: 1\nArchitecture: all\nSize: many\n\n"
        "Package: c\nVersion: 1\nArchitecture: all\nSize: " + "9" * 5000 + "\n\n"
        "Package: d\nArchitecture: all\n"
    )

    assert {("a", "1", "amd64"): 70936} == parse_sizes(text)


def test_complaints_are_read_once_each():
    """Errors and warnings apart, without repetition."""
    text = "W: one\nE: broken\nN: note\nW: one\nW: two\nElse\n"

    assert (["one", "two"], ["broken"]) == (messages(text, "W"), messages(text, "E"))


def test_a_configuration_is_read_as_a_shell_would():
    """Quotes go, and spaces and quotes within them stay."""
    assert {"A": "amd64", "B": "", "C": "a 'b c"} == parse_shell("A='amd64'\nB=''\nC='a '\\''b c'\n")


@pytest.mark.parametrize("name", ["bash", "libc6:i386", "g++", "libstdc++6", "0ad", "a-", "python3.11-minimal"])
def test_names_of_packages_are_names(name):
    """Everything that Debian calls a package."""
    assert is_name(name)


@given(st.text(alphabet=st.sampled_from("a-=/*?:+. \n_~^\x1f\x1e"), max_size=8))
def test_a_name_is_never_an_option_a_path_or_a_pattern(text):
    """What is handed to apt as a name begins with a letter and has no sign that means something to apt."""
    assert not is_name(text) or re.fullmatch(r"a[a.+:-]*", text)


ANYTHING = st.text(
    alphabet=st.sampled_from("aZ1 .:-+*[]()%'\"\\\n\t\x1e\x1f\x00\u2028\ufffdäInst RemvSizeW$"), max_size=80
)


@pytest.mark.parametrize(
    "parse",
    [parse_inventory, parse_policy, parse_sizes, parse_targets, parse_simulation, parse_shell],
    ids=lambda parse: parse.__name__,
)
@given(text=ANYTHING)
def test_no_text_breaks_a_parser(parse, text):
    """For any text a parser answers, or refuses with `ScanError`."""
    for prefix in ("", "Inst ", "a:\n  Candidate: ", "a:\n     ", "Size: ", f"a{FIELD}"):
        try:
            parse(prefix + text)
        except ScanError:
            continue


def test_the_formats_ask_for_what_the_parsers_read():
    """A change of a format is a change of its parser."""
    assert 7 == INVENTORY_FORMAT.count("${") == len(apt_output._INVENTORY_FIELDS)
    assert 6 == TARGETS_FORMAT.count("$(")
