"""Public trust documents: their bytes are signed, so they are served as they are, to anybody."""

from typing import Annotated, Any

from litestar import Controller, Response, get
from litestar.params import Parameter

from redflag_server.injection import Injected
from redflag_server.openapi import answers
from redflag_server.problems import NotFoundError
from redflag_server.runtime import Runtime
from redflag_server.trust import service
from redflag_server.wire_examples import ENVELOPE

MEDIA_TYPE = "application/json"


class TrustController(Controller):
    """What an agent needs to believe this server, and to notice when it must not."""

    path = "/trust"
    tags = ("Trust",)
    opt = {"public": True}  # noqa: RUF012  (Litestar's form)

    @get(
        "/bundle",
        operation_id="GetTrustBundle",
        summary="The current trust bundle",
        description="A DSSE envelope signed by the root. Verify it with `redflag_core.trust.verify_bundle`.",
        media_type=MEDIA_TYPE,
        responses=answers(dict[str, Any], ENVELOPE, public=True),
    )
    async def bundle(self, runtime: Injected[Runtime]) -> Response[bytes]:
        """The newest bundle."""
        async with runtime.database.read() as session:
            document = await service.current_bundle(session)
        return Response(document.envelope, media_type=MEDIA_TYPE, headers={"ETag": f'"{document.digest}"'})

    @get(
        "/root/{n:int}",
        operation_id="GetRootDocument",
        summary="Root document n",
        description="A DSSE envelope, signed by root n and, but for the first, by root n - 1. 404 ends the chain.",
        media_type=MEDIA_TYPE,
        responses=answers(dict[str, Any], ENVELOPE, 400, 404, public=True),
    )
    async def root(
        self,
        runtime: Injected[Runtime],
        n: Annotated[int, Parameter(ge=1, le=10**9, description="Number of the root, from 1.")],
    ) -> Response[bytes]:
        """One root document."""
        async with runtime.database.read() as session:
            document = await service.root_document(session, n)
        if document is None:
            raise NotFoundError(f"there is no root {n}")
        return Response(document.envelope, media_type=MEDIA_TYPE, headers={"ETag": f'"{document.digest}"'})
