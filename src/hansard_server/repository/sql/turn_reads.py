"""A page of turns: which of them there are, by numbers alone, then the rows that fit.

Turns are numbered without gaps, so what a scan examines is known before it reads; inputs, which may
be large, are read for the turns of the page and no others.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from hansard_server.domain.records import TurnRecord
from hansard_server.repository.api import TurnPage, TurnScan
from hansard_server.repository.sql import statements
from hansard_server.repository.sql.rows import turn_record

_OVERHEAD_BYTES = 256
"""What ids, times and numbers of a turn take in a reply, at most."""


def read_turn_page(
    connection: Connection, tenant: str, session_uid: str, scan: TurnScan
) -> TurnPage:
    """Return the page of a session."""
    session = {"tenant": tenant, "session_uid": session_uid}
    last = connection.execute(statements.LAST_TURN, session).scalar_one() or 0
    low, high = _window(scan, last)
    if low > high or scan.limit < 1:
        return TurnPage(turns=(), resume_at=None)
    statuses = {"statuses": [int(status) for status in scan.statuses]}
    found = connection.execute(
        statements.turn_sizes(descending=scan.descending, of_statuses=bool(scan.statuses)),
        {**session, "low": low, "high": high, "limit": scan.limit}
        | (statuses if scan.statuses else {}),
    ).all()
    total = fitting = 0
    for row in found:
        total += row.size_bytes + _OVERHEAD_BYTES
        if fitting and total > scan.max_bytes:
            break
        fitting += 1
    if fitting < len(found) or fitting == scan.limit:
        resume_at = int(found[fitting - 1].number)
    else:
        resume_at = low if scan.descending else high
    is_last = resume_at <= 1 if scan.descending else resume_at >= last
    numbers = [row.number for row in found[:fitting]]
    return TurnPage(
        turns=_records(connection, session, numbers), resume_at=None if is_last else resume_at
    )


def _window(scan: TurnScan, last: int) -> tuple[int, int]:
    """Return the first and the last number that one scan may examine."""
    if scan.descending:
        high = last if scan.after_number is None else min(last, scan.after_number - 1)
        return max(1, high - scan.max_rows + 1), high
    low = (scan.after_number or 0) + 1
    return low, min(last, low + scan.max_rows - 1)


def _records(
    connection: Connection, session: dict[str, Any], numbers: list[int]
) -> tuple[TurnRecord, ...]:
    if not numbers:
        return ()
    rows = connection.execute(statements.TURNS_BY_NUMBER, {**session, "numbers": numbers})
    by_number = {row.number: turn_record(row) for row in rows}
    return tuple(by_number[number] for number in numbers)
