"""Forks: sessions that are made from others, in pieces, and appear when they are whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from hansard.v1 import event_pb2, session_pb2, turn_pb2
from hansard_server.domain import keys
from hansard_server.domain.clock import Clock, now_us
from hansard_server.domain.errors import (
    AgentNotFound,
    EventNotFound,
    QuotaExceeded,
    QuotaUse,
    SessionBusy,
    SessionNotFound,
    StoreUnavailable,
)
from hansard_server.domain.limits import Limits
from hansard_server.domain.records import (
    EventRecord,
    EventType,
    OpenCall,
    SessionRecord,
    SessionRef,
    TurnRecord,
    TurnStatus,
    Usage,
)
from hansard_server.domain.values import dataclass
from hansard_server.failpoints import hit
from hansard_server.repository.api import ReadTx, Store, WriteTx
from hansard_server.repository.commands import SessionName
from hansard_server.repository.forks import (
    ForkedTurn,
    ForkLost,
    ForkPlan,
    ForkRef,
    ForkTotals,
    SourceChanged,
)
from hansard_server.resources.sessions import ForkWish
from hansard_server.turns.payloads import close_call

T = TypeVar("T")

_AT_ONCE = 2
"""So many forks are copied at a time by one process; others wait for their turn."""
_TRIES = 5
_LOOK_AGAIN_S = 0.05
_LOOK_AGAIN_MAX_S = 1.0
_TURNS_AT_ONCE = 100
_TURNS_MAX_BYTES = 1024 * 1024
_CLOSED_AT_ONCE = 32
_ARTIFACTS_AT_ONCE = 100
_FORKED_JSON = '{"error":"the session was forked before the tool had answered"}'


class Forks:
    """Makes forks. Each runs as a task of its own: one that has a request_id goes on when its
    caller goes away, and the same request waits for it, here or on another replica.
    """

    def __init__(
        self, store: Store, limits: Limits, *, lease_s: float, clock: Clock = now_us
    ) -> None:
        """Make one for the process; a fork that shows no life for `lease_s` seconds is lost."""
        self._store = store
        self._limits = limits
        self._lease_s = lease_s
        self._clock = clock
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._tasks: set[asyncio.Task[SessionRecord]] = set()
        self._working: set[asyncio.Task[SessionRecord]] = set()

    async def recover(self) -> None:
        """Leave what an earlier process was copying to the purge; only for who is alone."""
        await self._store.write(lambda tx: tx.give_up_all_forks())

    async def close(self) -> None:
        """Give up what is being copied."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def make(self, wish: ForkWish) -> SessionRecord:
        """Return the new session, or the one that the request made before.

        Raises what `wish.admit` does; AgentNotFound, SessionNotFound, EventNotFound for the source,
        with the field; QuotaExceeded; SessionBusy when the source changed each time it was copied.
        """
        task = asyncio.create_task(self._make(wish), name="fork")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if wish.claim is None or task not in self._working:
                task.cancel()
            task.add_done_callback(_ignore_outcome)
            raise

    async def _make(self, wish: ForkWish) -> SessionRecord:
        tries, look_again_s = 0, _LOOK_AGAIN_S
        while tries < _TRIES:
            # Who is refused, or was served before, does not wait for others.
            made = await self._store.write(lambda tx: _look(tx, wish))
            if made is not None:
                return made
            async with self._slots:
                try:
                    made = await self._work(wish, keys.make_uid())
                except (SourceChanged, ForkLost):
                    tries += 1
                    continue
            if made is not None:
                return made
            # The same request is at work elsewhere.
            await asyncio.sleep(look_again_s)
            look_again_s = min(2 * look_again_s, _LOOK_AGAIN_MAX_S)
        msg = "events of the source were deleted, again and again, before they were copied"
        raise SessionBusy(msg, retry_after_s=1.0)

    async def _work(self, wish: ForkWish, uid: str) -> SessionRecord | None:
        """Return the new session; None when the same request is at work elsewhere."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - there is one, by how this is called
        self._working.add(task)
        done = False
        try:
            begun = await self._store.write(lambda tx: _begin(tx, wish, uid, self._lease_s))
            made = await self._copy(wish, begun) if isinstance(begun, ForkRef) else begun
            done = True
            return made
        finally:
            self._working.discard(task)
            if not done:
                # Should this fail too, the fork is given up when its time has run out.
                with suppress(StoreUnavailable):
                    await self._store.write(lambda tx: tx.give_up_fork(wish.tenant, uid))

    async def _copy(self, wish: ForkWish, ref: ForkRef) -> SessionRecord:
        hit("fork.begun")

        def read(tx: ReadTx) -> ForkPlan:
            source, through = _find_source(tx, wish)
            if source.uid != ref.source_uid:
                raise SourceChanged
            return tx.plan_fork(source, through)

        plan = await self._store.read(read)
        mentioned = await self._copy_events(ref, plan)
        files, size_bytes = await self._copy_artifacts(ref, mentioned)
        usage = await self._copy_turns(ref, plan)
        last_of_turn = await self._close_calls(ref, plan)
        hit("fork.copied")
        contents = _Contents(plan, usage, files, size_bytes, last_of_turn)
        return await self._store.write(lambda tx: _finish(tx, wish, ref, contents, self._clock()))

    async def _copy_events(self, ref: ForkRef, plan: ForkPlan) -> frozenset[str]:
        """Copy the events; return the artifacts that they mention."""
        mentioned: set[str] = set()
        start = looked_at = 0
        for end in plan.ends:
            piece, first = plan.sequences[start:end], start + 1
            await self._store.write(_event_piece(ref, piece, first))
            hit("fork.piece")
            mentioning = []
            while looked_at < len(plan.mentioning) and plan.mentioning[looked_at] <= end:
                mentioning.append(plan.mentioning[looked_at])
                looked_at += 1
            if mentioning:
                payloads = await self._payloads(ref, mentioning)
                mentioned.update(*map(_artifacts_of, payloads.values()))
            start = end
        return plan.artifact_ids & mentioned

    async def _copy_artifacts(self, ref: ForkRef, mentioned: frozenset[str]) -> tuple[int, int]:
        """Copy the artifacts; return how many there are, and their bytes. Raises QuotaExceeded."""
        if len(mentioned) > self._limits.session_artifacts_max_files:
            raise QuotaExceeded(
                f"the fork would have {len(mentioned)} artifacts, and may have "
                f"{self._limits.session_artifacts_max_files}",
                quota=QuotaUse.of_session(
                    ref.uid,
                    "session_artifacts_max_files",
                    limit=self._limits.session_artifacts_max_files,
                    used=0,
                ),
            )
        size_bytes = 0
        for ids in _pieces(sorted(mentioned), _ARTIFACTS_AT_ONCE):
            size_bytes += await self._store.write(_artifact_piece(ref, ids))
        if size_bytes > self._limits.session_artifacts_max_bytes:
            raise QuotaExceeded(
                f"the fork's artifacts would be {size_bytes} bytes, and may be "
                f"{self._limits.session_artifacts_max_bytes}",
                quota=QuotaUse.of_session(
                    ref.uid,
                    "session_artifacts_max_bytes",
                    limit=self._limits.session_artifacts_max_bytes,
                    used=0,
                ),
            )
        return len(mentioned), size_bytes

    async def _copy_turns(self, ref: ForkRef, plan: ForkPlan) -> Usage:
        """Copy the turns that have ended; return what they used."""
        usage = Usage()
        for piece in _turn_pieces(plan.turns):
            usage += await self._store.write(_turn_piece(ref, piece))
        return usage

    async def _close_calls(self, ref: ForkRef, plan: ForkPlan) -> dict[str | None, int]:
        """Write the outputs of open calls; return the last sequence of each turn that got some."""
        last_of_turn: dict[str | None, int] = {}
        sequence = len(plan.sequences)
        now = max(self._clock(), plan.last_event_at_us)
        for piece in _pieces(list(plan.open_calls.values()), _CLOSED_AT_ONCE):
            payloads = await self._payloads(ref, [call.sequence for call in piece])
            outputs = []
            for call in piece:
                sequence += 1
                outputs.append(_closing(payloads[call.sequence], call.turn_id, sequence, now))
                last_of_turn[call.turn_id] = sequence
            await self._store.write(_closing_piece(ref, outputs))
        return last_of_turn

    async def _payloads(self, ref: ForkRef, sequences: Sequence[int]) -> dict[int, bytes]:
        return await self._store.read(lambda tx: tx.get_payloads(ref.tenant, ref.uid, sequences))


@dataclass(frozen=True, slots=True)
class _Contents:
    """What a fork holds: of the plan, of the turns, of the artifacts, of the calls closed."""

    plan: ForkPlan
    usage: Usage
    files: int
    size_bytes: int
    last_of_turn: dict[str | None, int]


def _look(tx: WriteTx, wish: ForkWish) -> SessionRecord | None:
    """Return what the request made before; None when it may be made."""
    admitted = wish.admit(tx)
    if admitted.claimed:
        return admitted.record
    _find_source(tx, wish)
    return None


def _begin(tx: WriteTx, wish: ForkWish, uid: str, lease_s: float) -> ForkRef | SessionRecord | None:
    """Make the place for the fork; a record: it was made before; None: it is being made."""
    admitted = wish.admit(tx)
    if admitted.claimed:
        return admitted.record
    source, _ = _find_source(tx, wish)
    request_id = None if wish.claim is None else wish.claim.request_id
    ref = ForkRef(tenant=wish.tenant, uid=uid, source_uid=source.uid, lease_s=lease_s)
    return ref if tx.begin_fork(ref, admitted.record.agent_uid, request_id) else None


def _find_source(tx: ReadTx, wish: ForkWish) -> tuple[SessionRef, int]:
    """Return the source, and the sequence up to which it is copied."""
    origin = wish.source
    name = SessionName(
        tenant=wish.tenant,
        agent_key=origin.agent_key or wish.agent_key,
        session_key=origin.session_key,
    )
    try:
        source = tx.resolve_session(name)
    except AgentNotFound:
        raise AgentNotFound.of_field(
            "from_session.agent_key", f"there is no agent {name.agent_key!r}"
        ) from None
    except SessionNotFound:
        raise SessionNotFound.of_field(
            "from_session.session_key", f"there is no session {name.session_key!r}"
        ) from None
    if not origin.include_up_to_event_id:
        return source, source.last_sequence
    try:
        event = tx.get_event(wish.tenant, source.uid, origin.include_up_to_event_id)
    except EventNotFound:
        raise EventNotFound.of_field(
            "from_session.include_up_to_event_id",
            f"there is no event {origin.include_up_to_event_id!r} in the session",
        ) from None
    return source, event.sequence


def _finish(
    tx: WriteTx, wish: ForkWish, ref: ForkRef, contents: _Contents, now: int
) -> SessionRecord:
    """Write the session itself; it may have been made by the same request meanwhile."""
    admitted = wish.admit(tx)
    if admitted.claimed:
        tx.give_up_fork(ref.tenant, ref.uid)
        return admitted.record
    plan = contents.plan
    closed = max(contents.last_of_turn.values(), default=0)
    last_sequence = max(len(plan.sequences), closed)
    turn = _cut_turn(ref, contents, now)
    usage = contents.usage if turn is None else contents.usage + turn.usage
    origin = session_pb2.ForkOrigin(
        agent_key=plan.source.agent_key,
        session_key=plan.source.key,
        session_uid=plan.source.uid,
        event_id=plan.last_event_id,
        last_sequence=last_sequence,
        usage=turn_pb2.Usage(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            reasoning_tokens=usage.reasoning_tokens,
        ),
        artifact_files=contents.files,
        artifact_bytes=contents.size_bytes,
    )
    record = replace(
        admitted.record,
        uid=ref.uid,
        forked_from=origin.SerializeToString(deterministic=True),
        # It appears now: lists by creation that are read meanwhile don't miss it.
        created_at_us=now,
        updated_at_us=now,
    )
    totals = ForkTotals(
        last_sequence=last_sequence,
        last_event_at_us=max(plan.last_event_at_us, now if closed else 0),
        turn_count=len(plan.turns) + (turn is not None),
        usage=usage,
        artifact_files=contents.files,
        artifact_bytes=contents.size_bytes,
    )
    tx.finish_fork(record, wish.claim, totals, turn)
    return record


def _cut_turn(ref: ForkRef, contents: _Contents, now: int) -> TurnRecord | None:
    """Return the turn that is not whole as it stands in the fork; None when there is none."""
    if contents.plan.cut_turn is None:
        return None
    copy, original = contents.plan.cut_turn
    # Of a turn that an event's id cut nobody knows what this part of it used.
    cut_short = contents.plan.source_through < original.last_sequence
    return replace(
        original,
        session_uid=ref.uid,
        number=copy.number,
        status=TurnStatus.INTERRUPTED,
        input=original.input if copy.first_event_id == original.input_event_id else b"",
        first_sequence=copy.first_sequence,
        last_sequence=contents.last_of_turn.get(copy.id, copy.last_sequence),
        pending_calls=(),
        error=b"",
        usage=Usage() if cut_short else original.usage,
        open_calls=(),
        taken_sequence=0,
        steered_sequence=0,
        fence=0,
        ended_at_us=now,
    )


def _event_piece(ref: ForkRef, sequences: Sequence[int], first: int) -> Callable[[WriteTx], None]:
    return lambda tx: tx.copy_fork_events(ref, sequences, first)


def _artifact_piece(ref: ForkRef, ids: Sequence[str]) -> Callable[[WriteTx], int]:
    return lambda tx: tx.copy_fork_artifacts(ref, ids)


def _turn_piece(ref: ForkRef, turns: Sequence[ForkedTurn]) -> Callable[[WriteTx], Usage]:
    return lambda tx: tx.copy_fork_turns(ref, turns)


def _closing_piece(ref: ForkRef, events: Sequence[EventRecord]) -> Callable[[WriteTx], None]:
    return lambda tx: tx.write_fork_events(ref, events)


def _artifacts_of(payload: bytes) -> Iterator[str]:
    """Yield the ids of the artifacts that an event mentions."""
    event = event_pb2.Event.FromString(payload)
    match event.WhichOneof("payload"):
        case "input_message":
            for part in event.input_message.messages:
                if part.HasField("artifact"):
                    yield part.artifact.artifact_id
        case "artifact_upload":
            for artifact in event.artifact_upload.artifacts:
                yield artifact.artifact_id
        case "tool_output" if event.tool_output.HasField("offloaded_artifact"):
            yield event.tool_output.offloaded_artifact.artifact_id
        case "image_read":
            yield event.image_read.artifact_id
        case _:
            pass


def _closing(payload: bytes, turn_id: str | None, sequence: int, now: int) -> EventRecord:
    """Return the output that closes a call, given its tool_input."""
    call = event_pb2.Event.FromString(payload).tool_input
    open_call = OpenCall(call.tool_call_id, call.tool_configuration_name, call.tool_name)
    draft = close_call(open_call, _FORKED_JSON)
    return EventRecord(
        id=draft.id,
        sequence=sequence,
        type=EventType.TOOL_OUTPUT,
        turn_id=turn_id,
        created_at_us=now,
        payload=draft.payload,
        tool_call_id=draft.tool_call_id,
    )


def _turn_pieces(turns: Sequence[ForkedTurn]) -> Iterator[list[ForkedTurn]]:
    piece: list[ForkedTurn] = []
    size_bytes = 0
    for turn in turns:
        full = len(piece) >= _TURNS_AT_ONCE or size_bytes + turn.size_bytes > _TURNS_MAX_BYTES
        if piece and full:
            yield piece
            piece, size_bytes = [], 0
        piece.append(turn)
        size_bytes += turn.size_bytes
    if piece:
        yield piece


def _pieces(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _ignore_outcome(task: asyncio.Task[SessionRecord]) -> None:
    if not task.cancelled():
        task.exception()
