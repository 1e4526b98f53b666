"""`hansard` as a process that says, on SIGUSR1, what it has in use."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import sys
from typing import Any

from hansard_server.app import Server
from hansard_server.cli import main
from hansard_server.repository.sql.store import SqlStore
from hansard_server.turns.engine import TurnEngine
from hansard_server.turns.feeds import Feeds

_made: dict[type, Any] = {}


def _note(kind: type) -> None:
    init: Any = kind.__init__  # type: ignore[misc]

    def noting(part: Any, *arguments: Any, **more: Any) -> None:
        _made[kind] = part
        init(part, *arguments, **more)

    kind.__init__ = noting  # type: ignore[misc]


def _report() -> None:
    gc.collect()
    store = _made[SqlStore]
    pool = store._engine.pool
    used = {
        "tasks": len(asyncio.all_tasks()),
        "calls": _made[Server]._calls.running,
        "feeds": len(_made[Feeds]),
        "turns": len(_made[TurnEngine].turn_ids),
        # Readers keep theirs, whether they read or not.
        "connections_held": pool.checkedout() - store._readers.connections,
        "connections": pool.checkedout() + pool.checkedin(),
    }
    sys.stderr.write(json.dumps({"event": "in_use", **used}) + "\n")
    sys.stderr.flush()


def _answer_signals() -> None:
    start: Any = Server._start

    async def starting(server: Server) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _report)
        await start(server)

    setattr(Server, "_start", starting)  # noqa: B010 - the type checker objects otherwise


if __name__ == "__main__":
    for part in (Server, Feeds, TurnEngine, SqlStore):
        _note(part)
    _answer_signals()
    main()
