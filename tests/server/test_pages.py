"""The pages as a browser gets them: what they show, what they escape, how they fail, and their headers."""

import re
from datetime import timedelta
from pathlib import Path

import pytest

from redflag_core.enrolment import AgentStatus
from redflag_core.lifecycle import Presence
from redflag_core.scanning import PackageState, ScanStatus, Severity
from redflag_core.testing import START
from redflag_server.dashboard import rendering, words
from redflag_server.dashboard.package_views import PACKAGES
from redflag_server.dashboard.views import MACHINES
from redflag_server.headers import ALWAYS
from tests.helpers.operators import (
    API,
    FORM,
    PASSWORD,
    add_event,
    add_machine,
    add_packages,
    add_scanner,
    api_key,
    first_place,
    form_token,
    make_user,
    sign_in,
)
from tests.helpers.pages import Text
from tests.helpers.server import running

HOSTILE = "<script>alert('1')</script>\"'&{{7*7}}</td>\u202e"
CSS = Path(rendering.FOLDER / "static" / "redflag.css").read_text("utf-8")


@pytest.fixture
async def place(server):
    """The organization that every server starts with."""
    return await first_place(server.runtime)


@pytest.fixture
async def alice(server):
    """Alice is signed in."""
    await make_user(server.runtime)
    await sign_in(server.client)


async def page(server, path="/"):
    answer = await server.client.get(path)
    assert answer.status_code == 200, answer.text
    return Text(answer.text)


# --- the fleet ---


async def test_an_empty_fleet_says_what_to_do_next(server, alice):
    """The first page of a new server names the commands that add a machine."""
    shown = await page(server)

    assert "No machine yet" in shown.text
    assert "redflag server registration-token add" in shown.text


async def test_the_fleet_shows_each_machine_with_what_is_open(server, place, alice):
    """Name, system, presence, open packages by state, last seen: in words, not by colour alone."""
    agent = await add_machine(server.runtime, place)
    await add_scanner(server.runtime, place, agent)
    await add_packages(
        server.runtime,
        place,
        agent,
        [("a", {"security": True}), ("b", {"state": PackageState.HELD}), ("c", {"state": PackageState.KEPT_BACK})],
    )
    server.clock.advance(120)

    shown = (await page(server)).text

    for text in ("web-01", "Debian GNU/Linux 12", "online", "1 security update", "1 available", "1 held",
                 "1 kept back", "2 min ago"):  # fmt: skip
        assert text in shown
    assert "1 held, 1 kept back, 0 phased" in shown


async def test_no_number_hides_what_is_held_or_unknown(server, place, alice):
    """There is no percentage, and a machine whose scan failed is never called up to date."""
    failing = await add_machine(server.runtime, place, "failing")
    await add_scanner(server.runtime, place, failing, status="failed", error="x", succeeded_at=None)
    held = await add_machine(server.runtime, place, "held")
    await add_scanner(server.runtime, place, held)
    await add_packages(server.runtime, place, held, [("a", {"state": PackageState.HELD})])
    await add_machine(server.runtime, place, "new")

    shown = (await page(server)).text

    assert "%" not in shown
    assert "up to date" not in shown
    assert all(text in shown for text in ("scan failing", "1 held", "not scanned yet"))


async def test_a_machine_that_lacks_nothing_is_up_to_date(server, place, alice):
    """Only a scan that worked makes it so."""
    agent = await add_machine(server.runtime, place)
    await add_scanner(server.runtime, place, agent)
    await add_packages(server.runtime, place, agent, [("a", {"state": PackageState.CURRENT})])

    assert "up to date" in (await page(server)).text


async def test_machines_that_wait_are_counted_and_found(server, place, alice):
    """Who must decide sees it on top, and one link shows those machines only."""
    await add_machine(server.runtime, place, "fine")
    await add_machine(server.runtime, place, "waits", status=AgentStatus.PENDING)
    await add_machine(server.runtime, place, "gone", status=AgentStatus.REVOKED)

    whole, waiting, revoked = [
        (await page(server, path)).text for path in ("/", "/?show=waiting", "/?show=revoked")
    ]

    assert "1 machine needs a decision" in whole
    assert "2 machines: 2 online" in whole
    assert [True, True, False] == [name in whole for name in ("fine", "waits", "gone")]
    assert [False, True, False] == [name in waiting for name in ("fine", "waits", "gone")]
    assert [False, False, True] == [name in revoked for name in ("fine", "waits", "gone")]


