"""Run tests against one mutant, in a process of its own that has the mutant instead of the module."""

import contextlib
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import io
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import pytest

from tests.mutation.mutants import Mutant

FEW_EXAMPLES = hypothesis.settings(
    max_examples=10,
    stateful_step_count=20,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
"""Two runs agree, and a survivor does not take a minute."""

OPTIONS = [
    "-q",
    "-m",
    "not full",
    "--disable-plugin-autoload",
    "-p",
    "pytest_asyncio.plugin",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:unraisableexception",
    "-p",
    "no:threadexception",  # they collect garbage, for a third of a second
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",
]
WITH_LINES = [
    *("-p", "pytest_cov.plugin", "--cov=redflag_core"),
    *("--cov-config=/dev/null", "--cov-context=test", "--cov-report="),
]
MAX_MEMORY = 4 * 1024**3
ALIVE = 0
TESTS_FAILED = 1


class Tests:
    """
    A plugin of pytest: only the tests that are wanted, with few examples, and how long they took.

    Attributes:
        wanted: Node ids in the order to run them, None for all.
        seconds: How long each test took.
    """

    def __init__(self, wanted: Sequence[str] | None = None) -> None:
        self.wanted = wanted
        self.seconds: dict[str, float] = {}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Give every test few examples, and keep those that are wanted."""
        for item in items:
            _give_few_examples(item)
        if self.wanted is not None:
            by_id = {item.nodeid: item for item in items}
            items[:] = [by_id[node_id] for node_id in self.wanted if node_id in by_id]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how long it took."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration


class Replacement(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a module from another text than its file's."""

    def __init__(self, module: str, source: str) -> None:
        self._module = module
        self._source = source

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> Any:
        """Find the module that is replaced, and no other."""
        if fullname != self._module:
            return None
        real = importlib.machinery.PathFinder.find_spec(fullname, path)
        return importlib.util.spec_from_file_location(fullname, real.origin, loader=self)

    def exec_module(self, module: ModuleType) -> None:
        """Run the other text."""
        exec(compile(self._source, module.__spec__.origin, "exec"), module.__dict__)


def start(run: Callable[[], int], *, seconds: int) -> int:
    """
    Start a process that calls *run*, and ends with what it returns.

    Args:
        run: Whatever it does, nobody else sees it.
        seconds: Processor time after which it is ended.

    Returns:
        The process id.
    """
    pid = os.fork()
    if pid:
        return pid
    code = TESTS_FAILED
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
        signal.alarm(10 * seconds)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        code = run()
    finally:
        os._exit(code)


def judge(mutant: Mutant, tests: Sequence[str]) -> int:
    """Run *tests*, in this order, until one notices the mutant. `ALIVE` when none does."""
    sys.meta_path.insert(0, Replacement(mutant.module, mutant.source()))
    for file in dict.fromkeys(test.partition("::")[0] for test in tests):
        chosen = [test for test in tests if test.startswith(f"{file}::")]
        if pytest.main([*OPTIONS, "-x", file], plugins=[Tests(chosen)]) != pytest.ExitCode.OK:
            return TESTS_FAILED
    return ALIVE


def measure(files: Sequence[str], into: Path) -> int:
    """Run the tests in *files* as they are; write how long each takes, and which lines it takes."""
    tests = Tests()
    os.environ["COVERAGE_FILE"] = str(into / "coverage")
    coverage = [
        "-p",
        "pytest_cov.plugin",
        "--cov=redflag_core",
        "--cov-config=/dev/null",
        "--cov-context=test",
        "--cov-report=",
    ]
    code = pytest.main([*OPTIONS, *coverage, *files], plugins=[tests])
    (into / "seconds.json").write_text(json.dumps(tests.seconds))
    return int(code)


def warm_up(files: Sequence[str]) -> None:
    """Import what the tests in *files* import, then forget what is ours: each process reads that anew."""
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main([*OPTIONS, "--collect-only", *files])
    for name in list(sys.modules):
        if name.partition(".")[0] in {"tests", "redflag_core"} and not name.startswith("tests.mutation"):
            del sys.modules[name]
    gc.freeze()


def _give_few_examples(item: pytest.Item) -> None:
    test = getattr(item, "obj", None)
    target = getattr(test, "__func__", test)
    if hypothesis.is_hypothesis_test(target):
        target._hypothesis_internal_use_settings = FEW_EXAMPLES
