"""SendEvent: the whole turn, as it happens and as it is stored, on the bytes."""

from __future__ import annotations

import asyncio
import random
import re
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import create_engine

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
from hansard_server.domain.records import EventType
from hansard_server.repository.sql.store import SqlStore
from hansard_server.turns import keeper
from tests.support.invariants import check_invariants
from tests.support.server import Running, failure, make_settings, running_server
from tests.support.talk import (
    ANSWER,
    THOUGHT,
    TWENTY_DELTAS,
    Talk,
    check_turn,
    content,
    items,
    joined_deltas,
    message,
    model,
    stored,
)
from tests.wire.conftest import agent_request

SEED = 5
PAUSED = [{"agent_output": {"deltas": ["one ", "two"], "pause_ms": 150}}]


async def test_turn_of_twenty_deltas_and_two_events(hansard: Running) -> None:
    talk = await Talk(hansard).begin(TWENTY_DELTAS)
    responses = await talk.send("Hello?")
    check_turn(responses)
    events = stored(responses)
    assert [event.WhichOneof("payload") for event in events] == [
        "input_message",
        "thinking",
        "agent_output",
    ]
    assert events[0].input_message == message("Hello?")
    assert (content(events[1]), content(events[2])) == (THOUGHT, ANSWER)
    assert set(joined_deltas(responses)) == {events[1].id, events[2].id}
    assert [event.sequence for event in events] == [1, 2, 3]
    assert responses[0].session_uid == talk.uid
    turn = responses[-1].turn_end.turn
    assert turn.status == turn_pb2.TURN_STATUS_COMPLETED
    assert (turn.first_sequence, turn.last_sequence, turn.attempt) == (1, 3, 1)
    assert turn.input.input_message == message("Hello?")
    assert turn.created_at.ToNanoseconds() <= turn.ended_at.ToNanoseconds()
    assert {event.turn_id for event in events} == {turn.id}
    assert all(re.fullmatch(r"aev_[0-9a-z]+", event.id) for event in events)
    assert await talk.events() == events
    session = await talk.server.sessions.GetSession(_get(talk))
    assert (session.status, session.last_sequence) == (session_pb2.SESSION_STATUS_IDLE, 3)


async def test_deltas_come_while_the_agent_speaks(hansard: Running) -> None:
    talk = await Talk(hansard).begin(
        [{"agent_output": {"deltas": list("abcdefghij"), "pause_ms": 20}}]
    )
    responses = await talk.send()
    check_turn(responses)
    kinds = items(responses)
    # Shown piece by piece, before its event was stored.
    deltas = kinds.count("delta")
    assert kinds == ["event", *["delta"] * deltas, "event", "turn_end"]
    assert deltas > 1


async def test_events_are_on_disk_before_they_are_sent(hansard: Running, store_url: str) -> None:
    script = [{"thinking": {"content": "a"}}, {"pause_ms": 50}, {"agent_output": {"content": "b"}}]
    talk = await Talk(hansard).begin(script)
    engine = create_engine(store_url)
    seen = 0
    async for response in talk.stream():
        if response.HasField("event"):
            with engine.connect() as connection:
                rows = connection.exec_driver_sql(
                    f"SELECT id FROM events WHERE sequence = {response.event.sequence}"  # noqa: S608
                ).all()
            assert [tuple(row) for row in rows] == [(response.event.id,)]
            seen += 1
    assert seen == 3
    with engine.connect() as connection:
        check_invariants(connection)
    engine.dispose()


async def test_no_deltas_when_none_are_wanted(hansard: Running) -> None:
    talk = await Talk(hansard).begin(TWENTY_DELTAS)
    responses = await talk.send(deltas=event_service_pb2.DELTA_MODE_NONE)
    assert items(responses) == ["event", "event", "event", "turn_end"]


async def test_detached_input_ends_its_stream_after_the_first_item(hansard: Running) -> None:
    talk = await Talk(hansard).begin(TWENTY_DELTAS)
    responses = await talk.send(detach=True, request_id="r")
    assert items(responses) == ["event"]
    check_turn(await talk.send(request_id="r"))
    assert len(await talk.events()) == 3


