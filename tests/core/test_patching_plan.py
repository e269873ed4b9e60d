"""What an update would change: names that may reach a command line, the hash people agree to, what is routine."""

import hashlib
import itertools
import json

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core import codec
from redflag_core.errors import CommandRefusedError, MalformedError, NeedsApprovalError, PlanDriftedError
from redflag_core.patching import (
    ApprovalReason,
    Change,
    ChangeKind,
    PackageTarget,
    Transaction,
    beyond_routine,
    check_apply,
    check_name,
)
from redflag_core.patching.plan import MAX_CHANGES, MAX_TARGETS
from redflag_core.scanning import MAX_NAME, PackageKey

OPENSSL = PackageKey("openssl", "amd64")
UPGRADE = Change(name="openssl", arch="amd64", before="3.0.1", after="3.0.2")
NEW = Change(name="libnew", arch="all", after="1.0")
REMOVAL = Change(name="old", arch="all", before="1.0")
DOWNGRADE = Change(name="older", arch="all", before="2.0", after="1.0", downgrade=True)


def transaction(*changes: Change, requested: tuple[PackageKey, ...] = (OPENSSL,), **fields) -> Transaction:
    """A transaction for openssl."""
    return Transaction(manager="apt", requested=requested, changes=changes or (UPGRADE,), **fields)


def target(**fields: str) -> PackageTarget:
    """A target with some fields replaced."""
    return PackageTarget(**{"name": "openssl", "arch": "amd64", "installed": "1", "available": "2", **fields})


# --- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["bash", "0ad", "g++", "libstdc++6", "python3.11-minimal", "x", "Microsoft.PowerToys", "linux-image-6.1.0-40"],
)
def test_names_of_packages_pass_as_they_are(name):
    """What the managers call a package is not changed by a letter."""
    assert name == check_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "bash-",
        "-bash",
        "-oAPT::Update::Pre-Invoke::=id",
        "--force-yes",
        "bash=5.2",
        "bash/stable",
        "ba*",
        "bas?",
        "b[a]sh",
        "^bash$",
        "bash,dash",
        "bash dash",
        "bash\tdash",
        "bash\n",
        "bash\x00",
        "bäsh",
        "@core",
        "~nbash",
        ".hidden",
        "+bash",
        "./bash.deb",
        "/tmp/bash.deb",
        "..",
        "bash.deb",
        "BASH.DEB",
        "bash.ddeb",
        "bash.udeb",
        "bash.rpm",
        "setup.msi",
        "setup.exe",
        "http://example.invalid/bash",
        "$(id)",
        "`id`",
        "bash;id",
        "bash|id",
        "bash&",
        "bash>x",
        "'bash'",
        '"bash"',
        "a\\b",
        "x" * 256,
    ],
)
def test_a_name_that_a_manager_would_take_for_something_else_is_refused(name):
    """Removals, options, versions, patterns, paths, files and shells: none is a name, in a target either."""
    with pytest.raises(MalformedError):
        check_name(name)
    with pytest.raises(ValueError, match="name of a package"):
        target(name=name)


@given(st.text(max_size=12))
def test_whatever_passes_is_a_plain_word(text):
    """For any text: refused, or a word that starts with a letter or digit and ends without a minus."""
    try:
        name = check_name(text)
    except MalformedError:
        return
    assert (name[0].isascii(), name[0].isalnum(), name[-1]) == (True, True, name[-1].replace("-", "minus"))
    assert set() == set(name) & set(" \t\n=/*?,;|&$`'\"\\<>()[]{}@^!#%")


def test_a_target_from_outside_is_refused_as_malformed():
    """Parsing raises what every caller expects of bytes from outside, with the reason."""
    wire = codec.dump(target()).replace(b"openssl", b"openssl-")

    with pytest.raises(MalformedError):
        codec.parse(PackageTarget, wire, max_bytes=1_000)


