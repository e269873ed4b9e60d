"""Approving, planning and installing in a real browser, by mouse, keyboard, phone and without any script."""

import re

import attrs
import httpx
import pytest
from playwright.async_api import expect

from redflag_core.commands import CommandType
from redflag_core.enrolment import RegistrationToken
from redflag_core.scanning import PackageState
from redflag_core.statements import Outcome, PackageOutcome, PackageResult
from redflag_server.agents.registration_tokens import create_registration_token
from redflag_server.agents.schema import NewToken
from redflag_server.db.scope import whole_installation
from redflag_server.plans.tables import Plan
from tests.helpers.browser import Site, chromium, listening, window
from tests.helpers.fleet import Machine, package
from tests.helpers.needs import needs
from tests.helpers.operators import PASSWORD, add_packages, api_key, first_place, make_user
from tests.helpers.patching import DEPENDENCY, REMOVAL, Ward
from tests.helpers.server import Server

pytestmark = needs("chromium")

DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 360, "height": 740}
LONG = "a-name-as-long-as-they-come-" * 9

WAITS = " · Not refreshed while you choose or type."

NAMED_FIELDS = """
() => [...document.querySelectorAll("input:not([type=hidden]), select, button")]
  .filter((field) => !(field.labels?.length || field.textContent.trim() || field.ariaLabel))
  .map((field) => field.outerHTML)
"""
STRUCTURE = """
() => {
  const wrong = [];
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  wrong.push(...ids.filter((id, at) => ids.indexOf(id) !== at).map((id) => `twice: ${id}`));
  for (const name of ["aria-labelledby", "aria-describedby"])
    for (const element of document.querySelectorAll(`[${name}]`))
      for (const id of element.getAttribute(name).split(" "))
        if (!document.getElementById(id)) wrong.push(`${name}: ${id}`);
  for (const link of document.querySelectorAll('a[href^="#"]'))
    if (!document.getElementById(link.hash.slice(1))) wrong.push(`nowhere: ${link.hash}`);
  const levels = [...document.querySelectorAll("h1, h2, h3")].map((heading) => Number(heading.tagName[1]));
  if (levels.filter((level) => level === 1).length !== 1) wrong.push("not one h1");
  levels.forEach((level, at) => { if (at && level > levels[at - 1] + 1) wrong.push(`heading ${at} skips`); });
  for (const box of document.querySelectorAll("pre.output"))
    if (box.tabIndex !== 0 || !box.ariaLabel) wrong.push("output cannot be scrolled with the keyboard");
  return wrong;
}
"""
SMALL_TARGETS = """
() => [...document.querySelectorAll("button, select, input:not([type=hidden])")]
  .map((field) => [field.getBoundingClientRect(), field])
  .filter(([box]) => box.width && (box.width < 24 || box.height < 24))
  .map(([, field]) => field.outerHTML)
"""
OUTLINE = """() => { const style = getComputedStyle(document.activeElement);
  return style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2; }"""
FOCUSED = "() => document.activeElement.id"


@attrs.define
class Far(Server):
    """A server that is reached over the network."""

    site: Site

    @property
    def runtime(self):
        """What it holds."""
        return self.site.runtime

    async def enrolled(self):
        """A machine that registered over the network."""
        order = NewToken(label="test", seats=1, expires_in_seconds=60)
        _, token = await create_registration_token(self.runtime, whole_installation("test"), order)
        assert isinstance(token, RegistrationToken)
        machine = Machine(now=self.clock.now, authority=self.site.url.removeprefix("http://"))
        return await machine.enrol(self.client, token)


@pytest.fixture
async def site(tmp_path):
    """A listening server with an owner."""
    async with listening(tmp_path / "data") as running:
        await make_user(running.runtime)
        yield running


@pytest.fixture
async def ward(site):
    """A machine that lacks two updates, and answers when a test lets it."""
    async with httpx.AsyncClient(base_url=site.url) as client:
        far = Far(None, client, site.runtime.clock, site)
        ward = Ward(far, await far.enrolled(), await api_key(site.runtime))
        await ward.machine.check_in(client)
        await ward.scan(*(package(name, PackageState.AVAILABLE) for name in ("curl", "openssl")))
        yield ward


@pytest.fixture
async def browser():
    """One browser."""
    async with chromium() as running:
        yield running


async def sign_in(page, site):
    await page.goto(f"{site.url}/sign-in")
    await page.fill("#name", "alice")
    await page.fill("#password", PASSWORD)
    await page.click("button[type=submit]")
    await page.wait_for_url(f"{site.url}/")


