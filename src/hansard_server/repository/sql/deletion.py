"""What the deletion of a session does at once; the purge removes its rows later."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, update

from hansard_server.domain.records import SessionStatus, TurnStatus
from hansard_server.repository.sql.rows import AnyRow
from hansard_server.repository.sql.statements import QUEUED
from hansard_server.repository.sql.tables import session_heads, sessions, turns

_HIDE_HEAD = (
    update(session_heads)
    .where(
        session_heads.c.tenant == bindparam("of_tenant"),
        session_heads.c.session_uid == bindparam("of_uid"),
    )
    .values(
        deleted=True,
        expire_at=None,
        status=int(SessionStatus.IDLE),
        unfinished_turn_id=None,
        queued_turns=0,
    )
)
_HIDE_SESSION = (
    update(sessions)
    .where(sessions.c.tenant == bindparam("of_tenant"), sessions.c.uid == bindparam("of_uid"))
    .values(deleted_at=bindparam("now"))
)
_END_TURNS = (
    update(turns)
    .where(turns.c.tenant == bindparam("of_tenant"), turns.c.session_uid == bindparam("of_uid"))
    .values(
        status=int(TurnStatus.INTERRUPTED),
        ended_at=bindparam("now"),
        fence=turns.c.fence + 1,
        pending_calls=b"",
        pending_until=None,
        lease_owner=None,
        lease_until=None,
        lease_address=None,
    )
)
# Two statements, since an index leads to each: a session may have any number of ended turns.
_END_WAITING_TURNS = _END_TURNS.where(turns.c.status == QUEUED)
_END_UNFINISHED_TURN = _END_TURNS.where(turns.c.id == bindparam("turn_id"))


def hide_session(connection: Connection, head: AnyRow, now_us: int) -> None:
    """Hide the session and end its unfinished turns; `head` is its head's row, locked."""
    session = {"of_tenant": head.tenant, "of_uid": head.session_uid}
    values = {**session, "now": now_us}
    connection.execute(_HIDE_HEAD, session)
    connection.execute(_HIDE_SESSION, values)
    connection.execute(_END_WAITING_TURNS, values)
    if head.unfinished_turn_id is not None:
        connection.execute(_END_UNFINISHED_TURN, {**values, "turn_id": head.unfinished_turn_id})
