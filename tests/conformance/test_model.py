"""Random commands, alone and in batches: each result is the one of a model of dicts and lists.

What fails is printed as a program and as a blob for `@reproduce_failure`; `--hypothesis-seed` runs
the same examples again.
"""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from hansard_server.repository.sql.store import SqlStore
from tests.support.invariants import check_store
from tests.support.pending_commands import PendingRules
from tests.support.records import AGENT
from tests.support.store_machine import World
from tests.support.store_reads import ReadRules


def run(url: str, *, examples: int, steps: int) -> None:
    with asyncio.Runner() as runner:
        store = runner.run(SqlStore.open(url))
        runner.run(store.write(lambda tx: tx.insert_agent(AGENT, None)))
        try:
            run_state_machine_as_test(
                type("Machine", (PendingRules, ReadRules), {"world": World(store, runner)}),
                settings=settings(
                    max_examples=examples, stateful_step_count=steps, report_multiple_bugs=False
                ),
            )
        finally:
            runner.run(store.close())
    check_store(url)


def test_results_equal_the_models(url: str) -> None:
    run(url, examples=100, steps=50)


@pytest.mark.soak
def test_results_equal_the_models_for_long(url: str) -> None:
    run(url, examples=600, steps=60)
