"""Forks in SQL: the plan, read at one moment, and the pieces, copied inside the database."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Insert,
    LargeBinary,
    String,
    Table,
    and_,
    bindparam,
    case,
    delete,
    insert,
    literal,
    null,
    select,
    update,
)

from hansard_server.domain.clock import MICROSECONDS_PER_SECOND
from hansard_server.domain.records import EventRecord, EventType, SessionRef, TurnRecord, Usage
from hansard_server.repository.forks import (
    ForkedTurn,
    ForkLost,
    ForkPlan,
    ForkRef,
    OpenCopy,
    SourceChanged,
)
from hansard_server.repository.sql import statements
from hansard_server.repository.sql.blobs import lock_blobs_of_artifacts
from hansard_server.repository.sql.engine import database_now_us, lock_for_update
from hansard_server.repository.sql.keysets import encode_keys, key_part, key_rows
from hansard_server.repository.sql.rows import event_values, turn_record, turn_values
from hansard_server.repository.sql.tables import artifacts, events, forks, turns

PIECE_MAX_EVENTS = 100
PIECE_MAX_BYTES = 512 * 1024
"""A piece ends here, with at least one event. On SQLite every other writer waits for a piece."""
_PLANNED_AT_ONCE = 5_000
_MENTIONING = frozenset(
    {
        EventType.INPUT_MESSAGE,
        EventType.TOOL_OUTPUT,
        EventType.ARTIFACT_UPLOAD,
        EventType.IMAGE_READ,
    }
)

_VISIBLE = (
    select(
        events.c.sequence,
        events.c.id,
        events.c.type,
        events.c.turn_id,
        events.c.tool_call_id,
        events.c.size_bytes,
        events.c.created_at,
    )
    .where(
        events.c.tenant == bindparam("tenant"),
        events.c.session_uid == bindparam("session_uid"),
        events.c.sequence > bindparam("above"),
        events.c.sequence <= bindparam("through"),
        events.c.hide_reason == 0,
        events.c.deleted_at.is_(None),
    )
    .order_by(events.c.sequence)
)
_ARTIFACT_IDS = select(artifacts.c.id).where(
    artifacts.c.tenant == bindparam("tenant"), artifacts.c.session_uid == bindparam("session_uid")
)

_OF_FORK = (
    forks.c.tenant == bindparam("of_tenant"),
    forks.c.session_uid == bindparam("of_uid"),
)
_FORK_OF_REQUEST = lock_for_update(
    select(forks.c.session_uid, (forks.c.alive_until > database_now_us()).label("alive")).where(
        forks.c.tenant == bindparam("of_tenant"),
        forks.c.agent_uid == bindparam("agent_uid"),
        forks.c.request_id == bindparam("of_request_id"),
        forks.c.request_id.is_not(None),
    )
)
_ALIVE_UNTIL = database_now_us() + bindparam("lease_us", type_=BigInteger)
_BEGIN = insert(forks).values(alive_until=_ALIVE_UNTIL)
_RENEW = update(forks).where(*_OF_FORK, forks.c.alive_until > 0).values(alive_until=_ALIVE_UNTIL)
_GIVE_UP = update(forks).where(*_OF_FORK).values(alive_until=0, request_id=None)
_GIVE_UP_ALL = update(forks).where(forks.c.alive_until > 0).values(alive_until=0, request_id=None)
_END = delete(forks).where(*_OF_FORK, forks.c.alive_until > 0)

_TENANT = bindparam("tenant", type_=String)
_NEW = bindparam("new_uid", type_=String)

_ROWS = key_rows()


def _given(index: int, column: Column[Any]) -> Any:
    """Return what a key gives besides tenant, source and its own."""
    return key_part(_ROWS, 3 + index, column.type)


def _copies(table: Table, key: Column[Any], *but: Any, **changed: Any) -> Insert:
    """Return the copy of rows of the source whose keys are (tenant, source uid, `key`, given …).

    All of a row's key stands in them: for less SQLite would read the whole session.
    """
    named = (table.c.tenant, table.c.session_uid, key)
    parts = [column == key_part(_ROWS, index, column.type) for index, column in enumerate(named)]
    changed |= {"tenant": _TENANT, "session_uid": _NEW}
    columns = [changed.get(column.name, column) for column in table.c]
    copies = select(*columns).select_from(_ROWS.join(table, and_(*parts))).where(*but)
    return insert(table).from_select(list(table.c), copies)


# What is hidden by now was visible at the fork's moment; what is deleted is lost to it. SQLAlchemy
# forgets how many rows an INSERT wrote unless told to keep it.
_COPY_EVENTS = _copies(
    events,
    events.c.sequence,
    events.c.deleted_at.is_(None),
    sequence=_given(0, events.c.sequence),
    hide_reason=literal(0),
    alteration=null(),
).execution_options(preserve_rowcount=True)
_NOTHING = literal(b"", LargeBinary)
_COPY_TURNS = _copies(
    turns,
    turns.c.id,
    number=_given(0, turns.c.number),
    first_sequence=_given(1, turns.c.first_sequence),
    last_sequence=_given(2, turns.c.last_sequence),
    # What was hidden or deleted does not come back as the input.
    input=case(
        (turns.c.input_event_id == _given(3, turns.c.input_event_id), turns.c.input),
        else_=_NOTHING,
    ),
    pending_calls=_NOTHING,
    pending_until=null(),
    open_calls=literal("[]", String),
    lease_owner=null(),
    lease_until=null(),
    lease_address=null(),
    taken_sequence=literal(0),
    steered_sequence=literal(0),
    fence=literal(0),
).returning(turns.c.input_tokens, turns.c.output_tokens, turns.c.reasoning_tokens)
_COPY_ARTIFACTS = _copies(artifacts, artifacts.c.id).returning(artifacts.c.size_bytes)


# The plan ----------------------------------------------------------------------------------------


class _Planner:
    """Takes the visible events of a source in order, and makes the plan of them."""

    def __init__(self, source: SessionRef, *, with_artifacts: bool) -> None:
        self._source = source
        self._with_artifacts = with_artifacts
        self._sequences = array("q")
        self._ends: list[int] = []
        self._piece_bytes = 0
        self._mentioning = array("q")
        self._turns: dict[str, _TurnSpan] = {}
        self._open_calls: dict[str, OpenCopy] = {}
        self._last: Any = None

    def add(self, row: Any) -> None:
        count = len(self._sequences)
        begun = count - (self._ends[-1] if self._ends else 0)
        full = begun >= PIECE_MAX_EVENTS or self._piece_bytes + row.size_bytes > PIECE_MAX_BYTES
        if begun and full:
            self._ends.append(count)
            self._piece_bytes = 0
        self._sequences.append(row.sequence)
        self._piece_bytes += row.size_bytes
        self._last = row
        place = count + 1
        if self._with_artifacts and row.type in _MENTIONING:
            self._mentioning.append(place)
        if row.turn_id is not None:
            span = self._turns.get(row.turn_id)
            if span is None:
                self._turns[row.turn_id] = _TurnSpan(place, row.id, row.size_bytes)
            else:
                span.last = place
        if row.type == EventType.TOOL_INPUT:
            self._open_calls[row.tool_call_id] = OpenCopy(sequence=place, turn_id=row.turn_id)
        elif row.type == EventType.TOOL_OUTPUT:
            self._open_calls.pop(row.tool_call_id, None)

    @property
    def last_turn_id(self) -> str | None:
        return next(reversed(self._turns), None)

    def plan(self, last_turn: TurnRecord | None, through: int, ids: frozenset[str]) -> ForkPlan:
        """Return the plan; `last_turn` is the only one that may go on beyond `through`."""
        if len(self._sequences) > (self._ends[-1] if self._ends else 0):
            self._ends.append(len(self._sequences))
        whole = [
            ForkedTurn(
                id=id_,
                number=number,
                first_sequence=span.first,
                last_sequence=span.last,
                first_event_id=span.first_event_id,
                size_bytes=span.size_bytes,
            )
            for number, (id_, span) in enumerate(self._turns.items(), 1)
        ]
        cut = None
        if last_turn is not None and not (
            last_turn.status.ended and last_turn.last_sequence <= through
        ):
            cut = (whole.pop(), last_turn)
        return ForkPlan(
            source=self._source,
            source_through=through,
            sequences=self._sequences,
            ends=self._ends,
            mentioning=self._mentioning,
            turns=whole,
            cut_turn=cut,
            open_calls=self._open_calls,
            artifact_ids=ids,
            last_event_id=self._last.id if self._last is not None else "",
            last_event_at_us=self._last.created_at if self._last is not None else 0,
        )


class _TurnSpan:
    __slots__ = ("first", "first_event_id", "last", "size_bytes")

    def __init__(self, first: int, first_event_id: str, size_bytes: int) -> None:
        self.first = self.last = first
        self.first_event_id = first_event_id
        self.size_bytes = size_bytes


def plan_fork(connection: Connection, source: SessionRef, through: int) -> ForkPlan:
    """Return the plan of the source's events up to a sequence, that one included."""
    session = {"tenant": source.tenant, "session_uid": source.uid}
    ids = frozenset(connection.scalars(_ARTIFACT_IDS, session))
    planner = _Planner(source, with_artifacts=bool(ids))
    for above in range(0, through, _PLANNED_AT_ONCE):
        window = {"above": above, "through": min(above + _PLANNED_AT_ONCE, through)}
        for row in connection.execute(_VISIBLE, {**session, **window}):
            planner.add(row)
    last_turn = None
    if planner.last_turn_id is not None:
        # Turns run one after the other: those before the last one have ended before it began.
        named = {**session, "turn_id": planner.last_turn_id}
        last_turn = turn_record(connection.execute(statements.TURN, named).one())
    return planner.plan(last_turn, through, ids)


