"""Compaction through the wire: on demand and by threshold; what is hidden, and what never is."""

from __future__ import annotations

import asyncio
from typing import Any

from hansard.v1 import (
    agent_pb2,
    agent_service_pb2,
    event_pb2,
    event_service_pb2,
    session_service_pb2,
    turn_pb2,
)
from tests.support.server import Running, failure
from tests.support.talk import Talk, check_turn, items, message, model, output, rating, stored

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


async def keep(talk: Talk, **settings: Any) -> None:
    await talk.server.agents.UpdateAgent(
        agent_service_pb2.UpdateAgentRequest(
            agent=agent_pb2.Agent(
                key=talk.agent_key, compaction=agent_pb2.CompactionSettings(**settings)
            ),
            update_mask={"paths": ["compaction"]},
        )
    )


def hidden_of(events: list[event_pb2.Event]) -> list[int]:
    compaction = event_pb2.HIDE_REASON_COMPACTION
    return [event.sequence for event in events if event.hide_reason == compaction]


async def test_a_second_summary_takes_in_the_first(plain: Running) -> None:
    talk = await Talk(plain).begin(ANSWER)
    await talk.send("One")
    first = stored(await compacted(talk))[0]
    assert first.compaction.summary_text == "2 events were summarised."
    assert items(await compacted(talk)) == ["turn_end"], "nothing is new"
    await talk.send("Two")
    second = stored(await compacted(talk))[0]
    assert second.compaction.summary_text == "3 events were summarised."
    assert (second.compaction.turns_compacted, second.compaction.events_compacted) == (1, 3)
    assert await talk.events() == [second]


async def test_up_to_an_event_wherever_it_stands(hansard: Running) -> None:
    talk = await Talk(hansard).begin(CALLS, summary=SUMMARY)
    for text in ("One", "Two", "Three"):
        await talk.send(text)
    events = await talk.events()
    assert [e.WhichOneof("payload") for e in events[:6]] == [
        *("input_message", "tool_input", "tool_input", "tool_output", "tool_output"),
        "agent_output",
    ]
    # Inside of a step: it is taken whole, and nothing after it.
    await compacted(talk, up_to_event_id=events[1].id)
    assert hidden_of(await talk.events(include_hidden=True)) == [1, 2, 3, 4, 5]
    # Up to what is hidden already nothing is new.
    assert items(await compacted(talk, up_to_event_id=events[1].id)) == ["turn_end"]
    # A deleted event names its place.
    await hansard.events.DeleteEvent(
        event_service_pb2.DeleteEventRequest(event_id=events[8].id, **talk.keys)
    )
    await compacted(talk, up_to_event_id=events[8].id)
    every = await talk.events(include_hidden=True)
    assert hidden_of(every) == [1, 2, 3, 4, 5, 6, 7, 8, 10]
    assert [e.sequence for e in await talk.events()] == [12, 13, 14, 15, 16, 17, 18, 19, 20]


async def test_an_unanswered_input_stays(hansard: Running) -> None:
    talk = await Talk(hansard).begin(ANSWER, summary=SUMMARY)
    await talk.send("One")
    await talk.set_model(model([{"thinking": {"content": "Hm."}}, {"fail": "I can't."}]))
    await talk.send("Two")
    await talk.append(event_pb2.EventDraft(input_message=message("Three")))
    await talk.set_model(model(ANSWER, summary=SUMMARY))
    newest = (await talk.events())[-1]
    await compacted(talk, up_to_event_id=newest.id)
    assert hidden_of(await talk.events(include_hidden=True)) == [1, 2]


async def test_what_programs_keep_and_open_calls_stay(plain: Running) -> None:
    talk = await Talk(plain).begin(ANSWER, summary=SUMMARY)
    await talk.append(rating())
    call = event_pb2.ToolInput(tool_call_id="c", tool_name="t", tool_input_json="{}")
    await talk.append(event_pb2.EventDraft(tool_input=call))
    await talk.send("One")
    await compacted(talk)
    assert hidden_of(await talk.events(include_hidden=True)) == [3, 4]
    done = event_pb2.ToolOutput(tool_call_id="c", tool_name="t", tool_output_json="1")
    await talk.append(event_pb2.EventDraft(tool_output=done))
    assert (await talk.events())[-1].hide_reason == event_pb2.HIDE_REASON_UNSPECIFIED


