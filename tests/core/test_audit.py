"""The audit log: whatever is changed in a history is noticed, and the first entry that is not right is named."""

import json
import random
import weakref
from contextlib import suppress
from functools import cache
from itertools import pairwise

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core import codec
from redflag_core.audit import (
    ENTRY_TYPE,
    MAX_LINE,
    MAX_PAYLOAD,
    NO_ENTRY,
    SALT_SIZE,
    AuditEntry,
    AuditHead,
    AuditState,
    Fault,
    append_entry,
    dump_entry,
    entry_hash,
    entry_leaf,
    parse_entries,
    parse_entry,
    payload_digest,
    verify_entry,
    verify_history,
)
from redflag_core.encoding import MAX_INTEGER, dump_json
from redflag_core.envelope import pae
from redflag_core.errors import (
    HistoryError,
    MalformedError,
    ProofError,
    RewrittenError,
    TooLargeError,
    VerificationError,
    WrongRecipientError,
)
from redflag_core.merkle import EMPTY_ROOT, MerkleTree, leaf_hash
from tests.vectors.make import HERE

ORGANIZATION = "0190b5a4-7a3c-7def-8abc-00000000000a"
OTHER = "0190b5a4-7a3c-7def-8abc-00000000000b"
START = AuditState(organization=ORGANIZATION)
SIZE = 12
CASES = json.loads((HERE / "audit.json").read_text(encoding="utf-8"))


@cache
def history(size, organization=ORGANIZATION):
    """Entries of a history, and the state at the end of it."""
    state, entries = AuditState(organization=organization), []
    for number in range(1, size + 1):
        entry, state = append_entry(state, f'{{"kind":"test.happened","n":{number}}}', salt=number.to_bytes(16))
        entries.append(entry)
    return tuple(entries), state


ENTRIES, END = history(SIZE)


def check(entries, heads=(), start=START):
    return verify_history(iter(entries), start=start, heads=heads)


def fault_of(entries, heads=(), start=START):
    """The first bad position and what is wrong with it."""
    with pytest.raises(HistoryError) as caught:
        check(entries, heads, start)
    assert str(caught.value.position) in caught.value.message
    return caught.value.position, caught.value.fault


def head_at(size, organization=ORGANIZATION):
    return history(size, organization)[1].head


def forged(entry, **changes):
    """*entry* with *changes* by somebody who made its digest and hash anew."""
    entry = attrs.evolve(entry, **changes)
    if entry.payload is not None:
        entry = attrs.evolve(entry, digest=payload_digest(entry.payload, bytes.fromhex(entry.salt)))
    return attrs.evolve(entry, hash=entry_hash(entry.organization, entry.position, entry.previous, entry.digest))


def chained(entries, start=START):
    """The same payloads as a new history: everything is made anew so that it holds together."""
    state, made = start, []
    for entry in entries:
        again, state = append_entry(state, entry.payload, salt=bytes.fromhex(entry.salt))
        made.append(again)
    return made


# What a history is


def test_an_entry_may_have_lost_what_happened():
    """Without salt and payload it is still an entry, and is in no other way different."""
    kept = {name: getattr(ENTRIES[0], name) for name in ("organization", "position", "previous", "digest", "hash")}

    assert attrs.evolve(ENTRIES[0], salt=None, payload=None) == AuditEntry(**kept)


def test_the_first_entry_follows_nothing():
    """Position 1, and the hash of no entry before it."""
    assert (1, NO_ENTRY, ORGANIZATION) == (ENTRIES[0].position, ENTRIES[0].previous, ENTRIES[0].organization)


def test_each_entry_names_the_one_before_it():
    """Positions have no gap, and each has the hash of its neighbour."""
    for before, after in pairwise(ENTRIES):
        assert (before.position + 1, before.hash) == (after.position, after.previous)


def test_the_hash_of_an_entry_covers_its_four_facts():
    """It is the hash of a leaf: the pre-authentication encoding of canonical JSON."""
    entry = ENTRIES[4]
    facts = (
        f'{{"digest":"{entry.digest}","organization":"{ORGANIZATION}","position":5,"previous":"{entry.previous}"}}'
    )

    assert leaf_hash(pae(ENTRY_TYPE, facts.encode())).hex() == entry.hash


