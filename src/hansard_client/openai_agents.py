"""Hansard for agents of openai-agents (the extra `openai-agents`): a Session that is kept in it.

session = HansardSession("conversation-123", target="127.0.0.1:50051", api_key=key)
await Runner.run(agent, "Hello", session=session)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import aclosing, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from agents.memory.session import SessionABC
from agents.memory.session_settings import SessionSettings, resolve_session_limit

from hansard_client.async_client import AsyncHansard, AsyncSession
from hansard_client.channels import DEFAULT_TARGET
from hansard_client.errors import (
    AgentAlreadyExists,
    AgentNotFound,
    SequenceMismatch,
    SessionAlreadyExists,
    SessionNotFound,
)

if TYPE_CHECKING:
    from agents.items import TResponseInputItem

ITEM_TYPE = "com.openai.agents.item"
POP_TYPE = "com.openai.agents.pop"
DEFAULT_AGENT = "openai-agents"
# No model of the server's answers: these agents run elsewhere.
_MODEL = "elsewhere/openai-agents"
_BATCH_ITEMS = 256
_PAGE_SIZE = 64
_ALL_PAGE_SIZE = 1_000
_HASH_CHARACTERS = 40
_NAME_MAX_CHARACTERS = 255


class HansardSession(SessionABC):
    """One conversation of openai-agents, each of its items an event of a session of Hansard.

    Items that are popped stay on record and are not seen any more; `clear_session` removes the
    record. Sessions with the same `session_id` and `agent_key` are one conversation.
    """

    def __init__(
        self,
        session_id: str,
        *,
        target: str | Sequence[str] = DEFAULT_TARGET,
        api_key: str | None = None,
        agent_key: str = DEFAULT_AGENT,
        session_settings: SessionSettings | None = None,
        client: AsyncHansard | None = None,
        **options: Any,
    ) -> None:
        """Prepare to call the server at `target`, or by a `client` that several sessions share.

        `agent_key` is the agent of Hansard under which the conversations are; `options` are those
        of AsyncHansard. It belongs to the event loop of its first call.
        """
        self.session_id = session_id
        self.session_settings = session_settings or SessionSettings()
        self._own = client is None
        self._client = client or AsyncHansard(target, api_key=api_key, **options)
        self._agent_key = agent_key
        digest = hashlib.sha256(session_id.encode("utf-8", "surrogatepass")).hexdigest()
        self._key = f"oai_{digest[:_HASH_CHARACTERS]}"

    async def close(self) -> None:
        """Give back connections, unless the client is somebody else's."""
        if self._own:
            await self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """Return the newest items in order; without a limit, here or in the settings, all."""
        limit = resolve_session_limit(limit, self.session_settings)
        if limit is not None and limit <= 0:
            return []
        items, _ = await self._newest(limit)
        return [item for _, item in reversed(items)]

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Add items in order; all that come together become visible together, 256 at most."""
        drafts = [_draft(ITEM_TYPE, item) for item in items]
        for start in range(0, len(drafts), _BATCH_ITEMS):
            await self._append(drafts[start : start + _BATCH_ITEMS])

    async def pop_item(self) -> TResponseInputItem | None:
        """Remove the newest item and return it; None when there is none. Nobody else gets it."""
        while True:
            items, last_sequence = await self._newest(1)
            if not items:
                return None
            (event_id, item), *_ = items
            try:
                await self._place.append(
                    [_draft(POP_TYPE, {"event_id": event_id})],
                    expected_last_sequence=last_sequence,
                )
            except SequenceMismatch:
                continue
            except (AgentNotFound, SessionNotFound):
                return None
            return item

    async def clear_session(self) -> None:
        """Remove all items, and their record."""
        with suppress(AgentNotFound, SessionNotFound):
            await self._place.delete()

    @property
    def _place(self) -> AsyncSession:
        return self._client.session(self._agent_key, self._key)

    async def _newest(self, limit: int | None) -> tuple[list[tuple[str, TResponseInputItem]], int]:
        """Return (event id, item), the newest first, and where the record ends."""
        found: list[tuple[str, TResponseInputItem]] = []
        popped: set[str] = set()
        last_sequence = 0
        size = _ALL_PAGE_SIZE if limit is None else min(_PAGE_SIZE + limit, _ALL_PAGE_SIZE)
        try:
            stored = self._place.events.list(newest_first=True, page_size=size)
            async with aclosing(stored) as events:
                async for event in events:
                    last_sequence = last_sequence or event.sequence
                    data = json.loads(event.custom.data_json or "null")
                    if event.custom.custom_type == POP_TYPE:
                        popped.add(data["event_id"])
                    elif event.custom.custom_type == ITEM_TYPE and event.id not in popped:
                        found.append((event.id, data))
                        if limit is not None and len(found) == limit:
                            break
        except (AgentNotFound, SessionNotFound):
            return [], 0
        return found, last_sequence

    async def _append(self, drafts: list[dict[str, Any]]) -> None:
        try:
            await self._place.append(drafts)
        except (AgentNotFound, SessionNotFound):
            await self._create()
            await self._place.append(drafts)

    async def _create(self) -> None:
        with suppress(AgentAlreadyExists):
            await self._client.agents.create(
                key=self._agent_key,
                name="OpenAI Agents",
                description="Agents of openai-agents, which run elsewhere.",
                model=_MODEL,
            )
        shown = self.session_id.encode("utf-8", "replace").decode().replace("\0", " ")
        with suppress(SessionAlreadyExists):
            await self._client.sessions.create(
                self._agent_key,
                key=self._key,
                name=shown[:_NAME_MAX_CHARACTERS] or "(no name)",
                metadata={"openai_agents_session_id": shown},
            )


def _draft(custom_type: str, data: Any) -> dict[str, Any]:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return {"custom": {"custom_type": custom_type, "data_json": text}}
