"""A streamed turn over HTTP against the same turn over gRPC: the processor time of the server.

That of the HTTP door's process is part of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.benchmarks.fill import Filler
from tests.benchmarks.load_client import AT_A_TIME, session_keys
from tests.benchmarks.measure import AGAIN, ROUNDS, Report, to_table
from tests.benchmarks.processes import Client, Served, client, cpu_seconds, serve
from tests.support.databases import Databases

SECONDS = 2.0
LIMIT = 2.5
GRPC, HTTP = "over gRPC", "over HTTP"
RUNS = 2 * ROUNDS + 1


@pytest.fixture(scope="module")
def served(
    store_url: str, databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """Give a server with an HTTP door, and sessions for all runs."""
    filler = Filler(store_url)
    for workload in ("send", "http"):
        for number in range(RUNS):
            filler.add_sessions(session_keys(workload, number))
    filler.close()
    with serve(tmp_path_factory.mktemp("gateway"), store_url, http="127.0.0.1:0") as served:
        yield served


def test_a_streamed_turn_costs_at_most_so_much(
    served: Served, database: str, report: Report
) -> None:
    costs: list[dict[str, float]] = []
    notes: dict[str, str] = {}
    with ExitStack() as stack:
        grpc = stack.enter_context(client(served.address, "send"))
        http = stack.enter_context(client(served.http_address, "http", program="http_client.py"))
        _cost(served, grpc, notes, GRPC)
        _cost(served, http, notes, HTTP)
        for number in range(ROUNDS):
            cost: dict[str, float] = {}
            order = [(GRPC, grpc), (HTTP, http), (AGAIN, grpc)]
            for name, load in order[number % 3 :] + order[: number % 3]:
                cost[name] = _cost(served, load, notes, name)
            costs.append({name: cost[name] for name in (GRPC, AGAIN, HTTP)})
    title = f"A turn of an input, 20 deltas and 2 events, {AT_A_TIME} at a time, {database}"
    table = to_table(f"{title}: the server's processor time", "us/turn", GRPC, costs, notes)
    report.add(table)
    table.check(LIMIT)


def _cost(served: Served, load: Client, notes: dict[str, str], name: str) -> float:
    """Return the microseconds of processor time that a turn costs server and door together."""
    cpu = [cpu_seconds(pid) for pid in served.pids]
    load.begin(SECONDS)
    counted = load.result()
    used = [cpu_seconds(pid) - before for pid, before in zip(served.pids, cpu, strict=True)]
    calls: int = counted["calls"]
    shares = " + ".join(f"{seconds / calls * 1_000_000:.0f}" for seconds in used)
    notes[name] = (
        f"server + door {shares} us, p50 {counted['p50_ms']:.0f} ms,"
        f" {counted['messages'] / calls:.1f} messages a turn"
    )
    return sum(used) / calls * 1_000_000
