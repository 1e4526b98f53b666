"""This process among the others of its store: what it tells them, hears from them and asks them.

On SQLite there are no others; what is left then is the look into the store once in a while.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import ExitStack
from typing import TYPE_CHECKING

from hansard_server.config import ConfigurationMistake, Settings, split_listen
from hansard_server.domain.records import SessionPulse
from hansard_server.lifecycle import cancel
from hansard_server.peers.client import PeerClient
from hansard_server.peers.listener import PeerListener, PeerServicer
from hansard_server.repository.api import Change, Store
from hansard_server.stores import CannotStart, sqlite_path
from hansard_server.turns.catch_up import CatchUp
from hansard_server.turns.engine import TurnEngine
from hansard_server.turns.feeds import Feeds, SessionFeed, SessionUid
from hansard_server.turns.keeper import TurnKeeper
from hansard_server.turns.mirrors import Mirrors

# It brings PostgreSQL's driver, which SQLite's servers need not.
if TYPE_CHECKING:
    from hansard_server.repository.sql.wake import WakeUps

_SECRET_NAME = "peers"  # noqa: S105 - its name, not the secret
_SECRET_BYTES = 32
_TELL_TIMEOUT_S = 0.5
_WILDCARDS = frozenset({"0.0.0.0", "::", "*"})  # noqa: S104 - to be told apart


class Replica:
    """One of the processes of a store; `open` makes it, `join` has it take part.

    Attributes:
        address: where the others reach it; empty: nowhere.
        peers: the others; None where there can't be any.
        mirrors: of turns that run elsewhere.
        catch_up: brings feeds to what others have committed.
    """

    def __init__(
        self, settings: Settings, store: Store, feeds: Feeds, listener: PeerListener | None
    ) -> None:
        """Make a replica that takes no part yet."""
        self.address = "" if listener is None else listener.address
        self.peers: PeerClient | None = None
        self._settings = settings
        self._store = store
        self._feeds = feeds
        self._listener = listener
        self._secret = b""
        self._wake_ups: WakeUps | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._listening = ExitStack()
        self.catch_up = CatchUp(
            store,
            feeds,
            poll_floor_s=settings.poll_floor_s,
            on_change=self._on_change,
            on_pulse=self._on_pulse,
        )
        self.mirrors = Mirrors(None, own_address="", catch_up=self.catch_up.now)
        self._engine: TurnEngine | None = None

    @classmethod
    async def open(cls, settings: Settings, store: Store, feeds: Feeds) -> Replica:
        """Return a replica that has an address. Raises ConfigurationMistake, CannotStart."""
        if sqlite_path(settings.store_url) is not None:
            return cls(settings, store, feeds, None)
        replica = cls(settings, store, feeds, _bind(settings))
        new = secrets.token_bytes(_SECRET_BYTES)
        replica._secret = await store.write(lambda tx: tx.ensure_secret(_SECRET_NAME, new))
        replica.peers = PeerClient(replica._secret)
        replica.mirrors = Mirrors(
            replica.peers, own_address=replica.address, catch_up=replica.catch_up.now
        )
        return replica

    async def join(self, engine: TurnEngine, keeper: TurnKeeper) -> None:
        """Tell of commits, hear of those of others, answer for the turns of the engine."""
        self._engine = engine
        self._run("catch-up", self.catch_up.run())
        if self._listener is None:
            return
        await self._listener.start(PeerServicer(self._secret, engine, self._feeds))
        from hansard_server.repository.sql.wake import WakeUps  # noqa: PLC0415

        wake_ups = self._wake_ups = WakeUps(
            self._settings.store_url, on_hint=self.catch_up.hint, on_free=keeper.look
        )
        self._listening.enter_context(
            self._store.listen(lambda change: wake_ups.tell((change.tenant, change.session_uid)))
        )
        engine.on_given_up = wake_ups.tell_free
        self._run("wake-ups", wake_ups.run())

    async def close(self) -> None:
        """Take no part any more, when the others have been told what there is to tell."""
        if self._wake_ups is not None:
            await self._wake_ups.flush(_TELL_TIMEOUT_S)
        self._listening.close()
        await self.mirrors.close()
        if self._listener is not None:
            await self._listener.close()
            # grpc's server wants to be let go while its loop is there.
            self._listener = None
        for task in self._tasks:
            await cancel(task)

    def _on_pulse(self, session: SessionUid, feed: SessionFeed, pulse: SessionPulse) -> None:
        self.mirrors.on_pulse(session, feed, pulse)

    def _on_change(self, change: Change) -> None:
        # What others did is taken in as what this process did.
        self._feeds.on_change(change)
        if self._engine is not None:
            self._engine.on_change(change)

    def _run(self, name: str, work: object) -> None:
        self._tasks.append(asyncio.create_task(work, name=name))  # type: ignore[arg-type]


def _bind(settings: Settings) -> PeerListener:
    host, _ = split_listen(settings.peer_listen)
    if host in _WILDCARDS and not settings.peer_host:
        raise ConfigurationMistake(
            f"peer_host: name the host by which the other replicas reach {settings.peer_listen}"
        )
    try:
        return PeerListener.bind(settings.peer_listen, settings.peer_host or host)
    except RuntimeError:
        raise CannotStart(f"peer_listen: can't listen on {settings.peer_listen}") from None
