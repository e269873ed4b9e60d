"""The whole agent on a real socket: it registers when it can, runs until told, and leaves the directory free."""

import asyncio

import pytest

from redflag_agent.agent import open_agent
from redflag_agent.answers import ServerRefusedError
from redflag_agent.data_dir import DataDirectory, InUseError
from redflag_agent.executor.errors import JournalError
from redflag_agent.executor.journal import Journal
from redflag_agent.settings import FROM_ENVIRONMENT, AgentSettings
from redflag_agent.tokens import NotRegisteredError
from redflag_core.commands import CommandType, ScanParams, UpgradeParams
from redflag_core.errors import ConfigurationError
from redflag_core.patching import PackageTarget
from tests.helpers.agents import FakeScanner, package, surroundings
from tests.helpers.shell_installer import ShellInstaller
from tests.helpers.stub_server import StubServer, problem, serving

BUSY = problem(503, "unavailable", headers={"retry-after": "120"})


@pytest.fixture
def server():
    """A stub server on a loopback port."""
    server = StubServer()
    with serving(server):
        yield server


def opened(tmp_path, server, *scanners, settings=None, **options):
    """An open agent whose time is the server's."""
    around = surroundings(*scanners, clock=server.clock, **options)
    return open_agent(DataDirectory(tmp_path / "agent"), settings or AgentSettings(), around)


async def test_it_runs_until_it_is_told_to_stop(tmp_path, server):
    """Registered, scanned and reported; then its directory is free for the next."""
    stop, told = asyncio.Event(), []

    def tell(event, **_facts):
        told.append(event)
        if event == "report_accepted":
            stop.set()

    with opened(tmp_path, server, FakeScanner((package("a"),)), tell=tell) as agent:
        with pytest.raises(InUseError), opened(tmp_path, server):
            pass
        await agent.run(stop, server.registration_token())

    assert ["registered", "scan_started", "scan_done", "report_accepted"] == told
    assert 1 == len(server.only_agent().inventories["apt"])
    with opened(tmp_path, server, seed=1) as agent:
        assert server.only_agent().agent_id == agent.state.state.registration.agent_id


async def test_a_server_that_is_not_ready_is_waited_for(tmp_path, server):
    """Both may start at the same moment: the agent comes back when it was asked to."""
    stop, waits = asyncio.Event(), []
    server.script.append(lambda _request: BUSY)

    async def sleep(seconds):
        waits.append(seconds)
        server.script.clear()
        if server.agents:
            await asyncio.Event().wait()

    def tell(event, **_facts):
        if event == "registered":
            stop.set()

    with opened(tmp_path, server, sleep=sleep, tell=tell) as agent:
        await asyncio.wait_for(agent.run(stop, server.registration_token()), 10)

    assert 1 == len(server.agents)
    assert 120.0 <= waits[0] <= 180.0


async def test_waiting_for_a_server_can_be_stopped(tmp_path, server):
    """It ends without a registration, and without an error."""
    stop = asyncio.Event()
    server.script.append(lambda _request: BUSY)

    async def sleep(_seconds):
        stop.set()
        await asyncio.Event().wait()

    with opened(tmp_path, server, sleep=sleep) as agent:
        await asyncio.wait_for(agent.run(stop, server.registration_token()), 10)

    assert {} == server.agents


async def test_a_refused_registration_is_not_tried_again(tmp_path, server):
    """The token will not get better."""
    token = server.registration_token()
    server.tokens.clear()

    with opened(tmp_path, server) as agent, pytest.raises(ServerRefusedError):
        await agent.run(asyncio.Event(), token)

    assert 1 == sum("register" in path for _, path in server.requests)


async def test_without_token_and_record_it_says_what_to_do(tmp_path, server):
    """Nothing is sent."""
    with opened(tmp_path, server) as agent:
        for work in (agent.run(asyncio.Event()), agent.run_once()):
            with pytest.raises(NotRegisteredError):
                await work

    assert [] == server.requests


async def test_an_unregistered_agent_may_change_its_mind_about_the_server(tmp_path, server):
    """Keys that were shown to one server and not registered there are not shown to another."""
    token = server.registration_token()
    elsewhere = server.registration_token(server="00000000-0000-0000-0000-000000000099")
    with opened(tmp_path, server) as agent:
        with pytest.raises(Exception, match="another server"):
            await agent.register(elsewhere)
        first = agent.identity.agent_key

        await agent.register(token)

        assert first != agent.identity.agent_key
        assert agent.identity.agent_key.key_id == server.only_agent().key.key_id


async def test_the_trust_of_one_server_is_not_used_for_another(tmp_path, server):
    """Refused by one after its roots were fetched, the agent registers with another that has other roots."""
    other = StubServer(server.clock)
    other.rename(seed=77)
    token = server.registration_token()
    server.tokens.clear()
    with serving(other), opened(tmp_path, server) as agent:
        with pytest.raises(ServerRefusedError):
            await agent.register(token)

        await agent.register(other.registration_token())

    assert 1 == len(other.agents)


