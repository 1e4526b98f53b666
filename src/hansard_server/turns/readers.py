"""Readers: cursors that follow a turn or a session. They hold nothing while they are not asked.

A reader takes what is new since its cursor (sequence, and offset in the open text) whenever it is
asked for its next item. One that is slow simply gets larger deltas.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from hansard.v1 import event_pb2
from hansard_server.agents.api import TextKind
from hansard_server.domain.errors import (
    CursorOutOfRange,
    ServerShuttingDown,
    SessionNotFound,
)
from hansard_server.domain.limits import SCAN_MAX_ROWS
from hansard_server.domain.records import EventRecord, TurnRecord, TurnStatus
from hansard_server.repository.api import EventPage, EventScan, ReadTx, Store
from hansard_server.turns.feeds import Feeds, SessionFeed, SessionUid
from hansard_server.turns.payloads import TEXT_TYPES

PAGE_MAX_EVENTS = 100
PAGE_MAX_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event, which is on disk."""

    event: EventRecord


@dataclass(frozen=True, slots=True)
class TextShown:
    """More of the open text; `offset` in UTF-8 bytes."""

    event_id: str
    kind: TextKind
    offset: int
    text: str


@dataclass(frozen=True, slots=True)
class TextVoided:
    """What was shown under this id will not be stored."""

    event_id: str


@dataclass(frozen=True, slots=True)
class InputQueued:
    """The input waits; 1 is the next to run."""

    position: int


@dataclass(frozen=True, slots=True)
class TurnStopped:
    """The turn has ended, or waits for somebody."""

    turn: TurnRecord


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """All that was stored when the reader began has been delivered."""


@dataclass(frozen=True, slots=True)
class EventAltered:
    """A stored event was hidden, unhidden or deleted; this is how it is now."""

    event: EventRecord


Item = StoredEvent | TextShown | TextVoided | InputQueued | TurnStopped | CaughtUp | EventAltered


class Cursor:
    """Where a reader stands in one session: everything up to `sequence` has been delivered."""

    def __init__(
        self,
        store: Store,
        feed: SessionFeed,
        session: SessionUid,
        *,
        sequence: int,
        turn_id: str | None = None,
        deltas: bool = False,
    ) -> None:
        """Stand at `sequence` of the session; only events of `turn_id`, if given, are delivered."""
        self.sequence = sequence
        self.live = False
        """Events from now on are seen as they happen: their texts are told as deltas too."""
        self._store = store
        self._feed = feed
        self._session = session
        self._turn_id = turn_id
        self._deltas = deltas
        self._shown_id: str | None = None
        self._shown_bytes = 0
        self._stored_text_id: str | None = None

    async def stored(self, *, from_store: bool) -> AsyncGenerator[Item, None]:
        """Yield what was stored since the cursor, each text's missing deltas before its event.

        Raises SessionNotFound when the session is gone.
        """
        events = None if from_store else self._feed.events_after(self.sequence)
        if events is not None:
            for event in events:
                for item in self._deliver(event):
                    yield item
            return
        while True:
            last_sequence, page = await self._store.read(self._read_page)
            for event in page.events:
                for item in self._deliver(event):
                    yield item
            if page.resume_at is None:
                break
            self.sequence = max(self.sequence, page.resume_at)
        self.sequence = max(self.sequence, last_sequence)

    def open_text(self) -> list[Item]:
        """Return what is new of the open text, if everything before it has been delivered."""
        text = self._feed.text
        if not self._deltas or text is None or self._feed.last_sequence > self.sequence:
            return []
        # The store may have been read before the feed heard that the text is stored.
        if self._turn_id not in {None, text.turn_id} or text.event_id == self._stored_text_id:
            return []
        items: list[Item] = []
        if self._shown_id is not None and self._shown_id != text.event_id:
            items.append(TextVoided(self._shown_id))
            self._shown_bytes = 0
        self._shown_id = text.event_id
        if len(text.content) > self._shown_bytes:
            items.append(self._show(text.event_id, text.kind, text.content))
        return items

    def _read_page(self, tx: ReadTx) -> tuple[int, EventPage]:
        scan = EventScan(
            limit=PAGE_MAX_EVENTS,
            max_bytes=PAGE_MAX_BYTES,
            max_rows=SCAN_MAX_ROWS,
            after_sequence=self.sequence,
            turn_id=self._turn_id,
            include_hidden=True,
        )
        return tx.last_sequence(*self._session), tx.scan_events(*self._session, scan)

    def _deliver(self, event: EventRecord) -> list[Item]:
        if event.sequence <= self.sequence:
            return []
        self.sequence = event.sequence
        if self._turn_id not in {None, event.turn_id}:
            return []
        items: list[Item] = []
        kind = TEXT_TYPES.get(event.type)
        if kind is not None:
            self._stored_text_id = event.id
        if self._deltas and kind is not None and event.turn_id is not None:
            shown = self._shown_id == event.id
            if shown or (self.live and self._shown_id is None):
                content = _content(event, kind)
                if len(content) > self._shown_bytes:
                    items.append(self._show(event.id, kind, content))
                self._shown_id, self._shown_bytes = None, 0
        items.append(StoredEvent(event))
        return items

    def _show(self, event_id: str, kind: TextKind, content: bytes | bytearray) -> TextShown:
        offset, self._shown_bytes = self._shown_bytes, len(content)
        return TextShown(event_id, kind, offset, content[offset:].decode())


