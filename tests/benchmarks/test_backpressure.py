"""Past saturation: what is served goes on at its rate, and what was let in is served in a bounded
time; the rest is refused and told when to come again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from hansard_server.config import Settings
from tests.benchmarks.fill import Filler
from tests.benchmarks.load_client import session_keys
from tests.benchmarks.measure import AGAIN, ROUNDS, Report, Table, to_table
from tests.benchmarks.processes import Client, Served, client, cpu_seconds, serve

SATURATION = 64
CLIENTS = {"64 clients": SATURATION, "640 clients": 640, "10,000 clients": 10_000}
BASE, TEN_TIMES, FAR_PAST = CLIENTS
SECONDS = 3.0
UNCOUNTED_S = {64: 1.0, 640: 1.0, 10_000: 6.0}
"""Until a load is what it then stays: of many clients all come at first."""
_OK_AND_REFUSED = {"8"}
RUNS = 2 * ROUNDS + 2


@pytest.fixture(scope="module")
def served(store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Give a server as it is shipped."""
    filler = Filler(store_url)
    for number in range(RUNS):
        filler.add_sessions(session_keys("append", number))
    filler.close()
    folder: Path = tmp_path_factory.mktemp("server")
    with serve(folder, store_url, insecure=False) as server:
        yield server


def test_past_saturation(served: Served, database: str, report: Report) -> None:
    with ExitStack() as stack:
        loads = {
            name: stack.enter_context(client(served.address, "append", served.key, count))
            for name, count in CLIENTS.items()
        }
        _measure(loads[BASE], served, 1.0)
        seen = []
        for number in range(ROUNDS):
            names = [BASE, AGAIN, *list(CLIENTS)[1:]]
            order = names[number % 4 :] + names[: number % 4]
            figures = {}
            for name in order:
                target = BASE if name == AGAIN else name
                figures[name] = _measure(loads[target], served, UNCOUNTED_S[CLIENTS[target]])
            seen.append({name: figures[name] for name in names})
    title = f"{database}: AppendEvents past saturation"
    notes = {name: one["notes"] for name, one in seen[-1].items()}
    rates = _table(f"{title}, served", "per s", "rate", seen, notes)
    waits = _table(f"{title}, p99 of the served", "ms", "p99_ms", seen, {})
    report.add(rates)
    report.add(waits)
    report.reach("saturation", database, min(rates.ratio(TEN_TIMES), rates.ratio(FAR_PAST)))
    # By Little's law: as many as are let in take so long, at the rate at which they are served.
    let_in = Settings.model_fields["process_max_calls"].default
    due_ms = let_in / rates.row(FAR_PAST).value * 1_000
    report.reach("admission", database, waits.row(FAR_PAST).value / due_ms)


def _measure(load: Client, served: Served, uncounted_s: float) -> dict[str, Any]:
    cpu = cpu_seconds(served.pid)
    load.begin(SECONDS, uncounted_s)
    counted = load.result()
    all_s = SECONDS + uncounted_s
    assert set(counted["others"]) <= _OK_AND_REFUSED, counted["others"]
    refused = sum(counted["others"].values())
    seconds = counted["seconds"]
    return {
        "rate": counted["calls"] / seconds,
        "p99_ms": counted["p99_ms"],
        "notes": f"p50 {counted['p50_ms']:.0f} ms, refused {refused / seconds:,.0f} a second,"
        f" who come again after {counted['wait_s']:.1f} s,"
        f" processors: server {(cpu_seconds(served.pid) - cpu) / all_s:.0%},"
        f" client {counted['cpu_seconds'] / all_s:.0%}",
    }


def _table(
    title: str, unit: str, figure: str, seen: list[dict[str, dict[str, Any]]], notes: dict[str, str]
) -> Table:
    rounds = [{name: one[figure] for name, one in figures.items()} for figures in seen]
    return to_table(title, unit, BASE, rounds, notes)
