"""What the end of a command means: nothing that failed looks fine, nothing that was not touched looks failed."""

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core.command_queue import CommandState
from redflag_core.patching import Change, Move, PackageTarget, PlanState, Transaction
from redflag_core.patching.results import HARMLESS, Ended, Ending, after_installing, after_planning, why_confirm
from redflag_core.scanning import PackageKey
from redflag_core.statements import CommandResult, Outcome, PackageOutcome, PackageResult

A, B = (PackageTarget(name=name, arch="amd64", installed="1.0", available="2.0") for name in "ab")
EXTRA = Change(name="lib", arch="amd64", after="1.0")
STATES = {
    Outcome.COMPLETED: CommandState.COMPLETED,
    Outcome.FAILED: CommandState.FAILED,
    Outcome.INTERRUPTED: CommandState.INTERRUPTED,
    Outcome.CANCELLED: CommandState.CANCELLED,
}
ENDED = [CommandState.FAILED, CommandState.INTERRUPTED, CommandState.CANCELLED, CommandState.EXPIRED]


def upgrade(target: PackageTarget) -> Change:
    """The change that was asked for."""
    return Change(name=target.name, arch=target.arch, before=target.installed, after=target.available)


def transaction(*targets: PackageTarget, extra: tuple[Change, ...] = (), **changes: Any) -> Transaction:
    """A transaction that brings these to their versions."""
    made = Transaction(
        manager="apt",
        requested=tuple(target.key for target in targets),
        changes=(*(upgrade(target) for target in targets), *extra),
    )
    return attrs.evolve(made, **changes)


def said(target: PackageTarget, outcome: PackageOutcome, reason: str | None = None) -> PackageResult:
    """What a machine says of one package."""
    return PackageResult(name=target.name, arch=target.arch, outcome=outcome, installed="1.0", reason=reason)


def ended(outcome: Outcome, *packages: PackageResult, started: bool = True, **changes: Any) -> Ended:
    """A command that ended with a signed result."""
    failure = {} if outcome is Outcome.COMPLETED else {"code": "broken", "detail": "it broke"}
    result = CommandResult(
        server="5f2d7a52-6f5b-4d0c-9a55-3c1f0e6b7d90",
        agent_id="01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e61",
        cmd_id="01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e62",
        digest="0" * 64,
        body="0" * 64,
        outcome=outcome,
        started_at=1_767_346_200 if started else None,
        finished_at=1_767_346_260,
        packages=packages,
        **{**failure, **changes},
    )
    return Ended(state=STATES[outcome], code=result.code, detail=result.detail, result=result)


def moves(ending: Ending) -> dict[str, Move]:
    """How each package moves, by name."""
    return {key.name: fate.move for key, fate in ending.fates.items()}


def planned(end: Ended, *targets: PackageTarget) -> Ending:
    """The end of a plan."""
    return after_planning(targets or (A, B), end, manager="apt")


def installed(
    end: Ended, *targets: PackageTarget, of: Transaction | None = None, restarted: bool = False
) -> Ending:
    """The end of an installation."""
    wanted = targets or (A, B)
    return after_installing(wanted, end, transaction=of or transaction(*wanted), restarted=restarted)


# --- plans ---


def test_a_plan_that_does_what_was_asked_is_ready():
    """Nothing to confirm."""
    end = ended(
        Outcome.COMPLETED,
        said(A, PackageOutcome.PLANNED),
        said(B, PackageOutcome.PLANNED),
        transaction=transaction(A, B),
    )

    ending = planned(end)

    assert (PlanState.READY, {"a": Move.PLAN_CLEAN, "b": Move.PLAN_CLEAN}) == (ending.plan, moves(ending))


@pytest.mark.parametrize(
    "extra, word",
    [
        (EXTRA, "1 package that nobody asked for"),
        (Change(name="old", arch="amd64", before="1.0"), "removal"),
        (Change(name="old", arch="amd64", before="2.0", after="1.0", downgrade=True), "downgrade"),
        (attrs.evolve(EXTRA, held=True), "held"),
        (attrs.evolve(EXTRA, authenticated=False), "unauthenticated"),
    ],
    ids=lambda value: value.name if isinstance(value, Change) else value,
)
def test_a_plan_with_more_than_was_asked_needs_confirmation(extra: Change, word: str):
    """Each kind of extra change is named to the one who must look."""
    end = ended(Outcome.COMPLETED, said(A, PackageOutcome.PLANNED), transaction=transaction(A, extra=(extra,)))

    ending = planned(end, A)

    assert (PlanState.NEEDS_CONFIRMATION, {"a": Move.PLAN_EXTRA}) == (ending.plan, moves(ending))
    assert word in (ending.fates[A.key].reason or "")


