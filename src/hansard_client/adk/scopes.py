"""State that sessions share: an app's, and a user's. Each is a session of Hansard of its own, whose
newest event is the state; writers take turns by `expected_last_sequence`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hansard_client.adk.places import agent_key, describe, ensure_session, make_key, to_name
from hansard_client.adk.record import state_draft
from hansard_client.async_client import AsyncHansard
from hansard_client.errors import AgentNotFound, SequenceMismatch, SessionNotFound


class Scope:
    """The state of one app, or of one user in it."""

    def __init__(self, client: AsyncHansard, app_name: str, user_id: str | None = None) -> None:
        """Speak of a user's state, or with None of the app's."""
        self._client = client
        self._app_name = app_name
        self._user_id = user_id
        self._key = make_key("app") if user_id is None else make_key("usr", user_id)
        self._place = client.session(agent_key(app_name), self._key)

    async def read(self) -> dict[str, Any]:
        """Return the state, without prefixes."""
        return (await self._newest())[0]

    async def update(self, delta: Mapping[str, Any]) -> None:
        """Merge into the state, whoever else does so at the same time."""
        while delta:
            try:
                state, last_sequence = await self._newest()
                await self._place.append(
                    [state_draft({**state, **delta})], expected_last_sequence=last_sequence
                )
            except (SessionNotFound, AgentNotFound):
                await self._create()
            except SequenceMismatch:
                continue
            else:
                return

    async def _newest(self) -> tuple[dict[str, Any], int]:
        try:
            async for event in self._place.events.list(newest_first=True, limit=1, page_size=1):
                return json.loads(event.custom.data_json), event.sequence
        except (SessionNotFound, AgentNotFound):
            pass
        return {}, 0

    async def _create(self) -> None:
        names = {"app": self._app_name, "kind": "app state"}
        title = f"State of the app {self._app_name}"
        if self._user_id is not None:
            names |= {"user": self._user_id, "kind": "user state"}
            title = f"State of the user {self._user_id}"
        await ensure_session(
            self._client, self._app_name, self._key, name=to_name(title), metadata=describe(**names)
        )
