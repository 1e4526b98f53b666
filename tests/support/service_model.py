"""A model of the whole service for one tenant: agents, sessions, files, and scripted turns.

Each method takes a request of the contract and says what comes of it, or raises Refused. Sessions
keep their records in a ModelSession.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message

from hansard.v1 import (
    agent_service_pb2,
    artifact_pb2,
    artifact_service_pb2,
    event_pb2,
    event_service_pb2,
    session_service_pb2,
)
from hansard_server.domain.records import EventType, TurnStatus
from tests.support.model import (
    ModelClaim,
    ModelEvent,
    ModelSession,
    ModelTurn,
    Refused,
    Sent,
)

QUEUE_MAX = 3
TEN_MINUTES = [{"pause_ms": 60_000}] * 10
SCRIPTS: dict[str, list[dict[str, Any]]] = {
    "answer": [
        {"thinking": {"content": "Hm — so.", "delta_count": 2}},
        {"usage": {"input_tokens": 3, "output_tokens": 5, "reasoning_tokens": 1}},
        {"agent_output": {"content": "An answer: ä, 中, 🙂.", "delta_count": 4}},
    ],
    "tools": [
        {"tool_call": {"name": "t", "input_json": '{"q": 1}', "output_json": "[1.0]"}},
        {"pause_ms": 0},
        {"tool_call": {"name": "u", "input_json": "{}", "output_json": "null", "error": True}},
        {"agent_output": {"content": "Done."}},
    ],
    "fails": [{"agent_output": {"content": "I begin"}}, {"fail": "no more"}],
    "holds": [{"thinking": {"content": "I wait."}}, *TEN_MINUTES],
    "holds_a_call": [
        {
            "tool_call": {
                "name": "slow",
                "input_json": "{}",
                "output_json": "{}",
                "pause_ms": 60_000,
            }
        },
        *TEN_MINUTES,
    ],
}
"""What agents do. A script with a pause of minutes holds its turn until somebody ends it."""

EndedAnswer = '{"error":"the turn ended before the tool had answered"}'


@dataclass(slots=True, eq=False)
class ModelAgent:
    """An agent; `reply` is what the service says of it, as far as callers set it."""

    key: str
    script: str
    enabled: bool = True
    name: str = "Agent"
    uid: str = ""
    etag: str = ""
    created: Any = None
    sessions: dict[str, ServedSession] = field(default_factory=dict)
    claims: dict[str, tuple[Any, Message]] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class ServedSession:
    """A session with its record and files."""

    agent: ModelAgent
    key: str
    name: str
    metadata: dict[str, Any]
    enabled: bool = True
    uid: str = ""
    etag: str = ""
    created: Any = None
    files: dict[str, tuple[artifact_pb2.Artifact, bytes]] = field(default_factory=dict)
    record: ModelSession = field(init=False)

    def __post_init__(self) -> None:
        """Make the record, whose turns run the agent's script."""
        self.record = ModelSession(self._run, queue_max=QUEUE_MAX)

    @property
    def disabled(self) -> str:
        """Why the session takes no input; empty: it does."""
        if not self.agent.enabled:
            return "AGENT_DISABLED"
        return "" if self.enabled else "SESSION_DISABLED"

    def _run(self, turn: ModelTurn) -> None:
        record = self.record
        for item in SCRIPTS[self.agent.script]:
            ((kind, value),) = item.items()
            match kind:
                case "thinking" | "agent_output":
                    record.step(turn, [text_event(kind, value["content"])])
                case "usage":
                    used = ("input_tokens", "output_tokens", "reasoning_tokens")
                    record.step(turn, usage=tuple(value[name] for name in used))
                case "tool_call":
                    call = tool_input(value["name"], value["input_json"])
                    record.step(turn, [call])
                    if value.get("pause_ms"):
                        return
                    record.step(turn, [tool_output(call, value)])
                case "fail":
                    record.finish(turn, TurnStatus.FAILED, error="AGENT_PROCESSING_FAILED")
                    return
                case _ if value:
                    return
        record.finish(turn, TurnStatus.COMPLETED)