def test_a_requested_change_that_is_beyond_routine_needs_confirmation_too():
    """Also without any extra package: an update from a repository whose signature nobody checked."""
    change = attrs.evolve(upgrade(A), authenticated=False)

    assert "unauthenticated" in (why_confirm(transaction(A, changes=(change,))) or "")
    assert why_confirm(transaction(A)) is None


def test_each_package_of_a_plan_has_its_own_fate():
    """Held and stale ones leave it; the rest goes on."""
    c = attrs.evolve(A, name="c")
    end = ended(
        Outcome.COMPLETED,
        said(A, PackageOutcome.PLANNED),
        said(B, PackageOutcome.HELD, "apt-mark hold"),
        said(c, PackageOutcome.STALE),
        transaction=transaction(A),
    )

    ending = planned(end, A, B, c)

    assert PlanState.READY is ending.plan
    assert {"a": Move.PLAN_CLEAN, "b": Move.PLAN_HELD, "c": Move.PLAN_DROPPED} == moves(ending)
    assert "apt-mark hold" == ending.fates[B.key].reason
    assert ending.fates[c.key].reason


def test_a_plan_of_nothing_is_dropped():
    """When every package is held there is nothing to install."""
    ending = planned(ended(Outcome.COMPLETED, said(A, PackageOutcome.HELD)), A)

    assert (PlanState.DROPPED, {"a": Move.PLAN_HELD}) == (ending.plan, moves(ending))
    assert ending.detail


def test_a_machine_that_has_nothing_to_do_says_why_of_each_package():
    """All held or replaced by newer versions: no package has failed, and the approval of the stale ones stays."""
    end = ended(
        Outcome.FAILED,
        said(A, PackageOutcome.HELD),
        said(B, PackageOutcome.STALE, "2.0 by now"),
        code="nothing_to_do",
        detail="nothing of this can be changed now",
    )

    ending = planned(end)

    assert (PlanState.DROPPED, {"a": Move.PLAN_HELD, "b": Move.PLAN_DROPPED}) == (ending.plan, moves(ending))
    assert "2.0 by now" == ending.fates[B.key].reason


@pytest.mark.parametrize(
    "end",
    [
        ended(Outcome.COMPLETED, said(A, PackageOutcome.PLANNED), transaction=transaction(B)),
        ended(Outcome.COMPLETED, said(A, PackageOutcome.PLANNED), transaction=transaction(A, B)),
        ended(Outcome.COMPLETED, said(A, PackageOutcome.PLANNED)),
        ended(Outcome.COMPLETED, said(A, PackageOutcome.HELD), transaction=transaction(A)),
        ended(Outcome.COMPLETED, said(A, PackageOutcome.PLANNED), transaction=transaction(A, manager="dnf")),
        ended(
            Outcome.COMPLETED,
            said(A, PackageOutcome.PLANNED),
            said(B, PackageOutcome.PLANNED),
            transaction=transaction(A, B),
        ),
    ],
)
def test_an_answer_about_something_else_is_no_plan(end: Ended):
    """Other packages, another manager, or a transaction that does not fit what was said: failed, not ready."""
    ending = planned(end, A)

    assert (PlanState.FAILED, "malformed", {"a": Move.PLAN_FAILED}) == (ending.plan, ending.code, moves(ending))


def test_a_package_that_the_machine_forgot_is_failed():
    """Silence is not consent."""
    ending = planned(ended(Outcome.COMPLETED, said(A, PackageOutcome.PLANNED), transaction=transaction(A)))

    assert {"a": Move.PLAN_CLEAN, "b": Move.PLAN_FAILED} == moves(ending)


def test_a_plan_that_could_not_be_made_is_failed_with_its_reason():
    """The code and the sentence of the machine are what people see."""
    ending = planned(ended(Outcome.FAILED), A)

    assert (PlanState.FAILED, "broken", "it broke") == (ending.plan, ending.code, ending.detail)
    assert (Move.PLAN_FAILED, "it broke") == attrs.astuple(ending.fates[A.key])


