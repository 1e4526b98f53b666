"""Reads of the record: events and turns, one and by pages, and sessions watched."""

from __future__ import annotations

import struct
from collections.abc import AsyncGenerator, Callable, Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from hansard.v1 import event_service_pb2, paging_pb2, turn_service_pb2
from hansard_server.domain.clock import MICROSECONDS_PER_SECOND
from hansard_server.domain.limits import PAGE_MAX_BYTES, SCAN_MAX_ROWS
from hansard_server.domain.records import EventRecord, EventRow, TurnRecord, TurnStatus
from hansard_server.repository.api import (
    EventScan,
    ReadTx,
    Store,
    TurnPage,
    TurnScan,
)
from hansard_server.repository.commands import SessionName
from hansard_server.resources.paging import Page, PageTokens, page_limit, query_of
from hansard_server.turns.feeds import Feeds
from hansard_server.turns.payloads import EVENT_TYPES_BY_NAME
from hansard_server.turns.readers import Item, Readers


class Queries:
    """Reads for callers."""

    def __init__(self, store: Store, feeds: Feeds, readers: Readers, tokens: PageTokens) -> None:
        """Read from `store`; page tokens are those of `tokens`."""
        self._store = store
        self._feeds = feeds
        self._readers = readers
        self._tokens = tokens

    async def get_event(
        self, tenant: str, request: event_service_pb2.GetEventRequest
    ) -> EventRecord:
        """Return the event or its tombstone. Raises what the contract says of GetEvent."""
        name = _name(tenant, request.agent_key, request.session_key)

        def read(tx: ReadTx) -> EventRecord:
            session = tx.resolve_session(name)
            return tx.get_event(tenant, session.uid, request.event_id)

        return await self._store.read(read)

    async def list_events(
        self,
        tenant: str,
        request: event_service_pb2.ListEventsRequest,
        encode: Callable[[Sequence[EventRow]], bytes],
    ) -> tuple[bytes, str]:
        """Return a page, encoded, and the token of the next one, empty at the end.

        Raises what the contract says of ListEvents, InvalidPageToken.
        """
        query, position = None, None
        if request.page_token:
            query = query_of(tenant, request)
            position = self._tokens.read(query, request.page_token)
        name = _name(tenant, request.agent_key, request.session_key, request.session_uid)
        scan = _event_scan(request, position)

        def read(tx: ReadTx) -> tuple[bytes, int | None]:
            found = tx.scan_event_rows(tx.resolve_session(name), scan)
            # By the thread that has read them: another one would have to fetch them to its cache.
            return encode(found.rows), found.resume_at

        page, resume_at = await self._store.read(read)
        token = ""
        if resume_at is not None:
            query = query or query_of(tenant, request)
            token = self._tokens.make(query, struct.pack(">q", resume_at))
        return page, token

    async def watch(
        self, tenant: str, request: event_service_pb2.WatchEventsRequest
    ) -> tuple[str, AsyncGenerator[Item]]:
        """Return the session's uid, and what is to be told of it, for ever; its reader closes that.

        Both raise what the contract says of WatchEvents.
        """
        name = _name(tenant, request.agent_key, request.session_key, request.session_uid)
        session = await self._store.read(lambda tx: tx.resolve_session(name))
        following = self._readers.follow_session(
            (tenant, session.uid),
            after_sequence=request.after_sequence,
            deltas=request.include_deltas,
        )
        return session.uid, following

    async def get_turn(self, tenant: str, request: turn_service_pb2.GetTurnRequest) -> TurnRecord:
        """Return the turn. Raises what the contract says of GetTurn."""
        name = _name(tenant, request.agent_key, request.session_key)

        def read(tx: ReadTx) -> TurnRecord:
            return tx.get_turn(tenant, tx.resolve_session(name).uid, request.turn_id)

        return await self._store.read(read)

    async def list_turns(
        self, tenant: str, request: turn_service_pb2.ListTurnsRequest
    ) -> Page[TurnRecord]:
        """Return a page. Raises what the contract says of ListTurns, InvalidPageToken."""
        query = query_of(tenant, request)
        position = self._tokens.read(query, request.page_token)
        name = _name(tenant, request.agent_key, request.session_key)
        scan = TurnScan(
            limit=page_limit(request.page_size),
            max_bytes=PAGE_MAX_BYTES,
            max_rows=SCAN_MAX_ROWS,
            after_number=None if position is None else struct.unpack(">q", position)[0],
            descending=request.order == paging_pb2.SORT_ORDER_DESCENDING,
            statuses=frozenset(TurnStatus(status) for status in request.statuses),
        )

        def read(tx: ReadTx) -> TurnPage:
            return tx.scan_turns(tenant, tx.resolve_session(name).uid, scan)

        page = await self._store.read(read)
        if page.resume_at is None:
            return Page(page.turns, "")
        return Page(page.turns, self._tokens.make(query, struct.pack(">q", page.resume_at)))


def _name(tenant: str, agent_key: str, session_key: str, uid: str = "") -> SessionName:
    return SessionName(tenant=tenant, agent_key=agent_key, session_key=session_key, uid=uid or None)


def _event_scan(request: event_service_pb2.ListEventsRequest, position: bytes | None) -> EventScan:
    descending = request.order == paging_pb2.SORT_ORDER_DESCENDING
    after, before = request.after_sequence, request.before_sequence or None
    if position is not None:
        resume_at = struct.unpack(">q", position)[0]
        after, before = (after, resume_at) if descending else (resume_at, before)
    return EventScan(
        limit=page_limit(request.page_size),
        max_bytes=PAGE_MAX_BYTES,
        max_rows=SCAN_MAX_ROWS,
        after_sequence=after,
        before_sequence=before,
        descending=descending,
        types=frozenset(EVENT_TYPES_BY_NAME[name] for name in request.types),
        turn_id=request.turn_id or None,
        include_hidden=request.include_hidden,
        created_from_us=_time_us(request, "created_at_or_after"),
        created_before_us=_time_us(request, "created_before"),
    )


def _time_us(request: event_service_pb2.ListEventsRequest, field: str) -> int | None:
    if not request.HasField(field):  # type: ignore[arg-type]
        return None
    time: Timestamp = getattr(request, field)
    # Rounded up: an event is stored to the microsecond.
    return time.seconds * MICROSECONDS_PER_SECOND + -(-time.nanos // 1_000)
