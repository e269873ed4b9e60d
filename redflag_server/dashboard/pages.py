"""What pages have in common: who may open them, how forms are read, how a mistake comes back to its page."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import quote
from uuid import UUID

import attrs
from litestar import Controller, Request, Response
from litestar.di import Provide
from litestar.params import QueryParameter

from redflag_core.errors import RedFlagError
from redflag_core.patching import Decision
from redflag_server.accounts.authentication import REFRESH_HEADER, OperatorAuthentication, provide_scope
from redflag_server.accounts.forms import MAX_CHOICES_BYTES, parse_choices, parse_form
from redflag_server.fields import Reason
from redflag_server.operators import check_request
from redflag_server.plans.schema import BulkOutcome, DecisionOutcome
from redflag_server.problems import InvalidRequestError, status_of

E = TypeVar("E", bound=StrEnum)

Page = Response[bytes]
AnyRequest = Request[Any, Any, Any]

Done = Annotated[bool, QueryParameter(description="Say what the caller has just done.")]

MAX_DETAILS: Final = 20
"""Packages that a page names when something was not possible for them: more, nobody reads."""

_TRY_AGAIN: Final = frozenset({400, 409, 413})
"""What the person can do something about, on the page on which it was tried."""


class PageController(Controller):
    """Base of the pages: sessions, forms, and nothing in the OpenAPI document."""

    include_in_schema = False
    middleware = (OperatorAuthentication,)
    dependencies = {"visible": Provide(provide_scope, sync_to_thread=False)}  # noqa: RUF012  (Litestar's form)
    request_max_body_size: int = MAX_CHOICES_BYTES
    before_request = staticmethod(check_request)


@attrs.frozen(kw_only=True)
class Mistake:
    """
    What did not work, and what was typed: the page shows both, so that nothing has to be typed again.

    Attributes:
        form: Which form of the page it is about.
        message: What to do.
        title: What happened, in a few words.
        fields: What was typed.
        chosen: What was ticked.
        details: Names, and why it was not possible for each.
        status: HTTP status of the answer.
    """

    form: str
    message: str
    title: str = "That did not work."
    fields: Mapping[str, str] = attrs.field(factory=dict)
    chosen: Sequence[str] = ()
    details: Sequence[tuple[str, str]] = ()
    status: int = 400


@attrs.frozen
class Form:
    """
    A form as it was sent.

    Attributes:
        fields: Fields that are there once.
        chosen: What was ticked.
    """

    fields: Mapping[str, str]
    chosen: Sequence[str]

    @property
    def reason(self) -> str:
        """
        Why.

        Raises:
            InvalidRequestError: Nothing, or more than a line.
        """
        try:
            return Reason(self.fields.get("reason", "").strip()).reason
        except ValueError:
            raise InvalidRequestError("say in one line why: it goes into the history") from None

    @property
    def decision(self) -> Decision:
        """
        Which button was pressed.

        Raises:
            InvalidRequestError: None of ours.
        """
        try:
            return Decision(self.fields.get("decision", ""))
        except ValueError:
            raise InvalidRequestError("press one of the buttons") from None

    @property
    def packages(self) -> Sequence[UUID]:
        """
        Which packages were ticked.

        Raises:
            InvalidRequestError: None, or something that is no package.
        """
        try:
            chosen = [UUID(text) for text in self.chosen]
        except ValueError:
            raise InvalidRequestError("what was chosen is no package: reload the page") from None
        if not chosen:
            raise InvalidRequestError("choose at least one package")
        return chosen

    @property
    def until(self) -> datetime | None:
        """
        The beginning of the day that was picked, UTC; None when none was.

        Raises:
            InvalidRequestError: Not a day.
        """
        text = self.fields.get("until", "").strip()
        try:
            return datetime.combine(date.fromisoformat(text), time(), UTC) if text else None
        except ValueError:
            raise InvalidRequestError("pick a day, or write it like 2026-01-31") from None

    def mistake(self, form: str, error: RedFlagError) -> Mistake:
        """
        What to show on the page again.

        Args:
            form: Which form of the page this is.
            error: What happened.

        Raises:
            RedFlagError: *error* itself, when trying again on the page would not help.
        """
        status = int(status_of(error))
        if status not in _TRY_AGAIN:
            raise error
        return Mistake(form=form, message=error.message, fields=self.fields, chosen=self.chosen, status=status)


def short_of(form: str, outcome: BulkOutcome) -> Mistake | None:
    """
    What to say of a decision that was not possible for some packages; None when it was for all.

    Args:
        form: Which form of the page this is.
        outcome: What became of each package.
    """
    left = [item for item in outcome.items if item.outcome in (DecisionOutcome.REFUSED, DecisionOutcome.NOT_FOUND)]
    if not left:
        return None
    rest = f", and {len(left) - MAX_DETAILS} more" if len(left) > MAX_DETAILS else ""
    return Mistake(
        form=form,
        title=f"Done for {outcome.changed + outcome.already}, not for {len(left)}.",
        message=f"These stay as they are{rest}:",
        details=[(item.name or str(item.package_id), item.detail or "") for item in left[:MAX_DETAILS]],
        status=409,
    )


async def read_form(request: AnyRequest) -> Form:
    """Read the form of a request; raises `MalformedError`."""
    body = await request.body()
    return Form(parse_form(body), parse_choices(body))


def whole_or_part(request: AnyRequest, name: str) -> str:
    """A page that refreshes itself wants only the part that changes."""
    return f"_{name}.html" if REFRESH_HEADER in request.headers else f"{name}.html"


def tomorrow(now: datetime) -> str:
    """The first day that something can be put off to, as browsers write days."""
    return f"{now.astimezone(UTC) + timedelta(days=1):%Y-%m-%d}"


def own_url(request: AnyRequest) -> str:
    """Where a page is that was asked for with GET, its query included: what it refreshes itself from."""
    query = request.scope["query_string"].decode("latin-1")
    prefix: str = request.app.state.runtime.settings.prefix
    return prefix + quote(request.scope["path"]) + (f"?{query}" if query else "")


def one_of(kind: type[E], name: str, text: str | None) -> E | None:
    """
    A choice of a form that was sent with GET; its empty option means none.

    Args:
        kind: What there is to choose.
        name: Of the query parameter, for the message.
        text: Untrusted.

    Raises:
        InvalidRequestError: Not one of them.
    """
    try:
        return kind(text) if text else None
    except ValueError:
        raise InvalidRequestError(f"{name} is one of {', '.join(kind)}") from None