def test_the_head_is_the_root_of_the_tree_over_the_entries():
    """One structure: the hashes that chain are the leaves."""
    for size in range(SIZE + 1):
        tree = MerkleTree.of_hashes(bytes.fromhex(entry.hash) for entry in ENTRIES[:size])
        assert AuditHead(organization=ORGANIZATION, size=size, root=tree.root().hex()) == head_at(size)


def test_the_head_of_nothing_is_the_empty_tree():
    """Before the first entry."""
    assert AuditHead(organization=ORGANIZATION, size=0, root=EMPTY_ROOT.hex()) == START.head


def test_a_state_can_be_stored():
    """It comes back from JSON as it was, and goes on."""
    for size in range(SIZE):
        state = history(size)[1]
        again = codec.parse(AuditState, codec.dump(state), max_bytes=10_000)
        assert state == again
        assert (ENTRIES[size], history(size + 1)[1]) == append_entry(
            again, ENTRIES[size].payload, salt=bytes.fromhex(ENTRIES[size].salt)
        )


@pytest.mark.parametrize(
    "changes",
    [{"size": 13}, {"size": 0}, {"nodes": ()}, {"last": NO_ENTRY}, {"nodes": ("0",) * 2}, {"last": "x"}],
    ids=str,
)
def test_a_damaged_state_is_noticed(changes):
    """Where its numbers do not fit each other."""
    with pytest.raises(ValueError, match=r"state has one hash|must match"):
        attrs.evolve(END, **changes)
    with pytest.raises(ValueError, match="state has one hash"):
        AuditState(organization=ORGANIZATION, last="a" * 64)


@pytest.mark.parametrize("salt", [b"", b"s" * (SALT_SIZE - 1), b"s" * (SALT_SIZE + 1)])
def test_a_salt_has_its_size(salt):
    """A short one would not hide anything."""
    with pytest.raises(ValueError, match="a salt has 16 bytes"):
        append_entry(START, "{}", salt=salt)


@pytest.mark.parametrize(
    "payload", ["x" * (MAX_PAYLOAD + 1), "a\x00b", "\ud800"], ids=["long", "null", "surrogate"]
)
def test_a_payload_can_be_stored_and_sent(payload):
    """What no database or JSON reader would give back is not recorded."""
    with pytest.raises(ValueError, match=r"payload|surrogates"):
        append_entry(START, payload, salt=bytes(16))


def test_an_entry_that_was_read_can_be_stored_too():
    """Its payload is bound to the same."""
    for payload in ("\ud800", "a\x00b", "x" * (MAX_PAYLOAD + 1)):
        with pytest.raises(ValueError, match=r"payload|surrogates"):
            attrs.evolve(ENTRIES[0], payload=payload)


def test_the_bounds_are_those_of_the_documentation():
    """64 Ki characters of a payload, and a line that holds them however they are written."""
    assert (65_536, 524_288, 16) == (MAX_PAYLOAD, MAX_LINE, SALT_SIZE)


def test_the_salt_decides_the_digest():
    """The same payload twice has two digests, so that none of them can be looked up."""
    one, other = (append_entry(START, "{}", salt=bytes([number]) * 16)[0] for number in (1, 2))

    assert one.digest != other.digest


# What verifies


@pytest.mark.parametrize("size", range(SIZE + 1))
def test_a_history_verifies(size):
    """It ends in the state of who wrote it, with its own head and with all earlier ones."""
    entries, state = history(size)
    heads = [head_at(earlier) for earlier in range(size + 1)]

    for some in ([], heads[-1:], heads, heads[::-1], heads + heads):
        verified = check(entries, some)
        assert (state, 0) == (verified.state, verified.purged)


@pytest.mark.parametrize("size", range(SIZE + 1))
def test_a_history_is_verified_in_parts(size):
    """Who keeps the state needs only what is new."""
    part = check(ENTRIES[:size]).state

    assert history(size)[1] == part
    assert END == check(ENTRIES[size:], [part.head, END.head], start=part).state