# The pieces --------------------------------------------------------------------------------------


def begin_fork(
    connection: Connection, fork: ForkRef, agent_uid: str, request_id: str | None
) -> bool:
    """Write the fork's row; False when another one of this request is alive."""
    if request_id is not None:
        key = {"of_tenant": fork.tenant, "agent_uid": agent_uid, "of_request_id": request_id}
        other = connection.execute(_FORK_OF_REQUEST, key).one_or_none()
        if other is not None:
            if other.alive:
                return False
            give_up_fork(connection, fork.tenant, other.session_uid)
    values = {
        "tenant": fork.tenant,
        "session_uid": fork.uid,
        "agent_uid": agent_uid,
        "request_id": request_id,
        "lease_us": _lease_us(fork),
    }
    connection.execute(_BEGIN, values)
    return True


def give_up_fork(connection: Connection, tenant: str, uid: str) -> None:
    """Leave the fork's copies to the purge."""
    connection.execute(_GIVE_UP, {"of_tenant": tenant, "of_uid": uid})


def give_up_all_forks(connection: Connection) -> None:
    """Leave all forks to the purge."""
    connection.execute(_GIVE_UP_ALL)


def end_fork(connection: Connection, tenant: str, uid: str) -> None:
    """Remove the fork's row: its session is there. Raises ForkLost."""
    if not connection.execute(_END, {"of_tenant": tenant, "of_uid": uid}).rowcount:
        raise ForkLost


