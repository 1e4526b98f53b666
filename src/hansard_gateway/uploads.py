"""Files over HTTP: multipart bodies are handed to UploadArtifacts while they arrive."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from hansard.v1 import artifact_service_pb2
from hansard_gateway import bodies, multipart
from hansard_gateway.calls import CREATED
from hansard_gateway.contract import Binding
from hansard_gateway.errors import HttpError, draining, from_grpc, invalid
from hansard_gateway.json_writer import to_json
from hansard_gateway.replies import json_reply
from hansard_gateway.requests import set_path, set_request_id
from hansard_gateway.settings import KIB, MIB
from hansard_gateway.sse import EventStream
from hansard_gateway.turns import STREAM, Turns
from hansard_gateway.upstream import Broken, UploadFailed, Upstream, metadata_of

MULTIPART_TYPE: Final = "multipart/form-data"
_FILE_FIELDS: Final = frozenset({"file", "files"})
_MESSAGE: Final = "message"
_FIELDS: Final = frozenset({_MESSAGE, STREAM})
_FIELD_MAX_BYTES: Final = 4 * MIB
_PIECE_MAX_BYTES: Final = 256 * KIB
# What browsers and curl say when they do not know: then the server looks at the bytes.
_UNKNOWN_TYPES: Final = frozenset({"", "application/octet-stream"})

_Request = artifact_service_pb2.UploadArtifactsRequest


class Form:
    """A form that is coming in: its files as requests of an upload, its fields as text."""

    def __init__(self, request: Request, upstream: Upstream, start: Any) -> None:
        """Read the request's body; `start` says where its files go. Raises HttpError."""
        if bodies.media_type(request) != MULTIPART_TYPE:
            raise HttpError("unsupported_media_type", [f"the body must be {MULTIPART_TYPE}"])
        self.fields: dict[str, str] = {}
        self.failure: BaseException | None = None
        self._start = start
        body = bodies.receive(request, upstream.options)
        boundary = multipart.boundary_of(request.headers["content-type"])
        self._parts = multipart.parse(body, boundary)
        self._first_file: multipart.Part | None = None

    async def has_files(self) -> bool:
        """Read up to the first file; False when there is none. Raises HttpError, ClientGone."""
        self._first_file = await self._next_file()
        return self._first_file is not None

    async def requests(self) -> AsyncGenerator[Any, None]:
        """Yield the requests of the upload. What fails is kept in `failure`, and ends the call."""
        try:
            yield _Request(start=self._start)
            part = self._first_file
            while part is not None:
                yield _Request(header=_header(part))
                async for piece in self._parts:
                    if not isinstance(piece, bytes):
                        break
                    for begin in range(0, len(piece), _PIECE_MAX_BYTES):
                        yield _Request(chunk=piece[begin : begin + _PIECE_MAX_BYTES])
                part = await self._next_file()
        except (HttpError, bodies.ClientGone) as failure:
            self.failure = failure
            raise

    async def close(self) -> None:
        """Stop reading."""
        await self._parts.aclose()

    async def _next_file(self) -> multipart.Part | None:
        async for told in self._parts:
            if not isinstance(told, multipart.Part):
                continue
            if told.name in _FILE_FIELDS:
                if told.filename is None:
                    raise invalid(told.name, "must be a file, with a filename")
                return told
            if told.name not in _FIELDS:
                raise invalid(told.name[:64], "is not a field of this form")
            if told.name in self.fields:
                raise invalid(told.name, "is given twice")
            self.fields[told.name] = await self._read_field(told.name)
        return None

    async def _read_field(self, name: str) -> str:
        value = bytearray()
        async for piece in self._parts:
            if not isinstance(piece, bytes):
                break
            value += piece
            if len(value) > _FIELD_MAX_BYTES:
                raise HttpError("payload_too_large", [f"{name} is larger than {_FIELD_MAX_BYTES}"])
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise invalid(name, "is not UTF-8") from None


