"""Engines: which URLs, what is asserted of a connection, and that nothing secret is told."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from sqlalchemy import Engine, insert, literal, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from hansard_server.repository.sql.engine import EngineOptions, make_engine, reading, writing
from hansard_server.repository.sql.rows import agent_values
from hansard_server.repository.sql.tables import agents
from tests.support.records import AGENT


@pytest.mark.parametrize(
    "url",
    [
        "",
        "no url at all",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite+aiosqlite:///file",
        "mysql://me:s3cret@host/name",
        "postgresql+asyncpg://me:s3cret@host/name",
        "postgresql://me:s3cret@host:port/name",
    ],
)
def test_other_urls_are_refused_and_not_told(url: str) -> None:
    with pytest.raises(ValueError, match="database URL") as caught:
        make_engine(url)

    assert "s3cret" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_error_tells_no_parameters(engine: Engine) -> None:
    secret = agent_values(AGENT) | {"name": "s3cret"}

    with writing(engine).begin() as connection:
        connection.execute(insert(agents), secret)
        with pytest.raises(IntegrityError) as caught:
            connection.execute(insert(agents), secret)
        connection.rollback()

    assert "s3cret" not in str(caught.value)


def test_settings_hold_on_every_connection(engine: Engine, database: str) -> None:
    expected: dict[str, dict[str, object]] = {
        "sqlite": {
            "PRAGMA journal_mode": "wal",
            "PRAGMA synchronous": 2,
            "PRAGMA foreign_keys": 1,
            "PRAGMA busy_timeout": 5_000,
        },
        "postgresql": {
            "SHOW statement_timeout": "10s",
            "SHOW lock_timeout": "5s",
            "SHOW idle_in_transaction_session_timeout": "20s",
            "SHOW transaction_isolation": "read committed",
        },
    }
    with engine.connect() as first, engine.connect() as second:
        for connection in (first, second):
            for question, answer in expected[database].items():
                assert connection.execute(text(question)).scalar_one() == answer


def test_reads_are_of_one_moment(engine: Engine) -> None:
    with reading(engine).connect() as reader:
        assert reader.execute(select(agents)).all() == []
        with writing(engine).begin() as writer:
            writer.execute(insert(agents), agent_values(AGENT))
        assert reader.execute(select(agents)).all() == []
    with reading(engine).connect() as reader:
        assert len(reader.execute(select(agents)).all()) == 1


def test_wait_for_a_lock_is_bounded(url: str) -> None:
    engine = make_engine(url, EngineOptions(lock_timeout_s=1))
    with writing(engine).begin() as connection:
        connection.execute(insert(agents), agent_values(AGENT))
    rename = agents.update().values(name="other")

    with writing(engine).begin() as holder:
        holder.execute(rename)
        start = time.monotonic()
        with pytest.raises(OperationalError), writing(engine).begin() as waiter:
            waiter.execute(rename)
    assert time.monotonic() - start < 5
    engine.dispose()


def test_transaction_that_raises_leaves_nothing(engine: Engine) -> None:
    class OnPurposeError(Exception):
        pass

    def write_then_raise() -> None:
        with writing(engine).begin() as connection:
            connection.execute(insert(agents), agent_values(AGENT))
            raise OnPurposeError

    with pytest.raises(OnPurposeError):
        write_then_raise()
    with reading(engine).connect() as connection:
        assert connection.execute(select(agents)).all() == []


def test_savepoint_takes_back_its_own_writes_alone(engine: Engine) -> None:
    with writing(engine).begin() as connection:
        connection.execute(insert(agents), agent_values(AGENT))
        savepoint = connection.begin_nested()
        connection.execute(insert(agents), agent_values(AGENT) | {"uid": "2", "key": "2"})
        savepoint.rollback()
    with reading(engine).connect() as connection:
        assert connection.execute(select(agents.c.uid)).scalars().all() == [AGENT.uid]


def test_text_of_any_unicode_is_kept(engine: Engine) -> None:
    strange = "".join(map(chr, (1, 9, 10, 13, 0x7F, 0x85, 0x2028, 0xFEFF, 0xFFFF, 0x10FFFF)))
    with writing(engine).begin() as connection:
        connection.execute(insert(agents), agent_values(AGENT) | {"name": strange})
    with reading(engine).connect() as connection:
        assert connection.execute(select(agents.c.name)).scalar_one() == strange


def test_database_that_can_not_be_opened_fails_soon(database: str, tmp_path: Path) -> None:
    urls = {
        "sqlite": f"sqlite:///{tmp_path}/no/such/folder/file.db",
        "postgresql": f"postgresql://me:s3cret@/name?host={tmp_path}",
    }
    engine = make_engine(urls[database])
    with pytest.raises(DBAPIError) as caught, engine.connect() as connection:
        connection.execute(select(literal(1)))

    assert "s3cret" not in str(caught.value)
    engine.dispose()


def test_pragma_that_does_not_hold_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "hansard_server.repository.sql.engine._PRAGMAS", (("journal_mode", "DELETE", "wal"),)
    )
    engine = make_engine(f"sqlite:///{tmp_path}/file.db")

    with pytest.raises(RuntimeError, match="journal_mode"), engine.connect():
        pass
    engine.dispose()
