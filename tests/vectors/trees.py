"""Known answers of the Merkle trees and of the audit log. Part of `tests.vectors.make`."""

from datetime import UTC, datetime
from typing import Any, Final

from redflag_core import codec
from redflag_core.audit import AuditEntry, AuditHead, AuditState, append_entry, dump_entry, entry_leaf
from redflag_core.checkpoints import new_checkpoint, prove_head, sign_checkpoint
from redflag_core.keys import SigningKey
from redflag_core.merkle import EMPTY_ROOT, MerkleTree
from redflag_core.testing import START, SeededEntropy

SERVER: Final = "0190b5a4-7a3c-7def-8abc-0123456789ab"
ORGANIZATION: Final = "0190b5a4-7a3c-7def-8abc-00000000000a"
CHECKPOINT_KEY: Final = SigningKey.from_seed(SeededEntropy(14).token(32))
"""The checkpoint key of the trust bundle in `trust.json`."""

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


def audit() -> Any:
    """A short history with a purged entry, checkpoints of it, and what a witness is shown."""
    entries, states = _history(5)
    entries[2] = entries[2].purged()
    others = [AuditHead(organization=f"{ORGANIZATION[:-1]}{n}", size=0, root=EMPTY_ROOT.hex()) for n in range(3)]
    first = new_checkpoint(SERVER, [states[3].head, *others], now=START)
    later = datetime.fromtimestamp(first.iat + 60, UTC)
    second = new_checkpoint(SERVER, [states[5].head, *others], now=later, before=first)
    shown = [
        prove_head(sign_checkpoint(checkpoint, CHECKPOINT_KEY), [states[size].head, *others], 0)
        for checkpoint, size in ((first, 3), (second, 5))
    ]
    tree = MerkleTree.of_hashes(bytes.fromhex(entry.hash) for entry in entries)
    return {
        "server": SERVER,
        "organization": ORGANIZATION,
        "seed": CHECKPOINT_KEY.seed.hex(),
        "lines": [dump_entry(entry).decode() for entry in entries],
        "leaves": [entry_leaf(e.organization, e.position, e.previous, e.digest).decode() for e in entries],
        "roots": [state.head.root for state in states[1:]],
        "head_leaves": [head.leaf.decode() for head in (states[5].head, *others)],
        "checkpoints": [codec.unstructure(checkpoint) for checkpoint in (first, second)],
        "evidence": [codec.unstructure(each) for each in shown],
        "consistency": _hex(tree.consistency_proof(3)),
        "inclusion": {"position": 4, "proof": _hex(tree.inclusion_proof(3))},
    }


def _history(size: int) -> tuple[list[AuditEntry], list[AuditState]]:
    entropy, entries, states = SeededEntropy(41), list[AuditEntry](), [AuditState(organization=ORGANIZATION)]
    for number in range(size):
        payload = f'{{"kind":"test.happened","n":{number},"text":"\u20ac"}}'
        entry, state = append_entry(states[-1], payload, salt=entropy.token(16))
        entries.append(entry)
        states.append(state)
    return entries, states
