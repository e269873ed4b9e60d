"""API of jobs, for people and scripts."""

from typing import Annotated, Final
from uuid import UUID

from litestar import get, post
from litestar.params import Body, FromPath, QueryParameter

from redflag_server.bodies import Strict
from redflag_server.db.pages import DEFAULT_LIMIT, Page, PageOf
from redflag_server.db.scope import Scope
from redflag_server.fields import Reason
from redflag_server.injection import Injected, Parsed
from redflag_server.jobs.operations import JobFilter, discard_job, list_jobs, retry_job
from redflag_server.jobs.schema import JOB_EXAMPLE, JobItem
from redflag_server.jobs.tables import JobState
from redflag_server.openapi import answers, example
from redflag_server.operators import Cursor, Limit, OperatorController
from redflag_server.runtime import Runtime

NEXT: Final = "AZNvPotafE2eLwobLD1Oag"
WHY: Final = Reason("the disk has room again")

ReasonBody = Annotated[Parsed[Reason], Body(examples=[example(WHY)])]


class JobController(OperatorController):
    """Work that was put off."""

    path = "/jobs"
    tags = ("Jobs",)

    @get(
        operation_id="ListJobs",
        summary="List jobs",
        description="Newest first. Those that are done are kept for a week.",
        opt={"permission": "jobs:read"},
        responses=answers(Page[JobItem], Page([JOB_EXAMPLE], NEXT)),
    )
    async def list_jobs(
        self,
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
        states: Annotated[
            list[JobState] | None, QueryParameter(name="state", description="Any of these; repeatable.")
        ] = None,
        kind: Annotated[str | None, QueryParameter(max_length=128, description="Kind, `forget-old`.")] = None,
        cursor: Cursor = None,
        limit: Limit = DEFAULT_LIMIT,
    ) -> Page[JobItem]:
        """List jobs, newest first."""
        page = PageOf(cursor, limit, newest_first=True)
        async with runtime.database.read() as session:
            return await list_jobs(session, visible, JobFilter(states or (), kind), page)

    @post(
        "/{job_id:uuid}/retry",
        operation_id="RetryJob",
        summary="Try a dead job again",
        description="With all its attempts, as the last of its key.",
        dto=Strict[Reason],
        return_dto=None,
        status_code=200,
        opt={"permission": "jobs:write"},
        responses=answers(JobItem, JOB_EXAMPLE, 404, 409),
    )
    async def retry_job(
        self, job_id: FromPath[UUID], data: ReasonBody, visible: Injected[Scope], runtime: Injected[Runtime]
    ) -> JobItem:
        """Try a dead job again."""
        return await retry_job(runtime, visible, job_id, data.reason)

    @post(
        "/{job_id:uuid}/discard",
        operation_id="DiscardJob",
        summary="Remove a dead job",
        description="What it was to do is not done. The answer is what it was.",
        dto=Strict[Reason],
        return_dto=None,
        status_code=200,
        opt={"permission": "jobs:write"},
        responses=answers(JobItem, JOB_EXAMPLE, 404, 409),
    )
    async def discard_job(
        self, job_id: FromPath[UUID], data: ReasonBody, visible: Injected[Scope], runtime: Injected[Runtime]
    ) -> JobItem:
        """Remove a dead job."""
        return await discard_job(runtime, visible, job_id, data.reason)
