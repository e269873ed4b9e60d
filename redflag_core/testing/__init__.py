"""
Public fakes and port contracts: what our own tests use, and what an embedder's tests may use.

The fakes are for tests only: nothing here is durable, and `SeededEntropy` is predictable by design. Import every
name from here. Contracts have no state.
"""

from redflag_core.testing._blocking import (
    InThreads,
    SharedSyncNonceStoreContract,
    SharedSyncRateLimitStoreContract,
    SyncNonceStoreContract,
    SyncRateLimitStoreContract,
)
from redflag_core.testing._bridges import BridgeContract, MemoryBridge, MemoryRecord, make_event
from redflag_core.testing._nonces import MemoryNonceStore, NonceStoreContract, SharedNonceStoreContract
from redflag_core.testing._rate_limits import (
    MemoryRateLimitStore,
    RateLimitStoreContract,
    SharedRateLimitStoreContract,
)
from redflag_core.testing._system import START, FrozenClock, SeededEntropy

__all__ = [
    "START",
    "BridgeContract",
    "FrozenClock",
    "InThreads",
    "MemoryBridge",
    "MemoryNonceStore",
    "MemoryRateLimitStore",
    "MemoryRecord",
    "NonceStoreContract",
    "RateLimitStoreContract",
    "SeededEntropy",
    "SharedNonceStoreContract",
    "SharedRateLimitStoreContract",
    "SharedSyncNonceStoreContract",
    "SharedSyncRateLimitStoreContract",
    "SyncNonceStoreContract",
    "SyncRateLimitStoreContract",
    "make_event",
]