def test_entries_are_read_once_and_one_by_one():
    """Nothing is collected: when an entry is asked for, the ones before it are gone."""
    alive = weakref.WeakSet()

    @attrs.frozen(eq=False, kw_only=True)
    class Counted(AuditEntry):
        pass

    def stream():
        for entry in ENTRIES:
            counted = Counted(**attrs.asdict(entry))
            alive.add(counted)
            yield counted
            del counted
            assert len(alive) <= 2

    assert END == check(stream(), [END.head]).state


def test_purged_payloads_still_verify():
    """The hashes stay, and it is said how many were purged."""
    entries = [entry.purged() if entry.position % 3 == 0 else entry for entry in ENTRIES]

    verified = check(entries, [END.head])

    assert (END, 4) == (verified.state, verified.purged)
    assert (None, None) == (entries[2].payload, entries[2].salt)
    assert END == check([entry.purged() for entry in ENTRIES], [END.head]).state


def test_a_salt_does_not_outlive_its_payload():
    """With it the payload could be found by trying."""
    for changes in ({"payload": None}, {"salt": None}):
        with pytest.raises(ValueError, match="go together"):
            attrs.evolve(ENTRIES[0], **changes)


def test_a_part_is_proven_by_a_head_though_its_start_is_not_trusted():
    """Who gets a state from the server, and entries up to a signed head, knows that both are true."""
    start = history(5)[1]
    lie = attrs.evolve(start, nodes=(start.nodes[0], "ab" * 32))

    assert END == check(ENTRIES[5:], [END.head], start=start).state
    with pytest.raises(RewrittenError):
        check(ENTRIES[5:], [END.head], start=lie)


@pytest.mark.parametrize("head", [head_at(6, OTHER), head_at(4)], ids=["another organization", "before the start"])
def test_a_head_that_says_nothing_about_these_entries_is_a_mistake(head):
    """Of the caller: it would be passed over otherwise."""
    with pytest.raises(ValueError, match="another organization, or of a time before"):
        check(ENTRIES[5:], [head], start=history(5)[1])


# What is noticed: one entry of a history that is otherwise as it was

