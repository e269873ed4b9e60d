"""Exit codes of the commands, for scripts and service managers."""

from typing import Final

from redflag_agent.answers import AnswerError, UnreachableError
from redflag_agent.data_dir import InUseError
from redflag_agent.tokens import NotRegisteredError
from redflag_core.errors import CircuitOpenError, ConfigurationError, RedFlagError, VerificationError

FAILED: Final = 1
MISCONFIGURED: Final = 2
NOT_REGISTERED: Final = 3
REFUSED: Final = 4
UNREACHABLE: Final = 5
IN_USE: Final = 6

_CODES: Final[tuple[tuple[type[RedFlagError], int], ...]] = (
    (InUseError, IN_USE),
    (NotRegisteredError, NOT_REGISTERED),
    (ConfigurationError, MISCONFIGURED),
    (AnswerError, REFUSED),
    (VerificationError, REFUSED),
    (UnreachableError, UNREACHABLE),
    (CircuitOpenError, UNREACHABLE),
)


def exit_code(error: RedFlagError) -> int:
    """The exit code of a command that ended with *error*."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)
