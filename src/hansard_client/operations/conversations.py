"""Inputs and what comes of them; a session as it goes on. All of it outlasts broken streams."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import replace
from typing import Final, Generic, Protocol, TypeVar

from hansard.v1 import event_service_pb2 as wire
from hansard.v1 import session_service_pb2, turn_service_pb2
from hansard.v1.event_pb2 import Event, EventDraft
from hansard.v1.turn_pb2 import TURN_STATUS_FAILED, TURN_STATUS_QUEUED, Turn
from hansard_client import rpcs
from hansard_client.errors import DeadlineExceeded, HansardError, StreamCut, from_status
from hansard_client.inputs import Input, WhenBusy, fill, message
from hansard_client.items import (
    Accepted,
    Answer,
    Delta,
    RequiresAction,
    TurnEnd,
    TurnItem,
    Void,
    WatchItem,
)
from hansard_client.link import Link, Patience
from hansard_client.operations.values import Fields, Place, new_request_id, to_message
from hansard_client.resume import SessionTelling, TurnTelling

Item = TypeVar("Item")

_RENEW_S: Final = 15.0
"""A turn that runs elsewhere may end without a word; after so long its state is asked for."""


class TurnState(Protocol):
    """What is known of a turn that is followed."""

    turn_id: str
    session_uid: str
    sequence: int
    turn: Turn | None


class Following(Generic[Item]):
    """A turn that is followed.

    Attributes:
        items: what happens, to the turn's end.
        state: what is known of the turn.
        request_id: of the input.
    """

    def __init__(
        self, items: AsyncGenerator[Item, None], state: TurnState, request_id: str = ""
    ) -> None:
        self.items = items
        self.state = state
        self.request_id = request_id


def send(
    place: Place,
    given: Input,
    *,
    attach: Iterable[str] = (),
    when_busy: WhenBusy | None = None,
    expected_last_sequence: int | None = None,
    request_id: str | None = None,
) -> Following[Event]:
    """Send an input and yield the events of the turn that answers it, each when it is on record.

    Nothing is sent before the first event is asked for. A server that goes away in the middle is
    not noticed: the input is repeated under its `request_id`, which never runs it twice, and the
    events go on with the next one. The turn goes on even if nobody asks for more of it.

    Args:
        given: a text, a message, results of tools (`tool_output`, `approve`, `reject`), Interrupt
            or Compact.
        attach: artifacts of the session, by id, that the text goes with.
        when_busy: what is done while another turn is unfinished; by default it waits.
        expected_last_sequence: only if the session is idle and has got no further; 0: empty.
        request_id: by default a new one; the same one again follows the same turn again.

    Raises what SendEvent does (SessionBusy, SessionNotFound, …) and Unavailable, when no server
    could be reached for as long as the client's patience says.
    """
    request = _request(place, given, attach, when_busy, expected_last_sequence, request_id)
    request.deltas = wire.DELTA_MODE_NONE
    telling = TurnTelling(deltas=False)
    return Following(_events(_follow(place.link, request, telling)), telling, request.request_id)


def stream(
    place: Place,
    given: Input,
    *,
    attach: Iterable[str] = (),
    when_busy: WhenBusy | None = None,
    expected_last_sequence: int | None = None,
    request_id: str | None = None,
) -> Following[TurnItem]:
    """Send an input and yield all that happens: texts while they are made, events, the end.

    As `send`; besides the events there are `Delta`, `Void`, `Queued`, and last of all `TurnEnd` or
    `RequiresAction`. The deltas of an event are its content, byte for byte, and come before it. A
    server that goes away in the middle of a text is noticed only when that text will not be on
    record: then `Void` says so. No byte of a text is told twice.
    """
    request = _request(place, given, attach, when_busy, expected_last_sequence, request_id)
    telling = TurnTelling(deltas=True)
    return Following(_follow(place.link, request, telling), telling, request.request_id)


async def ask(
    place: Place,
    given: Input,
    *,
    attach: Iterable[str] = (),
    when_busy: WhenBusy | None = None,
    expected_last_sequence: int | None = None,
    request_id: str | None = None,
) -> Answer:
    """Send an input, wait for the turn's end, and return what the agent answered.

    As `send`. A turn that fails raises AgentProcessingFailed, ModelUnavailable or whatever its
    `error` says.
    """
    request = _request(place, given, attach, when_busy, expected_last_sequence, request_id)
    request.deltas = wire.DELTA_MODE_NONE
    telling = TurnTelling(deltas=False)
    text = ""
    async with aclosing(_follow(place.link, request, telling)) as items:
        async for item in items:
            if isinstance(item, Event):
                text = item.agent_output.content or item.structured_output.content_json or text
    turn = telling.turn or Turn()
    if turn.status == TURN_STATUS_FAILED:
        raise from_status(turn.error)
    return Answer(text, turn)


async def submit(
    place: Place,
    given: Input,
    *,
    attach: Iterable[str] = (),
    when_busy: WhenBusy | None = None,
    expected_last_sequence: int | None = None,
    request_id: str | None = None,
) -> Accepted:
    """Send an input and return when the session has taken it, without waiting for the answer.

    As `send`; `turns.follow`, or the same input under the same request_id, tells what comes of it.
    """
    request = _request(place, given, attach, when_busy, expected_last_sequence, request_id)
    request.deltas = wire.DELTA_MODE_NONE
    request.detach = True
    telling = TurnTelling(deltas=False)
    link = place.link
    patience = Patience(link, conflicts=False)
    answer: wire.SendEventResponse | None = None
    while True:
        reading = link.transport.stream(rpcs.SEND_EVENT, request, timeout_s=patience.attempt_s())
        try:
            answer = await reading.next()
            if answer is not None or request.HasField("interrupt"):
                break
            failure: HansardError = StreamCut("the stream ended before the input was accepted")
        except HansardError as error:
            failure = error
        finally:
            reading.cancel()
        await patience.wait(failure)
    patience.hear()
    for _ in telling.take(answer or wire.SendEventResponse()):
        pass
    return Accepted(
        telling.turn_id,
        telling.session_uid,
        telling.sequence,
        telling.position,
        request.request_id,
    )


async def interrupt(place: Place, turn_id: str = "") -> str:
    """End the running turn, or this one if it runs, and return its id; empty: none was running.

    What it had said stays on record, marked as cut.
    """
    accepted = await submit(place, wire.Interrupt(turn_id=turn_id))
    return accepted.turn_id


async def append(
    place: Place,
    events: Iterable[EventDraft | Fields],
    *,
    expected_last_sequence: int | None = None,
    request_id: str | None = None,
) -> wire.AppendEventsResponse:
    """Write one's own events, all of them or none, and return their ids and sequences.

    Args:
        events: at most 256 drafts, as messages or mappings
            (`{"custom": {"custom_type": "com.example.rating", "data_json": "5"}}`).
        expected_last_sequence: only if the session has got no further; 0: only if it is empty.
        request_id: by default a new one, under which the call is repeated when it breaks.

    Raises SessionBusy, SequenceMismatch, EventAlreadyExists, InvalidArgument and others.
    """
    drafts = [to_message(EventDraft(), event) for event in events]
    request = wire.AppendEventsRequest(
        **place.incarnation, request_id=request_id or new_request_id(), events=drafts
    )
    if expected_last_sequence is not None:
        request.expected_last_sequence = expected_last_sequence
    return await place.link.call(rpcs.APPEND_EVENTS, request)


def watch(place: Place, *, after_sequence: int = 0) -> AsyncGenerator[Event, None]:
    """Yield the events after a sequence, and then each new one as it is stored, for ever.

    Without gap or repeat, whatever becomes of servers and connections. Raises SessionNotFound when
    the session is deleted, CursorOutOfRange when it has not got so far.
    """
    telling = SessionTelling(after_sequence=after_sequence, deltas=False)
    return _events(_watch(place, telling, deltas=False))


def watch_all(
    place: Place, *, after_sequence: int = 0, deltas: bool = True
) -> AsyncGenerator[WatchItem, None]:
    """Yield the same and `CaughtUp`, `Changed`; with `deltas` also `Delta`, `Void`, ends of turns.

    The deltas of an event are its content and come before it, also for events that were on record
    already. What was hidden or deleted while no server could be reached is not told as `Changed`.
    """
    telling = SessionTelling(after_sequence=after_sequence, deltas=deltas)
    return _watch(place, telling, deltas=deltas)


class _Followed:
    """A turn that is followed by a watch."""

    def __init__(self, turn_id: str) -> None:
        self.turn_id = turn_id
        self.session_uid = ""
        self.sequence = 0
        self.turn: Turn | None = None


def follow(place: Place, turn_id: str) -> Following[TurnItem]:
    """Yield what happens in a turn, from its start to its end, whoever sent its input.

    As `stream`. Raises TurnNotFound, SessionNotFound.
    """
    state = _Followed(turn_id)
    return Following(_follow_turn(place, state), state)


async def get_turn(place: Place, turn_id: str) -> Turn:
    """Return a turn. Raises TurnNotFound, SessionNotFound."""
    request = turn_service_pb2.GetTurnRequest(**place.keys, turn_id=turn_id)
    return await place.link.call(rpcs.GET_TURN, request)


def _request(
    place: Place,
    given: Input,
    attach: Iterable[str],
    when_busy: WhenBusy | None,
    expected_last_sequence: int | None,
    request_id: str | None,
) -> wire.SendEventRequest:
    request = wire.SendEventRequest(**place.incarnation, request_id=request_id or new_request_id())
    if attached := list(attach):
        if not isinstance(given, str):
            raise ValueError("attach goes with a text; a message has its artifacts in itself")
        given = message(given, attach=attached)
    fill(request, given, when_busy)
    if expected_last_sequence is not None:
        request.expected_last_sequence = expected_last_sequence
    return request


async def _events(items: AsyncGenerator[Item, None]) -> AsyncGenerator[Event, None]:
    async with aclosing(items):
        async for item in items:
            if isinstance(item, Event):
                yield item


async def _follow(
    link: Link, request: wire.SendEventRequest, telling: TurnTelling
) -> AsyncGenerator[TurnItem, None]:
    """Yield the turn that the input makes, to its end. Changes the request."""
    patience = Patience(link, conflicts=False)
    while True:
        reading = link.transport.stream(rpcs.SEND_EVENT, request)
        try:
            while (answer := await reading.next()) is not None:
                patience.hear()
                for item in telling.take(answer):
                    patience.progress()
                    yield item
                if telling.turn is not None:
                    return
            if request.HasField("interrupt") and not telling.turn_id:
                # There was nothing to end.
                return
            failure: HansardError = StreamCut("the stream ended before the turn did")
        except HansardError as error:
            failure = error
        finally:
            reading.cancel()
        await patience.wait(failure)
        # The key may be used again for another session: the input is not for that one.
        request.session_uid = telling.session_uid or request.session_uid


class _UpToDate:
    """All that there was when a stream was opened has been told; once for each stream."""


async def _watch(
    place: Place, telling: SessionTelling, *, deltas: bool
) -> AsyncGenerator[WatchItem, None]:
    async with aclosing(_watch_streams(place, telling, deltas=deltas)) as items:
        again = False
        async for item in items:
            if not isinstance(item, _UpToDate):
                yield item
                continue
            # Ends of turns are told when they come, and may have come while nobody listened.
            for turn_id in telling.unheard() if again else ():
                for missed in telling.stopped(await get_turn(place, turn_id)):
                    yield missed
            again = True


async def _watch_streams(
    place: Place, telling: SessionTelling, *, deltas: bool, renew_s: float | None = None
) -> AsyncGenerator[WatchItem | _UpToDate, None]:
    """Yield what the telling makes of one stream after the other; `renew_s`: their longest life."""
    link, patience = place.link, Patience(place.link)
    while True:
        request = wire.WatchEventsRequest(
            **place.keys,
            session_uid=telling.session_uid or place.uid,
            after_sequence=telling.sequence,
            include_deltas=deltas,
        )
        reading = link.transport.stream(rpcs.WATCH_EVENTS, request, timeout_s=renew_s)
        try:
            while (answer := await reading.next()) is not None:
                patience.hear()
                for item in telling.take(answer):
                    patience.progress()
                    yield item
                if answer.HasField("caught_up"):
                    yield _UpToDate()
            failure: HansardError = StreamCut("the watch ended")
        except DeadlineExceeded as error:
            failure = error
            if renew_s is not None and patience.heard:
                patience.begin()
                continue
        except HansardError as error:
            failure = error
        finally:
            reading.cancel()
        await patience.wait(failure)


async def _follow_turn(place: Place, state: _Followed) -> AsyncGenerator[TurnItem, None]:
    session = await place.link.call(
        rpcs.GET_SESSION, session_service_pb2.GetSessionRequest(**place.keys)
    )
    turn = await get_turn(place, state.turn_id)
    # What still waits after the session was read begins behind all that there was.
    waits = turn.status == TURN_STATUS_QUEUED
    start = session.last_sequence if waits else max(turn.first_sequence - 1, 0)
    telling = SessionTelling(after_sequence=start, deltas=True)
    here = replace(place, uid=place.uid or session.uid)
    state.session_uid = here.uid
    streams = _watch_streams(here, telling, deltas=True, renew_s=_RENEW_S)
    async with aclosing(streams) as items:
        async for item in items:
            state.sequence = telling.sequence
            match item:
                case Event() if item.turn_id == turn.id:
                    yield item
                case Delta() | Void() if telling.turn_id == turn.id:
                    yield item
                case TurnEnd() | RequiresAction() if item.turn.id == turn.id:
                    state.turn = item.turn
                case _UpToDate():
                    now = await get_turn(here, turn.id)
                    if now.last_sequence <= telling.sequence:
                        for stop in telling.stopped(now):
                            state.turn = now
                            yield stop
            if state.turn is not None:
                if isinstance(item, TurnEnd | RequiresAction):
                    yield item
                return
