"""Hide, unhide and delete: what may still happen to an event that is stored."""

from __future__ import annotations

from typing import Protocol

from hansard_server.domain.clock import Clock
from hansard_server.domain.records import EventRecord
from hansard_server.repository.api import Alteration, Store, WriteTx
from hansard_server.repository.commands import SessionName


class NamesEvent(Protocol):
    """A request that names an event."""

    agent_key: str
    session_key: str
    event_id: str


class Alterations:
    """Alters stored events for callers."""

    def __init__(self, store: Store, *, clock: Clock) -> None:
        """Write to `store`."""
        self._store = store
        self._clock = clock

    async def alter(self, tenant: str, request: NamesEvent, alteration: Alteration) -> EventRecord:
        """Return the event as it is then. Raises what the contract says of HideEvent."""
        name = SessionName(
            tenant=tenant, agent_key=request.agent_key, session_key=request.session_key
        )
        now_us = self._clock()

        def decide(tx: WriteTx) -> EventRecord:
            session = tx.resolve_session(name)
            return tx.alter_event(tenant, session.uid, request.event_id, alteration, now_us)

        return await self._store.write(decide)
