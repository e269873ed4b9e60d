"""The files of an approval: bounded, strict, and a request shows only what would be signed."""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core import codec
from redflag_core.approval_files import (
    MAX_ANSWER_BYTES,
    MAX_APPROVAL_ITEMS,
    MAX_REQUEST_BYTES,
    ApprovalAnswer,
    ApprovalItem,
    ApprovalRequest,
    check_transaction,
    dump_answer,
    dump_request,
    parse_answer,
    parse_request,
)
from redflag_core.approvals import covers, new_approval, open_approval, sign_approval
from redflag_core.commands import PlanParams, ScanParams, UpgradeParams, dump_params
from redflag_core.encoding import b64encode, dump_json, parse_json
from redflag_core.errors import MalformedError, TooLargeError
from redflag_core.keys import SigningKey
from redflag_core.patching import Change, PackageTarget, Transaction
from redflag_core.scanning import PackageKey
from redflag_core.testing import START

KEY = SigningKey.from_seed(bytes([7]) * 32)
SERVER = "0190b5a4-7a3c-7def-8abc-0123456789ab"
AGENT = "0190b5a4-7a3c-7def-8abc-0123456789ac"
TARGET = PackageTarget(name="nginx", arch="amd64", installed="1", available="2")
UPGRADE = Change(name="nginx", arch="amd64", before="1", after="2")
REMOVAL = Change(name="nginx-old", arch="amd64", before="1")
TRANSACTION = Transaction(manager="apt", requested=(TARGET.key,), changes=(UPGRADE, REMOVAL))


def params_of(transaction=TRANSACTION, *targets, **changes):
    """What would be ordered, in base64."""
    values = {"manager": transaction.manager, "plan_hash": transaction.plan_hash, **changes}
    return b64encode(dump_params(UpgradeParams(packages=targets or (TARGET,), **values)))


def item(number=0, **changes):
    """One command that is to be approved."""
    values = {
        "agent_id": f"{AGENT[:-4]}{number:04x}",
        "hostname": f"web-{number}",
        "machine_binding": "ab" * 16,
        "type": "packages.upgrade",
        "params": params_of(),
        "transaction": TRANSACTION,
    }
    return ApprovalItem(**{**values, **changes})


def request(*items, **changes):
    """What a server asks for."""
    values = {"server": SERVER, "root_fp": "a" * 64, "organization": AGENT, "organization_name": "Default"}
    return ApprovalRequest(**{**values, "items": items or (item(),), **changes})


def test_a_request_comes_back_as_it_was():
    """What the server writes, the operator's tool reads."""
    asked = request(item(0), item(1))

    assert asked == parse_request(dump_request(asked))


def test_an_answer_comes_back_with_what_was_signed():
    """The leaves in it are those of the request in their order, and the approval covers exactly them."""
    asked = request(item(1), item(0))
    approval = new_approval(
        asked.leaves, approval_id=SERVER, root_fp=asked.root_fp, organization=asked.organization, now=START
    )

    answer = parse_answer(dump_answer(sign_approval(approval, KEY), asked))

    opened = open_approval(answer.wire, {KEY.key_id: KEY.verify_key})
    assert asked.leaves == answer.leaves
    assert covers(opened, answer.leaves)
    assert not covers(opened, answer.leaves[::-1])


@pytest.mark.parametrize("field", ["server", "root_fp", "organization", "organization_name"])
@pytest.mark.parametrize("text", ["", "a\nb", "x" * 300])
def test_texts_of_a_request_are_bounded_lines(field, text):
    """Nothing empty, nothing of several lines, nothing endless."""
    with pytest.raises(ValueError, match=field):
        request(**{field: text})


@pytest.mark.parametrize("field", ["agent_id", "hostname", "machine_binding", "type", "params"])
@pytest.mark.parametrize("text", ["", "a\nb", "?" * 50_000])
def test_texts_of_an_item_are_bounded(field, text):
    """Of an empty parameter text nothing could be shown: `check_transaction` says that."""
    if (field, text) == ("params", ""):
        with pytest.raises(MalformedError):
            check_transaction(item(params=""))
        return
    with pytest.raises((ValueError, MalformedError)):
        item(**{field: text})


def test_a_request_has_at_least_one_command_and_not_too_many():
    """`MAX_APPROVAL_ITEMS`, and not one more."""
    most = [item(number) for number in range(MAX_APPROVAL_ITEMS)]
    assert MAX_APPROVAL_ITEMS == len(request(*most).leaves)
    for items in ((), (*most, item(MAX_APPROVAL_ITEMS))):
        with pytest.raises(ValueError, match="items"):
            request(items=items)


def test_a_command_is_asked_for_once():
    """The same machine, type and parameters twice would be one leaf twice."""
    with pytest.raises(ValueError, match="named once"):
        request(item(), item(hostname="another name"))


def test_files_have_a_bound():
    """Beyond it they are not even taken apart."""
    with pytest.raises(TooLargeError):
        parse_request(b" " * (MAX_REQUEST_BYTES + 1))
    with pytest.raises(TooLargeError):
        parse_answer(b" " * (MAX_ANSWER_BYTES + 1))


