"""Databases for tests: each new, empty or with the schema, on SQLite or PostgreSQL."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hansard_server.repository.sql.engine import make_engine
from hansard_server.repository.sql.migrations import migrate
from tests.support.postgres import PostgresServer

DATABASES = ("sqlite", "postgresql")


class Databases:
    """Makes databases, empty or with the schema; the schema is migrated once and then copied."""

    def __init__(self, request: pytest.FixtureRequest, folder: Path) -> None:
        self._request = request
        self._folder = folder
        self._templates: dict[str, str] = {}
        self._count = 0

    def empty(self, kind: str) -> str:
        """Return the URL of a new database without a schema."""
        if kind == "postgresql":
            return self._server().create_database()
        self._count += 1
        return f"sqlite:///{self._folder}/{self._count}.db"

    def migrated(self, kind: str) -> str:
        """Return the URL of a new database with the schema."""
        if kind not in self._templates:
            template = self.empty(kind)
            engine = make_engine(template)
            migrate(engine)
            # Disposed, SQLite's write-ahead log is empty: the file alone is the database.
            engine.dispose()
            self._templates[kind] = template
        template = self._templates[kind]
        if kind == "postgresql":
            return self._server().create_database(template)
        url = self.empty(kind)
        shutil.copyfile(template.removeprefix("sqlite:///"), url.removeprefix("sqlite:///"))
        return url

    def drop(self, url: str) -> None:
        """Drop a database that was made here."""
        if url.startswith("postgresql"):
            self._server().drop_database(url)

    def _server(self) -> PostgresServer:
        server = self._request.getfixturevalue("postgres_server")
        assert isinstance(server, PostgresServer)
        return server
