"""Uploads: all files of a call and their event, or nothing at all."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import obstore
import pytest
from google.protobuf import json_format, struct_pb2

from hansard.v1 import artifact_service_pb2 as service_pb2
from hansard.v1 import event_pb2
from hansard_server.artifacts.blobs import Blobs
from hansard_server.artifacts.local_disk import StagedFile
from hansard_server.artifacts.upload import Uploader
from hansard_server.domain.errors import (
    AgentNotFound,
    ArtifactNotFound,
    ChecksumMismatch,
    InvalidMetadata,
    InvalidRequest,
    PayloadTooLarge,
    QuotaExceeded,
    RequestIdReused,
    SessionNotFound,
    StoreUnavailable,
)
from hansard_server.domain.records import ArtifactRecord
from hansard_server.repository.api import ArtifactTotals, EventScan, WriteTx
from tests.support.artifacts import Part, World, chunks, header, named, sha256, start, stream
from tests.support.records import AGENT, SESSION, TENANT


async def record_of(world: World, artifact_id: str) -> ArtifactRecord:
    return await world.store.read(lambda tx: tx.get_artifact(TENANT, SESSION.uid, artifact_id))


async def nothing_is_left(world: World) -> None:
    assert world.on_disk() == []
    scan = EventScan(limit=10, max_bytes=10_000, max_rows=10, include_hidden=True)
    page = await world.store.read(lambda tx: tx.scan_events(TENANT, SESSION.uid, scan))
    assert page.events == ()
    totals = await world.store.read(lambda tx: tx.total_artifacts(TENANT, SESSION.uid))
    assert totals == ArtifactTotals(files=0, size_bytes=0)


async def test_files_become_one_event(world: World) -> None:
    metadata = struct_pb2.Struct()
    json_format.ParseDict({"page": 3}, metadata)
    large = os.urandom(6_000_000)
    event = await world.upload(
        start(),
        header("My Notes.txt", description="mine", metadata=metadata, ttl_days=2),
        *chunks(b"hello"),
        header("empty.bin"),
        header("large.dat", mime_type="x/y", size_bytes=len(large), checksum_sha256=sha256(large)),
        *chunks(large),
    )
    assert event.sequence == 1
    notes, empty, last = event.artifact_upload.artifacts
    assert notes.artifact_id.startswith("art_my_notes_")
    assert (notes.filename, notes.mime_type, notes.size_bytes) == ("My Notes.txt", "text/plain", 5)
    assert (empty.size_bytes, last.mime_type) == (0, "x/y")
    record = await record_of(world, notes.artifact_id)
    assert record.sha256.hex() == sha256(b"hello")
    assert record.description == "mine"
    assert struct_pb2.Struct.FromString(record.metadata) == metadata
    assert record.expire_at_us == record.created_at_us + 2 * 86_400_000_000
    assert len(world.on_disk()) == 3
    got = [chunk async for chunk in world.files.read_file(last.artifact_id)]
    assert b"".join(got) == large


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ([], "start"),
        ([header()], "start"),
        ([*chunks(b"x")], "start"),
        ([start()], "header"),
        ([start(), *chunks(b"x")], "chunk"),
        ([start(), start()], "start"),
        ([start(), header(), *chunks(b"x"), start()], "start"),
    ],
)
async def test_parts_out_of_order_are_refused(world: World, parts: list[Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await world.upload(*parts)
    assert [violation.field for violation in caught.value.violations] == [field]
    await nothing_is_left(world)


BIG = bytes(11_000_000)


@pytest.mark.parametrize(
    ("second", "error"),
    [
        ([header(size_bytes=4), *chunks(b"abc")], ChecksumMismatch),
        ([header(size_bytes=2), *chunks(b"abc")], ChecksumMismatch),
        ([header(size_bytes=0), *chunks(b"abc")], ChecksumMismatch),
        ([header(checksum_sha256="0" * 64), *chunks(b"abc")], ChecksumMismatch),
        ([header(checksum_sha256="0" * 64), *chunks(BIG)], ChecksumMismatch),
        ([header(size_bytes=12_000_000), *chunks(BIG)], ChecksumMismatch),
        ([header(), *chunks(BIG), RuntimeError("broken")], RuntimeError),
        ([header(), *chunks(b"abc"), asyncio.CancelledError()], asyncio.CancelledError),
    ],
)
async def test_a_broken_upload_leaves_nothing(
    world: World, second: list[Any], error: type[BaseException]
) -> None:
    parts = [start(), header("first.txt"), *chunks(b"good"), *second]
    with pytest.raises(error):
        await Uploader(world.store, world.blobs, world.limits).upload(TENANT, broken(parts))
    await nothing_is_left(world)


async def broken(parts: list[Any]) -> Any:
    for part in parts:
        if isinstance(part, BaseException):
            raise part
        yield part


async def test_limits_hold_at_the_boundary(world: World) -> None:
    world.limits = replace(
        world.limits,
        artifact_max_bytes=10,
        session_artifacts_max_bytes=25,
        session_artifacts_max_files=3,
    )
    await world.upload_file(b"x" * 10)
    with pytest.raises(PayloadTooLarge, match="larger than 10 bytes"):
        await world.upload_file(b"x" * 11)
    with pytest.raises(PayloadTooLarge):
        await world.upload(start(), header(size_bytes=11))
    two = [header(), *chunks(b"x" * 8), header()]
    with pytest.raises(QuotaExceeded) as caught:
        await world.upload(start(), *two, *chunks(b"x" * 8))
    quota = caught.value.quota
    assert quota is not None
    assert (quota.name, quota.limit, quota.used) == ("session_artifacts_max_bytes", 25, 10)
    await world.upload(start(), *two, *chunks(b"x" * 7))
    with pytest.raises(QuotaExceeded) as caught:
        await world.upload(start(), header())
    quota = caught.value.quota
    assert quota is not None
    assert (quota.name, quota.limit, quota.used) == ("session_artifacts_max_files", 3, 3)
    assert len(world.on_disk()) == 3


async def test_what_no_session_can_hold_is_refused_before_it_is_stored(world: World) -> None:
    world.limits = replace(world.limits, session_artifacts_max_bytes=5)
    with pytest.raises(QuotaExceeded):
        await world.upload(start(), header(size_bytes=6), RuntimeError("must not be asked for"))
    world.limits = replace(world.limits, session_artifacts_max_files=1)
    with pytest.raises(QuotaExceeded):
        await world.upload(start(), header(), header(), RuntimeError("must not be asked for"))
    await nothing_is_left(world)


async def test_metadata_is_checked(world: World) -> None:
    metadata = struct_pb2.Struct()
    metadata.fields["x"].number_value = float("nan")
    with pytest.raises(InvalidMetadata, match=r"header.metadata.x"):
        await world.upload(start(), header(metadata=metadata))


async def test_an_event_too_large_is_refused(world: World) -> None:
    world.limits = replace(world.limits, event_max_bytes=500)
    with pytest.raises(PayloadTooLarge, match="fewer files"):
        await world.upload(start(), *(header("x" * 200) for _ in range(3)))
    await nothing_is_left(world)


async def test_the_session_must_exist(world: World) -> None:
    for part, error in (
        (start(session_uid="another"), SessionNotFound),
        (Part(start=service_pb2.UploadStart(agent_key="none")), AgentNotFound),
    ):
        with pytest.raises(error):
            await world.upload(part, RuntimeError("must not be asked for"))
    await world.upload(start(session_uid=SESSION.uid), header())


async def test_a_repeat_gets_the_first_answer_and_stores_nothing(world: World) -> None:
    parts = [start("r1"), header(), *chunks(b"abc")]
    world.limits = replace(world.limits, session_artifacts_max_files=1)
    first = await world.upload(*parts)
    again = await world.upload(*parts)
    assert again == first
    assert len(world.on_disk()) == 1
    data = [
        chunk
        async for chunk in world.files.read_file(first.artifact_upload.artifacts[0].artifact_id)
    ]
    assert data == [b"abc"]
    with pytest.raises(RequestIdReused):
        await world.upload(start("r1"), header("b.txt"), *chunks(b"abc"))
    assert len(world.on_disk()) == 1


async def test_an_upload_that_takes_too_long_is_ended(world: World) -> None:
    async def parts() -> Any:
        yield start()
        yield header()
        await asyncio.Event().wait()

    with pytest.raises(InvalidRequest, match="longer than"):
        await Uploader(world.store, world.blobs, world.limits, max_s=0.01).upload(TENANT, parts())
    await nothing_is_left(world)


class Unsure:
    """A store that commits, and then can't say so."""

    def __init__(self, store: Any, *, commits: bool) -> None:
        self._store = store
        self._commits = commits
        self.read = store.read

    async def submit(self, command: Any) -> Any:
        if self._commits:
            await self._store.submit(command)
        raise StoreUnavailable("Who knows.")