async def test_a_machine_can_be_enrolled_anew(tmp_path, server):
    """Deleted or revoked at the server, it gets new keys and a new record, but only when that is asked for."""
    with opened(tmp_path, server) as agent:
        await agent.register(server.registration_token())
        first = agent.identity.agent_key
        server.agents.clear()
        await agent.register(server.registration_token())
        assert {} == server.agents

        await agent.register(server.registration_token(), anew=True)

        assert first != agent.identity.agent_key
        assert server.only_agent().agent_id == agent.state.state.registration.agent_id


async def test_what_was_done_under_an_old_identity_is_kept_aside(tmp_path, server):
    """A new identity starts with an empty journal; the old one stays as evidence, and the start is not undone."""
    with opened(tmp_path, server, FakeScanner()) as agent:
        await agent.register(server.registration_token())
        done = server.order(ScanParams(), CommandType.SCAN_RUN)
        await agent.run_once()
        server.agents.clear()
        await agent.register(server.registration_token(), anew=True)

        waiting = server.order(ScanParams(), CommandType.SCAN_RUN)
        assert waiting == done
        await agent.run_once()
        assert "completed" == server.only_agent().results()[waiting].outcome
        with agent.identity.executor.journal.page() as page:
            assert 1 == len(page.latest(10))

    (aside,) = (tmp_path / "agent").glob("executor.db.*")
    assert 0o600 == aside.stat().st_mode & 0o777
    with Journal.open(aside) as old, old.page() as page:
        assert [done] == [entry.cmd_id for entry in page.latest(10)]


async def test_an_identity_that_did_nothing_leaves_nothing_aside(tmp_path, server):
    """There is no evidence to keep."""
    with opened(tmp_path, server) as agent:
        await agent.register(server.registration_token())
        server.agents.clear()
        await agent.register(server.registration_token(), anew=True)

    assert [] == list((tmp_path / "agent").glob("executor.db.*"))


async def test_a_journal_that_cannot_be_kept_aside_is_not_forgotten(tmp_path, server):
    """No room for the copy: the old identity's work stays known, and the next try does it again."""
    with opened(tmp_path, server, FakeScanner()) as agent:
        await agent.register(server.registration_token())
        server.order(ScanParams(), CommandType.SCAN_RUN)
        await agent.run_once()
        moment = int(server.clock.now().timestamp())
        (tmp_path / "agent" / f"executor.db.{moment}" / "in the way").mkdir(parents=True)

        with pytest.raises(JournalError):
            await agent.register(server.registration_token(), anew=True)

        with agent.identity.executor.journal.page() as page:
            assert 1 == len(page.latest(10))


async def test_a_change_that_was_ordered_is_made_by_the_agent(tmp_path, server):
    """Through the whole agent: an ordered upgrade is installed, and the server gets the result."""
    shell = ShellInstaller.build(tmp_path / "root", a=("1", "2"))
    scanner, server.pace, stop = FakeScanner(), 1, asyncio.Event()
    target = PackageTarget(name="a", arch="all", installed="1", available="2")
    with opened(tmp_path, server, scanner, installers=(shell,)) as agent:
        await agent.register(server.registration_token())
        plan = await shell.plan([target])
        params = UpgradeParams("shell", (target,), plan.transaction.plan_hash)
        server.script.append(stop_after_result(server, stop))
        cmd_id = server.order(params, CommandType.PACKAGES_UPGRADE)

        await asyncio.wait_for(agent.run(stop), 60)

    result = server.only_agent().results()[cmd_id]
    assert ("completed", "2") == (result.outcome, result.packages[0].installed), result


def stop_after_result(server, stop):
    """Tell the agent to stop once the server has a result."""
    loop = asyncio.get_running_loop()

    def step(_request):
        if server.agents and server.only_agent().results():
            loop.call_soon_threadsafe(stop.set)

    return step


async def test_a_registered_agent_does_not_change_sides(tmp_path, server):
    """A token of another server, or of another root, is refused."""
    with opened(tmp_path, server) as agent:
        await agent.register(server.registration_token())
        for changes in ({"server": "00000000-0000-0000-0000-000000000099"}, {"root_fp": "0" * 64}):
            with pytest.raises(ConfigurationError, match="another server"):
                await agent.register(server.registration_token(**changes))


@pytest.mark.parametrize(
    "proxy, seen", [(FROM_ENVIRONMENT, "http://127.0.0.1:9/api/v1/trust/bundle"), (None, None)]
)
async def test_the_environments_proxy_is_used_only_when_it_is_asked_for(
    tmp_path, server, monkeypatch, proxy, seen
):
    """Here the stub server stands where the proxy is, and nobody where the server is."""
    port = server.addresses[0].rsplit(":", 1)[1]
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    monkeypatch.delenv("no_proxy", raising=False)
    server.script.append(lambda _request: problem(400, "this_is_the_proxy"))
    target = "http://127.0.0.1:9" if proxy else server.addresses[0]

    settings = AgentSettings(proxy=proxy)
    with opened(tmp_path, server, settings=settings) as agent, pytest.raises(ServerRefusedError):
        await agent.register(server.registration_token(addresses=(target,)))

    assert [("GET", seen or "/api/v1/trust/bundle")] == server.requests
