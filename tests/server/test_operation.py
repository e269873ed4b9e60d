"""What operators look at: metrics, logs, request ids, readiness."""

import io
import json
import logging
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import attrs
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from redflag_server.logs import LogFormat, configure, formatter
from redflag_server.metrics.fleet import CACHED_SECONDS
from redflag_server.observing import HEADER, access
from tests.helpers.server import Server, running

TOKEN = "t" * 40
SHOWN = {"authorization": f"Bearer {TOKEN}"}
READY = "/api/v1/health/ready"


async def samples(server: Server) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """All samples that Prometheus would read, by name and labels."""
    answer = await server.client.get("/metrics", headers=SHOWN)
    assert 200 == answer.status_code, answer.text
    families = text_string_to_metric_families(answer.text)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


async def test_metrics_are_off_without_a_token(server: Server):
    """There is no such path: nobody learns that there could be."""
    answer = await server.client.get("/metrics", headers=SHOWN)

    assert (404, "not_found") == (answer.status_code, answer.json()["code"])


async def test_metrics_need_the_token(tmp_path: Path):
    """None, another and one of another form are refused."""
    async with running(tmp_path / "data", metrics_token=TOKEN) as server:
        sent = [{}, {"authorization": "Bearer other"}, {"authorization": TOKEN}]
        answers = [await server.client.get("/metrics", headers=headers) for headers in sent]

    assert [401, 401, 401] == [answer.status_code for answer in answers]


@pytest.mark.postgresql
async def test_metrics_count_requests_refusals_and_the_fleet(tmp_path: Path):
    """Requests by template and status, refusals by code, machines by status, batches and connections."""
    async with running(tmp_path / "data", metrics_token=TOKEN) as server:
        machine = await server.agent()
        signed = machine.sign("/agent/check-in", machine.check_in_body())
        for _ in range(2):
            await signed.send(server.client)
        found = await samples(server)

    route = (("method", "POST"), ("route", "/api/v1/agent/check-in"))
    assert 1 == found["redflag_requests_total", (*route, ("status", "200"))]
    assert 1 == found["redflag_requests_total", (*route, ("status", "401"))]
    assert 2 == found["redflag_request_seconds_count", route]
    assert 1 == found["redflag_refusals_total", (("code", "replayed"),)]
    assert 1 == found["redflag_agents", (("status", "active"),)]
    assert 1 <= found["redflag_check_in_batches_total", ()]
    assert (1, 0, 0) == tuple(
        found[name, ()] for name in ("redflag_database_up", "redflag_agents_overdue", "redflag_waiting_polls")
    )
    assert 0 < found["redflag_database_connections_limit", ()]


async def test_a_machine_that_is_late_is_counted(tmp_path: Path):
    """What should have checked in by now is overdue, once the counts are looked up again."""
    async with running(tmp_path / "data", metrics_token=TOKEN) as server:
        await (await server.agent()).check_in(server.client)
        before = (await samples(server))["redflag_agents_overdue", ()]
        server.clock.advance(timedelta(days=1).total_seconds())
        after = (await samples(server))["redflag_agents_overdue", ()]

    assert (0, 1) == (before, after)
    assert CACHED_SECONDS < timedelta(days=1).total_seconds()


async def test_no_label_grows_with_what_is_asked(tmp_path: Path):
    """Ids in paths, paths that do not exist and methods that are made up are all counted under one name each."""
    async with running(tmp_path / "data", metrics_token=TOKEN) as server:
        for number in range(20):
            await server.client.get(f"/api/v1/agents/{uuid4()}")
            await server.client.get(f"/nothing/{number}")
            await server.client.request(f"MADE{number}", "/api/v1/agents")
        found = await samples(server)

    routes = {dict(labels)["route"] for name, labels in found if name == "redflag_requests_total"}
    methods = {dict(labels)["method"] for name, labels in found if name == "redflag_requests_total"}
    assert {"/api/v1/agents/{agent_id}", "unmatched"} <= routes
    assert 5 > len(routes)
    assert {"GET", "other"} == methods


async def test_an_answer_has_the_id_of_its_request(server: Server):
    """A new one each time, in the header and in the problem."""
    answers = [await server.client.get("/api/v1/agents") for _ in range(2)]

    ids = [answer.headers["x-request-id"] for answer in answers]
    assert ids == [answer.json()["request_id"] for answer in answers]
    assert 2 == len(set(ids))


@pytest.mark.parametrize(
    "trusted, given, taken",
    [
        ((), "from-outside-1", False),
        (("127.0.0.1",), "from-the-proxy-1", True),
        (("127.0.0.1",), "short", False),
        (("127.0.0.1",), "with spaces in it", False),
        (("10.0.0.0/8",), "of-another-proxy", False),
    ],
)
async def test_only_a_trusted_proxy_chooses_the_id(trusted: Any, given: str, taken: bool, tmp_path: Path):
    """Whoever else sends one gets a new one: it would stand in the log."""
    async with running(tmp_path / "data", trusted_proxies=trusted) as server:
        answer = await server.client.get("/api/v1/health/live", headers={HEADER.decode(): given})

    assert taken is (given == answer.headers["x-request-id"])


@attrs.define
class Log:
    """Lines of a logger, as `redflag server run --log-format json` writes them."""

    stream: io.StringIO = attrs.field(factory=io.StringIO)

    def lines(self) -> list[dict[str, Any]]:
        """What was written."""
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


@pytest.fixture
def log():
    """The access log in JSON."""
    made = Log()
    handler = logging.StreamHandler(made.stream)
    handler.setFormatter(formatter(LogFormat.JSON))
    access.addHandler(handler)
    level, access.propagate = access.level, False
    access.setLevel(logging.INFO)
    yield made
    access.removeHandler(handler)
    access.setLevel(level)
    access.propagate = True