async def test_tool_calls_are_stored_step_by_step(hansard: Running) -> None:
    call = {"tool_call": {"name": "lookup", "input": {"q": 1}, "output": {"r": [1, 2]}}}
    other = {"tool_call": {"name": "other", "input": {}, "output": {}, "error": True}}
    script = [{"thinking": {"content": "hm"}}, call, other, {"agent_output": {"content": "done"}}]
    talk = await Talk(hansard).begin(script)
    responses = await talk.send()
    check_turn(responses)
    events = stored(responses)
    kinds = [event.WhichOneof("payload") for event in events]
    assert kinds == [
        "input_message",
        "thinking",
        "tool_input",
        "tool_input",
        "tool_output",
        "tool_output",
        "agent_output",
    ]
    calls = [event.tool_input.tool_call_id for event in events[2:4]]
    assert len(set(calls)) == 2
    assert [event.tool_output.tool_call_id for event in events[4:6]] == calls
    assert events[2].tool_input.tool_input_json == '{"q":1}'
    assert events[4].tool_output.tool_output_json == '{"r":[1,2]}'
    assert [event.tool_output.error for event in events[4:6]] == [False, True]
    assert events[5].tool_output.outcome == event_pb2.TOOL_OUTCOME_FAILED
    assert await talk.events() == events


@pytest.mark.parametrize("what", ["instructions", "history"])
async def test_echo_writes_what_the_model_was_given(hansard: Running, what: str) -> None:
    await hansard.agents.CreateAgent(
        agent_request(
            key="agent",
            model=model(echo=what),
            first_step={"instructions": [{"inline": {"name": "i", "template": "Be brief."}}]},
        )
    )
    talk = await Talk(hansard).open_session()
    await talk.send("My first words")
    events = stored(await talk.send("My second words"))
    thought = content(events[1])
    if what == "instructions":
        assert "Be brief." in thought
    else:
        assert thought.index("My first words") < thought.index("My second words")
    assert events[-1].agent_output.content


async def test_failing_agent_ends_its_turn_with_a_reason(hansard: Running) -> None:
    script = [{"agent_output": {"deltas": ["half an "], "pause_ms": 0}}, {"fail": "out of order"}]
    talk = await Talk(hansard).begin(script)
    responses = await talk.send()
    check_turn(responses)
    turn = responses[-1].turn_end.turn
    assert turn.status == turn_pb2.TURN_STATUS_FAILED
    assert "out of order" in turn.error.message
    assert turn.error.code == grpc.StatusCode.INTERNAL.value[0]
    assert b"AGENT_PROCESSING_FAILED" in turn.error.details[0].value
    assert content(stored(responses)[-1]) == "half an "
    # The session goes on.
    assert items(await talk.send())[-1] == "turn_end"


async def test_unknown_model_ends_the_turn(hansard: Running) -> None:
    await hansard.agents.CreateAgent(agent_request(key="agent", model={"name": "acme/unknown"}))
    talk = await Talk(hansard).open_session()
    turn = (await talk.send())[-1].turn_end.turn
    assert turn.status == turn_pb2.TURN_STATUS_FAILED
    assert turn.error.code == grpc.StatusCode.UNAVAILABLE.value[0]
    assert b"MODEL_UNAVAILABLE" in turn.error.details[0].value


async def test_two_inputs_at_once_run_one_after_the_other(hansard: Running) -> None:
    talk = await Talk(hansard).begin(PAUSED)
    first, second = await asyncio.gather(talk.send("A"), talk.send("B"))
    for responses in (first, second):
        check_turn(responses)
    queued = [responses for responses in (first, second) if items(responses)[0] == "queued"]
    (waited,) = queued
    ran = second if waited is first else first
    assert waited[0].queued.position == 1
    assert "queued" not in items(ran)
    assert items(waited)[1] == "event"
    assert [event.sequence for event in stored(ran)] == [1, 2]
    assert [event.sequence for event in stored(waited)] == [3, 4]
    assert ran[-1].turn_end.turn.ended_at.ToNanoseconds() <= (
        waited[-1].turn_end.turn.started_at.ToNanoseconds()
    )


async def test_waiting_inputs_have_no_events(hansard: Running) -> None:
    talk = await Talk(hansard).begin(TWENTY_DELTAS)
    first, turn_id = await talk.hold()
    others = [asyncio.create_task(talk.send(f"{number}")) for number in range(3)]
    turns = await talk.until_turns(4)
    assert [turn.status for turn in turns] == [
        turn_pb2.TURN_STATUS_RUNNING,
        *[turn_pb2.TURN_STATUS_QUEUED] * 3,
    ]
    assert [turn.first_sequence for turn in turns[1:]] == [0, 0, 0]
    assert len(await talk.events()) == 2
    await talk.release(turn_id)
    await _drain(first)
    streams = await asyncio.gather(*others)
    for stream in streams:
        check_turn(stream)
    positions = sorted(stream[0].queued.position for stream in streams)
    assert positions == [1, 2, 3]
    order = sorted(streams, key=lambda stream: stream[0].queued.position)
    assert [stored(stream)[0].sequence for stream in order] == [4, 7, 10]


