"""The contract of a bridge: events and links, what a status means, and that the contract finds mistakes."""

import hashlib
import json
from contextlib import suppress

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core import codec
from redflag_core.bridge import (
    MAX_DATA_BYTES,
    MAX_DETAIL,
    MAX_RETRY_AFTER,
    MAX_TITLE,
    Bridge,
    Capability,
    Event,
    Field,
    FieldKind,
    Health,
    InboundHint,
    Link,
    Manifest,
    Phase,
    Record,
    RecordStatus,
    Subject,
    error_of_status,
    shorten,
)
from redflag_core.errors import (
    BridgeCredentialsError,
    BridgeGoneError,
    BridgeRejectedError,
    BridgeUnavailableError,
    MalformedError,
)
from redflag_core.scanning import Severity
from redflag_core.testing import BridgeContract, MemoryBridge, make_event

SECRET = "correct horse battery staple"


def arranger(bridge):
    """What makes the peer of a `MemoryBridge` answer so the next time."""
    troubles = {
        "busy": BridgeUnavailableError("busy", retry_after=30.0),
        "credentials": BridgeCredentialsError("sign in again"),
        "rejected": BridgeRejectedError("give the board a name"),
    }

    def arrange(word):
        if word == "deleted":
            bridge.records.clear()
        else:
            bridge.trouble = troubles[word]

    return arrange


class TestMemoryBridge(BridgeContract):
    """The public fake keeps the contract."""

    @pytest.fixture
    def bridge(self) -> Bridge:
        return MemoryBridge(SECRET)

    @pytest.fixture
    def arrange(self, bridge):
        return arranger(bridge)

    @pytest.fixture
    def secrets(self):
        return (SECRET,)


class Chat(MemoryBridge):
    """A bridge that can only say things."""

    manifest = Manifest(name="chat", title="Chat", capabilities=frozenset())

    async def create(self, event):
        self._answer()
        self.records[str(len(self.records))] = None
        return Link(external_key=event.external_key, external_id=str(len(self.records)))

    async def find(self, external_key):
        raise AssertionError("it cannot")

    update = read = find


class TestChat(TestMemoryBridge):
    """A bridge is only asked for what it says that it can do."""

    @pytest.fixture
    def bridge(self) -> Bridge:
        return Chat(SECRET)


# The contract finds what is wrong


class Forgetful(MemoryBridge):
    """Does not write the key into the record."""

    async def create(self, event):
        link = await super().create(event)
        self.records[link.external_id].external_key = ""
        return link


class Doubling(MemoryBridge):
    """Makes a new record each time."""

    async def create(self, event):
        self._answer()
        return await super().create(attrs.evolve(event, incident=make_event(len(self.records) + 9).incident))


class NeverCloses(MemoryBridge):
    """Takes the end for one more note."""

    async def update(self, link, event):
        return await super().update(link, attrs.evolve(event, phase=Phase.UPDATE))


class ClosesAtOnce(MemoryBridge):
    """Takes every note for the end."""

    async def update(self, link, event):
        return await super().update(link, attrs.evolve(event, phase=Phase.RESOLVE))


class Talkative(MemoryBridge):
    """Shows its secret to whoever logs it."""

    def __repr__(self):
        return f"Talkative({self._secret})"


class Coarse(MemoryBridge):
    """Calls every trouble a rejection."""

    def _answer(self):
        try:
            super()._answer()
        except Exception:
            raise BridgeRejectedError("no") from None

    def _record(self, link):
        try:
            return super()._record(link)
        except BridgeGoneError:
            raise BridgeRejectedError("no") from None


class Silent(MemoryBridge):
    """Says that all is well when nothing is."""

    async def check(self):
        return Health(account="memory")

    def _answer(self):
        self.trouble = None


@pytest.mark.parametrize(
    "mistaken,test",
    [
        (Forgetful, "test_what_was_created_is_found_by_its_key"),
        (Forgetful, "test_creating_again_makes_no_second_record"),
        (Forgetful, "test_any_text_arrives"),
        (Doubling, "test_creating_again_makes_no_second_record"),
        (NeverCloses, "test_the_end_closes_the_record"),
        (ClosesAtOnce, "test_an_update_keeps_the_record"),
        (Talkative, "test_secrets_do_not_show"),
        (Coarse, "test_trouble_has_one_of_four_names"),
        (Coarse, "test_a_test_of_the_connection_finds_wrong_credentials"),
        (Coarse, "test_after_trouble_the_same_event_passes"),
        (Coarse, "test_a_deleted_record_is_gone"),
        (Silent, "test_trouble_has_one_of_four_names"),
        (Silent, "test_a_test_of_the_connection_finds_wrong_credentials"),
    ],
)
async def test_the_contract_finds_a_bridge_that_is_wrong(mistaken, test):
    """A contract that nothing can break would prove nothing."""
    bridge = mistaken(SECRET)
    known = {"bridge": bridge, "arrange": arranger(bridge), "secrets": (SECRET,)}
    check = getattr(BridgeContract(), test)
    wanted = check.__code__.co_varnames[1 : check.__code__.co_argcount]

    with pytest.raises(AssertionError):
        await check(**{name: known[name] for name in wanted})


