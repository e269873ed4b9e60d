"""What an operator does away from the server: keys are made and shown, requests looked through and signed."""

import io
import os
import pty
import select
import subprocess
import sys
from datetime import timedelta

import attrs
import pytest

from redflag_core import codec
from redflag_core._review import (
    MAX_INSTALLATIONS,
    MAX_KNOWN,
    Known,
    KnownInstallation,
    KnownMachine,
    parse_known,
    printable,
    review,
)
from redflag_core.approval_files import dump_request, parse_answer
from redflag_core.approvals import covers, open_approval
from redflag_core.encoding import b64encode
from redflag_core.errors import KeyFileError, MalformedError
from redflag_core.freshness import unix
from redflag_core.keyfiles import is_sealed, read_key, write_key, write_private
from redflag_core.keys import SigningKey
from redflag_core.operator_cli import (
    FAILED,
    NOT_AGREED,
    REFUSED,
    Console,
    Desk,
    approve,
    approve_parser,
    keys,
    keys_parser,
    run,
)
from redflag_core.patching import Change, Transaction
from redflag_core.testing import FrozenClock, SeededEntropy
from tests.core.test_approval_files import SERVER, TARGET, UPGRADE, item, params_of, request

KEY = SigningKey.from_seed(bytes([7]) * 32)
ROOT = "a" * 64
PASSPHRASE = b"four words do it"


@attrs.define
class Person:
    """Somebody at a terminal who types what was prepared, and nothing more."""

    answers: list[str] = attrs.field(factory=list)
    secrets: list[bytes] = attrs.field(factory=list)
    shown: list[str] = attrs.field(factory=list)
    warned: list[str] = attrs.field(factory=list)

    def say(self, line):
        """See `Terminal.say`."""
        self.shown.append(line)

    def warn(self, line):
        """See `Terminal.warn`."""
        self.warned.append(line)

    def ask(self, question):
        """See `Terminal.ask`."""
        self.shown.append(question)
        return self.answers.pop(0) if self.answers else ""

    def secret(self, question):
        """See `Terminal.secret`."""
        self.shown.append(question)
        return self.secrets.pop(0)

    @property
    def screen(self):
        """All that was shown."""
        return "\n".join(self.shown)


@attrs.define
class Office:
    """A directory with a key and a request, and a person."""

    folder: object
    person: Person = attrs.field(factory=Person)
    clock: FrozenClock = attrs.field(factory=FrozenClock)

    @property
    def file(self):
        """The request."""
        return self.folder / "request.json"

    @property
    def answer(self):
        """The answer."""
        return self.folder / "request.json.approved"

    def ask_for(self, *items, **changes):
        """Bring a request."""
        self.file.write_bytes(dump_request(request(*items, **changes)))

    def approve(self, *arguments, key="operator.key"):
        """Run ``redflag approve``; its exit code."""
        words = [str(self.file), "--key", str(self.folder / key), *arguments]
        return run(approve_parser(), words, Desk(self.person, self.clock, SeededEntropy()))

    def keys(self, *arguments):
        """Run ``redflag keys``; its exit code."""
        return run(keys_parser(), list(map(str, arguments)), Desk(self.person, self.clock, SeededEntropy()))

    def opened(self):
        """The approval that was signed, and its leaves."""
        answer = parse_answer(self.answer.read_bytes())
        return open_approval(answer.wire, {KEY.key_id: KEY.verify_key}), answer.leaves


@pytest.fixture
def office(tmp_path):
    """An operator whose key opens without a passphrase, with a request of one command."""
    made = Office(tmp_path)
    write_key(tmp_path / "operator.key", KEY)
    made.ask_for()
    return made


# --- keys ---


def test_a_new_key_is_sealed_and_its_public_half_is_shown(office):
    """Its passphrase is asked for twice; what to do next is one command with the public half in it."""
    office.person.secrets = [PASSPHRASE, PASSPHRASE]
    path = office.folder / "new.key"

    assert 0 == office.keys("new", "--operator", path)

    key = read_key(path, passphrase=PASSPHRASE)
    public = b64encode(key.verify_key.public_key)
    assert is_sealed(path)
    assert f"Key id      {key.key_id}" in office.person.shown
    assert f"Public key  {public}" in office.person.shown
    assert f"redflag server operator-key add {public} --name NAME" in office.person.screen
    with pytest.raises(KeyFileError):
        read_key(path, passphrase=b"another one....")


