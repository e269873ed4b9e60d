"""The commands of "Run on PostgreSQL", as real processes: two roles, one schema, two replicas."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from redflag_core.enrolment import parse_registration_token
from tests.beds.postgres import Databases, name_of, needs_postgres, postgres_server
from tests.helpers.fleet import Machine, full_report, package
from tests.helpers.processes import REDFLAG, child, free_port

__all__ = ["postgres_server"]

pytestmark = [needs_postgres, pytest.mark.full]


def told(environment: dict[str, str], *arguments: str) -> list[str]:
    """The lines that a command prints, which must succeed."""
    with child(REDFLAG, "server", *arguments, environment=environment) as command:
        assert 0 == command.wait(), command.transcript()
        return command.lines


async def test_two_replicas_serve_one_fleet(postgres_server: Databases, tmp_path: Path):
    """Migrated by the owner, served by a role that owns nothing; what one replica took in, the other one knows."""
    owner, serving = postgres_server.new_role("e2e_owner"), postgres_server.new_role("e2e_serving")
    name = name_of(postgres_server.new_database(owner=owner))
    environment = {"REDFLAG_DATABASE": postgres_server.address(name, serving)}
    data, ports = [tmp_path / "first", tmp_path / "second"], [free_port(), free_port()]
    first, second = [
        ("run", "--data", str(place), "--port", str(port), "--public-url", f"http://127.0.0.1:{ports[0]}")
        for place, port in zip(data, ports, strict=True)
    ]
    with child(REDFLAG, "server", *first, environment=environment) as early:
        assert (1, True) == (early.wait(), "redflag server migrate" in early.transcript()), early.transcript()
    told({"REDFLAG_DATABASE": postgres_server.address(name, owner)}, "migrate", "--grant-to", serving)

    with child(REDFLAG, "server", *first, environment=environment) as one:
        one.until("RedFlag serves")
        said = told(environment, "registration-token", "add", "load", "--data", str(data[0]))
        data[1].mkdir(mode=0o700)
        shutil.copytree(data[0] / "keys", data[1] / "keys")
        with child(REDFLAG, "server", *second, environment=environment) as other:
            other.until("RedFlag serves")
            machine = Machine(now=lambda: datetime.now(UTC), authority=f"127.0.0.1:{ports[0]}")
            async with (
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports[0]}", timeout=30) as to_first,
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports[1]}", timeout=30) as to_second,
            ):
                await machine.enrol(to_first, parse_registration_token(said[-1].strip()))
                answer = await machine.report(to_second, full_report([package("bash")]))
                signed = machine.sign("/agent/check-in", machine.check_in_body())
                codes = [(await signed.send(client)).status_code for client in (to_first, to_second)]
            assert (200, [200, 401]) == (answer.status_code, codes)
            assert 0 == other.stop()
        assert 0 == one.stop()
    postgres_server.drop_database(postgres_server.address(name))