def copy_events(
    connection: Connection, fork: ForkRef, sequences: Sequence[int], first: int
) -> None:
    """Copy events of the source; the first becomes the event `first`. Raises SourceChanged."""
    _renew(connection, fork)
    keys = [(sequence, first + index) for index, sequence in enumerate(sequences)]
    copied = connection.execute(_COPY_EVENTS, _values(fork, keys)).rowcount
    if copied != len(keys):
        raise SourceChanged


def write_events(connection: Connection, fork: ForkRef, records: Sequence[EventRecord]) -> None:
    """Write events of the fork's own."""
    _renew(connection, fork)
    rows = [event_values(fork.tenant, fork.uid, record) for record in records]
    connection.execute(insert(events), rows)


def copy_turns(connection: Connection, fork: ForkRef, planned: Sequence[ForkedTurn]) -> Usage:
    """Copy turns that have ended; return what they used together. Raises SourceChanged."""
    _renew(connection, fork)
    keys = [(t.id, t.number, t.first_sequence, t.last_sequence, t.first_event_id) for t in planned]
    rows = connection.execute(_COPY_TURNS, _values(fork, keys)).all()
    if len(rows) != len(keys):
        raise SourceChanged
    return sum(
        (Usage(row.input_tokens, row.output_tokens, row.reasoning_tokens) for row in rows),
        start=Usage(),
    )


def insert_turn(connection: Connection, turn: TurnRecord) -> None:
    """Write a turn of the fork's own, which has ended."""
    connection.execute(insert(turns), turn_values(turn))


def copy_artifacts(connection: Connection, fork: ForkRef, ids: Collection[str]) -> int:
    """Copy artifacts, which share their bytes; return their sizes together.

    Raises SourceChanged.
    """
    _renew(connection, fork)
    lock_blobs_of_artifacts(connection, fork.tenant, fork.source_uid, ids)
    keys = [(id_,) for id_ in ids]
    rows = connection.execute(_COPY_ARTIFACTS, _values(fork, keys)).all()
    if len(rows) != len(keys):
        raise SourceChanged
    return sum(row.size_bytes for row in rows)


def _renew(connection: Connection, fork: ForkRef) -> None:
    values = {"of_tenant": fork.tenant, "of_uid": fork.uid, "lease_us": _lease_us(fork)}
    if not connection.execute(_RENEW, values).rowcount:
        raise ForkLost


def _lease_us(fork: ForkRef) -> int:
    return round(fork.lease_s * MICROSECONDS_PER_SECOND)


def _values(fork: ForkRef, keys: Iterable[tuple[str | int, ...]]) -> dict[str, str]:
    source = (fork.tenant, fork.source_uid)
    named = encode_keys((*source, *key) for key in keys)
    return {"tenant": fork.tenant, "new_uid": fork.uid, **named}
