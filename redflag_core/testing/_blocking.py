"""The same contracts for stores that block."""

from collections.abc import Callable, Coroutine
from typing import Any

from redflag_core.testing._nonces import NonceStoreContract, SharedNonceStoreContract
from redflag_core.testing._rate_limits import RateLimitStoreContract, SharedRateLimitStoreContract


class InThreads:
    """
    A store that blocks, seen as one that does not: each call in a thread of its own, so that calls really race.

    Event loops may share it. After a fork it is what its store is.

    Args:
        store: A `redflag_core.ports.SyncNonceStore` or `redflag_core.ports.SyncRateLimitStore`.
    """

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._store, name)

        async def call(*arguments: Any) -> Any:
            from asyncio import get_running_loop  # noqa: PLC0415  (tests only)
            from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  (tests only)

            with ThreadPoolExecutor(1) as thread:
                return await get_running_loop().run_in_executor(thread, verb, *arguments)

        return call


def _blocking(contract: type) -> Callable[[type], type]:
    """Give a class the tests of *contract*, for stores that block: no coroutines, so pytest needs no plug-in."""

    def fill(cls: type) -> type:
        for name, test in vars(contract).items():
            if name.startswith("test_"):
                setattr(cls, name, _blocking_test(contract, test))
        return cls

    return fill


def _blocking_test(contract: type, test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    def run(*arguments: Any) -> None:
        import asyncio  # noqa: PLC0415  (tests only)

        asyncio.run(test(contract(), *arguments))

    def alone(_self: object, store: Any) -> None:
        run(InThreads(store))

    def shared(_self: object, store: Any, open_store: Callable[[], Any]) -> None:
        run(InThreads(store), lambda: InThreads(open_store()))

    result = shared if "open_store" in test.__annotations__ else alone
    result.__name__, result.__doc__ = test.__name__, test.__doc__
    return result


@_blocking(NonceStoreContract)
class SyncNonceStoreContract:
    """`NonceStoreContract` for a `redflag_core.ports.SyncNonceStore`: the same tests, each call in a thread."""


@_blocking(SharedNonceStoreContract)
class SharedSyncNonceStoreContract(SyncNonceStoreContract):
    """`SharedNonceStoreContract` for a `redflag_core.ports.SyncNonceStore`."""


@_blocking(RateLimitStoreContract)
class SyncRateLimitStoreContract:
    """`RateLimitStoreContract` for a `redflag_core.ports.SyncRateLimitStore`."""


@_blocking(SharedRateLimitStoreContract)
class SharedSyncRateLimitStoreContract(SyncRateLimitStoreContract):
    """`SharedRateLimitStoreContract` for a `redflag_core.ports.SyncRateLimitStore`."""