class Readers:
    """Follows turns and sessions for whoever reads them."""

    def __init__(self, store: Store, feeds: Feeds, *, poll_floor_s: float) -> None:
        """Read from `store`, woken by `feeds` and at the latest after `poll_floor_s`."""
        self._store = store
        self._feeds = feeds
        self._poll_floor_s = poll_floor_s

    async def follow_turn(
        self,
        feed: SessionFeed,
        turn: TurnRecord,
        *,
        fresh: bool,
        deltas: bool,
        from_sequence: int = 0,
    ) -> AsyncGenerator[Item, None]:
        """Yield the items of a turn to its end, and then TurnStopped.

        `fresh`: the feed was in use before anything of the turn was stored, but its input; else the
        store is read first. `from_sequence`: where to begin; 0: at the turn's start. Raises
        ServerShuttingDown on a drain, SessionNotFound when the session is deleted.
        """
        from_store = not fresh
        if from_store:
            turn = await self._read_turn(turn)
        after_sequence = max((from_sequence or turn.first_sequence) - 1, 0)
        session = (turn.tenant, turn.session_uid)
        cursor = Cursor(
            self._store,
            feed,
            session,
            sequence=after_sequence,
            turn_id=turn.id,
            deltas=deltas,
        )
        cursor.live = not from_store
        while True:
            version = feed.version
            known = feed.turns.get(turn.id)
            if from_store or (known is None and feed.forgot_turns):
                turn = await self._read_turn(turn)
            elif known is not None:
                turn = known
            if turn.status is not TurnStatus.QUEUED:
                # While it waits there is nothing of it; what others write meanwhile is skipped.
                cursor.sequence = max(cursor.sequence, turn.first_sequence - 1)
                async for item in cursor.stored(from_store=from_store):
                    yield item
                for item in cursor.open_text():
                    yield item
            cursor.live = True
            if _stopped(turn) and cursor.sequence >= turn.last_sequence:
                yield TurnStopped(turn)
                return
            self._check_open(feed, session, cursor.sequence)
            from_store = await self._wait(feed, version)

    async def follow_session(
        self, feed: SessionFeed, session: SessionUid, *, after_sequence: int, deltas: bool
    ) -> AsyncGenerator[Item, None]:
        """Yield the events of a session after a sequence, CaughtUp, and then what is new, for ever.

        Raises ServerShuttingDown on a drain, SessionNotFound when the session is deleted,
        CursorOutOfRange when `after_sequence` is ahead of the session.
        """
        altered_count, _ = feed.changed_after(0)
        told = {turn.id for turn in feed.turns.values() if _stopped(turn)}
        last_sequence = await self._store.read(lambda tx: tx.last_sequence(*session))
        if after_sequence > last_sequence:
            raise _cursor_ahead(after_sequence, last_sequence)
        cursor = Cursor(self._store, feed, session, sequence=after_sequence, deltas=deltas)
        from_store = True
        while True:
            version = feed.version
            if not cursor.live and cursor.sequence >= last_sequence:
                cursor.live = True
                yield CaughtUp()
            async for item in cursor.stored(from_store=from_store):
                yield item
                if not cursor.live and cursor.sequence >= last_sequence:
                    cursor.live = True
                    yield CaughtUp()
            for item in cursor.open_text():
                yield item
            altered_count, altered_ids = feed.changed_after(altered_count)
            for altered in await self._read_altered(session, altered_ids, cursor.sequence):
                yield altered
            if deltas and feed.last_sequence <= cursor.sequence:
                for turn in _newly_stopped(feed, told):
                    yield TurnStopped(turn)
            self._check_open(feed, session, cursor.sequence)
            from_store = await self._wait(feed, version)

    async def _wait(self, feed: SessionFeed, version: int) -> bool:
        """Wait for news; return whether the store has to be read, since none came."""
        await feed.wait(version, self._poll_floor_s)
        return feed.version == version

    def _check_open(self, feed: SessionFeed, session: SessionUid, sequence: int) -> None:
        if feed.deleted:
            msg = "the session was deleted"
            raise SessionNotFound(msg)
        if self._feeds.draining:
            raise shutting_down(session[1], sequence)

    async def _read_turn(self, turn: TurnRecord) -> TurnRecord:
        def read(tx: ReadTx) -> TurnRecord:
            tx.last_sequence(turn.tenant, turn.session_uid)
            return tx.get_turn(turn.tenant, turn.session_uid, turn.id)

        return await self._store.read(read)

    async def _read_altered(
        self, session: SessionUid, event_ids: Sequence[str], up_to_sequence: int
    ) -> list[EventAltered]:
        """Return the events as they are now; what was not delivered yet will come so anyway."""
        if not event_ids:
            return []
        events = await self._store.read(
            lambda tx: [tx.get_event(*session, event_id) for event_id in event_ids]
        )
        return [EventAltered(event) for event in events if event.sequence <= up_to_sequence]


