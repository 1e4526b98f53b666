"""Feeds: what is new in sessions that somebody follows or works on, in this process.

A feed is a short cut and a wake-up, never the record: a reader that finds a gap in it reads the
store. So it may forget, and its memory is bounded however many read and however slowly.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import field

from hansard_server.agents.api import TextKind
from hansard_server.domain.records import EventRecord, SessionPulse, TurnRecord
from hansard_server.domain.values import dataclass
from hansard_server.repository.api import Change
from hansard_server.turns.turnstile import Turnstile

TAIL_MAX_EVENTS = 256
TAIL_MAX_BYTES = 256 * 1024
TURNS_MAX = 16
ALTERED_MAX = 256

SessionUid = tuple[str, str]
"""(tenant, session uid)."""
Altered = tuple[int, str]
"""The number of an alteration, and the event that it changed."""


@dataclass(slots=True)
class OpenText:
    """A text that is being made: the id that its event will have, and what there is of it.

    `may_be_stored`: its event may be stored before that is heard here, since the text has ended or
    another process makes it.
    """

    turn_id: str
    event_id: str
    kind: TextKind
    content: bytearray = field(default_factory=bytearray)
    may_be_stored: bool = False


@dataclass(slots=True)
class StoredEvent:
    """An event, which is on disk. All readers of a session are given the same object.

    `encoded` is for whoever serves them: what the event is on the wire, made once.
    """

    event: EventRecord
    encoded: bytes | None = field(default=None, compare=False, repr=False)


@dataclass(slots=True)
class SessionFeed:
    """The newest events of one session, the text that is open in it, and a wake-up.

    The event of `text` is none of those up to `last_sequence`.

    Attributes:
        pulse: how the session was when it was last compared with the store.
        alteration_count: how many alterations of the session are known; None: nobody has looked.
        delta_readers: how many readers want the open text.
    """

    text: OpenText | None = None
    deleted: bool = False
    forgot_turns: bool = False
    """A turn that is not in `turns` may have gone on unseen."""
    last_sequence: int = 0
    version: int = 0
    users: int = 0
    delta_readers: int = 0
    pulse: SessionPulse | None = None
    alteration_count: int | None = None
    turns: OrderedDict[str, TurnRecord] = field(default_factory=OrderedDict)
    _tail: deque[StoredEvent] = field(default_factory=deque)
    _tail_bytes: int = 0
    _altered: deque[Altered] = field(default_factory=deque)
    _altered_since: int = 0
    _waiters: deque[asyncio.Future[None]] = field(default_factory=deque)
    _turnstile: Turnstile = field(default_factory=Turnstile)

    def wake(self) -> None:
        """Wake everybody who waits, a few at a time."""
        self.version += 1
        if self._waiters:
            self._turnstile.admit(self._waiters)
            self._waiters = deque()

    async def wait(self, seen_version: int) -> None:
        """Return when something has come since `seen_version`."""
        if self.version != seen_version:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)
            raise

    def apply(self, change: Change) -> None:
        """Take in what a commit did."""
        for event in change.events:
            self._add(event)
        for turn in change.turns:
            self.put_turn(turn)
        if change.altered:
            self._alter(change.altered)
        self.deleted = self.deleted or change.deleted
        self.wake()

    def seed(self, turn: TurnRecord, event: EventRecord | None) -> None:
        """Take in a turn and its input, which were stored before the feed was in use."""
        self.turns.setdefault(turn.id, turn)
        if event is not None:
            self._add(event)

    def learn(self, pulse: SessionPulse) -> None:
        """Take in how the session is, for a reader that begins with what the store has."""
        if self.pulse is None:
            self.pulse = pulse
        if self.alteration_count is None:
            self.alteration_count = self._altered_since = pulse.alteration_count
        self._pass_over(pulse.last_sequence)

    def agrees_with(self, pulse: SessionPulse) -> bool:
        """Tell whether the feed knows all that the session's pulse tells of."""
        if pulse == self.pulse:
            return True
        running = None if pulse.turn_id is None else self.turns.get(pulse.turn_id)
        known = pulse.turn_id is None or (
            running is not None
            and (running.status, running.fence) == (pulse.turn_status, pulse.turn_fence)
        )
        others = any(not t.status.ended and t.id != pulse.turn_id for t in self.turns.values())
        earlier = None if self.pulse is None else self.pulse.turn_id
        return (
            known
            and not others
            # Else it may have ended without an event.
            and (earlier in {None, pulse.turn_id} or earlier in self.turns)
            and not pulse.deleted
            and pulse.last_sequence <= self.last_sequence
            and pulse.alteration_count == (self.alteration_count or 0)
        )

    def events_after(self, sequence: int) -> list[StoredEvent] | None:
        """Return the events after a sequence without a gap; None: the store has to be read."""
        if self.last_sequence <= sequence:
            return []
        if not self._tail or self._tail[0].event.sequence > sequence + 1:
            return None
        first = self._tail[0].event.sequence
        return [self._tail[place] for place in range(sequence + 1 - first, len(self._tail))]

    def events_from(self, sequence: int) -> list[StoredEvent] | None:
        """Return that event and all after it; None: the feed has not all of them."""
        if not self._tail or not self._tail[0].event.sequence <= sequence <= self.last_sequence:
            return None
        return self.events_after(sequence - 1)

    def altered_after(self, number: int) -> list[Altered] | None:
        """Return the alterations after the `number`-th; None: the store has to be read."""
        if number >= (self.alteration_count or 0):
            return []
        if number < self._altered_since:
            return None
        return [altered for altered in self._altered if altered[0] > number]

    def put_turn(self, turn: TurnRecord) -> None:
        """Take in how a turn is, unless more is known of it."""
        known = self.turns.get(turn.id)
        # Commits of several threads may be told out of order.
        if known is not None and _age(known) > _age(turn):
            return
        self.turns[turn.id] = turn
        self.turns.move_to_end(turn.id)
        if len(self.turns) > TURNS_MAX:
            self.turns.popitem(last=False)
            self.forgot_turns = True
        # The news of its events may be late, or lost.
        self._pass_over(turn.last_sequence)

    def _alter(self, altered: Sequence[Altered]) -> None:
        # What the tail holds may not be so any more.
        self._forget_tail()
        known = self.alteration_count
        first, last = altered[0][0], altered[-1][0]
        if known is not None and last <= known:
            return
        if known is None or first > known + 1:
            # What lies between is in the store.
            self._altered.clear()
            self._altered_since = first - 1
        self.alteration_count = last
        self._altered.extend(a for a in altered if a[0] > (known or 0))
        while len(self._altered) > ALTERED_MAX:
            self._altered_since = self._altered.popleft()[0]

    def _pass_over(self, last_sequence: int) -> None:
        """Leave the events up to there, as far as they are not known, to the store."""
        if last_sequence > self.last_sequence:
            self._forget_tail()
            self.last_sequence = last_sequence
            self.wake()

    def _forget_tail(self) -> None:
        self._tail.clear()
        self._tail_bytes = 0
        if self.text is not None and self.text.may_be_stored:
            # Its event may be among what has been passed over.
            self.text = None

    def _add(self, event: EventRecord) -> None:
        if event.sequence <= self.last_sequence:
            return
        if event.sequence != self.last_sequence + 1:
            self._forget_tail()
        self.last_sequence = event.sequence
        self._tail.append(StoredEvent(event))
        self._tail_bytes += len(event.payload)
        while len(self._tail) > TAIL_MAX_EVENTS or self._tail_bytes > TAIL_MAX_BYTES:
            self._tail_bytes -= len(self._tail.popleft().event.payload)
            if not self._tail:
                break
        if self.text is not None and self.text.event_id == event.id:
            self.text = None


