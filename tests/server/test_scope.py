"""
The wall between organizations: no route without a scope, and behind it nothing of anybody else.

Two proofs: the routes are listed and each says how it is protected; and a caller of one organization walks all of
them with the ids of the other.
"""

import re
from typing import Any
from uuid import UUID

import attrs
import pytest
from litestar import Controller, Litestar, get
from litestar.handlers import HTTPRouteHandler
from uuid_utils.compat import uuid7

from redflag_core.lifecycle import AgentAction
from redflag_core.system import SystemEntropy
from redflag_core.testing import FrozenClock
from redflag_server.accounts.authentication import OperatorAuthentication, provide_scope
from redflag_server.accounts.permissions import PERMISSIONS, UserRole
from redflag_server.accounts.tables import Credential, User
from redflag_server.agents.tables import RegistrationToken
from redflag_server.app import create_app
from redflag_server.commands.tables import Command, CommandStatement
from redflag_server.db.base import Base
from redflag_server.db.scope import Scope
from redflag_server.db.tables import metadata
from redflag_server.events.tables import Event
from redflag_server.injection import Injected
from redflag_server.operators import OperatorController
from redflag_server.packages.tables import Package
from redflag_server.plans.tables import Plan
from redflag_server.settings import Settings
from tests.helpers.operators import (
    API,
    FORM,
    Place,
    add_dead_job,
    add_error,
    add_event,
    add_machine,
    add_packages,
    add_scanner,
    api_key,
    first_place,
    form_token,
    make_user,
    new_place,
    sign_in,
)

INSTALLATION_WIDE = {
    "leases": "what only one process may do",
    "nonces": "used once by anybody",
    "rate_arrivals": "how far agents and credentials have come",
    "operator_keys": "one may approve for several organizations",
    "organizations": "the list of the organizations themselves",
    "schedules": "recurring work of the server",
    "server_state": "the server's own row",
    "setup_links": "there is one, before there is any user",
    "trust_documents": "public",
    "unplaced_events": "there for a second; the event says whose it is",
}
"""Tables whose rows belong to no organization, and why."""

MARK = "only-for-a"


# --- every route says how it is protected ---


def handlers(app: Litestar) -> list[tuple[Any, HTTPRouteHandler]]:
    """Every handler of ours with its route."""
    return [
        (route, handler)
        for route in app.routes
        for handler in getattr(route, "route_handlers", ())
        if handler.fn.__module__.startswith(("redflag_server", "tests", __name__))
    ]


def unprotected(app: Litestar) -> list[str]:
    """What is wrong with the protection of the routes: nothing, or one line for each mistake."""
    return [
        f"{path} {handler.handler_name}: {why}" for path, handler in handlers(app) if (why := mistake(handler))
    ]


def mistake(handler: HTTPRouteHandler) -> str | None:
    opt = handler.opt
    ways = [way for way in ("public", "agent", "permission") if opt.get(way)]
    if len(ways) != 1:
        return f"says {ways or 'nothing'} instead of one of public, agent, permission"
    if ways != ["permission"]:
        return None
    if opt["permission"] not in PERMISSIONS:
        return f"needs the unknown permission {opt['permission']}"
    if OperatorAuthentication not in handler.resolve_middleware():
        return "does not run the authentication"
    field = handler.parsed_fn_signature.parameters.get("visible")
    if field is None or field.annotation is not Scope:
        return "does not take a Scope"
    if handler.resolve_dependencies()["visible"].dependency is not provide_scope:
        return "takes a Scope that is not the caller's"
    return None


def app_of(*controllers: Any) -> Litestar:
    return Litestar(route_handlers=list(controllers))


def test_every_route_says_how_it_is_protected(tmp_path):
    """Public, for agents, or for operators with a permission and a scope: there is no fourth kind."""
    app = create_app(Settings(data=tmp_path), clock=FrozenClock(), entropy=SystemEntropy(), run_jobs=False)

    assert [] == unprotected(app)
    assert {"public", "agent", "permission"} <= {way for _, handler in handlers(app) for way in handler.opt}


