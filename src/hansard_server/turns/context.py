"""What a turn runs under: its agent and session, read when it starts."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf import struct_pb2

from hansard.v1 import agent_pb2, session_pb2, turn_pb2
from hansard_server.agents.api import CorporaAccess, SessionFiles, SubAgents, TurnContext
from hansard_server.domain.clock import Clock, now_us
from hansard_server.domain.records import AgentRecord, EventType, SessionRecord, TurnRecord
from hansard_server.repository.api import ReadTx, Store

MakeFiles = Callable[[SessionRecord], SessionFiles]
"""Returns the files of a session."""
MakeCorpora = Callable[[str], CorporaAccess]
"""Returns the corpora of a tenant."""
MakeSubAgents = Callable[[SessionRecord], SubAgents]
"""Returns the sub-agents of a session."""


class ContextLoader:
    """Reads agents and sessions for turns that start."""

    def __init__(
        self,
        store: Store,
        make_files: MakeFiles,
        make_corpora: MakeCorpora,
        make_sub_agents: MakeSubAgents,
        *,
        clock: Clock = now_us,
    ) -> None:
        """Read from `store`; the others open what else a session's agent may use."""
        self._store = store
        self._make_files = make_files
        self._make_corpora = make_corpora
        self._make_sub_agents = make_sub_agents
        self._clock = clock

    async def load(self, turn: TurnRecord) -> TurnContext:
        """Return what the turn runs under. Raises AgentNotFound, SessionNotFound."""

        def read(tx: ReadTx) -> tuple[AgentRecord, SessionRecord]:
            session = tx.get_session_by_uid(turn.tenant, turn.session_uid)
            return tx.get_agent_by_uid(turn.tenant, session.agent_uid), session

        agent, session = await self._store.read(read)
        return TurnContext(
            agent=agent_message(agent),
            session=session_message(session),
            files=self._make_files(session),
            corpora=self._make_corpora(session.tenant),
            now_us=self._clock(),
            turn_id=turn.id,
            compact=_compact(turn),
            sub_agents=self._make_sub_agents(session),
        )


def _compact(turn: TurnRecord) -> turn_pb2.Compact | None:
    if turn.input_type is not EventType.COMPACTION:
        return None
    return turn_pb2.TurnInput.FromString(turn.input).compact


def agent_message(record: AgentRecord) -> agent_pb2.Agent:
    """Return what instructions and models may know of an agent."""
    agent = agent_pb2.Agent.FromString(record.configuration)
    agent.key = record.key
    agent.uid = record.uid
    agent.name = record.name
    agent.description = record.description
    agent.metadata.CopyFrom(struct_pb2.Struct.FromString(record.metadata))
    return agent


def session_message(record: SessionRecord) -> session_pb2.Session:
    """Return what instructions and tools may know of a session."""
    return session_pb2.Session(
        agent_key=record.agent_key,
        key=record.key,
        uid=record.uid,
        name=record.name,
        description=record.description,
        metadata=struct_pb2.Struct.FromString(record.metadata),
    )
