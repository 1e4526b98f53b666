"""A turn of google-adk at the end of a session of 5,000 events: kept in Hansard, through gRPC, and
in the ADK's own database service, in its process.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.benchmarks.measure import ROUNDS, Report, to_table
from tests.benchmarks.processes import serve
from tests.support.venvs import ADAPTERS, own_sources, python_with

EVENTS = 5_000
BASE = "hansard, newest 50"
OWN = "own, whole"
RATIO_LEAST = 20
PROGRAM = Path(__file__).with_name("adk_turn.py")


def test_a_turn_of_the_adk(store_url: str, database: str, tmp_path: Path, report: Report) -> None:
    python = python_with(
        "adk-database", *ADAPTERS, "sqlalchemy[asyncio]>=2.1,<2.2", "aiosqlite>=0.21"
    )
    own = f"sqlite+aiosqlite:///{tmp_path / 'own.db'}"
    with serve(tmp_path, store_url) as served:
        told = subprocess.run(
            [python, PROGRAM, served.address, own, str(EVENTS), str(ROUNDS)],
            env=own_sources(),
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        ).stdout
    measured: dict[str, list[float]] = json.loads(told.splitlines()[-1])
    rounds = [
        {name: 1_000 * seconds[number] for name, seconds in measured.items()}
        for number in range(ROUNDS)
    ]
    ordered = [{BASE: figures[BASE], **figures} for figures in rounds]
    title = f"google-adk, get and 3 appends at event {EVENTS:,} (Hansard on {database})"
    table = to_table(title, "ms", BASE, ordered)
    report.add(table)
    assert table.ratio(OWN) >= RATIO_LEAST
