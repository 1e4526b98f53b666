"""What a provider is sent for a history: the body that its real client library makes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import httpx2

from hansard.v1 import event_pb2
from hansard_server.agents.api import ModelFailed, ModelRequest, SessionFiles, ToolDescription
from hansard_server.agents.models.providers.model import ProviderCaller
from hansard_server.agents.models.settings import ModelSettings

PROVIDERS = ("anthropic", "openai", "google")
MODELS = {"anthropic": "claude-sonnet-4-6", "openai": "gpt-4o", "google": "gemini-2.5-pro"}


class BodyMaker:
    """Makes bodies by a provider's client, whose requests end here."""

    def __init__(self, provider: str, **settings: Any) -> None:
        self.provider = provider
        self._bodies: list[dict[str, Any]] = []
        url = "http://provider.test" + ("/v1" if provider == "openai" else "")
        self._caller = ProviderCaller(
            "test",
            MODELS[provider],
            ModelSettings.model_validate(
                {"provider": provider, "base_url": url, "api_key": "test-key", **settings}
            ),
            transport=httpx2.MockTransport(self._take),
        )

    async def body(
        self,
        history: Sequence[event_pb2.Event],
        *,
        tools: Sequence[ToolDescription] = (),
        files: SessionFiles | None = None,
        **request: Any,
    ) -> dict[str, Any]:
        """Return the body of the request with this history."""
        parts = self._caller.respond(
            ModelRequest(
                step=0,
                instructions=request.pop("instructions", ("Be brief.",)),
                history=tuple(history),
                tools=tuple(tools),
                parameters=request.pop("parameters", {}),
                files=files,
                **request,
            )
        )
        try:
            async for _ in parts:
                raise AssertionError("nobody answers here")
        except ModelFailed:
            if not self._bodies:
                raise
        return self._bodies.pop()

    async def close(self) -> None:
        await self._caller.close()

    def _take(self, request: httpx2.Request) -> httpx2.Response:
        self._bodies.append(json.loads(request.content))
        return httpx2.Response(400, json={"error": {"message": "seen enough", "type": "test"}})
