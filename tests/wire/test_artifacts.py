"""Artifacts through the wire: what comes back is what was sent; what is refused leaves nothing."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest

from hansard.v1 import artifact_pb2, artifact_service_pb2, session_service_pb2, turn_pb2
from tests.support.databases import Databases
from tests.support.invariants import check_store
from tests.support.s3 import Kept, S3Endpoint
from tests.support.server import Running, failure, make_settings, running_server
from tests.support.talk import Talk, check_turn, stored

Part = artifact_service_pb2.UploadArtifactsRequest
Header = artifact_service_pb2.UploadHeader
MIB = 1024 * 1024
# What grpc's own client says now and then when it is answered while it still writes.
CLIENT_FAULT = "Internal error from Core"
DATA = bytes(range(256)) * 4_000
DIGEST = hashlib.sha256(DATA).hexdigest()


def start(talk: Talk, **fields: Any) -> Part:
    return Part(start=artifact_service_pb2.UploadStart(**{**talk.keys, **fields}))


def header(filename: str = "a.bin", **fields: Any) -> Part:
    return Part(header=Header(filename=filename, **fields))


def chunks(data: bytes = DATA, size: int = 100_000) -> list[Part]:
    return [Part(chunk=data[at : at + size]) for at in range(0, len(data), size)]


async def upload(talk: Talk, *parts: Part) -> Any:
    async def stream() -> AsyncIterator[Part]:
        for part in parts:
            yield part

    return await talk.server.artifacts.UploadArtifacts(stream())


async def download(talk: Talk, artifact_id: str, **fields: Any) -> tuple[Any, bytes]:
    request = artifact_service_pb2.DownloadArtifactRequest(
        artifact_id=artifact_id, **talk.keys, **fields
    )
    parts = [part async for part in talk.server.artifacts.DownloadArtifact(request)]
    assert all(len(part.chunk) <= 256 * 1024 for part in parts)
    return parts[0].artifact, b"".join(part.chunk for part in parts[1:])


@pytest.fixture(params=["sqlite-disk", "postgresql-disk", "sqlite-s3"])
def where(request: pytest.FixtureRequest) -> str:
    """Give the kind of database, and of the store of bytes."""
    return str(request.param)


@pytest.fixture
def database(where: str) -> str:
    return where.partition("-")[0]


@pytest.fixture
def kept(request: pytest.FixtureRequest, where: str, tmp_path: Path) -> Kept:
    if where.endswith("-disk"):
        return Kept(tmp_path / "data")
    endpoint: S3Endpoint = request.getfixturevalue("s3")
    return Kept.in_bucket(tmp_path / "data", endpoint.bucket())


@pytest.fixture
async def hansard(store_url: str, tmp_path: Path, kept: Kept) -> AsyncIterator[Running]:
    """Give a server on each kind of database and of store of bytes."""
    settings = make_settings(tmp_path / "data", store_url, **kept.settings)
    async with running_server(settings) as running:
        yield running
    check_store(store_url, None if kept.bucket else tmp_path / "data")


async def test_files_come_back_as_they_were(hansard: Running, kept: Kept) -> None:
    talk = await Talk(hansard).begin()
    event = await upload(
        talk,
        start(talk),
        header("Ünï code.txt", description="first", metadata={"a": 1}),
        Part(chunk=b"hello, world\n"),
        header("b.bin", size_bytes=len(DATA), checksum_sha256=DIGEST, ttl_days=1),
        *chunks(),
        header("empty"),
    )
    assert event.sequence == 1
    text, binary, empty = event.artifact_upload.artifacts
    assert [text.filename, binary.filename, empty.filename] == ["Ünï code.txt", "b.bin", "empty"]
    assert text.mime_type == "text/plain"
    assert [text.size_bytes, binary.size_bytes, empty.size_bytes] == [13, len(DATA), 0]
    assert await talk.events() == [event]
    artifact, data = await download(talk, binary.artifact_id)
    assert (artifact.checksum_sha256, data == DATA) == (DIGEST, True)
    assert (await download(talk, empty.artifact_id))[1] == b""
    for offset, length in ((0, 0), (5, 300_000), (len(DATA) - 3, 10), (len(DATA), None)):
        fields = {"offset": offset} if length is None else {"offset": offset, "length": length}
        part = (await download(talk, binary.artifact_id, **fields))[1]
        assert part == DATA[offset : None if length is None else offset + length]
    listed = await hansard.artifacts.ListArtifacts(
        artifact_service_pb2.ListArtifactsRequest(**talk.keys)
    )
    assert [a.filename for a in listed.artifacts] == ["Ünï code.txt", "b.bin", "empty"]
    assert dict(listed.artifacts[0].metadata) == {"a": 1}
    assert len(kept.names()) == 3


async def test_upload_while_a_turn_runs(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    running, turn_id = await talk.hold()
    event = await upload(talk, start(talk), header(), *chunks())
    assert (event.sequence, event.turn_id) == (3, "")
    await talk.release(turn_id)
    [_ async for _ in running]
    check_turn(await talk.send())


def bad_uploads(talk: Talk) -> dict[str, tuple[str, Iterable[Part]]]:
    """Return uploads that are refused, and the reason of each."""
    begun = start(talk)
    return {
        "a chunk before any header": ("INVALID_REQUEST", [begun, *chunks()]),
        "a header before the start": ("INVALID_REQUEST", [header(), *chunks()]),
        "two starts": ("INVALID_REQUEST", [begun, header(), begun]),
        "no file": ("INVALID_REQUEST", [begun]),
        "nothing": ("INVALID_REQUEST", []),
        "a wrong size": ("CHECKSUM_MISMATCH", [begun, header(size_bytes=7), *chunks()]),
        "a wrong digest": (
            "CHECKSUM_MISMATCH",
            [
                begun,
                header("ok.bin"),
                Part(chunk=b"x"),
                header(checksum_sha256="0" * 64),
                *chunks(),
            ],
        ),
        "a malformed digest": ("INVALID_REQUEST", [begun, header(checksum_sha256="0"), *chunks()]),
        "a file above the limit": (
            "PAYLOAD_TOO_LARGE",
            [begun, header(), *chunks(b"x" * MIB), *chunks(b"y")],
        ),
        "a size above the limit": ("PAYLOAD_TOO_LARGE", [begun, header(size_bytes=MIB * 9)]),
        "a chunk above its limit": (
            "INVALID_REQUEST",
            [begun, header(), Part(chunk=b"x" * (MIB + 1))],
        ),
        "an unknown session": ("SESSION_NOT_FOUND", [start(talk, session_key="no"), header()]),
        "an unknown agent": ("AGENT_NOT_FOUND", [start(talk, agent_key="no"), header()]),
        "a foreign uid": ("SESSION_NOT_FOUND", [start(talk, session_uid="no"), header()]),
        "no filename": ("INVALID_REQUEST", [begun, header(""), *chunks()]),
        "a filename of 10,000 characters": ("INVALID_REQUEST", [begun, header("x" * 10_000)]),
        "a filename with a path": ("INVALID_REQUEST", [begun, header("../../etc/passwd")]),
        "a filename with another path": ("INVALID_REQUEST", [begun, header("..\\x")]),
        "a filename that is a folder": ("INVALID_REQUEST", [begun, header("..")]),
        "a filename with NUL": ("INVALID_REQUEST", [begun, header("a\0b")]),
        "a filename with a direction mark": ("INVALID_REQUEST", [begun, header("a\u202egnp.exe")]),
        "metadata with NaN": ("INVALID_METADATA", [begun, header(metadata={"a": float("nan")})]),
    }


@pytest.fixture
async def small(store_url: str, tmp_path: Path, kept: Kept) -> AsyncIterator[Running]:
    """Give a server that takes files of 1 MiB, two to a session."""
    settings = make_settings(
        tmp_path / "data",
        store_url,
        artifact_max_bytes=MIB,
        session_artifacts_max_files=2,
        session_artifacts_max_bytes=MIB + 100,
        **kept.settings,
    )
    async with running_server(settings) as running:
        yield running


async def test_refused_uploads_leave_nothing(small: Running, kept: Kept) -> None:
    talk = await Talk(small).begin()
    for name, (reason, parts) in bad_uploads(talk).items():
        refused = await failure(upload(talk, *parts))
        while refused.message == CLIENT_FAULT:
            refused = await failure(upload(talk, *parts))
        assert refused.reason == reason, f"{name}: {refused}"
        assert refused.code not in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
        assert kept.names() == [], name
    assert await talk.events() == []


async def test_limits_at_their_boundary(small: Running, kept: Kept) -> None:
    talk = await Talk(small).begin()
    await upload(talk, start(talk), header("full"), *chunks(b"x" * MIB))
    refused = await failure(upload(talk, start(talk), header(), Part(chunk=b"x" * 101)))
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "QUOTA_EXCEEDED",
    )
    await upload(talk, start(talk), header("rest"), Part(chunk=b"x" * 100))
    refused = await failure(upload(talk, start(talk), header("third")))
    assert refused.reason == "QUOTA_EXCEEDED"
    assert len(kept.names()) == 2


async def test_upload_cut_off_half_way_leaves_nothing(hansard: Running, kept: Kept) -> None:
    talk = await Talk(hansard).begin()
    sent = asyncio.Event()

    async def half() -> AsyncIterator[Part]:
        yield start(talk)
        yield header()
        for part in chunks(b"x" * (20 * MIB), MIB):
            yield part
        sent.set()
        await asyncio.Event().wait()

    call = hansard.artifacts.UploadArtifacts(half())
    await sent.wait()
    while not kept.names():  # noqa: ASYNC110 - or a file that comes
        await asyncio.sleep(0.01)
    call.cancel()
    while kept.names():  # noqa: ASYNC110 - what is waited for is a file that goes
        await asyncio.sleep(0.01)
    assert await talk.events() == []


async def test_same_request_id_stores_once(hansard: Running, kept: Kept) -> None:
    talk = await Talk(hansard).begin()
    parts = (start(talk, request_id="r"), header(checksum_sha256=DIGEST), *chunks())
    first, again = await upload(talk, *parts), await upload(talk, *parts)
    assert first == again
    other = await failure(upload(talk, start(talk, request_id="r"), header("b"), *chunks()))
    assert (other.code, other.reason) == (grpc.StatusCode.ABORTED, "REQUEST_ID_REUSED")
    assert len(kept.names()) == 1
    assert await talk.events() == [first]


async def test_bad_downloads(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    event = await upload(talk, start(talk), header(), *chunks())
    artifact_id = event.artifact_upload.artifacts[0].artifact_id
    past = await failure(download(talk, artifact_id, offset=len(DATA) + 1))
    assert (past.reason, past.fields) == ("INVALID_REQUEST", ("offset",))
    for fields in ({"offset": -1}, {"length": -1}):
        assert (await failure(download(talk, artifact_id, **fields))).reason == "INVALID_REQUEST"
    assert (await failure(download(talk, "art_no"))).reason == "ARTIFACT_NOT_FOUND"
    other = await talk.another("other").open_session()
    assert (await failure(download(other, artifact_id))).reason == "ARTIFACT_NOT_FOUND"


async def test_deleted_artifact_and_session(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    event = await upload(talk, start(talk), header(), *chunks())
    artifact_id = event.artifact_upload.artifacts[0].artifact_id
    delete = artifact_service_pb2.DeleteArtifactRequest(artifact_id=artifact_id, **talk.keys)
    await hansard.artifacts.DeleteArtifact(delete)
    assert (await failure(hansard.artifacts.DeleteArtifact(delete))).reason == "ARTIFACT_NOT_FOUND"
    assert (await failure(download(talk, artifact_id))).reason == "ARTIFACT_NOT_FOUND"
    # The record still says that it was there.
    assert await talk.events() == [event]
    await hansard.sessions.DeleteSession(session_service_pb2.DeleteSessionRequest(**talk.keys))
    assert (await failure(download(talk, artifact_id))).reason == "SESSION_NOT_FOUND"


async def test_files_that_a_tool_makes_are_artifacts(hansard: Running) -> None:
    """The file, its event and the tool's answer are one step; the whole can be downloaded."""
    call = {"name": "artifact_create", "input": {"filename": "a.md", "content": "# A\n"}}
    talk = await Talk(hansard).begin(
        [{"tool_call": call}, {"agent_output": {"content": "."}}], tools=["artifact_create"]
    )
    events = stored(await talk.send())
    kinds = [event.WhichOneof("payload") for event in events]
    assert kinds == [
        *("input_message", "tool_input", "tool_output", "artifact_upload", "agent_output"),
    ]
    (reference,) = events[3].artifact_upload.artifacts
    artifact = await hansard.artifacts.GetArtifact(
        artifact_service_pb2.GetArtifactRequest(artifact_id=reference.artifact_id, **talk.keys)
    )
    assert artifact.source == artifact_pb2.ARTIFACT_SOURCE_TOOL
    request = artifact_service_pb2.DownloadArtifactRequest(
        artifact_id=reference.artifact_id, **talk.keys
    )
    parts = [part async for part in hansard.artifacts.DownloadArtifact(request)]
    assert b"".join(part.chunk for part in parts) == b"# A\n"


