"""The recorder: how a running turn writes. It implements agents.api.TurnRecorder."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hansard.v1 import event_pb2
from hansard_server.agents.api import MadeFile, Reach, Recent, TextKind
from hansard_server.domain.errors import EventAlreadyExists, EventNotFound, StoreUnavailable
from hansard_server.domain.keys import make_event_id
from hansard_server.domain.records import (
    AwaitedCall,
    EventType,
    PendingCall,
    TurnRecord,
    Usage,
)
from hansard_server.repository.api import ReadTx, Store
from hansard_server.repository.commands import ArtifactQuota, Draft, RecordStep, TurnRef
from hansard_server.turns import patience
from hansard_server.turns.feeds import OpenText, SessionFeed
from hansard_server.turns.payloads import make_draft, text_payload
from hansard_server.turns.record import RecordReader

# Every byte of a UTF-8 character but its first looks so.
_CONTINUATION_MASK = 0xC0
_CONTINUATION = 0x80
_HELD_MAX_EVENTS = 16
_HELD_MAX_BYTES = 64 * 1024
"""As long as the model does not pause, so much may wait before the text behind it is shown."""


class HandedOn(Exception):  # noqa: N818 - a state of affairs
    """The turn stops here, so that another process goes on with it."""


class Recorder:
    """Writes the events of one turn, under its lease.

    Raises LeaseLost from `show`, `flush` and `history` when the turn is in other hands, and
    HandedOn after `hand_on`.
    """

    def __init__(
        self,
        store: Store,
        feed: SessionFeed,
        turn: TurnRecord,
        *,
        text_max_bytes: int,
        artifact_quota: ArtifactQuota | None = None,
    ) -> None:
        """Write for `turn`; a text that grows beyond `text_max_bytes` becomes several events, and
        the session's artifacts stay within `artifact_quota`.
        """
        self._store = store
        self._feed = feed
        self._ref = turn_ref(turn)
        self._text_max_bytes = text_max_bytes
        self._artifact_quota = artifact_quota
        self._text: OpenText | None = None
        self._drafts: list[Draft] = []
        self._usage = Usage()
        self._open_calls = {call.tool_call_id for call in turn.open_calls}
        self._pending = {call.tool_call_id: call for call in turn.pending_calls}
        self._handing_on = asyncio.Event()
        self.awaited: tuple[AwaitedCall, ...] = ()
        """The calls that the turn is to wait for."""
        # A turn that compacts has the id of its one event from the beginning.
        compacts = turn.input_type is EventType.COMPACTION
        self._compaction_id = turn.input_event_id if compacts else None
        self._reader = RecordReader(store, turn, feed)

    async def show(self, kind: TextKind, text: str) -> None:
        """Show more of the open text; see the Protocol."""
        if not text:
            return
        if self._drafts:
            await self.flush()
        for piece in _pieces(text, self._text_max_bytes):
            room = self._text_max_bytes - (len(self._text.content) if self._text else 0)
            if self._text is not None and len(piece) > room:
                self.end_text()
                await self.flush()
            self._append(kind, piece)
            self._show_text()

    def put(self, kind: TextKind, text: str) -> bool:
        """Do what `show` does, if that takes no wait; see the Protocol."""
        piece = text.encode()
        size = len(piece) + (len(self._text.content) if self._text else 0)
        if size > self._text_max_bytes:
            return False
        if self._drafts:
            # Together they are one transaction, for which others wait.
            if len(self._drafts) >= _HELD_MAX_EVENTS or self._drafts_bytes() > _HELD_MAX_BYTES:
                return False
            self._append(kind, piece)
        elif piece:
            self._append(kind, piece)
            self._show_text()
        return True

    @property
    def holding(self) -> bool:
        """Whether a text waits to be shown; see the Protocol."""
        return bool(self._drafts) and self._text is not None

    def _append(self, kind: TextKind, piece: bytes) -> None:
        if self._text is None:
            self._text = OpenText(self._ref.turn_id, make_event_id(), kind)
        self._text.content += piece

    def _show_text(self) -> None:
        self._feed.text = self._text
        self._feed.wake()

    def _drafts_bytes(self) -> int:
        return sum(len(draft.payload) for draft in self._drafts)

    def end_text(self, provider_data: bytes = b"", *, partial: bool = False) -> None:
        """Make the open text an event that waits; see the Protocol."""
        text, self._text = self._text, None
        if text is not None:
            text.may_be_stored = True
            payload = text_payload(text.kind, text.content.decode(), provider_data, partial=partial)
            self._add_draft(make_draft(payload, event_id=text.event_id))

    @property
    def read_sequence(self) -> int:
        """The last sequence of the session that `history` has told the agent of."""
        return self._reader.read_sequence

    def add(
        self,
        payload: event_pb2.Event,
        files: Sequence[MadeFile] = (),
        hides: Sequence[int] = (),
    ) -> None:
        """Add an event that waits; see the Protocol."""
        event_id = self._compaction_id if payload.HasField("compaction") else None
        draft = make_draft(payload, event_id=event_id)
        if files or hides:
            artifacts = tuple(file.record for file in files)
            draft = replace(draft, artifacts=artifacts, hides=tuple(hides))
        self._add_draft(draft)

    def add_usage(self, usage: Usage) -> None:
        """Add to the turn's usage."""
        self._usage += usage

    @property
    def waiting(self) -> bool:
        """Whether an event waits to be written."""
        return bool(self._drafts)

    async def flush(self) -> None:
        """Return when everything that waits is on disk."""
        if not self._drafts:
            return
        drafts, usage = self.take()
        try:
            await self._write(drafts, usage)
        except StoreUnavailable:
            # Whoever ends the turn writes it.
            self.put_back(drafts, usage)
            raise
        if self._text is not None and self._feed.text is not self._text and not self._drafts:
            self._show_text()
        self._check_handing_on()

    @property
    def pending(self) -> Mapping[str, PendingCall]:
        """The open calls that somebody had been asked about; see the Protocol."""
        return self._pending

    async def begin(self, tool_call_ids: Sequence[str]) -> None:
        """Return when it is on disk that approved calls run; see the Protocol."""
        drafts, usage = self.take()
        await self._write(drafts, usage, begun=tuple(tool_call_ids))

    def require_action(self, calls: Sequence[AwaitedCall]) -> None:
        """Have the turn wait for somebody; see the Protocol."""
        self.awaited = tuple(calls)

    async def _write(
        self, drafts: tuple[Draft, ...], usage: Usage, *, begun: tuple[str, ...] = ()
    ) -> None:
        step = RecordStep(
            turn=self._ref, drafts=drafts, usage=usage, quota=self._artifact_quota, begun=begun
        )
        for pause_s in patience.STORE_PAUSES_S:
            try:
                await self._submit(step)
            except StoreUnavailable:
                # It may have taken effect all the same; then its ids are there already.
                await self._pause(pause_s, step)
            except EventAlreadyExists:
                if not await unwritten(self._store, self._ref, drafts):
                    await self._catch_up()
                    return
                step = replace(step, drafts=with_new_ids(step.drafts))
            else:
                return
        await self._submit(step)

    async def _submit(self, step: RecordStep) -> None:
        """Have the step done. When this is cancelled, what turns out not to be written waits again,
        for whoever ends the turn.
        """
        writing = asyncio.ensure_future(self._store.submit(step))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait([writing])
            if isinstance(writing.exception(), StoreUnavailable | EventAlreadyExists):
                self.put_back(step.drafts, step.usage)
            raise

    async def _catch_up(self) -> None:
        """Have the feed know of what is stored, since nobody has told it."""
        session = (self._ref.tenant, self._ref.session_uid)
        pulses = await patience.outlast(
            lambda: self._store.read(lambda tx: tx.read_pulses([session]))
        )
        pulse = pulses.get(session)
        if pulse is not None:
            self._feed.learn(pulse)

    async def _pause(self, seconds: float, step: RecordStep) -> None:
        """Wait for the store; raises HandedOn on a drain. Then, and when it is cancelled, what was
        to be written waits again, for whoever ends the turn.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._handing_on.wait()
        except TimeoutError:
            return
        except asyncio.CancelledError:
            self.put_back(step.drafts, step.usage)
            raise
        self.put_back(step.drafts, step.usage)
        raise HandedOn

    def take(self) -> tuple[tuple[Draft, ...], Usage]:
        """Return what waits, for whoever writes it; nothing waits then."""
        drafts, self._drafts = tuple(self._drafts), []
        usage, self._usage = self._usage, Usage()
        return drafts, usage

    def put_back(self, drafts: tuple[Draft, ...], usage: Usage) -> None:
        """Have what was taken wait again, since nobody wrote it."""
        self._drafts[:0] = drafts
        self._usage += usage

    def drop_text(self) -> None:
        """Forget the open text: it will not be stored, at least not by this process."""
        if self._text is not None and self._feed.text is self._text:
            self._feed.text = None
        self._text = None

    def hand_on(self) -> None:
        """Have the turn stop, by HandedOn, as soon as no tool call of it is open, or at once when
        it waits for a store that does not answer.
        """
        self._handing_on.set()

    def _check_handing_on(self) -> None:
        if self._handing_on.is_set() and not self._open_calls:
            raise HandedOn

    def _add_draft(self, draft: Draft) -> None:
        self._drafts.append(draft)
        if draft.opens is not None:
            self._open_calls.add(draft.opens.tool_call_id)
        elif draft.tool_call_id is not None:
            self._open_calls.discard(draft.tool_call_id)

    async def history(self, reach: Reach) -> Recent:
        """Return the newest visible events up to now; see the Protocol."""
        await self.flush()
        self._check_handing_on()
        return await self._reader.recent(reach)

    async def past(self, *, through: int, max_events: int, max_bytes: int) -> Recent:
        """Return the oldest visible events up to a sequence; see the Protocol."""
        return await self._reader.past(through=through, max_events=max_events, max_bytes=max_bytes)

    async def find_sequence(self, event_id: str) -> int:
        """Return where an event stands; see the Protocol."""
        return await self._reader.find_sequence(event_id)


async def unwritten(store: Store, turn: TurnRef, drafts: Sequence[Draft]) -> tuple[Draft, ...]:
    """Return those of a turn's events that are not stored: an earlier attempt may have taken effect
    that nobody heard of.
    """

    def is_there(tx: ReadTx, event_id: str) -> bool:
        try:
            event = tx.get_event(turn.tenant, turn.session_uid, event_id)
        except EventNotFound:
            return False
        return event.turn_id == turn.turn_id

    def read(tx: ReadTx) -> tuple[Draft, ...]:
        return tuple(draft for draft in drafts if not is_there(tx, draft.id))

    return await patience.outlast(lambda: store.read(read))


def with_new_ids(drafts: Sequence[Draft]) -> tuple[Draft, ...]:
    """Return the drafts under new ids: somebody else has given one of theirs to an event."""
    return tuple(replace(draft, id=make_event_id()) for draft in drafts)


def turn_ref(turn: TurnRecord) -> TurnRef:
    """Return the turn as its owner names it."""
    return TurnRef(
        tenant=turn.tenant, session_uid=turn.session_uid, turn_id=turn.id, fence=turn.fence
    )


def _pieces(text: str, max_bytes: int) -> list[bytes]:
    """Return the text as UTF-8, cut between characters so that no piece is larger."""
    data = text.encode()
    if len(data) <= max_bytes:
        return [data]
    pieces = []
    start = 0
    while start < len(data):
        end = min(start + max_bytes, len(data))
        while end < len(data) and data[end] & _CONTINUATION_MASK == _CONTINUATION:
            end -= 1
        pieces.append(data[start:end])
        start = end
    return pieces
