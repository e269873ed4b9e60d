"""Pages as somebody without JavaScript uses them: read, followed, and their forms filled in."""

import re
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlencode

import attrs

from redflag_server.accounts.permissions import UserRole
from redflag_server.runtime import Runtime
from tests.helpers.operators import FORM, form_token, make_user, sign_in


class Text(HTMLParser):
    """The text of a page, and its start tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        """All that can be read, with single spaces, and none before a comma and the like."""
        return re.sub(r" (?=[,.:;])", "", " ".join(" ".join(self.words).split()))

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        """Attributes of the tags of one kind that have these."""
        found = [attributes for name, attributes in self.tags if name == tag]
        return [each for each in found if all(each.get(name) == value for name, value in wanted.items())]

    @property
    def actions(self) -> set[str]:
        """Where its forms that change something go, without the one for signing out."""
        return {form["action"] or "" for form in self.all("form", method="post")} - {"/sign-out"}

    @property
    def buttons(self) -> list[str]:
        """What can be decided with its buttons."""
        return [button["value"] or "" for button in self.all("button", name="decision")]

    @property
    def links(self) -> list[str]:
        """Where its links go."""
        return [link["href"] or "" for link in self.all("a")]


@attrs.define
class Visitor:
    """
    Somebody who is signed in.

    Attributes:
        client: Keeps the session.
        token: For forms.
    """

    client: Any
    token: str

    async def open(self, path: str, status: int = 200) -> Text:
        """Open a page."""
        answer = await self.client.get(path)
        assert status == answer.status_code, answer.text
        return Text(answer.text)

    async def send(self, path: str, *, chosen: Any = (), **fields: str) -> Any:
        """Send a form; the answer itself."""
        pairs = [("form_token", self.token), *fields.items(), *(("chosen", str(each)) for each in chosen)]
        headers = {**FORM, "content-type": "application/x-www-form-urlencoded"}
        return await self.client.post(path, content=urlencode(pairs), headers=headers, follow_redirects=False)

    async def do(self, path: str, *, chosen: Any = (), **fields: str) -> Text:
        """Send a form that works, and open the page that it leads to."""
        answer = await self.send(path, chosen=chosen, **{"reason": "patch day", **fields})
        assert 303 == answer.status_code, answer.text
        return await self.open(answer.headers["location"])

    async def fail(self, path: str, status: int, *, chosen: Any = (), **fields: str) -> Text:
        """Send a form that does not work; the page that is shown instead."""
        answer = await self.send(path, chosen=chosen, **{"reason": "patch day", **fields})
        assert status == answer.status_code, answer.text
        return Text(answer.text)


async def visit(
    runtime: Runtime, client: Any, name: str = "alice", role: UserRole = UserRole.OWNER, **account: Any
) -> Visitor:
    """Make an account and sign in with it."""
    await make_user(runtime, name, role, **account)
    await sign_in(client, name)
    return Visitor(client, await form_token(client))