@pytest.mark.parametrize("commits", [True, False])
async def test_bytes_that_may_be_referred_to_stay(world: World, commits: bool) -> None:  # noqa: FBT001
    unsure: Any = Unsure(world.store, commits=commits)
    uploader = Uploader(unsure, world.blobs, world.limits)
    with pytest.raises(StoreUnavailable):
        await uploader.upload(TENANT, stream([start("r1"), header(), *chunks(b"abc")]))
    assert len(world.on_disk()) == 1
    event = await world.upload(start("r1"), header(), *chunks(b"abc"))
    artifact_id = event.artifact_upload.artifacts[0].artifact_id
    assert [chunk async for chunk in world.files.read_file(artifact_id)] == [b"abc"]


@pytest.mark.parametrize(
    "filename",
    ["..evil", "a" * 255, "日本.txt", "-rf *", "$(id)`x`.sh", "nul.txt", "a\u202eb", "🎉"],
)
async def test_a_filename_is_never_a_path(world: World, filename: str) -> None:
    artifact_id = await world.upload_file(b"x", filename)
    record = await record_of(world, artifact_id)
    assert record.filename == filename
    (path,) = world.on_disk()
    assert path.name.startswith(sha256(b"x"))


async def test_an_artifact_that_expired_is_gone(world: World) -> None:
    artifact_id = await world.upload_file(b"x", ttl_days=1)
    record = await record_of(world, artifact_id)
    later = type(world.artifacts)(
        world.store, world.blobs, world.tokens, clock=lambda: record.expire_at_us or 0
    )
    with pytest.raises(ArtifactNotFound):
        await later.get(TENANT, named(service_pb2.GetArtifactRequest, artifact_id))
    assert (await later.list(TENANT, named(service_pb2.ListArtifactsRequest))).items == ()
    await world.artifacts.get(TENANT, named(service_pb2.GetArtifactRequest, artifact_id))


