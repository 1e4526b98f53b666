"""A running server: every part made in its order, stopped in the reverse one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import structlog

from hansard_server.access.authentication import Authenticator
from hansard_server.access.credentials import Tokens
from hansard_server.access.key_cache import KeyCache
from hansard_server.access.tenants import token_secret
from hansard_server.app.listener import Entrance, listen
from hansard_server.app.opening import open_blobs, open_default_tenant, page_token_secret
from hansard_server.app.services import Parts, Service, make_companions, make_services
from hansard_server.app.turns import files_of, make_engine, make_sub_agents, open_forks, open_runner
from hansard_server.artifacts.blobs import Blobs
from hansard_server.artifacts.sweep import ArtifactSweep
from hansard_server.config import Settings, find_exposures
from hansard_server.corpora.corpora import Corpora
from hansard_server.corpora.search import CorpusSearch
from hansard_server.corpora.tenant import TenantCorpora
from hansard_server.domain.clock import Clock, now_us
from hansard_server.http_door import HttpDoor
from hansard_server.lifecycle import Calls, Closers, Drain
from hansard_server.replicas import Replica
from hansard_server.repository.api import Change, Store
from hansard_server.resources.paging import PageTokens
from hansard_server.resources.sweeper import Sweeper
from hansard_server.servicers.health import Health, watch_store
from hansard_server.stores import open_store, sqlite_path
from hansard_server.turns.context import ContextLoader
from hansard_server.turns.engine import TurnEngine
from hansard_server.turns.feeds import Feeds
from hansard_server.turns.keeper import TurnKeeper
from hansard_server.turns.readers import Readers

_log = structlog.get_logger("hansard.server")

# Of the time that a stopping server has, calls may take this part; the rest is for the closers.
_CALLS_SHARE = 0.6
# Of what is left then, running turns may take this part to come to their end.
_TURNS_SHARE = 0.7


class Server:
    """A server that is running. `start` makes it, `stop` drains it and gives everything back.

    Attributes:
        address: where it listens, `host:port`.
        http_address: where its HTTP door does; empty when it has none.
        drain: begins when the server stops.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.address = ""
        self.http_address = ""
        self.drain = Drain()
        self._settings = settings
        self._clock = clock
        self._calls = Calls()
        self._closers = Closers()
        self._health: Health | None = None
        self._door: HttpDoor | None = None

    @classmethod
    async def start(cls, settings: Settings, *, clock: Clock = now_us) -> Server:
        """Return a server that takes calls. Raises ConfigurationMistake, CannotStart."""
        server = cls(settings, clock)
        try:
            await server._start()
        except BaseException:
            await server._closers.close(settings.drain_deadline_s)
            raise
        return server

    async def stop(self) -> None:
        """Stop as a server should: say so, let calls finish and streams end, close everything."""
        settings = self._settings
        self.drain.begin(settings.drain_deadline_s)
        if self._health is not None:
            self._health.announce()
        _log.info("stopping", calls=self._calls.running)
        if settings.drain_notice_s:
            await asyncio.sleep(min(settings.drain_notice_s, self._remaining_s() * _CALLS_SHARE))
        if not await self._calls.finish(self._remaining_s() * _CALLS_SHARE):
            _log.warning("calls cut off", calls=self._calls.running)
        await self._closers.close(self._remaining_s())
        _log.info("stopped")

    async def _start(self) -> None:
        parts = await self._make_parts()
        services = make_services(parts)
        await self._open(parts, services)
        for warning in find_exposures(self._settings):
            _log.warning(warning)
        _log.info(
            "serving",
            address=self.address,
            http=self.http_address,
            services=[service.name for service in services],
        )

    async def _make_parts(self) -> Parts:
        settings, closers = self._settings, self._closers
        store = await open_store(settings, closers, self._clock)
        tokens = PageTokens(await asyncio.to_thread(page_token_secret, settings))
        if not settings.insecure:
            await open_default_tenant(store, settings, self._clock)
        key_tokens = Tokens(await token_secret(store))
        keys = KeyCache(store, ttl_s=settings.api_key_cache_s, clock=self._clock)
        closers.add("key_use", keys.note_use)
        closers.run("keys", keys.run())
        sweeper = Sweeper(
            store,
            interval_s=settings.sweep_interval_s,
            keep_deleted_s=settings.keep_deleted_s,
            clock=self._clock,
        )
        closers.run("sweeper", sweeper.run())
        blobs = await open_blobs(settings)
        closers.run("artifact_sweep", self._artifact_sweep(store, blobs).run())
        feeds = Feeds(hurried=lambda: self._calls.unanswered > 0)
        replica = await Replica.open(settings, store, feeds)
        closers.add("replica", replica.close)
        corpora = Corpora(store, limits=settings.limits, tokens=tokens, clock=self._clock)
        corpus_search = CorpusSearch(store)
        sub_agents = make_sub_agents(settings, store, feeds, self._clock)
        contexts = ContextLoader(
            store,
            files_of(settings, store, blobs, self._clock),
            lambda tenant: TenantCorpora(tenant, corpora, corpus_search),
            sub_agents.of_session,
            clock=self._clock,
        )
        runner = await open_runner(settings, closers)
        engine = make_engine(settings, store, feeds, contexts, replica, runner)
        self._tell(store, feeds.on_change, engine.on_change)
        closers.add("sub_agents", sub_agents.bind(engine))
        alone = sqlite_path(settings.store_url) is not None
        keeper = TurnKeeper(store, engine, lease_s=settings.lease_s, alone=alone)
        await replica.join(engine, keeper)
        closers.add("keeper", keeper.close)
        closers.add("turns", lambda: engine.drain(self._remaining_s() * _TURNS_SHARE))
        await keeper.open()
        closers.run("drain_watch", self._tell_streams(feeds, engine))
        return Parts(
            settings=settings,
            store=store,
            tokens=tokens,
            blobs=blobs,
            feeds=feeds,
            readers=Readers(store, feeds, replica.mirrors),
            engine=engine,
            models=runner.models,
            forks=await open_forks(settings, store, closers, self._clock, alone=alone),
            corpora=corpora,
            corpus_search=corpus_search,
            outside=runner.outside,
            sweeper=sweeper,
            keys=keys,
            key_tokens=key_tokens,
            clock=self._clock,
        )

    async def _open(self, parts: Parts, services: Sequence[Service]) -> None:
        """Take calls for the services, by gRPC and by HTTP."""
        settings, closers, check = self._settings, self._closers, parts.store.check
        health = self._health = Health((service.name for service in services), self.drain)
        closers.run("health", watch_store(health, check, interval_s=settings.health_interval_s))
        authenticator = None
        if not settings.insecure:
            authenticator = Authenticator(parts.keys, parts.key_tokens, clock=self._clock)
        entrance = Entrance(
            settings=settings,
            store=parts.store,
            authenticator=authenticator,
            drain=self.drain,
            calls=self._calls,
            closers=closers,
            clock=self._clock,
        )
        server = entrance.make_server((*services, *make_companions(services, health, self.drain)))
        self._door = await HttpDoor.open(settings)
        if self._door is not None:
            closers.add("http_door", self._door.close)
            server.add_insecure_port(self._door.target)
            self.http_address = self._door.address
        self.address = await listen(server, settings, closers)
        if self._door is not None:
            await self._door.start()

    def _artifact_sweep(self, store: Store, blobs: Blobs) -> ArtifactSweep:
        settings = self._settings
        return ArtifactSweep(
            store,
            blobs,
            interval_s=settings.artifact_sweep_interval_s,
            grace_s=settings.artifact_grace_s,
            upload_max_s=settings.upload_max_s,
            clock=self._clock,
        )

    def _tell(self, store: Store, *listeners: Callable[[Change], None]) -> None:
        listening = ExitStack()
        for listener in listeners:
            listening.enter_context(store.listen(listener))
        self._closers.add("listening", partial(asyncio.to_thread, listening.close))

    async def _tell_streams(self, feeds: Feeds, engine: TurnEngine) -> None:
        await self.drain.started.wait()
        if self._door is not None:
            self._door.begin_drain()
        engine.begin_drain()
        feeds.drain()

    def _remaining_s(self) -> float:
        return self.drain.remaining_s or 0.0
