"""Commands: the hot writes as data, so that the store can do whatever waits in one transaction.

Every command works on one session, under the lock of that session's head. The store decides the
commands of a batch in arrival order; each succeeds whole, or raises its domain error and leaves
nothing. Their docstrings are the contract that every store is tested against.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, IntEnum

from hansard_server.domain.errors import DomainError
from hansard_server.domain.records import (
    ArtifactRecord,
    AwaitedCall,
    Claim,
    EventRecord,
    EventType,
    OpenCall,
    TurnRecord,
    TurnStatus,
    Usage,
)
from hansard_server.domain.values import dataclass

NO_USAGE = Usage()


class ClaimScope(IntEnum):
    """The call that a request_id was given to; ids of different calls never meet."""

    SEND_EVENT = 1
    APPEND_EVENTS = 2
    UPLOAD_ARTIFACTS = 3


class WhenBusy(Enum):
    """What is done with an input while a turn is unfinished."""

    QUEUE = "queue"
    REJECT = "reject"
    STEER = "steer"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionName:
    """A session as a caller names it; `uid`, when given, must be the incarnation's."""

    tenant: str
    agent_key: str
    session_key: str
    uid: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """An event before it has a sequence.

    Attributes:
        id: `aev_…`.
        given_id: the caller chose the id, so that it may exist already.
        payload: a serialized Event that holds its payload field alone.
        tool_call_id: of a tool_input or tool_output.
        opens: of a tool_input: the call as it is known until it has its output.
        artifacts: of a turn's artifact_upload: the files that a tool made, which become artifacts
            of the session with it. Their bytes are stored already.
        hides: of a turn's compaction: the sequences of the events that it summarises. Those that
            are still visible are hidden with it.
    """

    id: str
    type: EventType
    payload: bytes
    given_id: bool = False
    tool_call_id: str | None = None
    opens: OpenCall | None = None
    artifacts: tuple[ArtifactRecord, ...] = ()
    hides: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Who runs a turn, and for how long from now unless renewed. The database's clock counts.

    `address` is where other processes ask the owner about the turn, host:port; empty: nowhere.
    """

    owner: str
    duration_s: float
    address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRef:
    """A running turn in the hands of its owner; `fence` is the token that the owner was given."""

    tenant: str
    session_uid: str
    turn_id: str
    fence: int


CloseCall = Callable[[OpenCall], Draft]
"""Returns the tool_output that closes a call which got none. Must be pure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactQuota:
    """What the files of a session together may amount to."""

    max_files: int
    max_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """Files that come with an append, and what the session's files together may amount to."""

    artifacts: tuple[ArtifactRecord, ...]
    quota: ArtifactQuota


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendDrafts:
    """Write a caller's events, all or none. Result: Appended.

    Raises, checked in this order: AgentNotFound, SessionNotFound; RequestIdReused, or the first
    answer again when the claim was made with this fingerprint; AgentDisabled, SessionDisabled;
    SessionBusy while a turn is unfinished and any draft is not CUSTOM, unless `while_busy`;
    SequenceMismatch (metadata `last_sequence`); QuotaExceeded for the `upload`'s files;
    EventAlreadyExists when a given id has another type or payload, or a tool_input's call id is
    taken; ToolCallNotPending for a tool_output whose call is not open, or was deleted. The output
    of a hidden call is hidden with it.
    A draft whose given id, type and payload are stored already is answered with where it is and
    written no second time. A `fault` that the caller has found is raised where the state is looked
    at, so that the repeat of a success is one. QuotaExceeded comes last, when the session would
    have more than `max_events` events; 0 is any number.
    """

    session: SessionName
    drafts: tuple[Draft, ...]
    scope: ClaimScope = ClaimScope.APPEND_EVENTS
    claim: Claim | None = None
    expected_last_sequence: int | None = None
    while_busy: bool = False
    upload: Upload | None = None
    max_events: int = 0
    fault: DomainError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Appended:
    """Where the drafts stand: (event id, sequence) each."""

    session_uid: str
    events: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptInput:
    """Take an input: start its turn in an idle session, queue it in a busy one. Result: Accepted.

    The turn's input event is written when the turn starts, and not before; an input of the type
    COMPACTION has none: the turn writes the event when it has the summary. STEER puts the input
    into the turn that runs, as an event of it; where none runs, or one that compacts, it is as
    QUEUE. Raises, in this
    order: AgentNotFound, SessionNotFound; RequestIdReused, or the claimed turn; AgentDisabled,
    SessionDisabled; SessionBusy (REJECT, or `expected_last_sequence` given); SequenceMismatch;
    QueueFull when `queue_max_inputs` wait; QuotaExceeded when the session has `max_events` events;
    0 is any number. `fault` as in AppendDrafts.
    """

    session: SessionName
    turn_id: str
    input: Draft
    when_busy: WhenBusy
    queue_max_inputs: int
    lease: Lease
    claim: Claim | None = None
    expected_last_sequence: int | None = None
    max_events: int = 0
    fault: DomainError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The turn that an input made.

    `input_event` is there when the turn has just started with one, or was steered; `position`
    counts from 1 when the turn waits. `claimed` says that an earlier request with this request_id
    did the work, and that this one changed nothing. `from_sequence` is where the input's own part
    of the turn begins, 0 for its start. `last_sequence` is the session's.
    """

    turn: TurnRecord
    input_event: EventRecord | None
    position: int | None
    claimed: bool
    last_sequence: int
    from_sequence: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordStep:
    """Write events of a running turn, and add to its usage. Result: Recorded.

    Raises LeaseLost when the turn is not RUNNING under this fence any more (the session was
    deleted, somebody took the turn over or ended it), QuotaExceeded when the drafts' artifacts are
    more than `quota` allows (None: any): nothing is written. `begun` are calls that were approved,
    and run from now on.
    """

    turn: TurnRef
    drafts: tuple[Draft, ...]
    usage: Usage = NO_USAGE
    quota: ArtifactQuota | None = None
    begun: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """The events as they were stored, and the session's last sequence."""

    events: tuple[EventRecord, ...]
    last_sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishTurn:
    """End a running turn. Result: Finished.

    In one transaction: its last events are written, each of its open calls gets the output that
    `close_call` makes, the turn gets its status, and the session's next waiting turn, if there is
    one and `start_next` holds, starts under the lease. A claim, given for an interrupt, is kept
    with the turn and the event that says so. Raises LeaseLost as RecordStep does; UnreadInput when
    the turn would be COMPLETED and an input was steered into it after `read_sequence`. With
    `waiting` the turn is one that waits for somebody, under this fence, and has no owner.
    """

    turn: TurnRef
    status: TurnStatus
    close_call: CloseCall
    lease: Lease
    drafts: tuple[Draft, ...] = ()
    usage: Usage = NO_USAGE
    error: bytes = b""
    start_next: bool = True
    read_sequence: int | None = None
    claim: Claim | None = None
    waiting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The ended turn, the events that ended it, and the turn that runs next, if any."""

    turn: TurnRecord
    events: tuple[EventRecord, ...]
    last_sequence: int
    next_turn: TurnRecord | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeTurn:
    """Take over a running turn from an owner that is gone. Result: TurnRecord, with a new fence.

    Its `attempt` is one more if the turn has no new event since it last changed hands, 1 if it has;
    it stays as it is when the owner has handed the turn on. Unless `force`, raises LeaseLost while
    the lease has not run out. Raises LeaseLost too when the turn is not RUNNING.
    """

    tenant: str
    session_uid: str
    turn_id: str
    lease: Lease
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOn:
    """Give up the lease of a turn, so that anybody may take it at once. Result: None.

    What `drafts` and `usage` hold is written before. Raises LeaseLost as RecordStep does.
    """

    turn: TurnRef
    drafts: tuple[Draft, ...] = ()
    usage: Usage = NO_USAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitCalls:
    """Have a running turn wait for somebody: REQUIRES_ACTION, without a lease. Result: TurnRecord.

    `calls` are open calls, one at least; their time begins now. What `drafts` and `usage` hold is
    written before. Raises LeaseLost as RecordStep does.
    """

    turn: TurnRef
    calls: tuple[AwaitedCall, ...]
    drafts: tuple[Draft, ...] = ()
    usage: Usage = NO_USAGE


class AnswerKind(Enum):
    """What somebody answers who was asked about a call."""

    OUTPUT = "output"
    APPROVE = "approve"
    REJECT = "reject"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallAnswer:
    """The answer to one call; `close` makes its output, and is not asked for an approval's."""

    tool_call_id: str
    kind: AnswerKind
    close: CloseCall


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerCalls:
    """Answer calls of the turn that waits for somebody, all or none. Result: Accepted.

    Outputs and rejections are written as tool_outputs; an approval is noted. When no call is
    awaited any more the turn is RUNNING under the lease and a new fence, and as if it began: its
    `attempt` is 1. `from_sequence` is that of the first output, else of whatever comes next.
    Raises, in this order: AgentNotFound, SessionNotFound; RequestIdReused, or the claimed turn;
    AgentDisabled, SessionDisabled; the `fault`; ToolCallNotPending for a call that is not awaited
    or whose time has run out; InvalidRequest for an answer that does not fit the call's kind;
    SequenceMismatch. A call is named once.
    """

    session: SessionName
    answers: tuple[CallAnswer, ...]
    lease: Lease
    claim: Claim | None = None
    expected_last_sequence: int | None = None
    fault: DomainError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpireCalls:
    """Close the awaited calls of a turn whose time has run out, by `close`. Result: see below.

    The turn, running under the lease, when no call is awaited any more; else None. Nothing happens
    to a turn that does not wait.
    """

    tenant: str
    session_uid: str
    turn_id: str
    close: CloseCall
    lease: Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelQueued:
    """End a turn that waits, as if its input had never been sent. Result: TurnRecord, as it is now.

    A turn that does not wait is left as it is. Raises AgentNotFound, SessionNotFound, TurnNotFound.
    """

    session: SessionName
    turn_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FindInterrupted:
    """Find the turn that an interrupt means. Result: Interruptible; nothing is written.

    Raises AgentNotFound, SessionNotFound, RequestIdReused. With `for_input` an input is to follow:
    what would refuse it is raised now, before a turn is ended for nothing: AgentDisabled,
    SessionDisabled, the `fault`, SessionBusy when the input needs an idle session.

    With `ended` the turn was found before, and has ended: the claim, if nobody has made it, is
    written for that turn, told from `from_sequence` on.
    """

    session: SessionName
    turn_id: str | None = None
    claim: Claim | None = None
    for_input: bool = False
    needs_idle: bool = False
    fault: DomainError | None = None
    ended: TurnRecord | None = None
    from_sequence: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Interruptible:
    """The turn, if there is one.

    `claimed` says that an earlier request with this request_id did the work on it.
    """

    session_uid: str
    turn: TurnRecord | None
    last_sequence: int
    claimed: Accepted | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StartNext:
    """Start the next waiting turn of a session where nothing runs. Result: TurnRecord or None."""

    tenant: str
    session_uid: str
    lease: Lease


NamedCommand = AppendDrafts | AcceptInput | AnswerCalls | CancelQueued | FindInterrupted
"""Commands that name their session by its keys."""
OwnedCommand = RecordStep | FinishTurn | AwaitCalls | HandOn
"""Commands of a turn's owner."""
Command = NamedCommand | OwnedCommand | TakeTurn | ExpireCalls | StartNext


class UnreadInput(Exception):  # noqa: N818 - a state of affairs
    """An input was put into the turn, and the model has not seen it."""


class LeaseLost(Exception):  # noqa: N818 - a state of affairs
    """The turn is in other hands, or has ended: whoever gets this stops working on it."""
