"""Calls with keys: every call of the contract as a request about one place, and how it went."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from hansard.v1 import (
    access_pb2,
    access_service_pb2,
    agent_pb2,
    agent_service_pb2,
    artifact_service_pb2,
    corpus_pb2,
    corpus_service_pb2,
    event_pb2,
    event_service_pb2,
    session_pb2,
    session_service_pb2,
    turn_service_pb2,
)
from hansard_server.access.rules import RULES
from tests.support.server import DETAILS_KEY
from tests.support.talk import model

Metadata = Sequence[tuple[str, str]]
Role = access_pb2.Role
ROLES = {
    "agent_administrator": Role.ROLE_AGENT_ADMINISTRATOR,
    "agent_developer": Role.ROLE_AGENT_DEVELOPER,
    "agent_viewer": Role.ROLE_AGENT_VIEWER,
    "agent_user": Role.ROLE_AGENT_USER,
}
CALLS = sorted(method for method in RULES if method.startswith("/hansard.v1."))
_SERVICES = (
    *(access_service_pb2, agent_service_pb2, artifact_service_pb2, event_service_pb2),
    *(session_service_pb2, turn_service_pb2, corpus_service_pb2),
)


@dataclass(frozen=True)
class Place:
    """Names of what a call may be about: all of them are there, or none."""

    agent_key: str
    session_key: str = "s"
    event_id: str = "aev_none"
    turn_id: str = "trn_none"
    artifact_id: str = "art_none"
    api_key_id: str = "key_none"
    corpus_key: str = "corpus_none"
    document_id: str = "doc_none"

    @property
    def session(self) -> dict[str, str]:
        return {"agent_key": self.agent_key, "session_key": self.session_key}


@dataclass(frozen=True)
class Outcome:
    """How a call went: OK with its first reply, or the reason and all that the error says."""

    reason: str
    code: grpc.StatusCode
    words: str = ""
    details: bytes = b""
    reply: Any = None


def _event(place: Place) -> dict[str, str]:
    return {**place.session, "event_id": place.event_id}


def _grant(place: Place) -> access_pb2.RoleGrant:
    return access_pb2.RoleGrant(role=Role.ROLE_AGENT_VIEWER, agent_key=place.agent_key)


def _text(text: str) -> event_pb2.InputMessage:
    part = event_pb2.MessagePart(text=event_pb2.TextPart(content=text))
    return event_pb2.InputMessage(messages=[part])


def _upload(place: Place) -> list[Message]:
    part = artifact_service_pb2.UploadArtifactsRequest
    return [
        part(start=artifact_service_pb2.UploadStart(**place.session)),
        part(header=artifact_service_pb2.UploadHeader(filename="a.txt")),
        part(chunk=b"content"),
    ]


REQUESTS: dict[str, Callable[[Place], Message | list[Message]]] = {
    "AccessService/CreateApiKey": lambda at: access_service_pb2.CreateApiKeyRequest(
        name="New", roles=[_grant(at)]
    ),
    "AccessService/ListApiKeys": lambda _: access_service_pb2.ListApiKeysRequest(),
    "AccessService/RevokeApiKey": lambda at: access_service_pb2.RevokeApiKeyRequest(
        api_key_id=at.api_key_id
    ),
    "AccessService/IssueToken": lambda _: access_service_pb2.IssueTokenRequest(),
    "AgentService/CreateAgent": lambda _: agent_service_pb2.CreateAgentRequest(
        name="New", model=agent_pb2.Model(name="hansard/extractive")
    ),
    "AgentService/GetAgent": lambda at: agent_service_pb2.GetAgentRequest(agent_key=at.agent_key),
    "AgentService/ListAgents": lambda _: agent_service_pb2.ListAgentsRequest(),
    "AgentService/UpdateAgent": lambda at: agent_service_pb2.UpdateAgentRequest(
        agent=agent_pb2.Agent(key=at.agent_key, name="Changed"), update_mask={"paths": ["name"]}
    ),
    "AgentService/DeleteAgent": lambda at: agent_service_pb2.DeleteAgentRequest(
        agent_key=at.agent_key
    ),
    "ArtifactService/UploadArtifacts": _upload,
    "ArtifactService/GetArtifact": lambda at: artifact_service_pb2.GetArtifactRequest(
        **at.session, artifact_id=at.artifact_id
    ),
    "ArtifactService/ListArtifacts": lambda at: artifact_service_pb2.ListArtifactsRequest(
        **at.session
    ),
    "ArtifactService/DownloadArtifact": lambda at: artifact_service_pb2.DownloadArtifactRequest(
        **at.session, artifact_id=at.artifact_id
    ),
    "ArtifactService/DeleteArtifact": lambda at: artifact_service_pb2.DeleteArtifactRequest(
        **at.session, artifact_id=at.artifact_id
    ),
    "EventService/SendEvent": lambda at: event_service_pb2.SendEventRequest(
        **at.session, input_message=_text("Hello?")
    ),
    "EventService/AppendEvents": lambda at: event_service_pb2.AppendEventsRequest(
        **at.session, events=[event_pb2.EventDraft(input_message=_text("Imported"))]
    ),
    "EventService/GetEvent": lambda at: event_service_pb2.GetEventRequest(**_event(at)),
    "EventService/ListEvents": lambda at: event_service_pb2.ListEventsRequest(**at.session),
    "EventService/WatchEvents": lambda at: event_service_pb2.WatchEventsRequest(**at.session),
    "EventService/HideEvent": lambda at: event_service_pb2.HideEventRequest(**_event(at)),
    "EventService/UnhideEvent": lambda at: event_service_pb2.UnhideEventRequest(**_event(at)),
    "EventService/DeleteEvent": lambda at: event_service_pb2.DeleteEventRequest(**_event(at)),
    "SessionService/CreateSession": lambda at: session_service_pb2.CreateSessionRequest(
        agent_key=at.agent_key, name="New"
    ),
    "SessionService/GetSession": lambda at: session_service_pb2.GetSessionRequest(**at.session),
    "SessionService/ListSessions": lambda at: session_service_pb2.ListSessionsRequest(
        agent_key=at.agent_key
    ),
    "SessionService/UpdateSession": lambda at: session_service_pb2.UpdateSessionRequest(
        session=session_pb2.Session(agent_key=at.agent_key, key=at.session_key, name="Changed"),
        update_mask={"paths": ["name"]},
    ),
    "SessionService/DeleteSession": lambda at: session_service_pb2.DeleteSessionRequest(
        **at.session
    ),
    "CorpusService/CreateCorpus": lambda _: corpus_service_pb2.CreateCorpusRequest(name="New"),
    "CorpusService/GetCorpus": lambda at: corpus_service_pb2.GetCorpusRequest(
        corpus_key=at.corpus_key
    ),
    "CorpusService/ListCorpora": lambda _: corpus_service_pb2.ListCorporaRequest(),
    "CorpusService/DeleteCorpus": lambda at: corpus_service_pb2.DeleteCorpusRequest(
        corpus_key=at.corpus_key
    ),
    "CorpusService/IndexDocument": lambda at: corpus_service_pb2.IndexDocumentRequest(
        corpus_key=at.corpus_key, text="Words of a document."
    ),
    "CorpusService/ListDocuments": lambda at: corpus_service_pb2.ListDocumentsRequest(
        corpus_key=at.corpus_key
    ),
    "CorpusService/DeleteDocument": lambda at: corpus_service_pb2.DeleteDocumentRequest(
        corpus_key=at.corpus_key, document_id=at.document_id
    ),
    "CorpusService/SearchCorpora": lambda at: corpus_service_pb2.SearchCorporaRequest(
        query="words", corpora=[corpus_pb2.CorpusSearch(corpus_key=at.corpus_key)]
    ),
    "TurnService/GetTurn": lambda at: turn_service_pb2.GetTurnRequest(
        **at.session, turn_id=at.turn_id
    ),
    "TurnService/ListTurns": lambda at: turn_service_pb2.ListTurnsRequest(**at.session),
    "TurnService/CancelTurn": lambda at: turn_service_pb2.CancelTurnRequest(
        **at.session, turn_id=at.turn_id
    ),
}
"""A request of every call, about a place. Those that create name no key, so that they can be
repeated; that every call stands here is what `test_every_call_has_a_request` sees to.
"""


def request_of(call: str, place: Place) -> Message | list[Message]:
    """Return the call's request about the place."""
    return REQUESTS[call.removeprefix("/hansard.v1.")](place)


