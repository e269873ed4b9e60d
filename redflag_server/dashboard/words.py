"""What things are called on pages."""

from collections.abc import Mapping
from typing import Final

from redflag_core.command_queue import CommandState
from redflag_core.commands import CommandType
from redflag_core.enrolment import AgentStatus
from redflag_core.lifecycle import Presence
from redflag_core.patching import ApprovalReason, ChangeKind, PlanState
from redflag_core.scanning import PackageState, ScanStatus, Severity
from redflag_core.statements import PackageOutcome

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
    PackageState.APPROVED: "Somebody approved the update. It waits to be planned and installed.",
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

DECISIONS: Final[Mapping[str, tuple[str, str]]] = {
    "approve": ("Approve", "The update may be installed. Nothing happens before it is planned and installed."),
    "reject": ("Reject", "Leave it out for good, until somebody reopens it."),
    "exclude": ("Exclude", "Leave the package out of updates until that day, or without a day for good."),
    "defer": ("Defer until", "Look at this update again on that day."),
    "reopen": ("Reopen", "Take the decision back: it is again what the machine says."),
}
"""What people decide about packages: the word on the button, and what it means."""

DECIDED: Final[Mapping[str, str]] = {
    "approve": "Approved",
    "reject": "Rejected",
    "exclude": "Excluded",
    "defer": "Deferred",
    "reopen": "Reopened",
}

COMMAND_TYPES: Final[Mapping[str, str]] = {
    CommandType.SCAN_RUN: "scan",
    CommandType.PACKAGES_PLAN: "plan updates",
    CommandType.PACKAGES_UPGRADE: "install updates",
    CommandType.PACKAGES_REVERT: "undo updates",
    CommandType.IMAGES_UPDATE: "update images",
    CommandType.SYSTEM_REBOOT: "reboot",
    CommandType.COMMAND_CANCEL: "cancel a command",
    CommandType.AGENT_HEARTBEAT: "check in fast",
    CommandType.PACKAGES_INSTALL_NEW: "install new packages",
    CommandType.PACKAGES_REMOVE: "remove packages",
    CommandType.PACKAGES_DOWNGRADE: "downgrade packages",
    CommandType.IMAGES_REPLACE: "replace images",
    CommandType.SYSTEM_REBOOT_BEYOND_LIMITS: "reboot beyond the limits",
    CommandType.AGENT_MOVE: "move the agent",
    CommandType.AGENT_REMOVE: "remove the agent",
}

COMMAND_STATES: Final[Mapping[str, str]] = {
    CommandState.PENDING: "waiting",
    CommandState.LEASED: "delivered",
    CommandState.ACCEPTED: "accepted",
    CommandState.RUNNING: "running",
    CommandState.COMPLETED: "done",
    CommandState.FAILED: "failed",
    CommandState.INTERRUPTED: "interrupted",
    CommandState.CANCELLED: "cancelled",
    CommandState.EXPIRED: "expired",
}
"""In the order of a command's life."""

COMMAND_EXPLANATIONS: Final[Mapping[str, str]] = {
    CommandState.PENDING: "It waits for the machine to ask for it.",
    CommandState.LEASED: "It was handed to the machine, which has not answered yet. Without an answer within a "
    "minute it is delivered again; the machine starts it at most once.",
    CommandState.ACCEPTED: "The machine has it in its journal and will start it.",
    CommandState.RUNNING: "The machine is carrying it out.",
    CommandState.COMPLETED: "The machine carried it out.",
    CommandState.FAILED: "The machine did not manage it, or will not do it.",
    CommandState.INTERRUPTED: "It was started, and nobody saw its end: the machine or its agent stopped in the "
    "middle. What is true now was looked at afterwards.",
    CommandState.CANCELLED: "It ended because somebody cancelled or released it.",
    CommandState.EXPIRED: "It was not started by the time by which it had to be.",
}

COMMAND_ACTIONS: Final[Mapping[str, tuple[str, str]]] = {
    "cancel": ("Cancel", "The machine has not been given it: it is cancelled at once and never started."),
    "ask": (
        "Ask the machine to cancel",
        (
            "The machine was given it, so it may have started it. This asks the machine not to start it. If it is "
            "running, it goes on to its end: nothing here stops a package manager halfway."
        ),
    ),
    "retry": ("Retry", "Orders the same again, as a new command that is linked to this one."),
    "release": (
        "Release",
        (
            "Stop waiting for the machine's answer, so that new commands can be about the same packages. This "
            "stops nothing: the machine may still carry it out, and a late result still counts. Do it when the "
            "machine is gone for good."
        ),
    ),
    "archive": ("Archive", "Takes it out of the lists. Nothing is deleted."),
}
"""What can be done with a command: the word on the button, and what it really does."""

PLAN_STATES: Final[Mapping[str, str]] = {
    PlanState.PLANNING: "planning",
    PlanState.NEEDS_CONFIRMATION: "needs confirmation",
    PlanState.READY: "ready to install",
    PlanState.INSTALLING: "installing",
    PlanState.DONE: "done",
    PlanState.FAILED: "failed",
    PlanState.DROPPED: "dropped",
}
"""In the order of a plan's life."""

PLAN_EXPLANATIONS: Final[Mapping[str, str]] = {
    PlanState.PLANNING: "The machine works out what the updates would change. Nothing is changed by that.",
    PlanState.NEEDS_CONFIRMATION: "The updates would change more than was asked for. Somebody must look at it and "
    "confirm it before it can be installed.",
    PlanState.READY: "The machine will carry out exactly this, or nothing: if anything is different by then, it "
    "refuses.",
    PlanState.INSTALLING: "The machine was told to carry it out.",
    PlanState.DONE: "The machine carried it out.",
    PlanState.FAILED: "It did not work. Look at why, then approve the packages again or reopen them.",
    PlanState.DROPPED: "It does not hold any more. Plan anew to go on.",
}

