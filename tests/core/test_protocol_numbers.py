"""
The numbers and names that others rely on: limits, times, types of documents, states.

They are written down a second time here, so that none changes unnoticed. Tests elsewhere show what each does,
mostly with the name in place of the number.
"""

import importlib
from enum import EnumType

import pytest

WRITTEN_DOWN = {
    "approval_files": {
        "MAX_APPROVAL_ITEMS": 500,
        "MAX_REQUEST_BYTES": 16_777_216,
        "MAX_ANSWER_BYTES": 524_288,
        "MAX_HOSTNAME": 253,
    },
    "approvals": {
        "APPROVAL_TYPE": "application/vnd.redflag.approval.v1+json",
        "LEAF_TYPE": "application/vnd.redflag.approval-leaf.v1+json",
        "MAX_APPROVAL_BYTES": 12_288,
        "APPROVAL_SECONDS": 604_800,
        "APPROVAL_LEEWAY": 60,
        "MAX_LEAVES": 10_000,
        "MAX_STARTS": 10,
    },
    "audit": {
        "ENTRY_TYPE": "application/vnd.redflag.audit-entry.v1+json",
        "HEAD_TYPE": "application/vnd.redflag.audit-head.v1+json",
        "SALT_SIZE": 16,
        "MAX_PAYLOAD": 65_536,
        "MAX_LINE": 524_288,
        "Fault": "edited missing inserted out_of_order",
    },
    "checkpoints": {
        "CHECKPOINT_TYPE": "application/vnd.redflag.checkpoint.v1+json",
        "MAX_PROOF": 54,
        "MAX_CHECKPOINT_AGE": 86_400,
    },
    "command_queue": {
        "LEASE_SECONDS": 60,
        "LEASE_LONGEST": 3600,
        "PATIENT_DELIVERIES": 10,
        "START_WITHIN_SECONDS": 604_800,
        "RETRY_FIRST": 30,
        "RETRY_LONGEST": 3600,
        "MAX_LIVE": 1000,
        "MAX_BYPASSING": 8,
        "CommandState": "pending leased accepted running completed failed interrupted cancelled expired",
        "LIVE": "accepted leased pending running",
        "UNACCEPTED": "leased pending",
        "ENDED": "cancelled completed expired failed interrupted",
        "ORDERED_BY_PEOPLE": "agent.heartbeat scan.run",
        "CommandEvent": "lease return accept start complete fail interrupt cancel expire doubt",
        "OrderVerdict": "known server_behind rolled_back",
        "Standing": "ours before_restore foreign",
    },
    "commands": {
        "COMMAND_TYPE": "application/vnd.redflag.command.v1+json",
        "COMMAND_SECONDS": 300,
        "COMMAND_LEEWAY": 60,
        "CLOCK_TOLERANCE": 300,
        "NONCE_BYTES": 16,
        "MAX_PARAMS": 30_720,
        "HEARTBEAT_SECONDS": 3600,
        "CommandType": (
            "scan.run packages.plan packages.upgrade packages.revert images.update system.reboot "
            "command.cancel agent.heartbeat packages.install_new packages.remove packages.downgrade "
            "images.replace system.reboot_beyond_limits agent.move agent.remove"
        ),
        "CONSEQUENTIAL": (
            "agent.move agent.remove images.replace packages.downgrade packages.install_new packages.remove "
            "system.reboot_beyond_limits"
        ),
        "CHANGING": "packages.upgrade",
        "BYPASSING": "agent.heartbeat command.cancel",
    },
    "codec": {
        "MAX_MESSAGE": 300,
    },
    "encoding": {
        "MAX_DEPTH": 32,
        "MAX_INTEGER": 9_007_199_254_740_991,
        "MAX_ITEMS": 500_000,
    },
    "enrolment": {
        "SECRET_BYTES": 32,
        "ACCESS_TOKEN_SECONDS": 86_400,
        "REFRESH_SECONDS": 7_776_000,
        "MISMATCH_GRACE_SECONDS": 86_400,
        "TOKEN_PREFIX": "rfreg1.",
        "MAX_TOKEN_TEXT": 4096,
        "MAX_ADDRESSES": 8,
        "AgentStatus": "pending active quarantined hardware_changed renewal_pending executor_rolled_back revoked",
        "Access": "token check_in store commands",
        "RegistrationVerdict": "new repeat conflict",
        "RefreshVerdict": "advance repeat adopt fork lapsed",
        "CHECK_IN_SECONDS": 60,
        "HELD_SPREAD": 0.2,
        "POLL_PAUSE_SECONDS": 1,
    },
    "envelope": {
        "MAX_ENVELOPE_BYTES": 65_536,
        "MAX_SIGNATURES": 16,
    },
    "freshness": {
        "TOLERANCE": 300,
        "RETENTION": 600,
        "MAX_CLAIM_BYTES": 512,
    },
    "http_auth": {
        "VERIFIED": "redflag.verified",
        "MAX_BODY": 1_048_576,
        "MIN_OFFSET": 30,
        "UNAUTHORIZED": 401,
    },
    "keyfiles": {
        "MAX_FILE_BYTES": 4096,
        "MIN_SECRET_BYTES": 32,
        "MIN_DISTINCT_BYTES": 8,
        "OPS_LIMIT": 3,
        "MEMORY_LIMIT": 268_435_456,
        "MAX_OPS_LIMIT": 16,
        "MIN_MEMORY_LIMIT": 8192,
        "MAX_MEMORY_LIMIT": 1_073_741_824,
        "BOX_SIZE": 72,
    },
    "keys": {
        "KEY_TYPE": "ed25519",
        "SEED_SIZE": 32,
        "PUBLIC_KEY_SIZE": 32,
        "SIGNATURE_SIZE": 64,
    },
    "lifecycle": {
        "MISSED_CHECK_INS": 3,
        "AgentAction": "approve release revoke",
        "Presence": "online offline never",
    },
    "machine": {
        "MACHINE_ID_SIZE": 16,
        "MATCHING_OTHERS": 2,
        "MachineVerdict": "match hardware_changed",
        "BootVerdict": "same rebooted clone",
    },
    "merkle": {
        "HASH_SIZE": 32,
        "MAX_SIZE": 9_007_199_254_740_991,
    },
    "messages": {
        "PROTOCOL_VERSION": 1,
        "MAX_MOMENT": 253_402_300_799,
        "BUNDLE_TYPE": "application/vnd.redflag.bundle.v1+json",
        "ROOT_TYPE": "application/vnd.redflag.root.v1+json",
        "EVIDENCE_TYPE": "application/vnd.redflag.evidence.v1+json",
        "EXECUTOR_PROOF_TYPE": "application/vnd.redflag.executor-proof.v1+json",
        "EXECUTOR_STATE_TYPE": "application/vnd.redflag.executor-state.v1+json",
        "MAX_SMALL_BODY": 65_536,
        "MAX_REPORT_BODY": 16_777_216,
        "MAX_BUNDLE_BYTES": 262_144,
        "MAX_ENVELOPE_TEXT": 16_384,
        "MAX_WAIT_SECONDS": 50,
        "MAX_STATEMENT_TEXT": 1_400_000,
        "MAX_STATEMENT_BODY": 1_401_024,
        "MAX_PROGRESS_LINES": 20,
        "MAX_PROGRESS_LINE": 300,
        "MAX_ERRORS": 100,
        "MAX_SCANNERS": 32,
        "MAX_CONTEXT_BYTES": 16_384,
        "Role": "command checkpoint operator",
        "Phase": "waiting running",
    },
    "patching.plan": {
        "MAX_TARGETS": 200,
        "MAX_CHANGES": 2000,
        "ChangeKind": "upgrade install remove downgrade",
        "ApprovalReason": "removal downgrade held unauthenticated not_installed",
        "NEVER_APPROVED": "held unauthenticated",
    },
    "patching.states": {
        "Move": (
            "approve exclude defer reopen plan plan_clean plan_extra plan_held plan_failed plan_dropped "
            "confirm install install_done install_needs_reboot install_failed install_dropped rebooted "
            "rolled_back"
        ),
        "Decision": "approve reject exclude defer reopen",
        "UNDECIDED": "available current held kept_back not_applicable phased unknown",
        "DECIDABLE": "approved available deferred excluded failed kept_back needs_confirmation rolled_back",
    },
    "rate_limit": {
        "ACCEPTED_FORM": 'write it as "60/minute burst 20", "5/10 minutes" or "100/hour"',
        "SCOPED_FORM": (
            'write it as "60/minute per agent, burst 20" or "100/hour per key"; '
            "it can be per agent, address, organization or key"
        ),
        "MAX_COUNT": 1_000_000,
        "MAX_PERIOD": 31_622_400,
        "MAX_PER_SECOND": 1000,
        "MAX_TEXT": 64,
        "CLOCK_STEP": 60.0,
        "MAX_KEY_BYTES": 1024,
        "EPSILON": 1e-05,
        "Scope": "agent address organization key",
    },
    "signed_requests": {
        "TAG": "redflag-agent-v1",
        "LIFETIME": 300,
        "NONCE_BYTES": 16,
        "MAX_HEADER_BYTES": 8192,
    },
    "statements": {
        "ACCEPTED_TYPE": "application/vnd.redflag.accepted.v1+json",
        "REFUSED_TYPE": "application/vnd.redflag.refused.v1+json",
        "RESULT_TYPE": "application/vnd.redflag.result.v1+json",
        "MAX_STATEMENT_BYTES": 1_048_576,
        "MAX_OUTPUT": 32_768,
        "MAX_CODE": 64,
        "Outcome": "completed failed interrupted cancelled",
        "PackageOutcome": "planned installed unchanged failed held stale",
    },
    "trust": {
        "DAY": 86_400,
        "BUNDLE_LIFETIME": 7_776_000,
        "RENEW_BEFORE": 2_592_000,
        "MAX_ROOTS": 1000,
    },
    "webhooks": {
        "ID_HEADER": "webhook-id",
        "TIMESTAMP_HEADER": "webhook-timestamp",
        "SIGNATURE_HEADER": "webhook-signature",
        "SECRET_BYTES": 32,
        "MIN_SECRET": 24,
        "MAX_SECRET": 64,
        "MAX_BODY": 1_048_576,
        "MAX_ID": 256,
        "MAX_SIGNATURES": 8,
        "MAX_KEYS": 8,
        "MAX_TYPE": 128,
    },
}


def plain(value):
    """A set or an enumeration as its values, in a text; numbers and texts as they are."""
    if isinstance(value, EnumType):
        return " ".join(value)
    return " ".join(sorted(value)) if isinstance(value, frozenset) else value


@pytest.mark.parametrize("module, names", WRITTEN_DOWN.items(), ids=WRITTEN_DOWN)
def test_no_number_or_name_of_the_protocol_changes_unnoticed(module, names):
    """Whoever changes one means it, and changes it here too."""
    imported = importlib.import_module(f"redflag_core.{module}")

    assert names == {name: plain(getattr(imported, name)) for name in names}