async def make(
    channel: grpc.aio.Channel,
    call: str,
    request: Message | list[Message],
    metadata: Metadata = (),
) -> Outcome:
    """Make a call, `/<service>/<method>`, as far as its first reply."""
    requests = request if isinstance(request, list) else [request]
    method = method_of(call)
    arity = "stream" if method.client_streaming else "unary"
    reply_arity = "stream" if method.server_streaming else "unary"
    stub: Any = getattr(channel, f"{arity}_{reply_arity}")(
        call, type(requests[0]).SerializeToString
    )
    argument = _stream(requests) if method.client_streaming else requests[0]
    made = stub(argument, metadata=tuple(metadata), timeout=30)
    try:
        reply = await (made.read() if method.server_streaming else made)
        if reply is grpc.aio.EOF:
            raise AssertionError(f"{call} ended without a word")
    except grpc.aio.AioRpcError as error:
        return _refusal(error)
    finally:
        made.cancel()
    return Outcome("OK", grpc.StatusCode.OK, reply=reply)


async def make_about(
    channel: grpc.aio.Channel, call: str, place: Place, metadata: Metadata
) -> Outcome:
    """Make a call about a place."""
    return await make(channel, call, request_of(call, place), metadata)


def with_key(secret: str) -> Metadata:
    """Return the metadata of a call with this key or token."""
    return (("authorization", f"Bearer {secret}"),)