def _age(turn: TurnRecord) -> tuple[int, int, int]:
    return (turn.fence, int(turn.status), turn.last_sequence)


class Use:
    """A feed that is held while this is entered. Every stream has one, so it is small."""

    __slots__ = ("_feeds", "_session", "_turnstile")

    def __init__(
        self, feeds: dict[SessionUid, SessionFeed], session: SessionUid, turnstile: Turnstile
    ) -> None:
        self._feeds = feeds
        self._session = session
        self._turnstile = turnstile

    def __enter__(self) -> SessionFeed:
        feed = self._feeds.get(self._session)
        if feed is None:
            feed = self._feeds[self._session] = SessionFeed(_turnstile=self._turnstile)
        feed.users += 1
        return feed

    def __exit__(self, *_: object) -> None:
        feed = self._feeds[self._session]
        feed.users -= 1
        if feed.users == 0:
            del self._feeds[self._session]


class Feeds:
    """The feeds of all sessions that somebody uses in this process."""

    def __init__(self, *, hurried: Callable[[], bool] = lambda: False) -> None:
        """Start with none; `hurried` tells whether a call waits for its answer."""
        self._feeds: dict[SessionUid, SessionFeed] = {}
        self._turnstile = Turnstile(hurried=hurried)
        self.draining = False

    def use(self, tenant: str, session_uid: str) -> Use:
        """Hold the session's feed; it takes in every commit of this process until exit."""
        return Use(self._feeds, (tenant, session_uid), self._turnstile)

    def get(self, session: SessionUid) -> SessionFeed | None:
        """Return the session's feed, if it is in use."""
        return self._feeds.get(session)

    @property
    def sessions(self) -> Collection[SessionUid]:
        """The sessions whose feeds are in use."""
        return self._feeds.keys()

    @property
    def turnstile(self) -> Turnstile:
        """What all readers pass through."""
        return self._turnstile

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
