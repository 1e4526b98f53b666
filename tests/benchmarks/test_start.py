"""How long a start takes, against importing what serving needs; what a server costs at rest."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.benchmarks.measure import AGAIN, QUICK, ROUNDS, Report, to_table
from tests.benchmarks.processes import cpu_seconds, memory_mib, own_environment, serve

IMPORTS = "the imports"
PROGRAM = Path(__file__).with_name("import_client.py")
MORE = {"sqlite": ["sqlalchemy.dialects.sqlite"], "postgresql": ["psycopg"]}
REST_SECONDS = 1.0 if QUICK else 10.0


def test_start(store_url: str, database: str, tmp_path: Path, report: Report) -> None:
    rounds = []
    # The first start compiles, and makes the secrets.
    _start_ms(tmp_path, store_url)
    _import_ms(MORE[database])
    for number in range(ROUNDS):
        figures = {}
        names = [IMPORTS, AGAIN, "hansard serve"]
        for name in names[number % 3 :] + names[: number % 3]:
            if name == "hansard serve":
                figures[name] = _start_ms(tmp_path, store_url)
            else:
                figures[name] = _import_ms(MORE[database])
        rounds.append({name: figures[name] for name in names})
    title = f"{database}: from the start of the process to the first answer"
    table = to_table(title, "ms", IMPORTS, rounds)
    report.add(table)
    report.reach("start", database, table.ratio("hansard serve"))


def test_rest(store_url: str, database: str, tmp_path: Path, report: Report) -> None:
    with serve(tmp_path, store_url) as served:
        _ask(served.address)
        time.sleep(1)
        cpu = cpu_seconds(served.pid)
        time.sleep(REST_SECONDS)
        share = (cpu_seconds(served.pid) - cpu) / REST_SECONDS
        memory = memory_mib(served.pid)
    notes = {"at rest": f"processor {share:.2%} of one"}
    title = f"{database}: a server without calls, memory"
    report.add(to_table(title, "MiB", "at rest", [{"at rest": memory}], notes))


def _start_ms(folder: Path, url: str) -> float:
    started = time.perf_counter()
    with serve(folder, url, insecure=False) as served:
        _ask(served.address)
        return (time.perf_counter() - started) * 1_000


def _ask(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        health.Check(health_pb2.HealthCheckRequest())


def _import_ms(more: Sequence[str]) -> float:
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, PROGRAM, *more], stdout=subprocess.PIPE, env=own_environment()
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        return (time.perf_counter() - started) * 1_000
