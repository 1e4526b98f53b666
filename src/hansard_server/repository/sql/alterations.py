"""Events that are hidden, shown again or deleted; a tool's input and output go together."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from hansard_server.domain.errors import EventNotFound, SessionBusy
from hansard_server.domain.records import EventRecord, HideReason
from hansard_server.repository.api import Alteration
from hansard_server.repository.sql.rows import AnyRow, event_record
from hansard_server.repository.sql.tables import events, session_heads, turns

_OF_SESSION = (
    events.c.tenant == bindparam("of_tenant"),
    events.c.session_uid == bindparam("of_uid"),
)
_EVENT = select(events).where(*_OF_SESSION, events.c.id == bindparam("event_id"))
_PAIR = select(events).where(
    *_OF_SESSION,
    events.c.tool_call_id == bindparam("tool_call_id"),
    events.c.tool_call_id.is_not(None),
)
_VISIBLE_SPAN = (
    select(events.c.sequence, events.c.id)
    .where(
        *_OF_SESSION,
        events.c.sequence.between(bindparam("low"), bindparam("high")),
        events.c.hide_reason == int(HideReason.NONE),
        events.c.deleted_at.is_(None),
    )
    .order_by(events.c.sequence)
)
_UPDATE = update(events).where(*_OF_SESSION, events.c.sequence == bindparam("of_sequence"))
_HIDE = _UPDATE.values(hide_reason=bindparam("reason"), alteration=bindparam("number"))
_DELETE = _UPDATE.values(
    deleted_at=bindparam("now"), payload=b"", size_bytes=0, alteration=bindparam("number")
)
# The turn of a deleted input has its words, too.
_FORGET_INPUT = (
    update(turns)
    .where(
        turns.c.tenant == bindparam("of_tenant"),
        turns.c.session_uid == bindparam("of_uid"),
        turns.c.id == bindparam("of_turn"),
        turns.c.input_event_id == bindparam("of_event"),
    )
    .values(input=b"")
)
_COUNT = (
    update(session_heads)
    .where(
        session_heads.c.tenant == bindparam("of_tenant"),
        session_heads.c.session_uid == bindparam("of_uid"),
    )
    .values(alteration_count=bindparam("number"))
)


def alter_event(
    connection: Connection,
    head: AnyRow,
    event_id: str,
    alteration: Alteration,
    now_us: int,
) -> tuple[EventRecord, list[str]]:
    """Alter an event, and the other half of its call; return it as it is then, and whose changed.

    `head` is the session's, locked. Raises EventNotFound; SessionBusy for an event of its
    unfinished turn.
    """
    of_session = {"of_tenant": head.tenant, "of_uid": head.session_uid}
    unfinished_turn_id = head.unfinished_turn_id
    row = connection.execute(_EVENT, {**of_session, "event_id": event_id}).one_or_none()
    if row is None:
        raise EventNotFound.of_field("event_id", f"there is no event {event_id!r}")
    rows: list[Any] = [row]
    if row.tool_call_id is not None:
        rows = list(connection.execute(_PAIR, {**of_session, "tool_call_id": row.tool_call_id}))
    if unfinished_turn_id is not None and any(r.turn_id == unfinished_turn_id for r in rows):
        raise SessionBusy("the event is of a turn that is unfinished", retry_after_s=1.0)
    changed = [r for r in rows if _changes(r, alteration)]
    if changed:
        statement = _DELETE if alteration is Alteration.DELETE else _HIDE
        reason = HideReason.NONE if alteration is Alteration.UNHIDE else HideReason.MANUAL
        number = head.alteration_count + 1
        values: dict[str, int] = {"reason": int(reason), "number": number}
        if alteration is Alteration.DELETE:
            values = {"now": now_us, "number": number}
        connection.execute(
            statement, [{**of_session, **values, "of_sequence": r.sequence} for r in changed]
        )
        if alteration is Alteration.DELETE:
            of_events = [
                {**of_session, "of_turn": r.turn_id, "of_event": r.id}
                for r in changed
                if r.turn_id is not None
            ]
            if of_events:
                connection.execute(_FORGET_INPUT, of_events)
        connection.execute(_COUNT, {**of_session, "number": number})
    after = connection.execute(_EVENT, {**of_session, "event_id": event_id}).one()
    return event_record(after), [r.id for r in changed]


def hide_summarised(
    connection: Connection, session: tuple[str, str], sequences: AbstractSet[int], first_number: int
) -> tuple[tuple[int, str], ...]:
    """Hide those of a session's events that are visible, since a compaction has summarised them.

    Return (number of the alteration, event id) of each, the numbers counted from `first_number`;
    the session's head is locked.
    """
    of_session = {"of_tenant": session[0], "of_uid": session[1]}
    span = {"low": min(sequences), "high": max(sequences)}
    visible = connection.execute(_VISIBLE_SPAN, {**of_session, **span})
    rows = [row for row in visible if row.sequence in sequences]
    if not rows:
        return ()
    reason = int(HideReason.COMPACTION)
    numbered = list(enumerate(rows, first_number))
    connection.execute(
        _HIDE,
        [
            {**of_session, "reason": reason, "number": number, "of_sequence": row.sequence}
            for number, row in numbered
        ],
    )
    return tuple((number, row.id) for number, row in numbered)


def _changes(row: Any, alteration: Alteration) -> bool:
    if row.deleted_at is not None:
        return False
    match alteration:
        case Alteration.HIDE:
            return bool(row.hide_reason == HideReason.NONE)
        case Alteration.UNHIDE:
            return bool(row.hide_reason != HideReason.NONE)
        case Alteration.DELETE:
            return True
