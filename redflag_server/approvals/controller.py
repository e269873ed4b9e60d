"""API of approvals, for people and scripts."""

from typing import Annotated, Final
from uuid import UUID

from litestar import Response, get, post
from litestar.params import Body, QueryParameter

from redflag_core.approval_files import MAX_ANSWER_BYTES, ApprovalAnswer, ApprovalRequest
from redflag_server.approvals.listing import list_approvals
from redflag_server.approvals.requests import MAX_PLANS, export_request
from redflag_server.approvals.schema import (
    ANSWER_EXAMPLE,
    REQUEST_EXAMPLE,
    STORED_EXAMPLE,
    SUMMARY_EXAMPLE,
    ApprovalSummary,
    StoredApproval,
)
from redflag_server.approvals.service import store_approval
from redflag_server.bodies import Strict
from redflag_server.db.pages import DEFAULT_LIMIT, Page, PageOf
from redflag_server.db.scope import Scope
from redflag_server.injection import Injected, Parsed
from redflag_server.openapi import answers, example
from redflag_server.operators import Cursor, Limit, OperatorController
from redflag_server.runtime import Runtime

NEXT: Final = "AZNvPotafE2eLwobLD1OZg"
MEDIA_TYPE: Final = "application/json"
DOWNLOAD: Final = {"Content-Disposition": 'attachment; filename="approval-request.json"'}


class ApprovalController(OperatorController):
    """What is beyond routine: asked for here, signed where no server can reach."""

    path = "/approvals"
    tags = ("Approvals",)

    @get(
        operation_id="ListApprovals",
        summary="List approvals",
        description="Newest first.",
        opt={"permission": "approvals:read"},
        responses=answers(Page[ApprovalSummary], Page([SUMMARY_EXAMPLE], NEXT)),
    )
    async def list_approvals(
        self,
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
        cursor: Cursor = None,
        limit: Limit = DEFAULT_LIMIT,
    ) -> Page[ApprovalSummary]:
        """List approvals, newest first."""
        page = PageOf(cursor, limit, newest_first=True)
        async with runtime.database.read() as session:
            return await list_approvals(session, visible, page, runtime.clock.now())

    @get(
        "/request",
        operation_id="ExportApprovalRequest",
        summary="Export what an operator must approve",
        description="A file for `redflag approve`: plans of one organization that wait and are beyond routine.",
        media_type=MEDIA_TYPE,
        opt={"permission": "approvals:read"},
        responses=answers(ApprovalRequest, REQUEST_EXAMPLE, 404, 409),
    )
    async def export_request(
        self,
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
        plan_ids: Annotated[
            list[UUID],
            QueryParameter(
                name="plan_id", min_items=1, max_items=MAX_PLANS, description="Id of a plan; repeatable."
            ),
        ],
    ) -> Response[bytes]:
        """Export what an operator must approve."""
        data = await export_request(runtime, visible, plan_ids)
        return Response(data, media_type=MEDIA_TYPE, headers=DOWNLOAD)

    @post(
        operation_id="StoreApproval",
        summary="Bring an approval",
        description="What `redflag approve` wrote, as it is. The same one again changes nothing.",
        dto=Strict[ApprovalAnswer],
        return_dto=None,
        status_code=200,
        request_max_body_size=MAX_ANSWER_BYTES,
        opt={"permission": "approvals:write"},
        responses=answers(StoredApproval, STORED_EXAMPLE, 404, 409),
    )
    async def store_approval(
        self,
        data: Annotated[Parsed[ApprovalAnswer], Body(examples=[example(ANSWER_EXAMPLE)])],
        visible: Injected[Scope],
        runtime: Injected[Runtime],
    ) -> StoredApproval:
        """Take in what an operator signed."""
        return await store_approval(runtime, visible, data)
