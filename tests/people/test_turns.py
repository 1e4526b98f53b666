"""A turn that is followed through broken streams: every event once, every text byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
import pytest

from hansard.v1 import event_pb2, turn_pb2
from hansard.v1 import event_service_pb2 as pb2
from hansard_client.connection import Connection
from hansard_client.errors import Mistake
from hansard_client.turns import Broken, Dropped, Item, Piece, Stopped, Stored, send, watch


class Unavailable(grpc.RpcError, grpc.Call):
    """What grpc raises when a connection breaks."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "socket closed"

    def initial_metadata(self) -> tuple[()]:
        return ()

    def trailing_metadata(self) -> tuple[()]:
        return ()

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> float:
        return 0

    def cancel(self) -> bool:
        return False

    def add_callback(self, callback: object) -> bool:  # noqa: ARG002 - grpc's signature
        return False


class Stream:
    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            if item is BREAK:
                raise Unavailable
            yield item

    def cancel(self) -> None:
        pass


BREAK = object()


def streams(*scripts: Sequence[Any]) -> tuple[Callable[[Any], Stream], list[Any]]:
    """Return a call that gives one stream after the other, and the requests that it got."""
    requests: list[Any] = []
    rest = iter(scripts)

    def call(request: Any) -> Stream:
        copy = type(request)()
        copy.CopyFrom(request)
        requests.append(copy)
        return Stream(next(rest))

    return call, requests


def event(sequence: int, text: str, event_id: str = "") -> event_pb2.Event:
    return event_pb2.Event(
        id=event_id or f"aev_{sequence}",
        sequence=sequence,
        agent_output=event_pb2.AgentOutput(content=text),
    )


def stored(sequence: int, text: str, event_id: str = "") -> pb2.SendEventResponse:
    return pb2.SendEventResponse(event=event(sequence, text, event_id))


def delta(event_id: str, offset: int, text: str) -> pb2.SendEventResponse:
    kind = pb2.DELTA_KIND_AGENT_OUTPUT
    return pb2.SendEventResponse(
        delta=pb2.Delta(event_id=event_id, kind=kind, offset=offset, text=text)
    )


END = pb2.SendEventResponse(turn_end=pb2.TurnEnd(turn=turn_pb2.Turn(id="trn_1")))


@pytest.fixture
def connection() -> Iterator[Connection]:
    with Connection("127.0.0.1:1", timeout_s=0.3) as made:
        yield made


def follow(connection: Connection, *scripts: Sequence[Any]) -> list[Item]:
    connection.events.SendEvent, requests = streams(*scripts)  # type: ignore[assignment]
    items = list(send(connection, pb2.SendEventRequest(request_id="one")))
    assert all(request.request_id == "one" for request in requests)
    return [item for item in items if not isinstance(item, Broken)]


def texts(items: Sequence[Item]) -> str:
    return "".join(item.text for item in items if isinstance(item, Piece))


def sequences(items: Sequence[Item]) -> list[int]:
    return [item.event.sequence for item in items if isinstance(item, Stored)]


@pytest.mark.parametrize("cut", range(6))
def test_a_break_at_any_place_shows_nothing_twice(connection: Connection, cut: int) -> None:
    first = [
        *(stored(1, "Hello."), delta("aev_2", 0, "Grü"), delta("aev_2", 4, "ße an")),
        *(stored(2, "Grüße an alle"), END),
    ]
    again = [stored(1, "Hello."), delta("aev_2", 0, "Grüße an a"), stored(2, "Grüße an alle"), END]
    items = follow(connection, [*first[:cut], BREAK], again)
    if cut == len(first):
        items = follow(connection, first)
    assert texts(items) == "Hello.Grüße an alle"
    assert sequences(items) == [1, 2]
    assert isinstance(items[-1], Stopped)


def test_a_stream_that_ends_too_early_is_taken_up_again(connection: Connection) -> None:
    items = follow(connection, [stored(1, "a")], [stored(1, "a"), stored(2, "b"), END])
    assert texts(items) == "ab"


def test_a_text_that_a_crash_voided_is_dropped(connection: Connection) -> None:
    items = follow(
        connection,
        [delta("aev_lost", 0, "I was"), BREAK],
        [delta("aev_new", 0, "I am"), stored(1, "I am here", "aev_new"), END],
    )
    assert items[:3] == [
        Piece("aev_lost", "agent_output", "I was"),
        Dropped("aev_lost"),
        Piece("aev_new", "agent_output", "I am"),
    ]
    void = pb2.SendEventResponse(void=pb2.VoidedEvent(event_id="aev_lost"))
    items = follow(connection, [delta("aev_lost", 0, "I was"), void, END])
    assert items[1] == Dropped("aev_lost")
    items = follow(connection, [delta("aev_lost", 0, "I was"), END])
    assert items[1] == Dropped("aev_lost")


def test_patience_ends(connection: Connection) -> None:
    with pytest.raises(Mistake, match=r"within 0\.3 s"):
        follow(connection, *([BREAK] for _ in range(100)))


def test_a_watch_goes_on_after_the_last_event(connection: Connection) -> None:
    connection.events.WatchEvents, requests = streams(  # type: ignore[assignment]
        [
            pb2.WatchEventsResponse(session_uid="uid", event=event(1, "a")),
            pb2.WatchEventsResponse(event=event(2, "b")),
            BREAK,
        ],
        [pb2.WatchEventsResponse(event=event(3, "c"))],
    )
    watched = watch(connection, pb2.WatchEventsRequest())
    assert [next(watched).event.sequence for _ in range(3)] == [1, 2, 3]
    assert (requests[1].after_sequence, requests[1].session_uid) == (2, "uid")
