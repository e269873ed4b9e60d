"""API of accounts and API keys."""

from typing import Annotated, Final
from uuid import UUID

from litestar import get, post
from litestar.params import Body, FromPath

from redflag_server.accounts import api_keys, users
from redflag_server.accounts.schema import (
    API_KEY_EXAMPLE,
    MADE_API_KEY_EXAMPLE,
    NEW_API_KEY_EXAMPLE,
    USER_EXAMPLE,
    ApiKeyItem,
    MadeApiKey,
    NewApiKey,
    UserItem,
)
from redflag_server.bodies import Strict
from redflag_server.db.pages import DEFAULT_LIMIT, Page, PageOf
from redflag_server.db.scope import Scope
from redflag_server.fields import Reason, uuid_of
from redflag_server.injection import Injected, Parsed
from redflag_server.openapi import answers, example
from redflag_server.operators import Cursor, Limit, OperatorController
from redflag_server.runtime import Runtime

NEXT: Final = "AZNvPotafE2eLwobLD1OXw"
WHY: Final = Reason("the laptop it was on is lost")


class ApiKeyController(OperatorController):
    """Keys of scripts."""

    path = "/api-keys"
    tags = ("API keys",)

    @get(
        operation_id="ListApiKeys",
        summary="List API keys",
        opt={"permission": "api-keys:read"},
        responses=answers(Page[ApiKeyItem], Page([API_KEY_EXAMPLE], NEXT)),
    )
    async def list_api_keys(
        self,
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
        cursor: Cursor = None,
        limit: Limit = DEFAULT_LIMIT,
    ) -> Page[ApiKeyItem]:
        """List keys, without their secrets."""
        async with runtime.database.read() as session:
            return await api_keys.list_keys(session, visible, PageOf(cursor, limit))

    @post(
        operation_id="MakeApiKey",
        summary="Make an API key",
        dto=Strict[NewApiKey],
        return_dto=None,
        opt={"permission": "api-keys:write"},
        responses=answers(MadeApiKey, MADE_API_KEY_EXAMPLE, 404, status=201),
    )
    async def make_api_key(
        self,
        data: Annotated[Parsed[NewApiKey], Body(examples=[example(NEW_API_KEY_EXAMPLE)])],
        visible: Injected[Scope],
        runtime: Injected[Runtime],
    ) -> MadeApiKey:
        """Make a key; the answer is the only place where it can be read."""
        organization = uuid_of("organization_id", data.organization_id)
        order = api_keys.KeyOrder(data.name, data.scopes, organization, data.expires_in_days)
        key, text = await api_keys.make_key(runtime, visible, order)
        return MadeApiKey(text, api_keys.key_item(key))

    @post(
        "/{key_id:uuid}/revoke",
        operation_id="RevokeApiKey",
        summary="Revoke an API key",
        dto=Strict[Reason],
        return_dto=None,
        status_code=200,
        opt={"permission": "api-keys:write"},
        responses=answers(ApiKeyItem, API_KEY_EXAMPLE, 404),
    )
    async def revoke_api_key(
        self,
        key_id: FromPath[UUID],
        data: Annotated[Parsed[Reason], Body(examples=[example(WHY)])],
        visible: Injected[Scope],
        runtime: Injected[Runtime],
    ) -> ApiKeyItem:
        """Revoke a key, at once and for ever."""
        return await api_keys.revoke_key(runtime, visible, key_id, data.reason)


class UserController(OperatorController):
    """People with an account. They are made on the command line."""

    path = "/users"
    tags = ("Users",)

    @get(
        operation_id="ListUsers",
        summary="List users",
        opt={"permission": "users:read"},
        responses=answers(Page[UserItem], Page([USER_EXAMPLE], NEXT)),
    )
    async def list_users(
        self,
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
        cursor: Cursor = None,
        limit: Limit = DEFAULT_LIMIT,
    ) -> Page[UserItem]:
        """List who has an account."""
        async with runtime.database.read() as session:
            return await users.list_users(session, visible, PageOf(cursor, limit))

    @post(
        "/{user_id:uuid}/disable",
        operation_id="DisableUser",
        summary="Disable a user",
        dto=Strict[Reason],
        return_dto=None,
        status_code=200,
        opt={"permission": "users:write"},
        responses=answers(UserItem, USER_EXAMPLE, 404, 409),
    )
    async def disable_user(
        self,
        user_id: FromPath[UUID],
        data: Annotated[Parsed[Reason], Body(examples=[example(WHY)])],
        visible: Injected[Scope],
        runtime: Injected[Runtime],
    ) -> UserItem:
        """Cut somebody off: sessions and keys of this person end at once."""
        return await users.disable_user(runtime, visible, user_id, data.reason)
