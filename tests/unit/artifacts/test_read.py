"""Get, list, download, delete, and the files of tools."""

from __future__ import annotations

import os
from typing import Any

import pytest

from hansard.v1 import artifact_service_pb2 as service_pb2
from hansard.v1 import paging_pb2
from hansard_server.agents.api import SessionFiles
from hansard_server.domain.errors import (
    ArtifactNotFound,
    Internal,
    InvalidPageToken,
    InvalidRequest,
    SessionNotFound,
)
from tests.support.artifacts import World, named, sha256
from tests.support.records import AGENT, SESSION, TENANT

DATA = os.urandom(600_000)


async def download(world: World, artifact_id: str, **changes: Any) -> list[Any]:
    request = named(service_pb2.DownloadArtifactRequest, artifact_id, **changes)
    return [part async for part in world.artifacts.download(TENANT, request)]


async def test_get(world: World) -> None:
    artifact_id = await world.upload_file(DATA, "a.bin", ttl_days=3)
    artifact = await world.artifacts.get(TENANT, named(service_pb2.GetArtifactRequest, artifact_id))
    assert (artifact.agent_key, artifact.session_key) == (AGENT.key, SESSION.key)
    assert artifact.checksum_sha256 == sha256(DATA)
    assert (artifact.size_bytes, artifact.ttl_days) == (600_000, 3)
    assert artifact.HasField("created_at")
    with pytest.raises(ArtifactNotFound):
        await world.artifacts.get(TENANT, named(service_pb2.GetArtifactRequest, "art_x"))
    with pytest.raises(ArtifactNotFound):
        await anext(world.files.read_file("art_x"))


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, None), (0, 0), (1, None), (599_999, None), (600_000, None), (600_000, 5), (5, 300_000)],
)
async def test_download(world: World, offset: int, length: int | None) -> None:
    artifact_id = await world.upload_file(DATA)
    more = {} if length is None else {"length": length}
    first, *rest = await download(world, artifact_id, offset=offset, **more)
    assert first.artifact.artifact_id == artifact_id
    data = b"".join(part.chunk for part in rest)
    assert data == DATA[offset:][: length if length is not None else None]
    assert all(0 < len(part.chunk) <= 256 * 1024 for part in rest)


async def test_download_past_the_end(world: World) -> None:
    artifact_id = await world.upload_file(DATA)
    with pytest.raises(InvalidRequest) as caught:
        await download(world, artifact_id, offset=600_001)
    assert caught.value.violations[0].field == "offset"


async def test_lost_bytes_are_a_fault_and_deleted_ones_are_not_found(world: World) -> None:
    artifact_id = await world.upload_file(DATA)
    world.on_disk()[0].unlink()
    with pytest.raises(Internal):
        await download(world, artifact_id)
    request = named(service_pb2.DownloadArtifactRequest, artifact_id)
    parts = world.artifacts.download(TENANT, request)
    await anext(parts)
    await world.artifacts.delete(TENANT, named(service_pb2.DeleteArtifactRequest, artifact_id))
    with pytest.raises(ArtifactNotFound):
        await anext(parts)


async def test_delete(world: World) -> None:
    artifact_id = await world.upload_file(DATA)
    request = named(service_pb2.DeleteArtifactRequest, artifact_id)
    await world.artifacts.delete(TENANT, request)
    with pytest.raises(ArtifactNotFound):
        await world.artifacts.delete(TENANT, request)
    with pytest.raises(ArtifactNotFound):
        await download(world, artifact_id)


async def test_list_pages(world: World) -> None:
    ids = [await world.upload_file(b"x", f"{number}.txt") for number in range(5)]
    for order, expected in (
        (paging_pb2.SORT_ORDER_UNSPECIFIED, ids),
        (paging_pb2.SORT_ORDER_DESCENDING, ids[::-1]),
    ):
        seen: list[str] = []
        request = named(service_pb2.ListArtifactsRequest, page_size=2, order=order)
        while True:
            page = await world.artifacts.list(TENANT, request)
            assert len(page.items) <= 2
            seen += [artifact.artifact_id for artifact in page.items]
            if not page.next_token:
                break
            request.page_token = page.next_token
        assert seen == expected
    request = named(service_pb2.ListArtifactsRequest, page_token="bad")
    with pytest.raises(InvalidPageToken):
        await world.artifacts.list(TENANT, request)
    request = named(service_pb2.ListArtifactsRequest)
    request.session_key = "none"
    with pytest.raises(SessionNotFound):
        await world.artifacts.list(TENANT, request)


async def test_another_tenant_sees_nothing(world: World) -> None:
    artifact_id = await world.upload_file(DATA)
    request = named(service_pb2.GetArtifactRequest, artifact_id)
    with pytest.raises(Exception, match="agent") as caught:
        await world.artifacts.get("other", request)
    assert type(caught.value).__name__ == "AgentNotFound"


async def test_files_of_tools(world: World) -> None:
    ids = [await world.upload_file(DATA, f"{number}.bin") for number in range(3)]
    files: SessionFiles = world.files
    assert [file.artifact_id for file in await files.list_files(2)] == [ids[2], ids[1]]
    assert (await files.get_file(ids[0])).filename == "0.bin"
    got = [chunk async for chunk in files.read_file(ids[0], 10, 20)]
    assert got == [DATA[10:30]]
    assert [chunk async for chunk in files.read_file(ids[0], 700_000)] == []
