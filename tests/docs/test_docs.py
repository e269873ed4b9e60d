"""The documentation tells the truth: what it names exists, and its tables are those of the code."""

import importlib
import inspect
import pkgutil
import re
import tomllib
from pathlib import Path

import attrs
import click
import pytest
from click.testing import CliRunner
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler

import redflag_agent
import redflag_core
import redflag_server
from redflag_agent import exits
from redflag_agent.cli import main as agent_group
from redflag_agent.limits_file import read_limits
from redflag_agent.settings import AgentSettings, AptSettings, load_settings
from redflag_core.errors import RedFlagError
from redflag_core.operator_cli import approve_parser, keys_parser
from redflag_core.patching import MOVES, Limits, LocalWindow
from redflag_core.scanning import PENDING_STATES, PackageState, ScannerPolicy, fold
from redflag_core.testing import FrozenClock, SeededEntropy
from redflag_server import problems
from redflag_server.accounts.permissions import PERMISSIONS
from redflag_server.app import API, create_app
from redflag_server.cli import main as server_group
from redflag_server.settings import Settings
from redflag_server.up import main as up_command
from tests.helpers.commands import as_click
from tests.helpers.documents import PAGES, ROOT, blocks, commands, links, read, spans, table

LATER: set[tuple[str, ...]] = set()
"""Commands that are named as not being there yet."""

GROUPS = {
    "up": up_command,
    "server": server_group,
    "agent": agent_group,
    "keys": as_click(keys_parser()),
    "approve": as_click(approve_parser()),
}
CLI, CONFIGURATION, HTTP, EVENTS = (
    f"docs/reference/{name}.md" for name in ("cli", "configuration", "http-api", "events-and-errors")
)
STATES = "docs/explanation/package-states.md"
by_page = pytest.mark.parametrize("page", PAGES, ids=str)


def modules(package):
    """Every module of *package*, imported."""
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if "__main__" not in found.name and ".migrations" not in found.name:
            yield importlib.import_module(found.name)


def errors_of(*packages):
    """Codes of the expected failures that these packages define."""
    classes = (item for package in packages for module in modules(package) for item in vars(module).values())
    return {item.code for item in classes if inspect.isclass(item) and issubclass(item, RedFlagError)}


def command_tree(command=None, path=()):
    """Every command with the words that call it."""
    for name, inner in GROUPS.items() if command is None else getattr(command, "commands", {}).items():
        yield (*path, name), inner
        yield from command_tree(inner, (*path, name))


TREE = dict(command_tree())


def resolve(words):
    """The longest command that *words* start with, and the words that remain."""
    for size in range(len(words), 0, -1):
        if tuple(words[:size]) in TREE:
            return tuple(words[:size]), words[size:]
    return (), words


def options_of(path):
    """The options of a command."""
    return {text for parameter in TREE[path].params for text in (*parameter.opts, *parameter.secondary_opts)}


@by_page
def test_every_link_leads_somewhere(page):
    """A relative link names a file that exists."""
    missing = [target for target in links(read(page)) if not (ROOT / page.parent / target).exists()]

    assert [] == missing


@by_page
def test_every_path_of_the_repository_exists(page):
    """Code that looks like a path of this repository names one."""
    tops = ("redflag_core/", "redflag_server/", "redflag_agent/", "integrations/", "docs/", "tests/", ".ci/")
    named = [text for text in spans(read(page)) if text.startswith(tops) and " " not in text]

    assert [] == [text for text in named if not (ROOT / text).exists()]


@by_page
def test_every_command_shown_exists(page):
    """A command in a console block can be typed: its words and its options exist."""
    for words in commands(read(page)):
        path, rest = resolve(words)
        assert path, words
        assert not isinstance(TREE[path], click.Group), words
        assert {word for word in rest if word.startswith("--")} <= options_of(path) | {"--help"}, words


@by_page
def test_every_command_named_in_a_line_exists(page):
    """Code within a line that starts with ``redflag`` names a command, or one that is said to come later."""
    for text in spans(read(page)):
        name, *words = text.split()
        if name == "redflag" and words and words[0] != "version" and tuple(words[:2]) not in LATER:
            assert resolve(words)[0], text


