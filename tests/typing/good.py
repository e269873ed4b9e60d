"""What an embedder writes, with the types that a type checker must find. Checked, never run."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import assert_type

from redflag_core import (
    Approval,
    ApprovalPolicy,
    Breaker,
    BreakerPolicy,
    Clock,
    Command,
    Entropy,
    KeyRing,
    MachineIdentity,
    NonceStore,
    RateLimitPolicy,
    RateLimitStore,
    RequestVerifier,
    RetryBudget,
    RetryPolicy,
    SignedAsgi,
    SignedWsgi,
    SigningKey,
    StartDecision,
    SyncNonceStore,
    SyncRateLimitStore,
    SystemClock,
    SystemEntropy,
    VerifiedPayload,
    VerifiedRequest,
    VerifiedWebhook,
    VerifyKey,
    Window,
    check_time,
    load_policy,
    may_start,
    open_approval,
    open_command,
    parse_window,
    rate_limit,
    retry,
    retry_sync,
    sign_envelope,
    verify_envelope,
    verify_webhook,
)
from redflag_core.http_auth import AsgiApp, WsgiApp
from redflag_core.machine_readers import this_machine
from redflag_core.stores.sqlite import (
    AsyncSqliteNonceStore,
    AsyncSqliteRateLimitStore,
    SqliteNonceStore,
    SqliteRateLimitStore,
)
from redflag_core.testing import FrozenClock, MemoryNonceStore, MemoryRateLimitStore, SeededEntropy

key = SigningKey.generate()
assert_type(key, SigningKey)
assert_type(key.verify_key, VerifyKey)
assert_type(key.sign(b""), bytes)
assert_type(key.key_id, str)
assert_type(sign_envelope("type", b"", key, key), bytes)
assert_type(verify_envelope(b"", "type", {key.key_id: key.verify_key}), VerifiedPayload)
assert_type(open_command(b"", {}).body, Command)
assert_type(open_approval(b"", {}), Approval)
assert_type(verify_webhook({}, b"", [key.verify_key], now=datetime.now(UTC)), VerifiedWebhook)
assert_type(load_policy(b""), ApprovalPolicy)
assert_type(may_start({}, at=datetime.now(UTC)), StartDecision)
assert_type(parse_window("every day 01:00-05:00"), Window)
check_time(open_command(b"", {}).body, now=datetime.now(UTC))
assert_type(rate_limit.parse("60/minute"), RateLimitPolicy)

# Everything that is given for a port is one.
clocks: list[Clock] = [SystemClock(), FrozenClock()]
entropies: list[Entropy] = [SystemEntropy(), SeededEntropy()]
machines: list[MachineIdentity] = [this_machine()]
nonces: list[NonceStore] = [MemoryNonceStore(), AsyncSqliteNonceStore("x.db")]
blocking_nonces: list[SyncNonceStore] = [SqliteNonceStore("x.db")]
limits: list[RateLimitStore] = [MemoryRateLimitStore(), AsyncSqliteRateLimitStore("x.db")]
blocking_limits: list[SyncRateLimitStore] = [SqliteRateLimitStore("x.db")]


async def embed(app: AsgiApp, other: WsgiApp, ring: KeyRing, verified: Callable[[], Awaitable[int]]) -> None:
    """The verbs that are awaited, and their blocking forms, give what the function gives."""
    clock, entropy = SystemClock(), SystemEntropy()
    breaker = Breaker("x", BreakerPolicy(call_timeout=1), clock=clock)
    assert_type(await breaker.call(verified), int)
    assert_type(breaker.call_sync(lambda: "text"), str)
    policy, budget = RetryPolicy(), RetryBudget()
    assert_type(await retry(policy, verified, on=OSError, budget=budget, clock=clock, entropy=entropy), int)
    assert_type(retry_sync(policy, lambda: 1.5, on=OSError, budget=budget, clock=clock, entropy=entropy), float)
    verifier = RequestVerifier(keys=ring, authorities=("x",), clock=clock)
    application: AsgiApp = SignedAsgi(app, verifier, nonces[0])
    blocking: WsgiApp = SignedWsgi(other, verifier, blocking_nonces[0])
    print(application, blocking)


def of_request(verifier: RequestVerifier, window: Window) -> None:
    """Values carry their types on."""
    from redflag_core.signed_requests import Request

    request = Request("GET", "/", "", ())
    assert_type(verifier.admit_sync(request, blocking_nonces[0]), VerifiedRequest)
    assert_type(window.timezone, str)
