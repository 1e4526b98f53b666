"""What one may do with sessions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol

from hansard.v1 import session_pb2, session_service_pb2
from hansard_server.domain import keys
from hansard_server.domain.clock import MICROSECONDS_PER_MINUTE, Clock, now_us
from hansard_server.domain.errors import (
    DomainError,
    EtagMismatch,
    SessionAlreadyExists,
    SessionNotFound,
)
from hansard_server.domain.limits import Limits
from hansard_server.domain.records import Claim, SessionHead, SessionRecord, SessionView, Usage
from hansard_server.domain.values import dataclass
from hansard_server.repository.api import ReadTx, Store, WriteTx
from hansard_server.repository.commands import SessionName
from hansard_server.resources.fingerprints import answer_once, claim_of, first_answer
from hansard_server.resources.listing import ROW_OVERHEAD_BYTES, CreationLists, Fetch
from hansard_server.resources.masks import read_mask
from hansard_server.resources.metadata import check_struct
from hansard_server.resources.paging import Page, PageTokens

_UPDATABLE = frozenset({"name", "description", "metadata", "enabled", "tti_minutes"})
_KEY_TRIES = 8


@dataclass(frozen=True, slots=True)
class Admitted:
    """What a request to create comes to: a new session, or the one that it made before."""

    record: SessionRecord
    claimed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkWish:
    """A session that is to be made from another.

    Attributes:
        agent_key: of the new session.
        source: what it is made from.
        claim: of the request.
        admit: decides whether it may be made, and under which key, or has been made before. Raises
            what CreateSession does.
    """

    tenant: str
    agent_key: str
    source: session_pb2.FromSession
    claim: Claim | None
    admit: Callable[[WriteTx], Admitted]


class MakeFork(Protocol):
    """Makes forks."""

    async def __call__(self, wish: ForkWish) -> SessionRecord:
        """Return the new session, or the one that the request made before, when it is whole."""
        ...


class Sessions:
    """Creates, gets, lists, updates and deletes sessions. Requests keep to the contract's rules."""

    def __init__(
        self,
        store: Store,
        *,
        limits: Limits,
        tokens: PageTokens,
        make_fork: MakeFork,
        clock: Clock = now_us,
    ) -> None:
        self._store = store
        self._make_fork = make_fork
        self._limits = limits
        self._lists = CreationLists(store, tokens, limits)
        self._clock = clock

    async def create(
        self, tenant: str, request: session_service_pb2.CreateSessionRequest
    ) -> SessionView:
        """Return the new session, or the first answer to this request_id.

        Raises AgentNotFound, RequestIdReused, InvalidMetadata, SessionAlreadyExists, and what
        MakeFork does.
        """
        if not request.HasField("enabled"):
            request.enabled = True
        fault = self._find_fault(request)
        claim = claim_of(request.request_id, request)
        if fault is not None and claim is None:
            raise fault
        draft = SessionRecord(
            tenant=tenant,
            uid=keys.make_uid(),
            agent_uid="",
            agent_key=request.agent_key,
            key=request.key,
            name=request.name,
            description=request.description,
            metadata=request.metadata.SerializeToString(deterministic=True),
            enabled=request.enabled,
            tti_minutes=request.tti_minutes,
            etag=keys.make_etag(),
            created_at_us=(now := self._clock()),
            updated_at_us=now,
        )

        admit = partial(_admit, draft=draft, claim=claim, fault=fault)

        def decide(tx: WriteTx) -> SessionRecord:
            admitted = admit(tx)
            if not admitted.claimed:
                tx.insert_session(admitted.record, claim)
            return admitted.record

        if not request.HasField("from_session"):
            return _as_created(await self._store.write(decide))
        wish = ForkWish(
            tenant=tenant,
            agent_key=request.agent_key,
            source=request.from_session,
            claim=claim,
            admit=admit,
        )
        return _as_created(await self._make_fork(wish))

    async def get(self, tenant: str, request: session_service_pb2.GetSessionRequest) -> SessionView:
        """Return the session. Raises AgentNotFound, SessionNotFound."""
        return await self._store.read(
            lambda tx: tx.get_session(tenant, request.agent_key, request.session_key)
        )

    async def list(
        self, tenant: str, request: session_service_pb2.ListSessionsRequest
    ) -> Page[SessionView]:
        """Return a page of the agent's sessions.

        Raises AgentNotFound, InvalidRequest, InvalidMetadata, InvalidPageToken.
        """

        def fetch(tx: ReadTx) -> Fetch[SessionView]:
            agent_uid = tx.get_agent(tenant, request.agent_key).uid
            return lambda scan: tx.scan_sessions(tenant, agent_uid, scan)

        return await self._lists.list(
            tenant,
            request,
            fetch=fetch,
            record=lambda view: view.record,
            size=_size,
        )

    async def update(
        self, tenant: str, request: session_service_pb2.UpdateSessionRequest
    ) -> SessionView:
        """Return the session with the fields of the mask replaced.

        Raises InvalidRequest, InvalidMetadata, AgentNotFound, SessionNotFound, EtagMismatch.
        """
        paths = read_mask(request.update_mask, _UPDATABLE)
        body = request.session
        if "metadata" in paths:
            check_struct(body.metadata, "session.metadata", self._limits)
        now, etag = self._clock(), keys.make_etag()

        def decide(tx: WriteTx) -> SessionView:
            record = tx.get_session(tenant, body.agent_key, body.key).record
            if body.etag and body.etag != record.etag:
                raise EtagMismatch("the session has changed since its etag was read")
            changed = replace(
                _replace_fields(record, body, paths),
                etag=etag,
                updated_at_us=max(now, record.updated_at_us),
            )
            tx.update_session(changed)
            # Read again: the expiry has followed.
            return tx.get_session(tenant, body.agent_key, body.key)

        return await self._store.write(decide)

    async def delete(self, tenant: str, request: session_service_pb2.DeleteSessionRequest) -> None:
        """Delete the session. Raises AgentNotFound, SessionNotFound."""
        now = self._clock()
        name = SessionName(
            tenant=tenant, agent_key=request.agent_key, session_key=request.session_key
        )

        def decide(tx: WriteTx) -> None:
            if not tx.delete_session(tenant, tx.resolve_session(name).uid, now):
                raise SessionNotFound(f"there is no session {request.session_key}")

        await self._store.write(decide)

    def _find_fault(self, request: session_service_pb2.CreateSessionRequest) -> DomainError | None:
        try:
            check_struct(request.metadata, "metadata", self._limits)
        except DomainError as error:
            return error
        return None


