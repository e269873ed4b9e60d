"""Machine evidence: what it shows, what it never shows, and when two pieces are of one machine."""

import hashlib
import itertools
import re
import subprocess
import uuid
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core import codec
from redflag_core.errors import ConfigurationError, MalformedError
from redflag_core.machine import (
    APP_ID,
    COMPONENTS,
    PLACEHOLDERS,
    BootVerdict,
    MachineEvidence,
    MachineVerdict,
    RawMachine,
    compare,
    component,
    is_weak,
    judge_boot,
    machine_id_component,
    make_evidence,
)
from tests.helpers.needs import needs

MACHINE_ID = bytes.fromhex("b08dfa6083e7567a1921a715000001fb")
REPLACEMENT = bytes.fromhex("6d1fd3a2c8e94b7a9f0512e4bb7780ac")
RAW = RawMachine(
    machine_id=MACHINE_ID,
    smbios_uuid="4c4c4544-0051-3010-8052-b4c04f564231",
    board_serial="/7VN4ZW2/CN1296",
    disk_serial="S4EWNX0R",
    boot_id="c5f1cbc1-0d3e-4d0c-9f5c-9d0f7a4a9f11",
)

# What `systemd-id128 machine-id --app-specific` of systemd 252 prints for these machine ids.
SYSTEMD_VECTORS = {
    "3d1219c7c4c5404aaa1f6d2a48adfda4": "8ddfac9cc5b14e14adfae0fa397be9f8",
    "0123456789abcdef0123456789abcdef": "f2d320a5005f4c27886a0d592bf04ca5",
    "b08dfa6083e7567a1921a715000001fb": "0d6ac95cf7cc4f179036c27adddf022a",
}


def evidence(raw=RAW, **changes):
    return make_evidence(attrs.evolve(raw, **changes), replacement=REPLACEMENT)


# The keyed hashes


def test_the_app_id_never_changes():
    """Another APP_ID would make every recorded machine a different one."""
    assert "f4ed143b9f44484ea61587917953ee25" == APP_ID.hex()


@pytest.mark.parametrize("machine_id,expected", SYSTEMD_VECTORS.items())
def test_the_machine_id_component_is_what_systemd_computes(machine_id, expected):
    """The component of a machine id equals systemd's app-specific id, for known values."""
    assert expected == machine_id_component(bytes.fromhex(machine_id))


@needs("systemd-id128")
@pytest.mark.skipif(not Path("/etc/machine-id").is_file(), reason="needs /etc/machine-id")
def test_the_machine_id_component_of_this_machine_is_what_systemd_prints():
    """The real tool and this library agree about the machine that runs the tests."""
    command = ["systemd-id128", "machine-id", "--app-specific", APP_ID.hex()]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()

    this_machine = bytes.fromhex(Path("/etc/machine-id").read_text().strip())

    assert printed == machine_id_component(this_machine)


def test_the_other_components_are_known_values():
    """The hash of an id is the same in every release and on every platform."""
    shown = evidence()

    assert "0d6ac95cf7cc4f179036c27adddf022a" == shown.machine_id
    assert "d42d43853904ddf844107b828c7edb45" == shown.smbios_uuid
    assert "b1a75fb0ea3413120a30d7f96da47547" == shown.board_serial
    assert "e60359c664bfb51b13d1a1cc1b6e6d0c" == shown.disk_serial
    assert () == shown.weak


@given(st.binary(min_size=1, max_size=200))
def test_a_component_is_always_32_hex_digits(raw):
    """Whatever the id, 16 bytes of hash come out."""
    assert 16 == len(bytes.fromhex(component(raw)))


@given(st.binary(min_size=16, max_size=16))
def test_the_machine_id_component_is_a_uuid_version_4(raw):
    """The version and variant bits are those of a random UUID, as systemd sets them."""
    digits = machine_id_component(raw)

    assert "4" == digits[12]
    assert digits[16] in "89ab"


def test_evidence_shows_no_raw_id():
    """Neither the wire form nor any text form holds an id itself."""
    shown = codec.dump(evidence()).decode() + repr(evidence()) + repr(RAW)

    for secret in (MACHINE_ID.hex(), repr(MACHINE_ID), RAW.smbios_uuid, RAW.board_serial, RAW.disk_serial):
        assert secret not in shown


def test_a_machine_may_show_nothing():
    """A reader leaves out what it cannot read."""
    nothing = dict.fromkeys(("machine_id", "smbios_uuid", "board_serial", "disk_serial", "boot_id"))

    assert RawMachine(**nothing, container=False) == RawMachine()


# One spelling


