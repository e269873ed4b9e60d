"""Enrolment: tokens that an operator copies, registrations that repeat, and a refresh chain that finds a thief."""

import json
import string
from contextlib import suppress
from datetime import timedelta

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from redflag_core import codec
from redflag_core.encoding import b64url_encode, dump_json
from redflag_core.enrolment import (
    ACCESS_TOKEN_SECONDS,
    MAX_ADDRESSES,
    MISMATCH_GRACE_SECONDS,
    REFRESH_SECONDS,
    Access,
    AgentStatus,
    RefreshChain,
    RefreshVerdict,
    RegistrationClaim,
    RegistrationToken,
    RegistrationVerdict,
    allows,
    hold_seconds,
    judge_refresh,
    judge_registration,
    new_secret,
    next_check_in,
    next_poll,
    parse_credential,
    parse_registration_token,
    secret_digest,
)
from redflag_core.errors import MalformedError
from redflag_core.freshness import unix
from redflag_core.testing import START, SeededEntropy

ID = "0190b5a4-7a3c-7def-8abc-0123456789ab"
SERVER = "0190b5a4-7a3c-7def-8abc-ba9876543210"
SECRET = new_secret(SeededEntropy(7))
TOKEN = RegistrationToken(
    1, ID, SECRET, SERVER, "ab" * 32, ("https://rf.example.com", "http://10.0.0.1:8750/rf"), "sha256:" + "cd" * 32
)
NOW = int(START.timestamp())
DAY = 86_400


def test_the_times_are_those_of_the_protocol():
    """A day for an access token and for a machine that does not match, 90 days for the refresh chain."""
    assert (DAY, DAY, 90 * DAY) == (ACCESS_TOKEN_SECONDS, MISMATCH_GRACE_SECONDS, REFRESH_SECONDS)


# What an agent may do


@pytest.mark.parametrize(
    "status, token, check_in, store, commands",
    [
        (AgentStatus.PENDING, True, True, False, False),
        (AgentStatus.ACTIVE, True, True, True, True),
        (AgentStatus.QUARANTINED, False, False, False, False),
        (AgentStatus.HARDWARE_CHANGED, True, True, False, False),
        (AgentStatus.RENEWAL_PENDING, False, False, False, False),
        (AgentStatus.EXECUTOR_ROLLED_BACK, True, True, True, False),
        (AgentStatus.REVOKED, False, False, False, False),
    ],
)
def test_a_status_allows_exactly_this(status, token, check_in, store, commands):
    """Only an active agent gets commands; one that went back in time still reports; a revoked one does nothing."""
    assert (token, check_in, store, commands) == tuple(allows(status, access) for access in Access)


def test_every_status_is_in_the_table():
    """A new status or class of endpoints has an answer."""
    for status in AgentStatus:
        for access in Access:
            assert allows(status, access) in (True, False)


# Registration tokens


@given(st.lists(st.from_regex(r"https?://[a-z0-9.:/-]{1,40}", fullmatch=True), min_size=1, max_size=MAX_ADDRESSES))
def test_a_token_survives_being_copied(addresses):
    """Text and token are two forms of one thing, blanks around the text do not matter."""
    token = attrs.evolve(TOKEN, addresses=tuple(addresses))

    assert token == parse_registration_token(token.text())
    assert token == parse_registration_token(f"\n  {token.text()} \r\n")


def test_the_largest_token_still_parses():
    """Eight addresses of the greatest length fit into the bound of the text."""
    token = attrs.evolve(TOKEN, addresses=tuple(f"https://{n}" + "a" * 249 for n in range(MAX_ADDRESSES)))

    assert token == parse_registration_token(token.text())


def test_a_token_is_one_word_to_copy():
    """A double click selects it whole, and no shell needs quotes for it."""
    assert TOKEN.text().startswith("rfreg1.")
    assert set(TOKEN.text()) <= set(string.ascii_letters + string.digits + "._-")


def test_the_secret_is_only_where_it_must_be():
    """The text form of the object, as logs and tracebacks show it, has none."""
    assert SECRET not in repr(TOKEN)
    assert f"{ID}.{SECRET}" == TOKEN.credential


@given(st.text(max_size=40) | st.text(string.ascii_letters + string.digits + "-_=.", max_size=40))
def test_any_text_is_a_token_or_malformed(text):
    """The only exception for what somebody typed is `MalformedError`."""
    for typed in (text, f"rfreg1.{text}", TOKEN.text()[: len(text)] + text):
        with pytest.raises(MalformedError):
            parse_registration_token(typed)


