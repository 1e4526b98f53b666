"""Records: what the store keeps, as the other rooms see it. Times are whole microseconds."""

from __future__ import annotations

from dataclasses import field
from enum import IntEnum
from typing import Generic, TypeVar

from hansard_server.domain.values import dataclass

T = TypeVar("T")


class EventType(IntEnum):
    """What an event is; the values are the field numbers in the contract's Event."""

    INPUT_MESSAGE = 20
    THINKING = 21
    TOOL_INPUT = 22
    TOOL_OUTPUT = 23
    AGENT_OUTPUT = 24
    STRUCTURED_OUTPUT = 25
    ARTIFACT_UPLOAD = 26
    IMAGE_READ = 27
    CONTEXT_LIMIT_EXCEEDED = 28
    COMPACTION = 29
    SESSION_INTERRUPTED = 30
    CUSTOM = 31


class SessionStatus(IntEnum):
    """What a session is doing; the values are the contract's."""

    IDLE = 1
    RUNNING = 2
    REQUIRES_ACTION = 3


class TurnStatus(IntEnum):
    """How far a turn is; the values are the contract's."""

    QUEUED = 1
    RUNNING = 2
    REQUIRES_ACTION = 3
    COMPLETED = 4
    FAILED = 5
    INTERRUPTED = 6

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen in the turn."""
        return self >= TurnStatus.COMPLETED


class HideReason(IntEnum):
    """Why the model does not see an event; the values are the contract's."""

    NONE = 0
    MANUAL = 1
    COMPACTION = 2


class ArtifactSource(IntEnum):
    """Who made an artifact; the values are the contract's."""

    UPLOAD = 1
    TOOL = 2


@dataclass(frozen=True, slots=True)
class Claim:
    """A request_id and the SHA-256 of what it stands for (32 bytes)."""

    request_id: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that model calls used."""

    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        """Return the sum."""
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRecord:
    """An agent. `configuration` (model, first_step, tools) and `metadata` are serialized."""

    tenant: str
    uid: str
    key: str
    name: str
    description: str
    configuration: bytes
    metadata: bytes
    enabled: bool
    etag: str
    created_at_us: int
    updated_at_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """What callers set of a session, and where it comes from.

    `metadata`, `forked_from` and `parent` are serialized messages.
    """

    tenant: str
    uid: str
    agent_uid: str
    agent_key: str
    key: str
    name: str
    description: str
    metadata: bytes
    enabled: bool
    tti_minutes: int
    forked_from: bytes | None = None
    parent: bytes | None = None
    etag: str
    created_at_us: int
    updated_at_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionHead:
    """What moves with every event of a session."""

    last_sequence: int = 0
    status: SessionStatus = SessionStatus.IDLE
    unfinished_turn_id: str | None = None
    queued_turns: int = 0
    usage: Usage = field(default_factory=Usage)
    artifact_files: int = 0
    artifact_bytes: int = 0
    expire_at_us: int | None = None
    last_event_at_us: int = 0


@dataclass(frozen=True, slots=True)
class SessionView:
    """A session with its head, as they were at one moment."""

    record: SessionRecord
    head: SessionHead


@dataclass(frozen=True, slots=True)
class Claimed(Generic[T]):
    """What a request_id made: its fingerprint, and the record as it was when it was made."""

    fingerprint: bytes
    first_answer: T


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRef:
    """A session that exists, found by its keys."""

    tenant: str
    uid: str
    agent_key: str
    key: str
    agent_uid: str
    last_sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """An event. `payload` is a serialized Event that holds its payload field alone.

    A tombstone has an empty payload and `deleted_at_us`.
    """

    id: str
    sequence: int
    type: EventType
    turn_id: str | None
    created_at_us: int
    payload: bytes
    tool_call_id: str | None = None
    hide_reason: HideReason = HideReason.NONE
    deleted_at_us: int | None = None


EventRow = tuple[int, str, int, str | None, int, int, int | None, str | None, int, bytes]
"""An EventRecord of which no object was made: sequence, id, type, turn_id, created_at_us,
hide_reason, deleted_at_us, tool_call_id, the payload's size, payload.
"""

# An enumeration looks for its members in a slower way.
_EVENT_TYPES = {int(member): member for member in EventType}
_HIDE_REASONS = {int(member): member for member in HideReason}


def event_of_row(row: EventRow) -> EventRecord:
    """Return the event of a row."""
    sequence, id_, kind, turn_id, created_at_us, hide_reason, deleted_at_us, call_id, _, data = row
    return EventRecord(
        id=id_,
        sequence=sequence,
        type=_EVENT_TYPES[kind],
        turn_id=turn_id,
        created_at_us=created_at_us,
        payload=data,
        tool_call_id=call_id,
        hide_reason=_HIDE_REASONS[hide_reason],
        deleted_at_us=deleted_at_us,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPulse:
    """What moves in a session: as long as it is equal, whoever follows the session misses nothing.

    Attributes:
        alteration_count: how often events were hidden, unhidden or deleted.
        turn_id: the unfinished turn, if there is one; `turn_status` and `turn_fence` are its.
        owner_address: where the turn's owner answers other processes; empty: nowhere.
    """

    last_sequence: int
    deleted: bool
    alteration_count: int
    turn_count: int
    queued_turns: int
    turn_id: str | None
    turn_status: TurnStatus | None
    turn_fence: int
    owner_address: str


@dataclass(frozen=True, slots=True)
class OpenCall:
    """A tool call of a turn that has no output yet."""

    tool_call_id: str
    tool_configuration_name: str
    tool_name: str


class PendingKind(IntEnum):
    """Whom a call waits for; the values are the contract's."""

    APPROVAL = 1
    CLIENT_TOOL = 2