def test_every_command_that_a_page_of_the_server_shows_exists():
    """What the pages tell people to type can be typed."""
    templates = (ROOT / "redflag_server/dashboard/templates").glob("*.html")
    for line in (line for template in templates for line in re.split(r"[\n<>]", template.read_text("utf-8"))):
        if line.startswith("redflag "):
            path, rest = resolve(line.split()[1:])
            click_command = TREE[path]
            assert {word for word in rest if word.startswith("--")} <= options_of(path), line
            takes_arguments = any(isinstance(parameter, click.Argument) for parameter in click_command.params)
            assert takes_arguments or not rest or rest[0].startswith("--"), line


@pytest.mark.parametrize("path", TREE, ids=" ".join)
def test_every_command_helps_and_has_a_section(path):
    """Each command answers --help, and the reference has a section and every option of it."""
    text = read(CLI)
    answer = CliRunner().invoke(TREE[path], ["--help"])

    assert (0, True) == (answer.exit_code, "Usage:" in answer.output)
    if not isinstance(TREE[path], click.Group):
        assert re.search(rf"^##+ redflag {' '.join(path)}$", text, re.MULTILINE)
        named = set(re.findall(r"--[a-z-]+", text + read(CONFIGURATION)))
        assert {option for option in options_of(path) if option.startswith("--")} <= named | {"--help"}


def test_exit_codes_are_those_of_the_agent():
    """The table of exit codes has each code of the agent once."""
    codes = {value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)}

    assert sorted({0, *codes}) == [int(code) for code, _ in table(read(CLI), "Code", "Meaning")]


def test_problem_codes_are_those_of_the_server():
    """The table has every code with its status, and none that does not exist."""
    expected = {code: int(status) for code, status in problems._STATUS.items()}
    for status in (404, 405, 413, 415, 400, 500):
        answer = problems.on_http_error(None, HTTPException(status_code=status)) if status < 500 else None
        code = "internal" if answer is None else re.search(rb'"code":"(\w+)"', answer.content)[1].decode()
        expected.setdefault(code, status)

    assert expected == {row[0]: int(row[1]) for row in table(read(EVENTS), "Code", "Status")}


def test_every_other_code_is_listed():
    """Codes that do not go over HTTP are in the second table, and no others."""
    answered = {row[0] for row in table(read(EVENTS), "Code", "Status")}

    expected = errors_of(redflag_core, redflag_agent, redflag_server) - answered

    assert expected == {row[0] for row in table(read(EVENTS), "Code", "What it means")}


def test_event_kinds_are_those_of_the_server():
    """The table has every kind of event that the server writes, and none that it does not."""
    done = {"agent.approved", "agent.released", "agent.revoked"}
    written = re.compile(r'(?:kind(?:: str)? ?= ?|note\(\s*|_event\(\s*)"([a-z_]+\.[a-z_]+)"')
    sources = [path.read_text("utf-8") for path in (ROOT / "redflag_server").rglob("*.py")]

    kinds = {kind for source in sources for kind in written.findall(source)}

    assert sorted(kinds | done) == sorted(row[0] for row in table(read(EVENTS), "Kind", "What happened"))


def test_endpoints_are_those_of_the_application(tmp_path):
    """The tables have every endpoint with its permission, and none that does not exist."""
    app = create_app(Settings(data=tmp_path), clock=FrozenClock(), entropy=SeededEntropy())
    handlers = [
        (f"{method} {re.sub(r':[a-z]+}', '}', route.path.removeprefix(API))}", handler)
        for route in app.routes
        if route.path.startswith(f"{API}/")
        for handler in route.route_handlers
        if isinstance(handler, HTTPRouteHandler)
        for method in handler.http_methods - {"OPTIONS", "HEAD"}
    ]
    text = read(HTTP)

    assert {name: h.opt["permission"] for name, h in handlers if "permission" in h.opt} == {
        row[0]: row[1] for row in table(text, "Method and path", "Permission")
    }
    assert {name: h.opt["agent"].with_token for name, h in handlers if "agent" in h.opt} == {
        row[0]: row[1] == "needed" for row in table(text, "Method and path", "Access token")
    }
    assert {name for name, h in handlers if h.opt.get("public")} == {
        row[0] for row in table(text, "Method and path", "What it does")
    }


