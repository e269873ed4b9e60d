"""Which recurring work there is, and which kinds of jobs."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from redflag_server.agents.sweep import mark_changed_hardware
from redflag_server.checkin.nonces import purge_nonces
from redflag_server.commands.upkeep import expire_commands, lapse_leases, raise_alarms
from redflag_server.jobs.kinds import Kind
from redflag_server.jobs.retention import FORGET, ask_to_forget, forget_in_parts
from redflag_server.jobs.service import Job
from redflag_server.plans.decisions import end_decisions
from redflag_server.runtime import Runtime
from redflag_server.trust import service as trust


async def renew_bundle(runtime: Runtime) -> None:
    """Issue the next trust bundle 30 days before the end of the current one, while the root key is here."""
    async with runtime.database.write() as session:
        await trust.renew(session, runtime.keys.root, now=runtime.clock.now())


JOBS: Final[Mapping[str, Job]] = {
    "renew-trust-bundle": Job(timedelta(hours=1), renew_bundle),
    "purge-nonces": Job(timedelta(minutes=1), purge_nonces),
    "forget-old": Job(timedelta(hours=6), ask_to_forget),
    "lapse-leases": Job(timedelta(minutes=1), lapse_leases),
    "expire-commands": Job(timedelta(minutes=1), expire_commands),
    "raise-command-alarms": Job(timedelta(minutes=1), raise_alarms),
    "end-decisions": Job(timedelta(minutes=1), end_decisions),
    "mark-changed-hardware": Job(timedelta(minutes=10), mark_changed_hardware),
}

KINDS: Final[Mapping[str, Kind]] = {
    FORGET: Kind(forget_in_parts),
}
