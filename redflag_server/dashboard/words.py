"""What things are called on pages."""

from collections.abc import Mapping
from typing import Final

from redflag_core.enrolment import AgentStatus
from redflag_core.lifecycle import Presence
from redflag_core.scanning import PackageState, ScanStatus, Severity

STATES: Final[Mapping[str, str]] = {
    PackageState.AVAILABLE: "available",
    PackageState.APPROVED: "approved",
    PackageState.KEPT_BACK: "kept back",
    PackageState.HELD: "held",
    PackageState.PHASED: "phased",
    PackageState.DEFERRED: "deferred",
    PackageState.EXCLUDED: "excluded",
    PackageState.PLANNING: "planning",
    PackageState.NEEDS_CONFIRMATION: "needs confirmation",
    PackageState.INSTALLING: "installing",
    PackageState.REBOOT_PENDING: "reboot pending",
    PackageState.FAILED: "failed",
    PackageState.ROLLED_BACK: "rolled back",
    PackageState.UNKNOWN: "unknown",
    PackageState.INSTALLED: "installed",
    PackageState.CURRENT: "up to date",
    PackageState.NOT_APPLICABLE: "gone",
}
"""In the order in which a page shows them."""

EXPLANATIONS: Final[Mapping[str, str]] = {
    PackageState.AVAILABLE: "A newer version can be installed now.",
    PackageState.APPROVED: "Somebody approved the update. It waits to be installed.",
    PackageState.KEPT_BACK: "The update would add or remove other packages, so a plain upgrade leaves it out.",
    PackageState.HELD: "Somebody holds this version on the machine itself.",
    PackageState.PHASED: "The distribution hands this update out in steps. It is not this machine's turn yet.",
    PackageState.DEFERRED: "Somebody put the update off.",
    PackageState.EXCLUDED: "Somebody excluded it from updates.",
    PackageState.PLANNING: "The machine works out what the update would change.",
    PackageState.NEEDS_CONFIRMATION: "The update brings extra changes. Somebody must confirm them.",
    PackageState.INSTALLING: "The update is being installed.",
    PackageState.REBOOT_PENDING: "Installed. The machine must be started anew.",
    PackageState.FAILED: "The update failed.",
    PackageState.ROLLED_BACK: "The update was undone.",
    PackageState.UNKNOWN: "The last scan failed, so nobody knows whether these are up to date.",
    PackageState.INSTALLED: "The update was installed.",
    PackageState.CURRENT: "Nothing newer is known.",
    PackageState.NOT_APPLICABLE: "No longer on the machine.",
}

STATUSES: Final[Mapping[str, str]] = {
    AgentStatus.PENDING: "waits for approval",
    AgentStatus.ACTIVE: "active",
    AgentStatus.QUARANTINED: "quarantined",
    AgentStatus.HARDWARE_CHANGED: "hardware changed",
    AgentStatus.RENEWAL_PENDING: "renewal overdue",
    AgentStatus.EXECUTOR_ROLLED_BACK: "journal rolled back",
    AgentStatus.REVOKED: "revoked",
}

STATUS_ADVICE: Final[Mapping[str, str]] = {
    AgentStatus.PENDING: "It registered and stores nothing here until somebody approves it.",
    AgentStatus.QUARANTINED: "Two machines seem to use its key. Find out which one is yours before you release "
    "it; if a copy is about, revoke it and register your machine anew.",
    AgentStatus.HARDWARE_CHANGED: "Its key is used on other hardware. Approve it if you moved the disk or "
    "replaced the machine.",
    AgentStatus.RENEWAL_PENDING: "It was away for so long that its credentials lapsed. Approve it if it is yours.",
    AgentStatus.EXECUTOR_ROLLED_BACK: "Its journal is older than what it signed before: it was restored from a "
    "backup or a snapshot. It reports, but gets no orders. Approve it once you know what was undone.",
    AgentStatus.REVOKED: "Its key is cut off for ever. The machine can register anew.",
}

PRESENCE: Final[Mapping[str, str]] = {
    Presence.ONLINE: "online",
    Presence.OFFLINE: "offline",
    Presence.NEVER: "not seen yet",
}

SEVERITIES: Final[Mapping[str, str]] = {
    Severity.UNKNOWN: "not rated",
    Severity.LOW: "low",
    Severity.MODERATE: "moderate",
    Severity.IMPORTANT: "important",
    Severity.CRITICAL: "critical",
}

SCANNER_STATUSES: Final[Mapping[str, str]] = {
    ScanStatus.OK: "working",
    ScanStatus.FAILED: "failed",
    ScanStatus.OPEN: "paused after failures",
}