@pytest.mark.parametrize(
    "secrets, words",
    [([b"eleven char", b"eleven char"], "at least 12"), ([PASSPHRASE, b"something else"], "twice the same")],
)
def test_a_passphrase_that_will_not_do_makes_no_key(office, secrets, words):
    """Too short, or not typed the same twice."""
    office.person.secrets = secrets
    path = office.folder / "new.key"

    assert FAILED == office.keys("new", "--operator", path)
    assert words in office.person.warned[0]
    assert not path.exists()


def test_a_passphrase_can_be_in_a_file_that_only_its_owner_reads(office):
    """For making it and for showing it; the end of the line is no part of it."""
    secret, path = office.folder / "passphrase", office.folder / "new.key"
    write_private(secret, PASSPHRASE + b"\r\n", replace=False)

    assert 0 == office.keys("new", "--operator", path, "--passphrase-file", secret)
    made = office.person.shown[:2]
    office.person.shown.clear()
    assert 0 == office.keys("show", path, "--passphrase-file", secret)

    assert made == office.person.shown
    assert read_key(path, passphrase=PASSPHRASE)
    secret.chmod(0o644)
    assert FAILED == office.keys("show", path, "--passphrase-file", secret)
    assert "chmod 600" in office.person.warned[0]


def test_an_existing_file_is_not_replaced(office):
    """And nobody is asked for a passphrase in vain."""
    before = (office.folder / "operator.key").read_bytes()

    assert FAILED == office.keys("new", "--operator", office.folder / "operator.key")

    assert before == (office.folder / "operator.key").read_bytes()
    assert [] == office.person.shown


def test_a_key_in_clear_is_shown_without_asking(office):
    """There is nothing to ask for."""
    assert 0 == office.keys("show", office.folder / "operator.key")
    assert [
        f"Key id      {KEY.key_id}",
        f"Public key  {b64encode(KEY.verify_key.public_key)}",
    ] == office.person.shown


def test_a_sealed_key_is_shown_for_its_passphrase(office):
    """Asked for once, and a wrong one is a sentence."""
    path = office.folder / "sealed.key"
    write_key(path, KEY, passphrase=PASSPHRASE, entropy=SeededEntropy())
    office.person.secrets = [PASSPHRASE, b"wrong"]

    assert 0 == office.keys("show", path)
    assert f"Key id      {KEY.key_id}" in office.person.shown
    assert FAILED == office.keys("show", path)
    assert "does not open" in office.person.warned[0]


@pytest.mark.parametrize("content", [b"{}", b"nonsense"])
def test_a_damaged_key_is_a_sentence(office, content):
    """Both what is no JSON and what is no key."""
    path = office.folder / "damaged.key"
    write_private(path, content, replace=False)

    assert FAILED == office.keys("show", path)
    assert "damaged" in office.person.warned[0]


@pytest.mark.parametrize(
    "arguments", [[], ["new", "x"], ["new", "--oper", "x"], ["show"], ["approve"]], ids=" ".join
)
def test_wrong_usage_of_keys_is_code_2(office, arguments, capsys):
    """`--operator` is needed and not abbreviated."""
    with pytest.raises(SystemExit) as ended:
        office.keys(*arguments)
    assert 2 == ended.value.code
    assert "usage: redflag keys" in capsys.readouterr().err


# --- approving ---


def test_what_was_agreed_to_is_signed(office):
    """For three days and one start, over exactly the commands of the file; and the file is not touched."""
    before = office.file.read_bytes()
    office.person.answers = [ROOT[:8], "yes"]

    assert 0 == office.approve()

    approval, leaves = office.opened()
    asked = request()
    assert covers(approval, asked.leaves)
    assert asked.leaves == leaves
    assert (ROOT, asked.organization, 1) == (approval.root_fp, approval.organization, approval.max_starts)
    assert (unix(office.clock.now()), 72 * 3600) == (approval.nbf, approval.exp - approval.nbf)
    assert before == office.file.read_bytes()
    assert f"Signed: {office.answer}. Take it to the server." == office.person.shown[-1]


