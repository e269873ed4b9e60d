"""The OpenAPI document says for each operation what it is called, what it does and what it looks like."""

import json
from typing import Any

import pytest

from redflag_core import codec
from redflag_core.approval_files import ApprovalAnswer
from redflag_core.messages import CheckIn, Errors, Progress, Register, Report, StatementPost, TokenRequest
from redflag_server.accounts.schema import NewApiKey
from redflag_server.agents.schema import NewToken
from redflag_server.commands.schema import NewOrder
from redflag_server.fields import Reason
from redflag_server.plans.schema import Decide, NewPlans, Until
from redflag_server.rate_limits.schema import NewRateLimit, OldRateLimit

BODIES = {
    kind.__name__: kind
    for kind in (
        ApprovalAnswer, CheckIn, Decide, Errors, NewApiKey, NewOrder, NewPlans, NewRateLimit, NewToken,
        OldRateLimit, Progress, Reason,
        Register, Report, StatementPost, TokenRequest, Until,
    )
}  # fmt: skip
METHODS = {"get", "post", "put", "patch", "delete"}


@pytest.fixture
async def document(server) -> dict[str, Any]:
    answer = await server.client.get("/schema/openapi.json")
    assert answer.status_code == 200
    return answer.json()


def operations(document):
    return [
        (method, path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    ]


async def test_every_operation_has_an_id_a_summary_and_examples(document):
    """Nobody has to guess what a request or an answer looks like."""
    seen = set()
    for method, path, operation in operations(document):
        assert operation["operationId"][0].isupper(), path
        assert operation["operationId"] not in seen, path
        seen.add(operation["operationId"])
        assert operation["summary"], path
        assert operation["tags"], path
        assert all(parameter.get("description") or parameter["in"] == "path"
                   for parameter in operation.get("parameters", ())), path  # fmt: skip
        if method != "get":
            (content,) = operation["requestBody"]["content"].values()
            assert content["schema"]["examples"], path
        for status, answer in operation["responses"].items():
            (content,) = answer["content"].values()
            assert content["examples"], (path, status)
    assert len(seen) > 20


async def test_every_problem_is_documented_as_one(document):
    """Answers of 400 and more are problem details with a code, everywhere."""
    for _, path, operation in operations(document):
        problems = {status: answer for status, answer in operation["responses"].items() if int(status) >= 400}
        for status, answer in problems.items():
            assert list(answer["content"]) == ["application/problem+json"], (path, status)
            (example,) = answer["content"]["application/problem+json"]["examples"].values()
            assert int(status) == example["value"]["status"], path
            assert example["value"]["code"], path


async def test_the_examples_of_requests_are_accepted_by_the_parser(document):
    """An example is a body that the server reads."""
    checked = set()
    for method, _, operation in operations(document):
        if method == "get":
            continue
        (content,) = operation["requestBody"]["content"].values()
        name = content["schema"]["allOf"][0]["$ref"].rpartition("/")[2]
        for example in content["schema"]["examples"]:
            codec.parse(BODIES[name], json.dumps(example).encode(), max_bytes=100_000)
        checked.add(name)
    assert set(BODIES) == checked


async def test_every_way_in_is_declared(document):
    """Each operation is public or names ways in that the document describes."""
    declared = set(document["components"]["securitySchemes"])
    for _, path, operation in operations(document):
        named = {name for entry in operation.get("security", ()) for name in entry}
        assert named <= declared, path
        assert bool(named) is not path.startswith(("/api/v1/health", "/api/v1/trust")), path


async def test_pages_are_not_part_of_the_api(document):
    """The document lists the API and nothing else."""
    assert all(path.startswith("/api/v1/") for path in document["paths"])


async def test_the_document_needs_nobody_elses_scripts(server):
    """Under /schema there is the document, and no page that would load code from elsewhere."""
    root = await server.client.get("/schema")
    others = [await server.client.get(f"/schema/{name}") for name in ("swagger", "redoc", "elements", "rapidoc")]

    assert "application/vnd.oai.openapi+json" == root.headers["content-type"]
    assert [404] * 4 == [answer.status_code for answer in others]
    assert not any("<script" in answer.text for answer in others)