def test_a_plan_that_was_cut_off_leaves_the_approval():
    """An agent that is restarted while it plans has changed nothing: the packages wait for the next plan."""
    ending = planned(ended(Outcome.INTERRUPTED, code="interrupted", detail="restarted"))

    assert (PlanState.DROPPED, "interrupted", "restarted") == (ending.plan, ending.code, ending.detail)
    assert {"a": Move.PLAN_DROPPED, "b": Move.PLAN_DROPPED} == moves(ending)
    assert "restarted" == ending.fates[A.key].reason


# --- installations ---


def test_what_was_installed_is_installed():
    """Nothing else to say."""
    ending = installed(ended(Outcome.COMPLETED, said(A, PackageOutcome.INSTALLED)), A)

    assert (PlanState.DONE, {"a": Move.INSTALL_DONE}) == (ending.plan, moves(ending))


def test_a_half_failed_installation_is_failed_and_each_package_is_what_it_is():
    """What was installed stays installed; the plan as a whole is not done."""
    end = ended(Outcome.FAILED, said(A, PackageOutcome.INSTALLED), said(B, PackageOutcome.FAILED, "postinst"))

    ending = installed(end)

    assert (PlanState.FAILED, "broken") == (ending.plan, ending.code)
    assert {"a": Move.INSTALL_DONE, "b": Move.INSTALL_FAILED} == moves(ending)
    assert "postinst" == ending.fates[B.key].reason


@pytest.mark.parametrize(
    "outcome, expected",
    [(Outcome.FAILED, Move.INSTALL_FAILED), (Outcome.INTERRUPTED, Move.INSTALL_DROPPED)],
)
def test_a_package_that_an_unhappy_end_did_not_reach(outcome: Outcome, expected: Move):
    """After a failure it failed; after an interruption it waits as before: nothing is wrong with it."""
    ending = installed(ended(outcome, said(A, PackageOutcome.INSTALLED), said(B, PackageOutcome.UNCHANGED)))

    assert {"a": Move.INSTALL_DONE, "b": expected} == moves(ending)
    assert PlanState.FAILED is ending.plan


@pytest.mark.parametrize("outcome", [None, *sorted(set(PackageOutcome) - {PackageOutcome.INSTALLED})])
def test_completed_is_not_enough(outcome: PackageOutcome | None):
    """A command that completed without installing a package has failed for it."""
    packages = () if outcome is None else (said(A, outcome),)

    ending = installed(ended(Outcome.COMPLETED, *packages), A)

    assert (PlanState.FAILED, {"a": Move.INSTALL_FAILED}) == (ending.plan, moves(ending))
    assert ending.fates[A.key].reason


@pytest.mark.parametrize("code", sorted(HARMLESS))
@pytest.mark.parametrize("by_result", [True, False])
def test_what_was_never_started_leaves_the_approval(code: str, by_result: bool):
    """Drifted, too late, cancelled or given up: nothing is wrong with the packages."""
    end = (
        ended(Outcome.FAILED, started=False, code=code)
        if by_result
        else Ended(state=CommandState.FAILED, code=code, detail="never")
    )

    ending = installed(end)

    assert (PlanState.DROPPED, {"a": Move.INSTALL_DROPPED, "b": Move.INSTALL_DROPPED}) == (
        ending.plan,
        moves(ending),
    )


@pytest.mark.parametrize("code", ["needs_approval", "local_limit", "unknown_command", "scan_failed"])
@pytest.mark.parametrize("by_result", [True, False])
def test_a_refusal_that_people_must_see_is_a_failure(code: str, by_result: bool):
    """What the machine does not allow is shown at the package, though nothing was started."""
    end = (
        ended(Outcome.FAILED, started=False, code=code)
        if by_result
        else Ended(state=CommandState.FAILED, code=code, detail="never")
    )

    ending = installed(end, A)

    assert (PlanState.FAILED, code, {"a": Move.INSTALL_FAILED}) == (ending.plan, ending.code, moves(ending))


@pytest.mark.parametrize("state", [CommandState.CANCELLED, CommandState.EXPIRED])
def test_what_was_given_up_here_leaves_the_approval(state: CommandState):
    """For plans and for installations."""
    end = Ended(state=state, code="released", detail="nobody answers")

    assert {"a": Move.PLAN_DROPPED} == moves(planned(end, A))
    assert {"a": Move.INSTALL_DROPPED} == moves(installed(end, A))


