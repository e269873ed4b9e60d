"""Laws of inventory hashes and deltas."""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core import codec
from redflag_core.errors import MalformedError
from redflag_core.scanning import (
    Package,
    PackageDelta,
    PackageKey,
    PackageState,
    ResyncNeededError,
    ScanStatus,
    Severity,
    apply_delta,
    delta,
    inventory_hash,
    package_hash,
    updated_hash,
)
from redflag_core.scanning.inventory import accept_delta, content_digest

BASH = Package(name="bash", arch="amd64", installed="5.2-1", state=PackageState.CURRENT)
NEWER = attrs.evolve(BASH, available="5.3-1", state=PackageState.AVAILABLE)

packages = st.builds(
    Package,
    name=st.sampled_from("abcd"),
    arch=st.sampled_from(["all", "amd64"]),
    installed=st.sampled_from([None, "1", "2"]),
    state=st.sampled_from([PackageState.CURRENT, PackageState.HELD]),
    automatic=st.booleans(),
)
inventories = st.lists(packages, unique_by=lambda package: package.key).map(tuple)


@given(inventories, inventories)
def test_a_delta_leads_from_one_inventory_to_the_other(before, after):
    """Applying the difference between two inventories to the first gives the second."""
    assert set(after) == set(apply_delta(before, delta(before, after)))


@given(inventories, inventories)
def test_a_delta_is_as_small_as_can_be(before, after):
    """Only what differs travels, and nothing when nothing differs."""
    change = delta(before, after)

    assert set(after) - set(before) == set(change.upserts)
    assert {p.key for p in before} - {p.key for p in after} == set(change.removed)
    assert (set(before) != set(after)) == bool(change)


@given(inventories, st.randoms(use_true_random=False))
def test_the_order_of_an_inventory_does_not_matter(inventory, random):
    """Hash and delta see a set."""
    shuffled = list(inventory)
    random.shuffle(shuffled)

    assert inventory_hash(inventory) == inventory_hash(shuffled)
    assert not delta(inventory, shuffled)


@given(inventories, inventories)
def test_inventories_have_the_same_hash_exactly_when_they_are_equal(first, second):
    """The hash tells any two inventories apart."""
    assert (set(first) == set(second)) == (inventory_hash(first) == inventory_hash(second))


@given(inventories, inventories)
def test_the_hash_after_a_delta_needs_only_what_changed(before, after):
    """A receiver that reads only the changed packages finds the hash of the whole."""
    change = delta(before, after)
    touched = {package.key for package in change.upserts} | set(change.removed)
    gone = [package for package in before if package.key in touched]

    assert inventory_hash(after) == updated_hash(inventory_hash(before), gone=gone, come=change.upserts)


@given(inventories, inventories)
def test_a_delta_survives_the_codec(before, after):
    """What is sent is what is applied."""
    change = delta(before, after)

    assert change == codec.parse(PackageDelta, codec.dump(change), max_bytes=100_000)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "dash"},
        {"arch": "i386"},
        {"installed": "5.2-2"},
        {"available": "5.3-1"},
        {"state": PackageState.HELD},
        {"severity": Severity.LOW},
        {"reason": "pinned"},
        {"security": True},
        {"origin": "Debian"},
        {"source": "bash"},
        {"source_version": "5.2-1"},
        {"download_size": 1},
        {"automatic": True},
        {"cves": ("CVE-2025-12345",)},
    ],
)
def test_every_field_is_part_of_the_hash(changes):
    """No change of a package goes unnoticed."""
    assert package_hash(BASH) != package_hash(attrs.evolve(BASH, **changes))


def test_the_hash_is_fixed_for_ever():
    """Agents of all releases must agree with the server: these values do not change within a protocol version."""
    assert "0" * 64 == inventory_hash(())
    assert "14b114bd34eeca6c19cc9c34f0017f24ea42136459745dbd1e085a91789d82c9" == inventory_hash((BASH,))