async def test_upload_that_is_cancelled_while_its_bytes_are_stored_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish, storing, go_on = StagedFile.publish, threading.Event(), threading.Event()

    def publish_late(file: StagedFile, root: Path, path: str) -> None:
        # What is cancelled is the caller: the thread does what it was told.
        storing.set()
        go_on.wait()
        publish(file, root, path)

    monkeypatch.setattr(StagedFile, "publish", publish_late)
    uploading = asyncio.ensure_future(world.upload(start(), header(), *chunks(b"hello")))
    await asyncio.to_thread(storing.wait)
    uploading.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await uploading
    await nothing_is_left(world)


async def test_upload_that_is_cancelled_while_a_cloud_stores_its_bytes_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = obstore.put_async
    storing, go_on, was_stored = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def put_late(*arguments: Any) -> Any:
        # What is cancelled is the caller: the object store does what it was told.
        storing.set()
        await go_on.wait()
        result = await put(*arguments)
        was_stored.set()
        return result

    monkeypatch.setattr(obstore, "put_async", put_late)
    blobs = Blobs.open("memory:///")
    uploader = Uploader(world.store, blobs, world.limits)
    parts = (start(), header(), *chunks(b"hello"))
    uploading = asyncio.ensure_future(uploader.upload(TENANT, stream(parts)))
    await storing.wait()
    uploading.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await uploading
    await was_stored.wait()
    assert [item async for batch in blobs.scan(TENANT) for item in batch] == []
    await nothing_is_left(world)