@pytest.mark.parametrize(
    "fields",
    [
        {"arch": ""},
        {"arch": "-x"},
        {"arch": "amd 64"},
        {"arch": "a" * 33},
        {"installed": ""},
        {"installed": "1\n2"},
        {"installed": "1" * (MAX_NAME + 1)},
        {"available": ""},
        {"available": "1\x00"},
        {"available": "1" * (MAX_NAME + 1)},
    ],
)
def test_a_target_has_a_line_in_each_field(fields):
    """Architectures are words, versions are lines with a bound."""
    with pytest.raises(ValueError, match=next(iter(fields))):
        target(**fields)


def test_a_target_travels_and_knows_its_key():
    """It is the same after encoding, and is identified by name and architecture."""
    order = target()

    assert order == codec.parse(PackageTarget, codec.dump(order), max_bytes=1_000)
    assert OPENSSL == order.key


# --- changes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, kind",
    [
        (UPGRADE, ChangeKind.UPGRADE),
        (NEW, ChangeKind.INSTALL),
        (REMOVAL, ChangeKind.REMOVE),
        (DOWNGRADE, ChangeKind.DOWNGRADE),
        # Only the manager knows its order of versions: text is not compared.
        (attrs.evolve(UPGRADE, after="3.0.0"), ChangeKind.UPGRADE),
    ],
)
def test_the_kind_follows_from_the_versions(change, kind):
    """What was there and what will be say what happens."""
    assert kind is change.kind


@pytest.mark.parametrize("versions", [{}, {"before": "1", "after": "1"}])
def test_a_change_changes_something(versions):
    """The same before and after is none."""
    with pytest.raises(ValueError, match="no change"):
        Change(name="x", arch="all", **versions)


def test_the_wording_of_an_origin_is_no_difference():
    """Two changes that differ by it alone are the same change."""
    assert attrs.evolve(UPGRADE, origin="Debian:12/stable") == attrs.evolve(UPGRADE, origin="Debian:12.9/stable")


# --- transactions -----------------------------------------------------------------------------------------------


def test_extra_is_what_nobody_asked_for_in_order():
    """The requested package is not among it, its other architecture is."""
    foreign = attrs.evolve(UPGRADE, arch="i386")

    found = transaction(UPGRADE, REMOVAL, NEW, foreign)

    assert (NEW, REMOVAL, foreign) == found.extra
    assert () == transaction().extra


def test_the_hash_is_of_a_form_that_others_can_compute():
    """SHA-256 over compact JSON with sorted keys: it can be checked without this library."""
    found = transaction(UPGRADE, NEW)
    document = {
        "changes": [
            ["libnew", "all", None, "1.0", False, False, True],
            ["openssl", "amd64", "3.0.1", "3.0.2", False, False, True],
        ],
        "manager": "apt",
        "requested": [["openssl", "amd64"]],
        "v": 1,
    }

    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == found.plan_hash


@pytest.mark.parametrize("changes", [*itertools.permutations((UPGRADE, NEW, REMOVAL))])
def test_the_order_in_which_a_manager_speaks_does_not_count(changes):
    """The same changes in any order are the same plan."""
    assert transaction(UPGRADE, NEW, REMOVAL).plan_hash == transaction(*changes).plan_hash


def test_the_order_of_the_request_does_not_count():
    """What was asked for is a set."""
    keys = (OPENSSL, PackageKey("libnew", "all"))

    hashes = {transaction(UPGRADE, NEW, requested=asked).plan_hash for asked in (keys, keys[::-1])}

    assert 1 == len(hashes)


def test_sizes_and_origins_are_not_part_of_the_hash():
    """A mirror that packs differently or a new point release changes no plan."""
    other = transaction(attrs.evolve(UPGRADE, origin="Debian"), download_size=5, disk_size=-5)

    assert transaction().plan_hash == other.plan_hash


@pytest.mark.parametrize(
    "field, value",
    [
        ("name", "openssl1"),
        ("arch", "arm64"),
        ("before", "3.0.0"),
        ("before", None),
        ("after", "3.0.3"),
        ("after", None),
        ("downgrade", True),
        ("held", True),
        ("authenticated", False),
    ],
)
def test_everything_that_would_be_done_is_part_of_the_hash(field, value):
    """One version, one mark, one name different, and people did not agree to it."""
    assert transaction().plan_hash != transaction(attrs.evolve(UPGRADE, **{field: value})).plan_hash