def test_operator_routes_are_all_there(tmp_path):
    """The list that the walk below goes through is not empty by accident."""
    app = create_app(Settings(data=tmp_path), clock=FrozenClock(), entropy=SystemEntropy(), run_jobs=False)

    assert 15 < sum("permission" in handler.opt for _, handler in handlers(app))


class Good(OperatorController):
    @get("/good", opt={"permission": "agents:read"})
    async def good(self, visible: Injected[Scope]) -> None: ...


class WithoutScope(OperatorController):
    @get("/bad", opt={"permission": "agents:read"})
    async def bad(self) -> None: ...


class WithoutAnything(OperatorController):
    @get("/bad")
    async def bad(self, visible: Injected[Scope]) -> None: ...


class WithoutAuthentication(Controller):
    @get("/bad", opt={"permission": "agents:read"})
    async def bad(self) -> None: ...


class WithUnknownPermission(OperatorController):
    @get("/bad", opt={"permission": "agents:look"})
    async def bad(self, visible: Injected[Scope]) -> None: ...


class PublicToo(OperatorController):
    @get("/bad", opt={"permission": "agents:read", "public": True})
    async def bad(self, visible: Injected[Scope]) -> None: ...


@pytest.mark.parametrize(
    "controller", [WithoutScope, WithoutAnything, WithoutAuthentication, WithUnknownPermission, PublicToo]
)
def test_a_route_without_protection_is_found(controller):
    """The list above fails on each kind of mistake, and on nothing else."""
    assert [] == unprotected(app_of(Good))
    assert 1 == len(unprotected(app_of(Good, controller)))


def test_every_table_has_an_owner_or_is_named_here():
    """A table without an organization is installation-wide, on purpose and with a reason."""
    unowned = {name for name, table in metadata.tables.items() if "organization_id" not in table.c}

    assert set(INSTALLATION_WIDE) == unowned


def test_only_accounts_may_belong_to_nobody():
    """Everywhere else the organization is not optional, in the database too."""
    optional = {
        mapper.class_
        for mapper in Base.registry.mappers
        if "organization_id" in mapper.local_table.c and mapper.local_table.c.organization_id.nullable
    }

    assert {User, Credential} == optional


# --- behind the wall ---


@attrs.frozen
class Belongings:
    """What organization A has: the values of path and body parameters that B must not reach."""

    place: Place
    ids: dict[str, UUID]


@pytest.fixture
async def belongings(server) -> Belongings:
    """Organization A with one of everything, next to an organization B with nothing."""
    runtime, place = server.runtime, await first_place(server.runtime)
    agent = await add_machine(runtime, place, hostname=MARK, status_reason=MARK)
    await add_scanner(runtime, place, agent, warnings=[MARK])
    await add_packages(runtime, place, agent, [(MARK, {})])
    await add_event(runtime, place, agent, MARK)
    error = await add_error(runtime, place, agent)
    user = await make_user(runtime, MARK, UserRole.VIEWER, place.organization_id)
    headers = await api_key(runtime, "*", organization_id=place.organization_id)
    order = {"label": MARK, "seats": 1, "expires_in_seconds": 60}
    assert 201 == (await server.client.post(f"{API}/registration-tokens", headers=headers, json=order)).status_code
    token, key = await server.row(RegistrationToken), await server.row(Credential)
    job = await add_dead_job(runtime, place)
    ids = {
        "agent_id": agent,
        "token_id": token.id,
        "key_id": key.id,
        "user_id": user.id,
        "job_id": job,
        "error_id": error,
    }
    return Belongings(place, {**ids, **await _patching(server, agent, headers)})


