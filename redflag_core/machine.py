"""
Which machine is this: evidence from its ids, comparison, and clones.

The identity of an agent is its key. The machine is evidence beside it: a few ids that stay when software is
reinstalled or the network card is changed. What leaves the machine is a keyed hash of each, never the id itself.
Nothing here reads the hardware: see `redflag_core.machine_readers`.

Rules for the whole file:

- Absent is never a mismatch and never a match.
- An id that many machines share says nothing: it is dropped (the machine id: replaced) and named in `weak`.
"""

import hashlib
import hmac
import re
import uuid
from enum import StrEnum
from typing import Final

import attrs

from redflag_core.encoding import dump_json
from redflag_core.errors import ConfigurationError

APP_ID: Final = bytes.fromhex("f4ed143b9f44484ea61587917953ee25")
"""What makes the hashes RedFlag's own. It never changes: every recorded machine would become another one."""

MACHINE_ID_SIZE: Final = 16
"""A machine id is 128 bits (machine-id(5)); so is each component."""

COMPONENTS: Final = ("machine_id", "smbios_uuid", "board_serial", "disk_serial")
"""The ids that are evidence. Not among them: network cards, CPU and memory, which people change."""

MATCHING_OTHERS: Final = 2
"""Components besides the machine id that must agree: one can move to another machine with a disk or a board."""

PLACEHOLDERS: Final = frozenset({
    # Texts that board makers leave in the firmware, so that whole product lines share them.
    "(null string)", "0123456789", "0123456789abcdef", "12345", "123456", "1234567", "12345678", "123456789",
    "1234567890", "123456789000", "12345678901234567", "base board serial number", "board serial number",
    "chassis serial number", "default string", "empty", "eval", "iatpass", "invalid", "mb-1234567890", "n/a", "na",
    "none", "not applicable", "not available", "not present", "not settable", "not specified", "null", "o.e.m.",
    "oem", "oem_serial", "serial number", "serial number xxxxxx", "sn-12345", "sn-1234567890", "sys-1234567890",
    "sys-9876543210", "system serial number", "systemserialnumb", "tbd", "to be filled by o.e.m.",
    "type2 - board serial number", "undefined", "unknow", "unknown",
    # UUIDs of the same origin, in both byte orders: firmware and readers do not always agree on it.
    "03000200-0400-0500-0006-000700080009", "00020003-0004-0005-0006-000700080009",
    "12345678-1234-5678-90ab-cddeefaabbcc", "78563412-3412-7856-90ab-cddeefaabbcc",
    "01234567-89ab-cdef-0123-456789abcdef", "67452301-ab89-efcd-0123-456789abcdef",
    "00010203-0405-0607-0809-0a0b0c0d0e0f", "03020100-0504-0706-0809-0a0b0c0d0e0f",
    "6ab5b300-538d-1014-9fb5-b0684d007b53", "00b3b56a-8d53-1410-9fb5-b0684d007b53",
    "01010101-0101-0101-0101-010101010101", "fefefefe-fefe-fefe-fefe-fefefefefefe",
    # Serials that hypervisors give to the first disk of every guest: QEMU, VMware and VirtualBox.
    "drive-scsi0", "drive-virtio0", "qm00001", "qm00002", "qm00003", "nvme_0000", "vb1234-56789", "vb1234_56789",
})  # fmt: skip
"""Ids known to be shared by unrelated machines, in folded case."""

_HEX_COMPONENT = attrs.validators.matches_re(r"[0-9a-f]{32}")
_OPTIONAL_COMPONENT = attrs.validators.optional(_HEX_COMPONENT)


def _each_once(_evidence: object, _field: object, names: tuple[str, ...]) -> None:
    if names != tuple(name for name in COMPONENTS if name in names):
        raise ValueError("weak holds names of components, each once and in their order")


@attrs.frozen(kw_only=True)
class RawMachine:
    """
    The ids as a reader found them. Secret towards the network: only `make_evidence` takes them on.

    Attributes:
        machine_id: The installation's id, 16 raw bytes (a Mac has only its hardware's); None when unreadable, as
            for every field.
        smbios_uuid: The firmware's UUID of the system.
        board_serial: Serial number of the main board.
        disk_serial: Serial number of the disk that holds the system.
        boot_id: What is another one at each boot: a UUID that the kernel draws, or the time that it noted.
        container: Whether this is the inside of a container.
    """

    machine_id: bytes | None = attrs.field(default=None, repr=False)
    smbios_uuid: str | None = attrs.field(default=None, repr=False)
    board_serial: str | None = attrs.field(default=None, repr=False)
    disk_serial: str | None = attrs.field(default=None, repr=False)
    boot_id: str | None = None
    container: bool = False


