"""What the agent loop is given and what it asks for: models, tools, files and the turn's record."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from enum import Enum
from typing import Any, Protocol, runtime_checkable

from hansard.v1 import (
    agent_pb2,
    artifact_pb2,
    corpus_pb2,
    corpus_service_pb2,
    event_pb2,
    session_pb2,
    turn_pb2,
)
from hansard_server.domain.records import ArtifactRecord, AwaitedCall, PendingCall, Usage
from hansard_server.domain.values import dataclass

Json = Any
"""A JSON value as Python has it."""


class TextKind(Enum):
    """What an open text will be stored as."""

    THINKING = "thinking"
    OUTPUT = "agent_output"


# What a model says, part by part ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of a text. Another kind than the open one's ends that text first."""

    kind: TextKind
    text: str


@dataclass(frozen=True, slots=True)
class TextEnd:
    """The open text is whole. A model may end a text and begin another of the same kind."""

    provider_data: bytes = b""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The model wants a tool run: `name` is the tool's configuration name in the agent.

    `scripted_result` is for models that bring the result with the call; nothing is run then.
    """

    name: str
    arguments_json: str
    provider_data: bytes = b""
    scripted_result: ScriptedResult | None = None


@dataclass(frozen=True, slots=True)
class ScriptedResult:
    """A tool result that a script gives, after a pause."""

    output_json: str
    error: bool = False
    pause_s: float = 0.0


Part = TextDelta | TextEnd | ToolCall | Usage


@dataclass(frozen=True, slots=True)
class ToolDescription:
    """A tool as the model sees it.

    `kind` is the field's name in ToolConfiguration, of a tool of an MCP server `mcp:` and its name
    there; providers' models get only the rest.
    """

    name: str
    description: str
    input_schema: Mapping[str, Json]
    kind: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSchema:
    """The form that an answer must have: a JSON schema, and what it is called."""

    name: str
    json_schema: Mapping[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """One model call.

    Attributes:
        step: counts the model calls of the turn from 0.
        instructions: the agent's instructions, rendered.
        history: the visible events that the model gets, in the order in which it gets them; the
            input and what the turn has stored so far included.
        tools: what the model may call.
        parameters: the agent's model parameters.
        output_schema: the form of the answer; None: a text.
        files: the session's, for models that can see; None: there are none.
        summary_of: what the answer is a summary of, when one is wanted; `history` is then one
            message that says so and has all that as a text, for models that read texts.
    """

    step: int
    instructions: tuple[str, ...]
    history: tuple[event_pb2.Event, ...]
    tools: tuple[ToolDescription, ...]
    parameters: Mapping[str, Json]
    output_schema: OutputSchema | None = None
    files: SessionFiles | None = None
    summary_of: tuple[event_pb2.Event, ...] = ()


class Model(Protocol):
    """Something that answers."""

    def check_parameters(self, parameters: Mapping[str, Json]) -> None:
        """Raise InvalidAgentConfiguration, naming the parameter, when the model can't use them."""
        ...

    def respond(self, request: ModelRequest) -> AsyncIterator[Part]:
        """Yield the answer's parts. Raises ModelFailed when it can't go on."""
        ...

    @property
    def context_tokens(self) -> int | None:
        """How many tokens the model takes, as far as the server knows; None: any number."""
        ...


class ShortSighted(Protocol):
    """A Model that may do without what was said before the turn, so that nobody need read it."""

    def needs_history(self, parameters: Mapping[str, Json]) -> bool:
        """Return whether `ModelRequest.history` must hold more than the running turn."""
        ...


class ModelFailed(Exception):  # noqa: N818 - reads as what happened
    """The model can't go on; the message is for people and holds no secret."""