def test_how_long_and_how_often_can_be_chosen(office):
    """Within the bounds of an approval."""
    assert 0 == office.approve("--yes", "--root-fp", ROOT.upper(), "--hours", "168", "--max-starts", "10")

    approval, _ = office.opened()
    assert (168 * 3600, 10) == (approval.exp - approval.nbf, approval.max_starts)
    assert "Approval: 168 hours from now on, each command up to 10 times." in office.person.shown


@pytest.mark.parametrize(
    "arguments",
    [["--hours", "0"], ["--hours", "169"], ["--hours", "x"], ["--hours", "-1"], ["--max-starts", "0"],
     ["--max-starts", "11"], ["--max-starts", "\u0661"], ["--ye"]],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage_of_approve_is_code_2(office, arguments, capsys):
    """Out of bounds, not a number, or an abbreviation."""
    with pytest.raises(SystemExit) as ended:
        office.approve("--root-fp", ROOT, *arguments)
    assert 2 == ended.value.code
    assert "redflag approve: error" in capsys.readouterr().err
    assert not office.answer.exists()


@pytest.mark.parametrize("typed", ["no", "", "y", "YES", "yes please"])
def test_without_a_typed_yes_nothing_is_signed(office, typed):
    """Anything but the word; and the server stays unknown."""
    office.person.answers = [ROOT[:8], typed]

    assert NOT_AGREED == office.approve()

    assert not office.answer.exists()
    assert not (office.folder / "known.json").exists()


@pytest.mark.parametrize("typed", ["", "b" * 8, "a" * 7, "a" * 9])
def test_the_fingerprint_of_a_new_server_must_be_compared(office, typed):
    """Who does not type the digits that were noted signs nothing."""
    office.person.answers = [typed, "yes"]

    assert REFUSED == office.approve()

    assert "--root-fp" in office.person.warned[0]
    assert not office.answer.exists()


def test_a_server_that_was_signed_for_is_not_asked_about_again(office):
    """Its fingerprint and its machine are known from the first time."""
    office.person.answers = [ROOT[:8], "yes", "yes"]
    assert 0 == office.approve()
    office.answer.unlink()
    office.person.shown.clear()

    assert 0 == office.approve()

    assert "***" not in office.person.screen
    assert not any("noted" in line for line in office.person.shown)


def test_yes_alone_does_not_trust_a_new_server(office):
    """Somebody must have named its fingerprint, now or before."""
    assert REFUSED == office.approve("--yes")
    assert 0 == office.approve("--yes", "--root-fp", ROOT)
    office.answer.unlink()
    assert 0 == office.approve("--yes")


@pytest.mark.parametrize("arguments", [[], ["--root-fp", ROOT], ["--root-fp", "b" * 64]], ids=" ".join)
def test_another_root_under_a_known_server_is_refused(office, arguments):
    """Also when its fingerprint is named: a root fingerprint never changes."""
    assert 0 == office.approve("--yes", "--root-fp", ROOT)
    office.answer.unlink()
    office.ask_for(root_fp="b" * 64)

    assert REFUSED == office.approve("--yes", *arguments)
    assert not office.answer.exists()


def test_another_fingerprint_than_the_one_named_is_refused(office):
    """The file is of another server than the operator thinks."""
    assert REFUSED == office.approve("--yes", "--root-fp", "b" * 64)
    assert not office.answer.exists()


def test_an_answer_is_never_replaced(office):
    """And nothing is asked when there is one."""
    office.answer.write_text("mine")

    assert FAILED == office.approve("--yes", "--root-fp", ROOT)

    assert "mine" == office.answer.read_text()
    assert [] == office.person.shown


def test_a_sealed_key_is_opened_only_after_the_yes(office):
    """Nobody types a passphrase for what they do not want."""
    write_key(office.folder / "sealed.key", KEY, passphrase=PASSPHRASE, entropy=SeededEntropy())
    office.person.answers, office.person.secrets = [ROOT[:8], "yes"], [PASSPHRASE]

    assert 0 == office.approve(key="sealed.key")

    assert office.person.shown.index("Type yes to sign all of this: ") < next(
        place for place, line in enumerate(office.person.shown) if line.startswith("Passphrase of")
    )
    assert office.opened()


@pytest.mark.parametrize(
    "name, content", [("request.json", None), ("operator.key", None), ("operator.key", b"{}")]
)
def test_a_file_that_is_missing_or_damaged_is_a_sentence(office, name, content):
    """Of the request and of the key, before anything is asked."""
    (office.folder / name).unlink()
    if content is not None:
        write_private(office.folder / name, content, replace=False)

    assert FAILED == office.approve()

    assert office.person.warned[0].startswith("redflag: ")
    assert [] == office.person.shown


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff"])
def test_what_is_no_request_must_not_be_signed(office, content):
    """A code of its own: nothing of it can be shown."""
    office.file.write_bytes(content)

    assert REFUSED == office.approve()


def test_a_file_that_shows_other_changes_is_refused_as_a_whole(office):
    """One of two commands deceives: neither is shown, nobody is asked, nothing is signed."""
    shown = Transaction(manager="apt", requested=(TARGET.key,), changes=(UPGRADE,))
    office.ask_for(item(0), item(1, transaction=shown))

    assert REFUSED == office.approve("--yes", "--root-fp", ROOT)

    assert "do not trust this file" in office.person.warned[0]
    assert ([], False) == (office.person.shown, office.answer.exists())


def test_a_damaged_memory_is_a_sentence_and_is_not_replaced(office):
    """The operator decides what becomes of it."""
    known = office.folder / "known.json"
    write_private(known, b"{}{", replace=False)

    assert FAILED == office.approve("--yes", "--root-fp", ROOT)

    assert b"{}{" == known.read_bytes()
    assert not office.answer.exists()


def test_the_memory_can_be_elsewhere(office):
    """And only its owner can read it."""
    known = office.folder / "elsewhere.json"

    assert 0 == office.approve("--yes", "--root-fp", ROOT, "--known", str(known))

    (installation,) = parse_known(known.read_bytes()).installations
    assert (SERVER, ROOT, (KnownMachine(item().agent_id, "ab" * 16),)) == (
        installation.server, installation.root_fp, installation.machines,
    )  # fmt: skip
    assert 0o600 == known.stat().st_mode & 0o777
    assert not (office.folder / "known.json").exists()


def test_leaving_with_the_keyboard_signs_nothing(office, monkeypatch):
    """Ctrl-C at the question."""

    def interrupt(_question):
        raise KeyboardInterrupt

    monkeypatch.setattr(Person, "ask", lambda _self, question: interrupt(question))
    assert NOT_AGREED == office.approve()
    assert not office.answer.exists()


def test_a_signature_begins_when_it_is_made(office):
    """Not when the request was exported."""
    office.clock.advance(timedelta(days=2).total_seconds())
    assert 0 == office.approve("--yes", "--root-fp", ROOT)
    assert unix(office.clock.now()) == office.opened()[0].nbf


# --- what is shown ---

CHANGES = (
    UPGRADE,
    Change(name="zlib-new", arch="amd64", after="1.0"),
    Change(name="older", arch="amd64", before="2", after="1", downgrade=True),
    Change(name="gone", arch="amd64", before="1"),
    Change(name="gone-too", arch="amd64", before="1"),
)


def shown(*changes, known=None, **more):
    """What is shown of one machine, line by line."""
    transaction = Transaction(manager="apt", requested=(TARGET.key,), changes=changes or CHANGES)
    return review(request(item(params=params_of(transaction), transaction=transaction, **more)), known)


def test_the_gravest_changes_are_shown_first():
    """Removals, downgrades, what is new, upgrades: each with its versions, all of them counted."""
    lines = [line.strip() for line in shown()]
    changes = lines[lines.index(next(line for line in lines if line.startswith("plan "))) + 1 :]

    assert [
        "REMOVE     gone (amd64) 1",
        "REMOVE     gone-too (amd64) 1",
        "DOWNGRADE  older (amd64) 2 -> 1",
        "install    zlib-new (amd64) 1.0",
        "upgrade    nginx (amd64) 1 -> 2",
        "5 changes: 2 removals, 1 downgrades, 1 new packages, 1 upgrades",
        "",
        "Total: 1 machines, 5 changes: 2 removals, 1 downgrades, 1 new packages, 1 upgrades",
    ] == changes


def test_each_machine_is_shown_with_all_that_identifies_it():
    """Id, binding, type and plan are those that are signed; its name is the server's word."""
    lines = shown()
    expected = item()

    assert f"Root fingerprint   {ROOT}" in lines
    assert f"Server             {SERVER}" in lines
    assert "1 of 1: web-0, as the server calls it" in lines
    assert f"  agent    {expected.agent_id}" in lines
    assert f"  machine  {expected.machine_binding}" in lines
    assert "  order    packages.upgrade with apt" in lines


def test_what_was_never_signed_for_is_marked():
    """A machine that is new, and one whose hardware is another than the last time."""
    known = KnownInstallation(SERVER, ROOT, (KnownMachine(item().agent_id, "ab" * 16),))

    assert any("***      NEW" in line for line in shown())
    assert any("***      NEW" in line for line in shown(known=attrs.evolve(known, machines=())))
    assert not any("***" in line for line in shown(known=known))
    assert any("***      OTHER HARDWARE" in line for line in shown(known=known, machine_binding="cd" * 16))


@pytest.mark.parametrize(
    "text", ["a\u202eb", "a\u2066b", "a\u200bb", "a\ufeffb", "a\u00adb", "\u061c", "\ue000", "\U000e0041"]
)
def test_what_could_deceive_on_a_terminal_is_written_as_a_number(text):
    """Bidirectional controls, invisible characters, private ones: in a hostname and in a package's name."""
    change = Change(name=f"gone{text}", arch="amd64", before="1")
    screen = "\n".join(shown(UPGRADE, change, hostname=f"web{text}"))

    assert text not in screen
    assert "".join(line for line in screen if not line.isprintable() and line != "\n") == ""
    assert 2 == screen.count(printable(text))


def test_letters_that_look_like_others_are_numbers_in_names_of_packages():
    """No package is called with a Cyrillic letter; a machine or a client may be."""
    change = Change(name="gon\u0435", arch="amd64", before="1\u0435")
    lines = shown(UPGRADE, change, hostname="\u0435-01")

    assert any("gon\\u{435} (amd64) 1\\u{435}" in line for line in lines)
    assert any("\u0435-01" in line for line in lines)
    assert "M\u00fcller \x1b".replace("\x1b", "\\u{1b}") == printable("M\u00fcller \x1b")


# --- what is remembered ---


def test_what_is_remembered_is_bounded():
    """The machine and the installation seen longest ago are forgotten first."""
    machines = tuple(KnownMachine(f"{SERVER[:-5]}{n:05x}", "ab" * 16) for n in range(MAX_KNOWN))
    full = KnownInstallation(SERVER, ROOT, machines)
    new = item(agent_id="1" * 8 + SERVER[8:])
    first = attrs.evolve(new, agent_id=machines[0].agent_id, machine_binding="cd" * 16)

    kept = full.with_machines(request(new)).machines
    assert (MAX_KNOWN, machines[1], new.agent_id) == (len(kept), kept[0], kept[-1].agent_id)
    again = full.with_machines(request(first)).machines
    assert (MAX_KNOWN, KnownMachine(first.agent_id, "cd" * 16)) == (len(again), again[-1])

    known = Known()
    for number in range(MAX_INSTALLATIONS + 1):
        known = known.remember(KnownInstallation(f"{SERVER[:-4]}{number:04x}", ROOT))
    assert (MAX_INSTALLATIONS, None) == (len(known.installations), known.of(f"{SERVER[:-4]}0000"))
    assert known == parse_known(codec.dump(known))


def test_a_memory_with_something_twice_is_refused():
    """Which of them would count?"""
    installation = KnownInstallation(SERVER, ROOT)
    document = codec.dump(Known(installations=(installation,)))
    entry = codec.dump(installation)

    with pytest.raises(MalformedError):
        parse_known(document.replace(b"[" + entry, b"[" + entry + b"," + entry))


# --- the terminal of this process ---


def test_the_console_speaks_on_two_streams(capsys):
    """What went wrong does not end up in a file that the rest is redirected to."""
    Console().say("done")
    Console().warn("no")

    assert ("done\n", "no\n") == capsys.readouterr()


@pytest.mark.parametrize("typed, answer", [("  yes \n", "yes"), ("\n", ""), ("", "")])
def test_the_end_of_input_is_an_empty_answer(typed, answer, monkeypatch):
    """Nobody who is not there agrees to anything."""
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))

    assert answer == Console().ask("Sign? ")