PLAN_ACTIONS: Final[Mapping[str, tuple[str, str]]] = {
    "confirm": (
        "Confirm",
        "You have looked at every change above and want them all. Nothing is installed by that yet.",
    ),
    "install": (
        "Install now",
        (
            "The machine carries out exactly the changes above, or none if anything is different by then. Once it "
            "has begun, nothing stops it halfway."
        ),
    ),
    "discard": ("Discard", "The plan is given up. The packages stay approved, and can be planned again."),
}
"""What can be done with a plan: the word on the button, and what it really does."""

APPROVAL_REASONS: Final[Mapping[str, str]] = {
    ApprovalReason.REMOVAL: "it would remove packages",
    ApprovalReason.DOWNGRADE: "it would bring packages to older versions",
    ApprovalReason.HELD: "it would change packages that the machine's owner holds",
    ApprovalReason.UNAUTHENTICATED: "it would install packages from a repository whose signature is not checked",
    ApprovalReason.NOT_INSTALLED: "it would install packages that are not on the machine yet",
}
"""Why a transaction is beyond routine."""

CHANGE_KINDS: Final[Mapping[str, tuple[str, str]]] = {
    ChangeKind.REMOVE: ("removal", "Removed from the machine"),
    ChangeKind.DOWNGRADE: ("downgrade", "To an older version"),
    ChangeKind.INSTALL: ("new", "Not on the machine yet"),
    ChangeKind.UPGRADE: ("upgrade", "To a newer version"),
}
"""What happens to a package, gravest first: the word on the badge, and the heading of such changes."""

OUTCOMES: Final[Mapping[str, str]] = {
    PackageOutcome.PLANNED: "planned",
    PackageOutcome.INSTALLED: "installed",
    PackageOutcome.UNCHANGED: "unchanged",
    PackageOutcome.FAILED: "failed",
    PackageOutcome.HELD: "held",
    PackageOutcome.STALE: "no longer so",
}

STATEMENT_KINDS: Final[Mapping[str, str]] = {
    "accepted": "that it accepted the command",
    "refused": "that it refused the command",
    "result": "how the command ended",
}
"""What an executor signed."""

CODES: Final[Mapping[str, str]] = {
    "agent_revoked": "Its machine was revoked, so nobody will answer.",
    "bad_signature": "The machine does not believe the signature. Its trust bundle may be old.",
    "cancelled": "It was cancelled before it was started, and never will be.",
    "clock_wrong": "The machine's clock is so far behind that it cannot judge any time. Set it.",
    "command_conflict": "The machine knows this id with another order. That should never happen: look into it.",
    "command_refused": "The machine does not carry this out.",
    "decided": "Somebody decided about one of its packages since.",
    "discarded": "Somebody did not want it.",
    "executor_failed": "The agent could not do its work. Its log on the machine says more.",
    "expired": "The machine's trust bundle is past its end. It takes commands again when it has a new one.",
    "install_failed": "The package manager ran, and not everything that was ordered is installed.",
    "interrupted": "It was started, and nobody saw its end. What is true now was looked at afterwards.",
    "journal": "The agent cannot read or write its journal, so it accepts nothing until it can.",
    "local_limit": "A limit that the owner set on the machine itself holds it back. No server can widen it.",
    "machine_mismatch": "It was signed for other hardware than this.",
    "malformed": "The machine cannot read it.",
    "needs_approval": "It goes beyond a routine update. The machine does that only with an operator's approval of "
    "exactly this, which it did not get or does not accept.",
    "not_started": "The agent stopped between accepting it and starting it. Nothing was changed.",
    "nothing_to_do": "Nothing of what was asked for can be changed now.",
    "plan_drifted": "What would be changed now is not what was planned. Plan anew.",
    "released": "Somebody stopped waiting for the machine's answer.",
    "replaced": "One of its packages was planned anew.",
    "replayed": "The machine saw this very delivery before. It is delivered again with a new signature.",
    "restored": "The server was restored from a backup. It asks the machine what became of this, and starts "
    "nothing anew.",
    "rollback": "The machine has seen a later command. It is delivered again with a higher number.",
    "scan_failed": "The package manager could not tell what the machine has.",
    "scanned": "One of its packages is up to date or gone by now, as a scan saw.",
    "stale": "The signature was too old or too new when it arrived. Check the clocks of server and machine.",
    "start_by_passed": "The time by which it had to be started has passed.",
    "too_large": "It is larger than the machine accepts.",
    "too_late": "It was started already, or had ended, when the cancellation arrived.",
    "undelivered_results": "The machine first has to deliver the results of earlier commands.",
    "unknown_command": "This version of the agent does not carry out such a command.",
    "unknown_key": "The machine does not know the key that signed it. Its trust bundle may be old.",
    "verification_failed": "The machine does not trust it.",
    "wrong_recipient": "It was signed for another agent, another key, or before keys were replaced.",
}
"""What the codes mean with which machines refuse commands, and commands and plans end."""

SUBJECTS: Final[Mapping[str, str]] = {
    "machine": "the machine itself",
    "scans": "scans",
    "packages": "packages and decisions",
    "plans": "plans",
    "commands": "commands",
    "refusals": "refused requests",
}
"""What a history can be narrowed down to."""
