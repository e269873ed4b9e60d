"""
The tamper-evident log: what an organization's history proves, verified by anybody with this module alone.

There is one structure, not a chain and a tree beside it. Each entry names the hash of the one before it, so that
neighbours can be checked by themselves and a break has a place. The hash of an entry is also a leaf of the
organization's Merkle tree (RFC 9162), whose size and root are the head of the history. So one list of hashes gives
the chain (what follows what), the head (what all of it was), inclusion proofs (this entry is in it) and
consistency proofs (nothing before was changed). With a chain alone, proving these takes all entries. With a tree
alone, an edit shows in the root only, and nobody can say where it is. Who signs heads, and who keeps them, is in
`redflag_core.checkpoints`.

An entry does not hold its payload but a salted digest of it. Purging takes away the payload and the salt and
leaves the hashes as they are: the history still verifies, and nobody can find out by trying what was purged.

Rule of the file: entries and proofs are untrusted. Heads are trusted, and verified elsewhere.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Any, Final

import attrs
from attrs import validators

from redflag_core import codec
from redflag_core._fields import HASH, UUID, VERSION, count
from redflag_core.encoding import MAX_INTEGER, dump_json, hex_decode
from redflag_core.envelope import pae
from redflag_core.errors import HistoryError, ProofError, RewrittenError, VerificationError, WrongRecipientError
from redflag_core.merkle import HASH_SIZE, Frontier, leaf_hash, verify_inclusion

ENTRY_TYPE: Final = "application/vnd.redflag.audit-entry.v1+json"
HEAD_TYPE: Final = "application/vnd.redflag.audit-head.v1+json"

NO_ENTRY: Final = "0" * 64
"""What the first entry names as the one before it."""

SALT_SIZE: Final = 16
"""Bytes. Enough that the digest of a short payload cannot be found by trying all of them."""

MAX_PAYLOAD: Final = 64 * 1024
"""Characters of a payload. An event has about 500; the output of a package manager is stored elsewhere."""

MAX_LINE: Final = 512 * 1024
"""Bytes of an exported entry: the longest payload, with each character escaped."""

_SALT: Final[Any] = validators.matches_re(f"[0-9a-f]{{{2 * SALT_SIZE}}}")


def _storable(_instance: Any, _attribute: Any, payload: str) -> None:
    """Validate that a text survives JSON and every database."""
    payload.encode("utf-8")
    if "\x00" in payload:
        raise ValueError("a payload holds no U+0000")


_PAYLOAD: Final[Any] = validators.and_(validators.max_len(MAX_PAYLOAD), _storable)


# --- entries ---------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class AuditEntry:
    """
    One entry of an organization's history: what an export has on each line.

    Attributes:
        v: 1.
        organization: Whose history this is, a UUID.
        position: 1 for the first, without a gap.
        previous: Hash of the entry before it, `NO_ENTRY` for the first.
        digest: `payload_digest` of what happened.
        hash: `entry_hash` of these four. A second copy of what can be computed, so that an edit has a place.
        salt: 16 bytes in hex; None once the payload was purged.
        payload: What happened, the text exactly as it was recorded; None once it was purged.
    """

    v: int = attrs.field(default=1, validator=VERSION)
    organization: str = attrs.field(validator=UUID)
    position: int = attrs.field(validator=[validators.ge(1), validators.le(MAX_INTEGER)])
    previous: str = attrs.field(validator=HASH)
    digest: str = attrs.field(validator=HASH)
    hash: str = attrs.field(validator=HASH)
    salt: str | None = attrs.field(default=None, validator=validators.optional(_SALT))
    payload: str | None = attrs.field(default=None, validator=validators.optional(_PAYLOAD))

    def __attrs_post_init__(self) -> None:
        """A salt without its payload would let others find the payload by trying."""
        if (self.salt is None) != (self.payload is None):
            raise ValueError("salt and payload go together")

    def purged(self) -> "AuditEntry":
        """The entry without what happened. All hashes stay."""
        return attrs.evolve(self, salt=None, payload=None)


def payload_digest(payload: str, salt: bytes) -> str:
    """SHA-256 over the salt and the UTF-8 bytes of a payload, 64 hex digits."""
    return hashlib.sha256(salt + payload.encode("utf-8")).hexdigest()


def entry_leaf(organization: str, position: int, previous: str, digest: str) -> bytes:
    """The leaf that an entry is: the pre-authentication encoding of its four facts as canonical JSON."""
    facts = {"digest": digest, "organization": organization, "position": position, "previous": previous}
    return pae(ENTRY_TYPE, dump_json(facts))


def entry_hash(organization: str, position: int, previous: str, digest: str) -> str:
    """Hash of an entry, 64 hex digits: that of its leaf in the organization's tree."""
    return leaf_hash(entry_leaf(organization, position, previous, digest)).hex()


