"""API of decisions about packages, for people and scripts."""

from datetime import datetime
from typing import Annotated, Final
from uuid import UUID

from litestar import post
from litestar.params import Body, FromPath

from redflag_core.patching import Decision
from redflag_server.bodies import Strict
from redflag_server.db.scope import Scope
from redflag_server.fields import Reason, ids_of, moment_of, uuid_of
from redflag_server.injection import Injected, Parsed
from redflag_server.openapi import answers, example
from redflag_server.operators import OperatorController
from redflag_server.packages.listing import PackageFilter, get_package
from redflag_server.packages.schema import PACKAGE_EXAMPLE, PackageItem
from redflag_server.plans.decisions import decide, decide_matching
from redflag_server.plans.schema import (
    BULK_EXAMPLE,
    DECIDE_EXAMPLE,
    UNTIL_EXAMPLE,
    BulkOutcome,
    Decide,
    DecisionOutcome,
    Selection,
    Until,
)
from redflag_server.problems import ConflictError
from redflag_server.runtime import Runtime

WHY: Final = Reason("tested on the bench")

ReasonBody = Annotated[Parsed[Reason], Body(examples=[example(WHY)])]
UntilBody = Annotated[Parsed[Until], Body(examples=[example(UNTIL_EXAMPLE)])]


class DecisionController(OperatorController):
    """What people decide about packages."""

    path = "/packages"
    tags = ("Packages",)

    @post(
        "/{package_id:uuid}/approve",
        operation_id="ApprovePackage",
        summary="Approve an update",
        description="It can then be planned and installed. Refused for what is held on the machine, phased, not "
        "known since a failed scan, up to date, gone, or being worked on.",
        dto=Strict[Reason],
        return_dto=None,
        status_code=200,
        opt={"permission": "packages:write"},
        responses=answers(PackageItem, PACKAGE_EXAMPLE, 404, 409),
    )
    async def approve_package(
        self, package_id: FromPath[UUID], data: ReasonBody, visible: Injected[Scope], runtime: Injected[Runtime]
    ) -> PackageItem:
        """Approve the update of a package."""
        return await _decided(runtime, visible, package_id, Decision.APPROVE, data.reason)

    @post(
        "/{package_id:uuid}/reject",
        operation_id="RejectPackage",
        summary="Reject updates of a package",
        description="The package is excluded without an end: from the next updates too, until it is reopened.",
        dto=Strict[Reason],
        return_dto=None,
        status_code=200,
        opt={"permission": "packages:write"},
        responses=answers(PackageItem, PACKAGE_EXAMPLE, 404, 409),
    )
    async def reject_package(
        self, package_id: FromPath[UUID], data: ReasonBody, visible: Injected[Scope], runtime: Injected[Runtime]
    ) -> PackageItem:
        """Exclude a package without an end."""
        return await _decided(runtime, visible, package_id, Decision.REJECT, data.reason)

    @post(
        "/{package_id:uuid}/exclude",
        operation_id="ExcludePackage",
        summary="Exclude a package",
        description="Until the time given, or without an end. The next updates are excluded too.",
        dto=Strict[Until],
        return_dto=None,
        status_code=200,
        opt={"permission": "packages:write"},
        responses=answers(PackageItem, PACKAGE_EXAMPLE, 404, 409),
    )
    async def exclude_package(
        self, package_id: FromPath[UUID], data: UntilBody, visible: Injected[Scope], runtime: Injected[Runtime]
    ) -> PackageItem:
        """Exclude a package from updates."""
        until = moment_of("until", data.until)
        return await _decided(runtime, visible, package_id, Decision.EXCLUDE, data.reason, until=until)

    @post(
        "/{package_id:uuid}/defer",
        operation_id="DeferPackage",
        summary="Put an update off",
        description="Until the time given, which must be given: then it is open again.",
        dto=Strict[Until],
        return_dto=None,
        status_code=200,
        opt={"permission": "packages:write"},
        responses=answers(PackageItem, PACKAGE_EXAMPLE, 404, 409),
    )
    async def defer_package(
        self, package_id: FromPath[UUID], data: UntilBody, visible: Injected[Scope], runtime: Injected[Runtime]
    ) -> PackageItem:
        """Put the update of a package off."""
        until = moment_of("until", data.until)
        return await _decided(runtime, visible, package_id, Decision.DEFER, data.reason, until=until)

    @post(
        "/{package_id:uuid}/reopen",
        operation_id="ReopenPackage",
        summary="Take a decision back",
        description="The package is again what its scanner sees. Also ends that an installation failed.",
        dto=Strict[Reason],
        return_dto=None,
        status_code=200,
        opt={"permission": "packages:write"},
        responses=answers(PackageItem, PACKAGE_EXAMPLE, 404, 409),
    )
    async def reopen_package(
        self, package_id: FromPath[UUID], data: ReasonBody, visible: Injected[Scope], runtime: Injected[Runtime]
    ) -> PackageItem:
        """Take back what was decided about a package."""
        return await _decided(runtime, visible, package_id, Decision.REOPEN, data.reason)

    @post(
        "/decide",
        operation_id="DecidePackages",
        summary="Decide about many packages",
        description="Up to 1000: those named, or all that the list shows for the same filters. Each has its own "
        "outcome, and one that is refused does not stop the others.",
        dto=Strict[Decide],
        return_dto=None,
        status_code=200,
        opt={"permission": "packages:write"},
        responses=answers(BulkOutcome, BULK_EXAMPLE, 404, 409),
    )
    async def decide_packages(
        self,
        data: Annotated[Parsed[Decide], Body(examples=[example(DECIDE_EXAMPLE)])],
        visible: Injected[Scope],
        runtime: Injected[Runtime],
    ) -> BulkOutcome:
        """Decide about many packages at once."""
        until = moment_of("until", data.until)
        if data.select is not None:
            wanted = _filter(data.select)
            return await decide_matching(runtime, visible, wanted, data.decision, data.reason, until=until)
        packages = ids_of("package_ids", data.package_ids or ())
        return await decide(runtime, visible, packages, data.decision, data.reason, until=until)


async def _decided(
    runtime: Runtime,
    visible: Scope,
    package_id: UUID,
    decision: Decision,
    reason: str,
    *,
    until: datetime | None = None,
) -> PackageItem:
    outcome = await decide(runtime, visible, [package_id], decision, reason, until=until)
    (item,) = outcome.items
    if item.outcome is DecisionOutcome.REFUSED:
        raise ConflictError(item.detail)
    async with runtime.database.read() as session:
        return await get_package(session, visible, package_id)


def _filter(selection: Selection) -> PackageFilter:
    return PackageFilter(
        agent_id=uuid_of("agent_id", selection.agent_id),
        states=selection.states,
        severities=selection.severities,
        name=selection.name,
        manager=selection.manager,
    )
