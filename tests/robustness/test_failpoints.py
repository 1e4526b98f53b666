"""The server is killed at every named place of a write; the record is whole, once, afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from hansard.v1 import artifact_service_pb2, turn_pb2
from hansard_server import failpoints
from tests.support.databases import Databases
from tests.support.invariants import check_store
from tests.support.server import Running, ServeProcess, open_channel, serve_process
from tests.support.talk import Talk, check_turn, model, rating, stored

SCRIPT = [
    {"thinking": {"content": "hm"}},
    {"tool_call": {"name": "t", "input": {}, "output": {}}},
    {"agent_output": {"content": "done"}},
]
# The other places are passed elsewhere than in a conversation.
ELSEWHERE = {"migration.step", "turn.taken", "decision.made", "blobs.settled"}
WRITES = sorted(name for name in failpoints.NAMES - ELSEWHERE if not name.startswith("fork."))


def arguments(folder: Path, store_url: str) -> tuple[str, ...]:
    return (
        *("--listen", "127.0.0.1:0", "--data-dir", str(folder), "--store", store_url),
        *("--set", "lease_s=1"),
    )


async def connect(process: ServeProcess) -> tuple[Any, Talk]:
    entry = await asyncio.to_thread(process.wait_for, "serving")
    channel = open_channel(str(entry["address"]))
    server: Any = None
    return channel, Talk(Running(server, await channel.__aenter__()))


async def upload(talk: Talk) -> Any:
    make = artifact_service_pb2.UploadArtifactsRequest

    async def parts() -> AsyncIterator[artifact_service_pb2.UploadArtifactsRequest]:
        yield make(start=artifact_service_pb2.UploadStart(request_id="upload", **talk.keys))
        yield make(header=artifact_service_pb2.UploadHeader(filename="a.txt"))
        yield make(chunk=b"hello")

    return await talk.server.artifacts.UploadArtifacts(parts())


async def converse(talk: Talk) -> tuple[list[int], list[Any], Any]:
    """Make one write of each kind, each under its request_id."""
    places = await talk.append(rating('"a"'), rating('"b"'), request_id="append")
    responses = await talk.send("A", request_id="send")
    return places, responses, await upload(talk)


@pytest.mark.parametrize(
    ("name", "nth"),
    [(name, 1) for name in WRITES]
    # A conversation makes one upload, and several writes.
    + [
        pytest.param(name, nth, marks=pytest.mark.soak)
        for name in WRITES
        if "artifact" not in name
        for nth in (2, 3, 4, 5)
    ],
)
async def test_killed_at_a_failpoint(store_url: str, tmp_path: Path, name: str, nth: int) -> None:
    with serve_process(*arguments(tmp_path, store_url)) as process:
        channel, talk = await connect(process)
        await talk.begin(SCRIPT)
        await channel.__aexit__(None, None, None)
        process.send(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait) == 0
    armed = {failpoints.SERVING_VARIABLE: f"{name}@{nth}"}
    with serve_process(*arguments(tmp_path, store_url), environment=armed) as process:
        channel, talk = await connect(process)
        with pytest.raises(grpc.aio.AioRpcError):
            await converse(talk)
        await channel.__aexit__(None, None, None)
        assert await asyncio.to_thread(process.wait) == -signal.SIGKILL, f"{name} is not reached"
    with serve_process(*arguments(tmp_path, store_url)) as process:
        channel, talk = await connect(process)
        async with asyncio.timeout(30):
            places, responses, uploaded = await converse(talk)
        assert places == [1, 2]
        check_turn(responses)
        assert responses[-1].turn_end.turn.status == turn_pb2.TURN_STATUS_COMPLETED
        # Once more: the same answers, and nothing new.
        again = await converse(talk)
        assert (again[0], stored(again[1]), again[2]) == (places, stored(responses), uploaded)
        events = await talk.events()
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        kinds = [event.WhichOneof("payload") for event in events]
        assert sorted({str(kind) for kind in kinds}) == [
            "agent_output",
            "artifact_upload",
            "custom",
            "input_message",
            "thinking",
            "tool_input",
            "tool_output",
        ]
        assert len(kinds) == 8
        assert len(await talk.turns()) == 1
        await channel.__aexit__(None, None, None)
    check_store(store_url, tmp_path)


async def test_killed_while_a_turn_is_taken_over(store_url: str, tmp_path: Path) -> None:
    slow = {"tool_call": {"name": "t", "input": {}, "output": {}, "pause_ms": 20_000}}
    with serve_process(*arguments(tmp_path, store_url)) as process:
        channel, talk = await connect(process)
        await talk.begin([slow])
        await talk.send("A", request_id="a", detach=True)
        await channel.__aexit__(None, None, None)
        process.send(signal.SIGKILL)
        await asyncio.to_thread(process.wait)
    armed = {failpoints.VARIABLE: "turn.taken"}
    with serve_process(*arguments(tmp_path, store_url), environment=armed) as process:
        assert await asyncio.to_thread(process.wait) == -signal.SIGKILL
    with serve_process(*arguments(tmp_path, store_url)) as process:
        channel, talk = await connect(process)
        await talk.set_model(model())
        responses = await talk.send("A", request_id="a")
        assert responses[-1].turn_end.turn.status == turn_pb2.TURN_STATUS_COMPLETED
        await channel.__aexit__(None, None, None)
    check_store(store_url, tmp_path)


async def test_killed_in_a_decision(store_url: str, tmp_path: Path) -> None:
    armed = {failpoints.SERVING_VARIABLE: "decision.made@2"}
    with serve_process(*arguments(tmp_path, store_url), environment=armed) as process:
        channel, talk = await connect(process)
        with pytest.raises(grpc.aio.AioRpcError):
            await talk.begin()
        await channel.__aexit__(None, None, None)
        assert await asyncio.to_thread(process.wait) == -signal.SIGKILL
    with serve_process(*arguments(tmp_path, store_url)) as process:
        channel, talk = await connect(process)
        await talk.open_session()
        check_turn(await talk.send())
        await channel.__aexit__(None, None, None)


async def test_killed_in_a_migration(databases: Databases, database: str, tmp_path: Path) -> None:
    store_url = databases.empty(database)
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths}
    migrate = [sys.executable, "-m", "hansard_server", "migrate", "--store", store_url]
    killed = await asyncio.to_thread(
        subprocess.run,
        migrate,
        env={**environment, failpoints.VARIABLE: "migration.step"},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    again = await asyncio.to_thread(subprocess.run, migrate, env=environment, check=False)
    assert again.returncode == 0
    with serve_process(*arguments(tmp_path, store_url)) as process:
        channel, talk = await connect(process)
        await talk.begin()
        check_turn(await talk.send())
        await channel.__aexit__(None, None, None)
    check_store(store_url, tmp_path)
    databases.drop(store_url)