def dump_entry(entry: AuditEntry) -> bytes:
    """An entry as one line of an export, without its end."""
    return codec.dump(entry)


def parse_entry(line: bytes) -> AuditEntry:
    """
    Read one line of an export.

    Args:
        line: Untrusted bytes, with or without a newline at the end.

    Raises:
        MalformedError: Not one strict entry. What it says is not verified yet.
    """
    return codec.parse(AuditEntry, line, max_bytes=MAX_LINE)


def parse_entries(lines: Iterable[bytes]) -> Iterator[AuditEntry]:
    """
    Read an export line by line, for `verify_history`.

    Args:
        lines: Untrusted lines. Read them with a bound: a line is at most `MAX_LINE` bytes.

    Raises:
        MalformedError: While iterating, at the first line that is not an entry.
    """
    return map(parse_entry, lines)


# --- histories -------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class AuditHead:
    """
    What an organization's history was at some moment: all of it, in two values.

    Attributes:
        organization: Whose history.
        size: Entries in it.
        root: Root of the tree over them, 64 hex digits.
    """

    organization: str = attrs.field(validator=UUID)
    size: int = attrs.field(validator=count())
    root: str = attrs.field(validator=HASH)

    @property
    def leaf(self) -> bytes:
        """The leaf that this head is in the tree of a checkpoint."""
        return pae(HEAD_TYPE, codec.dump(self))


@attrs.frozen(kw_only=True)
class AuditState:
    """
    What is needed to append to a history, or to verify what is appended: its head, without its entries.

    Its size is bounded, and it can be stored. Somebody who keeps one and feeds every new entry through
    `verify_history` needs no proofs.

    Attributes:
        organization: Whose history.
        size: Entries so far.
        nodes: `Frontier.nodes` of the tree, each in hex.
        last: Hash of the last entry, `NO_ENTRY` before the first.
    """

    organization: str = attrs.field(validator=UUID)
    size: int = attrs.field(default=0, validator=count())
    nodes: tuple[str, ...] = attrs.field(default=(), validator=validators.deep_iterable(HASH))
    last: str = attrs.field(default=NO_ENTRY, validator=HASH)

    def __attrs_post_init__(self) -> None:
        """Its numbers fit each other."""
        if len(self.nodes) != self.size.bit_count() or (self.last == NO_ENTRY) != (self.size == 0):
            raise ValueError("a state has one hash for each bit of its size, and a last entry unless it is empty")

    @property
    def frontier(self) -> Frontier:
        """The tree over the entries."""
        return Frontier(self.size, tuple(map(bytes.fromhex, self.nodes)))

    @property
    def head(self) -> AuditHead:
        """The head."""
        return AuditHead(organization=self.organization, size=self.size, root=self.frontier.root.hex())


def append_entry(state: AuditState, payload: str, *, salt: bytes) -> tuple[AuditEntry, AuditState]:
    """
    Make the next entry of a history.

    Args:
        state: The history so far.
        payload: What happened. Stored as it is: it is never parsed or written anew to be verified.
        salt: `SALT_SIZE` fresh random bytes.

    Returns:
        The entry, and the history that ends with it.

    Raises:
        ValueError: The payload is too long or cannot be stored, or the salt has another size.
    """
    if len(salt) != SALT_SIZE:
        raise ValueError(f"a salt has {SALT_SIZE} bytes")
    facts = (state.organization, state.size + 1, state.last, payload_digest(payload, salt))
    entry = AuditEntry(
        organization=state.organization,
        position=state.size + 1,
        previous=state.last,
        digest=facts[3],
        hash=entry_hash(*facts),
        salt=salt.hex(),
        payload=payload,
    )
    return entry, _state(state.organization, state.frontier.append_hash(bytes.fromhex(entry.hash)), entry.hash)


def _state(organization: str, frontier: Frontier, last: str) -> AuditState:
    nodes = tuple(node.hex() for node in frontier.nodes)
    return AuditState(organization=organization, size=frontier.size, nodes=nodes, last=last)


@attrs.frozen
class VerifiedHistory:
    """
    A history that holds together, and agrees with every head that was given.

    Attributes:
        state: Where it ends: start from it next time.
        purged: How many of the entries had no payload any more.
    """

    state: AuditState
    purged: int