def test_one_change_more_and_another_request_are_other_plans():
    """Something that comes along, and a package that was asked for instead of coming along, are seen."""
    both = (OPENSSL, PackageKey("libnew", "all"))
    hashes = {
        transaction().plan_hash,
        transaction(UPGRADE, NEW).plan_hash,
        transaction(UPGRADE, NEW, requested=both).plan_hash,
        attrs.evolve(transaction(), manager="dnf").plan_hash,
    }

    assert 4 == len(hashes)


def test_a_version_of_none_is_not_the_word_none():
    """Absence has a form of its own in the hash."""
    gone, word = (attrs.evolve(UPGRADE, after=after) for after in (None, "None"))

    assert transaction(gone).plan_hash != transaction(word).plan_hash


VERSIONS = st.sampled_from(["1", "2", None])
CHANGES = st.builds(
    lambda name, arch, pair, flags: Change(
        name=name,
        arch=arch,
        before=pair[0],
        after=pair[1],
        downgrade=flags[0],
        held=flags[1],
        authenticated=flags[2],
    ),
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from(["all", "amd64"]),
    st.tuples(VERSIONS, VERSIONS).filter(lambda pair: pair[0] != pair[1]),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
TRANSACTIONS = st.builds(
    lambda changes: transaction(*changes),
    st.lists(CHANGES, min_size=1, max_size=4, unique_by=lambda change: change.key),
)


@given(TRANSACTIONS, TRANSACTIONS)
def test_equal_hashes_are_equal_plans(one, two):
    """For any two plans: the same hash exactly when they do the same."""
    assert (sorted(one.changes, key=lambda c: c.key) == sorted(two.changes, key=lambda c: c.key)) == (
        one.plan_hash == two.plan_hash
    )


@given(TRANSACTIONS)
def test_a_transaction_travels_with_its_hash(found):
    """After encoding and parsing the same plan has the same hash."""
    again = codec.parse(Transaction, codec.dump(found), max_bytes=10_000)

    assert (found, found.plan_hash) == (again, again.plan_hash)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"requested": ()}, "requested"),
        ({"requested": (OPENSSL, OPENSSL)}, "named once"),
        ({"requested": tuple(PackageKey(f"p{i}", "all") for i in range(MAX_TARGETS + 1))}, "requested"),
        ({"changes": (UPGRADE, attrs.evolve(UPGRADE, after="4"))}, "named once"),
        ({"changes": tuple(attrs.evolve(NEW, name=f"p{i}") for i in range(MAX_CHANGES + 1))}, "changes"),
        ({"download_size": -1}, "download_size"),
        ({"manager": "APT"}, "manager"),
        ({"manager": ""}, "manager"),
    ],
)
def test_a_transaction_has_bounds(fields, words):
    """Each package once, no more than can be ordered and read."""
    with pytest.raises(ValueError, match=words):
        Transaction(**{"manager": "apt", "requested": (OPENSSL,), "changes": (UPGRADE,), **fields})


def test_the_largest_transaction_is_one():
    """The bounds themselves are allowed, and such a plan fits into a signed statement."""
    requested = tuple(PackageKey(f"package-{i}", "all") for i in range(MAX_TARGETS))
    changes = tuple(
        Change(
            name=f"package-{i}", arch="all", before="1:1.0-1+deb12u1", after="1:1.0-1+deb12u2", origin="Debian:12"
        )
        for i in range(MAX_CHANGES)
    )

    found = Transaction(manager="apt", requested=requested, changes=changes)

    assert MAX_CHANGES - MAX_TARGETS == len(found.extra)
    assert len(codec.dump(found)) < 512 * 1024


