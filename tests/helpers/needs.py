"""Say what a test needs; where it is missing the test skips with the reason, and under ``CI=true`` fails."""

import importlib.util
import os
import shutil

import pytest


def _need(present: bool, what: str) -> pytest.MarkDecorator:
    if not present and os.environ.get("CI") == "true":
        # Collected as an error on purpose: CI installs what the tests need.
        raise RuntimeError(f"CI lacks {what}: .ci/run must install it")
    return pytest.mark.skipif(not present, reason=f"needs {what}")


def needs(*tools: str) -> pytest.MarkDecorator:
    """Skip unless every one of *tools* is on the PATH."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    return _need(not missing, ", ".join(missing) or "nothing")


def needs_package(*names: str) -> pytest.MarkDecorator:
    """Skip unless every one of the Python packages *names* is installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return _need(not missing, f"the Python packages {', '.join(missing)}")


def needs_root() -> pytest.MarkDecorator:
    """Skip unless run as root."""
    return _need(os.geteuid() == 0, "root")
