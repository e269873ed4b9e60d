"""Secrets in texts and facts: none survives, and what is none stays as it is."""

import base64
import hashlib
import json
import time
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from redflag_core.encoding import dump_json
from redflag_core.messages import MAX_CONTEXT_BYTES
from redflag_core.redaction import (
    MAX_FACT,
    MAX_FACTS,
    MAX_FACTS_DEPTH,
    REMOVED,
    is_called_secret,
    redact,
    redact_facts,
)

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
PASSWORDS = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), min_size=8, max_size=40).map(
    lambda text: f"Zq{text.replace(chr(34), '').replace(chr(39), '').replace(chr(92), '')}7x"
)
"""Words without spaces and quotes; the ends make sure that they are in no surrounding text."""
WORDS = """apt-get ended with 100: the package lists of web-01 are damaged (see /var/log/apt/term.log), retry=3 5
https://deb.example.org/debian libssl3 3.0.15-1~deb12u1 key 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd"""
PLAIN = st.lists(st.sampled_from(WORDS.split()), max_size=12).map(" ".join)
CALLED = ["password", "PGPASSWORD", "db_passwd", "token", "refresh-token", "client_secret", "api_key", "X-Api-Key",
          "apikey", "private_key", "seed", "credentials", "session_id", "Cookie", "Set-Cookie", "Authorization",
          "Proxy-Authorization", "form_token", "passphrase"]  # fmt: skip
PLACES = ["{0}={1}", "{0}: {1}", "{0} = '{1}'", '{0}="{1}" and more', '{{"{0}": "{1}", "host": "db"}}',
          "{{'{0}': '{1}'}}", "(b'{0}', b'{1}')", '["{0}", "{1}"]', "--{0} {1} --verbose", "https://x.example/?{0}={1}",
          '{{\\"{0}\\": \\"{1}\\"}}', "{0} => {1}", "{0}={1}\nnext line"]  # fmt: skip


def seed(secret: str) -> bytes:
    """32 bytes like those of a key."""
    return hashlib.sha256(secret.encode()).digest()


