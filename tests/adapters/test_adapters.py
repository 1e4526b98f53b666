"""Agents of other libraries keep their sessions in Hansard: each library's own package, unmodified,
in a virtual environment of its own, with a server on each database.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.invariants import check_store
from tests.support.server import make_settings, running_server
from tests.support.venvs import ADAPTERS, own_sources, python_with

HERE = Path(__file__).parent
EVENTS, SESSIONS = 120, 60


@pytest.fixture(scope="session")
def python() -> Path:
    return python_with("adapters", *ADAPTERS)


@pytest.fixture
async def target(store_url: str, tmp_path: Path) -> AsyncIterator[str]:
    """Give the address of a server on each database in turn."""
    settings = make_settings(tmp_path / "data", store_url, agent_max_sessions_per_s=0)
    async with running_server(settings) as running:
        yield running.server.address
    check_store(store_url)


async def run(python: Path, program: str, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *(python, HERE / program, *arguments),
        env=own_sources(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told, _ = await process.communicate()
    assert process.returncode == 0, told.decode()
    return told.decode()


async def test_google_adk(target: str, python: Path) -> None:
    told = await run(python, "adk_surface.py", target, str(EVENTS), str(SESSIONS))
    assert told.count("ok ") == 10


async def test_openai_agents(target: str, python: Path) -> None:
    told = await run(python, "openai_surface.py", target)
    assert told.count("ok ") == 6


@pytest.mark.soak
async def test_google_adk_with_long_sessions_and_many(target: str, python: Path) -> None:
    told = await run(python, "adk_surface.py", target, "5000", "10000")
    assert told.count("ok ") == 10
