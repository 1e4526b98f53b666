"""Fixtures that every test may use; those of one kind of test stand in its folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

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
