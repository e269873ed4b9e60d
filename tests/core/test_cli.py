"""The dispatcher: groups of whoever is installed, and the line that installs what is missing."""

import importlib.metadata
import subprocess
import sys

import pytest

from redflag_core import __version__, cli

MODULE = "redflag_example_cli"


@pytest.fixture
def group(tmp_path, monkeypatch):
    """Install a distribution whose group ``example`` is the given source."""

    def install(source, name="example"):
        info = tmp_path / "example-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[redflag.cli]\n{name} = {MODULE}:main\n")
        (tmp_path / f"{MODULE}.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(sys, "argv", ["redflag"])
        monkeypatch.delitem(sys.modules, MODULE, raising=False)

    return install


def test_help_lists_every_group_that_is_installed(group, capsys):
    """Also one of somebody else's package, without importing it."""
    group("raise RuntimeError('imported')")

    assert 0 == cli.main([])

    output = capsys.readouterr().out
    assert all(f"  {name}" in output for name in ("agent", "server", "up", "example", "version"))


@pytest.mark.parametrize("word", ["version", "--version"])
def test_version(word, capsys):
    """Of the distribution."""
    assert 0 == cli.main([word])
    assert f"redflag {__version__}\n" == capsys.readouterr().out


def test_a_group_gets_its_arguments(group, capsys):
    """As if it had been started alone, under its full name."""
    group("import sys\ndef main():\n    print(sys.argv)\n    return 7\n")

    assert 7 == cli.main(["example", "--flag", "value"])
    assert "['redflag example', '--flag', 'value']\n" == capsys.readouterr().out


def test_an_unknown_command_is_a_sentence(capsys):
    """On standard error, with the way to the list."""
    assert cli.UNKNOWN_COMMAND == cli.main(["explode"])
    assert "redflag --help" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["import not_there\n", "def main():\n    import not_there\n"])
def test_a_missing_extra_is_answered_with_its_install_line(group, capsys, source):
    """Whether it is missing at the import of the group or when it runs."""
    group(source)

    assert cli.NOT_INSTALLED == cli.main(["example"])
    assert "pip install 'redflag-rmm[example]'" in capsys.readouterr().err


def test_the_extra_of_up_is_both(group, capsys):
    """Server and agent."""
    group("import not_there\n")
    entry = importlib.metadata.EntryPoint("up", f"{MODULE}:main", cli.GROUP)

    assert cli.NOT_INSTALLED == cli._run("up", entry, [])
    assert "redflag-rmm[server,agent]" in capsys.readouterr().err


def test_a_broken_package_of_ours_is_not_called_missing(group):
    """A module of RedFlag that cannot be imported is a bug, and shown as one."""
    group("import redflag_not_there\n")

    with pytest.raises(ModuleNotFoundError):
        cli.main(["example"])


def test_the_dispatcher_needs_the_standard_library_only():
    """It starts where no extra is installed."""
    code = "import sys; from redflag_core import cli; cli.main(['version']); print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert not {"click", "rich_click", "httpx2", "litestar"} & set(output.split())
