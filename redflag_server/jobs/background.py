"""What a server does beside its requests: recurring work, jobs, and placing events."""

import asyncio
from typing import Final

import attrs

from redflag_server.events.sequencer import Sequencer
from redflag_server.jobs.list import JOBS, KINDS
from redflag_server.jobs.service import keep_running, prepare, run_due
from redflag_server.jobs.work import Worker
from redflag_server.runtime import Runtime

TICK_BUDGET: Final = 50.0
"""Seconds of one tick, when one begins every minute."""


async def keep_working(runtime: Runtime, stop: asyncio.Event) -> None:
    """Do all of it until *stop* is set; what is under way is finished, within `work.DRAIN_SECONDS`."""
    await asyncio.gather(
        keep_running(runtime, JOBS, stop),
        Worker(runtime, KINDS).work(stop),
        Sequencer(runtime).work(stop),
    )


@attrs.frozen
class Tick:
    """
    What one tick did.

    Attributes:
        schedules: Names of the recurring work that ran.
        attempts: Attempts at jobs.
        placed: Events that were given their position.
        in_time: Whether there was time for all that was due.
    """

    schedules: tuple[str, ...]
    attempts: int
    placed: int
    in_time: bool


async def tick(runtime: Runtime, budget: float = TICK_BUDGET) -> Tick:
    """
    Do once what is due, for a server that has no process of its own all the time: called by cron or a timer.

    Any number may run at a time, also beside a running server.

    Args:
        runtime: The server.
        budget: Seconds after which nothing more is begun. What was begun is finished: a job takes at most
            `queue.RUN_SECONDS`.
    """
    clock = runtime.clock
    end = clock.monotonic() + budget

    def is_over() -> bool:
        return clock.monotonic() >= end

    await prepare(runtime, JOBS)
    schedules: list[str] = []
    for name, job in JOBS.items():
        if not is_over():
            schedules += await run_due(runtime, {name: job})
    placed = attempts = 0
    worker, sequencer = Worker(runtime, KINDS), Sequencer(runtime)
    while not is_over():
        made, given = await worker.work_once(), await sequencer.place()
        attempts, placed = attempts + made, placed + given
        if not made and not given:
            return Tick(tuple(schedules), attempts, placed, in_time=True)
    return Tick(tuple(schedules), attempts, placed, in_time=False)
