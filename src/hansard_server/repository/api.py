"""The seam of the store: what the rooms above may ask of it, and which errors must come back.

Every method takes the tenant: no row of another one is ever seen. The exceptions say "of every
tenant": sweeps, and the keys that tell which tenant a caller is of. Times are whole microseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from typing import Protocol, TypeVar, overload

from hansard_server.domain.records import (
    AgentRecord,
    ArtifactRecord,
    Claim,
    Claimed,
    EventRecord,
    EventRow,
    EventType,
    SessionPulse,
    SessionRecord,
    SessionRef,
    SessionView,
    TurnRecord,
    TurnStatus,
    Usage,
)
from hansard_server.domain.values import dataclass
from hansard_server.repository.access import AccessReads, AccessWrites
from hansard_server.repository.blobs import BlobReads, BlobWrites
from hansard_server.repository.commands import (
    Accepted,
    AcceptInput,
    AnswerCalls,
    AppendDrafts,
    Appended,
    AwaitCalls,
    CancelQueued,
    ExpireCalls,
    FindInterrupted,
    Finished,
    FinishTurn,
    HandOn,
    Interruptible,
    Recorded,
    RecordStep,
    SessionName,
    StartNext,
    TakeTurn,
)
from hansard_server.repository.corpora import CorpusReads, CorpusWrites
from hansard_server.repository.forks import ForkedTurn, ForkPlan, ForkRef, ForkTotals
from hansard_server.repository.rates import RateWrites

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Position:
    """Where a list by creation stands: the last row seen."""

    created_at_us: int
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CreationScan:
    """Rows by (created_at, uid): from `after` on, inside [created_from, created_before)."""

    limit: int
    after: Position | None = None
    descending: bool = False
    created_from_us: int | None = None
    created_before_us: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventScan:
    """Events by sequence, both bounds exclusive; rows that don't match count as examined.

    Attributes:
        after_sequence: only higher sequences; 0: from the first.
        before_sequence: only lower sequences; None: to the last.
        limit: how many matching events at most.
        max_bytes: the page ends when its payloads together would be larger, with at least one.
        max_rows: how many rows are examined at most.
        types: only these; empty: all.
        include_hidden: hidden events and tombstones too.
    """

    limit: int
    max_bytes: int
    max_rows: int
    after_sequence: int = 0
    before_sequence: int | None = None
    descending: bool = False
    types: frozenset[EventType] = frozenset()
    turn_id: str | None = None
    include_hidden: bool = False
    created_from_us: int | None = None
    created_before_us: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPage:
    """Matching events in order; `resume_at` is the sequence to go on from, None at the end.

    Going on means the same scan with `after_sequence` (descending: `before_sequence`) set to it.
    """

    events: tuple[EventRecord, ...]
    resume_at: int | None


@dataclass(frozen=True, slots=True)
class EventRows:
    """An EventPage in rows."""

    rows: Sequence[EventRow]
    resume_at: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnScan:
    """Turns by number; those that don't match count as examined.

    Attributes:
        limit: how many matching turns at most.
        max_bytes: the page ends when its turns together would be larger, with at least one.
        max_rows: how many numbers are examined at most.
        after_number: only turns beyond it, in the direction of the scan; None: from its start.
        statuses: only these; empty: all.
    """

    limit: int
    max_bytes: int
    max_rows: int
    after_number: int | None = None
    descending: bool = False
    statuses: frozenset[TurnStatus] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnPage:
    """Matching turns in order; `resume_at` is the `after_number` to go on from, None at the end."""

    turns: tuple[TurnRecord, ...]
    resume_at: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactTotals:
    """What the artifacts of a session amount to."""

    files: int
    size_bytes: int


class Alteration(Enum):
    """What may be done to a stored event."""

    HIDE = "hide"
    UNHIDE = "unhide"
    DELETE = "delete"


class ReadTx(AccessReads, BlobReads, CorpusReads, Protocol):
    """Reads, all of one moment."""

    # Agents ---------------------------------------------------------------------------------------

    def get_agent(self, tenant: str, agent_key: str) -> AgentRecord:
        """Return the agent. Raises AgentNotFound."""
        ...

    def get_agent_by_uid(self, tenant: str, agent_uid: str) -> AgentRecord:
        """Return the agent, deleted or not, while its row lasts. Raises AgentNotFound."""
        ...

    def get_agents(self, tenant: str, agent_uids: Collection[str]) -> Sequence[AgentRecord]:
        """Return those agents that exist, in no order."""
        ...

    def find_agent_claim(self, tenant: str, request_id: str) -> Claimed[AgentRecord] | None:
        """Return what CreateAgent made under this request_id, even if deleted since."""
        ...

    def scan_agents(self, tenant: str, scan: CreationScan) -> Sequence[AgentRecord]:
        """Return at most `scan.limit` agents."""
        ...

    # Sessions -------------------------------------------------------------------------------------

    def resolve_session(self, name: SessionName) -> SessionRef:
        """Return the session by its keys. Raises AgentNotFound, SessionNotFound (also when
        `name.uid` is given and another).
        """
        ...

    def get_session(self, tenant: str, agent_key: str, session_key: str) -> SessionView:
        """Return the session and its head. Raises AgentNotFound, SessionNotFound."""
        ...

    def get_session_by_uid(self, tenant: str, session_uid: str) -> SessionRecord:
        """Return the session, with the key of its agent. Raises SessionNotFound when deleted."""
        ...

    def find_session_claim(
        self, tenant: str, agent_uid: str, request_id: str
    ) -> Claimed[SessionRecord] | None:
        """Return what CreateSession made under this request_id, even if deleted since."""
        ...

    def scan_sessions(
        self, tenant: str, agent_uid: str, scan: CreationScan
    ) -> Sequence[SessionView]:
        """Return at most `scan.limit` sessions of the agent."""
        ...

    def find_expired_sessions(self, now_us: int, limit: int) -> Sequence[tuple[str, str]]:
        """Return (tenant, uid) of sessions whose time has run out, of every tenant."""
        ...

    # Events and turns: the session was resolved before, and may be gone meanwhile -----------------

    def last_sequence(self, tenant: str, session_uid: str) -> int:
        """Return the session's last sequence. Raises SessionNotFound when it was deleted."""
        ...

    def get_event(self, tenant: str, session_uid: str, event_id: str) -> EventRecord:
        """Return the event, or its tombstone. Raises EventNotFound."""
        ...

    def scan_events(
        self, tenant: str, session_uid: str, scan: EventScan, *, last_sequence: int | None = None
    ) -> EventPage:
        """Return a page. Its cost does not grow with the session nor with the page's place.

        `last_sequence` is the session's, where it was read in this transaction already.
        """
        ...

    def scan_event_rows(self, session: SessionRef, scan: EventScan) -> EventRows:
        """Return what `scan_events` does, for a session that was resolved in this transaction."""
        ...

    def get_payloads(
        self, tenant: str, session_uid: str, sequences: Sequence[int]
    ) -> dict[int, bytes]:
        """Return the payloads of events by their sequences, also of a fork that is being made."""
        ...

    def plan_fork(self, source: SessionRef, through: int) -> ForkPlan:
        """Return what a fork copies of the source's events up to a sequence, that one included.

        The fork's moment is that of the read. Its cost grows with the events, a few bytes each.
        """
        ...

    def get_turn(self, tenant: str, session_uid: str, turn_id: str) -> TurnRecord:
        """Return the turn. Raises TurnNotFound."""
        ...

    def scan_turns(self, tenant: str, session_uid: str, scan: TurnScan) -> TurnPage:
        """Return a page. Its cost does not grow with the session nor with what it leaves out."""
        ...

    def queue_position(self, tenant: str, session_uid: str, turn_number: int) -> int:
        """Return the place of a waiting turn among the waiting ones, from 1."""
        ...

    def get_turns(
        self, tenant: str, session_uid: str, turn_ids: Collection[str]
    ) -> Sequence[TurnRecord]:
        """Return those of the turns that exist, in any order."""
        ...

    def read_pulses(
        self, sessions: Collection[tuple[str, str]]
    ) -> Mapping[tuple[str, str], SessionPulse]:
        """Return the pulses of sessions, (tenant, uid) each, by one statement.

        A session that is gone is left out, or deleted.
        """
        ...

    def find_altered(
        self, tenant: str, session_uid: str, after_count: int, limit: int
    ) -> Sequence[tuple[int, str]]:
        """Return (number, event id) of alterations after the `after_count`-th, in order.

        An event that was altered several times has its last number. With one number there may be
        two events: they are not parted, but by a `limit` of 1.
        """
        ...

    def find_unfinished_turns(self, limit: int, *, expired_only: bool) -> Sequence[TurnRecord]:
        """Return RUNNING turns of every tenant; only those whose lease ran out, if so asked.

        They come with their inputs, up to a mebibyte each: `limit` bounds the memory.
        """
        ...

    def find_owned_turns(self, owner: str, limit: int) -> Sequence[TurnRecord]:
        """Return RUNNING turns, of every tenant, whose lease the owner holds."""
        ...

    def next_lease_end_s(self, owner: str) -> float | None:
        """Return in how many seconds the next lease of another owner ends; None: there is none.

        Zero or less: it has ended, or was given up.
        """
        ...

    def find_expired_calls(self, limit: int) -> Sequence[tuple[str, str, str]]:
        """Return (tenant, session uid, turn id) of turns, of every tenant, that wait for somebody
        and have a call whose time has run out.
        """
        ...

    def find_idle_queues(self, limit: int) -> Sequence[tuple[str, str]]:
        """Return (tenant, uid) of sessions where a turn waits and none is unfinished."""
        ...

    # Artifacts ------------------------------------------------------------------------------------

    def get_artifact(self, tenant: str, session_uid: str, artifact_id: str) -> ArtifactRecord:
        """Return the artifact. Raises ArtifactNotFound."""
        ...

    def get_artifacts(
        self, tenant: str, session_uid: str, artifact_ids: Sequence[str]
    ) -> dict[str, ArtifactRecord]:
        """Return those that exist, by id."""
        ...

    def scan_artifacts(
        self, tenant: str, session_uid: str, scan: CreationScan
    ) -> Sequence[ArtifactRecord]:
        """Return at most `scan.limit` artifacts; Position.uid is the artifact's id."""
        ...

    def find_expired_artifacts(self, now_us: int, limit: int) -> Sequence[tuple[str, str, str]]:
        """Return (tenant, session uid, id) of artifacts whose time has run out, of every tenant."""
        ...

    def total_artifacts(self, tenant: str, session_uid: str) -> ArtifactTotals:
        """Return how many files the session has, and their bytes together."""
        ...


