"""`hansard serve` with authentication on, as the clients meet it."""

from __future__ import annotations

import signal
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self

from tests.support.ports import free_port
from tests.support.server import ServeProcess, serve_process


class Service:
    """`hansard serve` at one address on one store, killed or stopped and started again."""

    def __init__(self, store_url: str, folder: Path, *settings: str) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._arguments = (
            *("--listen", self.address, "--store", store_url, "--data-dir", str(folder)),
            *(word for setting in settings for word in ("--set", setting)),
        )
        self._data_dir = folder
        self._context: AbstractContextManager[ServeProcess]
        self._process: ServeProcess

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._context.__exit__(None, None, None)

    @property
    def environment(self) -> dict[str, str]:
        """What a client is told: where the server is, and the administrator's key."""
        key = (self._data_dir / "admin.key").read_text(encoding="utf-8").strip()
        return {"HANSARD_TARGET": self.address, "HANSARD_API_KEY": key}

    def restart(self, number: signal.Signals) -> None:
        """End the server by a signal, and start it again."""
        self._process.send(number)
        assert self._process.wait() == (0 if number == signal.SIGTERM else -number)
        self._context.__exit__(None, None, None)
        self._start()

    def _start(self) -> None:
        self._context = serve_process(*self._arguments, insecure=False)
        self._process = self._context.__enter__()
        self._process.wait_for("serving")
