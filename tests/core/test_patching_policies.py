"""Approval policies: which rule decides, what no rule can decide, and what is stored."""

import fnmatch
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from redflag_core import codec
from redflag_core.encoding import dump_json
from redflag_core.errors import MalformedError
from redflag_core.patching import DECISIONS, MOVES, Decision, Move, can, move
from redflag_core.patching.policies import (
    MAX_DEFER_DAYS,
    MAX_ITEMS,
    MAX_LABEL,
    MAX_PATTERN,
    MAX_POLICY_BYTES,
    MAX_RULES,
    Action,
    ApprovalPolicy,
    DecidedBy,
    PolicyRule,
    PolicyScope,
    Update,
    When,
    decide,
    dump_policy,
    load_policy,
    name_matches,
)
from redflag_core.scanning import MAX_NAME, SCANNED_STATES, Package, PackageState, Severity
from redflag_core.scanning.states import RUNNING

S, A = PackageState, Action
NOW = datetime(2026, 7, 15, 12, 0, tzinfo=UTC)
DAY, SECOND = timedelta(days=1), timedelta(seconds=1)
EVERYTHING = When(everything=True)
SITE = "0190b5a4-7a3c-7def-8abc-00000000000a"


def update(state: PackageState = S.AVAILABLE, **fields) -> Update:
    """An update of openssl on a web server, seen three days ago."""
    package = {"name": "openssl", "arch": "amd64", "installed": "1", "available": "2", "state": S.AVAILABLE}
    package |= {"severity": Severity.IMPORTANT, "security": True, "cves": ("CVE-2026-1234", "CVE-2026-1235")}
    named = {field.name for field in attrs.fields(Package)} - {"state"}
    package |= {name: fields.pop(name) for name in list(fields) if name in named}
    package["state"] = fields.pop("observed", package["state"])
    machine = {"manager": "apt", "scanner": "apt", "tags": ("web", "prod"), "first_seen": NOW - 3 * DAY}
    return Update(package=Package(**package), state=state, **(machine | fields))


def rule(action: Action = A.APPROVE, when: When = EVERYTHING, **fields) -> PolicyRule:
    """A rule with a name of its own."""
    return PolicyRule(name=fields.pop("name", action.value), when=when, action=action, **fields)


def policy(*rules: PolicyRule, name: str = "Standard") -> ApprovalPolicy:
    """A policy of these rules."""
    return ApprovalPolicy(name=name, rules=rules)


def decided(*rules: PolicyRule, of: Update | None = None, now: datetime = NOW):
    """What a policy of these rules says."""
    return decide([policy(*rules)], of or update(), now=now)


# --- which rule decides -----------------------------------------------------------------------------------------


def test_the_first_rule_that_matches_decides():
    """Later ones are not asked."""
    other = When(names=("bash",))
    answer = decided(rule(A.LEAVE, other), rule(A.APPROVE), rule(A.DEFER, days=30))

    assert (A.APPROVE, "Standard", "approve", Move.APPROVE) == (
        answer.action,
        answer.policy,
        answer.rule,
        answer.move,
    )
    assert "rule approve of policy Standard (approve: everything) approves it" == answer.why


def test_a_rejection_anywhere_wins():
    """Whatever comes before it, in this policy or in another."""
    approving, rejecting = policy(rule(A.APPROVE)), policy(rule(A.LEAVE), rule(A.REJECT), name="Never")

    answer = decide([approving, rejecting], update(), now=NOW)

    assert (A.REJECT, "Never", "reject", Move.EXCLUDE) == (answer.action, answer.policy, answer.rule, answer.move)


def test_of_two_rejections_the_first_is_named():
    """The answer does not depend on anything else."""
    first, second = rule(A.REJECT, name="first"), rule(A.REJECT, name="second")

    assert "first" == decided(rule(A.APPROVE), first, second).rule


def test_policies_are_tried_in_order():
    """The rules of the first come before those of the second."""
    policies = [policy(rule(A.LEAVE), name="Site"), policy(rule(A.APPROVE), name="Organization")]

    assert ["Site", "Organization"] == [
        decide(each, update(), now=NOW).policy for each in (policies, policies[::-1])
    ]


@pytest.mark.parametrize("policies", [[], [policy(rule(A.APPROVE, When(names=("bash",))))]])
def test_where_no_rule_matches_people_decide(policies):
    """A policy that says nothing approves nothing."""
    answer = decide(policies, update(), now=NOW)

    assert (A.LEAVE, None, None, None) == (answer.action, answer.policy, answer.rule, answer.move)
    assert "no rule is about it: people decide" == answer.why


