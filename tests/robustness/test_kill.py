"""The server is killed at random moments under load, again and again; the record stays whole.

Every client keeps a request_id until it has an answer, however often the server dies meanwhile.
What was acknowledged must be there, what was not known must be there once, watchers must have seen
every event once. The seed is printed; HANSARD_SEED replays it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest

from hansard.v1 import artifact_service_pb2, turn_pb2
from tests.support.invariants import check_store
from tests.support.server import Running, ServeProcess, open_channel, serve_process
from tests.support.talk import Talk, check_turn, rating, stored

T = TypeVar("T")

SESSIONS = 4
SCRIPT = [
    {"thinking": {"content": "I think.", "delta_count": 4, "pause_ms": 5}},
    {"tool_call": {"name": "t", "input": {}, "output": {}, "pause_ms": 20}},
    {"agent_output": {"content": "An answer.", "delta_count": 5, "pause_ms": 5}},
]
LEASE_S = 1.0
ENDED = {turn_pb2.TURN_STATUS_COMPLETED, turn_pb2.TURN_STATUS_FAILED}
GONE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN}


@dataclass
class World:
    """The server that is up now, and what the clients know."""

    rng: random.Random
    live: list[str] = field(default_factory=list)
    """Where servers take calls."""
    up: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: bool = False
    events: dict[str, dict[str, int]] = field(default_factory=dict)
    """By session: acknowledged event ids and their sequences."""
    turns: dict[str, str] = field(default_factory=dict)
    """By request_id: the turn that it made."""
    ratings: set[str] = field(default_factory=set)
    uploads: dict[str, str] = field(default_factory=dict)
    """By artifact id: the SHA-256 of its bytes."""
    watched: dict[str, list[int]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Any of them."""
        return self.rng.choice(self.live)

    def acknowledge(self, session: str, event_id: str, sequence: int) -> None:
        known = self.events.setdefault(session, {})
        assert known.setdefault(event_id, sequence) == sequence, f"{event_id} has moved"


async def until_answered(world: World, call: Callable[[Running], Awaitable[T]]) -> T:
    """Return the answer of a call that is repeated, unchanged, until there is one."""
    while True:
        await world.up.wait()
        try:
            async with open_channel(world.address) as channel:
                server: Any = None
                return await call(Running(server, channel))
        except grpc.aio.AioRpcError as error:
            if error.code() not in GONE:
                raise
            await asyncio.sleep(0.02)


async def send(world: World, session: str, name: str) -> None:
    last: list[Any] = []

    async def call(server: Running) -> list[Any]:
        last.clear()
        async for response in Talk(server, session_key=session).stream(name, request_id=name):
            last.append(response)
            # On disk before it was sent: acknowledged as soon as it is seen.
            if response.HasField("event"):
                world.acknowledge(session, response.event.id, response.event.sequence)
            known = world.turns.setdefault(name, response.turn_id)
            assert known == response.turn_id, f"{name} ran twice"
        return last

    responses = await until_answered(world, call)
    check_turn(responses)
    assert responses[-1].turn_end.turn.status in ENDED
    assert [e.sequence for e in stored(responses)] == sorted(e.sequence for e in stored(responses))


async def append(world: World, session: str, name: str) -> None:
    drafts = [rating(f'"{name}/{number}"') for number in range(world.rng.randrange(1, 4))]
    places = await until_answered(
        world, lambda server: Talk(server, session_key=session).append(*drafts, request_id=name)
    )
    assert places == list(range(places[0], places[0] + len(drafts)))
    world.ratings |= {draft.custom.data_json for draft in drafts}


async def upload(world: World, session: str, name: str) -> None:
    data = world.rng.randbytes(world.rng.randrange(1, 200_000))
    make = artifact_service_pb2.UploadArtifactsRequest

    async def parts(talk: Talk) -> AsyncIterator[artifact_service_pb2.UploadArtifactsRequest]:
        yield make(start=artifact_service_pb2.UploadStart(request_id=name, **talk.keys))
        yield make(header=artifact_service_pb2.UploadHeader(filename=f"{name}.bin"))
        for start in range(0, len(data), 50_000):
            yield make(chunk=data[start : start + 50_000])

    async def call(server: Running) -> Any:
        return await server.artifacts.UploadArtifacts(parts(Talk(server, session_key=session)))

    event = await until_answered(world, call)
    world.acknowledge(session, event.id, event.sequence)
    (reference,) = event.artifact_upload.artifacts
    world.uploads[reference.artifact_id] = hashlib.sha256(data).hexdigest()


async def watch(world: World, session: str) -> None:
    seen = world.watched.setdefault(session, [])

    async def call(server: Running) -> None:
        talk = Talk(server, session_key=session)
        async for response in talk.watch(len(seen), include_deltas=True):
            if response.HasField("event"):
                seen.append(response.event.sequence)
                world.acknowledge(session, response.event.id, response.event.sequence)

    while not world.stopping:
        await until_answered(world, call)


