"""The pages in a real browser: keyboard, phone, refresh, and a console without a word of complaint."""

import pytest
from playwright.async_api import expect

from redflag_core.enrolment import AgentStatus
from redflag_core.scanning import PENDING_STATES, PackageState
from redflag_server.accounts.setup import issue_setup_link
from tests.helpers.browser import chromium, listening, window
from tests.helpers.needs import needs
from tests.helpers.operators import (
    PASSWORD,
    add_machine,
    add_packages,
    add_scanner,
    first_place,
    make_user,
)

pytestmark = needs("chromium")

DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 360, "height": 740}
LONG = "a-host-name-as-long-as-they-come-" * 7

NAMED_FIELDS = """
() => [...document.querySelectorAll("input:not([type=hidden]), button")]
  .filter((field) => !(field.labels?.length || field.textContent.trim() || field.ariaLabel))
  .map((field) => field.outerHTML)
"""
OUTLINE = """() => { const style = getComputedStyle(document.activeElement);
  return style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2; }"""
SKIP_LINK = """() => { const { left } = document.activeElement.getBoundingClientRect();
  return left >= 0 ? document.activeElement.textContent : "out of sight"; }"""
MOVING = """() => [...document.querySelectorAll("*")]
  .filter((element) => parseFloat(getComputedStyle(element).transitionDuration) > 0).length"""


@pytest.fixture
async def site(tmp_path):
    """A listening server with an owner."""
    async with listening(tmp_path / "data") as running:
        yield running


@pytest.fixture
async def browser():
    """One browser."""
    async with chromium() as running:
        yield running


async def populate(site):
    """A fleet with something in every place of the pages."""
    runtime = site.runtime
    place = await first_place(runtime)
    agent = await add_machine(runtime, place)
    await add_scanner(runtime, place, agent, warnings=["the package lists are nine days old"])
    states = [*PENDING_STATES, PackageState.UNKNOWN]
    packages = [(f"{state}-{LONG}", {"state": state, "security": True, "origin": LONG}) for state in states]
    await add_packages(runtime, place, agent, packages)
    waiting = await add_machine(runtime, place, LONG[:253], status=AgentStatus.QUARANTINED, status_reason=LONG)
    return [f"{site.url}/", f"{site.url}/machines/{agent}", f"{site.url}/machines/{waiting}"]


async def sign_in(page, site):
    await page.goto(f"{site.url}/sign-in")
    await page.fill("#name", "alice")
    await page.fill("#password", PASSWORD)
    await page.click("button[type=submit]")
    await page.wait_for_url(f"{site.url}/")


async def test_set_up_sign_out_and_sign_in_through_the_forms(site, browser):
    """From the link on the console to the fleet, out, and in again: with a real browser's own headers."""
    link = await issue_setup_link(site.runtime)
    async with window(browser) as opened:
        page = opened.page
        await page.goto(link)
        await page.fill("#name", "alice")
        await page.fill("#password", PASSWORD)
        await page.fill("#again", PASSWORD)
        await page.click("button[type=submit]")
        await page.wait_for_url(f"{site.url}/")
        await page.click("text=Sign out")
        await page.wait_for_url(f"{site.url}/sign-in")
        await sign_in(page, site)

        assert "No machine yet" in await page.inner_text("main")
        assert [] == opened.complaints


async def test_everything_can_be_done_with_the_keyboard(site, browser):
    """Sign in, skip to the content, open a machine and go back, without a pointer; the focus is always seen."""
    await make_user(site.runtime)
    await populate(site)
    async with window(browser, viewport=DESKTOP) as opened:
        page = opened.page
        await page.goto(f"{site.url}/")
        await page.wait_for_function("document.activeElement.name === 'name'")  # autofocus comes after the load
        await page.keyboard.type("alice")
        await page.keyboard.press("Tab")
        await page.keyboard.type(PASSWORD)
        await page.keyboard.press("Enter")
        await page.wait_for_url(f"{site.url}/")

        await page.keyboard.press("Tab")
        skip = await page.evaluate(SKIP_LINK)
        await page.keyboard.press("Enter")
        reached = []
        while "web-01" not in reached and len(reached) < 10:
            await page.keyboard.press("Tab")
            reached.append((await page.evaluate("document.activeElement.textContent")).strip())
            assert await page.evaluate(OUTLINE), reached
        await page.keyboard.press("Enter")
        await page.wait_for_selector("h1:has-text('web-01')")
        await page.go_back()

        assert "Skip to content" == skip
        assert "Machines" == await page.inner_text("h1")
        assert [] == opened.complaints


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_on_a_phone_nothing_is_cut_off(site, browser, scheme):
    """At 360 pixels no page scrolls sideways, also with the longest names, and every field has a name."""
    await make_user(site.runtime)
    pages = await populate(site)
    async with window(browser, viewport=PHONE, color_scheme=scheme, has_touch=True) as opened:
        page = opened.page
        await sign_in(page, site)
        for url in [*pages, f"{site.url}/nope", f"{site.url}/?hostname=nothing"]:
            await page.goto(url)
            assert PHONE["width"] >= await page.evaluate("document.documentElement.scrollWidth"), url
            assert [] == await page.evaluate(NAMED_FIELDS), url
            assert 1 == await page.locator("h1").count(), url
            assert "en" == await page.evaluate("document.documentElement.lang")
            assert (await page.title()).endswith("· RedFlag")
        unexpected = [text for text in opened.complaints if "404" not in text]

        assert [] == unexpected


