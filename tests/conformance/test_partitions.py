"""On tables that are distributed by hash: a session's statements touch its own partition alone.

An engine that spreads the tables over machines by (tenant, session uid) can then serve each session
from one of them. Lookups by key, and what goes over all sessions, such as the sweeps, stay whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.schema import CreateTable

from hansard_server.repository.sql import tables
from hansard_server.repository.sql.engine import make_engine, writing
from tests.support.databases import Databases
from tests.support.plans import CALLS, CASES, explain, fill

PARTITIONS = 8
DISTRIBUTED = (
    tables.session_heads,
    tables.events,
    tables.claims,
    tables.turns,
    tables.artifacts,
)
NAMES = {table.name for table in DISTRIBUTED}
# They ask for what waits, runs or has expired in any session.
OVER_ALL = {
    "find_expired_sessions",
    "find_unfinished_turns",
    "find_expired_turns",
    "find_idle_queues",
    "next_lease_end_s",
    # Which bytes any session of a tenant refers to.
    "scan_blobs",
    # Of all turns that a process runs.
    "renew_leases",
    # Joined with the heads of as many sessions as the page has.
    "scan_sessions",
    "scan_sessions_back",
}
# How many sessions a call is about.
SESSIONS = {"read_pulses": 2, "commands": 5, "fork": 2}
OF_SESSIONS = ("event_pages", "turn_pages", "alter", "fork", "commands")


@pytest.fixture(scope="module")
def distributed(databases: Databases) -> Iterator[Engine]:
    """Give a filled PostgreSQL database whose tables are partitioned by hash."""
    url = databases.migrated("postgresql")
    engine = make_engine(url)
    with writing(engine).begin() as connection:
        for table in DISTRIBUTED:
            connection.execute(text(f"ALTER TABLE {table.name} RENAME TO old_{table.name}"))
            for index in table.indexes:
                connection.execute(text(f"ALTER INDEX {index.name} RENAME TO old_{index.name}"))
            key = f"{table.name}_pkey"
            connection.execute(text(f"ALTER INDEX {key} RENAME TO old_{key}"))
            ddl = str(CreateTable(table).compile(engine))
            connection.execute(text(f"{ddl} PARTITION BY HASH (tenant, session_uid)"))
            for number in range(PARTITIONS):
                connection.execute(
                    text(
                        f"CREATE TABLE {table.name}_p{number} PARTITION OF {table.name} "
                        f"FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER {number})"
                    )
                )
            for index in table.indexes:
                index.create(connection)
        fill(connection)
        # Where next to no turn waits, and no tool was called, it costs less to look at all of them.
        connection.execute(text("UPDATE turns SET status = 1 WHERE number % 2 = 0"))
        connection.execute(text("UPDATE events SET tool_call_id = id WHERE sequence % 2 = 0"))
        connection.execute(text("ANALYZE"))
    yield engine
    engine.dispose()
    databases.drop(url)


def touched(plan: dict[str, Any]) -> set[str]:
    """Return the partitions that the plan has read or written while it ran."""
    found: set[str] = set()
    name = plan.get("Relation Name", "")
    base, _, number = name.rpartition("_p")
    if base in NAMES and number.isdigit() and plan.get("Actual Loops", 0) > 0:
        found.add(name)
    for child in plan.get("Plans", ()):
        found |= touched(child)
    return found


def partitions(connection: Connection, call: Callable[[Any], object]) -> list[dict[str, int]]:
    """Return for each statement of the call how many partitions of each table it touched."""
    counts = []
    # Run, and taken back: which partitions are touched shows while it runs.
    for rows in explain(connection, call, "EXPLAIN (ANALYZE, FORMAT JSON)"):
        plan = rows[0][0]
        plan = json.loads(plan) if isinstance(plan, str) else plan
        of_table: dict[str, int] = {}
        for name in touched(plan[0]["Plan"]):
            base = name.rpartition("_p")[0]
            of_table[base] = of_table.get(base, 0) + 1
        counts.append(of_table)
    return counts


@pytest.mark.parametrize("name", sorted(CASES.keys() - OVER_ALL))
def test_reads_of_a_session_touch_one_partition(distributed: Engine, name: str) -> None:
    with writing(distributed).begin() as connection:
        counts = partitions(connection, CASES[name].call)
        connection.rollback()
    most = SESSIONS.get(name, 1)
    assert not [of_table for of_table in counts if max(of_table.values(), default=0) > most]


@pytest.mark.parametrize("name", OF_SESSIONS)
def test_statements_touch_the_partitions_of_their_sessions(distributed: Engine, name: str) -> None:
    with writing(distributed).begin() as connection:
        counts = partitions(connection, CALLS[name])
        connection.rollback()
    most = SESSIONS.get(name, 1)
    assert any(counts)
    assert not [of_table for of_table in counts if max(of_table.values(), default=0) > most]
