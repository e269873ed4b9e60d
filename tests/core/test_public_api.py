"""
The public names of redflag_core: complete, cheap to import, and not changed by accident.

`python tests/core/test_public_api.py` writes the snapshot anew: do it when the change is meant, and say so in the
changelog.
"""

import ast
import enum
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import attrs
import pytest

import redflag_core
from redflag_core.errors import MalformedError, RedFlagError, VerificationError

SNAPSHOT = Path(__file__).with_name("public_api.txt")
MODULES = Path(__file__).with_name("module_api.txt")
PROGRAMS = {"redflag_core.cli", "redflag_core.operator_cli"}
LAZY = {"cattrs", "stamina", "aiobreaker"}
SYSTEM = {"asyncio", "http", "socket", "sqlite3", "ssl", "subprocess"}

CODES = {
    "BridgeCredentialsError": "bridge_credentials",
    "BridgeError": "bridge_failed",
    "BridgeGoneError": "bridge_record_gone",
    "BridgeRejectedError": "bridge_rejected",
    "BridgeUnavailableError": "bridge_unavailable",
    "CircuitOpenError": "circuit_open",
    "ClockError": "clock_wrong",
    "CommandRefusedError": "command_refused",
    "ConfigurationError": "misconfigured",
    "ConflictingCommandError": "command_conflict",
    "ExpiredError": "expired",
    "HistoryError": "history_broken",
    "IllegalMoveError": "illegal_move",
    "KeyFileError": "key_file",
    "LateCommandError": "start_by_passed",
    "LimitError": "local_limit",
    "MachineMismatchError": "machine_mismatch",
    "MalformedError": "malformed",
    "NeedsApprovalError": "needs_approval",
    "PlanDriftedError": "plan_drifted",
    "PolicyError": "invalid_policy",
    "ProofError": "bad_proof",
    "RedFlagError": "redflag_error",
    "ReplayError": "replayed",
    "ResyncNeededError": "resync_needed",
    "RewrittenError": "history_rewritten",
    "RollbackError": "rollback",
    "ScanError": "scan_failed",
    "SignatureError": "bad_signature",
    "StaleError": "stale",
    "StoreError": "store_unavailable",
    "TooLargeError": "too_large",
    "UnknownCommandError": "unknown_command",
    "UnknownKeyError": "unknown_key",
    "VerificationError": "verification_failed",
    "WrongRecipientError": "wrong_recipient",
}
VERIFICATION = {
    "ClockError",
    "ConflictingCommandError",
    "ExpiredError",
    "HistoryError",
    "MachineMismatchError",
    "MalformedError",
    "ProofError",
    "ReplayError",
    "RewrittenError",
    "RollbackError",
    "SignatureError",
    "StaleError",
    "TooLargeError",
    "UnknownKeyError",
    "VerificationError",
    "WrongRecipientError",
}


def describe() -> str:
    """One line for each public name: what an importer can rely on."""
    return "".join(f"{name}{_form(getattr(redflag_core, name))}\n" for name in redflag_core.__all__)


def _form(value) -> str:
    if isinstance(value, str):
        return ": str"
    if not inspect.isclass(value):
        return _parameters(value)
    if issubclass(value, Exception):
        return f": exception {value.code}"
    if issubclass(value, enum.Enum):
        return ": " + " | ".join(value)
    methods = " ".join(f".{name}" for name in sorted(vars(value)) if not name.startswith("_"))
    if getattr(value, "_is_protocol", False):
        return f": protocol {methods}"
    fields = {field.name for field in attrs.fields(value)} if attrs.has(value) else set()
    methods = " ".join(word for word in methods.split() if word[1:] not in fields)
    return f"{_parameters(value)} {methods}".rstrip()


def _parameters(value) -> str:
    signature = inspect.signature(value)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    text = str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))
    return text.replace(f"={sys.platform!r}", "=sys.platform")


def modules() -> list[ModuleType]:
    """Every public module: what a name without an underscore leads to."""
    names = [each.name for each in pkgutil.walk_packages(redflag_core.__path__, "redflag_core.")]
    public = [name for name in names if "._" not in name and name not in PROGRAMS]
    return [importlib.import_module(name) for name in public]


def defined_in(module: ModuleType) -> dict[str, object]:
    """The public classes and functions that are written in *module*, or in private modules of it."""
    return {
        name: value
        for name, value in sorted(vars(module).items())
        if not name.startswith("_") and callable(value) and _home(value) == module.__name__
    }


def _home(value: object) -> str:
    return getattr(value, "__module__", "").partition("._")[0]


def staying() -> str:
    """One line for each module: the names that are imported from there, and not from `redflag_core`."""
    listed = ((module.__name__, sorted(defined_in(module).keys() - _exported(module))) for module in modules())
    return "".join(f"{name}: {' '.join(names)}\n" for name, names in listed if names)


def _exported(module: ModuleType) -> set[str]:
    """What *module* defines and `redflag_core` has under the same name."""
    ours = {name: getattr(redflag_core, name) for name in redflag_core.__all__}
    return {name for name, value in defined_in(module).items() if ours.get(name) is value}


def errors() -> dict[str, type[RedFlagError]]:
    """Every expected failure of the core."""
    modules = [
        importlib.import_module(m.name) for m in pkgutil.walk_packages(redflag_core.__path__, "redflag_core.")
    ]
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, RedFlagError)
    }


def imported_by(statement: str) -> set[str]:
    """Top-level packages in memory after *statement* in a fresh interpreter."""
    script = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_names_are_sorted_and_there():
    """Each is listed once, can be imported, and belongs to this package."""
    assert sorted(set(redflag_core.__all__)) == redflag_core.__all__
    for name in redflag_core.__all__:
        module = getattr(getattr(redflag_core, name), "__module__", "redflag_core")
        assert module.startswith("redflag_core")


