"""API keys: who is let in, and what they may do."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncGenerator, Iterable

from hansard.v1 import access_service_pb2 as wire
from hansard.v1.access_pb2 import ApiKey, RoleGrant
from hansard_client import rpcs
from hansard_client.link import Link
from hansard_client.operations.values import Fields, given, new_request_id, to_message, to_timestamp


async def create(
    link: Link,
    *,
    name: str,
    roles: Iterable[RoleGrant | Fields],
    expires_at: dt.datetime | None = None,
    request_id: str | None = None,
) -> ApiKey:
    """Create a key and return it; its `secret` is not told again.

    When an answer is lost on the way, the secret is too: then that key is revoked and another one
    created, unless the `request_id` is the caller's own. A repeat under that has no secret.

    Args:
        name: what people call it.
        roles: what it may do (`{"role": "ROLE_AGENT_USER", "agent_key": "support"}`).
        expires_at: from when on it is refused; None: never.
        request_id: by default a new one.

    Raises Forbidden, AgentNotFound, InvalidArgument.
    """
    request = wire.CreateApiKeyRequest(
        name=name,
        roles=[to_message(RoleGrant(), role) for role in roles],
        request_id=request_id or new_request_id(),
        **given(expires_at=to_timestamp(expires_at)),
    )
    key = await link.call(rpcs.CREATE_API_KEY, request)
    while not key.secret and not request_id:
        await revoke(link, key.id)
        request.request_id = new_request_id()
        key = await link.call(rpcs.CREATE_API_KEY, request)
    return key


def list_(
    link: Link, *, include_revoked: bool = False, limit: int | None = None, page_size: int = 0
) -> AsyncGenerator[ApiKey, None]:
    """Yield keys without their secrets, the newest first, fetched page by page.

    `include_revoked`: revoked and expired ones too. `limit`: at most so many; None: all.
    `page_size`: how many are fetched at a time; 0: as many as the server likes.
    """
    request = wire.ListApiKeysRequest(include_revoked=include_revoked, page_size=page_size)
    return link.pages(rpcs.LIST_API_KEYS, request, lambda page: page.api_keys, limit)


async def revoke(link: Link, api_key_id: str) -> ApiKey:
    """Revoke a key for good, with its tokens, and return it. Raises ApiKeyNotFound."""
    return await link.call(rpcs.REVOKE_API_KEY, wire.RevokeApiKeyRequest(api_key_id=api_key_id))


async def issue_token(link: Link, *, api_key_id: str = "") -> wire.IssueTokenResponse:
    """Return a token that does for a while what the client's own key does.

    `api_key_id`: of that key; another one is Unauthorized; left out, it is not checked.
    """
    return await link.call(rpcs.ISSUE_TOKEN, wire.IssueTokenRequest(api_key_id=api_key_id))