class Uploads:
    """Serves UploadArtifacts."""

    def __init__(self, upstream: Upstream) -> None:
        """Call this server."""
        self._upstream = upstream

    async def __call__(self, binding: Binding, request: Request) -> Response:
        """Return the event. Raises HttpError, ClientGone, grpc.aio.AioRpcError."""
        form = Form(request, self._upstream, start_of(binding, request))
        try:
            if not await form.has_files():
                raise invalid("file", "is missing")
            event = await self.upload(binding, request, form)
            if form.fields:
                raise invalid(next(iter(form.fields)), "is not a field of this form")
            return json_reply(to_json(event), CREATED)
        finally:
            await form.close()

    async def upload(self, binding: Binding, request: Request, form: Form) -> Any:
        """Return the event of the form's files. Raises HttpError, ClientGone."""
        metadata = metadata_of(request)
        try:
            return await self._upstream.upload(binding.rpc, form.requests(), metadata)
        except Broken:
            raise draining() from None
        except UploadFailed as error:
            # A call whose requests fail is ended by that.
            if form.failure is not None:
                raise form.failure from None
            raise _without_part(from_grpc(error, binding.rpc.request.DESCRIPTOR)) from None


class FormTurns:
    """Serves SendEvent with a form: files, and a message about them."""

    def __init__(self, upstream: Upstream, turns: Turns, upload: Binding) -> None:
        """Upload by the binding `upload`, send by `turns`."""
        self._upstream = upstream
        self._turns = turns
        self._uploads = Uploads(upstream)
        self._upload = upload

    async def __call__(self, binding: Binding, request: Request) -> Response | EventStream:
        """Return the answer. Raises HttpError, ClientGone, grpc.aio.AioRpcError."""
        start = artifact_service_pb2.UploadStart(
            agent_key=request.path_params["agent_key"],
            session_key=request.path_params["session_key"],
        )
        set_request_id(start, request)
        form = Form(request, self._upstream, start)
        try:
            before: tuple[Any, ...] = ()
            if await form.has_files():
                before = (await self._uploads.upload(self._upload, request, form),)
        finally:
            with suppress(RuntimeError):
                await form.close()
        streamed = form.fields.get(STREAM, "false").strip().lower()
        if streamed not in {"true", "false"}:
            raise invalid(STREAM, "must be true or false")
        message: Any = binding.rpc.request()
        set_path(binding, message, request)
        set_request_id(message, request)
        text = form.fields.get(_MESSAGE, "")
        parts = message.input_message.messages
        if text:
            parts.add().text.content = text
        for event in before:
            for reference in event.artifact_upload.artifacts:
                parts.add().artifact.artifact_id = reference.artifact_id
        if not text:
            if not before:
                raise invalid("files", "is missing, and so is message")
            return self._only_files(before, message, streamed=streamed == "true")
        return await self._turns.run(
            binding, request, message, streamed=streamed == "true", before=before
        )

    def _only_files(
        self, before: tuple[Any, ...], message: Any, *, streamed: bool
    ) -> Response | EventStream:
        return self._turns.only(before, message.session_key, streamed=streamed)


def start_of(binding: Binding, request: Request) -> Any:
    """Return where the request's files go. Raises HttpError."""
    message: Any = binding.rpc.request()
    set_path(binding, message, request)
    set_request_id(message.start, request)
    return message.start


def _header(part: multipart.Part) -> Any:
    header = artifact_service_pb2.UploadHeader(filename=part.filename or "")
    if part.media_type.lower() not in _UNKNOWN_TYPES:
        header.mime_type = part.media_type
    return header


def _without_part(error: HttpError) -> HttpError:
    """Name the fields as the form has them."""
    fields = {path.removeprefix("header."): words for path, words in error.field_errors.items()}
    if fields:
        error.field_errors = fields
        error.messages = [f"{path}: {words}" if path else words for path, words in fields.items()]
    return error
