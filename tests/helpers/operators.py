"""People and scripts in front of a server under test, and the machines that they look at."""

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import attrs
from sqlalchemy import select, update
from uuid_utils.compat import uuid7

from redflag_core.enrolment import AgentStatus
from redflag_core.keys import key_id
from redflag_core.machine import MachineEvidence
from redflag_core.scanning import SCANNED_STATES, PackageState, Severity
from redflag_core.system import SystemEntropy
from redflag_server.accounts.api_keys import KeyOrder, make_key
from redflag_server.accounts.permissions import UserRole
from redflag_server.accounts.tables import User
from redflag_server.accounts.users import add_user
from redflag_server.agents.tables import Agent
from redflag_server.client_errors.tables import ClientError, ErrorSource
from redflag_server.db.scope import whole_installation
from redflag_server.events.recorder import record
from redflag_server.jobs.queue import enqueue
from redflag_server.jobs.tables import JobState, QueuedJob
from redflag_server.organizations.tables import Organization, Site
from redflag_server.packages.tables import Package, Scanner
from redflag_server.runtime import Runtime

API = "/api/v1"
PASSWORD = "correct horse battery staple"
ORIGIN = "http://127.0.0.1:8750"
FORM = {"origin": ORIGIN, "sec-fetch-site": "same-origin"}
COOKIE = "redflag_session"


async def make_user(
    runtime: Runtime, name: str = "alice", role: UserRole = UserRole.OWNER, organization_id: UUID | None = None
) -> User:
    """An account with `PASSWORD`."""
    return await add_user(
        runtime, name=name, password=PASSWORD, role=role, organization_id=organization_id, actor="test"
    )


async def api_key(runtime: Runtime, *scopes: str, organization_id: UUID | None = None) -> dict[str, str]:
    """Headers with a new API key."""
    order = KeyOrder("test", scopes or ("*",), organization_id)
    _, text = await make_key(runtime, whole_installation("test"), order)
    return {"authorization": f"Bearer {text}"}


async def sign_in(client: Any, name: str = "alice", password: str = PASSWORD, **fields: str) -> Any:
    """Fill in the sign-in form; the client keeps the cookie."""
    form = {"name": name, "password": password, **fields}
    return await client.post("/sign-in", data=form, headers=FORM, follow_redirects=False)


async def form_token(client: Any) -> str:
    """The form token of the session, read from a page as a browser does."""
    page = await client.get("/")
    found = re.search(r'name="form_token" value="([^"]+)"', page.text)
    assert found is not None
    return found[1]


@attrs.frozen
class Place:
    """An organization with one site."""

    organization_id: UUID
    site_id: UUID


async def first_place(runtime: Runtime) -> Place:
    """The organization that every server starts with."""
    async with runtime.database.read() as session:
        site = (await session.scalars(select(Site).order_by(Site.id).limit(1))).one()
    return Place(site.organization_id, site.id)


async def new_place(runtime: Runtime, name: str) -> Place:
    """Another organization."""
    async with runtime.database.write() as session:
        organization = Organization(id=uuid7(), name=name, created_at=runtime.clock.now())
        session.add(organization)
        await session.flush()
        site = Site(
            id=uuid7(), organization_id=organization.id, name=f"{name} office", created_at=runtime.clock.now()
        )
        session.add(site)
    return Place(organization.id, site.id)


async def add_dead_job(runtime: Runtime, place: Place) -> UUID:
    """A job of an organization that failed at each attempt."""
    now = runtime.clock.now()
    async with runtime.database.write() as session:
        job_id = await enqueue(
            session, kind="note", payload={}, now=now, organization_id=place.organization_id, key="a"
        )
        dead = {"state": JobState.DEAD, "ended_at": now, "attempts": 10, "last_error": "no luck"}
        await session.execute(update(QueuedJob).where(QueuedJob.id == job_id).values(**dead))
    return job_id


def evidence(machine_id: str) -> MachineEvidence:
    """Machine evidence with this machine id."""
    return MachineEvidence(
        machine_id=machine_id, smbios_uuid=None, board_serial=None, disk_serial=None, weak=(), container=False
    )


