"""What a caller was told has failed, and had not begun, is not done later."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import Engine, text

from hansard_server.domain.errors import StoreUnavailable
from hansard_server.repository.sql import jobs
from hansard_server.repository.sql.engine import writing
from hansard_server.repository.sql.store import SqlStore
from hansard_server.repository.sql.tables import events
from tests.support.commands import append, draft
from tests.support.records import rows_of, with_session


async def test_command_that_waits_for_a_stuck_database_is_given_up(
    engine: Engine, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await with_session(store)
    monkeypatch.setattr(jobs, "ANSWER_TIMEOUT_S", 0.3)
    with writing(engine).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("LOCK TABLE session_heads IN ACCESS EXCLUSIVE MODE"))
        # The writer takes the first and waits for the lock; the others wait for the writer.
        first = asyncio.ensure_future(store.submit(append(draft(id="aev_first"))))
        await asyncio.sleep(0)
        while store._writer._jobs.qsize():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        others = [store.submit(append(draft(id=f"aev_{number}"))) for number in range(20)]
        results = await asyncio.gather(first, *others, return_exceptions=True)
    assert all(isinstance(result, StoreUnavailable) for result in results)
    monkeypatch.undo()
    await store.submit(append(draft(id="aev_last")))
    ids = {row["id"] for row in await rows_of(store, events)}
    assert "aev_last" in ids
    assert ids <= {"aev_first", "aev_last"}
