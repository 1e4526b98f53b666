"""The sessions of one batch in memory: as they were read under their locks, and what came to them.

Nothing here touches the database, so that decisions on it can be tested without one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import field, replace

from hansard_server.domain.clock import MICROSECONDS_PER_MINUTE, MICROSECONDS_PER_SECOND
from hansard_server.domain.records import (
    ArtifactRecord,
    EventRecord,
    EventType,
    HideReason,
    SessionStatus,
    TurnRecord,
    TurnStatus,
    Usage,
)
from hansard_server.domain.values import dataclass
from hansard_server.repository.commands import ClaimScope, Draft, Lease


@dataclass(slots=True)
class Head:
    """A row of `session_heads`."""

    last_sequence: int
    last_event_at_us: int
    last_active_at_us: int
    status: SessionStatus
    unfinished_turn_id: str | None
    queued_turns: int
    turn_count: int
    usage: Usage
    artifact_files: int
    artifact_bytes: int
    tti_minutes: int
    alteration_count: int = 0

    @property
    def busy(self) -> bool:
        """Whether a turn is unfinished or waits."""
        return self.unfinished_turn_id is not None or self.queued_turns > 0

    @property
    def expire_at_us(self) -> int | None:
        """When the session will be deleted if nothing happens."""
        if self.tti_minutes == 0 or self.busy:
            return None
        return self.last_active_at_us + self.tti_minutes * MICROSECONDS_PER_MINUTE


@dataclass(slots=True)
class Claimed:
    """A row of `claims`."""

    fingerprint: bytes
    turn_id: str | None
    events: tuple[tuple[str, int], ...] | None


@dataclass(slots=True)
class HeldTurn:
    """A row of `turns`, its lease included.

    Attributes:
        version: that of the row as it was read; see `row_version`.
    """

    record: TurnRecord
    lease_owner: str | None = None
    lease_until_us: int | None = None
    lease_address: str | None = None
    version: str = ""


@dataclass(slots=True)
class Call:
    """What is stored of a tool call."""

    types: set[EventType] = field(default_factory=set)
    hide_reason: HideReason = HideReason.NONE
    deleted: bool = False


ClaimKey = tuple[ClaimScope, str]


@dataclass(slots=True)
class SessionState:
    """One locked session.

    Attributes:
        version: that of the head's row as it was read; see `row_version`.
        turns: those that commands of the batch name, or that the batch made.
        waiting: queued turns, the next one first; loaded only as far as the batch needs.
        claims: those that commands of the batch name, or that the batch made.
        known_events: stored events under ids that callers gave: (sequence, type, payload).
        calls: for tool call ids of callers' drafts: what is stored under them.
        hidden: sequences of stored events that compactions of the batch hide.
    """

    tenant: str
    uid: str
    now_us: int
    head: Head
    version: str = ""
    turns: dict[str, HeldTurn] = field(default_factory=dict)
    waiting: deque[str] = field(default_factory=deque)
    claims: dict[ClaimKey, Claimed] = field(default_factory=dict)
    known_events: dict[str, tuple[int, EventType, bytes]] = field(default_factory=dict)
    calls: dict[str, Call] = field(default_factory=dict)

    head_changed: bool = False
    new_events: list[EventRecord] = field(default_factory=list)
    new_claims: list[ClaimKey] = field(default_factory=list)
    new_turns: set[str] = field(default_factory=set)
    changed_turns: dict[str, None] = field(default_factory=dict)
    new_artifacts: list[ArtifactRecord] = field(default_factory=list)
    hidden: set[int] = field(default_factory=set)

    def write_event(self, draft: Draft, turn_id: str | None) -> EventRecord:
        """Give the draft the next sequence and return it as it will be stored."""
        head = self.head
        created_at_us = max(self.now_us, head.last_event_at_us)
        event = EventRecord(
            id=draft.id,
            sequence=head.last_sequence + 1,
            type=draft.type,
            turn_id=turn_id,
            created_at_us=created_at_us,
            payload=draft.payload,
            tool_call_id=draft.tool_call_id,
            hide_reason=self._hide_reason(draft.tool_call_id),
        )
        head.last_sequence = event.sequence
        head.last_event_at_us = created_at_us
        self.new_events.append(event)
        self.touch()
        if draft.given_id:
            self.known_events[draft.id] = (event.sequence, draft.type, draft.payload)
        if draft.tool_call_id is not None:
            self.calls.setdefault(draft.tool_call_id, Call()).types.add(draft.type)
        return event

    def _hide_reason(self, tool_call_id: str | None) -> HideReason:
        # An output is hidden with its input, whichever came first.
        call = None if tool_call_id is None else self.calls.get(tool_call_id)
        return HideReason.NONE if call is None else call.hide_reason

    def add_artifacts(self, artifacts: tuple[ArtifactRecord, ...]) -> None:
        """Make these artifacts of the session."""
        self.new_artifacts.extend(artifacts)
        self.head.artifact_files += len(artifacts)
        self.head.artifact_bytes += sum(artifact.size_bytes for artifact in artifacts)

    def touch(self) -> None:
        """Count now as activity: the expiry starts anew."""
        self.head.last_active_at_us = max(self.now_us, self.head.last_active_at_us)
        self.head_changed = True

    def claim(self, key: ClaimKey, claimed: Claimed) -> None:
        """Keep what a request made."""
        self.claims[key] = claimed
        self.new_claims.append(key)

    def put_turn(self, turn: HeldTurn) -> None:
        """Keep a new or changed turn."""
        self.turns[turn.record.id] = turn
        self.changed_turns[turn.record.id] = None

    def run_turn(self, turn: TurnRecord, lease: Lease) -> HeldTurn:
        """Start a turn: its input becomes an event, the session is busy with it."""
        sequence = 0
        if turn.input_type is not EventType.COMPACTION:
            sequence = self.write_event(
                Draft(id=turn.input_event_id, type=turn.input_type, payload=turn.input), turn.id
            ).sequence
        self.touch()
        self.head.status = SessionStatus.RUNNING
        self.head.unfinished_turn_id = turn.id
        held = self.lease_turn(
            replace(
                turn,
                status=TurnStatus.RUNNING,
                first_sequence=sequence,
                last_sequence=sequence,
                attempt=1,
                taken_sequence=sequence,
                fence=turn.fence + 1,
                started_at_us=self.now_us,
            ),
            lease,
        )
        self.put_turn(held)
        return held

    def lease_turn(self, turn: TurnRecord, lease: Lease) -> HeldTurn:
        """Return the turn in the hands of the lease's owner."""
        duration_us = int(lease.duration_s * MICROSECONDS_PER_SECOND)
        return HeldTurn(turn, lease.owner, self.now_us + duration_us, lease.address or None)

    def start_next(self, lease: Lease) -> TurnRecord | None:
        """Start the turn that waits longest, if one waits."""
        if not self.waiting:
            return None
        turn = self.turns[self.waiting.popleft()].record
        self.head.queued_turns -= 1
        return self.run_turn(turn, lease).record
