"""
The executor's judgement of a command: nothing is believed but the signature, and nothing happens twice.

The order of the checks is the protocol's. Size, encoding and signature come first, and only bytes that a live
command key signed are parsed. Then: is it for this machine, is it timely, is it new. What passes that leaves its
nonce and order in the journal, whatever comes next: known before, not carried out here, held back by a limit, or
accepted. One transaction holds all of it, the signed answer included.
"""

from collections.abc import Collection
from datetime import datetime
from pathlib import Path
from typing import Final

import attrs

from redflag_agent.executor.authority import Authority, Documents, Timekeeper, verified_authority
from redflag_agent.executor.commander import OnError
from redflag_agent.executor.errors import CancelledCommandError, JournalError, TooLateError, UndeliveredError
from redflag_agent.executor.identity import Executor
from redflag_agent.executor.journal import DAY, Arrival, Entry, Journal, Kind, Page, State
from redflag_agent.executor.voice import Ending, Refusable, Voice, Why, completed, failed, who
from redflag_agent.limits_file import read_limits
from redflag_agent.state import StateFile
from redflag_core.approvals import ApprovalUse, check_approval
from redflag_core.commands import (
    COMMAND_LEEWAY,
    CancelParams,
    Command,
    CommandType,
    HeartbeatParams,
    Params,
    PlanParams,
    Recipient,
    UpgradeParams,
    VerifiedCommand,
    check_order,
    check_recipient,
    check_start_by,
    check_time,
    open_command,
    parse_params,
)
from redflag_core.encoding import b64decode
from redflag_core.errors import (
    CommandRefusedError,
    ConflictingCommandError,
    LateCommandError,
    LimitError,
    NeedsApprovalError,
    RedFlagError,
    UnknownCommandError,
    VerificationError,
)
from redflag_core.freshness import unix
from redflag_core.messages import Role
from redflag_core.patching import check_limits
from redflag_core.statements import Outcome
from redflag_core.trust import live_keys

MAX_OWED: Final = 500
"""Statements that may wait for the server. Beyond it no command is accepted: none of them is ever dropped."""

MAX_ARRIVALS: Final = 2_000
"""Commands in a day: ids are kept for ever, and a server that was taken over must not fill the disk with them."""

OWED_RETRY: Final = 60
ARRIVALS_RETRY: Final = 3_600
JOURNAL_RETRY: Final = 300
"""Seconds after which it is worth trying again: when something was delivered, the day went on, room was made."""

_FOR_EVER: Final = (UnknownCommandError, NeedsApprovalError, LateCommandError)
"""Refusals that time does not change: the command's id goes into the journal, and it is never started."""


@attrs.frozen
class Answer:
    """
    What is said to a command.

    Attributes:
        envelope: The signed statement.
        what: What it is about.
        kept: Whether the journal keeps it; a refusal that says "not now" is not worth a write.
        params: What was accepted; None when nothing was.
    """

    envelope: bytes
    what: Refusable
    kept: bool
    params: Params | None = None


