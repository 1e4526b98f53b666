"""The sweep: what no row refers to goes, after its time of grace, and nothing else does."""

from __future__ import annotations

import pytest

from hansard.v1 import artifact_service_pb2 as service_pb2
from hansard_server.artifacts.sweep import ArtifactSweep, Swept
from hansard_server.domain.clock import MICROSECONDS_PER_HOUR, now_us
from hansard_server.domain.errors import ArtifactNotFound
from tests.support.artifacts import World, named
from tests.support.records import TENANT

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
    return ArtifactSweep(world.store, world.blobs, interval_s=60, grace_s=3_600, clock=clock)


async def test_orphans_go_after_the_grace_time(world: World, clock: Clock) -> None:
    kept = await world.upload_file(b"kept")
    async with world.blobs.write(TENANT) as writer:
        await writer.write(b"orphan")
        await writer.finish()
    sweep = make_sweep(world, clock)
    assert await sweep.sweep() == Swept()
    clock.now += HOUR - 1
    assert await sweep.sweep() == Swept()
    clock.now += 1
    assert await sweep.sweep() == Swept(blobs=1)
    assert await sweep.sweep() == Swept()
    assert [chunk async for chunk in world.files.read_file(kept)] == [b"kept"]
    assert len(world.on_disk()) == 1


async def test_the_grace_time_counts_from_when_the_last_row_went(
    world: World, clock: Clock
) -> None:
    artifact_id = await world.upload_file(b"x")
    sweep = make_sweep(world, clock)
    await sweep.sweep()
    clock.now += 5 * HOUR
    await world.artifacts.delete(TENANT, named(service_pb2.DeleteArtifactRequest, artifact_id))
    assert await sweep.sweep() == Swept()
    clock.now += HOUR
    assert await sweep.sweep() == Swept(blobs=1)
    assert world.on_disk() == []


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