# Values


def test_the_fake_fits_titles_and_keeps_notes():
    """What a test sees in the desk is what a person would."""
    event = make_event(title="x" * MAX_TITLE)

    assert 100 >= MemoryBridge.manifest.longest_title
    assert shorten(event.title, 100) == "x" * 99 + "…"


async def test_the_desk_of_the_fake_can_be_looked_at():
    """Titles, notes and states are there for a test to assert."""
    bridge = MemoryBridge()
    link = await bridge.create(make_event())
    await bridge.update(link, make_event(phase=Phase.RESOLVE, title="all is well"))

    [record] = bridge.records.values()
    assert "nginx could not be installed on web1" == record.title
    assert (["all is well"], RecordStatus.CLOSED) == (record.notes, record.status)
    assert "MemoryBridge(1 records)" == repr(bridge)


def test_the_external_key_is_one_for_each_incident():
    """The same in every event of the incident, another for any other, and safe in every query language."""
    events = [
        make_event(),
        make_event(2),
        make_event(dedup_key="x"),
        make_event(incident=make_event(2).incident),
        make_event(organization=make_event(2).incident),
    ]

    keys = [event.external_key for event in events]

    assert len(events) == len(set(keys))
    assert {keys[0]} == {make_event(phase=phase, title="x", severity=Severity.LOW).external_key for phase in Phase}
    first = json.dumps([events[0].organization, "package:1", events[0].incident], separators=(",", ":"))
    assert f"redflag-{hashlib.sha256(first.encode()).hexdigest()[:32]}" == keys[0]
    assert all(40 == len(key) and key.replace("-", "").isalnum() and key.isascii() for key in keys)


def test_an_event_survives_its_wire_form():
    """An outbox holds it as JSON."""
    event = make_event(data={"n": 1}, url="https://rf.example.com/x", site=make_event().incident, detail="a\nb")

    assert event == codec.parse(Event, codec.dump(event), max_bytes=100_000)


@pytest.mark.parametrize(
    "change",
    [
        {"id": "1"},
        {"position": -1},
        {"kind": "failed"},
        {"kind": "Package.Failed"},
        {"at": -1},
        {"organization": ""},
        {"site": "x"},
        {"dedup_key": ""},
        {"dedup_key": "x" * 201},
        {"incident": "x"},
        {"title": ""},
        {"title": "a\nb"},
        {"title": "x" * (MAX_TITLE + 1)},
        {"detail": "x" * (MAX_DETAIL + 1)},
        {"detail": "a\x00b"},
        {"detail": "\ud800"},
        {"url": "x" * 2001},
        {"data": {"x": "x" * MAX_DATA_BYTES}},
    ],
)
def test_an_event_has_bounds(change):
    """What no other system could take is not made."""
    [field] = change
    with pytest.raises((ValueError, MalformedError), match=field):
        make_event(**change)


def test_the_longest_event_is_accepted():
    """Bounds are inclusive."""
    data = {"x": "x" * (MAX_DATA_BYTES - len('{"x":""}'))}

    event = make_event(title="x" * MAX_TITLE, detail="x" * MAX_DETAIL, dedup_key="x" * 200, data=data)

    assert event == codec.parse(Event, codec.dump(event), max_bytes=100_000)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_event_or_malformed(data):
    """No input does anything else."""
    with suppress(MalformedError):
        codec.parse(Event, data, max_bytes=1000)


def test_values_of_other_systems_are_bounded():
    """What a peer answers is not kept whatever its size."""
    for make in (
        lambda text: Link(external_key="x", external_id=text),
        lambda text: Link(external_key=text, external_id="x"),
        lambda text: Link(external_key="x", external_id="x", etag=text),
        lambda text: Record(external_id=text, status=RecordStatus.OPEN),
        lambda text: InboundHint(external_id=text),
        lambda text: InboundHint(external_id="x", delivery=text),
        lambda text: Health(account=text),
        lambda text: Health(account="x", version=text),
        lambda text: Health(account="x", missing=(text,)),
        lambda text: Subject(hostname=text),
    ):
        assert make("x")
        for wrong in ("", "x" * 2001, "a\r\nb"):
            with pytest.raises(ValueError, match=r"."):
                make(wrong)
    with pytest.raises(ValueError, match="missing"):
        Health(account="x", missing=("x",) * 51)


