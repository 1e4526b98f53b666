"""Lists of agents and sessions by creation: they differ in what is scanned, and in nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TypeVar

from google.protobuf.struct_pb2 import Struct

from hansard.v1 import agent_service_pb2, paging_pb2, session_service_pb2
from hansard_server.domain.limits import Limits
from hansard_server.domain.records import AgentRecord, SessionRecord
from hansard_server.repository.api import CreationScan, Position, ReadTx, Store
from hansard_server.resources.filters import RecordFilter, timestamp_us
from hansard_server.resources.metadata import check_struct
from hansard_server.resources.paging import (
    Page,
    PageTokens,
    pack_position,
    page_limit,
    query_of,
    scan_page,
    unpack_position,
)

T = TypeVar("T")

ListRequest = agent_service_pb2.ListAgentsRequest | session_service_pb2.ListSessionsRequest
Fetch = Callable[[CreationScan], Sequence[T]]

ROW_OVERHEAD_BYTES = 512
"""What keys, ids, times and numbers of one item take in a reply, at most."""


class CreationLists:
    """Lists of one kind of resource."""

    def __init__(self, store: Store, tokens: PageTokens, limits: Limits) -> None:
        """Read from `store`; page tokens are those of `tokens`."""
        self._store = store
        self._tokens = tokens
        self._limits = limits
        # Matching holds a reader of the store; the others are for those who only read.
        self._matching = asyncio.Semaphore(1)

    async def list(
        self,
        tenant: str,
        request: ListRequest,
        *,
        fetch: Callable[[ReadTx], Fetch[T]],
        record: Callable[[T], AgentRecord | SessionRecord],
        size: Callable[[T], int],
    ) -> Page[T]:
        """Return the page that the request asks for, all of one moment.

        Raises InvalidRequest, InvalidMetadata, InvalidPageToken, and what `fetch` raises.
        """
        keeps = _filter_of(request, self._limits)
        query = query_of(tenant, request)
        scan = _scan_of(request, self._tokens.read(query, request.page_token))
        turn: AbstractAsyncContextManager[None] = (
            self._matching if request.filter else nullcontext()
        )
        async with turn:
            found = await self._store.read(
                lambda tx: scan_page(
                    fetch(tx),
                    scan,
                    position=lambda item: Position(record(item).created_at_us, record(item).uid),
                    size=size,
                    matches=lambda item: keeps.matches(record(item)),
                )
            )
        if found.position is None:
            return Page(found.items, "")
        return Page(found.items, self._tokens.make(query, pack_position(found.position)))


def _filter_of(request: ListRequest, limits: Limits) -> RecordFilter:
    metadata: Struct | None = request.metadata if request.HasField("metadata") else None
    if metadata is not None:
        check_struct(metadata, "metadata", limits)
    enabled = request.enabled if request.HasField("enabled") else None
    return RecordFilter(request.filter, metadata, enabled=enabled)


def _scan_of(request: ListRequest, position: bytes | None) -> CreationScan:
    start = end = None
    if request.HasField("created_at_or_after"):
        start = timestamp_us("created_at_or_after", request.created_at_or_after)
    if request.HasField("created_before"):
        end = timestamp_us("created_before", request.created_before)
    return CreationScan(
        limit=page_limit(request.page_size),
        after=unpack_position(position),
        descending=request.order != paging_pb2.SORT_ORDER_ASCENDING,
        created_from_us=start,
        created_before_us=end,
    )