async def test_a_summary_that_fails_leaves_everything_as_it_was(hansard: Running) -> None:
    talk = await Talk(hansard).begin(ANSWER, summary=[{"pause_ms": 1}, {"fail": "No summary."}])
    await talk.send("One")
    before = await talk.events(include_hidden=True)
    responses = await compacted(talk, request_id="c")
    assert items(responses) == ["turn_end"]
    turn = responses[-1].turn_end.turn
    assert turn.status == turn_pb2.TURN_STATUS_FAILED
    assert "No summary." in turn.error.message
    assert (turn.first_sequence, turn.last_sequence) == (0, 0)
    assert await talk.events(include_hidden=True) == before
    # The repeat is the same answer, and the session goes on.
    again = await compacted(talk, request_id="c")
    assert again[-1].turn_end.turn == turn
    check_turn(await talk.send("Two"))


async def test_the_same_request_compacts_once(hansard: Running) -> None:
    talk = await Talk(hansard).begin(ANSWER, summary=SUMMARY)
    await talk.send("One")
    first = await compacted(talk, request_id="c")
    await talk.send("Two")
    again = await compacted(talk, request_id="c")
    # But that the event was hidden or not meanwhile.
    assert again == first
    other = compact(talk, request_id="c", message="Other words")
    refused = await failure(_drain(other))
    assert refused.reason == "REQUEST_ID_REUSED"
    assert hidden_of(await talk.events(include_hidden=True)) == [1, 2]


async def test_a_compaction_waits_and_others_wait_for_it(hansard: Running) -> None:
    slow = [{"pause_ms": 300}, *SUMMARY]
    talk = await Talk(hansard).begin(ANSWER, summary=slow)
    await talk.send("One")
    stream, turn_id = await talk.hold("Two")
    refused = await failure(_drain(compact(talk, when_busy=event_service_pb2.WHEN_BUSY_REJECT)))
    assert refused.reason == "SESSION_BUSY"
    waiting = [
        asyncio.create_task(collect(compact(talk, when_busy=event_service_pb2.WHEN_BUSY_STEER))),
    ]
    await talk.until_turns(3)
    waiting.append(asyncio.create_task(collect(talk.stream("Three"))))
    await talk.until_turns(4)
    await talk.release(turn_id)
    compaction, three = await asyncio.gather(*waiting)
    stream.cancel()
    assert items(compaction) == ["queued", "event", "turn_end"]
    assert compaction[0].queued.position == 1
    assert items(three)[0] == "queued"
    # What the interrupted turn was asked is not answered, and stays.
    event = stored(compaction)[0]
    assert event.compaction.events_compacted == 2
    assert [e.sequence for e in stored(three)] == [event.sequence + 1, event.sequence + 2]


async def test_an_input_is_not_steered_into_a_compaction(plain: Running) -> None:
    talk = await Talk(plain).begin(ANSWER, summary=[{"pause_ms": 300}, *SUMMARY])
    await talk.send("One")
    compaction = asyncio.create_task(collect(compact(talk)))
    await talk.until_turns(2)
    steered = await talk.send("Two", when_busy=event_service_pb2.WHEN_BUSY_STEER)
    assert items(await compaction) == ["event", "turn_end"]
    assert items(steered)[0] == "queued"
    assert len(await talk.turns()) == 3


async def test_a_compaction_is_interrupted(hansard: Running) -> None:
    talk = await Talk(hansard).begin(ANSWER, summary=[{"pause_ms": 60_000}, *SUMMARY])
    await talk.send("One")
    compaction = asyncio.create_task(collect(compact(talk)))
    turns = await talk.until_turns(2)
    await talk.release(turns[-1].id)
    responses = await compaction
    assert items(responses) == ["event", "turn_end"]
    assert stored(responses)[0].HasField("session_interrupted")
    assert responses[-1].turn_end.turn.status == turn_pb2.TURN_STATUS_INTERRUPTED
    assert hidden_of(await talk.events(include_hidden=True)) == []


async def test_watchers_hear_of_each_hidden_event(hansard: Running) -> None:
    talk = await Talk(hansard).begin(ANSWER, summary=SUMMARY)
    for number in range(150):
        await talk.append(output(f"{number}"), output("More"))
    watch = talk.watch(after_sequence=300)
    source = aiter(watch)
    assert (await anext(source)).HasField("caught_up")
    await compacted(talk)
    event: event_pb2.Event | None = None
    changed: list[event_pb2.Event] = []
    while len(changed) < 300:
        response = await anext(source)
        if response.HasField("event"):
            event = response.event
        elif response.HasField("changed"):
            changed.append(response.changed.event)
    watch.cancel()
    assert event is not None
    assert event.HasField("compaction")
    assert sorted(e.sequence for e in changed) == list(range(1, 301))
    assert {e.hide_reason for e in changed} == {event_pb2.HIDE_REASON_COMPACTION}


