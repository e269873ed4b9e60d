"""The server as a Lambda function: real signed requests as events of AWS, on both databases. Not run on AWS."""

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from redflag_core.errors import ConfigurationError
from redflag_core.system import SystemEntropy
from redflag_core.testing import FrozenClock
from redflag_server.aws import Function, ParameterStore, SecretsManager, from_environment
from redflag_server.settings import Settings
from tests.helpers.databases import CURRENT
from tests.helpers.fleet import Machine, Signed, full_report, package
from tests.helpers.server import NO_LIMIT, Server, running

NAME = "redflag.example.com"


def api_gateway(signed: Signed) -> dict[str, Any]:
    """Event of an HTTP API, payload format 2.0."""
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": signed.path,
        "rawQueryString": signed.query,
        "headers": signed.headers,
        "requestContext": {
            "domainName": NAME,
            "http": {
                "method": signed.method,
                "path": signed.path,
                "sourceIp": "192.0.2.1",
                "protocol": "HTTP/1.1",
            },
            "stage": "$default",
        },
        "body": base64.b64encode(signed.body).decode(),
        "isBase64Encoded": True,
    }


def function_url(signed: Signed) -> dict[str, Any]:
    """Event of a function URL: the same format, the body as text."""
    return {**api_gateway(signed), "body": signed.body.decode(), "isBase64Encoded": False}


def load_balancer(signed: Signed) -> dict[str, Any]:
    """Event of an Application Load Balancer with multi-value headers."""
    headers = {name: [value] for name, value in signed.headers.items()}
    query = dict(pair.split("=") for pair in signed.query.split("&") if pair)
    return {
        "requestContext": {"elb": {"targetGroupArn": "arn:aws:elasticloadbalancing:example"}},
        "httpMethod": signed.method,
        "path": signed.path,
        "multiValueQueryStringParameters": {name: [value] for name, value in query.items()},
        "multiValueHeaders": {**headers, "x-forwarded-for": ["203.0.113.9, 192.0.2.1"]},
        "body": base64.b64encode(signed.body).decode(),
        "isBase64Encoded": True,
    }


EVENTS = {"api-gateway": api_gateway, "function-url": function_url, "load-balancer": load_balancer}
as_every_event = pytest.mark.parametrize("kind", EVENTS)


@attrs.define
class Answer:
    """What a function returned, as the other helpers read answers."""

    event: dict[str, Any]

    @property
    def status_code(self) -> int:
        """HTTP status."""
        status: int = self.event["statusCode"]
        return status

    @property
    def text(self) -> str:
        """The body."""
        body: str = self.event.get("body", "")
        return base64.b64decode(body).decode() if self.event["isBase64Encoded"] else body

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.text)


@attrs.define
class Lambda:
    """A function under test."""

    function: Function
    clock: FrozenClock

    def send(self, signed: Signed, kind: str = "api-gateway") -> Answer:
        """One request as one event."""
        return Answer(self.function(EVENTS[kind](signed), None))

    def agent(self, kind: str) -> Machine:
        """A machine that registered and has a token, each by an event."""
        machine = Machine(now=self.clock.now, authority=NAME)
        token = self.function.run(Server(self.function.app, None, self.clock).token())  # type: ignore[arg-type]
        signed = machine.sign("/agents/register", machine.register_body(token), with_token=False)
        registered = self.send(signed, kind)
        assert 201 == registered.status_code, registered.text
        machine.server, machine.agent_id = token.server, registered.json()["agent_id"]
        answer = self.send(machine.sign("/agent/token", machine.token_body(), with_token=False), kind)
        assert 200 == answer.status_code, answer.text
        machine.take_token(answer.json())
        return machine


def settings_of(data: Path, place: Path) -> Settings:
    """Settings of a function whose database belongs to *place*."""
    return Settings(
        data=data,
        public_urls=(f"https://{NAME}",),
        behind_tls_proxy=True,
        postgresql=CURRENT.place.address(place),
        agent_limit=NO_LIMIT,
        register_limit=NO_LIMIT,
    )


@attrs.frozen
class Founded:
    """A server that ran elsewhere: its data directory, and where a function keeps its files."""

    data: Path
    container: Path

    def secret(self, name: str) -> bytes:
        """A key file of it."""
        return (self.data / "keys" / name).read_bytes()

    @property
    def settings(self) -> Settings:
        """Settings of the function: with SQLite, its files are beside the database."""
        return settings_of(self.container if CURRENT.place.template else self.data, self.data)


@pytest.fixture
def founded(database: Any, tmp_path: Path) -> Founded:
    """A server that was set up by a process of its own."""

    async def found() -> None:
        async with running(tmp_path / "data"):
            pass

    asyncio.run(found())
    return Founded(tmp_path / "data", tmp_path / "container")


@pytest.fixture
def served(founded: Founded) -> Iterator[Lambda]:
    """A function that is warm."""
    clock = FrozenClock()
    function = Function(founded.settings, founded.secret, clock=clock, entropy=SystemEntropy())
    yield Lambda(function, clock)
    function.close()


