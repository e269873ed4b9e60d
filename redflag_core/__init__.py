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
    from redflag_core.command_queue import (
        CommandEvent,
        CommandState,
        OrderVerdict,
        judge_order,
        next_order,
    )
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
        CircuitOpenError,
        ClockError,
        CommandRefusedError,
        ConfigurationError,
        ConflictingCommandError,
        ExpiredError,
        IllegalMoveError,
        KeyFileError,
        LateCommandError,
        LimitError,
        MachineMismatchError,
        MalformedError,
        NeedsApprovalError,
        PlanDriftedError,
        PolicyError,
        RedFlagError,
        ReplayError,
        RollbackError,
        ScanError,
        SignatureError,
        StaleError,
        TooLargeError,
        UnknownCommandError,
        UnknownKeyError,
        VerificationError,
        WrongRecipientError,
    )
    from redflag_core.freshness import check_window, claim_nonce, horizon_after_purge
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
    from redflag_core.ports import Clock, Entropy, Fetcher, KeyRing, MachineIdentity, NonceStore, RateLimitStore
    from redflag_core.rate_limit import RateLimitPolicy
    from redflag_core.resilience import (
        Breaker,
        BreakerPolicy,
        BreakerState,
        BreakerStatus,
        RetryBudget,
        RetryPolicy,
        full_jitter,
        retry,
    )
    from redflag_core.scanning import (
        Package,
        PackageDelta,
        PackageKey,
        PackageState,
        Scanner,
        ScannerPolicy,
        ScanReport,
        ScanStatus,
        Severity,
        apply_delta,
        inventory_hash,
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
        first_root,
        live_keys,
        new_bundle,
        next_root,
        sign_bundle,
        verify_bundle,
        verify_roots,
    )

__all__ = [
    "AgentStatus",
    "BootVerdict",
    "Breaker",
    "BreakerPolicy",
    "BreakerState",
    "BreakerStatus",
    "Change",
    "ChangeKind",
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
    "IllegalMoveError",
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
    "Move",
    "NeedsApprovalError",
    "NonceStore",
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
    "ParsedRequest",
    "PlanDriftedError",
    "PlanState",
    "PolicyError",
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
    "RetryBudget",
    "RetryPolicy",
    "Role",
    "RollbackError",
    "Root",
    "ScanError",
    "ScanReport",
    "ScanStatus",
    "Scanner",
    "ScannerPolicy",
    "Severity",
    "SignatureError",
    "SigningKey",
    "StaleError",
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
    "VerifiedPayload",
    "VerifiedRequest",
    "VerifyKey",
    "WrongRecipientError",
    "__version__",
    "apply_delta",
    "beyond_routine",
    "bundle_digest",
    "check_limits",
    "check_name",
    "check_window",
    "claim_nonce",
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
    "new_bundle",
    "new_nonce",
    "next_order",
    "next_root",
    "open_command",
    "open_statement",
    "pae",
    "parse_envelope",
    "parse_registration_token",
    "parse_request",
    "read_key",
    "read_secret",
    "retry",
    "sign_bundle",
    "sign_command",
    "sign_envelope",
    "sign_request",
    "sign_statement",
    "verify_bundle",
    "verify_envelope",
    "verify_request",
    "verify_roots",
    "write_key",
    "write_secret",
]

_HOMES: Final = {
    name: module
    for module, names in {
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
            "CircuitOpenError ClockError CommandRefusedError ConfigurationError ConflictingCommandError "
            "ExpiredError IllegalMoveError KeyFileError LateCommandError LimitError MachineMismatchError "
            "MalformedError NeedsApprovalError PlanDriftedError PolicyError RedFlagError ReplayError "
            "RollbackError ScanError SignatureError StaleError TooLargeError UnknownCommandError "
            "UnknownKeyError VerificationError WrongRecipientError"
        ),
        "freshness": "check_window claim_nonce horizon_after_purge",
        "keyfiles": "read_key read_secret write_key write_secret",
        "keys": "SigningKey VerifyKey",
        "machine": "BootVerdict MachineEvidence MachineVerdict RawMachine judge_boot make_evidence",
        "messages": "Role TrustBundle TrustedKey",
        "patching": (
            "Change ChangeKind Limits LocalWindow Move PackageTarget PlanState Transaction beyond_routine "
            "check_limits check_name"
        ),
        "ports": "Clock Entropy Fetcher KeyRing MachineIdentity NonceStore RateLimitStore",
        "rate_limit": "RateLimitPolicy",
        "resilience": "Breaker BreakerPolicy BreakerState BreakerStatus RetryBudget RetryPolicy full_jitter retry",
        "scanning": (
            "Package PackageDelta PackageKey PackageState ScanReport ScanStatus Scanner ScannerPolicy "
            "Severity apply_delta inventory_hash"
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
            "Root bundle_digest first_root live_keys new_bundle next_root sign_bundle verify_bundle verify_roots"
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
