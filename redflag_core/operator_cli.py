"""
``redflag keys`` and ``redflag approve``: what an operator does where no server can reach.

Needs the plain library only. What is shown is decided in `redflag_core._review`, what is signed in
`redflag_core.approvals`; here files are read and written, and a person is asked.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from getpass import getpass
from pathlib import Path
from typing import Final, Protocol
from uuid import UUID

import attrs

from redflag_core import codec
from redflag_core._review import MAX_KNOWN_BYTES, Known, KnownInstallation, parse_known, review
from redflag_core.approval_files import MAX_REQUEST_BYTES, ApprovalRequest, dump_answer, parse_request
from redflag_core.approvals import APPROVAL_SECONDS, MAX_STARTS, new_approval, sign_approval
from redflag_core.encoding import b64encode
from redflag_core.errors import KeyFileError, MalformedError, RedFlagError, UnknownKeyError, VerificationError
from redflag_core.keyfiles import is_sealed, read_key, read_private, write_key, write_private
from redflag_core.keys import SEED_SIZE, SigningKey, VerifyKey
from redflag_core.ports import Clock, Entropy
from redflag_core.system import SystemClock, SystemEntropy

FAILED: Final = 1
REFUSED: Final = 3
NOT_AGREED: Final = 4

MIN_PASSPHRASE: Final = 12
"""Characters of a passphrase: with argon2id, guessing a random one of these takes longer than a key lives."""

MAX_PASSPHRASE_BYTES: Final = 1024
MAX_HOURS: Final = APPROVAL_SECONDS // 3600
DEFAULT_HOURS: Final = 72
"""Over a weekend: a machine that is off gets its command when it returns."""

COMPARED: Final = 8
"""Digits of the fingerprint that somebody types who compared it: proof of having looked."""


class Terminal(Protocol):
    """A person at a terminal."""

    def say(self, line: str) -> None:
        """Show a line."""

    def warn(self, line: str) -> None:
        """Show what went wrong."""

    def ask(self, question: str) -> str:
        """Ask, and return the line that was typed; empty when nobody is there."""

    def secret(self, question: str) -> bytes:
        """Ask for something that is not shown while it is typed; raises `KeyFileError` when nobody is there."""


@attrs.frozen
class Console:
    """The terminal of this process."""

    def say(self, line: str) -> None:
        """See `Terminal.say`."""
        print(line)

    def warn(self, line: str) -> None:
        """See `Terminal.warn`."""
        print(line, file=sys.stderr)

    def ask(self, question: str) -> str:
        """See `Terminal.ask`."""
        try:
            return input(question).strip()
        except EOFError:
            return ""

    def secret(self, question: str) -> bytes:
        """See `Terminal.secret`."""
        if not sys.stdin.isatty():
            raise KeyFileError("there is no terminal to ask for the passphrase: use --passphrase-file")
        try:
            return getpass(question).encode()
        except EOFError:
            raise KeyFileError("no passphrase was typed") from None


@attrs.frozen
class Desk:
    """Where an operator works: a terminal, a clock and randomness."""

    terminal: Terminal = attrs.field(factory=Console)
    clock: Clock = attrs.field(factory=SystemClock)
    entropy: Entropy = attrs.field(factory=SystemEntropy)


def keys() -> int:
    """``redflag keys``, with the arguments of the process."""
    return run(keys_parser(), sys.argv[1:], Desk())


def approve() -> int:
    """``redflag approve``, with the arguments of the process."""
    return run(approve_parser(), sys.argv[1:], Desk())


def run(parser: argparse.ArgumentParser, arguments: Sequence[str], desk: Desk) -> int:
    """
    Carry a command out.

    Returns:
        The exit code: 0 done, 1 failed, 3 must not be signed, 4 nobody agreed. The parser itself exits with 2.
    """
    parsed = parser.parse_args(arguments)
    work: Callable[[Desk, argparse.Namespace], int] = parsed.work
    try:
        return work(desk, parsed)
    except VerificationError as error:
        desk.terminal.warn(f"redflag: {error.message}")
        return REFUSED
    except RedFlagError as error:
        desk.terminal.warn(f"redflag: {error.message}")
        return FAILED
    except KeyboardInterrupt:
        desk.terminal.warn("")
        return NOT_AGREED


# --- keys ---


def keys_parser() -> argparse.ArgumentParser:
    """The arguments of ``redflag keys``."""
    parser = argparse.ArgumentParser(
        "redflag keys", allow_abbrev=False, description="Keys of people, in files of their own."
    )
    groups = parser.add_subparsers(required=True, metavar="COMMAND")
    new = groups.add_parser(
        "new", allow_abbrev=False, help="make a key", description="Make a key, sealed with a passphrase."
    )
    new.add_argument("file", type=Path, metavar="FILE", help="where; an existing file is never replaced")
    new.add_argument("--operator", action="store_true", required=True, help="a key that approves; needed")
    _add_passphrase(new)
    new.set_defaults(work=_new_key)
    show = groups.add_parser(
        "show", allow_abbrev=False, help="show the public half", description="Show the public half of a key."
    )
    show.add_argument("file", type=Path, metavar="FILE", help="a file that `keys new` made")
    _add_passphrase(show)
    show.set_defaults(work=_show_key)
    return parser


def _new_key(desk: Desk, given: argparse.Namespace) -> int:
    if given.file.exists():
        raise KeyFileError(f"{given.file} exists already and is never overwritten")
    passphrase = _new_passphrase(desk, given.passphrase_file)
    key = SigningKey.from_seed(desk.entropy.token(SEED_SIZE))
    write_key(given.file, key, passphrase=passphrase, entropy=desk.entropy)
    public = _tell_key(desk, key.verify_key)
    for line in (
        "",
        f"{given.file} is the key. Keep it and its passphrase off the server, and a copy of both in a safe place.",
        "Let the server know its public half:",
        "",
        f"  redflag server operator-key add {public} --name NAME --organization ORGANIZATION",
    ):
        desk.terminal.say(line)
    return 0


def _show_key(desk: Desk, given: argparse.Namespace) -> int:
    _tell_key(desk, _open_key(desk, given.file, given.passphrase_file).verify_key)
    return 0


def _tell_key(desk: Desk, key: VerifyKey) -> str:
    public = b64encode(key.public_key)
    desk.terminal.say(f"Key id      {key.key_id}")
    desk.terminal.say(f"Public key  {public}")
    return public


def _new_passphrase(desk: Desk, file: Path | None) -> bytes:
    passphrase = desk.terminal.secret("New passphrase: ") if file is None else _read_passphrase(file)
    if len(passphrase.decode(errors="replace")) < MIN_PASSPHRASE:
        raise KeyFileError(
            f"the passphrase needs at least {MIN_PASSPHRASE} characters: four words that do not rhyme"
        )
    if file is None and desk.terminal.secret("Once more: ") != passphrase:
        raise KeyFileError("that was not twice the same")
    return passphrase


def _open_key(desk: Desk, path: Path, file: Path | None) -> SigningKey:
    if not is_sealed(path):
        return read_key(path)
    passphrase = desk.terminal.secret(f"Passphrase of {path}: ") if file is None else _read_passphrase(file)
    return read_key(path, passphrase=passphrase)


def _read_passphrase(path: Path) -> bytes:
    return read_private(path, max_bytes=MAX_PASSPHRASE_BYTES).removesuffix(b"\n").removesuffix(b"\r")


def _add_passphrase(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--passphrase-file",
        type=Path,
        metavar="FILE",
        help="read the passphrase from a file that only you can read",
    )


# --- approvals ---


def approve_parser() -> argparse.ArgumentParser:
    """The arguments of ``redflag approve``."""
    about = "Look through what a server asks to have approved, and sign it with an operator key."
    parser = argparse.ArgumentParser("redflag approve", allow_abbrev=False, description=about)
    parser.add_argument("file", type=Path, metavar="FILE", help="the request; the answer goes to FILE.approved")
    parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="your operator key; needed")
    _add_passphrase(parser)
    parser.add_argument(
        "--root-fp", metavar="HEX", help="the root fingerprint of the server, as you know it from elsewhere"
    )
    parser.add_argument(
        "--known", type=Path, metavar="FILE", help="what you signed for before; default: known.json beside the key"
    )
    hours = f"how long the approval is valid, 1 to {MAX_HOURS}; default {DEFAULT_HOURS}"
    parser.add_argument("--hours", type=_between(1, MAX_HOURS), default=DEFAULT_HOURS, metavar="N", help=hours)
    starts = f"how often each command may be started, 1 to {MAX_STARTS}; default 1"
    parser.add_argument("--max-starts", type=_between(1, MAX_STARTS), default=1, metavar="N", help=starts)
    parser.add_argument(
        "--yes", action="store_true", help="do not ask; the root fingerprint must be known already"
    )
    parser.set_defaults(work=_approve)
    return parser


def _approve(desk: Desk, given: argparse.Namespace) -> int:
    answer = given.file.with_name(f"{given.file.name}.approved")
    if answer.exists():
        raise KeyFileError(f"{answer} exists already and is never overwritten")
    is_sealed(given.key)  # a key that cannot be read is better known before anybody reads through the request
    request = parse_request(_read(given.file))
    path = given.known or given.key.parent / "known.json"
    known = _read_known(path)
    installation = known.of(request.server)
    for line in review(request, installation):
        desk.terminal.say(line)
    desk.terminal.say(f"Approval: {given.hours} hours from now on, each command {_times(given.max_starts)}.")
    if not _agrees(desk, given, request, installation):
        desk.terminal.warn("redflag: nothing was signed")
        return NOT_AGREED
    key = _open_key(desk, given.key, given.passphrase_file)
    write_private(answer, _sign(desk, given, request, key), replace=False)
    latest = (installation or KnownInstallation(request.server, request.root_fp)).with_machines(request)
    write_private(path, codec.dump(known.remember(latest)) + b"\n", replace=True)
    desk.terminal.say(f"Signed: {answer}. Take it to the server.")
    return 0


def _agrees(
    desk: Desk, given: argparse.Namespace, request: ApprovalRequest, installation: KnownInstallation | None
) -> bool:
    """Whether the operator believes that this is the own server, and wants what was shown."""
    expected = given.root_fp.lower() if given.root_fp else None if installation is None else installation.root_fp
    if installation is not None and installation.root_fp != request.root_fp:
        raise UnknownKeyError(
            "the root fingerprint is not the one you signed for before: this may be another server"
        )
    if expected is not None and expected != request.root_fp:
        raise UnknownKeyError("the root fingerprint in the file is not the one you named: do not sign this")
    if expected is None and (given.yes or not _compared(desk, request)):
        raise UnknownKeyError("this server is new to you: name its root fingerprint with --root-fp")
    return given.yes or desk.terminal.ask("Type yes to sign all of this: ") == "yes"


def _compared(desk: Desk, request: ApprovalRequest) -> bool:
    desk.terminal.say(
        "You never signed for this server. Compare its root fingerprint with the one you noted when it was"
    )
    desk.terminal.say(
        "set up, or with that of one of its machines (`redflag agent status --json`): not with this file."
    )
    typed = desk.terminal.ask(f"Type the first {COMPARED} digits of the one that you noted: ")
    return typed.lower() == request.root_fp[:COMPARED]


def _sign(desk: Desk, given: argparse.Namespace, request: ApprovalRequest, key: SigningKey) -> bytes:
    approval = new_approval(
        request.leaves,
        approval_id=str(UUID(bytes=desk.entropy.token(16), version=4)),
        root_fp=request.root_fp,
        organization=request.organization,
        now=desk.clock.now(),
        lifetime=given.hours * 3600,
        max_starts=given.max_starts,
    )
    return dump_answer(sign_approval(approval, key), request)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_REQUEST_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"cannot read {path}: {error.strerror}") from None


def _read_known(path: Path) -> Known:
    if not path.exists():
        return Known()
    try:
        return parse_known(read_private(path, max_bytes=MAX_KNOWN_BYTES))
    except MalformedError as error:
        raise KeyFileError(f"{path} is damaged: {error.message}. Move it away to begin anew") from None


def _times(number: int) -> str:
    return "once" if number == 1 else f"up to {number} times"


def _between(least: int, most: int) -> Callable[[str], int]:
    """A type of argparse: a number within bounds."""

    def number(text: str) -> int:
        value = int(text) if text.isascii() and text.isdigit() else least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {least} to {most}")
        return value

    return number
