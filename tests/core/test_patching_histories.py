"""
One package over its whole history: scans, people, plans, installations and reboots, in any order.

The machine remembers only what people said last. So it shows what the table of moves has to keep, whatever its
lines are: nothing is planned or installed that people have not agreed to since the package last stood open.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from redflag_core.patching import ALLOWED, MOVES, Move, Sighting, can, move
from redflag_core.patching.states import UNDECIDED
from redflag_core.scanning import PENDING_STATES, SCANNED_STATES, PackageState, fold
from redflag_core.scanning.states import RUNNING

S = PackageState

SIGHTINGS = st.builds(
    Sighting,
    observed=st.sampled_from(sorted(SCANNED_STATES)),
    present=st.sampled_from((True, True, True, False)),
    scan_ok=st.sampled_from((True, True, True, False)),
    damaged=st.booleans(),
    newer=st.booleans(),
)
PEOPLE = (Move.APPROVE, Move.EXCLUDE, Move.DEFER, Move.REOPEN, Move.CONFIRM)
OTHERS = tuple(sorted(set(MOVES) - set(PEOPLE)))

AGREED = {S.APPROVED, S.PLANNING, S.NEEDS_CONFIRMATION, S.INSTALLING}
"""Something is going to be done, or is being done, because people said so."""

DONE = {S.INSTALLED, S.REBOOT_PENDING}
PUT_AWAY = {Move.EXCLUDE: S.EXCLUDED, Move.DEFER: S.DEFERRED}


class PackageHistory(RuleBasedStateMachine):
    """One package, and what people said of it last."""

    @initialize(seen=SIGHTINGS)
    def first_scan(self, seen: Sighting) -> None:
        self.seen, self.agreed, self.told = seen, False, False
        self.state = fold(None, seen.observed if seen.present else None, scan_ok=seen.scan_ok)

    @rule(seen=SIGHTINGS)
    def scan(self, seen: Sighting) -> None:
        """A scan ends: it shows what is there, and takes back nothing that people said about an update."""
        before, self.seen = self.state, seen
        observed = seen.observed if seen.present else None
        self._change(fold(before, observed, scan_ok=seen.scan_ok, damaged=seen.damaged))
        has_update = seen.scan_ok and observed in PENDING_STATES
        if before in RUNNING or (before not in UNDECIDED and has_update):
            assert self.state is before

    @rule(how=st.sampled_from(PEOPLE))
    def people(self, how: Move) -> None:
        """Somebody decides. Who says no has said no."""
        if not self._try(how):
            return
        if how is Move.APPROVE:
            self.agreed = True
        elif how is not Move.CONFIRM:
            self.agreed = False
            assert self.state is PUT_AWAY.get(how, self.seen.state)

    @rule(how=st.sampled_from(OTHERS))
    def happens(self, how: Move) -> None:
        """A plan begins or ends; the machine begins, ends, fails, is started anew, or says late what it did."""
        self._try(how)

    @invariant()
    def nothing_happens_that_people_did_not_agree_to(self) -> None:
        assert self.agreed or self.state not in AGREED

    @invariant()
    def it_is_installed_only_if_its_machine_said_so(self) -> None:
        assert self.told or self.state not in DONE

    @invariant()
    def there_is_always_a_way_on(self) -> None:
        """A scan that sees an update, or something that can happen, leads out of every state."""
        seen = Sighting(observed=S.AVAILABLE)
        after = {move(self.state, how, seen) for how in MOVES if can(self.state, how, seen)}
        assert {fold(self.state, S.AVAILABLE, scan_ok=True), *after} - {self.state} or self.state is S.AVAILABLE

    def _try(self, how: Move) -> bool:
        if not can(self.state, how, self.seen):
            return False
        self.told = self.told or how in (Move.INSTALL_DONE, Move.INSTALL_NEEDS_REBOOT, Move.REBOOTED)
        self._change(move(self.state, how, self.seen))
        return True

    def _change(self, state: PackageState) -> None:
        """What ends leaves no agreement behind: the next update needs one of its own."""
        assert state is self.state or (self.state, state) in ALLOWED
        self.state = state
        self.agreed = self.agreed and state in AGREED
        self.told = self.told and state in DONE


TestPackageHistory = PackageHistory.TestCase
TestPackageHistory.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