@given(st.integers(0, len(TOKEN.text()) - 1), st.sampled_from(string.printable))
def test_a_mistyped_token_is_never_taken_for_the_right_one(at, character):
    """One wrong character gives another token or none, and never an exception of another kind."""
    typed = TOKEN.text()[:at] + character + TOKEN.text()[at + 1 :]
    if typed != TOKEN.text():
        with suppress(MalformedError):
            assert TOKEN != parse_registration_token(typed)


def test_a_token_without_its_prefix_or_end_says_what_to_do():
    """The usual mistakes when copying."""
    for typed in (TOKEN.text().removeprefix("rfreg1."), TOKEN.text()[3:], "", "rfreg2." + TOKEN.text()[7:]):
        with pytest.raises(MalformedError, match="copy it whole"):
            parse_registration_token(typed)
    with pytest.raises(MalformedError):
        parse_registration_token(TOKEN.text()[:-5])
    with pytest.raises(MalformedError, match="copy it whole"):
        parse_registration_token("rfreg1." + "A" * 4090)
    with pytest.raises(MalformedError, match="base64"):
        parse_registration_token("rfreg1." + "A" * 4089)


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2},
        {"id": "1"},
        {"id": ID.upper()},
        {"id": "../../../../../../../../../../../etc"},
        {"secret": SECRET[:-1]},
        {"secret": SECRET + "AAAA"},
        {"secret": "A" * 42 + "B"},
        {"secret": ""},
        {"server": "x" * 36},
        {"root_fp": "AB" * 32},
        {"root_fp": "ab" * 31},
        {"addresses": []},
        {"addresses": ["https://a"] * (MAX_ADDRESSES + 1)},
        {"addresses": ["https://" + "a" * 251]},
        {"addresses": ["ftp://rf.example.com"]},
        {"addresses": ["file:///etc/passwd"]},
        {"addresses": ["javascript:alert(1)"]},
        {"addresses": ["rf.example.com"]},
        {"addresses": ["https://"]},
        {"addresses": ["https://rf.example.com/\nHost: x"]},
        {"addresses": ["https://rf example.com"]},
        {"addresses": "https://rf.example.com"},
        {"tls": ""},
        {"tls": "none"},
        {"tls": "insecure"},
        {"tls": "sha256:" + "CD" * 32},
        {"tls": "sha256:" + "cd" * 31},
        {"tls": "md5:" + "cd" * 32},
        {"insecure": True},
    ],
    ids=str,
)
def test_a_token_with_anything_else_in_it_is_refused(changes):
    """Whoever writes a token cannot make an agent leave the protocol: no other scheme, no switched-off TLS."""
    body = json.dumps(codec.unstructure(TOKEN) | changes).encode()

    with pytest.raises(MalformedError):
        parse_registration_token("rfreg1." + b64url_encode(body))


@pytest.mark.parametrize("tls", [None, "sha256:" + "0" * 64, "ca-sha256:" + "f" * 64])
def test_a_token_pins_a_certificate_a_ca_or_nothing(tls):
    """The three ways to know the server's certificate."""
    token = attrs.evolve(TOKEN, tls=tls)

    assert token == parse_registration_token(token.text())


def test_a_token_without_a_pin_trusts_the_authorities_of_the_system():
    """The field may be left out."""
    body = codec.unstructure(TOKEN)
    del body["tls"]

    assert attrs.evolve(TOKEN, tls=None) == parse_registration_token("rfreg1." + b64url_encode(dump_json(body)))


def test_half_a_credential_says_what_is_missing():
    """Whoever copied only the id sees how the whole looks."""
    for text in (ID, SECRET, f"x{ID}.{SECRET}"):
        with pytest.raises(MalformedError, match=r"must be <id>\.<secret>"):
            parse_credential(text)
    with pytest.raises(MalformedError, match="base64url"):
        parse_credential(f"{ID}.{SECRET}.{SECRET}")


def test_a_credential_is_an_id_and_a_secret():
    """The server looks up the id and compares digests."""
    assert (ID, secret_digest(SECRET)) == parse_credential(TOKEN.credential)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        ID,
        f"{ID}.",
        f".{SECRET}",
        f"{ID}{SECRET}",
        f"{ID}.{SECRET}.{SECRET}",
        f"{ID}.{SECRET[:-1]}",
        f"{ID}.{SECRET}=",
        f"{ID}. {SECRET}",
        f"{ID.upper()}.{SECRET}",
        f"{'x' * 36}.{SECRET}",
        f"{ID}\n.{SECRET}",
    ],
)
def test_another_form_of_credential_is_malformed(text):
    """What is no UUID, or no 32 bytes, is refused before anything is looked up."""
    with pytest.raises(MalformedError):
        parse_credential(text)


