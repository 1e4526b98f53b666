"""In a crowd of calls the writer waits a moment, and writes what comes together."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace

import pytest
from sqlalchemy import Engine

from hansard_server.domain.clock import now_us
from hansard_server.repository.sql import writer as module
from hansard_server.repository.sql.engine import writing
from hansard_server.repository.sql.jobs import Done, Job
from hansard_server.repository.sql.writer import Writer, run_jobs

CROWD = 64


class Bench:
    """A writer whose jobs come, so many each, while it waits."""

    def __init__(self, engine: Engine, crowd: Callable[[], int], arrivals: Sequence[int]) -> None:
        self.waits_s: list[float] = []
        self._arrivals = list(arrivals)
        self._batches: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.writer = Writer(writing(engine), partial(run_jobs, clock=now_us), self._publish)
        self.writer.crowd = crowd

    def sleep(self, seconds: float) -> None:
        self.waits_s.append(seconds)
        self.submit(self._arrivals.pop(0) if self._arrivals else 0)

    def submit(self, jobs: int) -> None:
        for _ in range(jobs):
            self.writer.submit(Job(lambda _: None, None))

    def batches(self, count: int) -> list[int]:
        """Return how many jobs each of so many transactions had."""
        return [self._batches.get(timeout=20) for _ in range(count)]

    def _publish(self, done: Sequence[Done], _changes: object) -> None:
        assert not any(isinstance(one.outcome, Exception) for one in done)
        self._batches.put(len(done))


@pytest.fixture
def bench(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bench]:
    def make(crowd: int, *arrivals: int) -> Bench:
        bench = Bench(engine, lambda: crowd, arrivals)
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=bench.sleep))
        return bench

    return make


def test_crowd_is_written_together(bench: Callable[..., Bench]) -> None:
    busy = bench(CROWD, 20, 20, 20)
    busy.submit(1)
    # No more is waited for when half of them have come.
    assert busy.batches(1) == [41]
    busy.writer.close()
    assert len(busy.waits_s) == 2


def test_nobody_is_waited_for_who_does_not_come(bench: Callable[..., Bench]) -> None:
    busy = bench(CROWD, 0)
    busy.submit(1)
    assert busy.batches(1) == [1]
    busy.writer.close()
    assert len(busy.waits_s) == 1


def test_a_wait_has_an_end(bench: Callable[..., Bench]) -> None:
    busy = bench(10_000, *[1] * 100)
    busy.submit(1)
    (first,) = busy.batches(1)
    assert first == 5
    assert sum(busy.waits_s) < 0.01
    busy.writer.close()


@pytest.mark.parametrize("crowd", [0, 1, 15])
def test_few_wait_for_nobody(bench: Callable[..., Bench], crowd: int) -> None:
    calm = bench(crowd, 1)
    calm.submit(1)
    assert calm.batches(1) == [1]
    calm.writer.close()
    assert not calm.waits_s


def test_what_came_before_the_end_is_written(bench: Callable[..., Bench]) -> None:
    busy = bench(CROWD, 3)
    busy.submit(1)
    busy.writer.close()
    assert sum(busy.batches(1)) in {1, 4}
