"""Inputs over HTTP: a turn as one answer, as server-sent events, watched, and taken up again."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

import pytest

from hansard_gateway.settings import Options
from tests.gateway.test_routes import ok, refused
from tests.support.gateway import Door, Frames, open_door, parse_frames, until
from tests.support.talk import ANSWER, THOUGHT, TWENTY_DELTAS, Talk

EVENTS = "/v2/agents/agent/sessions/s/events"
HELLO = {
    "type": "input_message",
    "messages": [{"type": "text", "content": "I forgot my password. Can you help?"}],
}
FAILING = [
    {"thinking": {"content": "I think."}},
    {"fail": "the model is away"},
]


async def streamed(door: Door, body: dict[str, Any], **more: Any) -> Frames:
    """Return the frames of a streamed turn."""
    answer = await door.http.post(EVENTS, json={**body, "stream_response": True}, **more)
    assert answer.status_code == 201, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return parse_frames(answer.text)


def text_of(frames: Frames, kind: str) -> str:
    return "".join(f.data["content"] for f in frames.frames if f.data["type"] == kind)


async def test_a_turn_is_one_answer(door: Door) -> None:
    await Talk(door.server).begin(TWENTY_DELTAS)
    answer = await ok(door, "POST", EVENTS, 201, json=HELLO)
    types = [event["type"] for event in answer["events"]]
    assert types == ["input_message", "thinking", "agent_output"]
    assert answer["events"][2]["content"] == ANSWER
    assert answer["session_key"] == "s"
    assert answer["turn"]["status"] == "completed"
    assert (await ok(door, "GET", EVENTS))["events"] == answer["events"]
    one = answer["events"][1]
    assert await ok(door, "GET", f"{EVENTS}/{one['id']}") == one


async def test_a_turn_is_streamed_as_it_happens(door: Door) -> None:
    talk = await Talk(door.server).begin(TWENTY_DELTAS)
    frames = await streamed(door, HELLO)
    assert frames.types[0] == "input_message"
    assert frames.types[-1] == "end"
    assert not {"agent_output", "turn_end", "requires_action"} & set(frames.types)
    assert text_of(frames, "streaming_thinking") == THOUGHT
    assert text_of(frames, "streaming_agent_output") == ANSWER
    ended = [f.data for f in frames.frames if f.data["type"] == "streaming_agent_output_end"]
    assert [one["event_id"] for one in ended] == [(await talk.events())[-1].id]
    assert frames.frames[-1].data["turn"]["status"] == "completed"
    deltas = [f.data for f in frames.frames if f.data["type"].startswith("streaming_")]
    assert all(delta["created_at"] for delta in deltas)


async def test_the_oldest_guides_short_form(plain: Door) -> None:
    await Talk(plain.server).begin()
    body = {"type": "input_message", "content": "I need to reset my password."}
    answer = await ok(plain, "POST", EVENTS, 201, json=body)
    assert answer["events"][0]["messages"] == [{"type": "text", "content": body["content"]}]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"type": None}, "type"),
        ({"type": "nix"}, "type"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"type": "skill", "skill_name": "x"}]}, "messages[0].type"),
        ({"messages": [{"content": "x"}]}, "messages[0].type"),
        ({"messages": [{"type": "text", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"type": "text", "content": "x", "nix": 1}]}, "messages[0].nix"),
        ({"messages": [{"type": "text", "content": "\ud800"}]}, "messages[0].content"),
        ({"since": "start"}, "since"),
        ({"behavior": "nix"}, "behavior"),
        ({"behavior": {}}, "behavior"),
        ({"type": {}}, "type"),
        ({"when_busy": "QUEUE"}, "when_busy"),
        ({"stream_response": "yes"}, "stream_response"),
        ({"turn_id": "trn_1"}, "turn_id"),
        ({"provider_data": "AA=="}, "provider_data"),
    ],
)
async def test_a_wrong_input_names_its_field(
    plain: Door, change: dict[str, Any], field: str
) -> None:
    await Talk(plain.server).begin()
    content = json.dumps({**HELLO, **change})
    told = await refused(
        plain, "POST", EVENTS, 400, content=content, headers={"content-type": "application/json"}
    )
    assert list(told["field_errors"]) == [field]
    assert (await ok(plain, "GET", EVENTS))["events"] == []


async def test_stream_response_null_or_absent_is_false(plain: Door) -> None:
    await Talk(plain.server).begin()
    for more in ({}, {"stream_response": None}, {"stream_response": False}):
        await ok(plain, "POST", EVENTS, 201, json={**HELLO, **more, "since": None})


async def test_a_turn_that_fails_is_stored_once_and_is_no_server_error(door: Door) -> None:
    talk = await Talk(door.server).begin(FAILING)
    headers = {"Idempotency-Key": "once"}
    answers = [await ok(door, "POST", EVENTS, 201, json=HELLO, headers=headers) for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    turn = answers[0]["turn"]
    assert turn["status"] == "failed"
    assert turn["error"]["code"] == "agent_processing_failed"
    assert len(await talk.turns()) == 1
    frames = await streamed(door, HELLO)
    assert frames.types[-2:] == ["error", "end"]
    assert all(isinstance(words, str) for words in frames.frames[-2].data["messages"])
    assert len(await talk.turns()) == 2


async def test_the_same_key_streams_the_same_turn(door: Door) -> None:
    talk = await Talk(door.server).begin(TWENTY_DELTAS)
    headers = {"Idempotency-Key": "once"}
    first = await streamed(door, HELLO, headers=headers)
    again = await streamed(door, HELLO, headers=headers)
    assert len(await talk.turns()) == 1
    assert text_of(first, "streaming_agent_output") == text_of(again, "streaming_agent_output")


async def test_an_interrupt_of_nothing_is_an_empty_answer(plain: Door) -> None:
    await Talk(plain.server).begin()
    answer = await ok(plain, "POST", EVENTS, 201, json={"type": "interrupt"})
    assert (answer["events"], answer["session_key"]) == ([], "s")
    frames = await streamed(plain, {"type": "interrupt"})
    assert frames.types == ["end"]


async def test_an_interrupt_ends_a_turn(door: Door) -> None:
    talk = await Talk(door.server).begin()
    held, turn_id = await talk.hold()
    answer = await ok(door, "POST", EVENTS, 201, json={"type": "interrupt"})
    assert [event["type"] for event in answer["events"]] == ["session_interrupted"]
    assert answer["turn"]["id"] == turn_id
    held.cancel()


async def test_behaviors(door: Door) -> None:
    talk = await Talk(door.server).begin()
    held, turn_id = await talk.hold()
    waiting = asyncio.create_task(
        door.http.post(EVENTS, json={**HELLO, "behavior": "follow_up", "stream_response": True})
    )
    await talk.until_turns(2)
    busy = await refused(door, "POST", EVENTS, 409, json={**HELLO, "when_busy": "reject"})
    assert busy["code"] == "session_busy"
    await talk.release(turn_id)
    frames = parse_frames((await waiting).text)
    assert frames.comments == [": queued 1"]
    assert frames.types[0] == "input_message"
    held.cancel()


async def test_a_client_that_leaves_does_not_end_the_turn(door: Door) -> None:
    talk = await Talk(door.server).begin([{"pause_ms": 700}, {"agent_output": {"content": "Late"}}])
    leaving = asyncio.create_task(door.http.post(EVENTS, json=HELLO))
    await talk.until_turns(1)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    async with door.http.stream("POST", EVENTS, json={**HELLO, "stream_response": True}):
        pass

    async def ended() -> bool:
        return all(turn.ended_at.seconds for turn in await talk.until_turns(2))

    await until(ended)
    assert [event.agent_output.content for event in await talk.events()][-1] == "Late"


async def test_a_session_is_watched_and_resumed(door: Door) -> None:
    talk = await Talk(door.server).begin(TWENTY_DELTAS)
    await talk.send()
    frames = await watched(door, 4)
    assert frames.types == ["input_message", "thinking", "agent_output", "caught_up"]
    uid = frames.frames[0].id.rpartition(".")[0]
    assert uid == talk.uid
    assert [frame.id for frame in frames.frames] == [f"{uid}.{n}" for n in (1, 2, 3, 3)]
    rest = await watched(door, 2, headers={"Last-Event-ID": f"{uid}.2"})
    assert rest.types == ["agent_output", "caught_up"]
    assert (await watched(door, 1, query="?after_sequence=3")).types == ["caught_up"]
    for wrong in ("x", "a.b.c", f"{uid}.-1", f"{uid}.99999999999999999999"):
        told = await refused(door, "GET", f"{EVENTS}:watch", 400, headers={"Last-Event-ID": wrong})
        assert list(told["field_errors"]) == ["Last-Event-ID"]
    other = await refused(door, "GET", f"{EVENTS}:watch", 404, headers={"Last-Event-ID": "no.1"})
    assert other["code"] == "session_not_found"
    ahead = await refused(door, "GET", f"{EVENTS}:watch", 400, params={"after_sequence": 9})
    assert (ahead["code"], ahead["last_sequence"]) == ("cursor_out_of_range", 3)


async def watched(
    door: Door,
    count: int,
    *,
    query: str = "",
    headers: dict[str, str] | None = None,
    begun: asyncio.Event | None = None,
) -> Frames:
    """Return the first frames of a watch; `begun` is set with the first."""
    text = ""
    async with door.http.stream("GET", f"{EVENTS}:watch{query}", headers=headers) as answer:
        assert answer.status_code == 200
        async for piece in answer.aiter_text():
            text += piece
            if begun is not None:
                begun.set()
            if text.count("\n\n") >= count:
                break
    return parse_frames(text)


async def test_a_watch_shows_what_happens_live(door: Door) -> None:
    talk = await Talk(door.server).begin(TWENTY_DELTAS)
    watching = asyncio.create_task(watched(door, 1_000, query="?include_deltas=true"))
    await talk.send()
    events = await talk.events()
    for event in events[:1]:
        await ok(door, "POST", f"{EVENTS}/{event.id}/hide")
    await door.http.delete("/v2/agents/agent/sessions/s")
    frames = await watching
    assert frames.types[-1] == "error"
    assert frames.frames[-1].data["code"] == "session_not_found"
    assert text_of(frames, "streaming_agent_output") in {ANSWER, ""}
    assert "agent_output" in frames.types
    assert "changed" in frames.types


async def test_signs_of_life_are_single_lines(plain: Door) -> None:
    await Talk(plain.server).begin([{"pause_ms": 400}, {"agent_output": {"content": "Late"}}])
    async with open_door(plain.server, Options(heartbeat_s=0.05, drain_deadline_s=2)) as door:
        frames = await streamed(door, HELLO)
    assert len(frames.comments) >= 2
    assert set(frames.comments) == {": hb"}
    assert text_of(frames, "streaming_agent_output") == "Late"


async def test_a_stopping_gateway_says_where_to_resume(plain: Door) -> None:
    talk = await Talk(plain.server).begin([{"thinking": {"content": "Hm."}}, {"pause_ms": 60_000}])
    async with open_door(plain.server) as door:
        streaming = asyncio.create_task(streamed(door, HELLO))
        await talk.until_turns(1)
        collecting = asyncio.create_task(
            door.http.post(EVENTS, json={**HELLO, "behavior": "follow_up"})
        )
        await talk.until_turns(2)
        begun = asyncio.Event()
        watching = asyncio.create_task(watched(door, 1_000, begun=begun))
        await begun.wait()

        async def under_way() -> bool:
            return len(await talk.events()) == 2 and plain.server.server._calls.running == 3

        await until(under_way)
        door.gateway.stop()
        frames, answer, seen = await streaming, await collecting, await watching
    assert frames.types[-2:] == ["error", "end"]
    assert frames.frames[-2].data["code"] == "server_shutting_down"
    assert frames.frames[-2].data["sequence"] == 2
    # The input waits in the record: to send it again would make another turn.
    assert answer.status_code == 201
    assert answer.json()["turn"]["status"] == "queued"
    assert seen.frames[-1].data["code"] == "server_shutting_down"
    assert seen.frames[-1].data["sequence"] == 2
    (turn, *_) = await talk.turns()
    await talk.release(turn.id)


class Wire:
    """A connection to the server that can be cut."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.cuts = 0

    async def open(self) -> str:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        self.cuts += 1
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self._target.rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        self._writers |= {writer, far_writer}
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        self._writers -= {writer, far_writer}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()


