"""What of broken and repeated streams is new: every event once, every text byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansard.v1 import event_service_pb2 as pb2
from hansard.v1 import turn_pb2
from hansard.v1.event_pb2 import Event
from hansard_client.errors import SessionNotFound, StreamCut, Unavailable, Unreachable
from hansard_client.items import (
    CaughtUp,
    Changed,
    Delta,
    Queued,
    RequiresAction,
    TurnEnd,
    Void,
)
from hansard_client.resume import SessionTelling, TurnTelling
from tests.support.client import Caller, ScriptedTransport, broken

Make = Callable[..., Caller[Any]]
OUTPUT = pb2.DELTA_KIND_AGENT_OUTPUT


def event(sequence: int, text: str = "", event_id: str = "", turn_id: str = "trn_1") -> Event:
    """Return an agent_output, or a tool's call when there is no text."""
    made = Event(id=event_id or f"aev_{sequence}", sequence=sequence, turn_id=turn_id)
    if text:
        made.agent_output.content = text
    else:
        made.tool_input.tool_name = "t"
    return made


def stored(*of_event: Any, **more: Any) -> pb2.SendEventResponse:
    made = event(*of_event, **more)
    return pb2.SendEventResponse(
        turn_id="trn_1", session_uid="uid", sequence=made.sequence, event=made
    )


def delta(event_id: str, offset: int, text: str) -> pb2.SendEventResponse:
    made = pb2.Delta(event_id=event_id, kind=OUTPUT, offset=offset, text=text)
    return pb2.SendEventResponse(turn_id="trn_1", delta=made)


def turn(
    status: turn_pb2.TurnStatus.ValueType = turn_pb2.TURN_STATUS_COMPLETED, **fields: Any
) -> turn_pb2.Turn:
    return turn_pb2.Turn(**{"id": "trn_1", "status": status, **fields})


END = pb2.SendEventResponse(turn_id="trn_1", turn_end=pb2.TurnEnd(turn=turn()))


def texts(items: Sequence[Any]) -> str:
    return "".join(item.text for item in items if isinstance(item, Delta))


def sequences(items: Sequence[Any]) -> list[int]:
    return [item.sequence for item in items if isinstance(item, Event)]


FIRST = [
    *(stored(1, "Hello."), delta("aev_2", 0, "Grü"), delta("aev_2", 4, "ße an")),
    *(stored(2, "Grüße an alle"), END),
]
AGAIN = [stored(1, "Hello."), delta("aev_2", 0, "Grüße an a"), stored(2, "Grüße an alle"), END]


@pytest.mark.parametrize("cut", range(len(FIRST) + 1))
def test_a_break_at_any_place_tells_nothing_twice(call: Make, cut: int) -> None:
    transport = ScriptedTransport(SendEvent=[[*FIRST[:cut], broken()], AGAIN])
    caller = call(transport)
    stream = caller.session.stream("Hello?", request_id="one")
    items = caller.get(stream)
    assert texts(items) == "Hello.Grüße an alle"
    assert sequences(items) == [1, 2]
    assert not any(isinstance(item, Void) for item in items)
    assert items[-1] == TurnEnd(turn())
    assert (stream.turn, stream.turn_id, stream.session_uid) == (turn(), "trn_1", "uid")
    requests = transport.requests("SendEvent")
    assert {request.request_id for request in requests} == {"one"}
    # What came once binds the repeats to the same incarnation of the session.
    assert [request.session_uid for request in requests][1:] == (
        [] if cut == len(FIRST) else ["uid" if cut else ""]
    )
    assert all(reading.cancelled for reading in transport.readings)


@pytest.mark.parametrize("cut", range(len(FIRST) + 1))
def test_who_iterates_events_sees_nothing_of_a_break(call: Make, cut: int) -> None:
    transport = ScriptedTransport(SendEvent=[[*FIRST[:cut], broken()], AGAIN])
    caller = call(transport)
    assert caller.get(caller.session.send("Hello?")) == [
        event(1, "Hello."),
        event(2, "Grüße an alle"),
    ]


def test_a_stream_that_ends_too_early_is_taken_up_again(call: Make) -> None:
    scripts = [[stored(1, "a")], [stored(1, "a"), stored(2, "b"), END]]
    caller = call(ScriptedTransport(SendEvent=scripts))
    assert texts(caller.get(caller.session.stream("Hello?"))) == "ab"


