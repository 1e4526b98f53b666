"""Appends and turns, 64 at a time, against a bare server of the same messages. No limits yet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.benchmarks.fill import Filler
from tests.benchmarks.load_client import AT_A_TIME, session_keys
from tests.benchmarks.measure import AGAIN, ROUNDS, Report, to_table
from tests.benchmarks.processes import Client, Served, client, cpu_seconds, serve, serve_bare
from tests.support.databases import DATABASES, Databases

SECONDS = 2.0
BARE = "bare"
WORKLOADS = {
    "append": "AppendEvents, one event of 500 bytes",
    "send": "SendEvent, a turn of an input, 20 deltas and 2 events",
}


@pytest.fixture(scope="module")
def servers(
    databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Served]]:
    """Give a bare server and one of each database, all with the same sessions."""
    with ExitStack() as stack:
        folder: Path = tmp_path_factory.mktemp("servers")
        servers = {BARE: stack.enter_context(serve_bare(folder / BARE))}
        for database in DATABASES:
            url = databases.migrated(database)
            stack.callback(databases.drop, url)
            filler = Filler(url)
            for workload in WORKLOADS:
                for number in range(ROUNDS + 1):
                    filler.add_sessions(session_keys(workload, number))
            filler.close()
            servers[database] = stack.enter_context(serve(folder / database, url, insecure=False))
        yield servers


@pytest.mark.parametrize("workload", WORKLOADS)
def test_calls_a_second(servers: dict[str, Served], workload: str, report: Report) -> None:
    rates: list[dict[str, float]] = []
    costs: list[dict[str, float]] = []
    seen: dict[str, list[str]] = defaultdict(list)
    with ExitStack() as stack:
        clients = {
            name: stack.enter_context(client(served.address, workload, served.key))
            for name, served in servers.items()
        }
        for name, load in clients.items():
            _measure(servers[name], load, seen[name])
        for number in range(ROUNDS):
            rate: dict[str, float] = {}
            cost: dict[str, float] = {}
            names = [BARE, AGAIN, *DATABASES]
            for name in names[number % len(names) :] + names[: number % len(names)]:
                target = BARE if name == AGAIN else name
                rate[name], cost[name] = _measure(servers[target], clients[target], seen[name])
            rates.append({name: rate[name] for name in names})
            costs.append({name: cost[name] for name in names})
    title = f"{WORKLOADS[workload]}, {AT_A_TIME} at a time"
    notes = {name: lines[-1] for name, lines in seen.items()}
    report.add(to_table(f"{title}: calls", "per s", BARE, rates, notes))
    report.add(to_table(f"{title}: the server's processor time", "us/call", BARE, costs))


def _measure(served: Served, load: Client, notes: list[str]) -> tuple[float, float]:
    """Return calls a second, and the server's microseconds of processor time for each."""
    cpu = cpu_seconds(served.pid)
    load.begin(SECONDS)
    counted = load.result()
    cpu = cpu_seconds(served.pid) - cpu
    seconds, calls = counted["seconds"], counted["calls"]
    notes.append(
        f"p50 {counted['p50_ms']:.1f} ms, {counted['messages'] / calls:.1f} messages a call,"
        f" processors: server {cpu / seconds:.0%}, client {counted['cpu_seconds'] / seconds:.0%}"
    )
    return calls / seconds, cpu / calls * 1_000_000