def refreshes(page):
    """The requests for a fresh part of the page, from now on."""
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "x-refresh" in request.headers else None)
    return asked


async def install_with_progress(ward, page, check):
    """Carry an installation out as a machine does: accepted, half-way, done; *check* is called half-way."""
    cmd_id, params = await ward.take(CommandType.PACKAGES_UPGRADE)
    told = {"doing": "unpacking openssl", "percent": 42, "lines": ("Unpacking openssl (2.0) ...",)}
    await ward.machine.progress(ward.server.client, cmd_id, **told)
    await check()
    results = tuple(
        PackageResult(name=each.name, arch=each.arch, outcome=PackageOutcome.INSTALLED, installed="2.0")
        for each in params.packages
    )
    output = "\n".join(f"Setting up thing {number} ..." for number in range(200))
    await ward.end(cmd_id, packages=results, exit_status=0, output=output, output_bytes=len(output))


async def test_an_update_goes_from_approval_to_installed(site, ward, browser):
    """Approve, plan, look, confirm, install, watch: the page follows the machine by itself."""
    async with window(browser, viewport=DESKTOP) as opened:
        page = opened.page
        await page.clock.install()
        await sign_in(page, site)
        await page.click("text=machine-under-test")
        await expect(page.locator(".bar")).to_be_hidden()
        await page.check("[aria-label='Choose curl']")
        await page.check("[aria-label='Choose openssl']")
        await page.fill("#reason-decide-available", "they are tested")
        await page.click("#approve-decide-available")
        await expect(page.get_by_role("status").first).to_contain_text("was approved: they are tested")

        await page.fill("#reason-plan", "patch day")
        await page.click("#do-plan")
        await expect(page.locator("h1")).to_have_text("Plan for 2 packages")
        await expect(page.locator(".head")).to_contain_text("planning")
        await page.evaluate("window.here = true")
        await ward.answer_plan(extra=[DEPENDENCY])
        await page.clock.run_for(2_100)
        await expect(page.locator(".head")).to_contain_text("needs confirmation")
        await expect(page.locator("main")).to_contain_text("1 change that nobody asked for")
        await expect(page.locator("#freshness")).to_have_text(" · Now: needs confirmation")
        assert await page.evaluate("window.here")

        await page.fill("#reason-confirm", "the library is fine")
        await page.click("#do-confirm")
        await expect(page.locator(".head")).to_contain_text("ready to install")
        await page.fill("#reason-install", "now")
        await page.click("#do-install")
        await expect(page.locator(".head")).to_contain_text("installing")

        async def half_way():
            await page.clock.run_for(2_100)
            await expect(page.locator("progress")).to_have_attribute("value", "42")
            await expect(page.locator("#output")).to_contain_text("Unpacking openssl (2.0)")

        await install_with_progress(ward, page, half_way)
        await page.clock.run_for(2_100)
        await expect(page.locator(".head .badges")).to_contain_text("done")
        await expect(page.locator("#asked + table")).to_contain_text("installed")
        async with page.expect_download() as download:
            await page.click("text=Signed statement how the command ended >> nth=-1")

        assert re.fullmatch(r"result-[0-9a-f-]{36}\.json", (await download.value).suggested_filename)
        assert {"curl": "installed", "openssl": "installed"} == await ward.states()
        assert [] == opened.complaints


async def test_an_update_is_installed_with_the_keyboard_only(site, ward, browser):
    """Every control is reached with Tab, the focus is always seen, and Space and Enter do the rest."""
    async with window(browser, viewport=DESKTOP) as opened:
        page = opened.page
        await page.clock.install()
        await sign_in(page, site)

        async def reach(target):
            await page.focus("main")
            for _ in range(60):
                await page.keyboard.press("Tab")
                assert await page.evaluate(OUTLINE), await page.evaluate(FOCUSED)
                if await page.evaluate("(target) => document.activeElement.matches(target)", target):
                    return
            raise AssertionError(f"{target} is not reached")

        async def do(name, reason):
            await reach(f"#reason-{name}")
            await page.keyboard.type(reason)
            await page.keyboard.press("Enter")

        await reach("a.name")
        await page.keyboard.press("Enter")
        await page.wait_for_url("**/machines/*")
        await reach("[aria-label='Choose curl']")
        await page.keyboard.press("Space")
        await do("decide-available", "it is tested")
        await page.wait_for_url("**?done=true")
        await do("plan", "patch day")
        await page.wait_for_url("**/plans/**")
        await ward.answer_plan(extra=[DEPENDENCY])
        await page.clock.run_for(2_100)
        await expect(page.locator("#do-confirm")).to_be_visible()
        await do("confirm", "looked at")
        await expect(page.locator("#do-install")).to_be_visible()
        await do("install", "now")
        await expect(page.locator(".head")).to_contain_text("installing")
        await ward.answer_install()
        await page.clock.run_for(2_100)
        await expect(page.locator(".head .badges")).to_contain_text("done")

        assert [] == opened.complaints


