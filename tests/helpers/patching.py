"""The patch cycle over HTTP: somebody who decides, plans and installs, and a machine that answers."""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

import attrs

from redflag_core.commands import CommandType, PlanParams, UpgradeParams, parse_params
from redflag_core.encoding import b64decode
from redflag_core.patching import Change, Transaction
from redflag_core.scanning import Package, PackageState
from redflag_core.statements import Outcome, PackageOutcome, PackageResult
from redflag_server.packages.tables import Package as PackageRow
from tests.helpers.fleet import Machine, full_report, package
from tests.helpers.operators import API, api_key
from tests.helpers.server import Server

DEPENDENCY = Change(name="lib-new", arch="amd64", after="2.0")
REMOVAL = Change(name="lib-old", arch="amd64", before="1.0")


@attrs.define
class Ward:
    """
    One machine with its packages, and somebody who takes care of it.

    Attributes:
        server: The server under test.
        machine: The machine: its agent and its executor.
        headers: Of the one who takes care.
    """

    server: Server
    machine: Machine
    headers: dict[str, str]

    # --- people ---

    async def post(self, path: str, status: int = 200, **body: Any) -> dict[str, Any]:
        """Do something; the document of the answer."""
        body.setdefault("reason", "patch day")
        answer = await self.server.client.post(f"{API}/{path}", json=body, headers=self.headers)
        assert status == answer.status_code, answer.text
        document: dict[str, Any] = answer.json()
        return document

    async def get(self, path: str) -> dict[str, Any]:
        """The document of a GET."""
        answer = await self.server.client.get(f"{API}/{path}", headers=self.headers)
        assert 200 == answer.status_code, answer.text
        document: dict[str, Any] = answer.json()
        return document

    async def row(self, name: str) -> PackageRow:
        """A package as it is stored."""
        row: PackageRow = await self.server.row(
            PackageRow, PackageRow.name == name, PackageRow.agent_id == UUID(self.machine.agent_id)
        )
        return row

    async def states(self) -> dict[str, str]:
        """State of each package of the machine."""
        rows = await self.server.rows(PackageRow, PackageRow.agent_id == UUID(self.machine.agent_id))
        return {row.name: row.state for row in rows}

    async def item(self, name: str) -> dict[str, Any]:
        """A package as people see it."""
        return await self.get(f"packages/{(await self.row(name)).id}")

    async def decide(self, decision: str, *names: str, status: int = 200, **body: Any) -> dict[str, Any]:
        """Decide about packages, one after the other; the last answer."""
        answer: dict[str, Any] = {}
        for name in names:
            answer = await self.post(f"packages/{(await self.row(name)).id}/{decision}", status, **body)
        return answer

    async def kinds(self, name: str) -> list[str]:
        """Kinds of the events of a package, the oldest first, without their first word."""
        items = (await self.get(f"packages/{(await self.row(name)).id}/timeline"))["items"]
        return [item["kind"].removeprefix("package.") for item in reversed(items)]

    async def order_plan(self, *names: str) -> dict[str, Any]:
        """Ask for a plan of approved packages; the plan."""
        ids = [str((await self.row(name)).id) for name in names]
        (item,) = (await self.post("plans", 201, package_ids=ids))["items"]
        return await self.get(f"plans/{item['id']}")

    async def plan(self, *names: str, extra: Iterable[Change] = (), **changes: Any) -> dict[str, Any]:
        """Approve packages, and have them planned; the plan as the machine made it."""
        await self.decide("approve", *names)
        made = await self.order_plan(*names)
        await self.answer_plan(extra=extra, **changes)
        return await self.get(f"plans/{made['id']}")

    async def install(self, plan: dict[str, Any]) -> dict[str, Any]:
        """Order the installation of a plan; the plan."""
        return await self.post(f"plans/{plan['id']}/install")

    # --- the machine ---

    async def scan(self, *packages: Package) -> None:
        """Report what is on the machine."""
        answer = await self.machine.report(self.server.client, full_report(packages))
        assert answer.json()["accepted"], answer.text

    async def take(self, kind: CommandType) -> tuple[str, PlanParams | UpgradeParams]:
        """Get the next command and accept it; its id and parameters."""
        (wire,) = await self.machine.fetch(self.server.client)
        await self.deliver(self.machine.execute(wire))
        cmd_id, entry = list(self.machine.journal.items())[-1]
        params = parse_params(entry.command.type, b64decode(entry.command.params))
        assert kind == entry.command.type
        assert isinstance(params, PlanParams | UpgradeParams)
        return cmd_id, params

    async def deliver(self, statement: bytes) -> None:
        """Deliver what was signed."""
        answer = await self.machine.deliver(self.server.client, statement)
        assert 200 == answer.status_code, answer.text

    async def end(self, cmd_id: str, outcome: Outcome = Outcome.COMPLETED, **changes: Any) -> None:
        """Carry an accepted command out, and deliver how it ended."""
        await self.deliver(self.machine.run(cmd_id, outcome, **changes))

    async def answer_plan(
        self,
        *,
        extra: Iterable[Change] = (),
        held: Iterable[str] = (),
        stale: Iterable[str] = (),
        **changes: Any,
    ) -> None:
        """Take the order to plan, and answer it: all that is neither held nor stale can be upgraded."""
        cmd_id, params = await self.take(CommandType.PACKAGES_PLAN)
        left_out = {**dict.fromkeys(held, PackageOutcome.HELD), **dict.fromkeys(stale, PackageOutcome.STALE)}
        results = tuple(
            PackageResult(
                name=target.name,
                arch=target.arch,
                outcome=left_out.get(target.name, PackageOutcome.PLANNED),
                installed=target.installed,
                reason="held with apt-mark" if left_out.get(target.name) is PackageOutcome.HELD else None,
            )
            for target in params.packages
        )
        able = [target for target in params.packages if target.name not in left_out]
        upgrades = [
            Change(name=each.name, arch=each.arch, before=each.installed, after=each.available) for each in able
        ]
        found = (
            Transaction(
                manager=params.manager,
                requested=tuple(each.key for each in able),
                changes=(*upgrades, *extra),
                download_size=1000,
            )
            if able
            else None
        )
        nothing = {"outcome": Outcome.FAILED, "code": "nothing_to_do", "detail": "nothing can be changed now"}
        usual = {"transaction": found, "packages": results, **({} if able else nothing)}
        await self.end(cmd_id, **{**usual, **changes})

    async def answer_install(
        self,
        outcome: Outcome = Outcome.COMPLETED,
        packages: PackageOutcome | dict[str, PackageOutcome] = PackageOutcome.INSTALLED,
        **changes: Any,
    ) -> None:
        """Take the order to install, and answer it with an outcome for all or for each package."""
        cmd_id, params = await self.take(CommandType.PACKAGES_UPGRADE)
        results = tuple(
            PackageResult(
                name=target.name,
                arch=target.arch,
                outcome=packages if isinstance(packages, PackageOutcome) else packages[target.name],
            )
            for target in params.packages
        )
        await self.end(cmd_id, outcome, **{"packages": results, **changes})

    async def reboot(self) -> None:
        """Start the machine anew, and check in."""
        self.machine.boot_id += "+"
        await self.machine.check_in(self.server.client)


async def new_ward(server: Server, *names: str) -> Ward:
    """A machine that lacks updates of these packages, and somebody with every permission."""
    ward = Ward(server, await server.agent(), await api_key(server.runtime))
    await ward.machine.check_in(server.client)
    await ward.scan(*(package(name, PackageState.AVAILABLE) for name in names))
    await ward.get("agents")
    return ward
