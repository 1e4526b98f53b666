"""A turn in memory: what the agent loop needs, without a store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import json_format

from hansard.v1 import (
    agent_pb2,
    artifact_pb2,
    corpus_pb2,
    corpus_service_pb2,
    event_pb2,
    session_pb2,
    turn_pb2,
)
from hansard_server.agents.api import Json, MadeFile, Reach, Recent, TextKind, TurnContext
from hansard_server.agents.limits import AgentLimits
from hansard_server.agents.loop import run_agent
from hansard_server.agents.models.catalog import ModelCatalog
from hansard_server.agents.tools.built_in import BUILT_IN_TOOLS
from hansard_server.agents.tools.catalog import ToolCatalog
from hansard_server.artifacts.files import NewFile
from hansard_server.domain.errors import ArtifactNotFound, CorpusNotFound, QuotaExceeded
from hansard_server.domain.records import AwaitedCall, PendingCall, Usage

TURN_ID = "trn_test"
NOW_US = 1_780_000_000_000_000


class NoCorpora:
    """CorporaAccess of a tenant that has none."""

    async def search(
        self, request: corpus_service_pb2.SearchCorporaRequest
    ) -> Sequence[corpus_pb2.FoundPassage]:
        raise CorpusNotFound(f"There is no corpus {request.corpora[0].corpus_key}.")

    async def index(self, request: corpus_service_pb2.IndexDocumentRequest) -> corpus_pb2.Document:
        raise CorpusNotFound(f"There is no corpus {request.corpus_key}.")


class MemoryFiles:
    """SessionFiles over bytes in memory, read in small chunks."""

    def __init__(self, files: Mapping[str, bytes] | None = None, chunk_bytes: int = 7) -> None:
        self.chunk_bytes = chunk_bytes
        self.bytes_read = 0
        self.quota_files: int | None = None
        self._files: dict[str, tuple[artifact_pb2.Artifact, bytes]] = {}
        for filename, data in (files or {}).items():
            self.add(filename, data)

    def add(self, filename: str, data: bytes, mime_type: str = "text/plain") -> str:
        artifact_id = "art_" + "".join(c if c.isalnum() else "_" for c in filename.lower())
        artifact = artifact_pb2.Artifact(
            artifact_id=artifact_id, filename=filename, mime_type=mime_type, size_bytes=len(data)
        )
        self._files[artifact_id] = (artifact, data)
        return artifact_id

    async def list_files(self, limit: int) -> Sequence[artifact_pb2.Artifact]:
        return [artifact for artifact, _ in reversed(self._files.values())][:limit]

    async def make_file(
        self,
        filename: str,
        chunks: AsyncIterator[bytes],
        *,
        mime_type: str = "",
        description: str = "",
    ) -> NewFile:
        data = b"".join([chunk async for chunk in chunks])
        if self.quota_files is not None and len(self._files) >= self.quota_files:
            raise QuotaExceeded("The session has too many files.")
        artifact_id = self.add(filename, data, mime_type or "text/plain")
        artifact = self._files[artifact_id][0]
        artifact.description = description
        artifact.source = artifact_pb2.ARTIFACT_SOURCE_TOOL
        record: Any = None
        return NewFile(artifact, record)

    async def get_file(self, artifact_id: str) -> artifact_pb2.Artifact:
        if artifact_id not in self._files:
            raise ArtifactNotFound(f"There is no artifact {artifact_id!r} in the session.")
        return self._files[artifact_id][0]

    async def read_file(
        self, artifact_id: str, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        await self.get_file(artifact_id)
        data = self._files[artifact_id][1][offset:]
        data = data if length is None else data[:length]
        for start in range(0, len(data), self.chunk_bytes):
            chunk = data[start : start + self.chunk_bytes]
            self.bytes_read += len(chunk)
            yield chunk


@dataclass
class MemoryRecorder:
    """A TurnRecorder that keeps what it is given, and how it came.

    Attributes:
        stored: what is on disk, by sequence.
        batches: how many events each flush wrote.
        deltas: what was shown, and where flushes lay between, as None.
    """

    stored: list[event_pb2.Event] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    deltas: list[tuple[TextKind, str] | None] = field(default_factory=list)
    held: list[tuple[TextKind, str]] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    turn_id: str = TURN_ID
    flushed: asyncio.Event = field(default_factory=asyncio.Event)
    open_text: tuple[TextKind, str] | None = None
    waits: list[event_pb2.Event] = field(default_factory=list)
    files: list[MadeFile] = field(default_factory=list)
    asked: dict[str, PendingCall] = field(default_factory=dict)
    begun: list[str] = field(default_factory=list)
    awaited: list[AwaitedCall] = field(default_factory=list)
    hiding: set[int] = field(default_factory=set)

    async def show(self, kind: TextKind, text: str) -> None:
        assert text
        await self.flush()
        assert self.open_text is None or self.open_text[0] is kind, "two texts are open"
        self.open_text = (kind, (self.open_text[1] if self.open_text else "") + text)
        self.deltas.append((kind, text))

    def put(self, kind: TextKind, text: str) -> bool:
        assert text
        assert self.open_text is None or self.open_text[0] is kind, "two texts are open"
        self.open_text = (kind, (self.open_text[1] if self.open_text else "") + text)
        (self.held if self.waits else self.deltas).append((kind, text))
        return True

    @property
    def holding(self) -> bool:
        return bool(self.waits) and self.open_text is not None

    def end_text(self, provider_data: bytes = b"") -> None:
        if self.open_text is None:
            return
        kind, content = self.open_text
        self.open_text = None
        if kind is TextKind.THINKING:
            thinking = event_pb2.Thinking(content=content, provider_data=provider_data)
            self.add(event_pb2.Event(thinking=thinking))
        else:
            output = event_pb2.AgentOutput(content=content, provider_data=provider_data)
            self.add(event_pb2.Event(agent_output=output))

    def drop_text(self) -> None:
        self.open_text = None

    def add(
        self,
        payload: event_pb2.Event,
        files: Sequence[MadeFile] = (),
        hides: Sequence[int] = (),
    ) -> None:
        event = event_pb2.Event()
        event.CopyFrom(payload)
        self.files.extend(files)
        self.waits.append(event)
        self.hiding.update(hides)

    def add_usage(self, usage: Usage) -> None:
        self.usage += usage

    @property
    def waiting(self) -> bool:
        return bool(self.waits)

    async def flush(self) -> None:
        if not self.waits:
            return
        await asyncio.sleep(0)
        self.batches.append(len(self.waits))
        self.deltas.append(None)
        for event in self.waits:
            self.store(event)
        self.waits = []
        for event in self.stored:
            if event.sequence in self.hiding:
                event.hide_reason = event_pb2.HIDE_REASON_COMPACTION
        self.hiding = set()
        self.deltas += self.held
        self.held = []
        self.flushed.set()

    def store(self, event: event_pb2.Event, turn_id: str | None = None) -> None:
        """Put an event on disk; without `turn_id` it is the turn's."""
        event.sequence = len(self.stored) + 1
        event.turn_id = self.turn_id if turn_id is None else turn_id
        self.stored.append(event)

    @property
    def pending(self) -> Mapping[str, PendingCall]:
        return self.asked

    async def begin(self, tool_call_ids: Sequence[str]) -> None:
        await self.flush()
        self.begun += tool_call_ids

    def require_action(self, calls: Sequence[AwaitedCall]) -> None:
        self.awaited += calls

    async def history(self, reach: Reach) -> Recent:
        await self.flush()
        visible = [event for event in self.stored if not event.hide_reason]
        if not reach.turn_only:
            return Recent(events=visible, whole=True)
        own = [event.turn_id == self.turn_id for event in visible]
        first = own.index(True) if any(own) else len(visible)
        return Recent(events=visible[first:], whole=first == 0)

    async def past(self, *, through: int, max_events: int, max_bytes: int) -> Recent:
        found = [
            event
            for event in self.stored
            if not event.hide_reason and event.sequence <= through and event.turn_id != self.turn_id
        ]
        size, kept = 0, 0
        for event in found:
            size += event.ByteSize()
            if kept == max_events or (kept and size > max_bytes):
                break
            kept += 1
        return Recent(events=found[:kept], whole=kept == len(found))

    async def find_sequence(self, event_id: str) -> int:
        return next(event.sequence for event in self.stored if event.id == event_id)

    @property
    def kinds(self) -> list[str]:
        """The kinds of all events, those that wait at the end."""
        return [str(event.WhichOneof("payload")) for event in (*self.stored, *self.waits)]

    def texts(self, kind: str) -> list[str]:
        """The contents of the events of one kind."""
        events = (*self.stored, *self.waits)
        return [getattr(e, kind).content for e in events if e.WhichOneof("payload") == kind]

    def outputs(self) -> list[event_pb2.ToolOutput]:
        """The tool outputs in order."""
        return [e.tool_output for e in (*self.stored, *self.waits) if e.HasField("tool_output")]


