"""The bytes of artifacts over HTTP: whole, in ranges, only when they are new, or only their head.

https://www.rfc-editor.org/rfc/rfc9110#section-14
"""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final
from urllib.parse import quote as percent

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hansard_gateway.contract import Binding
from hansard_gateway.errors import HttpError, draining, from_grpc
from hansard_gateway.json_writer import member, to_members
from hansard_gateway.replies import json_reply
from hansard_gateway.requests import build
from hansard_gateway.settings import MIB
from hansard_gateway.upstream import Broken, Upstream, metadata_of

INLINE_MAX_BYTES: Final = 8 * MIB
"""Up to this size an artifact's bytes stand in its JSON."""

_RANGE: Final = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))\Z")
_MEDIA_TYPE: Final = re.compile(r"[0-9A-Za-z!#$&^_.+-]+/[0-9A-Za-z!#$&^_.+-]+(;[ -~]*)?\Z")
_PLAIN: Final = re.compile(r"[^0-9A-Za-z._ -]")


class Content:
    """Serves DownloadArtifact."""

    def __init__(self, upstream: Upstream, get: Binding) -> None:
        """Call this server; `get` gets an artifact without its bytes."""
        self._upstream = upstream
        self._get = get

    async def __call__(self, binding: Binding, request: Request) -> Response | Bytes:
        """Return the bytes. Raises HttpError, grpc.aio.AioRpcError."""
        metadata = metadata_of(request)
        artifact = await self._upstream.call(self._get.rpc, build(self._get, request, {}), metadata)
        etag = f'"{artifact.checksum_sha256}"'
        headers = {
            "accept-ranges": "bytes",
            "etag": etag,
            "cache-control": "private, no-cache",
            "content-disposition": disposition(artifact.filename),
            # The bytes are strangers': no browser may run them in this origin.
            "content-security-policy": "sandbox; default-src 'none'",
            "x-content-type-options": "nosniff",
        }
        if _matches(request.headers.get("if-none-match", ""), etag):
            return Response(status_code=304, headers=headers)
        size = artifact.size_bytes
        begin, end = 0, size
        wanted = request.headers.get("range", "") if request.method == "GET" else ""
        if wanted and request.headers.get("if-range", etag) == etag:
            begin, end = _range(wanted, size)
        partial = (begin, end) != (0, size)
        if partial:
            headers["content-range"] = f"bytes {begin}-{end - 1}/{size}"
        kind = artifact.mime_type
        headers["content-type"] = kind if _MEDIA_TYPE.match(kind) else "application/octet-stream"
        headers["content-length"] = str(end - begin)
        if request.method == "HEAD":
            return Bytes(200, headers, None)
        message = build(binding, request, {})
        message.offset, message.length = begin, end - begin
        stream = self._upstream.stream(binding.rpc, message, metadata)
        return Bytes(206 if partial else 200, headers, stream, message)


class Bytes:
    """An answer of bytes, made as the client takes them."""

    def __init__(
        self,
        status: int,
        headers: dict[str, str],
        stream: AsyncGenerator[Any, None] | None,
        message: Any = None,
    ) -> None:
        """Send the chunks of the stream; None: only the headers."""
        self.status = status
        self.headers = headers
        self._stream = stream
        self._message = message

    async def open(self) -> None:
        """Begin the download, so that what fails can still be answered. Raises HttpError."""
        if self._stream is not None:
            try:
                await anext(self._stream)
            except Broken as broken:
                if broken.cause is None:
                    raise draining() from None
                raise from_grpc(broken.cause, self._message.DESCRIPTOR) from None

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Send everything. A download that breaks ends the connection, short of its length."""
        headers = [(k.encode(), v.encode("latin-1")) for k, v in self.headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        if self._stream is not None:
            async with aclosing(self._stream) as parts:
                async for part in parts:
                    await send(
                        {"type": "http.response.body", "body": part.chunk, "more_body": True}
                    )
        await send({"type": "http.response.body", "body": b""})


class Artifacts:
    """Serves GetArtifact: with the bytes, as clients of the documented API get small files."""

    def __init__(self, upstream: Upstream, download: Binding) -> None:
        """Call this server; `download` streams an artifact."""
        self._upstream = upstream
        self._download = download

    async def __call__(self, binding: Binding, request: Request) -> Response:
        """Return the artifact. Raises HttpError, grpc.aio.AioRpcError."""
        metadata = metadata_of(request)
        message = build(binding, request, {})
        artifact = await self._upstream.call(binding.rpc, message, metadata)
        members = to_members(artifact)
        if artifact.size_bytes <= INLINE_MAX_BYTES:
            data = bytearray()
            wanted = build(self._download, request, {})
            try:
                stream = self._upstream.stream(self._download.rpc, wanted, metadata)
                async with aclosing(stream) as parts:
                    async for part in parts:
                        data += part.chunk
            except Broken as broken:
                if broken.cause is None:
                    raise draining() from None
                raise from_grpc(broken.cause, message.DESCRIPTOR) from None
            members.append(member("data", base64.b64encode(data).decode()))
        return json_reply("{" + ",".join(members) + "}")


def disposition(filename: str) -> str:
    """Return a header that names the file, whatever its name is: RFC 6266, always a download."""
    plain = _PLAIN.sub("_", filename) or "file"
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{percent(filename, safe='')}"


def _matches(wanted: str, etag: str) -> bool:
    tags = {tag.strip().removeprefix("W/") for tag in wanted.split(",")}
    return bool(tags & {etag, "*"})


def _range(wanted: str, size: int) -> tuple[int, int]:
    """Return where the range begins and ends. What can't be read is all. Raises HttpError."""
    found = _RANGE.match(wanted)
    if found is None:
        return 0, size
    first, last, suffix = found.groups()
    if suffix is not None:
        begin, end = max(0, size - int(suffix)), size
    else:
        begin, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < begin:
            return 0, size
    if begin >= end:
        raise HttpError(
            "range_not_satisfiable",
            [f"the artifact has {size} bytes"],
            headers={"content-range": f"bytes */{size}"},
        )
    return begin, end
