"""Blobs: shared inside a tenant, marked when nobody refers to them, removed under their lock."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy import Engine, text

from hansard_server.domain.records import ArtifactRecord
from hansard_server.repository.api import Store, WriteTx
from hansard_server.repository.blobs import BlobName, BlobUse
from hansard_server.repository.commands import ArtifactQuota, ClaimScope, SessionName, Upload
from tests.support.commands import NAME, append, draft
from tests.support.records import AGENT, SESSION, TENANT, artifact, with_session

SAME = b"\x07" * 32
FIRST, SECOND = (TENANT, "blob-1"), (TENANT, "blob-2")


def same(number: int, **changes: object) -> ArtifactRecord:
    """Return an artifact whose bytes are as those of all others that this returns."""
    return artifact(number, sha256=SAME, **changes)


def used(name: BlobName, since_us: int | None = None) -> BlobUse:
    return BlobUse(name, referenced=True, unreferenced_since_us=since_us)


def unused(name: BlobName, since_us: int) -> BlobUse:
    return BlobUse(name, referenced=False, unreferenced_since_us=since_us)


async def uses(store: Store) -> list[BlobUse]:
    return list(await store.read(lambda tx: tx.scan_blobs(("", ""), 100)))


async def keys(store: Store) -> dict[str, str]:
    """Return the blob of each artifact."""
    ids = [f"art_{number}" for number in range(1, 10)]
    found = await store.read(lambda tx: tx.get_artifacts(TENANT, SESSION.uid, ids))
    return {id_: record.blob_key for id_, record in found.items()}


async def settle(store: Store, *names: BlobName, now_us: int, before_us: int = 0) -> list[BlobName]:
    return list(await store.write(lambda tx: tx.settle_blobs(names, now_us, before_us=before_us)))


async def delete(store: Store, number: int) -> None:
    await store.write(lambda tx: tx.delete_artifact(TENANT, SESSION.uid, f"art_{number}"))


async def put(store: Store, *artifacts: ArtifactRecord, session: SessionName = NAME) -> None:
    """Write artifacts as an upload does."""
    upload = Upload(artifacts=artifacts, quota=ArtifactQuota(max_files=99, max_bytes=10**9))
    made = draft(id=f"aev_{session.tenant}_{artifacts[0].id}")
    await store.submit(
        append(made, session=session, scope=ClaimScope.UPLOAD_ARTIFACTS, upload=upload)
    )


async def test_equal_bytes_are_one_blob(store: Store) -> None:
    await with_session(store)
    await put(store, same(1), artifact(2), same(3))
    await put(store, same(4))
    assert await keys(store) == {
        "art_1": "blob-1",
        "art_2": "blob-2",
        "art_3": "blob-1",
        "art_4": "blob-1",
    }
    assert await uses(store) == [used(FIRST), used(SECOND)]
    # What they count for is as if each had bytes of its own.
    totals = await store.read(lambda tx: tx.total_artifacts(TENANT, SESSION.uid))
    assert (totals.files, totals.size_bytes) == (4, 400)


async def test_equal_bytes_of_another_tenant_are_another_blob(store: Store) -> None:
    await with_session(store)

    def decide(tx: WriteTx) -> None:
        tx.insert_agent(replace(AGENT, tenant="other"), None)
        tx.insert_session(replace(SESSION, tenant="other"), None)

    await store.write(decide)
    await put(store, same(1))
    theirs = same(2, tenant="other")
    await put(store, theirs, session=replace(NAME, tenant="other"))
    await put(store, same(3))
    assert await keys(store) == {"art_1": "blob-1", "art_3": "blob-1"}
    found = await store.read(lambda tx: tx.get_artifact("other", SESSION.uid, "art_2"))
    assert found == theirs
    assert await uses(store) == [used(("other", "blob-2")), used(FIRST)]


async def test_blob_goes_with_its_last_artifact(store: Store) -> None:
    await with_session(store)
    await put(store, same(1), same(2))
    await delete(store, 1)
    assert await settle(store, FIRST, now_us=10, before_us=10) == []
    assert await uses(store) == [used(FIRST)]
    await delete(store, 2)
    assert await settle(store, FIRST, now_us=20, before_us=20) == []
    assert await uses(store) == [unused(FIRST, 20)]
    assert await settle(store, FIRST, now_us=30, before_us=19) == []
    assert await uses(store) == [unused(FIRST, 20)]
    assert await settle(store, FIRST, now_us=30, before_us=20) == [FIRST]
    assert await uses(store) == []
    assert await settle(store, FIRST, now_us=40, before_us=40) == []


async def test_marked_blob_is_not_shared(store: Store) -> None:
    await with_session(store)
    await put(store, same(1))
    await delete(store, 1)
    await settle(store, FIRST, now_us=20)
    await put(store, same(2))
    await put(store, same(3))
    assert await keys(store) == {"art_2": "blob-2", "art_3": "blob-2"}
    assert await settle(store, FIRST, SECOND, now_us=30, before_us=20) == [FIRST]
    assert await uses(store) == [used(SECOND)]


async def test_unmarked_blob_of_nobody_is_still_shared(store: Store) -> None:
    """Until the sweep has looked at it, it is as good as any."""
    await with_session(store)
    await put(store, same(1))
    await delete(store, 1)
    await put(store, same(2))
    assert await keys(store) == {"art_2": "blob-1"}
    assert await settle(store, FIRST, now_us=20, before_us=20) == []


async def test_mark_on_what_is_referred_to_is_taken_away(store: Store, engine: Engine) -> None:
    """A release that knows nothing of marks may have written the reference."""
    await with_session(store)
    await put(store, artifact(1))
    with engine.begin() as connection:
        connection.execute(text("UPDATE blobs SET shared_as = NULL, unreferenced_since = 5"))
    assert await uses(store) == [used(FIRST, 5)]
    assert await settle(store, FIRST, now_us=20, before_us=20) == []
    assert await uses(store) == [used(FIRST)]


async def test_bytes_without_a_row_get_one(store: Store) -> None:
    await with_session(store)
    await put(store, artifact(1))
    found = await store.read(lambda tx: tx.find_unknown_blobs(TENANT, ["blob-1", "a", "b"]))
    assert found == {"a", "b"}
    assert await store.read(lambda tx: tx.find_unknown_blobs("other", ["blob-1"])) == {"blob-1"}
    assert await store.read(lambda tx: tx.find_unknown_blobs(TENANT, [])) == set()
    await store.write(lambda tx: tx.adopt_blobs(TENANT, ["b", "a", "blob-1"], 7))
    await store.write(lambda tx: tx.adopt_blobs(TENANT, [], 7))
    assert await uses(store) == [
        unused((TENANT, "a"), 7),
        unused((TENANT, "b"), 7),
        used(FIRST),
    ]
    assert await settle(store, (TENANT, "a"), FIRST, now_us=9, before_us=7) == [(TENANT, "a")]


@pytest.mark.parametrize("round_", range(5))
async def test_equal_bytes_at_once_are_one_blob(store: Store, round_: int) -> None:
    """Sweeps in between never take the blob from under an artifact."""
    await with_session(store)
    removed: list[BlobName] = []

    async def sweep() -> None:
        for now_us in range(1, 30):
            names = [use.name for use in await uses(store)]
            removed.extend(await settle(store, *names, now_us=now_us, before_us=now_us))

    async def come_and_go(number: int) -> None:
        await put(store, same(number))
        if number % 2:
            await delete(store, number)

    await asyncio.gather(sweep(), *(come_and_go(number) for number in range(1, 10)), sweep())
    left = await keys(store)
    assert set(left) == {f"art_{number}" for number in range(2, 10, 2)}
    there = {use.name[1] for use in await uses(store)}
    assert set(left.values()) <= there
    assert not {(TENANT, key) for key in left.values()} & set(removed), f"round {round_}"
