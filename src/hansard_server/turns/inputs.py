"""SendEvent and AppendEvents: inputs and drafts come in, turns and events come of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from dataclasses import replace

from hansard.v1 import event_pb2, event_service_pb2, turn_pb2, turn_service_pb2
from hansard_server.domain.clock import Clock, now_us
from hansard_server.domain.errors import (
    ArtifactNotFound,
    DomainError,
    EventNotFound,
    Unimplemented,
)
from hansard_server.domain.keys import make_event_id, make_turn_id
from hansard_server.domain.limits import PAGE_MAX_BYTES, SCAN_MAX_ROWS, Limits
from hansard_server.domain.records import Claim, EventType, TurnRecord, TurnStatus
from hansard_server.repository.api import EventScan, Store
from hansard_server.repository.commands import (
    Accepted,
    AcceptInput,
    AnswerCalls,
    AppendDrafts,
    Appended,
    CancelQueued,
    Draft,
    FindInterrupted,
    SessionName,
    WhenBusy,
)
from hansard_server.resources.fingerprints import fingerprint
from hansard_server.turns.answers import make_answers
from hansard_server.turns.drafts import (
    Reference,
    check_drafts,
    check_input,
    draft_references,
    fill_references,
    make_drafts,
    message_references,
)
from hansard_server.turns.engine import Interruption, TurnEngine
from hansard_server.turns.feeds import Feeds, SessionFeed
from hansard_server.turns.readers import InputQueued, Item, Readers, shutting_down

SendRequest = event_service_pb2.SendEventRequest
AppendRequest = event_service_pb2.AppendEventsRequest
CancelRequest = turn_service_pb2.CancelTurnRequest

_LATER = "this server does not serve {} yet"
_WHEN_BUSY = {
    event_service_pb2.WHEN_BUSY_UNSPECIFIED: WhenBusy.QUEUE,
    event_service_pb2.WHEN_BUSY_QUEUE: WhenBusy.QUEUE,
    event_service_pb2.WHEN_BUSY_REJECT: WhenBusy.REJECT,
    event_service_pb2.WHEN_BUSY_STEER: WhenBusy.STEER,
    # The running turn has been ended by then; what waits goes first.
    event_service_pb2.WHEN_BUSY_INTERRUPT: WhenBusy.QUEUE,
}
_BEYOND_ANY = 2**62

_Taken = tuple[Accepted, ExitStack, SessionFeed]
"""An input that was taken, and its session's feed, which the stack holds."""


