"""The report of all benchmarks, and databases that last for a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.benchmarks.measure import Report
from tests.support.databases import DATABASES, Databases


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    """Give what prints the tables and writes them to build/benchmarks.json."""
    report = Report(request.config.rootpath / "build" / "benchmarks.json")
    yield report
    report.write()
    report.tell_goals()


@pytest.fixture(scope="module", params=DATABASES)
def database(request: pytest.FixtureRequest) -> str:
    """Give the kind of database that the benchmark runs on."""
    return str(request.param)


@pytest.fixture(scope="module")
def store_url(databases: Databases, database: str) -> Iterator[str]:
    """Give the URL of a database with the schema and nothing in it."""
    url = databases.migrated(database)
    yield url
    databases.drop(url)
