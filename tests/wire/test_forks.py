"""Forks through the wire: what is copied, what is left behind, and when the new session appears."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from hansard.v1 import (
    agent_service_pb2,
    artifact_service_pb2,
    event_pb2,
    session_pb2,
    session_service_pb2,
    turn_pb2,
)
from tests.support.server import Running, failure, make_settings, running_server
from tests.support.talk import Talk, check_turn, content, message, model, output, rating, stored
from tests.wire.conftest import agent_request
from tests.wire.test_alter import delete, hide
from tests.wire.test_artifacts import Part, download, header, start, upload

Create = session_service_pb2.CreateSessionRequest
SCRIPT = [
    {"thinking": {"content": "hm"}},
    {"tool_call": {"name": "t", "input": {"a": 1}, "output": {"b": 2}}},
    {"agent_output": {"content": "done"}},
]
INTERRUPTED = turn_pb2.TURN_STATUS_INTERRUPTED


def create(talk: Talk, key: str = "fork", up_to: str = "", **fields: Any) -> Any:
    """Return the running call that forks the session."""
    origin = session_pb2.FromSession(session_key=talk.session_key, include_up_to_event_id=up_to)
    request = Create(
        **{"agent_key": talk.agent_key, "name": "Fork", "key": key, "from_session": origin} | fields
    )
    return talk.server.sessions.CreateSession(request)


async def fork(talk: Talk, key: str = "fork", up_to: str = "", **fields: Any) -> Talk:
    """Fork the session and return the talk in the new one."""
    made = await create(talk, key, up_to, **fields)
    other = Talk(talk.server, made.agent_key, made.key)
    other.uid = made.uid
    return other


def bare(event: event_pb2.Event) -> event_pb2.Event:
    """Return what a copy has in common with its original."""
    copy = event_pb2.Event.FromString(event.SerializeToString())
    for field in ("agent_key", "session_key", "sequence"):
        copy.ClearField(field)
    return copy


async def session(talk: Talk) -> session_pb2.Session:
    return await talk.server.sessions.GetSession(session_service_pb2.GetSessionRequest(**talk.keys))


async def check_fork(source: list[event_pb2.Event], talk: Talk) -> list[event_pb2.Event]:
    """Assert that the fork begins with these events; return what it has beyond them."""
    events = await talk.events()
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert [bare(e) for e in events[: len(source)]] == [bare(e) for e in source]
    return events[len(source) :]


async def test_fork_is_the_conversation_so_far_and_goes_its_own_way(hansard: Running) -> None:
    talk = await Talk(hansard).begin(SCRIPT)
    check_turn(await talk.send("one"))
    await talk.append(rating(), output("from elsewhere"))
    check_turn(await talk.send("two"))
    source = await talk.events()
    turns = await talk.turns()
    made = await create(talk, tti_minutes=5)
    other = Talk(hansard, talk.agent_key, "fork")

    assert await check_fork(source, other) == []
    assert made == await session(other)
    assert (made.name, made.status) == ("Fork", session_pb2.SESSION_STATUS_IDLE)
    assert made.last_sequence == made.forked_from.last_sequence == len(source)
    assert made.usage == made.forked_from.usage == (await session(talk)).usage
    origin = made.forked_from
    assert (origin.agent_key, origin.session_key) == (talk.agent_key, talk.session_key)
    assert (origin.session_uid, origin.event_id) == (talk.uid, source[-1].id)
    copies = await other.turns()
    assert [(t.id, t.status, t.first_sequence, t.last_sequence, t.input) for t in copies] == [
        (t.id, t.status, t.first_sequence, t.last_sequence, t.input) for t in turns
    ]
    assert [t.ended_at for t in copies] == [t.ended_at for t in turns]

    await talk.set_model(model(echo="history"))
    heard = stored(await other.send("three"))
    assert [e.sequence for e in heard] == [len(source) + n for n in range(1, len(heard) + 1)]
    told = "".join(map(content, heard))
    assert "one" in told
    assert "from elsewhere" in told
    assert await talk.events() == source
    check_turn(await talk.send("four"))
    assert len(await other.events()) == len(source) + len(heard)
    assert (await session(talk)).forked_from == session_pb2.ForkOrigin()


async def test_fork_up_to_each_event(hansard: Running) -> None:
    talk = await Talk(hansard).begin(SCRIPT)
    await talk.send("one")
    await talk.send("two")
    source = await talk.events()
    for index, event in enumerate(source, 1):
        other = await fork(talk, f"fork-{index}", event.id)
        rest = await check_fork(source[:index], other)
        turns = await other.turns()
        assert len(turns) == (1 if index <= 5 else 2)
        whole = index in {5, 10}
        assert (turns[-1].status == turn_pb2.TURN_STATUS_COMPLETED) == whole
        assert (turns[-1].status == INTERRUPTED) != whole
        assert turns[-1].last_sequence == index + len(rest)
        assert turns[-1].input.input_message == message("one" if index <= 5 else "two")
        if event.HasField("tool_input"):
            (closed,) = rest
            assert closed.tool_output.tool_call_id == event.tool_input.tool_call_id
            assert closed.tool_output.tool_name == event.tool_input.tool_name
            assert closed.tool_output.outcome == event_pb2.TOOL_OUTCOME_INTERRUPTED
            assert closed.turn_id == event.turn_id
        else:
            assert rest == []
        made = await session(other)
        assert made.forked_from.event_id == event.id
        assert made.last_sequence == index + len(rest)
        check_turn(await other.send("on"))


async def test_fork_of_a_running_session_holds_what_was_said_so_far(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    await talk.send("before")
    stream, turn_id = await talk.hold()
    queued = talk.stream("waits")
    assert (await anext(aiter(queued))).HasField("queued")
    source = await talk.events()
    other = await fork(talk)
    assert await check_fork(source, other) == []
    made = await session(other)
    assert made.status == session_pb2.SESSION_STATUS_IDLE
    turns = await other.turns()
    assert len(turns) == 2
    assert (turns[-1].id, turns[-1].status) == (turn_id, INTERRUPTED)
    assert turns[-1].HasField("ended_at")
    check_turn(await other.send("at once"))
    assert (await session(talk)).status == session_pb2.SESSION_STATUS_RUNNING
    await talk.release(turn_id)
    assert [r async for r in stream][-1].HasField("turn_end")
    assert [r async for r in queued][-1].HasField("turn_end")


async def test_call_that_runs_is_closed_in_the_fork_alone(hansard: Running) -> None:
    slow = {"tool_call": {"name": "t", "input": {}, "output": {"r": 1}, "pause_ms": 60_000}}
    talk = await Talk(hansard).begin([slow])
    stream = talk.stream()
    async for response in stream:
        if response.event.HasField("tool_input"):
            break
    other = await fork(talk)
    closed = (await other.events())[-1]
    assert closed.tool_output.outcome == event_pb2.TOOL_OUTCOME_INTERRUPTED
    assert not (await talk.events())[-1].HasField("tool_output")
    await talk.release(response.turn_id)


async def test_hidden_and_deleted_events_stay_behind(hansard: Running) -> None:
    talk = await Talk(hansard).begin(SCRIPT)
    await talk.send("one")
    await talk.send("two")
    await talk.send("three")
    events = await talk.events()
    await hide(talk, events[0].id)  # the first input
    await delete(talk, events[7].id)  # the second turn's call, both halves
    for event in events[10:]:
        await hide(talk, event.id)  # all of the third turn
    visible = await talk.events()
    assert len(visible) == 10 - 3
    other = await fork(talk)
    assert await check_fork(visible, other) == []
    assert len(await other.events(include_hidden=True)) == len(visible)
    first, second = await other.turns()
    assert not first.input.HasField("input_message")
    assert (first.first_sequence, first.last_sequence) == (1, 4)
    assert second.input.input_message == message("two")
    assert (second.first_sequence, second.last_sequence) == (5, 7)
    # A hidden event is a place all the same.
    up_to = await fork(talk, "up-to-hidden", events[-1].id)
    assert await check_fork(visible, up_to) == []
    assert (await session(up_to)).forked_from.event_id == visible[-1].id


async def test_open_calls_of_imported_history_are_closed(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    call = event_pb2.ToolInput(
        tool_call_id="c",
        tool_configuration_name="lookup",
        tool_name="client",
        tool_input_json="{}",
        provider_data=b"\x00\xffsigned",
    )
    calls = [event_pb2.EventDraft(tool_input=call)]
    for number in range(70):
        other_call = event_pb2.ToolInput.FromString(call.SerializeToString())
        other_call.tool_call_id = f"c{number}"
        calls.append(event_pb2.EventDraft(tool_input=other_call))
    await talk.append(*calls)
    source = await talk.events()
    other = await fork(talk)
    closed = await check_fork(source, other)
    assert (await other.events())[0].tool_input == call
    assert [e.tool_output.tool_call_id for e in closed] == ["c", *(f"c{n}" for n in range(70))]
    assert {e.turn_id for e in closed} == {""}
    # In the source they are open.
    answer = event_pb2.ToolOutput(tool_call_id="c", tool_output_json="{}")
    await talk.append(event_pb2.EventDraft(tool_output=answer))
    refused = await failure(other.append(event_pb2.EventDraft(tool_output=answer)))
    assert refused.reason == "TOOL_CALL_NOT_PENDING"


async def test_fork_of_an_empty_session_and_of_a_fork(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    empty = await create(talk, "empty")
    assert empty.last_sequence == 0
    assert empty.forked_from.event_id == ""
    assert empty.forked_from.session_uid == talk.uid
    await talk.send("one")
    child = await fork(talk, "child")
    await child.send("two")
    grandchild = await fork(child, "grandchild")
    assert await check_fork(await child.events(), grandchild) == []
    assert (await session(grandchild)).forked_from.session_key == "child"
    assert [t.id for t in await grandchild.turns()] == [t.id for t in await child.turns()]


async def test_fork_of_another_agents_session(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    await talk.send("one")
    await hansard.agents.CreateAgent(agent_request(key="other"))
    origin = {"agent_key": talk.agent_key, "session_key": talk.session_key}
    made = await hansard.sessions.CreateSession(
        Create(agent_key="other", key="s", name="x", from_session=origin)
    )
    other = Talk(hansard, "other", "s")
    assert await check_fork(await talk.events(), other) == []
    assert {event.agent_key for event in await other.events()} == {"other"}
    assert made.forked_from.agent_key == talk.agent_key


@pytest.mark.parametrize(
    ("origin", "reason", "field"),
    [
        ({"session_key": "none"}, "SESSION_NOT_FOUND", "from_session.session_key"),
        (
            {"session_key": "s", "agent_key": "none"},
            "AGENT_NOT_FOUND",
            "from_session.agent_key",
        ),
        (
            {"session_key": "s", "include_up_to_event_id": "aev_none"},
            "EVENT_NOT_FOUND",
            "from_session.include_up_to_event_id",
        ),
    ],
)
async def test_source_that_is_not_there(
    hansard: Running, origin: dict[str, str], reason: str, field: str
) -> None:
    talk = await Talk(hansard).begin()
    await talk.append(rating())
    request = Create(
        agent_key=talk.agent_key, key="f", name="x", from_session=origin, request_id="r"
    )
    refused = await failure(hansard.sessions.CreateSession(request))
    assert refused.code is grpc.StatusCode.NOT_FOUND
    assert (refused.reason, refused.fields) == (reason, (field,))
    # A refused call claims nothing.
    request.from_session.CopyFrom(session_pb2.FromSession(session_key="s"))
    assert (await hansard.sessions.CreateSession(request)).last_sequence == 1


async def test_key_that_is_taken(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    refused = await failure(create(talk, talk.session_key))
    assert refused.reason == "SESSION_ALREADY_EXISTS"


async def test_same_request_gives_the_first_answer(hansard: Running) -> None:
    talk = await Talk(hansard).begin(SCRIPT)
    await talk.send()
    made = await create(talk, "", request_id="r")
    other = Talk(hansard, talk.agent_key, made.key)
    await other.send("more")
    await talk.send("more")
    assert await create(talk, "", request_id="r") == made
    await hansard.sessions.UpdateSession(
        session_service_pb2.UpdateSessionRequest(
            session=session_pb2.Session(agent_key="agent", key=made.key, name="New"),
            update_mask={"paths": ["name"]},
        )
    )
    assert await create(talk, "", request_id="r") == made
    # Even when neither is there any more.
    for one in (talk, other):
        await hansard.sessions.DeleteSession(session_service_pb2.DeleteSessionRequest(**one.keys))
    assert await create(talk, "", request_id="r") == made
    refused = await failure(create(talk, "", request_id="r", description="other"))
    assert refused.reason == "REQUEST_ID_REUSED"


async def test_same_request_many_times_at_once_makes_one_session(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    for _ in range(8):
        await talk.append(*[rating(f'"{"x" * 1000}"') for _ in range(250)])
    made = await asyncio.gather(*[create(talk, "", request_id="r") for _ in range(8)])
    assert all(one == made[0] for one in made)
    assert made[0].last_sequence == 2_000
    listed = await hansard.sessions.ListSessions(
        session_service_pb2.ListSessionsRequest(agent_key=talk.agent_key)
    )
    assert len(listed.sessions) == 2


async def test_request_whose_caller_goes_away_is_done(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    for _ in range(10):
        await talk.append(*[rating() for _ in range(250)])
    for number in range(3):
        call = create(talk, f"f{number}", request_id=f"r{number}")
        await asyncio.sleep(0.02)
        call.cancel()
    for number in range(3):
        made = await create(talk, f"f{number}", request_id=f"r{number}")
        assert made.last_sequence == 2_500


async def test_request_ids_of_the_source_are_not_copied(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    await talk.send("one", request_id="r")
    await talk.append(rating(), request_id="r")
    other = await fork(talk)
    assert (await other.append(rating("6"), request_id="r")) == [4]
    check_turn(await other.send("another", request_id="r"))


async def test_artifacts_come_along_and_each_goes_by_itself(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    first = await upload(talk, start(talk), header("a.txt", metadata={"k": 1}), Part(chunk=b"one"))
    second = await upload(talk, start(talk), header("b.txt"), Part(chunk=b"two"), header("c.txt"))
    third = await upload(talk, start(talk), header("d.txt"), Part(chunk=b"three"))
    hidden, later = (e.artifact_upload.artifacts[0].artifact_id for e in (first, third))
    used = [a.artifact_id for a in second.artifact_upload.artifacts]
    await hide(talk, first.id)
    other = await fork(talk, "fork", second.id)
    listed = await hansard.artifacts.ListArtifacts(
        artifact_service_pb2.ListArtifactsRequest(**other.keys)
    )
    assert {a.artifact_id for a in listed.artifacts} == set(used)
    assert hidden not in used
    assert later not in used
    original, data = await download(talk, used[0])
    copy, same = await download(other, used[0])
    assert data == same == b"two"
    copy.session_key = original.session_key
    assert copy == original
    gone = artifact_service_pb2.DeleteArtifactRequest(artifact_id=used[0], **talk.keys)
    await hansard.artifacts.DeleteArtifact(gone)
    assert (await download(other, used[0]))[1] == b"two"
    # An event that mentions what is deleted is copied all the same.
    again = await fork(talk, "again")
    assert used[0] not in {
        a.artifact_id
        for a in (
            await hansard.artifacts.ListArtifacts(
                artifact_service_pb2.ListArtifactsRequest(**again.keys)
            )
        ).artifacts
    }
    await hansard.artifacts.DeleteArtifact(
        artifact_service_pb2.DeleteArtifactRequest(artifact_id=used[1], **other.keys)
    )
    assert (await download(talk, used[1]))[1] == b""


async def test_artifacts_that_an_input_mentions_come_along(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    event = await upload(talk, start(talk), header("a.txt"), Part(chunk=b"one"))
    artifact_id = event.artifact_upload.artifacts[0].artifact_id
    part = event_pb2.MessagePart(artifact={"artifact_id": artifact_id})
    await talk.append(event_pb2.EventDraft(input_message=event_pb2.InputMessage(messages=[part])))
    await hide(talk, event.id)
    other = await fork(talk)
    assert (await download(other, artifact_id))[1] == b"one"


async def test_quotas_hold(databases: Any, tmp_path: Any) -> None:
    url = databases.migrated("sqlite")
    async with running_server(make_settings(tmp_path / "data", url)) as server:
        talk = await Talk(server).begin()
        for name in ("a", "b"):
            await upload(talk, start(talk), header(name), Part(chunk=b"12345"))
    for limit, quota in (
        ({"session_artifacts_max_files": 1}, "1"),
        ({"session_artifacts_max_bytes": 9}, "9"),
    ):
        async with running_server(make_settings(tmp_path / "data", url, **limit)) as server:
            talk = Talk(server)
            refused = await failure(create(talk, request_id="r"))
            assert refused.reason == "QUOTA_EXCEEDED"
            assert quota in refused.message
    async with running_server(make_settings(tmp_path / "data", url)) as server:
        made = await create(Talk(server), request_id="r")
        assert made.last_sequence == 2


async def test_deleting_the_source_leaves_the_fork(hansard: Running) -> None:
    talk = await Talk(hansard).begin(SCRIPT)
    await talk.send()
    event = await upload(talk, start(talk), header("a.txt"), Part(chunk=b"one"))
    source = await talk.events()
    other = await fork(talk)
    await hansard.agents.CreateAgent(
        agent_service_pb2.CreateAgentRequest(key="heir", name="Heir", model=model())
    )
    await hansard.sessions.DeleteSession(session_service_pb2.DeleteSessionRequest(**talk.keys))
    assert await check_fork(source, other) == []
    assert (await download(other, event.artifact_upload.artifacts[0].artifact_id))[1] == b"one"
    refused = await failure(create(talk, "another"))
    assert refused.fields == ("from_session.session_key",)


async def test_origin_over_json(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    await talk.append(rating())
    made = json_format.MessageToDict(await create(talk), preserving_proto_field_name=True)
    assert made["forked_from"]["last_sequence"] == "1"