EDITS = {
    "payload": lambda entry: attrs.evolve(entry, payload=entry.payload.replace("test", "best")),
    "salt": lambda entry: attrs.evolve(entry, salt="ab" * 16),
    "digest": lambda entry: attrs.evolve(entry, digest="ab" * 32),
    "digest of a purged one": lambda entry: attrs.evolve(entry.purged(), digest="ab" * 32),
    "hash": lambda entry: attrs.evolve(entry, hash="ab" * 32),
    "previous": lambda entry: attrs.evolve(entry, previous="ab" * 32),
    "later position": lambda entry: attrs.evolve(entry, position=entry.position + 3),
    "far position": lambda entry: attrs.evolve(entry, position=10**6),
    "first position": lambda entry: attrs.evolve(entry, position=1 if entry.position > 1 else 2),
    "position made anew": lambda entry: forged(entry, position=entry.position + 1),
    "organization": lambda entry: attrs.evolve(entry, organization=OTHER),
    "organization made anew": lambda entry: forged(entry, organization=OTHER),
    "all but the hash": lambda entry: attrs.evolve(forged(entry, payload="{}"), hash=entry.hash),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("at", range(SIZE))
def test_an_edited_entry_is_named(edit, at):
    """Whatever is edited in it, and wherever it stands, with a head and without."""
    entries = [*ENTRIES[:at], EDITS[edit](ENTRIES[at]), *ENTRIES[at + 1 :]]

    assert (at + 1, Fault.EDITED) == fault_of(entries) == fault_of(entries, [END.head])


@pytest.mark.parametrize("at", range(SIZE - 1))
@pytest.mark.parametrize("purged", [False, True])
def test_an_entry_whose_hash_was_made_anew_is_named(at, purged):
    """It agrees with itself; what follows is built on what it was before."""
    entry = forged(ENTRIES[at].purged(), digest="ab" * 32) if purged else forged(ENTRIES[at], payload='{"n":0}')
    entries = [*ENTRIES[:at], entry, *ENTRIES[at + 1 :]]

    assert (at + 1, Fault.EDITED) == fault_of(entries) == fault_of(entries, [END.head, head_at(at)])
    assert (at + 1, Fault.EDITED) == fault_of(entries, [head_at(at + 1), END.head])


@pytest.mark.parametrize("at", range(1, SIZE - 1))
def test_an_entry_that_was_built_on_another_past_is_named(at):
    """Its hash was made anew, but neither what is before it nor what follows knows of that."""
    entries = [*ENTRIES[:at], forged(ENTRIES[at], previous="ab" * 32), *ENTRIES[at + 1 :]]

    assert (at + 1, Fault.EDITED) == fault_of(entries) == fault_of(entries, [END.head])


def test_the_last_entry_needs_a_head():
    """Nothing speaks for it otherwise: that is the limit of what a history proves by itself."""
    entries = [*ENTRIES[:-1], forged(ENTRIES[-1], payload='{"n":0}')]

    assert END != check(entries).state
    with pytest.raises(RewrittenError) as caught:
        check(entries, [head_at(SIZE - 1), END.head])
    assert (SIZE - 1, SIZE) == (caught.value.after, caught.value.up_to)


@pytest.mark.parametrize("at", range(SIZE))
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_missing_entry_is_named(at, count):
    """The first of them; at the end a head must say that there are more."""
    entries = [*ENTRIES[:at], *ENTRIES[at + count :]]

    assert (at + 1, Fault.MISSING) == fault_of(entries, [END.head])
    if at + count < SIZE:
        assert (at + 1, Fault.MISSING) == fault_of(entries)


@pytest.mark.parametrize("at", range(SIZE - 1))
def test_a_missing_entry_is_found_though_the_others_were_numbered_anew(at):
    """The first place where something else stands, whether or not their hashes were made anew."""
    moved = [attrs.evolve(entry, position=entry.position - 1) for entry in ENTRIES[at + 1 :]]

    assert at + 1 == fault_of([*ENTRIES[:at], *moved], [head_at(at)])[0]
    assert at + 1 == fault_of([*ENTRIES[:at], *map(forged, moved)], [head_at(at)])[0]


@pytest.mark.parametrize("at", range(SIZE + 1))
@pytest.mark.parametrize("of", [0, 3, SIZE - 1])
def test_a_copy_that_was_inserted_is_named(at, of):
    """The place where it stands: after the entry itself, that is the next one."""
    entries = [*ENTRIES[:at], ENTRIES[of], *ENTRIES[at:]]

    assert (at + 1 + (at == of), Fault.INSERTED) == fault_of(entries) == fault_of(entries, [head_at(at)])


@pytest.mark.parametrize("at", range(SIZE))
def test_an_invented_entry_is_named(at):
    """One that follows what is before it, made anew so that it agrees with itself, or not."""
    past = ENTRIES[at - 1].hash if at else NO_ENTRY
    invented = forged(ENTRIES[at], payload='{"n":0}', previous=past)
    elsewhere = forged(invented, position=99)

    for entry in (invented, elsewhere, attrs.evolve(invented, hash="ab" * 32)):
        entries = [*ENTRIES[:at], entry, *ENTRIES[at:]]
        assert (at + 1, Fault.INSERTED) == fault_of(entries) == fault_of(entries, [head_at(at)])


@pytest.mark.parametrize("at", range(SIZE))
def test_an_invented_entry_is_named_though_the_others_were_numbered_anew(at):
    """Two entries then follow the same one."""
    invented = forged(ENTRIES[at], payload='{"n":0}')
    moved = [attrs.evolve(entry, position=entry.position + 1) for entry in ENTRIES[at:]]

    assert (at + 1, Fault.INSERTED) == fault_of([*ENTRIES[:at], invented, *moved])
    assert (at + 1, Fault.INSERTED) == fault_of([*ENTRIES[:at], invented, *map(forged, moved)])


@pytest.mark.parametrize("one", range(SIZE))
@pytest.mark.parametrize("distance", [1, 2, 7])
def test_exchanged_entries_are_named(one, distance):
    """The first of the two places."""
    other = one + distance
    if other < SIZE:
        entries = list(ENTRIES)
        entries[one], entries[other] = entries[other], entries[one]
        assert (one + 1, Fault.OUT_OF_ORDER) == fault_of(entries) == fault_of(entries, [END.head])


@pytest.mark.parametrize("source", range(SIZE))
@pytest.mark.parametrize("target", range(SIZE))
def test_a_moved_entry_is_named(source, target):
    """The first place that is not as it was."""
    entries = list(ENTRIES)
    entries.insert(target, entries.pop(source))

    if source != target:
        assert (min(source, target) + 1, Fault.OUT_OF_ORDER) == fault_of(entries)


def test_an_entry_of_another_organization_is_named():
    """Though it is genuine there."""
    foreign = history(SIZE, OTHER)[0]

    assert (5, Fault.INSERTED) == fault_of([*ENTRIES[:4], foreign[4], *ENTRIES[4:]])
    assert (5, Fault.EDITED) == fault_of([*ENTRIES[:4], foreign[4], *ENTRIES[5:]])
    assert (1, Fault.EDITED) == fault_of(foreign)


def test_an_old_entry_in_place_of_another_is_named():
    """The one that should be there is missing; at the end, the old one is too much."""
    assert (6, Fault.MISSING) == fault_of([*ENTRIES[:5], ENTRIES[2], *ENTRIES[6:]])
    assert (6, Fault.INSERTED) == fault_of([*ENTRIES[:5], ENTRIES[2]])


def test_after_what_is_proven_the_later_of_two_neighbours_is_blamed():
    """A head speaks for the earlier one."""
    entries = [*ENTRIES[:6], forged(ENTRIES[6], previous="ab" * 32)]

    assert (6, Fault.EDITED) == fault_of(entries)
    assert (7, Fault.EDITED) == fault_of(entries, [head_at(6)])
    assert (7, Fault.EDITED) == fault_of(entries[6:], start=history(6)[1])
    assert (7, Fault.EDITED) == fault_of(
        [*ENTRIES[:6], forged(ENTRIES[5], payload="{}", position=7)], [head_at(6)]
    )


# What is noticed: a history that was written anew


@pytest.mark.parametrize("at", range(SIZE))
def test_a_history_that_was_written_anew_contradicts_a_head(at):
    """It holds together, and says something else than was signed: the change is between two heads."""
    changed = attrs.evolve(ENTRIES[at], payload='{"n":0}')
    entries = chained([*ENTRIES[:at], changed, *ENTRIES[at + 1 :]])
    heads = [head_at(size) for size in (0, 4, 8, SIZE)]
    bounds = next((a, b) for a, b in ((0, 4), (4, 8), (8, SIZE)) if a <= at < b)

    assert SIZE == check(entries).state.size
    with pytest.raises(RewrittenError) as caught:
        check(entries, heads)
    assert bounds == (caught.value.after, caught.value.up_to)


def test_a_shorter_history_that_was_written_anew_ends_too_early():
    """A head says how many entries there were."""
    entries = chained([*ENTRIES[:4], *ENTRIES[5:]])

    assert (SIZE, Fault.MISSING) == fault_of(entries, [END.head])
    with pytest.raises(RewrittenError):
        check(entries, [head_at(SIZE - 1)])


def test_a_head_at_the_start_must_be_that_of_the_start():
    """Before anything is read."""
    lie = attrs.evolve(head_at(5), root="ab" * 32)

    with pytest.raises(RewrittenError) as caught:
        check([], [lie], start=history(5)[1])
    assert caught.value.message == (
        "the history up to entry 5 is not the one that was signed: "
        "something after entry 5 was changed, and everything from there on written anew"
    )


def test_what_follows_shows_who_was_edited_only_if_it_follows():
    """The last entry below a head was made anew, and the one behind it is gone."""
    entries = [*ENTRIES[:4], forged(ENTRIES[4], payload="{}"), *ENTRIES[6:]]

    with pytest.raises(RewrittenError):
        check(entries, [head_at(5)])


def test_an_edited_entry_in_another_place_was_inserted():
    """It would fit nowhere."""
    edited = attrs.evolve(ENTRIES[4], payload="{}")

    assert (3, Fault.INSERTED) == fault_of([*ENTRIES[:2], edited, *ENTRIES[2:4], *ENTRIES[5:]])


def test_a_spoilt_copy_says_nothing_against_the_entry_before_it():
    """Only one whose hash is right speaks for itself."""
    spoilt = attrs.evolve(ENTRIES[2], hash="ab" * 32)

    assert (4, Fault.MISSING) == fault_of([*ENTRIES[:3], spoilt, *ENTRIES[4:]])


# Anything


@given(st.lists(st.sampled_from(ENTRIES), max_size=2 * SIZE), st.sampled_from([(), (END.head,)]))
def test_of_genuine_entries_in_any_order_the_first_wrong_place_is_named(entries, heads):
    """Whatever is left out, repeated or moved."""
    common = 0
    while common < min(len(entries), SIZE) and entries[common] == ENTRIES[common]:
        common += 1
    is_whole = common == len(entries) and (not heads or common == SIZE)

    assert is_whole or common + 1 == fault_of(entries, heads)[0]
    assert not is_whole or history(common)[1] == check(entries, heads).state


FIELDS = {
    "organization": st.sampled_from([ORGANIZATION, OTHER]),
    "position": st.integers(1, 20) | st.integers(1, MAX_INTEGER),
    "previous": st.sampled_from([NO_ENTRY, "ab" * 32, *(entry.hash for entry in ENTRIES)]),
    "digest": st.sampled_from([entry.digest for entry in ENTRIES]),
    "hash": st.sampled_from(["ab" * 32, *(entry.hash for entry in ENTRIES)]),
    "payload": st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20),
}


