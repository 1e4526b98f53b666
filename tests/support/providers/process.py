"""The providers' process from a test's side."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.providers.rules import FAULTS
from tests.support.providers.server import KEY

PROVIDERS = tuple(FAULTS)
# Names whose profiles the libraries know; a lane of replies each, so tests add what they like.
MODELS = {"openai": "gpt-4o", "anthropic": "claude-sonnet-4-6", "google": "gemini-2.5-pro"}
_SERVER = Path(__file__).with_name("server.py")
_WAIT_S = 60.0


class ProviderProcess:
    """A process that speaks the interfaces of all providers."""

    def __init__(self) -> None:
        self.port = 0
        self._process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        """Start it, where it was before if it was."""
        self._process = subprocess.Popen(
            [sys.executable, str(_SERVER), str(self.port)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        """Kill it, with all that it was about to say."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def url(self, provider: str) -> str:
        """Return the base URL of a provider."""
        return f"http://127.0.0.1:{self.port}" + ("/v1" if provider == "openai" else "")

    def settings(self, provider: str, lane: str = "", **changes: Any) -> dict[str, Any]:
        """Return an entry of the setting `models`, whose replies are those of `lane`."""
        usual = {
            "provider": provider,
            "model": f"{MODELS[provider]}{lane}",
            "base_url": self.url(provider),
            "api_key": KEY,
        }
        return {**usual, **changes}

    def reply(self, provider: str, *replies: dict[str, Any], lane: str = "") -> None:
        """Add replies of a model."""
        self._control(provider, lane, json.dumps(replies).encode())

    def asked(self, provider: str, lane: str = "") -> list[dict[str, Any]]:
        """Return what a model was asked."""
        return list(self._control(provider, lane)["asked"])

    def wait(
        self, provider: str, ready: Callable[[list[dict[str, Any]]], bool], lane: str = ""
    ) -> list[dict[str, Any]]:
        """Return what a model was asked once that is as it should be."""
        end = time.monotonic() + _WAIT_S
        while not ready(asked := self.asked(provider, lane)):
            assert time.monotonic() < end, asked
            time.sleep(0.02)
        return asked

    def _control(self, provider: str, lane: str, body: bytes | None = None) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.port}/control/{MODELS[provider]}{lane}"
        with urllib.request.urlopen(url, body, timeout=_WAIT_S) as answer:
            return dict(json.load(answer))


@contextmanager
def provider_process() -> Iterator[ProviderProcess]:
    """Give a providers' process until the context ends."""
    process = ProviderProcess()
    try:
        yield process
    finally:
        process.kill()


def no_faults(asked: list[dict[str, Any]]) -> None:
    """Fail when the provider would have refused a request."""
    assert [one["fault"] for one in asked if one["fault"]] == []
