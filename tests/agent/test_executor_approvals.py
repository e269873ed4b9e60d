"""What an operator approved happens, exactly that, as often as was agreed to, and nothing else does."""

import sqlite3
import uuid
from datetime import timedelta

import attrs
import pytest

from redflag_core.approvals import approval_leaf, new_approval, prove_approval, sign_approval
from redflag_core.encoding import b64decode, b64encode
from redflag_core.freshness import unix
from redflag_core.messages import PublicKey, Role, TrustedKey
from redflag_core.patching import ChangeKind
from redflag_core.statements import CommandAccepted, Outcome
from redflag_core.trust import DAY
from tests.helpers.executors import ORGANIZATION, bench, key, unique

OPERATOR, STRANGER = key(21), key(22)
OTHER_ORGANIZATION = str(uuid.UUID(int=104))


@pytest.fixture
def desk(tmp_path):
    """An executor that believes an operator of its organization."""
    with bench(tmp_path) as opened:
        trust(opened, OPERATOR)
        yield opened


def trust(desk, *operators, organizations=(ORGANIZATION,), role=Role.OPERATOR, ended=False):
    """Publish a bundle with the server's command key and these operators' keys."""
    now = int(unix(desk.clock.now()))
    until = now - 1 if ended else now + DAY
    keys = [TrustedKey(PublicKey.of(each).key, role, now - DAY, until, organizations) for each in operators]
    keys.append(TrustedKey(PublicKey.of(desk.issuer.command_key).key, Role.COMMAND, now - DAY, now + 365 * DAY))
    desk.issuer.version += 1
    desk.issuer.publish(keys=tuple(keys), version=desk.issuer.version)


def approved(desk, what, *, signer=OPERATOR, others=2, recipient=None, **changes):
    """The same order with an operator's approval, among those of other machines."""
    recipient = recipient or desk.recipient
    leaves = [
        approval_leaf(recipient.agent_id, recipient.machine_binding, what.type, what.params),
        *(approval_leaf(unique(number), "1" * 32, what.type, what.params) for number in range(others)),
    ]
    usual = {
        "approval_id": unique(900),
        "root_fp": desk.issuer.pins.root_fp,
        "organization": ORGANIZATION,
        "now": desk.clock.now(),
    }
    wire = sign_approval(new_approval(leaves, **{**usual, **changes}), signer)
    return attrs.evolve(what, approval=prove_approval(wire, leaves, 0))


async def removing(desk):
    """An upgrade that would remove another package."""
    desk.installer.mark("removes", "b")
    return await desk.upgrade("a")


async def test_an_approved_removal_is_carried_out(desk):
    """What was refused without a signature is done with it, once, and the result says what was changed."""
    what = await removing(desk)
    refused = await desk.carry_out(what)
    again = attrs.evolve(approved(desk, what), cmd_id=unique(50))

    result = await desk.carry_out(again)

    assert ("needs_approval", Outcome.COMPLETED) == (refused.code, result.outcome)
    assert [ChangeKind.UPGRADE, ChangeKind.REMOVE] == [change.kind for change in result.transaction.changes]
    assert ["a=2"] == desk.installer.starts()


@pytest.mark.parametrize(
    "changes",
    [
        {"signer": STRANGER},
        {"root_fp": "ab" * 32},
        {"organization": OTHER_ORGANIZATION},
    ],
    ids=lambda changes: next(iter(changes)),
)
async def test_an_approval_that_does_not_hold_here_changes_nothing(desk, changes):
    """Another key, another installation, another organization: not even accepted."""
    answer = await desk.deliver(approved(desk, await removing(desk), **changes))

    assert ("unknown_key" if "signer" in changes else "needs_approval") == answer.code
    assert not desk.commander.busy()
    assert [] == desk.installer.starts()


@pytest.mark.parametrize(
    "how",
    [{"organizations": (OTHER_ORGANIZATION,)}, {"organizations": ()}, {"role": Role.CHECKPOINT}, {"ended": True}],
    ids=str,
)
async def test_only_a_live_operator_key_of_this_organization_counts(desk, how):
    """Whatever else the bundle lists."""
    trust(desk, OPERATOR, **how)

    answer = await desk.deliver(approved(desk, await removing(desk)))

    assert ("unknown_key", False) == (answer.code, answer.never)


async def test_the_servers_own_key_is_no_operators(desk):
    """A hacked server cannot approve what it orders."""
    what = approved(desk, await removing(desk), signer=desk.issuer.command_key)

    assert "unknown_key" == (await desk.deliver(what)).code


async def test_an_approval_for_another_machine_is_refused_for_ever(desk):
    """Its leaf names the agent and the hardware."""
    other = attrs.evolve(desk.recipient, machine_binding="2" * 32)

    answer = await desk.deliver(approved(desk, await removing(desk), recipient=other))

    assert ("needs_approval", True) == (answer.code, answer.never)


