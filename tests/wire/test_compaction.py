"""Compaction through the wire: on demand and by threshold; what is hidden, and what never is."""

from __future__ import annotations

from typing import Any

from hansard.v1 import event_pb2, event_service_pb2, turn_pb2
from tests.support.server import Running
from tests.support.talk import Talk, check_turn, items, model, stored

SUMMARY = [{"agent_output": {"content": "They spoke of bees."}}]
ANSWER = [{"agent_output": {"content": "An answer."}}]
CALLS = [
    {"tool_call": {"name": "a", "output": {"n": 1}}},
    {"tool_call": {"name": "b", "output": {"n": 2}}},
    {"agent_output": {"content": "Two results."}},
]
ECHO = model(echo="history")


def compact(talk: Talk, **fields: Any) -> Any:
    given = {name: fields.pop(name) for name in ("up_to_event_id", "message") if name in fields}
    return talk.server.events.SendEvent(
        event_service_pb2.SendEventRequest(compact=turn_pb2.Compact(**given), **talk.keys, **fields)
    )


async def compacted(talk: Talk, **fields: Any) -> list[event_service_pb2.SendEventResponse]:
    responses = [response async for response in compact(talk, **fields)]
    check_turn(responses)
    return responses


async def seen_by_model(talk: Talk) -> list[str]:
    """Return what the model gets in a turn, line by line; the turn's own input is the last."""
    await talk.set_model(ECHO)
    responses = await talk.send("What do you see?")
    return next(e.thinking.content for e in stored(responses) if e.HasField("thinking")).split(
        "\n"
    )[:-1]


async def test_what_was_said_becomes_a_summary(hansard: Running) -> None:
    talk = await Talk(hansard).begin(CALLS, summary=SUMMARY)
    await talk.send("One")
    await talk.send("Two")
    before = await talk.events()

    responses = await compacted(talk)

    assert items(responses) == ["event", "turn_end"]
    event = stored(responses)[0]
    assert event.compaction.summary_text == "They spoke of bees."
    assert (event.compaction.turns_compacted, event.compaction.events_compacted) == (2, len(before))
    assert event.compaction.summary_key
    assert event.turn_id == responses[0].turn_id
    turn = responses[-1].turn_end.turn
    assert turn.status == turn_pb2.TURN_STATUS_COMPLETED
    assert turn.input.HasField("compact")
    assert (turn.first_sequence, turn.last_sequence) == (event.sequence, event.sequence)
    assert await talk.events() == [event]
    hidden = [e for e in await talk.events(include_hidden=True) if e.id != event.id]
    assert {e.hide_reason for e in hidden} == {event_pb2.HIDE_REASON_COMPACTION}
    for was, now in zip(before, hidden, strict=True):
        now.hide_reason = event_pb2.HIDE_REASON_UNSPECIFIED
        assert was == now
    assert await seen_by_model(talk) == [
        f"{event.sequence} compaction: They spoke of bees.",
        f"{event.sequence + 1} input_message: What do you see?",
    ]