def shutting_down(session_uid: str, sequence: int) -> ServerShuttingDown:
    """Return the error that ends a stream on a drain, with the place to go on from."""
    return ServerShuttingDown(
        "the server is stopping; go on from the last sequence",
        retry_after_s=1.0,
        metadata={"session_uid": session_uid, "sequence": str(sequence)},
    )


def _cursor_ahead(sequence: int, last_sequence: int) -> CursorOutOfRange:
    return CursorOutOfRange.of_field(
        "after_sequence", f"is {sequence}, and the session's last sequence is {last_sequence}"
    ).with_metadata(last_sequence=str(last_sequence))


def _stopped(turn: TurnRecord) -> bool:
    return turn.status.ended or turn.status is TurnStatus.REQUIRES_ACTION


def _newly_stopped(feed: SessionFeed, told: set[str]) -> list[TurnRecord]:
    stopped = [turn for turn in feed.turns.values() if _stopped(turn) and turn.id not in told]
    told &= set(feed.turns)
    told |= {turn.id for turn in stopped}
    return stopped


def _content(event: EventRecord, kind: TextKind) -> bytes:
    message = event_pb2.Event.FromString(event.payload)
    if kind is TextKind.THINKING:
        return message.thinking.content.encode()
    return message.agent_output.content.encode()
