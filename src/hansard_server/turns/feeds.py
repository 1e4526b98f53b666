"""Feeds: what is new in sessions that somebody follows or works on, in this process.

A feed is a short cut and a wake-up, never the record: a reader that finds a gap in it reads the
store. So it may forget, and its memory is bounded however many read and however slowly.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from hansard_server.agents.api import TextKind
from hansard_server.domain.records import EventRecord, TurnRecord
from hansard_server.repository.api import Change

TAIL_MAX_EVENTS = 64
TAIL_MAX_BYTES = 256 * 1024
TURNS_MAX = 16
CHANGED_MAX = 256

SessionUid = tuple[str, str]
"""(tenant, session uid)."""


@dataclass(slots=True)
class OpenText:
    """A text that is being made: the id that its event will have, and what there is of it."""

    turn_id: str
    event_id: str
    kind: TextKind
    content: bytearray = field(default_factory=bytearray)


@dataclass(slots=True)
class SessionFeed:
    """The newest events of one session, the text that is open in it, and a wake-up."""

    text: OpenText | None = None
    deleted: bool = False
    forgot_turns: bool = False
    """A turn that is not in `turns` may have gone on unseen."""
    last_sequence: int = 0
    version: int = 0
    users: int = 0
    turns: OrderedDict[str, TurnRecord] = field(default_factory=OrderedDict)
    _tail: deque[EventRecord] = field(default_factory=deque)
    _tail_bytes: int = 0
    _changed: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=CHANGED_MAX))
    _changed_count: int = 0
    _waiters: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        """Wake everybody who waits."""
        self.version += 1
        self._waiters.set()
        self._waiters = asyncio.Event()

    async def wait(self, seen_version: int, timeout_s: float) -> None:
        """Return when something has come since `seen_version`, or when the time is over."""
        if self.version != seen_version:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._waiters.wait()

    def apply(self, change: Change) -> None:
        """Take in what a commit did."""
        for event in change.events:
            self._add(event)
        for turn in change.turns:
            self._put_turn(turn)
        if change.changed_ids:
            # What the tail holds may not be so any more.
            self._tail.clear()
            self._tail_bytes = 0
        for event_id in change.changed_ids:
            self._changed_count += 1
            self._changed.append((self._changed_count, event_id))
        self.deleted = self.deleted or change.deleted
        self.wake()

    def seed(self, turn: TurnRecord, event: EventRecord) -> None:
        """Take in a turn and its input, which were stored before the feed was in use."""
        self.turns.setdefault(turn.id, turn)
        self._add(event)

    def events_after(self, sequence: int) -> list[EventRecord] | None:
        """Return the events after a sequence without a gap; None: the store has to be read."""
        if self.last_sequence <= sequence:
            return []
        if not self._tail or self._tail[0].sequence > sequence + 1:
            return None
        return [event for event in self._tail if event.sequence > sequence]

    def changed_after(self, count: int) -> tuple[int, list[str]]:
        """Return the count of changes, and the events that changed after the `count`-th one."""
        return self._changed_count, [id_ for number, id_ in self._changed if number > count]

    def _put_turn(self, turn: TurnRecord) -> None:
        known = self.turns.get(turn.id)
        # Commits of several threads may be told out of order.
        if known is not None and _age(known) > _age(turn):
            return
        self.turns[turn.id] = turn
        self.turns.move_to_end(turn.id)
        if len(self.turns) > TURNS_MAX:
            self.turns.popitem(last=False)
            self.forgot_turns = True

    def _add(self, event: EventRecord) -> None:
        if event.sequence <= self.last_sequence:
            return
        if event.sequence != self.last_sequence + 1:
            self._tail.clear()
            self._tail_bytes = 0
        self.last_sequence = event.sequence
        self._tail.append(event)
        self._tail_bytes += len(event.payload)
        while len(self._tail) > TAIL_MAX_EVENTS or self._tail_bytes > TAIL_MAX_BYTES:
            self._tail_bytes -= len(self._tail.popleft().payload)
            if not self._tail:
                break
        if self.text is not None and self.text.event_id == event.id:
            self.text = None


def _age(turn: TurnRecord) -> tuple[int, int, int]:
    return (turn.fence, int(turn.status), turn.last_sequence)


class Feeds:
    """The feeds of all sessions that somebody uses in this process."""

    def __init__(self) -> None:
        """Start with none."""
        self._feeds: dict[SessionUid, SessionFeed] = {}
        self.draining = False

    @contextlib.contextmanager
    def use(self, tenant: str, session_uid: str) -> Iterator[SessionFeed]:
        """Hold the session's feed; it takes in every commit of this process until exit."""
        key = (tenant, session_uid)
        feed = self._feeds.setdefault(key, SessionFeed())
        feed.users += 1
        try:
            yield feed
        finally:
            feed.users -= 1
            if feed.users == 0:
                del self._feeds[key]

    def on_change(self, change: Change) -> None:
        """Take in what a commit did; to be given to Store.listen."""
        feed = self._feeds.get((change.tenant, change.session_uid))
        if feed is not None:
            feed.apply(change)

    def drain(self) -> None:
        """Have every reader end its stream."""
        self.draining = True
        for feed in self._feeds.values():
            feed.wake()

    def __len__(self) -> int:
        """Return how many sessions are in use."""
        return len(self._feeds)