@pytest.mark.parametrize(
    "spelling",
    [
        "4C4C4544-0051-3010-8052-B4C04F564231",
        " 4c4c4544-0051-3010-8052-b4c04f564231\n",
        "{4c4c4544-0051-3010-8052-b4c04f564231}",
        "4c4c4544005130108052b4c04f564231\x00",
    ],
)
def test_the_spelling_of_a_uuid_does_not_matter(spelling):
    """Case, braces, hyphens and blanks differ between firmware and readers; the machine is the same."""
    assert evidence().smbios_uuid == evidence(smbios_uuid=spelling).smbios_uuid


def test_blanks_and_nuls_around_a_serial_do_not_matter():
    """Serials come padded."""
    assert evidence().disk_serial == evidence(disk_serial="  S4EWNX0R \x00\n").disk_serial


def test_runs_of_blanks_in_a_serial_are_one():
    """A SCSI world-wide id is padded in the middle, not the same everywhere."""
    one = evidence(disk_serial="t10.ATA     Samsung SSD   S4EWNX0R")

    assert one.disk_serial == evidence(disk_serial="t10.ATA Samsung SSD S4EWNX0R").disk_serial


def test_the_case_of_a_serial_matters():
    """Only UUIDs are the same in both cases."""
    assert evidence().disk_serial != evidence(disk_serial="s4ewnx0r").disk_serial


def test_a_smbios_uuid_that_is_no_uuid_is_still_an_id():
    """What a maker wrote there is compared as text."""
    assert component(b"SN-2231-A") == evidence(smbios_uuid=" SN-2231-A").smbios_uuid


@given(st.builds(RawMachine, smbios_uuid=st.text(), board_serial=st.text(), disk_serial=st.none() | st.text()))
def test_any_text_makes_evidence(raw):
    """Firmware may hold anything; evidence is made of it without an error, and passes the wire."""
    shown = make_evidence(raw, replacement=REPLACEMENT)

    assert shown == codec.parse(MachineEvidence, codec.dump(shown), max_bytes=4096)


def test_a_lone_surrogate_in_a_serial_is_no_error():
    """Texts of other systems are not always valid Unicode."""
    assert evidence(disk_serial="S4\ud800").disk_serial is not None


# Weak ids


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "0",
        "00000000",
        "FFFFFFFFFFFF",
        "........",
        "XXXX-XXXX",
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "To be filled by O.E.M.",
        " Default  string",
        "None",
        "Not Specified",
        "System Serial Number",
        "0123456789",
        "03000200-0400-0500-0006-000700080009",
        "03000200-0400-0500-0006-000700080009".upper(),
        "t10.ATA     QEMU HARDDISK                           QM00001",
        "drive-scsi0",
        *sorted(PLACEHOLDERS),
    ],
)
def test_an_id_that_machines_share_is_weak(text):
    """Empty, one repeated character, or a known placeholder, in any spelling."""
    assert is_weak(text)


@pytest.mark.parametrize(
    "text",
    [
        "S4EWNX0R",
        "4c4c4544-0051-3010-8052-b4c04f564231",
        "eui.0025385b71b0a3c1",
        "10",
        "None of that",
        "00000000-0000-0000-0000-ac1f6bd04b3e",
    ],
)
def test_an_id_of_its_own_is_not_weak(text):
    """A real serial is kept, also when it is mostly zeros or starts with a word of the list."""
    assert not is_weak(text)


@pytest.mark.parametrize(
    "text",
    [
        "VMware NVME_0000",
        "VMWare NVME_0000",
        "VB1234-56789",
        "0000_0000_0000_0000.",
        "SYS-1234567890",
        "MB-1234567890",
        "78563412-3412-7856-90AB-CDDEEFAABBCC",
    ],
)
def test_an_id_that_windows_shows_of_many_machines_is_weak(text):
    """Hypervisors and board makers are the same under Windows; only the spelling differs."""
    assert is_weak(text)


def test_placeholder_uuids_are_known_in_both_byte_orders():
    """A firmware that claims the wrong version of SMBIOS must not make a placeholder an id."""
    known = {
        uuid.UUID(text)
        for text in PLACEHOLDERS
        if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text)
    }

    assert {uuid.UUID(bytes_le=each.bytes) for each in known} == known
    assert len(known) == 12


def test_no_placeholder_changes_unnoticed():
    """With another list, machines that are on record show other evidence."""
    listed = hashlib.sha256("\n".join(sorted(PLACEHOLDERS)).encode()).hexdigest()

    assert "46810ad0c907fccabf031506507cc7eddfa5505ae46cb64d70ccb5dc44616fee" == listed