async def test_without_javascript_an_update_is_installed_too(site, ward, browser):
    """Forms and links are enough; a reload shows how far it is."""
    async with window(browser, java_script_enabled=False, viewport=PHONE) as opened:
        page = opened.page
        await sign_in(page, site)
        await page.click("text=machine-under-test")
        await page.check("#every-decide-available")
        await page.fill("#reason-decide-available", "all of them")
        await page.click("#approve-decide-available")
        await page.fill("#reason-plan", "patch day")
        await page.click("#do-plan")
        await ward.answer_plan()
        await page.reload()
        await page.fill("#reason-install", "now")
        await page.click("#do-install")
        await install_with_progress(ward, page, page.reload)
        await page.reload()

        assert "The machine carried it out" in await page.inner_text("main")
        assert {"curl": "installed", "openssl": "installed"} == await ward.states()


async def test_a_refresh_takes_nothing_out_of_ones_hands(site, ward, browser):
    """While something is ticked, picked or typed the page waits and says so; afterwards it goes on."""
    async with window(browser, viewport=DESKTOP) as opened:
        page = opened.page
        await page.clock.install()
        await sign_in(page, site)
        await page.click("text=machine-under-test")
        place = await first_place(site.runtime)
        box, freshness = page.locator("[aria-label='Choose curl']"), page.locator("#freshness")
        await box.check()
        await add_packages(site.runtime, place, (await ward.row("curl")).agent_id, [("the-new-one", {})])

        await page.clock.run_for(21_000)
        await expect(freshness).to_have_text(WAITS)
        await expect(box).to_be_checked()
        assert 0 == await page.locator("text=the-new-one").count()

        await box.uncheck()
        await page.focus("#package-" + str((await ward.row("curl")).id))
        await page.clock.run_for(11_000)
        await expect(page.locator("text=the-new-one").first).to_be_visible()
        await expect(freshness).to_have_text("")
        assert "package-" + str((await ward.row("curl")).id) == await page.evaluate(FOCUSED)
        assert [] == opened.complaints


async def test_a_filter_that_is_being_chosen_is_left_alone(site, ward, browser):
    """While a choice of a list is not sent, the page does not even ask."""
    async with window(browser, viewport=DESKTOP) as opened:
        page = opened.page
        await page.clock.install()
        await sign_in(page, site)
        await page.goto(f"{site.url}/packages")
        await page.select_option("#state", "held")
        await page.focus("main")
        asked = refreshes(page)

        await page.clock.run_for(61_000)
        await expect(page.locator("#freshness")).to_have_text(WAITS)

        assert [] == asked
        assert "held" == await page.input_value("#state")


async def test_the_page_is_as_fast_as_what_it_shows(site, ward, browser):
    """It asks every two seconds while the machine works, and every ten when nothing moves."""
    await ward.decide("approve", "curl")
    plan = await ward.order_plan("curl")
    async with window(browser, viewport=DESKTOP) as opened:
        page = opened.page
        await page.clock.install()
        await sign_in(page, site)
        await page.clock.pause_at(await page.evaluate("Date.now()") + 1_000)
        await page.goto(f"{site.url}/plans/{plan['id']}")
        asked = refreshes(page)

        for _ in range(3):
            async with page.expect_response("**/plans/**"):
                await page.clock.run_for(2_000)
        moving = len(asked)
        await ward.answer_plan()
        async with page.expect_response("**/plans/**"):
            await page.clock.run_for(2_000)
        await expect(page.locator("#do-install")).to_be_visible()
        async with page.expect_response("**/plans/**"):
            await page.clock.run_for(2_000)  # the last of the fast ones was on its way
        asked.clear()
        await page.clock.run_for(9_000)
        idle = len(asked)
        async with page.expect_response("**/plans/**"):
            await page.clock.run_for(2_000)

        assert (3, 0, 1) == (moving, idle, len(asked))
        assert [] == opened.complaints


