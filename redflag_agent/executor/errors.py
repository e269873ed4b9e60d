"""Why a command was not carried out, was not finished, or ended badly: the codes in refusals and results."""

from redflag_core.errors import CommandRefusedError, RedFlagError


class JournalError(RedFlagError):
    """The executor's journal cannot be read or written: no command is accepted until it can."""

    code = "journal"


class ExecutorError(RedFlagError):
    """The executor could not do its work. The message says at what."""

    code = "executor_failed"


class UndeliveredError(CommandRefusedError):
    """So many results wait for the server that no command is accepted: none is ever dropped."""

    code = "undelivered_results"


class CancelledCommandError(RedFlagError):
    """The command was cancelled before it was started, and never will be."""

    code = "cancelled"


class TooLateError(RedFlagError):
    """The command that was to be cancelled was started already, or has ended."""

    code = "too_late"


class NotStartedError(RedFlagError):
    """The agent ended between accepting the command and starting it. Nothing was changed."""

    code = "not_started"


class InterruptedRunError(RedFlagError):
    """The command was started and nobody saw its end. What is true now was looked at afterwards."""

    code = "interrupted"


class NothingToDoError(RedFlagError):
    """Nothing of what was to be planned can be changed now."""

    code = "nothing_to_do"


class InstallFailedError(RedFlagError):
    """The package manager ran, and not everything that was ordered is installed."""

    code = "install_failed"