@given(st.integers(0, SIZE - 1), st.fixed_dictionaries({}, optional=FIELDS))
def test_whatever_one_entry_says_it_is_named_when_it_is_not_what_it_was(at, changes):
    """Any values in any of its fields."""
    edited = attrs.evolve(ENTRIES[at], **changes)
    entries = [*ENTRIES[:at], edited, *ENTRIES[at + 1 :]]

    if edited == ENTRIES[at]:
        assert END == check(entries, [END.head]).state
    else:
        assert at + 1 == fault_of(entries, [END.head])[0]


INVENTED = st.builds(
    lambda at, changes, anew: (forged if anew else lambda entry: entry)(attrs.evolve(ENTRIES[at], **changes)),
    st.integers(0, SIZE - 1),
    st.fixed_dictionaries({}, optional=FIELDS),
    st.booleans(),
)


@given(st.lists(INVENTED, max_size=6))
def test_any_entries_raise_one_family_only(entries):
    """Either they hold together, or it is said what does not."""
    with suppress(HistoryError):
        assert len(entries) == check(entries).state.size
    with suppress(HistoryError, RewrittenError):
        assert entries == list(ENTRIES[: len(entries)]) == list(ENTRIES)[: check(entries, [END.head]).state.size]


# 100,000 entries

LARGE = 100_000


