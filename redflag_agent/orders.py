"""Handing over what the server ordered. Nothing of it is believed here: that is for the executor to judge."""

import logging
from collections.abc import Sequence
from typing import Final

from redflag_agent.executor.commander import Commander
from redflag_agent.failures import Failures
from redflag_agent.progress import line
from redflag_core.encoding import b64decode
from redflag_core.errors import MalformedError

log = logging.getLogger(__name__)

MAX_COMMANDS: Final = 16
"""Commands that are taken from one answer. A server has one open one for an agent, and a few that do not wait."""


async def hand_over(commands: Sequence[str], commander: Commander, failures: Failures) -> None:
    """
    Give each command to the executor. What goes wrong with one is told and does not keep the others.

    Args:
        commands: Untrusted: envelopes in base64.
        commander: Judges them.
        failures: Told what cannot be handed over.
    """
    if len(commands) > MAX_COMMANDS:
        failures.note("commands", MalformedError(f"more than {MAX_COMMANDS} commands in one answer"))
    for text in commands[:MAX_COMMANDS]:
        try:
            await commander.execute(b64decode(text))
        except Exception as error:  # whatever one command does, the next and the agent go on
            failures.note("commands", error)
    if commands:
        log.info(line("commands_received", count=len(commands)))