def test_a_secret_is_asked_for_at_a_terminal_only(monkeypatch):
    """A passphrase that came through a pipe may be in a history or a log."""
    monkeypatch.setattr("sys.stdin", io.StringIO("secret\n"))

    with pytest.raises(KeyFileError, match="--passphrase-file"):
        Console().secret("Passphrase: ")


class AtTerminal(io.StringIO):
    """Input that a person types."""

    def isatty(self):
        """Yes."""
        return True


def test_a_typed_secret_is_its_bytes(monkeypatch):
    """The passphrase is the text as it was typed."""
    monkeypatch.setattr("sys.stdin", AtTerminal())
    monkeypatch.setattr("redflag_core.operator_cli.getpass", lambda _question: "four wörds")

    assert "four wörds".encode() == Console().secret("Passphrase: ")


def test_a_closed_terminal_is_no_empty_passphrase(monkeypatch):
    """The end of input is refused."""

    def close(_question):
        raise EOFError

    monkeypatch.setattr("sys.stdin", AtTerminal())
    monkeypatch.setattr("redflag_core.operator_cli.getpass", close)

    with pytest.raises(KeyFileError, match="no passphrase"):
        Console().secret("Passphrase: ")


@pytest.mark.parametrize(
    "command, first, needed", [(keys, "new", "--operator"), (approve, "request.json", "--key")]
)
def test_the_commands_take_the_arguments_of_the_process(command, first, needed, monkeypatch, capsys):
    """What the entry points call, up to their first refusal."""
    monkeypatch.setattr("sys.argv", ["redflag", first])

    with pytest.raises(SystemExit, match="2"):
        command()
    assert needed in capsys.readouterr().err.rpartition("required:")[2]


