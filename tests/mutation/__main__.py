"""
``python -m tests.mutation [MODULE ...]``: put mistakes into the verifying modules and see that their tests notice.

Prints a line for each module and every mistake that nobody noticed; fails when one of those is not in
``allowed.toml``.
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs
import coverage

from tests.mutation import running
from tests.mutation.allowed import Allowed, allowed
from tests.mutation.modules import MODULES
from tests.mutation.mutants import Mutant, mutants_of

Choose = Callable[[Mutant], dict[str, float]]
"""Which tests to run for a mutant, and how long each takes, seconds."""

SCRATCH = Path(".mutation")
BASE_SECONDS = 10
"""Processor time for imports, before the time that the tests themselves may take."""


def main(arguments: Sequence[str]) -> int:
    """Judge the modules that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", choices=[[], *MODULES], metavar="MODULE")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args(arguments)
    SCRATCH.mkdir(exist_ok=True)
    running.warm_up([file for name in options.modules or MODULES for file in MODULES[name]])
    print(f"{'module':24}{'killed':>8}{'survived':>10}{'timed out':>11}{'allowed':>9}{'score':>8}")
    return max([_judge_module(name, options.jobs) for name in options.modules or MODULES])


def _judge_module(name: str, jobs: int) -> int:
    module, file = f"redflag_core.{name.replace('/', '.')}", Path(f"redflag_core/{name}.py")
    choose = _chooser(MODULES[name], file)
    ours = [entry for entry in allowed() if entry.module == name]
    mutants = mutants_of(module, file.read_text(encoding="utf-8"))
    to_judge = [mutant for mutant in mutants if _entry(mutant, ours) is None]
    used = {_entry(mutant, ours) for mutant in mutants}
    _check_control(mutants[0], choose)
    verdicts: Counter[str] = Counter()
    for mutant, verdict in _verdicts(to_judge, choose, jobs):
        verdicts[verdict] += 1
        if verdict != "killed":
            _show(name, mutant, verdict)
    stale = [entry for entry in ours if entry not in used]
    for entry in stale:
        print(f"no such mutant any more: {entry}")
    noticed = verdicts["killed"] + verdicts["timed out"]
    print(
        f"{name:24}{verdicts['killed']:8}{verdicts['survived']:10}{verdicts['timed out']:11}"
        f"{len(mutants) - len(to_judge):9}{noticed / max(len(to_judge), 1):8.1%}",
        flush=True,
    )
    return int(bool(stale or verdicts["survived"]))


def _check_control(mutant: Mutant, choose: Choose) -> None:
    """A module without a mistake must survive, or the verdicts mean nothing."""
    control = attrs.evolve(mutant, lines=range(0), mistake=mutant.node)
    for _, verdict in _verdicts([control], choose, 1):
        if verdict != "survived":
            raise SystemExit(f"the tests of {mutant.module} fail without any mistake")


def _entry(mutant: Mutant, allowed: Sequence[Allowed]) -> Allowed | None:
    here = [entry for entry in allowed if entry.function == mutant.function]
    change = mutant.change() if here else None
    return next((entry for entry in here if (entry.before, entry.after) == change), None)


def _chooser(files: Sequence[str], source: Path) -> Choose:
    """Run the tests as they are; the answer tells which of them to run for a mutant, fastest first."""
    pid = running.start(lambda: running.measure(files, SCRATCH), seconds=600)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit(f"the tests of {source} fail without any mistake: {' '.join(files)}")
    seconds = json.loads((SCRATCH / "seconds.json").read_text(encoding="utf-8"))
    data = coverage.CoverageData(str(SCRATCH / "coverage"))
    data.read()
    tests_of_line = data.contexts_by_lineno(str(source.resolve()))

    def choose(mutant: Mutant) -> dict[str, float]:
        lines = [tests_of_line.get(line, []) for line in mutant.lines]
        names = {context.rpartition("|")[0] for contexts in lines for context in contexts}
        on_import = "" in names or not names  # then every test may depend on it
        tests = seconds.keys() if on_import else names & seconds.keys()

        def rank(test: str) -> tuple[int, bool, float, str]:
            return files.index(test.partition("::")[0]), test not in names, seconds[test], test

        return {test: seconds[test] for test in sorted(tests, key=rank)}

    return choose


def _verdicts(mutants: Sequence[Mutant], choose: Choose, jobs: int) -> Iterator[tuple[Mutant, str]]:
    at_work: dict[int, Mutant] = {}
    for mutant in mutants:
        if len(at_work) == jobs:
            yield _wait(at_work)
        tests = choose(mutant)
        limit = BASE_SECONDS + 5 * int(sum(tests.values()))
        at_work[running.start(lambda m=mutant, t=tests: running.judge(m, list(t)), seconds=limit)] = mutant
    while at_work:
        yield _wait(at_work)


def _wait(at_work: dict[int, Mutant]) -> tuple[Mutant, str]:
    pid, status = os.wait()
    if os.WIFSIGNALED(status):
        return at_work.pop(pid), "timed out"
    return at_work.pop(pid), "survived" if os.WEXITSTATUS(status) == running.ALIVE else "killed"


def _show(name: str, mutant: Mutant, verdict: str) -> None:
    before, after = mutant.change()
    print(
        f"\n# {verdict}, line {mutant.lines.start}\n[[allowed]]\nmodule = {name!r}\nfunction = {mutant.function!r}"
    )
    print(f"before = {_quoted(before)}\nafter = {_quoted(after)}\nwhy = ''", flush=True)


def _quoted(text: str) -> str:
    return f"'{text}'" if "'" not in text else json.dumps(text, ensure_ascii=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
