"""Events: the record of a session."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncGenerator, Iterable

from hansard.v1 import event_service_pb2 as wire
from hansard.v1.event_pb2 import Event
from hansard_client import rpcs
from hansard_client.operations.values import Place, given, to_order, to_timestamp


async def get(place: Place, event_id: str) -> Event:
    """Return an event; a deleted one is a tombstone. Raises EventNotFound, SessionNotFound."""
    request = wire.GetEventRequest(**place.keys, event_id=event_id)
    return await place.link.call(rpcs.GET_EVENT, request)


def list_(
    place: Place,
    *,
    types: Iterable[str] = (),
    turn_id: str = "",
    after_sequence: int = 0,
    before_sequence: int = 0,
    created_at_or_after: dt.datetime | None = None,
    created_before: dt.datetime | None = None,
    include_hidden: bool = False,
    newest_first: bool | None = None,
    limit: int | None = None,
    page_size: int = 0,
) -> AsyncGenerator[Event, None]:
    """Yield the events, the oldest first unless said otherwise, fetched page by page.

    Args:
        types: only of these types, named as the payload's field is (`agent_output`).
        turn_id: only of this turn.
        after_sequence: only with a higher sequence.
        before_sequence: only with a lower one; 0: no bound.
        created_at_or_after: the earliest.
        created_before: the end of the time.
        include_hidden: hidden events and tombstones too.
        newest_first: the order.
        limit: at most so many; None: all.
        page_size: how many are fetched at a time; 0: as many as the server likes.
    """
    request = wire.ListEventsRequest(
        **place.incarnation,
        types=types,
        turn_id=turn_id,
        after_sequence=after_sequence,
        before_sequence=before_sequence,
        include_hidden=include_hidden,
        order=to_order(newest_first=newest_first),
        page_size=page_size,
        **given(
            created_at_or_after=to_timestamp(created_at_or_after),
            created_before=to_timestamp(created_before),
        ),
    )
    return place.link.pages(rpcs.LIST_EVENTS, request, lambda page: page.events, limit)


async def hide(place: Place, event_id: str) -> Event:
    """Take an event out of the model's context and return it; it stays on record.

    A tool's input and output are hidden together. Raises EventNotFound; SessionBusy for an event of
    an unfinished turn, after the client's patience has ended.
    """
    request = wire.HideEventRequest(**place.keys, event_id=event_id)
    return await place.link.call(rpcs.HIDE_EVENT, request)


async def unhide(place: Place, event_id: str) -> Event:
    """Put a hidden event back and return it. Raises as `hide`."""
    request = wire.UnhideEventRequest(**place.keys, event_id=event_id)
    return await place.link.call(rpcs.UNHIDE_EVENT, request)


async def delete(place: Place, event_id: str) -> None:
    """Remove an event's payload for good; a tombstone is left. Raises as `hide`."""
    request = wire.DeleteEventRequest(**place.keys, event_id=event_id)
    await place.link.call(rpcs.DELETE_EVENT, request)