class WriteTx(ReadTx, AccessWrites, BlobWrites, CorpusWrites, RateWrites, Protocol):
    """Reads and writes, committed together. A decision that raises leaves nothing."""

    def insert_agent(self, agent: AgentRecord, claim: Claim | None) -> None:
        """Write a new agent. The caller has seen in this transaction that key and claim are free;
        if somebody was faster, the store runs the whole decision again.
        """
        ...

    def update_agent(self, agent: AgentRecord) -> None:
        """Replace what callers set of the agent with this uid."""
        ...

    def delete_agent(self, tenant: str, agent_uid: str, now_us: int) -> None:
        """Hide the agent: its key is free, roles on it are gone, its sessions are deleted soon
        after by the purge.
        """
        ...

    def insert_session(self, session: SessionRecord, claim: Claim | None) -> None:
        """Write a new, empty session and its head; as insert_agent."""
        ...

    def update_session(self, session: SessionRecord) -> None:
        """Replace what callers set of the session with this uid; its expiry follows."""
        ...

    def delete_session(self, tenant: str, session_uid: str, now_us: int) -> bool:
        """Hide the session, end its unfinished turns as INTERRUPTED. False: it was gone already."""
        ...

    def delete_expired_session(self, tenant: str, session_uid: str, now_us: int) -> bool:
        """Delete the session if, under its lock, its time has still run out."""
        ...

    def purge_deleted(self, now_us: int, *, keep_rows_us: int, max_rows: int) -> int:
        """Remove rows of what was deleted, at most `max_rows`; return how many.

        The rows that carry claims stay for `keep_rows_us` after the deletion.
        """
        ...

    # Forks: pieces of one that `begin_fork` began. Each is a sign of life, and raises ForkLost when
    # the fork was given up, SourceChanged when rows of the source that were planned are gone.

    def begin_fork(self, fork: ForkRef, agent_uid: str, request_id: str | None) -> bool:
        """Make the place for a fork's copies under a new uid, where nobody sees them.

        False, and nothing is done, when another fork of this request to the agent is alive. One
        whose lease has run out, or that was given up, is purged.
        """
        ...

    def copy_fork_events(self, fork: ForkRef, sequences: Sequence[int], first: int) -> None:
        """Copy events of the source; the first of them becomes the event `first`."""
        ...

    def copy_fork_turns(self, fork: ForkRef, turns: Sequence[ForkedTurn]) -> Usage:
        """Copy turns that have ended; return what they used together.

        A turn whose input event is not copied has an empty input.
        """
        ...

    def copy_fork_artifacts(self, fork: ForkRef, ids: Collection[str]) -> int:
        """Copy artifacts, which share their bytes; return their sizes together."""
        ...

    def write_fork_events(self, fork: ForkRef, events: Sequence[EventRecord]) -> None:
        """Write events of the fork's own."""
        ...

    def finish_fork(
        self,
        session: SessionRecord,
        claim: Claim | None,
        totals: ForkTotals,
        cut_turn: TurnRecord | None,
    ) -> None:
        """Write the session, with the fork's uid, and its head: now it is there, whole.

        As insert_session; `cut_turn` is a turn of the fork's own, which has ended.
        """
        ...

    def give_up_fork(self, tenant: str, uid: str) -> None:
        """Leave the fork's copies to the purge; its request may be made anew."""
        ...

    def give_up_all_forks(self) -> None:
        """Leave the copies of all forks to the purge; only where this process is alone."""
        ...

    def alter_event(
        self, tenant: str, session_uid: str, event_id: str, alteration: Alteration, now_us: int
    ) -> EventRecord:
        """Hide, unhide or delete an event, and return it as it is then.

        The other half of a tool's call goes with it; a tombstone stays as it is. Raises
        SessionNotFound when the session was deleted, EventNotFound, SessionBusy for an event of an
        unfinished turn.
        """
        ...

    def delete_artifact(self, tenant: str, session_uid: str, artifact_id: str) -> ArtifactRecord:
        """Remove the artifact, and return it. Raises ArtifactNotFound."""
        ...

    def renew_leases(
        self, owner: str, running: Collection[tuple[str, str, str]], duration_s: float
    ) -> None:
        """Renew the leases of these turns, as far as the owner holds them, by one statement.

        Each turn is (tenant, session uid, turn id).
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a commit did to one session: a hint; the record is the truth.

    Attributes:
        events: new events, in order; may be fewer than there are.
        altered: stored events that were hidden, unhidden or deleted, each with the number of that
            alteration in its session, in order.
        turns: turns that were accepted, started or ended, as they are now.
        deleted: the session is gone.
    """

    tenant: str
    session_uid: str
    events: tuple[EventRecord, ...] = ()
    altered: tuple[tuple[int, str], ...] = ()
    turns: tuple[TurnRecord, ...] = ()
    deleted: bool = False


