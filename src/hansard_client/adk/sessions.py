"""The ADK's session service on Hansard."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from google.adk.errors import StaleSessionError
from google.adk.errors.already_exists_error import AlreadyExistsError
from google.adk.errors.session_not_found_error import SessionNotFoundError
from google.adk.events.event import Event
from google.adk.sessions._session_util import extract_json_safe_state_delta
from google.adk.sessions.base_session_service import (
    BaseSessionService,
    GetSessionConfig,
    ListSessionsResponse,
)
from google.adk.sessions.session import Session
from google.adk.sessions.state import State
from typing_extensions import override

from hansard.v1 import session_pb2
from hansard_client.adk.places import (
    agent_key,
    create_session,
    describe,
    read_name,
    session_key,
    to_name,
)
from hansard_client.adk.record import SNAPSHOT_EVERY, Tail, event_draft, read_tail, state_draft
from hansard_client.adk.scopes import Scope
from hansard_client.async_client import AsyncHansard, AsyncSession
from hansard_client.channels import DEFAULT_TARGET
from hansard_client.errors import (
    AgentNotFound,
    SequenceMismatch,
    SessionAlreadyExists,
    SessionNotFound,
)

_KIND = "session"
_LIST_PAGE_SIZE = 1_000


class HansardSessionService(BaseSessionService):
    """Keeps sessions of the ADK in Hansard: in order, once, and never interleaved.

    Who appends to a session that somebody else has appended to since it was read gets
    StaleSessionError, by the record's sequence and not by anybody's clock. Listed sessions come
    without events and state, the last one being the most recently active. The state of users and
    apps is written before the event that changes it, so that it is never behind the record.
    """

    def __init__(
        self,
        target: str | Sequence[str] = DEFAULT_TARGET,
        *,
        api_key: str | None = None,
        **options: Any,
    ) -> None:
        """Prepare to call the server at `target`; nothing is asked of it yet.

        `options` are those of AsyncHansard: `tls`, `timeout_s`, `patience_s` and others. It belongs
        to the event loop of its first call.
        """
        self._client = AsyncHansard(target, api_key=api_key, **options)

    async def close(self) -> None:
        """Give back connections."""
        await self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @override
    async def create_session(
        self,
        *,
        app_name: str,
        user_id: str,
        state: dict[str, Any] | None = None,
        session_id: str | None = None,
    ) -> Session:
        """Create a session. Raises AlreadyExistsError."""
        session_id = session_id or str(uuid.uuid4())
        deltas = extract_json_safe_state_delta(state or {})
        try:
            place = await create_session(
                self._client,
                app_name,
                session_key(user_id, session_id),
                name=to_name(session_id),
                metadata=describe(app=app_name, user=user_id, session=session_id, kind=_KIND),
            )
        except SessionAlreadyExists:
            raise AlreadyExistsError(f"Session with id {session_id} already exists.") from None
        await self._update_scopes(app_name, user_id, deltas)
        appended = await place.append([state_draft(deltas["session"])])
        tail = Tail(state=deltas["session"], last_sequence=appended.events[-1].sequence)
        made, app, user = await self._read(place, self._scopes(app_name, user_id))
        return _to_session((app_name, user_id, session_id), made, tail, {"app": app, "user": user})

    @override
    async def get_session(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str,
        config: GetSessionConfig | None = None,
    ) -> Session | None:
        """Return the session, with its events as `config` asks; None when there is none."""
        place = self._place(app_name, user_id, session_id)
        recent = config.num_recent_events if config else None
        after = (config.after_timestamp or None) if config else None
        try:
            (made, app, user), tail = await asyncio.gather(
                self._read(place, self._scopes(app_name, user_id)),
                read_tail(place, recent=recent, after_timestamp=after),
            )
        except (AgentNotFound, SessionNotFound):
            return None
        return _to_session((app_name, user_id, session_id), made, tail, {"app": app, "user": user})

    @override
    async def list_sessions(
        self, *, app_name: str, user_id: str | None = None
    ) -> ListSessionsResponse:
        """Return the sessions, page by page from the server, the most recently active last."""
        metadata = describe(kind=_KIND)
        if user_id is not None:
            metadata |= describe(user=user_id)
        found: list[Session] = []
        try:
            async for kept in self._client.sessions.list(
                agent_key(app_name), metadata=metadata, page_size=_LIST_PAGE_SIZE
            ):
                names = kept.metadata
                found.append(
                    Session(
                        id=read_name(names, "session"),
                        app_name=app_name,
                        user_id=read_name(names, "user"),
                        last_update_time=_time_of(kept),
                    )
                )
        except AgentNotFound:
            pass
        found.sort(key=lambda session: (session.last_update_time, session.user_id, session.id))
        return ListSessionsResponse(sessions=found)

    @override
    async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> None:
        """Delete the session; nothing happens when there is none."""
        with suppress(AgentNotFound, SessionNotFound):
            await self._place(app_name, user_id, session_id).delete()

    @override
    async def get_user_state(self, *, app_name: str, user_id: str) -> dict[str, Any]:
        """Return the user's state, without prefixes."""
        return await Scope(self._client, app_name, user_id).read()

    @override
    async def append_event(self, session: Session, event: Event) -> Event:
        """Append an event. Raises SessionNotFoundError, StaleSessionError."""
        if event.partial:
            return event
        self._apply_temp_state(session, event)
        event = self._trim_temp_delta_state(event)
        names = (session.app_name, session.user_id, session.id)
        deltas = extract_json_safe_state_delta(event.actions.state_delta or {})
        try:
            place, sequence, since = await self._stand(session)
            drafts = [event_draft(event)]
            if since + 1 >= SNAPSHOT_EVERY:
                state = (await read_tail(place, recent=0)).state
                drafts.append(state_draft({**state, **deltas["session"]}))
                since = -1
            if deltas["app"] or deltas["user"]:
                await self._check_tail(place, sequence)
                await self._update_scopes(names[0], names[1], deltas)
            appended = await place.append(drafts, expected_last_sequence=sequence)
        except (AgentNotFound, SessionNotFound):
            raise SessionNotFoundError(f"Session {session.id} not found.") from None
        except SequenceMismatch:
            raise StaleSessionError(
                f"Session {session.id} has got further since it was read; read it again."
            ) from None
        session._storage_update_marker = _marker(place.uid, appended.events[-1].sequence, since + 1)
        session.last_update_time = event.timestamp
        return self._commit_event_to_session(session, event)

    async def _stand(self, session: Session) -> tuple[AsyncSession, int, int]:
        """Return the session's place, where it stood when it was read, events since the snapshot.

        Raises StaleSessionError, SessionNotFound.
        """
        place = self._place(session.app_name, session.user_id, session.id)
        if session._storage_update_marker is not None:
            uid, sequence, since = session._storage_update_marker.split(":")
            place = self._client.session(place.agent_key, place.key, uid=uid)
            return place, int(sequence), int(since)
        # Made by hand, or listed: it stands where its last event does.
        tail = await read_tail(place, recent=0)
        last = session.events[-1].id if session.events else None
        if last != tail.last_event_id:
            raise StaleSessionError(f"Session {session.id} is not as it was when it was read.")
        made = await place.get()
        return self._client.session(made), tail.last_sequence, tail.since_snapshot

    async def _check_tail(self, place: AsyncSession, sequence: int) -> None:
        """Raise SequenceMismatch when somebody has appended: state that is shared comes first, and
        must not be changed for an event that is refused.
        """
        async for newest in place.events.list(newest_first=True, limit=1, page_size=1):
            if newest.sequence != sequence:
                raise SequenceMismatch("the session has got further")

    async def _read(
        self, place: AsyncSession, scopes: tuple[Scope, Scope]
    ) -> tuple[session_pb2.Session, dict[str, Any], dict[str, Any]]:
        app, user = scopes
        made, of_app, of_user = await asyncio.gather(place.get(), app.read(), user.read())
        return made, of_app, of_user

    async def _update_scopes(
        self, app_name: str, user_id: str, deltas: dict[str, dict[str, Any]]
    ) -> None:
        app, user = self._scopes(app_name, user_id)
        await asyncio.gather(app.update(deltas["app"]), user.update(deltas["user"]))

    def _scopes(self, app_name: str, user_id: str) -> tuple[Scope, Scope]:
        return Scope(self._client, app_name), Scope(self._client, app_name, user_id)

    def _place(self, app_name: str, user_id: str, session_id: str) -> AsyncSession:
        return self._client.session(agent_key(app_name), session_key(user_id, session_id))


def _to_session(
    names: tuple[str, str, str],
    made: session_pb2.Session,
    tail: Tail,
    shared: dict[str, dict[str, Any]],
) -> Session:
    app_name, user_id, session_id = names
    state = dict(tail.state)
    state |= {State.APP_PREFIX + key: value for key, value in shared["app"].items()}
    state |= {State.USER_PREFIX + key: value for key, value in shared["user"].items()}
    session = Session(
        id=session_id,
        app_name=app_name,
        user_id=user_id,
        state=state,
        events=tail.events,
        last_update_time=_time_of(made) if tail.last_time is None else tail.last_time,
    )
    session._storage_update_marker = _marker(made.uid, tail.last_sequence, tail.since_snapshot)
    return session


def _marker(uid: str, sequence: int, since_snapshot: int) -> str:
    return f"{uid}:{sequence}:{since_snapshot}"


def _time_of(made: session_pb2.Session) -> float:
    """Return when something last happened in the session, in seconds."""
    last = made.last_event_at if made.HasField("last_event_at") else made.created_at
    return last.seconds + last.nanos / 1e9
