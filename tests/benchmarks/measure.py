"""Timing by ratios: what is compared runs alternately, so that a noisy machine is so for both."""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks import goals

QUICK = bool(os.environ.get("QUICK"))
"""`make bench QUICK=1`: to see that everything runs; its figures are worth nothing."""
ROUNDS = 2 if QUICK else 5
CALLS = 3 if QUICK else 7
AGAIN = "the same again"
"""The A/A control: how far from 1 its ratio is says how far to trust the others."""

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table.

    Attributes:
        ratio: to the first row, the median of the rounds.
        low: the smallest ratio of a round.
        high: the largest.
        value: what was measured, the median of the rounds; comparable within its table only.
        notes: what else is worth knowing.
    """

    name: str
    ratio: float
    low: float
    high: float
    value: float
    notes: str = ""


@dataclass(slots=True)
class Table:
    """What one comparison found; the first row is what the others are compared with."""

    title: str
    unit: str
    rows: list[Row] = field(default_factory=list)

    def row(self, name: str) -> Row:
        """Return the row of this name."""
        return next(row for row in self.rows if row.name == name)

    def ratio(self, name: str) -> float:
        """Return the ratio of a row."""
        return self.row(name).ratio

    def check(self, limit: float) -> None:
        """Raise AssertionError for rows whose ratio is not below the limit."""
        slow = [f"{row.name}: {row.ratio:.2f}" for row in self.rows if row.ratio >= limit]
        control = self.ratio(AGAIN)
        assert not slow, f"{self.title}: {', '.join(slow)} (limit {limit}, {AGAIN}: {control:.2f})"

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = ["", self.title, f"  {'':{width}}  ratio  (of rounds)   {self.unit:>9}"]
        lines += [
            f"  {row.name:{width}}  {row.ratio:5.2f}  ({row.low:4.2f}-{row.high:4.2f})"
            f"  {row.value:9.2f}  {row.notes}".rstrip()
            for row in self.rows
        ]
        return "\n".join(lines)


class Report:
    """Prints tables as they come, and keeps them and the goals reached for the file.

    What an earlier run wrote stays until it is measured anew, so that parts may be run one by one.
    """

    def __init__(self, path: Path) -> None:
        """Write to `path` on `write`."""
        self._path = path
        self._content = _read(path)

    def add(self, table: Table) -> None:
        """Print the table."""
        self._content["tables"][table.title] = {**asdict(table), **_when()}
        print(table, flush=True)  # noqa: T201 - tables are what the benchmarks are for
        self.write()

    def reach(self, goal: str, database: str, value: float) -> None:
        """Say what of a goal was reached; see `goals`."""
        self._content["goals"][f"{goal}, {database}"] = {"value": value, **_when()}
        self.write()

    def draw(self, name: str, svg: str) -> None:
        """Write a picture beside the file."""
        self._path.with_name(f"{self._path.stem}-{name}.svg").write_text(svg)

    def tell_goals(self) -> None:
        """Print all goals, with what was reached of each."""
        reached = {name: entry["value"] for name, entry in self._content["goals"].items()}
        print(goals.to_text(reached), flush=True)  # noqa: T201

    def write(self) -> None:
        """Write the file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._content["python"] = platform.python_version()
        self._content["machine"] = (
            f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
        )
        self._path.write_text(json.dumps(self._content, indent=2) + "\n")


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if not isinstance(content.get("tables"), dict):
        content = {"tables": {}, "goals": {}}
    return content


def _when() -> dict[str, Any]:
    return {"at": time.strftime("%Y-%m-%d %H:%M"), "load": os.getloadavg()[0], "quick": QUICK}


def compare(
    title: str,
    base: tuple[str, Call],
    cases: Mapping[str, Call],
    *,
    each: int = CALLS,
    again: Call | None = None,
) -> Table:
    """Return how long the cases take compared with the base, by single calls one after another.

    `again` is the control where each case has a server of its own, as it then must: a server that
    is called twice as often answers sooner.

    In every round each case is called `each` times, in an order that changes; the round's figure is
    the median, the ratio that of two medians of one round.
    """
    name, call = base
    calls = {name: call, AGAIN: again or call, **cases}
    for warm_up in calls.values():
        warm_up()
    rounds = [_round(calls, each, random.Random(number)) for number in range(ROUNDS)]
    return to_table(title, "ms", name, rounds)


def to_table(
    title: str,
    unit: str,
    base: str,
    rounds: list[dict[str, float]],
    notes: Mapping[str, str] | None = None,
) -> Table:
    """Return the table of rounds, each with a figure for every name."""
    table = Table(title, unit)
    for name in rounds[0]:
        ratios = [figures[name] / figures[base] for figures in rounds]
        table.rows.append(
            Row(
                name,
                ratio=statistics.median(ratios),
                low=min(ratios),
                high=max(ratios),
                value=statistics.median(figures[name] for figures in rounds),
                notes=(notes or {}).get(name, ""),
            )
        )
    return table


def _round(calls: Mapping[str, Call], each: int, chance: random.Random) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for _ in range(each):
        chance.shuffle(order)
        for name in order:
            started = time.perf_counter()
            calls[name]()
            times[name].append((time.perf_counter() - started) * 1_000)
    return {name: statistics.median(taken) for name, taken in times.items()}