async def test_a_large_fleet_has_pages(server, place, alice):
    """No page holds more than its bound, and the next one is a link away."""
    for number in range(MACHINES + 1):
        await add_machine(server.runtime, place, f"machine-{number:03}")
    first = await server.client.get("/")
    target = re.search(r'href="(/\?cursor=[^"]+)" rel="next"', first.text)
    second = await server.client.get(target[1])

    assert [MACHINES, 1] == [len(set(re.findall(r"machine-\d+", answer.text))) for answer in (first, second)]
    assert "101 machines" in first.text


async def test_a_machine_is_found_by_its_name(server, place, alice):
    """The search keeps what was typed, and says so when nothing fits."""
    await add_machine(server.runtime, place, "web-01")
    await add_machine(server.runtime, place, "db-01")

    found, nothing = [(await server.client.get(f"/?hostname={name}")).text for name in ("WEB", "x%22%3E<y")]

    assert ("web-01" in found, "db-01" in found) == (True, False)
    assert 'value="WEB"' in found
    assert "No machine like this" in nothing
    assert 'value="x&#34;&gt;&lt;y"' in nothing


# --- one machine ---


async def test_a_machine_shows_its_packages_by_state(server, place, alice):
    """Versions, origin, security, size and reason; what is up to date is behind a link with its number."""
    agent = await add_machine(server.runtime, place)
    await add_scanner(server.runtime, place, agent, warnings=["the lists are old"])
    openssl = {
        "installed": "3.0.15",
        "available": "3.0.16",
        "security": True,
        "severity": Severity.CRITICAL,
        "origin": "Debian-Security",
        "download_size": 1_434_120,
        "cves": ["CVE-2024-13176"],
    }
    await add_packages(
        server.runtime,
        place,
        agent,
        [
            ("openssl", openssl),
            ("nginx", {"state": PackageState.HELD, "reason": "held by apt-mark"}),
            ("hidden", {"state": PackageState.CURRENT}),
            ("also-hidden", {"state": PackageState.CURRENT}),
            ("closed", {"state": PackageState.NOT_APPLICABLE}),
        ],
    )  # fmt: skip
    await add_event(server.runtime, place, agent, "It was started anew.")

    short, long = await page(server, f"/machines/{agent}"), await page(server, f"/machines/{agent}?current=true")

    for text in ("3.0.15", "3.0.16", "security", "critical", "CVE-2024-13176", "Debian-Security", "1.4 MB",
                 "held by apt-mark", "the lists are old", "working", "Show 2 packages that are up to date",
                 "It was started anew."):  # fmt: skip
        assert text in short.text
    assert [False, True] == ["also-hidden" in shown.text for shown in (short, long)]
    assert not any("closed" in shown.text for shown in (short, long))
    states = [
        attributes["id"] for tag, attributes in short.tags if (attributes.get("id") or "").startswith("state-")
    ]
    assert ["state-available", "state-held"] == states


async def test_a_failing_scan_is_said_and_not_hidden(server, place, alice):
    """The error, since when nothing works, and that the packages are unknown."""
    agent = await add_machine(server.runtime, place)
    await add_scanner(server.runtime, place, agent, status="failed", error="E: the cache is corrupted",
                      succeeded_at=server.clock.now() - timedelta(days=2))  # fmt: skip
    await add_packages(server.runtime, place, agent, [("a", {"state": PackageState.UNKNOWN})])

    shown = (await page(server, f"/machines/{agent}")).text

    for text in (
        "failed",
        "E: the cache is corrupted",
        "last one that worked 2 days ago",
        "nobody knows",
        "1 unknown",
    ):
        assert text in shown


async def test_a_long_list_is_cut_and_says_so(server, place, alice):
    """A page has a bound, and the number that is shown is the true one."""
    agent = await add_machine(server.runtime, place)
    await add_packages(server.runtime, place, agent, [(f"p{number}", {}) for number in range(PACKAGES + 1)])

    shown = (await page(server, f"/machines/{agent}")).text

    assert f"{PACKAGES + 1} packages" in shown
    assert f"The first {PACKAGES} of {PACKAGES + 1} are shown" in shown