@attrs.frozen(kw_only=True)
class MachineEvidence:
    """
    What a machine shows of itself: hashes that only compare.

    Attributes:
        machine_id: 32 hex digits, always there; of a random replacement when it is named in *weak*.
        smbios_uuid: 32 hex digits, or None when absent or weak.
        board_serial: The same.
        disk_serial: The same.
        weak: Names of the components whose id was shared, unreadable (machine id only) or ordered to be replaced.
        container: Marked, not replaced: a container may have a machine id of its own.
    """

    machine_id: str = attrs.field(validator=_HEX_COMPONENT)
    smbios_uuid: str | None = attrs.field(validator=_OPTIONAL_COMPONENT)
    board_serial: str | None = attrs.field(validator=_OPTIONAL_COMPONENT)
    disk_serial: str | None = attrs.field(validator=_OPTIONAL_COMPONENT)
    weak: tuple[str, ...] = attrs.field(validator=_each_once)
    container: bool

    @property
    def binding(self) -> str:
        """The ``machine_binding`` of commands: the machine-id component."""
        return self.machine_id

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON of all fields, 64 hex digits."""
        return hashlib.sha256(dump_json(attrs.asdict(self))).hexdigest()


class MachineVerdict(StrEnum):
    """Whether two pieces of evidence are of one machine."""

    MATCH = "match"
    HARDWARE_CHANGED = "hardware_changed"


class BootVerdict(StrEnum):
    """What the boot id of a request says about the one before it."""

    SAME = "same"
    REBOOTED = "rebooted"
    CLONE = "clone"


def component(raw: bytes) -> str:
    """The first 16 bytes of HMAC-SHA256 with *raw*, the id itself, as the key; 32 hex digits."""
    return _keyed_hash(raw).hex()


def machine_id_component(raw: bytes) -> str:
    """
    The component of a machine id, equal to ``systemd-id128 machine-id --app-specific=APP_ID``.

    Args:
        raw: The 16 bytes of the machine id.

    Returns:
        32 hex digits with the version and variant bits of a UUIDv4 (sd_id128_get_machine_app_specific(3)).
    """
    digest = bytearray(_keyed_hash(raw))
    digest[6] = digest[6] & 0x0F | 0x40
    digest[8] = digest[8] & 0x3F | 0x80
    return digest.hex()


def make_evidence(raw: RawMachine, *, replacement: bytes, replace_machine_id: bool = False) -> MachineEvidence:
    """
    Turn the ids of this machine into evidence.

    Args:
        raw: What was read now.
        replacement: 16 random bytes, made once and kept; they stand in for a machine id that says nothing.
        replace_machine_id: Whether the server found another agent with this machine id.

    Raises:
        ConfigurationError: *replacement* is not 16 bytes, or is weak itself: the file it was kept in is damaged.
    """
    if _is_weak_machine_id(replacement):
        raise ConfigurationError(
            "the kept machine id replacement is damaged: it must be 16 random bytes."
            " Restore it from a backup, or delete it and register this machine again"
        )
    others = {
        "smbios_uuid": _uuid(raw.smbios_uuid),
        "board_serial": _fold(raw.board_serial),
        "disk_serial": _fold(raw.disk_serial),
    }
    present = {name: text for name, text in others.items() if text is not None}
    weak = [name for name, text in present.items() if is_weak(text)]
    hashes = {name: component(_encode(text)) for name, text in present.items() if name not in weak}
    machine_id = raw.machine_id
    if machine_id is None or replace_machine_id or _is_weak_machine_id(machine_id):
        machine_id = replacement
        weak.insert(0, "machine_id")
    return MachineEvidence(
        machine_id=machine_id_component(machine_id),
        smbios_uuid=hashes.get("smbios_uuid"),
        board_serial=hashes.get("board_serial"),
        disk_serial=hashes.get("disk_serial"),
        weak=tuple(weak),
        container=raw.container,
    )


def is_weak(text: str) -> bool:
    """
    Whether an id is known to be shared by unrelated machines.

    Args:
        text: The id, of any spelling.

    Returns:
        True for the empty text, one character repeated (all zero, all F), and a placeholder, also as the last word
        (a disk's world-wide id ends with its serial).
    """
    words = text.casefold().split()
    significant = {character for word in words for character in word if character.isalnum()}
    return len(significant) <= 1 or " ".join(words) in PLACEHOLDERS or words[-1] in PLACEHOLDERS


def compare(recorded: MachineEvidence, presented: MachineEvidence) -> MachineVerdict:
    """
    Whether *presented* is of the machine on record.

    Args:
        recorded: Evidence of the registration, trusted.
        presented: Evidence with a verified signature; its content is the sender's claim.

    Returns:
        `MATCH` when the machine id agrees, or two other components do; else `HARDWARE_CHANGED`.
    """
    others = sum(_agree(getattr(recorded, name), getattr(presented, name)) for name in COMPONENTS[1:])
    same = recorded.machine_id == presented.machine_id or others >= MATCHING_OTHERS
    return MachineVerdict.MATCH if same else MachineVerdict.HARDWARE_CHANGED


def judge_boot(current: str | None, previous: str | None, presented: str | None) -> BootVerdict:
    """
    Compare a boot id with the two that this agent showed last.

    A machine never returns to a boot that it left: A, B, A on one key are two machines that run at once.

    Args:
        current: The boot id of the latest request, None before the first.
        previous: The one before it that was different.
        presented: Verified boot id of this request, None when unreadable.

    Returns:
        `SAME` (also when nothing was presented), `CLONE`, or `REBOOTED`: then, and only then, store *presented* as
        current and current as previous.
    """
    if presented is None or presented == current:
        return BootVerdict.SAME
    return BootVerdict.CLONE if presented == previous else BootVerdict.REBOOTED


def _keyed_hash(raw: bytes) -> bytes:
    return hmac.digest(raw, APP_ID, "sha256")[:MACHINE_ID_SIZE]


def _encode(text: str) -> bytes:
    # Firmware texts of other systems come as UTF-16 and may hold lone surrogates.
    return text.encode("utf-8", "surrogatepass")


def _agree(one: str | None, other: str | None) -> bool:
    return one is not None and one == other


def _is_weak_machine_id(raw: bytes) -> bool:
    return len(raw) != MACHINE_ID_SIZE or len(set(raw.hex())) == 1


def _fold(text: str | None) -> str | None:
    """One spelling: no NULs or blanks around, single blanks within."""
    return None if text is None else " ".join(re.split(r"[\s\x00]+", text)).strip()


def _uuid(text: str | None) -> str | None:
    """The canonical spelling of a UUID; what is no UUID stays text (a placeholder, or a maker's mistake)."""
    folded = _fold(text)
    try:
        return folded and str(uuid.UUID(folded))
    except ValueError:
        return folded
