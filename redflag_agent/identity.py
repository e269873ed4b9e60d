"""
The agent's keys: made once for this machine, kept for ever, discarded when they came with an image.

A machine image may hold keys that were made but never registered. They were made for other evidence than this
machine shows, so they are discarded: two machines must not start with one identity.
"""

from pathlib import Path
from typing import Final

import attrs

from redflag_agent.data_dir import DataDirectory
from redflag_agent.executor import Executor, Journal
from redflag_agent.state import AgentState, RefreshSecrets, StateFile
from redflag_core.encoding import hex_decode
from redflag_core.enrolment import new_secret
from redflag_core.errors import KeyFileError, MalformedError
from redflag_core.freshness import unix
from redflag_core.keyfiles import read_key, read_private, write_key, write_private
from redflag_core.keys import SigningKey
from redflag_core.ports import Clock, Entropy, MachineIdentity

REPLACEMENT_SIZE: Final = 16


@attrs.frozen
class Identity:
    """
    Who this agent is to itself.

    Attributes:
        agent_key: Key of the network process.
        executor: The executor with its own key.
    """

    agent_key: SigningKey = attrs.field(repr=False)
    executor: Executor


def open_identity(
    directory: DataDirectory,
    state: StateFile,
    *,
    machine: MachineIdentity,
    clock: Clock,
    entropy: Entropy,
    journal: Journal,
) -> Identity:
    """
    The identity in *directory*; made, or made anew, as long as it is not registered.

    Raises:
        KeyFileError: A key of a registered agent is missing or damaged, or the system refuses to write.
    """
    if state.state.registration is not None:
        return _load(directory, machine, clock, journal)
    if state.state.made_for is not None:
        identity = _load(directory, machine, clock, journal)
        shown = identity.executor.evidence(replace_machine_id=state.state.replace_machine_id)
        if shown.digest == state.state.made_for:
            return identity
    return renew_identity(directory, state, machine=machine, clock=clock, entropy=entropy, journal=journal)


def renew_identity(
    directory: DataDirectory,
    state: StateFile,
    *,
    machine: MachineIdentity,
    clock: Clock,
    entropy: Entropy,
    journal: Journal,
) -> Identity:
    """
    Discard keys, registration and trust, and make new keys and the first refresh secret.

    What the executor did under the old ones is no state of the new ones; its journal is kept aside.

    The state is emptied first and filled last: killed in between, the next start does all of it again.

    Raises:
        KeyFileError: The system refuses to write or to delete.
        JournalError: The journal cannot be written.
    """
    state.update(**attrs.asdict(AgentState(), recurse=False))
    journal.start_anew(directory.journal.with_name(f"{directory.journal.name}.{int(unix(clock.now()))}"))
    for path in (directory.agent_key, directory.executor_key, directory.machine_id, directory.trust):
        _delete(path)
    write_private(directory.machine_id, entropy.token(REPLACEMENT_SIZE).hex().encode() + b"\n", replace=False)
    for path in (directory.agent_key, directory.executor_key):
        write_key(path, SigningKey.from_seed(entropy.token(32)))
    identity = _load(directory, machine, clock, journal)
    state.update(made_for=identity.executor.evidence().digest, refresh=RefreshSecrets(new_secret(entropy)))
    return identity


def _load(directory: DataDirectory, machine: MachineIdentity, clock: Clock, journal: Journal) -> Identity:
    replacement = _replacement(directory.machine_id)
    executor = Executor(read_key(directory.executor_key), machine, replacement, clock, journal)
    return Identity(read_key(directory.agent_key), executor)


def _replacement(path: Path) -> bytes:
    try:
        return hex_decode(read_private(path).decode("ascii").strip(), REPLACEMENT_SIZE)
    except (MalformedError, UnicodeDecodeError):
        raise KeyFileError(
            f"{path} is damaged: restore it from a backup, or register this machine again in another directory"
        ) from None


def _delete(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise KeyFileError(f"cannot delete {path}: {error.strerror}") from None