def test_a_rule_can_leave_an_update_to_people():
    """Whatever later rules say."""
    answer = decided(rule(A.LEAVE, When(names=("open*",))), rule(A.APPROVE))

    assert (A.LEAVE, "leave", None) == (answer.action, answer.rule, answer.move)
    assert answer.why.endswith("(leave: name open*) leaves it to people")


# --- deferring --------------------------------------------------------------------------------------------------


def test_an_update_is_deferred_until_it_has_its_age():
    """To the second; then the next rule decides."""
    rules, seen = (rule(A.DEFER, days=7), rule(A.APPROVE)), NOW - 3 * DAY
    ripe = seen + 7 * DAY

    early, late = (decided(*rules, now=moment) for moment in (ripe - SECOND, ripe))

    assert (A.DEFER, ripe, Move.DEFER) == (early.action, early.until, early.move)
    assert early.why.endswith("(defer 7 days: everything) defers it until 2026-07-19 12:00 UTC")
    assert (A.APPROVE, None) == (late.action, late.until)


@pytest.mark.parametrize(
    "published, since",
    [
        (None, NOW - 3 * DAY),
        (NOW - 5 * DAY, NOW - 5 * DAY),
        (NOW - DAY, NOW - 3 * DAY),
        (NOW + DAY, NOW - 3 * DAY),
    ],
)
def test_age_counts_from_publication_or_from_when_it_was_first_seen(published, since):
    """Whichever is earlier: what was seen here was published by then, whatever somebody says."""
    assert since == update(published=published).since


def test_ages_are_counted_in_utc():
    """Whatever zone the moments came in."""
    there = timezone(timedelta(hours=9))
    answer = decided(rule(A.DEFER, days=7), of=update(first_seen=(NOW - DAY).astimezone(there)))

    assert (UTC, NOW + 6 * DAY) == (answer.until.tzinfo, answer.until)


def test_a_naive_time_is_a_mistake_of_the_caller():
    """Python would take it for the time of this machine."""
    with pytest.raises(ValueError, match="aware"):
        decided(rule(A.APPROVE), now=NOW.replace(tzinfo=None))
    with pytest.raises(ValueError, match="aware"):
        decided(rule(A.DEFER, days=1), of=update(first_seen=NOW.replace(tzinfo=None)))


# --- what a rule is about ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "when, matches",
    [
        ({"everything": True}, True),
        ({"cves": ("CVE-2026-1235", "CVE-2020-0001")}, True),
        ({"cves": ("CVE-2026-12345",)}, False),
        ({"severity_at_least": Severity.MODERATE}, True),
        ({"severity_at_least": Severity.IMPORTANT}, True),
        ({"severity_at_least": Severity.CRITICAL}, False),
        ({"severities": (Severity.LOW, Severity.IMPORTANT)}, True),
        ({"severities": (Severity.CRITICAL,)}, False),
        ({"names": ("bash", "OpenSSL")}, True),
        ({"names": ("*ssl*",)}, True),
        ({"names": ("ssl*",)}, False),
        ({"managers": ("dnf", "apt")}, True),
        ({"managers": ("dnf",)}, False),
        ({"scanners": ("apt",)}, True),
        ({"scanners": ("winget",)}, False),
        ({"tags": ("prod", "db")}, True),
        ({"tags": ("db",)}, False),
        ({"security": True}, True),
        ({"security": False}, False),
        ({"names": ("open*",), "security": True, "tags": ("web",)}, True),
        ({"names": ("open*",), "security": True, "tags": ("db",)}, False),
        ({"names": ("open*",), "security": False, "tags": ("web",)}, False),
    ],
)
def test_a_rule_is_about_what_all_its_conditions_say(when, matches):
    """Of the values of one condition any is enough."""
    assert matches == When(**when).matches(update())


def test_an_update_of_unknown_severity_is_not_severe():
    """Nobody knows: only a rule that says so is about it."""
    unknown = update(severity=Severity.UNKNOWN)
    rules = [When(severity_at_least=each) for each in (Severity.UNKNOWN, Severity.LOW)]

    assert [True, False] == [each.matches(unknown) for each in rules]
    assert not When(cves=("CVE-2026-1234",)).matches(update(cves=()))
    assert When(security=False).matches(update(security=False))