@pytest.mark.parametrize("status,actions", [
    (AgentStatus.ACTIVE, {"revoke"}),
    (AgentStatus.PENDING, {"approve", "revoke"}),
    (AgentStatus.HARDWARE_CHANGED, {"approve", "revoke"}),
    (AgentStatus.RENEWAL_PENDING, {"approve", "revoke"}),
    (AgentStatus.QUARANTINED, {"release", "revoke"}),
    (AgentStatus.REVOKED, set()),
])  # fmt: skip
async def test_a_machine_offers_the_decisions_that_fit(server, place, alice, status, actions):
    """Status, reason and advice are on the page, with a form for each thing that can be done now."""
    agent = await add_machine(server.runtime, place, status=status, status_reason="because of this")

    shown = await page(server, f"/machines/{agent}")

    others = {"sign-out", "scan"}
    forms = {form["action"].rpartition("/")[2] for tag, form in shown.tags if tag == "form"} - others
    assert actions == forms
    assert (status != AgentStatus.ACTIVE) is ("because of this" in shown.text)
    assert (status != AgentStatus.ACTIVE) is any(advice in shown.text for advice in words.STATUS_ADVICE.values())


async def test_a_decision_is_made_with_its_form(server, place, alice):
    """Approving leads back to the machine, which is active; without a reason nothing happens."""
    agent = await add_machine(server.runtime, place, status=AgentStatus.PENDING)
    token = await form_token(server.client)
    url = f"/machines/{agent}/approve"

    without = await server.client.post(url, data={"form_token": token, "reason": " "}, headers=FORM)
    done = await server.client.post(
        url, data={"form_token": token, "reason": "seen on the rack"}, headers=FORM, follow_redirects=False
    )

    assert (400, 303, f"/machines/{agent}") == (without.status_code, done.status_code, done.headers["location"])
    assert "approved: seen on the rack" in (await page(server, f"/machines/{agent}")).text


async def test_hostile_names_are_shown_as_they_are(server, place, alice):
    """Host name, system, package, reason, error, warning and event come from outside: none of it is markup."""
    os = {"family": "linux", "id": "x", "name": HOSTILE, "kernel": HOSTILE, "arch": HOSTILE}
    agent = await add_machine(
        server.runtime,
        place,
        HOSTILE,
        os=os,
        status=AgentStatus.PENDING,
        status_reason=HOSTILE,
        agent_version=HOSTILE,
    )
    await add_scanner(server.runtime, place, agent, status="failed", error=HOSTILE, warnings=[HOSTILE])
    package = {"installed": HOSTILE, "available": HOSTILE, "reason": HOSTILE, "origin": HOSTILE}
    await add_packages(server.runtime, place, agent, [(HOSTILE, package)])
    await add_event(server.runtime, place, agent, HOSTILE)

    for path in ("/", f"/machines/{agent}"):
        answer = await server.client.get(path)
        shown = Text(answer.text)
        assert "<script>alert" not in answer.text
        assert 1 == sum(tag == "script" for tag, _ in shown.tags)
        assert HOSTILE in "".join(shown.words)


async def test_nothing_on_a_page_needs_inline_code(server, place, alice):
    """No script or style in the page itself, no handlers in attributes, nothing from elsewhere."""
    agent = await add_machine(server.runtime, place)
    await add_scanner(server.runtime, place, agent)
    for path in ("/", f"/machines/{agent}", "/nope"):
        shown = await server.client.get(path)
        for tag, attributes in Text(shown.text).tags:
            assert tag != "style"
            assert not {"style", "onclick", "onload", "onsubmit"} & set(attributes)
            for name in ("src", "href", "action"):
                assert not (attributes.get(name) or "").startswith(
                    ("http:", "https:", "//", "javascript:", "data:")
                )
            if tag == "script":
                assert attributes["type"] == "module"
                assert attributes["src"].startswith("/static/")


async def test_a_page_asks_for_its_changing_part_only(server, place, alice):
    """With the header of the refreshing script the answer is the fragment that is inside the page."""
    agent = await add_machine(server.runtime, place)
    for path in ("/", f"/machines/{agent}"):
        whole = (await server.client.get(path)).text
        part = (await server.client.get(path, headers={"x-refresh": "1"})).text
        assert "<html" not in part
        assert part.strip() in whole