def verify_history(
    entries: Iterable[AuditEntry], *, start: AuditState, heads: Iterable[AuditHead] = ()
) -> VerifiedHistory:
    """
    Verify that *entries* are the history of an organization, and name the first that is not as it should be.

    Entries are read once and none is kept: the memory needed does not depend on their number.

    Without a head this shows that the entries hold together. With the head of a verified checkpoint it shows that
    they are what was signed, to the last one. Entries after the largest head are only known to hold together, and
    nothing speaks for the last of them.

    The entry named is the first one that differs from what was recorded, if one thing was changed. Who changes
    many entries so that they hold together again is noticed where they stop to, or by a head.

    Args:
        entries: Untrusted, in order. Reading them may raise `VerificationError` (see `parse_entries`).
        start: What comes before the first: `AuditState(organization=...)` for the whole history. A state that is
            not trusted is proven as well, once a head at or after its end agrees.
        heads: Trusted heads of this organization at or after *start*.

    Raises:
        HistoryError: An entry was edited, is missing, was inserted or stands in another place; it names the first.
        RewrittenError: Everything holds together, and it is not what a head says: it was written anew.
        ValueError: A head of another organization, or of a time before *start*.
    """
    reader = _Reader(start, _in_order(heads, start))
    reader.read(_readable(entries, reader))
    return reader.end()


def _in_order(heads: Iterable[AuditHead], start: AuditState) -> list[AuditHead]:
    """The heads, the one that is reached first at the end."""
    ordered = sorted(heads, key=lambda head: head.size, reverse=True)
    if any(head.organization != start.organization or head.size < start.size for head in ordered):
        raise ValueError("a head is of another organization, or of a time before the start")
    return ordered


def _readable(entries: Iterable[AuditEntry], reader: "_Reader") -> Iterator[AuditEntry]:
    """The entries, and the place of the first that cannot be read."""
    try:
        yield from entries
    except VerificationError as error:
        raise _broken(reader.position, Fault.EDITED, error.message) from None


class Fault(StrEnum):
    """What is wrong with an entry of a history."""

    EDITED = "edited"
    MISSING = "missing"
    INSERTED = "inserted"
    OUT_OF_ORDER = "out_of_order"


_SENTENCES: Final = {
    Fault.EDITED: "entry {} is not what was recorded",
    Fault.MISSING: "entry {} is missing",
    Fault.INSERTED: "what stands in the place of entry {} was inserted",
    Fault.OUT_OF_ORDER: "entry {} stands in another place",
}


def _broken(position: int, fault: Fault, detail: str = "") -> HistoryError:
    sentence = _SENTENCES[fault].format(position)
    return HistoryError(f"{sentence}: {detail}" if detail else sentence, position=position, fault=fault)


@attrs.frozen
class _Ahead:
    """
    What comes after an entry that does not fit.

    Attributes:
        following: The next entry, None at the end.
        has_expected: Whether the entry that belongs here comes later.
        has_place: Whether the entry that does not fit here would fit later, where nothing takes its place.
    """

    following: AuditEntry | None
    has_expected: bool
    has_place: bool