async def _patching(server: Any, agent: UUID, headers: dict[str, str]) -> dict[str, UUID]:
    """A package that is approved and planned: the plan, its command, and what was signed about that."""
    package = await server.row(Package)
    await server.client.post(f"{API}/packages/{package.id}/approve", headers=headers, json={"reason": MARK})
    order = {"reason": MARK, "package_ids": [str(package.id)]}
    made = await server.client.post(f"{API}/plans", headers=headers, json=order)
    assert 201 == made.status_code, made.text
    plan, command = await server.row(Plan), await server.row(Command)
    statement = CommandStatement(
        id=uuid7(),
        organization_id=plan.organization_id,
        agent_id=agent,
        command_id=command.id,
        kind="accepted",
        digest="0" * 64,
        envelope=MARK.encode(),
        received_at=server.clock.now(),
    )
    async with server.runtime.database.write() as session:
        session.add(statement)
    ids = {"package_id": package.id, "plan_id": plan.id, "command_id": command.id}
    return {**ids, "statement_id": statement.id}


ACTIONS = {
    "/machines/{agent_id:uuid}/{action:str}": list(AgentAction),
    "/plans/{plan_id:uuid}/{step:str}": ["confirm", "install", "discard"],
    "/commands/{command_id:uuid}/{action:str}": ["cancel", "release", "retry", "archive"],
}
"""What the last part of such a page's path can be."""


QUERIES = {f"{API}/approvals/request": "?plan_id={plan_id}"}
"""What a route must be asked with."""


def walk(app: Litestar, ids: dict[str, UUID]) -> list[tuple[str, str]]:
    """Method and path of every operator route, with the ids of A in it. A new parameter must be given one."""
    routes = []
    for route, handler in handlers(app):
        if "permission" not in handler.opt:
            continue
        for action in ACTIONS.get(route.path, [""]):
            values = {**ids, "action": action, "step": action}
            path = re.sub(r"\{(\w+):\w+\}", lambda match, values=values: str(values[match[1]]), route.path)
            path += QUERIES.get(path, "").format(**ids)
            routes += [(method, path) for method in sorted(handler.http_methods)]
    return routes


def body_for(path: str, belongings: Belongings) -> dict[str, Any]:
    """A body that would reach into A."""
    place, ids = belongings.place, {name: str(value) for name, value in belongings.ids.items()}
    what = {"machine_binding": "a" * 32, "type": "packages.upgrade", "params": "b" * 64}
    leaf = {"agent_id": ids["agent_id"], **what}
    limit = {"limit": "agent", "reason": "x", "organization_id": str(place.organization_id)}
    bodies: dict[str, dict[str, Any]] = {
        "/api-keys": {"name": "x", "scopes": ["agents:read"], "organization_id": str(place.organization_id)},
        "/registration-tokens": {
            "label": "x",
            "seats": 1,
            "expires_in_seconds": 60,
            "site_id": str(place.site_id),
        },
        "/packages/decide": {"reason": "x", "decision": "approve", "package_ids": [ids["package_id"]]},
        "/plans": {"reason": "x", "package_ids": [ids["package_id"]]},
        "/approvals": {"v": 1, "envelope": "eA==", "leaves": [leaf]},
        "/commands": {"reason": "x", "agent_id": ids["agent_id"], "type": "scan.run"},
        "/rate-limits": {**limit, "policy": "60/minute"},
        "/rate-limits/delete": limit,
        "/defer": {"reason": "x", "until": "2026-02-01T00:00:00Z"},
    }
    return next((body for end, body in bodies.items() if path.endswith(end)), {"reason": "not mine"})


async def test_a_caller_of_one_organization_finds_nothing_of_another(server, belongings):
    """B's owner key walks every operator route with A's ids: it reads nothing, changes nothing, learns nothing."""
    other = await new_place(server.runtime, "B")
    headers = await api_key(server.runtime, "*", organization_id=other.organization_id)
    await server.client.get(f"{API}/agents", headers=headers)
    before = await server.dump()
    routes = [route for route in walk(server.app, belongings.ids) if route[1].startswith(API)]

    for method, path in routes:
        body = {} if method == "GET" else {"json": body_for(path, belongings)}
        answer = await server.client.request(method, path, headers=headers, **body)
        is_list = method == "GET" and not any(str(value) in path for value in belongings.ids.values())
        assert (200 if is_list else 404) == answer.status_code, (method, path, answer.text)
        assert not _leaks(answer.text, belongings, path), (method, path, answer.text)

    assert before == await server.dump()
    assert 15 < len(routes)