@pytest.mark.parametrize(
    "pattern, name, matches",
    [
        ("*", "", True),
        ("*", "anything", True),
        ("linux-*", "linux-image-amd64", True),
        ("linux-*", "linux-", True),
        ("linux-*", "linux", False),
        ("*-dev", "libssl-dev", True),
        ("*-dev", "libssl-devel", False),
        ("lib*-dev", "lib-dev", True),
        ("lib-*-dev", "lib-dev", False),
        ("ab*ba", "aba", False),
        ("ab*ba", "abba", True),
        ("a*b*c", "a-c-b-c", True),
        ("a*b*c", "a-c-b", False),
        ("a*bc*c", "abcc", True),
        ("a*bc*c", "abc", False),
        ("*a*", "bab", True),
        ("*a*", "bbb", False),
        ("a**b", "ab", True),
        ("Microsoft.*", "microsoft.edge", True),
        ("lib.so", "libxso", False),
        ("[a-z]*", "a", False),
        ("?", "a", False),
        ("", "a", False),
    ],
)
def test_a_star_is_any_text_and_everything_else_is_itself(pattern, name, matches):
    """No other sign has a meaning."""
    assert matches == name_matches(pattern, name)


@given(st.text("ab*", max_size=12), st.text("ab", max_size=24))
@example("*a*b*a*", "bbabba")
def test_a_pattern_matches_what_a_regular_expression_would(pattern, name):
    """The standard library agrees on every pattern of stars and letters."""
    assert (re.fullmatch(fnmatch.translate(pattern), name) is not None) == name_matches(pattern, name)


def test_the_worst_pattern_takes_no_longer_than_others():
    """A pattern that would keep a backtracking matcher busy for years."""
    pattern = ("a*" * MAX_PATTERN)[: MAX_PATTERN - 1] + "b"

    assert not any(name_matches(pattern, "a" * MAX_NAME) for _ in range(1_000))


# --- what no policy touches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", [A.APPROVE, A.REJECT, A.LEAVE])
@pytest.mark.parametrize("state", PackageState)
def test_what_people_decided_stays(state, action):
    """In every state, against every action."""
    answer = decided(rule(action), of=update(state, decided_by=DecidedBy.PEOPLE))

    assert (A.LEAVE, None, None) == (answer.action, answer.rule, answer.move)
    assert "somebody decided about it: that stands above policies" == answer.why


@pytest.mark.parametrize("state", [S.APPROVED, S.DEFERRED, S.EXCLUDED])
def test_a_decision_of_which_nobody_knows_whose_it_is_stays(state):
    """It may be that of people."""
    for action in (A.APPROVE, A.REJECT, A.LEAVE):
        answer = decided(rule(action), of=update(state))
        assert (A.LEAVE, None) == (answer.action, answer.move)
        assert "somebody decided" in answer.why


@pytest.mark.parametrize("state", sorted(RUNNING))
def test_what_is_running_is_left_alone(state):
    """Only its own result ends it."""
    answer = decided(rule(A.REJECT), of=update(state, decided_by=DecidedBy.POLICY))

    assert (A.LEAVE, None) == (answer.action, answer.move)
    assert answer.why.startswith(f"it is {state.replace('_', ' ')}: ")


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"state": S.HELD, "observed": S.HELD}, "it is held on its machine: release it"),
        ({"state": S.AVAILABLE, "observed": S.HELD}, "it is held on its machine"),
        ({"state": S.HELD}, "it is held on its machine"),
        ({"state": S.UNKNOWN}, "nobody knows how it is: its last scan failed"),
        ({"state": S.AVAILABLE, "scan_ok": False}, "nobody knows how it is"),
        ({"state": S.CURRENT, "observed": S.CURRENT}, "there is nothing newer to install"),
        ({"state": S.AVAILABLE, "observed": S.CURRENT}, "there is nothing newer to install"),
        ({"state": S.INSTALLED}, "there is nothing newer to install"),
        ({"state": S.NOT_APPLICABLE}, "it is no longer on the machine"),
    ],
)
def test_where_there_is_nothing_to_decide_no_rule_decides(fields, words):
    """Held on the machine, not known, or nothing newer: not even a rejection."""
    for action in (A.APPROVE, A.REJECT):
        answer = decided(rule(action), of=update(**fields))

        assert (A.LEAVE, None, None) == (answer.action, answer.rule, answer.move)
        assert words in answer.why