class _Reader:
    """Reads a history once: where it is, and what it needs to know to name a fault."""

    def __init__(self, start: AuditState, heads: list[AuditHead]) -> None:
        self.start, self.heads = start, heads
        self.frontier, self.last_hash, self.proven = start.frontier, start.last, start.size
        self.last: AuditEntry | None = None
        self.purged = 0

    @property
    def position(self) -> int:
        """Where the next entry stands."""
        return self.frontier.size + 1

    def read(self, entries: Iterator[AuditEntry]) -> None:
        self._compare(entries)
        for entry in entries:
            if not self._is_next(entry):
                raise self._explain(entry, entries)
            self._append(entry)
            self._compare(entries)

    def end(self) -> VerifiedHistory:
        if self.heads:
            raise _broken(self.position, Fault.MISSING, f"there must be {self.heads[0].size}, and nothing follows")
        return VerifiedHistory(_state(self.start.organization, self.frontier, self.last_hash), self.purged)

    def _append(self, entry: AuditEntry) -> None:
        self.frontier = self.frontier.append_hash(bytes.fromhex(entry.hash))
        self.last, self.last_hash = entry, entry.hash
        self.purged += entry.payload is None

    def _compare(self, rest: Iterator[AuditEntry]) -> None:
        """Check every head whose size is reached."""
        size = self.frontier.size
        while self.heads and self.heads[-1].size == size:
            if self.heads.pop().root != self.frontier.root.hex():
                raise self._explain_head(size, _next(rest))
            self.proven = size

    def _explain_head(self, size: int, following: AuditEntry | None) -> VerificationError:
        """What is signed differs: the last entry was edited when what follows is built on another one."""
        if following is not None and following.position == size + 1 and following.previous != self.last_hash:
            return _broken(size, Fault.EDITED)
        return RewrittenError(
            f"the history up to entry {size} is not the one that was signed: "
            f"something after entry {self.proven} was changed, and everything from there on written anew",
            after=self.proven,
            up_to=size,
        )

    def _is_next(self, entry: AuditEntry) -> bool:
        return entry.position == self.position and entry.previous == self.last_hash and self._is_sound(entry)

    def _is_sound(self, entry: AuditEntry) -> bool:
        return entry.organization == self.start.organization and _agrees_with_itself(entry)

    def _hash_at(self, entry: AuditEntry, position: int) -> str:
        return entry_hash(self.start.organization, position, entry.previous, entry.digest)

    def _explain(self, entry: AuditEntry, rest: Iterator[AuditEntry]) -> HistoryError:
        return _broken(*self._diagnose(entry, self._look_ahead(entry, rest)))

    def _look_ahead(self, entry: AuditEntry, rest: Iterator[AuditEntry]) -> _Ahead:
        following = _next(rest)
        expected = predecessor = again = False
        candidate = following
        while candidate is not None:
            expected = expected or self._is_next(candidate)
            predecessor = predecessor or candidate.hash == entry.previous
            again = again or candidate.position == entry.position
            candidate = _next(rest)
        return _Ahead(following, expected, self._is_sound(entry) and predecessor and not again)

    def _diagnose(self, entry: AuditEntry, ahead: _Ahead) -> tuple[int, Fault]:
        here, before = self.position, self.position - 1
        if ahead.has_expected:
            return here, Fault.OUT_OF_ORDER if ahead.has_place else Fault.INSERTED
        if self._is_rival_of_last(entry):
            return before, Fault.INSERTED
        if entry.previous == self.last_hash:  # it is the next one, but for something in it
            return here, Fault.EDITED
        if entry.position != here:
            is_surplus = entry.position < here and ahead.following is None
            return here, Fault.INSERTED if is_surplus else Fault.MISSING
        return self._other_past(entry, ahead), Fault.EDITED

    def _is_rival_of_last(self, entry: AuditEntry) -> bool:
        """Whether this and the last entry both follow the one before: then the last was put between them."""
        return (
            self.last is not None
            and self.last.position > self.proven
            and entry.previous == self.last.previous
            and entry.hash in {self._hash_at(entry, self.last.position), self._hash_at(entry, entry.position)}
            and entry.hash != self.last.hash
        )

    def _other_past(self, entry: AuditEntry, ahead: _Ahead) -> int:
        """
        Which of two neighbours was edited, when the second is built on another first.

        If the second agrees with itself and with what follows it, the first was edited, its hash included.
        """
        fits_on = ahead.following is None or ahead.following.previous == entry.hash
        first = self.position - 1
        return first if self._is_sound(entry) and fits_on and first > self.proven else self.position


def _agrees_with_itself(entry: AuditEntry) -> bool:
    """Whether the hash of an entry is that of its facts, and the digest that of its payload."""
    if entry_hash(entry.organization, entry.position, entry.previous, entry.digest) != entry.hash:
        return False
    return entry.payload is None or payload_digest(entry.payload, bytes.fromhex(entry.salt or "")) == entry.digest


def _next(entries: Iterator[AuditEntry]) -> AuditEntry | None:
    """The next entry; None at the end, or where nothing can be read any more."""
    try:
        return next(entries, None)
    except VerificationError:
        return None


def verify_entry(entry: AuditEntry, head: AuditHead, proof: Sequence[str]) -> None:
    """
    Verify that one entry is in a history, without the others.

    Args:
        entry: Untrusted.
        head: Trusted head, of `verify_head` for example.
        proof: Untrusted: `MerkleTree.inclusion_proof` of the leaf *position - 1*, each hash in hex.

    Raises:
        WrongRecipientError: An entry of another organization.
        ProofError: The payload or a hash is another, or it is not in this history.
    """
    if entry.organization != head.organization:
        raise WrongRecipientError("the entry is of another organization")
    if not _agrees_with_itself(entry):
        raise ProofError("the entry is not what was recorded")
    verify_inclusion(
        entry_leaf(entry.organization, entry.position, entry.previous, entry.digest),
        index=entry.position - 1,
        size=head.size,
        proof=[hex_decode(item, HASH_SIZE) for item in proof],
        root=bytes.fromhex(head.root),
    )
