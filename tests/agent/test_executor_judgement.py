"""The executor's judgement: what it refuses, in which order, what it remembers, and what it says about it."""

import hashlib

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redflag_agent.executor import judge
from redflag_agent.executor.errors import ExecutorError
from redflag_core import codec
from redflag_core.commands import (
    CLOCK_TOLERANCE,
    COMMAND_LEEWAY,
    COMMAND_SECONDS,
    CONSEQUENTIAL,
    ApprovalProof,
    CommandType,
    Order,
    PlanParams,
    dump_params,
)
from redflag_core.encoding import b64encode, dump_json
from redflag_core.envelope import MAX_ENVELOPE_BYTES, parse_envelope
from redflag_core.errors import ConflictingCommandError
from redflag_core.freshness import unix
from redflag_core.messages import ExecutorState, Role
from redflag_core.patching import PackageTarget
from redflag_core.statements import CommandAccepted, CommandRefused, CommandResult
from redflag_core.testing import FrozenClock
from redflag_core.trust import DAY
from tests.helpers.agents import OTHER
from tests.helpers.executors import AGENT, SERVER, Issuer, bench, body_of, key, unique


@pytest.fixture
def desk(tmp_path):
    """An executor that nothing was ordered of yet."""
    with bench(tmp_path) as opened:
        yield opened


def altered(desk, what, **changes):
    """A command with other fields, signed by the key that is believed."""
    return desk.issuer.sign_body(attrs.evolve(body_of(desk.issuer.sign(what, desk.recipient)), **changes))


# --- what is accepted


async def test_what_is_accepted_is_in_the_journal_and_said_until_it_is_delivered(desk):
    """The answer names the command, its digest, what was signed, and its order."""
    what = desk.scan()
    wire = desk.issuer.sign(what, desk.recipient)

    answer = await desk.execute(wire)

    body = body_of(wire)
    assert (
        CommandAccepted(
            server=SERVER,
            agent_id=AGENT,
            cmd_id=what.cmd_id,
            digest=body.digest,
            body=hashlib.sha256(parse_envelope(wire).payload).hexdigest(),
            epoch=1,
            gen=7,
            seq=1,
            iat=int(unix(desk.clock.now())),
        )
        == answer
    )
    assert [answer] == desk.said()
    assert desk.commander.news.is_set()
    assert desk.commander.busy()


async def test_saying_that_a_statement_arrived_twice_changes_nothing(desk):
    """Neither does naming one that never was."""
    await desk.deliver(desk.scan())
    (waiting,) = desk.commander.statements()

    for number in (waiting.id, waiting.id, 999, -999):
        desk.commander.delivered(number)

    assert [] == desk.said()


async def test_what_is_passed_over_does_not_hide_what_comes_after_it(desk):
    """A statement that the server refuses for good is skipped; the others come."""
    for _ in range(3):
        await desk.deliver(desk.heartbeat())
    first, *others = desk.commander.statements()

    assert others == desk.commander.statements(skip=[first.id])


async def test_an_agent_that_is_not_registered_judges_nothing(desk):
    """There is no server that it could answer."""
    desk.state.update(registration=None)

    with pytest.raises(ExecutorError, match="not registered"):
        await desk.commander.execute(b"{}")


# --- size, encoding, signature


