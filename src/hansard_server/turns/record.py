"""The record as a running turn reads it: the newest events, and from then on what is new."""

from __future__ import annotations

from dataclasses import replace

from hansard.v1 import event_pb2
from hansard_server.agents.api import Reach, Recent
from hansard_server.domain.records import EventRecord, EventType, TurnRecord
from hansard_server.repository.api import EventPage, EventScan, ReadTx, Store
from hansard_server.turns.feeds import SessionFeed
from hansard_server.turns.patience import outlast
from hansard_server.turns.payloads import decode_event

_PAGE = EventScan(limit=256, max_bytes=1024 * 1024, max_rows=5_000)
_KEPT_TIMES = 2
"""What is kept may grow to so many times of what is wanted; then it is read anew."""


class RecordReader:
    """Reads the events of a turn's session.

    What was read is kept, so that the next call reads what is new. Only when something was hidden,
    shown again or deleted meanwhile does it begin anew.
    """

    def __init__(self, store: Store, turn: TurnRecord, feed: SessionFeed | None = None) -> None:
        """Read from `store` for `turn`; `feed` is of its session, and in use."""
        self._store = store
        self._feed = feed
        self._turn = turn
        self._session = (turn.tenant, turn.session_uid)
        self._events: list[event_pb2.Event] = []
        self._size_bytes = 0
        self._whole = False
        self._reach: Reach | None = None
        self._alterations = -1
        self.read_sequence = 0
        """The last sequence of the session that was read."""

    async def recent(self, reach: Reach) -> Recent:
        """Return the newest visible events up to now, and the newest input."""
        return self.at_hand(reach) or await self.stored(reach)

    def at_hand(self, reach: Reach) -> Recent | None:
        """Return what `stored` returns, of what this process has written; None: that must be read.

        Only the running turn's own events are known so: nobody can hide or delete them.
        """
        first = self._turn.first_sequence
        if self._feed is None or not reach.turn_only or first < 1:
            return None
        found = self._feed.events_from(first)
        if found is None:
            return None
        events = [stored.event for stored in found]
        if any(event.turn_id != self._turn.id for event in events):
            return None
        if sum(len(event.payload) for event in events) >= min(reach.max_bytes, _PAGE.max_bytes):
            return None
        if first > 1 and not any(event.type is EventType.INPUT_MESSAGE for event in events):
            return None
        self._reach, self._alterations = reach, -1
        self.read_sequence = events[-1].sequence
        return Recent(events=tuple(map(decode_event, events)), whole=first == 1)

    async def stored(self, reach: Reach) -> Recent:
        """Return what `recent` does, as the store has it."""
        if reach != self._reach or self._size_bytes > _KEPT_TIMES * reach.max_bytes:
            self._reach, self._alterations = reach, -1
        last_sequence, alterations, page = await outlast(lambda: self._store.read(self._begin))
        if alterations == self._alterations:
            await self._read_on(page, last_sequence)
        else:
            self._alterations = alterations
            await self._read_back(reach, page, last_sequence)
        self.read_sequence = last_sequence
        return Recent(events=tuple(self._events), whole=self._whole)

    async def past(self, *, through: int, max_events: int, max_bytes: int) -> Recent:
        """Return the oldest visible events up to a sequence, none of the turn's own."""
        found: list[event_pb2.Event] = []
        size_bytes = 0
        after: int | None = 0
        while after is not None:
            page = await self._scan(
                replace(_PAGE, after_sequence=after, before_sequence=through + 1)
            )
            for event in page.events:
                if event.turn_id == self._turn.id:
                    continue
                size_bytes += len(event.payload)
                if len(found) == max_events or (found and size_bytes > max_bytes):
                    return Recent(events=found, whole=False)
                found.append(decode_event(event))
            after = page.resume_at
        return Recent(events=found, whole=True)

    async def find_sequence(self, event_id: str) -> int:
        """Return where an event stands. Raises EventNotFound."""

        def read(tx: ReadTx) -> EventRecord:
            return tx.get_event(*self._session, event_id)

        return (await outlast(lambda: self._store.read(read))).sequence

    def _begin(self, tx: ReadTx) -> tuple[int, int, EventPage]:
        """Return the session's last sequence, its alterations, and the first page to read."""
        pulse = tx.read_pulses([self._session]).get(self._session)
        if pulse is None:
            # Deleted meanwhile: who writes next is told.
            return self.read_sequence, self._alterations, EventPage(events=(), resume_at=None)
        if pulse.alteration_count == self._alterations:
            scan = replace(_PAGE, after_sequence=self.read_sequence)
        else:
            scan = self._backwards(self._reach, 0)
        scan = replace(scan, before_sequence=pulse.last_sequence + 1)
        page = tx.scan_events(*self._session, scan)
        return pulse.last_sequence, pulse.alteration_count, page

    def _backwards(self, reach: Reach | None, read_bytes: int) -> EventScan:
        wanted_bytes = (reach.max_bytes if reach else 0) - read_bytes
        return replace(
            _PAGE,
            max_bytes=min(_PAGE.max_bytes, max(wanted_bytes, 0)),
            after_sequence=self._first_wanted(reach) - 1,
            descending=True,
        )

    def _first_wanted(self, reach: Reach | None) -> int:
        return max(self._turn.first_sequence, 1) if reach and reach.turn_only else 1

    async def _read_back(self, reach: Reach, page: EventPage, last_sequence: int) -> None:
        """Read from the end backwards, as far as is wanted."""
        newest_first = list(page.events)
        size_bytes = _size(page)
        while page.resume_at is not None and size_bytes < reach.max_bytes:
            scan = replace(self._backwards(reach, size_bytes), before_sequence=page.resume_at)
            page = await self._scan(scan)
            newest_first += page.events
            size_bytes += _size(page)
        self._events = [decode_event(event) for event in reversed(newest_first)]
        self._size_bytes = size_bytes
        self._whole = page.resume_at is None and self._first_wanted(reach) == 1
        if not self._whole and not any(e.HasField("input_message") for e in self._events):
            first = self._events[0].sequence if self._events else last_sequence + 1
            scan = replace(
                _PAGE,
                limit=1,
                before_sequence=first,
                descending=True,
                types=frozenset({EventType.INPUT_MESSAGE}),
            )
            self._events[:0] = map(decode_event, (await self._scan(scan)).events)

    async def _read_on(self, page: EventPage, last_sequence: int) -> None:
        """Add what has come since the last time."""
        while True:
            self._events += map(decode_event, page.events)
            self._size_bytes += _size(page)
            if page.resume_at is None:
                return
            page = await self._scan(
                replace(_PAGE, after_sequence=page.resume_at, before_sequence=last_sequence + 1)
            )

    async def _scan(self, scan: EventScan) -> EventPage:
        return await outlast(
            lambda: self._store.read(lambda tx: tx.scan_events(*self._session, scan))
        )


def _size(page: EventPage) -> int:
    return sum(len(event.payload) for event in page.events)
