"""Reads of agents, sessions, turns and artifacts; those of events stand in `event_reads`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Select

from hansard_server.domain.clock import MICROSECONDS_PER_SECOND
from hansard_server.domain.errors import (
    AgentNotFound,
    ArtifactNotFound,
    EventNotFound,
    SessionNotFound,
    TurnNotFound,
)
from hansard_server.domain.records import (
    AgentRecord,
    ArtifactRecord,
    Claimed,
    EventRecord,
    SessionPulse,
    SessionRecord,
    SessionRef,
    SessionView,
    TurnRecord,
    TurnStatus,
    event_of_row,
)
from hansard_server.repository.api import (
    ArtifactTotals,
    CreationScan,
    EventPage,
    EventRows,
    EventScan,
    TurnPage,
    TurnScan,
)
from hansard_server.repository.commands import SessionName
from hansard_server.repository.forks import ForkPlan
from hansard_server.repository.sql import statements
from hansard_server.repository.sql.access import AGENTS_BY_UID, SqlAccessReads
from hansard_server.repository.sql.blobs import SqlBlobReads
from hansard_server.repository.sql.corpora import SqlCorpusReads
from hansard_server.repository.sql.event_reads import read_event_rows
from hansard_server.repository.sql.forks import plan_fork
from hansard_server.repository.sql.keysets import encode_keys
from hansard_server.repository.sql.prepared import rows
from hansard_server.repository.sql.rows import (
    AnyRow,
    agent_record,
    artifact_record,
    decode_first_answer,
    event_record,
    session_head,
    session_record,
    turn_record,
)
from hansard_server.repository.sql.scans import by_creation, scan_values
from hansard_server.repository.sql.tables import agents, artifacts, sessions
from hansard_server.repository.sql.turn_reads import read_turn_page


class SqlReadTx(SqlAccessReads, SqlBlobReads, SqlCorpusReads):
    """A ReadTx (see repository.api) on a connection whose transaction others begin and end."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    # Agents ---------------------------------------------------------------------------------------

    def get_agent(self, tenant: str, agent_key: str) -> AgentRecord:
        """Return the agent. Raises AgentNotFound."""
        row = self._one(statements.AGENT, tenant=tenant, agent_key=agent_key)
        if row is None:
            raise _no_agent()
        return agent_record(row)

    def get_agent_by_uid(self, tenant: str, agent_uid: str) -> AgentRecord:
        """Return the agent, deleted or not, while its row lasts. Raises AgentNotFound."""
        row = self._one(statements.AGENT_BY_UID, tenant=tenant, agent_uid=agent_uid)
        if row is None:
            raise _no_agent()
        return agent_record(row)

    def get_agents(self, tenant: str, agent_uids: Collection[str]) -> Sequence[AgentRecord]:
        """Return those agents that exist, in no order."""
        rows = self._all(AGENTS_BY_UID, **encode_keys({(tenant, uid) for uid in agent_uids}))
        return [agent_record(row) for row in rows]

    def find_agent_claim(self, tenant: str, request_id: str) -> Claimed[AgentRecord] | None:
        """Return what CreateAgent made under this request_id, even if deleted since."""
        row = self._one(statements.AGENT_CLAIM, tenant=tenant, request_id=request_id)
        if row is None:
            return None
        if row.first_answer is not None:
            return Claimed(row.fingerprint, decode_first_answer(AgentRecord, row.first_answer))
        return Claimed(row.fingerprint, agent_record(row))

    def scan_agents(self, tenant: str, scan: CreationScan) -> Sequence[AgentRecord]:
        """Return at most `scan.limit` agents."""
        select = by_creation(statements.AGENTS, scan, agents.c.created_at, agents.c.uid)
        rows = self._all(select, tenant=tenant, **scan_values(scan))
        return [agent_record(row) for row in rows]

    # Sessions -------------------------------------------------------------------------------------

    def resolve_session(self, name: SessionName) -> SessionRef:
        """Return the session by its keys. Raises AgentNotFound, SessionNotFound.

        Another incarnation than `name.uid` is not found.
        """
        row = self._one(
            statements.RESOLVE_SESSION,
            tenant=name.tenant,
            agent_key=name.agent_key,
            session_key=name.session_key,
        )
        if row is None:
            raise _no_agent()
        if row.session_uid is None or name.uid not in {None, row.session_uid}:
            raise _no_session()
        return SessionRef(
            tenant=name.tenant,
            uid=row.session_uid,
            agent_key=name.agent_key,
            key=name.session_key,
            agent_uid=row.agent_uid,
            last_sequence=row.last_sequence,
        )

    def get_session(self, tenant: str, agent_key: str, session_key: str) -> SessionView:
        """Return the session and its head. Raises AgentNotFound, SessionNotFound."""
        row = self._one(
            statements.SESSION, tenant=tenant, agent_key=agent_key, session_key=session_key
        )
        if row is None:
            raise _no_agent()
        if row.uid is None:
            raise _no_session()
        return _session_view(row)

    def get_session_by_uid(self, tenant: str, session_uid: str) -> SessionRecord:
        """Return the session, with the key of its agent. Raises SessionNotFound when deleted."""
        row = self._one(statements.SESSION_BY_UID, tenant=tenant, session_uid=session_uid)
        if row is None:
            raise _no_session()
        return session_record(row)

    def find_session_claim(
        self, tenant: str, agent_uid: str, request_id: str
    ) -> Claimed[SessionRecord] | None:
        """Return what CreateSession made under this request_id, even if deleted since."""
        row = self._one(
            statements.SESSION_CLAIM, tenant=tenant, agent_uid=agent_uid, request_id=request_id
        )
        if row is None:
            return None
        if row.first_answer is not None:
            return Claimed(row.fingerprint, decode_first_answer(SessionRecord, row.first_answer))
        return Claimed(row.fingerprint, session_record(row))

    def scan_sessions(
        self, tenant: str, agent_uid: str, scan: CreationScan
    ) -> Sequence[SessionView]:
        """Return at most `scan.limit` sessions of the agent."""
        select = by_creation(statements.SESSIONS, scan, sessions.c.created_at, sessions.c.uid)
        rows = self._all(select, tenant=tenant, agent_uid=agent_uid, **scan_values(scan))
        return [_session_view(row) for row in rows]

    def find_expired_sessions(self, now_us: int, limit: int) -> Sequence[tuple[str, str]]:
        """Return (tenant, uid) of sessions whose time has run out, of every tenant."""
        rows = self._all(statements.EXPIRED_SESSIONS, now=now_us, limit=limit)
        return [(row.tenant, row.session_uid) for row in rows]

    # Events and turns -----------------------------------------------------------------------------

    def last_sequence(self, tenant: str, session_uid: str) -> int:
        """Return the session's last sequence. Raises SessionNotFound when it was deleted."""
        row = self._one(statements.TAIL, tenant=tenant, session_uid=session_uid)
        if row is None or row.deleted:
            raise _no_session()
        return int(row.last_sequence)

    def get_event(self, tenant: str, session_uid: str, event_id: str) -> EventRecord:
        """Return the event, or its tombstone. Raises EventNotFound."""
        row = self._one(statements.EVENT, tenant=tenant, session_uid=session_uid, event_id=event_id)
        if row is None:
            raise EventNotFound("There is no such event in the session.")
        return event_record(row)

    def scan_events(
        self, tenant: str, session_uid: str, scan: EventScan, *, last_sequence: int | None = None
    ) -> EventPage:
        """Return a page; its cost does not grow with the session nor with the page's place.

        Raises SessionNotFound when the session was deleted.
        """
        last = last_sequence
        if last is None:
            last = self.last_sequence(tenant, session_uid)
        found = read_event_rows(self.connection, tenant, session_uid, last, scan)
        return EventPage(events=tuple(map(event_of_row, found.rows)), resume_at=found.resume_at)

    def scan_event_rows(self, session: SessionRef, scan: EventScan) -> EventRows:
        """Return what scan_events does, for a session that was resolved in this transaction."""
        return read_event_rows(
            self.connection, session.tenant, session.uid, session.last_sequence, scan
        )

    def get_payloads(
        self, tenant: str, session_uid: str, sequences: Sequence[int]
    ) -> dict[int, bytes]:
        """Return the payloads of events by their sequences, also of a fork that is being made."""
        rows = self._all(
            statements.EVENT_PAYLOADS,
            tenant=tenant,
            session_uid=session_uid,
            sequences=list(sequences),
        )
        return {row.sequence: row.payload for row in rows}

    def plan_fork(self, source: SessionRef, through: int) -> ForkPlan:
        """Return what a fork of the source's events up to a sequence copies."""
        return plan_fork(self.connection, source, through)

    def get_turn(self, tenant: str, session_uid: str, turn_id: str) -> TurnRecord:
        """Return the turn. Raises TurnNotFound."""
        row = self._one(statements.TURN, tenant=tenant, session_uid=session_uid, turn_id=turn_id)
        if row is None:
            raise TurnNotFound("There is no such turn in the session.")
        return turn_record(row)

    def scan_turns(self, tenant: str, session_uid: str, scan: TurnScan) -> TurnPage:
        """Return a page; its cost does not grow with the session nor with what it leaves out."""
        return read_turn_page(self.connection, tenant, session_uid, scan)

    def queue_position(self, tenant: str, session_uid: str, turn_number: int) -> int:
        """Return the place of a waiting turn among the waiting ones, from 1."""
        row = self._one(
            statements.QUEUE_POSITION, tenant=tenant, session_uid=session_uid, number=turn_number
        )
        return 0 if row is None else int(row[0])

    def get_turns(
        self, tenant: str, session_uid: str, turn_ids: Collection[str]
    ) -> Sequence[TurnRecord]:
        """Return those of the turns that exist, in any order."""
        keys = encode_keys({(turn_id,) for turn_id in turn_ids})
        rows = self._all(statements.TURNS_BY_ID, tenant=tenant, session_uid=session_uid, **keys)
        return [turn_record(row) for row in rows]

    def read_pulses(
        self, sessions: Collection[tuple[str, str]]
    ) -> Mapping[tuple[str, str], SessionPulse]:
        """Return the pulses of sessions, (tenant, uid) each, by one statement."""
        rows = self._all(statements.PULSES, **encode_keys(set(sessions)))
        return {(row.tenant, row.session_uid): _session_pulse(row) for row in rows}

    def find_altered(
        self, tenant: str, session_uid: str, after_count: int, limit: int
    ) -> Sequence[tuple[int, str]]:
        """Return (number, event id) of alterations after the `after_count`-th; see the Protocol."""
        rows = self._all(
            statements.ALTERED_EVENTS,
            tenant=tenant,
            session_uid=session_uid,
            after_count=after_count,
            limit=limit,
        )
        found = [(int(row.alteration), str(row.id)) for row in rows]
        while len(found) == limit and found[0][0] != found[-1][0]:
            # The other event of the last number may have been cut off.
            last = found[-1][0]
            found = [altered for altered in found if altered[0] != last]
        return found

    def find_unfinished_turns(self, limit: int, *, expired_only: bool) -> Sequence[TurnRecord]:
        """Return RUNNING turns of every tenant; only those whose lease ran out, if so asked."""
        select = statements.ABANDONED_TURNS if expired_only else statements.RUNNING_TURNS
        return [turn_record(row) for row in self._all(select, limit=limit)]

    def find_owned_turns(self, owner: str, limit: int) -> Sequence[TurnRecord]:
        """Return RUNNING turns, of every tenant, whose lease the owner holds."""
        rows = self._all(statements.TURNS_OF_OWNER, owner=owner, limit=limit)
        return [turn_record(row) for row in rows]

    def next_lease_end_s(self, owner: str) -> float | None:
        """Return in how many seconds the next lease of another owner ends; see the Protocol."""
        if self._one(statements.LEASE_GIVEN_UP) is not None:
            return 0.0
        row = self._one(statements.NEXT_LEASE_END, owner=owner)
        return None if row is None else int(row[0]) / MICROSECONDS_PER_SECOND

    def find_expired_calls(self, limit: int) -> Sequence[tuple[str, str, str]]:
        """Return (tenant, session uid, turn id) of turns that waited too long for somebody."""
        rows = self._all(statements.EXPIRED_CALLS, limit=limit)
        return [(row.tenant, row.session_uid, row.id) for row in rows]

    def find_idle_queues(self, limit: int) -> Sequence[tuple[str, str]]:
        """Return (tenant, uid) of sessions where a turn waits and none is unfinished."""
        rows = self._all(statements.IDLE_QUEUES, limit=limit)
        return [(row.tenant, row.session_uid) for row in rows]

    # Artifacts ------------------------------------------------------------------------------------

    def get_artifact(self, tenant: str, session_uid: str, artifact_id: str) -> ArtifactRecord:
        """Return the artifact. Raises ArtifactNotFound."""
        row = self._one(
            statements.ARTIFACT, tenant=tenant, session_uid=session_uid, artifact_id=artifact_id
        )
        if row is None:
            raise ArtifactNotFound("There is no such artifact in the session.")
        return artifact_record(row)

    def get_artifacts(
        self, tenant: str, session_uid: str, artifact_ids: Sequence[str]
    ) -> dict[str, ArtifactRecord]:
        """Return those that exist, by id."""
        rows = self._all(
            statements.ARTIFACTS_BY_ID,
            **encode_keys({(tenant, session_uid, artifact_id) for artifact_id in artifact_ids}),
        )
        return {row.id: artifact_record(row) for row in rows}

    def scan_artifacts(
        self, tenant: str, session_uid: str, scan: CreationScan
    ) -> Sequence[ArtifactRecord]:
        """Return at most `scan.limit` artifacts; Position.uid is the artifact's id."""
        select = by_creation(statements.ARTIFACTS, scan, artifacts.c.created_at, artifacts.c.id)
        values = {"tenant": tenant, "session_uid": session_uid}
        rows = self._all(select, **values, **scan_values(scan))
        return [artifact_record(row) for row in rows]

    def find_expired_artifacts(self, now_us: int, limit: int) -> Sequence[tuple[str, str, str]]:
        """Return (tenant, session uid, id) of artifacts whose time has run out, of every tenant."""
        rows = self._all(statements.EXPIRED_ARTIFACTS, now=now_us, limit=limit)
        return [(row.tenant, row.session_uid, row.id) for row in rows]

    def total_artifacts(self, tenant: str, session_uid: str) -> ArtifactTotals:
        """Return how many files the session has, and their bytes together."""
        row = self._one(statements.ARTIFACT_TOTALS, tenant=tenant, session_uid=session_uid)
        if row is None:
            return ArtifactTotals(files=0, size_bytes=0)
        return ArtifactTotals(files=row.artifact_files, size_bytes=row.artifact_bytes)

    def _one(self, select: Select[Any], **values: Any) -> AnyRow | None:
        found = rows(self.connection, select, values)
        return found[0] if found else None

    def _all(self, select: Select[Any], **values: Any) -> Sequence[AnyRow]:
        return rows(self.connection, select, values)


def _session_view(row: AnyRow) -> SessionView:
    return SessionView(session_record(row), session_head(row))


def _session_pulse(row: AnyRow) -> SessionPulse:
    return SessionPulse(
        last_sequence=row.last_sequence,
        deleted=bool(row.deleted),
        alteration_count=row.alteration_count,
        turn_count=row.turn_count,
        queued_turns=row.queued_turns,
        turn_id=row.unfinished_turn_id,
        turn_status=None if row.turn_status is None else TurnStatus(row.turn_status),
        turn_fence=row.fence or 0,
        owner_address=row.lease_address or "",
    )


def _no_agent() -> AgentNotFound:
    return AgentNotFound("There is no such agent.")


def _no_session() -> SessionNotFound:
    return SessionNotFound("There is no such session.")