async def test_an_approval_covers_the_plan_that_was_seen_and_no_other(desk):
    """What the machine would do now is compared as ever: an approval is no leave to drift."""
    what = approved(desk, await removing(desk))
    desk.installer.mark("removes", "c")

    result = await desk.carry_out(what)

    assert (Outcome.FAILED, "plan_drifted", []) == (result.outcome, result.code, desk.installer.starts())


async def test_an_approval_of_other_parameters_is_refused(desk):
    """The server cannot exchange what was agreed to."""
    proof = approved(desk, await removing(desk)).approval
    other = attrs.evolve(await desk.upgrade("a", plan_hash="ab" * 32), approval=proof)

    answer = await desk.deliver(other)

    assert ("needs_approval", True) == (answer.code, answer.never)


async def test_an_approval_is_used_as_often_as_was_agreed(desk):
    """Counted when a command is accepted, whatever becomes of it, over a restart and a new delivery."""
    what = approved(desk, await removing(desk), max_starts=2)
    first, second, third = (attrs.evolve(what, cmd_id=unique(number)) for number in (60, 61, 62))

    for each in (first, second):
        assert isinstance(await desk.deliver(each), CommandAccepted)
        assert isinstance(await desk.deliver(each), CommandAccepted), "the same command again uses nothing"
    with bench(desk.path, desk.issuer) as again:
        answer = await again.deliver(third)

    assert ("needs_approval", True) == (answer.code, answer.never)
    assert "used already" in answer.detail


async def test_a_cancelled_command_spends_its_approval(desk):
    """Nobody can tell from outside whether it was about to start: it has to be approved anew."""
    what = approved(desk, await removing(desk))
    await desk.deliver(what)
    await desk.deliver(desk.cancel(what))

    answer = await desk.deliver(attrs.evolve(what, cmd_id=unique(70)))

    assert ("needs_approval", True) == (answer.code, answer.never)


async def test_a_refused_command_spends_nothing(desk):
    """Held back by a limit of the owner, it may come again with the same approval."""
    what = approved(desk, await removing(desk))
    with desk.limits('managers = ["other"]\n'):
        held_back = await desk.deliver(what)

    assert ("local_limit", False) == (held_back.code, held_back.never)
    assert isinstance(await desk.deliver(what), CommandAccepted)


async def test_a_new_identity_does_not_give_approvals_back(desk):
    """They were this machine's, whatever it is called."""
    await desk.deliver(approved(desk, await removing(desk)))
    used = desk.journalled()["approval_uses"]

    desk.journal.start_anew(desk.path / "aside.db")

    assert [] == desk.journalled()["commands"]
    assert used == desk.journalled()["approval_uses"]
    assert 1 == len(used)


async def test_an_approval_ends_while_its_command_waits_on_the_server(desk):
    """Delivered a week later it is refused for good; its signature by the server is fresh."""
    what = attrs.evolve(approved(desk, await removing(desk)), start_by=2_000_000_000)
    desk.clock.advance(timedelta(days=8).total_seconds())
    desk.issuer.publish()
    trust(desk, OPERATOR)

    answer = await desk.deliver(what)

    assert ("needs_approval", True) == (answer.code, answer.never)
    assert "has ended" in answer.detail


async def test_no_bit_of_an_approval_can_be_changed(desk):
    """A hacked server re-signs the command around an approval in which it changed something."""
    what = approved(desk, await removing(desk))
    before = desk.journalled()["approval_uses"]
    envelope = b64decode(what.approval.envelope)
    for bit in range(0, len(envelope) * 8, 61):
        changed = bytearray(envelope)
        changed[bit // 8] ^= 1 << bit % 8
        proof = attrs.evolve(what.approval, envelope=b64encode(bytes(changed)))
        answer = await desk.deliver(attrs.evolve(what, approval=proof, cmd_id=unique(1000 + bit)))
        assert not isinstance(answer, CommandAccepted), bit

    assert before == desk.journalled()["approval_uses"]
    assert isinstance(await desk.deliver(what), CommandAccepted)


async def test_a_routine_update_may_carry_an_approval(desk):
    """It is checked and counted all the same."""
    result = await desk.carry_out(approved(desk, await desk.upgrade("a")))

    assert Outcome.COMPLETED == result.outcome
    assert 1 == len(desk.journalled()["approval_uses"])


async def test_a_journal_from_before_approvals_is_brought_up(tmp_path):
    """An update of the agent keeps what was ordered."""
    with bench(tmp_path) as desk:
        await desk.deliver(desk.heartbeat(cmd_id=unique(5)))
        path = desk.directory.journal
    as_version_1(path)

    with bench(tmp_path, desk.issuer) as again, again.journal.page() as page:
        entry = page.find(unique(5))

    assert (unique(5), False) == (entry.cmd_id, entry.approved)


def as_version_1(path):
    """Take away from a journal what the second version added."""
    with sqlite3.connect(path) as db:
        db.execute("ALTER TABLE commands DROP COLUMN approved")
        db.execute("DROP TABLE approval_uses")
        db.execute("PRAGMA user_version = 1")
    db.close()
