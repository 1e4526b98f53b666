"""What Hansard wants to reach, each a ratio or a difference within one run, and the table of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

BOTH = ("sqlite", "postgresql")


@dataclass(frozen=True, slots=True)
class Goal:
    """One line: the value is to be at least, or at most, the limit.

    Attributes:
        limits: for each database.
        unit: of the limits, as it is printed after them.
    """

    work: str
    limits: Mapping[str, float]
    unit: str = ""
    at_most: bool = False

    def is_reached(self, database: str, value: float) -> bool:
        """Return whether the value is good enough."""
        limit = self.limits[database]
        return value <= limit if self.at_most else value >= limit


GOALS: Mapping[str, Goal] = {
    "append": Goal(
        "AppendEvents, 500 B, 64 at a time: of bare", {"sqlite": 0.6, "postgresql": 0.4}
    ),
    "send": Goal(
        "SendEvent turn, 64 at a time: of bare, message by message",
        {"sqlite": 1.0, "postgresql": 0.7},
    ),
    "alone": Goal(
        "AppendEvents alone, p50: times bare", {"sqlite": 3, "postgresql": 5}, at_most=True
    ),
    "delta": Goal(
        "a delta, agent to client, p50: over bare",
        dict.fromkeys(BOTH, 1.0),
        unit=" ms",
        at_most=True,
    ),
    "list": Goal("ListEvents, page of 100: of bare", {"sqlite": 0.6, "postgresql": 0.4}),
    "long session": Goal(
        "calls at event 1,000,000: times those at 10, the worst",
        dict.fromkeys(BOTH, 1.15),
        at_most=True,
    ),
    "many sessions": Goal(
        "calls at 1,000,000 sessions: times those at 10, the worst",
        dict.fromkeys(BOTH, 1.15),
        at_most=True,
    ),
    "upload": Goal("upload, SHA-256, to disk: of bare", {"sqlite": 0.6}),
    "download": Goal("download: of bare", {"sqlite": 0.7}),
    "watcher memory": Goal(
        "an idle watcher, memory", dict.fromkeys(BOTH, 35), unit=" KB", at_most=True
    ),
    "deliveries": Goal("deliveries a second", dict.fromkeys(BOTH, 30_000)),
    "watchers": Goal("watchers open", dict.fromkeys(BOTH, 5_000)),
    "adk append": Goal(
        "google-adk's database service, append, 16 at a time: times as fast",
        dict.fromkeys(BOTH, 20),
    ),
    "adk turn": Goal(
        "google-adk, get and 3 appends at event 5,040: times as fast", dict.fromkeys(BOTH, 200)
    ),
    "a2a": Goal(
        "a2a-sdk's server with its database, a streamed turn: times as fast",
        dict.fromkeys(BOTH, 100),
    ),
    "langgraph": Goal(
        "langgraph's checkpointer, a turn at 5,000 messages: times as fast",
        dict.fromkeys(BOTH, 50),
    ),
    "bytes": Goal(
        "bytes written by a turn at 5,000 messages: times those at 10",
        dict.fromkeys(BOTH, 1.15),
        at_most=True,
    ),
    "start": Goal(
        "hansard serve answers: times the imports that it needs",
        dict.fromkeys(BOTH, 1.5),
        at_most=True,
    ),
    "saturation": Goal(
        "calls served a second at 10 times the load, and far past it: of those at saturation",
        dict.fromkeys(BOTH, 0.9),
    ),
    "admission": Goal(
        "p99 of calls served far past it: times what those let in take at that rate",
        dict.fromkeys(BOTH, 2),
        at_most=True,
    ),
}


def to_text(reached: Mapping[str, float]) -> str:
    """Return the table of all goals; `reached` has values by `name, database`."""
    width = max(len(goal.work) for goal in GOALS.values())
    lines = ["", "Goals", f"  {'':{width}}  {'':10}  {'goal':>9}  {'reached':>9}"]
    for name, goal in GOALS.items():
        for database, limit in goal.limits.items():
            value = reached.get(f"{name}, {database}")
            told = "" if value is None else f"{value:,.2f}"
            sign = "≤" if goal.at_most else "≥"
            verdict = "not measured"
            if value is not None:
                verdict = "yes" if goal.is_reached(database, value) else "no"
            lines.append(
                f"  {goal.work:{width}}  {database:10}  {f'{sign} {limit:,g}{goal.unit}':>9}"
                f"  {told:>9}  {verdict}"
            )
    return "\n".join(lines)
