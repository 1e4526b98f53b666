"""AccessService on the wire."""

from __future__ import annotations

from typing import Any

import grpc.aio

from hansard.v1 import access_pb2, access_service_pb2, access_service_pb2_grpc
from hansard_server.access.api_keys import ApiKeys
from hansard_server.servicers.caller import current_caller
from hansard_server.servicers.convert import to_api_key, to_timestamp

Context = grpc.aio.ServicerContext[Any, Any]


class AccessServicer(access_service_pb2_grpc.AccessServiceServicer):
    """Converts, calls, converts."""

    def __init__(self, api_keys: ApiKeys) -> None:
        self._api_keys = api_keys

    async def CreateApiKey(
        self, request: access_service_pb2.CreateApiKeyRequest, _context: Context
    ) -> access_pb2.ApiKey:
        """See the contract."""
        created = await self._api_keys.create(current_caller(), request)
        return to_api_key(created.key, created.secret)

    async def ListApiKeys(
        self, request: access_service_pb2.ListApiKeysRequest, _context: Context
    ) -> access_service_pb2.ListApiKeysResponse:
        """See the contract."""
        page = await self._api_keys.list(current_caller(), request)
        return access_service_pb2.ListApiKeysResponse(
            api_keys=[to_api_key(key) for key in page.items], next_page_token=page.next_token
        )

    async def RevokeApiKey(
        self, request: access_service_pb2.RevokeApiKeyRequest, _context: Context
    ) -> access_pb2.ApiKey:
        """See the contract."""
        return to_api_key(await self._api_keys.revoke(current_caller(), request))

    async def IssueToken(
        self, request: access_service_pb2.IssueTokenRequest, _context: Context
    ) -> access_service_pb2.IssueTokenResponse:
        """See the contract."""
        issued = await self._api_keys.issue_token(current_caller(), request)
        return access_service_pb2.IssueTokenResponse(
            token=issued.token, expires_at=to_timestamp(issued.expires_at_us)
        )
