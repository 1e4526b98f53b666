"""The unmodified `vectara` package, sync and async, against the door."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.gateway import Door
from tests.support.venvs import VECTARA, bin_of

PROGRAM = Path(__file__).with_name("vectara_surface.py")


@pytest.fixture(scope="session")
def python() -> Path:
    return bin_of(VECTARA) / "python"


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_the_whole_surface(door: Door, python: Path, kind: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(python, PROGRAM, kind, door.url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told, _ = await process.communicate()
    assert process.returncode == 0, told.decode()
    assert told.decode().count("passed") == 6