def test_limits_are_those_of_the_settings(tmp_path):
    """The table of request limits has the numbers of the settings."""
    settings = Settings(data=tmp_path)
    names = ("agent", "address", "register", "sign_in", "operator")
    policies = [getattr(settings, f"{name}_limit") for name in names]

    expected = [(f"{policy.count} a minute", str(policy.burst)) for policy in policies]

    assert expected == [row[1:3] for row in table(read(HTTP), "Who", "Steady rate")]
    assert {60} == {policy.period_seconds for policy in policies}


def test_permissions_are_those_of_the_server():
    """The how-to lists every permission, and none that does not exist."""
    rows = table(read("docs/how-to/users-and-api-keys.md"), "Permission", "Lets a key")

    assert [*PERMISSIONS, "*"] == [row[0] for row in rows]


def test_agent_settings_are_those_of_the_agent():
    """The tables list every key of agent.toml with its default."""
    text = read(CONFIGURATION)
    keys = {row[0] for row in table(text, "Key", "Option")}
    scanner = {row[0]: row[1] for row in table(text, "Key", "Default", "Meaning")}
    apt = {row[0]: row[1] for row in table(text, "Key", "Default", "What it does")}

    assert {field.name for field in attrs.fields(AgentSettings)} - {"scanners", "apt"} == keys
    assert {name: str(value).lower() for name, value in attrs.asdict(ScannerPolicy()).items()} == scanner
    assert {name: value or "none" for name, value in attrs.asdict(AptSettings()).items()} == apt


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(read(page), "toml")], ids=str)
def test_every_example_of_settings_is_accepted(page, tmp_path):
    """What the documentation writes into agent.toml, the agent reads."""
    authority = tmp_path / "ca.pem"
    authority.touch()
    for number, example in enumerate(blocks(read(page), "toml")):
        if example.startswith("# limits.toml\n"):
            continue
        file = tmp_path / f"{number}.toml"
        file.write_text(re.sub(r'(?<=^ca_file = )".*"', f'"{authority}"', example, flags=re.MULTILINE))
        assert tomllib.loads(example)
        assert load_settings(file, {})


def test_limits_of_a_machine_are_those_of_the_core(tmp_path):
    """The tables list every setting of limits.toml with its default, and the example is read."""
    text = read(CONFIGURATION)
    (example,) = (block for block in blocks(text, "toml") if block.startswith("# limits.toml\n"))
    (tmp_path / "limits.toml").write_text(example)
    titles = ("Meaning", "Meaning of the window")
    limits, window = ({row[0]: row[1] for row in table(text, "Setting", "Default", title)} for title in titles)

    assert read_limits(tmp_path / "limits.toml") != Limits()
    assert {field.name for field in attrs.fields(Limits)} == set(limits)
    assert {field.name for field in attrs.fields(LocalWindow)} == set(window)
    assert ("true", str(Limits().starts_per_day)) == (limits["changes"], limits["starts_per_day"])
    assert LocalWindow(start="00:00", end="00:00").timezone == window["timezone"]


def test_every_package_state_is_explained():
    """The explanation names all states of the core."""
    text = read(STATES)

    assert [] == [state for state in PackageState if f"`{state}`" not in text]


def test_the_table_of_package_moves_is_the_cores():
    """Each move with the states from where it leads, in both directions: none is missing and none is made up."""
    rows = table(read(STATES), "Move", "From", "To")

    assert [
        (how.value, {str(state) for state in rule.origins}, rule.to and str(rule.to))
        for how, rule in MOVES.items()
    ] == [
        (how, set(re.findall(r"\w+", origins)), to if re.fullmatch(r"\w+", to) else None)
        for how, origins, to in rows
    ]