@cache
def large():
    """A long history, made quickly, and its head."""
    previous, entries = NO_ENTRY, []
    for position in range(1, LARGE + 1):
        payload, salt = f'{{"n":{position}}}', position.to_bytes(16)
        digest = payload_digest(payload, salt)
        hashed = entry_hash(ORGANIZATION, position, previous, digest)
        entries.append(
            AuditEntry(
                organization=ORGANIZATION,
                position=position,
                previous=previous,
                digest=digest,
                hash=hashed,
                salt=salt.hex(),
                payload=payload,
            )
        )
        previous = hashed
    tree = MerkleTree.of_hashes(bytes.fromhex(entry.hash) for entry in entries)
    return entries, AuditHead(organization=ORGANIZATION, size=LARGE, root=tree.root().hex())


def tampered(kind, at):
    """The long history with one thing wrong at place *at* (from 0), and what is expected to be said of it."""
    entries = list(large()[0])
    if kind == "edited":
        entries[at] = attrs.evolve(entries[at], payload='{"n":0}')
    elif kind == "forged":
        entries[at] = forged(entries[at], payload='{"n":0}')
    elif kind == "missing":
        del entries[at]
    elif kind == "inserted":
        entries.insert(at, forged(entries[at], payload='{"n":0}'))
    else:
        entries[at], entries[at + 1] = entries[at + 1], entries[at]
    return entries, {"forged": Fault.EDITED}.get(kind, kind)


