"""Quotas of a session: what it shows of them, and what errors say at one past the boundary."""

from __future__ import annotations

from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import grpc.aio
from google.rpc import error_details_pb2, status_pb2

from hansard.v1 import artifact_service_pb2, session_pb2, session_service_pb2
from tests.support.artifacts import Part, chunks, header, stream
from tests.support.server import DETAILS_KEY, Running, make_settings, running_server
from tests.support.talk import Talk, rating

Quota = session_pb2.Quota


async def session_of(talk: Talk) -> session_pb2.Session:
    return await talk.server.sessions.GetSession(session_service_pb2.GetSessionRequest(**talk.keys))


async def upload(talk: Talk, size_bytes: int) -> None:
    """Upload a file of this size."""
    begin = Part(start=artifact_service_pb2.UploadStart(**talk.keys))
    await talk.server.artifacts.UploadArtifacts(
        stream([begin, header(), *chunks(bytes(size_bytes))])
    )


async def quota_failure(
    call: Awaitable[object],
) -> tuple[str, error_details_pb2.QuotaFailure.Violation]:
    """Return the reason and the violation of a call that was refused for a quota."""
    info, quota = error_details_pb2.ErrorInfo(), error_details_pb2.QuotaFailure()
    try:
        await call
    except grpc.aio.AioRpcError as error:
        trailing: Any = dict(error.trailing_metadata() or ())
        for detail in status_pb2.Status.FromString(trailing[DETAILS_KEY]).details:
            detail.Unpack(info)
            detail.Unpack(quota)
    (violation,) = quota.violations
    assert info.metadata["quota"] == violation.quota_id
    assert info.metadata["limit"] == str(violation.quota_value)
    return info.reason, violation


async def test_session_shows_its_quotas_and_errors_name_them(
    store_url: str, tmp_path: Path
) -> None:
    settings = make_settings(
        tmp_path,
        store_url,
        session_max_events=4,
        session_artifacts_max_files=2,
        session_artifacts_max_bytes=100,
    )
    async with running_server(settings) as server:
        talk = await Talk(server).begin()
        session = await session_of(talk)
        assert session.quotas == session_pb2.SessionQuotas(
            events=Quota(used=0, limit=4),
            artifact_files=Quota(used=0, limit=2),
            artifact_bytes=Quota(used=0, limit=100),
            queued_inputs=Quota(used=0, limit=16),
        )
        subject = f"session:{session.uid}"

        await upload(talk, 60)
        reason, violation = await quota_failure(upload(talk, 41))
        assert (reason, violation.subject) == ("QUOTA_EXCEEDED", subject)
        assert (violation.quota_id, violation.quota_value) == ("session_artifacts_max_bytes", 100)
        await upload(talk, 40)
        reason, violation = await quota_failure(upload(talk, 0))
        assert (violation.quota_id, violation.quota_value) == ("session_artifacts_max_files", 2)

        (sequence,) = await talk.append(rating(), request_id="r")
        assert sequence == 3
        reason, violation = await quota_failure(talk.append(rating(), rating()))
        assert (violation.quota_id, violation.quota_value) == ("session_max_events", 4)
        assert (reason, violation.subject) == ("QUOTA_EXCEEDED", subject)
        # A turn that was let in is not cut short, though it goes beyond.
        assert (await talk.send("hello"))[-1].HasField("turn_end")
        quotas = (await session_of(talk)).quotas
        assert quotas.events.used > quotas.events.limit
        assert quotas.artifact_files == Quota(used=2, limit=2)
        assert quotas.artifact_bytes == Quota(used=100, limit=100)
        for call in (talk.send("again"), talk.append(rating())):
            assert (await quota_failure(call))[1].quota_id == "session_max_events"
        # The repeat of a success is one.
        assert await talk.append(rating(), request_id="r") == [3]


async def test_waiting_inputs_are_shown_and_counted(plain: Running) -> None:
    talk = await Talk(plain).begin()
    held, turn_id = await talk.hold()
    waiting = [talk.stream("wait", detach=True) for _ in range(16)]
    for each in waiting:
        async for _ in each:
            pass
    assert (await session_of(talk)).quotas.queued_inputs == Quota(used=16, limit=16)
    reason, violation = await quota_failure(talk.send("one more"))
    assert (reason, violation.quota_id) == ("QUEUE_FULL", "queue_max_inputs")
    held.cancel()
    await talk.release(turn_id)


async def test_events_have_no_limit_unless_it_is_set(plain: Running) -> None:
    talk = await Talk(plain).begin()
    events = (await session_of(talk)).quotas.events
    assert not events.HasField("limit")
