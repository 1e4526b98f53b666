"""Mirrors: the open texts of turns that other processes run, in the feeds of this one.

A mirror asks the turn's owner, and readers here see its text as if it were made here. Without the
owner's answer they see stored events only: these come from the store and need no mirror.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Protocol

import structlog

from hansard_server.agents.api import TextKind
from hansard_server.domain.errors import StoreUnavailable
from hansard_server.domain.records import Claim, SessionPulse, TurnStatus
from hansard_server.domain.values import dataclass
from hansard_server.turns.feeds import OpenText, SessionFeed, SessionUid

_log = structlog.get_logger("hansard.turns")

UNREACHABLE_S = 5.0
"""An owner that could not be reached is left alone for so long."""

TurnKey = tuple[str, str, str]
"""A turn: (tenant, session uid, turn id)."""


class PeerUnavailable(Exception):  # noqa: N818 - a state of affairs
    """The process can't be reached, or does not run the turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPiece:
    """More of an open text; `offset` in UTF-8 bytes, 0 for the first piece that is told."""

    event_id: str
    kind: TextKind
    offset: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerNews:
    """What the owner of a turn tells: the last event that is stored, and the text after it."""

    sequence: int
    piece: TextPiece | None


class Peers(Protocol):
    """The other processes of the store. Addresses are host:port, as their leases have them."""

    def follow_turn(self, address: str, turn: TurnKey) -> AsyncGenerator[PeerNews, None]:
        """Yield the turn's texts until it ends or leaves that process. Raises PeerUnavailable."""
        ...

    async def interrupt_turn(
        self, address: str, turn: TurnKey, reason: str, claim: Claim | None
    ) -> None:
        """Return when the owner has ended the turn. Raises PeerUnavailable."""
        ...


_NOTHING_TO_SHOW = contextlib.nullcontext()


@dataclass(slots=True, eq=False)
class _Mirror:
    """One turn that is followed at its owner's."""

    turn: TurnKey
    fence: int
    task: asyncio.Task[None]


class Mirrors:
    """Follows turns elsewhere for the readers of this process who want open texts."""

    def __init__(
        self,
        peers: Peers | None,
        *,
        own_address: str,
        catch_up: Callable[[SessionUid], Awaitable[None]],
    ) -> None:
        """Ask `peers`; without any there is nothing to mirror.

        `catch_up` brings a session's feed to what the store has.
        """
        self._peers = peers
        self._own_address = own_address
        self._catch_up = catch_up
        self._mirrors: dict[SessionUid, _Mirror] = {}
        self._unreachable: dict[str, float] = {}
        self._closed = False

    def showing(
        self, session: SessionUid, feed: SessionFeed, *, wanted: bool
    ) -> contextlib.AbstractContextManager[None]:
        """Have the session's open text in its feed until exit, wherever it is made."""
        if not wanted or self._peers is None:
            return _NOTHING_TO_SHOW
        return self._showing(session, feed)

    @contextlib.contextmanager
    def _showing(self, session: SessionUid, feed: SessionFeed) -> Iterator[None]:
        feed.delta_readers += 1
        try:
            if feed.pulse is not None:
                self.on_pulse(session, feed, feed.pulse)
            yield
        finally:
            feed.delta_readers -= 1
            if feed.delta_readers == 0:
                self._stop(session)

    def on_pulse(self, session: SessionUid, feed: SessionFeed, pulse: SessionPulse) -> None:
        """Follow the session's turn, or stop: as its pulse has it."""
        if self._peers is None or self._closed:
            return
        address = pulse.owner_address
        wanted = (
            feed.delta_readers > 0
            and pulse.turn_id is not None
            and pulse.turn_status is TurnStatus.RUNNING
            and address not in {"", self._own_address}
        )
        mirror = self._mirrors.get(session)
        if mirror is not None:
            same = (mirror.turn[2], mirror.fence) == (pulse.turn_id, pulse.turn_fence)
            if wanted and same:
                return
            self._stop(session)
        if wanted and pulse.turn_id is not None and self._may_ask(address):
            turn = (*session, pulse.turn_id)
            task = asyncio.create_task(self._follow(address, turn, feed), name="mirror")
            self._mirrors[session] = _Mirror(turn, pulse.turn_fence, task)

    async def close(self) -> None:
        """Follow nothing any more."""
        self._closed = True
        tasks = [mirror.task for mirror in self._mirrors.values()]
        for session in list(self._mirrors):
            self._stop(session)
        if tasks:
            await asyncio.wait(tasks)

    def __len__(self) -> int:
        """Return how many turns are followed."""
        return len(self._mirrors)

    def _stop(self, session: SessionUid) -> None:
        mirror = self._mirrors.pop(session, None)
        if mirror is not None:
            mirror.task.cancel()

    def _may_ask(self, address: str) -> bool:
        now = asyncio.get_running_loop().time()
        self._unreachable = {a: until for a, until in self._unreachable.items() if until > now}
        return address not in self._unreachable

    async def _follow(self, address: str, turn: TurnKey, feed: SessionFeed) -> None:
        session = turn[:2]
        try:
            with contextlib.suppress(StoreUnavailable):
                await self._show(address, turn, feed)
                # It has ended, or is in other hands: find out in whose.
                self._forget(session)
                await self._catch_up(session)
        except PeerUnavailable as error:
            _log.info("peer_unavailable", address=address, turn_id=turn[2], reason=str(error))
            loop = asyncio.get_running_loop()
            self._unreachable[address] = loop.time() + UNREACHABLE_S
        except Exception:  # noqa: BLE001 - logged with its traceback; readers have stored events
            _log.exception("mirror_failed", turn_id=turn[2])
        finally:
            self._forget(session)

    async def _show(self, address: str, turn: TurnKey, feed: SessionFeed) -> None:
        assert self._peers is not None  # noqa: S101 - for the type checker
        text: OpenText | None = None
        try:
            async with contextlib.aclosing(self._peers.follow_turn(address, turn)) as source:
                async for news in source:
                    if news.sequence > feed.last_sequence:
                        await self._catch_up(turn[:2])
                    text = _apply(news, turn[2], feed, text)
        finally:
            if text is not None and feed.text is text:
                feed.text = None
                feed.wake()

    def _forget(self, session: SessionUid) -> None:
        mirror = self._mirrors.get(session)
        if mirror is not None and mirror.task is asyncio.current_task():
            del self._mirrors[session]


def _apply(
    news: PeerNews, turn_id: str, feed: SessionFeed, text: OpenText | None
) -> OpenText | None:
    """Bring the feed's text to what the owner tells; return it. Raises PeerUnavailable."""
    piece = news.piece
    if piece is None:
        if text is not None and feed.text is text:
            feed.text = None
            feed.wake()
        return None
    if text is None or text.event_id != piece.event_id:
        text = OpenText(turn_id, piece.event_id, piece.kind, may_be_stored=True)
    if piece.offset != len(text.content):
        msg = "a piece of the text is missing"
        raise PeerUnavailable(msg)
    text.content += piece.text.encode()
    if news.sequence >= feed.last_sequence:
        # Else something was stored that the owner did not know of then: it may be this text.
        feed.text = text
        feed.wake()
    elif feed.text is text:
        feed.text = None
    return text