def test_a_full_answer_is_within_its_bound():
    """Of as many commands as one file may have."""
    asked = request(*(item(number) for number in range(MAX_APPROVAL_ITEMS)))

    assert asked.leaves == parse_answer(dump_answer(b"x" * 12_000, asked)).leaves


def test_what_nobody_could_read_is_not_written():
    """A request of many large transactions says to ask for less."""
    changes = (UPGRADE, *(Change(name=f"p{n}", arch="amd64", before="1") for n in range(1_999)))
    large = Transaction(manager="apt", requested=(TARGET.key,), changes=changes)

    with pytest.raises(MalformedError, match="ask for less"):
        dump_request(request(*(item(n, params=params_of(large), transaction=large) for n in range(60))))


@pytest.mark.parametrize("parse", [parse_request, parse_answer])
@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_file_or_malformed(parse, data):
    """Nothing else is raised."""
    with pytest.raises(MalformedError):
        parse(data)


@pytest.mark.parametrize(
    "value, parse",
    [(request(), parse_request), (ApprovalAnswer(envelope="eA==", leaves=request().leaves), parse_answer)],
    ids=["request", "answer"],
)
@given(data=st.data())
def test_a_damaged_file_is_a_file_or_malformed(value, parse, data):
    """A field replaced, taken out or added: a value, or the one documented error."""
    document = parse_json(codec.dump(value), max_bytes=MAX_REQUEST_BYTES)
    place = document
    if data.draw(st.booleans()):
        place = document.get("items", document.get("leaves"))[0]
    name = data.draw(st.sampled_from([*place, "more"]))
    what = data.draw(st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just([]) | st.just({}))
    if data.draw(st.booleans()):
        place[name] = what
    else:
        place.pop(name, None)
    try:
        parsed = parse(dump_json(document))
    except MalformedError:
        return
    assert isinstance(parsed, type(value))


# --- what would be changed ---


def test_what_would_be_changed_is_what_has_the_hash():
    """The transaction of the file is believed because the parameters name its hash."""
    assert TRANSACTION == check_transaction(item())


@pytest.mark.parametrize(
    "changed",
    [
        None,
        attrs.evolve(TRANSACTION, changes=(UPGRADE,)),
        attrs.evolve(TRANSACTION, changes=(UPGRADE, attrs.evolve(REMOVAL, name="harmless"))),
        attrs.evolve(TRANSACTION, manager="dnf"),
    ],
    ids=["none", "fewer", "others", "manager"],
)
def test_other_changes_than_those_to_be_signed_are_refused(changed):
    """A server that shows an update and has a removal signed gets nothing."""
    with pytest.raises(MalformedError, match="do not trust this file"):
        check_transaction(item(transaction=changed))


def test_another_manager_than_that_of_the_order_is_refused():
    """The hash is right, and the order is for somebody else."""
    with pytest.raises(MalformedError, match="do not trust this file"):
        check_transaction(item(params=params_of(manager="dnf")))


def test_other_targets_than_those_of_the_changes_are_refused():
    """What the order asks for is what the changes are for."""
    more = PackageTarget(name="nginx-old", arch="amd64", installed="1", available="2")

    with pytest.raises(MalformedError, match="asks for"):
        check_transaction(item(params=params_of(TRANSACTION, TARGET, more)))


@pytest.mark.parametrize(
    "kind, params",
    [
        ("scan.run", dump_params(ScanParams())),
        ("packages.plan", dump_params(PlanParams("apt", (TARGET,)))),
        ("packages.remove", b"{}"),
        ("no.such_type", b"{}"),
        ("packages.upgrade", b"{}"),
        ("packages.upgrade", b"\xff"),
    ],
)
def test_only_what_can_be_shown_is_approved(kind, params):
    """Another type, or parameters that are none of the type."""
    with pytest.raises(MalformedError):
        check_transaction(item(type=kind, params=b64encode(params)))


@pytest.mark.parametrize("standing", [{"authenticated": False}, {"held": True}], ids=str)
def test_what_no_machine_carries_out_is_not_approved(standing):
    """No approval stands in for the signature of a repository, or for the word of the owner."""
    never = attrs.evolve(TRANSACTION, changes=(attrs.evolve(UPGRADE, **standing), REMOVAL))

    with pytest.raises(MalformedError, match="no approval allows this"):
        check_transaction(item(params=params_of(never), transaction=never))


def test_a_leaf_names_machine_type_and_exact_parameters():
    """Each of them makes another leaf; the claimed name of the machine does not."""
    first = item()
    others = [
        item(agent_id=SERVER),
        item(machine_binding="cd" * 16),
        item(type="packages.plan"),
        item(params=params_of(plan_hash="b" * 64)),
    ]

    assert len({first.leaf, *(other.leaf for other in others)}) == 1 + len(others)
    assert first.leaf == item(hostname="db-1").leaf
    assert (PackageKey("nginx", "amd64"),) == TRANSACTION.requested