async def test_the_access_log_says_route_status_time_and_agent(log: Log, tmp_path: Path):
    """One line for each request, with its id, and without the path: a link of the setup has its secret there."""
    async with running(tmp_path / "data", access_log=True) as server:
        machine = await server.agent()
        log.stream.truncate(0)
        log.stream.seek(0)
        answer = await machine.check_in(server.client)
        await server.client.get("/setup/very-secret-link")
        checked_in, setup = log.lines()

    assert ("/api/v1/agent/check-in", 200, machine.agent_id, answer.headers["x-request-id"]) == tuple(
        checked_in[name] for name in ("route", "status", "agent_id", "request_id")
    )
    assert 0 < checked_in["ms"]
    assert "/setup/{secret}" == setup["route"]
    assert "very-secret-link" not in json.dumps(setup)


async def test_without_being_told_to_there_is_no_access_log(log: Log, server: Server):
    """A line for each check-in of a large fleet is much: it is asked for."""
    await server.client.get("/api/v1/health/live")

    assert [] == log.lines()


@pytest.mark.parametrize(
    "text, secret",
    [
        ("key rfk_abcdefghijklmnop was used", "abcdefghijklmnop"),
        ("Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.x.y", "eyJhbGciOiJIUzI1NiJ9"),
        ("cannot reach postgresql://redflag:hunter2@db/redflag", "hunter2"),
        ("GET /setup/c2VjcmV0 failed", "c2VjcmV0"),
        ("rfreg1.c2VjcmV0 is used up", "c2VjcmV0"),
    ],
)
@pytest.mark.parametrize("style", LogFormat)
def test_a_secret_does_not_get_into_the_log(style: LogFormat, text: str, secret: str):
    """Whoever lets one slip into a message, it is hidden; the rest stays readable."""
    root, stream = logging.getLogger(), io.StringIO()
    before = root.handlers[:], root.level
    try:
        configure(style, stream=stream)
        logging.getLogger("redflag.test").warning("%s", text, extra={"facts": {"password": secret, "route": "/x"}})
    finally:
        root.handlers[:], root.level = before

    assert secret not in stream.getvalue()
    assert "hidden" in stream.getvalue()
    assert "/x" in stream.getvalue()


def test_an_error_in_the_log_has_its_traceback_and_no_values_of_variables():
    """Where it happened, but not what was in memory there."""
    stream, in_memory = io.StringIO(), "-".join(("only", "in", str(len("memory"))))
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter(LogFormat.JSON))
    logger = logging.Logger("redflag.test")  # noqa: LOG001  (one of its own)
    logger.addHandler(handler)
    try:
        in_memory[99]
    except IndexError:
        logger.exception("it failed")

    line = json.loads(stream.getvalue())
    assert ("it failed", "error") == (line["event"], line["level"])
    assert "IndexError" in line["exception"]
    assert "only-in-6" not in stream.getvalue()


@pytest.mark.sqlite
async def test_a_running_server_is_live_and_ready(server: Server):
    """Nothing fails."""
    answers = [await server.client.get(f"/api/v1/health/{kind}") for kind in ("live", "ready")]

    assert [(200, {"status": "ok", "failed": []})] * 2 == [(a.status_code, a.json()) for a in answers]


async def ready(server: Server) -> tuple[int, list[str]]:
    """What a probe is told when the cached answer is old."""
    server.clock.advance(2)
    answer: httpx.Response = await server.client.get(READY)
    return answer.status_code, answer.json()["failed"]


@pytest.mark.sqlite
async def test_an_unreadable_key_is_named(server: Server):
    """A key file that went away: the next start would fail, so this server is not ready."""
    (server.runtime.settings.data / "keys" / "command.key").rename(server.runtime.settings.data / "away")

    assert (503, ["keys"]) == await ready(server)


@pytest.mark.sqlite
async def test_missing_migrations_are_named(server: Server):
    """A database with the schema of another release is not served."""
    import sqlite3

    with closing(sqlite3.connect(server.runtime.settings.database)) as database:
        database.execute("UPDATE alembic_version SET version_num = 'other'")
        database.commit()

    assert (503, ["migrations"]) == await ready(server)


async def test_a_database_that_is_gone_is_named_and_nothing_of_it(server: Server):
    """The answer says which check failed, and neither address nor error text."""
    await server.runtime.database.close()
    engine = server.runtime.database.engine

    def refuse(*_arguments: Any) -> None:
        raise OSError("no route to 10.1.2.3")

    from sqlalchemy import event

    event.listen(engine.sync_engine, "do_connect", refuse)
    server.clock.advance(2)
    answer = await server.client.get(READY)
    live = await server.client.get("/api/v1/health/live")

    assert (503, {"status": "unavailable", "failed": ["database"]}) == (answer.status_code, answer.json())
    assert 200 == live.status_code


@pytest.mark.postgresql
async def test_a_clock_that_is_off_the_databases_is_named(server: Server):
    """On PostgreSQL, whose time counts, a clock that is off is not ready; with SQLite the clock is ours."""
    expected = (503, ["clock"]) if server.runtime.database.is_postgresql else (200, [])

    assert expected == await ready(server)


@pytest.mark.sqlite
async def test_probes_within_a_second_look_once(server: Server):
    """A thousand probes cost one look: what changed since is told a second later."""
    assert 200 == (await server.client.get(READY)).status_code
    (server.runtime.settings.data / "keys" / "command.key").rename(server.runtime.settings.data / "away")

    within = (await server.client.get(READY)).status_code

    assert 200 == within
    assert (503, ["keys"]) == await ready(server)