def read_admin_key(folder: Path) -> str:
    """Return the key that the first start left in the data folder."""
    return (folder / "admin.key").read_text().strip()


async def make_key(
    channel: grpc.aio.Channel, admin: Metadata, *grants: tuple[int, str], **fields: Any
) -> access_pb2.ApiKey:
    """Create a key with these roles, (role, agent key) each."""
    roles = [
        access_pb2.RoleGrant(role=Role.ValueType(role), agent_key=agent) for role, agent in grants
    ]
    request = access_service_pb2.CreateApiKeyRequest(name="Key", roles=roles, **fields)
    made = await make(channel, "/hansard.v1.AccessService/CreateApiKey", request, admin)
    assert made.reason == "OK", made
    return access_pb2.ApiKey.FromString(made.reply)


async def make_agent(channel: grpc.aio.Channel, admin: Metadata, key: str) -> None:
    """Create an agent whose turns say one thing."""
    said = [{"agent_output": {"content": "Yes."}}]
    request = agent_service_pb2.CreateAgentRequest(
        key=key,
        name=f"Agent {key}",
        description="Says yes.",
        model=model(said),
        metadata={"secret": "of the agent"},
    )
    made = await make(channel, "/hansard.v1.AgentService/CreateAgent", request, admin)
    assert made.reason == "OK", made


async def make_place(
    channel: grpc.aio.Channel, admin: Metadata, agent_key: str, session_key: str
) -> Place:
    """Create a session of the agent with an event, a turn that has ended, an artifact; a key with
    a role on the agent; and a corpus with a document.
    """
    place = Place(agent_key, session_key, corpus_key=f"corpus_{agent_key}_{session_key}")
    created = session_service_pb2.CreateSessionRequest(
        agent_key=agent_key, key=session_key, name="Session", request_id=f"place-{session_key}"
    )
    made = await make(channel, "/hansard.v1.SessionService/CreateSession", created, admin)
    assert made.reason == "OK", made
    event = await make_about(channel, "/hansard.v1.ArtifactService/UploadArtifacts", place, admin)
    uploaded = event_pb2.Event.FromString(event.reply)
    key = await make_key(channel, admin, (Role.ROLE_AGENT_VIEWER, agent_key))
    corpus = corpus_service_pb2.CreateCorpusRequest(key=place.corpus_key, name="Corpus")
    made = await make(channel, "/hansard.v1.CorpusService/CreateCorpus", corpus, admin)
    assert made.reason == "OK", made
    indexed = await make_about(channel, "/hansard.v1.CorpusService/IndexDocument", place, admin)
    return replace(
        place,
        document_id=corpus_pb2.Document.FromString(indexed.reply).document_id,
        event_id=uploaded.id,
        turn_id=await _run_turn(channel, admin, place),
        artifact_id=uploaded.artifact_upload.artifacts[0].artifact_id,
        api_key_id=key.id,
    )


async def _run_turn(channel: grpc.aio.Channel, admin: Metadata, place: Place) -> str:
    send = channel.unary_stream(
        "/hansard.v1.EventService/SendEvent",
        event_service_pb2.SendEventRequest.SerializeToString,
        event_service_pb2.SendEventResponse.FromString,
    )
    request = request_of("/hansard.v1.EventService/SendEvent", place)
    turn_id = ""
    async with asyncio.timeout(60):
        async for response in send(request, metadata=tuple(admin)):
            turn_id = response.turn_id
    assert turn_id
    return turn_id


def method_of(call: str) -> Any:
    """Return the descriptor of `/<service>/<method>`."""
    _, service, name = call.split("/")
    for module in _SERVICES:
        for descriptor in module.DESCRIPTOR.services_by_name.values():
            if descriptor.full_name == service:
                return descriptor.methods_by_name[name]
    raise AssertionError(f"there is no call {call}")


async def _stream(requests: list[Message]) -> AsyncIterator[Message]:
    for request in requests:
        yield request


def _refusal(error: grpc.aio.AioRpcError) -> Outcome:
    details = b"".join(
        value
        for key, value in error.trailing_metadata() or ()
        if key == DETAILS_KEY and isinstance(value, bytes)
    )
    info = error_details_pb2.ErrorInfo()
    for detail in status_pb2.Status.FromString(details).details:
        detail.Unpack(info)
    return Outcome(info.reason, error.code(), error.details() or "", details)