@given(st.binary(min_size=32, max_size=32))
def test_a_secret_has_one_text_and_one_digest(value):
    """Another text of the same bytes would be another secret to a cache and the same to the database."""
    text = b64url_encode(value)

    assert 32 == len(secret_digest(text))
    for other in (text + "=", text[:-1], text.swapcase() + "A"):
        with pytest.raises(MalformedError):
            secret_digest(other)


def test_new_secrets_are_fresh():
    """Each takes 32 bytes of the entropy source."""
    entropy = SeededEntropy()

    assert 50 == len({secret_digest(new_secret(entropy)) for _ in range(50)})


# Repeated registrations


CLAIM = RegistrationClaim("a" * 32, "b" * 32, b"r" * 32, "e" * 64)


def test_a_key_that_is_not_on_record_is_new():
    """It takes a seat."""
    assert RegistrationVerdict.NEW == judge_registration(None, CLAIM)


def test_the_same_registration_again_is_a_repeat():
    """The answer was lost: it is given again and costs nothing."""
    assert RegistrationVerdict.REPEAT == judge_registration(CLAIM, attrs.evolve(CLAIM))


@pytest.mark.parametrize(
    "changes",
    [
        {"key_id": "c" * 32},
        {"executor_key_id": "c" * 32},
        {"refresh_hash": b"s" * 32},
        {"evidence_digest": "f" * 64},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_anything_else_with_a_recorded_key_is_a_conflict(changes):
    """A duplicate never takes over a record, whatever one thing is different."""
    assert RegistrationVerdict.CONFLICT == judge_registration(CLAIM, attrs.evolve(CLAIM, **changes))


# The refresh chain, step by step


CHAIN = RefreshChain(current=b"2", previous=b"1", generation=2, expires_at=NOW + 10 * DAY)


def judge(chain=CHAIN, current=b"2", successor=b"3", proven=2, gen=0, now=START):
    return judge_refresh(chain, current=current, successor=successor, proven_generation=proven, gen=gen, now=now)


def test_the_secret_that_is_due_moves_the_chain_on():
    """By one, and for 90 days."""
    verdict, chain = judge()

    assert RefreshVerdict.ADVANCE == verdict
    assert RefreshChain(b"3", b"2", 3, NOW + REFRESH_SECONDS, None) == chain


def test_the_same_pair_again_is_a_lost_answer():
    """The chain stays where it is, and the 90 days start again."""
    verdict, chain = judge(current=b"1", successor=b"2", proven=1)

    assert RefreshVerdict.REPEAT == verdict
    assert attrs.evolve(CHAIN, expires_at=NOW + REFRESH_SECONDS) == chain


@pytest.mark.parametrize(
    "current, successor", [(b"1", b"9"), (b"0", b"1"), (b"9", b"2"), (b"9", b"8"), (b"3", b"4")]
)
def test_any_other_pair_is_a_fork(current, successor):
    """Two hold the secret: nothing moves, somebody must look."""
    assert (RefreshVerdict.FORK, CHAIN) == judge(current=current, successor=successor, proven=2)


@pytest.mark.parametrize("current, successor", [(b"2", b"3"), (b"1", b"2")])
def test_a_chain_that_was_not_used_for_90_days_has_lapsed(current, successor):
    """Also when the last answer was lost: a lost answer is no way around it. The last second still counts."""
    end = START + timedelta(days=10)

    assert RefreshVerdict.LAPSED != judge(current=current, successor=successor, now=end)[0]
    assert (RefreshVerdict.LAPSED, CHAIN) == judge(
        current=current, successor=successor, now=end + timedelta(seconds=1)
    )


@pytest.mark.parametrize("secret", [b"1", b"2", b"9"])
def test_a_chain_must_move(secret):
    """A secret cannot be its own successor: it would never be used up."""
    with pytest.raises(MalformedError, match="must be another one"):
        judge(current=secret, successor=secret, proven=9, gen=5)


def test_a_server_that_was_restored_adopts_a_higher_chain_once():
    """The agent proves that it is further; in this generation of the server that is believed once."""
    verdict, chain = judge(current=b"7", successor=b"8", proven=7, gen=5)

    assert RefreshVerdict.ADOPT == verdict
    assert RefreshChain(b"8", b"7", 8, NOW + REFRESH_SECONDS, adopted_gen=5) == chain
    assert RefreshVerdict.REPEAT == judge(chain, b"7", b"8", proven=7, gen=5)[0]
    assert RefreshVerdict.FORK == judge(chain, b"70", b"80", proven=70, gen=5)[0]
    assert RefreshVerdict.ADOPT == judge(chain, b"70", b"80", proven=70, gen=6)[0]


def test_a_server_that_was_never_restored_adopts_nothing():
    """It cannot be behind; from its first restore on, it can."""
    assert RefreshVerdict.FORK == judge(current=b"7", successor=b"8", proven=7, gen=0)[0]
    assert RefreshVerdict.ADOPT == judge(current=b"7", successor=b"8", proven=7, gen=1)[0]


@pytest.mark.parametrize("proven", [0, 1, 2])
def test_only_a_higher_chain_is_adopted(proven):
    """A state that is not further than the record proves nothing."""
    assert RefreshVerdict.FORK == judge(current=b"7", successor=b"8", proven=proven, gen=5)[0]


def test_a_chain_that_was_behind_is_adopted_after_its_end_too():
    """An old backup holds an old end: the agent was not away."""
    late = START + timedelta(days=100)

    assert RefreshVerdict.ADOPT == judge(current=b"7", successor=b"8", proven=7, gen=5, now=late)[0]


def test_no_text_form_shows_the_digests():
    """They are what a thief of the record would want to compare with."""
    assert "b'2'" not in repr(CHAIN)
    assert "b'1'" not in repr(CHAIN)


# The refresh chain, whatever happens


class Agent:
    """What an agent keeps on its disk: the secret, the successor that was sent, how often it moved on."""

    def __init__(self, current, generation=0, pending=None):
        self.current, self.generation, self.pending = current, generation, pending

    def copy(self):
        return Agent(self.current, self.generation, self.pending)

    def pair(self, successor):
        """What it asks with: the pending pair until that was answered."""
        self.pending = self.pending or successor
        return self.current, self.pending

    def answered(self, generation):
        self.current, self.pending, self.generation = self.pending, None, generation


class Server:
    """The record of one agent, with backups."""

    def __init__(self, first):
        self.now, self.gen = START, 0
        self.chain = RefreshChain(first, None, 0, NOW + REFRESH_SECONDS)
        self.backups = [(self.chain, self.gen)]

    def refresh(self, agent, successor, *, answered=True):
        current, pending = agent.pair(successor)
        verdict, chain = judge_refresh(
            self.chain,
            current=current,
            successor=pending,
            proven_generation=agent.generation,
            gen=self.gen,
            now=self.now,
        )
        assert (verdict is RefreshVerdict.LAPSED) <= (unix(self.now) > self.chain.expires_at)
        if verdict in (RefreshVerdict.FORK, RefreshVerdict.LAPSED):
            assert chain == self.chain
            return verdict
        self.chain = chain
        if answered:
            agent.answered(chain.generation)
        return verdict

    def restore(self, number):
        self.chain, gen = self.backups[number % len(self.backups)]
        self.gen = max(gen + 1, int(unix(self.now)))


class HonestAgent(RuleBasedStateMachine):
    """One honest agent and its server: answers are lost, backups are made and restored, time passes."""

    def __init__(self):
        super().__init__()
        self.secrets = iter(range(1, 10_000))
        first = self.secret()
        self.server, self.agent = Server(first), Agent(first)
        self.verdict = None

    def secret(self):
        return b"%d" % next(self.secrets)

    @rule()
    def refresh(self):
        self.verdict = self.server.refresh(self.agent, self.secret())

    @rule()
    def refresh_and_lose_the_answer(self):
        self.verdict = self.server.refresh(self.agent, self.secret(), answered=False)

    @rule()
    def lose_the_request(self):
        self.agent.pair(self.secret())

    @rule()
    def back_up(self):
        self.server.backups.append((self.server.chain, self.server.gen))

    @rule(number=st.integers(0, 20))
    def restore(self, number):
        self.server.restore(number)

    @rule(days=st.integers(0, 60), seconds=st.integers(0, 2))
    def wait(self, days, seconds):
        self.server.now += timedelta(days=days, seconds=seconds)

    @precondition(lambda self: self.verdict is RefreshVerdict.LAPSED)
    @rule()
    def approve(self):
        """An operator approves the renewal of an agent that was away for long."""
        self.server.chain = attrs.evolve(
            self.server.chain, expires_at=int(unix(self.server.now)) + REFRESH_SECONDS
        )
        self.verdict = None

    @invariant()
    def an_honest_agent_never_forks(self):
        assert self.verdict is not RefreshVerdict.FORK

    @invariant()
    def the_agent_can_always_go_on(self):
        """Once approved, if need be, the very next request is answered."""
        server, agent = Server(b""), self.agent.copy()
        server.chain = attrs.evolve(self.server.chain, expires_at=int(unix(self.server.now)) + REFRESH_SECONDS)
        server.now, server.gen = self.server.now, self.server.gen
        assert server.refresh(agent, b"next") not in (RefreshVerdict.FORK, RefreshVerdict.LAPSED)
        assert server.refresh(agent, b"after") is RefreshVerdict.ADVANCE


TestHonestAgent = HonestAgent.TestCase
TestHonestAgent.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(
    st.lists(st.tuples(st.sampled_from(["honest", "thief"]), st.booleans()), min_size=2, max_size=12),
    st.booleans(),
)
def test_whoever_comes_second_with_a_copied_secret_is_a_fork(steps, pending):
    """Two with one secret are found out at the first request after the other moved the chain."""
    server, honest = Server(b"0"), Agent(b"0")
    server.refresh(honest, b"1")
    if pending:
        honest.pair(b"common")  # asked, and not answered yet, when the thief came
    parties = {"honest": honest, "thief": honest.copy()}
    mover = None

    for n, (name, answered) in enumerate(steps):
        party, successor = parties[name], b"%s %d" % (name.encode(), n)
        own = party.pair(successor)[1] != b"common"
        verdict = server.refresh(party, successor, answered=answered)
        if mover is None and own and verdict is RefreshVerdict.ADVANCE:
            mover = name
        assert (mover not in (None, name)) == (verdict is RefreshVerdict.FORK)


@given(st.permutations(["honest", "thief"]), st.integers(1, 10**9))
def test_after_a_restore_a_thief_is_found_out_all_the_same(order, claimed):
    """One of them may be adopted, as the server cannot know better; the other is then the fork."""
    server, honest = Server(b"0"), Agent(b"0")
    for n in range(3):
        server.refresh(honest, b"%d" % (n + 1))
    thief = honest.copy()
    thief.generation += claimed
    parties = {"honest": honest, "thief": thief}
    server.restore(0)

    verdicts = [server.refresh(parties[name], name.encode()) for name in order]

    assert [RefreshVerdict.ADOPT, RefreshVerdict.FORK] == verdicts


def test_a_thief_with_an_old_backup_is_found_out_when_the_agent_has_been_back():
    """After a restore an old secret may be the one on record: it moves the chain, until both have been there."""
    server, honest = Server(b"0"), Agent(b"0")
    thief = honest.copy()
    for n in range(3):
        server.refresh(honest, b"%d" % (n + 1))
    server.restore(0)

    verdicts = [
        server.refresh(thief, b"t1"),
        server.refresh(honest, b"h1"),
        server.refresh(thief, b"t2"),
    ]

    assert [RefreshVerdict.ADVANCE, RefreshVerdict.ADOPT, RefreshVerdict.FORK] == verdicts


# Pace


@given(st.integers(1, 100_000), st.floats(0, 1, exclude_max=True))
def test_check_ins_are_spread_by_a_quarter_either_way(base, jitter):
    """Agents that were started together do not come back together, and none in a hot loop."""
    pause = next_check_in(base=base, jitter=jitter)

    assert max(1, round(0.75 * base)) <= pause <= max(1, round(1.25 * base))
    assert isinstance(pause, int)


def test_the_whole_spread_is_used():
    """From three quarters to five quarters, the middle in the middle."""
    assert [45, 60, 75] == [next_check_in(base=60, jitter=jitter) for jitter in (0.0, 0.5, 0.999)]


@given(st.integers(1, 50), st.floats(0, 1, exclude_max=True))
def test_a_check_in_is_held_no_longer_than_the_agent_waits(asked, jitter):
    """And agents that began to wait together, as after a restart of the server, do not come back together."""
    assert 0.8 * asked <= hold_seconds(asked, jitter=jitter) <= asked


@given(st.floats(0, 1, exclude_max=True))
def test_between_two_long_polls_there_is_a_second_at_most(jitter):
    """What is ordered meanwhile still starts within a second or so."""
    assert next_poll(jitter=jitter) in (0, 1)


def test_half_of_the_long_polls_follow_at_once():
    """The ends of those that are held are spread by a fifth."""
    assert [0, 0, 1, 1] == [next_poll(jitter=jitter) for jitter in (0.0, 0.49, 0.5, 0.99)]
    assert [50.0, 45.0] == [hold_seconds(50, jitter=jitter) for jitter in (0.0, 0.5)]
    assert 1 == next_check_in(base=1, jitter=0.0) == next_check_in(base=0, jitter=0.0)