def test_void_where_a_text_that_was_shown_is_not_stored(call: Make) -> None:
    lost = delta("aev_lost", 0, "I was")
    void = pb2.SendEventResponse(void=pb2.VoidedEvent(event_id="aev_lost"))
    other = pb2.SendEventResponse(void=pb2.VoidedEvent(event_id="aev_other"))
    waits = turn(turn_pb2.TURN_STATUS_REQUIRES_ACTION)
    action = pb2.SendEventResponse(requires_action=pb2.RequiresAction(turn=waits))
    told = [Delta("aev_lost", "agent_output", 0, "I was"), Void("aev_lost")]
    for scripts, rest in (
        ([[lost, broken()], [delta("aev_new", 0, "I am"), stored(1, "I am here", "aev_new"), END]],
         [Delta("aev_new", "agent_output", 0, "I am"), Delta("aev_new", "agent_output", 4, " here"),
          event(1, "I am here", "aev_new"), TurnEnd(turn())]),
        ([[lost, broken()], [END]], [TurnEnd(turn())]),
        ([[lost, other, void, END]], [TurnEnd(turn())]),
        ([[lost, broken()], [action]], [RequiresAction(waits)]),
    ):  # fmt: skip
        caller = call(ScriptedTransport(SendEvent=scripts))
        assert caller.get(caller.session.stream("Hello?")) == [*told, *rest]


def test_a_place_in_the_queue_is_told_once(call: Make) -> None:
    queued = [pb2.SendEventResponse(queued=pb2.Queued(position=n)) for n in (2, 1)]
    scripts = [[queued[0], broken()], [queued[1], stored(1, "a"), END]]
    caller = call(ScriptedTransport(SendEvent=scripts))
    items = caller.get(caller.session.stream("Hello?"))
    assert [item for item in items if isinstance(item, Queued)] == [Queued(2)]


def test_an_interrupt_that_had_nothing_to_end_is_told_so(call: Make) -> None:
    caller = call(ScriptedTransport(SendEvent=[[broken()], []]))
    assert caller.get(caller.session.interrupt()) == ""
    caller = call(ScriptedTransport(SendEvent=[[]]))
    assert caller.get(caller.session.send(pb2.Interrupt())) == []


def test_patience_ends(call: Make) -> None:
    transport = ScriptedTransport(SendEvent=[[broken()] for _ in range(1_000)])
    caller = call(transport, patience_s=10.0, first_contact_s=10.0)
    with pytest.raises(Unreachable):
        caller.get(caller.session.send("Hello?"))
    assert 8 < sum(transport.waits_s) <= 10
    # Repeats of what is known are no progress; the silence of a stream that lives costs nothing.
    again = [[stored(1, "a"), broken()] for _ in range(1_000)]
    transport = ScriptedTransport(SendEvent=again)
    caller = call(transport, patience_s=10.0)
    with pytest.raises(Unavailable):
        caller.get(caller.session.send("Hello?"))
    assert 8 < sum(transport.waits_s) <= 10


def test_a_stream_goes_on_at_another_address(call: Make) -> None:
    scripts = [[*FIRST[:3], broken()], [broken()], AGAIN]
    transport = ScriptedTransport("one:1", "two:2", SendEvent=scripts)
    caller = call(transport)
    assert sequences(caller.get(caller.session.stream("Hello?"))) == [1, 2]
    assert transport.used == ["one:1", "two:2", "one:1"]


def test_news_restore_patience(call: Make) -> None:
    scripts = [[*(stored(n, "a") for n in range(1, last + 1)), broken()] for last in range(200)]
    transport = ScriptedTransport(SendEvent=[*scripts, [*scripts[-1][:-1], END]])
    caller = call(transport, patience_s=1.0, first_contact_s=1.0)
    assert len(caller.get(caller.session.send("Hello?"))) == 199


# Watches.


def seen(of_event: Event) -> pb2.WatchEventsResponse:
    return pb2.WatchEventsResponse(session_uid="uid", sequence=of_event.sequence, event=of_event)


def watched(event_id: str, offset: int, text: str) -> pb2.WatchEventsResponse:
    return pb2.WatchEventsResponse(
        delta=pb2.Delta(event_id=event_id, kind=OUTPUT, offset=offset, text=text)
    )


CAUGHT_UP = pb2.WatchEventsResponse(caught_up=pb2.CaughtUp())
GONE = SessionNotFound("deleted")
WATCHED_END = pb2.WatchEventsResponse(turn_end=pb2.TurnEnd(turn=turn(last_sequence=2)))


def watch_until_gone(caller: Caller[Any], made: Any) -> list[Any]:
    """Return what is yielded before the session is deleted."""
    items: list[Any] = []

    async def collect() -> None:
        async for item in made:
            items.append(item)  # noqa: PERF401 - what came before the error counts

    def take() -> None:
        if hasattr(made, "__anext__"):
            caller.get(collect())
            return
        for item in made:
            items.append(item)  # noqa: PERF402 - the same

    with pytest.raises(SessionNotFound):
        take()
    return items


