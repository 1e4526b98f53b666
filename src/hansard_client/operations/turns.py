"""Turns: what became of inputs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import Literal, TypeAlias

from hansard.v1 import turn_service_pb2 as wire
from hansard.v1.turn_pb2 import Turn, TurnStatus
from hansard_client import rpcs
from hansard_client.operations.values import Place, to_order

Status: TypeAlias = Literal[
    "QUEUED", "RUNNING", "REQUIRES_ACTION", "COMPLETED", "FAILED", "INTERRUPTED"
]


def list_(
    place: Place,
    *,
    statuses: Iterable[Status] = (),
    newest_first: bool | None = None,
    limit: int | None = None,
    page_size: int = 0,
) -> AsyncGenerator[Turn, None]:
    """Yield the turns in the order of their inputs, the oldest first unless said otherwise.

    Args:
        statuses: only those that stand so.
        newest_first: the order.
        limit: at most so many; None: all.
        page_size: how many are fetched at a time; 0: as many as the server likes.
    """
    request = wire.ListTurnsRequest(
        **place.keys,
        statuses=[TurnStatus.Value(f"TURN_STATUS_{status}") for status in statuses],
        order=to_order(newest_first=newest_first),
        page_size=page_size,
    )
    return place.link.pages(rpcs.LIST_TURNS, request, lambda page: page.turns, limit)


async def cancel(place: Place, turn_id: str) -> Turn:
    """End a turn that runs or waits, or take a queued one back, and return it.

    A turn that has ended stays as it is. Raises TurnNotFound, SessionNotFound.
    """
    request = wire.CancelTurnRequest(**place.keys, turn_id=turn_id)
    return await place.link.call(rpcs.CANCEL_TURN, request)
