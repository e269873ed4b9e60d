"""
Inventories: one hash for a set of packages, and the difference between two sets.

A report travels as a delta against the last inventory that the server accepted, and the hash of the result proves
that both sides now hold the same. A mismatch is answered with "send everything".

The hash is the sum, modulo 2**256, of one SHA-256 for each package. So it does not depend on the order, and the
receiver of a delta gets from the old hash to the new one by reading only the packages that changed. It finds drift
between two honest parties; it is no signature. Who sent a report is proven by the request's signature.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import attrs
from attrs import validators

from redflag_core.encoding import JsonValue, dump_json, hex_decode
from redflag_core.errors import MalformedError, RedFlagError
from redflag_core.scanning.model import (
    MAX_PACKAGES,
    Package,
    PackageKey,
    ScanStatus,
    index_packages,
)

_HASH_SIZE: Final = 32


class ResyncNeededError(RedFlagError):
    """A delta does not lead from the inventory held here to the one announced: the whole inventory is wanted."""

    code = "resync_needed"


def package_hash(package: Package) -> int:
    """SHA-256 over all fields of *package*, as a number."""
    fields = attrs.astuple(package, recurse=False)
    return int.from_bytes(hashlib.sha256(dump_json(fields)).digest(), "big")


def inventory_hash(packages: Iterable[Package]) -> str:
    """
    Hash of a set of packages, in any order, 64 hex digits. That of an empty set is all zeros.

    Raises:
        MalformedError: Two packages have the same key.
    """
    return _hex(sum(map(package_hash, _index(packages).values())))


def updated_hash(before: str, *, gone: Iterable[Package], come: Iterable[Package]) -> str:
    """
    Hash after a change, from the hash before it and only the packages that changed.

    Args:
        before: Hash of the old inventory.
        gone: What was removed, and what was replaced, as it was.
        come: What was added, and what was replaced, as it is.
    """
    number = int.from_bytes(hex_decode(before, _HASH_SIZE), "big")
    return _hex(number - sum(map(package_hash, gone)) + sum(map(package_hash, come)))


def content_digest(
    *,
    status: ScanStatus,
    error: str | None,
    warnings: Sequence[str],
    facts: Mapping[str, JsonValue],
    inventory: str | None,
) -> str:
    """
    SHA-256 over what a report says, without when it said it, 64 hex digits.

    Equal means that there is nothing to tell. An inventory hash alone does not say that: warnings and facts change
    too, and scanners that report only facts always have the same, empty inventory.

    Args:
        status: Whether the scan succeeded.
        error: Why it did not.
        warnings: What it could not do.
        facts: What else it saw.
        inventory: Its inventory hash; None of a failed scan.
    """
    said = [status, error, list(warnings), dict(facts), inventory]
    return hashlib.sha256(dump_json(said)).hexdigest()


def _hex(number: int) -> str:
    return f"{number % 2 ** (8 * _HASH_SIZE):064x}"


def _index(packages: Iterable[Package]) -> dict[PackageKey, Package]:
    try:
        return index_packages(packages)
    except ValueError as error:
        raise MalformedError(str(error)) from None


@attrs.frozen
class PackageDelta:
    """
    How one inventory becomes another.

    Attributes:
        upserts: Packages that are new or changed, in full.
        removed: Keys of packages that are gone.
    """

    upserts: tuple[Package, ...] = attrs.field(default=(), validator=validators.max_len(MAX_PACKAGES))
    removed: tuple[PackageKey, ...] = attrs.field(default=(), validator=validators.max_len(MAX_PACKAGES))

    def __attrs_post_init__(self) -> None:
        keys = [package.key for package in self.upserts] + list(self.removed)
        if len(set(keys)) != len(keys):
            raise ValueError("a delta names a package twice")

    def __bool__(self) -> bool:
        return bool(self.upserts or self.removed)


def delta(before: Iterable[Package], after: Iterable[Package]) -> PackageDelta:
    """
    The smallest change that turns *before* into *after*, in the order of the keys.

    Raises:
        MalformedError: One of them has two packages with the same key.
    """
    old, new = _index(before), _index(after)
    return PackageDelta(
        upserts=tuple(new[key] for key in sorted(new) if old.get(key) != new[key]),
        removed=tuple(sorted(old.keys() - new.keys())),
    )


def apply_delta(before: Iterable[Package], change: PackageDelta) -> tuple[Package, ...]:
    """
    The inventory after *change*, in the order of the keys.

    Raises:
        MalformedError: *before* has two packages with the same key.
        ResyncNeededError: *change* removes what is not there, so it was made against something else.
    """
    packages = _index(before)
    for key in change.removed:
        if packages.pop(key, None) is None:
            raise ResyncNeededError(f"{key.name} is to be removed but is not there")
    packages.update((package.key, package) for package in change.upserts)
    return tuple(packages[key] for key in sorted(packages))


def accept_delta(
    before: Iterable[Package], change: PackageDelta, *, base: str, announced: str
) -> tuple[Package, ...]:
    """
    Apply *change* only if it leads from the inventory held here to the one that its sender has.

    Args:
        before: The inventory held here.
        change: Untrusted, but of this shape.
        base: Hash of the inventory that the sender made it against. Untrusted.
        announced: Hash of the inventory that the sender has now. Untrusted.

    Returns:
        The inventory after it, in the order of the keys; its hash is *announced*.

    Raises:
        MalformedError: *before* has two packages with the same key.
        ResyncNeededError: One of the hashes is another one here: ask for the whole inventory, and keep *before*.
    """
    held = tuple(before)
    if inventory_hash(held) != base:
        raise ResyncNeededError("the change was made against another inventory than the one held here")
    after = apply_delta(held, change)
    if inventory_hash(after) != announced:
        raise ResyncNeededError("the change does not lead to the inventory announced")
    return after
