"""Sessions through the wire."""

from __future__ import annotations

import re
from collections.abc import Awaitable

import grpc
import pytest

from hansard.v1 import agent_service_pb2, session_pb2, session_service_pb2
from tests.support.server import Running, failure
from tests.support.talk import Talk, rating
from tests.wire.conftest import agent_request

Create = session_service_pb2.CreateSessionRequest
Update = session_service_pb2.UpdateSessionRequest
Get = session_service_pb2.GetSessionRequest
Delete = session_service_pb2.DeleteSessionRequest


@pytest.fixture
async def agent(hansard: Running) -> str:
    """Give the key of an agent."""
    return (await hansard.agents.CreateAgent(agent_request(key="a"))).key


async def test_created_session_is_what_was_asked_for(hansard: Running, agent: str) -> None:
    made = await hansard.sessions.CreateSession(
        Create(agent_key=agent, name="Customer inquiry - Order #12345", metadata={"order": 12345})
    )
    assert re.fullmatch(r"ase_customer_inquiry_order_12345_[0-9a-z]{6}", made.key)
    assert made == await hansard.sessions.GetSession(Get(agent_key=agent, session_key=made.key))
    assert made.status == session_pb2.SESSION_STATUS_IDLE
    assert made.enabled
    assert made.last_sequence == 0
    assert not made.HasField("expire_at")
    assert not made.HasField("forked_from")
    assert dict(made.metadata) == {"order": 12345}


async def test_session_that_expires_says_when(hansard: Running, agent: str) -> None:
    made = await hansard.sessions.CreateSession(
        Create(agent_key=agent, key="s", name="x", tti_minutes=3)
    )
    assert made.expire_at.ToMicroseconds() == made.created_at.ToMicroseconds() + 180_000_000
    assert made == await hansard.sessions.GetSession(Get(agent_key=agent, session_key="s"))
    updated = await hansard.sessions.UpdateSession(
        Update(
            session=session_pb2.Session(agent_key=agent, key="s"),
            update_mask={"paths": ["tti_minutes"]},
        )
    )
    assert not updated.HasField("expire_at")


async def test_keys_are_unique_within_their_agent(hansard: Running, agent: str) -> None:
    await hansard.agents.CreateAgent(agent_request(key="b"))
    await hansard.sessions.CreateSession(Create(agent_key=agent, key="s", name="x"))
    await hansard.sessions.CreateSession(Create(agent_key="b", key="s", name="x"))
    refused = await failure(
        hansard.sessions.CreateSession(Create(agent_key=agent, key="s", name="x"))
    )
    assert refused.reason == "SESSION_ALREADY_EXISTS"


async def test_repeated_request_gives_the_first_answer(hansard: Running, agent: str) -> None:
    request = Create(agent_key=agent, name="x", tti_minutes=5, request_id="r1")
    first = await hansard.sessions.CreateSession(request)
    await hansard.sessions.DeleteSession(Delete(agent_key=agent, session_key=first.key))
    assert await hansard.sessions.CreateSession(request) == first
    request.name = "y"
    refused = await failure(hansard.sessions.CreateSession(request))
    assert (refused.reason, refused.code) == ("REQUEST_ID_REUSED", grpc.StatusCode.ABORTED)
    # The ids of one agent are nothing to another.
    await hansard.agents.CreateAgent(agent_request(key="b"))
    request.agent_key = "b"
    assert (await hansard.sessions.CreateSession(request)).agent_key == "b"


async def test_update_replaces_what_the_mask_names(hansard: Running, agent: str) -> None:
    made = await hansard.sessions.CreateSession(
        Create(agent_key=agent, key="s", name="x", metadata={"a": 1}, enabled=False)
    )
    body = session_pb2.Session(
        agent_key=agent, key="s", etag=made.etag, name="y", description="d", metadata={"b": 1}
    )
    updated = await hansard.sessions.UpdateSession(
        Update(session=body, update_mask={"paths": ["description", "metadata"]})
    )
    assert (updated.name, updated.description, updated.enabled) == ("x", "d", False)
    assert dict(updated.metadata) == {"b": 1}
    assert updated.etag != made.etag
    refused = await failure(
        hansard.sessions.UpdateSession(Update(session=body, update_mask={"paths": ["name"]}))
    )
    assert refused.reason == "ETAG_MISMATCH"
    cleared = await hansard.sessions.UpdateSession(
        Update(
            session=session_pb2.Session(agent_key=agent, key="s"),
            update_mask={"paths": ["metadata", "description", "enabled"]},
        )
    )
    assert not cleared.metadata.fields
    assert cleared.description == ""
    assert cleared.enabled


async def test_what_is_not_there_is_said(hansard: Running, agent: str) -> None:
    body = session_pb2.Session(agent_key=agent, key="s", name="x")
    for call in (
        hansard.sessions.GetSession(Get(agent_key=agent, session_key="s")),
        hansard.sessions.DeleteSession(Delete(agent_key=agent, session_key="s")),
        hansard.sessions.UpdateSession(Update(session=body, update_mask={"paths": ["name"]})),
    ):
        assert (await failure(call)).reason == "SESSION_NOT_FOUND"
    body.agent_key = "nobody"
    calls: tuple[Awaitable[object], ...] = (
        hansard.sessions.GetSession(Get(agent_key="nobody", session_key="s")),
        hansard.sessions.DeleteSession(Delete(agent_key="nobody", session_key="s")),
        hansard.sessions.UpdateSession(Update(session=body, update_mask={"paths": ["name"]})),
        hansard.sessions.CreateSession(Create(agent_key="nobody", name="x")),
        hansard.sessions.ListSessions(session_service_pb2.ListSessionsRequest(agent_key="nobody")),
    )
    for named in calls:
        assert (await failure(named)).reason == "AGENT_NOT_FOUND"


async def test_deleted_session_is_gone_and_its_key_free(hansard: Running, agent: str) -> None:
    made = await hansard.sessions.CreateSession(Create(agent_key=agent, key="s", name="x"))
    await hansard.sessions.DeleteSession(Delete(agent_key=agent, session_key="s"))
    refused = await failure(hansard.sessions.GetSession(Get(agent_key=agent, session_key="s")))
    assert refused.reason == "SESSION_NOT_FOUND"
    again = await hansard.sessions.CreateSession(Create(agent_key=agent, key="s", name="x"))
    assert again.uid != made.uid


async def test_deleting_an_agent_deletes_its_sessions(hansard: Running, agent: str) -> None:
    made = await hansard.sessions.CreateSession(Create(agent_key=agent, key="s", name="x"))
    await hansard.agents.DeleteAgent(agent_service_pb2.DeleteAgentRequest(agent_key=agent))
    refused = await failure(hansard.sessions.GetSession(Get(agent_key=agent, session_key="s")))
    assert refused.reason == "AGENT_NOT_FOUND"
    await hansard.agents.CreateAgent(agent_request(key=agent))
    refused = await failure(hansard.sessions.GetSession(Get(agent_key=agent, session_key="s")))
    assert refused.reason == "SESSION_NOT_FOUND"
    assert made.uid


async def test_session_says_when_its_last_event_was_stored(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    request = Get(**talk.keys)
    before = await hansard.sessions.GetSession(request)
    assert not before.HasField("last_event_at")
    await talk.append(rating())
    (event,) = await talk.events()
    after = await hansard.sessions.GetSession(request)
    assert after.last_event_at == event.created_at
    assert after.updated_at == before.updated_at
