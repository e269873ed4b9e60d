"""What a thief, a copyist, a hacked server or a bad line can send: nothing runs unordered, and nothing twice."""

import shutil

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redflag_core import codec
from redflag_core.commands import COMMAND_TYPE, Order
from redflag_core.encoding import b64encode, b64url_encode, dump_json
from redflag_core.envelope import parse_envelope, sign_envelope
from redflag_core.statements import RESULT_TYPE, CommandAccepted, CommandRefused, CommandResult, Outcome
from redflag_core.trust import DAY
from tests.helpers.agents import OTHER, FakeMachine
from tests.helpers.executors import bench, body_of, key, unique

FAR = 37
"""Every 37th bit in the sample: coprime to 8, so each bit of a byte is among them."""


@pytest.fixture
def desk(tmp_path):
    """An executor that nothing was ordered of yet."""
    with bench(tmp_path) as opened:
        yield opened


def flipped(wire, bit):
    """The bytes with one bit turned over."""
    changed = bytearray(wire)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


async def refuse_flips(desk, bits):
    """Each of these bits turned over is refused unread; the genuine bytes still pass afterwards."""
    wire = desk.issuer.sign(await desk.upgrade("a"), desk.recipient)
    await desk.deliver(desk.heartbeat())
    desk.take_all()
    before = desk.journalled()
    # Its number is the first one: nothing that was refused may have used it up.
    wire = desk.issuer.sign_body(attrs.evolve(body_of(wire), seq=500))

    for bit in bits(len(wire) * 8):
        answer = await desk.execute(flipped(wire, bit))
        assert (CommandRefused, None) == (type(answer), answer.cmd_id), bit
    assert before == desk.journalled()
    assert not desk.commander.busy()
    assert isinstance(await desk.execute(wire), CommandAccepted)


async def test_no_bit_of_a_command_can_be_changed(desk):
    """A sample of all bits of the bytes on the wire: names, payload, type, signature."""
    await refuse_flips(desk, lambda size: range(0, size, FAR))


@pytest.mark.full
async def test_no_bit_of_a_command_can_be_changed_at_all(desk):
    """Every single one."""
    await refuse_flips(desk, range)


FIELDS = {
    "cmd_id": unique(77),
    "agent_id": unique(77),
    "machine_binding": "1" * 32,
    "key_fp": "2" * 32,
    "server": unique(78),
    "epoch": 2,
    "gen": 8,
    "seq": 99,
    "type": "packages.plan",
    "iat": 1,
    "exp": 2_000_000_000,
    "nonce": b64url_encode(bytes(16)),
    "start_by": 4_000_000_000,
    "params": b64encode(b"{}"),
    "approval": {"envelope": "", "index": 0, "proof": []},
}


@pytest.mark.parametrize("field", FIELDS)
async def test_no_field_can_be_changed_by_somebody_else(desk, field):
    """Signed with another key under its own name, and under the name of the key that is believed."""
    genuine = desk.issuer.sign(await desk.upgrade("a"), desk.recipient)
    body = {**codec.unstructure(body_of(genuine)), field: FIELDS[field]}
    by_thief = sign_envelope(COMMAND_TYPE, dump_json(body), key(66))
    borrowed = by_thief.replace(key(66).key_id.encode(), desk.issuer.command_key.key_id.encode())

    codes = [(await desk.execute(wire)).code for wire in (by_thief, borrowed)]

    assert ["unknown_key", "bad_signature"] == codes
    assert [] == desk.journalled()["commands"]