class Inputs:
    """Takes what callers send to sessions."""

    def __init__(
        self,
        store: Store,
        feeds: Feeds,
        readers: Readers,
        engine: TurnEngine,
        limits: Limits,
        *,
        clock: Clock = now_us,
    ) -> None:
        """Write to `store`, run turns by `engine`, follow them by `readers`."""
        self._store = store
        self._feeds = feeds
        self._readers = readers
        self._engine = engine
        self._limits = limits
        self._clock = clock

    async def send(
        self, tenant: str, request: SendRequest
    ) -> AsyncGenerator[tuple[Accepted, Item], None]:
        """Take one input, and yield the items of its turn to the end.

        Raises what the contract says of SendEvent; nothing is stored then.
        """
        taken = await self._take(tenant, request)
        if taken is None:
            return
        accepted, held, feed = taken
        with held:
            position = await self._queue_position(accepted)
            if position:
                yield accepted, InputQueued(position)
                if request.detach:
                    return
            # Every generator that an item passes costs as much as making the item.
            async with aclosing(self._follow(accepted, feed, request)) as items:
                async for item in items:
                    yield accepted, item
                    if request.detach:
                        return

    async def _take(self, tenant: str, request: SendRequest) -> _Taken | None:
        """Take the input; None: there is nothing to tell of it."""
        kind = request.WhichOneof("input")
        if kind == "interrupt":
            return await self._interrupt(tenant, request)
        if kind == "input_message":
            return await self._take_message(tenant, request)
        if kind == "tool_results":
            return await self._take_results(tenant, request)
        if kind == "compact":
            return await self._take_compact(tenant, request)
        raise Unimplemented.of_field(str(kind), _LATER.format(f"inputs of the kind {kind}"))

    async def cancel(self, tenant: str, request: CancelRequest) -> TurnRecord:
        """End the turn, or take it back while it waits; return it as it is then.

        Raises what the contract says of CancelTurn.
        """
        name = SessionName(
            tenant=tenant, agent_key=request.agent_key, session_key=request.session_key
        )
        turn = await self._store.submit(CancelQueued(session=name, turn_id=request.turn_id))
        if turn.status.ended:
            return turn
        await self._engine.interrupt(turn, Interruption("the turn was cancelled"))
        return await self._store.read(lambda tx: tx.get_turn(tenant, turn.session_uid, turn.id))

    async def _take_message(self, tenant: str, request: SendRequest) -> _Taken:
        message = event_pb2.InputMessage()
        message.CopyFrom(request.input_message)
        check_input(message, "input_message", self._limits)
        name, fault = await self._fill(
            _session_name(tenant, request), message_references(message, "input_message")
        )
        draft = Draft(
            id=make_event_id(),
            type=EventType.INPUT_MESSAGE,
            payload=turn_pb2.TurnInput(input_message=message).SerializeToString(),
        )
        return await self._take_draft(request, name, draft, fault)

    async def _take_compact(self, tenant: str, request: SendRequest) -> _Taken:
        name = _session_name(tenant, request)
        fault: DomainError | None = None
        if request.compact.up_to_event_id:
            name, fault = await self._find_anchor(name, request.compact.up_to_event_id)
        draft = Draft(
            id=make_event_id(),
            type=EventType.COMPACTION,
            payload=turn_pb2.TurnInput(compact=request.compact).SerializeToString(),
        )
        return await self._take_draft(request, name, draft, fault)

    async def _find_anchor(
        self, name: SessionName, event_id: str
    ) -> tuple[SessionName, DomainError | None]:
        """Return the name bound to the incarnation that has the event, and its lack as a fault."""
        session = await self._store.read(lambda tx: tx.resolve_session(name))
        try:
            await self._store.read(lambda tx: tx.get_event(session.tenant, session.uid, event_id))
        except EventNotFound:
            fault = EventNotFound.of_field(
                "compact.up_to_event_id", f"there is no event {event_id!r} in the session"
            )
            return replace(name, uid=session.uid), fault
        return replace(name, uid=session.uid), None

    async def _take_draft(
        self, request: SendRequest, name: SessionName, draft: Draft, fault: DomainError | None
    ) -> _Taken:
        """Take the input that makes a turn of its own."""
        claim = _send_claim(request)
        fault = fault or self._engine.overload
        when_busy = _WHEN_BUSY[request.when_busy]
        if draft.type is EventType.COMPACTION and when_busy is WhenBusy.STEER:
            # It can't become a part of another turn.
            when_busy = WhenBusy.QUEUE
        if request.when_busy == event_service_pb2.WHEN_BUSY_INTERRUPT:
            await self._interrupt_for_input(
                FindInterrupted(
                    session=name,
                    claim=claim,
                    for_input=True,
                    needs_idle=_expected(request) is not None,
                    fault=fault,
                )
            )
        command = AcceptInput(
            session=name,
            turn_id=make_turn_id(),
            input=draft,
            when_busy=when_busy,
            queue_max_inputs=self._limits.queue_max_inputs,
            max_events=self._limits.session_max_events,
            lease=self._engine.lease,
            claim=claim,
            expected_last_sequence=_expected(request),
            fault=fault,
        )
        return await self._accept(command)

    async def _take_results(self, tenant: str, request: SendRequest) -> _Taken:
        """Answer calls that the session's turn waits for."""
        command = AnswerCalls(
            session=_session_name(tenant, request),
            answers=make_answers(request.tool_results, self._limits),
            lease=self._engine.lease,
            claim=_send_claim(request),
            expected_last_sequence=_expected(request),
            fault=self._engine.overload,
        )
        return await self._accept(command)

    async def _interrupt(self, tenant: str, request: SendRequest) -> _Taken | None:
        """End the session's turn, which is told from the event that says so; None: none runs."""
        claim = _send_claim(request)
        find = FindInterrupted(
            session=_session_name(tenant, request),
            turn_id=request.interrupt.turn_id or None,
            claim=claim,
        )
        found = await self._store.submit(find)
        accepted = found.claimed
        if accepted is None:
            if found.turn is None:
                return None
            # Ended even if the caller goes away meanwhile.
            from_sequence = await asyncio.shield(self._interrupt_found(find, found.turn))
            accepted = Accepted(
                turn=found.turn,
                input_event=None,
                position=None,
                claimed=True,
                last_sequence=found.last_sequence,
                from_sequence=from_sequence,
            )
        held = ExitStack()
        feed = held.enter_context(self._feeds.use(accepted.turn.tenant, accepted.turn.session_uid))
        return accepted, held, feed

    async def _interrupt_found(self, find: FindInterrupted, turn: TurnRecord) -> int:
        """End the turn; return the sequence from which on that is told."""
        await self._engine.interrupt(turn, Interruption("the user interrupted", find.claim))
        from_sequence = await self._find_interruption(turn)
        if find.claim is not None:
            # Also when somebody else has ended the turn, the same request again ends no other.
            await self._store.submit(replace(find, ended=turn, from_sequence=from_sequence))
        return from_sequence

    async def _interrupt_for_input(self, find: FindInterrupted) -> None:
        found = await self._store.submit(find)
        if found.claimed is None and found.turn is not None:
            await asyncio.shield(
                self._engine.interrupt(found.turn, Interruption("another input came"))
            )

    async def _find_interruption(self, turn: TurnRecord) -> int:
        """Return the sequence of the event that says that the turn was interrupted."""
        scan = EventScan(
            limit=1,
            max_bytes=PAGE_MAX_BYTES,
            max_rows=SCAN_MAX_ROWS,
            descending=True,
            types=frozenset({EventType.SESSION_INTERRUPTED}),
            turn_id=turn.id,
        )
        page = await self._store.read(
            lambda tx: tx.scan_events(turn.tenant, turn.session_uid, scan)
        )
        # None when the turn came to its end by itself: then that is all there is to tell.
        return page.events[0].sequence if page.events else _BEYOND_ANY

    async def append(self, tenant: str, request: AppendRequest) -> Appended:
        """Write a caller's events. Raises what the contract says of AppendEvents."""
        await check_drafts(request.events, self._limits)
        # Taken when defaults have been filled in: written out they are the same content.
        claim = _claim(request, "session_uid")
        name, fault = await self._fill(
            _session_name(tenant, request), draft_references(request.events)
        )
        return await self._store.submit(
            AppendDrafts(
                session=name,
                drafts=make_drafts(request.events, self._limits),
                claim=claim,
                expected_last_sequence=_expected(request),
                max_events=self._limits.session_max_events,
                fault=fault,
            )
        )

    async def _fill(
        self, name: SessionName, references: list[Reference]
    ) -> tuple[SessionName, DomainError | None]:
        """Fill in references; return the name bound to the incarnation that has them.

        A missing artifact is returned, not raised: it is no fault of a request that is repeated.
        """
        if not references:
            return name, None
        session = await self._store.read(lambda tx: tx.resolve_session(name))
        bound = replace(name, uid=session.uid)
        try:
            await fill_references(
                self._store, (session.tenant, session.uid), references, self._clock()
            )
        except ArtifactNotFound as fault:
            return bound, fault
        return bound, None

    async def _accept(self, command: AcceptInput | AnswerCalls) -> _Taken:
        """Take the input and start its turn, even if the caller goes away meanwhile.

        The session's feed is in use from before the turn's start: a reader misses nothing of it.
        """
        accepting = asyncio.ensure_future(self._accept_and_start(command))
        try:
            return await asyncio.shield(accepting)
        except asyncio.CancelledError:
            accepting.add_done_callback(_release)
            raise

    async def _accept_and_start(self, command: AcceptInput | AnswerCalls) -> _Taken:
        accepted = await self._store.submit(command)
        turn = accepted.turn
        held = ExitStack()
        feed = held.enter_context(self._feeds.use(turn.tenant, turn.session_uid))
        if _started(accepted):
            feed.seed(turn, accepted.input_event)
            self._engine.start(turn)
        elif isinstance(command, AnswerCalls) and not accepted.claimed:
            feed.put_turn(turn)
            if turn.status is TurnStatus.RUNNING:
                self._engine.start(turn)
        return accepted, held, feed

    async def _queue_position(self, accepted: Accepted) -> int | None:
        """Return where the input waits. Raises ServerShuttingDown on a drain."""
        turn = accepted.turn
        if self._feeds.draining:
            # What the input itself has written has not been sent.
            sent = accepted.last_sequence - (accepted.input_event is not None)
            if accepted.from_sequence:
                sent = min(sent, accepted.from_sequence - 1)
            raise shutting_down(turn.session_uid, sent)
        if accepted.claimed and turn.status is TurnStatus.QUEUED:
            return await self._store.read(
                lambda tx: tx.queue_position(turn.tenant, turn.session_uid, turn.number)
            )
        return accepted.position

    def _follow(
        self, accepted: Accepted, feed: SessionFeed, request: SendRequest
    ) -> AsyncGenerator[Item, None]:
        turn = accepted.turn
        from_sequence = accepted.from_sequence
        if turn.status is TurnStatus.QUEUED or (_started(accepted) and not turn.first_sequence):
            # Whatever it will be, it comes after all that there was when it was accepted.
            from_sequence = accepted.last_sequence + 1
        return self._readers.follow_turn(
            feed,
            turn,
            # Nothing of a turn that this call has started can have been missed.
            fresh=_started(accepted),
            from_sequence=from_sequence,
            deltas=request.deltas != event_service_pb2.DELTA_MODE_NONE,
        )


