"""Looked up when somebody asks: the fleet in the database, and what this process holds."""

import asyncio
from collections.abc import Iterable
from typing import Any, Final

import attrs
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from redflag_core.enrolment import AgentStatus
from redflag_server.agents.tables import Agent
from redflag_server.commands.tables import Command
from redflag_server.jobs.tables import QueuedJob
from redflag_server.runtime import Runtime

CACHED_SECONDS: Final = 15.0
"""How long counts of the database are told again: counting 100,000 machines takes some milliseconds."""


@attrs.frozen
class Counts:
    """
    What the database holds.

    Attributes:
        agents: Machines by status.
        overdue: Active machines that should have checked in by now.
        commands: Commands by state.
        jobs: Queued work by state.
    """

    agents: dict[str, int] = attrs.field(factory=dict)
    overdue: int = 0
    commands: dict[str, int] = attrs.field(factory=dict)
    jobs: dict[str, int] = attrs.field(factory=dict)


@attrs.define(eq=False)
class Fleet(Collector):
    """What there is, as `refresh` last saw it."""

    _runtime: Runtime
    _counts: Counts | None = None
    _until: float = float("-inf")
    _looking: asyncio.Lock = attrs.field(factory=asyncio.Lock)

    async def refresh(self) -> None:
        """Look into the database, if the last look was long enough ago. One that is down leaves its counts out."""
        async with self._looking:
            if self._runtime.clock.monotonic() < self._until:
                return
            try:
                self._counts = await _count(self._runtime)
            except (SQLAlchemyError, OSError):
                self._counts = None
            self._until = self._runtime.clock.monotonic() + CACHED_SECONDS

    def collect(self) -> Iterable[Metric]:
        """What is told now."""
        yield from _of_process(self._runtime)
        yield _gauge("redflag_database_up", "Whether the database could be asked.", int(self._counts is not None))
        if self._counts is not None:
            yield _by("redflag_agents", "Machines by status.", "status", self._counts.agents)
            yield _gauge(
                "redflag_agents_overdue", "Active machines that should have checked in.", self._counts.overdue
            )
            yield _by("redflag_commands", "Commands by state.", "state", self._counts.commands)
            yield _by("redflag_jobs", "Queued work by state.", "state", self._counts.jobs)


async def _count(runtime: Runtime) -> Counts:
    late = (Agent.status == AgentStatus.ACTIVE, Agent.next_check_in_at < runtime.clock.now())
    async with runtime.database.read() as session:
        return Counts(
            agents=await _grouped(session, Agent.status),
            overdue=(await session.scalar(select(func.count()).select_from(Agent).where(*late))) or 0,
            commands=await _grouped(session, Command.state),
            jobs=await _grouped(session, QueuedJob.state),
        )


async def _grouped(session: Any, column: Any) -> dict[str, int]:
    rows = await session.execute(select(column, func.count()).group_by(column))
    return {str(name): number for name, number in rows}


def _of_process(runtime: Runtime) -> Iterable[Metric]:
    pool: Any = runtime.database.engine.pool
    waiting, batcher = runtime.waiting, runtime.check_ins
    yield _gauge("redflag_waiting_polls", "Check-ins that are held open.", len(waiting))
    yield _gauge("redflag_check_in_queue", "Check-ins that wait for a batch.", batcher.queued)
    yield CounterMetricFamily("redflag_check_in_batches", "Batches of check-ins.", value=batcher.batches)
    yield CounterMetricFamily("redflag_check_ins", "Check-ins that were in them.", value=batcher.handled)
    if hasattr(pool, "checkedout"):
        yield _gauge("redflag_database_connections", "Connections of the pool in use.", pool.checkedout())
        yield _gauge("redflag_database_connections_limit", "Connections of the pool at most.", pool.size())


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(name, words, value=value)


def _by(name: str, words: str, label: str, counts: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(name, words, labels=[label])
    for key, number in sorted(counts.items()):
        family.add_metric([key], number)
    return family