async def test_seventeenth_waiting_input_is_refused(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    _, turn_id = await talk.hold()
    for _ in range(16):
        assert items(await talk.send(detach=True)) == ["queued"]
    refused = await failure(_drain(talk.stream()))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert refused.retry_s is not None
    assert len(await talk.turns()) == 17
    await talk.release(turn_id)


async def test_reject_and_expected_sequence_refuse_a_busy_session(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    running, turn_id = await talk.hold()
    for fields in (
        {"when_busy": event_service_pb2.WHEN_BUSY_REJECT},
        {"expected_last_sequence": 2},
    ):
        refused = await failure(_drain(talk.stream("B", **fields)))
        assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "SESSION_BUSY")
    await talk.release(turn_id)
    await _drain(running)
    refused = await failure(_drain(talk.stream("B", expected_last_sequence=1)))
    assert (refused.reason, refused.metadata["last_sequence"]) == ("SEQUENCE_MISMATCH", "3")
    check_turn(await talk.send("B", expected_last_sequence=3))
    assert len(await talk.events()) == 5


# Once and only once -------------------------------------------------------------------------------


async def test_same_request_id_at_once_is_one_turn(hansard: Running) -> None:
    talk = await Talk(hansard).begin(PAUSED)
    streams = await asyncio.gather(*(talk.send("A", request_id="r") for _ in range(5)))
    for stream in streams:
        check_turn(stream)
        assert stored(stream) == stored(streams[0])
        assert stream[-1].turn_end == streams[0][-1].turn_end
    assert len(await talk.turns()) == 1


async def test_reader_who_is_ahead_of_the_news_is_not_told_texts_again(
    hansard: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed, told = asyncio.Event(), asyncio.Event()
    deliver = SqlStore._deliver

    async def deliver_late(store: SqlStore, written: Any, changes: Any) -> None:
        await told.wait()
        deliver(store, written, changes)

    late: list[asyncio.Task[None]] = []

    def hold(store: SqlStore, written: Any, changes: Any) -> None:
        if any(
            event.type is EventType.AGENT_OUTPUT for change in changes for event in change.events
        ):
            late.append(asyncio.create_task(deliver_late(store, written, changes)))
            committed.set()
        else:
            deliver(store, written, changes)

    monkeypatch.setattr(SqlStore, "_deliver", hold)
    talk = await Talk(hansard).begin(TWENTY_DELTAS)
    async with asyncio.timeout(30):
        sending = asyncio.create_task(talk.send("A", request_id="r"))
        await committed.wait()
        # The server itself has not heard yet that both texts are stored, and has one of them open.
        watch = talk.watch(include_deltas=True)
        source = aiter(watch)
        watched = [await anext(source) for _ in range(4)]
        joined = await talk.send("A", request_id="r")
        told.set()
        sent = await sending
        watched.append(await anext(source))
    watch.cancel()
    for responses in (joined, sent):
        check_turn(responses)
        assert stored(responses) == await talk.events()
    assert items(watched) == ["event", "event", "event", "caught_up", "turn_end"]


async def test_same_request_id_after_a_restart_is_the_same_turn(
    store_url: str, tmp_path: Path
) -> None:
    settings = make_settings(tmp_path / "data", store_url)
    async with running_server(settings) as running:
        talk = await Talk(running).begin(TWENTY_DELTAS)
        first = await talk.send("A", request_id="r")
    async with running_server(settings) as running:
        again = await Talk(running).send("A", request_id="r")
        check_turn(again)
        assert stored(again) == stored(first)
        assert again[-1].turn_end == first[-1].turn_end
        assert len(await Talk(running).turns()) == 1


async def test_request_id_of_another_content_is_refused(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    first = await talk.send("A", request_id="r", when_busy=event_service_pb2.WHEN_BUSY_QUEUE)
    refused = await failure(_drain(talk.stream("B", request_id="r")))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "REQUEST_ID_REUSED")
    # What has no effect does not count, nor does a default that is left out.
    again = await talk.send(
        "A",
        request_id="r",
        session_uid=talk.uid,
        deltas=event_service_pb2.DELTA_MODE_NONE,
    )
    assert stored(again) == stored(first)
    assert len(await talk.turns()) == 1


async def test_repeat_comes_before_every_check_of_state(hansard: Running) -> None:
    talk = await Talk(hansard).begin(PAUSED)
    first = await talk.send("A", request_id="r", expected_last_sequence=0)
    busy = talk.stream("B")
    await anext(aiter(busy))
    again = await talk.send("A", request_id="r", expected_last_sequence=0)
    assert stored(again) == stored(first)
    [_ async for _ in busy]


async def test_waiting_input_can_be_joined(hansard: Running) -> None:
    talk = await Talk(hansard).begin(PAUSED)
    running = talk.stream("A")
    await anext(aiter(running))
    waiting, joined = await asyncio.gather(
        talk.send("B", request_id="r"), talk.send("B", request_id="r")
    )
    for stream in (waiting, joined):
        check_turn(stream)
        assert items(stream)[0] == "queued"
        assert stream[0].queued.position == 1
    assert stored(waiting) == stored(joined)


async def test_client_that_goes_away_misses_nothing(hansard: Running) -> None:
    talk = await Talk(hansard).begin(
        [{"agent_output": {"deltas": list("abcdefghijkl"), "pause_ms": 20}}]
    )
    stream = talk.stream("A", request_id="r")
    async for response in stream:
        if response.HasField("delta"):
            break
    stream.cancel()
    again = await talk.send("A", request_id="r")
    check_turn(again)
    assert joined_deltas(again)[stored(again)[-1].id] == b"abcdefghijkl"
    assert len(await talk.turns()) == 1


async def test_clients_that_go_away_at_any_moment_leave_no_session_busy(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody comes round to mend what was left undone.
    monkeypatch.setattr(keeper, "RECOVERY_INTERVAL_S", 600.0)
    settings = make_settings(tmp_path / "data", store_url, lease_s=1800.0)
    async with running_server(settings) as running, asyncio.timeout(60):
        await _send_and_leave(running)


async def _send_and_leave(hansard: Running) -> None:
    talk = await Talk(hansard).begin(TWENTY_DELTAS)
    rng = random.Random(SEED)
    sessions = [await talk.another(f"s{number}").open_session() for number in range(30)]

    async def send_and_leave(session: Talk) -> None:
        stream = session.stream("A", request_id="r")
        reading = asyncio.ensure_future(_drain(stream))
        await asyncio.wait([reading], timeout=rng.random() * 0.05)
        stream.cancel()
        await asyncio.wait([reading])

    await asyncio.gather(*(send_and_leave(session) for session in sessions))
    for session in sessions:
        again = await session.send("A", request_id="r")
        check_turn(again)
        assert again[-1].turn_end.turn.status == turn_pb2.TURN_STATUS_COMPLETED
        assert len(await session.events()) == 3


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"agent_key": "other"}, grpc.StatusCode.NOT_FOUND, "AGENT_NOT_FOUND"),
        ({"session_key": "other"}, grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND"),
        ({"session_uid": "foreign"}, grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND"),
        ({"request_id": "no spaces"}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ({"request_id": "r" * 129}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ({"expected_last_sequence": -1}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ({"when_busy": 77}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ({"input_message": {}}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        (
            {"interrupt": {"turn_id": "x"}},
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_REQUEST",
        ),
        (
            {"tool_results": {"results": [{"tool_call_id": "call_x", "approve": {}}]}},
            grpc.StatusCode.FAILED_PRECONDITION,
            "TOOL_CALL_NOT_PENDING",
        ),
        (
            {"compact": {"up_to_event_id": "aev_no"}},
            grpc.StatusCode.NOT_FOUND,
            "EVENT_NOT_FOUND",
        ),
        (
            {"compact": {"up_to_event_id": "no"}},
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_REQUEST",
        ),
        (
            {"input_message": {"messages": [{"text": {"content": " \n"}}]}},
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_MESSAGE_CONTENT",
        ),
        (
            {"input_message": {"messages": [{"artifact": {"artifact_id": "art_no"}}]}},
            grpc.StatusCode.NOT_FOUND,
            "ARTIFACT_NOT_FOUND",
        ),
    ],
)
async def test_bad_input_is_refused_and_nothing_stored(
    hansard: Running, fields: dict[str, object], code: grpc.StatusCode, reason: str
) -> None:
    talk = await Talk(hansard).begin()
    usual = {**talk.keys, "input_message": message("A"), "request_id": "r"}
    if {"interrupt", "compact", "tool_results"} & fields.keys():
        del usual["input_message"]
    request = event_service_pb2.SendEventRequest(**{**usual, **fields})
    refused = await failure(_drain(hansard.events.SendEvent(request)))
    assert (refused.code, refused.reason) == (code, reason)
    assert await talk.events() == []
    assert await talk.turns() == []
    # Nor was the request_id claimed.
    check_turn(await talk.send("B", request_id="r"))


async def test_input_at_its_limit_and_one_past_it(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    limit = 1024 * 1024
    check_turn(await talk.send("é" * (limit // 2)))
    refused = await failure(_drain(talk.stream("é" * (limit // 2) + "x")))
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "PAYLOAD_TOO_LARGE",
    )
    assert refused.fields == ("input_message.messages",)
    assert len(await talk.turns()) == 1


async def test_disabled_session_and_agent_take_no_input(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    await hansard.sessions.UpdateSession(
        session_service_pb2.UpdateSessionRequest(
            session=session_pb2.Session(agent_key="agent", key="s", enabled=False),
            update_mask={"paths": ["enabled"]},
        )
    )
    refused = await failure(_drain(talk.stream()))
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "SESSION_DISABLED",
    )
    await hansard.agents.UpdateAgent(
        agent_service_pb2.UpdateAgentRequest(
            agent=agent_pb2.Agent(key="agent", enabled=False), update_mask={"paths": ["enabled"]}
        )
    )
    refused = await failure(_drain(talk.stream()))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "AGENT_DISABLED")
    assert await talk.turns() == []


# Turns whose server stops ------------------------------------------------------------------------


async def test_turn_alive_at_the_drain_deadline_is_handed_on(
    store_url: str, tmp_path: Path
) -> None:
    call = {"tool_call": {"name": "slow", "input": {}, "output": {}, "pause_ms": 60_000}}
    script = [{"thinking": {"content": "hm"}}, call, {"agent_output": {"content": "done"}}]
    settings = make_settings(tmp_path / "data", store_url, drain_deadline_s=1.0)
    async with running_server(settings) as running:
        talk = await Talk(running).begin(script)
        stream = talk.stream("A", request_id="a")
        async for response in stream:
            if response.event.HasField("tool_input"):
                break
        assert items(await talk.send("B", request_id="b", detach=True)) == ["queued"]
        await talk.set_model(model([{"agent_output": {"content": "done"}}]))
        stopping = asyncio.create_task(running.server.stop())
        refused = await failure(_drain(stream))
        await stopping
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_SHUTTING_DOWN")
    assert refused.metadata["sequence"] == "3"
    assert refused.retry_s is not None
    async with running_server(settings) as running:
        talk = Talk(running)
        first = await talk.send("A", request_id="a")
        check_turn(first)
        turn = first[-1].turn_end.turn
        assert (turn.status, turn.attempt) == (turn_pb2.TURN_STATUS_COMPLETED, 1)
        assert [event.sequence for event in stored(first)] == [1, 2, 3, 4]
        # It could not be known whether the tool had had its effect.
        closed = stored(first)[3].tool_output
        assert (closed.outcome, closed.error) == (event_pb2.TOOL_OUTCOME_INTERRUPTED, True)
        second = await talk.send("B", request_id="b")
        assert second[-1].turn_end.turn.status == turn_pb2.TURN_STATUS_COMPLETED


async def test_turn_reads(hansard: Running) -> None:
    talk = await Talk(hansard).begin(TWENTY_DELTAS)
    ended = [(await talk.send(f"{n}"))[-1].turn_end.turn for n in range(3)]
    assert await talk.turns() == ended
    get = turn_service_pb2.GetTurnRequest(**talk.keys, turn_id=ended[1].id)
    assert await hansard.turns.GetTurn(get) == ended[1]
    for fields, reason in (
        ({"turn_id": "trn_no"}, "TURN_NOT_FOUND"),
        ({"session_key": "no"}, "SESSION_NOT_FOUND"),
    ):
        wrong = turn_service_pb2.GetTurnRequest(**{**talk.keys, "turn_id": "trn_a", **fields})
        assert (await failure(hansard.turns.GetTurn(wrong))).reason == reason
    page = await hansard.turns.ListTurns(
        turn_service_pb2.ListTurnsRequest(**talk.keys, page_size=2, order=2)
    )
    rest = await hansard.turns.ListTurns(
        turn_service_pb2.ListTurnsRequest(
            **talk.keys,
            page_size=2,
            order=2,
            page_token=page.next_page_token,
        )
    )
    assert [*page.turns, *rest.turns] == ended[::-1]
    assert not rest.next_page_token
    failed = turn_service_pb2.ListTurnsRequest(**talk.keys, statuses=[5])
    assert not (await hansard.turns.ListTurns(failed)).turns


def _get(talk: Talk) -> session_service_pb2.GetSessionRequest:
    return session_service_pb2.GetSessionRequest(**talk.keys)


async def _drain(stream: Any) -> list[event_service_pb2.SendEventResponse]:
    return [response async for response in stream]