def _started(accepted: Accepted) -> bool:
    """Tell whether the input has just started its turn."""
    running = accepted.turn.status is TurnStatus.RUNNING
    return running and not accepted.claimed and not accepted.from_sequence


def _release(accepting: asyncio.Future[_Taken]) -> None:
    if not accepting.cancelled() and accepting.exception() is None:
        _, held, _ = accepting.result()
        held.close()


def _session_name(tenant: str, request: SendRequest | AppendRequest) -> SessionName:
    return SessionName(
        tenant=tenant,
        agent_key=request.agent_key,
        session_key=request.session_key,
        uid=request.session_uid or None,
    )


def _expected(request: SendRequest | AppendRequest) -> int | None:
    if request.HasField("expected_last_sequence"):
        return request.expected_last_sequence
    return None


def _claim(request: SendRequest | AppendRequest, *without: str) -> Claim | None:
    if not request.request_id:
        return None
    return Claim(request.request_id, fingerprint(request, "request_id", *without))


def _send_claim(request: SendRequest) -> Claim | None:
    if request.request_id and request.when_busy == event_service_pb2.WHEN_BUSY_UNSPECIFIED:
        # What is left out has the effect of its default, and is the same content.
        explicit = SendRequest()
        explicit.CopyFrom(request)
        explicit.when_busy = event_service_pb2.WHEN_BUSY_QUEUE
        request = explicit
    return _claim(request, "session_uid", "deltas", "detach")