def test_a_star_import_gives_exactly_the_names():
    """No helper leaks out."""
    namespace: dict[str, object] = {}
    exec("from redflag_core import *", namespace)

    assert set(redflag_core.__all__) == set(namespace) - {"__builtins__"}


def test_type_checkers_see_the_names_that_exist_at_run_time():
    """The imports for type checkers, the table of homes and __all__ say the same."""
    tree = ast.parse(Path(redflag_core.__file__).read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    homes = {
        alias.name: statement.module.removeprefix("redflag_core.")
        for statement in guarded.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }

    assert homes == redflag_core._HOMES
    assert {*homes, "__version__"} == set(redflag_core.__all__)


def test_the_names_are_listed_before_they_are_used():
    """Completion in a shell shows them all."""
    assert set(redflag_core.__all__) <= set(dir(redflag_core))


def test_another_name_is_an_attribute_error():
    """As for any module: `hasattr` and `from ... import` do what they should."""
    assert not hasattr(redflag_core, "verify_everything")
    with pytest.raises(ImportError):
        exec("from redflag_core import verify_everything")


def test_the_public_api_is_the_one_of_the_snapshot():
    """Names, parameters, fields, members and codes change on purpose only."""
    assert SNAPSHOT.read_text(encoding="utf-8") == describe()


def test_each_public_name_was_judged():
    """It is in `redflag_core`, or stays in its module on purpose: a new one changes one of the two snapshots."""
    assert MODULES.read_text(encoding="utf-8") == staying()


def test_no_thing_has_two_names():
    """And no two names to the same."""
    homes = [id(getattr(redflag_core, name)) for name in redflag_core._HOMES]

    assert len(homes) == len(set(homes))


def has_state(cls: type) -> bool:
    """Whether its objects can change: it is no frozen value, enum, exception or protocol, and keeps something."""
    if getattr(cls, "_is_protocol", False) or issubclass(cls, (enum.Enum, Exception)):
        return False
    return cls.__init__ is not object.__init__ and not is_frozen(cls)


def is_frozen(cls: type) -> bool:
    """Whether its objects refuse to be changed."""
    try:
        object.__new__(cls).anything = None
    except AttributeError as error:
        return isinstance(error, attrs.exceptions.FrozenInstanceError)
    return False


def with_state() -> list[type]:
    """Every public class whose objects can change."""
    found = [value for module in modules() for value in defined_in(module).values() if inspect.isclass(value)]
    return [cls for cls in found if has_state(cls)]


def test_what_can_change_is_known_as_such():
    """The rule that the next test goes by finds what it should, and no value."""
    found = {cls.__name__ for cls in with_state()}

    assert {"Breaker", "RetryBudget", "RequestAuth", "SqliteNonceStore", "FrozenClock", "MemoryRecord"} <= found
    assert set() == found & {"Window", "RequestVerifier", "Severity", "NonceStore", "StaleError", "SigningKey"}


@pytest.mark.parametrize("cls", with_state(), ids=lambda cls: cls.__name__)
def test_what_can_change_says_who_may_share_it(cls: type):
    """Threads, event loops, and what a fork does: each class has an answer in its description."""
    text = " ".join(inspect.getdoc(cls).lower().split())

    assert [] == [word for word in ("thread", "event loop", "fork") if word not in text]


@pytest.mark.parametrize("name", ["RequestVerifier", "SignedAsgi", "SignedWsgi", "SigningKey", "VerifyKey"])
def test_what_holds_something_else_says_it_too(name: str):
    """A value is only as safe as what it was given."""
    assert "share between threads" in " ".join(inspect.getdoc(getattr(redflag_core, name)).split())


def test_importing_the_package_costs_next_to_nothing():
    """Neither a dependency nor anything of the operating system is loaded."""
    loaded = imported_by("import redflag_core")

    assert set() == loaded & (LAZY | SYSTEM | {"nacl", "attr"})


def test_importing_every_name_loads_no_library_before_its_use():
    """cattrs, stamina and aiobreaker are loaded by the call that needs them."""
    loaded = imported_by("from redflag_core import *")

    assert {"nacl", "attr"} <= loaded
    assert set() == loaded & LAZY


def test_verifying_needs_no_event_loop():
    """A program that only verifies loads PyNaCl and attrs, and no network."""
    names = (
        "verify_request, sign_request, verify_envelope, verify_bundle, verify_roots, make_evidence, claim_nonce"
    )

    assert set() == imported_by(f"from redflag_core import {names}") & (LAZY | SYSTEM)


def test_codes_of_failures_never_change():
    """They are what callers and dashboards decide by."""
    assert CODES == {name: error.code for name, error in errors().items()}
    assert len(CODES) == len(set(CODES.values()))


def test_what_untrusted_bytes_can_cause_is_one_family():
    """Everything else is this side's own trouble."""
    assert VERIFICATION == {name for name, error in errors().items() if issubclass(error, VerificationError)}


def test_a_failure_speaks_for_people():
    """The message is the sentence it was raised with, or the code."""
    assert "not base64" == MalformedError("not base64").message == str(MalformedError("not base64"))
    assert "malformed" == MalformedError().message
    assert 2.5 == redflag_core.CircuitOpenError("open", retry_after=2.5).retry_after


if __name__ == "__main__":
    SNAPSHOT.write_text(describe(), encoding="utf-8")
    MODULES.write_text(staying(), encoding="utf-8")
