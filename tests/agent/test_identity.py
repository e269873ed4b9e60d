"""Keys and state: made once, durable before use, discarded when they came with an image."""

import attrs
import pytest

from redflag_agent.data_dir import DataDirectory
from redflag_agent.executor import Journal
from redflag_agent.identity import open_identity
from redflag_agent.state import (
    MAX_STATE_BYTES,
    AgentState,
    Pins,
    RefreshSecrets,
    Registration,
    StateError,
    StateFile,
)
from redflag_core.errors import KeyFileError
from redflag_core.machine import RawMachine
from redflag_core.testing import FrozenClock, SeededEntropy
from tests.helpers.agents import OTHER, RAW, FakeMachine, new_id


def opened(path, machine=None, seed=0):
    """State and identity in *path*."""
    directory = DataDirectory(path)
    directory.prepare()
    state = StateFile.open(directory.state)
    with Journal.open(directory.journal) as journal:
        identity = open_identity(
            directory,
            state,
            machine=machine or FakeMachine(),
            clock=FrozenClock(),
            entropy=SeededEntropy(seed),
            journal=journal,
        )
    return state, identity


def registered(state):
    """Pretend that a server took this agent."""
    pins = Pins(new_id(1), "0" * 64, ("https://rf.example",))
    state.update(pins=pins, registration=Registration(new_id(2), new_id(3)))


def test_keys_are_made_once(tmp_path):
    """A second start finds them, and the first refresh secret."""
    first_state, first = opened(tmp_path)
    second_state, second = opened(tmp_path, seed=7)

    assert (first.agent_key, first.executor.key) == (second.agent_key, second.executor.key)
    assert first_state.state.refresh == second_state.state.refresh
    assert first.agent_key != first.executor.key


def test_every_file_is_private(tmp_path):
    """Keys, state and the machine id replacement: 0600."""
    opened(tmp_path)

    assert {0o600} == {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}


def test_unregistered_keys_of_an_image_are_discarded(tmp_path):
    """On another machine, keys that were made but never registered are made anew, secrets too."""
    before_state, before = opened(tmp_path)

    after_state, after = opened(tmp_path, FakeMachine(OTHER), seed=1)

    assert before.agent_key != after.agent_key
    assert before.executor.key != after.executor.key
    assert before_state.state.refresh != after_state.state.refresh
    assert before.executor.replacement != after.executor.replacement


def test_registered_keys_stay_whatever_the_machine_shows(tmp_path):
    """The identity is the key; it is the server's to judge the evidence."""
    state, before = opened(tmp_path)
    registered(state)

    _, after = opened(tmp_path, FakeMachine(OTHER), seed=1)

    assert before.agent_key == after.agent_key


def test_a_start_that_was_killed_between_keys_and_state_makes_new_ones(tmp_path):
    """Keys without a record of what they were made for are not trusted to be this machine's."""
    state, before = opened(tmp_path)
    state.update(made_for=None, refresh=None)

    after_state, after = opened(tmp_path, seed=1)

    assert before.agent_key != after.agent_key
    assert after_state.state.refresh is not None


@pytest.mark.parametrize("name", ["agent.key", "executor.key", "machine-id"])
@pytest.mark.parametrize("damage", [None, b"", b"{}", b"x" * 5000])
def test_a_registered_agent_without_a_key_is_told_so(tmp_path, name, damage):
    """A missing or damaged key is a sentence, and is never replaced: the server knows the old one."""
    state, _ = opened(tmp_path)
    registered(state)
    path = tmp_path / name
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
        path.chmod(0o600)

    with pytest.raises(KeyFileError, match=name):
        opened(tmp_path)

    assert (damage is not None) == path.exists()


@pytest.mark.parametrize("damage", [b"", b"{", b'{"v":2}', b'{"v":1,"extra":1}', b"\xff", b"[]", b"null"])
def test_a_damaged_state_file_is_a_sentence(tmp_path, damage):
    """It is never taken for "not registered", which would make a second agent of one machine."""
    path = tmp_path / "state.json"
    path.write_bytes(damage)
    path.chmod(0o600)

    with pytest.raises(StateError, match="damaged"):
        StateFile.open(path)


def test_an_oversized_state_file_is_refused(tmp_path):
    """What is larger than any state is something else."""
    path = tmp_path / "state.json"
    path.write_bytes(b" " * (MAX_STATE_BYTES + 1))
    path.chmod(0o600)

    with pytest.raises(KeyFileError, match="larger"):
        StateFile.open(path)


def test_a_state_file_open_to_others_is_refused(tmp_path):
    """It holds secrets."""
    path = tmp_path / "state.json"
    path.write_bytes(b'{"v":1}')
    path.chmod(0o644)

    with pytest.raises(KeyFileError, match="chmod 600"):
        StateFile.open(path)


def test_the_largest_state_fits(tmp_path):
    """Eight long addresses and the longest token are below the bound of the file."""
    state = StateFile(tmp_path / "state.json", AgentState())
    addresses = tuple("https://" + "a" * 253 + f"/{number}" for number in range(8))

    state.update(
        pins=Pins(new_id(1), "0" * 64, addresses, "sha256:" + "0" * 64),
        refresh=RefreshSecrets("s" * 43, "t" * 43),
        status_detail="x" * 500,
    )

    assert state.state == StateFile.open(state.path).state


def test_an_update_that_cannot_be_written_changes_nothing(tmp_path):
    """Memory never says more than the disk."""
    state = StateFile(tmp_path / "gone" / "state.json", AgentState())

    with pytest.raises(KeyFileError):
        state.update(status="active")

    assert AgentState() == state.state


def test_secrets_do_not_show_in_the_text_form(tmp_path):
    """A traceback or a log of the state holds no secret."""
    state, identity = opened(tmp_path)
    secret = state.state.refresh.current

    assert secret not in repr(state)
    assert identity.executor.replacement.hex() not in repr(identity)
    assert repr(identity.executor.replacement) not in repr(identity)


def test_evidence_is_read_anew_each_time(tmp_path):
    """A change of the machine shows in the next statement, not after a restart."""
    machine = FakeMachine()
    _, identity = opened(tmp_path, machine)
    before = identity.executor.evidence()

    machine.raw = attrs.evolve(RAW, disk_serial="ANOTHER-1")
    after = identity.executor.evidence()

    assert before.digest != after.digest
    assert before.boot_id == after.boot_id == RAW.boot_id


def test_the_same_evidence_has_the_same_bytes(tmp_path):
    """Repeating a registration repeats it exactly."""
    _, identity = opened(tmp_path)

    assert identity.executor.evidence() == identity.executor.evidence()


def test_a_machine_without_ids_has_a_stable_replacement(tmp_path):
    """The random stand-in survives a restart, so the machine stays the same one."""
    bare = FakeMachine(RawMachine(machine_id=None, container=True))
    _, first = opened(tmp_path, bare)
    _, second = opened(tmp_path, bare, seed=3)

    assert first.executor.evidence().digest == second.executor.evidence().digest
    assert ("machine_id",) == first.executor.evidence().weak
