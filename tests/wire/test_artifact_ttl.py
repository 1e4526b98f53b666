"""An artifact with ttl_days: gone for every caller at that moment, and its bytes soon after."""

from __future__ import annotations

import asyncio
from pathlib import Path

from hansard.v1 import artifact_service_pb2, event_pb2, session_service_pb2
from hansard_server.domain.clock import MICROSECONDS_PER_HOUR, now_us
from tests.support.server import failure, make_settings, running_server
from tests.support.talk import SendRequest, SendResponse, Talk, check_turn
from tests.wire.test_artifacts import Part as UploadPart
from tests.wire.test_artifacts import download, header, start, upload

Get = artifact_service_pb2.GetArtifactRequest
Delete = artifact_service_pb2.DeleteArtifactRequest
List = artifact_service_pb2.ListArtifactsRequest


class Clock:
    """A clock that can be put forward."""

    def __init__(self) -> None:
        self.ahead_us = 0

    def __call__(self) -> int:
        return now_us() + self.ahead_us


async def mention(talk: Talk, artifact_id: str) -> list[SendResponse]:
    """Send an input that mentions the artifact, and return the whole stream."""
    message = event_pb2.InputMessage(
        messages=[{"text": {"content": "Look."}}, {"artifact": {"artifact_id": artifact_id}}]
    )
    request = SendRequest(input_message=message, **talk.keys)
    return [response async for response in talk.server.events.SendEvent(request)]


async def test_artifact_is_gone_when_its_time_is_over(store_url: str, tmp_path: Path) -> None:
    clock = Clock()
    # Nobody sweeps while this looks.
    settings = make_settings(tmp_path / "data", store_url, artifact_sweep_interval_s=3_600)
    async with running_server(settings, clock) as hansard:
        talk = await Talk(hansard).begin()
        event = await upload(
            talk,
            start(talk, request_id="r"),
            header("soon", ttl_days=1),
            UploadPart(chunk=b"soon"),
            header("late", ttl_days=2),
            UploadPart(chunk=b"late"),
        )
        soon, late = (artifact.artifact_id for artifact in event.artifact_upload.artifacts)
        artifact = await hansard.artifacts.GetArtifact(Get(artifact_id=soon, **talk.keys))
        assert artifact.ttl_days == 1
        fork = session_service_pb2.CreateSessionRequest(
            agent_key=talk.keys["agent_key"],
            key="fork",
            name="F",
            from_session={"session_key": talk.keys["session_key"]},
        )
        await hansard.sessions.CreateSession(fork)
        check_turn(await mention(talk, soon))

        clock.ahead_us = 24 * MICROSECONDS_PER_HOUR
        for there in (talk, talk.another("fork")):
            for call in (
                hansard.artifacts.GetArtifact(Get(artifact_id=soon, **there.keys)),
                download(there, soon),
            ):
                assert (await failure(call)).reason == "ARTIFACT_NOT_FOUND"
            listed = await hansard.artifacts.ListArtifacts(List(**there.keys))
            assert [artifact.artifact_id for artifact in listed.artifacts] == [late]
            assert (await download(there, late))[1] == b"late"
        gone = hansard.artifacts.DeleteArtifact(Delete(artifact_id=soon, **talk.keys))
        assert (await failure(gone)).reason == "ARTIFACT_NOT_FOUND"
        assert (await failure(mention(talk, soon))).reason == "ARTIFACT_NOT_FOUND"
        check_turn(await mention(talk, late))
        # The record says what was uploaded, and the same upload again is that same one.
        assert (await talk.events())[0] == event
        again = await upload(
            talk,
            start(talk, request_id="r"),
            header("soon", ttl_days=1),
            header("late", ttl_days=2),
        )
        assert again == event


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_bytes_of_what_has_expired_go(store_url: str, tmp_path: Path) -> None:
    clock = Clock()
    folder = tmp_path / "data" / "artifacts"
    settings = make_settings(
        tmp_path / "data", store_url, artifact_sweep_interval_s=0.05, artifact_grace_s=3_600
    )
    async with running_server(settings, clock) as hansard:
        talk = await Talk(hansard).begin()
        await upload(talk, start(talk), header("a", ttl_days=1), UploadPart(chunk=b"soon"))
        await upload(talk, start(talk), header("b"), UploadPart(chunk=b"kept"))
        clock.ahead_us = 24 * MICROSECONDS_PER_HOUR
        while len(files(folder)) > 1:
            await asyncio.sleep(0.05)
            clock.ahead_us += MICROSECONDS_PER_HOUR // 4
        (path,) = files(folder)
        assert path.read_bytes() == b"kept"
