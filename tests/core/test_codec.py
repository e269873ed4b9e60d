"""The codec: strict in, canonical out, and a failure that says where without saying what."""

from contextlib import suppress
from enum import StrEnum

import attrs
import pytest
from attrs import validators
from hypothesis import given
from hypothesis import strategies as st

from redflag_core import codec
from redflag_core.encoding import MAX_INTEGER, JsonValue
from redflag_core.errors import MalformedError, TooLargeError


class Colour(StrEnum):
    RED = "red"
    GREEN = "green"


@attrs.frozen
class Inner:
    number: int
    ratio: float = 0.5

    def __attrs_post_init__(self):
        if self.number == 13:
            raise ValueError("13 is bad luck")


def _refuse_x(_instance, attribute, value):
    if value == "x":
        raise MalformedError(f"{attribute.name} must not be x")


@attrs.frozen
class Outer:
    name: str = attrs.field(validator=validators.max_len(5))
    flag: bool
    colour: Colour = Colour.RED
    inner: Inner | None = None
    many: tuple[Inner, ...] = ()
    names: dict[str, str] = attrs.field(factory=dict)
    facts: dict[str, JsonValue] = attrs.field(factory=dict, validator=validators.max_len(2))
    code: str | None = attrs.field(
        default=None, validator=validators.optional([validators.matches_re("[a-z]+"), _refuse_x])
    )


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=5)
INTEGER = st.integers(-MAX_INTEGER, MAX_INTEGER)
FLOAT = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | INTEGER | FLOAT | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
INNERS = st.builds(Inner, INTEGER.filter(lambda number: number != 13), FLOAT)
OUTERS = st.builds(
    Outer,
    TEXT,
    st.booleans(),
    st.sampled_from(Colour),
    st.none() | INNERS,
    st.lists(INNERS, max_size=3).map(tuple),
    st.dictionaries(TEXT, TEXT, max_size=3),
    st.dictionaries(TEXT, JSON, max_size=2),
    st.sampled_from([None, "abc"]),
)
LEAST = {"name": "a", "flag": True}


def refusal(value, cls=Outer):
    with pytest.raises(MalformedError) as caught:
        codec.structure(cls, value)
    return caught.value.message


@given(OUTERS)
def test_a_value_comes_back_as_it_went_out(value):
    """Dump and parse are inverse for every supported type of field."""
    assert value == codec.parse(Outer, codec.dump(value), max_bytes=100_000)
    assert value == codec.structure(Outer, codec.unstructure(value))


@given(OUTERS)
def test_equal_values_have_equal_bytes(value):
    """The bytes are canonical: a digest over them is repeatable."""
    assert codec.dump(value) == codec.dump(codec.parse(Outer, codec.dump(value), max_bytes=100_000))


@given(JSON | st.fixed_dictionaries(dict.fromkeys(LEAST, JSON), optional=dict.fromkeys(["many", "inner"], JSON)))
def test_any_json_is_a_value_or_malformed(value):
    """Whatever document comes in, the only exception that comes out is `MalformedError`."""
    with suppress(MalformedError):
        assert isinstance(codec.structure(Outer, value), Outer)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_value_or_malformed(data):
    """Whatever bytes come in, the only exception that comes out is `MalformedError`."""
    with pytest.raises(MalformedError):
        codec.parse(Outer, data, max_bytes=100)


def test_defaults_may_be_left_out():
    """Fields with a default may be missing; the value has the default."""
    assert Outer("a", True) == codec.structure(Outer, LEAST)


def test_an_integer_will_do_for_a_float():
    """JSON has one kind of number: 1 is 1.0 where a float is expected, and becomes one."""
    ratio = codec.structure(Inner, {"number": 1, "ratio": 2}).ratio

    assert (2.0, float) == (ratio, type(ratio))


@pytest.mark.parametrize(
    "field, value",
    [
        ("name", 5),
        ("name", None),
        ("name", ["a"]),
        ("flag", 1),
        ("flag", "true"),
        ("flag", None),
        ("colour", "blue"),
        ("colour", "RED"),
        ("colour", 0),
        ("colour", []),
        ("inner", {}),
        ("inner", []),
        ("inner", "x"),
        ("inner", {"number": "5"}),
        ("inner", {"number": True}),
        ("inner", {"number": 1.0}),
        ("inner", {"number": None}),
        ("inner", {"number": 1, "ratio": True}),
        ("inner", {"number": 1, "ratio": "0.5"}),
        ("inner", {"number": 1, "unknown": 1}),
        ("many", {}),
        ("many", "abc"),
        ("many", None),
        ("many", [None]),
        ("many", [{"number": 1}, 5]),
        ("names", []),
        ("names", "abc"),
        ("names", {"a": 5}),
        ("facts", ["a"]),
        ("facts", None),
    ],
)
def test_nothing_is_coerced(field, value):
    """A value of another JSON type than the field's is refused, and the message names the field."""
    assert f"$.{field}" in refusal({**LEAST, field: value})


