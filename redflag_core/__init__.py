"""
redflag_core: the decisions of RedFlag, without network, clock, randomness or globals.

Import the public names from here; each is loaded when it is first used, so importing the package costs next to
nothing. What only means something beside the name of its module stays there: `codec.parse`, `machine.compare`,
`rate_limit.Decision`, `bridge.Event`. Fakes for tests are in `redflag_core.testing`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from redflag_core._version import __version__

if TYPE_CHECKING:
    from redflag_core.approval_files import ApprovalAnswer, ApprovalItem, ApprovalRequest
    from redflag_core.approvals import (
        Approval,
        ApprovalLeaf,
        ApprovalUse,
        approval_leaf,
        check_approval,
        new_approval,
        open_approval,
        prove_approval,
        sign_approval,
    )
    from redflag_core.audit import (
        AuditEntry,
        AuditHead,
        AuditState,
        VerifiedHistory,
        append_entry,
        dump_entry,
        parse_entries,
        parse_entry,
        verify_entry,
        verify_history,
    )
    from redflag_core.bridge import Bridge, InboundBridge
    from redflag_core.checkpoints import (
        Checkpoint,
        HeadEvidence,
        advance_witness,
        check_checkpoint_age,
        new_checkpoint,
        prove_head,
        sign_checkpoint,
        verify_checkpoint,
        verify_head,
    )
    from redflag_core.command_queue import CommandEvent, CommandState, OrderVerdict, judge_order, next_order
    from redflag_core.commands import (
        ApprovalProof,
        CancelParams,
        Command,
        CommandType,
        HeartbeatParams,
        Order,
        PlanParams,
        Recipient,
        ScanParams,
        UpgradeParams,
        VerifiedCommand,
        check_order,
        check_recipient,
        check_start_by,
        check_time,
        command_digest,
        dump_params,
        executor_time,
        open_command,
        parse_params,
        sign_command,
    )
    from redflag_core.enrolment import (
        AgentStatus,
        RefreshChain,
        RefreshVerdict,
        RegistrationClaim,
        RegistrationToken,
        RegistrationVerdict,
        judge_refresh,
        judge_registration,
        parse_registration_token,
    )
    from redflag_core.envelope import (
        Envelope,
        VerifiedPayload,
        pae,
        parse_envelope,
        sign_envelope,
        verify_envelope,
    )
    from redflag_core.errors import (
        BridgeCredentialsError,
        BridgeError,
        BridgeGoneError,
        BridgeRejectedError,
        BridgeUnavailableError,
        CircuitOpenError,
        ClockError,
        CommandRefusedError,
        ConfigurationError,
        ConflictingCommandError,
        ExpiredError,
        HistoryError,
        IllegalMoveError,
        KeyFileError,
        LateCommandError,
        LimitError,
        MachineMismatchError,
        MalformedError,
        NeedsApprovalError,
        PlanDriftedError,
        PolicyError,
        ProofError,
        RedFlagError,
        ReplayError,
        RewrittenError,
        RollbackError,
        ScanError,
        SignatureError,
        StaleError,
        StoreError,
        TooLargeError,
        UnknownCommandError,
        UnknownKeyError,
        VerificationError,
        WrongRecipientError,
    )
    from redflag_core.freshness import check_window, claim_nonce, claim_nonce_sync, horizon_after_purge
    from redflag_core.http_auth import (
        RequestAuth,
        RequestVerifier,
        SignedAsgi,
        SignedWsgi,
        request_from_asgi,
        request_from_wsgi,
    )
    from redflag_core.keyfiles import read_key, read_secret, write_key, write_secret
    from redflag_core.keys import SigningKey, VerifyKey
    from redflag_core.lifecycle import AgentAction, Presence
    from redflag_core.machine import (
        BootVerdict,
        MachineEvidence,
        MachineVerdict,
        RawMachine,
        judge_boot,
        make_evidence,
    )
    from redflag_core.machine_readers import this_machine
    from redflag_core.merkle import Frontier, MerkleTree, verify_consistency, verify_inclusion
    from redflag_core.messages import Role, TrustBundle, TrustedKey
    from redflag_core.patching import (
        ApprovalReason,
        Change,
        ChangeKind,
        Limits,
        LocalWindow,
        Move,
        PackageTarget,
        PlanState,
        Transaction,
        beyond_routine,
        check_apply,
        check_limits,
        check_name,
    )
    from redflag_core.patching.occurrences import Occurrence
    from redflag_core.patching.policies import (
        ApprovalPolicy,
        PolicyDecision,
        PolicyRule,
        PolicyScope,
        dump_policy,
        load_policy,
    )
    from redflag_core.patching.recurrence import Every, Nth, Recurrence, Weekday
    from redflag_core.patching.rollouts import (
        Gate,
        OpenRing,
        Ring,
        Rollout,
        RolloutDecision,
        RolloutPhase,
        RolloutState,
        blast_radius,
    )
    from redflag_core.patching.starts import (
        Freeze,
        FreezeScope,
        InstallNow,
        Postponement,
        StartCode,
        StartDecision,
        WindowRecord,
        may_postpone,
        may_start,
    )
    from redflag_core.patching.window_text import parse_window
    from redflag_core.patching.windows import Blackout, Span, Window, dump_window, load_window
    from redflag_core.ports import (
        Clock,
        Entropy,
        Fetcher,
        KeyRing,
        MachineIdentity,
        NonceStore,
        RateLimitStore,
        SyncNonceStore,
        SyncRateLimitStore,
    )
    from redflag_core.rate_limit import RateLimitPolicy, ScopedPolicy
    from redflag_core.resilience import (
        Breaker,
        BreakerPolicy,
        BreakerState,
        BreakerStatus,
        RetryBudget,
        RetryPolicy,
        full_jitter,
        retry,
        retry_sync,
    )
    from redflag_core.scanning import (
        EndOfLife,
        Lifespan,
        Package,
        PackageDelta,
        PackageKey,
        PackageState,
        ResyncNeededError,
        Scanner,
        ScannerActivity,
        ScannerPolicy,
        ScanReport,
        ScanStatus,
        Severity,
        StorageFacts,
        SupportKind,
        SystemFacts,
        apply_delta,
        end_of_life,
        facts_of,
        failed_report,
        fold_report,
        inventory_hash,
        open_facts,
    )
    from redflag_core.scanning.advisories import (
        Advisory,
        VersionOrder,
        is_cve,
        parse_cve,
        severity_of_vector,
        severity_of_word,
    )
    from redflag_core.scanning.cvss import severity_of_score
    from redflag_core.scanning.inventory import accept_delta
    from redflag_core.scanning.purl import (
        PackageUrl,
        deb_purl,
        image_purl,
        make_purl,
        package_purl,
        parse_purl,
        rpm_purl,
        windows_update_purl,
        winget_purl,
    )
    from redflag_core.signed_requests import (
        ParsedRequest,
        Request,
        VerifiedRequest,
        new_nonce,
        parse_request,
        sign_request,
        verify_request,
    )
    from redflag_core.statements import (
        CommandAccepted,
        CommandRefused,
        CommandResult,
        Outcome,
        PackageOutcome,
        PackageResult,
        open_statement,
        sign_statement,
    )
    from redflag_core.system import SystemClock, SystemEntropy
    from redflag_core.trust import (
        Root,
        bundle_digest,
        check_bundle_end,
        first_root,
        live_keys,
        new_bundle,
        next_root,
        sign_bundle,
        verify_bundle,
        verify_roots,
    )
    from redflag_core.webhooks import (
        VerifiedWebhook,
        WebhookSecret,
        format_webhook_key,
        parse_webhook_key,
        sign_webhook,
        verify_webhook,
        webhook_body,
    )

__all__ = [
    "Advisory",
    "AgentAction",
    "AgentStatus",
    "Approval",
    "ApprovalAnswer",
    "ApprovalItem",
    "ApprovalLeaf",
    "ApprovalPolicy",
    "ApprovalProof",
    "ApprovalReason",
    "ApprovalRequest",
    "ApprovalUse",
    "AuditEntry",
    "AuditHead",
    "AuditState",
    "Blackout",
    "BootVerdict",
    "Breaker",
    "BreakerPolicy",
    "BreakerState",
    "BreakerStatus",
    "Bridge",
    "BridgeCredentialsError",
    "BridgeError",
    "BridgeGoneError",
    "BridgeRejectedError",
    "BridgeUnavailableError",
    "CancelParams",
    "Change",
    "ChangeKind",
    "Checkpoint",
    "CircuitOpenError",
    "Clock",
    "ClockError",
    "Command",
    "CommandAccepted",
    "CommandEvent",
    "CommandRefused",
    "CommandRefusedError",
    "CommandResult",
    "CommandState",
    "CommandType",
    "ConfigurationError",
    "ConflictingCommandError",
    "EndOfLife",
    "Entropy",
    "Envelope",
    "Every",
    "ExpiredError",
    "Fetcher",
    "Freeze",
    "FreezeScope",
    "Frontier",
    "Gate",
    "HeadEvidence",
    "HeartbeatParams",
    "HistoryError",
    "IllegalMoveError",
    "InboundBridge",
    "InstallNow",
    "KeyFileError",
    "KeyRing",
    "LateCommandError",
    "Lifespan",
    "LimitError",
    "Limits",
    "LocalWindow",
    "MachineEvidence",
    "MachineIdentity",
    "MachineMismatchError",
    "MachineVerdict",
    "MalformedError",
    "MerkleTree",
    "Move",
    "NeedsApprovalError",
    "NonceStore",
    "Nth",
    "Occurrence",
    "OpenRing",
    "Order",
    "OrderVerdict",
    "Outcome",
    "Package",
    "PackageDelta",
    "PackageKey",
    "PackageOutcome",
    "PackageResult",
    "PackageState",
    "PackageTarget",
    "PackageUrl",
    "ParsedRequest",
    "PlanDriftedError",
    "PlanParams",
    "PlanState",
    "PolicyDecision",
    "PolicyError",
    "PolicyRule",
    "PolicyScope",
    "Postponement",
    "Presence",
    "ProofError",
    "RateLimitPolicy",
    "RateLimitStore",
    "RawMachine",
    "Recipient",
    "Recurrence",
    "RedFlagError",
    "RefreshChain",
    "RefreshVerdict",
    "RegistrationClaim",
    "RegistrationToken",
    "RegistrationVerdict",
    "ReplayError",
    "Request",
    "RequestAuth",
    "RequestVerifier",
    "ResyncNeededError",
    "RetryBudget",
    "RetryPolicy",
    "RewrittenError",
    "Ring",
    "Role",
    "RollbackError",
    "Rollout",
    "RolloutDecision",
    "RolloutPhase",
    "RolloutState",
    "Root",
    "ScanError",
    "ScanParams",
    "ScanReport",
    "ScanStatus",
    "Scanner",
    "ScannerActivity",
    "ScannerPolicy",
    "ScopedPolicy",
    "Severity",
    "SignatureError",
    "SignedAsgi",
    "SignedWsgi",
    "SigningKey",
    "Span",
    "StaleError",
    "StartCode",
    "StartDecision",
    "StorageFacts",
    "StoreError",
    "SupportKind",
    "SyncNonceStore",
    "SyncRateLimitStore",
    "SystemClock",
    "SystemEntropy",
    "SystemFacts",
    "TooLargeError",
    "Transaction",
    "TrustBundle",
    "TrustedKey",
    "UnknownCommandError",
    "UnknownKeyError",
    "UpgradeParams",
    "VerificationError",
    "VerifiedCommand",
    "VerifiedHistory",
    "VerifiedPayload",
    "VerifiedRequest",
    "VerifiedWebhook",
    "VerifyKey",
    "VersionOrder",
    "WebhookSecret",
    "Weekday",
    "Window",
    "WindowRecord",
    "WrongRecipientError",
    "__version__",
    "accept_delta",
    "advance_witness",
    "append_entry",
    "apply_delta",
    "approval_leaf",
    "beyond_routine",
    "blast_radius",
    "bundle_digest",
    "check_apply",
    "check_approval",
    "check_bundle_end",
    "check_checkpoint_age",
    "check_limits",
    "check_name",
    "check_order",
    "check_recipient",
    "check_start_by",
    "check_time",
    "check_window",
    "claim_nonce",
    "claim_nonce_sync",
    "command_digest",
    "deb_purl",
    "dump_entry",
    "dump_params",
    "dump_policy",
    "dump_window",
    "end_of_life",
    "executor_time",
    "facts_of",
    "failed_report",
    "first_root",
    "fold_report",
    "format_webhook_key",
    "full_jitter",
    "horizon_after_purge",
    "image_purl",
    "inventory_hash",
    "is_cve",
    "judge_boot",
    "judge_order",
    "judge_refresh",
    "judge_registration",
    "live_keys",
    "load_policy",
    "load_window",
    "make_evidence",
    "make_purl",
    "may_postpone",
    "may_start",
    "new_approval",
    "new_bundle",
    "new_checkpoint",
    "new_nonce",
    "next_order",
    "next_root",
    "open_approval",
    "open_command",
    "open_facts",
    "open_statement",
    "package_purl",
    "pae",
    "parse_cve",
    "parse_entries",
    "parse_entry",
    "parse_envelope",
    "parse_params",
    "parse_purl",
    "parse_registration_token",
    "parse_request",
    "parse_webhook_key",
    "parse_window",
    "prove_approval",
    "prove_head",
    "read_key",
    "read_secret",
    "request_from_asgi",
    "request_from_wsgi",
    "retry",
    "retry_sync",
    "rpm_purl",
    "severity_of_score",
    "severity_of_vector",
    "severity_of_word",
    "sign_approval",
    "sign_bundle",
    "sign_checkpoint",
    "sign_command",
    "sign_envelope",
    "sign_request",
    "sign_statement",
    "sign_webhook",
    "this_machine",
    "verify_bundle",
    "verify_checkpoint",
    "verify_consistency",
    "verify_entry",
    "verify_envelope",
    "verify_head",
    "verify_history",
    "verify_inclusion",
    "verify_request",
    "verify_roots",
    "verify_webhook",
    "webhook_body",
    "windows_update_purl",
    "winget_purl",
    "write_key",
    "write_secret",
]

_HOMES: Final = {
    name: module
    for module, names in {
        "approval_files": "ApprovalAnswer ApprovalItem ApprovalRequest",
        "approvals": (
            "Approval ApprovalLeaf ApprovalUse approval_leaf check_approval new_approval open_approval "
            "prove_approval sign_approval"
        ),
        "audit": (
            "AuditEntry AuditHead AuditState VerifiedHistory append_entry dump_entry parse_entries parse_entry "
            "verify_entry verify_history"
        ),
        "bridge": "Bridge InboundBridge",
        "checkpoints": (
            "Checkpoint HeadEvidence advance_witness check_checkpoint_age new_checkpoint prove_head "
            "sign_checkpoint verify_checkpoint verify_head"
        ),
        "command_queue": "CommandEvent CommandState OrderVerdict judge_order next_order",
        "commands": (
            "ApprovalProof CancelParams Command CommandType HeartbeatParams Order PlanParams Recipient "
            "ScanParams UpgradeParams VerifiedCommand check_order check_recipient check_start_by check_time "
            "command_digest dump_params executor_time open_command parse_params sign_command"
        ),
        "enrolment": (
            "AgentStatus RefreshChain RefreshVerdict RegistrationClaim RegistrationToken RegistrationVerdict "
            "judge_refresh judge_registration parse_registration_token"
        ),
        "envelope": "Envelope VerifiedPayload pae parse_envelope sign_envelope verify_envelope",
        "errors": (
            "BridgeCredentialsError BridgeError BridgeGoneError BridgeRejectedError BridgeUnavailableError "
            "CircuitOpenError ClockError CommandRefusedError ConfigurationError ConflictingCommandError "
            "ExpiredError HistoryError IllegalMoveError KeyFileError LateCommandError LimitError "
            "MachineMismatchError MalformedError NeedsApprovalError PlanDriftedError PolicyError ProofError "
            "RedFlagError ReplayError RewrittenError RollbackError ScanError SignatureError StaleError "
            "StoreError TooLargeError UnknownCommandError UnknownKeyError VerificationError WrongRecipientError"
        ),
        "freshness": "check_window claim_nonce claim_nonce_sync horizon_after_purge",
        "http_auth": "RequestAuth RequestVerifier SignedAsgi SignedWsgi request_from_asgi request_from_wsgi",
        "keyfiles": "read_key read_secret write_key write_secret",
        "keys": "SigningKey VerifyKey",
        "lifecycle": "AgentAction Presence",
        "machine": "BootVerdict MachineEvidence MachineVerdict RawMachine judge_boot make_evidence",
        "machine_readers": "this_machine",
        "merkle": "Frontier MerkleTree verify_consistency verify_inclusion",
        "messages": "Role TrustBundle TrustedKey",
        "patching": (
            "ApprovalReason Change ChangeKind Limits LocalWindow Move PackageTarget PlanState Transaction "
            "beyond_routine check_apply check_limits check_name"
        ),
        "patching.occurrences": "Occurrence",
        "patching.policies": "ApprovalPolicy PolicyDecision PolicyRule PolicyScope dump_policy load_policy",
        "patching.recurrence": "Every Nth Recurrence Weekday",
        "patching.rollouts": "Gate OpenRing Ring Rollout RolloutDecision RolloutPhase RolloutState blast_radius",
        "patching.starts": (
            "Freeze FreezeScope InstallNow Postponement StartCode StartDecision WindowRecord may_postpone "
            "may_start"
        ),
        "patching.window_text": "parse_window",
        "patching.windows": "Blackout Span Window dump_window load_window",
        "ports": (
            "Clock Entropy Fetcher KeyRing MachineIdentity NonceStore RateLimitStore SyncNonceStore "
            "SyncRateLimitStore"
        ),
        "rate_limit": "RateLimitPolicy ScopedPolicy",
        "resilience": (
            "Breaker BreakerPolicy BreakerState BreakerStatus RetryBudget RetryPolicy full_jitter retry retry_sync"
        ),
        "scanning": (
            "EndOfLife Lifespan Package PackageDelta PackageKey PackageState ResyncNeededError ScanReport "
            "ScanStatus Scanner ScannerActivity ScannerPolicy Severity StorageFacts SupportKind SystemFacts "
            "apply_delta end_of_life facts_of failed_report fold_report inventory_hash open_facts"
        ),
        "scanning.advisories": "Advisory VersionOrder is_cve parse_cve severity_of_vector severity_of_word",
        "scanning.cvss": "severity_of_score",
        "scanning.inventory": "accept_delta",
        "scanning.purl": (
            "PackageUrl deb_purl image_purl make_purl package_purl parse_purl rpm_purl windows_update_purl "
            "winget_purl"
        ),
        "signed_requests": (
            "ParsedRequest Request VerifiedRequest new_nonce parse_request sign_request verify_request"
        ),
        "statements": (
            "CommandAccepted CommandRefused CommandResult Outcome PackageOutcome PackageResult open_statement "
            "sign_statement"
        ),
        "system": "SystemClock SystemEntropy",
        "trust": (
            "Root bundle_digest check_bundle_end first_root live_keys new_bundle next_root sign_bundle "
            "verify_bundle verify_roots"
        ),
        "webhooks": (
            "VerifiedWebhook WebhookSecret format_webhook_key parse_webhook_key sign_webhook verify_webhook "
            "webhook_body"
        ),
    }.items()
    for name in names.split()
}
"""Where each public name lives: the imports above, for when the program runs."""


# A type checker would take it for "every name is there".
if not TYPE_CHECKING:  # pragma: no branch

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
