"""Which call needs what: one line for each call of the contract. A call without a line is refused.

For every new call: a line here, in the words of its comment in the contract.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from enum import Enum
from operator import attrgetter
from typing import Any

from hansard_server.domain.access import Caller, Role
from hansard_server.domain.values import dataclass


class Need(Enum):
    """What a call needs."""

    NOTHING = "nothing"
    """Not even a key."""
    KEY = "a key"
    """A key, whatever its roles; the answer shows no more than they let it see."""
    ROLE_ON_ANY = "a role on some agent"
    """The call itself looks which agents it is about."""
    ROLE_ON_AGENT = "a role on the agent"
    ADMINISTRATOR = "administrator"


@dataclass(frozen=True, slots=True)
class AgentOf:
    """Where a request names an agent, and the roles on it that will do. No name, no need."""

    path: str
    roles: frozenset[Role]
    read: Callable[[Any], str] = field(compare=False)


@dataclass(frozen=True, slots=True)
class Rule:
    """What one call needs. An administrator may make every call."""

    need: Need
    roles: frozenset[Role] = frozenset()
    agents: tuple[AgentOf, ...] = ()

    def refused_agent(self, caller: Caller, request: Any) -> tuple[str, Role | None] | None:
        """Return the first agent of the request that the caller's role is not enough for, and that
        role; None when the caller may make the call.
        """
        if caller.administrator:
            return None
        for agent in self.agents:
            agent_key = agent.read(request)
            # No agent has an empty key: that names none, as most messages of an upload do.
            if agent_key:
                role = caller.role_on(agent_key)
                if role not in agent.roles:
                    return agent_key, role
        return None


MANAGERS = frozenset({Role.AGENT_ADMINISTRATOR})
DEVELOPERS = MANAGERS | {Role.AGENT_DEVELOPER}
READERS = DEVELOPERS | {Role.AGENT_VIEWER}
TALKERS = DEVELOPERS | {Role.AGENT_USER}
ALL_ROLES = READERS | TALKERS

_OPEN = Rule(Need.NOTHING)
_ANY_KEY = Rule(Need.KEY)
_ADMINISTRATORS = Rule(Need.ADMINISTRATOR)
_KEY_MANAGERS = Rule(Need.ROLE_ON_ANY, MANAGERS)
# Not users: they find by their agent what its filters let them find, and nothing else.
_CORPUS_READERS = Rule(Need.ROLE_ON_ANY, READERS)


def _on(
    roles: frozenset[Role], path: str = "agent_key", *more: tuple[str, frozenset[Role]]
) -> Rule:
    agents = tuple(AgentOf(path, roles, attrgetter(path)) for path, roles in ((path, roles), *more))
    return Rule(Need.ROLE_ON_AGENT, roles, agents)


RULES: dict[str, Rule] = {
    "/hansard.v1.AccessService/CreateApiKey": _KEY_MANAGERS,
    "/hansard.v1.AccessService/ListApiKeys": _KEY_MANAGERS,
    "/hansard.v1.AccessService/RevokeApiKey": _KEY_MANAGERS,
    "/hansard.v1.AccessService/IssueToken": _ANY_KEY,
    "/hansard.v1.AgentService/CreateAgent": _ADMINISTRATORS,
    "/hansard.v1.AgentService/GetAgent": _on(ALL_ROLES),
    "/hansard.v1.AgentService/ListAgents": _ANY_KEY,
    "/hansard.v1.AgentService/UpdateAgent": _on(DEVELOPERS, "agent.key"),
    "/hansard.v1.AgentService/DeleteAgent": _on(MANAGERS),
    "/hansard.v1.SessionService/CreateSession": _on(
        TALKERS, "agent_key", ("from_session.agent_key", ALL_ROLES)
    ),
    "/hansard.v1.SessionService/GetSession": _on(ALL_ROLES),
    "/hansard.v1.SessionService/ListSessions": _on(ALL_ROLES),
    "/hansard.v1.SessionService/UpdateSession": _on(DEVELOPERS, "session.agent_key"),
    "/hansard.v1.SessionService/DeleteSession": _on(DEVELOPERS),
    "/hansard.v1.EventService/SendEvent": _on(TALKERS),
    "/hansard.v1.EventService/AppendEvents": _on(DEVELOPERS),
    "/hansard.v1.EventService/GetEvent": _on(ALL_ROLES),
    "/hansard.v1.EventService/ListEvents": _on(ALL_ROLES),
    "/hansard.v1.EventService/WatchEvents": _on(ALL_ROLES),
    "/hansard.v1.EventService/HideEvent": _on(DEVELOPERS),
    "/hansard.v1.EventService/UnhideEvent": _on(DEVELOPERS),
    "/hansard.v1.EventService/DeleteEvent": _on(DEVELOPERS),
    "/hansard.v1.TurnService/GetTurn": _on(ALL_ROLES),
    "/hansard.v1.TurnService/ListTurns": _on(ALL_ROLES),
    "/hansard.v1.TurnService/CancelTurn": _on(TALKERS),
    "/hansard.v1.ArtifactService/UploadArtifacts": _on(TALKERS, "start.agent_key"),
    "/hansard.v1.ArtifactService/GetArtifact": _on(ALL_ROLES),
    "/hansard.v1.ArtifactService/ListArtifacts": _on(ALL_ROLES),
    "/hansard.v1.ArtifactService/DownloadArtifact": _on(ALL_ROLES),
    "/hansard.v1.ArtifactService/DeleteArtifact": _on(DEVELOPERS),
    "/hansard.v1.CorpusService/CreateCorpus": _ADMINISTRATORS,
    "/hansard.v1.CorpusService/GetCorpus": _CORPUS_READERS,
    "/hansard.v1.CorpusService/ListCorpora": _CORPUS_READERS,
    "/hansard.v1.CorpusService/DeleteCorpus": _ADMINISTRATORS,
    "/hansard.v1.CorpusService/IndexDocument": _ADMINISTRATORS,
    "/hansard.v1.CorpusService/ListDocuments": _CORPUS_READERS,
    "/hansard.v1.CorpusService/DeleteDocument": _ADMINISTRATORS,
    "/hansard.v1.CorpusService/SearchCorpora": _CORPUS_READERS,
    # Probes have no keys. What reflection shows is public, but it costs work.
    "/grpc.health.v1.Health/Check": _OPEN,
    "/grpc.health.v1.Health/List": _OPEN,
    "/grpc.health.v1.Health/Watch": _OPEN,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _ANY_KEY,
}
