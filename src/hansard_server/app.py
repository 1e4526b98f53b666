"""The composition: makes every part of a server and ties them together. Nobody else knows them all.

To serve one more service: make its servicer in `_servicers` and return it there with its generated
`add_…_to_server` function; health and reflection follow from that list.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from tempfile import NamedTemporaryFile
from typing import Any

import grpc.aio
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.reflection import aio as reflection

from hansard.v1 import (
    access_service_pb2,
    access_service_pb2_grpc,
    agent_service_pb2,
    agent_service_pb2_grpc,
    artifact_service_pb2,
    artifact_service_pb2_grpc,
    corpus_service_pb2,
    corpus_service_pb2_grpc,
    event_service_pb2,
    event_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
    turn_service_pb2,
    turn_service_pb2_grpc,
)
from hansard_server import failpoints
from hansard_server.access.api_keys import ApiKeys
from hansard_server.access.authentication import Authenticator
from hansard_server.access.authorization import Authorizer
from hansard_server.access.credentials import Tokens
from hansard_server.access.key_cache import KeyCache
from hansard_server.access.rates import LocalPermits, PermitSource, RateLimiter, StoredPermits
from hansard_server.access.tenants import BadKeyFile, make_default_tenant, token_secret
from hansard_server.agents.configuration import check_agent
from hansard_server.agents.connections import BadConnections, Connections, Outside, load_connections
from hansard_server.agents.limits import AgentLimits
from hansard_server.agents.models.catalog import ModelCatalog
from hansard_server.agents.outgoing import BadAddress, parse_rules
from hansard_server.agents.running import AgentRunner
from hansard_server.agents.tools.built_in import BUILT_IN_TOOLS
from hansard_server.agents.tools.catalog import ToolCatalog
from hansard_server.artifacts.blobs import Blobs
from hansard_server.artifacts.files import StoredFiles
from hansard_server.artifacts.object_stores import BadLocation, CloudOptions, Unreachable, probe
from hansard_server.artifacts.read import Artifacts
from hansard_server.artifacts.sweep import ArtifactSweep
from hansard_server.artifacts.upload import Uploader, artifact_quota
from hansard_server.config import ConfigurationMistake, Settings, find_exposures
from hansard_server.corpora.corpora import Corpora
from hansard_server.corpora.filters import check_filter
from hansard_server.corpora.search import CorpusSearch
from hansard_server.corpora.tenant import TenantCorpora
from hansard_server.domain.clock import Clock, now_us
from hansard_server.domain.limits import KIB
from hansard_server.domain.rates import Rate
from hansard_server.domain.records import SessionRecord
from hansard_server.http_door import HttpDoor
from hansard_server.lifecycle import Calls, Closers, Drain, cancel
from hansard_server.replicas import Replica
from hansard_server.repository.api import Change, Store
from hansard_server.resources.agents import Agents
from hansard_server.resources.paging import PageTokens
from hansard_server.resources.sessions import Sessions
from hansard_server.resources.sweeper import Sweeper
from hansard_server.servicers.access import AccessServicer
from hansard_server.servicers.admission import Admission, RequestReader
from hansard_server.servicers.agents import AgentServicer
from hansard_server.servicers.arrivals import CHANNELZ_OPTION, count_arrivals
from hansard_server.servicers.artifacts import ArtifactServicer
from hansard_server.servicers.corpora import CorpusServicer
from hansard_server.servicers.entrance import Authentication, Authorization
from hansard_server.servicers.events import EventServicer
from hansard_server.servicers.health import Health, HealthServicer, watch_store
from hansard_server.servicers.interceptors import AccessLog, DrainGate, Errors, Pipeline
from hansard_server.servicers.rate_limits import AgentRates, KeyLimits, agent_rates
from hansard_server.servicers.sessions import SessionServicer
from hansard_server.servicers.stalls import Stalls
from hansard_server.servicers.tls import BadCertificate, CertificateFiles, Certificates
from hansard_server.servicers.turns import TurnServicer
from hansard_server.servicers.validation import Validation
from hansard_server.stores import CannotStart, open_store, sqlite_path
from hansard_server.turns.alterations import Alterations
from hansard_server.turns.context import ContextLoader
from hansard_server.turns.engine import EngineSettings, TurnEngine
from hansard_server.turns.feeds import Feeds
from hansard_server.turns.forks import Forks
from hansard_server.turns.inputs import Inputs
from hansard_server.turns.keeper import TurnKeeper
from hansard_server.turns.queries import Queries
from hansard_server.turns.readers import Readers
from hansard_server.turns.sub_agents import AllSubAgents, SubAgentSettings

_log = structlog.get_logger("hansard.server")

_SECRET_BYTES = 32
_LARGE_REQUESTS = 64
"""So many large requests are in memory at a time, each of twice `request_max_bytes` at most."""
# Of the time that a stopping server has, calls may take this part; the rest is for the closers.
_CALLS_SHARE = 0.6
_STOP_GRACE_S = 0.1
_HANDSHAKE_TIMEOUT_MS = 10_000
_PENDING_CALLS = 20_000
# Of what is left then, running turns may take this part to come to their end.
_TURNS_SHARE = 0.7


@dataclass(frozen=True, slots=True)
class Service:
    """A service, the servicer that answers it, and the generated function that registers it."""

    name: str
    register: Callable[[Any, grpc.aio.Server], None]
    servicer: object


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What servicers are made of."""

    settings: Settings
    store: Store
    tokens: PageTokens
    blobs: Blobs
    feeds: Feeds
    readers: Readers
    engine: TurnEngine
    models: ModelCatalog
    forks: Forks
    corpora: Corpora
    corpus_search: CorpusSearch
    outside: Outside
    sweeper: Sweeper
    keys: KeyCache
    key_tokens: Tokens
    clock: Clock


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
        settings, closers = self._settings, self._closers
        store = await open_store(settings, closers, self._clock)
        tokens = PageTokens(await asyncio.to_thread(_page_token_secret, settings))
        if not settings.insecure:
            await _make_default_tenant(store, settings, self._clock)
        key_tokens = Tokens(await token_secret(store))
        keys = KeyCache(store, ttl_s=settings.api_key_cache_s, clock=self._clock)
        closers.add("key_use", keys.note_use)
        self._run("keys", keys.run())
        sweeper = Sweeper(
            store,
            interval_s=settings.sweep_interval_s,
            keep_deleted_s=settings.keep_deleted_s,
            clock=self._clock,
        )
        self._run("sweeper", sweeper.run())
        blobs = await _open_blobs(settings)
        self._run("artifact_sweep", self._artifact_sweep(store, blobs).run())
        feeds = Feeds(hurried=lambda: self._calls.unanswered > 0)
        replica = await Replica.open(settings, store, feeds)
        closers.add("replica", replica.close)
        corpora = Corpora(store, limits=settings.limits, tokens=tokens, clock=self._clock)
        corpus_search = CorpusSearch(store)
        sub_agents = _sub_agents(settings, store, feeds, self._clock)
        contexts = ContextLoader(
            store,
            _files_of(settings, store, blobs, self._clock),
            lambda tenant: TenantCorpora(tenant, corpora, corpus_search),
            sub_agents.of_session,
            clock=self._clock,
        )
        runner = await self._open_runner()
        engine = _engine(settings, store, feeds, contexts, replica, runner)
        self._tell(store, feeds.on_change, engine.on_change)
        closers.add("sub_agents", sub_agents.bind(engine))
        alone = sqlite_path(settings.store_url) is not None
        keeper = TurnKeeper(store, engine, lease_s=settings.lease_s, alone=alone)
        await replica.join(engine, keeper)
        closers.add("keeper", keeper.close)
        closers.add("turns", lambda: engine.drain(self._remaining_s() * _TURNS_SHARE))
        await keeper.open()
        self._run("drain_watch", self._tell_streams(feeds, engine))
        parts = Parts(
            settings=settings,
            store=store,
            tokens=tokens,
            blobs=blobs,
            feeds=feeds,
            readers=Readers(store, feeds, replica.mirrors),
            engine=engine,
            models=runner.models,
            forks=await self._open_forks(store, alone=alone),
            corpora=corpora,
            corpus_search=corpus_search,
            outside=runner.outside,
            sweeper=sweeper,
            keys=keys,
            key_tokens=key_tokens,
            clock=self._clock,
        )
        services = _servicers(parts)
        health = self._health = Health((service.name for service in services), self.drain)
        self._run("health", watch_store(health, store.check, interval_s=settings.health_interval_s))
        authenticator = None
        if not settings.insecure:
            authenticator = Authenticator(keys, key_tokens, clock=self._clock)
        server = self._server(store, authenticator)
        for service in (*services, *_companions(services, health, self.drain)):
            service.register(service.servicer, server)
        self._door = await HttpDoor.open(settings)
        if self._door is not None:
            closers.add("http_door", self._door.close)
            server.add_insecure_port(self._door.target)
            self.http_address = self._door.address
        self.address = await self._listen(server)
        if self._door is not None:
            await self._door.start()
        for warning in find_exposures(settings):
            _log.warning(warning)
        _log.info(
            "serving",
            address=self.address,
            http=self.http_address,
            services=[service.name for service in services],
        )

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

    async def _open_runner(self) -> AgentRunner:
        settings = self._settings
        runner = AgentRunner(
            models=self._open_models(),
            tools=ToolCatalog(*BUILT_IN_TOOLS.values()),
            outside=await asyncio.to_thread(_open_outside, settings),
            limits=AgentLimits(
                event_max_bytes=settings.event_max_bytes,
                steps_per_turn=settings.turn_max_steps,
                step_max_s=settings.model_step_max_s,
                model_retries=settings.model_max_retries,
                action_timeout_s=settings.action_timeout_s,
                heartbeat_s=settings.runtime_heartbeat_s,
            ),
        )
        self._closers.add("agents", runner.close)
        return runner

    def _tell(self, store: Store, *listeners: Callable[[Change], None]) -> None:
        listening = ExitStack()
        for listener in listeners:
            listening.enter_context(store.listen(listener))
        self._closers.add("listening", partial(asyncio.to_thread, listening.close))

    def _open_models(self) -> ModelCatalog:
        models = ModelCatalog(provided=self._settings.models)
        self._closers.add("models", models.close)
        return models

    async def _open_forks(self, store: Store, *, alone: bool) -> Forks:
        settings = self._settings
        forks = Forks(store, settings.limits, lease_s=settings.lease_s, clock=self._clock)
        self._closers.add("forks", forks.close)
        if alone:
            await forks.recover()
        return forks

    async def _tell_streams(self, feeds: Feeds, engine: TurnEngine) -> None:
        await self.drain.started.wait()
        if self._door is not None:
            self._door.begin_drain()
        engine.begin_drain()
        feeds.drain()

    def _server(self, store: Store, authenticator: Authenticator | None) -> grpc.aio.Server:
        settings = self._settings
        admission = Admission(
            max_calls=settings.process_max_calls,
            max_streams=settings.process_max_streams,
            max_uploads=settings.process_max_uploads,
        )
        pipeline = self._pipeline(store, authenticator, Authorizer(store), admission)
        server, arrivals = count_arrivals(
            lambda: grpc.aio.server(interceptors=[pipeline], options=_grpc_options(settings))
        )
        admission.count(arrivals)
        return server

    def _pipeline(
        self,
        store: Store,
        authenticator: Authenticator | None,
        authorizer: Authorizer,
        admission: Admission,
    ) -> Pipeline:
        settings, limits = self._settings, self._settings.limits
        limiter = RateLimiter(self._permits(store))
        key_rate = settings.key_max_calls_per_s
        key_limits = KeyLimits(
            limiter,
            max_calls=settings.key_max_calls,
            max_streams=settings.key_max_streams,
            rate=Rate(key_rate) if key_rate else None,
        )
        of_agents = agent_rates(
            max_sessions_per_s=settings.agent_max_sessions_per_s,
            max_inputs_per_s=settings.agent_max_inputs_per_s,
        )
        validation = Validation(
            self.drain,
            request_max_bytes=limits.request_max_bytes,
            metadata_max_bytes=limits.metadata_max_bytes,
        )
        stalls = Stalls(self._settings.stall_s)
        self._run("stalls", stalls.run())
        return Pipeline(
            [
                admission,
                *(AccessLog(self._calls), Errors(), DrainGate(self.drain)),
                Authentication(authenticator, authorizer),
                key_limits,
                RequestReader(large_requests=_LARGE_REQUESTS),
                validation,
                Authorization(authorizer),
                AgentRates(limiter, of_agents),
            ],
            stalls,
        )

    def _permits(self, store: Store) -> PermitSource:
        if sqlite_path(self._settings.store_url) is not None:
            return LocalPermits(self._clock)
        permits = StoredPermits(store)
        self._run("rates", permits.forget_full())
        return permits

    async def _listen(self, server: grpc.aio.Server) -> str:
        listen = self._settings.listen
        certificates = await asyncio.to_thread(_open_certificates, self._settings)
        try:
            if certificates is None:
                port = server.add_insecure_port(listen)
            else:
                port = server.add_secure_port(listen, certificates.credentials())
                self._run("certificates", certificates.watch())
        except RuntimeError:
            raise CannotStart(f"listen: can't listen on {listen}; is the port taken?") from None
        await server.start()
        failpoints.begin_serving()
        # The streams have been told by the drain: whoever is left does not read, and is cut off.
        self._closers.add("listener", partial(server.stop, _STOP_GRACE_S))
        return f"{listen.rpartition(':')[0]}:{port}"

    def _run(self, name: str, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._closers.add(name, partial(cancel, task))

    def _remaining_s(self) -> float:
        return self.drain.remaining_s or 0.0


def _servicers(parts: Parts) -> list[Service]:
    """Return the services of the contract that work; those that don't yet are not registered."""
    settings, store, tokens = parts.settings, parts.store, parts.tokens
    agents = Agents(
        store,
        limits=settings.limits,
        tokens=tokens,
        check_configuration=partial(
            check_agent, models=parts.models, check_filter=check_filter, outside=parts.outside
        ),
        on_delete=parts.sweeper.wake,
        clock=parts.clock,
    )
    sessions = Sessions(
        store,
        limits=settings.limits,
        tokens=tokens,
        make_fork=parts.forks.make,
        clock=parts.clock,
    )
    inputs = Inputs(
        store, parts.feeds, parts.readers, parts.engine, settings.limits, clock=parts.clock
    )
    queries = Queries(store, parts.feeds, parts.readers, tokens)
    artifacts = Artifacts(store, parts.blobs, tokens, clock=parts.clock)
    uploader = Uploader(
        store, parts.blobs, settings.limits, clock=parts.clock, max_s=settings.upload_max_s
    )
    api_keys = ApiKeys(
        store,
        tokens=parts.key_tokens,
        page_tokens=tokens,
        on_revoke=parts.keys.revoke,
        clock=parts.clock,
    )
    return [
        Service(
            _name(access_service_pb2, "AccessService"),
            access_service_pb2_grpc.add_AccessServiceServicer_to_server,
            AccessServicer(api_keys),
        ),
        Service(
            _name(agent_service_pb2, "AgentService"),
            agent_service_pb2_grpc.add_AgentServiceServicer_to_server,
            AgentServicer(agents),
        ),
        Service(
            _name(session_service_pb2, "SessionService"),
            session_service_pb2_grpc.add_SessionServiceServicer_to_server,
            SessionServicer(sessions, settings.limits),
        ),
        Service(
            _name(event_service_pb2, "EventService"),
            event_service_pb2_grpc.add_EventServiceServicer_to_server,
            EventServicer(inputs, queries, Alterations(store, clock=parts.clock)),
        ),
        Service(
            _name(turn_service_pb2, "TurnService"),
            turn_service_pb2_grpc.add_TurnServiceServicer_to_server,
            TurnServicer(inputs, queries),
        ),
        Service(
            _name(artifact_service_pb2, "ArtifactService"),
            artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server,
            ArtifactServicer(artifacts, uploader),
        ),
        Service(
            _name(corpus_service_pb2, "CorpusService"),
            corpus_service_pb2_grpc.add_CorpusServiceServicer_to_server,
            CorpusServicer(parts.corpora, parts.corpus_search),
        ),
    ]


def _sub_agents(settings: Settings, store: Store, feeds: Feeds, clock: Clock) -> AllSubAgents:
    return AllSubAgents(
        store,
        feeds,
        limits=settings.limits,
        settings=SubAgentSettings(
            max_depth=settings.sub_agent_max_depth,
            max_calls=settings.sub_agent_max_calls,
            max_s=settings.sub_agent_max_s,
        ),
        clock=clock,
    )


def _files_of(
    settings: Settings, store: Store, blobs: Blobs, clock: Clock
) -> Callable[[SessionRecord], StoredFiles]:
    def open_files(session: SessionRecord) -> StoredFiles:
        return StoredFiles(
            store,
            blobs,
            settings.limits,
            tenant=session.tenant,
            session_uid=session.uid,
            agent_key=session.agent_key,
            session_key=session.key,
            clock=clock,
        )

    return open_files


def _open_outside(settings: Settings) -> Outside:
    try:
        known = load_connections(settings.connections) if settings.connections else Connections()
        rules = parse_rules(settings.outgoing_allow)
    except BadConnections as error:
        raise ConfigurationMistake(f"connections: {error}") from None
    except BadAddress as error:
        raise ConfigurationMistake(f"outgoing_allow: {error}") from None
    return Outside.of(known, rules)


def _engine(
    settings: Settings,
    store: Store,
    feeds: Feeds,
    contexts: ContextLoader,
    replica: Replica,
    runner: AgentRunner,
) -> TurnEngine:
    return TurnEngine(
        store,
        feeds,
        run_agent=runner.run,
        load_context=contexts.load,
        settings=EngineSettings(
            lease_s=settings.lease_s,
            text_max_bytes=runner.limits.text_max_bytes,
            artifact_quota=artifact_quota(settings.limits),
            address=replica.address,
            max_turns=settings.process_max_turns,
        ),
        peers=replica.peers,
    )


def _open_certificates(settings: Settings) -> Certificates | None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    try:
        return Certificates(
            CertificateFiles(
                certificate=settings.tls_certificate,
                key=settings.tls_key,
                client_ca=settings.tls_client_ca,
            )
        )
    except BadCertificate as error:
        raise ConfigurationMistake(str(error)) from None


async def _make_default_tenant(store: Store, settings: Settings, clock: Clock) -> None:
    try:
        await make_default_tenant(store, settings.data_dir, clock=clock)
    except BadKeyFile as error:
        raise CannotStart(f"data_dir: {error}") from None
    except OSError as error:
        raise CannotStart(f"data_dir: {error.filename}: {error.strerror}") from None


async def _open_blobs(settings: Settings) -> Blobs:
    url = settings.artifacts_url
    options = CloudOptions(
        endpoint=settings.artifacts_endpoint,
        region=settings.artifacts_region,
        access_key_id=settings.artifacts_access_key_id,
        secret_access_key=settings.artifacts_secret_access_key.get_secret_value(),
    )
    try:
        blobs = await asyncio.to_thread(Blobs.open, url, options)
        await probe(url, options)
    except BadLocation as error:
        raise ConfigurationMistake(f"artifacts: {error}") from None
    except Unreachable as error:
        raise CannotStart(f"artifacts: {url}: {error}") from None
    except OSError as error:
        raise CannotStart(f"artifacts: {error.filename}: {error.strerror}") from None
    return blobs


def _companions(services: Sequence[Service], health: Health, drain: Drain) -> list[Service]:
    health_name = _name(health_pb2, "Health")
    reflection_name = _name(reflection_pb2, "ServerReflection")
    names = (*(service.name for service in services), health_name, reflection_name)
    return [
        Service(
            health_name,
            health_pb2_grpc.add_HealthServicer_to_server,
            HealthServicer(health, drain),
        ),
        Service(
            reflection_name,
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server,
            reflection.ReflectionServicer(names),
        ),
    ]


def _name(module: Any, service: str) -> str:
    return str(module.DESCRIPTOR.services_by_name[service].full_name)


def _grpc_options(settings: Settings) -> list[tuple[str, int]]:
    return [
        # Ours is half of it, and answers with details.
        ("grpc.max_receive_message_length", 2 * settings.request_max_bytes),
        ("grpc.max_send_message_length", -1),
        CHANNELZ_OPTION,
        ("grpc.so_reuseport", int(settings.reuse_port)),
        # A stream's window stays at 64 KiB until its request is read. With probes for bandwidth it
        # grows to megabytes, which clients fill before anybody has let them in.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.max_concurrent_streams", settings.connection_max_streams),
        # What has arrived and was not looked at yet: beyond the first, grpc drops calls at random,
        # and their clients hear CANCELLED with no word of why or when to come again.
        ("grpc.server.max_pending_requests", _PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", 2 * _PENDING_CALLS),
        ("grpc.max_connection_idle_ms", round(1_000 * settings.connection_idle_s)),
        # Of all headers of a call together: beyond the first, calls are refused at random, beyond
        # the second always.
        ("grpc.max_metadata_size", 16 * KIB),
        ("grpc.absolute_max_metadata_size", 32 * KIB),
        # Dead peers are found; clients that ping more often than every 10 s are sent away.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        # Who does not speak TLS or HTTP/2 within this time is not kept waiting for.
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_TIMEOUT_MS),
    ]


def _page_token_secret(settings: Settings) -> bytes:
    given = settings.page_token_secret.get_secret_value()
    if given:
        return given.encode()
    path = settings.data_dir / "page-token.key"
    try:
        if not path.exists():
            # Processes that start together must agree, so the file appears whole, and once.
            with NamedTemporaryFile(dir=path.parent) as new:
                new.write(secrets.token_bytes(_SECRET_BYTES))
                new.flush()
                with suppress(FileExistsError):
                    path.hardlink_to(new.name)
        secret = path.read_bytes()
    except OSError as error:
        raise CannotStart(f"data_dir: {path}: {error.strerror}") from None
    if len(secret) != _SECRET_BYTES:
        raise CannotStart(f"data_dir: {path} is damaged; remove it, a new one is made")
    return secret