def test_what_scans_do_is_what_the_core_does():
    """For each state: after a scan that sees an update, sees none, does not list the package, or fails."""
    rows = table(read(STATES), "State", "Sees an update", "Sees it up to date", "Does not list it", "Fails")
    expected = []
    for state in PackageState:
        updates = {fold(state, seen, scan_ok=True) for seen in PENDING_STATES}
        others = [(PackageState.CURRENT, True), (None, True), (None, False)]
        expected.append(
            (
                str(state),
                "what it sees" if updates >= PENDING_STATES else told(state, *updates),
                *(told(state, fold(state, seen, scan_ok=scan_ok)) for seen, scan_ok in others),
            )
        )

    assert expected == rows


def told(before, after):
    """How the table says what becomes of a state."""
    return "stays" if before is after else str(after)


def test_every_public_module_of_the_core_has_a_page():
    """A module without an underscore is in the API reference, its overview and the navigation."""
    public = {
        module.__name__
        for module in modules(redflag_core)
        if "._" not in module.__name__ and module.__name__ not in ("redflag_core.cli", "redflag_core.operator_cli")
    }
    folder = ROOT / "docs/reference/core-api"
    packages = {"redflag_core.scanning", "redflag_core.patching", "redflag_core.machine_readers"}
    documented = {
        name
        for page in folder.glob("*.md")
        for name in re.findall(r"^::: ([\w.]+)$", page.read_text("utf-8"), re.MULTILINE)
    }
    pages = {page.stem for page in folder.glob("*.md")} - {"index"}
    overview, titles = read(folder / "index.md"), ("Module", "What it decides or holds")

    assert public - packages == documented
    assert sorted(f"[`{name}`]({name}.md)" for name in pages) == [row[0] for row in table(overview, *titles)]
    assert [] == [name for name in pages if f"reference/core-api/{name}.md" not in read("mkdocs.yml")]


@pytest.mark.parametrize("package", [redflag_server, redflag_agent], ids=lambda package: package.__name__)
def test_shells_name_functions_that_exist_and_that_they_call(package):
    """The table of who decides what names functions of the core, each called in one of the files beside it."""
    folder = Path(package.__file__).parent
    for question, deciders, places in table(read(folder / "README.md"), "Question", "Decided by"):
        sources = [(folder / name).read_text("utf-8") for name in re.findall(r"[\w/]+\.py", places)]
        module = ""
        for name in re.findall(r"[\w.]+", deciders):
            module = name.rpartition(".")[0] or module
            function = name.rpartition(".")[2]
            assert exists(f"{module}.{function}"), question
            assert any(re.search(rf"\b{function}\b", source) for source in sources), (question, function)
    for _, places in table(read(folder / "README.md"), "Question", "Where"):
        assert [] == [name for name in re.findall(r"[\w/]+\.py", places) if not (folder / name).exists()]


def exists(dotted):
    """Whether a dotted name is a module's attribute, or an attribute of one of its classes."""
    parts = dotted.split(".")
    for size in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:size]))
        except ModuleNotFoundError:
            continue
        for name in parts[size:]:
            found = getattr(found, name, None)
        return found is not None
    return False


def test_every_decision_is_listed():
    """Each record is in the index, with its number and title, and in the navigation."""
    folder = ROOT / "docs/adr"
    index = read(folder / "index.md")
    for number, path in enumerate(sorted(folder.glob("0*.md")), start=1):
        title = path.read_text("utf-8").splitlines()[0].removeprefix(f"# {number}. ")
        assert path.name.startswith(f"{number:04d}-")
        assert f"| {number} | [{title}]({path.name}) |" in index
        assert f"adr/{path.name}" in read("mkdocs.yml")


def test_the_readme_starts_with_two_commands():
    """The quick start is `make up` and `make test`."""
    starts = [block for block in blocks(read("README.md"), "console") if "make " in block and "apt" not in block]

    assert ["$ make up\n$ make test\n"] == starts