async def add_machine(runtime: Runtime, place: Place, hostname: str = "web-01", **changes: Any) -> UUID:
    """A registered machine that checked in just now, straight into the database."""
    now, entropy = runtime.clock.now(), SystemEntropy()
    binding = entropy.token(16).hex()
    shown = attrs.asdict(evidence(binding))
    shown["weak"] = list(shown["weak"])
    values: dict[str, Any] = {
        "id": uuid7(),
        "organization_id": place.organization_id,
        "site_id": place.site_id,
        "hostname": hostname,
        "os": {
            "family": "linux",
            "id": "debian",
            "name": "Debian GNU/Linux 12 (bookworm)",
            "version": "12",
            "kernel": "6.1.0-28-amd64",
            "arch": "x86_64",
        },
        "agent_version": "0.1.0",
        "protocol": [1],
        "status": AgentStatus.ACTIVE,
        "status_reason": "registered",
        "status_at": now,
        "registered_at": now,
        "key_type": "ed25519",
        "public_key": entropy.token(32),
        "executor_key": entropy.token(32),
        "machine_binding": binding,
        "evidence": shown,
        "evidence_digest": evidence(binding).digest,
        "last_match_at": now,
        "first_refresh_hash": entropy.token(32),
        "first_evidence_digest": evidence(binding).digest,
        "refresh_current": entropy.token(32),
        "refresh_expires_at": int(now.timestamp()) + 86_400,
        "last_seen_at": now,
        "last_address": "192.0.2.10",
        "next_check_in_at": now + timedelta(seconds=60),
        **changes,
    }
    values.setdefault("key_id", key_id(values["public_key"]))
    values.setdefault("executor_key_id", key_id(values["executor_key"]))
    async with runtime.database.write() as session:
        session.add(Agent(**values))
    return UUID(str(values["id"]))


async def add_scanner(runtime: Runtime, place: Place, agent_id: UUID, **changes: Any) -> None:
    """A scanner of a machine that worked just now."""
    now = runtime.clock.now()
    values: dict[str, Any] = {
        "organization_id": place.organization_id,
        "agent_id": agent_id,
        "name": "apt",
        "manager": "apt",
        "status": "ok",
        "error": None,
        "warnings": [],
        "facts": {},
        "duration_ms": 812,
        "taken_at": now,
        "succeeded_at": now,
        "inventory_hash": None,
        **changes,
    }
    async with runtime.database.write() as session:
        session.add(Scanner(**values))


def package_row(runtime: Runtime, place: Place, agent_id: UUID, name: str, **changes: Any) -> Package:
    """A package of a machine, not yet written."""
    state = changes.pop("state", PackageState.AVAILABLE)
    values: dict[str, Any] = {
        "organization_id": place.organization_id,
        "agent_id": agent_id,
        "manager": "apt",
        "scanner": "apt",
        "name": name,
        "arch": "amd64",
        "installed": "1.0-1",
        "available": None if state == PackageState.CURRENT else "1.1-1",
        "observed": state if state in SCANNED_STATES else PackageState.AVAILABLE,
        "state": state,
        "state_at": runtime.clock.now(),
        "severity": Severity.UNKNOWN,
        "security": False,
        "automatic": False,
        "cves": [],
        "first_seen_at": runtime.clock.now(),
        "present": True,
        **changes,
    }
    return Package(**values)


async def add_packages(
    runtime: Runtime, place: Place, agent_id: UUID, packages: Sequence[tuple[str, dict[str, Any]]]
) -> None:
    """Packages of a machine: name and what differs from an available update."""
    async with runtime.database.write() as session:
        session.add_all(package_row(runtime, place, agent_id, name, **changes) for name, changes in packages)


async def add_event(runtime: Runtime, place: Place, agent_id: UUID, message: str = "It was started anew.") -> None:
    """An event of a machine."""
    async with runtime.database.write() as session:
        await record(
            session,
            at=runtime.clock.now(),
            kind="agent.rebooted",
            actor=f"agent:{agent_id}",
            message=message,
            organization_id=place.organization_id,
            agent_id=agent_id,
        )


async def add_error(runtime: Runtime, place: Place, agent_id: UUID, **changes: Any) -> UUID:
    """An error that a machine reported."""
    now = runtime.clock.now()
    values: dict[str, Any] = {
        "id": uuid7(),
        "organization_id": place.organization_id,
        "source": ErrorSource.AGENT,
        "agent_id": agent_id,
        "digest": SystemEntropy().token(32).hex(),
        "subsystem": "scanner.apt",
        "type": "ScanError",
        "message": "the package lists are damaged",
        "context": {},
        "count": 1,
        "first_seen_at": now,
        "last_seen_at": now,
        **changes,
    }
    async with runtime.database.write() as session:
        session.add(ClientError(**values))
    return UUID(str(values["id"]))
