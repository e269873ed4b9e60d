"""What `pip install redflag-rmm` brings: the library, the five packages it stands on, and what these need."""

import json
import subprocess
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers.constraints import OURS, needed
from tests.helpers.plain_install import plain_environment

DIRECT = {"aiobreaker", "attrs", "cattrs", "pynacl", "stamina"}


def test_the_library_asks_for_five_packages():
    """And on Windows for the data of time zones, which other systems have."""
    plain = [Requirement(text) for text in distribution(OURS).requires or ()]
    plain = [each for each in plain if each.marker is None or "extra" not in str(each.marker)]

    here = {canonicalize_name(each.name) for each in plain if each.marker is None or each.marker.evaluate()}
    assert DIRECT == here
    assert {"tzdata"} == {each.name for each in plain} - here


def test_these_need_only_a_few_more():
    """Nothing of a server, an HTTP client or a database comes in through them."""
    assert set(needed("")) - DIRECT <= {"cffi", "pycparser", "tenacity", "typing-extensions"}


@pytest.mark.full
def test_a_clean_environment_has_nothing_else(tmp_path: Path):
    """Installed, listed, imported: also the command, which says what is missing for the rest."""
    python = plain_environment(tmp_path)

    listing = [python, "-m", "pip", "--disable-pip-version-check", "list", "--format=json"]
    listed = subprocess.run(listing, check=True, capture_output=True, timeout=60)
    names = {canonicalize_name(each["name"]) for each in json.loads(listed.stdout)} - {
        "pip",
        "setuptools",
        "wheel",
    }
    every = "import redflag_core as r; print(len([getattr(r, name) for name in r.__all__]) > 100)"
    told = subprocess.run([python, "-c", every], check=True, capture_output=True, text=True, cwd=tmp_path)
    server = subprocess.run([python.with_name("redflag"), "server"], check=False, capture_output=True, text=True)

    assert {OURS, *needed("")} == names
    assert "True" == told.stdout.strip()
    assert 0 != server.returncode
    assert "pip install 'redflag-rmm[server]'" in server.stderr