def message(text: str, *artifact_ids: str) -> event_pb2.Event:
    """Return an input_message of one text, and references to files."""
    event = event_pb2.Event()
    event.input_message.messages.add().text.content = text
    for artifact_id in artifact_ids:
        event.input_message.messages.add().artifact.artifact_id = artifact_id
    return event


def make_agent(
    model: str = "hansard/scripted",
    parameters: Mapping[str, Json] | None = None,
    tools: Sequence[str] = (),
) -> agent_pb2.Agent:
    """Return an agent with these tools, each under its own name."""
    agent = agent_pb2.Agent(key="support", name="Support")
    agent.model.name = model
    json_format.ParseDict(dict(parameters or {}), agent.model.parameters)
    for tool in tools:
        getattr(agent.tool_configurations[tool], tool).SetInParent()
    return agent


async def run_turn(
    agent: agent_pb2.Agent,
    question: str = "Hello",
    *,
    files: MemoryFiles | None = None,
    recorder: MemoryRecorder | None = None,
    limits: AgentLimits | None = None,
    models: ModelCatalog | None = None,
    tools: ToolCatalog | None = None,
    compact: turn_pb2.Compact | None = None,
) -> MemoryRecorder:
    """Run one turn to its end and return its record."""
    if recorder is None:
        recorder = MemoryRecorder()
        recorder.store(message(question))
    await run_agent(
        TurnContext(
            agent=agent,
            session=session_pb2.Session(agent_key="support", key="s1", name="One"),
            files=files or MemoryFiles(),
            corpora=NoCorpora(),
            now_us=NOW_US,
            turn_id=recorder.turn_id,
            compact=compact,
        ),
        recorder,
        models=models or ModelCatalog(),
        tools=tools or ToolCatalog(*BUILT_IN_TOOLS.values()),
        limits=limits or AgentLimits(),
    )
    return recorder
