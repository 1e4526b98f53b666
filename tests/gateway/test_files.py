"""Files over HTTP: forms that are uploaded as they arrive, and bytes in ranges."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import shutil
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tests.gateway.test_routes import ok, refused
from tests.support.gateway import Door, parse_frames
from tests.support.talk import Talk

SESSION = "/v2/agents/agent/sessions/s"
MIB = 1024 * 1024


async def upload(door: Door, *files: Any, status: int = 201, **more: Any) -> Any:
    posted = [("file", file) for file in files]
    return await ok(door, "POST", f"{SESSION}/upload", status, files=posted, **more)


async def test_an_upload_is_one_event(door: Door) -> None:
    await Talk(door.server).begin()
    event = await upload(door, ("report.pdf", b"%PDF-1.7 ..."), ("a.txt", b"hello", "text/x-own"))
    assert event["type"] == "artifact_upload"
    assert event["session_key"] == "s"
    first, second = event["artifacts"]
    assert (first["filename"], first["mime_type"], first["size_bytes"]) == (
        "report.pdf",
        "application/pdf",
        12,
    )
    assert second["mime_type"] == "text/x-own"
    listed = await ok(door, "GET", f"{SESSION}/artifacts")
    assert [one["artifact_id"] for one in listed["artifacts"]] == [
        first["artifact_id"],
        second["artifact_id"],
    ]
    one = await ok(door, "GET", f"{SESSION}/artifacts/{second['artifact_id']}")
    assert base64.b64decode(one["data"]) == b"hello"
    assert one["checksum_sha256"] == hashlib.sha256(b"hello").hexdigest()


async def test_curl_uploads_as_the_guide_says(plain: Door, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not on PATH")
    await Talk(plain.server).begin()
    (tmp_path / "report.pdf").write_bytes(b"%PDF-1.7")
    (tmp_path / "analysis.docx").write_bytes(b"PK")
    process = await asyncio.create_subprocess_exec(
        *(curl, "-s", "-f", "-X", "POST", f"{plain.url}{SESSION}/upload"),
        *("-H", "x-api-key: none", "-F", "file=@report.pdf", "-F", "file=@analysis.docx"),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    assert b'"filename":"report.pdf"' in out
    assert b'"filename":"analysis.docx"' in out


async def test_an_upload_with_the_same_key_is_stored_once(door: Door) -> None:
    await Talk(door.server).begin()
    headers = {"Idempotency-Key": "once"}
    first = await upload(door, ("a.txt", b"hello"), headers=headers)
    assert await upload(door, ("a.txt", b"hello"), headers=headers) == first
    assert len((await ok(door, "GET", f"{SESSION}/artifacts"))["artifacts"]) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_message_with_files(door: Door, stream: bool) -> None:  # noqa: FBT001
    await Talk(door.server).begin([{"agent_output": {"content": "Seen."}}])
    files = [("files", ("a.txt", b"hello")), ("files", ("b.txt", b"world"))]
    data = {"message": "What is in them?", "stream_response": str(stream).lower()}
    answer = await door.http.post(f"{SESSION}/events", files=files, data=data)
    assert answer.status_code == 201
    if stream:
        frames = parse_frames(answer.text)
        assert frames.types[:2] == ["artifact_upload", "input_message"]
        assert frames.types[-1] == "end"
        events = [frame.data for frame in frames.frames]
    else:
        events = answer.json()["events"]
        types = [event["type"] for event in events]
        assert types == ["artifact_upload", "input_message", "agent_output"]
    parts = events[1]["messages"]
    assert parts[0] == {"type": "text", "content": "What is in them?"}
    assert [part["artifact"]["filename"] for part in parts[1:]] == ["a.txt", "b.txt"]


async def test_files_or_a_message_alone(plain: Door) -> None:
    await Talk(plain.server).begin()
    path = f"{SESSION}/events"
    only = await ok(plain, "POST", path, 201, files=[("files", ("a.txt", b"hello"))])
    assert [event["type"] for event in only["events"]] == ["artifact_upload"]
    said = await ok(plain, "POST", path, 201, files={"message": (None, "Hello?")})
    assert said["events"][0]["messages"] == [{"type": "text", "content": "Hello?"}]
    for wrong, field in (
        ({"nix": (None, "x")}, "nix"),
        ({"files": (None, "x")}, "files"),
        ({"message": (None, "x"), "stream_response": (None, "maybe")}, "stream_response"),
        ({"stream_response": (None, "true")}, "files"),
    ):
        told = await refused(plain, "POST", path, 400, files=wrong)
        assert list(told["field_errors"]) == [field]


async def test_bytes_come_whole_in_ranges_or_not_at_all(door: Door) -> None:
    await Talk(door.server).begin()
    data = bytes(range(256)) * 4_000
    event = await upload(door, ("data.bin", data))
    path = f"{SESSION}/artifacts/{event['artifacts'][0]['artifact_id']}/content"
    whole = await door.http.get(path)
    assert whole.content == data
    etag = whole.headers["etag"]
    assert etag == f'"{hashlib.sha256(data).hexdigest()}"'
    assert whole.headers["accept-ranges"] == "bytes"
    assert whole.headers["content-length"] == str(len(data))
    head = await door.http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(data))
    size = len(data)
    for wanted, begin, end in (
        ("bytes=0-0", 0, 1),
        ("bytes=300000-", 300_000, size),
        ("bytes=-5", size - 5, size),
        (f"bytes=5-{size * 2}", 5, size),
        (f"bytes=-{size * 2}", 0, size),
    ):
        part = await door.http.get(path, headers={"range": wanted})
        assert part.content == data[begin:end], wanted
        if (begin, end) != (0, size):
            assert part.status_code == 206
            assert part.headers["content-range"] == f"bytes {begin}-{end - 1}/{size}"
    for ignored in ("bytes=5-1", "lines=1-2", "bytes=0-1,5-6", "bytes=x"):
        assert (await door.http.get(path, headers={"range": ignored})).status_code == 200
    beyond = await door.http.get(path, headers={"range": f"bytes={size}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{size}")
    for tag in (etag, f'"x", {etag}', f"W/{etag}", "*"):
        same = await door.http.get(path, headers={"if-none-match": tag})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
    changed = await door.http.get(path, headers={"range": "bytes=0-0", "if-range": '"x"'})
    assert (changed.status_code, len(changed.content)) == (200, size)
    assert (await refused(door, "GET", path.replace("art_", "art_no"), 404))["code"] == (
        "artifact_not_found"
    )


async def test_an_empty_file(plain: Door) -> None:
    await Talk(plain.server).begin()
    event = await upload(plain, ("empty", b""))
    path = f"{SESSION}/artifacts/{event['artifacts'][0]['artifact_id']}"
    assert (await plain.http.get(f"{path}/content")).content == b""
    assert (await ok(plain, "GET", path))["data"] == ""


@pytest.mark.parametrize(
    "filename", ['a";x="b.txt', "a b'c.txt", "ä 中 🎉.txt", "100%25.txt", "a;b,c.txt", "..txt"]
)
async def test_odd_names_come_back_as_they_were(plain: Door, filename: str) -> None:
    talk = await Talk(plain.server).begin()
    event = await upload(plain, (filename, b"x"))
    del talk
    kept = event["artifacts"][0]["filename"]
    answer = await plain.http.get(
        f"{SESSION}/artifacts/{event['artifacts'][0]['artifact_id']}/content"
    )
    said = answer.headers["content-disposition"]
    assert said.isascii()
    assert said.count('"') == 2
    assert unquote(said.partition("filename*=UTF-8''")[2]) == kept
    # httpx escapes a quote as browsers do.
    assert kept.replace("%22", '"') == filename
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]


async def test_no_file_is_held_whole(plain: Door) -> None:
    await Talk(plain.server).begin()
    size = 24 * MIB
    boundary = "x" * 20

    async def form() -> AsyncIterator[bytes]:
        head = f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\n'
        yield head.encode()
        for _ in range(size // 65_536):
            yield bytes(65_536)
        yield f"\r\n--{boundary}--\r\n".encode()

    kind = {"content-type": f"multipart/form-data; boundary={boundary}"}
    tracemalloc.start()
    try:
        event = await ok(plain, "POST", f"{SESSION}/upload", 201, content=form(), headers=kind)
        path = f"{SESSION}/artifacts/{event['artifacts'][0]['artifact_id']}"
        received = 0
        async with plain.http.stream("GET", f"{path}/content") as answer:
            async for chunk in answer.aiter_raw():
                received += len(chunk)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert received == size
    # Gateway, server and client together.
    assert peak < 12 * MIB
    one = await ok(plain, "GET", path)
    assert one["size_bytes"] == size
    assert "data" not in one