def test_placeholders_are_in_the_form_they_are_looked_up_in():
    """An entry with upper case or double blanks would never match."""
    assert {" ".join(entry.casefold().split()) for entry in PLACEHOLDERS} == PLACEHOLDERS


@pytest.mark.parametrize("name", COMPONENTS[1:])
def test_a_weak_component_becomes_absent_and_is_named(name):
    """It neither matches nor hides: it is dropped and listed."""
    shown = evidence(**{name: "Default string"})

    assert getattr(shown, name) is None
    assert (name,) == shown.weak


@pytest.mark.parametrize("name", COMPONENTS[1:])
def test_an_unreadable_component_is_absent_and_not_weak(name):
    """A reader without the rights to read it accuses nobody."""
    shown = evidence(**{name: None})

    assert getattr(shown, name) is None
    assert () == shown.weak


@pytest.mark.parametrize("machine_id", [None, b"", bytes(16), b"\xff" * 16, b"\x11" * 16, MACHINE_ID[:15]])
def test_a_weak_or_unreadable_machine_id_is_replaced_and_marked(machine_id):
    """The binding is always there: of the kept random bytes when the machine id says nothing."""
    shown = evidence(machine_id=machine_id)

    assert machine_id_component(REPLACEMENT) == shown.machine_id
    assert ("machine_id",) == shown.weak


def test_a_duplicate_machine_id_is_replaced_when_the_server_says_so():
    """An imaged machine keeps its other components and gets a binding of its own."""
    shown = make_evidence(RAW, replacement=REPLACEMENT, replace_machine_id=True)

    assert machine_id_component(REPLACEMENT) == shown.binding
    assert ("machine_id",) == shown.weak
    assert evidence().disk_serial == shown.disk_serial


def test_all_weak_components_are_named_in_one_order():
    """The order is fixed, or the digest would depend on chance."""
    assert COMPONENTS == evidence(RawMachine(smbios_uuid="0", board_serial="None", disk_serial="")).weak


@pytest.mark.parametrize("replacement", [b"", bytes(16), REPLACEMENT[:15], REPLACEMENT + b"\x00"])
def test_a_damaged_replacement_is_refused_with_what_to_do(replacement):
    """A truncated or zeroed file must not become the id of every such machine."""
    with pytest.raises(ConfigurationError, match="Restore it from a backup, or delete it"):
        make_evidence(RAW, replacement=replacement)


def test_a_container_is_marked_and_keeps_its_machine_id():
    """A container with a machine id of its own is a machine of its own."""
    shown = evidence(container=True)

    assert shown.container
    assert not evidence().container
    assert evidence().machine_id == shown.machine_id


# Digest, binding and wire form


def test_the_binding_is_the_machine_id_component():
    """`machine_binding` of the protocol has one source."""
    assert evidence().machine_id == evidence().binding


def test_the_digest_is_of_the_canonical_wire_form():
    """Both sides compute it from what was sent."""
    assert hashlib.sha256(codec.dump(evidence())).hexdigest() == evidence().digest


def test_the_boot_id_is_not_part_of_the_evidence():
    """A reboot must not change the digest that access tokens are bound to."""
    assert evidence().digest == evidence(boot_id="7d1a5f0c-5a8e-4b57-8f62-0d1f1b1d5a10").digest


@pytest.mark.parametrize("change", [{"disk_serial": "OTHER1"}, {"container": True}, {"board_serial": None}])
def test_any_change_of_evidence_changes_the_digest(change):
    """An access token for the old evidence is then no longer valid for the new."""
    assert evidence().digest != evidence(**change).digest


@pytest.mark.parametrize(
    "field,value",
    [
        ("machine_id", "0d6ac95cf7cc4f179036c27adddf022"),
        ("machine_id", "0D6AC95CF7CC4F179036C27ADDDF022A"),
        ("machine_id", None),
        ("disk_serial", "x" * 32),
        ("disk_serial", "a" * 32 + "\n"),
        ("weak", ["cpu"]),
        ("weak", ["disk_serial", "disk_serial"]),
        ("weak", ["disk_serial", "board_serial"]),
        ("container", 1),
        ("nic", "a" * 32),
    ],
)
def test_evidence_of_another_shape_is_malformed(field, value):
    """What arrives over the wire has the one shape or is refused."""
    document = codec.unstructure(evidence()) | {field: value}

    with pytest.raises(MalformedError):
        codec.structure(MachineEvidence, document)


# Comparison


def test_the_machine_id_alone_matches():
    """New board, new disk, same installation: the same machine."""
    moved = evidence(smbios_uuid="11112222-3333-4444-5555-666677778888", board_serial="B2", disk_serial="D2")

    assert MachineVerdict.MATCH == compare(evidence(), moved)


