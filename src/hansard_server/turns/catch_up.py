"""Catch-up: brings feeds to what other processes have committed, by reading the store.

Hints say which sessions to look at; whatever they leave out is found by a look at all sessions that
are followed, by one statement, once in a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice

import structlog

from hansard_server.domain.errors import StoreUnavailable
from hansard_server.domain.records import EventRecord, SessionPulse, TurnRecord
from hansard_server.domain.values import dataclass
from hansard_server.repository.api import Change, EventScan, ReadTx, Store
from hansard_server.turns.feeds import (
    ALTERED_MAX,
    TAIL_MAX_BYTES,
    TAIL_MAX_EVENTS,
    TURNS_MAX,
    Altered,
    Feeds,
    SessionFeed,
    SessionUid,
)

_log = structlog.get_logger("hansard.turns")

PULSES_MAX = 5_000
"""Sessions of one statement."""
_SESSIONS_AT_ONCE = 32

OnPulse = Callable[[SessionUid, SessionFeed, SessionPulse], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What a feed knows of its session."""

    last_sequence: int
    alteration_count: int | None
    turn_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _News:
    """What the store has beyond that."""

    pulse: SessionPulse | None
    events: Sequence[EventRecord] = ()
    turns: Sequence[TurnRecord] = ()
    altered: Sequence[Altered] = ()


class CatchUp:
    """Keeps the feeds of this process up with the store."""

    def __init__(
        self,
        store: Store,
        feeds: Feeds,
        *,
        poll_floor_s: float,
        on_change: Callable[[Change], None],
        on_pulse: OnPulse,
    ) -> None:
        """Read from `store`; whatever comes to light is told to `on_change`, as a commit is.

        `on_pulse` hears of every followed session that was looked at.
        """
        self._store = store
        self._feeds = feeds
        self._poll_floor_s = poll_floor_s
        self._on_change = on_change
        self._on_pulse = on_pulse
        self._hinted: set[SessionUid] = set()
        self._all = False
        self._hint = asyncio.Event()

    def hint(self, sessions: Collection[SessionUid] | None) -> None:
        """Look at these sessions soon, as far as they are followed; None: at all."""
        if sessions is None:
            self._all = True
        else:
            followed = [session for session in sessions if self._feeds.get(session) is not None]
            if not followed:
                return
            self._hinted.update(followed)
        self._hint.set()

    async def run(self) -> None:
        """Look at what is hinted at, and at everything once in a while, for ever."""
        loop = asyncio.get_running_loop()
        next_poll = loop.time() + self._poll_floor_s
        while True:
            try:
                async with asyncio.timeout_at(next_poll):
                    await self._hint.wait()
            except TimeoutError:
                self._all = True
            try:
                if self._all:
                    next_poll = loop.time() + self._poll_floor_s
                await self._look(self._take())
            except StoreUnavailable:
                # What was hinted at is found by the next look at everything.
                _log.warning("catch_up_waits", reason=StoreUnavailable.reason)
            except Exception:  # noqa: BLE001 - logged with its traceback; the next round tries again
                _log.exception("catch_up_failed")

    async def now(self, session: SessionUid) -> None:
        """Return when the session's feed has what was stored before the call.

        Raises StoreUnavailable.
        """
        await self._look([session])

    def _take(self) -> Collection[SessionUid]:
        wanted = list(self._feeds.sessions) if self._all else self._hinted
        self._all = False
        self._hinted = set()
        self._hint.clear()
        return wanted

    async def _look(self, sessions: Iterable[SessionUid]) -> None:
        for keys in _batches(sessions, PULSES_MAX):
            pulses = await self._store.read(partial(_read_pulses, keys))
            behind = []
            for session in keys:
                feed = self._feeds.get(session)
                if feed is None:
                    continue
                pulse = pulses.get(session)
                if pulse is not None and feed.agrees_with(pulse):
                    feed.pulse = pulse
                    self._on_pulse(session, feed, pulse)
                elif not feed.deleted:
                    behind.append(session)
            for some in _batches(behind, _SESSIONS_AT_ONCE):
                await self._catch_up(some)

    async def _catch_up(self, sessions: Sequence[SessionUid]) -> None:
        known = {
            session: _known(feed)
            for session in sessions
            if (feed := self._feeds.get(session)) is not None
        }
        news = await self._store.read(lambda tx: _read(tx, known))
        for session, found in news.items():
            feed = self._feeds.get(session)
            if feed is not None:
                self._tell(session, feed, found)

    def _tell(self, session: SessionUid, feed: SessionFeed, found: _News) -> None:
        tenant, session_uid = session
        pulse = found.pulse
        if pulse is None or pulse.deleted:
            self._on_change(Change(tenant=tenant, session_uid=session_uid, deleted=True))
            return
        events = tuple(found.events)
        if (feed.alteration_count or 0) > pulse.alteration_count:
            # Read before an alteration that is known by now: events may have looked otherwise then.
            events = ()
        feed.pulse = pulse
        change = Change(
            tenant=tenant,
            session_uid=session_uid,
            events=events,
            turns=tuple(found.turns),
            altered=tuple(found.altered),
        )
        self._on_change(change)
        feed.learn(pulse)
        self._on_pulse(session, feed, pulse)


def _read_pulses(sessions: Collection[SessionUid], tx: ReadTx) -> Mapping[SessionUid, SessionPulse]:
    return tx.read_pulses(sessions)


def _known(feed: SessionFeed) -> _Known:
    unfinished = [turn.id for turn in feed.turns.values() if not turn.status.ended]
    if feed.pulse is not None and feed.pulse.turn_id is not None:
        unfinished.append(feed.pulse.turn_id)
    return _Known(
        last_sequence=feed.last_sequence,
        alteration_count=feed.alteration_count,
        turn_ids=tuple(unfinished),
    )


def _read(tx: ReadTx, known: dict[SessionUid, _Known]) -> dict[SessionUid, _News]:
    pulses = tx.read_pulses(known.keys())
    return {
        session: _read_news(tx, session, of, pulses.get(session)) for session, of in known.items()
    }


def _read_news(tx: ReadTx, session: SessionUid, known: _Known, pulse: SessionPulse | None) -> _News:
    if pulse is None or pulse.deleted:
        return _News(pulse=pulse)
    events: tuple[EventRecord, ...] = ()
    if pulse.last_sequence > known.last_sequence:
        scan = EventScan(
            limit=TAIL_MAX_EVENTS,
            max_bytes=TAIL_MAX_BYTES,
            max_rows=TAIL_MAX_EVENTS,
            after_sequence=known.last_sequence,
            descending=True,
            include_hidden=True,
        )
        events = tx.scan_events(*session, scan).events[::-1]
    # The newest turns, those that may have gone on first.
    wanted = dict.fromkeys((pulse.turn_id, *known.turn_ids))
    wanted |= dict.fromkeys(event.turn_id for event in reversed(events))
    turn_ids = [turn_id for turn_id in wanted if turn_id is not None][:TURNS_MAX]
    turns = tx.get_turns(*session, turn_ids) if turn_ids else ()
    altered: Sequence[Altered] = ()
    if known.alteration_count is not None and pulse.alteration_count > known.alteration_count:
        altered = tx.find_altered(*session, known.alteration_count, ALTERED_MAX)
    return _News(pulse=pulse, events=events, turns=turns, altered=altered)


def _batches(items: Iterable[SessionUid], size: int) -> Iterable[list[SessionUid]]:
    source = iter(items)
    while batch := list(islice(source, size)):
        yield batch