def _admit(
    tx: WriteTx, *, draft: SessionRecord, claim: Claim | None, fault: DomainError | None
) -> Admitted:
    agent_uid = tx.get_agent(draft.tenant, draft.agent_key).uid

    def find() -> Admitted | None:
        first = _first_session(tx, draft.tenant, agent_uid, claim)
        return None if first is None else Admitted(first, claimed=True)

    def make() -> Admitted:
        if fault is not None:
            raise fault
        record = replace(draft, agent_uid=agent_uid, key=_free_key(tx, draft))
        return Admitted(record, claimed=False)

    return answer_once(find, make, SessionAlreadyExists)


def _first_session(
    tx: ReadTx, tenant: str, agent_uid: str, claim: Claim | None
) -> SessionRecord | None:
    if claim is None:
        return None
    return first_answer(tx.find_session_claim(tenant, agent_uid, claim.request_id), claim)


def _as_created(record: SessionRecord) -> SessionView:
    """Return the session as it was when it was made: as it was forked, its time just begun."""
    expire_at_us = None
    if record.tti_minutes:
        expire_at_us = record.created_at_us + record.tti_minutes * MICROSECONDS_PER_MINUTE
    origin = session_pb2.ForkOrigin.FromString(record.forked_from or b"")
    used = origin.usage
    head = SessionHead(
        last_sequence=origin.last_sequence,
        usage=Usage(used.input_tokens, used.output_tokens, used.reasoning_tokens),
        artifact_files=origin.artifact_files,
        artifact_bytes=origin.artifact_bytes,
        expire_at_us=expire_at_us,
    )
    return SessionView(record, head)


def _free_key(tx: WriteTx, draft: SessionRecord) -> str:
    if draft.key:
        if _is_taken(tx, draft, draft.key):
            raise SessionAlreadyExists(
                f"there is a session {draft.key} of agent {draft.agent_key} already"
            )
        return draft.key
    for _ in range(_KEY_TRIES):
        key = keys.make_session_key(draft.name)
        if not _is_taken(tx, draft, key):
            return key
    raise SessionAlreadyExists("no free key was found for this name; name one")


def _is_taken(tx: WriteTx, draft: SessionRecord, key: str) -> bool:
    name = SessionName(tenant=draft.tenant, agent_key=draft.agent_key, session_key=key)
    try:
        tx.resolve_session(name)
    except SessionNotFound:
        return False
    return True


def _replace_fields(
    record: SessionRecord, body: session_pb2.Session, paths: frozenset[str]
) -> SessionRecord:
    return replace(
        record,
        name=body.name if "name" in paths else record.name,
        description=body.description if "description" in paths else record.description,
        metadata=body.metadata.SerializeToString(deterministic=True)
        if "metadata" in paths
        else record.metadata,
        enabled=(body.enabled or not body.HasField("enabled"))
        if "enabled" in paths
        else record.enabled,
        tti_minutes=body.tti_minutes if "tti_minutes" in paths else record.tti_minutes,
    )


def _size(view: SessionView) -> int:
    record = view.record
    texts = 4 * (len(record.name) + len(record.description))
    origins = len(record.forked_from or b"") + len(record.parent or b"")
    return texts + len(record.metadata) + origins + ROW_OVERHEAD_BYTES
