"""
The bounds of every plain field on the wire, written down a second time: what is just inside, what is just outside.

Fields of other kinds, and what holds between the fields of one document, are in the tests of each module.
"""

import importlib

import attrs
import pytest

from redflag_core.encoding import MAX_INTEGER, b64encode
from redflag_core.errors import MalformedError
from redflag_core.keys import SigningKey

DOCUMENTS = {
    "commands.UpgradeParams": "plan_hash=hash manager=manager",
    "commands.CancelParams": "cmd_id=uuid",
    "commands.ApprovalProof": "index=count",
    "commands.Command": (
        "v=version cmd_id=uuid agent_id=uuid machine_binding=binding key_fp=binding server=uuid "
        "epoch=count gen=count seq=count iat=moment exp=moment start_by=moment type=command"
    ),
    "statements.CommandAccepted": (
        "v=version server=uuid agent_id=uuid cmd_id=uuid digest=hash body=hash epoch=count gen=count "
        "seq=count iat=moment"
    ),
    "statements.CommandRefused": (
        "v=version server=uuid agent_id=uuid cmd_id=uuid? digest=hash? body=hash code=line:64 "
        "detail=line:1000 retry_after=count:1000000000? iat=moment"
    ),
    "statements.PackageResult": "name=line:256 arch=line:32 installed=line:256? reason=line:1000?",
    "statements.CommandResult": (
        "v=version server=uuid agent_id=uuid cmd_id=uuid digest=hash body=hash code=line:64? "
        "detail=line:1000? started_at=moment? finished_at=moment output_bytes=count "
        "exit_status=range:-1024:1024?"
    ),
    "approvals.ApprovalLeaf": "agent_id=uuid machine_binding=binding params=hash type=command",
    "approvals.Approval": (
        "v=version id=uuid root_fp=hash organization=line:64 merkle_root=hash nbf=moment exp=moment "
        "leaves=range:1:10000 max_starts=range:1:10"
    ),
    "messages.TrustedKey": "not_before=moment not_after=moment key=key",
    "messages.TrustBundle": "v=version server=uuid version=count iat=moment epoch=count not_after=moment",
    "messages.RootDocument": "v=version server=uuid n=count iat=moment",
    "messages.EvidenceStatement": "v=version",
    "messages.ExecutorProof": "v=version evidence=hash server=uuid root_fp=hash token_id=uuid",
    "messages.ExecutorState": (
        "v=version server=uuid agent_id=uuid epoch=count gen=count seq=count "
        "refresh_generation=count:1000000000 iat=moment"
    ),
    "messages.OperatingSystem": (
        "family=line:32 id=line:64 name=line:200 version=line:100? kernel=line:200? arch=line:32?"
    ),
    "messages.Versions": "agent=line:64",
    "messages.Register": "v=version refresh_hash=hash hostname=line:253",
    "messages.Registered": "v=version",
    "messages.TokenRequest": "v=version next_hash=hash boot_id=line:64?",
    "messages.Token": "v=version",
    "messages.ScannerState": "hash=hash? taken_at=moment content=hash? scanner=manager",
    "messages.CheckIn": "v=version boot_id=line:64? hostname=line:253? wait=range:0:50",
    "messages.CheckInAnswer": "v=version",
    "messages.Report": (
        "v=version report_id=uuid taken_at=moment duration_ms=count error=line:2000? base=hash? "
        "hash=hash? manager=manager"
    ),
    "messages.ReportAccepted": "v=version",
    "messages.ClientError": (
        "subsystem=line:64 type=line:128 message=line:2000 first_seen=moment last_seen=moment "
        "count=range:1:1000000000"
    ),
    "messages.Errors": "v=version batch_id=uuid dropped=range:0:1000000000",
    "messages.Accepted": "v=version",
    "messages.StatementPost": "v=version",
    "messages.Progress": "v=version cmd_id=uuid number=count doing=line:1000 percent=count:100?",
    "audit.AuditEntry": (
        "v=version organization=uuid previous=hash digest=hash hash=hash position=range:1:9007199254740991"
    ),
    "audit.AuditHead": "organization=uuid size=count root=hash",
    "audit.AuditState": "organization=uuid size=count last=hash",
    "checkpoints.Checkpoint": (
        "v=version server=uuid iat=moment organizations=count root=hash n=range:1:9007199254740991"
    ),
    "checkpoints.HeadEvidence": "v=version index=count",
    "machine.MachineEvidence": (
        "machine_id=binding smbios_uuid=binding? board_serial=binding? disk_serial=binding?"
    ),
    "enrolment.RegistrationToken": "v=version id=uuid server=uuid root_fp=hash",
    "approval_files.ApprovalItem": "agent_id=uuid hostname=line:253 machine_binding=binding type=command",
    "approval_files.ApprovalRequest": (
        "v=version server=uuid root_fp=hash organization=line:64 organization_name=line:256"
    ),
    "approval_files.ApprovalAnswer": "v=version",
    "patching.plan.PackageTarget": "installed=line:256 available=line:256",
    "patching.plan.Change": "name=line:256 arch=line:32 before=line:256? after=line:256?",
    "patching.plan.Transaction": "download_size=count? manager=manager",
    "commands.HeartbeatParams": "seconds=range:10:3600",
    "messages.PublicKey": "key=key",
    "commands.PlanParams": "manager=manager",
    "commands.ScanParams": "scanner=manager?",
}
"""Fields by document: ``name=kind``, the kind with its bounds, and ``?`` where there may be nothing."""

