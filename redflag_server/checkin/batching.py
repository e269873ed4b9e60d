"""
Check-ins that arrive together are judged together: while one batch is with the database, the next one gathers.

There is no timer. Who comes alone is a batch of one and waits for nobody; under load a batch is as large as what
arrived during the one before it.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import attrs

from redflag_server.problems import UnavailableError

MAX_BATCH: Final = 256
"""Requests in one batch: beyond it, a batch takes longer without costing less for each."""

MAX_QUEUE: Final = 8 * MAX_BATCH
"""Requests that wait for a batch: about a second of work. Who comes beyond it is told to come back."""

Handle = Callable[[Sequence[Any]], Awaitable[Sequence[Any]]]
"""Handles a batch: a result for each request, in the same order. An exception it raises is everybody's."""


@attrs.define(eq=False)
class Batcher:
    """
    Gathers requests while others are handled, one batch at a time. Belongs to one event loop.

    Args:
        max_batch: Requests in one batch.
        max_queue: Requests that wait.

    Attributes:
        batches: Batches so far.
        handled: Requests that were in them.
    """

    max_batch: int = MAX_BATCH
    max_queue: int = MAX_QUEUE
    batches: int = attrs.field(default=0, init=False)
    handled: int = attrs.field(default=0, init=False)
    _queue: deque[tuple[Any, "asyncio.Future[Any]"]] = attrs.field(factory=deque, init=False)
    _worker: "asyncio.Task[None] | None" = attrs.field(default=None, init=False)

    @property
    def queued(self) -> int:
        """Requests that wait for a batch."""
        return len(self._queue)

    async def submit(self, request: Any, handle: Handle) -> Any:
        """
        Have one request handled.

        Whoever asked may go away: the batch goes on, for it is not theirs alone.

        Args:
            request: The request.
            handle: What handles a batch; the same for all.

        Returns:
            Its result.

        Raises:
            UnavailableError: Too many wait.
            Exception: What the handler raised.
        """
        if len(self._queue) >= self.max_queue:
            raise UnavailableError("too many check-ins at once: come back in some seconds")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append((request, future))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work(handle))
        return await future

    async def _work(self, handle: Handle) -> None:
        try:
            while self._queue:
                size = min(self.max_batch, len(self._queue))
                self.batches, self.handled = self.batches + 1, self.handled + size
                await _run(handle, [self._queue.popleft() for _ in range(size)])
        finally:
            self._worker = None


async def _run(handle: Handle, batch: Sequence[tuple[Any, "asyncio.Future[Any]"]]) -> None:
    waiting = [(request, future) for request, future in batch if not future.done()]
    try:
        results = await handle([request for request, _ in waiting]) if waiting else ()
    except Exception as error:  # each of them is told, and answers with it
        results = [error] * len(waiting)
    for (_, future), result in zip(waiting, results, strict=True):
        _settle(future, result)


def _settle(future: "asyncio.Future[Any]", result: Any) -> None:
    if future.done():  # whoever asked went away meanwhile
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