class PendingState(IntEnum):
    """What has become of a call that somebody was asked about. Its output ends it."""

    AWAITED = 1
    APPROVED = 2
    BEGUN = 3
    """It was approved, and began to run: whether it had its effect is known by its output alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitedCall:
    """An open call that somebody is to be asked about, for at most `timeout_s`.

    `override_json`: the arguments that it will have over its own, a JSON object; empty: none.
    """

    tool_call_id: str
    kind: PendingKind
    timeout_s: float
    override_json: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingCall:
    """An open call that somebody was asked about; `override_json` as in AwaitedCall."""

    tool_call_id: str
    kind: PendingKind
    expire_at_us: int
    override_json: str = ""
    state: PendingState = PendingState.AWAITED


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRecord:
    """A turn. `input` and `error` are serialized messages.

    `input` is a TurnInput, whose bytes are those of the Event payload that it becomes; with the
    `input_type` COMPACTION the turn itself makes that event, under `input_event_id`. `number`
    counts the turns of a session from 1, in the order in which their inputs were accepted.
    `taken_sequence` is that of its last event when it last changed hands, `steered_sequence` that
    of the newest input that was put into it while it ran. `pending_calls` are those of the open
    calls that somebody was asked about, decided ones too.
    """

    tenant: str
    session_uid: str
    id: str
    number: int
    status: TurnStatus
    input_event_id: str
    input_type: EventType
    input: bytes
    first_sequence: int = 0
    last_sequence: int = 0
    pending_calls: tuple[PendingCall, ...] = ()
    attempt: int = 0
    error: bytes = b""
    usage: Usage = field(default_factory=Usage)
    open_calls: tuple[OpenCall, ...] = ()
    taken_sequence: int = 0
    steered_sequence: int = 0
    fence: int = 0
    created_at_us: int
    started_at_us: int | None = None
    ended_at_us: int | None = None

    @property
    def awaited_calls(self) -> tuple[PendingCall, ...]:
        """The calls that nobody has answered yet."""
        return tuple(c for c in self.pending_calls if c.state is PendingState.AWAITED)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactRecord:
    """A file of a session; `blob_key` names its bytes in the object store."""

    tenant: str
    session_uid: str
    id: str
    filename: str
    mime_type: str
    size_bytes: int
    sha256: bytes
    description: str
    metadata: bytes
    ttl_days: int | None
    source: ArtifactSource
    blob_key: str
    created_at_us: int
    updated_at_us: int
    expire_at_us: int | None = None

    def has_expired(self, now_us: int) -> bool:
        """Tell whether its time has run out: it is gone, whether or not its row is."""
        return self.expire_at_us is not None and self.expire_at_us <= now_us
