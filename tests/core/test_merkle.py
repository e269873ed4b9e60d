"""Merkle trees: the roots and proofs of RFC 9162, and nothing else is believed."""

import hashlib
import json
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core.errors import ProofError
from redflag_core.merkle import (
    EMPTY_ROOT,
    HASH_SIZE,
    MAX_SIZE,
    Frontier,
    MerkleTree,
    consistency_ranges,
    fold,
    inclusion_ranges,
    leaf_hash,
    node_hash,
    subtrees,
    verify_consistency,
    verify_inclusion,
)
from tests.vectors.make import HERE
from tests.vectors.trees import CT_LEAVES

CT_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
"""The published roots of the first 0 to 8 of these leaves."""

MANY = tuple(number.to_bytes(2, "big") for number in range(131))
SAMPLED = (0, 1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 31, 33)
CASES = json.loads((HERE / "merkle.json").read_text(encoding="utf-8"))


# The definitions of RFC 9162, section 2.1, word for word: an independent implementation to compare with.


def split(count):
    """The largest power of two smaller than *count*."""
    k = 1
    while k * 2 < count:
        k *= 2
    return k


def mth(leaves):
    """MTH, section 2.1.1."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = split(len(leaves))
    return hashlib.sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def path(m, leaves):
    """PATH, section 2.1.3.1."""
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m, leaves, known):
    """SUBPROOF, section 2.1.4.1."""
    if m == len(leaves):
        return [] if known else [mth(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], known), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


def proves_inclusion(leaf, index, size, proof, root):
    """The verification of section 2.1.3.2, bit by bit."""
    fn, sn, r = index, size - 1, leaf_hash(leaf)
    for p in proof:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            r = node_hash(p, r)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = node_hash(r, p)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and r == root


def proves_consistency(first, first_root, size, root, proof):
    """The verification of section 2.1.4.2, for 0 < first < size."""
    proof = list(proof) if first & (first - 1) else [first_root, *proof]
    fn, sn = first - 1, size - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = proof[0]
    for c in proof[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            fr, sr = node_hash(c, fr), node_hash(c, sr)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = node_hash(sr, c)
        fn, sn = fn >> 1, sn >> 1
    return (sn, fr, sr) == (0, first_root, root)


def refuses_inclusion(leaf, index, size, proof, root):
    """Whether a proof is refused, and in the one way."""
    with pytest.raises(ProofError):
        verify_inclusion(leaf, index=index, size=size, proof=proof, root=root)
    return True


def refuses_consistency(first, first_root, size, root, proof):
    """Likewise."""
    with pytest.raises(ProofError):
        verify_consistency(first=first, first_root=first_root, size=size, root=root, proof=proof)
    return True


def flipped(hashes):
    """*hashes* with each bit of each of them changed in turn."""
    for at, item in enumerate(hashes):
        for bit in range(8 * len(item)):
            changed = bytearray(item)
            changed[bit // 8] ^= 1 << bit % 8
            yield (*hashes[:at], bytes(changed), *hashes[at + 1 :])


# Roots


def test_the_hashes_are_those_of_the_standard():
    """Leaves and nodes have prefixes of their own; no leaves are the hash of nothing."""
    assert hashlib.sha256(b"\x00a").digest() == leaf_hash(b"a")
    assert hashlib.sha256(b"\x01" + b"l" * 32 + b"r" * 32).digest() == node_hash(b"l" * 32, b"r" * 32)
    assert hashlib.sha256().digest() == EMPTY_ROOT == fold([])
    assert leaf_hash(b"l" * 32 + b"r" * 32) != node_hash(b"l" * 32, b"r" * 32)


@pytest.mark.parametrize("size", range(9))
def test_the_roots_are_the_published_ones(size):
    """Those of the test vectors of Certificate Transparency."""
    assert CT_ROOTS[size] == mth(CT_LEAVES[:size]).hex()
    assert (
        CT_ROOTS[size] == MerkleTree.of(CT_LEAVES[:size]).root().hex() == MerkleTree.of(CT_LEAVES).root(size).hex()
    )


def test_the_roots_are_those_of_the_recursive_definition():
    """For every size up to 130, of a tree and of every beginning of a larger one."""
    whole = MerkleTree.of(MANY)
    for size in range(len(MANY) + 1):
        assert mth(MANY[:size]) == MerkleTree.of(MANY[:size]).root() == whole.root(size)


def test_a_frontier_has_the_roots_of_the_tree():
    """Leaf by leaf, and it never holds more than one hash for each bit of its size."""
    frontier = Frontier()
    for size, leaf in enumerate(MANY):
        assert (size, mth(MANY[:size])) == (frontier.size, frontier.root)
        assert size.bit_count() == len(frontier.nodes)
        assert frontier.append(leaf) == frontier.append_hash(leaf_hash(leaf))
        frontier = frontier.append(leaf)


def test_a_leaf_completes_the_subtrees_that_end_with_it():
    """What a frontier says is completed is what the tree has at these levels, each hash once."""
    frontier, made = Frontier(), []
    for leaf in MANY:
        made.append(frontier.completed_by(leaf_hash(leaf)))
        frontier = frontier.append(leaf)
    levels = [tuple(done[level] for done in made if len(done) > level) for level in range(8)]

    assert MerkleTree.of(MANY).levels == tuple(levels)


def test_a_tree_can_be_made_of_the_hashes_of_its_leaves():
    """Whoever stored these needs no leaves."""
    assert MerkleTree.of(MANY) == MerkleTree.of_hashes([leaf_hash(leaf) for leaf in MANY])


@pytest.mark.parametrize("size, nodes", [(1, 0), (0, 1), (3, 1), (4, 2), (-1, 1), (MAX_SIZE + 1, 1)])
def test_a_frontier_has_one_hash_for_each_bit(size, nodes):
    """A stored one that was damaged is noticed."""
    with pytest.raises(ValueError, match="each bit of its size"):
        Frontier(size, (b"h" * 32,) * nodes)


def test_the_nodes_of_a_frontier_are_hashes():
    """Of 32 bytes each; the largest frontier there can be is one."""
    with pytest.raises(ValueError, match="has 32 bytes"):
        Frontier(3, (b"h" * 32, b"h" * 31))
    assert 53 == len(Frontier(MAX_SIZE, (b"h" * 32,) * 53).nodes)


# Ranges


@pytest.mark.parametrize("size", SAMPLED)
def test_the_ranges_of_an_inclusion_proof_are_all_other_leaves(size):
    """Each once: with the leaf itself they make up the tree."""
    for index in range(size):
        ranges = sorted([*inclusion_ranges(index, size), (index, index + 1)])
        assert (0, size) == (ranges[0][0], ranges[-1][1])
        assert all(before[1] == after[0] for before, after in pairwise(ranges))


@pytest.mark.parametrize("part", [(0, 0), (0, 1), (0, 8), (0, 13), (8, 13), (12, 13), (64, 127)])
def test_a_range_is_made_of_complete_subtrees(part):
    """From left to right, without a gap, each smaller than the one before it."""
    found = subtrees(part)

    covered = [number for level, index in found for number in range(index << level, index + 1 << level)]
    assert list(range(*part)) == covered
    assert sorted({level for level, _ in found}, reverse=True) == [level for level, _ in found]


# Proofs


@pytest.mark.parametrize("size", SAMPLED)
def test_every_inclusion_proof_is_that_of_the_definition(size):
    """And it verifies, by our verifier and by the one of the standard."""
    check_inclusion(size)


@pytest.mark.parametrize("size", SAMPLED)
def test_every_consistency_proof_is_that_of_the_definition(size):
    """From each beginning, the empty one and the whole included."""
    check_consistency(size)


@pytest.mark.full
@pytest.mark.parametrize("size", range(len(MANY)))
def test_every_proof_of_every_size_is_that_of_the_definition(size):
    """All pairs up to 130."""
    check_inclusion(size)
    check_consistency(size)


def check_inclusion(size):
    """Every inclusion proof of a tree of *size* leaves."""
    tree, leaves, root = MerkleTree.of(MANY), MANY[:size], mth(MANY[:size])
    for index, leaf in enumerate(leaves):
        proof = tree.inclusion_proof(index, size)
        assert path(index, leaves) == list(proof)
        assert proves_inclusion(leaf, index, size, proof, root)
        verify_inclusion(leaf, index=index, size=size, proof=proof, root=root)


def check_consistency(size):
    """Every consistency proof that ends in a tree of *size* leaves."""
    tree, leaves, root = MerkleTree.of(MANY), MANY[:size], mth(MANY[:size])
    for first in range(size + 1):
        proof = tree.consistency_proof(first, size)
        before = mth(leaves[:first])
        assert (subproof(first, leaves, True) if first else []) == list(proof)
        assert first in (0, size) or proves_consistency(first, before, size, root, proof)
        verify_consistency(first=first, first_root=before, size=size, root=root, proof=proof)


@pytest.mark.parametrize("size", [2, 3, 7, 8])
def test_every_changed_bit_of_an_inclusion_proof_is_noticed(size):
    """Of its hashes, of the root and of the leaf."""
    tree = MerkleTree.of(MANY[:size])
    for index, leaf in enumerate(MANY[:size]):
        proof, root = tree.inclusion_proof(index), tree.root()
        assert all(refuses_inclusion(leaf, index, size, changed, root) for changed in flipped(proof))
        assert all(refuses_inclusion(leaf, index, size, proof, changed) for (changed,) in flipped((root,)))
        assert all(refuses_inclusion(changed, index, size, proof, root) for (changed,) in flipped((leaf,)))


@pytest.mark.parametrize("first, size", [(1, 2), (2, 3), (3, 7), (4, 7), (6, 7), (7, 8), (4, 8), (8, 8), (0, 3)])
def test_every_changed_bit_of_a_consistency_proof_is_noticed(first, size):
    """Of its hashes and of both roots. (Of nothing, every tree is a continuation: its root cannot be proven.)"""
    tree = MerkleTree.of(MANY[:size])
    before, root, proof = tree.root(first), tree.root(), tree.consistency_proof(first)

    assert all(refuses_consistency(first, before, size, root, changed) for changed in flipped(proof))
    assert all(refuses_consistency(first, changed, size, root, proof) for (changed,) in flipped((before,)))
    assert not first or all(
        refuses_consistency(first, before, size, changed, proof) for (changed,) in flipped((root,))
    )


@pytest.mark.parametrize("size", SAMPLED[1:])
def test_a_proof_holds_for_its_own_place_only(size):
    """Another index, or a size that no such tree has, needs another proof."""
    tree = MerkleTree.of(MANY)
    for index in range(size):
        leaf, proof, root = MANY[index], tree.inclusion_proof(index, size), tree.root(size)
        for other in {*range(size), -1, size, size + 1, MAX_SIZE} - {index}:
            assert refuses_inclusion(leaf, other, size, proof, root)
        for other in {0, index, MAX_SIZE, MAX_SIZE + 1} - {size}:
            assert refuses_inclusion(leaf, index, other, proof, root)


@pytest.mark.parametrize("first, size", [(1, 2), (3, 7), (4, 8), (6, 8), (8, 8), (0, 8)])
def test_a_proof_has_one_length(first, size):
    """One hash less, one more, or one twice: refused, whatever it is."""
    tree = MerkleTree.of(MANY[:size])
    before, root, proof = tree.root(first), tree.root(), tree.consistency_proof(first)
    included = tree.inclusion_proof(0)

    for extra in (EMPTY_ROOT, root, before, b""):
        assert refuses_consistency(first, before, size, root, (*proof, extra))
        assert refuses_consistency(first, before, size, root, (extra, *proof))
        assert refuses_inclusion(MANY[0], 0, size, (*included, extra), root)
    assert not proof or refuses_consistency(first, before, size, root, proof[:-1])
    assert refuses_inclusion(MANY[0], 0, size, included[1:], root)


def test_a_hash_of_a_proof_has_32_bytes():
    """So no two of them can be joined or cut differently."""
    tree = MerkleTree.of(MANY[:4])
    left, right = tree.inclusion_proof(0)

    assert refuses_inclusion(MANY[0], 0, 4, (left + right[:1], right[1:]), tree.root())
    assert refuses_inclusion(MANY[0], 0, 4, (left, right + b"\x00"), tree.root())
    with pytest.raises(ProofError, match="a hash has 32 bytes"):
        verify_inclusion(MANY[0], index=0, size=4, proof=(left[:31], right), root=tree.root())
    assert refuses_consistency(3, tree.root(3), 4, tree.root(), (b"",) * 3)


@pytest.mark.parametrize("first, size", [(-1, 4), (5, 4), (4, MAX_SIZE + 1), (2**70, 2**71), (0, -1)])
def test_sizes_that_cannot_be_are_refused(first, size):
    """A log that became shorter is not consistent with what it was."""
    assert refuses_consistency(first, MerkleTree.of(MANY[:4]).root(), size, EMPTY_ROOT, ())


def test_the_same_size_means_the_same_root():
    """Two trees of the same size are the same tree, or one of them is a lie."""
    one, other = MerkleTree.of(MANY[:4]), MerkleTree.of(MANY[1:5])

    verify_consistency(first=4, first_root=one.root(), size=4, root=one.root(), proof=())
    verify_consistency(first=MAX_SIZE, first_root=one.root(), size=MAX_SIZE, root=one.root(), proof=())
    assert refuses_consistency(4, one.root(), 4, other.root(), ())


def test_a_tree_of_nothing_has_one_root():
    """Everything is a continuation of it, but only of the true one."""
    tree = MerkleTree.of(MANY[:4])

    verify_consistency(first=0, first_root=EMPTY_ROOT, size=4, root=tree.root(), proof=())
    verify_consistency(first=0, first_root=EMPTY_ROOT, size=0, root=EMPTY_ROOT, proof=())
    assert refuses_consistency(0, tree.root(), 4, tree.root(), ())
    assert refuses_consistency(0, EMPTY_ROOT, 0, tree.root(), ())


def test_the_largest_tree_can_be_verified_in_a_few_steps():
    """A size that somebody made up costs no more than one hash for each of its bits."""
    size = MAX_SIZE
    ranges = inclusion_ranges(size - 1, size)
    siblings = [bytes([number]) * HASH_SIZE for number in range(len(ranges))]
    reached = leaf_hash(b"last")
    for sibling in siblings:
        reached = node_hash(sibling, reached)

    assert 52 == len(ranges)
    verify_inclusion(b"last", index=size - 1, size=size, proof=siblings, root=reached)
    assert proves_inclusion(b"last", size - 1, size, siblings, reached)
    assert 54 >= max(len(consistency_ranges(size - back, size)) for back in range(1, 100))


@given(st.lists(st.binary(max_size=9), min_size=1, max_size=70), st.data())
def test_whatever_is_in_a_tree_is_proven(leaves, data):
    """Equal leaves, empty leaves, any number of them."""
    index = data.draw(st.integers(0, len(leaves) - 1))
    first = data.draw(st.integers(0, len(leaves)))
    tree = MerkleTree.of(leaves)

    verify_inclusion(
        leaves[index], index=index, size=tree.size, proof=tree.inclusion_proof(index), root=tree.root()
    )
    verify_consistency(
        first=first,
        first_root=mth(leaves[:first]),
        size=tree.size,
        root=mth(leaves),
        proof=tree.consistency_proof(first),
    )


HASHES = st.binary(min_size=32, max_size=32) | st.sampled_from(MerkleTree.of(MANY[:9]).levels[0])
SIZES = st.integers(-2, 12) | st.integers()


@given(st.binary(max_size=3), SIZES, SIZES, st.lists(HASHES | st.binary(max_size=40), max_size=6), HASHES)
def test_any_inclusion_proof_is_refused_in_one_way_only(leaf, index, size, proof, root):
    """Untrusted numbers and hashes raise `ProofError` and nothing else."""
    with suppress(ProofError):
        verify_inclusion(leaf, index=index, size=size, proof=proof, root=root)
        assert proves_inclusion(leaf, index, size, proof, root)


@given(SIZES, HASHES, SIZES, HASHES, st.lists(HASHES | st.binary(max_size=40), max_size=6))
def test_any_consistency_proof_is_refused_in_one_way_only(first, first_root, size, root, proof):
    """Likewise."""
    with suppress(ProofError):
        verify_consistency(first=first, first_root=first_root, size=size, root=root, proof=proof)
        assert first_root == (root if first == size else EMPTY_ROOT)


# What a tree is asked for that it cannot have


@pytest.mark.parametrize("size", [-1, 5])
def test_a_tree_knows_no_more_leaves_than_it_has(size):
    """Neither for a root nor for a proof."""
    tree = MerkleTree.of(MANY[:4])
    for ask in (
        tree.root,
        lambda size: tree.inclusion_proof(0, size),
        lambda size: tree.consistency_proof(0, size),
    ):
        with pytest.raises(ValueError, match="has 4 leaves"):
            ask(size)


@pytest.mark.parametrize("index, size", [(-1, None), (4, None), (2, 2), (0, 0)])
def test_a_tree_proves_only_leaves_that_it_has(index, size):
    """A proof of nothing would be a bug of the caller."""
    with pytest.raises(ValueError, match="no leaf"):
        MerkleTree.of(MANY[:4]).inclusion_proof(index, size)


@pytest.mark.parametrize("first, size", [(-1, None), (5, None), (3, 2)])
def test_a_tree_continues_only_smaller_ones(first, size):
    """Likewise."""
    with pytest.raises(ValueError, match="not the beginning"):
        MerkleTree.of(MANY[:4]).consistency_proof(first, size)


# The committed known answers


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{len(case['leaves'])} leaves")
def test_the_known_answers_are_those_of_the_definition(case):
    """By the recursive definition, not by the module that made them."""
    leaves = [bytes.fromhex(leaf) for leaf in case["leaves"]]
    for size, root in case["roots"].items():
        assert mth(leaves[: int(size)]).hex() == root
    for each in case["inclusion"]:
        assert [item.hex() for item in path(each["index"], leaves[: each["size"]])] == each["proof"]
    for each in case["consistency"]:
        expected = subproof(each["first"], leaves[: each["size"]], True) if each["first"] else []
        assert [item.hex() for item in expected] == each["proof"]
