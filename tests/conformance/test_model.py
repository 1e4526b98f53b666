"""Random commands, alone and in batches: each result is the one of a model of dicts and lists.

What fails is printed as a program and as a blob for `@reproduce_failure`; `--hypothesis-seed` runs
the same examples again.
"""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from hansard_server.repository.sql import known
from hansard_server.repository.sql.known import KnownSessions
from hansard_server.repository.sql.store import SqlStore
from tests.support.invariants import check_store
from tests.support.pending_commands import PendingRules
from tests.support.records import AGENT
from tests.support.store_machine import World
from tests.support.store_reads import ReadRules


def run(url: str, *, examples: int, steps: int) -> None:
    with asyncio.Runner() as runner:
        # A SQLite store has one process.
        replicas = 0 if url.startswith("sqlite") else 1
        store, *others = [runner.run(SqlStore.open(url)) for _ in range(1 + replicas)]
        runner.run(store.write(lambda tx: tx.insert_agent(AGENT, None)))
        world = World(store, runner, tuple(others))
        try:
            run_state_machine_as_test(
                type("Machine", (PendingRules, ReadRules), {"world": world}),
                settings=settings(
                    max_examples=examples, stateful_step_count=steps, report_multiple_bugs=False
                ),
            )
        finally:
            for each in (store, *others):
                runner.run(each.close())
    check_store(url)


def test_results_equal_the_models(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right: list[KnownSessions] = []
    was_right = KnownSessions.was_right

    def note(sessions: KnownSessions) -> None:
        right.append(sessions)
        was_right(sessions)

    monkeypatch.setattr(KnownSessions, "was_right", note)
    # What was wrong once is begun with again.
    monkeypatch.setattr(known, "_TRUSTED", 0)
    monkeypatch.setattr(known, "_WRONG_IN_A_ROW", 1_000_000)
    run(url, examples=100, steps=50)
    if not url.startswith("sqlite"):
        # How many are wrong differs from run to run; each way to be so is in `test_known_sessions`.
        assert len(right) >= 30


@pytest.mark.soak
def test_results_equal_the_models_for_long(url: str) -> None:
    run(url, examples=600, steps=60)