class ServiceModel:
    """All agents of a tenant."""

    def __init__(self) -> None:
        """Begin with none."""
        self.agents: dict[str, ModelAgent] = {}
        self.claims: dict[str, tuple[Any, Message]] = {}

    def agent(self, key: str) -> ModelAgent:
        """Return the agent."""
        if key not in self.agents:
            raise Refused("AGENT_NOT_FOUND")
        return self.agents[key]

    def session(self, request: Any) -> ServedSession:
        """Return the session that a request names."""
        sessions = self.agent(request.agent_key).sessions
        session = sessions.get(request.session_key)
        uid = getattr(request, "session_uid", "")
        if session is None or (uid and uid != session.uid):
            raise Refused("SESSION_NOT_FOUND")
        return session

    # Agents and sessions --------------------------------------------------------------------------

    def create_agent(
        self, request: agent_service_pb2.CreateAgentRequest, script: str
    ) -> ModelAgent | Message:
        """Return the new agent, or what the request was answered before."""
        earlier = _earlier(self.claims, request)
        if earlier is not None:
            return earlier
        if request.key in self.agents:
            raise Refused("AGENT_ALREADY_EXISTS")
        agent = self.agents[request.key] = ModelAgent(request.key, script)
        return agent

    def create_session(
        self, request: session_service_pb2.CreateSessionRequest
    ) -> ServedSession | Message:
        """Return the new session, or what the request was answered before."""
        agent = self.agent(request.agent_key)
        earlier = _earlier(agent.claims, request)
        if earlier is not None:
            return earlier
        if request.key in agent.sessions:
            raise Refused("SESSION_ALREADY_EXISTS")
        session = agent.sessions[request.key] = ServedSession(
            agent, request.key, request.name, dict(request.metadata.items())
        )
        return session

    # Events ---------------------------------------------------------------------------------------

    def send(self, request: event_service_pb2.SendEventRequest) -> Sent | None:
        """Return what the input came to; None: there was nothing to interrupt."""
        session = self.session(request)
        record = session.record
        claim = _claim(request, "deltas", "detach", "session_uid")
        if request.HasField("interrupt"):
            found = record.find_interrupted(request.interrupt.turn_id, claim)
            if isinstance(found, ModelTurn):
                return Sent(found, record.interrupt(found, "the user interrupted", claim))
            return found
        payload = event_pb2.Event(input_message=request.input_message)
        fault = _fill(session, payload)
        mode = event_service_pb2.WhenBusy.Name(request.when_busy).removeprefix("WHEN_BUSY_")
        return record.accept(
            ModelEvent(EventType.INPUT_MESSAGE, payload),
            when_busy=mode,
            claim=claim,
            expected=request.expected_last_sequence
            if request.HasField("expected_last_sequence")
            else None,
            fault=fault,
            enabled=session.disabled,
        )

    def append(self, request: event_service_pb2.AppendEventsRequest) -> list[ModelEvent]:
        """Return where each draft stands."""
        session = self.session(request)
        faults: list[str] = []
        drafts = []
        for draft in request.events:
            payload = event_pb2.Event()
            name = str(draft.WhichOneof("payload"))
            getattr(payload, name).CopyFrom(getattr(draft, name))
            faults.append(_fill(session, payload))
            call = getattr(getattr(draft, name), "tool_call_id", "") or None
            drafts.append(ModelEvent(kind_of(name), payload, draft.id, call))
        return session.record.append(
            drafts,
            claim=_claim(request, "session_uid"),
            expected=request.expected_last_sequence
            if request.HasField("expected_last_sequence")
            else None,
            fault=next(filter(None, faults), ""),
            enabled=session.disabled,
        )

    def upload(
        self,
        start: artifact_service_pb2.UploadStart,
        headers: Sequence[artifact_service_pb2.UploadHeader],
    ) -> tuple[ModelEvent, bool]:
        """Return the event, and whether it is a new one."""
        session = self.session(start)
        before = len(session.record.events)
        content = tuple(header.SerializeToString(deterministic=True) for header in headers)
        (event,) = session.record.append(
            [ModelEvent(EventType.ARTIFACT_UPLOAD, None)],
            scope="UPLOAD",
            claim=ModelClaim(start.request_id, content) if start.request_id else None,
            while_busy=True,
            enabled=session.disabled,
        )
        return event, event.sequence > before

    def file(self, request: Any) -> tuple[artifact_pb2.Artifact, bytes]:
        """Return the file that a request names."""
        files = self.session(request).files
        if request.artifact_id not in files:
            raise Refused("ARTIFACT_NOT_FOUND")
        return files[request.artifact_id]


