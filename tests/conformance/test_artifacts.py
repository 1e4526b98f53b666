"""Artifacts as reads see them, and their deletion; uploads write them."""

from __future__ import annotations

import pytest

from hansard_server.domain.errors import ArtifactNotFound
from hansard_server.domain.records import ArtifactSource
from hansard_server.repository.api import ArtifactTotals, Store
from tests.support.records import SESSION, TENANT, artifact, with_artifacts, with_session


async def test_artifact_comes_back_as_it_was_written(store: Store) -> None:
    written = artifact(
        1,
        filename="ünï ✓.txt",
        size_bytes=2**40,
        metadata=b"\x00",
        ttl_days=3,
        source=ArtifactSource.TOOL,
        expire_at_us=9_000,
    )
    await with_session(store)
    await with_artifacts(store, [written])

    assert await store.read(lambda tx: tx.get_artifact(TENANT, SESSION.uid, "art_1")) == written


@pytest.mark.parametrize(
    "name",
    [
        (TENANT, SESSION.uid, "art_9"),
        (TENANT, "another", "art_1"),
        ("other", SESSION.uid, "art_1"),
    ],
)
async def test_artifact_of_elsewhere_is_not_found(store: Store, name: tuple[str, str, str]) -> None:
    await with_session(store)
    await with_artifacts(store, [artifact(1)])

    with pytest.raises(ArtifactNotFound):
        await store.read(lambda tx: tx.get_artifact(*name))
    with pytest.raises(ArtifactNotFound):
        await store.write(lambda tx: tx.delete_artifact(*name))
    assert await store.read(lambda tx: tx.get_artifacts(name[0], name[1], [name[2]])) == {}


async def test_several_are_found_by_id(store: Store) -> None:
    await with_session(store)
    await with_artifacts(store, [artifact(1), artifact(2), artifact(3)])

    found = await store.read(
        lambda tx: tx.get_artifacts(TENANT, SESSION.uid, ["art_3", "art_1", "art_9", "art_1"])
    )

    assert found == {"art_1": artifact(1), "art_3": artifact(3)}
    assert await store.read(lambda tx: tx.get_artifacts(TENANT, SESSION.uid, [])) == {}


async def test_any_number_of_ids_may_be_asked_for(store: Store) -> None:
    await with_session(store)
    await with_artifacts(store, [artifact(1)])
    ids = [f"art_{number}" for number in range(70_000)]

    found = await store.read(lambda tx: tx.get_artifacts(TENANT, SESSION.uid, ids))

    assert found == {"art_1": artifact(1)}


async def test_deleted_artifact_no_longer_counts(store: Store) -> None:
    await with_session(store)
    await with_artifacts(store, [artifact(1), artifact(2, size_bytes=7)])

    async def totals() -> ArtifactTotals:
        return await store.read(lambda tx: tx.total_artifacts(TENANT, SESSION.uid))

    assert await totals() == ArtifactTotals(files=2, size_bytes=107)
    deleted = await store.write(lambda tx: tx.delete_artifact(TENANT, SESSION.uid, "art_1"))
    assert deleted == artifact(1)
    assert await totals() == ArtifactTotals(files=1, size_bytes=7)
    with pytest.raises(ArtifactNotFound):
        await store.read(lambda tx: tx.get_artifact(TENANT, SESSION.uid, "art_1"))
    with pytest.raises(ArtifactNotFound):
        await store.write(lambda tx: tx.delete_artifact(TENANT, SESSION.uid, "art_1"))


async def test_session_without_artifacts_has_none(store: Store) -> None:
    nothing = ArtifactTotals(files=0, size_bytes=0)
    await with_session(store)

    assert await store.read(lambda tx: tx.total_artifacts(TENANT, SESSION.uid)) == nothing
    assert await store.read(lambda tx: tx.total_artifacts(TENANT, "another")) == nothing
