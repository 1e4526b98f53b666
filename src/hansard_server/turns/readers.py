"""Readers: cursors that follow a turn or a session. They hold nothing while they are not asked.

A reader takes what is new since its cursor (sequence, and offset in the open text) whenever it is
asked for its next item. One that is slow simply gets larger deltas.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from hansard.v1 import event_pb2
from hansard_server.agents.api import TextKind
from hansard_server.domain.errors import (
    CursorOutOfRange,
    ServerShuttingDown,
    SessionNotFound,
)
from hansard_server.domain.limits import SCAN_MAX_ROWS
from hansard_server.domain.records import EventRecord, SessionPulse, TurnRecord, TurnStatus
from hansard_server.domain.values import dataclass
from hansard_server.repository.api import EventPage, EventScan, ReadTx, Store
from hansard_server.turns.feeds import (
    ALTERED_MAX,
    Altered,
    Feeds,
    SessionFeed,
    SessionUid,
    StoredEvent,
)
from hansard_server.turns.mirrors import Mirrors
from hansard_server.turns.payloads import TEXT_TYPES

PAGE_MAX_EVENTS = 100
PAGE_MAX_BYTES = 1024 * 1024


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

    __slots__ = (
        *("_caught_up_at", "_deltas", "_feed", "_session", "_shown_bytes", "_shown_id"),
        *("_store", "_turn_id", "live", "sequence"),
    )

    def __init__(
        self,
        store: Store,
        feed: SessionFeed,
        session: SessionUid,
        *,
        sequence: int,
        turn_id: str | None = None,
        deltas: bool = False,
        caught_up_at: int | None = None,
    ) -> None:
        """Stand at `sequence` of the session; only events of `turn_id`, if given, are delivered.

        With `caught_up_at` the cursor says when it has come so far, and is live from then on.
        """
        self.sequence = sequence
        self._caught_up_at = caught_up_at
        self.live = False
        """Events from now on are seen as they happen: their texts are told as deltas too."""
        self._store = store
        self._feed = feed
        self._session = session
        self._turn_id = turn_id
        self._deltas = deltas
        self._shown_id: str | None = None
        self._shown_bytes = 0

    def take(self) -> list[Item] | None:
        """Return what the feed has since the cursor; None: the store has to be read."""
        events = self._feed.events_after(self.sequence)
        if events is None:
            return None
        items: list[Item] = []
        for stored in events:
            items += self._deliver(stored)
        return items

    async def stored(self) -> AsyncGenerator[Item, None]:
        """Yield what the store has since the cursor, each text's missing deltas before its event.

        Raises SessionNotFound when the session is gone.
        """
        while True:
            last_sequence, page = await self._store.read(self._read_page)
            for event in page.events:
                for item in self._deliver(StoredEvent(event)):
                    yield item
            if page.resume_at is None:
                break
            self.sequence = max(self.sequence, page.resume_at)
        self.sequence = max(self.sequence, last_sequence)

    def caught_up(self) -> list[Item]:
        """Return CaughtUp, once, when the cursor has come so far."""
        if self._caught_up_at is None or self.sequence < self._caught_up_at:
            return []
        self._caught_up_at = None
        self.live = True
        return [CaughtUp()]

    def open_text(self) -> list[Item]:
        """Return what is new of the open text, if everything before it has been delivered.

        A cursor that has read the store ahead of the feed may have delivered the text's event; it
        waits for the feed to hear of that.
        """
        text = self._feed.text
        if not self._deltas or text is None or self._feed.last_sequence != self.sequence:
            return []
        if self._turn_id not in {None, text.turn_id}:
            return []
        items: list[Item] = []
        if self._shown_id not in {None, text.event_id}:
            items += self._void()
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
        last = tx.last_sequence(*self._session)
        return last, tx.scan_events(*self._session, scan, last_sequence=last)

    def _deliver(self, stored: StoredEvent) -> list[Item]:
        event = stored.event
        if event.sequence <= self.sequence:
            return []
        self.sequence = event.sequence
        if self._turn_id not in {None, event.turn_id}:
            return []
        items: list[Item] = []
        kind = TEXT_TYPES.get(event.type)
        if self._deltas and kind is not None and event.turn_id is not None:
            if self._shown_id not in {None, event.id}:
                # A turn has one open text at a time: that one was given up.
                items += self._void()
            if self.live or self._shown_id is not None:
                content = _content(event, kind)
                if len(content) > self._shown_bytes:
                    items.append(self._show(event.id, kind, content))
                self._shown_id, self._shown_bytes = None, 0
        items.append(stored)
        if self._caught_up_at is not None:
            items += self.caught_up()
        return items

    def _void(self) -> list[Item]:
        voided, self._shown_id, self._shown_bytes = self._shown_id, None, 0
        return [] if voided is None else [TextVoided(voided)]

    def _show(self, event_id: str, kind: TextKind, content: bytes | bytearray) -> TextShown:
        offset, self._shown_bytes = self._shown_bytes, len(content)
        return TextShown(event_id, kind, offset, content[offset:].decode())


class Readers:
    """Follows turns and sessions for whoever reads them."""

    def __init__(self, store: Store, feeds: Feeds, mirrors: Mirrors) -> None:
        """Read from `store`, woken by `feeds`; `mirrors` show there what other processes make."""
        self._store = store
        self._feeds = feeds
        self._mirrors = mirrors

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
        session = (turn.tenant, turn.session_uid)
        learned = None if fresh else await self._learn(feed, session, turn.id)
        turn = feed.turns.get(turn.id) or learned or turn
        cursor = Cursor(
            self._store,
            feed,
            session,
            sequence=max((from_sequence or turn.first_sequence) - 1, 0),
            turn_id=turn.id,
            deltas=deltas,
        )
        cursor.live = fresh
        from_store = not fresh
        with self._mirrors.showing(session, feed, wanted=deltas):
            while True:
                version = feed.version
                turn = (
                    feed.turns.get(turn.id) or learned or await self._learn(feed, session, turn.id)
                )
                learned = None
                if turn.status is not TurnStatus.QUEUED:
                    # While it waits there is nothing of it; what others write then is skipped.
                    cursor.sequence = max(cursor.sequence, turn.first_sequence - 1)
                    here = None if from_store else cursor.take()
                    if here is None:
                        async for item in cursor.stored():
                            yield item
                    for item in here or ():
                        yield item
                    for item in cursor.open_text():
                        yield item
                cursor.live = True
                if _stopped(turn) and cursor.sequence >= turn.last_sequence:
                    yield TurnStopped(turn)
                    return
                self._check_open(feed, session, cursor.sequence)
                await feed.wait(version)
                from_store = False

    async def follow_session(  # noqa: C901 - what comes first is seen best in one place
        self, session: SessionUid, *, after_sequence: int, deltas: bool
    ) -> AsyncGenerator[Item, None]:
        """Yield the events of a session after a sequence, CaughtUp, and then what is new, for ever.

        Raises ServerShuttingDown on a drain, SessionNotFound when the session is deleted,
        CursorOutOfRange when `after_sequence` is ahead of the session.
        """
        turnstile = self._feeds.turnstile
        with self._feeds.use(*session) as feed:
            told = {_stop(turn) for turn in feed.turns.values() if _stopped(turn)}
            pulse = await self._store.read(lambda tx: _read_pulse(tx, session))
            feed.learn(pulse)
            last_sequence, alteration = pulse.last_sequence, pulse.alteration_count
            if after_sequence > last_sequence:
                raise _cursor_ahead(after_sequence, last_sequence)
            cursor = Cursor(
                self._store,
                feed,
                session,
                sequence=after_sequence,
                deltas=deltas,
                caught_up_at=last_sequence,
            )
            from_store = True
            with self._mirrors.showing(session, feed, wanted=deltas):
                while True:
                    version = feed.version
                    here = cursor.caught_up() if from_store else cursor.take()
                    # Woken, a reader has passed the turnstile for its first item.
                    for place, item in enumerate(here or ()):
                        if place:
                            await turnstile.enter()
                        yield item
                    if from_store or here is None:
                        async for item in cursor.stored():
                            await turnstile.enter()
                            yield item
                    if deltas or not cursor.live:
                        for item in (*cursor.caught_up(), *cursor.open_text()):
                            yield item
                    if (feed.alteration_count or 0) > alteration:
                        async for number, event in self._altered(feed, session, alteration):
                            alteration = number
                            # What was not delivered yet will come so anyway.
                            if event.sequence <= cursor.sequence:
                                yield EventAltered(event)
                    told_all = deltas and feed.last_sequence <= cursor.sequence
                    for turn in _newly_stopped(feed, told) if told_all else ():
                        yield TurnStopped(turn)
                    self._check_open(feed, session, cursor.sequence)
                    await feed.wait(version)
                    from_store = False

    def _check_open(self, feed: SessionFeed, session: SessionUid, sequence: int) -> None:
        if feed.deleted:
            msg = "the session was deleted"
            raise SessionNotFound(msg)
        if self._feeds.draining:
            raise shutting_down(session[1], sequence)

    async def _learn(self, feed: SessionFeed, session: SessionUid, turn_id: str) -> TurnRecord:
        """Return the turn as the store has it; the feed knows its session from then on.

        It knows the turn too unless that has stopped before: who watches has no news of it.
        """
        pulse, turn = await self._store.read(
            lambda tx: (_read_pulse(tx, session), tx.get_turn(*session, turn_id))
        )
        if turn.id in feed.turns or not _stopped(turn):
            feed.put_turn(turn)
        feed.learn(pulse)
        return turn

    async def _altered(
        self, feed: SessionFeed, session: SessionUid, after: int
    ) -> AsyncGenerator[tuple[int, EventRecord], None]:
        """Yield the alterations after the `after`-th, each with its event as it is now."""
        while after < (feed.alteration_count or 0):
            altered = feed.altered_after(after)

            def read(
                tx: ReadTx, known: list[Altered] | None = altered, after: int = after
            ) -> list[tuple[int, EventRecord]]:
                found = known or tx.find_altered(*session, after, ALTERED_MAX)
                return [(number, tx.get_event(*session, id_)) for number, id_ in found]

            events = await self._store.read(read)
            for number, event in events:
                yield number, event
            if not events:
                return
            after = events[-1][0]


def shutting_down(session_uid: str, sequence: int) -> ServerShuttingDown:
    """Return the error that ends a stream on a drain, with the place to go on from."""
    return ServerShuttingDown(
        "the server is stopping; go on from the last sequence",
        retry_after_s=1.0,
        metadata={"session_uid": session_uid, "sequence": str(sequence)},
    )


def _read_pulse(tx: ReadTx, session: SessionUid) -> SessionPulse:
    pulse = tx.read_pulses([session]).get(session)
    if pulse is None or pulse.deleted:
        msg = "There is no such session."
        raise SessionNotFound(msg)
    return pulse


def _cursor_ahead(sequence: int, last_sequence: int) -> CursorOutOfRange:
    return CursorOutOfRange.of_field(
        "after_sequence", f"is {sequence}, and the session's last sequence is {last_sequence}"
    ).with_metadata(last_sequence=str(last_sequence))


def _stopped(turn: TurnRecord) -> bool:
    return turn.status.ended or turn.status is TurnStatus.REQUIRES_ACTION


def _stop(turn: TurnRecord) -> tuple[str, int, TurnStatus]:
    # A turn may wait again and again, each time under another fence.
    return (turn.id, turn.fence, turn.status)


def _newly_stopped(feed: SessionFeed, told: set[tuple[str, int, TurnStatus]]) -> list[TurnRecord]:
    stopped = [turn for turn in feed.turns.values() if _stopped(turn) and _stop(turn) not in told]
    told &= {_stop(turn) for turn in feed.turns.values()}
    told |= {_stop(turn) for turn in stopped}
    return stopped


def _content(event: EventRecord, kind: TextKind) -> bytes:
    message = event_pb2.Event.FromString(event.payload)
    if kind is TextKind.THINKING:
        return message.thinking.content.encode()
    return message.agent_output.content.encode()
