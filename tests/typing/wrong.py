"""Mistakes that a type checker must find: one on each line that ends with the word. Checked, never run."""

from datetime import UTC, datetime

from redflag_core import (
    NonceStore,
    RequestVerifier,
    SigningKey,
    SyncNonceStore,
    SystemClock,
    VerifyKey,
    sign_envelope,
    verify_envelope,
    verify_webhook,
)
from redflag_core.stores.sqlite import AsyncSqliteNonceStore, SqliteNonceStore

key = SigningKey.generate()
key.verify_key.verify("text", b"")  # wrong
VerifyKey("text")  # wrong
sign_envelope("type", "text", key)  # wrong
sign_envelope("type", b"", key.verify_key)  # wrong
verify_envelope(b"", "type", [key.verify_key])  # wrong
verify_envelope(b"", "type", {}, count=2)  # wrong
verify_webhook({}, b"", [key], now=datetime.now(UTC))  # wrong
verify_webhook({}, b"", [key.verify_key])  # wrong
RequestVerifier(keys={}, authorities=("x",), clock=SystemClock())  # wrong
awaited: NonceStore = SqliteNonceStore("x.db")  # wrong
blocking: SyncNonceStore = AsyncSqliteNonceStore("x.db")  # wrong
