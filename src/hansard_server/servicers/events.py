"""EventService on the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import grpc.aio

from hansard.v1 import event_service_pb2, event_service_pb2_grpc
from hansard_server.domain.records import EventRow
from hansard_server.repository.api import Alteration
from hansard_server.servicers.caller import current_tenant
from hansard_server.servicers.event_pages import encode_event_rows, encode_next_page_token
from hansard_server.servicers.event_wire import SendStream, WatchStream
from hansard_server.turns.alterations import Alterations, NamesEvent
from hansard_server.turns.inputs import Inputs
from hansard_server.turns.payloads import encode_event
from hansard_server.turns.queries import Queries

Context = grpc.aio.ServicerContext[Any, Any]


class EventServicer(event_service_pb2_grpc.EventServiceServicer):
    """Converts, calls, converts. Stored payloads are answered as their bytes."""

    def __init__(self, inputs: Inputs, queries: Queries, alterations: Alterations) -> None:
        """Serve by these use cases."""
        self._inputs = inputs
        self._alterations = alterations
        self._queries = queries

    async def SendEvent(  # type: ignore[override]
        self, request: event_service_pb2.SendEventRequest, _context: Context
    ) -> AsyncIterator[bytes]:
        """See the contract."""
        stream = SendStream(request.agent_key, request.session_key)
        async with aclosing(self._inputs.send(current_tenant(), request)) as items:
            async for accepted, item in items:
                yield stream.encode(accepted, item)

    async def AppendEvents(
        self, request: event_service_pb2.AppendEventsRequest, _context: Context
    ) -> event_service_pb2.AppendEventsResponse:
        """See the contract."""
        appended = await self._inputs.append(current_tenant(), request)
        return event_service_pb2.AppendEventsResponse(
            session_uid=appended.session_uid,
            events=[
                event_service_pb2.AppendedEvent(event_id=event_id, sequence=sequence)
                for event_id, sequence in appended.events
            ],
        )

    async def GetEvent(  # type: ignore[override]
        self, request: event_service_pb2.GetEventRequest, _context: Context
    ) -> bytes:
        """See the contract."""
        event = await self._queries.get_event(current_tenant(), request)
        return encode_event(event, request.agent_key, request.session_key)

    async def ListEvents(  # type: ignore[override]
        self, request: event_service_pb2.ListEventsRequest, _context: Context
    ) -> bytes:
        """See the contract."""

        def encode(rows: Sequence[EventRow]) -> bytes:
            return encode_event_rows(rows, agent_key, session_key)

        agent_key, session_key = request.agent_key, request.session_key
        page, token = await self._queries.list_events(current_tenant(), request, encode)
        return page + encode_next_page_token(token)

    async def WatchEvents(  # type: ignore[override]
        self, request: event_service_pb2.WatchEventsRequest, _context: Context
    ) -> AsyncIterator[bytes]:
        """See the contract."""
        stream = WatchStream(request.agent_key, request.session_key, request.after_sequence)
        session_uid, following = await self._queries.watch(current_tenant(), request)
        async with aclosing(following) as items:
            async for item in items:
                yield stream.encode(session_uid, item)

    async def HideEvent(  # type: ignore[override]
        self, request: event_service_pb2.HideEventRequest, _context: Context
    ) -> bytes:
        """See the contract."""
        return await self._alter(request, Alteration.HIDE)

    async def UnhideEvent(  # type: ignore[override]
        self, request: event_service_pb2.UnhideEventRequest, _context: Context
    ) -> bytes:
        """See the contract."""
        return await self._alter(request, Alteration.UNHIDE)

    async def DeleteEvent(
        self, request: event_service_pb2.DeleteEventRequest, _context: Context
    ) -> event_service_pb2.DeleteEventResponse:
        """See the contract."""
        await self._alter(request, Alteration.DELETE)
        return event_service_pb2.DeleteEventResponse()

    async def _alter(self, request: NamesEvent, alteration: Alteration) -> bytes:
        event = await self._alterations.alter(current_tenant(), request, alteration)
        return encode_event(event, request.agent_key, request.session_key)