def text_event(kind: str, content: str) -> ModelEvent:
    """Return the event of a text that a turn has told."""
    event = event_pb2.Event()
    getattr(event, kind).content = content
    return ModelEvent(kind_of(kind), event)


def tool_input(name: str, input_json: str) -> ModelEvent:
    """Return the event of a call; its id is the service's to make."""
    call = event_pb2.ToolInput(
        tool_configuration_name=name, tool_name=name, tool_input_json=input_json
    )
    return ModelEvent(EventType.TOOL_INPUT, event_pb2.Event(tool_input=call), call=object())


def tool_output(call: ModelEvent, script: dict[str, Any]) -> ModelEvent:
    """Return the answer that the script has for the call."""
    failed = bool(script.get("error"))
    outcome = event_pb2.TOOL_OUTCOME_FAILED if failed else event_pb2.TOOL_OUTCOME_COMPLETED
    answer = event_pb2.ToolOutput(
        tool_configuration_name=script["name"],
        tool_name=script["name"],
        tool_output_json=script["output_json"],
        error=failed,
        outcome=outcome,
    )
    return ModelEvent(EventType.TOOL_OUTPUT, event_pb2.Event(tool_output=answer), call=call.call)


def expected_payload(event: ModelEvent) -> event_pb2.Event:
    """Return the payload of a model's event as a message; minted call ids are left out."""
    if event.kind is EventType.SESSION_INTERRUPTED:
        return event_pb2.Event(session_interrupted={"reason": event.payload})
    if event.payload is None and event.turn is not None:
        call = next(e for e in event.turn.events if e.call is event.call)
        return event_pb2.Event(
            tool_output=event_pb2.ToolOutput(
                tool_configuration_name=call.payload.tool_input.tool_configuration_name,
                tool_name=call.payload.tool_input.tool_name,
                tool_output_json=EndedAnswer,
                error=True,
                outcome=event_pb2.TOOL_OUTCOME_INTERRUPTED,
            )
        )
    payload = event.payload
    assert isinstance(payload, event_pb2.Event)
    return payload


def kind_of(name: str) -> EventType:
    """Return the type of a payload's field."""
    return EventType(event_pb2.Event.DESCRIPTOR.fields_by_name[name].number)


def _content(request: Message, *without: str) -> bytes:
    content = type(request)()
    content.CopyFrom(request)
    for name in ("request_id", *without):
        content.ClearField(name)
    return content.SerializeToString(deterministic=True)


def _claim(request: Any, *without: str) -> ModelClaim | None:
    if not request.request_id:
        return None
    return ModelClaim(request.request_id, _content(request, *without))


def _earlier(claims: dict[str, tuple[Any, Message]], request: Any) -> Message | None:
    if request.request_id not in claims:
        return None
    content, answer = claims[request.request_id]
    if content != _content(request):
        raise Refused("REQUEST_ID_REUSED")
    return answer


def keep_claim(claims: dict[str, tuple[Any, Message]], request: Any, answer: Message) -> None:
    """Keep the answer of a request that has an id."""
    if request.request_id:
        claims[request.request_id] = (_content(request), answer)


def _fill(session: ServedSession, payload: event_pb2.Event) -> str:
    """Write into references what the files are; return why that can't be done, empty if it can."""
    for reference in _references(payload):
        if reference.artifact_id not in session.files:
            return "ARTIFACT_NOT_FOUND"
        artifact, _ = session.files[reference.artifact_id]
        reference.filename = artifact.filename
        reference.mime_type = artifact.mime_type
        reference.size_bytes = artifact.size_bytes
    return ""


def _references(payload: event_pb2.Event) -> Iterable[artifact_pb2.ArtifactReference]:
    for part in payload.input_message.messages:
        if part.HasField("artifact"):
            yield part.artifact
    yield from payload.artifact_upload.artifacts