@attrs.frozen
class Judge:
    """
    Judges commands.

    Args:
        executor: Who this is.
        state: Which agent of which server.
        held: Where the trust documents come from.
        journal: What was ordered before.
        time: The executor's time.
        voice: Signs the answers.
        limits: The owner's file.
        managers: Package managers that can be used here.
        on_error: Told of what somebody should look at.
    """

    executor: Executor
    state: StateFile
    held: Documents
    journal: Journal
    time: Timekeeper
    voice: Voice
    limits: Path
    managers: Collection[str]
    on_error: OnError

    def judge(self, wire: bytes) -> Answer:
        """
        Judge a command.

        Args:
            wire: Untrusted bytes, of any size.

        Raises:
            ExecutorError: This agent is not registered. Any other exception is a bug.
        """
        known = who(self.state.state)
        try:
            authority = verified_authority(self.held(), known.pins, self.journal, self.time)
            command = open_command(wire, authority.keys)
        except (VerificationError, JournalError) as error:
            return self._not_now(Refusable.unread(wire), error)
        try:
            check_recipient(command.body, self._recipient(authority))
            now = self.time.now()
            check_time(command.body, now=now)
            with self.journal.page() as page:
                return self._enter(page, command, authority, now)
        except (VerificationError, JournalError) as error:
            return self._not_now(Refusable.read(command), error)

    def _recipient(self, authority: Authority) -> Recipient:
        """Who this is, with the binding read from the hardware now."""
        state = self.state.state
        known = who(state)
        shown = self.executor.evidence(replace_machine_id=state.replace_machine_id)
        return Recipient(
            server=known.pins.server,
            agent_id=known.registration.agent_id,
            machine_binding=shown.binding,
            key_fp=self.executor.verify_key.key_id,
            epoch=authority.bundle.epoch,
        )

    def _enter(self, page: Page, command: VerifiedCommand, authority: Authority, now: datetime) -> Answer:
        body, at = command.body, int(unix(now))
        check_order(body, page.last(), nonce_seen=page.knows_nonce(body.nonce))
        page.pass_order(body.nonce, body.order, keep_until=body.exp + COMMAND_LEEWAY, now=at)
        known = page.find(body.cmd_id)
        if known is not None:
            return self._again(page, command, known, at)
        try:
            params, approval = self._check(page, body, authority, now)
        except CommandRefusedError as refusal:
            return self._turn_away(page, command, refusal, at)
        page.raise_high_water(body.iat, most=authority.bundle.not_after)
        return self._accept(page, command, params, approval, at)

    def _check(
        self, page: Page, body: Command, authority: Authority, now: datetime
    ) -> tuple[Params, ApprovalUse | None]:
        """Whether this machine carries it out now. What no time will change is said before what it may."""
        _check_room(page, int(unix(now)))
        params = parse_params(body.type, b64decode(body.params))
        if isinstance(params, PlanParams | UpgradeParams) and params.manager not in self.managers:
            raise UnknownCommandError(f"this agent does not patch with {params.manager}")
        approval = self._approval(page, body, authority, now)
        check_start_by(body.start_by, now=now)
        if isinstance(params, UpgradeParams):
            limits = read_limits(self.limits)
            check_limits(limits, manager=params.manager, started=page.starts(), now=now)
        return params, approval

    def _approval(self, page: Page, body: Command, authority: Authority, now: datetime) -> ApprovalUse | None:
        """
        The operator's approval that a command carries, checked and not used up.

        Whether a change needs one is decided from the transaction, just before it is started.
        """
        known = who(self.state.state)
        organization = known.registration.organization
        operators = live_keys(authority.bundle, Role.OPERATOR, now=now, organization=organization)
        use = check_approval(body, operators, root_fp=known.pins.root_fp, organization=organization, now=now)
        if use is not None and page.uses(use) >= use.max_starts:
            raise NeedsApprovalError("the operator's approval was used already: it must be approved anew")
        return use

    # --- answers

    def _not_now(self, what: Refusable, error: RedFlagError) -> Answer:
        why = Why.of(error)
        if isinstance(error, JournalError):
            why = attrs.evolve(why, retry_after=JOURNAL_RETRY)
            self.on_error("executor", error)
        return Answer(self.voice.refused(what, why, at=self._stamp(), never=False), what, kept=False)

    def _turn_away(self, page: Page, command: VerifiedCommand, refusal: CommandRefusedError, at: int) -> Answer:
        what, why, never = Refusable.read(command), Why.of(refusal), isinstance(refusal, _FOR_EVER)
        envelope = self.voice.refused(what, why, at=at, never=never)
        if never:
            page.bury(_arrival(command, at), code=why.code, detail=why.detail)
            page.say(command.body.cmd_id, Kind.REFUSED, envelope, at=at)
        return Answer(envelope, what, kept=never)

    def _again(self, page: Page, command: VerifiedCommand, known: Entry, at: int) -> Answer:
        """A command that is in the journal is answered, and nothing else happens."""
        what, cmd_id = Refusable.read(command), command.body.cmd_id
        if known.digest is None:
            page.recognise(_arrival(command, at))
            why = Why.of(CancelledCommandError("this was cancelled before it arrived"))
            envelope = self.voice.refused(what, why, at=at, never=True)
            page.say(cmd_id, Kind.REFUSED, envelope, at=at)
            return Answer(envelope, what, kept=True)
        if known.digest != command.body.digest:
            error = ConflictingCommandError("this id was used for another order before: give each order its own")
            self.on_error("executor", error)
            return Answer(self.voice.refused(what, Why.of(error), at=at, never=True), what, kept=False)
        repeated = page.repeat(cmd_id)
        if repeated is None:
            repeated = self.voice.forgotten(known)
            page.say(cmd_id, Kind.REFUSED if known.state is State.NEVER else Kind.RESULT, repeated, at=at)
        return Answer(repeated, what, kept=True)

    def _accept(
        self, page: Page, command: VerifiedCommand, params: Params, approval: ApprovalUse | None, at: int
    ) -> Answer:
        body, what = command.body, Refusable.read(command)
        arrival, text = _arrival(command, at), b64decode(body.params)
        entry = page.accept(arrival, params=text, start_by=body.start_by, approval=approval)
        if isinstance(params, CancelParams):
            envelope = self._end_at_once(page, entry, self._cancel(page, params, at), at)
        elif isinstance(params, HeartbeatParams):
            envelope = self._end_at_once(page, entry, completed(), at)
        else:
            envelope = self.voice.accepted(command, at=at)
            page.say(body.cmd_id, Kind.ACCEPTED, envelope, at=at)
        return Answer(envelope, what, kept=True, params=params)

    def _end_at_once(self, page: Page, entry: Entry, ending: Ending, at: int) -> bytes:
        envelope, result = self.voice.result(entry, ending, at=at)
        page.end(entry.cmd_id, envelope, outcome=result.outcome, code=result.code, at=at)
        return envelope

    def _cancel(self, page: Page, params: CancelParams, at: int) -> Ending:
        """Make sure that a command is not started any more; what was started is never ended."""
        target = page.find(params.cmd_id)
        why = Why.of(CancelledCommandError("this was cancelled before it was started"))
        if target is None:
            unknown = Arrival(cmd_id=params.cmd_id, digest=None, body=None, type=None, at=at)
            page.bury(unknown, code=why.code, detail=why.detail)
        elif target.state is State.ACCEPTED and target.type != CommandType.COMMAND_CANCEL:
            self._end_at_once(page, target, Ending(outcome=Outcome.CANCELLED, why=why), at)
        elif target.state is not State.NEVER and target.outcome is not Outcome.CANCELLED:
            ended = "has ended" if target.state is State.DONE else "was started already"
            return failed(TooLateError(f"it is too late to cancel this: it {ended}"))
        return completed()

    def _stamp(self) -> int:
        try:
            return self.time.stamp()
        except JournalError:
            return int(unix(self.executor.clock.now()))


def _check_room(page: Page, at: int) -> None:
    if page.owed() >= MAX_OWED:
        raise UndeliveredError(
            f"{MAX_OWED} results wait for the server: nothing new until it has them", retry_after=OWED_RETRY
        )
    if page.arrived_since(at - DAY) >= MAX_ARRIVALS:
        raise LimitError(
            f"{MAX_ARRIVALS} commands came within a day: that is the limit", retry_after=ARRIVALS_RETRY
        )


def _arrival(command: VerifiedCommand, at: int) -> Arrival:
    body = command.body
    return Arrival(cmd_id=body.cmd_id, digest=body.digest, body=command.hash, type=body.type, at=at)
