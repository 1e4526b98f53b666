"""The purge: rows of what was deleted, removed in pieces, children before parents.

Forks that nobody works on any more go, and sessions of deleted agents are deleted first. What a
deleted session holds goes at once; its own row and its agent's carry claims, so they stay for a
while.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Delete,
    Select,
    Table,
    and_,
    bindparam,
    delete,
    select,
    tuple_,
    update,
)

from hansard_server.repository.sql.engine import database_now_us, lock_for_update
from hansard_server.repository.sql.tables import (
    agents,
    artifacts,
    claims,
    events,
    forks,
    session_heads,
    sessions,
    turns,
)

DeleteSession = Callable[[str, str, int], bool]
"""Deletes a session, given tenant, uid and time; False: it was deleted already."""


def _piece_of(table: Table, *key: Column[Any]) -> Delete:
    """Return the delete of at most `limit` rows of one session, named by the rest of their key."""
    of_session = and_(
        table.c.tenant == bindparam("of_tenant"), table.c.session_uid == bindparam("of_uid")
    )
    piece = select(*key).where(of_session).limit(bindparam("limit"))
    name = tuple_(*key) if len(key) > 1 else key[0]
    return delete(table).where(of_session, name.in_(piece))


_CHILDREN = (
    _piece_of(events, events.c.sequence),
    _piece_of(turns, turns.c.id),
    _piece_of(claims, claims.c.scope, claims.c.request_id),
    _piece_of(artifacts, artifacts.c.id),
)
_A_LIVE_SESSION = (
    select(sessions.c.uid)
    .where(
        sessions.c.tenant == agents.c.tenant,
        sessions.c.agent_uid == agents.c.uid,
        sessions.c.deleted_at.is_(None),
    )
    .limit(1)
    .correlate(agents)
    .scalar_subquery()
)
# Not a join with the sessions: for that both databases walk through all that live.
_DELETED_AGENTS_WITH_SESSIONS = (
    select(agents.c.tenant, agents.c.uid)
    .where(agents.c.deleted_at.is_not(None), _A_LIVE_SESSION.is_not(None))
    .limit(bindparam("limit"))
)
_LIVE_SESSIONS = (
    select(sessions.c.tenant, sessions.c.uid)
    .where(
        sessions.c.tenant == bindparam("tenant"),
        sessions.c.agent_uid == bindparam("agent_uid"),
        sessions.c.deleted_at.is_(None),
    )
    .order_by(sessions.c.created_at, sessions.c.uid)
    .limit(bindparam("limit"))
)
_DELETED_SESSIONS = (
    select(sessions.c.tenant, sessions.c.uid)
    .where(sessions.c.deleted_at.is_not(None), sessions.c.purged.is_(False))
    .order_by(sessions.c.deleted_at)
    .limit(bindparam("limit"))
)
_HEAD_LOCKED = lock_for_update(
    select(session_heads.c.deleted).where(
        session_heads.c.tenant == bindparam("of_tenant"),
        session_heads.c.session_uid == bindparam("of_uid"),
    )
)
_DELETE_HEAD = delete(session_heads).where(
    session_heads.c.tenant == bindparam("of_tenant"),
    session_heads.c.session_uid == bindparam("of_uid"),
)
_MARK_PURGED = (
    update(sessions)
    .where(sessions.c.tenant == bindparam("of_tenant"), sessions.c.uid == bindparam("of_uid"))
    .values(purged=True)
)
# Locked: whoever still believes to work on one waits for the lock to renew it, and finds it gone.
_DEAD_FORKS = lock_for_update(
    select(forks.c.tenant, forks.c.session_uid)
    .where(forks.c.alive_until <= database_now_us())
    .order_by(forks.c.alive_until)
    .limit(bindparam("limit")),
    skip_locked=True,
)
_OF_FORK = (
    forks.c.tenant == bindparam("of_tenant"),
    forks.c.session_uid == bindparam("of_uid"),
)
_GIVE_UP_FORK = update(forks).where(*_OF_FORK).values(alive_until=0, request_id=None)
_DELETE_FORK = delete(forks).where(*_OF_FORK)
_OLD_SESSIONS = lock_for_update(
    select(sessions.c.tenant, sessions.c.uid)
    .where(sessions.c.deleted_at <= bindparam("before"), sessions.c.purged.is_(True))
    .order_by(sessions.c.deleted_at)
    .limit(bindparam("limit")),
    skip_locked=True,
)
_OLD_AGENTS = lock_for_update(
    select(agents.c.tenant, agents.c.uid)
    .where(
        agents.c.deleted_at <= bindparam("before"),
        _A_LIVE_SESSION.is_(None),
        tuple_(agents.c.tenant, agents.c.uid).not_in(
            select(sessions.c.tenant, sessions.c.agent_uid).where(
                sessions.c.deleted_at.is_not(None)
            )
        ),
    )
    .order_by(agents.c.deleted_at)
    .limit(bindparam("limit")),
    skip_locked=True,
)


def purge_deleted(
    connection: Connection,
    delete_session: DeleteSession,
    now_us: int,
    *,
    keep_rows_us: int,
    max_rows: int,
) -> int:
    """Remove at most `max_rows` rows; return how many, 0 when there is nothing left to do now.

    A session that is deleted because its agent was counts as one.
    """
    removed = _purge_forks(connection, max_rows)
    if removed >= max_rows:
        return removed
    for tenant, uid in _sessions_to_purge(connection, max_rows):
        if removed >= max_rows:
            return removed
        # False: it was deleted before, or by somebody else since it was found.
        if delete_session(tenant, uid, now_us):
            removed += 1
        else:
            removed += _purge_session(connection, tenant, uid, max_rows - removed)
    for table, old in ((sessions, _OLD_SESSIONS), (agents, _OLD_AGENTS)):
        values = {"before": now_us - keep_rows_us, "limit": max_rows - removed}
        if values["limit"] > 0:
            removed += _remove(connection, table, old, values)
    return removed


def _purge_forks(connection: Connection, budget: int) -> int:
    """Remove rows of forks that nobody works on, their own as the last; return how many."""
    removed = 0
    for row in connection.execute(_DEAD_FORKS, {"limit": budget}).all():
        fork = {"of_tenant": row.tenant, "of_uid": row.session_uid}
        connection.execute(_GIVE_UP_FORK, fork)
        removed += _remove_children(connection, fork, budget - removed)
        if removed >= budget:
            return removed
        removed += connection.execute(_DELETE_FORK, fork).rowcount
    return removed


def _remove_children(connection: Connection, session: dict[str, str], budget: int) -> int:
    removed = 0
    for statement in _CHILDREN:
        if removed < budget:
            values = {**session, "limit": budget - removed}
            removed += connection.execute(statement, values).rowcount
    return removed


def _sessions_to_purge(connection: Connection, limit: int) -> list[tuple[str, str]]:
    found = {
        (row.tenant, row.uid) for row in connection.execute(_DELETED_SESSIONS, {"limit": limit})
    }
    orphaned = connection.execute(_DELETED_AGENTS_WITH_SESSIONS, {"limit": limit}).all()
    for agent in orphaned:
        if len(found) >= 2 * limit:
            break
        values = {"tenant": agent.tenant, "agent_uid": agent.uid, "limit": limit}
        found.update((row.tenant, row.uid) for row in connection.execute(_LIVE_SESSIONS, values))
    # In the order in which everybody locks heads.
    return sorted(found)


def _purge_session(connection: Connection, tenant: str, uid: str, budget: int) -> int:
    """Remove rows of a deleted session, its head as the last; return how many."""
    session = {"of_tenant": tenant, "of_uid": uid}
    connection.execute(_HEAD_LOCKED, session).all()
    removed = _remove_children(connection, session, budget)
    if removed >= budget:
        return removed
    removed += connection.execute(_DELETE_HEAD, session).rowcount
    connection.execute(_MARK_PURGED, session)
    return removed


def _remove(connection: Connection, table: Table, old: Select[Any], values: dict[str, int]) -> int:
    keys = [{"of_tenant": r.tenant, "of_uid": r.uid} for r in connection.execute(old, values)]
    if keys:
        # One by one: for a list of such keys SQLite reads the whole table.
        one = delete(table).where(
            table.c.tenant == bindparam("of_tenant"), table.c.uid == bindparam("of_uid")
        )
        connection.execute(one, keys)
    return len(keys)
