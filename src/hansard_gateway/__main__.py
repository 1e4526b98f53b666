"""A gateway as the child of a server: the first line of standard input says what to serve.

The input's end says that the server is gone, however that came about; then so is the gateway.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import threading
from typing import Any

import uvloop

from hansard_gateway.serving import Gateway, serve_until
from hansard_gateway.settings import Options


def main() -> None:
    """Serve until SIGTERM comes, or the server is gone."""
    told: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    logging.basicConfig(level=told["log_level"].upper(), format="%(message)s", force=True)
    logging.getLogger().handlers[0].setFormatter(JsonLines())
    # What it could say of requests has been said by the gateway.
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    threading.Thread(target=_leave_with_server, daemon=True).start()
    listener = socket.socket(fileno=told["listener"])
    listener.setblocking(False)  # noqa: FBT003 - it takes no keyword
    options = Options(**{**told["options"], "cors_origins": tuple(told["options"]["cors_origins"])})
    uvloop.run(_run(Gateway(listener, told["target"], options)))
    # All has been answered: the server waits for this process, not for its interpreter's end.
    logging.shutdown()
    os._exit(0)


async def _run(gateway: Gateway) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await serve_until(gateway, ended)


def _leave_with_server() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    # Nothing can be answered any more, and the port is wanted by the next server.
    os._exit(1)


class JsonLines(logging.Formatter):
    """Lines as the server writes them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        line = {
            "event": record.getMessage(),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


if __name__ == "__main__":
    main()
