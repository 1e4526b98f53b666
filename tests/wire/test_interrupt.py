"""Steering, interrupting and cancelling: whatever ends a turn, its record is whole."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from hansard.v1 import event_pb2, event_service_pb2, turn_pb2, turn_service_pb2
from tests.support.server import Running, failure
from tests.support.talk import (
    Talk,
    check_turn,
    content,
    items,
    joined_deltas,
    message,
    model,
    stored,
    take_until,
)

STEER = event_service_pb2.WHEN_BUSY_STEER
INTERRUPT = event_service_pb2.WHEN_BUSY_INTERRUPT
SLOW_TOOL = {"tool_call": {"name": "slow", "input": {}, "output": {}, "pause_ms": 60_000}}
SLOW_TEXT = {"agent_output": {"deltas": ["half an ", "answer"], "pause_ms": 4_000}}


async def rest_of(stream: Any) -> list[event_service_pb2.SendEventResponse]:
    return [response async for response in stream]


def interrupt(talk: Talk, turn_id: str = "", **fields: Any) -> Any:
    return talk.server.events.SendEvent(
        event_service_pb2.SendEventRequest(
            interrupt=event_service_pb2.Interrupt(turn_id=turn_id), **talk.keys, **fields
        )
    )


async def test_interrupt_ends_the_turn_and_keeps_what_was_shown(hansard: Running) -> None:
    talk = await Talk(hansard).begin([SLOW_TEXT])
    stream = talk.stream("A")
    seen = await take_until(stream, "delta")
    answer = await rest_of(interrupt(talk))
    seen += await rest_of(stream)
    check_turn(seen)
    assert [e.WhichOneof("payload") for e in stored(seen)] == [
        "input_message",
        "agent_output",
        "session_interrupted",
    ]
    text = stored(seen)[1]
    assert (content(text), text.agent_output.partial) == ("half an ", True)
    assert joined_deltas(seen)[text.id] == b"half an "
    assert items(answer) == ["event", "turn_end"]
    assert stored(answer) == stored(seen)[2:]
    assert answer[-1].turn_end == seen[-1].turn_end
    assert answer[-1].turn_end.turn.status == turn_pb2.TURN_STATUS_INTERRUPTED


async def test_interrupt_closes_open_calls(hansard: Running) -> None:
    talk = await Talk(hansard).begin([SLOW_TOOL, SLOW_TOOL])
    stream = talk.stream("A")
    seen = await take_until(stream, "tool_input")
    await rest_of(interrupt(talk))
    seen += await rest_of(stream)
    check_turn(seen)
    calls = [e.tool_input.tool_call_id for e in stored(seen) if e.HasField("tool_input")]
    outputs = [e.tool_output for e in stored(seen) if e.HasField("tool_output")]
    assert [output.tool_call_id for output in outputs] == calls
    assert len(calls) == 2
    assert {output.outcome for output in outputs} == {event_pb2.TOOL_OUTCOME_INTERRUPTED}


async def test_interrupt_of_an_idle_session_is_an_empty_stream(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    assert await rest_of(interrupt(talk)) == []
    assert await rest_of(interrupt(talk, request_id="r")) == []
    await talk.send()
    assert await rest_of(interrupt(talk)) == []
    assert len(await talk.events()) == 2


async def test_interrupt_of_another_turn_does_nothing(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    ended = (await talk.send())[-1].turn_id
    running, turn_id = await talk.hold()
    assert await rest_of(interrupt(talk, ended)) == []
    assert items(await rest_of(interrupt(talk, turn_id)))[-1] == "turn_end"
    await rest_of(running)


async def test_same_interrupt_again_ends_no_other_turn(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    _, turn_id = await talk.hold()
    first = await rest_of(interrupt(talk, request_id="r"))
    running, other_id = await talk.hold()
    again = await rest_of(interrupt(talk, request_id="r"))
    assert again == first
    assert again[-1].turn_id == turn_id
    reused = await failure(rest_of(interrupt(talk, other_id, request_id="r")))
    assert (reused.code, reused.reason) == (grpc.StatusCode.ABORTED, "REQUEST_ID_REUSED")
    statuses = [turn.status for turn in await talk.turns()]
    assert statuses == [turn_pb2.TURN_STATUS_INTERRUPTED, turn_pb2.TURN_STATUS_RUNNING]
    await talk.release(other_id)
    await rest_of(running)


async def test_interrupt_leaves_the_queue_untouched(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    await talk.hold()
    waiting = [asyncio.create_task(talk.send(f"{n}", request_id=f"{n}")) for n in range(2)]
    await talk.until_turns(3)
    await rest_of(interrupt(talk))
    for stream in await asyncio.gather(*waiting):
        check_turn(stream)
        assert stream[-1].turn_end.turn.status == turn_pb2.TURN_STATUS_COMPLETED


async def test_steered_input_is_part_of_the_running_turn(hansard: Running) -> None:
    slow = {"tool_call": {"name": "slow", "input": {}, "output": {}, "pause_ms": 400}}
    talk = await Talk(hansard).begin([slow, {"agent_output": {"content": "done"}}])
    stream = talk.stream("A")
    seen = await take_until(stream, "tool_input")
    steered = await talk.send("B", when_busy=STEER, request_id="r")
    seen += await rest_of(stream)
    check_turn(seen)
    assert len(await talk.turns()) == 1
    kinds = [event.WhichOneof("payload") for event in stored(seen)]
    assert kinds == ["input_message", "tool_input", "input_message", "tool_output", "agent_output"]
    assert stored(steered) == stored(seen)[2:]
    assert stored(steered)[0].input_message == message("B")
    assert steered[-1].turn_end == seen[-1].turn_end
    again = await talk.send("B", when_busy=STEER, request_id="r")
    assert stored(again) == stored(steered)
    assert len(await talk.events()) == 5


async def test_turn_with_an_unread_input_makes_another_model_call(hansard: Running) -> None:
    # The input comes while the last model call speaks: without another one nobody would read it.
    talk = await Talk(hansard).begin(echo="history")
    await talk.set_model(model([{"agent_output": {"deltas": ["a", "b"], "pause_ms": 300}}]))
    stream = talk.stream("first")
    seen = await take_until(stream, "delta")
    steered = await talk.send("second", when_busy=STEER)
    seen += await rest_of(stream)
    check_turn(seen)
    assert [content(e) or e.input_message.messages[0].text.content for e in stored(seen)] == [
        "first",
        "second",
        "ab",
    ]
    turn = steered[-1].turn_end.turn
    assert turn.status == turn_pb2.TURN_STATUS_COMPLETED
    assert turn.last_sequence == 3


async def test_steer_in_an_idle_session_runs(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    check_turn(await talk.send("A", when_busy=STEER))


async def test_input_that_interrupts_comes_next(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    running, _ = await talk.hold()
    second = await talk.send("B", when_busy=INTERRUPT, request_id="r")
    check_turn(second)
    assert items(await rest_of(running))[-1] == "turn_end"
    first, last = await talk.turns()
    assert first.status == turn_pb2.TURN_STATUS_INTERRUPTED
    assert last.status == turn_pb2.TURN_STATUS_COMPLETED
    # The same request again interrupts nobody.
    other, turn_id = await talk.hold()
    assert stored(await talk.send("B", when_busy=INTERRUPT, request_id="r")) == stored(second)
    assert (await talk.turns())[-1].status == turn_pb2.TURN_STATUS_RUNNING
    await talk.release(turn_id)
    await rest_of(other)


async def test_input_that_is_refused_interrupts_nothing(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    running, turn_id = await talk.hold()
    last = (await talk.events())[-1].sequence
    for expected in (last, last + 1):
        refused = await failure(
            talk.send("B", when_busy=INTERRUPT, expected_last_sequence=expected)
        )
        assert refused.reason == "SESSION_BUSY"
    request = talk.request("B", when_busy=INTERRUPT)
    request.input_message.messages.add().artifact.artifact_id = "art_none"
    refused = await failure(rest_of(hansard.events.SendEvent(request)))
    assert refused.reason == "ARTIFACT_NOT_FOUND"
    assert [turn.status for turn in await talk.turns()] == [turn_pb2.TURN_STATUS_RUNNING]
    await talk.release(turn_id)
    running.cancel()


async def test_cancelled_while_it_waits_it_never_was_an_event(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    running, turn_id = await talk.hold()
    waiting = [asyncio.create_task(talk.send(f"{n}")) for n in range(3)]
    turns = await talk.until_turns(4)
    cancelled = await talk.release(turns[2].id)
    assert cancelled.status == turn_pb2.TURN_STATUS_INTERRUPTED
    assert cancelled.first_sequence == 0
    assert await talk.release(turns[2].id) == cancelled
    await talk.release(turn_id)
    await rest_of(running)
    streams = await asyncio.gather(*waiting)
    lengths = sorted(len(stored(stream)) for stream in streams)
    assert lengths == [0, 2, 2]
    (taken_back,) = [stream for stream in streams if not stored(stream)]
    assert items(taken_back) == ["queued", "turn_end"]
    assert {event.turn_id for event in await talk.events()} == {
        turn_id,
        turns[1].id,
        turns[3].id,
    }


async def test_cancel_of_a_running_turn_answers_its_end(hansard: Running) -> None:
    talk = await Talk(hansard).begin([SLOW_TEXT])
    stream = talk.stream()
    seen = await take_until(stream, "delta")
    ended = await talk.release(seen[0].turn_id)
    seen += await rest_of(stream)
    assert ended == seen[-1].turn_end.turn
    assert ended.status == turn_pb2.TURN_STATUS_INTERRUPTED
    assert await talk.release(ended.id) == ended


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"turn_id": "trn_no"}, "TURN_NOT_FOUND"),
        ({"session_key": "no"}, "SESSION_NOT_FOUND"),
        ({"turn_id": "no"}, "INVALID_REQUEST"),
    ],
)
async def test_cancel_of_what_is_not_there(
    hansard: Running, fields: dict[str, str], reason: str
) -> None:
    talk = await Talk(hansard).begin()
    usual = {**talk.keys, "turn_id": "trn_a"}
    request = turn_service_pb2.CancelTurnRequest(**{**usual, **fields})
    assert (await failure(hansard.turns.CancelTurn(request))).reason == reason