def test_a_watch_goes_on_after_the_last_event(call: Make) -> None:
    scripts = [
        [seen(event(5, "a")), CAUGHT_UP, seen(event(6, "b")), broken()],
        [StreamCut("ended")],
        [seen(event(6, "b")), seen(event(7, "c")), CAUGHT_UP, GONE],
    ]
    transport = ScriptedTransport(WatchEvents=scripts)
    caller = call(transport)
    items = watch_until_gone(caller, caller.session.watch(after_sequence=4))
    assert sequences(items) == [5, 6, 7]
    requests = transport.requests("WatchEvents")
    assert [(r.after_sequence, r.session_uid) for r in requests] == [
        (4, ""),
        (6, "uid"),
        (6, "uid"),
    ]


def test_a_watch_tells_what_it_says_once(call: Make) -> None:
    changed = pb2.WatchEventsResponse(changed=pb2.EventChanged(event=event(1, "a")))
    scripts = [
        [seen(event(1, "a")), CAUGHT_UP, changed, watched("aev_2", 0, "Gr"), broken()],
        [CAUGHT_UP, watched("aev_2", 0, "Grüße"), seen(event(2, "Grüße")), WATCHED_END, broken()],
        [CAUGHT_UP, WATCHED_END, GONE],
    ]
    transport = ScriptedTransport(WatchEvents=scripts, GetTurn=[turn(turn_pb2.TURN_STATUS_RUNNING)])
    caller = call(transport)
    items = watch_until_gone(caller, caller.session.watch_all())
    assert items == [
        *(
            Delta("aev_1", "agent_output", 0, "a"),
            event(1, "a"),
            CaughtUp(),
            Changed(event(1, "a")),
        ),
        *(Delta("aev_2", "agent_output", 0, "Gr"), Delta("aev_2", "agent_output", 2, "üße")),
        *(event(2, "Grüße"), TurnEnd(turn(last_sequence=2))),
    ]
    # Asked when the end may have come unheard; not any more when it has been told.
    assert len(transport.requests("GetTurn")) == 1


def test_an_end_that_came_while_nobody_listened_is_told(call: Make) -> None:
    failed = turn(turn_pb2.TURN_STATUS_FAILED, last_sequence=1)
    scripts = [
        [CAUGHT_UP, seen(event(1)), watched("aev_2", 0, "Gr"), broken()],
        [CAUGHT_UP, GONE],
    ]
    caller = call(ScriptedTransport(WatchEvents=scripts, GetTurn=[failed]))
    assert watch_until_gone(caller, caller.session.watch_all())[-2:] == [
        Void("aev_2"),
        TurnEnd(failed),
    ]


def test_an_end_that_is_asked_for_waits_for_the_events_before_it(call: Make) -> None:
    # The turn ended when the stream that was opened again had just caught up.
    ended = turn(last_sequence=3)
    scripts = [
        [CAUGHT_UP, seen(event(1)), watched("aev_3", 0, "Gr"), broken()],
        [CAUGHT_UP, seen(event(2)), seen(event(3, "Grüße")), GONE],
    ]
    caller = call(ScriptedTransport(WatchEvents=scripts, GetTurn=[ended]))
    assert watch_until_gone(caller, caller.session.watch_all()) == [
        *(CaughtUp(), event(1), Delta("aev_3", "agent_output", 0, "Gr"), event(2)),
        *(Delta("aev_3", "agent_output", 2, "üße"), event(3, "Grüße"), TurnEnd(ended)),
    ]


def test_the_end_of_a_turn_does_not_void_the_text_of_the_next() -> None:
    telling = SessionTelling(after_sequence=0, deltas=True)
    answers = [
        *(seen(event(1, "a")), seen(event(2, turn_id="trn_2")), watched("aev_3", 0, "b")),
        *(WATCHED_END, seen(event(3, "bc", turn_id="trn_2"))),
    ]
    items = [item for answer in answers for item in telling.take(answer)]
    assert texts(items) == "abc"
    assert not any(isinstance(item, Void) for item in items)


def test_followed_turns_end(call: Make) -> None:
    ended = turn(first_sequence=3, last_sequence=4)
    scripts = [[seen(event(3, "a")), broken()], [seen(event(4)), CAUGHT_UP]]
    transport = ScriptedTransport(WatchEvents=scripts, GetTurn=[ended, ended])
    caller = call(transport)
    stream = caller.session.turns.follow("trn_1")
    assert sequences(caller.get(stream)) == [3, 4]
    assert stream.turn == ended
    assert transport.requests("WatchEvents")[0].after_sequence == 2


