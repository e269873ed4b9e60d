"""Approvals as operators see them."""

from collections.abc import Collection, Mapping
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from redflag_server.approvals.schema import ApprovalSummary
from redflag_server.approvals.tables import Approval
from redflag_server.db.pages import Page, PageOf, fetch_page
from redflag_server.db.scope import Scope
from redflag_server.trust.operator_keys import live_operator_keys, names_of_keys


async def list_approvals(
    session: AsyncSession, visible: Scope, wanted: PageOf, now: datetime
) -> Page[ApprovalSummary]:
    """One page of the approvals that the caller may see, newest first."""
    rows, cursor = await fetch_page(session, visible.select(Approval), Approval, wanted)
    approvals = [row[0] for row in rows]
    names = await names_of_keys(session, {each.key_id for each in approvals})
    live = {
        organization_id: await live_operator_keys(session, organization_id, now)
        for organization_id in {each.organization_id for each in approvals}
    }
    return Page([summary(each, names, live[each.organization_id], now) for each in approvals], cursor)


def summary(row: Approval, names: Mapping[str, str], live: Collection[str], now: datetime) -> ApprovalSummary:
    """
    What a list shows of an approval.

    Args:
        row: The approval.
        names: Whose keys there are, by key id.
        live: Ids of the keys that are believed now.
        now: Current time, aware UTC.
    """
    return ApprovalSummary(
        id=row.signed_id,
        organization_id=row.organization_id,
        key_id=row.key_id,
        key_name=names.get(row.key_id, row.key_id),
        commands=len(row.covered),
        max_starts=row.max_starts,
        valid_from=row.valid_from,
        valid_until=row.valid_until,
        stored_at=row.stored_at,
        stored_by=row.stored_by,
        live=row.key_id in live and now <= row.valid_until,
    )
