"""SessionService on the wire."""

from __future__ import annotations

from typing import Any

import grpc.aio

from hansard.v1 import session_pb2, session_service_pb2, session_service_pb2_grpc
from hansard_server.domain.limits import Limits
from hansard_server.resources.sessions import Sessions
from hansard_server.servicers.caller import current_tenant
from hansard_server.servicers.convert import to_session

Context = grpc.aio.ServicerContext[Any, Any]


class SessionServicer(session_service_pb2_grpc.SessionServiceServicer):
    """Converts, calls, converts."""

    def __init__(self, sessions: Sessions, limits: Limits) -> None:
        """Sessions are shown with what of `limits` they have used."""
        self._sessions = sessions
        self._limits = limits

    async def CreateSession(
        self, request: session_service_pb2.CreateSessionRequest, _context: Context
    ) -> session_pb2.Session:
        """See the contract."""
        return to_session(await self._sessions.create(current_tenant(), request), self._limits)

    async def GetSession(
        self, request: session_service_pb2.GetSessionRequest, _context: Context
    ) -> session_pb2.Session:
        """See the contract."""
        return to_session(await self._sessions.get(current_tenant(), request), self._limits)

    async def ListSessions(
        self, request: session_service_pb2.ListSessionsRequest, _context: Context
    ) -> session_service_pb2.ListSessionsResponse:
        """See the contract."""
        page = await self._sessions.list(current_tenant(), request)
        return session_service_pb2.ListSessionsResponse(
            sessions=[to_session(view, self._limits) for view in page.items],
            next_page_token=page.next_token,
        )

    async def UpdateSession(
        self, request: session_service_pb2.UpdateSessionRequest, _context: Context
    ) -> session_pb2.Session:
        """See the contract."""
        return to_session(await self._sessions.update(current_tenant(), request), self._limits)

    async def DeleteSession(
        self, request: session_service_pb2.DeleteSessionRequest, _context: Context
    ) -> session_service_pb2.DeleteSessionResponse:
        """See the contract."""
        await self._sessions.delete(current_tenant(), request)
        return session_service_pb2.DeleteSessionResponse()
