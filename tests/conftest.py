"""Fixtures that every test may use; those of one kind of test stand in its folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.support.databases import DATABASES, Databases
from tests.support.postgres import PostgresServer, running_postgres

if TYPE_CHECKING:
    from collections.abc import Iterator

# On a busy machine the time of one example says nothing.
settings.register_profile("hansard", settings(), deadline=None, print_blob=True)
settings.load_profile("hansard")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """Give the PostgreSQL server of this process; it starts when the first test asks for it."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def databases(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Databases:
    """Give the maker of databases."""
    return Databases(request, tmp_path_factory.mktemp("databases"))


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
