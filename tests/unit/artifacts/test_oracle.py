"""The oracle's eye for artifacts: what is not whole is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from tests.support.artifacts import World, chunks, header, start
from tests.support.invariants import check_store


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/test.db"


async def upload(world: World) -> None:
    await world.upload(start(), header("a.txt"), *chunks(b"hello"), header("b.txt"), *chunks(b"b"))


async def test_whole_artifacts_pass(world: World, url: str, tmp_path: Path) -> None:
    await upload(world)
    check_store(url, tmp_path)


@pytest.mark.parametrize("damage", ["lost", "shorter", "other"])
async def test_bytes_that_are_not_whole(
    world: World, url: str, tmp_path: Path, damage: str
) -> None:
    await upload(world)
    path = world.on_disk()[0]
    if damage == "lost":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data[1:] if damage == "shorter" else bytes(len(data)))
    with pytest.raises(AssertionError, match="art_"):
        check_store(url, tmp_path)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE session_heads SET artifact_files = 1",
        "UPDATE session_heads SET artifact_bytes = 5",
        "UPDATE artifacts SET filename = 'c.txt' WHERE filename = 'b.txt'",
        "UPDATE artifacts SET id = 'art_other' WHERE filename = 'b.txt'",
    ],
)
async def test_rows_that_do_not_agree(
    world: World, url: str, tmp_path: Path, statement: str
) -> None:
    await upload(world)
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()
    with pytest.raises(AssertionError):
        check_store(url, tmp_path)
