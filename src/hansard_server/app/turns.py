"""What runs turns, made as the settings say: the agents, what they reach, the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hansard_server.agents.limits import AgentLimits
from hansard_server.agents.models.catalog import ModelCatalog
from hansard_server.agents.running import AgentRunner
from hansard_server.agents.tools.built_in import BUILT_IN_TOOLS
from hansard_server.agents.tools.catalog import ToolCatalog
from hansard_server.app.opening import open_outside
from hansard_server.artifacts.blobs import Blobs
from hansard_server.artifacts.files import StoredFiles
from hansard_server.artifacts.upload import artifact_quota
from hansard_server.config import Settings
from hansard_server.domain.clock import Clock
from hansard_server.domain.records import SessionRecord
from hansard_server.lifecycle import Closers
from hansard_server.replicas import Replica
from hansard_server.repository.api import Store
from hansard_server.turns.context import ContextLoader
from hansard_server.turns.engine import EngineSettings, TurnEngine
from hansard_server.turns.feeds import Feeds
from hansard_server.turns.forks import Forks
from hansard_server.turns.sub_agents import AllSubAgents, SubAgentSettings


async def open_runner(settings: Settings, closers: Closers) -> AgentRunner:
    """Return what runs agents, and have it closed at the end. Raises ConfigurationMistake."""
    models = ModelCatalog(provided=settings.models)
    closers.add("models", models.close)
    runner = AgentRunner(
        models=models,
        tools=ToolCatalog(*BUILT_IN_TOOLS.values()),
        outside=await asyncio.to_thread(open_outside, settings),
        limits=AgentLimits(
            event_max_bytes=settings.event_max_bytes,
            steps_per_turn=settings.turn_max_steps,
            step_max_s=settings.model_step_max_s,
            model_retries=settings.model_max_retries,
            action_timeout_s=settings.action_timeout_s,
            heartbeat_s=settings.runtime_heartbeat_s,
        ),
    )
    closers.add("agents", runner.close)
    return runner


async def open_forks(
    settings: Settings, store: Store, closers: Closers, clock: Clock, *, alone: bool
) -> Forks:
    """Return what makes forks; what an earlier process left of its own is gone then."""
    forks = Forks(store, settings.limits, lease_s=settings.lease_s, clock=clock)
    closers.add("forks", forks.close)
    if alone:
        await forks.recover()
    return forks


def make_sub_agents(settings: Settings, store: Store, feeds: Feeds, clock: Clock) -> AllSubAgents:
    """Return what has the agents of a session call others."""
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


def files_of(
    settings: Settings, store: Store, blobs: Blobs, clock: Clock
) -> Callable[[SessionRecord], StoredFiles]:
    """Return the function that opens the files of a session for its agent."""

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


def make_engine(
    settings: Settings,
    store: Store,
    feeds: Feeds,
    contexts: ContextLoader,
    replica: Replica,
    runner: AgentRunner,
) -> TurnEngine:
    """Return what runs the turns of this process."""
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
