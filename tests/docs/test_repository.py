"""The repository is what its files promise: complete packages, clean pins, a CI that installs what tests need."""

import re
import tomllib
from importlib.metadata import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.helpers.constraints import LEFT_ALONE, needed
from tests.helpers.documents import ROOT, blocks, read, table

PACKAGES = [
    path.parent for path in (*ROOT.glob("redflag_*/__init__.py"), *ROOT.glob("integrations/*/__init__.py"))
]
PROJECT = tomllib.loads(read("pyproject.toml"))


def shipped(suffix):
    """Files of our packages with this suffix, without caches."""
    found = [path for package in PACKAGES for path in package.rglob(f"*{suffix}") if path.is_file()]
    return [path for path in found if not re.search(r"/(__pycache__|\.)", path.relative_to(ROOT).as_posix())]


def test_every_folder_with_code_is_a_package():
    """A folder without ``__init__.py`` is missing from what is installed, and a clone does not notice."""
    assert [] == [path for path in shipped(".py") if not (path.parent / "__init__.py").exists()]


def test_every_other_file_is_package_data():
    """Templates, stylesheets and the like match a pattern of the package data, so that they are installed."""
    (patterns,) = PROJECT["tool"]["setuptools"]["package-data"].values()
    covered = {path for package in PACKAGES for pattern in patterns for path in package.rglob(pattern)}
    others = [
        path for path in shipped("") if path.is_file() and path.suffix not in (".py", ".pyc", ".toml", ".md")
    ]

    assert [] == [path for path in others if path not in covered]


def test_pins_are_names_and_versions():
    """Each line of the constraints is ``name==version``, sorted, without addresses and without pip itself."""
    lines = [line for line in read("constraints.txt").splitlines() if not line.startswith("#")]
    names = [line.partition("==")[0] for line in lines]

    assert [] == [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9A-Za-z.+-]*", line)]
    assert sorted(set(names)) == names
    assert not LEFT_ALONE & set(names)


def test_everything_that_is_needed_is_pinned():
    """The constraints name every package that our extras need here, and nothing else."""
    pinned = {line.partition("==")[0] for line in read("constraints.txt").splitlines() if "==" in line}

    assert needed().keys() == pinned


def test_pins_are_within_the_bounds_of_the_project():
    """No pin contradicts a requirement of ``pyproject.toml``."""
    pins = dict(line.split("==") for line in read("constraints.txt").splitlines() if "==" in line)
    project = PROJECT["project"]
    texts = [
        *project["dependencies"],
        *(text for extra in project["optional-dependencies"].values() for text in extra),
    ]
    requirements = [Requirement(text) for text in texts]

    wrong = [
        str(requirement)
        for requirement in requirements
        if (version := pins.get(canonicalize_name(requirement.name))) and version not in requirement.specifier
    ]
    assert [] == wrong


def test_pins_run_on_every_supported_python():
    """What is pinned runs on the Python of Debian 12, which is 3.11.2, and on the first of the later ones."""
    bounds = {name: SpecifierSet(metadata(name).get("Requires-Python") or "") for name in needed()}

    wrong = [
        name for name, bound in bounds.items() for python in ("3.11.2", "3.12.0", "3.13.0") if python not in bound
    ]

    assert [] == wrong


def test_continuous_integration_installs_what_tests_need():
    """Each tool that a test asks for is in the list of ``.ci/run``."""
    installed = set(re.findall(r"^    ([\w-]+):[\w-]+$", read(".ci/run"), re.MULTILINE))
    sources = [path.read_text("utf-8") for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]

    asked = {
        tool
        for source in sources
        for call in re.findall(r'\bneeds\(("[^)]*")\)', source)
        for tool in re.findall(r'"([\w-]+)"', call)
    }

    assert asked
    # These come with packages that are listed for another tool of theirs.
    assert {"apt-cache", "apt-mark", "dpkg"} >= asked - installed


def test_every_target_is_explained():
    """CONTRIBUTING lists the targets of the Makefile that people use."""
    targets = set(re.findall(r"^([a-z-]+):.* ## ", read("Makefile"), re.MULTILINE))
    listed = {row[0].removeprefix("make ") for row in table(read("CONTRIBUTING.md"), "Command", "What it does")}

    assert targets - {"help", "clean"} == listed
    assert "make check" in "".join(blocks(read("CONTRIBUTING.md"), "console"))


def test_every_folder_of_tests_is_explained():
    """CONTRIBUTING says what each folder of tests proves."""
    folders = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    listed = {row[0] for row in table(read("CONTRIBUTING.md"), "Folder", "What it proves")}

    assert folders <= listed
    assert [] == [name for name in listed if not (ROOT / name).is_dir()]


def test_the_documentation_asks_no_other_host():
    """The built pages load no font or script from elsewhere."""
    assert re.search(r"^  font: false\b", read("mkdocs.yml"), re.MULTILINE)
    assert "://" not in read("mkdocs.yml")