def test_a_code_that_sounds_harmless_is_none_once_the_work_was_started():
    """`cancelled` after the start is a failure to look at."""
    ending = installed(ended(Outcome.FAILED, said(A, PackageOutcome.FAILED), code="cancelled"), A)

    assert {"a": Move.INSTALL_FAILED} == moves(ending)


# --- reboots ---


@pytest.mark.parametrize(
    "required, by, waiting",
    [
        (True, ("a",), {"a"}),
        (True, ("a", "b"), {"a", "b"}),
        (True, ("lib",), {"a", "b"}),
        (True, (), {"a", "b"}),
        (True, ("something-else",), set()),
        (False, ("a",), set()),
        (None, ("a",), set()),
    ],
)
def test_a_package_waits_for_the_reboot_that_it_asks_for(
    required: bool | None, by: tuple[str, ...], waiting: set[str]
):
    """Named ones wait; all do when what they brought asks or nobody says who; other reboots do not count."""
    end = ended(
        Outcome.COMPLETED,
        said(A, PackageOutcome.INSTALLED),
        said(B, PackageOutcome.INSTALLED),
        reboot_required=required,
        reboot_by=by,
    )

    ending = installed(end, of=transaction(A, B, extra=(EXTRA,)))

    assert PlanState.DONE is ending.plan
    assert waiting == {name for name, how in moves(ending).items() if how is Move.INSTALL_NEEDS_REBOOT}


def test_a_machine_that_was_started_anew_since_waits_for_nothing():
    """A result that is delivered after the reboot."""
    end = ended(Outcome.COMPLETED, said(A, PackageOutcome.INSTALLED), reboot_required=True, reboot_by=("a",))

    assert {"a": Move.INSTALL_DONE} == moves(installed(end, A, restarted=True))


def test_what_failed_does_not_wait_for_a_reboot():
    """A failure is a failure first."""
    end = ended(Outcome.FAILED, said(A, PackageOutcome.FAILED), reboot_required=True, reboot_by=("a",))

    assert {"a": Move.INSTALL_FAILED} == moves(installed(end, A))


# --- anything at all ---

ANY_SAID = st.lists(
    st.tuples(st.sampled_from([A, B, attrs.evolve(A, name="c")]), st.sampled_from(PackageOutcome)),
    unique_by=lambda pair: pair[0].key,
)
ANY_TRANSACTION = st.none() | st.builds(
    transaction, st.sampled_from([A, B]), extra=st.sampled_from([(), (EXTRA,)])
)


@given(
    outcome=st.sampled_from(Outcome),
    packages=ANY_SAID,
    found=ANY_TRANSACTION,
    started=st.booleans(),
    reboot=st.sampled_from([None, True, False]),
)
def test_whatever_a_machine_says_every_package_has_a_fate(outcome: Outcome, packages, found, started, reboot):
    """A signed result may hold anything: each package asked for gets exactly one fate, and none else."""
    end = ended(
        outcome,
        *(said(target, what) for target, what in packages),
        started=started,
        transaction=found,
        reboot_required=reboot,
    )

    for ending in (planned(end), installed(end)):
        assert {PackageKey("a", "amd64"), PackageKey("b", "amd64")} == set(ending.fates)
        assert ending.plan is not PlanState.DONE or set(moves(ending).values()) <= {
            Move.INSTALL_DONE,
            Move.INSTALL_NEEDS_REBOOT,
        }
        if ending.plan in (PlanState.READY, PlanState.NEEDS_CONFIRMATION):
            assert end.result is not None
            assert end.result.transaction is not None


@given(state=st.sampled_from(ENDED), code=st.sampled_from([*sorted(HARMLESS), "needs_approval", "released"]))
def test_whatever_ends_without_a_result_has_a_fate_too(state: CommandState, code: str):
    """And it is never "installed" or "ready"."""
    end = Ended(state=state, code=code, detail="x")

    assert {Move.PLAN_DROPPED, Move.PLAN_FAILED} >= set(moves(planned(end)).values())
    assert {Move.INSTALL_DROPPED, Move.INSTALL_FAILED} >= set(moves(installed(end)).values())
