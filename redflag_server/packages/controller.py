"""API of packages, for people and scripts."""

from typing import Annotated, Final
from uuid import UUID

from litestar import get
from litestar.params import FromPath, QueryParameter

from redflag_core.scanning import PackageState, Severity
from redflag_server.db.pages import DEFAULT_LIMIT, Page, PageOf
from redflag_server.db.scope import Scope
from redflag_server.injection import Injected
from redflag_server.openapi import answers
from redflag_server.operators import MAX_FILTER, Cursor, Limit, OperatorController
from redflag_server.packages.listing import PackageFilter, get_package, list_packages
from redflag_server.packages.schema import PACKAGE_EXAMPLE, PackageItem
from redflag_server.runtime import Runtime

NEXT: Final = "AZNvPotafE2eLwobLD1OYw"


class PackageController(OperatorController):
    """What machines have and lack."""

    path = "/packages"
    tags = ("Packages",)

    @get(
        operation_id="ListPackages",
        summary="List packages",
        description="Packages that are up to date or gone are left out unless they are asked for.",
        opt={"permission": "packages:read"},
        responses=answers(Page[PackageItem], Page([PACKAGE_EXAMPLE], NEXT)),
    )
    async def list_packages(
        self,
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
        agent_id: Annotated[UUID | None, QueryParameter(description="Id of the machine.")] = None,
        states: Annotated[
            list[PackageState] | None, QueryParameter(name="state", description="Any of these; repeatable.")
        ] = None,
        include_current: Annotated[bool, QueryParameter(description="Also packages that are up to date.")] = False,
        severity: Annotated[list[Severity] | None, QueryParameter(description="Any of these; repeatable.")] = None,
        name: Annotated[
            str | None, QueryParameter(max_length=MAX_FILTER, description="Part of the name, in any case.")
        ] = None,
        manager: Annotated[
            str | None, QueryParameter(max_length=32, description="Package manager, `apt`.")
        ] = None,
        cursor: Cursor = None,
        limit: Limit = DEFAULT_LIMIT,
    ) -> Page[PackageItem]:
        """List packages."""
        wanted = PackageFilter(agent_id, states or (), include_current, severity or (), name, manager)
        async with runtime.database.read() as session:
            return await list_packages(session, visible, wanted, PageOf(cursor, limit))

    @get(
        "/{package_id:uuid}",
        operation_id="GetPackage",
        summary="Get a package",
        opt={"permission": "packages:read"},
        responses=answers(PackageItem, PACKAGE_EXAMPLE, 404),
    )
    async def get_package(
        self, package_id: FromPath[UUID], visible: Injected[Scope], runtime: Injected[Runtime]
    ) -> PackageItem:
        """Get a package of a machine."""
        async with runtime.database.read() as session:
            return await get_package(session, visible, package_id)