async def test_what_was_opened_and_scrolled_stays_so(site, ward, browser):
    """The output of a package manager stays open, and where it was scrolled to, when the page refreshes."""
    plan = await ward.plan("curl")
    await ward.install(plan)
    output = "\n".join(f"line {number}" for number in range(300))
    await ward.answer_install(output=output, output_bytes=len(output))
    async with window(browser, viewport=DESKTOP) as opened:
        page = opened.page
        await page.clock.install()
        await sign_in(page, site)
        await page.goto(f"{site.url}/plans/{plan['id']}")
        await page.click("summary >> nth=0")
        await page.evaluate("document.querySelector('details pre').scrollTop = 700")
        async with page.expect_response("**/plans/**"):
            await page.clock.run_for(11_000)
        await page.wait_for_function("document.querySelector('details').open")

        assert 700 == await page.evaluate("document.querySelector('details pre').scrollTop")


async def test_a_mistake_leads_back_to_the_field(site, ward, browser):
    """The reason is asked for by the browser; what the server refuses comes back with the words still there."""
    async with window(browser, viewport=DESKTOP) as opened:
        page = opened.page
        await sign_in(page, site)
        await page.click("text=machine-under-test")
        await page.check("[aria-label='Choose curl']")
        await page.click("#approve-decide-available")
        asked = await page.evaluate("document.querySelector('#reason-decide-available').validity.valueMissing")
        await page.fill("#reason-decide-available", "not before the migration")
        await page.click("#defer-decide-available")
        await expect(page.get_by_role("alert")).to_contain_text("say until when it is deferred")

        assert asked
        assert "reason-decide-available" == await page.evaluate(FOCUSED)
        assert "not before the migration" == await page.input_value("#reason-decide-available")
        assert await page.is_checked("[aria-label='Choose curl']")
        assert "available" == (await ward.row("curl")).state


async def populate(ward):
    """Plans, commands and packages in every place of the pages; the paths of all of them."""
    runtime, place = ward.server.runtime, await first_place(ward.server.runtime)
    agent = (await ward.row("curl")).agent_id
    confirm = await ward.plan("curl", extra=[DEPENDENCY, REMOVAL])
    done = await ward.plan("openssl")
    await ward.install(done)
    await ward.answer_install(
        Outcome.FAILED, PackageOutcome.FAILED, output=LONG * 5, output_bytes=9, exit_status=1
    )
    decided = {"decision": "exclude", "decided_by": f"user:{LONG[:64]}", "decision_reason": LONG}
    hard = {"origin": LONG, "reason": LONG, "available": LONG[:200], "installed": LONG[:200], **decided}
    await add_packages(runtime, place, agent, [(f"{state}-{LONG[:200]}", {"state": state, **hard})
                                               for state in PackageState])  # fmt: skip
    order = {"agent_id": ward.machine.agent_id, "type": "scan.run", "reason": LONG}
    live = await ward.post("commands", **order)
    ended = (await ward.get(f"commands?plan_id={done['id']}"))["items"]
    odd = await ward.row(f"held-{LONG[:200]}")
    return [
        "/", f"/machines/{agent}", f"/machines/{agent}?current=true", f"/machines/{agent}/history",
        f"/machines/{agent}/packages/{odd.id}", f"/plans/{confirm['id']}", f"/plans/{done['id']}", "/plans",
        "/commands", f"/commands/{live['command']['id']}", *(f"/commands/{each['id']}" for each in ended),
        "/packages", f"/packages/machines?manager=apt&name={odd.name}", "/packages?name=nothing",
        "/plans?state=done",
    ]  # fmt: skip


@pytest.mark.parametrize("width,scheme", [(PHONE, "light"), (PHONE, "dark"), (DESKTOP, "light")])
async def test_every_page_can_be_used_by_everybody(site, ward, browser, width, scheme):
    """Nothing is cut off with the longest names, every field has a name, headings and references are in order."""
    paths = await populate(ward)
    async with window(browser, viewport=width, color_scheme=scheme, has_touch=width == PHONE) as opened:
        page = opened.page
        await sign_in(page, site)
        for path in paths:
            await page.goto(site.url + path)
            if await page.locator("input.choice").count():
                await page.check("input.choice >> nth=-1")
            assert width["width"] >= await page.evaluate("document.documentElement.scrollWidth"), path
            assert [] == await page.evaluate(NAMED_FIELDS), path
            assert [] == await page.evaluate(STRUCTURE), path
            assert [] == await page.evaluate(SMALL_TARGETS), path
            assert (await page.title()).endswith("· RedFlag")

        assert [] == opened.complaints
        assert 2 == len(await ward.server.rows(Plan))
