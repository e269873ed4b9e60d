"""The verifying modules of the core, and the tests that must notice a mistake in each."""

from typing import Final


def _tests(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/core/test_{name}.py" for name in (*names, "protocol_numbers", "wire_fields", "vectors"))


MODULES: Final = {
    "envelope": _tests("envelope"),
    "commands": _tests("commands"),
    "signed_requests": _tests("signed_requests"),
    "trust": _tests("trust"),
    "approvals": _tests("approvals"),
    "statements": _tests("statements"),
    "freshness": _tests("freshness"),
    "merkle": _tests("merkle"),
    "audit": _tests("audit"),
    "checkpoints": _tests("checkpoints"),
    "webhooks": _tests("webhooks"),
    "keys": _tests("keys"),
    "codec": _tests("codec"),
    "encoding": _tests("encoding"),
    "http_auth": _tests("http_auth"),
    "command_queue": _tests("command_queue"),
    "messages": _tests("messages", "trust", "enrolment", "commands"),
    "approval_files": _tests("approval_files"),
    "enrolment": _tests("enrolment"),
    "machine": _tests("machine"),
    "certificates": _tests("certificates"),
    "lifecycle": _tests("lifecycle"),
    "recovery": _tests("recovery"),
    "rate_limit": _tests("rate_limit"),
    "keyfiles": _tests("keyfiles"),
    "patching/plan": _tests("patching_plan"),
    "patching/results": _tests("patching_results"),
    "patching/states": _tests("patching_states"),
}