@pytest.mark.parametrize(
    "wire, code",
    [
        (b"", "malformed"),
        (b"\x00\xff", "malformed"),
        (b"{}", "malformed"),
        (b'{"payload":"e30=","payloadType":"x","signatures":[{"keyid":"a","sig":"YQ=="}]}', "malformed"),
        (b" " * (MAX_ENVELOPE_BYTES + 1), "too_large"),
    ],
    ids=["empty", "bytes", "object", "another type", "too large"],
)
async def test_bytes_that_are_no_command_are_refused_without_a_name(desk, wire, code):
    """Nobody who is believed signed them: the refusal names the bytes, and the journal knows nothing."""
    before = desk.journalled()

    answer = await desk.execute(wire)

    assert (None, None, hashlib.sha256(wire).hexdigest()) == (answer.cmd_id, answer.digest, answer.body)
    assert (code, False) == (answer.code, answer.never)
    assert [answer] == desk.said()
    assert before["commands"] == desk.journalled()["commands"]
    assert before["nonces"] == desk.journalled()["nonces"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(wire=st.binary(max_size=200))
async def test_any_bytes_get_a_signed_refusal(desk, wire):
    """Bytes from outside never raise anything."""
    assert isinstance(await desk.execute(wire), CommandRefused)


async def test_a_key_that_is_not_in_the_bundle_is_not_believed(desk):
    """Whatever it signs."""
    wire = desk.issuer.sign_body(body_of(desk.issuer.sign(desk.scan(), desk.recipient)), key(66))

    answer = await desk.execute(wire)

    assert ("unknown_key", None) == (answer.code, answer.cmd_id)


@pytest.mark.parametrize("role", [Role.CHECKPOINT, Role.OPERATOR])
async def test_a_key_of_another_role_orders_nothing(desk, role):
    """The checkpoint key and operators' keys sign other things."""
    desk.issuer.version = 2
    desk.issuer.publish(role)

    answer = await desk.deliver(desk.scan())

    assert ("unknown_key", None) == (answer.code, answer.cmd_id)


async def test_a_key_whose_time_is_over_is_not_believed(desk):
    """Each key in the bundle has its own validity."""
    desk.issuer.version = 2
    desk.issuer.publish(keys=())

    assert "unknown_key" == (await desk.deliver(desk.scan())).code


async def test_signed_bytes_that_are_no_command_are_refused_by_their_envelope(desk):
    """A field of a newer version, a missing one, text that is no JSON: signed, and still not read."""
    plain = codec.unstructure(body_of(desk.issuer.sign(desk.scan(), desk.recipient)))
    for payload in (b"", b"[]", dump_json({**plain, "more": 1}), dump_json({"v": 1})):
        wire = desk.issuer.sign_body(payload)
        answer = await desk.execute(wire)
        assert ("malformed", None) == (answer.code, answer.cmd_id)
        assert hashlib.sha256(wire).hexdigest() == answer.body


# --- the bundle


async def test_without_a_bundle_nobody_is_believed(tmp_path):
    """As long as the agent has not fetched one."""
    issuer = Issuer(FrozenClock())
    with bench(tmp_path, issuer) as desk:
        wire = issuer.sign(desk.scan(), desk.recipient)
        desk.commander._judge = attrs.evolve(desk.commander._judge, held=lambda: None)

        assert "unknown_key" == (await desk.execute(wire)).code


async def test_past_the_end_of_the_bundle_commands_are_refused(desk):
    """A server that lost its root can order nothing after 90 days; a new bundle, and it can again."""
    await desk.deliver(desk.scan())
    desk.clock.advance(90 * DAY + 1)

    answer = await desk.deliver(desk.scan())
    desk.issuer.version = 2
    desk.issuer.publish()

    assert ("expired", None) == (answer.code, answer.cmd_id)
    assert isinstance(await desk.deliver(desk.scan()), CommandAccepted)


async def test_a_bundle_of_another_root_is_not_believed(desk):
    """Whoever can write the file of the network process cannot name keys."""
    desk.issuer.version = 2
    desk.issuer.publish(signer=key(66))

    assert "unknown_key" == (await desk.deliver(desk.scan())).code


async def test_an_older_bundle_is_refused_by_the_executor_itself(tmp_path):
    """Also after a restart, and though the network process holds it: a stolen key must not come back."""
    with bench(tmp_path) as desk:
        old = desk.issuer.bundle
        desk.issuer.version = 2
        desk.issuer.publish()
        await desk.deliver(desk.scan())
    desk.issuer.bundle = old
    with bench(tmp_path, desk.issuer) as desk:
        assert "rollback" == (await desk.deliver(desk.scan())).code


async def test_after_a_theft_the_new_epoch_counts_from_anew(desk):
    """A new root, a new key, the next epoch: the thief's commands are refused, whatever their numbers."""
    desk.issuer.gen = 10**9
    await desk.deliver(desk.scan())
    stolen, epoch = desk.issuer.command_key, Order(1, 10**9, 10**6)
    desk.issuer.turn_over(key(21), key(22))

    accepted = await desk.deliver(desk.scan())
    thief = attrs.evolve(body_of(desk.issuer.sign(desk.scan(), desk.recipient)), epoch=1, gen=epoch.gen, seq=5)
    by_old_key = await desk.execute(desk.issuer.sign_body(thief, stolen))
    by_new_key = await desk.execute(desk.issuer.sign_body(thief))

    assert (2, 0, 1) == (accepted.epoch, accepted.gen, accepted.seq)
    assert ("unknown_key", "wrong_recipient") == (by_old_key.code, by_new_key.code)


# --- the recipient


@pytest.mark.parametrize(
    "field, value, code",
    [
        ("server", unique(1), "wrong_recipient"),
        ("agent_id", unique(1), "wrong_recipient"),
        ("key_fp", "0" * 32, "wrong_recipient"),
        ("epoch", 0, "wrong_recipient"),
        ("epoch", 2, "wrong_recipient"),
        ("machine_binding", "0" * 32, "machine_mismatch"),
    ],
)
async def test_a_command_for_somebody_else_is_refused_by_name(desk, field, value, code):
    """Genuine, and not for this executor: it is named, and neither nonce nor order is used up."""
    before = desk.journalled()
    wire = altered(desk, desk.scan(), **{field: value})

    answer = await desk.execute(wire)

    assert (code, body_of(wire).cmd_id, body_of(wire).digest) == (answer.code, answer.cmd_id, answer.digest)
    assert not answer.never
    after = desk.journalled()
    assert before["nonces"] == after["nonces"]
    assert before["commands"] == after["commands"]


async def test_the_machine_is_read_anew_for_each_command(desk):
    """A disk that was put into another machine does not carry out what was ordered of the first."""
    await desk.deliver(desk.scan())
    wire = desk.issuer.sign(desk.scan(), desk.recipient)
    desk.machine.raw = OTHER

    assert "machine_mismatch" == (await desk.execute(wire)).code


# --- time


@pytest.mark.parametrize(
    "seconds, passes",
    [
        (-COMMAND_LEEWAY - 1, False),
        (-COMMAND_LEEWAY, True),
        (COMMAND_SECONDS + COMMAND_LEEWAY, True),
        (COMMAND_SECONDS + COMMAND_LEEWAY + 1, False),
    ],
)
async def test_a_command_is_accepted_within_its_window_only(desk, seconds, passes):
    """From a minute before it was signed to a minute after its end, both included."""
    desk.clock.advance(1000)  # the bundle is older: it says nothing about this
    wire = desk.issuer.sign(desk.scan(), desk.recipient)
    desk.clock.jump(seconds)

    answer = await desk.execute(wire)

    assert (passes, not passes) == (isinstance(answer, CommandAccepted), getattr(answer, "code", None) == "stale")


async def test_a_clock_that_is_far_behind_can_judge_nothing(desk):
    """What the root and accepted commands say of the time has passed: the command is named, nothing is kept."""
    await desk.deliver(desk.scan())
    desk.clock.jump(-CLOCK_TOLERANCE - 1)
    what = desk.scan()

    answer = await desk.deliver(what)

    assert ("clock_wrong", what.cmd_id, False) == (answer.code, answer.cmd_id, answer.never)
    desk.clock.jump(CLOCK_TOLERANCE + 1)
    assert isinstance(await desk.deliver(what), CommandAccepted)


async def test_a_clock_that_was_set_back_a_little_does_not_bring_time_back(desk):
    """A command that was too old stays too old."""
    old = desk.issuer.sign(desk.scan(), desk.recipient)
    desk.clock.advance(COMMAND_SECONDS + COMMAND_LEEWAY + 1)
    await desk.deliver(desk.scan())
    desk.clock.jump(-CLOCK_TOLERANCE)

    assert "stale" == (await desk.execute(old)).code


async def test_only_what_was_accepted_moves_the_time(desk):
    """A command of the future that was refused leaves the executor's time as it was."""
    wire = altered(desk, desk.scan(), agent_id=unique(1))
    desk.clock.jump(-COMMAND_LEEWAY)
    await desk.execute(wire)

    with desk.journal.page() as page:
        assert unix(desk.clock.now()) + COMMAND_LEEWAY == page.high_water()  # the bundle's
    desk.issuer.clock.advance(2 * COMMAND_LEEWAY)
    await desk.deliver(desk.scan())
    with desk.journal.page() as page:
        assert unix(desk.clock.now()) == page.high_water()


async def test_nothing_moves_the_time_beyond_the_end_of_the_bundle(desk):
    """Whoever has the command key can at most silence the machine until the next bundle."""
    desk.issuer.lifetime = 100
    desk.issuer.version = 2
    desk.issuer.publish()
    desk.clock.advance(90)
    what = desk.scan()
    ahead = int(unix(desk.clock.now())) + 50
    wire = altered(desk, what, iat=ahead, exp=ahead + COMMAND_SECONDS)

    assert isinstance(await desk.execute(wire), CommandAccepted)
    with desk.journal.page() as page:
        assert unix(desk.clock.now()) + 10 == page.high_water()


async def test_a_new_epoch_gives_the_time_back(desk):
    """A stolen key moved the executor's time ahead until it refused everything: the next epoch ends that."""
    desk.issuer.clock.advance(10)
    for _ in range(8):
        with desk.journal.page() as page:
            ahead = max(page.high_water(), int(unix(desk.clock.now()))) + COMMAND_LEEWAY
        await desk.execute(altered(desk, desk.scan(), iat=ahead, exp=ahead + 10))
    refused = await desk.deliver(desk.scan())
    desk.issuer.turn_over(key(21), key(22))

    assert "clock_wrong" == refused.code
    assert isinstance(await desk.deliver(desk.scan()), CommandAccepted)


# --- nonce and order


async def test_the_same_bytes_again_are_a_replay(desk):
    """Nothing about it is kept."""
    wire = desk.issuer.sign(desk.scan(), desk.recipient)
    await desk.execute(wire)
    before = desk.journalled()

    answer = await desk.execute(wire)

    assert ("replayed", False) == (answer.code, answer.never)
    assert before == desk.journalled()


async def test_a_replay_is_one_after_a_restart_too(tmp_path):
    """The journal remembers, not the process."""
    with bench(tmp_path) as desk:
        wire = desk.issuer.sign(desk.scan(), desk.recipient)
        await desk.execute(wire)
    with bench(tmp_path, desk.issuer) as desk:
        assert "replayed" == (await desk.execute(wire)).code


@pytest.mark.parametrize("order", [Order(1, 7, 5), Order(1, 7, 4), Order(1, 6, 900)], ids=str)
async def test_a_number_that_is_not_higher_is_refused(desk, order):
    """A command that was held back on the way cannot overtake what came after it."""
    await desk.deliver(desk.scan(), order=Order(1, 7, 5))
    before = desk.journalled()

    answer = await desk.deliver(desk.scan(), order=order)

    assert ("rollback", False) == (answer.code, answer.never)
    assert before == desk.journalled()


async def test_a_restored_server_goes_on_with_a_higher_generation(desk):
    """Then its numbers may start anew."""
    await desk.deliver(desk.scan(), order=Order(1, 7, 500))

    assert isinstance(await desk.deliver(desk.scan(), order=Order(1, 8, 0)), CommandAccepted)


async def test_what_was_refused_for_now_has_used_up_its_signature(desk):
    """The same bytes cannot pass later: the server signs anew."""
    with desk.limits("changes = false\n"):
        wire = desk.issuer.sign(await desk.upgrade("a"), desk.recipient)
        assert "local_limit" == (await desk.execute(wire)).code

    assert "replayed" == (await desk.execute(wire)).code


async def test_nonces_are_kept_as_long_as_their_message_could_pass(desk):
    """And not longer: the journal does not grow with them."""
    await desk.deliver(desk.scan())
    desk.clock.advance(COMMAND_SECONDS + COMMAND_LEEWAY)
    await desk.deliver(desk.scan())
    assert 2 == len(desk.journalled()["nonces"])
    desk.clock.advance(1)
    await desk.deliver(desk.scan())

    assert 2 == len(desk.journalled()["nonces"])


async def test_the_executor_says_how_far_it_has_come(desk):
    """Order and time, signed; after a new epoch its order starts anew."""
    await desk.deliver(desk.scan(), order=Order(1, 8, 44))

    def state(epoch):
        wire = desk.identity.executor.state(server=SERVER, agent_id=AGENT, epoch=epoch, refresh_generation=3)
        return codec.parse(ExecutorState, parse_envelope(wire).payload, max_bytes=4096)

    assert (1, 8, 44) == attrs.astuple(state(1))[3:6]
    assert (2, 0, 0) == attrs.astuple(state(2))[3:6]
    desk.clock.jump(-200)
    assert unix(desk.clock.now()) + 200 == state(1).iat


# --- known commands


async def test_a_command_that_comes_again_is_answered_and_not_started_again(desk):
    """Accepted stays accepted, and its acceptance is said again."""
    what = desk.scan()
    first = await desk.deliver(what)
    desk.take_all()

    again = await desk.deliver(what)

    assert first == again
    assert [first] == desk.said()
    assert 1 == len(desk.journalled()["commands"])


async def test_an_id_with_another_order_is_a_conflict_that_somebody_sees(desk):
    """The first order stays what it was; the other never happens."""
    what = desk.scan()
    first = await desk.deliver(what)
    other = attrs.evolve(desk.scan("shell"), cmd_id=what.cmd_id)

    answer = await desk.deliver(other)

    assert ("command_conflict", what.cmd_id, True) == (answer.code, answer.cmd_id, answer.never)
    assert answer.digest != first.digest
    assert [ConflictingCommandError] == [type(error) for _, error in desk.errors]
    assert first == await desk.deliver(what)
    assert "replayed" != answer.code


# --- type, parameters, approval


@pytest.mark.parametrize(
    "kind, params",
    [
        ("system.reboot", b"{}"),
        ("packages.revert", b"{}"),
        ("shell.run", b'{"script":"id"}'),
        *((kind.value, b"{}") for kind in sorted(CONSEQUENTIAL)),
        ("scan.run", b'{"scanner":"apt","more":1}'),
        ("scan.run", b'{"scanner":"APT; id"}'),
        ("scan.run", b"not json"),
        ("scan.run", b""),
        ("agent.heartbeat", b'{"seconds":1000000}'),
        ("packages.plan", b'{"manager":"shell","packages":[]}'),
        (
            "packages.plan",
            b'{"manager":"dnf","packages":[{"name":"a","arch":"all","installed":"1","available":"2"}]}',
        ),
        (
            "packages.plan",
            b'{"manager":"shell","packages":[{"name":"a-","arch":"all","installed":"1","available":"2"}]}',
        ),
    ],
)
async def test_what_is_not_carried_out_here_never_is(desk, kind, params):
    """Unknown types and parameters are remembered before that is signed: the same answer for ever."""
    what = desk.issuer.order(kind, params)

    answer = await desk.deliver(what)
    desk.take_all()

    assert ("unknown_command", True, what.cmd_id) == (answer.code, answer.never, answer.cmd_id)
    assert answer == await desk.deliver(what)
    assert not desk.commander.busy()


async def test_a_consequential_type_is_not_carried_out(desk):
    """The sentence says that no approval would help."""
    answer = await desk.deliver(desk.issuer.order("packages.remove", b"{}"))

    assert "packages.remove is not carried out by this release, with an approval or without" == answer.detail


async def test_an_approval_that_cannot_be_read_is_refused_for_now(desk):
    """The command passes when it is delivered with one that can."""
    what = desk.scan()
    proof = ApprovalProof(b64encode(b"x"), 0, ())

    answer = await desk.execute(altered(desk, what, approval=proof))

    assert ("malformed", False) == (answer.code, answer.never)
    assert isinstance(await desk.deliver(what), CommandAccepted)


# --- limits and start_by


async def test_a_limit_of_the_owner_holds_a_change_back_for_now(desk):
    """It is told when to try again, and passes when the owner changed the file."""
    what = await desk.upgrade("a")
    with desk.limits('[[windows]]\nstart = "01:00"\nend = "02:00"\n'):
        answer = await desk.deliver(what)

    assert ("local_limit", False, 900) == (answer.code, answer.never, answer.retry_after)
    assert [] == desk.journalled()["commands"]
    assert isinstance(await desk.deliver(what), CommandAccepted)


async def test_limits_are_for_changes_only(desk):
    """Scans and plans change nothing."""
    with desk.limits("changes = false\n"):
        answers = [await desk.deliver(what) for what in (desk.scan(), desk.plan("a"), desk.heartbeat())]

    assert [CommandAccepted, CommandAccepted, CommandResult] == [type(answer) for answer in answers]


@pytest.mark.parametrize(
    "text, mode", [("changes = maybe\n", 0o600), ("changes = true\n", 0o666), ("changes = true\n", 0o620)]
)
async def test_a_limits_file_that_cannot_be_trusted_allows_nothing(desk, text, mode):
    """A mistake in it, or somebody else's hand, must not open the machine."""
    with desk.limits(text):
        desk.directory.limits.chmod(mode)
        answer = await desk.deliver(await desk.upgrade("a"))

    assert ("local_limit", False) == (answer.code, answer.never)
    assert str(desk.directory.limits) in answer.detail


async def test_work_that_came_too_late_never_starts(desk):
    """Its time has passed when it arrives: that is final, and is remembered."""
    what = desk.scan(start_by=-1)

    answer = await desk.deliver(what)

    assert ("start_by_passed", True) == (answer.code, answer.never)
    assert answer == await desk.deliver(what)


async def test_work_that_a_limit_held_back_until_it_was_too_late_ends(desk):
    """Otherwise the server would deliver it for ever."""
    what = await desk.upgrade("a", start_by=10)
    with desk.limits("changes = false\n"):
        held = await desk.deliver(what)
        desk.clock.advance(11)
        late = await desk.deliver(what)

    assert [("local_limit", False), ("start_by_passed", True)] == [(a.code, a.never) for a in (held, late)]


# --- room


async def test_an_executor_that_is_owed_an_ear_takes_no_new_command(desk, monkeypatch):
    """No result is ever dropped, so there is an end to how many may wait."""
    monkeypatch.setattr(judge, "MAX_OWED", 4)
    for _ in range(4):
        await desk.deliver(desk.heartbeat())
    what = desk.heartbeat()

    answer = await desk.deliver(what)

    assert ("undelivered_results", False, 60) == (answer.code, answer.never, answer.retry_after)
    assert 4 == len([each for each in desk.take_all() if isinstance(each, CommandResult)])
    assert isinstance(await desk.deliver(what), CommandResult)


async def test_open_commands_count_with_the_results_that_they_will_bring(desk, monkeypatch):
    """An accepted command owes two statements until the first is delivered."""
    monkeypatch.setattr(judge, "MAX_OWED", 2)
    await desk.deliver(desk.scan())

    assert "undelivered_results" == (await desk.deliver(desk.scan())).code
    desk.take_all()
    assert isinstance(await desk.deliver(desk.scan()), CommandAccepted)


async def test_the_commands_of_a_day_have_an_end(desk, monkeypatch):
    """A server that was taken over must not fill the disk with ids that are kept for ever."""
    monkeypatch.setattr(judge, "MAX_ARRIVALS", 3)
    for number in range(3):
        await desk.deliver(desk.issuer.order("shell.run", b"%d" % number))

    answer = await desk.deliver(desk.scan())
    desk.clock.advance(DAY)

    assert ("local_limit", False) == (answer.code, answer.never)
    assert isinstance(await desk.deliver(desk.scan()), CommandAccepted)


async def test_refusals_for_now_are_bounded_and_the_newest_of_a_command_counts(desk):
    """A server that asks again and again fills nothing."""
    what = await desk.upgrade("a")
    with desk.limits("changes = false\n"):
        for _ in range(5):
            last = await desk.deliver(what)
    for number in range(200):
        await desk.execute(b"%d" % number)

    said = desk.said()
    assert 50 == len(said)
    assert last not in said
    with desk.limits("changes = false\n"):
        last = await desk.deliver(what)
    assert 1 == len([each for each in desk.said() if each.cmd_id == what.cmd_id])


async def test_a_journal_without_room_accepts_nothing(desk):
    """The refusal says so and when to try again; with room again the same command is accepted."""
    await desk.deliver(desk.heartbeat())
    desk.take_all()
    what = desk.issuer.order(
        CommandType.PACKAGES_PLAN,
        dump_params(
            PlanParams(
                "shell",
                tuple(
                    PackageTarget(name=f"a{number}", arch="all", installed="1", available="2")
                    for number in range(200)
                ),
            )
        ),
    )
    database = desk.journal._database
    with database.transaction() as db:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages}")
    before = desk.journalled()

    answer = await desk.deliver(what)

    assert ("journal", what.cmd_id, False, 300) == (
        answer.code,
        answer.cmd_id,
        answer.never,
        answer.retry_after,
    )
    assert "the disk is full" in answer.detail
    assert [answer] == desk.said()
    assert ["journal"] == [error.code for _, error in desk.errors]
    assert before == desk.journalled()
    with database.transaction() as db:
        db.execute("PRAGMA max_page_count = 100000")
    assert isinstance(await desk.deliver(what), CommandAccepted)
