"""A real store and real files on disk, with one session to upload into."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hansard_server.artifacts.blobs import Blobs
from hansard_server.domain.limits import Limits
from hansard_server.repository.sql.engine import make_engine
from hansard_server.repository.sql.migrations import migrate
from hansard_server.repository.sql.store import SqlStore
from hansard_server.resources.paging import PageTokens
from tests.support.artifacts import World
from tests.support.records import with_session


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Give the folder of the object store."""
    return tmp_path / "artifacts"


@pytest.fixture
def blobs(root: Path) -> Blobs:
    return Blobs.open(root)


@pytest.fixture
async def world(tmp_path: Path, blobs: Blobs, root: Path) -> AsyncIterator[World]:
    url = f"sqlite:///{tmp_path}/test.db"
    engine = make_engine(url)
    migrate(engine)
    engine.dispose()
    store = await SqlStore.open(url)
    await with_session(store)
    yield World(store, blobs, root, Limits(), PageTokens(b"secret" * 6))
    await store.close()
