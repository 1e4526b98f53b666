"""The calls of the contract, each with its messages, and which of them may be repeated."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message

from hansard.v1 import (
    access_pb2,
    access_service_pb2,
    agent_pb2,
    agent_service_pb2,
    artifact_pb2,
    artifact_service_pb2,
    corpus_pb2,
    corpus_service_pb2,
    event_pb2,
    event_service_pb2,
    session_pb2,
    session_service_pb2,
    turn_pb2,
    turn_service_pb2,
)

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)


class Repeat(enum.Enum):
    """When a call whose outcome is not known may be made again."""

    SAFE = "it changes nothing, or the same thing to the same state"
    WITH_REQUEST_ID = "when it has a request_id: the server gives the first answer again"
    CARE = "only after a look at what became of it"


@dataclass(frozen=True, slots=True)
class Rpc(Generic[Request, Reply]):
    """A call: its messages and its place in the contract."""

    method: MethodDescriptor
    request_type: type[Request]
    reply_type: type[Reply]

    @property
    def path(self) -> str:
        """The path under which gRPC knows it."""
        return f"/{self.method.containing_service.full_name}/{self.method.name}"

    def on(self, channel: Any) -> Any:
        """Return what makes the call on a channel of grpc, or of grpc.aio."""
        kinds = {
            (False, False): channel.unary_unary,
            (False, True): channel.unary_stream,
            (True, False): channel.stream_unary,
        }
        kind = kinds[self.method.client_streaming, self.method.server_streaming]
        return kind(self.path, self.request_type.SerializeToString, self.reply_type.FromString)

    def may_repeat(self, request: Request) -> Repeat:
        """Return when this very request may be made again."""
        if self.method.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS:
            return Repeat.SAFE
        if self.method.full_name in _IDEMPOTENT:
            return Repeat.SAFE
        if "request_id" in self.method.input_type.fields_by_name and request.request_id:  # type: ignore[attr-defined]
            return Repeat.WITH_REQUEST_ID
        return Repeat.CARE


def _rpc(
    services: object, name: str, request_type: type[Request], reply_type: type[Reply]
) -> Rpc[Request, Reply]:
    service, _, method = name.partition("/")
    descriptor: MethodDescriptor = services.DESCRIPTOR.services_by_name[  # type: ignore[attr-defined]
        service
    ].methods_by_name[method]
    return Rpc(descriptor, request_type, reply_type)


# Hiding, showing, cancelling and revoking lead to a state, however often they are done, and the ids
# that they name are never used again: they can't meet another thing under the same name. One token
# too many harms nobody.
_IDEMPOTENT: Final = frozenset(
    {
        "hansard.v1.EventService.HideEvent",
        "hansard.v1.EventService.UnhideEvent",
        "hansard.v1.EventService.DeleteEvent",
        "hansard.v1.TurnService.CancelTurn",
        "hansard.v1.AccessService.RevokeApiKey",
        "hansard.v1.AccessService.IssueToken",
    }
)

_agents, _sessions, _events = agent_service_pb2, session_service_pb2, event_service_pb2
_turns, _artifacts, _access = turn_service_pb2, artifact_service_pb2, access_service_pb2
_corpora = corpus_service_pb2

CREATE_AGENT: Final = _rpc(
    _agents, "AgentService/CreateAgent", _agents.CreateAgentRequest, agent_pb2.Agent
)
GET_AGENT: Final = _rpc(_agents, "AgentService/GetAgent", _agents.GetAgentRequest, agent_pb2.Agent)
LIST_AGENTS: Final = _rpc(
    _agents, "AgentService/ListAgents", _agents.ListAgentsRequest, _agents.ListAgentsResponse
)
UPDATE_AGENT: Final = _rpc(
    _agents, "AgentService/UpdateAgent", _agents.UpdateAgentRequest, agent_pb2.Agent
)
DELETE_AGENT: Final = _rpc(
    _agents, "AgentService/DeleteAgent", _agents.DeleteAgentRequest, _agents.DeleteAgentResponse
)

CREATE_SESSION: Final = _rpc(
    _sessions,
    "SessionService/CreateSession",
    _sessions.CreateSessionRequest,
    session_pb2.Session,
)
GET_SESSION: Final = _rpc(
    _sessions, "SessionService/GetSession", _sessions.GetSessionRequest, session_pb2.Session
)
LIST_SESSIONS: Final = _rpc(
    _sessions,
    "SessionService/ListSessions",
    _sessions.ListSessionsRequest,
    _sessions.ListSessionsResponse,
)
UPDATE_SESSION: Final = _rpc(
    _sessions,
    "SessionService/UpdateSession",
    _sessions.UpdateSessionRequest,
    session_pb2.Session,
)
DELETE_SESSION: Final = _rpc(
    _sessions,
    "SessionService/DeleteSession",
    _sessions.DeleteSessionRequest,
    _sessions.DeleteSessionResponse,
)

SEND_EVENT: Final = _rpc(
    _events, "EventService/SendEvent", _events.SendEventRequest, _events.SendEventResponse
)
APPEND_EVENTS: Final = _rpc(
    _events,
    "EventService/AppendEvents",
    _events.AppendEventsRequest,
    _events.AppendEventsResponse,
)
GET_EVENT: Final = _rpc(_events, "EventService/GetEvent", _events.GetEventRequest, event_pb2.Event)
LIST_EVENTS: Final = _rpc(
    _events, "EventService/ListEvents", _events.ListEventsRequest, _events.ListEventsResponse
)
WATCH_EVENTS: Final = _rpc(
    _events, "EventService/WatchEvents", _events.WatchEventsRequest, _events.WatchEventsResponse
)
HIDE_EVENT: Final = _rpc(
    _events, "EventService/HideEvent", _events.HideEventRequest, event_pb2.Event
)
UNHIDE_EVENT: Final = _rpc(
    _events, "EventService/UnhideEvent", _events.UnhideEventRequest, event_pb2.Event
)
DELETE_EVENT: Final = _rpc(
    _events, "EventService/DeleteEvent", _events.DeleteEventRequest, _events.DeleteEventResponse
)

GET_TURN: Final = _rpc(_turns, "TurnService/GetTurn", _turns.GetTurnRequest, turn_pb2.Turn)
LIST_TURNS: Final = _rpc(
    _turns, "TurnService/ListTurns", _turns.ListTurnsRequest, _turns.ListTurnsResponse
)
CANCEL_TURN: Final = _rpc(_turns, "TurnService/CancelTurn", _turns.CancelTurnRequest, turn_pb2.Turn)

UPLOAD_ARTIFACTS: Final = _rpc(
    _artifacts,
    "ArtifactService/UploadArtifacts",
    _artifacts.UploadArtifactsRequest,
    event_pb2.Event,
)
GET_ARTIFACT: Final = _rpc(
    _artifacts, "ArtifactService/GetArtifact", _artifacts.GetArtifactRequest, artifact_pb2.Artifact
)
LIST_ARTIFACTS: Final = _rpc(
    _artifacts,
    "ArtifactService/ListArtifacts",
    _artifacts.ListArtifactsRequest,
    _artifacts.ListArtifactsResponse,
)
DOWNLOAD_ARTIFACT: Final = _rpc(
    _artifacts,
    "ArtifactService/DownloadArtifact",
    _artifacts.DownloadArtifactRequest,
    _artifacts.DownloadArtifactResponse,
)
DELETE_ARTIFACT: Final = _rpc(
    _artifacts,
    "ArtifactService/DeleteArtifact",
    _artifacts.DeleteArtifactRequest,
    _artifacts.DeleteArtifactResponse,
)

CREATE_API_KEY: Final = _rpc(
    _access, "AccessService/CreateApiKey", _access.CreateApiKeyRequest, access_pb2.ApiKey
)
LIST_API_KEYS: Final = _rpc(
    _access, "AccessService/ListApiKeys", _access.ListApiKeysRequest, _access.ListApiKeysResponse
)
REVOKE_API_KEY: Final = _rpc(
    _access, "AccessService/RevokeApiKey", _access.RevokeApiKeyRequest, access_pb2.ApiKey
)
ISSUE_TOKEN: Final = _rpc(
    _access, "AccessService/IssueToken", _access.IssueTokenRequest, _access.IssueTokenResponse
)

CREATE_CORPUS: Final = _rpc(
    _corpora, "CorpusService/CreateCorpus", _corpora.CreateCorpusRequest, corpus_pb2.Corpus
)
GET_CORPUS: Final = _rpc(
    _corpora, "CorpusService/GetCorpus", _corpora.GetCorpusRequest, corpus_pb2.Corpus
)
LIST_CORPORA: Final = _rpc(
    _corpora, "CorpusService/ListCorpora", _corpora.ListCorporaRequest, _corpora.ListCorporaResponse
)
DELETE_CORPUS: Final = _rpc(
    _corpora,
    "CorpusService/DeleteCorpus",
    _corpora.DeleteCorpusRequest,
    _corpora.DeleteCorpusResponse,
)
INDEX_DOCUMENT: Final = _rpc(
    _corpora, "CorpusService/IndexDocument", _corpora.IndexDocumentRequest, corpus_pb2.Document
)
LIST_DOCUMENTS: Final = _rpc(
    _corpora,
    "CorpusService/ListDocuments",
    _corpora.ListDocumentsRequest,
    _corpora.ListDocumentsResponse,
)
DELETE_DOCUMENT: Final = _rpc(
    _corpora,
    "CorpusService/DeleteDocument",
    _corpora.DeleteDocumentRequest,
    _corpora.DeleteDocumentResponse,
)
SEARCH_CORPORA: Final = _rpc(
    _corpora,
    "CorpusService/SearchCorpora",
    _corpora.SearchCorporaRequest,
    _corpora.SearchCorporaResponse,
)
