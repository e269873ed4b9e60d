"""
redflag_core: the decisions of RedFlag, without network, clock, randomness or globals.

Import the public names from here; each is loaded when it is first used, so importing the package costs next to
nothing. Verbs whose name only means something beside that of their module stay there: `codec.parse`,
`machine.compare`, `rate_limit.step`. Fakes for tests are in `redflag_core.testing`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from redflag_core._version import __version__

if TYPE_CHECKING:
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
        verify_entry,
        verify_history,
    )
    from redflag_core.bridge import Bridge, InboundBridge
    from redflag_core.checkpoints import (
        Checkpoint,
        HeadEvidence,
        advance_witness,
        new_checkpoint,
        prove_head,
        sign_checkpoint,
        verify_checkpoint,
        verify_head,
    )
    from redflag_core.command_queue import CommandEvent, CommandState, OrderVerdict, judge_order, next_order
    from redflag_core.commands import (
        Command,
        CommandType,
        Order,
        Recipient,
        VerifiedCommand,
        command_digest,
        open_command,
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
    from redflag_core.machine import (
        BootVerdict,
        MachineEvidence,
        MachineVerdict,
        RawMachine,
        judge_boot,
        make_evidence,
    )
    from redflag_core.merkle import Frontier, MerkleTree, verify_consistency, verify_inclusion
    from redflag_core.messages import Role, TrustBundle, TrustedKey
    from redflag_core.patching import (
        Change,
        ChangeKind,
        Limits,
        LocalWindow,
        Move,
        PackageTarget,
        PlanState,
        Transaction,
        beyond_routine,
        check_limits,
        check_name,
    )
    from redflag_core.patching.occurrences import Occurrence
    from redflag_core.patching.policies import ApprovalPolicy, PolicyDecision, PolicyRule
    from redflag_core.patching.rollouts import Gate, Ring, Rollout, RolloutDecision, RolloutState, blast_radius
    from redflag_core.patching.windows import Blackout, Window
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
        Package,
        PackageDelta,
        PackageKey,
        PackageState,
        ResyncNeededError,
        Scanner,
        ScannerPolicy,
        ScanReport,
        ScanStatus,
        Severity,
        apply_delta,
        inventory_hash,
    )
    from redflag_core.scanning.advisories import Advisory
    from redflag_core.scanning.purl import PackageUrl, make_purl, parse_purl
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
        first_root,
        live_keys,
        new_bundle,
        next_root,
        sign_bundle,
        verify_bundle,
        verify_roots,
    )
    from redflag_core.webhooks import VerifiedWebhook, WebhookSecret, sign_webhook, verify_webhook

__all__ = [
    "Advisory",
    "AgentStatus",
    "Approval",
    "ApprovalLeaf",
    "ApprovalPolicy",
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
    "Entropy",
    "Envelope",
    "ExpiredError",
    "Fetcher",
    "Frontier",
    "Gate",
    "HeadEvidence",
    "HistoryError",
    "IllegalMoveError",
    "InboundBridge",
    "KeyFileError",
    "KeyRing",
    "LateCommandError",
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
    "Occurrence",
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
    "PlanState",
    "PolicyDecision",
    "PolicyError",
    "PolicyRule",
    "ProofError",
    "RateLimitPolicy",
    "RateLimitStore",
    "RawMachine",
    "Recipient",
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
    "RolloutState",
    "Root",
    "ScanError",
    "ScanReport",
    "ScanStatus",
    "Scanner",
    "ScannerPolicy",
    "ScopedPolicy",
    "Severity",
    "SignatureError",
    "SignedAsgi",
    "SignedWsgi",
    "SigningKey",
    "StaleError",
    "StoreError",
    "SyncNonceStore",
    "SyncRateLimitStore",
    "SystemClock",
    "SystemEntropy",
    "TooLargeError",
    "Transaction",
    "TrustBundle",
    "TrustedKey",
    "UnknownCommandError",
    "UnknownKeyError",
    "VerificationError",
    "VerifiedCommand",
    "VerifiedHistory",
    "VerifiedPayload",
    "VerifiedRequest",
    "VerifiedWebhook",
    "VerifyKey",
    "WebhookSecret",
    "Window",
    "WrongRecipientError",
    "__version__",
    "advance_witness",
    "append_entry",
    "apply_delta",
    "approval_leaf",
    "beyond_routine",
    "blast_radius",
    "bundle_digest",
    "check_approval",
    "check_limits",
    "check_name",
    "check_window",
    "claim_nonce",
    "claim_nonce_sync",
    "command_digest",
    "first_root",
    "full_jitter",
    "horizon_after_purge",
    "inventory_hash",
    "judge_boot",
    "judge_order",
    "judge_refresh",
    "judge_registration",
    "live_keys",
    "make_evidence",
    "make_purl",
    "new_approval",
    "new_bundle",
    "new_checkpoint",
    "new_nonce",
    "next_order",
    "next_root",
    "open_approval",
    "open_command",
    "open_statement",
    "pae",
    "parse_envelope",
    "parse_purl",
    "parse_registration_token",
    "parse_request",
    "prove_approval",
    "prove_head",
    "read_key",
    "read_secret",
    "request_from_asgi",
    "request_from_wsgi",
    "retry",
    "retry_sync",
    "sign_approval",
    "sign_bundle",
    "sign_checkpoint",
    "sign_command",
    "sign_envelope",
    "sign_request",
    "sign_statement",
    "sign_webhook",
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
    "write_key",
    "write_secret",
]

_HOMES: Final = {
    name: module
    for module, names in {
        "approvals": (
            "Approval ApprovalLeaf ApprovalUse approval_leaf check_approval new_approval open_approval "
            "prove_approval sign_approval"
        ),
        "audit": ("AuditEntry AuditHead AuditState VerifiedHistory append_entry verify_entry verify_history"),
        "bridge": "Bridge InboundBridge",
        "checkpoints": (
            "Checkpoint HeadEvidence advance_witness new_checkpoint prove_head sign_checkpoint "
            "verify_checkpoint verify_head"
        ),
        "command_queue": "CommandEvent CommandState OrderVerdict judge_order next_order",
        "commands": (
            "Command CommandType Order Recipient VerifiedCommand command_digest open_command sign_command"
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
            "StoreError TooLargeError UnknownCommandError UnknownKeyError VerificationError "
            "WrongRecipientError"
        ),
        "freshness": "check_window claim_nonce claim_nonce_sync horizon_after_purge",
        "http_auth": ("RequestAuth RequestVerifier SignedAsgi SignedWsgi request_from_asgi request_from_wsgi"),
        "keyfiles": "read_key read_secret write_key write_secret",
        "keys": "SigningKey VerifyKey",
        "machine": "BootVerdict MachineEvidence MachineVerdict RawMachine judge_boot make_evidence",
        "merkle": "Frontier MerkleTree verify_consistency verify_inclusion",
        "messages": "Role TrustBundle TrustedKey",
        "patching": (
            "Change ChangeKind Limits LocalWindow Move PackageTarget PlanState Transaction beyond_routine "
            "check_limits check_name"
        ),
        "patching.occurrences": "Occurrence",
        "patching.policies": "ApprovalPolicy PolicyDecision PolicyRule",
        "patching.rollouts": "Gate Ring Rollout RolloutDecision RolloutState blast_radius",
        "patching.windows": "Blackout Window",
        "ports": (
            "Clock Entropy Fetcher KeyRing MachineIdentity NonceStore RateLimitStore SyncNonceStore "
            "SyncRateLimitStore"
        ),
        "rate_limit": "RateLimitPolicy ScopedPolicy",
        "resilience": (
            "Breaker BreakerPolicy BreakerState BreakerStatus RetryBudget RetryPolicy full_jitter retry retry_sync"
        ),
        "scanning": (
            "Package PackageDelta PackageKey PackageState ResyncNeededError ScanReport ScanStatus Scanner "
            "ScannerPolicy Severity apply_delta inventory_hash"
        ),
        "scanning.advisories": "Advisory",
        "scanning.purl": "PackageUrl make_purl parse_purl",
        "signed_requests": (
            "ParsedRequest Request VerifiedRequest new_nonce parse_request sign_request verify_request"
        ),
        "statements": (
            "CommandAccepted CommandRefused CommandResult Outcome PackageOutcome PackageResult "
            "open_statement sign_statement"
        ),
        "system": "SystemClock SystemEntropy",
        "trust": (
            "Root bundle_digest first_root live_keys new_bundle next_root sign_bundle verify_bundle verify_roots"
        ),
        "webhooks": "VerifiedWebhook WebhookSecret sign_webhook verify_webhook",
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