async def test_a_connection_that_breaks_is_none_of_the_clients_business(door: Door) -> None:
    script = [
        {"thinking": {"content": THOUGHT, "delta_count": 5, "pause_ms": 40}},
        {"pause_ms": 300},
        {"agent_output": {"content": ANSWER, "delta_count": 10, "pause_ms": 40}},
    ]
    talk = await Talk(door.server).begin(script)
    wire = Wire(door.server.server.address)
    target = await wire.open()
    async with open_door(door.server, target=target) as cut:
        watching = asyncio.create_task(watched(cut, 1_000, query="?include_deltas=true"))
        streaming = asyncio.create_task(streamed(cut, HELLO))
        await talk.another("s2").open_session()
        collecting = asyncio.create_task(
            cut.http.post("/v2/agents/agent/sessions/s2/events", json=HELLO)
        )
        for count in (1, 2):

            async def stored(count: int = count) -> bool:
                return len(await talk.events()) >= count

            await until(stored)
            wire.cut()
        frames, collected = await streaming, await collecting
        await door.http.delete("/v2/agents/agent/sessions/s")
        seen = await watching
    await wire.close()
    assert wire.cuts == 3
    assert frames.types.count("input_message") == 1
    assert text_of(frames, "streaming_thinking") == THOUGHT
    assert text_of(frames, "streaming_agent_output") == ANSWER
    assert frames.types[-1] == "end"
    types = [event["type"] for event in collected.json()["events"]]
    assert types == ["input_message", "thinking", "agent_output"]
    sequences = [f.data["sequence"] for f in seen.frames if "messages" in f.data and "id" in f.data]
    assert sequences == [1]
    assert [f.data["sequence"] for f in seen.frames if f.data["type"] == "agent_output"] == [3]


