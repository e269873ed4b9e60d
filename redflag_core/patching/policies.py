"""
Approval policies: what becomes of an update before people look at it.

Three rules hold for the whole file. Rules are tried in order and *the first that matches decides*; but *a
rejection anywhere wins*. *Nothing that a policy decides stands above people, above a hold on the machine, or above
something that is running.* Where no rule matches, people decide.

A dry run is the same function: it changes nothing by itself.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

import attrs
from attrs import validators

from redflag_core import codec
from redflag_core._fields import UUID, each_once, line
from redflag_core.patching.states import ADVICE, DECISIONS, UNDECIDED, Decision, Move, Sighting, can
from redflag_core.patching.zones import aware
from redflag_core.scanning import Package, PackageState, Severity
from redflag_core.scanning.model import CVE
from redflag_core.scanning.states import RUNNING

POLICY_VERSION: Final = 1
"""Version of the stored form."""

MAX_RULES: Final = 50
"""Most rules of a policy: what people can still read in order."""

MAX_ITEMS: Final = 20
"""Most values of one condition: beyond, write a rule of its own."""

MAX_PATTERN: Final = 128
"""Longest pattern for names: half the longest name."""

MAX_LABEL: Final = 64
"""Longest tag, and longest name of a rule or a policy: it has to fit into a sentence."""

MAX_DEFER_DAYS: Final = 365
"""Longest deferral: what is not wanted within a year is rejected."""

MAX_POLICY_BYTES: Final = 1024 * 1024
"""Largest stored form: every condition of every rule full of the longest texts takes less."""

_PLAIN_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")
_ANY: Final = "*"


class Action(StrEnum):
    """What a rule does with an update that it matches."""

    APPROVE = "approve"
    REJECT = "reject"
    DEFER = "defer"
    """Put off until the update has a certain age. From then on the rule does not match, and the next is tried."""
    LEAVE = "leave"
    """Leave it to people, whatever later rules say."""


_AS_DECIDED: Final[Mapping[Action, Decision]] = {
    Action.APPROVE: Decision.APPROVE,
    Action.REJECT: Decision.REJECT,
    Action.DEFER: Decision.DEFER,
    Action.LEAVE: Decision.REOPEN,
}
_RESULT: Final[Mapping[Action, PackageState]] = {
    Action.APPROVE: PackageState.APPROVED,
    Action.REJECT: PackageState.EXCLUDED,
    Action.DEFER: PackageState.DEFERRED,
}

_WANTS_PEOPLE: Final = frozenset({PackageState.NEEDS_CONFIRMATION, PackageState.FAILED, PackageState.ROLLED_BACK})
"""Something happened that people have to look at. A policy may still reject it, and never tries it again."""

_NOTHING_NEW: Final = frozenset({PackageState.CURRENT, PackageState.INSTALLED, PackageState.NOT_APPLICABLE})


def _items(validator: Any) -> Any:
    return attrs.field(
        default=(),
        validator=[
            validators.deep_iterable(validator, validators.max_len(MAX_ITEMS)),
            each_once("a value", lambda item: item),
        ],
    )


@attrs.frozen(kw_only=True)
class When:
    """
    Which updates a rule is about: those for which everything that is said holds.

    Attributes:
        everything: Whether it is about all of them. It has to be said: a forgotten condition approves nothing.
        cves: It closes one of these.
        severity_at_least: It is at least as severe. One of unknown severity only is for ``unknown``.
        severities: It has one of these severities.
        names: Its package has a name like one of these: ``*`` is any text, everything else is itself; case does
            not matter.
        managers: One of these package managers.
        scanners: Seen by one of these scanners.
        tags: The machine has one of these tags.
        security: Whether it comes from a security repository.
    """

    everything: bool = False
    cves: tuple[str, ...] = _items(validators.matches_re(CVE))
    severity_at_least: Severity | None = None
    severities: tuple[Severity, ...] = _items(validators.instance_of(Severity))
    names: tuple[str, ...] = _items(line(MAX_PATTERN))
    managers: tuple[str, ...] = _items(validators.matches_re(_PLAIN_NAME))
    scanners: tuple[str, ...] = _items(validators.matches_re(_PLAIN_NAME))
    tags: tuple[str, ...] = _items(line(MAX_LABEL))
    security: bool | None = None

    def __attrs_post_init__(self) -> None:
        """It says what it is about, and says it once."""
        if self.everything == bool(self.conditions):
            raise ValueError("say what a rule is about, or everything, and not both")

    @property
    def conditions(self) -> tuple[str, ...]:
        """What has to hold, for people."""
        said = [
            f"{name} {' or '.join(items)}"
            for name, items in (
                ("closes", self.cves),
                ("severity", self.severities),
                ("name", self.names),
                ("manager", self.managers),
                ("scanner", self.scanners),
                ("tag", self.tags),
            )
            if items
        ]
        if self.severity_at_least is not None:
            said.append(f"severity at least {self.severity_at_least}")
        if self.security is not None:
            said.append("security update" if self.security else "no security update")
        return tuple(said)

    def __str__(self) -> str:
        return ", ".join(self.conditions) or "everything"

    def matches(self, update: "Update") -> bool:
        """Whether it is about *update*."""
        package = update.package
        return (
            _one_of(self.cves, package.cves)
            and (self.severity_at_least is None or package.severity.rank >= self.severity_at_least.rank)
            and _one_of(self.severities, (package.severity,))
            and (not self.names or any(name_matches(pattern, package.name) for pattern in self.names))
            and _one_of(self.managers, (update.manager,))
            and _one_of(self.scanners, (update.scanner,))
            and _one_of(self.tags, update.tags)
            and self.security in (None, package.security)
        )


def _one_of(wanted: Sequence[str], there: Sequence[str]) -> bool:
    return not wanted or not set(wanted).isdisjoint(there)


def name_matches(pattern: str, name: str) -> bool:
    """
    Whether *name* is like *pattern*, in time that grows with their lengths and no faster.

    Args:
        pattern: ``*`` is any text, also none; everything else is itself. Untrusted, bounded by `MAX_PATTERN`.
        name: Untrusted.
    """
    first, *rest = pattern.lower().split(_ANY)
    name = name.lower()
    if not rest:
        return name == first
    *middle, last = rest
    if len(name) < len(first) + len(last) or not name.startswith(first) or not name.endswith(last):
        return False
    place, end = len(first), len(name) - len(last)
    for part in middle:
        # The leftmost place leaves the most for what comes after: there is no need to try another.
        found = name.find(part, place, end)
        if found < 0:
            return False
        place = found + len(part)
    return True


@attrs.frozen(kw_only=True)
class PolicyRule:
    """
    What to do with some updates.

    Attributes:
        name: For people, and to say which rule decided.
        when: Which ones.
        action: What to do.
        days: For ``defer``, how old an update must be. Its age counts from when it was published, or first seen.
    """

    name: str = attrs.field(validator=line(MAX_LABEL))
    when: When
    action: Action
    days: int | None = attrs.field(
        default=None, validator=validators.optional([validators.ge(1), validators.le(MAX_DEFER_DAYS)])
    )

    def __attrs_post_init__(self) -> None:
        """Days are said exactly when something is deferred."""
        if (self.days is None) == (self.action is Action.DEFER):
            raise ValueError("say for how many days it defers, and days only for defer")

    def __str__(self) -> str:
        days = "" if self.days is None else f" {self.days} day{'' if self.days == 1 else 's'}"
        return f"{self.action}{days}: {self.when}"


@attrs.frozen(kw_only=True)
class PolicyScope:
    """
    For which machines a policy is. To choose the policies of a machine is the caller's.

    Attributes:
        organization_id: Its organization; None for all.
        site_id: A site of it; None for all.
        tag: Machines with this tag; None for all.
    """

    organization_id: str | None = attrs.field(default=None, validator=validators.optional(UUID))
    site_id: str | None = attrs.field(default=None, validator=validators.optional(UUID))
    tag: str | None = attrs.field(default=None, validator=validators.optional(line(MAX_LABEL)))


@attrs.frozen(kw_only=True)
class ApprovalPolicy:
    """
    An ordered list of rules, and its stored form.

    Attributes:
        v: Version of the stored form.
        name: For people.
        scope: For which machines it is.
        rules: In the order in which they are tried, each name once.
    """

    v: int = attrs.field(default=POLICY_VERSION, validator=validators.in_((POLICY_VERSION,)))
    name: str = attrs.field(validator=line(MAX_LABEL))
    scope: PolicyScope = PolicyScope()
    rules: tuple[PolicyRule, ...] = attrs.field(
        validator=[
            validators.min_len(1),
            validators.max_len(MAX_RULES),
            each_once("a rule", lambda rule: rule.name),
        ]
    )


def dump_policy(policy: ApprovalPolicy) -> bytes:
    """The stored form: canonical JSON with its version."""
    return codec.dump(policy)


def load_policy(data: bytes) -> ApprovalPolicy:
    """
    Read the stored form.

    Args:
        data: Untrusted.

    Raises:
        MalformedError: It is none, or of another version. The message names the field.
    """
    return codec.parse(ApprovalPolicy, data, max_bytes=MAX_POLICY_BYTES)


# --- the decision -----------------------------------------------------------------------------------------------


class DecidedBy(StrEnum):
    """Whose decision holds for a package now."""

    NOBODY = "nobody"
    POLICY = "policy"
    PEOPLE = "people"


@attrs.frozen(kw_only=True)
class Update:
    """
    An update of a package on one machine.

    Attributes:
        package: As the last scan saw it.
        state: Its state on record.
        decided_by: Whose decision that is.
        until: When that decision ends, aware; None for without an end.
        scan_ok: Whether the last scan succeeded.
        manager: Package manager.
        scanner: Scanner that saw it.
        tags: Tags of the machine.
        first_seen: When this version was first seen here, aware.
        published: When it was published, aware, where somebody says so.
    """

    package: Package
    state: PackageState
    decided_by: DecidedBy = DecidedBy.NOBODY
    until: datetime | None = None
    scan_ok: bool = True
    manager: str
    scanner: str
    tags: tuple[str, ...] = ()
    first_seen: datetime
    published: datetime | None = None

    @property
    def seen(self) -> Sighting:
        """What scans say of it."""
        return Sighting(observed=self.package.state, scan_ok=self.scan_ok)

    @property
    def since(self) -> datetime:
        """From when its age counts, aware UTC: nothing that is here was published after it was seen here."""
        moments = [self.first_seen] if self.published is None else [self.first_seen, self.published]
        return min(map(aware, moments))


@attrs.frozen(kw_only=True)
class PolicyDecision:
    """
    What policies say about an update.

    Attributes:
        action: What becomes of it; ``leave`` when people decide, or when nothing can be decided.
        why: A sentence for people.
        policy: Name of the policy whose rule decided, if one did.
        rule: Name of that rule.
        until: For ``defer``, until when, aware UTC.
        move: The move to make now; None when nothing changes.
    """

    action: Action
    why: str
    policy: str | None = None
    rule: str | None = None
    until: datetime | None = None
    move: Move | None = None


def decide(policies: Sequence[ApprovalPolicy], update: Update, *, now: datetime) -> PolicyDecision:
    """
    What becomes of an update.

    Args:
        policies: Those that apply to its machine, in the order in which they are tried.
        update: The update, as it is on record.
        now: Current time, aware.

    Returns:
        The decision, with the rule that made it. It is the same whether it is carried out or only shown.
    """
    untouchable = _why_untouchable(update)
    if untouchable is not None:
        return PolicyDecision(action=Action.LEAVE, why=untouchable)
    matching = [(policy, rule) for policy, rule in _rules(policies) if _applies(rule, update, aware(now))]
    rejections = (each for each in matching if each[1].action is Action.REJECT)
    policy, rule = next(rejections, matching[0] if matching else (None, None))
    if policy is None or rule is None:
        why = "no rule is about it: people decide"
        return PolicyDecision(action=Action.LEAVE, why=why, move=_move(update, Action.LEAVE, None))
    return _decided(policy, rule, update)


def _decided(policy: ApprovalPolicy, rule: PolicyRule, update: Update) -> PolicyDecision:
    until = None if rule.days is None else update.since + timedelta(days=rule.days)
    origin = f"rule {rule.name} of policy {policy.name} ({rule})"
    if rule.action is not Action.LEAVE and not _is_possible(rule.action, update):
        what = update.state if update.state in _WANTS_PEOPLE | UNDECIDED else update.package.state
        why = f"{origin} cannot decide: it is {what.replace('_', ' ')}, {ADVICE[what]}"
        return PolicyDecision(action=Action.LEAVE, why=why, policy=policy.name, rule=rule.name)
    return PolicyDecision(
        action=rule.action,
        why=f"{origin} {_DONE[rule.action]}" + ("" if until is None else f" until {until:%Y-%m-%d %H:%M} UTC"),
        policy=policy.name,
        rule=rule.name,
        until=until,
        move=_move(update, rule.action, until),
    )


_DONE: Final[Mapping[Action, str]] = {
    Action.APPROVE: "approves it",
    Action.REJECT: "rejects it",
    Action.DEFER: "defers it",
    Action.LEAVE: "leaves it to people",
}


def _rules(policies: Sequence[ApprovalPolicy]) -> Iterator[tuple[ApprovalPolicy, PolicyRule]]:
    return ((policy, rule) for policy in policies for rule in policy.rules)


def _applies(rule: PolicyRule, update: Update, now: datetime) -> bool:
    if rule.days is not None and now >= update.since + timedelta(days=rule.days):
        return False
    return rule.when.matches(update)


def _why_untouchable(update: Update) -> str | None:
    """Why no policy may touch it, for people; None when one may."""
    # A decision of which nobody knows whose it is may be that of people.
    if update.decided_by is DecidedBy.PEOPLE or (
        update.state in _RESULT.values() and update.decided_by is not DecidedBy.POLICY
    ):
        return "somebody decided about it: that stands above policies"
    if update.state in RUNNING:
        return f"it is {update.state.replace('_', ' ')}: {ADVICE[update.state]}"
    if PackageState.HELD in (update.state, update.package.state):
        return f"it is held on its machine: {ADVICE[PackageState.HELD]}"
    if not update.scan_ok or update.state is PackageState.UNKNOWN:
        return f"nobody knows how it is: {ADVICE[PackageState.UNKNOWN]}"
    gone = update.state if update.state in _NOTHING_NEW else update.package.state
    return ADVICE[gone] if gone in _NOTHING_NEW else None


def _is_possible(action: Action, update: Update) -> bool:
    """Whether it can be decided so now, or is decided so already."""
    if update.state in _WANTS_PEOPLE and action is not Action.REJECT:
        return False
    return update.state is _RESULT[action] or can(update.state, DECISIONS[_AS_DECIDED[action]], update.seen)


def _move(update: Update, action: Action, until: datetime | None) -> Move | None:
    if action is Action.LEAVE:
        # What a policy once decided goes when no rule says it any more. What happened since, people look at.
        settled = update.state in UNDECIDED | _WANTS_PEOPLE
        return None if settled else DECISIONS[Decision.REOPEN]
    same = update.state is _RESULT[action] and update.until == until
    return None if same else DECISIONS[_AS_DECIDED[action]]