async def test_under_a_prefix_every_link_has_it(tmp_path):
    """Behind a proxy that takes a path prefix away, pages link with it."""
    async with running(tmp_path, public_urls=("https://example.com/redflag",), behind_tls_proxy=True) as server:
        agent = await add_machine(server.runtime, await first_place(server.runtime))
        await make_user(server.runtime)
        server.client.base_url = "https://127.0.0.1:8750"
        origin = {"origin": "https://example.com"}
        form = {"name": "alice", "password": PASSWORD}
        answer = await server.client.post("/sign-in", data=form, headers=origin, follow_redirects=False)
        fleet, machine = [await server.client.get(path) for path in ("/", f"/machines/{agent}")]

    assert "/redflag/" == answer.headers["location"]
    for shown in (fleet, machine):
        for _, attributes in Text(shown.text).tags:
            for name in ("src", "href", "action"):
                target = attributes.get(name) or "#"
                assert target.startswith(("#", "/redflag/")), target


# --- failing ---


async def test_pages_fail_as_pages_and_the_api_as_problems(server, place, alice):
    """Each answers in its own form, errors of the framework too."""
    key = await api_key(server.runtime)
    agent = await add_machine(server.runtime, place)
    pages = {
        "/nope": 404,
        "/machines/x": 404,
        f"/machines/{agent}/explode": 404,
        "/machines/00000000-0000-0000-0000-000000000001": 404,
        "/?limit=1": 400,
        "/?cursor=x": 400,
        "/?show=nope": 400,
        "/?hostname=%00": 400,
        f"/machines/{agent}?current=maybe": 400,
        "/sign-in?next=" + "x" * 600: 400,
    }
    for path, status in pages.items():
        answer = await server.client.get(path)
        assert (status, "text/html; charset=utf-8") == (answer.status_code, answer.headers["content-type"]), path
        assert "<h1>" in answer.text
    for path in ("/api/v1/nope", "/api/nope", "/api/v1/agents/x", "/static/nope", "/static/..%2fcontroller.py"):
        answer = await server.client.get(path, headers=key)
        assert (404, "application/problem+json") == (answer.status_code, answer.headers["content-type"]), path


async def test_an_error_of_the_server_says_nothing_of_itself(server, alice, monkeypatch):
    """A bug is a plain page for people and a problem for scripts, with no word of what broke."""
    from redflag_server.agents import listing

    def broken(*_args, **_kwargs):
        raise RuntimeError("secret detail")

    key = await api_key(server.runtime)
    monkeypatch.setattr(listing, "fetch_page", broken)

    shown, problem = await server.client.get("/"), await server.client.get(f"{API}/agents", headers=key)

    assert [500, 500] == [shown.status_code, problem.status_code]
    assert "text/html; charset=utf-8" == shown.headers["content-type"]
    assert "secret detail" not in shown.text + problem.text
    assert "internal" == problem.json()["code"]


async def test_every_answer_has_the_security_headers(server, place, alice):
    """Also errors, redirects, files, unknown paths and unknown methods."""
    requests = [
        ("GET", "/"), ("GET", "/sign-in"), ("GET", "/nope"), ("GET", "/api/v1/nope"), ("DELETE", "/api/v1/agents"),
        ("GET", "/api/v1/agents"), ("POST", "/sign-in"), ("GET", "/static/redflag.css"), ("GET", "/static/nope"),
        ("GET", "/schema/openapi.json"), ("GET", "/schema"), ("GET", "/api/v1/health/live"), ("OPTIONS", "/"),
        ("PATCH", "/"), ("GET", "/?limit=1"), ("POST", "/api/v1/agent/check-in"),
    ]  # fmt: skip
    for method, path in requests:
        answer = await server.client.request(method, path, follow_redirects=False)
        missing = {name for name, value in ALWAYS.items() if answer.headers.get(name) != value}
        assert not missing, (method, path, missing)
        assert "strict-transport-security" not in answer.headers
        assert answer.headers["cache-control"] == "no-store" or path == "/static/redflag.css", path


async def test_with_tls_browsers_are_told_to_stay_there(tmp_path):
    """HSTS goes out when people arrive over TLS, on errors too."""
    async with running(tmp_path, behind_tls_proxy=True) as server:
        answers = [await server.client.get(path) for path in ("/sign-in", "/nope", "/api/v1/agents")]

    assert all("max-age=31536000" in answer.headers["strict-transport-security"] for answer in answers)


