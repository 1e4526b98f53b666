"""A session of the ADK as events of Hansard: its events, and now and then the whole state.

Each event of the ADK is a `custom` event that holds its JSON. The state follows from the deltas in
them; a snapshot of it every so many events bounds how far back anybody has to read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from google.adk.events.event import Event
from google.adk.sessions.state import State

from hansard.v1 import event_pb2
from hansard_client.async_client import AsyncSession

EVENT_TYPE = "dev.adk.event"
STATE_TYPE = "dev.adk.state"
SNAPSHOT_EVERY = 32
"""Events between two snapshots of the state."""
_PAGE_SIZE = 64
_ALL_PAGE_SIZE = 1_000


@dataclass(slots=True)
class Tail:
    """The newest part of a session's record.

    Attributes:
        events: those that were asked for, in order.
        state: the session's own state after all of them.
        last_sequence: where the record ends.
        since_snapshot: events after the last snapshot.
        last_time: when the newest event happened, in seconds; None without one.
        last_event_id: of the newest event.
    """

    events: list[Event] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    last_sequence: int = 0
    since_snapshot: int = 0
    last_time: float | None = None
    last_event_id: str | None = None


async def read_tail(
    place: AsyncSession, *, recent: int | None, after_timestamp: float | None = None
) -> Tail:
    """Return the newest events and the state.

    `recent`: at most so many, None: all; `after_timestamp`: only the run of those at the end that
    are not older. Raises SessionNotFound, AgentNotFound.
    """
    reading = _Reading(recent, after_timestamp)
    size = _ALL_PAGE_SIZE if recent is None else min(_PAGE_SIZE + recent, _ALL_PAGE_SIZE)
    async with aclosing(place.events.list(newest_first=True, page_size=size)) as stored:
        async for kept in stored:
            if reading.take(kept):
                break
    return reading.to_tail()


class _Reading:
    """What has been read of a session's record, from its end."""

    def __init__(self, recent: int | None, after_timestamp: float | None) -> None:
        self._recent = recent
        self._after = after_timestamp
        self._wanted = recent != 0
        self._tail = Tail()
        self._newest_first: list[Event] = []
        self._snapshot: dict[str, Any] | None = None
        self._deltas: list[Mapping[str, Any]] = []

    def take(self, kept: event_pb2.Event) -> bool:
        """Take the next older event; return whether nothing more is needed."""
        self._tail.last_sequence = self._tail.last_sequence or kept.sequence
        custom = kept.custom
        if custom.custom_type == EVENT_TYPE and (self._wanted or self._snapshot is None):
            self._take_event(Event.model_validate_json(custom.data_json))
        elif custom.custom_type == STATE_TYPE and self._snapshot is None:
            self._snapshot = json.loads(custom.data_json)
        return self._snapshot is not None and not self._wanted

    def _take_event(self, event: Event) -> None:
        tail = self._tail
        if tail.last_time is None:
            tail.last_time, tail.last_event_id = event.timestamp, event.id
        if self._snapshot is None:
            self._deltas.append(session_delta(event.actions.state_delta))
        if self._after is not None and event.timestamp < self._after:
            self._wanted = False
        if self._wanted:
            self._newest_first.append(event)
            self._wanted = self._recent is None or len(self._newest_first) < self._recent

    def to_tail(self) -> Tail:
        """Return what was found."""
        self._tail.events = self._newest_first[::-1]
        self._tail.since_snapshot = len(self._deltas)
        state = self._snapshot or {}
        for delta in reversed(self._deltas):
            state.update(delta)
        self._tail.state = state
        return self._tail


def session_delta(delta: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a delta is the session's own state: neither the app's nor the user's."""
    others = (State.APP_PREFIX, State.USER_PREFIX, State.TEMP_PREFIX)
    return {key: value for key, value in delta.items() if not key.startswith(others)}


def event_draft(event: Event) -> dict[str, Any]:
    """Return the draft of an event of the ADK."""
    data = event.model_dump(mode="json", exclude_none=True)
    return _draft(EVENT_TYPE, data)


def state_draft(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the draft of a snapshot."""
    return _draft(STATE_TYPE, state)


def _draft(custom_type: str, data: Mapping[str, Any]) -> dict[str, Any]:
    # Numbers as Python has them: whole ones of any size, others to the last digit.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return {"custom": {"custom_type": custom_type, "data_json": text}}