# --- the real thing ---


def redflag(*arguments):
    """The command line of `redflag`, without the server's packages."""
    block = "import sys; sys.modules.update(dict.fromkeys(('click', 'rich_click', 'litestar', 'httpx2')));"
    code = f"{block} from redflag_core.cli import main; sys.exit(main(sys.argv[1:]))"
    return [sys.executable, "-c", code, *map(str, arguments)]


def test_without_a_terminal_there_must_be_a_file_with_the_passphrase(tmp_path):
    """Nothing waits for an answer that cannot come, and no key is made."""
    command = redflag("keys", "new", "--operator", tmp_path / "k")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)

    assert (FAILED, True) == (done.returncode, "--passphrase-file" in done.stderr)
    assert [] == list(tmp_path.iterdir())


def test_at_a_terminal_the_passphrase_is_not_echoed(tmp_path):
    """The plain library is enough; what is typed does not appear, and the key opens with it."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        redflag("keys", "new", "--operator", tmp_path / "k"),
        stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    said = b""
    for prompt in (b"New passphrase: ", b"Once more: "):
        while not said.endswith(prompt):
            assert select.select([leader], [], [], 60)[0], said
            said += os.read(leader, 1024)
        os.write(leader, PASSPHRASE + b"\n")
    try:
        while chunk := os.read(leader, 1024):
            said += chunk
    except OSError:  # the other side is closed
        pass
    os.close(leader)

    assert 0 == process.wait(60)
    assert PASSPHRASE not in said
    key = read_key(tmp_path / "k", passphrase=PASSPHRASE)
    assert key.key_id.encode() in said


def test_approving_at_no_terminal_signs_nothing(tmp_path):
    """The end of input is no agreement."""
    write_key(tmp_path / "operator.key", KEY)
    (tmp_path / "request.json").write_bytes(dump_request(request()))
    command = redflag("approve", tmp_path / "request.json", "--key", tmp_path / "operator.key", "--root-fp", ROOT)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)

    assert (NOT_AGREED, True) == (done.returncode, "nothing was signed" in done.stderr)
    assert "REMOVE     nginx-old (amd64) 1" in done.stdout
    assert not (tmp_path / "request.json.approved").exists()
