"""Writes of agents, sessions and artifacts by decisions; events and turns are written by commands.

Whoever writes a session's rows locks its head first, so that no two wait for each other.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, tuple_, update

from hansard_server.domain.clock import MICROSECONDS_PER_MINUTE, MICROSECONDS_PER_SECOND
from hansard_server.domain.errors import AgentNotFound, ArtifactNotFound, SessionNotFound
from hansard_server.domain.records import (
    AgentRecord,
    ArtifactRecord,
    Claim,
    EventRecord,
    SessionRecord,
    SessionStatus,
    SessionView,
    TurnRecord,
    Usage,
)
from hansard_server.repository.api import Alteration, Change
from hansard_server.repository.forks import ForkedTurn, ForkRef, ForkTotals
from hansard_server.repository.sql import forks, statements
from hansard_server.repository.sql.access import SqlAccessWrites
from hansard_server.repository.sql.alterations import alter_event
from hansard_server.repository.sql.blobs import SqlBlobWrites
from hansard_server.repository.sql.corpora import SqlCorpusWrites
from hansard_server.repository.sql.corpus_purge import purge_corpora
from hansard_server.repository.sql.deletion import hide_session
from hansard_server.repository.sql.engine import Conflict, database_now_us, lock_for_update
from hansard_server.repository.sql.keysets import encode_keys
from hansard_server.repository.sql.purge import purge_deleted
from hansard_server.repository.sql.rates import SqlRateWrites
from hansard_server.repository.sql.reads import SqlReadTx
from hansard_server.repository.sql.rows import (
    AnyRow,
    agent_record,
    agent_values,
    artifact_record,
    claim_values,
    encode_first_answer,
    session_record,
    session_values,
)
from hansard_server.repository.sql.tables import (
    agents,
    artifacts,
    session_heads,
    sessions,
    turns,
)

_NOTHING_COPIED = ForkTotals(
    last_sequence=0,
    last_event_at_us=0,
    turn_count=0,
    usage=Usage(),
    artifact_files=0,
    artifact_bytes=0,
)
_HEAD_LOCKED = lock_for_update(statements.HEAD)
_AGENT_LOCKED = lock_for_update(statements.AGENT_BY_UID)
_UPDATE_AGENT = update(agents).where(
    agents.c.tenant == bindparam("of_tenant"), agents.c.uid == bindparam("of_uid")
)
_DELETE_AGENT = (
    update(agents)
    .where(
        agents.c.tenant == bindparam("of_tenant"),
        agents.c.uid == bindparam("of_uid"),
        agents.c.deleted_at.is_(None),
    )
    .values(deleted_at=bindparam("now"))
)
_UPDATE_SESSION = update(sessions).where(
    sessions.c.tenant == bindparam("of_tenant"), sessions.c.uid == bindparam("of_uid")
)
_UPDATE_HEAD = update(session_heads).where(
    session_heads.c.tenant == bindparam("of_tenant"),
    session_heads.c.session_uid == bindparam("of_uid"),
)
_DELETE_ARTIFACT = delete(artifacts).where(
    artifacts.c.tenant == bindparam("of_tenant"),
    artifacts.c.session_uid == bindparam("of_uid"),
    artifacts.c.id == bindparam("artifact_id"),
)
# What somebody else has locked is passed over: they may be waiting for what is locked here, and the
# next renewal comes long before a lease runs out.
_LEASES_TO_RENEW = lock_for_update(statements.OWNED_TURNS, of=turns, skip_locked=True)
_RENEW_LEASES = (
    update(turns)
    .where(
        tuple_(turns.c.tenant, turns.c.session_uid, turns.c.id).in_(_LEASES_TO_RENEW),
        turns.c.status == statements.RUNNING,
    )
    .values(lease_until=database_now_us() + bindparam("duration"))
)


class SqlWriteTx(SqlReadTx, SqlAccessWrites, SqlBlobWrites, SqlCorpusWrites, SqlRateWrites):
    """A WriteTx (see repository.api) on a connection whose transaction others begin and end.

    `changes` is what watchers are told after the commit.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.changes: list[Change] = []
        # uid → etag of what the decision has seen. An update writes only over that: between the
        # two another transaction may have committed.
        self._seen: dict[str, str] = {}

    # Agents ---------------------------------------------------------------------------------------

    def get_agent(self, tenant: str, agent_key: str) -> AgentRecord:
        """Return the agent. Raises AgentNotFound."""
        agent = super().get_agent(tenant, agent_key)
        self._seen[agent.uid] = agent.etag
        return agent

    def insert_agent(self, agent: AgentRecord, claim: Claim | None) -> None:
        """Write a new agent. An IntegrityError says that its key or claim was taken meanwhile."""
        self.connection.execute(insert(agents), agent_values(agent) | claim_values(claim))

    def update_agent(self, agent: AgentRecord) -> None:
        """Replace what callers set of the agent with this uid.

        Raises AgentNotFound when it is gone, Conflict when it is not what was read.
        """
        row = self._one(_AGENT_LOCKED, tenant=agent.tenant, agent_uid=agent.uid)
        if row is None or row.deleted_at is not None:
            raise AgentNotFound("There is no such agent.")
        self._check_seen(row)
        values = {
            "name": agent.name,
            "description": agent.description,
            "configuration": agent.configuration,
            "metadata": agent.metadata,
            "enabled": agent.enabled,
            "etag": agent.etag,
            "updated_at": agent.updated_at_us,
        }
        if _answer_is_kept_from_now_on(row):
            values["first_answer"] = encode_first_answer(agent_record(row))
        self._update(_UPDATE_AGENT, agent.tenant, agent.uid, values)
        self._seen[agent.uid] = agent.etag

    def delete_agent(self, tenant: str, agent_uid: str, now_us: int) -> None:
        """Hide the agent: its key is free, its sessions are deleted soon after by the purge."""
        self.connection.execute(
            _DELETE_AGENT, {"of_tenant": tenant, "of_uid": agent_uid, "now": now_us}
        )
        self._delete_roles_on(tenant, agent_uid)

    # Sessions -------------------------------------------------------------------------------------

    def get_session(self, tenant: str, agent_key: str, session_key: str) -> SessionView:
        """Return the session and its head. Raises AgentNotFound, SessionNotFound."""
        view = super().get_session(tenant, agent_key, session_key)
        self._seen[view.record.uid] = view.record.etag
        return view

    def insert_session(self, session: SessionRecord, claim: Claim | None) -> None:
        """Write a new, empty session and its head; as insert_agent."""
        self._insert_session(session, claim, _NOTHING_COPIED)

    def _insert_session(
        self, session: SessionRecord, claim: Claim | None, totals: ForkTotals
    ) -> None:
        self.connection.execute(insert(sessions), session_values(session) | claim_values(claim))
        created = session.created_at_us
        head = {
            "tenant": session.tenant,
            "session_uid": session.uid,
            "tti_minutes": session.tti_minutes,
            "last_sequence": totals.last_sequence,
            "last_event_at": max(created, totals.last_event_at_us),
            "last_active_at": created,
            "status": int(SessionStatus.IDLE),
            "unfinished_turn_id": None,
            "queued_turns": 0,
            "turn_count": totals.turn_count,
            "input_tokens": totals.usage.input_tokens,
            "output_tokens": totals.usage.output_tokens,
            "reasoning_tokens": totals.usage.reasoning_tokens,
            "artifact_files": totals.artifact_files,
            "artifact_bytes": totals.artifact_bytes,
            "expire_at": _expiry(created, session.tti_minutes),
            "deleted": False,
        }
        self.connection.execute(insert(session_heads), head)

    def update_session(self, session: SessionRecord) -> None:
        """Replace what callers set of the session with this uid; its expiry follows.

        Raises SessionNotFound when it is gone, Conflict when it is not what was read.
        """
        head = self._lock_head(session.tenant, session.uid)
        if head is None or head.deleted:
            raise SessionNotFound("There is no such session.")
        row = self._one(statements.SESSION_BY_UID, tenant=session.tenant, session_uid=session.uid)
        if row is None:
            raise SessionNotFound("There is no such session.")
        self._check_seen(row)
        values = {
            "name": session.name,
            "description": session.description,
            "metadata": session.metadata,
            "enabled": session.enabled,
            "tti_minutes": session.tti_minutes,
            "etag": session.etag,
            "updated_at": session.updated_at_us,
        }
        if _answer_is_kept_from_now_on(row):
            values["first_answer"] = encode_first_answer(session_record(row))
        self._update(_UPDATE_SESSION, session.tenant, session.uid, values)
        busy = head.unfinished_turn_id is not None or head.queued_turns > 0
        expire_at = None if busy else _expiry(head.last_active_at, session.tti_minutes)
        followed = {"tti_minutes": session.tti_minutes, "expire_at": expire_at}
        self._update(_UPDATE_HEAD, session.tenant, session.uid, followed)
        self._seen[session.uid] = session.etag

    def delete_session(self, tenant: str, session_uid: str, now_us: int) -> bool:
        """Hide the session, end its unfinished turns as INTERRUPTED. False: it was gone already."""
        head = self._lock_head(tenant, session_uid)
        if head is None or head.deleted:
            return False
        hide_session(self.connection, head, now_us)
        self.changes.append(Change(tenant=tenant, session_uid=session_uid, deleted=True))
        return True

    def delete_expired_session(self, tenant: str, session_uid: str, now_us: int) -> bool:
        """Delete the session if, under its lock, its time has still run out."""
        head = self._lock_head(tenant, session_uid)
        if head is None or head.expire_at is None or head.expire_at > now_us:
            return False
        return self.delete_session(tenant, session_uid, now_us)

    def purge_deleted(self, now_us: int, *, keep_rows_us: int, max_rows: int) -> int:
        """Remove rows of what was deleted, at most `max_rows`; return how many.

        A session that goes because its agent went counts as one more. The rows that carry claims
        stay for `keep_rows_us` after the deletion.
        """
        removed = purge_deleted(
            self.connection,
            self.delete_session,
            now_us,
            keep_rows_us=keep_rows_us,
            max_rows=max_rows,
        )
        if removed < max_rows:
            removed += purge_corpora(
                self.connection, now_us, keep_rows_us=keep_rows_us, max_rows=max_rows - removed
            )
        return removed

    # Forks ----------------------------------------------------------------------------------------

    def begin_fork(self, fork: ForkRef, agent_uid: str, request_id: str | None) -> bool:
        """Make the place for a fork's copies; False when another fork of this request is alive."""
        return forks.begin_fork(self.connection, fork, agent_uid, request_id)

    def copy_fork_events(self, fork: ForkRef, sequences: Sequence[int], first: int) -> None:
        """Copy events of the source; see the Protocol."""
        forks.copy_events(self.connection, fork, sequences, first)

    def copy_fork_turns(self, fork: ForkRef, turns: Sequence[ForkedTurn]) -> Usage:
        """Copy turns that have ended, and return what they used; see the Protocol."""
        return forks.copy_turns(self.connection, fork, turns)

    def copy_fork_artifacts(self, fork: ForkRef, ids: Collection[str]) -> int:
        """Copy artifacts, and return their sizes together; see the Protocol."""
        return forks.copy_artifacts(self.connection, fork, ids)

    def write_fork_events(self, fork: ForkRef, events: Sequence[EventRecord]) -> None:
        """Write events of the fork's own. Raises ForkLost."""
        forks.write_events(self.connection, fork, events)

    def finish_fork(
        self,
        session: SessionRecord,
        claim: Claim | None,
        totals: ForkTotals,
        cut_turn: TurnRecord | None,
    ) -> None:
        """Write the session and its head, which makes it visible; see the Protocol."""
        forks.end_fork(self.connection, session.tenant, session.uid)
        if cut_turn is not None:
            forks.insert_turn(self.connection, cut_turn)
        self._insert_session(session, claim, totals)

    def give_up_fork(self, tenant: str, uid: str) -> None:
        """Leave the fork's copies to the purge."""
        forks.give_up_fork(self.connection, tenant, uid)

    def give_up_all_forks(self) -> None:
        """Leave the copies of all forks to the purge; only where this process is alone."""
        forks.give_up_all_forks(self.connection)

    # Artifacts and leases -------------------------------------------------------------------------

    def alter_event(
        self, tenant: str, session_uid: str, event_id: str, alteration: Alteration, now_us: int
    ) -> EventRecord:
        """Hide, unhide or delete an event with the other half of its call; see the Protocol."""
        head = self._lock_head(tenant, session_uid)
        if head is None or head.deleted:
            raise SessionNotFound("There is no such session.")
        event, changed = alter_event(self.connection, head, event_id, alteration, now_us)
        if changed:
            self.changes.append(
                Change(
                    tenant=tenant,
                    session_uid=session_uid,
                    altered=tuple((head.alteration_count + 1, id_) for id_ in changed),
                )
            )
        return event

    def delete_artifact(self, tenant: str, session_uid: str, artifact_id: str) -> ArtifactRecord:
        """Remove the artifact, and return it. Raises ArtifactNotFound."""
        head = self._lock_head(tenant, session_uid)
        row = self._one(
            statements.ARTIFACT, tenant=tenant, session_uid=session_uid, artifact_id=artifact_id
        )
        if head is None or head.deleted or row is None:
            raise ArtifactNotFound("There is no such artifact in the session.")
        self.connection.execute(
            _DELETE_ARTIFACT,
            {"of_tenant": tenant, "of_uid": session_uid, "artifact_id": artifact_id},
        )
        totals = {
            "artifact_files": head.artifact_files - 1,
            "artifact_bytes": head.artifact_bytes - row.size_bytes,
        }
        self._update(_UPDATE_HEAD, tenant, session_uid, totals)
        return artifact_record(row)

    def renew_leases(
        self, owner: str, running: Collection[tuple[str, str, str]], duration_s: float
    ) -> None:
        """Renew the leases of these turns, as far as the owner holds them, by one statement."""
        duration = round(duration_s * MICROSECONDS_PER_SECOND)
        self.connection.execute(
            _RENEW_LEASES, {"owner": owner, "duration": duration, **encode_keys(running)}
        )

    def _lock_head(self, tenant: str, session_uid: str) -> AnyRow | None:
        return self._one(_HEAD_LOCKED, tenant=tenant, session_uid=session_uid)

    def _check_seen(self, row: AnyRow) -> None:
        if self._seen.get(row.uid, row.etag) != row.etag:
            raise Conflict

    def _update(self, statement: Any, tenant: str, uid: str, values: dict[str, Any]) -> None:
        names: dict[str, Any] = {name: bindparam(f"new_{name}") for name in values}
        given = {f"new_{name}": value for name, value in values.items()}
        self.connection.execute(
            statement.values(**names), {"of_tenant": tenant, "of_uid": uid, **given}
        )


def _expiry(last_active_at: int, tti_minutes: int) -> int | None:
    return last_active_at + tti_minutes * MICROSECONDS_PER_MINUTE if tti_minutes > 0 else None


def _answer_is_kept_from_now_on(row: AnyRow) -> bool:
    """Tell whether the row has a claim and is still as its request made it."""
    return row.request_id is not None and row.first_answer is None