UUID = "0190b5a4-7a3c-7def-8abc-0123456789ab"
END = 253_402_300_799  # of the year 9999
KEY = SigningKey.from_seed(b"k" * 32).verify_key


def cases(kind):
    """Values of a kind that are just inside, and values just outside."""
    if kind.endswith("?"):
        inside, outside = cases(kind[:-1])
        return [None, *inside], outside
    name, *bounds = kind.split(":")
    most = int(bounds[-1]) if bounds else MAX_INTEGER
    least = int(bounds[0]) if name == "range" else 0
    length = most if name == "line" else 0
    return {
        "version": ([1], [0, 2]),
        "uuid": ([UUID], ["", UUID.upper(), UUID[:-1], f"{UUID}0", f"{UUID}\n", UUID.replace("-", "")]),
        "hash": (["0a" * 32], ["", "0A" * 32, "0a" * 31, "0a" * 33, "0g" * 32, "0a" * 32 + "\n"]),
        "binding": (["0a" * 16], ["", "0A" * 16, "0a" * 15, "0a" * 17, "0g" * 16]),
        "moment": ([0, END], [-1, END + 1]),
        "count": ([0, most], [-1, most + 1]),
        "range": ([least, most], [least - 1, most + 1]),
        "line": (["x", "\u00e9" * length], ["", "x" * (length + 1), "x\n", "\x00", "\x7f", "\u2028"]),
        "key": ([b64encode(KEY.public_key)], ["", b64encode(b"k" * 31), b64encode(b"\xff" * 33)]),
        "command": (["a.b", f"scan.{'x' * 40}"], ["", "a.", ".b", "A.b", "a.B", f"scan.{'x' * 41}", "a.b.c"]),
        "manager": (["a", "apt_2", "a" * 32], ["", "Apt", "2a", "a" * 33, "a-b", "a b", "a\n"]),
    }[name]


FIELDS = [
    pytest.param(document, *field.split("="), id=f"{document}.{field}")
    for document, fields in DOCUMENTS.items()
    for field in fields.split()
]


@pytest.mark.parametrize("document, name, kind", FIELDS)
def test_a_field_is_within_its_bounds(document, name, kind):
    """What is just inside is taken, what is just outside is not."""
    module, _, cls = document.rpartition(".")
    field = getattr(attrs.fields(getattr(importlib.import_module(f"redflag_core.{module}"), cls)), name)
    inside, outside = cases(kind)

    for value in inside:
        field.validator(None, field, value)
    for value in outside:
        with pytest.raises((ValueError, MalformedError)):
            field.validator(None, field, value)
