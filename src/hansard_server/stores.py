"""Opens the database that the settings name, and says in one line why that can't be done."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from pathlib import Path

from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError

from hansard_server.config import ConfigurationMistake, Settings
from hansard_server.domain.clock import Clock
from hansard_server.domain.errors import StoreUnavailable
from hansard_server.lifecycle import AlreadyLocked, Closers, ProcessLock
from hansard_server.repository.sql.engine import make_engine
from hansard_server.repository.sql.migrations import SchemaMismatch, migrate
from hansard_server.repository.sql.store import SqlStore


class CannotStart(Exception):  # noqa: N818 - reads as what happened
    """Something outside the settings keeps the server from starting; one line for the operator."""


async def open_store(settings: Settings, closers: Closers, clock: Clock) -> SqlStore:
    """Return the store of the settings, and have it closed at the end.

    A SQLite database is locked for this process and migrated; any other must have the schema.
    Raises ConfigurationMistake, CannotStart.
    """
    sqlite_file = sqlite_path(settings.store_url)
    if sqlite_file is not None and settings.reuse_port:
        raise ConfigurationMistake("reuse_port: a SQLite database is for one process")
    try:
        await asyncio.to_thread(settings.data_dir.mkdir, parents=True, exist_ok=True)
        if sqlite_file is not None:
            await asyncio.to_thread(_take, sqlite_file, settings, closers)
            await asyncio.to_thread(migrate_store, settings.store_url)
        store = await SqlStore.open(settings.store_url, clock=clock)
    except ValueError as error:
        raise ConfigurationMistake(f"store: {error}") from None
    except OSError as error:
        raise CannotStart(f"data_dir: {error.filename}: {error.strerror}") from None
    except SchemaMismatch as error:
        raise CannotStart(f"store: {error} (hansard migrate --store …)") from None
    except StoreUnavailable:
        raise CannotStart("store: the database does not answer") from None
    closers.add("store", store.close)
    return store


def _take(sqlite_file: Path, settings: Settings, closers: Closers) -> None:
    """Lock the data folder and the database, which may lie elsewhere, for this process."""
    sqlite_file.parent.mkdir(parents=True, exist_ok=True)
    for path in (
        settings.data_dir / "serve.lock",
        sqlite_file.with_name(f"{sqlite_file.name}.lock"),
    ):
        try:
            lock = ProcessLock(path)
        except AlreadyLocked:
            raise CannotStart(
                f"{path.parent}: another hansard serves from here; a SQLite database is for one"
                " process"
            ) from None
        closers.add("lock", partial(asyncio.to_thread, lock.release))


def sqlite_path(url: str) -> Path | None:
    """Return the file of a SQLite URL; None for any other URL, even one that can't be read."""
    with suppress(Exception):
        parsed = make_url(url)
        if parsed.drivername == "sqlite" and parsed.database:
            return Path(parsed.database)
    return None


def migrate_store(url: str) -> None:
    """Bring the database's schema to this version. Raises ConfigurationMistake, CannotStart."""
    try:
        engine = make_engine(url)
    except ValueError as error:
        raise ConfigurationMistake(f"store: {error}") from None
    try:
        migrate(engine)
    except SchemaMismatch as error:
        raise CannotStart(f"store: {error}") from None
    except DBAPIError as error:
        # For the operator alone; parameters are hidden.
        words = str(error.orig).strip().splitlines() or [type(error).__name__]
        raise CannotStart(f"store: {words[0]}") from None
    finally:
        engine.dispose()
