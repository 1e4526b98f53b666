"""The recorder: how a running turn writes. It implements agents.api.TurnRecorder."""

from __future__ import annotations

from collections.abc import Sequence

from hansard.v1 import event_pb2
from hansard_server.agents.api import TextKind
from hansard_server.domain.keys import make_event_id
from hansard_server.domain.records import TurnRecord, Usage
from hansard_server.repository.api import EventScan, Store
from hansard_server.repository.commands import Draft, RecordStep, TurnRef
from hansard_server.turns.feeds import OpenText, SessionFeed
from hansard_server.turns.payloads import decode_event, make_draft, text_payload

# Every byte of a UTF-8 character but its first looks so.
_CONTINUATION_MASK = 0xC0
_CONTINUATION = 0x80
HISTORY_MAX_BYTES = 4 * 1024 * 1024
HISTORY_MAX_EVENTS = 1_000


class Recorder:
    """Writes the events of one turn, under its lease.

    Raises LeaseLost from `show`, `flush` and `history` when the turn is in other hands.
    """

    def __init__(
        self,
        store: Store,
        feed: SessionFeed,
        turn: TurnRecord,
        *,
        text_max_bytes: int,
    ) -> None:
        """Write for `turn`; a text that grows beyond `text_max_bytes` becomes several events."""
        self._store = store
        self._feed = feed
        self._ref = turn_ref(turn)
        self._text_max_bytes = text_max_bytes
        self._text: OpenText | None = None
        self._drafts: list[Draft] = []
        self._usage = Usage()

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
            if self._text is None:
                self._text = OpenText(self._ref.turn_id, make_event_id(), kind)
            self._text.content += piece
            self._feed.text = self._text
            self._feed.wake()

    def end_text(self, provider_data: bytes = b"", *, partial: bool = False) -> None:
        """Make the open text an event that waits; see the Protocol."""
        text, self._text = self._text, None
        if text is not None:
            payload = text_payload(text.kind, text.content.decode(), provider_data, partial=partial)
            self._drafts.append(make_draft(payload, event_id=text.event_id))

    def add(self, payload: event_pb2.Event) -> None:
        """Add an event that waits; see the Protocol."""
        self._drafts.append(make_draft(payload))

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
        await self._store.submit(RecordStep(turn=self._ref, drafts=drafts, usage=usage))

    def take(self) -> tuple[tuple[Draft, ...], Usage]:
        """Return what waits, for whoever writes it; nothing waits then."""
        drafts, self._drafts = tuple(self._drafts), []
        usage, self._usage = self._usage, Usage()
        return drafts, usage

    async def history(self) -> Sequence[event_pb2.Event]:
        """Return the newest visible events up to now; see the Protocol."""
        await self.flush()
        ref = self._ref
        scan = EventScan(
            limit=HISTORY_MAX_EVENTS,
            max_bytes=HISTORY_MAX_BYTES,
            max_rows=HISTORY_MAX_EVENTS,
            descending=True,
        )
        page = await self._store.read(lambda tx: tx.scan_events(ref.tenant, ref.session_uid, scan))
        return [decode_event(event) for event in reversed(page.events)]


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
