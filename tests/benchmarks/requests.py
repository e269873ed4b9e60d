"""Signing and verifying in the core against raw PyNaCl (medians of 11 interleaved runs)."""

import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from uuid import UUID

from nacl.signing import SigningKey as RawKey

from redflag_core.commands import (
    CommandType,
    Order,
    Orderable,
    Recipient,
    ScanParams,
    dump_params,
    open_command,
    sign_command,
)
from redflag_core.envelope import parse_envelope, sign_envelope, verify_envelope
from redflag_core.keys import SigningKey
from redflag_core.signed_requests import Request, new_nonce, sign_request, verify_request
from redflag_core.system import SystemClock, SystemEntropy

RUNS, CALLS = 11, 300
NOW = datetime(2026, 1, 1, tzinfo=UTC)
AUTHORITY = "rf.example.com"
BODY = b'{"v":1,"state":"' + b"A" * 600 + b'"}'
TYPE = "application/vnd.redflag.command.v1+json"


def measure() -> Iterator[str]:
    """Microseconds for each, and ratios."""
    raw, key = RawKey.generate(), SigningKey.generate()
    signed_raw = raw.sign(BODY)
    headers = ((b"host", AUTHORITY.encode()), (b"authorization", b"Bearer " + b"a" * 400))
    request = Request("POST", "/api/v1/agent/check-in", "", headers, BODY)
    nonce = new_nonce(SystemEntropy())
    added = sign_request(request, key, authority=AUTHORITY, now=NOW, nonce=nonce)
    signed = Request("POST", "/api/v1/agent/check-in", "", (*headers, *added), BODY)
    keys = {key.key_id: key.verify_key}
    clock, entropy = SystemClock(), SystemEntropy()
    ids = [str(UUID(int=number)) for number in range(3)]
    who = Recipient(server=ids[0], agent_id=ids[1], machine_binding="a" * 32, key_fp="b" * 32, epoch=1)
    params = dump_params(ScanParams("apt"))
    what = Orderable(cmd_id=ids[2], type=CommandType.SCAN_RUN, params=params, start_by=2_000_000_000)
    command = sign_command(what, who, Order(1, 1, 1), key, now=clock.now(), entropy=entropy)
    body = parse_envelope(command).payload

    def order() -> bytes:
        return sign_command(what, who, Order(1, 1, 1), key, now=NOW, entropy=entropy)

    cases: dict[str, Callable[[], object]] = {
        "raw sign + verify": lambda: raw.verify_key.verify(raw.sign(BODY)),
        "raw verify": lambda: raw.verify_key.verify(signed_raw),
        "raw sign + verify, a command": lambda: raw.verify_key.verify(raw.sign(body)),
        "command: sign + open": lambda: open_command(order(), keys),
        "envelope: sign + verify": lambda: verify_envelope(sign_envelope(TYPE, BODY, key), TYPE, keys),
        "request: verify": lambda: verify_request(signed, key.verify_key, authorities=[AUTHORITY], now=NOW),
        "request: sign": lambda: sign_request(request, key, authority=AUTHORITY, now=NOW, nonce=nonce),
    }
    medians = _interleaved(cases)
    for name, median in medians.items():
        yield f"{name:<30} {1e6 * median:7.1f} us"
    ratio = medians["command: sign + open"] / medians["raw sign + verify, a command"]
    yield f"ratio command / raw: {ratio:.2f} (2.0)"
    yield f"ratio envelope / raw: {medians['envelope: sign + verify'] / medians['raw sign + verify']:.2f} (2.0)"
    yield f"ratio request verify / raw: {medians['request: verify'] / medians['raw verify']:.2f} (1.6)"


def _interleaved(cases: dict[str, Callable[[], object]]) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(RUNS):
        for name, call in cases.items():
            began = time.process_time()
            for _ in range(CALLS):
                call()
            times[name].append((time.process_time() - began) / CALLS)
    return {name: statistics.median(values) for name, values in times.items()}