@pytest.mark.parametrize(
    "changes, code",
    [
        ({"agent_id": unique(77)}, "wrong_recipient"),
        ({"machine_binding": "1" * 32}, "machine_mismatch"),
        ({"key_fp": "2" * 32}, "wrong_recipient"),
        ({"server": unique(78)}, "wrong_recipient"),
        ({"epoch": 2}, "wrong_recipient"),
        ({"epoch": 0}, "wrong_recipient"),
        ({"gen": 6}, "rollback"),
        ({"seq": 1}, "rollback"),
        ({"iat": 1_767_225_600 - 900, "exp": 1_767_225_600 - 600}, "stale"),
        ({"iat": 1_767_225_600 + 600, "exp": 1_767_225_600 + 900}, "stale"),
        ({"type": "packages.install_new"}, "unknown_command"),
        ({"type": "packages.unknown"}, "unknown_command"),
        ({"params": b64encode(b'{"manager":"shell"}')}, "unknown_command"),
        ({"start_by": 1_767_225_600 - 1}, "start_by_passed"),
        ({"cmd_id": unique(1)}, "command_conflict"),
    ],
    ids=str,
)
async def test_a_signed_command_with_a_field_that_does_not_fit_is_refused(desk, changes, code):
    """A server that was taken over has the key: what is not for here, not now or not known does not happen."""
    await desk.deliver(desk.heartbeat(cmd_id=unique(1)), order=Order(1, 7, 5))
    body = body_of(desk.issuer.sign(await desk.upgrade("a"), desk.recipient, order=Order(1, 7, 6)))

    answer = await desk.execute(desk.issuer.sign_body(attrs.evolve(body, **changes)))

    assert (CommandRefused, code) == (type(answer), answer.code)
    await desk.work_until(lambda: not desk.commander.busy())
    assert [] == desk.installer.starts()


async def test_a_used_nonce_is_refused_with_any_other_content(desk):
    """The nonce belongs to the signature that it was made for."""
    first = desk.issuer.sign(desk.scan(), desk.recipient)
    await desk.execute(first)
    again = attrs.evolve(body_of(desk.issuer.sign(desk.scan(), desk.recipient)), nonce=body_of(first).nonce)

    assert "replayed" == (await desk.execute(desk.issuer.sign_body(again))).code


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**53) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80, deadline=None)
@given(field=st.sampled_from(sorted(FIELDS)), value=JSON)
async def test_whatever_the_command_key_signs_is_judged_and_never_raises(desk, field, value):
    """Any value in any field gets a signed answer; only one that is a good command gets another than a refusal."""
    body = codec.unstructure(body_of(desk.issuer.sign(desk.scan(), desk.recipient)))

    answer = await desk.execute(desk.issuer.sign_body(dump_json({**body, field: value})))

    assert isinstance(answer, CommandRefused) or field in ("cmd_id", "gen", "seq", "nonce", "start_by", "approval")


async def test_a_statement_of_an_executor_is_no_command(desk):
    """Not even when the command key signed it: the types are never interchangeable."""
    payload = parse_envelope(desk.issuer.sign(desk.scan(), desk.recipient)).payload

    answer = await desk.execute(sign_envelope(RESULT_TYPE, payload, desk.issuer.command_key))

    assert ("malformed", None) == (answer.code, answer.cmd_id)


async def test_a_command_delivered_for_days_is_started_once(desk):
    """Again after a second, ten minutes and a day, signed anew each time: one start and one result."""
    what = await desk.upgrade("a", start_by=10 * DAY)
    first = await desk.carry_out(what)
    (envelope,) = (each.envelope for each in desk.commander.statements() if desk.opened(each.envelope) == first)
    desk.take_all()

    for seconds in (1, 600, DAY):
        desk.clock.advance(seconds)
        wire = desk.issuer.sign(what, desk.recipient)
        assert envelope == await desk.commander.execute(wire)
        assert "replayed" == (await desk.execute(wire)).code
        await desk.work_off()
        assert [first] == [each for each in desk.take_all() if isinstance(each, CommandResult)]

    assert Outcome.COMPLETED == first.outcome
    assert ["a=2"] == desk.installer.starts()


async def test_a_command_that_was_copied_to_another_machine_does_nothing_there(desk, tmp_path):
    """A copy of a whole data directory on another machine: the hardware is read, and does not match."""
    what = await desk.upgrade("a")
    wire = desk.issuer.sign(what, desk.recipient)
    shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}-copy", dirs_exist_ok=True)
    with bench(tmp_path.parent / f"{tmp_path.name}-copy", desk.issuer, machine=FakeMachine(OTHER)) as copy:
        assert "machine_mismatch" == (await copy.execute(wire)).code
        await copy.work_until(lambda: not copy.commander.busy())
        assert [] == copy.installer.starts()