async def test_files_beyond_the_quota_are_a_tools_error(
    databases: Databases, tmp_path: Path
) -> None:
    call = {"name": "artifact_create", "input": {"filename": "a", "content": "A"}}
    settings = make_settings(
        tmp_path / "data", databases.migrated("sqlite"), session_artifacts_max_files=1
    )
    async with running_server(settings) as hansard:
        talk = await Talk(hansard).begin(
            [{"tool_call": call}] * 2 + [{"agent_output": {"content": "."}}],
            tools=["artifact_create"],
        )
        responses = await talk.send()
        outputs = [e.tool_output for e in stored(responses) if e.HasField("tool_output")]
        assert [output.error for output in outputs] == [False, True]
        assert "1" in outputs[1].tool_output_json
        assert responses[-1].turn_end.turn.status == turn_pb2.TURN_STATUS_COMPLETED


async def until(kept: Kept, count: int) -> None:
    """Return when so many files with bytes are left."""
    while len(kept.names()) != count:  # noqa: ASYNC110 - what is waited for are files that go
        await asyncio.sleep(0.01)


async def test_equal_bytes_are_stored_once(hansard: Running, kept: Kept) -> None:
    """Within one call, between calls, sessions and agents; each artifact is one of its own."""
    talk = await Talk(hansard).begin()
    other = await Talk(hansard, "another", "s").begin()
    first = await upload(talk, start(talk), header("a"), *chunks(), header("b"), *chunks())
    await until(kept, 1)
    again = await upload(other, start(other), header("c", checksum_sha256=DIGEST), *chunks())
    await until(kept, 1)
    named = [*first.artifact_upload.artifacts, *again.artifact_upload.artifacts]
    assert len({artifact.artifact_id for artifact in named}) == 3
    for talker, artifact in zip((talk, talk, other), named, strict=True):
        assert artifact.size_bytes == len(DATA)
        assert (await download(talker, artifact.artifact_id))[1] == DATA
    delete = artifact_service_pb2.DeleteArtifactRequest
    for artifact in first.artifact_upload.artifacts:
        await hansard.artifacts.DeleteArtifact(
            delete(artifact_id=artifact.artifact_id, **talk.keys)
        )
    assert (await download(other, named[2].artifact_id))[1] == DATA


async def test_fork_shares_the_bytes(hansard: Running, kept: Kept) -> None:
    talk = await Talk(hansard).begin()
    event = await upload(talk, start(talk), header(), *chunks())
    artifact_id = event.artifact_upload.artifacts[0].artifact_id
    fork = session_service_pb2.CreateSessionRequest(
        agent_key=talk.keys["agent_key"],
        key="fork",
        name="F",
        from_session={"session_key": talk.keys["session_key"]},
    )
    await hansard.sessions.CreateSession(fork)
    await hansard.sessions.DeleteSession(session_service_pb2.DeleteSessionRequest(**talk.keys))
    assert len(kept.names()) == 1
    forked = talk.another("fork")
    assert (await download(forked, artifact_id, offset=7))[1] == DATA[7:]
