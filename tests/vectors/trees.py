"""Known answers of the Merkle trees and of the audit log. Part of `tests.vectors.make`."""

from typing import Any, Final

from redflag_core.merkle import MerkleTree

CT_LEAVES: Final = tuple(
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
)
"""The leaves that Certificate Transparency publishes roots for: every implementation of RFC 6962 knows them."""


def merkle() -> Any:
    """Roots and every proof of a small tree, and some of a larger one."""
    numbers = tuple(number.to_bytes(2, "big") for number in range(1000))
    pairs = [(first, size) for size in range(len(CT_LEAVES) + 1) for first in range(size + 1)]
    return [
        _tree(CT_LEAVES, pairs),
        _tree(numbers, [(1, 1000), (511, 512), (512, 513), (512, 1000), (600, 999), (999, 1000)]),
    ]


def _tree(leaves: tuple[bytes, ...], pairs: list[tuple[int, int]]) -> Any:
    tree = MerkleTree.of(leaves)
    return {
        "leaves": [leaf.hex() for leaf in leaves],
        "roots": {str(size): tree.root(size).hex() for size in sorted({n for pair in pairs for n in pair})},
        "inclusion": [
            {"index": index, "size": size, "proof": _hex(tree.inclusion_proof(index, size))}
            for index, size in pairs
            if index < size
        ],
        "consistency": [
            {"first": first, "size": size, "proof": _hex(tree.consistency_proof(first, size))}
            for first, size in pairs
        ],
    }


def _hex(proof: tuple[bytes, ...]) -> list[str]:
    return [item.hex() for item in proof]