# --- what is routine --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, reasons",
    [
        ((UPGRADE,), set()),
        ((UPGRADE, NEW), set()),
        ((UPGRADE, REMOVAL), {"removal"}),
        ((attrs.evolve(UPGRADE, after=None),), {"removal"}),
        ((UPGRADE, DOWNGRADE), {"downgrade"}),
        ((attrs.evolve(UPGRADE, downgrade=True),), {"downgrade"}),
        ((attrs.evolve(UPGRADE, held=True),), {"held"}),
        ((UPGRADE, attrs.evolve(NEW, held=True)), {"held"}),
        ((attrs.evolve(UPGRADE, authenticated=False),), {"unauthenticated"}),
        ((UPGRADE, attrs.evolve(NEW, authenticated=False)), {"unauthenticated"}),
        ((attrs.evolve(UPGRADE, before=None),), {"not_installed"}),
        (
            (UPGRADE, REMOVAL, attrs.evolve(DOWNGRADE, held=True), attrs.evolve(NEW, authenticated=False)),
            {"removal", "downgrade", "held", "unauthenticated"},
        ),
    ],
)
def test_routine_is_newer_versions_of_what_is_installed_and_what_they_need(changes, reasons):
    """Everything else has its reason, wherever in the transaction it is."""
    assert reasons == beyond_routine(transaction(*changes))


@given(TRANSACTIONS)
def test_a_routine_transaction_only_adds_or_renews(found):
    """For any plan without a reason: all authenticated, nothing held, nothing goes or gets older."""
    routine = not beyond_routine(found)

    plain = all(
        change.authenticated
        and not change.held
        and change.kind in (ChangeKind.UPGRADE, ChangeKind.INSTALL)
        and not (change.kind is ChangeKind.INSTALL and change.key in found.requested)
        for change in found.changes
    )
    assert plain == routine


def test_every_reason_can_occur():
    """No reason is only a word."""
    everything = transaction(
        attrs.evolve(UPGRADE, before=None),
        REMOVAL,
        DOWNGRADE,
        attrs.evolve(NEW, held=True, authenticated=False),
    )

    assert set(ApprovalReason) == beyond_routine(everything)


# --- whether it may be carried out ------------------------------------------------------------------------------


def test_what_was_planned_and_is_routine_may_be_carried_out():
    """The transaction itself is what goes on."""
    found = transaction(UPGRADE, NEW)

    assert found is check_apply(found, plan_hash=found.plan_hash)
    assert found is check_apply(found, plan_hash=found.plan_hash, approved=True)


@pytest.mark.parametrize("now", [None, transaction(UPGRADE, NEW), transaction(UPGRADE, REMOVAL)])
def test_another_transaction_than_the_planned_one_is_refused(now):
    """Nothing, more, or something worse: it has to be planned again, whatever an approval would say."""
    with pytest.raises(PlanDriftedError):
        check_apply(now, plan_hash=transaction().plan_hash)


def test_what_is_beyond_routine_needs_an_approval_though_it_was_planned():
    """Every reason is named, in one order."""
    found = transaction(UPGRADE, REMOVAL, attrs.evolve(DOWNGRADE, held=True))

    with pytest.raises(NeedsApprovalError, match="downgrade, held, removal"):
        check_apply(found, plan_hash=found.plan_hash)


@pytest.mark.parametrize("change", [REMOVAL, DOWNGRADE, attrs.evolve(UPGRADE, before=None)], ids=lambda c: c.kind)
def test_with_an_approval_a_removal_a_downgrade_or_a_new_package_may_be_carried_out(change):
    """Exactly what was planned, as ever."""
    found = transaction(UPGRADE, change) if change.key != UPGRADE.key else transaction(change)

    assert found is check_apply(found, plan_hash=found.plan_hash, approved=True)
    with pytest.raises(PlanDriftedError):
        check_apply(found, plan_hash="0" * 64, approved=True)


@pytest.mark.parametrize(
    "standing, word", [({"held": True}, "held"), ({"authenticated": False}, "unauthenticated")]
)
def test_no_approval_allows_a_held_or_an_unauthenticated_package(standing, word):
    """The sentence says where it can be changed: on the machine."""
    found = transaction(attrs.evolve(UPGRADE, **standing), REMOVAL)

    with pytest.raises(CommandRefusedError, match=f"only a change on the machine itself: {word}$"):
        check_apply(found, plan_hash=found.plan_hash, approved=True)
    with pytest.raises(NeedsApprovalError, match=f"removal.*{word}|{word}.*removal"):
        check_apply(found, plan_hash=found.plan_hash)