def test_a_manifest_names_its_secrets():
    """The fields that are kept encrypted and never shown."""
    fields = [
        Field(name=kind.value, title=kind, kind=kind, choices=("a",) * (kind == "choice")) for kind in FieldKind
    ]

    assert {"secret"} == Manifest(name="x", title="X", capabilities=frozenset(), fields=tuple(fields)).secrets


@pytest.mark.parametrize("kind,choices", [(FieldKind.CHOICE, ()), (FieldKind.TEXT, ("a",))])
def test_choices_belong_to_a_choice(kind, choices):
    """A list without values cannot be filled in."""
    with pytest.raises(ValueError, match="choices"):
        Field(name="x", title="X", kind=kind, choices=choices)


@pytest.mark.parametrize("name", ["", "X", "1x", "a-b", "a" * 41])
def test_names_are_keys(name):
    """They go into settings, addresses and file names."""
    with pytest.raises(ValueError, match="name"):
        Field(name=name, title="X")
    with pytest.raises(ValueError, match="name"):
        Manifest(name=name, title="X", capabilities=frozenset())


@pytest.mark.parametrize("longest", [19, MAX_TITLE + 1])
def test_a_longest_title_is_one_that_people_can_read(longest):
    """A desk that takes less is not one."""
    with pytest.raises(ValueError, match="longest_title"):
        Manifest(name="x", title="X", capabilities=frozenset(), longest_title=longest)


# Helpers


@pytest.mark.parametrize(
    "text,limit,expected",
    [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("a bcd", 3, "a…"), ("abcd", 1, "…"), ("", 1, "")],
)
def test_a_long_text_is_cut_where_people_see_it(text, limit, expected):
    """With an ellipsis, and never longer than the limit."""
    assert expected == shorten(text, limit)


@given(st.text(max_size=50), st.integers(1, 60))
def test_a_shortened_text_fits(text, limit):
    """Whatever it was; a text that fits stays."""
    assert len(shorten(text, limit)) <= limit
    assert shorten(text, limit) == text or len(text) > limit


@pytest.mark.parametrize(
    "status,expected",
    [
        (200, None),
        (299, None),
        (199, BridgeRejectedError),
        (300, BridgeRejectedError),
        (301, BridgeRejectedError),
        (400, BridgeRejectedError),
        (401, BridgeCredentialsError),
        (402, BridgeRejectedError),
        (403, BridgeCredentialsError),
        (404, BridgeGoneError),
        (408, BridgeUnavailableError),
        (409, BridgeRejectedError),
        (410, BridgeGoneError),
        (422, BridgeRejectedError),
        (425, BridgeUnavailableError),
        (429, BridgeUnavailableError),
        (499, BridgeRejectedError),
        (500, BridgeUnavailableError),
        (503, BridgeUnavailableError),
    ],
)
def test_a_status_says_what_happens_next(status, expected):
    """The sentence has the status in it, for whoever has to look."""
    error = error_of_status(status)

    assert (expected or type(None)) is type(error)
    assert error is None or str(status) in error.message


@pytest.mark.parametrize(
    "text,expected",
    [
        (None, None),
        ("30", 30.0),
        (" 30 ", 30.0),
        ("0", 0.0),
        ("86400", MAX_RETRY_AFTER),
        ("86401", MAX_RETRY_AFTER),
        ("999999999", MAX_RETRY_AFTER),
        ("9999999999", None),
        ("-1", None),
        ("1.5", None),
        ("٣", None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        ("", None),
    ],
)
def test_the_wait_that_is_asked_for_is_bounded(text, expected):
    """Whatever a peer writes, it is seconds within a day or nothing."""
    assert expected == error_of_status(429, retry_after=text).retry_after


@given(st.text(max_size=20))
def test_any_wait_is_seconds_or_nothing(text):
    """No input does anything else."""
    wait = error_of_status(503, retry_after=text).retry_after

    assert wait is None or 0 <= wait <= MAX_RETRY_AFTER


def test_what_a_fake_can_do_is_what_it_says():
    """Everything but telling about changes."""
    assert {Capability.INBOUND} == set(Capability) - MemoryBridge.manifest.capabilities
