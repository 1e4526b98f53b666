"""Two servers on one PostgreSQL: one that dies leaves its turns to the other."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from hansard.v1 import agent_service_pb2, artifact_service_pb2, session_service_pb2, turn_pb2
from tests.support.databases import Databases
from tests.support.invariants import check_store
from tests.support.server import Running, ServeProcess, open_channel, serve_process
from tests.support.talk import TWENTY_DELTAS, Talk, check_turn, items, model, rating, stored

SLOW = [
    {"thinking": {"content": "hm"}},
    {"tool_call": {"name": "t", "input": {}, "output": {}, "pause_ms": 20_000}},
    {"agent_output": {"content": "done"}},
]


@pytest.fixture
def url(databases: Databases) -> Iterator[str]:
    """Give a PostgreSQL database with the schema."""
    url = databases.migrated("postgresql")
    yield url
    databases.drop(url)


def serve(folder: Path, url: str, *more: str) -> Any:
    return serve_process(
        *("--listen", "127.0.0.1:0", "--data-dir", str(folder), "--store", url),
        *("--set", "lease_s=2", "--set", "poll_floor_s=0.2"),
        *("--set", "page_token_secret=the-same-for-all-replicas"),
        *more,
    )


async def address_of(process: ServeProcess) -> str:
    return str((await asyncio.to_thread(process.wait_for, "serving"))["address"])


async def test_turn_of_a_killed_replica_goes_on_at_another(url: str, tmp_path: Path) -> None:
    server: Any = None
    with serve(tmp_path / "one", url) as one, serve(tmp_path / "two", url) as two:
        async with (
            open_channel(await address_of(one)) as to_one,
            open_channel(await address_of(two)) as to_two,
        ):
            talk = await Talk(Running(server, to_one)).begin(SLOW)
            other = Talk(Running(server, to_two))
            async for response in talk.stream("A", request_id="r"):
                if response.event.HasField("tool_input"):
                    break
            # Somebody reads along elsewhere.
            joined = asyncio.create_task(other.send("A", request_id="r"))
            assert items(await other.send("B", detach=True, request_id="s")) == ["queued"]
            await other.set_model(model(TWENTY_DELTAS))
            one.send(signal.SIGKILL)
            async with asyncio.timeout(30):
                responses = await joined
                waiting = await other.send("B", request_id="s")
            check_turn(waiting)
            assert responses[-1].turn_end.turn.status == turn_pb2.TURN_STATUS_COMPLETED
            kinds = [event.WhichOneof("payload") for event in stored(responses)]
            assert kinds[:4] == ["input_message", "thinking", "tool_input", "tool_output"]
            assert waiting[-1].turn_end.turn.status == turn_pb2.TURN_STATUS_COMPLETED
            assert await other.events() == stored(responses) + stored(waiting)
    check_store(url)


async def test_same_request_id_at_two_replicas_runs_once(url: str, tmp_path: Path) -> None:
    server: Any = None
    with serve(tmp_path / "one", url) as one, serve(tmp_path / "two", url) as two:
        async with (
            open_channel(await address_of(one)) as to_one,
            open_channel(await address_of(two)) as to_two,
        ):
            first = await Talk(Running(server, to_one)).begin(TWENTY_DELTAS)
            second = Talk(Running(server, to_two))
            for number in range(10):
                # Without the look into the store, one that does not run the turn waits for ever.
                streams = await asyncio.gather(
                    *(t.send("A", request_id=f"{number}") for t in (first, second) * 2)
                )
                for stream in streams:
                    check_turn(stream)
                    assert stored(stream) == stored(streams[0])
            assert len(await second.turns()) == 10
    check_store(url)


async def test_same_request_id_of_other_calls_at_two_replicas(url: str, tmp_path: Path) -> None:
    server: Any = None
    folder = ("--set", f"artifacts={tmp_path / 'artifacts'}")
    with serve(tmp_path / "one", url, *folder) as one, serve(tmp_path / "two", url, *folder) as two:
        async with (
            open_channel(await address_of(one)) as to_one,
            open_channel(await address_of(two)) as to_two,
        ):
            first = await Talk(Running(server, to_one)).begin()
            talks = (first, Talk(Running(server, to_two))) * 3
            for number in range(8):
                name = f"r{number}"
                draft = rating(f"{number}")
                places = await asyncio.gather(*(t.append(draft, request_id=name) for t in talks))
                assert places == [places[0]] * len(talks)
                make: Any = session_service_pb2.CreateSessionRequest
                create = make(agent_key="agent", name="Made", request_id=name)
                created = await asyncio.gather(
                    *(t.server.sessions.CreateSession(create) for t in talks)
                )
                assert all(session == created[0] for session in created)
                make = agent_service_pb2.CreateAgentRequest
                create = make(name="Made", model=model(), request_id=name)
                agents = await asyncio.gather(*(t.server.agents.CreateAgent(create) for t in talks))
                assert all(agent == agents[0] for agent in agents)
                uploaded = await asyncio.gather(*(upload(t, name) for t in talks))
                assert all(event == uploaded[0] for event in uploaded)
            events = await first.events()
            assert len(events) == 16
            assert [e.WhichOneof("payload") for e in events] == ["custom", "artifact_upload"] * 8
    check_store(url)


async def upload(talk: Talk, request_id: str) -> Any:
    """Upload a file, the same for the same request_id."""
    make = artifact_service_pb2.UploadArtifactsRequest

    async def parts() -> AsyncIterator[artifact_service_pb2.UploadArtifactsRequest]:
        yield make(start=artifact_service_pb2.UploadStart(request_id=request_id, **talk.keys))
        yield make(header=artifact_service_pb2.UploadHeader(filename=f"{request_id}.txt"))
        yield make(chunk=request_id.encode() * 10_000)

    return await talk.server.artifacts.UploadArtifacts(parts())


async def test_turn_of_a_stopping_replica_goes_on_at_once_at_another(
    url: str, tmp_path: Path
) -> None:
    # Its lease would last longer than the test: it has to be given back.
    server: Any = None
    long_lease = ("--set", "lease_s=600", "--set", "drain_deadline_s=2")
    with (
        serve(tmp_path / "one", url, *long_lease) as one,
        serve(tmp_path / "two", url, *long_lease) as two,
    ):
        async with (
            open_channel(await address_of(one)) as to_one,
            open_channel(await address_of(two)) as to_two,
        ):
            talk = await Talk(Running(server, to_one)).begin(SLOW)
            async for response in talk.stream("A", request_id="r"):
                if response.event.HasField("tool_input"):
                    break
            one.send(signal.SIGTERM)
            assert await asyncio.to_thread(one.wait) == 0
            async with asyncio.timeout(30):
                responses = await Talk(Running(server, to_two)).send("A", request_id="r")
            turn = responses[-1].turn_end.turn
            assert (turn.status, turn.attempt) == (turn_pb2.TURN_STATUS_COMPLETED, 1)
    check_store(url)