async def test_tables_stay_tables_for_screen_readers_on_a_phone(site, browser):
    """What looks like cards is still announced as rows and columns."""
    await make_user(site.runtime)
    await populate(site)
    async with window(browser, viewport=PHONE) as opened:
        await sign_in(opened.page, site)

        table = opened.page.get_by_role("table", name="Machines")

        assert 3 == await table.get_by_role("row").count()
        assert 4 == await table.get_by_role("columnheader").count()


async def test_the_page_follows_what_happens(site, browser):
    """A machine that registers appears without a reload, and the focus stays where it was."""
    await make_user(site.runtime)
    await populate(site)
    async with window(browser) as opened:
        page = opened.page
        await page.clock.install()
        await sign_in(page, site)
        await page.evaluate("window.here = true")
        await page.focus("a.name >> nth=0")
        await add_machine(site.runtime, await first_place(site.runtime), "the-new-one")

        await page.clock.run_for(11_000)
        await page.wait_for_selector("text=the-new-one")

        assert await page.evaluate("window.here")
        assert "web-01" == (await page.evaluate("document.activeElement.textContent")).strip()
        assert [] == opened.complaints


async def test_what_is_being_typed_is_left_alone(site, browser):
    """A refresh never takes a half-written search away."""
    await make_user(site.runtime)
    await populate(site)
    async with window(browser) as opened:
        page = opened.page
        await page.clock.install()
        await sign_in(page, site)
        await page.fill("#hostname", "half a na")
        await page.focus("a.name >> nth=0")
        await add_machine(site.runtime, await first_place(site.runtime), "the-new-one")
        asked = []
        page.on("request", lambda request: asked.append(request.url))

        await page.clock.run_for(31_000)
        await expect(page.locator("#freshness")).to_contain_text("Not refreshed while you choose or type")

        assert [] == asked
        assert "half a na" == await page.input_value("#hostname")


async def test_a_server_that_is_gone_is_said(site, browser):
    """When the page cannot be refreshed it says that it may be old, and stops saying so afterwards."""
    await make_user(site.runtime)
    async with window(browser) as opened:
        page = opened.page
        await page.clock.install()
        await sign_in(page, site)
        await page.route("**/*", lambda route: route.abort())
        await page.clock.run_for(11_000)
        await page.wait_for_selector("text=The server does not answer")
        await page.unroute_all()

        await page.clock.run_for(11_000)

        await expect(page.locator("#freshness")).to_have_text("")


async def test_a_session_that_ended_leads_to_the_sign_in_page(site, browser):
    """A page left open asks for sign-in as soon as it notices."""
    await make_user(site.runtime)
    async with window(browser) as opened:
        page = opened.page
        await page.clock.install()
        await sign_in(page, site)
        await page.context.clear_cookies()

        await page.clock.run_for(11_000)

        await page.wait_for_url("**/sign-in")


async def test_without_javascript_everything_works(site, browser):
    """Sign-in, fleet, machine, a decision and sign-out need no script."""
    await make_user(site.runtime)
    _, _, waiting = await populate(site)
    async with window(browser, java_script_enabled=False) as opened:
        page = opened.page
        await sign_in(page, site)
        await page.goto(waiting)
        await page.fill("#reason-release", "it is ours")
        await page.click("button:has-text('Release')")
        await page.wait_for_url(waiting)

        assert "was released: it is ours" in await page.inner_text("main")
        await page.click("text=Sign out")
        await page.wait_for_url("**/sign-in")


async def test_scripts_of_hostile_machines_do_not_run(site, browser):
    """A machine that calls itself markup is shown as text; the policy has nothing to stop."""
    hostile = "<img src=x onerror=window.hit=1><script>window.hit=1</script>"
    await make_user(site.runtime)
    place = await first_place(site.runtime)
    agent = await add_machine(site.runtime, place, hostile)
    await add_packages(site.runtime, place, agent, [(hostile, {"reason": hostile})])
    async with window(browser) as opened:
        page = opened.page
        await page.clock.install()
        await sign_in(page, site)
        await page.clock.run_for(11_000)
        for url in (f"{site.url}/", f"{site.url}/machines/{agent}"):
            await page.goto(url)
            assert hostile in await page.inner_text("main")
            assert await page.evaluate("window.hit === undefined")

        assert [] == opened.complaints


async def test_motion_is_for_those_who_want_it(site, browser):
    """Who asked for less motion gets none."""
    await make_user(site.runtime)
    await populate(site)
    async with window(browser, reduced_motion="reduce") as opened:
        await sign_in(opened.page, site)

        moving = await opened.page.evaluate(MOVING)

        assert 0 == moving