@pytest.mark.parametrize("state", [S.FAILED, S.ROLLED_BACK, S.NEEDS_CONFIRMATION])
def test_what_went_wrong_is_for_people_to_look_at(state):
    """A policy never tries it again, but may reject it."""
    there = update(state, decided_by=DecidedBy.POLICY)
    answers = [
        decided(rule(action, **days), of=there) for action, days in ((A.APPROVE, {}), (A.DEFER, {"days": 9}))
    ]

    for answer in answers:
        assert (A.LEAVE, None) == (answer.action, answer.move)
        assert f"cannot decide: it is {state.replace('_', ' ')}, " in answer.why
        assert answer.rule is not None
    assert Move.EXCLUDE == decided(rule(A.REJECT), of=there).move
    assert decided(rule(A.LEAVE), of=there).move is None


def test_what_is_phased_cannot_be_approved_and_can_be_rejected():
    """The table of moves decides what is possible."""
    phased = update(S.PHASED, observed=S.PHASED)

    answer = decided(rule(A.APPROVE), of=phased)

    assert (A.LEAVE, "approve", None) == (answer.action, answer.rule, answer.move)
    assert "cannot decide: it is phased, wait until its distribution offers it" in answer.why
    assert [Move.EXCLUDE, Move.DEFER] == [
        decided(each, of=phased).move for each in (rule(A.REJECT), rule(A.DEFER, days=9))
    ]


def test_a_decision_that_no_longer_fits_what_scans_see_says_what_they_see():
    """Deferred, and now phased: it cannot be approved yet."""
    answer = decided(rule(A.APPROVE), of=update(S.DEFERRED, observed=S.PHASED, decided_by=DecidedBy.POLICY))

    assert "cannot decide: it is phased" in answer.why


# --- what policies decided before -------------------------------------------------------------------------------


UNTIL = NOW + 4 * DAY


@pytest.mark.parametrize(
    "state, until, made, expected",
    [
        (S.APPROVED, None, rule(A.APPROVE), None),
        (S.APPROVED, None, rule(A.REJECT), Move.EXCLUDE),
        (S.APPROVED, None, rule(A.DEFER, days=7), Move.DEFER),
        (S.APPROVED, None, rule(A.LEAVE), Move.REOPEN),
        (S.DEFERRED, UNTIL, rule(A.DEFER, days=7), None),
        (S.DEFERRED, UNTIL - DAY, rule(A.DEFER, days=7), Move.DEFER),
        (S.DEFERRED, UNTIL, rule(A.APPROVE), Move.APPROVE),
        (S.DEFERRED, UNTIL, rule(A.LEAVE), Move.REOPEN),
        (S.EXCLUDED, None, rule(A.REJECT), None),
        (S.EXCLUDED, UNTIL, rule(A.REJECT), Move.EXCLUDE),
        (S.EXCLUDED, None, rule(A.APPROVE), Move.APPROVE),
        (S.EXCLUDED, None, rule(A.APPROVE, When(names=("bash",))), Move.REOPEN),
        (S.AVAILABLE, None, rule(A.APPROVE), Move.APPROVE),
        (S.KEPT_BACK, None, rule(A.APPROVE), Move.APPROVE),
        (S.AVAILABLE, None, rule(A.LEAVE), None),
    ],
)
def test_a_decision_of_a_policy_follows_the_policy(state, until, made, expected):
    """What stays as it is needs no move; what no rule says any more is reopened."""
    by_policy = update(state, until=until, decided_by=DecidedBy.POLICY)

    assert expected == decided(made, of=by_policy).move


UPDATES = st.builds(
    update,
    st.sampled_from(PackageState),
    observed=st.sampled_from(sorted(SCANNED_STATES)),
    decided_by=st.sampled_from(DecidedBy),
    scan_ok=st.booleans(),
    until=st.sampled_from([None, UNTIL]),
    published=st.none() | st.integers(-400, 400).map(lambda days: NOW + days * DAY),
    name=st.sampled_from(["openssl", "bash", "linux-image-amd64"]),
    severity=st.sampled_from(Severity),
    security=st.booleans(),
)


def _distinct(values, most=3):
    return st.lists(values, max_size=most, unique=True).map(tuple)