def text_of(raw: bytes) -> str:
    """URL-safe base64."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def jwt(secret: str) -> str:
    """A JSON Web Token."""
    return ".".join(map(text_of, (b'{"alg":"HS256"}', b'{"sub":"agent"}', seed(secret))))


def pem(label: str) -> Callable[[str], str]:
    """Makes a private key."""

    def make(secret: str) -> str:
        body = "\n".join(base64.b64encode(seed(secret + line) * 2).decode()[:64] for line in "abc")
        return f"-----BEGIN {label}-----\n{body}\n-----END {label}-----"

    return make


LOOKS = {
    "bearer token": lambda secret: f"Bearer {secret}x9x9x9x9",
    "jwt": jwt,
    "url": lambda secret: f"postgresql://redflag:{secret}@db.example/redflag",
    "url without a user": lambda secret: f"redis://:{secret}@cache:6379/0",
    "registration token": lambda secret: f"rfreg1.{text_of(seed(secret) * 4)}",
    "API key": lambda secret: f"rfk_{text_of(seed(secret))}",
    "refresh secret": lambda secret: text_of(seed(secret)),
    "key seed": lambda secret: base64.b64encode(seed(secret)).decode(),
    "signing key": lambda secret: base64.b64encode(seed(secret) * 2).decode(),
    "private key": pem("PRIVATE KEY"),
    "private key of SSH": pem("OPENSSH PRIVATE KEY"),
    "sealed private key": pem("ENCRYPTED PRIVATE KEY"),
    "private key that was cut off": lambda secret: pem("EC PRIVATE KEY")(secret).partition("-----END")[0],
}


@given(st.sampled_from(CALLED), st.sampled_from(PLACES), PASSWORDS, PLAIN, PLAIN)
def test_what_is_called_a_secret_is_removed(name, place, secret, before, after):
    """In every notation that logs, headers, JSON, representations and options have."""
    text = f"{before} {place.format(name, secret)} {after}"

    assert secret not in redact(text)
    assert REMOVED in redact(text)


@given(
    st.sampled_from(sorted(LOOKS)),
    st.text(LETTERS, min_size=12, max_size=40),
    PLAIN,
    st.sampled_from(["{0}", "key {0}", '{{"v": "{0}"}}', "(b'x', b'{0}')", "at {0}, again", "x={0}\n"]),
)
def test_what_looks_like_a_secret_is_removed(kind, secret, before, place):
    """Whatever it is called, and wherever it is: no line of it is left."""
    planted = LOOKS[kind](f"Zq{secret}")

    left = redact(f"{before} {place.format(planted)}")

    secrets = [f"Zq{secret}"] if f"Zq{secret}" in planted else planted.strip().split("\n")
    assert [] == [part for part in secrets if part in left]
    assert REMOVED in left


@given(st.text(max_size=40), PASSWORDS)
def test_a_password_in_a_url_is_removed_whatever_is_in_it(user, secret):
    """Also if it should have been escaped."""
    name = "".join(character for character in user if character.isalnum())

    left = redact(f"cannot reach postgresql://{name}:{secret}@db/x")

    assert secret not in left
    assert left.endswith("@db/x")


@given(PLAIN)
def test_a_text_without_secrets_is_unchanged(text):
    """Versions, paths, URLs, digests and key ids are told."""
    assert text == redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "token",
        "unknown key",
        "bearer authentication is needed",
        "the token is not valid any more: ask for a new one",
        "https://[::1]:8750/agents?mail=a@b.example",
        "https://redflag.example.com:8750/a@b",
        "ssh://git@host/repository",
        "sha256:9F86D081884C7D659A2FEAA0C55AD015A3BF4F1B2B0B822CD15D6C15B0F00A08",
        'File "/opt/redflag/tokens.py", line 5, in token',
        "--verbose --host db -p 22",
    ],
)
def test_these_are_no_secrets(text):
    """What only comes near one."""
    assert text == redact(text)


@given(
    st.text(max_size=300)
    | st.lists(st.sampled_from([*CALLED, *"='\":\\ ,;@/{}\n-", "://", "Bearer"])).map("".join)
)
@example("password=[removed], host=db")
@example("Authorization: [removed]")
def test_to_remove_twice_is_to_remove_once(text):
    """The agent does it, and the server does it again."""
    once = redact(text)

    assert once == redact(once)


@pytest.mark.parametrize(
    "piece",
    ["a", "-", " ", "\\", "://a:", "password", "--token", 'token="', "eyJ", "bearer ", "aB", "://x:@", "cookie: "],
)
def test_no_text_takes_long(piece):
    """Time is in proportion to the length: what backtracks would take minutes for so much."""
    longest = 0.0
    for _ in range(3):
        started = time.perf_counter()
        redact(piece * (200_000 // len(piece)))
        longest = max(longest, time.perf_counter() - started)

    assert longest < 5


# --- facts ---


@given(
    st.sampled_from(CALLED),
    st.one_of(
        PASSWORDS, st.lists(PASSWORDS, min_size=1), st.dictionaries(st.text(max_size=3), PASSWORDS, min_size=1)
    ),
    st.integers(0, MAX_FACTS_DEPTH + 2),
)
def test_a_fact_that_is_called_a_secret_is_removed(name, secret, depth):
    """At any depth, whatever its value is made of."""
    facts = {name: secret, "exit": 100}
    for _ in range(depth):
        facts = {"inner": [facts]}

    left = json.dumps(redact_facts(facts, max_bytes=MAX_CONTEXT_BYTES))

    for text in (
        [secret] if isinstance(secret, str) else [*(secret.values() if isinstance(secret, dict) else secret)]
    ):
        assert json.dumps(text)[1:-1] not in left


def test_texts_among_facts_lose_their_secrets():
    """In lists and in names of facts too."""
    facts = {"command": ["psql", "postgresql://a:Zq12345@db"], "password=Zq9": 1}

    assert {"command": ["psql", f"postgresql://a:{REMOVED}@db"], f"password={REMOVED}": REMOVED} == redact_facts(
        facts, max_bytes=1000
    )


def test_facts_without_secrets_are_unchanged():
    """Every kind of value that JSON has."""
    facts = {"exit": 100, "took": 0.5, "lists": ["a", None], "held": True, "token": None, "more": {"x": {}}}

    assert facts == redact_facts(facts, max_bytes=1000)


def test_facts_are_bounded():
    """In number, length, depth and bytes; nothing of it raises."""
    deep = {}
    for _ in range(100):
        deep = {"a": deep}
    facts = {"deep": deep, "long": "x" * 5000, "many": list(range(200)), "big": 10**30, "odd": object()}

    left = redact_facts(facts, max_bytes=10_000)

    assert MAX_FACT == len(left["long"])
    assert MAX_FACTS == len(left["many"])
    assert ("int", "object") == (left["big"], left["odd"])
    assert "[too deep]" in json.dumps(left["deep"])
    assert MAX_FACTS == len(redact_facts({str(n): n for n in range(100)}, max_bytes=10_000))


RAW = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=30,
)


@given(st.dictionaries(st.text(), RAW), st.integers(2, 500))
def test_any_facts_fit_where_they_are_kept(facts, limit):
    """Any database can keep them, and they take no more bytes than they may."""
    left = redact_facts(facts, max_bytes=limit)

    assert len(dump_json(left)) <= limit
    assert "\\u0000" not in json.dumps(left)


def test_names_are_judged_by_any_part_of_them():
    """In any case, with any separator."""
    assert all(map(is_called_secret, CALLED))
    assert not any(map(is_called_secret, ["host", "path", "exit_status", "method", "author"]))