async def work(world: World, client: int) -> None:
    number = 0
    while not world.stopping:
        number += 1
        session = f"s{world.rng.randrange(SESSIONS)}"
        name = f"c{client}-{number}"
        job = world.rng.choices((send, append, upload), weights=(5, 4, 1))[0]
        await job(world, session, name)


async def kill_again_and_again(world: World, rounds: int, serve: Callable[[], Any]) -> None:
    for number in range(rounds):
        with serve() as process:
            await start(world, process, first=number == 0)
            await asyncio.sleep(0.1 + world.rng.random())
            world.up.clear()
            process.send(signal.SIGKILL)
            await asyncio.to_thread(process.wait)


async def start(world: World, process: ServeProcess, *, first: bool = False) -> None:
    entry = await asyncio.to_thread(process.wait_for, "serving")
    world.live = [str(entry["address"])]
    if first:
        await prepare(world)
    world.up.set()


async def prepare(world: World) -> None:
    async with open_channel(world.address) as channel:
        server: Any = None
        talk = await Talk(Running(server, channel), session_key="s0").begin(SCRIPT)
        for number in range(1, SESSIONS):
            await talk.another(f"s{number}").open_session()


async def check(world: World, store_url: str, folder: Path) -> None:
    """Let everything come to its end, and compare what the clients know with the record."""
    async with open_channel(world.address) as channel:
        server: Any = None
        turns: list[turn_pb2.Turn] = []
        for number in range(SESSIONS):
            talk = Talk(Running(server, channel), session_key=f"s{number}")
            await _until_ended(talk)
            events = await talk.events(include_hidden=True)
            assert [e.sequence for e in events] == list(range(1, len(events) + 1))
            places = {event.id: event.sequence for event in events}
            for event_id, sequence in world.events.get(talk.session_key, {}).items():
                assert places.get(event_id) == sequence, f"{event_id} was acknowledged and lost"
            seen = world.watched[talk.session_key]
            assert seen == list(range(1, len(seen) + 1)), "a gap or a repeat in a watch"
            ratings = [e.custom.data_json for e in events if e.HasField("custom")]
            assert len(ratings) == len(set(ratings)), "an append was written twice"
            world.ratings -= set(ratings)
            turns += await talk.all_turns()
            uploads = [
                e.artifact_upload.artifacts[0] for e in events if e.HasField("artifact_upload")
            ]
            assert len({u.filename for u in uploads}) == len(uploads), "an upload was stored twice"
            for reference in uploads:
                digest = world.uploads.get(reference.artifact_id)
                if digest is not None:
                    assert await _digest(talk, reference.artifact_id) == digest
    assert not world.ratings, "an append was acknowledged and lost"
    inputs = [turn.input.input_message.messages[0].text.content for turn in turns]
    assert len(inputs) == len(set(inputs)), "an input ran twice"
    assert {turn.id for turn in turns} >= set(world.turns.values())
    check_store(store_url, folder)


async def _until_ended(talk: Talk) -> None:
    while any(t.status not in ENDED for t in await talk.turns(order=2)):  # noqa: ASYNC110
        await asyncio.sleep(0.05)


async def _digest(talk: Talk, artifact_id: str) -> str:
    digest = hashlib.sha256()
    request = artifact_service_pb2.DownloadArtifactRequest(artifact_id=artifact_id, **talk.keys)
    async for part in talk.server.artifacts.DownloadArtifact(request):
        digest.update(part.chunk)
    return digest.hexdigest()


async def finish(clients: list[asyncio.Task[None]], watchers: list[asyncio.Task[None]]) -> None:
    """Let the clients come to their end, and the watchers no further."""
    await asyncio.gather(*clients)
    for watcher in watchers:
        watcher.cancel()
    await asyncio.wait(watchers)
    failed = [w.exception() for w in watchers if not w.cancelled() and w.exception()]
    assert not failed, failed


async def run(store_url: str, folder: Path, rounds: int) -> None:
    seed = int(os.environ.get("HANSARD_SEED", time.time_ns() % 1_000_000))
    print(f"HANSARD_SEED={seed}")  # noqa: T201 - to replay it
    world = World(random.Random(seed))

    def serve() -> Any:
        arguments = ("--listen", "127.0.0.1:0", "--data-dir", str(folder), "--store", store_url)
        more = ("--set", f"lease_s={LEASE_S}")
        return serve_process(*arguments, *more)

    clients = [asyncio.create_task(work(world, client)) for client in range(6)]
    watchers = [asyncio.create_task(watch(world, f"s{n}")) for n in range(SESSIONS)]
    await kill_again_and_again(world, rounds, serve)
    world.stopping = True
    with serve() as process:
        await start(world, process)
        await finish(clients, watchers)
        await check(world, store_url, folder)
        process.send(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait) == 0


async def test_kill_at_random_moments(store_url: str, tmp_path: Path) -> None:
    await run(store_url, tmp_path, rounds=4)


@pytest.mark.soak
async def test_kill_at_200_random_moments(store_url: str, tmp_path: Path) -> None:
    await run(store_url, tmp_path, rounds=200)
