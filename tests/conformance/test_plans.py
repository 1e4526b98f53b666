"""Each statement of the store finds its rows by an index that is there for it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from sqlalchemy import Engine

from hansard_server.repository.sql.engine import writing
from tests.support.plans import (
    CALLS,
    CASES,
    KEYS_OF_SQLITE,
    MATCH_OF_SQLITE,
    SORTED_WINDOW,
    WHOLE_INDEX,
    explain,
)

MAY_BE_SCANNED = (
    # These hold nothing but what waits, runs, expires or was deleted.
    "agents_deleted",
    "sessions_deleted",
    "forks_alive",
    "turns_running",
    "turns_waiting",
    "turns_pending",
    "artifacts_expiring",
    "corpora_deleted",
    "documents_deleted",
    # One row for each caller of the last moments.
    "buckets",
    # What a statement itself makes.
    KEYS_OF_SQLITE,
    "SCAN span",
    "SCAN CONSTANT ROW",
    *MATCH_OF_SQLITE,
    # From its end, for the last one; for one.
    "SCAN passage_index VIRTUAL TABLE INDEX 192:",
    "SCAN passage_index VIRTUAL TABLE INDEX 0:=",
)

ACCESS = {
    "find_api_keys": ("api_keys_by_id", "roles", "agents"),
    "get_api_key": ("api_keys_by_id", "roles", "agents"),
    "find_api_key_claim": ("api_keys_by_claim", "roles", "agents"),
    "scan_api_keys": ("api_keys_by_creation", "roles", "agents"),
}


@pytest.mark.parametrize("name", CASES)
def test_statement_uses_its_indexes(
    filled: Callable[[str], Engine], database: str, name: str
) -> None:
    case = CASES[name]
    with writing(filled(database)).begin() as connection:
        plans = [text_of(plan) for plan in explain(connection, case.call)]
        connection.rollback()
    if name.startswith("scan_turns"):
        assert all("turns_by_number" in plan for plan in plans), plans
    plan = plans[-1]

    for index in case.indexes:
        own_key = "_" not in index.removeprefix("session_")
        names = {"sqlite": f"sqlite_autoindex_{index}_1", "postgresql": f"{index}_pkey"}
        assert (names[database] if own_key else index) in plan, plan
    assert "Seq Scan" not in plan, plan
    if name.startswith("find_passages"):
        entries = {"sqlite": MATCH_OF_SQLITE[0], "postgresql": "passage_index_by_term"}
        assert entries[database] in plan, plan
    for known in (KEYS_OF_SQLITE, *MATCH_OF_SQLITE):
        plan = plan.replace(known, "")
    if name not in WHOLE_INDEX:
        assert "SCAN" not in plan, plan
        assert name in SORTED_WINDOW or "Sort" not in plan, plan
        assert "TEMP B-TREE" not in plan, plan


@pytest.mark.parametrize("name", ACCESS)
def test_keys_are_found_by_their_indexes(
    filled: Callable[[str], Engine], database: str, name: str
) -> None:
    with writing(filled(database)).begin() as connection:
        plans = [text_of(plan) for plan in explain(connection, CASES[name].call)]
        connection.rollback()
    assert len(plans) == len(ACCESS[name])
    for plan, index in zip(plans, ACCESS[name], strict=True):
        names = {"sqlite": f"sqlite_autoindex_{index}_1", "postgresql": f"{index}_pkey"}
        assert (index if "_by_" in index else names[database]) in plan, plan
        assert "Seq Scan" not in plan, plan
        assert "Sort" not in plan, plan


@pytest.mark.parametrize("name", CALLS)
def test_no_statement_reads_a_whole_table(
    filled: Callable[[str], Engine], database: str, name: str
) -> None:
    with writing(filled(database)).begin() as connection:
        plans = [text_of(plan) for plan in explain(connection, CALLS[name])]
        connection.rollback()

    assert plans
    for plan in plans:
        for scan in re.findall(r"^.*(?:SCAN|Seq Scan on) .*$", plan, re.MULTILINE):
            assert any(name in scan for name in MAY_BE_SCANNED), plan


def text_of(plan: list[tuple[object, ...]]) -> str:
    return "\n".join(str(row[-1]) for row in plan)