async def test_summarised_events_can_be_shown_again_and_deleted(hansard: Running) -> None:
    talk = await Talk(hansard).begin(CALLS, summary=SUMMARY)
    await talk.send("One")
    events = await talk.events()
    compaction = stored(await compacted(talk))[0]
    named = {"event_id": events[1].id, **talk.keys}
    await hansard.events.HideEvent(event_service_pb2.HideEventRequest(**named))
    assert hidden_of(await talk.events(include_hidden=True)) == [1, 2, 3, 4, 5, 6]
    await hansard.events.UnhideEvent(event_service_pb2.UnhideEventRequest(**named))
    assert [e.sequence for e in await talk.events()] == [2, 4, 7]
    # The summary still stands before what came back.
    assert [line.split()[1] for line in await seen_by_model(talk)] == [
        *("compaction:", "tool_input:", "tool_output:", "input_message:")
    ]
    await hansard.events.DeleteEvent(
        event_service_pb2.DeleteEventRequest(event_id=compaction.id, **talk.keys)
    )
    assert (await talk.turns())[1].input == turn_pb2.TurnInput()
    assert [e.sequence for e in await talk.events()][:2] == [2, 4]


async def test_a_fork_has_the_summary_and_not_what_it_hides(hansard: Running) -> None:
    talk = await Talk(hansard).begin(CALLS, summary=SUMMARY)
    await talk.send("One")
    await compacted(talk)
    await talk.send("Two")
    await hansard.sessions.CreateSession(
        session_service_pb2.CreateSessionRequest(
            agent_key="agent",
            key="fork",
            name="Fork",
            from_session={"session_key": "s"},
        )
    )
    fork = talk.another("fork")
    kinds = [e.WhichOneof("payload") for e in await fork.events(include_hidden=True)]
    assert kinds[:2] == ["compaction", "input_message"]
    assert [turn.input.WhichOneof("input") for turn in await fork.turns()] == [
        *("compact", "input_message")
    ]
    await compacted(fork)
    assert len(await fork.events()) == 1


async def test_by_threshold(hansard: Running) -> None:
    talk = await Talk(hansard).begin(echo="history", summary=SUMMARY)
    await keep(talk, threshold_tokens=700, keep_recent_inputs=1)
    told = []
    for text in ("One", "Two", "Three", "Four"):
        said = await talk.send(text + " bee" * 300)
        told += [e for e in stored(said) if e.HasField("compaction")]
    assert told
    every = await talk.events(include_hidden=True)
    inputs = [e for e in every if e.HasField("input_message")]
    # The running turn's input stays, and the one before it.
    assert [bool(e.hide_reason) for e in inputs] == [True, True, False, False]
    assert told[-1].turn_id == inputs[-1].turn_id
    compaction = every.index(told[-1])
    assert every[compaction - 1] == inputs[-1]


async def test_no_threshold_means_no_summary(plain: Running) -> None:
    talk = await Talk(plain).begin(echo="history", summary=SUMMARY)
    await keep(talk, enabled=False, threshold_tokens=100)
    for _ in range(3):
        assert not any(e.HasField("compaction") for e in stored(await talk.send("bee " * 200)))


async def test_a_threshold_summary_that_fails_does_not_harm_the_turn(plain: Running) -> None:
    talk = await Talk(plain).begin(echo="history", summary=[{"fail": "No."}])
    await keep(talk, threshold_tokens=100, keep_recent_inputs=0)
    await talk.send("bee " * 200)
    responses = await talk.send("And now?")
    assert responses[-1].turn_end.turn.status == turn_pb2.TURN_STATUS_COMPLETED
    assert hidden_of(await talk.events(include_hidden=True)) == []


async def test_the_extractive_model_summarises_by_quoting(plain: Running) -> None:
    talk = await Talk(plain).begin(ANSWER)
    await talk.set_model(agent_pb2.Model(name="hansard/extractive"))
    said = [
        "The harbour of Sluis silted up in 1480. Nobody dredged it.",
        "Why did the harbour of Sluis silt up?",
        "The river Zwin carried sand into the harbour of Sluis.",
    ]
    for text in said:
        await talk.append(event_pb2.EventDraft(input_message=message(text)), output(f"Yes: {text}"))
    summary = stored(await compacted(talk))[0].compaction.summary_text
    assert "The river Zwin carried sand into the harbour of Sluis." in summary
    assert all(
        line.split(": ")[-1].strip() in " ".join(said) + "Yes:" for line in summary.split("\n")
    )


async def collect(stream: Any) -> list[Any]:
    return [response async for response in stream]


async def _drain(stream: Any) -> None:
    async for _ in stream:
        pass
