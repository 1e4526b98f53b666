"""Turns that wait for somebody: approvals, tools of clients, and what else may happen meanwhile."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import pytest

from hansard.v1 import (
    agent_pb2,
    agent_service_pb2,
    event_pb2,
    event_service_pb2,
    session_pb2,
    session_service_pb2,
    turn_pb2,
    turn_service_pb2,
)
from tests.support.actions import (
    APPROVAL,
    CLIENT_TOOL,
    DONE,
    TOOLS,
    answer,
    answer_call,
    approve,
    ask,
    begin,
    calls_of,
    kinds_of,
    make,
    output,
    pending,
    reject,
)
from tests.support.server import Running, failure
from tests.support.talk import Talk, check_turn, items, rating, stored, take

COMPLETED = turn_pb2.TURN_STATUS_COMPLETED
INTERRUPTED = turn_pb2.TURN_STATUS_INTERRUPTED
WAITS = turn_pb2.TURN_STATUS_REQUIRES_ACTION


async def session_of(talk: Talk) -> session_pb2.Session:
    return await talk.server.sessions.GetSession(session_service_pb2.GetSessionRequest(**talk.keys))


async def files_of(talk: Talk) -> list[str]:
    """Return the names of the files that were made."""
    return [
        file.filename
        for event in await talk.events(types=["artifact_upload"])
        for file in event.artifact_upload.artifacts
    ]


async def test_client_tool_stops_the_turn_and_its_result_goes_on(hansard: Running) -> None:
    talk = await begin(Talk(hansard), [ask(), DONE])
    waiting = await talk.send()
    check_turn(waiting)
    (call_id,) = calls_of(waiting)
    assert pending(waiting) == {call_id: CLIENT_TOOL}
    assert (await session_of(talk)).status == session_pb2.SESSION_STATUS_REQUIRES_ACTION

    text = '{"eggs": 9007199254740993,  "b": 1.0}'
    responses = await answer(talk, output(call_id, text))
    check_turn(responses)
    assert kinds_of(responses) == ["tool_output COMPLETED", "agent_output"]
    first = responses[0].event
    assert (first.tool_output.tool_output_json, first.tool_output.tool_call_id) == (text, call_id)
    assert (first.tool_output.tool_configuration_name, first.tool_output.tool_name) == (
        "ask",
        "client",
    )
    turn = responses[-1].turn_end.turn
    assert (turn.id, turn.status, turn.attempt) == (waiting[0].turn_id, COMPLETED, 1)
    assert not turn.pending_calls
    assert await talk.events() == stored(waiting) + stored(responses)
    assert (await session_of(talk)).status == session_pb2.SESSION_STATUS_IDLE


async def test_approved_tool_runs_then_and_not_before(hansard: Running) -> None:
    talk = await begin(Talk(hansard), [make(), DONE])
    waiting = await talk.send()
    assert pending(waiting) == {calls_of(waiting)[0]: APPROVAL}
    assert await files_of(talk) == []
    responses = await answer(talk, approve(calls_of(waiting)[0]))
    check_turn(responses)
    assert kinds_of(responses) == ["tool_output COMPLETED", "artifact_upload", "agent_output"]
    assert await files_of(talk) == ["a.txt"]


async def test_rejected_tool_never_runs_and_the_model_is_told(hansard: Running) -> None:
    talk = await begin(Talk(hansard), [make(), DONE])
    (call_id,) = calls_of(await talk.send())
    responses = await answer(talk, reject(call_id, "Not on a Sunday."))
    assert kinds_of(responses) == ["tool_output REJECTED", "agent_output"]
    said = json.loads(responses[0].event.tool_output.tool_output_json)
    assert said == {"error": "the call was rejected", "reason": "Not on a Sunday."}
    assert responses[0].event.tool_output.error
    assert await files_of(talk) == []


async def test_error_of_a_client_and_a_client_that_will_not(hansard: Running) -> None:
    talk = await begin(Talk(hansard), [ask(), ask(), DONE])
    first, second = calls_of(await talk.send())
    responses = await answer(talk, reject(second), output(first, "null", error=True))
    assert kinds_of(responses)[:2] == ["tool_output FAILED", "tool_output REJECTED"]
    assert responses[-1].turn_end.turn.status == COMPLETED


async def test_calls_that_need_nobody_run_first(hansard: Running) -> None:
    script = [make("b.txt"), make("c.txt", "make_at_once"), ask(), DONE]
    talk = await begin(Talk(hansard), script)
    waiting = await talk.send()
    assert kinds_of(waiting) == [
        *("input_message", "tool_input", "tool_input", "tool_input"),
        *("tool_output COMPLETED", "artifact_upload"),
    ]
    made, at_once, asked = calls_of(waiting)
    assert pending(waiting) == {made: APPROVAL, asked: CLIENT_TOOL}
    assert stored(waiting)[4].tool_output.tool_call_id == at_once
    responses = await answer(talk, approve(made), output(asked))
    assert kinds_of(responses) == [
        *("tool_output COMPLETED", "tool_output COMPLETED", "artifact_upload", "agent_output"),
    ]
    assert await files_of(talk) == ["c.txt", "b.txt"]


async def test_some_answers_leave_the_turn_waiting(hansard: Running) -> None:
    talk = await begin(Talk(hansard), [make(), ask(), make("b.txt"), DONE])
    first, asked, second = calls_of(await talk.send())

    # An approval alone is no event: nothing but what is still awaited.
    partial = await answer(talk, approve(first))
    assert items(partial) == ["requires_action"]
    check_turn(partial)
    assert pending(partial) == {asked: CLIENT_TOOL, second: APPROVAL}
    assert await files_of(talk) == []

    partial = await answer(talk, output(asked))
    assert items(partial) == ["event", "requires_action"]
    assert pending(partial) == {second: APPROVAL}

    responses = await answer(talk, reject(second))
    check_turn(responses)
    assert kinds_of(responses) == [
        *("tool_output REJECTED", "tool_output COMPLETED", "artifact_upload", "agent_output")
    ]
    assert await files_of(talk) == ["a.txt"]
    outputs = [e.tool_output.tool_call_id for e in await talk.events(types=["tool_output"])]
    assert sorted(outputs) == sorted([first, asked, second])


async def test_client_tool_that_needs_an_approval_is_asked_for_twice(hansard: Running) -> None:
    tools = {"ask": {**TOOLS["ask"], "require_approval": True}}
    talk = await begin(Talk(hansard), [ask(), DONE], tools)
    waiting = await talk.send()
    (call_id,) = calls_of(waiting)
    assert pending(waiting) == {call_id: APPROVAL}
    approved = await answer(talk, approve(call_id))
    assert items(approved) == ["requires_action"]
    assert pending(approved) == {call_id: CLIENT_TOOL}
    responses = await answer(talk, output(call_id))
    assert kinds_of(responses) == ["tool_output COMPLETED", "agent_output"]


async def test_turn_may_wait_again_and_again(hansard: Running) -> None:
    pause = {"pause_ms": 0}
    talk = await begin(Talk(hansard), [ask(), pause, make(), pause, ask(), DONE])
    watching = talk.watch(include_deltas=True)
    responses = await talk.send()
    sent = stored(responses)
    for give in (output, approve, output):
        (call_id,) = pending(responses)
        responses = await answer(talk, give(call_id))
        sent += stored(responses)
    assert responses[-1].turn_end.turn.status == COMPLETED
    assert await talk.events() == sent
    # Whoever watches is told of every stop, each once.
    stops = []
    async for response in watching:
        if response.HasField("turn_end"):
            stops.append(response.turn_end.turn.status)
            if len(stops) == 4:
                break
    assert stops == [WAITS, WAITS, WAITS, COMPLETED]


# What is refused ----------------------------------------------------------------------------------


async def test_answers_that_do_not_fit_are_refused_and_change_nothing(hansard: Running) -> None:
    talk = await begin(Talk(hansard), [make(), ask(), DONE])
    idle = await failure(answer(talk, output("call_x")))
    assert (idle.code, idle.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "TOOL_CALL_NOT_PENDING",
    )
    made, asked = calls_of(await talk.send())
    before = (await talk.turns())[0]
    for results, reason, field in (
        ([output("call_x")], "TOOL_CALL_NOT_PENDING", "tool_results.results[0].tool_call_id"),
        ([output(made)], "INVALID_REQUEST", "tool_results.results[0].output"),
        (
            [output(asked), approve(asked)],
            "INVALID_REQUEST",
            "tool_results.results[1].tool_call_id",
        ),
        ([output(asked), output(made)], "INVALID_REQUEST", "tool_results.results[1].output"),
        ([approve(asked)], "INVALID_REQUEST", "tool_results.results[0].approve"),
        (
            [output(asked, "{")],
            "INVALID_MESSAGE_CONTENT",
            "tool_results.results[0].output.tool_output_json",
        ),
        (
            [output(asked, '"' + "x" * 1_100_000 + '"')],
            "PAYLOAD_TOO_LARGE",
            "tool_results.results[0].output.tool_output_json",
        ),
        (
            [event_service_pb2.ToolResult(tool_call_id=asked)],
            "INVALID_REQUEST",
            "tool_results.results[0].answer",
        ),
        ([], "INVALID_REQUEST", "tool_results.results"),
    ):
        refused = await failure(answer(talk, *results))
        assert (refused.reason, refused.fields) == (reason, (field,)), results
    assert (await talk.turns())[0] == before
    await answer(talk, output(asked))
    again = await failure(answer(talk, output(asked)))
    assert again.reason == "TOOL_CALL_NOT_PENDING"
    await answer(talk, approve(made))
    assert (await failure(answer(talk, approve(made)))).reason == "TOOL_CALL_NOT_PENDING"


async def test_expected_last_sequence_of_answers(hansard: Running) -> None:
    talk = await begin(Talk(hansard), [ask(), DONE])
    waiting = await talk.send()
    (call_id,) = calls_of(waiting)
    last = waiting[-1].sequence
    refused = await failure(answer(talk, output(call_id), expected_last_sequence=last - 1))
    assert (refused.reason, refused.metadata) == (
        "SEQUENCE_MISMATCH",
        {"last_sequence": str(last)},
    )
    responses = await answer(talk, output(call_id), expected_last_sequence=last)
    assert responses[-1].turn_end.turn.status == COMPLETED


async def test_two_clients_answer_at_once_and_one_wins(hansard: Running) -> None:
    talk = await begin(Talk(hansard), [make(), DONE])
    for number in range(8):
        (call_id,) = calls_of(await talk.send())
        results = await asyncio.gather(
            answer(talk, approve(call_id)),
            answer(talk, reject(call_id)),
            return_exceptions=True,
        )
        losers = [each for each in results if isinstance(each, grpc.aio.AioRpcError)]
        assert len(losers) == 1, results
        assert losers[0].code() is grpc.StatusCode.FAILED_PRECONDITION
        won = next(each for each in results if isinstance(each, list))
        assert won[-1].turn_end.turn.status == COMPLETED, number


# The same request again ---------------------------------------------------------------------------


async def test_answers_under_one_request_id_take_effect_once(hansard: Running) -> None:
    talk = await begin(Talk(hansard), [make(), ask(), {"pause_ms": 0}, make("b.txt"), DONE])
    waiting = await talk.send(request_id="in")
    made, asked = calls_of(waiting)
    assert await talk.send(request_id="in") == waiting

    first = await answer(talk, approve(made), request_id="one")
    assert await answer(talk, approve(made), request_id="one") == first
    other = await failure(answer(talk, reject(made), request_id="one"))
    assert other.reason == "REQUEST_ID_REUSED"

    second = await answer(talk, output(asked), request_id="two")
    assert kinds_of(second) == [
        *("tool_output COMPLETED", "tool_output COMPLETED", "artifact_upload", "tool_input"),
    ]
    assert await answer(talk, output(asked), request_id="two") == second
    # The first answers' stream is told past the place where it ended, and so is the input's.
    again = await answer(talk, approve(made), request_id="one")
    assert (stored(again), pending(again)) == (stored(second), pending(second))

    (last,) = pending(second)
    third = await answer(talk, approve(last), request_id="three")
    assert third[-1].turn_end.turn.status == COMPLETED
    again = await answer(talk, approve(last), request_id="three")
    assert (stored(again), again[-1]) == (stored(third), third[-1])
    whole = await talk.send(request_id="in")
    assert stored(whole) == await talk.events()
    assert whole[-1].turn_end == third[-1].turn_end
    assert await files_of(talk) == ["a.txt", "b.txt"]


async def test_same_answers_at_once_are_one(hansard: Running) -> None:
    talk = await begin(Talk(hansard), [make(), DONE])
    (call_id,) = calls_of(await talk.send())
    streams = await asyncio.gather(
        *(answer(talk, approve(call_id), request_id="r") for _ in range(6))
    )
    for stream in streams:
        check_turn(stream)
        assert stored(stream) == stored(streams[0])
    assert await files_of(talk) == ["a.txt"]


async def test_detached_answer_ends_after_its_first_item(hansard: Running) -> None:
    talk = await begin(Talk(hansard), [ask(), DONE])
    (call_id,) = calls_of(await talk.send())
    responses = await answer(talk, output(call_id), detach=True, request_id="r")
    assert kinds_of(responses) == ["tool_output COMPLETED"]
    whole = await answer(talk, output(call_id), request_id="r")
    assert whole[-1].turn_end.turn.status == COMPLETED


# While it waits -----------------------------------------------------------------------------------


async def test_waiting_session_is_busy(hansard: Running) -> None:
    talk = await begin(Talk(hansard), [ask(), DONE])
    waiting = await talk.send()
    (call_id,) = calls_of(waiting)
    reject_mode = event_service_pb2.WHEN_BUSY_REJECT
    assert (await failure(talk_rest(talk, when_busy=reject_mode))).reason == "SESSION_BUSY"
    assert (await failure(talk_rest(talk, expected_last_sequence=3))).reason == "SESSION_BUSY"
    assert (await failure(talk.append(event_draft()))).reason == "SESSION_BUSY"
    assert await talk.append(rating()) == [3]
    hidden = await failure(
        hansard.events.HideEvent(
            event_service_pb2.HideEventRequest(event_id=waiting[1].event.id, **talk.keys)
        )
    )
    assert hidden.reason == "SESSION_BUSY"

    queued = talk.stream("B")
    assert items(await take(queued, 1)) == ["queued"]
    await answer(talk, output(call_id))
    rest = [response async for response in queued]
    assert pending(rest)
    # What was written between input and output comes after them in the record of the model.
    assert kinds_of(rest) == ["input_message", "tool_input"]


async def test_steered_input_waits_with_the_turn(hansard: Running) -> None:
    talk = await begin(Talk(hansard), [ask(), DONE])
    (call_id,) = calls_of(await talk.send())
    steer = event_service_pb2.WHEN_BUSY_STEER
    steered = await talk.send("And hurry.", when_busy=steer, request_id="s")
    assert items(steered) == ["event", "requires_action"]
    assert pending(steered) == {call_id: CLIENT_TOOL}
    responses = await answer(talk, output(call_id))
    assert responses[-1].turn_end.turn.status == COMPLETED
    assert kinds_of(responses) == ["tool_output COMPLETED", "agent_output"]
    again = await talk.send("And hurry.", when_busy=steer, request_id="s")
    assert stored(again) == stored(steered) + stored(responses)


async def talk_rest(talk: Talk, **fields: Any) -> Any:
    return await talk.send("B", **fields)


def event_draft() -> event_pb2.EventDraft:
    return event_pb2.EventDraft(agent_output=event_pb2.AgentOutput(content="x"))


@pytest.mark.parametrize("how", ["interrupt", "cancel", "another"])
async def test_waiting_turn_is_ended(hansard: Running, how: str) -> None:
    talk = await begin(Talk(hansard), [make(), ask(), DONE])
    waiting = await talk.send(request_id="in")
    made, asked = calls_of(waiting)
    await answer(talk, approve(made))
    if how == "interrupt":
        request = event_service_pb2.SendEventRequest(interrupt={}, request_id="i", **talk.keys)
        said = [r async for r in hansard.events.SendEvent(request)]
        assert said == [r async for r in hansard.events.SendEvent(request)]
        assert kinds_of(said) == ["session_interrupted", *["tool_output INTERRUPTED"] * 2]
        turn = said[-1].turn_end.turn
    elif how == "cancel":
        turn = await talk.release(waiting[0].turn_id)
    else:
        interrupt = event_service_pb2.WHEN_BUSY_INTERRUPT
        other = await talk.send("B", when_busy=interrupt)
        assert len(pending(other)) == 2
        turn = (await talk.turns())[0]
        await talk.release(other[0].turn_id)
    assert (turn.status, len(turn.pending_calls)) == (INTERRUPTED, 0)
    refused = await failure(answer(talk, output(asked)))
    assert refused.reason == "TOOL_CALL_NOT_PENDING"
    whole = await talk.send(request_id="in")
    assert whole[-1].turn_end.turn == turn
    assert kinds_of(whole)[3:] == ["session_interrupted", *["tool_output INTERRUPTED"] * 2]
    assert await files_of(talk) == []
    assert (await session_of(talk)).status == session_pb2.SESSION_STATUS_IDLE


async def test_next_input_runs_when_a_waiting_turn_is_ended(hansard: Running) -> None:
    talk = await begin(Talk(hansard), [ask(), DONE])
    waiting = await talk.send()
    queued = talk.stream("B")
    assert items(await take(queued, 1)) == ["queued"]
    await talk.release(waiting[0].turn_id)
    assert pending([r async for r in queued])


async def test_deleted_session_ends_its_waiting_turn(hansard: Running) -> None:
    talk = await begin(Talk(hansard), [ask(), DONE])
    (call_id,) = calls_of(await talk.send())
    await hansard.sessions.DeleteSession(
        session_service_pb2.DeleteSessionRequest(agent_key="agent", session_key="s")
    )
    assert (await failure(answer(talk, output(call_id)))).reason == "SESSION_NOT_FOUND"
    await talk.open_session()
    assert (await failure(answer(talk, output(call_id)))).reason == "TOOL_CALL_NOT_PENDING"


async def test_disabled_session_takes_no_answers(hansard: Running) -> None:
    talk = await begin(Talk(hansard), [ask(), DONE])
    (call_id,) = calls_of(await talk.send())

    async def enable(*, enabled: bool) -> None:
        session = session_pb2.Session(agent_key="agent", key="s", enabled=enabled)
        await hansard.sessions.UpdateSession(
            session_service_pb2.UpdateSessionRequest(
                session=session, update_mask={"paths": ["enabled"]}
            )
        )

    await enable(enabled=False)
    assert (await failure(answer(talk, output(call_id)))).reason == "SESSION_DISABLED"
    await enable(enabled=True)
    assert (await answer(talk, output(call_id)))[-1].turn_end.turn.status == COMPLETED


async def test_fork_of_a_waiting_session_has_no_open_calls(hansard: Running) -> None:
    talk = await begin(Talk(hansard), [make(), ask(), DONE])
    made, asked = calls_of(await talk.send())
    await answer(talk, approve(made))
    source = session_pb2.FromSession(session_key="s")
    await hansard.sessions.CreateSession(
        session_service_pb2.CreateSessionRequest(
            agent_key="agent", key="fork", name="Fork", from_session=source
        )
    )
    fork = talk.another("fork")
    outputs = [e.tool_output for e in await fork.events(types=["tool_output"])]
    assert {o.tool_call_id: o.outcome for o in outputs} == dict.fromkeys(
        [made, asked], event_pb2.TOOL_OUTCOME_INTERRUPTED
    )
    (turn,) = await fork.turns()
    assert (turn.status, len(turn.pending_calls)) == (INTERRUPTED, 0)
    assert (await failure(answer(fork, output(asked)))).reason == "TOOL_CALL_NOT_PENDING"
    assert (await answer(talk, output(asked)))[-1].turn_end.turn.status == COMPLETED


# What will run ------------------------------------------------------------------------------------


async def test_what_was_shown_to_the_approver_is_what_runs(hansard: Running) -> None:
    override = {"filename": "${session.metadata.name}.txt"}
    tools = {"make": {**TOOLS["make"], "argument_override": override}}
    talk = await begin(Talk(hansard), [make("mine.txt"), DONE], tools)

    async def rename(name: str) -> None:
        session = session_pb2.Session(agent_key="agent", key="s", metadata={})
        session.metadata.update({"name": name})
        await hansard.sessions.UpdateSession(
            session_service_pb2.UpdateSessionRequest(
                session=session, update_mask={"paths": ["metadata"]}
            )
        )

    await rename("shown")
    waiting = await talk.send()
    (call,) = waiting[-1].requires_action.turn.pending_calls
    assert json.loads(call.argument_override_json) == {"filename": "shown.txt"}
    await rename("another")
    await hansard.agents.UpdateAgent(
        agent_service_pb2.UpdateAgentRequest(
            agent=agent_pb2.Agent(
                key="agent",
                tool_configurations={"make": agent_pb2.ToolConfiguration(artifact_create={})},
            ),
            update_mask={"paths": ["tool_configurations"]},
        )
    )
    await answer(talk, approve(call.tool_call_id))
    assert await files_of(talk) == ["shown.txt"]


async def test_calls_that_can_not_be_run_are_not_asked_for(hansard: Running) -> None:
    bad = [
        {"tool_call": {"name": "make", "input": {"nonsense": 1}}},
        {"tool_call": {"name": "ask", "input": {"question": 1}}},
        {"tool_call": {"name": "ask", "input_json": "{"}},
        DONE,
    ]
    talk = await begin(Talk(hansard), bad)
    responses = await talk.send()
    assert responses[-1].turn_end.turn.status == COMPLETED
    assert kinds_of(responses)[4:7] == ["tool_output FAILED"] * 3


@pytest.mark.parametrize(
    "schema",
    [
        "{",
        "[]",
        '{"type": "string"}',
        '{"type": "object", "properties": 3}',
        '{"type": "object", "properties": {"x": {"$ref": "http://127.0.0.1/x"}}}',
    ],
)
async def test_schema_of_a_client_tool_that_can_not_be_used(plain: Running, schema: str) -> None:
    tools = {"ask": {"client": {"input_schema_json": schema}}}
    refused = await failure(begin(Talk(plain), [DONE], tools))
    assert refused.reason == "INVALID_AGENT_CONFIGURATION"
    assert refused.fields == ("tool_configurations.ask.client.input_schema_json",)


# Time ---------------------------------------------------------------------------------------------


async def test_call_that_nobody_answers_in_time_is_closed(hansard: Running) -> None:
    tools = {
        "ask": {**TOOLS["ask"], "action_timeout": "0.3s"},
        "make": {**TOOLS["make"], "action_timeout": "3600s"},
    }
    talk = await begin(Talk(hansard), [make(), ask(), DONE], tools)
    waiting = await talk.send()
    made, asked = calls_of(waiting)
    async with asyncio.timeout(60):
        async for response in talk.watch(waiting[-1].sequence):
            if response.HasField("event"):
                break
    closed = response.event.tool_output
    assert (closed.tool_call_id, closed.outcome) == (asked, event_pb2.TOOL_OUTCOME_TIMED_OUT)
    assert (await failure(answer(talk, output(asked)))).reason == "TOOL_CALL_NOT_PENDING"
    (turn,) = await talk.turns()
    assert [call.tool_call_id for call in turn.pending_calls] == [made]
    responses = await answer(talk, approve(made))
    assert responses[-1].turn_end.turn.status == COMPLETED


async def test_turn_goes_on_when_all_it_waited_for_has_timed_out(hansard: Running) -> None:
    tools = {"ask": {**TOOLS["ask"], "action_timeout": "0.2s"}}
    talk = await begin(Talk(hansard), [ask(), ask(), DONE], tools)
    await talk.send(request_id="r")
    async with asyncio.timeout(60):
        async for response in talk.watch(include_deltas=True):
            if response.turn_end.turn.status == COMPLETED:
                break
    whole = await talk.send(request_id="r")
    assert kinds_of(whole)[3:] == [*["tool_output TIMED_OUT"] * 2, "agent_output"]


async def test_waiting_session_does_not_expire(hansard: Running) -> None:
    talk = await begin(Talk(hansard), [ask(), DONE])
    (call_id,) = calls_of(await talk.send())
    session = session_pb2.Session(agent_key="agent", key="s", tti_minutes=1)
    updated = await hansard.sessions.UpdateSession(
        session_service_pb2.UpdateSessionRequest(
            session=session, update_mask={"paths": ["tti_minutes"]}
        )
    )
    assert not updated.HasField("expire_at")
    await answer(talk, output(call_id))
    assert (await session_of(talk)).HasField("expire_at")


async def test_answer_of_a_client_that_goes_away_counts(hansard: Running) -> None:
    talk = await begin(Talk(hansard), [make(), {"pause_ms": 200}, DONE])
    (call_id,) = calls_of(await talk.send())
    call = answer_call(talk, approve(call_id), request_id="r")
    assert kinds_of(await take(call, 1)) == ["tool_output COMPLETED"]
    call.cancel()
    whole = await answer(talk, approve(call_id), request_id="r")
    assert whole[-1].turn_end.turn.status == COMPLETED
    got = await hansard.turns.GetTurn(
        turn_service_pb2.GetTurnRequest(turn_id=whole[0].turn_id, **talk.keys)
    )
    assert got == whole[-1].turn_end.turn
