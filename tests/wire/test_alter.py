"""Hide, unhide, delete: pairs stay together, a tombstone stays, watchers are told."""

from __future__ import annotations

from typing import Any

import pytest

from hansard.v1 import event_pb2, event_service_pb2, turn_pb2
from tests.support.server import Running, failure
from tests.support.talk import Talk, content, items, model, output, stored

CALL = [
    {"thinking": {"content": "hm"}},
    {"tool_call": {"name": "t", "input": {"secret": 1}, "output": {"r": 2}}},
    {"agent_output": {"content": "done"}},
]


def hide(talk: Talk, event_id: str) -> Any:
    request = event_service_pb2.HideEventRequest(event_id=event_id, **talk.keys)
    return talk.server.events.HideEvent(request)


def unhide(talk: Talk, event_id: str) -> Any:
    request = event_service_pb2.UnhideEventRequest(event_id=event_id, **talk.keys)
    return talk.server.events.UnhideEvent(request)


def delete(talk: Talk, event_id: str) -> Any:
    request = event_service_pb2.DeleteEventRequest(event_id=event_id, **talk.keys)
    return talk.server.events.DeleteEvent(request)


async def test_hidden_event_stays_on_record_and_leaves_the_models_context(
    hansard: Running,
) -> None:
    talk = await Talk(hansard).begin()
    first = stored(await talk.send("the magic word"))[0]
    await talk.set_model(model(echo="history"))
    hidden = await hide(talk, first.id)
    assert hidden.hide_reason == event_pb2.HIDE_REASON_MANUAL
    assert hidden.input_message == first.input_message
    assert await hide(talk, first.id) == hidden
    assert first.id not in {event.id for event in await talk.events()}
    assert (await talk.events(include_hidden=True))[0] == hidden
    echo = stored(await talk.send("again"))[1]
    assert "the magic word" not in content(echo)
    assert await unhide(talk, first.id) == first
    assert await unhide(talk, first.id) == first
    assert (await talk.events())[0] == first
    assert "the magic word" in content(stored(await talk.send("once more"))[1])


@pytest.mark.parametrize("half", ["tool_input", "tool_output"])
async def test_both_halves_of_a_call_go_together(hansard: Running, half: str) -> None:
    talk = await Talk(hansard).begin(CALL)
    events = stored(await talk.send())
    (one,) = [event for event in events if event.HasField(half)]
    pair = [e.id for e in events if e.HasField("tool_input") or e.HasField("tool_output")]
    await hide(talk, one.id)
    assert [e.id for e in await talk.events()] == [e.id for e in events if e.id not in pair]
    await unhide(talk, one.id)
    assert await talk.events() == events
    await delete(talk, one.id)
    assert [e.id for e in await talk.events()] == [e.id for e in events if e.id not in pair]
    tombstones = [e for e in await talk.events(include_hidden=True) if e.id in pair]
    assert [e.WhichOneof("payload") for e in tombstones] == [None, None]
    assert all(event.HasField("deleted_at") for event in tombstones)
    assert items(await talk.send())[-1] == "turn_end"


async def test_deleted_event_is_a_tombstone(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    await talk.append(output("a"), output("b"), output("c"))
    second = (await talk.events())[1]
    await delete(talk, second.id)
    get = event_service_pb2.GetEventRequest(event_id=second.id, **talk.keys)
    tombstone = await hansard.events.GetEvent(get)
    assert (tombstone.id, tombstone.sequence) == (second.id, 2)
    assert tombstone.HasField("deleted_at")
    assert tombstone.WhichOneof("payload") is None
    await delete(talk, second.id)
    assert await hansard.events.GetEvent(get) == tombstone
    assert await hide(talk, second.id) == tombstone
    assert [e.sequence for e in await talk.events()] == [1, 3]
    assert await talk.append(output("d")) == [4]
    watch = talk.watch()
    source = aiter(watch)
    seen = [await anext(source) for _ in range(5)]
    assert stored(seen)[1] == tombstone
    watch.cancel()


async def test_nothing_keeps_the_words_of_a_deleted_input(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    responses = await talk.send("my secret", request_id="r")
    turn_id = responses[-1].turn_end.turn.id
    sent = next(e for e in await talk.events() if e.HasField("input_message"))
    await delete(talk, sent.id)
    turn = next(turn for turn in await talk.turns() if turn.id == turn_id)
    assert turn.input == turn_pb2.TurnInput()
    again = await talk.send("my secret", request_id="r")
    assert again[-1].turn_end.turn == turn
    assert all(b"my secret" not in response.SerializeToString() for response in again)


async def test_watchers_are_told(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    await talk.append(output("a"), output("b"))
    first, second = await talk.events()
    watch = talk.watch(1)
    source = aiter(watch)
    assert items([await anext(source), await anext(source)]) == ["event", "caught_up"]
    hidden = await hide(talk, first.id)
    shown = await unhide(talk, first.id)
    await delete(talk, second.id)
    changes = [await anext(source) for _ in range(3)]
    assert items(changes) == ["changed"] * 3
    assert [c.changed.event.id for c in changes] == [first.id, first.id, second.id]
    # Each is as it was when it was told, which may be after the next change.
    assert changes[0].changed.event in (hidden, shown)
    assert changes[1].changed.event == shown
    assert changes[2].changed.event.HasField("deleted_at")
    await talk.append(output("c"))
    assert (await anext(source)).event.sequence == 3
    watch.cancel()


async def test_events_of_an_unfinished_turn_are_not_touched(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    await talk.append(output("a"))
    running, turn_id = await talk.hold()
    events = await talk.events()
    for alter in (hide, unhide, delete):
        assert (await failure(alter(talk, events[1].id))).reason == "SESSION_BUSY"
    await hide(talk, events[0].id)
    await talk.release(turn_id)
    [_ async for _ in running]
    await delete(talk, events[1].id)


async def test_what_is_not_there_can_not_be_altered(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    other = await talk.another("other").open_session()
    await other.append(output("a"))
    (foreign,) = await other.events()
    for alter in (hide, unhide, delete):
        for event_id in ("aev_no", foreign.id):
            assert (await failure(alter(talk, event_id))).reason == "EVENT_NOT_FOUND"
    assert await other.events() == [foreign]


def call_draft() -> event_pb2.EventDraft:
    call = event_pb2.ToolInput(tool_call_id="c", tool_input_json="{}")
    return event_pb2.EventDraft(tool_input=call)


def answer_draft() -> event_pb2.EventDraft:
    answer = event_pb2.ToolOutput(tool_call_id="c", tool_output_json="{}")
    return event_pb2.EventDraft(tool_output=answer)


async def test_output_of_a_hidden_call_is_hidden_with_it(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    await talk.append(call_draft())
    (call,) = await talk.events()
    await hide(talk, call.id)
    await talk.append(answer_draft())
    assert await talk.events() == []
    _, answer = await talk.events(include_hidden=True)
    assert answer.hide_reason == event_pb2.HIDE_REASON_MANUAL
    await unhide(talk, answer.id)
    assert len(await talk.events()) == 2


async def test_deleted_call_takes_no_output(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    await talk.append(call_draft())
    (call,) = await talk.events()
    await delete(talk, call.id)
    refused = await failure(talk.append(answer_draft()))
    assert refused.reason == "TOOL_CALL_NOT_PENDING"
