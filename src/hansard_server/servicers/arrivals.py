"""How many calls have arrived at the server and not ended, those among them that nobody has looked
at yet: grpc keeps them in a queue of its own, of which its Python tells nothing but by channelz.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import grpc.aio
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # what grpcio-channelz calls, too

CHANNELZ_OPTION = ("grpc.enable_channelz", 1)
"""What a server must be made with, to be counted."""


def count_arrivals(make: Callable[[], grpc.aio.Server]) -> tuple[grpc.aio.Server, Arrivals]:
    """Return a new server, and what counts its calls; `make` makes it with CHANNELZ_OPTION."""
    before = {server["ref"]["serverId"] for server in _servers()}
    server = make()
    (number,) = {server["ref"]["serverId"] for server in _servers()} - before
    return server, Arrivals(int(number))


class Arrivals:
    """The calls of one server."""

    def __init__(self, server_id: int) -> None:
        """Count those of the server that channelz knows by this number."""
        self._server_id = server_id

    def unfinished(self) -> int:
        """Return how many have arrived and not ended. It takes a quarter of a millisecond."""
        data = json.loads(cygrpc.channelz_get_server(self._server_id))["server"]["data"]
        # Counts are texts, and left out when they are 0 in some versions.
        started, succeeded, failed = (
            int(data.get(name, 0)) for name in ("callsStarted", "callsSucceeded", "callsFailed")
        )
        return started - succeeded - failed


def _servers() -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = []
    while True:
        start = int(listed[-1]["ref"]["serverId"]) + 1 if listed else 0
        page = json.loads(cygrpc.channelz_get_servers(start))
        listed += page.get("server", [])
        if page.get("end"):
            return listed