def test_a_key_twice_is_refused_everywhere():
    """An inventory that names a package twice has no meaning."""
    twice = (BASH, NEWER)

    for attempt in (
        lambda: inventory_hash(twice),
        lambda: delta(twice, ()),
        lambda: delta((), twice),
        lambda: apply_delta(twice, PackageDelta()),
    ):
        with pytest.raises(MalformedError, match="twice"):
            attempt()


@pytest.mark.parametrize(
    "fields",
    [
        {"upserts": (BASH, NEWER)},
        {"removed": (BASH.key, BASH.key)},
        {"upserts": (BASH,), "removed": (BASH.key,)},
    ],
)
def test_a_delta_that_names_a_package_twice_is_refused(fields):
    """What happens to a package must not depend on the order of a delta."""
    with pytest.raises(ValueError, match="twice"):
        PackageDelta(**fields)


def test_a_delta_against_something_else_asks_for_everything():
    """Removing what is not there means that the sender's base is another one."""
    with pytest.raises(ResyncNeededError, match="dash"):
        apply_delta((BASH,), PackageDelta(removed=(PackageKey("dash", "amd64"),)))


def test_a_hash_from_outside_must_be_a_hash():
    """A hash that is no hash is malformed, not an accident."""
    with pytest.raises(MalformedError):
        updated_hash("not a hash", gone=(), come=())


@given(inventories, inventories)
def test_a_delta_with_its_hashes_is_accepted(before, after):
    """Both sides then hold the same, and the receiver has proved it."""
    accepted = accept_delta(
        before, delta(before, after), base=inventory_hash(before), announced=inventory_hash(after)
    )

    assert inventory_hash(after) == inventory_hash(accepted)


@given(inventories, inventories, inventories)
def test_a_delta_against_another_inventory_is_never_accepted(held, before, after):
    """Whatever it changes, also when the result would be right by chance."""
    change, hashes = delta(before, after), {"base": inventory_hash(before), "announced": inventory_hash(after)}
    if set(held) == set(before):
        assert set(after) == set(accept_delta(held, change, **hashes))
    else:
        with pytest.raises(ResyncNeededError):
            accept_delta(held, change, **hashes)


@given(inventories, inventories, inventories)
def test_a_delta_that_leads_elsewhere_is_never_accepted(before, after, announced):
    """A package that was lost on the way is noticed."""
    change = delta(before, after)
    hashes = {"base": inventory_hash(before), "announced": inventory_hash(announced)}
    if set(after) == set(announced):
        assert set(after) == set(accept_delta(before, change, **hashes))
    else:
        with pytest.raises(ResyncNeededError):
            accept_delta(before, change, **hashes)


def test_a_delta_of_a_package_that_is_not_there_is_not_accepted():
    """With the right hashes for what it claims, it still removes nothing that is here."""
    change = PackageDelta(removed=(PackageKey("dash", "amd64"),))
    same = inventory_hash((BASH,))

    with pytest.raises(ResyncNeededError, match="dash"):
        accept_delta((BASH,), change, base=same, announced=same)


def test_an_inventory_held_twice_is_malformed():
    """What is held here must mean something before it is compared."""
    with pytest.raises(MalformedError, match="twice"):
        accept_delta((BASH, NEWER), PackageDelta(), base="0" * 64, announced="0" * 64)


SAID = {"status": ScanStatus.OK, "error": None, "warnings": ("w",), "facts": {"a": 1}, "inventory": "0" * 64}


@pytest.mark.parametrize(
    "changes",
    [
        {"status": ScanStatus.FAILED},
        {"error": "w"},
        {"warnings": ()},
        {"warnings": ("w", "w")},
        {"facts": {}},
        {"facts": {"a": "1"}},
        {"inventory": None},
        {"inventory": "1" * 64},
    ],
    ids=str,
)
def test_whatever_a_report_says_is_part_of_its_digest(changes):
    """A report that says something new is never taken for one that was already told."""
    assert content_digest(**SAID) == content_digest(**SAID)
    assert content_digest(**SAID) != content_digest(**{**SAID, **changes})
