"""A page of events: which sequences it may hold, then rows, then payloads that are large.

Sequences have no gaps, so what a scan examines is known before it reads: the cost depends on the
page alone, and neither on the session's length nor on the page's place in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection

from hansard_server.domain.records import TurnStatus
from hansard_server.domain.values import dataclass
from hansard_server.repository.api import EventRows, EventScan
from hansard_server.repository.sql import statements
from hansard_server.repository.sql.prepared import rows, tuples
from hansard_server.repository.sql.trips import Trip

_Row = tuple[Any, ...]
"""An EventRow, whose payload is None as long as it was not read."""
_SEQUENCE, _SIZE, _PAYLOAD = 0, 8, 9
_SIZE_OF = itemgetter(_SIZE)


@dataclass(frozen=True, slots=True)
class _Span:
    """Sequences between two others, both exclusive."""

    above: int
    below: int

    @property
    def empty(self) -> bool:
        return self.below - self.above <= 1


def read_event_rows(
    connection: Connection, tenant: str, session_uid: str, last_sequence: int, scan: EventScan
) -> EventRows:
    """Return the page of a session whose last sequence is given."""
    session = {"tenant": tenant, "session_uid": session_uid}
    span = _span(connection, session, last_sequence, scan)
    if span.empty or scan.limit < 1:
        return EventRows(rows=(), resume_at=None)
    window = _window(span, scan)
    found = _rows(connection, session, window, scan)
    fitting = _fitting(found, scan.max_bytes)
    if len(fitting) < len(found) or len(found) == scan.limit:
        resume_at = fitting[-1][_SEQUENCE]
    elif scan.descending:
        resume_at = window.above + 1
    else:
        resume_at = window.below - 1
    rest = _Span(span.above, resume_at) if scan.descending else _Span(resume_at, span.below)
    return EventRows(
        rows=_whole(connection, session, fitting), resume_at=None if rest.empty else resume_at
    )


def _span(
    connection: Connection, session: dict[str, Any], last_sequence: int, scan: EventScan
) -> _Span:
    """Return where the events that the scan asks for can be."""
    above, below = max(scan.after_sequence, 0), last_sequence + 1
    if scan.before_sequence is not None:
        below = min(below, scan.before_sequence)
    if scan.turn_id is not None:
        turns = rows(connection, statements.TURN, {**session, "turn_id": scan.turn_id})
        if not turns or turns[0].first_sequence == 0:
            return _Span(0, 0)
        turn = turns[0]
        above = max(above, turn.first_sequence - 1)
        # While a turn goes on, its row may be behind its events.
        if TurnStatus(turn.status).ended:
            below = min(below, turn.last_sequence + 1)
    span = _Span(above, below)
    if span.empty or (scan.created_from_us is None and scan.created_before_us is None):
        return span
    return _of_times(connection, session, span, scan)


def _of_times(
    connection: Connection, session: dict[str, Any], span: _Span, scan: EventScan
) -> _Span:
    """Return the part of the span in the scan's range of times."""
    trip = Trip(connection)
    ends = [
        None
        if time_us is None
        # The first that is not older; the upper end if all are.
        else trip.ask(
            statements.FIRST_SINCE,
            {**session, "low": span.above + 1, "high": span.below, "time": time_us},
        )
        for time_us in (scan.created_from_us, scan.created_before_us)
    ]
    trip.make()
    first, end = (None if answer is None else int(answer.rows[0][0]) for answer in ends)
    return _Span(
        span.above if first is None else first - 1,
        span.below if end is None else end,
    )


def _window(span: _Span, scan: EventScan) -> _Span:
    """Return the part of the span that one scan may examine."""
    if scan.descending:
        return _Span(max(span.above, span.below - 1 - scan.max_rows), span.below)
    return _Span(span.above, min(span.below, span.above + 1 + scan.max_rows))


def _rows(
    connection: Connection, session: dict[str, Any], window: _Span, scan: EventScan
) -> Sequence[_Row]:
    statement = statements.event_page(
        descending=scan.descending,
        include_hidden=scan.include_hidden,
        of_types=bool(scan.types),
        of_turn=scan.turn_id is not None,
    )
    values = {**session, "above": window.above, "below": window.below, "limit": scan.limit}
    if scan.types:
        values["types"] = [int(kind) for kind in scan.types]
    if scan.turn_id is not None:
        values["turn_id"] = scan.turn_id
    return tuples(connection, statement, values)


def _fitting(found: Sequence[_Row], max_bytes: int) -> Sequence[_Row]:
    """Return the rows from the first on whose payloads fit, at least one."""
    if sum(map(_SIZE_OF, found)) <= max_bytes:
        return found
    total = 0
    for count, row in enumerate(found):
        total += row[_SIZE]
        if total > max_bytes and count > 0:
            return found[:count]
    return found


def _whole(
    connection: Connection, session: dict[str, Any], fitting: Sequence[_Row]
) -> Sequence[_Row]:
    """Return the rows with the payloads that were too large to come with them."""
    large = [row[_SEQUENCE] for row in fitting if row[_PAYLOAD] is None]
    if not large:
        return fitting
    found = connection.execute(statements.EVENT_PAYLOADS, {**session, "sequences": large})
    payloads = {row.sequence: row.payload for row in found}
    return [
        (*row[:_PAYLOAD], payloads.get(row[_SEQUENCE], b"")) if row[_PAYLOAD] is None else row
        for row in fitting
    ]
