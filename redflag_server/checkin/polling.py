"""
A check-in that is held open: it is answered when there is a command for the agent, or when the time is over.

Two short transactions with nothing between them: one passes the gate and looks, one looks again when the agent was
woken. While it waits, no connection of the database is held. What ends it without a command, a later check-in of
the same agent, the end of the server or of the connection, leases nothing.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import attrs
from litestar.types import Receive

from redflag_core.enrolment import hold_seconds, next_check_in
from redflag_core.errors import RedFlagError
from redflag_core.messages import CheckIn, CheckInAnswer
from redflag_core.resilience import random_fraction
from redflag_server.checkin.answers import CheckedIn, CheckInRequest, check_in_request
from redflag_server.checkin.authentication import VerifiedAgent
from redflag_server.checkin.service import check_in, look_again
from redflag_server.checkin.waiting import Ended, Poll
from redflag_server.runtime import Runtime

_UNWANTED: Final = frozenset({Ended.SUPERSEDED, Ended.CLOSING, Ended.GONE})


async def answer_check_in(
    runtime: Runtime, sender: VerifiedAgent, body: CheckIn, receive: Receive
) -> CheckInAnswer:
    """
    Answer one check-in, at once or when there is something to do.

    Args:
        runtime: The server.
        sender: The verified agent.
        body: What it says; ``wait`` is how long it would wait.
        receive: Tells when the connection is closed.

    Raises:
        RedFlagError: It is refused, or the agent was cut off while it waited.
    """
    agent_id = sender.entry.agent_id
    poll = runtime.waiting.enter(agent_id) if body.wait else None
    if poll is None:
        return (await _check_in(runtime, check_in_request(sender, body, runtime.server))).answer
    try:
        hold = hold_seconds(body.wait, jitter=random_fraction(runtime.entropy))
        request = check_in_request(sender, body, runtime.server, hold=hold)
        result = await _check_in(runtime, request)
        runtime.waiting.supersede(agent_id, poll)
        if not result.waits:
            return result.answer
        async with _watching(receive, poll):
            return await _hold(runtime, request, result, poll)
    finally:
        runtime.waiting.leave(agent_id, poll)


async def _check_in(runtime: Runtime, request: CheckInRequest) -> CheckedIn:
    result: CheckedIn | RedFlagError = await runtime.check_ins.submit(request, partial(check_in, runtime))
    if isinstance(result, RedFlagError):
        raise result
    return result


async def _hold(runtime: Runtime, request: CheckInRequest, result: CheckedIn, poll: Poll) -> CheckInAnswer:
    clock = runtime.clock
    end = clock.monotonic() + (request.hold or 0.0)
    while result.waits:
        left = max(end - clock.monotonic(), 0.0)
        until_due = left if result.again is None else (result.again - clock.now()).total_seconds()
        why = await poll.wait(max(min(left, until_due), 0.0))
        if why in _UNWANTED:
            pause = next_check_in(base=runtime.settings.check_in_seconds, jitter=random_fraction(runtime.entropy))
            return attrs.evolve(result.answer, next_check_in_seconds=pause)
        if why is Ended.TIME and left <= until_due:
            return attrs.evolve(result.answer, server_time=int(clock.now().timestamp()))
        request = attrs.evolve(request, hold=max(end - clock.monotonic(), 0.0))
        result = await look_again(runtime, request)
    return result.answer


@asynccontextmanager
async def _watching(receive: Receive, poll: Poll) -> AsyncIterator[None]:
    """End the waiting when the connection is closed."""

    async def watch() -> None:
        if (await receive())["type"] == "http.disconnect":
            poll.finish(Ended.GONE)

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
