"""
Merkle trees over byte leaves (RFC 9162, section 2.1): roots, inclusion proofs and consistency proofs.

A proof is one list of hashes, and which part of the tree each of them stands for follows from the sizes alone. So
one function names these parts (`inclusion_ranges`, `consistency_ranges`), the prover hashes them and the verifier
walks along them: a proof has exactly one length and one order, and nothing in it is left unread.

Rule of the file: positions and sizes in a proof are untrusted, and so is every hash. The root that a proof is
checked against is what the caller trusts.
"""

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias

import attrs

from redflag_core.encoding import MAX_INTEGER
from redflag_core.errors import ProofError

HASH_SIZE: Final = 32
"""Bytes of SHA-256."""

EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
"""Root of the tree without leaves."""

MAX_SIZE: Final = MAX_INTEGER
"""Most leaves of a tree: the largest size that JSON keeps exact everywhere. A proof has at most 54 hashes then."""

Range: TypeAlias = tuple[int, int]
"""Leaves from the first number up to, but without, the second."""

Proof: TypeAlias = tuple[bytes, ...]


def leaf_hash(leaf: bytes) -> bytes:
    """Hash of a leaf: SHA-256 over 0x00 and its bytes."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of the node over two others: SHA-256 over 0x01 and both, so that no node can be taken for a leaf."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def subtrees(part: Range) -> tuple[tuple[int, int], ...]:
    """
    The complete subtrees that *part* of a tree consists of, largest first.

    Args:
        part: All leaves of a tree, or a range of a proof.

    Returns:
        Pairs of (level, index): the subtree over 2 ** level leaves that begins at leaf index * 2 ** level. Whoever
        stores the hashes of these can answer every question with a few of them.
    """
    begin, end = part
    size = end - begin
    found = []
    for level in reversed(range(size.bit_length())):
        if size >> level & 1:
            found.append((level, begin >> level))
            begin += 1 << level
    return tuple(found)


def fold(hashes: Sequence[bytes]) -> bytes:
    """The hash over the subtrees of one range, largest first (see `subtrees`)."""
    if not hashes:
        return EMPTY_ROOT
    folded = hashes[-1]
    for left in reversed(hashes[:-1]):
        folded = node_hash(left, folded)
    return folded


def inclusion_ranges(index: int, size: int) -> tuple[Range, ...]:
    """
    The ranges whose hashes prove that leaf *index* is in the tree of *size* leaves, in the order of the proof.

    Args:
        index: At least 0, below *size*.
        size: Leaves of the tree.
    """
    begin, end, ranges = 0, size, list[Range]()
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((begin, middle))
            begin = middle
    return tuple(reversed(ranges))


def consistency_ranges(first: int, size: int) -> tuple[Range, ...]:
    """
    The ranges whose hashes prove that the tree of *first* leaves is the beginning of the one of *size* leaves.

    Args:
        first: At least 0, at most *size*. Nothing needs to be proven of an empty tree.
        size: Leaves of the larger tree.

    Returns:
        In the order of the proof. The first range lies within the smaller tree, unless that is a subtree of the
        larger one: then its root is known already, and left out.
    """
    begin, end, ranges = 0, size if first else 0, list[Range]()
    while first < end:
        middle = begin + _split(end - begin)
        if first <= middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((begin, middle))
            begin = middle
    if begin:
        ranges.append((begin, end))
    return tuple(reversed(ranges))


def verify_inclusion(leaf: bytes, *, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """
    Verify that *leaf* is in a tree.

    Args:
        leaf: Its bytes, not its hash. Untrusted.
        index: Which leaf it is said to be, 0 for the first. Untrusted.
        size: Leaves of the tree. Untrusted where it was not signed together with the root.
        proof: Untrusted hashes.
        root: Trusted root of the tree.

    Raises:
        ProofError: It is not proven. Any other exception is a bug.
    """
    if not 0 <= index < size <= MAX_SIZE:
        raise ProofError(f"there is no leaf {index} in a tree of {size}")
    ranges = inclusion_ranges(index, size)
    _check_hashes(proof, len(ranges))
    reached = leaf_hash(leaf)
    for (begin, _end), sibling in zip(ranges, proof, strict=True):
        reached = node_hash(reached, sibling) if begin > index else node_hash(sibling, reached)
    if not hmac.compare_digest(reached, root):
        raise ProofError("the leaf is not in the tree with this root")


def verify_consistency(*, first: int, first_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> None:
    """
    Verify that one tree is the beginning of another: nothing of it was changed, only leaves appended.

    Args:
        first: Leaves of the smaller tree.
        first_root: Trusted root of the smaller tree.
        size: Leaves of the larger tree, untrusted.
        root: Root of the larger tree.
        proof: Untrusted hashes.

    Raises:
        ProofError: It is not proven. Any other exception is a bug.
    """
    if not 0 <= first <= size <= MAX_SIZE:
        raise ProofError(f"a tree of {first} leaves is not the beginning of one of {size}")
    ranges = consistency_ranges(first, size)
    _check_hashes(proof, len(ranges))
    if first:
        before, after = _both_roots(first, first_root, ranges, proof)
    else:
        before, after = EMPTY_ROOT, root if size else EMPTY_ROOT
    if not (hmac.compare_digest(before, first_root) and hmac.compare_digest(after, root)):
        raise ProofError("the smaller tree is not the beginning of the larger one")


def _both_roots(
    first: int, first_root: bytes, ranges: Sequence[Range], proof: Sequence[bytes]
) -> tuple[bytes, bytes]:
    """What the roots of both trees are if the hashes are what they should be."""
    begins = [begin for begin, _end in ranges]
    if not begins or begins[0] >= first:  # the smaller tree is a subtree of the larger one
        before = after = first_root
        steps = list(zip(begins, proof, strict=True))
    else:
        before = after = proof[0]
        steps = list(zip(begins[1:], proof[1:], strict=True))
    for begin, sibling in steps:
        if begin >= first:
            after = node_hash(after, sibling)
        else:
            before, after = node_hash(sibling, before), node_hash(sibling, after)
    return before, after


def _check_hashes(proof: Sequence[bytes], expected: int) -> None:
    if len(proof) != expected:
        raise ProofError(f"the proof has {len(proof)} hashes instead of {expected}")
    if any(len(item) != HASH_SIZE for item in proof):
        raise ProofError(f"a hash has {HASH_SIZE} bytes")


def _split(size: int) -> int:
    """The largest power of two below *size* (at least 2): how many leaves are left of a node."""
    return 1 << (size - 1).bit_length() - 1


# --- the two forms of a tree -----------------------------------------------------------------------------------


def _fits_the_size(frontier: "Frontier", _attribute: Any, nodes: tuple[bytes, ...]) -> None:
    if not 0 <= frontier.size <= MAX_SIZE or len(nodes) != frontier.size.bit_count():
        raise ValueError("a frontier has one hash for each bit of its size")
    if any(len(node) != HASH_SIZE for node in nodes):
        raise ValueError(f"a hash has {HASH_SIZE} bytes")


@attrs.frozen
class Frontier:
    """
    A tree that only grows: what is needed to append to it and to know its root, and nothing else.

    Immutable and safe to share. At most 53 hashes, however many leaves there are.

    Attributes:
        size: Leaves appended so far.
        nodes: Hashes of the complete subtrees that the tree consists of, largest first.
    """

    size: int = 0
    nodes: tuple[bytes, ...] = attrs.field(default=(), validator=_fits_the_size)

    @property
    def root(self) -> bytes:
        """Root of the tree."""
        return fold(self.nodes)

    def append(self, leaf: bytes) -> "Frontier":
        """The tree with one leaf more."""
        return self.append_hash(leaf_hash(leaf))

    def append_hash(self, hashed: bytes) -> "Frontier":
        """The tree with one leaf more, given the hash of the leaf."""
        done = self.completed_by(hashed)
        return Frontier(self.size + 1, (*self.nodes[: len(self.nodes) + 1 - len(done)], done[-1]))

    def completed_by(self, hashed: bytes) -> tuple[bytes, ...]:
        """
        Hashes of the subtrees that the next leaf completes, itself first: level 0, 1, 2 and so on.

        Args:
            hashed: Hash of that leaf.
        """
        done = [hashed]
        for left in reversed(self.nodes):
            if not self.size >> len(done) - 1 & 1:
                break
            done.append(node_hash(left, done[-1]))
        return tuple(done)


@attrs.frozen
class MerkleTree:
    """
    A tree with all its hashes: gives every root and proof of itself and of each of its beginnings.

    Immutable and safe to share. Make one with `of` or `of_hashes`.

    Attributes:
        levels: Hashes of the complete subtrees, by level. The first are those of the leaves.
    """

    levels: tuple[tuple[bytes, ...], ...]

    @classmethod
    def of(cls, leaves: Iterable[bytes]) -> "MerkleTree":
        """The tree over *leaves*."""
        return cls.of_hashes(map(leaf_hash, leaves))

    @classmethod
    def of_hashes(cls, hashes: Iterable[bytes]) -> "MerkleTree":
        """The tree over leaves of which only the hashes are at hand."""
        levels = [tuple(hashes)]
        while len(below := levels[-1]) > 1:
            pairs = zip(below[::2], below[1::2], strict=False)  # an odd one waits for its neighbour
            levels.append(tuple(node_hash(left, right) for left, right in pairs))
        return cls(tuple(levels))

    @property
    def size(self) -> int:
        """Number of leaves."""
        return len(self.levels[0])

    def root(self, size: int | None = None) -> bytes:
        """
        Root of the tree, or of its first *size* leaves.

        Raises:
            ValueError: It has not so many.
        """
        return self._hash((0, self._size(size)))

    def inclusion_proof(self, index: int, size: int | None = None) -> Proof:
        """
        Proof that leaf *index* (0 for the first) is in the tree, or in its first *size* leaves.

        Raises:
            ValueError: There is no such leaf in it.
        """
        size = self._size(size)
        if not 0 <= index < size:
            raise ValueError(f"there is no leaf {index} in a tree of {size}")
        return tuple(map(self._hash, inclusion_ranges(index, size)))

    def consistency_proof(self, first: int, size: int | None = None) -> Proof:
        """
        Proof that the first *first* leaves are the beginning of the tree, or of its first *size* leaves.

        Raises:
            ValueError: *first* is more than that, or negative.
        """
        size = self._size(size)
        if not 0 <= first <= size:
            raise ValueError(f"a tree of {first} leaves is not the beginning of one of {size}")
        return tuple(map(self._hash, consistency_ranges(first, size)))

    def _size(self, size: int | None) -> int:
        if size is not None and not 0 <= size <= self.size:
            raise ValueError(f"the tree has {self.size} leaves, not {size}")
        return self.size if size is None else size

    def _hash(self, part: Range) -> bytes:
        return fold([self.levels[level][index] for level, index in subtrees(part)])
