"""The sweep: what no artifact refers to goes, after its time of grace, and nothing else does."""

from __future__ import annotations

import pytest

from hansard.v1 import artifact_service_pb2 as service_pb2
from hansard_server.artifacts.sweep import ArtifactSweep, Swept
from hansard_server.domain.clock import MICROSECONDS_PER_HOUR, now_us
from hansard_server.domain.errors import ArtifactNotFound, StoreUnavailable
from tests.support.artifacts import World, named
from tests.support.records import SESSION, TENANT

HOUR = MICROSECONDS_PER_HOUR


class Clock:
    def __init__(self) -> None:
        self.now = now_us()

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make_sweep(world: World, clock: Clock) -> ArtifactSweep:
    return ArtifactSweep(
        world.store, world.blobs, interval_s=60, grace_s=3_600, upload_max_s=3_600, clock=clock
    )


async def write_orphan(world: World, data: bytes = b"orphan") -> None:
    """Leave bytes as an upload does whose server is killed before its commit."""
    async with world.blobs.write(TENANT) as writer:
        await writer.write(data)
        await writer.finish()


async def delete(world: World, artifact_id: str) -> None:
    await world.artifacts.delete(TENANT, named(service_pb2.DeleteArtifactRequest, artifact_id))


async def test_bytes_that_no_row_knows_go_when_no_upload_is_so_old(
    world: World, clock: Clock
) -> None:
    kept = await world.upload_file(b"kept")
    await write_orphan(world)
    sweep = make_sweep(world, clock)
    assert await sweep.sweep() == Swept()
    # It may still become an artifact.
    clock.now += HOUR
    assert await sweep.sweep() == Swept()
    clock.now += HOUR
    assert await sweep.sweep() == Swept(adopted=1)
    clock.now += HOUR - 1
    assert await sweep.sweep() == Swept()
    clock.now += 1
    assert await sweep.sweep() == Swept(blobs=1)
    clock.now += 9 * HOUR
    assert await sweep.sweep() == Swept()
    assert [chunk async for chunk in world.files.read_file(kept)] == [b"kept"]
    assert len(world.on_disk()) == 1


async def test_another_process_goes_on_where_one_stopped(world: World, clock: Clock) -> None:
    await write_orphan(world)
    clock.now += 2 * HOUR
    assert await make_sweep(world, clock).sweep() == Swept(adopted=1)
    clock.now += HOUR
    assert await make_sweep(world, clock).sweep() == Swept(blobs=1)
    assert world.on_disk() == []


async def test_the_grace_time_counts_from_when_the_last_row_went(
    world: World, clock: Clock
) -> None:
    artifact_id = await world.upload_file(b"x")
    sweep = make_sweep(world, clock)
    await sweep.sweep()
    clock.now += 5 * HOUR
    await delete(world, artifact_id)
    assert await sweep.sweep() == Swept()
    clock.now += HOUR - 1
    assert await sweep.sweep() == Swept()
    assert len(world.on_disk()) == 1
    clock.now += 1
    assert await sweep.sweep() == Swept(blobs=1)
    assert world.on_disk() == []


async def test_bytes_whose_removal_fails_are_found_again(
    world: World, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their row is gone by then, as when the process is killed in between."""
    await delete(world, await world.upload_file(b"x"))
    sweep = make_sweep(world, clock)
    await sweep.sweep()
    clock.now += HOUR

    async def fail(*_: object) -> None:
        raise StoreUnavailable("The artifact store does not answer.", retry_after_s=1)

    with monkeypatch.context() as failing:
        failing.setattr(world.blobs, "delete", fail)
        with pytest.raises(StoreUnavailable):
            await sweep.sweep()
    assert len(world.on_disk()) == 1
    clock.now += HOUR
    assert await sweep.sweep() == Swept(adopted=1)
    clock.now += HOUR
    assert await sweep.sweep() == Swept(blobs=1)
    assert world.on_disk() == []


async def test_more_blobs_than_one_look_takes(world: World, clock: Clock) -> None:
    keys = [f"{number:04}" for number in range(1_100)]
    await world.store.write(lambda tx: tx.adopt_blobs(TENANT, keys, clock.now))
    kept = await world.upload_file(b"kept")
    clock.now += HOUR
    assert await make_sweep(world, clock).sweep() == Swept(blobs=1_100)
    assert await world.store.read(lambda tx: len(tx.scan_blobs(("", ""), 9))) == 1
    assert [chunk async for chunk in world.files.read_file(kept)] == [b"kept"]


async def test_artifacts_whose_time_has_run_out_go(world: World, clock: Clock) -> None:
    artifact_id = await world.upload_file(b"x", ttl_days=1)
    sweep = make_sweep(world, clock)
    assert await sweep.sweep() == Swept()
    clock.now += 24 * HOUR + HOUR
    assert await sweep.sweep() == Swept(expired=1)
    with pytest.raises(ArtifactNotFound):
        await world.artifacts.get(TENANT, named(service_pb2.GetArtifactRequest, artifact_id))
    clock.now += HOUR
    assert await sweep.sweep() == Swept(blobs=1)
    assert world.on_disk() == []


async def test_expired_artifacts_of_a_deleted_session_do_not_keep_the_sweep(
    world: World, clock: Clock
) -> None:
    """They are the purge's. More of them than one look takes must not be looked at for ever."""
    for _ in range(100):
        await world.upload_file(b"x", ttl_days=1)
    await world.store.write(lambda tx: tx.delete_session(TENANT, SESSION.uid, clock.now))
    clock.now += 25 * HOUR
    assert (await make_sweep(world, clock).sweep()).expired == 0