@st.composite
def whens(draw):
    """Any condition that is accepted."""
    fields = {
        "cves": draw(_distinct(st.from_regex(r"CVE-[0-9]{4}-[0-9]{4,6}", fullmatch=True))),
        "severity_at_least": draw(st.none() | st.sampled_from(Severity)),
        "severities": draw(_distinct(st.sampled_from(Severity))),
        "names": draw(_distinct(st.text("abx*-", min_size=1, max_size=8))),
        "managers": draw(_distinct(st.sampled_from(["apt", "dnf", "winget"]))),
        "scanners": draw(_distinct(st.sampled_from(["apt", "docker_image"]))),
        "tags": draw(_distinct(st.sampled_from(["web", "db", "büro"]))),
        "security": draw(st.none() | st.booleans()),
    }
    kept = {name: value for name, value in fields.items() if value not in ((), None) and draw(st.booleans())}
    return When(**kept) if kept else EVERYTHING


@st.composite
def policies(draw):
    """Any policy that is accepted."""
    rules = []
    for number in range(draw(st.integers(1, 5))):
        action = draw(st.sampled_from(Action))
        days = draw(st.integers(1, MAX_DEFER_DAYS)) if action is A.DEFER else None
        rules.append(rule(action, draw(whens()), name=f"rule {number}", days=days))
    ids = st.sampled_from([None, SITE])
    scope = PolicyScope(organization_id=draw(ids), site_id=draw(ids), tag=draw(st.sampled_from([None, "web"])))
    return ApprovalPolicy(name=draw(st.sampled_from(["Standard", "Büro"])), scope=scope, rules=tuple(rules))


@given(st.lists(policies(), max_size=3), UPDATES)
def test_every_move_of_a_policy_is_one_that_people_could_make(several, there):
    """For any policies and any update: in the table, explained, and made once."""
    answer = decide(several, there, now=NOW)

    assert answer.why
    if answer.move is None:
        return
    assert answer.move in DECISIONS.values()
    assert there.state in MOVES[answer.move].origins
    assert can(there.state, answer.move, there.seen)
    assert there.decided_by is not DecidedBy.PEOPLE
    assert there.state not in RUNNING | {S.HELD}
    after = move(there.state, answer.move, there.seen)
    by = DecidedBy.NOBODY if answer.move is DECISIONS[Decision.REOPEN] else DecidedBy.POLICY
    again = decide(several, attrs.evolve(there, state=after, decided_by=by, until=answer.until), now=NOW)
    assert (answer.action, answer.rule, None) == (again.action, again.rule, again.move)


@given(st.lists(policies(), max_size=3), UPDATES)
def test_a_rejection_is_never_passed_over(several, there):
    """For any policies: a rule that rejects and matches decides, or nothing does."""
    rejecting = any(
        each.action is A.REJECT and each.when.matches(there) for policy in several for each in policy.rules
    )
    answer = decide(several, there, now=NOW)

    assert answer.action in ((A.REJECT, A.LEAVE) if rejecting else (A.APPROVE, A.DEFER, A.LEAVE))
    assert answer.action is A.REJECT or not rejecting or answer.rule is None


# --- values and stored form -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, words",
    [
        ({}, "say what a rule is about"),
        ({"everything": True, "security": True}, "say what a rule is about"),
        ({"cves": ("cve-2026-1234",)}, "cves"),
        ({"cves": ("CVE-2026-1",)}, "cves"),
        ({"names": ("",)}, "names"),
        ({"names": ("a\nb",)}, "names"),
        ({"names": ("a" * (MAX_PATTERN + 1),)}, "names"),
        ({"names": ("a", "a")}, "names: a value is named once"),
        ({"names": tuple(map(str, range(MAX_ITEMS + 1)))}, "names"),
        ({"managers": ("APT",)}, "managers"),
        ({"scanners": ("",)}, "scanners"),
        ({"tags": ("x" * (MAX_LABEL + 1),)}, "tags"),
        ({"severities": ("bad",)}, "severities"),
    ],
)
def test_a_condition_that_means_nothing_is_refused(fields, words):
    """A forgotten condition approves nothing."""
    with pytest.raises((ValueError, TypeError), match=words):
        When(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"action": A.DEFER},
        {"action": A.APPROVE, "days": 3},
        {"action": A.DEFER, "days": 0},
        {"action": A.DEFER, "days": MAX_DEFER_DAYS + 1},
        {"name": ""},
        {"name": "x" * (MAX_LABEL + 1)},
    ],
)
def test_a_rule_that_means_nothing_is_refused(fields):
    """Days are said exactly when something is deferred."""
    with pytest.raises(ValueError, match=r"days|name"):
        PolicyRule(**({"name": "a", "when": EVERYTHING, "action": A.APPROVE} | fields))


