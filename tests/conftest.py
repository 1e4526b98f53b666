"""Fixtures that every test may use; those of one kind of test stand in its folder."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import structlog
from hypothesis import settings

from hansard_server import telemetry
from hansard_server.repository.sql.engine import make_engine, writing
from tests.support.databases import DATABASES, Databases
from tests.support.plans import fill, planned
from tests.support.postgres import PostgresServer, running_postgres
from tests.support.s3 import Kept, S3Endpoint, running_s3

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Engine

# On a busy machine the time of one example says nothing.
settings.register_profile("hansard", settings(), deadline=None, print_blob=True)
settings.load_profile("hansard")


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """Undo what a command in this process did to the logs: its output is closed by then."""
    before, handlers = structlog.get_config(), logging.getLogger().handlers
    yield
    structlog.configure(**before)
    telemetry.leave()
    logging.getLogger().handlers = handlers


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """Give the PostgreSQL server of this process; it starts when the first test asks for it."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Endpoint]:
    """Give an S3 endpoint; it starts when the first test asks for it."""
    with running_s3() as endpoint:
        yield endpoint


@pytest.fixture(params=["disk", "s3"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    """Give where a server with `tmp_path / "data"` keeps its artifacts: on disk, and in S3."""
    if request.param == "disk":
        return Kept(tmp_path / "data")
    endpoint: S3Endpoint = request.getfixturevalue("s3")
    return Kept.in_bucket(tmp_path / "data", endpoint.bucket())


@pytest.fixture(scope="session")
def databases(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Databases:
    """Give the maker of databases."""
    return Databases(request, tmp_path_factory.mktemp("databases"))


@pytest.fixture(scope="session")
def filled(databases: Databases) -> Iterator[Callable[[str], Engine]]:
    """Give the engine of a filled database, by its kind; each is made once, and stays as it is."""
    made: dict[str, Engine] = {}

    def engine_of(kind: str) -> Engine:
        if kind not in made:
            made[kind] = make_engine(databases.migrated(kind))
            with writing(made[kind]).begin() as connection:
                fill(connection)
        return made[kind]

    yield engine_of
    # The databases go with their server and their folder.
    for engine in made.values():
        engine.dispose()


@pytest.fixture(scope="session")
def planned_statements(filled: Callable[[str], Engine]) -> Callable[[str], set[str]]:
    """Give what the store may issue, by the kind of database: what has a line among the plans."""
    known: dict[str, set[str]] = {}

    def statements_of(kind: str) -> set[str]:
        if kind not in known:
            with writing(filled(kind)).begin() as connection:
                known[kind] = planned(connection)
                connection.rollback()
        return known[kind]

    return statements_of


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest) -> str:
    """Give the kind of database that the test runs on."""
    return str(request.param)


@pytest.fixture
def store_url(databases: Databases, database: str) -> Iterator[str]:
    """Give the URL of a database with the schema and nothing in it."""
    url = databases.migrated(database)
    yield url
    databases.drop(url)
