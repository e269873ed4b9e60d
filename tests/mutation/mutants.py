"""
Mutants of a module: each is the module with one small mistake in it.

The operators are mutmut's, applied to whole modules: its own loop leaves out decorated functions, class bodies and
constants, where validators and limits live. What mutmut lacks is added here: the check that is not made.
"""

import difflib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import attrs
import libcst as cst
import libcst.matchers as m
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators, operator_arg_removal, operator_string

NO_DECISION = (cst.Annotation, cst.Decorator, cst.Import, cst.ImportFrom)
NO_DECISION_CALLS = {"len", "isinstance", "cast"}
TEXT = (cst.SimpleString, cst.FormattedString, cst.ConcatenatedString)


@attrs.frozen(eq=False)
class Mutant:
    """
    One mistake.

    Attributes:
        module: Dotted name of the module.
        function: Where in the module, such as ``Machine.add``; empty outside of functions and classes.
        lines: The lines of the module that the mistake is on.
        tree: The module without the mistake.
        node: The node that is replaced.
        mistake: What it is replaced with.
    """

    module: str
    function: str
    lines: range
    tree: cst.Module
    node: cst.CSTNode
    mistake: cst.CSTNode

    def source(self) -> str:
        """The module with the mistake."""
        changed = self.tree.deep_replace(self.node, self.mistake)
        assert isinstance(changed, cst.Module)
        return changed.code

    def change(self) -> tuple[str, str]:
        """The lines that differ: as they are, and with the mistake. Without indentation, joined."""
        lines = difflib.unified_diff(self.tree.code.splitlines(), self.source().splitlines(), n=0)
        changed = list(lines)[2:]
        before, after = ([line[1:].strip() for line in changed if line[0] == sign] for sign in "-+")
        return " ".join(before), " ".join(after)


def mutants_of(module: str, source: str) -> list[Mutant]:
    """Every mutant of a module."""
    wrapper = MetadataWrapper(cst.parse_module(source))
    finder = _Finder(module, wrapper.module)
    wrapper.visit(finder)
    return finder.found


class _Finder(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self, module: str, tree: cst.Module) -> None:
        super().__init__()
        self.found: list[Mutant] = []
        self._module = module
        self._tree = tree
        self._within: list[str] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, NO_DECISION) or _decides_nothing(node):
            return False
        if isinstance(node, cst.ClassDef | cst.FunctionDef):
            self._within.append(node.name.value)
        for mistake in mistakes(node):
            self._add(node, mistake)
        if isinstance(node, cst.Raise) and isinstance(node.exc, cst.Call):
            self._visit_raised(node.exc)
            return False
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if isinstance(original_node, cst.ClassDef | cst.FunctionDef):
            self._within.pop()

    def _visit_raised(self, call: cst.Call) -> None:
        """What an error says is for people and no check; what it carries is."""
        data = [arg for arg in call.args if not isinstance(arg.value, TEXT)]
        for mistake in operator_arg_removal(call) if data else ():
            if len(mistake.args) == len(call.args) and _texts(mistake) == _texts(call):
                self._add(call, mistake)
        for arg in data:
            arg.visit(self)

    def _add(self, node: cst.CSTNode, mistake: cst.CSTNode) -> None:
        at = self.get_metadata(PositionProvider, node)
        lines = range(at.start.line, at.end.line + 1)
        self.found.append(Mutant(self._module, ".".join(self._within), lines, self._tree, node, mistake))


def mistakes(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Everything that may be wrong with one node."""
    for kind, operator in [*mutation_operators, *_OPERATORS]:
        if isinstance(node, kind):
            made = operator(node)
            yield from itertools.islice(made, 1) if operator is operator_string else made


def _left_out(node: cst.Raise | cst.Expr) -> Iterable[cst.CSTNode]:
    """Leave out an error, or a call that is made for what it does."""
    if isinstance(node, cst.Raise) or isinstance(node.value, cst.Call | cst.Await):
        yield cst.Pass()


def _either_way(node: cst.If) -> Iterable[cst.CSTNode]:
    """Take a branch always, or never."""
    for operator, literal in ((cst.Or(), "True"), (cst.And(), "False")):
        test = cst.BooleanOperation(_in_parentheses(node.test), operator, cst.Name(literal))
        yield node.with_changes(test=test)


def _unfiltered(node: cst.CompIf) -> Iterable[cst.CSTNode]:
    """Take every item of a comprehension."""
    yield node.with_changes(test=cst.Name("True"))


def _one_operand(node: cst.BooleanOperation) -> Iterable[cst.CSTNode]:
    """Forget one half of a condition."""
    yield _in_parentheses(node.left)
    yield _in_parentheses(node.right)


def _one_less(node: cst.Tuple | cst.List | cst.Set) -> Iterable[cst.CSTNode]:
    """Forget one item of several: a validator, an exception that is caught, a state."""
    if len(node.elements) > 1:
        for i in range(len(node.elements)):
            kept = [*node.elements[:i], *node.elements[i + 1 :]]
            kept[-1] = kept[-1].with_changes(comma=cst.Comma())
            yield node.with_changes(elements=kept)


def _other_text(node: cst.FormattedStringText) -> Iterable[cst.CSTNode]:
    """Say something else in a text that is put together."""
    yield node.with_changes(value=f"XX{node.value}")


_OPERATORS: list[tuple[Any, Any]] = [
    (cst.Raise | cst.Expr, _left_out),
    (cst.If, _either_way),
    (cst.CompIf, _unfiltered),
    (cst.BooleanOperation, _one_operand),
    (cst.Tuple | cst.List | cst.Set, _one_less),
    (cst.FormattedStringText, _other_text),
]


def _decides_nothing(node: cst.CSTNode) -> bool:
    if isinstance(node, cst.If):
        return isinstance(node.test, cst.Name) and node.test.value == "TYPE_CHECKING"
    if isinstance(node, cst.Assign):
        target = node.targets[0].target
        return isinstance(target, cst.Name) and target.value == "__all__"
    if isinstance(node, cst.AnnAssign):
        return m.matches(node.annotation.annotation, m.Name("TypeAlias"))
    if isinstance(node, cst.Call):
        return isinstance(node.func, cst.Name) and node.func.value in NO_DECISION_CALLS
    return False


def _in_parentheses(node: cst.BaseExpression) -> cst.BaseExpression:
    return node.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])


def _texts(call: cst.Call) -> list[cst.BaseExpression]:
    return [arg.value for arg in call.args if isinstance(arg.value, TEXT)]
