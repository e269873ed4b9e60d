"""Mutation testing itself: what is a mistake, and that one is noticed."""

import colorsys
import importlib.util
from pathlib import Path

import pytest

from tests.mutation.allowed import allowed
from tests.mutation.modules import MODULES

NO_MUTMUT = "needs mutmut, which `make mutation` installs"

CODE = '''"""A module."""
import attrs

MOST = 3

@attrs.frozen
class Few:
    items: tuple[int, ...] = attrs.field(validator=[a, b])

    @property
    def first(self) -> int:
        if not self.items and MOST:
            raise ValueError("there is none", MOST)
        return [item for item in self.items if item][0]
'''


@pytest.fixture
def changes():
    """Every mistake in `CODE`, by function."""
    mutants = pytest.importorskip("tests.mutation.mutants", reason=NO_MUTMUT, exc_type=ImportError)
    return {(mutant.function, *mutant.change()) for mutant in mutants.mutants_of("few", CODE)}


@pytest.mark.parametrize(
    "function, before, after",
    [
        ("", "MOST = 3", "MOST = 4"),
        ("Few", "items: tuple[int, ...] = attrs.field(validator=[a, b])",
         "items: tuple[int, ...] = attrs.field(validator=[a,])"),
        ("Few.first", 'raise ValueError("there is none", MOST)', "pass"),
        ("Few.first", 'raise ValueError("there is none", MOST)', 'raise ValueError("there is none", None)'),
        ("Few.first", "if not self.items and MOST:", "if (not self.items and MOST) or True:"),
        ("Few.first", "if not self.items and MOST:", "if (not self.items):"),
        ("Few.first", "if not self.items and MOST:", "if self.items and MOST:"),
        ("Few.first", "return [item for item in self.items if item][0]",
         "return [item for item in self.items if True][0]"),
    ],
)  # fmt: skip
def test_mistakes_are_made_in_every_place_that_decides(changes, function, before, after):
    """Constants, fields and decorated functions too; a check that is not made is one of them."""
    assert (function, before, after) in changes


def test_no_mistake_is_made_in_what_is_said_to_people(changes):
    """Not in messages, docstrings, annotations, imports and decorators."""
    after = " ".join(change[2] for change in changes)

    assert "XX" not in after
    assert "import" not in after
    assert not any(change[1] == "@attrs.frozen" for change in changes)


def test_a_module_is_imported_with_the_mistake_in_it():
    """Only the one that is named: its file stays as it is."""
    running = pytest.importorskip("tests.mutation.running", reason=NO_MUTMUT, exc_type=ImportError)
    finder = running.Replacement("colorsys", "answer = 42")

    module = importlib.util.module_from_spec(finder.find_spec("colorsys"))
    finder.exec_module(module)

    assert 42 == module.answer
    assert colorsys.__file__ == module.__file__
    assert finder.find_spec("json") is None


def test_what_is_allowed_is_in_the_code_and_has_a_reason():
    """A line that has changed since is looked at again."""
    for entry in allowed():
        code = " ".join(Path(f"redflag_core/{entry.module}.py").read_text(encoding="utf-8").split())
        assert entry.module in MODULES
        assert " ".join(entry.before.split()) in code
        assert entry.before != entry.after
        assert entry.why