async def test_filters_do_not_reach_through_the_wall(server, belongings):
    """Asking for A's rows by id or name gives B an empty list."""
    other = await new_place(server.runtime, "B")
    headers = await api_key(server.runtime, "*", organization_id=other.organization_id)
    agent, site = belongings.ids["agent_id"], belongings.place.site_id
    queries = [
        f"agents?hostname={MARK}",
        f"agents?site={site}",
        f"packages?agent_id={agent}",
        f"packages?name={MARK}",
        f"plans?agent_id={agent}",
        f"commands?agent_id={agent}",
        f"commands?plan_id={belongings.ids['plan_id']}",
        f"events?agent_id={agent}",
        f"events?package_id={belongings.ids['package_id']}",
        f"client-errors?agent_id={agent}",
    ]

    items = [(await server.client.get(f"{API}/{query}", headers=headers)).json()["items"] for query in queries]

    assert [[]] * len(queries) == items


async def test_a_person_of_one_organization_finds_nothing_of_another_on_the_pages(server, belongings):
    """The same walk, signed in, over the pages."""
    other = await new_place(server.runtime, "B")
    await make_user(server.runtime, "bert", UserRole.OWNER, other.organization_id)
    await sign_in(server.client, "bert")
    token = await form_token(server.client)
    before = await server.dump()
    routes = [route for route in walk(server.app, belongings.ids) if not route[1].startswith(API)]

    package = str(belongings.ids["package_id"])
    fields = {"form_token": token, "reason": "not mine", "decision": "approve", "chosen": package}
    fleet = {**fields, "chosen": f"apt:{MARK}"}
    everywhere = {("GET", "/packages/machines"): {"params": {"manager": "apt", "name": "x"}},
                  ("POST", "/packages"): {"data": fleet, "headers": FORM}}  # fmt: skip

    for method, path in routes:
        form = {} if method == "GET" else {"data": fields, "headers": FORM}
        answer = await server.client.request(method, path, **everywhere.get((method, path), form))
        is_list = not any(str(value) in path for value in belongings.ids.values())
        expected = (200 if method == "GET" else 409) if is_list else 404
        assert expected == answer.status_code, (method, path, answer.text)
        assert not _leaks(answer.text, belongings, path), (method, path)

    assert before == await server.dump()
    assert 25 < len(routes)


async def test_each_sees_its_own(server, belongings):
    """The wall has two sides: A's caller sees A's rows, one of the installation sees both."""
    other = await new_place(server.runtime, "B")
    await add_machine(server.runtime, other, hostname="of-b")
    seen = {}
    for name, organization in (
        ("a", belongings.place.organization_id),
        ("b", other.organization_id),
        ("all", None),
    ):
        headers = await api_key(server.runtime, "*", organization_id=organization)
        listed = (await server.client.get(f"{API}/agents", headers=headers)).json()["items"]
        seen[name] = {agent["hostname"] for agent in listed}

    assert {"a": {MARK}, "b": {"of-b"}, "all": {MARK, "of-b"}} == seen


async def test_the_servers_own_events_are_for_those_who_see_everything(server, belongings):
    """Who signed in and what was refused is not shown to one organization."""
    await server.client.get(f"{API}/agents")
    headers = await api_key(server.runtime, "*", organization_id=belongings.place.organization_id)

    listed = (await server.client.get(f"{API}/events?limit=1000", headers=headers)).json()["items"]

    assert {str(belongings.place.organization_id)} == {event["organization_id"] for event in listed}
    assert len(listed) < len(await server.rows(Event))


def _leaks(text: str, belongings: Belongings, path: str) -> bool:
    """Whether an answer shows anything of A that was not in the question."""
    asked = {str(value) for value in belongings.ids.values() if str(value) in path}
    known = {str(value) for value in (*belongings.ids.values(), *attrs.astuple(belongings.place))} - asked
    return MARK in text or any(value in text for value in known)
