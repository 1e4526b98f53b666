"""Random commands, alone and in batches: each result is the one of a model of dicts and lists.

What fails is printed as a program and as a blob for `@reproduce_failure`; `--hypothesis-seed` runs
the same examples again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from hansard_server.repository.sql.batch import Batch
from hansard_server.repository.sql.known import KnownSessions
from hansard_server.repository.sql.store import SqlStore
from hansard_server.repository.sql.trips import Trip
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
    outcomes: Counter[str] = Counter()
    run_assumed: Any = Batch._run_assumed

    def counting(batch: Batch, trip: Trip, known: KnownSessions, commands: Any) -> object:
        assumed = known.assume(commands)
        found = run_assumed(batch, trip, known, commands)
        outcomes["right" if found else "not known" if assumed is None else "wrong"] += 1
        return found

    monkeypatch.setattr(Batch, "_run_assumed", counting)
    run(url, examples=100, steps=50)
    if not url.startswith("sqlite"):
        assert min(outcomes[how] for how in ("right", "wrong", "not known")) >= 30, outcomes


@pytest.mark.soak
def test_results_equal_the_models_for_long(url: str) -> None:
    run(url, examples=600, steps=60)