def test_the_message_names_the_place():
    """The path leads to the value that is wrong, through lists and objects."""
    assert "$.many[1].number" in refusal({**LEAST, "many": [{"number": 1}, {"number": "x"}]})
    assert "$.names['k']" in refusal({**LEAST, "names": {"k": 1}})
    assert "required field missing @ $.name" == refusal({"flag": True})
    assert "extra fields found (other) @ $" == refusal({**LEAST, "other": 1})
    assert "Outer must be a JSON object" == refusal([LEAST])


def test_the_message_of_a_bound_names_the_field():
    """A failing validator says which field, one of our own also why."""
    assert "name is out of bounds @ $" == refusal({**LEAST, "name": "abcdef"})
    assert "facts is out of bounds @ $" == refusal({**LEAST, "facts": dict.fromkeys("abc")})
    assert "code must not be x @ $" == refusal({**LEAST, "code": "x"})
    assert "13 is bad luck @ $.many[0]" == refusal({**LEAST, "many": [{"number": 13}]})


@pytest.mark.parametrize("field", ["name", "code", "colour", "inner", "many", "names"])
def test_the_message_never_holds_the_value(field):
    """A secret in the wrong field, or of the wrong length, does not end up in a log."""
    for value in ("S3CRET-VALUE", ["S3CRET"], {"a": ["S3CRET"]}):
        assert "S3CRET" not in refusal({**LEAST, field: value})


def test_the_message_is_one_short_printable_line():
    """A sender cannot write lines of its own into a log through the names of unknown fields."""
    message = refusal({**LEAST, "\n2026 login ok\x1b[2J" * 1000: 1})

    assert message.isprintable()
    assert codec.MAX_MESSAGE == len(message)


@attrs.frozen
class Others:
    """Kinds that few messages have."""

    pair: tuple[int, str] | None = None
    inners: dict[str, Inner] = attrs.field(factory=dict)
    by_number: dict[int, str] = attrs.field(factory=dict)


def test_an_object_is_given_up_at_its_first_bad_item():
    """Whatever kind its items are."""
    bad = {"a": {"number": 1}} | {str(number): 5 for number in range(1000)}

    assert Others(inners={"a": Inner(1)}) == codec.structure(Others, {"inners": {"a": {"number": 1}}})
    assert "invalid value for type, expected Inner @ $.inners['0']" == refusal({"inners": bad}, Others)
    assert "invalid value for type, expected str @ $.names['0']" == refusal({**LEAST, "names": bad | {"a": "x"}})


def test_each_place_of_a_pair_has_its_kind():
    """Only lists of any length have one for all; and keys that are numbers are not made of texts."""
    assert Others((1, "a")) == codec.structure(Others, {"pair": [1, "a"]})
    assert "$.pair" in refusal({"pair": [1, 2]}, Others)
    assert "$.by_number" in refusal({"by_number": {"1": "a"}}, Others)


def test_several_reasons_are_one_sentence():
    """Each with its place."""
    message = refusal({"name": 5, "flag": 1})

    assert ["$.name", "$.flag"] == [reason.rpartition(" ")[2] for reason in message.split("; ")]


@attrs.frozen
class Wordless:
    """Refuses without a word."""

    def __attrs_post_init__(self):
        raise ValueError


def test_a_refusal_without_a_word_has_a_message():
    """A validator of somebody else may give none."""
    assert "invalid @ $" == refusal({}, Wordless)


def test_a_list_is_given_up_at_its_first_bad_item():
    """A million bad items cost no more than one: the message names the first, and nothing is collected."""
    message = refusal({**LEAST, "many": [{"number": 1}] + [5] * 1_000_000})

    assert "invalid value for type, expected Inner @ $.many[1]" == message


def test_a_large_document_is_refused_before_it_is_read():
    """The bound of the size comes first."""
    with pytest.raises(TooLargeError):
        codec.parse(Outer, b"x" * 101, max_bytes=100)