def test_an_entry_of_a_hundred_thousand_is_named():
    """The whole verifies; a random one of them that is edited, and one that is missing, is found."""
    entries, head = large()
    at = random.Random(LARGE).randrange(LARGE // 2, LARGE - 1)

    assert head == check(entries, [head]).state.head
    for kind in ("edited", "missing"):
        changed, fault = tampered(kind, at)
        assert (at + 1, fault) == fault_of(changed, [head])


@pytest.mark.full
@pytest.mark.parametrize("kind", ["edited", "forged", "missing", "inserted", "out_of_order"])
def test_whatever_is_done_to_a_hundred_thousand_entries_is_named(kind):
    """At both ends and at twenty places between."""
    head = large()[1]
    for at in (0, 1, LARGE - 3, LARGE - 2, *random.Random(kind).sample(range(LARGE - 1), 20)):
        entries, fault = tampered(kind, at)
        assert (at + 1, fault) == fault_of(entries, [head])


@pytest.mark.full
def test_whatever_is_done_to_a_thousand_entries_is_named():
    """At every place."""
    entries, end = history(1000)
    for at in range(999):
        edited = attrs.evolve(entries[at], payload="{}")
        assert (at + 1, Fault.EDITED) == fault_of([*entries[:at], edited, *entries[at + 1 :]])
        assert (at + 1, Fault.MISSING) == fault_of([*entries[:at], *entries[at + 1 :]], [end.head])
        assert (at + 1, Fault.INSERTED) == fault_of([*entries[:at], forged(edited), *entries[at:]])
        swapped = (entries[at + 1], entries[at])
        assert (at + 1, Fault.OUT_OF_ORDER) == fault_of([*entries[:at], *swapped, *entries[at + 2 :]])


# One entry by itself


@pytest.mark.parametrize("at", range(SIZE))
def test_one_entry_is_proven_without_the_others(at):
    """By its place in the tree, its payload purged or not."""
    tree = MerkleTree.of_hashes(bytes.fromhex(entry.hash) for entry in ENTRIES)
    proof = [item.hex() for item in tree.inclusion_proof(at)]
    entry = ENTRIES[at]

    verify_entry(entry, END.head, proof)
    verify_entry(entry.purged(), END.head, proof)
    for edit in EDITS.values():
        with pytest.raises((ProofError, WrongRecipientError)):
            verify_entry(edit(entry), END.head, proof)
    with pytest.raises(ProofError):
        verify_entry(forged(entry, payload="{}"), END.head, proof)


def test_an_entry_of_another_organization_is_not_looked_for():
    """It is genuine, and meant for somebody else."""
    foreign = history(SIZE, OTHER)[0][3]

    with pytest.raises(WrongRecipientError, match="another organization"):
        verify_entry(foreign, END.head, [])


@given(st.lists(st.text(max_size=70) | st.sampled_from([entry.hash for entry in ENTRIES]), max_size=6))
def test_any_proof_of_an_entry_raises_one_family_only(proof):
    """Untrusted text is refused, whatever it is."""
    with pytest.raises(VerificationError):
        verify_entry(ENTRIES[3], END.head, proof)


# Export


@pytest.mark.parametrize("entry", [*ENTRIES[:2], ENTRIES[2].purged()], ids=["first", "second", "purged"])
def test_an_entry_comes_back_from_its_line(entry):
    """One line, with or without its end."""
    line = dump_entry(entry)

    assert b"\n" not in line
    assert entry == parse_entry(line) == parse_entry(line + b"\n")


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=200),
    st.binary(min_size=16, max_size=16),
)
def test_any_payload_comes_back_exactly(payload, salt):
    """Line ends, quotes and every alphabet: byte for byte, or it would not verify."""
    entry, state = append_entry(END, payload, salt=salt)

    assert b"\n" not in dump_entry(entry)
    assert [entry] == list(parse_entries([dump_entry(entry) + b"\n"]))
    assert state == check(parse_entries([dump_entry(entry)]), [state.head], start=END).state