async def test_a_turn_that_waits_is_answered_over_http(door: Door) -> None:
    tools = {
        "ask": {"type": "client", "input_schema": {"type": "object"}},
        "make": {"type": "artifact_create", "require_approval": True},
    }
    script = [
        {"tool_call": {"name": "ask", "input": {"question": "How many?"}}},
        {"tool_call": {"name": "make", "input": {"filename": "a.txt", "content": "x"}}},
        {"agent_output": {"content": "Done."}},
    ]
    agent = {
        "key": "agent",
        "name": "Agent",
        "model": {"name": "hansard/scripted", "parameters": {"script": script}},
        "first_step": {},
        "tool_configurations": tools,
    }
    await ok(door, "POST", "/v2/agents", 201, json=agent)
    await Talk(door.server).open_session()
    waiting = await ok(door, "POST", EVENTS, 201, json=HELLO)
    assert waiting["turn"]["status"] == "requires_action"
    calls = waiting["turn"]["pending_calls"]
    assert [call["kind"] for call in calls] == ["client_tool", "approval"]
    asked, made = (call["tool_call_id"] for call in calls)

    def results(*each: dict[str, Any]) -> dict[str, Any]:
        return {"type": "tool_results", "results": list(each)}

    output = {"tool_call_id": asked, "type": "output", "tool_output": {"eggs": 12}}
    body = {**results(output), "stream_response": True}
    frames = parse_frames((await door.http.post(EVENTS, json=body)).text)
    assert frames.types == ["tool_output", "end"]
    end = frames.frames[-1].data
    assert end["turn"]["status"] == "requires_action"
    again = await refused(door, "POST", EVENTS, 422, json=results(output))
    assert again["code"] == "tool_call_not_pending"
    rejection = {"tool_call_id": made, "type": "reject", "reason": "no"}
    answer = await ok(door, "POST", EVENTS, 201, json=results(rejection))
    assert [event["type"] for event in answer["events"]] == ["tool_output", "agent_output"]
    assert answer["events"][0]["tool_output"]["reason"] == "no"
    assert answer["turn"]["status"] == "completed"
