"""What a turn runs under: its agent and session, read when it starts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

from google.protobuf import struct_pb2

from hansard.v1 import agent_pb2, session_pb2, turn_pb2
from hansard_server.agents.api import CorporaAccess, Json, SessionFiles, SubAgents, TurnContext
from hansard_server.agents.json_text import struct_to_json
from hansard_server.domain.clock import Clock, now_us
from hansard_server.domain.records import AgentRecord, EventType, SessionRecord, TurnRecord
from hansard_server.domain.values import dataclass
from hansard_server.repository.api import ReadTx, Store

MakeFiles = Callable[[SessionRecord], SessionFiles]
"""Returns the files of a session."""
MakeCorpora = Callable[[str], CorporaAccess]
"""Returns the corpora of a tenant."""
MakeSubAgents = Callable[[SessionRecord], SubAgents]
"""Returns the sub-agents of a session."""

_KEPT_MAX_AGENTS = 256
_KEPT_MAX_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class LoadedAgent:
    """An agent as turns have it, made of its row; all turns share it, so nobody changes it."""

    record: AgentRecord
    message: agent_pb2.Agent
    parameters: Mapping[str, Json]

    @property
    def size_bytes(self) -> int:
        """Return about how much of it is kept."""
        return len(self.record.configuration) + len(self.record.metadata)


class LoadedAgents:
    """The agents that turns had lately, so that each need not parse its own."""

    def __init__(
        self, *, max_agents: int = _KEPT_MAX_AGENTS, max_bytes: int = _KEPT_MAX_BYTES
    ) -> None:
        """Keep so many at most."""
        self._max_agents = max_agents
        self._max_bytes = max_bytes
        self._size_bytes = 0
        self._agents: OrderedDict[str, LoadedAgent] = OrderedDict()

    def get(self, record: AgentRecord) -> LoadedAgent:
        """Return what `load_agent` makes of the record, for equal records the same object."""
        known = self._agents.get(record.uid)
        if known is not None and known.record == record:
            self._agents.move_to_end(record.uid)
            return known
        if known is not None:
            self._forget(record.uid)
        loaded = self._agents[record.uid] = load_agent(record)
        self._size_bytes += loaded.size_bytes
        while len(self._agents) > self._max_agents or self._size_bytes > self._max_bytes:
            self._forget(next(iter(self._agents)))
        return loaded

    def __len__(self) -> int:
        """Return how many are kept."""
        return len(self._agents)

    def _forget(self, uid: str) -> None:
        self._size_bytes -= self._agents.pop(uid).size_bytes


def load_agent(record: AgentRecord) -> LoadedAgent:
    """Return the agent of a row."""
    message = agent_message(record)
    return LoadedAgent(record, message, struct_to_json(message.model.parameters))


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
        self._agents = LoadedAgents()

    async def load(self, turn: TurnRecord) -> TurnContext:
        """Return what the turn runs under. Raises AgentNotFound, SessionNotFound."""

        def read(tx: ReadTx) -> tuple[AgentRecord, SessionRecord]:
            session = tx.get_session_by_uid(turn.tenant, turn.session_uid)
            return tx.get_agent_by_uid(turn.tenant, session.agent_uid), session

        record, session = await self._store.read(read)
        agent = self._agents.get(record)
        return TurnContext(
            agent=agent.message,
            parameters=agent.parameters,
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