def agreeing(*names):
    """Evidence of another installation that shares *names* with the recorded one."""
    other = {"smbios_uuid": "11112222-3333-4444-5555-666677778888", "board_serial": "B2", "disk_serial": "D2"}
    kept = {name: getattr(RAW, name) for name in names}
    return evidence(machine_id=bytes(range(16)), **(other | kept))


@pytest.mark.parametrize("names", list(itertools.combinations(COMPONENTS[1:], 2)))
def test_two_other_components_match(names):
    """A reinstalled machine has a new machine id and is recognised by its hardware."""
    assert MachineVerdict.MATCH == compare(evidence(), agreeing(*names))


@pytest.mark.parametrize("name", COMPONENTS[1:])
def test_one_other_component_does_not_match(name):
    """A disk or a board that was moved does not take the identity along."""
    assert MachineVerdict.HARDWARE_CHANGED == compare(evidence(), agreeing(name))


def test_no_component_in_common_is_other_hardware():
    """State copied to another machine is recognised as such."""
    assert MachineVerdict.HARDWARE_CHANGED == compare(evidence(), agreeing())


def test_absent_never_matches_absent():
    """Two machines that show nothing have nothing in common."""
    bare = evidence(smbios_uuid=None, board_serial=None, disk_serial=None)
    other = attrs.evolve(bare, machine_id=machine_id_component(REPLACEMENT))

    assert MachineVerdict.HARDWARE_CHANGED == compare(bare, other)


def test_absent_is_never_a_mismatch():
    """An agent that loses the right to read its firmware stays the same machine."""
    unprivileged = evidence(smbios_uuid=None, board_serial=None)

    assert MachineVerdict.MATCH == compare(evidence(), unprivileged)
    assert MachineVerdict.MATCH == compare(unprivileged, evidence())


def test_weak_ids_do_not_match_each_other():
    """Two boards of one careless maker are two machines."""
    careless = {"smbios_uuid": "03000200-0400-0500-0006-000700080009", "board_serial": "Default string"}
    one, other = evidence(**careless), evidence(machine_id=bytes(range(16)), disk_serial="D2", **careless)

    assert MachineVerdict.HARDWARE_CHANGED == compare(one, other)


components = st.text("0123456789abcdef", min_size=32, max_size=32)
evidences = st.builds(
    MachineEvidence,
    machine_id=components,
    smbios_uuid=st.none() | components,
    board_serial=st.none() | components,
    disk_serial=st.none() | components,
    weak=st.just(()),
    container=st.booleans(),
)


@given(evidences, evidences)
def test_comparison_does_not_depend_on_the_side(one, other):
    """Recorded and presented may be exchanged."""
    assert compare(one, other) == compare(other, one)


@given(evidences)
def test_every_machine_matches_itself(one):
    """Evidence that did not change is never refused."""
    assert MachineVerdict.MATCH == compare(one, one)


# Boots


@pytest.mark.parametrize(
    "current,previous,presented,expected",
    [
        ("A", None, "A", BootVerdict.SAME),
        ("A", "B", "A", BootVerdict.SAME),
        ("A", "B", None, BootVerdict.SAME),
        (None, None, None, BootVerdict.SAME),
        (None, None, "A", BootVerdict.REBOOTED),
        ("A", None, "B", BootVerdict.REBOOTED),
        ("B", "A", "C", BootVerdict.REBOOTED),
        ("B", "A", "A", BootVerdict.CLONE),
    ],
)
def test_the_verdict_about_boots(current, previous, presented, expected):
    """Same, new, or back at a boot that was left: absent says nothing."""
    assert expected == judge_boot(current, previous, presented)


def judge_all(boot_ids):
    """The verdicts as a server gets them, storing as `judge_boot` says."""
    current, previous, verdicts = None, None, []
    for presented in boot_ids:
        verdicts.append(judge_boot(current, previous, presented))
        if verdicts[-1] is BootVerdict.REBOOTED:
            current, previous = presented, current
    return verdicts


def test_alternating_boots_are_a_clone():
    """A, B, A on one key: two machines run at once."""
    assert BootVerdict.CLONE in judge_all("AABBA")


@given(st.lists(st.integers(0, 9), unique=True, max_size=6), st.data())
def test_a_machine_that_reboots_is_never_a_clone(boots, data):
    """Any number of requests in each of any number of boots, none of which comes back."""
    sequence = [str(boot) for boot in boots for _ in range(data.draw(st.integers(1, 3)))]

    assert BootVerdict.CLONE not in judge_all(sequence)
