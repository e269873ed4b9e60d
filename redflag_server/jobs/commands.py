"""``redflag server tick`` and ``redflag server jobs``: the work beside the requests, from the command line."""

import asyncio
import getpass
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import rich_click as click

from redflag_core.errors import ConfigurationError, RedFlagError
from redflag_core.system import SystemClock, SystemEntropy
from redflag_server.backup.placement import is_founded, shared_use
from redflag_server.db.pages import MAX_LIMIT, Page, PageOf
from redflag_server.db.scope import Scope, whole_installation
from redflag_server.jobs.background import TICK_BUDGET, Tick
from redflag_server.jobs.background import tick as do_tick
from redflag_server.jobs.operations import JobFilter, discard_job, list_jobs, retry_job
from redflag_server.jobs.schema import JobItem
from redflag_server.jobs.tables import JobState
from redflag_server.run import end_with_sentence
from redflag_server.runtime import Runtime
from redflag_server.settings import Settings, default_data_directory, default_database
from redflag_server.start import open_runtime

T = TypeVar("T")

data_option = click.option(
    "--data",
    default=default_data_directory,
    type=click.Path(file_okay=False, path_type=Path),
    help="Data directory of the server.",
)


@click.command()
@click.option(
    "--seconds",
    default=TICK_BUDGET,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True, max=3600),
    help="After so long nothing more is begun.",
)
@data_option
def tick(seconds: float, data: Path) -> None:
    """Do once what is due: recurring work, jobs, positions of events. For cron and timers."""

    async def work(runtime: Runtime) -> Tick:
        return await do_tick(runtime, seconds)

    done = _run(data, work)
    click.echo(
        f"{len(done.schedules)} schedules, {done.attempts} attempts at jobs, {done.placed} events placed"
        + ("" if done.in_time else "; there was no time for the rest: the next tick goes on")
    )


@click.group()
def jobs() -> None:
    """Work that was put off."""


@jobs.command("list")
@click.option("--state", "states", multiple=True, type=click.Choice([str(state) for state in JobState]))
@data_option
def list_(states: tuple[str, ...], data: Path) -> None:
    """List the newest jobs."""

    async def work(runtime: Runtime) -> Page[JobItem]:
        wanted = JobFilter([JobState(state) for state in states])
        async with runtime.database.read() as session:
            return await list_jobs(session, _everything(), wanted, PageOf(limit=MAX_LIMIT, newest_first=True))

    for job in _run(data, work).items:
        error = "" if job.last_error is None else f"  {job.last_error}"
        click.echo(f"{job.id}  {job.state:<4}  {job.run_at:%Y-%m-%d %H:%M}  {job.attempts:>3}  {job.kind}{error}")


@jobs.command()
@click.argument("job_id", type=click.UUID)
@click.option("--reason", default="tried again on the command line", show_default=True)
@data_option
def retry(job_id: UUID, reason: str, data: Path) -> None:
    """Try a dead job again."""
    _run(data, lambda runtime: retry_job(runtime, _everything(), job_id, reason))
    click.echo(f"{job_id} is tried again.")


@jobs.command()
@click.argument("job_id", type=click.UUID)
@click.option("--reason", default="removed on the command line", show_default=True)
@data_option
def discard(job_id: UUID, reason: str, data: Path) -> None:
    """Remove a dead job: what it was to do is not done."""
    _run(data, lambda runtime: discard_job(runtime, _everything(), job_id, reason))
    click.echo(f"{job_id} is removed.")


def _run(data: Path, work: Callable[[Runtime], Awaitable[T]]) -> T:
    """Do *work* on the open server in *data*, or end with one sentence."""

    async def opened() -> T:
        settings = Settings(data=data, postgresql=default_database())
        runtime = await open_runtime(settings, SystemClock(), SystemEntropy())
        try:
            return await work(runtime)
        finally:
            await runtime.database.close()

    try:
        if not is_founded(data):
            raise ConfigurationError(
                f"there is no server in {data}: start one there first, or name another --data"
            )
        with shared_use(data):
            return asyncio.run(opened())
    except RedFlagError as error:
        end_with_sentence(error)


def _everything() -> Scope:
    """The statements of whoever can read the data directory."""
    try:
        return whole_installation(f"cli:{getpass.getuser()}")
    except (KeyError, OSError):
        return whole_installation("cli")
