"""The services of the contract: which of the parts answers which of them.

To serve one more: make its servicer in `make_services` and return it there with its generated
`add_…_to_server` function; health and reflection follow from that list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

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
from hansard_server.access.api_keys import ApiKeys
from hansard_server.access.credentials import Tokens
from hansard_server.access.key_cache import KeyCache
from hansard_server.agents.configuration import check_agent
from hansard_server.agents.models.catalog import ModelCatalog
from hansard_server.agents.outside import Outside
from hansard_server.artifacts.blobs import Blobs
from hansard_server.artifacts.read import Artifacts
from hansard_server.artifacts.upload import Uploader
from hansard_server.config import Settings
from hansard_server.corpora.corpora import Corpora
from hansard_server.corpora.filters import check_filter
from hansard_server.corpora.search import CorpusSearch
from hansard_server.domain.clock import Clock
from hansard_server.domain.values import dataclass
from hansard_server.lifecycle import Drain
from hansard_server.repository.api import Store
from hansard_server.resources.agents import Agents
from hansard_server.resources.paging import PageTokens
from hansard_server.resources.sessions import Sessions
from hansard_server.resources.sweeper import Sweeper
from hansard_server.servicers.access import AccessServicer
from hansard_server.servicers.agents import AgentServicer
from hansard_server.servicers.artifacts import ArtifactServicer
from hansard_server.servicers.corpora import CorpusServicer
from hansard_server.servicers.events import EventServicer
from hansard_server.servicers.health import Health, HealthServicer
from hansard_server.servicers.sessions import SessionServicer
from hansard_server.servicers.turns import TurnServicer
from hansard_server.turns.alterations import Alterations
from hansard_server.turns.engine import TurnEngine
from hansard_server.turns.feeds import Feeds
from hansard_server.turns.forks import Forks
from hansard_server.turns.inputs import Inputs
from hansard_server.turns.queries import Queries
from hansard_server.turns.readers import Readers


@dataclass(frozen=True, slots=True)
class Service:
    """A service, the servicer that answers it, and the generated function that registers it."""

    name: str
    register: Callable[[Any, Any], None]
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


def make_services(parts: Parts) -> list[Service]:
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


def make_companions(services: Sequence[Service], health: Health, drain: Drain) -> list[Service]:
    """Return what every gRPC server has beside its services: health and reflection."""
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