class Store(Protocol):
    """A store: runs decisions and commands, tells of commits.

    All methods are called in the event loop; the work itself runs elsewhere. Raises
    StoreUnavailable when the database does not answer, within a bounded time.
    """

    async def read(self, query: Callable[[ReadTx], T]) -> T:
        """Return the query's result. Reads never wait for writes."""
        ...

    async def write(self, decide: Callable[[WriteTx], T]) -> T:
        """Return the decision's result after its commit. It may run more than once, so it has no
        side effect; a domain error that it raises comes back as it is.
        """
        ...

    @overload
    async def submit(self, command: AppendDrafts) -> Appended: ...
    @overload
    async def submit(self, command: AcceptInput) -> Accepted: ...
    @overload
    async def submit(self, command: AnswerCalls) -> Accepted: ...
    @overload
    async def submit(self, command: RecordStep) -> Recorded: ...
    @overload
    async def submit(self, command: AwaitCalls) -> TurnRecord: ...
    @overload
    async def submit(self, command: ExpireCalls) -> TurnRecord | None: ...
    @overload
    async def submit(self, command: FinishTurn) -> Finished: ...
    @overload
    async def submit(self, command: TakeTurn) -> TurnRecord: ...
    @overload
    async def submit(self, command: StartNext) -> TurnRecord | None: ...
    @overload
    async def submit(self, command: HandOn) -> None: ...
    @overload
    async def submit(self, command: CancelQueued) -> TurnRecord: ...
    @overload
    async def submit(self, command: FindInterrupted) -> Interruptible: ...

    def listen(self, on_change: Callable[[Change], None]) -> AbstractContextManager[None]:
        """Have `on_change` called in the loop after every commit of this process, until exit."""
        ...

    def expect(self, crowd: Callable[[], int]) -> None:
        """Have the commands of a crowd of calls wait for each other, some milliseconds at most.

        `crowd` is called in any thread, and tells how many calls run or are about to.
        """
        ...

    async def check(self) -> None:
        """Return when the database answers and has the schema that this code knows.

        After a write has failed it tries one too, until that has gone well.
        """
        ...

    async def close(self) -> None:
        """Finish what was accepted, and give everything back."""
        ...