def test_the_policy_allows_no_inline_code_and_nobody_elses():
    """The strict policy is what the pages are written for."""
    policy = dict(part.strip().split(" ", 1) for part in ALWAYS["Content-Security-Policy"].split(";"))

    assert {"'none'"} == {policy[name] for name in ("default-src", "base-uri", "frame-ancestors")}
    assert {"'self'"} == {policy[name] for name in ("script-src", "style-src", "form-action")}
    assert "unsafe" not in ALWAYS["Content-Security-Policy"]


async def test_files_are_kept_by_browsers_for_ever(server):
    """Their URL changes with their content, so a browser never has an old one."""
    page_text = (await server.client.get("/sign-in")).text
    (href,) = re.findall(r'rel="stylesheet" href="([^"]+)"', page_text)

    answer = await server.client.get(href)

    assert (200, "text/css; charset=utf-8") == (answer.status_code, answer.headers["content-type"])
    assert "immutable" in answer.headers["cache-control"]
    assert rendering.assets()["redflag.css"].version in href


# --- words and colours ---


def test_everything_that_can_be_shown_has_a_word():
    """No state, status or severity reaches a page under its code name."""
    assert set(PackageState) == set(words.STATES) == set(words.EXPLANATIONS)
    assert set(AgentStatus) == set(words.STATUSES) == set(words.STATUS_ADVICE) | {AgentStatus.ACTIVE}
    assert set(Presence) == set(words.PRESENCE)
    assert set(Severity) == set(words.SEVERITIES)
    assert set(ScanStatus) == set(words.SCANNER_STATUSES)


@pytest.mark.parametrize(
    "seconds,expected",
    [(-5, "just now"), (59, "just now"), (60, "1 min ago"), (3599, "59 min ago"), (3600, "1 h ago"),
     (86_399, "23 h ago"), (86_400, "1 day ago"), (13 * 86_400, "13 days ago"), (14 * 86_400, "2026-01-01")],
)  # fmt: skip
def test_times_are_said_as_people_say_them(seconds, expected):
    """Roughly at first, and as a date when it is long ago."""
    assert expected == rendering.ago(START, START + timedelta(seconds=seconds))


@pytest.mark.parametrize(
    "number,expected",
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (315_000, "315 kB"),
        (1_434_120, "1.4 MB"),
        (2 * 10**9, "2.0 GB"),
        (2 * 10**12, "2.0 TB"),
    ],
)
def test_sizes_are_said_in_the_unit_that_fits(number, expected):
    """Decimal units, as package managers use them."""
    assert expected == rendering.size(number)


def colours(css: str) -> dict[str, str]:
    return dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", css))


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours (WCAG 2.2, 1.4.3)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


LIGHT = colours(CSS.partition("@media (prefers-color-scheme: dark)")[0])
DARK = colours(CSS.partition("@media (prefers-color-scheme: dark)")[2].partition("* { box-sizing")[0])
GROUNDS = ("ground", "surface", "raised")
PAIRS = [
    *((text, ground) for text in ("text", "soft", "link", "quiet") for ground in GROUNDS),
    *((text, "quiet-ground") for text in ("text", "quiet", "link")),
    *(
        (name, f"{name}-ground")
        for name in ("ok", "alarm", "security", "available", "kept-back", "held", "phased")
    ),
    *((name, "surface") for name in ("alarm", "security")),
    ("brand-text", "brand"),
]


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_every_text_has_the_contrast_of_wcag_aa(scheme):
    """4.5 to 1 for text, 3 to 1 for the edges of fields and the focus ring, in both colour schemes."""
    weak = {pair: round(contrast(scheme[pair[0]], scheme[pair[1]]), 2) for pair in PAIRS}
    edges = {
        (name, ground): contrast(scheme[name], scheme[ground]) for name in ("field", "focus") for ground in GROUNDS
    }

    assert {} == {pair: ratio for pair, ratio in weak.items() if ratio < 4.5}
    assert {} == {pair: ratio for pair, ratio in edges.items() if ratio < 3}


def test_both_schemes_name_the_same_colours():
    """No colour of one scheme is left over in the other."""
    assert set(LIGHT) == set(DARK)
