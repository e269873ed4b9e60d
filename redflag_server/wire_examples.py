"""Examples of what agents send and get, for the OpenAPI document."""

from typing import Final

from redflag_core.encoding import b64encode
from redflag_core.messages import (
    Accepted,
    CheckIn,
    CheckInAnswer,
    ClientError,
    Errors,
    OperatingSystem,
    Phase,
    Progress,
    PublicKey,
    Register,
    Registered,
    Report,
    ReportAccepted,
    ScannerState,
    StatementPost,
    Token,
    TokenRequest,
    Versions,
)
from redflag_core.scanning import Package, PackageState, ScanStatus

_AGENT: Final = "01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e61"
_SERVER: Final = "5f2d7a52-6f5b-4d0c-9a55-3c1f0e6b7d90"
_ORGANIZATION: Final = "01936f3e-0000-7000-8000-000000000001"
_BOOT: Final = "0f6c3f1e-5a0a-4f57-9d55-8d7c1c0a7a52"
_AT: Final = 1_767_346_200
_HASH: Final = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_SECRET: Final = "Q2hhbmdlIG1lOiB0aGlzIGlzIG9ubHkgYW4gZXhhbXA"  # noqa: S105  (an example)
_ENVELOPE: Final = b64encode(b'{"payload":"...","payloadType":"...","signatures":[{"keyid":"...","sig":"..."}]}')

ENVELOPE: Final = {
    "payload": "eyJ2IjoxfQ==",
    "payloadType": "application/vnd.redflag.bundle.v1+json",
    "signatures": [{"keyid": "0f1e2d3c4b5a69788796a5b4c3d2e1f0", "sig": b64encode(bytes(64))}],
}

REGISTER: Final = Register(
    v=1,
    registration_token=f"01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e62.{_SECRET}",
    agent_key=PublicKey(b64encode(b"agent key of an example machine ")),
    executor_key=PublicKey(b64encode(b"executor key of example machine ")),
    executor_proof=_ENVELOPE,
    evidence=_ENVELOPE,
    refresh_hash=_HASH,
    hostname="web-01",
    os=OperatingSystem("linux", "debian", "Debian GNU/Linux 12 (bookworm)", "12", "6.1.0-28-amd64", "x86_64"),
    versions=Versions("0.1.0", (1,)),
)
REGISTERED: Final = Registered(1, _AGENT, _SERVER, "active", _ORGANIZATION)
TOKEN_REQUEST: Final = TokenRequest(
    v=1, current=_SECRET, next_hash=_HASH, evidence=_ENVELOPE, state=_ENVELOPE, boot_id=_BOOT
)
TOKEN: Final = Token(1, "eyJhbGciOiJIUzI1NiJ9.e30.example", 86_400, 3)
CHECK_IN: Final = CheckIn(
    v=1, state=_ENVELOPE, boot_id=_BOOT, scanners=(ScannerState("apt", ScanStatus.OK, _HASH, _AT),)
)
CHECK_IN_ANSWER: Final = CheckInAnswer(
    v=1,
    server_time=_AT,
    status="active",
    next_check_in_seconds=57,
    reports_wanted=("apt",),
    report_bases={"apt": _HASH},
    epoch=1,
    bundle_version=1,
    bundle=_HASH,
)
REPORT: Final = Report(
    v=1,
    report_id="01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e66",
    taken_at=_AT,
    duration_ms=812,
    status=ScanStatus.OK,
    manager="apt",
    hash=_HASH,
    packages=(
        Package(
            name="openssl",
            arch="amd64",
            installed="3.0.15-1~deb12u1",
            available="3.0.16-1~deb12u1",
            state=PackageState.AVAILABLE,
            security=True,
            origin="Debian-Security:12/stable-security",
            download_size=1_434_120,
        ),
    ),
)
REPORT_ACCEPTED: Final = ReportAccepted(v=1, accepted=True, hash=_HASH)
ERRORS: Final = Errors(
    v=1,
    batch_id="01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e67",
    errors=(ClientError("scanner.apt", "ScanError", "the package lists are damaged", 7, _AT, _AT),),
)
ACCEPTED: Final = Accepted()
STATEMENT_POST: Final = StatementPost(v=1, statement=_ENVELOPE)
PROGRESS: Final = Progress(
    v=1,
    cmd_id="01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e68",
    number=7,
    phase=Phase.RUNNING,
    doing="Unpacking openssl (3.0.16-1~deb12u1)",
    percent=42,
    lines=("Preparing to unpack .../openssl_3.0.16-1~deb12u1_amd64.deb ...",),
)
