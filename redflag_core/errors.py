"""
Every failure that is expected, as a type with a stable ``code``.

Two families matter to callers:

- `VerificationError`: bytes from outside must not be trusted. Parsing and verifying code raises nothing
  else for any input; any other exception is a bug.
- The rest of `RedFlagError`: this side is misconfigured, a limit holds, or a circuit is open.

Messages are for people and say what to do. They never hold a secret, an expected signature or database text.
"""

from typing import ClassVar


class RedFlagError(Exception):
    """
    Base of every expected failure.

    Attributes:
        code: Stable, machine-readable name of the failure. Part of the public API.
    """

    code: ClassVar[str] = "redflag_error"

    @property
    def message(self) -> str:
        """The sentence for people."""
        return str(self.args[0]) if self.args else self.code


class VerificationError(RedFlagError):
    """Untrusted bytes that must not be trusted. The base is never raised itself."""

    code = "verification_failed"


class MalformedError(VerificationError):
    """The bytes do not have the one shape that is accepted: wrong encoding, unknown or missing field, oversize."""

    code = "malformed"


class TooLargeError(MalformedError):
    """The bytes are longer than the stated bound."""

    code = "too_large"


class UnknownKeyError(VerificationError):
    """No live key with the given key id is known."""

    code = "unknown_key"


class SignatureError(VerificationError):
    """A signature does not verify over exactly these bytes."""

    code = "bad_signature"


class StaleError(VerificationError):
    """A timestamp is outside the tolerance: the sender's clock or the message is too old or too new."""

    code = "stale"


class ReplayError(VerificationError):
    """The nonce was used before, or is too old for anybody to know."""

    code = "replayed"


class ExpiredError(VerificationError):
    """A signed document is past its end of validity, or not valid yet."""

    code = "expired"


class RollbackError(VerificationError):
    """A signed document is older than the one that is already trusted."""

    code = "rollback"


class WrongRecipientError(VerificationError):
    """A genuine message that is meant for another server, agent, machine or organization."""

    code = "wrong_recipient"


class MachineMismatchError(VerificationError):
    """The machine evidence presented is not of the machine on record."""

    code = "machine_mismatch"


class ProofError(VerificationError):
    """A Merkle proof does not show what it is said to show: that something is in a tree, or was before in it."""

    code = "bad_proof"


class HistoryError(VerificationError):
    """
    A history does not hold together.

    Attributes:
        position: The first entry that is not as it should be.
        fault: What is wrong with it: a `redflag_core.audit.Fault`.
    """

    code = "history_broken"

    def __init__(self, message: str, *, position: int, fault: str) -> None:
        super().__init__(message)
        self.position = position
        self.fault = fault


class RewrittenError(VerificationError):
    """
    A history, or a newer checkpoint of it, contradicts what was signed before.

    Attributes:
        after: Up to and with this entry, it is what was signed.
        up_to: The change is at or before this entry.
    """

    code = "history_rewritten"

    def __init__(self, message: str, *, after: int, up_to: int) -> None:
        super().__init__(message)
        self.after = after
        self.up_to = up_to


class ConfigurationError(RedFlagError):
    """This installation is set up in a way that must not run. The message says what to change."""

    code = "misconfigured"


class KeyFileError(ConfigurationError):
    """A key or secret file is missing, readable by others, damaged, weak, or protected by another passphrase."""

    code = "key_file"


class PolicyError(RedFlagError):
    """A policy text or value does not mean anything. The message shows the accepted form."""

    code = "invalid_policy"


class CircuitOpenError(RedFlagError):
    """
    A circuit breaker is open and the call was not made.

    Attributes:
        retry_after: Seconds until a trial call is allowed, at least 0.
    """

    code = "circuit_open"

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ScanError(RedFlagError):
    """A scanner could not tell what the machine has. Its packages are then `unknown`, never "none"."""

    code = "scan_failed"


class ClockError(VerificationError):
    """This machine's clock is behind what it is known to have been: nothing that depends on time can be judged."""

    code = "clock_wrong"


class ConflictingCommandError(VerificationError):
    """A command id was used before for another order."""

    code = "command_conflict"


class CommandRefusedError(RedFlagError):
    """
    A genuine command that this machine does not carry out.

    Attributes:
        retry_after: Seconds after which the same command may pass; None when it never will.
    """

    code = "command_refused"

    def __init__(self, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnknownCommandError(CommandRefusedError):
    """A type that this release does not carry out, or parameters that are not those of the type."""

    code = "unknown_command"


class NeedsApprovalError(CommandRefusedError):
    """What the command would change needs the signed approval of an operator."""

    code = "needs_approval"


class LimitError(CommandRefusedError):
    """A limit that the machine's owner set, or the built-in one, holds the command back."""

    code = "local_limit"


class LateCommandError(CommandRefusedError):
    """The time by which the command had to be started has passed."""

    code = "start_by_passed"


class PlanDriftedError(CommandRefusedError):
    """What would be changed now is not what was planned."""

    code = "plan_drifted"


class IllegalMoveError(RedFlagError):
    """A state does not allow what was asked for. The message says which it is."""

    code = "illegal_move"


class BridgeError(RedFlagError):
    """A bridge could not do what it was asked for. The base is never raised itself."""

    code = "bridge_failed"


class BridgeUnavailableError(BridgeError):
    """
    The other system cannot answer now. The same event may pass later.

    Attributes:
        retry_after: Seconds that the other system asks to wait; None when it does not say.
    """

    code = "bridge_unavailable"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BridgeRejectedError(BridgeError):
    """The other system will never take this event as it is. The message says what a person has to correct."""

    code = "bridge_rejected"


class BridgeCredentialsError(BridgeError):
    """The other system does not know us, or not with these rights: nothing passes until a person corrects it."""

    code = "bridge_credentials"


class BridgeGoneError(BridgeError):
    """The record that a link names is no longer there."""

    code = "bridge_record_gone"


class StoreError(RedFlagError):
    """
    The database of a store did not answer, or lacks its tables: whether something was stored is not known.

    Refuse what depended on it. A sender that tries again does so with a fresh nonce.
    """

    code = "store_unavailable"
