"""Turns, followed to their end through broken connections and restarts; nothing comes twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import grpc

from hansard.v1 import event_pb2, event_service_pb2, turn_pb2, turn_service_pb2
from hansard_client.connection import Connection
from hansard_client.errors import StreamCut

_UNFINISHED = (turn_pb2.TURN_STATUS_QUEUED, turn_pb2.TURN_STATUS_RUNNING)


@dataclass(frozen=True, slots=True)
class Piece:
    """More of a text: `thinking` or `agent_output`, the field of the event that it belongs to."""

    event_id: str
    field: str
    text: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """The text that was shown under this id will not be part of the record."""

    event_id: str


@dataclass(frozen=True, slots=True)
class Stored:
    """An event, which is on record. Its text, if it has one, has come in pieces."""

    event: event_pb2.Event


@dataclass(frozen=True, slots=True)
class Waiting:
    """The input waits for the turns before it; 1 is the next to run."""

    position: int


@dataclass(frozen=True, slots=True)
class Broken:
    """The stream broke; it is being taken up again."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The turn has ended, or waits for somebody. The last item."""

    turn: turn_pb2.Turn


Item = Piece | Dropped | Stored | Waiting | Broken | Stopped


class _Shown:
    """What has been given so far: all events up to a sequence, and some bytes of the open text."""

    def __init__(self, sequence: int = 0) -> None:
        self.sequence = sequence
        self._open_id = ""
        self._open_bytes = 0
        self._finished: set[str] = set()

    def delta(self, delta: event_service_pb2.Delta) -> Iterator[Item]:
        """Yield what is new of the text."""
        if delta.event_id in self._finished:
            return
        thought = delta.kind == event_service_pb2.DELTA_KIND_THINKING
        field = "thinking" if thought else "agent_output"
        yield from self._text(delta.event_id, field, delta.offset, delta.text.encode())

    def stored(self, event: event_pb2.Event) -> Iterator[Item]:
        """Yield the event, and before it what is new of its text, unless it has been given."""
        if event.sequence <= self.sequence:
            return
        self.sequence = event.sequence
        field = event.WhichOneof("payload") or ""
        if field in {"thinking", "agent_output"}:
            yield from self._text(event.id, field, 0, getattr(event, field).content.encode())
            self._finished.add(event.id)
            self._open_id = ""
        yield Stored(event)

    def dropped(self, event_id: str = "") -> Iterator[Item]:
        """Yield that the open text, if it is this one, is none."""
        if self._open_id and event_id in {"", self._open_id}:
            yield Dropped(self._open_id)
            self._open_id = ""

    def _text(self, event_id: str, field: str, offset: int, data: bytes) -> Iterator[Item]:
        if self._open_id != event_id:
            yield from self.dropped()
            self._open_id, self._open_bytes = event_id, 0
        new = data[max(0, self._open_bytes - offset) :]
        self._open_bytes = max(self._open_bytes, offset + len(data))
        if new:
            yield Piece(event_id, field, new.decode())


def send(connection: Connection, request: event_service_pb2.SendEventRequest) -> Iterator[Item]:
    """Yield the turn that the input makes, to its end.

    The request's `request_id` makes the repetition safe that takes up a broken stream: the server
    runs the input once, and tells the turn from its start. Raises grpc.RpcError, Mistake.
    """
    shown, patience = _Shown(), connection.patience()
    waited = False
    while True:
        stream = connection.events.SendEvent(request)
        try:
            for answer in stream:
                patience.progress()
                match answer.WhichOneof("item"):
                    case "queued" if not waited:
                        waited = True
                        yield Waiting(answer.queued.position)
                    case "requires_action":
                        yield Stopped(answer.requires_action.turn)
                        return
                    case "turn_end":
                        yield from shown.dropped()
                        yield Stopped(answer.turn_end.turn)
                        return
                    case _:
                        yield from _common(shown, answer)
            failure: grpc.RpcError | StreamCut = StreamCut()
        except grpc.RpcError as error:
            failure = error
        finally:
            stream.cancel()
        patience.wait(failure)
        yield Broken()


def watch(
    connection: Connection, request: event_service_pb2.WatchEventsRequest
) -> Iterator[event_service_pb2.WatchEventsResponse]:
    """Yield the items of a session for ever, each stored event once; deltas may come again.

    Changes the request. Raises grpc.RpcError, Mistake.
    """
    patience = connection.patience()
    while True:
        stream = connection.events.WatchEvents(request)
        try:
            for answer in stream:
                patience.progress()
                if answer.session_uid:
                    # The key may be used again for another session: that is not what is watched.
                    request.session_uid = answer.session_uid
                if answer.WhichOneof("item") == "event":
                    request.after_sequence = answer.event.sequence
                yield answer
            failure: grpc.RpcError | StreamCut = StreamCut()
        except grpc.RpcError as error:
            failure = error
        finally:
            stream.cancel()
        patience.wait(failure)


def follow(connection: Connection, turn: turn_pb2.Turn) -> Iterator[Item]:
    """Yield a turn from its start to its end, whoever sent its input.

    Raises grpc.RpcError, Mistake.
    """
    shown = _Shown(max(turn.first_sequence - 1, 0))
    request = event_service_pb2.WatchEventsRequest(
        agent_key=turn.agent_key,
        session_key=turn.session_key,
        after_sequence=shown.sequence,
        include_deltas=True,
    )
    for answer in watch(connection, request):
        item = answer.WhichOneof("item")
        if item == "event" and answer.event.turn_id != turn.id:
            shown.sequence = max(shown.sequence, answer.event.sequence)
            continue
        # The news of an end may have come while nobody listened, so it is also asked for.
        if item == "caught_up" or (item == "turn_end" and answer.turn_end.turn.id == turn.id):
            now = connection.call(
                connection.turns.GetTurn,
                turn_service_pb2.GetTurnRequest(
                    agent_key=turn.agent_key, session_key=turn.session_key, turn_id=turn.id
                ),
            )
            if now.status not in _UNFINISHED and now.last_sequence <= shown.sequence:
                yield Stopped(now)
                return
            continue
        yield from _common(shown, answer)


def _common(
    shown: _Shown,
    answer: event_service_pb2.SendEventResponse | event_service_pb2.WatchEventsResponse,
) -> Iterator[Item]:
    match answer.WhichOneof("item"):
        case "event":
            yield from shown.stored(answer.event)
        case "delta":
            yield from shown.delta(answer.delta)
        case "void":
            yield from shown.dropped(answer.void.event_id)