@as_every_event
@pytest.mark.postgresql
def test_an_agent_works_through_every_kind_of_event(served: Lambda, kind: str):
    """It registers, gets a token, checks in and reports; the same event again is a replay."""
    machine = served.agent(kind)
    signed = machine.sign("/agent/check-in", machine.check_in_body())
    answers = [served.send(signed, kind), served.send(signed, kind)]
    reported = served.send(machine.sign("/agent/reports/apt", full_report([package("curl")])), kind)

    assert [200, 401, 200] == [answer.status_code for answer in (*answers, reported)]
    assert "replayed" == answers[1].json()["code"]


@as_every_event
def test_path_and_query_are_verified_as_they_were_sent(served: Lambda, kind: str):
    """Quoted characters stay quoted in what is verified, though the adapter decodes the path."""
    machine = served.agent(kind)
    quoted = machine.sign("/agent/reports/%61pt", full_report([package("curl")]))
    query = machine.sign("/agent/check-in", machine.check_in_body(), query="a=%20b&c=d+e")
    tampered = attrs.evolve(query, query="a=%20b&c=d%20e")

    assert 200 == served.send(quoted, kind).status_code
    assert "bad_signature" == served.send(tampered, kind).json()["code"]
    assert "bad_signature" not in served.send(query, kind).text


@pytest.mark.postgresql
def test_wait_is_answered_at_once(served: Lambda):
    """Nobody pays for a function that waits: the frozen clock would wait for ever."""
    machine = served.agent("api-gateway")

    answer = served.send(machine.sign("/agent/check-in", machine.check_in_body(wait=50)))

    assert 200 == answer.status_code
    assert 0 == len(served.function.runtime.waiting)


def test_the_address_is_the_one_that_aws_saw(served: Lambda):
    """Behind a load balancer it is the last of the list: what stands before it, anybody can write."""
    machine = served.agent("load-balancer")
    served.send(machine.sign("/agent/check-in", machine.check_in_body()), "load-balancer")
    dump = served.function.run(Server(served.function.app, None, served.clock).dump())  # type: ignore[arg-type]

    assert "192.0.2.1" in dump["agents"][0]
    assert "203.0.113.9" not in dump["agents"][0]


@pytest.mark.postgresql
def test_a_scheduled_event_does_what_is_due(served: Lambda):
    """An event of EventBridge stands in for the jobs of a process."""
    event = {"version": "0", "source": "aws.events", "detail-type": "Scheduled Event", "detail": {}}

    assert {"in_time": True} == served.function(event, None)


def test_a_missing_secret_is_named(founded: Founded, monkeypatch: pytest.MonkeyPatch):
    """The environment lacks one: the sentence says which variable, and the function does not start."""
    monkeypatch.setenv("REDFLAG_SECRET_COMMAND_KEY", base64.b64encode(founded.secret("command.key")).decode())

    with pytest.raises(ConfigurationError, match="REDFLAG_SECRET_CHECKPOINT_KEY"):
        Function(founded.settings, from_environment)


@pytest.mark.sqlite
def test_an_old_schema_is_not_migrated(founded: Founded):
    """The function does not start, says what to do, and leaves the schema as it was."""
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(founded.data / "redflag.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = '0001'")
        database.commit()

    with pytest.raises(ConfigurationError, match="older release"):
        Function(founded.settings, founded.secret)


class FakeAws:
    """Both services of boto3: refuses calls that are not of the shape of the vendor's reference."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        self.contents = contents

    def get_secret_value(self, **request: Any) -> dict[str, Any]:
        """secretsmanager:GetSecretValue."""
        assert {"SecretId"} == set(request)
        assert 0 < len(request["SecretId"]) <= 2048
        content = self.contents[request["SecretId"]]
        return {
            "ARN": "arn:aws:secretsmanager:example",
            "Name": request["SecretId"],
            "SecretString": content.decode(),
        }

    def get_parameter(self, **request: Any) -> dict[str, Any]:
        """ssm:GetParameter."""
        assert {"Name", "WithDecryption"} == set(request)
        assert request["WithDecryption"] is True
        return {"Parameter": {"Type": "SecureString", "Value": self.contents[request["Name"]].decode()}}


@pytest.mark.sqlite
@pytest.mark.parametrize("kind, prefix", [(SecretsManager, "redflag/"), (ParameterStore, "/redflag/")])
def test_the_keys_can_come_from_aws(founded: Founded, kind: Any, prefix: str):
    """The contents of the key files, by their names, from either service."""
    names = ("command.key", "checkpoint.key", "agent-tokens.secret", "forms.secret")
    store = kind(client=FakeAws({prefix + name: founded.secret(name) for name in names}))

    function = Function(founded.settings, store, clock=FrozenClock(), entropy=SystemEntropy())
    function.close()

    assert [founded.secret(name) for name in names] == [store(name) for name in names]
