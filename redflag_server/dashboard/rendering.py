"""Templates and the few words and numbers that they need in a form for people."""

import functools
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import attrs
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from litestar import Request, Response

from redflag_core import __version__
from redflag_server.accounts.authentication import operator_of
from redflag_server.dashboard import words
from redflag_server.runtime import Runtime

FOLDER: Final = Path(__file__).parent
HTML: Final = "text/html"

_STEPS: Final = ((60, "min"), (24, "h"), (14, "days"))


@attrs.frozen
class Asset:
    """A file of `static`: ``version`` is in its URL, so that browsers keep it for ever."""

    content: bytes
    media_type: str
    version: str


def render(
    request: Request[Any, Any, Any],
    template: str,
    context: Mapping[str, Any],
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Response[bytes]:
    """
    A page.

    Args:
        request: The request that it answers.
        template: File of `templates`.
        context: What the template shows; everything in it is escaped.
        status: HTTP status.
        headers: Further headers.
    """
    runtime: Runtime = request.app.state.runtime
    common = {"operator": operator_of(request), "now": runtime.clock.now(), "prefix": runtime.settings.prefix}
    text = environment().get_template(template).render({**common, **context})
    return Response(text.encode(), media_type=HTML, status_code=status, headers=dict(headers or {}))


def redirect(request: Request[Any, Any, Any], path: str) -> Response[bytes]:
    """Send the browser to another page, with GET."""
    runtime: Runtime = request.app.state.runtime
    location = runtime.settings.prefix + path
    return Response(b"", media_type=HTML, status_code=303, headers={"Location": location})


@functools.cache
def environment() -> Environment:
    """Templates: everything is escaped, and a name that does not exist is an error, not an empty place."""
    templates = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(
        ago=ago, ahead=ahead, day=day, utc=utc, lasting=lasting, size=size, count=count, who=who
    )
    templates.globals.update(
        version=__version__,
        asset=lambda name: f"/static/{name}?v={assets()[name].version}",
        **{name: value for name, value in vars(words).items() if name.isupper()},
    )
    return templates


@functools.cache
def assets() -> Mapping[str, Asset]:
    """The files of `static`, by name: what is not in here cannot be asked for."""
    types = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    return {
        path.name: Asset(content, types[path.suffix], hashlib.sha256(content).hexdigest()[:16])
        for path in sorted((FOLDER / "static").iterdir())
        if path.suffix in types
        for content in [path.read_bytes()]
    }


def ago(moment: datetime, now: datetime) -> str:
    """How long ago, roughly; a date when that says more."""
    number = int(max(now - moment, timedelta()).total_seconds()) // 60
    if number < 1:
        return "just now"
    for most, unit in _STEPS:
        if number < most:
            return f"{number} {unit.removesuffix('s') if number == 1 else unit} ago"
        number //= most
    return day(moment)


def ahead(moment: datetime, now: datetime) -> str:
    """How far ahead, roughly; a date when that says more."""
    number = -(-max(moment - now, timedelta()) // timedelta(minutes=1))
    if number < 1:
        return "now"
    for most, unit in _STEPS:
        if number < most:
            return f"in {number} {unit.removesuffix('s') if number == 1 else unit}"
        number //= most
    return day(moment)


def lasting(duration: timedelta) -> str:
    """How long something took, in the two units that say most."""
    seconds = max(int(duration.total_seconds()), 0)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def day(moment: datetime) -> str:
    """The day, UTC."""
    return f"{moment.astimezone(UTC):%Y-%m-%d}"


def utc(moment: datetime) -> str:
    """The exact time."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def size(number: int) -> str:
    """Bytes, in the unit that fits."""
    amount = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def count(number: int, word: str, plural: str | None = None) -> str:
    """A number and what it counts."""
    return f"{number:,} {word if number == 1 else plural or word + 's'}"


def who(actor: str) -> str:
    """Who did something, from the actor of an event: ``user:alice`` is alice."""
    kind, _, name = actor.partition(":")
    if kind == "user":
        return name
    return {"api-key": f"API key {name}", "agent": "the machine", "server": "the server"}.get(kind, actor)
