"""`hansard` with one more model, `hansard/clock`, which says at what time it said it, every few
milliseconds. All else is as shipped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping

from hansard_server.agents.api import Json, ModelRequest, Part, TextDelta, TextEnd, TextKind
from hansard_server.agents.models import catalog
from hansard_server.cli import main

DELTAS = 100
PAUSE_S = 0.004


def stamp() -> str:
    """Return the time as a text; the clock is the machine's, the same in every process."""
    return f"@{time.perf_counter_ns()};"


class ClockModel:
    """Says the time again and again."""

    context_tokens: int | None = None

    def check_parameters(self, _parameters: Mapping[str, Json]) -> None:
        """Take any."""

    async def respond(self, _request: ModelRequest) -> AsyncIterator[Part]:
        """Yield the deltas of one text."""
        for _ in range(DELTAS):
            await asyncio.sleep(PAUSE_S)
            yield TextDelta(TextKind.OUTPUT, stamp())
        yield TextEnd()


if __name__ == "__main__":
    catalog.BUILT_IN = {**catalog.BUILT_IN, "hansard/clock": ClockModel}
    main()
