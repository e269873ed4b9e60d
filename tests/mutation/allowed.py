"""The mistakes that nobody needs to notice, each with the reason."""

import tomllib
from pathlib import Path

import attrs

FILE = Path(__file__).with_suffix(".toml")


@attrs.frozen
class Allowed:
    """
    A mistake that makes no difference, or none to a check.

    Attributes:
        module: Name below ``redflag_core``.
        function: Where it is.
        before: The line as it is.
        after: The line with the mistake.
        why: Why it is no weakness.
    """

    module: str
    function: str
    before: str
    after: str
    why: str


def allowed() -> list[Allowed]:
    """Everything that ``allowed.toml`` allows."""
    return [Allowed(**entry) for entry in tomllib.loads(FILE.read_text(encoding="utf-8"))["allowed"]]
