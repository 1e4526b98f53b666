"""Sessions: conversations with an agent."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncGenerator, Iterable

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Struct

from hansard.v1 import session_service_pb2 as wire
from hansard.v1.session_pb2 import FromSession, Session
from hansard_client import rpcs
from hansard_client.errors import SessionNotFound
from hansard_client.link import Link
from hansard_client.operations import resources
from hansard_client.operations.values import (
    Fields,
    Place,
    given,
    new_request_id,
    to_order,
    to_struct,
    to_timestamp,
)


async def create(
    link: Link,
    agent_key: str,
    *,
    name: str,
    key: str = "",
    description: str = "",
    metadata: Struct | Fields | None = None,
    enabled: bool | None = None,
    tti_minutes: int = 0,
    from_session: FromSession | None = None,
    request_id: str | None = None,
) -> Session:
    """Create a session and return it.

    Args:
        agent_key: who answers in it.
        name: what people call it.
        key: its key; left out, it is made from the name.
        description: what it is about.
        metadata: anything to keep with it.
        enabled: whether it takes inputs.
        tti_minutes: it is deleted after so long without an event; 0: never.
        from_session: the session that it is forked from; see `fork` of a session.
        request_id: by default a new one, under which the call is repeated when it breaks.

    Raises AgentNotFound, SessionAlreadyExists, InvalidArgument and what every call may raise.
    """
    request = wire.CreateSessionRequest(
        agent_key=agent_key,
        key=key,
        name=name,
        description=description,
        tti_minutes=tti_minutes,
        request_id=request_id or new_request_id(),
        **given(metadata=to_struct(metadata), enabled=enabled, from_session=from_session),
    )
    return await link.call(rpcs.CREATE_SESSION, request)


async def get(link: Link, agent_key: str, session_key: str) -> Session:
    """Return a session. Raises AgentNotFound, SessionNotFound."""
    request = wire.GetSessionRequest(agent_key=agent_key, session_key=session_key)
    return await link.call(rpcs.GET_SESSION, request)


def list_(
    link: Link,
    agent_key: str,
    *,
    filter: str = "",  # noqa: A002 - the contract's name
    metadata: Struct | Fields | None = None,
    enabled: bool | None = None,
    created_at_or_after: dt.datetime | None = None,
    created_before: dt.datetime | None = None,
    newest_first: bool | None = None,
    limit: int | None = None,
    page_size: int = 0,
) -> AsyncGenerator[Session, None]:
    """Yield the sessions of an agent, the newest first unless said otherwise, page by page.

    Args:
        agent_key: the agent.
        filter: a regular expression that name or description match.
        metadata: entries that the session's metadata has.
        enabled: only such sessions.
        created_at_or_after: the earliest.
        created_before: the end of the time.
        newest_first: the order.
        limit: at most so many; None: all.
        page_size: how many are fetched at a time; 0: as many as the server likes.
    """
    request = wire.ListSessionsRequest(
        agent_key=agent_key,
        filter=filter,
        order=to_order(newest_first=newest_first),
        page_size=page_size,
        **given(
            metadata=to_struct(metadata),
            enabled=enabled,
            created_at_or_after=to_timestamp(created_at_or_after),
            created_before=to_timestamp(created_before),
        ),
    )
    return link.pages(rpcs.LIST_SESSIONS, request, lambda page: page.sessions, limit)


async def update(
    link: Link,
    agent_key: str,
    session_key: str,
    *,
    etag: str = "",
    name: str | None = None,
    description: str | None = None,
    metadata: Struct | Fields | None = None,
    enabled: bool | None = None,
    tti_minutes: int | None = None,
) -> Session:
    """Change what is given, each replacing what was there as a whole, and return the session.

    `etag`: of the session as it was read; when somebody has changed it since, EtagMismatch. Without
    one the call is not repeated after a failure in which it may have taken effect. Raises
    AgentNotFound, SessionNotFound, EtagMismatch, InvalidArgument; ValueError when nothing is given.
    """
    fields = given(
        name=name,
        description=description,
        metadata=to_struct(metadata),
        enabled=enabled,
        tti_minutes=tti_minutes,
    )
    return await patch(
        link, Session(agent_key=agent_key, key=session_key, etag=etag, **fields), fields
    )


async def patch(link: Link, session: Session, paths: Iterable[str]) -> Session:
    """Change what the paths name (`name`, `metadata`) to what the session has.

    A session that was read has its etag, which protects the change; see `update`.
    """
    paths = list(paths)
    if not paths:
        raise ValueError("nothing to update is given")
    return await resources.update(
        link,
        rpcs.UPDATE_SESSION,
        wire.UpdateSessionRequest(session=session, update_mask=FieldMask(paths=paths)),
        lambda: get(link, session.agent_key, session.key),
        (session, session.etag, paths),
    )


async def delete(link: Link, agent_key: str, session_key: str, *, uid: str = "") -> None:
    """Delete a session with its events and artifacts; with `uid` only in that incarnation.

    Raises AgentNotFound, SessionNotFound.
    """
    await resources.delete(
        link,
        rpcs.DELETE_SESSION,
        wire.DeleteSessionRequest(agent_key=agent_key, session_key=session_key),
        lambda: get(link, agent_key, session_key),
        uid,
        SessionNotFound(f"another session has the key {session_key} now"),
    )


async def get_this(place: Place) -> Session:
    """Return the session. Raises AgentNotFound, SessionNotFound (also for another incarnation)."""
    session = await get(place.link, place.agent_key, place.session_key)
    if place.uid not in {"", session.uid}:
        raise SessionNotFound(f"another session has the key {place.session_key} now")
    return session


async def update_this(
    place: Place,
    *,
    etag: str = "",
    name: str | None = None,
    description: str | None = None,
    metadata: Struct | Fields | None = None,
    enabled: bool | None = None,
    tti_minutes: int | None = None,
) -> Session:
    """Change what is given and return the session. As `update` of the sessions."""
    return await update(
        place.link,
        place.agent_key,
        place.session_key,
        etag=etag,
        name=name,
        description=description,
        metadata=metadata,
        enabled=enabled,
        tti_minutes=tti_minutes,
    )


async def delete_this(place: Place) -> None:
    """Delete the session with its events and artifacts. Raises AgentNotFound, SessionNotFound."""
    await delete(place.link, place.agent_key, place.session_key, uid=place.uid)


async def fork(
    place: Place,
    *,
    name: str,
    agent_key: str = "",
    up_to_event_id: str = "",
    key: str = "",
    description: str = "",
    metadata: Struct | Fields | None = None,
    enabled: bool | None = None,
    tti_minutes: int = 0,
    request_id: str | None = None,
) -> Session:
    """Create a session that begins with the visible events of this one, and return it.

    `agent_key`: who answers in it; left out, the same agent. `up_to_event_id`: the last event that
    is copied; left out, all are. The rest as in `create` of the sessions.
    """
    source = FromSession(**place.keys, include_up_to_event_id=up_to_event_id)
    return await create(
        place.link,
        agent_key or place.agent_key,
        name=name,
        key=key,
        description=description,
        metadata=metadata,
        enabled=enabled,
        tti_minutes=tti_minutes,
        from_session=source,
        request_id=request_id,
    )
