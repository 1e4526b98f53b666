"""Bytes on a real disk: visible when whole, and gone when not."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import time
import tracemalloc
from pathlib import Path

import pytest

from hansard_server.artifacts.blobs import Blobs
from hansard_server.artifacts.store_errors import BlobMissing
from hansard_server.artifacts.writers import SPOOL_BYTES
from hansard_server.domain.errors import StoreUnavailable
from hansard_server.domain.limits import MIB

SIZES = [0, 1, SPOOL_BYTES - 1, SPOOL_BYTES, SPOOL_BYTES + 1, 3 * SPOOL_BYTES]


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


async def read(blobs: Blobs, key: str, offset: int, length: int, tenant: str = "t1") -> bytes:
    return b"".join([chunk async for chunk in blobs.read(tenant, key, offset, length)])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("known", [True, False])
async def test_bytes_come_back(blobs: Blobs, root: Path, size: int, known: bool) -> None:  # noqa: FBT001
    data = os.urandom(size)
    digest = hashlib.sha256(data).digest()
    async with blobs.write("t1", digest if known else None) as writer:
        for start in range(0, size, MIB):
            await writer.write(data[start : start + MIB])
        assert not [path for path in files(root) if "#" not in path.name]
        blob = await writer.finish()
    assert (blob.size_bytes, blob.sha256) == (size, digest)
    assert blob.key.startswith(f"{digest.hex()[:2]}/{digest.hex()[2:4]}/{digest.hex()}-")
    assert files(root) == [root / "t1" / blob.key]
    assert await read(blobs, blob.key, 0, size) == data
    if size > 10:
        assert await read(blobs, blob.key, 5, size - 9) == data[5:-4]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("known", [True, False])
async def test_bytes_come_back_from_a_cloud(size: int, known: bool) -> None:  # noqa: FBT001
    blobs, data = Blobs.open("memory:///"), os.urandom(size)
    digest = hashlib.sha256(data).digest()
    async with blobs.write("t1", digest if known else None) as writer:
        for start in range(0, size, MIB):
            await writer.write(memoryview(data)[start : start + MIB])
        assert await writer.digest() == digest
        blob = await writer.finish()
    assert (blob.size_bytes, blob.sha256) == (size, digest)
    assert await read(blobs, blob.key, 0, size) == data


async def test_a_disk_that_fails_on_the_way_is_unavailable(
    blobs: Blobs, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int, _data: object) -> int:
        raise OSError(errno.ENOSPC, "full", str(root))

    async def write() -> None:
        async with blobs.write("t1") as writer:
            for _ in range(64):
                await writer.write(bytes(MIB))

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(StoreUnavailable) as caught:
        await write()
    assert str(root) not in caught.value.message
    assert files(root) == []


async def test_a_disk_may_take_less_than_it_is_given(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, data = os.write, os.urandom(3 * MIB + 1)

    def write_some(descriptor: int, rest: memoryview) -> int:
        return write(descriptor, rest[: 100 * 1024])

    monkeypatch.setattr(os, "write", write_some)
    async with blobs.write("t1") as writer:
        await writer.write(data)
        blob = await writer.finish()
    assert blob.sha256 == hashlib.sha256(data).digest()
    assert await read(blobs, blob.key, 0, len(data)) == data


async def test_a_wrong_digest_is_not_the_name(blobs: Blobs, root: Path) -> None:
    data = bytes(SPOOL_BYTES + 1)
    async with blobs.write("t1", b"\x01" * 32) as writer:
        await writer.write(data)
        blob = await writer.finish()
    assert hashlib.sha256(data).hexdigest() in blob.key
    assert files(root) == [root / "t1" / blob.key]


@pytest.mark.parametrize("size", [10, 4 * SPOOL_BYTES])
async def test_unfinished_bytes_leave_nothing(blobs: Blobs, root: Path, size: int) -> None:
    async with blobs.write("t1") as writer:
        await writer.write(bytes(size))
    assert files(root) == []

    async def fail() -> None:
        async with blobs.write("t1") as writer:
            await writer.write(bytes(size))
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await fail()
    assert files(root) == []

    async def write() -> None:
        async with blobs.write("t1") as writer:
            await writer.write(bytes(size))
            begun.set()
            await asyncio.Event().wait()

    begun = asyncio.Event()
    task = asyncio.create_task(write())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert files(root) == []


async def test_chunks_have_the_contracts_size(blobs: Blobs) -> None:
    async with blobs.write("t1") as writer:
        await writer.write(bytes(3 * MIB + 7))
        blob = await writer.finish()
    sizes = [len(chunk) async for chunk in blobs.read("t1", blob.key, 0, 3 * MIB + 7)]
    assert sizes == [256 * 1024] * 12 + [7]


async def test_what_is_missing_says_so(blobs: Blobs, root: Path) -> None:
    with pytest.raises(BlobMissing):
        await read(blobs, "aa/bb/none", 0, 1)
    async with blobs.write("t1") as writer:
        await writer.write(b"abc")
        blob = await writer.finish()
    with pytest.raises(BlobMissing):
        await read(blobs, blob.key, 0, 1, tenant="t2")
    with pytest.raises(BlobMissing):
        await read(blobs, blob.key, 0, 4)
    await blobs.delete("t1", [blob.key, blob.key, "aa/bb/none"])
    assert files(root) == []


async def test_tenants_stay_in_their_folders(blobs: Blobs) -> None:
    for tenant in ("", "..", "a/b", "a\0", "ü"):
        with pytest.raises(ValueError, match="tenant"):
            blobs.write(tenant)


def put_a_file_in_place_of(folder: Path) -> None:
    folder.rmdir()
    folder.write_text("")


async def test_a_store_that_fails_is_unavailable(blobs: Blobs, root: Path) -> None:
    put_a_file_in_place_of(root)
    async with blobs.write("t1") as writer:
        await writer.write(b"abc")
        with pytest.raises(StoreUnavailable) as caught:
            await writer.finish()
    assert str(root) not in caught.value.message


async def test_scan_and_tenants(blobs: Blobs) -> None:
    keys = set()
    for _ in range(3):
        async with blobs.write("t1") as writer:
            await writer.write(b"same")
            keys.add((await writer.finish()).key)
    assert len(keys) == 3
    assert await blobs.tenants() == ["t1"]
    assert {item.key async for batch in blobs.scan("t1") for item in batch} == keys


async def test_leftovers_of_crashes_are_removed(blobs: Blobs, root: Path) -> None:
    async with blobs.write("t1") as writer:
        await writer.write(bytes(4 * SPOOL_BYTES))
        await writer.digest()
        (staged,) = files(root)
        assert await blobs.remove_leftovers(3_600) == 0
    # What the object store stages, as a killed process leaves it.
    leave_behind(staged, age_s=7_200)
    assert await blobs.remove_leftovers(7_300) == 0
    assert await blobs.remove_leftovers(7_100) == 1
    assert files(root) == []


def leave_behind(path: Path, age_s: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half")
    os.utime(path, (time.time() - age_s,) * 2)


def test_locations(tmp_path: Path) -> None:
    Blobs.open(tmp_path / "a")
    Blobs.open(f"file://{tmp_path}/b%20c")
    Blobs.open("memory:///")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b c"}


async def test_memory_does_not_grow_with_the_file(blobs: Blobs) -> None:
    chunk = bytes(MIB)
    tracemalloc.start()
    try:
        async with blobs.write("t1") as writer:
            for _ in range(64):
                await writer.write(chunk)
            blob = await writer.finish()
        async for _ in blobs.read("t1", blob.key, 0, 64 * MIB):
            pass
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()