async def test_upload_that_is_cancelled_while_a_thread_writes_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, writing, go_on = StagedFile.write, threading.Event(), threading.Event()
    written = threading.Event()

    def write_late(file: StagedFile, pieces: Sequence[bytes | memoryview]) -> None:
        writing.set()
        go_on.wait()
        write(file, pieces)
        written.set()

    monkeypatch.setattr(StagedFile, "write", write_late)
    uploading = asyncio.ensure_future(world.upload(start(), header(), *chunks(BIG)))
    await asyncio.to_thread(writing.wait)
    uploading.cancel()
    await asyncio.sleep(0)
    # Once more, while it waits for the thread: what the thread makes is removed all the same.
    uploading.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await uploading
    async with asyncio.timeout(30):
        await asyncio.to_thread(written.wait)
        while world.on_disk():  # noqa: ASYNC110 - what is waited for are files that go
            await asyncio.sleep(0.01)
    await nothing_is_left(world)


async def test_a_chunk_without_its_message_is_the_same(world: World) -> None:
    data = os.urandom(3_000_000)
    uploader = Uploader(world.store, world.blobs, world.limits)
    bare = [memoryview(part.chunk) for part in chunks(data)]
    for parts in (chunks(data), bare):
        named_file = header(checksum_sha256=sha256(data))
        made = await uploader.upload(TENANT, stream([start(), named_file, *parts]))
        payload = event_pb2.Event.FromString(made.event.payload)
        (artifact,) = payload.artifact_upload.artifacts
        record = await record_of(world, artifact.artifact_id)
        assert (record.size_bytes, record.sha256.hex()) == (len(data), sha256(data))
    for wrong in ([bare[0]], [start(), bare[0]]):
        with pytest.raises(InvalidRequest):
            await uploader.upload(TENANT, stream(wrong))


async def test_nobody_waits_for_the_removal_of_bytes_that_were_there_before(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So how long an upload takes does not tell whether its bytes were there."""
    uploader = Uploader(world.store, world.blobs, world.limits)
    parts = (start(), header(), *chunks(b"hello"))
    await uploader.upload(TENANT, stream(parts))
    remove, go_on, removed = world.blobs.delete, asyncio.Event(), asyncio.Event()

    async def remove_late(tenant: str, keys: Sequence[str]) -> None:
        await go_on.wait()
        await remove(tenant, keys)
        removed.set()

    monkeypatch.setattr(world.blobs, "delete", remove_late)
    await uploader.upload(TENANT, stream(parts))
    assert len(world.on_disk()) == 2
    go_on.set()
    await removed.wait()
    assert len(world.on_disk()) == 1


async def test_bytes_of_another_tenant_are_not_shared(world: World) -> None:
    def decide(tx: WriteTx) -> None:
        tx.insert_agent(replace(AGENT, tenant="other"), None)
        tx.insert_session(replace(SESSION, tenant="other"), None)

    await world.store.write(decide)
    parts = (start(), header(), *chunks(b"hello"))
    uploader = Uploader(world.store, world.blobs, world.limits)
    for tenant in (TENANT, "other", "other"):
        await uploader.upload(tenant, stream(parts))
    while len(world.on_disk()) > 2:  # noqa: ASYNC110 - what is waited for are files that go
        await asyncio.sleep(0.01)
    assert {path.relative_to(world.root).parts[0] for path in world.on_disk()} == {TENANT, "other"}


async def test_session_that_is_made_anew_meanwhile_does_not_get_the_files(world: World) -> None:
    async def parts() -> AsyncIterator[Part]:
        yield start()
        yield header()

        def decide(tx: WriteTx) -> None:
            tx.delete_session(TENANT, SESSION.uid, 5_000)
            tx.insert_session(replace(SESSION, uid="anew"), None)

        await world.store.write(decide)
        yield Part(chunk=b"hello")

    uploader = Uploader(world.store, world.blobs, world.limits)
    with pytest.raises(SessionNotFound):
        await uploader.upload(TENANT, parts())
    assert world.on_disk() == []
    totals = await world.store.read(lambda tx: tx.total_artifacts(TENANT, "anew"))
    assert totals == ArtifactTotals(files=0, size_bytes=0)
