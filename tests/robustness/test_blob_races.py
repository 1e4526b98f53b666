"""Uploads, deletions, forks and sweeps at once, and servers that are killed: no artifact loses its
bytes, and no bytes are left of which there is none.

What the server waits for an hour is a second here. The seed is printed; HANSARD_SEED replays it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import obstore
import pytest
from sqlalchemy import select

from hansard.v1 import artifact_service_pb2, session_service_pb2
from hansard_server.artifacts.object_stores import CloudOptions, open_place
from hansard_server.domain.limits import MIB
from hansard_server.repository.sql import tables
from hansard_server.repository.sql.engine import make_engine
from tests.support.databases import Databases
from tests.support.invariants import check_store
from tests.support.s3 import Kept, S3Endpoint
from tests.support.server import Running, ServeProcess, open_channel, serve_process
from tests.support.talk import Talk

Upload = artifact_service_pb2.UploadArtifactsRequest
SESSIONS = [f"s{number}" for number in range(6)]
CLIENTS = 8
QUIET_S = 120.0
"""So long is waited for what takes a few seconds where nobody else works."""
SETTINGS = {
    "artifact_grace_s": 1.0,
    "artifact_sweep_interval_s": 0.1,
    "upload_max_s": 4.0,
    "sweep_interval_s": 0.1,
    "lease_s": 1.0,
    "agent_max_sessions_per_s": 0,
}
REFUSED = {
    # The session, the artifact, or the event up to which a fork goes has been deleted meanwhile.
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.ALREADY_EXISTS,
    # Too slow an upload, on a busy machine.
    grpc.StatusCode.INVALID_ARGUMENT,
}
GONE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN}
# What grpc's own client says now and then when a server that it writes to goes away.
CLIENT_FAULT = "Internal error from Core"
FILE_OF_A_TOOL = b"made by a tool"
SCRIPT = [
    {
        "tool_call": {
            "name": "artifact_create",
            "input": {"filename": "made.txt", "content": FILE_OF_A_TOOL.decode()},
        }
    },
    {"agent_output": {"content": "Made."}},
]


@dataclass
class World:
    """The servers that are up, and what the clients know of the artifacts."""

    rng: random.Random
    live: list[str] = field(default_factory=list)
    stopping: bool = False
    kept: dict[tuple[str, str], bytes] = field(default_factory=dict)
    """By session and artifact: the digest of what was acknowledged and nobody has deleted."""
    deleted: set[tuple[str, str]] = field(default_factory=set)
    incarnations: Counter[str] = field(default_factory=Counter)
    downloads: int = 0
    faults: list[str] = field(default_factory=list)

    def contents(self) -> bytes:
        """Return bytes that others often upload too, now and then in several parts."""
        number = self.rng.randrange(8)
        size = 6 * MIB if number == 0 and self.rng.random() < 0.3 else 2_000 + number
        return random.Random(size).randbytes(size)

    def forget(self, session: str) -> None:
        self.incarnations[session] += 1
        for name in [name for name in self.kept if name[0] == session]:
            del self.kept[name]


def parts(talk: Talk, *files: bytes, cut: bool = False) -> AsyncIterator[Upload]:
    async def stream() -> AsyncIterator[Upload]:
        yield Upload(start=artifact_service_pb2.UploadStart(**talk.keys))
        for data in files:
            known = hashlib.sha256(data).hexdigest() if len(data) % 2 else ""
            yield Upload(
                header=artifact_service_pb2.UploadHeader(filename="a", checksum_sha256=known)
            )
            for at in range(0, len(data), MIB):
                yield Upload(chunk=data[at : at + MIB])
        if cut:
            await asyncio.Event().wait()

    return stream()


async def upload(world: World, talk: Talk) -> None:
    files = [world.contents() for _ in range(world.rng.choice((1, 1, 3)))]
    incarnation = world.incarnations[talk.session_key]
    event = await talk.server.artifacts.UploadArtifacts(parts(talk, *files))
    if incarnation != world.incarnations[talk.session_key]:
        return
    for reference, data in zip(event.artifact_upload.artifacts, files, strict=True):
        name = (talk.session_key, reference.artifact_id)
        # Others see it before its answer has come.
        if name not in world.deleted:
            world.kept[name] = hashlib.sha256(data).digest()


async def cut(world: World, talk: Talk) -> None:
    call = talk.server.artifacts.UploadArtifacts(parts(talk, world.contents(), cut=True))
    await asyncio.sleep(world.rng.random() / 20)
    call.cancel()
    with suppress(asyncio.CancelledError):
        await call


async def make(_world: World, talk: Talk) -> None:
    await talk.send()


async def listed(talk: Talk) -> list[Any]:
    request = artifact_service_pb2.ListArtifactsRequest(page_size=1_000, **talk.keys)
    return list((await talk.server.artifacts.ListArtifacts(request)).artifacts)


async def delete(world: World, talk: Talk) -> None:
    found = await listed(talk)
    for artifact in world.rng.sample(found, len(found) * 2 // 3):
        name = (talk.session_key, artifact.artifact_id)
        world.deleted.add(name)
        world.kept.pop(name, None)
        await talk.server.artifacts.DeleteArtifact(
            artifact_service_pb2.DeleteArtifactRequest(
                artifact_id=artifact.artifact_id, **talk.keys
            )
        )


async def fork(world: World, talk: Talk) -> None:
    """Put a fork in the place of another session."""
    place = world.rng.choice([session for session in SESSIONS if session != talk.session_key])
    world.forget(place)
    with suppress(grpc.aio.AioRpcError):
        await talk.server.sessions.DeleteSession(
            session_service_pb2.DeleteSessionRequest(agent_key=talk.agent_key, session_key=place)
        )
    # Who has uploaded there meanwhile can't know whether it was to the one before.
    world.forget(place)
    await talk.server.sessions.CreateSession(
        session_service_pb2.CreateSessionRequest(
            agent_key=talk.agent_key,
            key=place,
            name="Fork",
            from_session={"session_key": talk.session_key},
        )
    )


async def download(world: World, talk: Talk) -> None:
    for artifact in world.rng.sample(found := await listed(talk), min(5, len(found))):
        digest = await digest_of(talk, artifact.artifact_id)
        assert digest.hex() == artifact.checksum_sha256
        world.downloads += 1


async def digest_of(talk: Talk, artifact_id: str) -> bytes:
    digest = hashlib.sha256()
    request = artifact_service_pb2.DownloadArtifactRequest(artifact_id=artifact_id, **talk.keys)
    async for part in talk.server.artifacts.DownloadArtifact(request):
        digest.update(part.chunk)
    return digest.digest()


JOBS: dict[Callable[[World, Talk], Awaitable[None]], int] = {
    upload: 8,
    cut: 3,
    make: 2,
    delete: 5,
    fork: 2,
    download: 4,
}


async def work(world: World) -> None:
    while not world.stopping:
        if not world.live:
            await asyncio.sleep(0.02)
            continue
        job = world.rng.choices(list(JOBS), list(JOBS.values()))[0]
        async with open_channel(world.rng.choice(world.live)) as channel:
            server: Any = None
            talk = Talk(Running(server, channel), session_key=world.rng.choice(SESSIONS))
            try:
                await job(world, talk)
            except grpc.aio.AioRpcError as error:
                ours = CLIENT_FAULT not in (error.details() or "")
                if ours and error.code() not in REFUSED | GONE:
                    world.faults.append(f"{job.__name__}: {error}")
                    return
                if error.code() == grpc.StatusCode.NOT_FOUND and job is not download:
                    with suppress(grpc.aio.AioRpcError):
                        await talk.open_session()


class Servers:
    """One server, or several on one database; each can be killed, and is started again."""

    def __init__(self, stack: ExitStack, world: World, arguments: list[str]) -> None:
        self._stack = stack
        self._world = world
        self._arguments = arguments
        self.running: dict[str, ServeProcess] = {}

    async def start(self) -> str:
        process = self._stack.enter_context(serve_process(*self._arguments))
        entry = await asyncio.to_thread(process.wait_for, "serving")
        address = str(entry["address"])
        self.running[address] = process
        self._world.live.append(address)
        return address

    async def kill_one(self) -> None:
        address = self._world.rng.choice(self._world.live)
        self._world.live.remove(address)
        process = self.running.pop(address)
        process.send(signal.SIGKILL)
        await asyncio.to_thread(process.wait)

    async def stop(self) -> None:
        for address, process in self.running.items():
            self._world.live.remove(address)
            process.send(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait) == 0
        self.running.clear()


def blob_rows(store_url: str) -> tuple[dict[tuple[str, str], bytes], set[tuple[str, str]]]:
    """Return the blobs to which artifacts refer, with their digests, and those that have a row."""
    engine = make_engine(store_url)
    with engine.connect() as connection:
        artifacts = connection.execute(select(tables.artifacts)).all()
        blobs = connection.execute(select(tables.blobs)).all()
    engine.dispose()
    referenced: dict[tuple[str, str], bytes] = {}
    for row in artifacts:
        assert referenced.setdefault((row.tenant, row.blob_key), row.sha256) == row.sha256
    return referenced, {(row.tenant, row.key) for row in blobs}


def objects(kept: Kept) -> dict[tuple[str, str], bytes]:
    """Return all objects and their digests."""
    options = CloudOptions()
    location: str | Path = kept.folder / "artifacts"
    if kept.bucket is not None:
        location = kept.bucket.location
        given = kept.bucket.settings
        options = CloudOptions(
            endpoint=given["artifacts_endpoint"],
            region=given["artifacts_region"],
            access_key_id=given["artifacts_access_key_id"],
            secret_access_key=given["artifacts_secret_access_key"],
        )
    store = open_place(location, options).store
    found = {}
    for batch in obstore.list(store):
        for item in batch:
            tenant, _, key = item["path"].partition("/")
            data = bytes(obstore.get(store, item["path"]).bytes())
            found[tenant, key] = hashlib.sha256(data).digest()
    return found


def count_objects(kept: Kept) -> int:
    return len(kept.bucket.objects() if kept.bucket is not None else kept.names())


async def check_artifacts(world: World) -> None:
    """Check that what was acknowledged is there, and that all that is there is whole."""
    found: dict[tuple[str, str], bytes] = {}
    async with open_channel(world.live[0]) as channel:
        server: Any = None
        for session in SESSIONS:
            talk = Talk(Running(server, channel), session_key=session)
            with suppress(grpc.aio.AioRpcError):
                await talk.open_session()
            for artifact in await listed(talk):
                digest = await digest_of(talk, artifact.artifact_id)
                assert digest.hex() == artifact.checksum_sha256
                found[session, artifact.artifact_id] = digest
    for name, digest in world.kept.items():
        assert found.get(name) == digest, f"{name} was acknowledged and lost"


async def until_swept(store_url: str, kept: Kept) -> None:
    """Return when there are as many objects as are referred to; AssertionError if it never is."""
    deadline = time.monotonic() + QUIET_S
    while True:
        referenced, _ = await asyncio.to_thread(blob_rows, store_url)
        there = await asyncio.to_thread(count_objects, kept)
        if there == len(referenced):
            return
        assert time.monotonic() < deadline, f"{there} objects, {len(referenced)} referred to"
        await asyncio.sleep(0.2)


async def run(store_url: str, kept: Kept, *, replicas: int, kills: int, pause_s: float) -> None:
    seed = int(os.environ.get("HANSARD_SEED", time.time_ns() % 1_000_000))
    print(f"HANSARD_SEED={seed}")  # noqa: T201 - to replay it
    world = World(random.Random(seed))
    settings = {**SETTINGS, **kept.settings}
    more = [flag for name, value in settings.items() for flag in ("--set", f"{name}={value}")]
    usual = ["--listen", "127.0.0.1:0", "--data-dir", str(kept.folder), "--store", store_url]
    with ExitStack() as stack:
        servers = Servers(stack, world, [*usual, *more])
        address = await servers.start()
        async with open_channel(address) as channel:
            server: Any = None
            talk = Talk(Running(server, channel), session_key=SESSIONS[0])
            await talk.begin(SCRIPT, tools=["artifact_create"])
        for _ in range(replicas - 1):
            await servers.start()
        clients = [asyncio.create_task(work(world)) for _ in range(CLIENTS)]
        for _ in range(kills):
            await asyncio.sleep(pause_s * (0.5 + world.rng.random()))
            await servers.kill_one()
            await servers.start()
        await asyncio.sleep(pause_s)
        world.stopping = True
        await asyncio.gather(*clients)
        assert not world.faults, world.faults
        assert world.downloads, "nothing was read"
        await check_artifacts(world)
        await until_swept(store_url, kept)
        # Nothing that is referred to goes, however often is swept.
        await asyncio.sleep(3 * SETTINGS["artifact_grace_s"])
        await check_artifacts(world)
        await servers.stop()
    referenced, rows = blob_rows(store_url)
    assert objects(kept) == referenced
    assert rows == referenced.keys()
    assert len(set(referenced.values())) == len(referenced), "equal bytes are stored twice"
    check_store(store_url, None if kept.bucket else kept.folder)


def place(request: pytest.FixtureRequest, kind: str, folder: Path) -> Kept:
    if kind == "disk":
        return Kept(folder)
    endpoint: S3Endpoint = request.getfixturevalue("s3")
    return Kept.in_bucket(folder, endpoint.bucket())


@pytest.mark.parametrize(("database", "kind"), [("sqlite", "disk"), ("postgresql", "s3")])
async def test_bytes_stay_while_they_are_referred_to_and_no_longer(
    request: pytest.FixtureRequest, databases: Databases, database: str, kind: str, tmp_path: Path
) -> None:
    kept = place(request, kind, tmp_path / "data")
    replicas = 2 if database == "postgresql" else 1
    url = databases.migrated(database)
    await run(url, kept, replicas=replicas, kills=2, pause_s=2.0)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["disk", "s3"])
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_bytes_for_minutes(
    request: pytest.FixtureRequest, databases: Databases, database: str, kind: str, tmp_path: Path
) -> None:
    kept = place(request, kind, tmp_path / "data")
    replicas = 3 if database == "postgresql" else 1
    url = databases.migrated(database)
    await run(url, kept, replicas=replicas, kills=25, pause_s=5.0)