class ModelInterrupted(ModelFailed):
    """The call failed in a way that another try may mend.

    `retry_after_s`: how long the provider asked to wait before; None: it did not say.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ContextOverflow(ModelFailed):
    """What the model was given is more than it takes.

    Both numbers are tokens, as far as the provider has said them; 0: it has not.
    """

    def __init__(self, message: str, *, context_limit: int = 0, actual_tokens: int = 0) -> None:
        super().__init__(message)
        self.context_limit = context_limit
        self.actual_tokens = actual_tokens


# Tools --------------------------------------------------------------------------------------------


class SessionFiles(Protocol):
    """The artifacts of one session, for its agent's tools."""

    async def list_files(self, limit: int) -> Sequence[artifact_pb2.Artifact]:
        """Return the newest artifacts, at most `limit`, the newest first."""
        ...

    async def get_file(self, artifact_id: str) -> artifact_pb2.Artifact:
        """Return the artifact. Raises ArtifactNotFound."""
        ...

    def read_file(
        self, artifact_id: str, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """Yield the bytes in chunks; never the whole file at once. Raises ArtifactNotFound."""
        ...

    async def make_file(
        self,
        filename: str,
        chunks: AsyncIterator[bytes],
        *,
        mime_type: str = "",
        description: str = "",
    ) -> MadeFile:
        """Store bytes; they become an artifact with the event that TurnRecorder.add is given.

        Without `mime_type` it is told from the bytes and the name. Raises PayloadTooLarge,
        QuotaExceeded, StoreUnavailable; nothing is left behind then.
        """
        ...


class MadeFile(Protocol):
    """A file that a tool made: what it will be, and how the store keeps it."""

    @property
    def artifact(self) -> artifact_pb2.Artifact: ...  # noqa: D102
    @property
    def record(self) -> ArtifactRecord: ...  # noqa: D102


class CorporaAccess(Protocol):
    """The corpora of the session's tenant, for its agents' tools."""

    async def search(
        self, request: corpus_service_pb2.SearchCorporaRequest
    ) -> Sequence[corpus_pb2.FoundPassage]:
        """Return the passages that fit best, the best first. Raises InvalidRequest for filters that
        can't be read, CorpusNotFound, StoreUnavailable.
        """
        ...

    async def index(self, request: corpus_service_pb2.IndexDocumentRequest) -> corpus_pb2.Document:
        """Return the document once it can be found. Raises CorpusNotFound, PayloadTooLarge,
        InvalidMetadata, RequestIdReused, StoreUnavailable.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SubAgentTask:
    """What a sub-agent is to do.

    Attributes:
        tool_call_id: the call, and `name` its tool's configuration name.
        session_key: of an earlier call's session, which goes on; empty: see the mode.
        tti_minutes: of a session that is made.
    """

    tool_call_id: str
    name: str
    configuration: agent_pb2.SubAgentConfiguration
    message: str
    session_key: str = ""
    tti_minutes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SubAgentAnswer:
    """What a sub-agent has answered, and where."""

    session_key: str
    turn_id: str
    text: str


class SubAgents(Protocol):
    """Agents that work for the agent of one session, each in a session of its own."""

    async def run(self, task: SubAgentTask) -> SubAgentAnswer:
        """Return the answer when the sub-agent's turn has completed.

        The same call again joins the turn that it began. Cancelled, the turn goes on: it is ended
        by whatever ends the caller's. Raises ToolError, domain errors, and TimeoutError when the
        time is over and the turn has been ended.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What a tool answers when it is more than JSON.

    Attributes:
        output: the answer, a JSON object.
        files: become artifacts of the session together with the answer.
        events: follow the answer; of each only the payload field counts.
    """

    output: Json
    files: tuple[MadeFile, ...] = ()
    events: tuple[event_pb2.Event, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolContext:
    """What a tool may use while it runs.

    Attributes:
        configuration: the agent's, for this tool, and `name` its name there.
        tool_call_id: the same when the call is run again.
    """

    files: SessionFiles
    corpora: CorporaAccess
    agent: agent_pb2.Agent
    session: session_pb2.Session
    configuration: agent_pb2.ToolConfiguration
    tool_call_id: str
    name: str = ""
    sub_agents: SubAgents | None = None


class ToolError(Exception):
    """The tool can't do what it was asked; the message is meant to help the model."""


class Tool(Protocol):
    """Something that an agent can use. `name` is its kind, as ToolDescription has it."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def description(self) -> str: ...  # noqa: D102
    @property
    def input_schema(self) -> Mapping[str, Json]: ...  # noqa: D102

    async def run(self, arguments: Mapping[str, Json], context: ToolContext) -> Json | ToolResult:
        """Return the result, a JSON object or a ToolResult with one. Raises ToolError."""
        ...


@runtime_checkable
class ConfiguredTool(Tool, Protocol):
    """A tool that is another one under each configuration."""

    def configured(self, configuration: agent_pb2.ToolConfiguration) -> Tool:
        """Return the tool as the configuration has it."""
        ...


# The turn -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnContext:
    """What a turn runs under: everything as it was when the turn started, at `now_us`.

    `compact` is the request when the turn is to summarise the conversation; such a turn has no
    event until it has the summary. `parameters` are those of the agent's model, where they have
    been read; turns share them, and the agent.
    """

    agent: agent_pb2.Agent
    session: session_pb2.Session
    files: SessionFiles
    corpora: CorporaAccess
    now_us: int
    sub_agents: SubAgents | None = None
    turn_id: str = ""
    compact: turn_pb2.Compact | None = None
    parameters: Mapping[str, Json] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How far back the record is read.

    Attributes:
        max_bytes: as many bytes of payloads, about; the newest event is read whatever its size.
        turn_only: no further than to the first event of the running turn.
    """

    max_bytes: int
    turn_only: bool = False


@dataclass(frozen=True, slots=True)
class Recent:
    """The newest visible events of a session, by sequence. `whole`: there are no others."""

    events: Sequence[event_pb2.Event]
    whole: bool


class TurnRecorder(Protocol):
    """What a running turn writes. But for deltas, nothing is shown before it is on disk.

    Events that wait are written together, in order, by the next `flush`, or before the next delta;
    what still waits when the loop returns is written in the transaction that ends the turn.
    """

    async def show(self, kind: TextKind, text: str) -> None:
        """Show more of the open text to readers, opening one when there is none; what waits is
        flushed before. At most one text is open: the caller ends it before it shows another kind.
        """
        ...

    def put(self, kind: TextKind, text: str) -> bool:
        """Do what `show` does, if that takes no wait, and return whether it did. While an event
        waits the text is put behind it, and shown by the next `flush`, which the caller owes before
        it waits for anything else.
        """
        ...

    @property
    def holding(self) -> bool:
        """Whether a text waits to be shown, behind an event that waits to be written."""
        ...

    def end_text(self, provider_data: bytes = b"") -> None:
        """Make the open text an event that waits. Does nothing when no text is open."""
        ...

    def drop_text(self) -> None:
        """Forget the open text: it will not be stored, since the call that made it is repeated."""
        ...

    def add(
        self,
        payload: event_pb2.Event,
        files: Sequence[MadeFile] = (),
        hides: Sequence[int] = (),
    ) -> None:
        """Add an event that waits; of `payload` only its payload field counts.

        `files` become artifacts when the event is written; `flush` raises QuotaExceeded when the
        session can't have them, and nothing that waited is written then. `hides`: the sequences of
        events of other turns that a compaction summarises, which are hidden when it is written.
        """
        ...

    def add_usage(self, usage: Usage) -> None:
        """Add to the turn's usage."""
        ...

    @property
    def waiting(self) -> bool:
        """Whether an event waits to be written."""
        ...

    async def flush(self) -> None:
        """Return when everything that waits is on disk."""
        ...

    @property
    def pending(self) -> Mapping[str, PendingCall]:
        """The calls, by id, that were open and that somebody had been asked about when the turn
        came into these hands.
        """
        ...

    async def begin(self, tool_call_ids: Sequence[str]) -> None:
        """Return when it is on disk that these approved calls run from now on; what waits is
        flushed before.
        """
        ...

    def require_action(self, calls: Sequence[AwaitedCall]) -> None:
        """Have the turn wait for somebody to answer these open calls once the loop returns."""
        ...

    async def history(self, reach: Reach) -> Recent:
        """Return the newest visible events of the session up to now; what waits is flushed before.
        The newest input_message is among them, however long ago it was.
        """
        ...

    async def past(self, *, through: int, max_events: int, max_bytes: int) -> Recent:
        """Return the oldest visible events up to a sequence, so many at most; `whole`: all of them.

        An event of the running turn is not among them.
        """
        ...

    async def find_sequence(self, event_id: str) -> int:
        """Return where an event of the session stands, hidden or deleted ones too. Raises
        EventNotFound.
        """
        ...
