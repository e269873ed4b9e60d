"""The trust bundle follows the server's announcements, and only forwards."""

import pytest

from redflag_core.errors import RollbackError, VerificationError
from redflag_core.keyfiles import write_private
from tests.helpers.agents import agent_parts
from tests.helpers.stub_server import StubServer


def fetched(server):
    """Documents of trust that were asked for."""
    return [path.rsplit("trust/", 1)[1] for _, path in server.requests if "/trust/" in path]


async def enrolled(parts):
    """Register, check in once, and forget what was asked for until then."""
    await parts.register()
    delivery = parts.delivery()
    await delivery.round()
    parts.server.requests.clear()
    return delivery


async def test_an_announced_bundle_is_fetched_once(tmp_path):
    """A new digest on a check-in answer brings the new bundle; the next round asks for nothing."""
    async with agent_parts(tmp_path / "a") as parts:
        delivery = await enrolled(parts)
        parts.server.publish(version=2, epoch=1)

        await delivery.round()
        await delivery.round()

        assert ["bundle"] == fetched(parts.server)
        assert (2, 1) == (parts.state.state.bundle_version, parts.state.state.bundle_epoch)


async def test_a_new_root_is_followed_when_the_bundle_needs_it(tmp_path):
    """Only the links after those held are fetched."""
    async with agent_parts(tmp_path / "a") as parts:
        delivery = await enrolled(parts)
        parts.server.rotate_root()
        parts.server.publish(version=2)

        await delivery.round()

        assert ["bundle", "root/2", "root/3"] == fetched(parts.server)
        assert 2 == parts.state.state.bundle_version


async def test_an_older_bundle_is_told_once_and_not_taken(tmp_path):
    """A rollback becomes an error for the server's people; the round goes on, without asking again and again."""
    async with agent_parts(tmp_path / "a") as parts:
        parts.server.publish(version=5)
        delivery = await enrolled(parts)
        parts.server.publish(version=4)

        await delivery.round()
        await delivery.round()

        assert ["bundle"] == fetched(parts.server)
        assert 5 == parts.state.state.bundle_version
        (batch,) = parts.server.only_agent().errors.values()
        assert ["rollback"] == [error.type for error in batch.errors]


async def test_a_deleted_trust_file_does_not_allow_a_rollback(tmp_path):
    """The version held is remembered apart from the documents."""
    server = StubServer()
    server.publish(version=5)
    async with agent_parts(tmp_path / "a", server) as parts:
        await parts.register()
        parts.directory.trust.unlink()
        server.publish(version=4)

        with pytest.raises(RollbackError):
            await parts.trust.refresh(parts.client, parts.state.state.pins)


async def test_a_damaged_trust_file_is_fetched_again(tmp_path):
    """It holds nothing that is not public, so nobody has to do anything."""
    async with agent_parts(tmp_path / "a") as parts:
        await parts.register()
        write_private(parts.directory.trust, b"{broken", replace=True)

        await parts.trust.refresh(parts.client, parts.state.state.pins)

        assert 1 == parts.state.state.bundle_version


async def test_a_root_chain_that_never_ends_is_cut(tmp_path):
    """A server that invents roots is refused after the longest chain, not followed for ever."""
    async with agent_parts(tmp_path / "a") as parts:
        endless = parts.server.roots[0]
        parts.server.script.append(
            lambda request: parts.server.answer(one(request)) if "/trust/root/" in request.path else None
        )
        with pytest.raises(VerificationError):
            await parts.register()

        assert endless == parts.server.roots[0]
        assert 1000 == sum("root" in path for path in fetched(parts.server))


def one(request):
    """The same request, for root 1."""
    import attrs

    return attrs.evolve(request, path=request.path.rsplit("/", 1)[0] + "/1")
