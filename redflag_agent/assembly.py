"""Putting the loops of an agent together, around what was opened."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import attrs

from redflag_agent.check_in import CheckIns
from redflag_agent.contact import Contact
from redflag_agent.database import Database
from redflag_agent.delivery import Delivery
from redflag_agent.error_log import ErrorLog
from redflag_agent.executor import Commander, Executor, OnError, Rescan
from redflag_agent.failures import Failures
from redflag_agent.outbox import Outbox
from redflag_agent.polling import Polling
from redflag_agent.progress import Tell
from redflag_agent.runner import Runner
from redflag_agent.scanning import Scanning
from redflag_agent.scans import scanner_runs
from redflag_agent.sending import Sending
from redflag_agent.state import StateFile
from redflag_agent.tokens import Tokens
from redflag_agent.transport import ServerClient
from redflag_agent.trust import TrustStore
from redflag_agent.waiting import Sleep
from redflag_core.ports import Clock, Entropy
from redflag_core.scanning import Scanner, ScannerPolicy

MakeCommander: TypeAlias = Callable[[Rescan, OnError], Commander]
"""Makes the commander, which needs a way to scan and somebody to tell of errors."""


@attrs.frozen(kw_only=True)
class Opened:
    """
    What the loops stand on.

    Attributes:
        client: The server.
        state: What is remembered.
        executor: Speaks for the machine.
        trust: The documents of trust.
        database: The outbox' file.
        clock: Both kinds of time.
        entropy: Unpredictable bytes.
        sleep: How to wait.
        tell: Told what happens.
    """

    client: ServerClient
    state: StateFile
    executor: Executor
    trust: TrustStore
    database: Database
    clock: Clock
    entropy: Entropy
    sleep: Sleep
    tell: Tell

    @property
    def errors(self) -> ErrorLog:
        """Errors on their way."""
        return ErrorLog(self.database, clock=self.clock, entropy=self.entropy)


def assemble(
    opened: Opened,
    scanners: Sequence[Scanner],
    policy: Callable[[str], ScannerPolicy],
    make_commander: MakeCommander,
) -> Runner:
    """
    An agent that is ready to run.

    Args:
        opened: What it stands on.
        scanners: What can be scanned here.
        policy: When each of them runs.
        make_commander: Who carries commands out.
    """
    errors, contact, outbox = opened.errors, Contact(), Outbox(opened.database)
    scans = scanner_runs(
        scanners, policy, clock=opened.clock, on_error=lambda name, error: errors.record(f"scanner.{name}", error)
    )
    scanning = Scanning(scans, outbox, contact, opened.entropy, opened.sleep, opened.tell)
    commander = make_commander(scanning.rescan, errors.record)
    failures = Failures(errors, opened.state, opened.tell)
    tokens = Tokens(opened.client, opened.state, opened.executor, opened.clock, opened.entropy)
    check_ins = CheckIns(
        tokens=tokens,
        state=opened.state,
        executor=opened.executor,
        trust=opened.trust,
        outbox=outbox,
        errors=errors,
        contact=contact,
        clock=opened.clock,
        entropy=opened.entropy,
    )
    delivery = Delivery(
        tokens=tokens,
        state=opened.state,
        executor=opened.executor,
        commander=commander,
        outbox=outbox,
        errors=errors,
        contact=contact,
        clock=opened.clock,
        tell=opened.tell,
    )
    return Runner(
        scanning=scanning,
        check_ins=check_ins,
        delivery=delivery,
        polling=Polling(check_ins, commander, contact, failures, opened.clock, opened.entropy, opened.sleep),
        sending=Sending(delivery, commander, contact, failures, opened.entropy, opened.sleep),
        commander=commander,
        failures=failures,
    )