def test_the_bounds_themselves_are_accepted():
    """The largest policy can be stored and read."""
    text, items = "é" * (MAX_LABEL - 2), [f"{number:02}" for number in range(MAX_ITEMS)]
    when = When(
        cves=tuple(f"CVE-2026-{'1' * 17}{item}" for item in items),
        severity_at_least=Severity.LOW,
        severities=tuple(Severity),
        names=tuple("é" * (MAX_PATTERN - 2) + item for item in items),
        managers=tuple("a" * 30 + item for item in items),
        scanners=tuple("a" * 30 + item for item in items),
        tags=tuple(text + item for item in items),
        security=True,
    )
    rules = tuple(rule(A.DEFER, when, name=f"{text}{n:02}", days=MAX_DEFER_DAYS) for n in range(MAX_RULES))
    largest = ApprovalPolicy(name=text, rules=rules)

    assert largest == load_policy(dump_policy(largest))
    assert len(dump_policy(largest)) < MAX_POLICY_BYTES
    with pytest.raises(ValueError, match="rules"):
        ApprovalPolicy(name="more", rules=(*rules, rule()))


@pytest.mark.parametrize("rules, words", [((), "rules"), ((rule(), rule()), "rules: a rule is named once")])
def test_a_policy_has_rules_with_names_of_their_own(rules, words):
    """Otherwise nobody could say which one decided."""
    with pytest.raises(ValueError, match=words):
        ApprovalPolicy(name="Standard", rules=rules)


@given(policies())
def test_a_policy_survives_its_stored_form(any_policy):
    """What is stored is what is read."""
    assert any_policy == load_policy(dump_policy(any_policy))


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"v": True},
        {"more": 1},
        {"name": "two\nlines"},
        {"scope": {"site_id": "../x"}},
        {"scope": {"organization_id": "x"}},
        {"scope": {"tag": ""}},
        {"rules": []},
        {"rules": [{"name": "a", "when": {}, "action": "approve"}]},
        {"rules": [{"name": "a", "when": {"everything": True}, "action": "install"}]},
        {"rules": [{"name": "a", "when": {"everything": True}, "action": "defer"}]},
        {"rules": [{"name": "a", "when": {"names": "bash"}, "action": "approve"}]},
    ],
)
def test_a_stored_form_that_means_nothing_is_malformed(change):
    """Every bound holds for what comes from a database or a file too."""
    with pytest.raises(MalformedError):
        load_policy(dump_json(codec.unstructure(policy(rule())) | change))


@given(
    st.binary()
    | st.recursive(st.none() | st.text(), st.lists).map(lambda rules: dump_json({"v": 1, "rules": rules}))
)
def test_any_bytes_are_a_policy_or_malformed(data):
    """No input does anything else."""
    with suppress(MalformedError):
        assert isinstance(load_policy(data), ApprovalPolicy)


def test_a_rule_reads_as_it_is_meant():
    """Every condition is in its sentence."""
    when = When(
        cves=("CVE-2026-1234",),
        severities=(Severity.LOW, Severity.MODERATE),
        names=("linux-*", "*-dev"),
        managers=("apt",),
        scanners=("apt",),
        tags=("web",),
        severity_at_least=Severity.LOW,
        security=False,
    )

    assert (
        "defer 1 day: closes CVE-2026-1234, severity low or moderate, name linux-* or *-dev, manager apt, "
        "scanner apt, tag web, severity at least low, no security update"
    ) == str(rule(A.DEFER, when, days=1))
    assert "approve: security update" == str(rule(A.APPROVE, When(security=True)))
    assert "reject: everything" == str(rule(A.REJECT))


def test_the_example_of_the_documentation_does_what_it_says():
    """Critical at once, PostgreSQL on database servers never, the rest after a week."""
    page = (Path(__file__).parents[2] / "docs/reference/core-api/patching.md").read_text(encoding="utf-8")
    (example_text,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    written = load_policy(example_text.encode())
    database = {"name": "postgresql-15", "tags": ("database",)}

    def rule_of(**fields):
        return decide([written], update(**fields), now=NOW).rule

    assert "critical" == rule_of(severity=Severity.CRITICAL)
    assert ["settle", "rest"] == [rule_of(first_seen=NOW - days * DAY) for days in (6, 7)]
    assert "databases" == rule_of(severity=Severity.CRITICAL, **database)
    assert "settle" == rule_of(name="postgresql-15")