def test_a_turn_that_waits_is_followed_without_those_before_it(call: Make) -> None:
    queued = turn(turn_pb2.TURN_STATUS_QUEUED, id="trn_2")
    ended = turn(id="trn_2", first_sequence=2, last_sequence=3)
    live_end = pb2.WatchEventsResponse(turn_end=pb2.TurnEnd(turn=ended))
    script = [
        *(CAUGHT_UP, watched("aev_1", 0, "not mine"), seen(event(1, "not mine"))),
        *(seen(event(2, turn_id="trn_2")), watched("aev_3", 0, "mi"), WATCHED_END),
        *(seen(event(3, "mine", turn_id="trn_2")), live_end),
    ]
    caller = call(ScriptedTransport(WatchEvents=[script], GetTurn=[queued, queued]))
    items = caller.get(caller.session.turns.follow("trn_2"))
    assert texts(items) == "mine"
    assert sequences(items) == [2, 3]
    assert items[-1] == TurnEnd(ended)


# Servers that die at any moment, made up by chance.


@dataclass
class Server:
    """A turn of texts and tool calls, told by streams that break; a crash loses the open text."""

    steps: list[str]
    record: list[Event] = field(default_factory=list)
    lives: int = 0

    def streams(self, crashes: Sequence[tuple[int, bool]]) -> Iterator[list[Any]]:
        """Yield one stream after the other; each breaks after so many answers, the last never."""
        shown = 0
        for answers_max, is_crash in [*crashes, (10**6, False)]:
            answers: list[Any] = [stored_event(made) for made in self.record]
            while len(answers) < answers_max and len(self.record) < len(self.steps):
                text = self.steps[len(self.record)]
                event_id = f"aev_{len(self.record)}_{self.lives}"
                if text and shown < len(text):
                    # The open text comes again from its first byte.
                    start = 0 if not _tells(answers, event_id) else shown
                    shown = min(shown + 3, len(text))
                    offset = len(text[:start].encode())
                    answers.append(delta(event_id, offset, text[start:shown]))
                    continue
                self.record.append(event(len(self.record) + 1, text, event_id))
                shown = 0
                answers.append(stored_event(self.record[-1]))
            if len(self.record) == len(self.steps):
                answers.append(END)
            if is_crash:
                self.lives += 1
                shown = 0
            yield answers[:answers_max]


def stored_event(made: Event) -> pb2.SendEventResponse:
    return pb2.SendEventResponse(
        turn_id="trn_1", session_uid="uid", sequence=made.sequence, event=made
    )


def _tells(answers: Sequence[Any], event_id: str) -> bool:
    return any(answer.delta.event_id == event_id for answer in answers)


@given(
    st.lists(st.sampled_from(["", "short", "ein längerer Text - 🙂🙂 ja"]), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=6),
)
def test_any_breaks_and_crashes_make_one_telling(
    steps: list[str], crashes: list[tuple[int, bool]]
) -> None:
    server = Server(steps)
    telling = TurnTelling(deltas=True)
    items: list[Any] = []
    for answers in server.streams(crashes):
        for answer in answers:
            items += telling.take(answer)
        if telling.turn is not None:
            break
    assert [item for item in items if isinstance(item, Event)] == server.record
    assert [item for item in items if isinstance(item, TurnEnd)] == [TurnEnd(turn())]
    told: dict[str, bytes] = {}
    voided: set[str] = set()
    for item in items:
        match item:
            case Delta(event_id, _, offset, text):
                assert event_id not in voided
                assert text
                assert offset == len(told.get(event_id, b""))
                told[event_id] = told.get(event_id, b"") + text.encode()
            case Void(event_id):
                assert event_id in told
                assert event_id not in voided
                voided.add(event_id)
            case Event() if item.HasField("agent_output"):
                assert told[item.id] == item.agent_output.content.encode()
    of_record = {made.id for made in server.record if made.HasField("agent_output")}
    assert voided == told.keys() - of_record


def test_events_alone_are_told_without_texts() -> None:
    telling = TurnTelling(deltas=False)
    assert list(telling.take(delta("aev_1", 0, "a"))) == []
    assert list(telling.take(stored(1, "a"))) == [event(1, "a")]


def test_a_text_whose_beginning_was_missed_waits_for_its_event() -> None:
    telling = TurnTelling(deltas=True)
    assert list(telling.take(delta("aev_1", 4, "bc"))) == []
    assert texts(list(telling.take(stored(1, "aaaabc")))) == "aaaabc"
    # Late news of a text that is on record says nothing.
    assert list(telling.take(delta("aev_1", 0, "aaaabc"))) == []


def test_memory_is_bounded() -> None:
    telling = SessionTelling(after_sequence=0, deltas=True)
    for sequence in range(1, 1_000):
        made = event(sequence, "text", turn_id=f"trn_{sequence}")
        for item in telling.take(seen(made)):
            del item
    kept: Any = vars(telling)
    assert all(len(value) < 100 for value in kept.values() if hasattr(value, "__len__"))
    assert all(
        len(value) < 100 for value in vars(kept["_texts"]).values() if hasattr(value, "__len__")
    )