@pytest.mark.parametrize("character", ["\x01", '"', "\U0001f600"])
def test_the_longest_payload_fits_into_a_line(character):
    """Whatever it is made of."""
    entry, _ = append_entry(START, character * MAX_PAYLOAD, salt=bytes(16))

    assert entry == parse_entry(dump_entry(entry))


def test_a_line_has_a_largest_size():
    """More is refused before it is read."""
    with pytest.raises(TooLargeError):
        parse_entry(b" " * (MAX_LINE + 1))


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2},
        {"organization": ORGANIZATION.upper()},
        {"position": 0},
        {"position": -1},
        {"position": 1.0},
        {"position": True},
        {"position": MAX_INTEGER + 1},
        {"previous": "AB" * 32},
        {"digest": "ab"},
        {"hash": None},
        {"salt": None},
        {"payload": None},
        {"salt": "ab" * 15},
        {"payload": "a\x00"},
        {"payload": {}},
        {"more": 1},
    ],
    ids=str,
)
def test_a_line_has_one_form(changes):
    """Unknown fields, other types and other spellings are refused."""
    with pytest.raises(MalformedError):
        parse_entry(dump_json({**codec.unstructure(ENTRIES[0]), **changes}))


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_in_one_way_only(line):
    """They are no entry, or they are one."""
    with pytest.raises(MalformedError):
        parse_entry(line)


@given(st.binary(max_size=4), st.integers(0, 500), st.integers(0, 4))
def test_a_line_with_other_bytes_is_refused_or_another_entry(junk, at, cut):
    """Nothing that was put into a line goes unnoticed."""
    line = dump_entry(ENTRIES[0])
    changed = line[:at] + junk + line[at + cut :]

    with suppress(MalformedError):
        entry = parse_entry(changed)
        assert entry == ENTRIES[0] or (1, Fault.EDITED) == fault_of([entry, *ENTRIES[1:]])


@pytest.mark.parametrize("at", range(SIZE))
def test_a_line_that_cannot_be_read_is_named(at):
    """As an edit of the entry that stands there; what comes after it does not matter."""
    lines = [dump_entry(entry) + b"\n" for entry in ENTRIES]
    lines[at] = b"{}\n"

    assert (at + 1, Fault.EDITED) == fault_of(parse_entries(lines))
    if at > 1:
        assert (1, Fault.MISSING) == fault_of(parse_entries(lines[1:]))


@pytest.mark.parametrize(
    "entries, expected",
    [
        ([*ENTRIES[:3], attrs.evolve(ENTRIES[3], payload="{}"), *ENTRIES[4:]], "entry 4 is not what was recorded"),
        ([*ENTRIES[:3], *ENTRIES[4:]], "entry 4 is missing"),
        ([*ENTRIES[:3], forged(ENTRIES[3], payload="{}"), *ENTRIES[3:]],
         "what stands in the place of entry 4 was inserted"),
        ([*ENTRIES[:3], ENTRIES[4], ENTRIES[3], *ENTRIES[5:]], "entry 4 stands in another place"),
        (ENTRIES[:3], "entry 4 is missing: there must be 12, and nothing follows"),
        (parse_entries([*map(dump_entry, ENTRIES[:3]), b"{"]),
         "entry 4 is not what was recorded: not a JSON document in UTF-8"),
    ],
)  # fmt: skip
def test_the_message_says_what_happened_to_which_entry(entries, expected):
    """And what is known beyond that."""
    with pytest.raises(HistoryError) as caught:
        check(entries, [END.head])

    assert expected == caught.value.message


# The committed known answers


def test_the_known_answers_hold():
    """By the formulas, and by the verifier."""
    entries = [parse_entry(line.encode()) for line in CASES["lines"]]
    state = AuditState(organization=CASES["organization"])

    for entry, leaf, root in zip(entries, CASES["leaves"], CASES["roots"], strict=True):
        assert leaf == entry_leaf(entry.organization, entry.position, entry.previous, entry.digest).decode()
        assert leaf_hash(leaf.encode()).hex() == entry.hash
        state = check([entry], start=state).state
        assert root == state.head.root
    assert 1 == check(entries, [state.head], start=AuditState(organization=CASES["organization"])).purged
